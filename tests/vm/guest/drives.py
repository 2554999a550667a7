# SPDX-License-Identifier: Apache-2.0
"""The machine's NVMe namespaces, as a test handles them: by identity, past every cache, and by the
hands of tenants that are processes of their own.

Rule: a namespace is looked up at each use, because names move. Does not import the agent.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import host

A1, A2, B1 = "5254000000a10001", "5254000000a10002", "5254000000b10001"
A3 = "5f6c1fd60cf24a59bd3451bd59a1a003"
"""Detached; attached by whoever needs it."""
B2 = "nvme.1b36-6c65617365642d62-51454d55204e564d65204374726c-00000002"
FREE = (A1, A2, B1, B2)

USUAL = {
    "offer": '"listed"',
    "namespaces": json.dumps([*FREE, A3]),
    "raw": "true",
    "crypt_erase": "[]",
    "raw_erase": '["crypto", "format", "zero"]',
}
"""How the agent is configured while namespaces are tested, and when the machine goes down."""

UNUSUAL = {**USUAL, "crypt_erase": '["crypto", "zero"]', "raw_erase": '["sanitize-block"]'}
"""Two ways of which QEMU's drives know one."""

CONFIG = Path("/etc/leased/leased.toml")
BLOCK_BYTES = 4096
EDGE_BYTES = 256 << 10


def configure(section: str = "hardware.block", /, **settings: str) -> None:
    """Have a section say so, as TOML has it, and start the agent anew if that is news."""
    if write(section, **settings):
        host.run("systemctl", "restart", "leased.service")
        host.serving()


def write(section: str = "hardware.block", /, **settings: str) -> bool:
    """Have a section of the configuration say so; whether that is news."""
    text = CONFIG.read_text()
    begins = rf"^({re.escape(f'[{section}]')}\n)"
    head, table, rest = re.split(begins, text, maxsplit=1, flags=re.M)
    own, after = re.split(r"^(?=\[)", rest, maxsplit=1, flags=re.M)
    for key, value in settings.items():
        own, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", own, flags=re.M)
        assert count == 1, key
    CONFIG.write_text(head + table + own + after)
    return head + table + own + after != text


def sysfs(identity: str) -> Path | None:
    """The namespace's place in sysfs: its head, not a path to it."""
    for place in Path("/sys/block").glob("nvme*n*"):
        if (place / "hidden").read_text().strip() == "0" and identity in names(place):
            return place
    return None


def names(place: Path) -> set[str]:
    """What a namespace calls itself."""
    found = set()
    for name in ("eui", "uuid", "wwid"):
        try:
            found.add((place / name).read_text().strip().replace(" ", ""))
        except OSError:
            continue
    return found | {name.replace("-", "") for name in found if not name.startswith("nvme.")}


def device(identity: str) -> str:
    """Its node now."""
    place = sysfs(identity)
    assert place is not None, f"{identity} is not there"
    return f"/dev/{place.name}"


def controllers(subsystem: str) -> list[Path]:
    """The controllers of a subsystem of the machine ("a", "b")."""
    return [
        place
        for place in sorted(Path("/sys/class/nvme").glob("nvme*"))
        if (place / "subsysnqn").read_text().strip().endswith(f"leased-{subsystem}")
    ]


def read_past_caches(path: str, offset: int, size_bytes: int) -> bytes:
    """What the device itself has."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, size_bytes) as page:
            got = os.preadv(fd, [page], offset)
            return page[:got]
    finally:
        os.close(fd)


def size(path: str) -> int:
    """The bytes of a device."""
    return int(host.run("blockdev", "--getsize64", path))


def search(path: str, wanted: bytes, step_bytes: int = 4 << 20) -> int:
    """How often the bytes (whole blocks) are on the device."""
    size_bytes = size(path)
    return sum(
        read_past_caches(path, at, min(step_bytes, size_bytes - at)).count(wanted)
        for at in range(0, size_bytes, step_bytes)
    )


def is_had_alone(path: str) -> bool:
    """Whether nobody has it exclusively."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def offered() -> dict[str, dict[str, Any]]:
    """The namespaces that may be leased, by resource id."""
    listed = host.call("Device.List")["resources"]
    return {one["resource_id"]: one for one in listed if one["kind"] == "block"}


