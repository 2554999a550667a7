# SPDX-License-Identifier: Apache-2.0
"""Nothing left: of the disk, of descriptors. What would begin is refused and says why; what has
begun is brought to its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.host import not_proven
from tests.doubles.host_agent import NS_PER_S, PATIENCE_S, HostAgent, denied, mem
from tests.doubles.story import judge
from tests.doubles.wire_peer import Peer, Remote, message

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
IMAGE_BYTES = 64 * MIB
PIPELINED = 16
LONG = "x" * 60
TAG = dict.fromkeys(("cost_center", "project", "request_class", "budget_group"), LONG)


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """An ext4 of its own in a file, without blocks kept for root."""
    with tempfile.TemporaryDirectory(prefix="leased-disk-") as directory:
        image, mount = Path(directory, "image"), Path(directory, "mnt")
        mount.mkdir()
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        try:
            make = ["mkfs.ext4", "-q", "-m", "0", "-N", "64", str(image)]
            subprocess.run(make, check=True, stdin=subprocess.DEVNULL, capture_output=True)
            subprocess.run(
                ["mount", "-o", "loop", str(image), str(mount)], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            not_proven("a full disk", f"no loop-mounted ext4 here: {error}")
        try:
            yield mount
        finally:
            subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(directory: Path, *, keep_bytes: int = 0) -> Path:
    """Take every block that is left, but for so many."""
    filler = directory / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if keep_bytes:
            os.posix_fallocate(fd, 0, shutil.disk_usage(directory).free - keep_bytes)
            return filler
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))
        os.fsync(fd)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (directory / "one more").write_bytes(bytes(64 << 10))
    (directory / "one more").unlink(missing_ok=True)
    return filler


def renew_until_refused(peer: Peer, lease_id: str) -> tuple[int, str]:
    """Renewals, pipelined, until one is refused; how many were not, and why that one was."""
    count = 0
    while True:
        peer.send(message("Lease.Renew", lease_id=lease_id) * PIPELINED)
        refused = None
        for _ in range(PIPELINED):
            answer = peer.answer()
            if "error" in answer:
                refused = refused or answer["parameters"]["reason"]
            else:
                assert refused is None, "renewed after a refusal"
                count += 1
        if refused is not None:
            return count, refused


def test_a_full_disk() -> None:
    with small_disk() as disk, HostAgent(state=disk) as agent:
        fill(disk, keep_bytes=20 * MIB)  # a segment, and no spare
        agent.start()
        filler = fill(disk)
        leases = [agent.acquire(ttl_ms=60_000, accounting_tag=TAG) for _ in range(8)]
        with agent.connect() as peer:
            renewed, reason = renew_until_refused(peer, leases[0]["lease_id"])
            print(f"{renewed} renewals until the reserve: {reason}")
            assert reason == "audit_unavailable"
            with denied("audit_unavailable"):
                peer.call("Lease.Acquire", resources=[mem(4096)], wait_ns=NS_PER_S)
            # The ends of leases are what the reserve is for.
            for lease in leases:
                peer.call("Lease.Release", lease_id=lease["lease_id"])
        for lease in leases:
            assert agent.wait_for(lease["lease_id"])["runtime"]["state"] == "reclaimed"
        judge(agent)
        # A stop, a kill and a start need no new block either.
        assert agent.stop() == 0
        agent.start()
        agent.kill()
        agent.start()
        with denied("audit_unavailable"):
            agent.call("Lease.Acquire", resources=[mem(4096)])
        filler.unlink()
        until = time.monotonic() + PATIENCE_S
        while True:  # the next spare segment is tried for every few seconds
            try:
                agent.wait_for(agent.acquire(ttl_ms=1000)["lease_id"])
                break
            except Remote as refused:
                assert refused.parameters["reason"] == "audit_unavailable"
                assert time.monotonic() < until, "grants did not come back"
                select.select([], [], [], 0.1)
        story = judge(agent)
        assert all(life.closed for life in story.lives.values())


def test_a_disk_that_is_full_from_the_start() -> None:
    with small_disk() as disk, HostAgent(state=disk) as agent:
        filler = fill(disk)
        status, said = agent.refused()
        assert status == 78 and "free some space" in said and "Traceback" not in said, said
        filler.unlink()
        agent.start()
        agent.wait_for(agent.acquire(ttl_ms=1000)["lease_id"])
        judge(agent)


FEW = 60


def test_few_descriptors() -> None:
    """Grants beyond the limit are refused with a typed reason; leases end, and then it goes on."""
    with HostAgent() as agent:
        agent.start_reaper()
        # Without CAP_SYS_RESOURCE the agent cannot raise its own limit.
        agent.start(
            (
                *("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"),
                *("prlimit", f"--nofile={FEW}:{FEW}"),
            )
        )
        granted, refusal = [], None
        with agent.connect() as peer, agent.connect(admin=True) as admin:
            for _ in range(FEW):
                try:
                    asked = {"resources": [mem(4096)], "bind": "deadline"}
                    granted.append(peer.call("Lease.Acquire", **asked)["lease"]["lease_id"])
                    peer.drop_fds()
                except Remote as refused:
                    refusal = refused
                    break
            print(f"{len(granted)} leases with {FEW} descriptors; then {refusal}")
            assert refusal is not None and granted
            assert refusal.name in ("io.leased.Lease.Refused", "io.leased.Lease.DeviceError")
            # The one that could not be handed out ended at once: nobody was told of it.
            listed = peer.call("Lease.List")["leases"]
            live = [one["lease_id"] for one in listed if one["runtime"].get("ended") is None]
            assert sorted(live) == sorted(granted)
            ends: dict[str, int] = {}
            for lease_id in live:
                peer.call("Lease.Release", lease_id=lease_id)
                closed = admin.call("Lease.Wait", lease_id=lease_id, until="closed")["lease"]
                state = closed["runtime"]["state"]
                ends[state] = ends.get(state, 0) + 1
            # A worker that could not be started proves nothing: fenced, never guessed clean.
            print(f"ended: {ends}")
            assert set(ends) <= {"reclaimed", "fenced"} and ends["reclaimed"] > len(live) // 2
            again = peer.call("Lease.Acquire", resources=[mem(4096)], bind="deadline")
            peer.drop_fds()
            peer.call("Lease.Release", lease_id=again["lease"]["lease_id"])
            admin.call("Lease.Wait", lease_id=again["lease"]["lease_id"], until="closed")
        story = judge(agent)
        assert all(life.closed for life in story.lives.values())