def note_of(identity: str) -> str:
    """Why a namespace may not be leased; "" if nothing is said of it."""
    notes = host.call("Device.List")["notes"]
    return next((note for note in notes if note.startswith(f"block:{identity} ")), "")


def look() -> None:
    """Have the agent look now: a notice of something that nobody leases."""
    (host.NODES / "node0/uevent").write_text("change")


def settled(seconds: float = host.HANGS_S) -> None:
    """Every namespace that is named is offered and free."""

    def free() -> bool:
        found = offered()
        return all(
            f"block:{one}" in found
            and found[f"block:{one}"]["use"]["free"] == found[f"block:{one}"]["capacity"]
            for one in FREE
        )

    host.eventually("every namespace is free again", free, seconds)


def ask(*identities: str, raw: bool = False) -> list[dict[str, Any]]:
    """Asks for whole namespaces."""
    prefix = "block:raw:" if raw else "block:"
    return [
        {"kind": "block", "capacity": 1 << 20, "resource_id": prefix + one} for one in identities
    ]


def mappings() -> list[str]:
    """Our mappings, by name."""
    said = host.run("dmsetup", "info", "-c", "--noheadings", "-o", "name,uuid", "--separator", " ")
    return [line.split()[0] for line in said.splitlines() if " LEASED-" in line]


SCRIPT = """
import json, mmap, os, signal, socket, subprocess, sys, time
sys.path.insert(0, {here!r})
import drives, host
connection = host.Connection()
lease = connection.acquire(*{asks!r}, ttl_s={ttl_s!r})
fds, paths = connection.fds, [one["value"] for one in lease["access"]]
def say(line):
    print(json.dumps(line), flush=True)
say(lease)
{act}
say("done")
while True:
    time.sleep(100)
"""


class Tenant:
    """A process that has leased namespaces, as `user`, and does `act` with them: `fds` and `paths`
    are theirs."""

    def __init__(
        self,
        *asks: dict[str, Any],
        act: str = "",
        ttl_s: float = host.LIVES_S,
        user: str = "alice",
        before: tuple[str, ...] = (),
    ) -> None:
        here = str(Path(__file__).parent)
        script = SCRIPT.format(here=here, asks=asks, ttl_s=ttl_s, act=act)
        words = [*before, sys.executable, "-c", script]
        if user != "root":
            words = ["runuser", "-u", user, "--", *words]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )

    def ready(self) -> Tenant:
        """Wait until it has leased what it asked for, and done what it was to do."""
        self.granted = self._heard()
        self.lease_id: str = self.granted["lease"]["lease_id"]
        self.deadline_ns: int = self.granted["lease"]["runtime"]["deadline_boottime_ns"]
        self.paths = [one["value"] for one in self.granted["access"]]
        assert self._heard() == "done"
        return self

    def _heard(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the tenant ended: status {self.process.wait(host.HANGS_S)}"
        return json.loads(line)

    def ended(self, seconds: float = host.HANGS_S) -> dict[str, Any]:
        """Wait until the lease is reclaimed or fenced, and the process gone; what it is then."""
        runtime = host.closed(self.lease_id, seconds)
        self.process.kill()
        self.process.wait(host.HANGS_S)
        return runtime

    def revoke(self) -> int:
        """Have it taken away; when that was asked for."""
        now_ns = host.boot_ns()
        host.call("Admin.Revoke", host.ADMIN, lease_id=self.lease_id)
        return now_ns

    def end_in(self, seconds: float) -> None:
        """Have its deadline come so soon."""
        self.deadline_ns = host.end_in(self.lease_id, seconds)

    def end(self) -> dict[str, Any]:
        """Take it away and wait; what it is then."""
        self.revoke()
        return self.ended()
