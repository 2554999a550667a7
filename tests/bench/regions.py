# SPDX-License-Identifier: Apache-2.0
"""How late a remote peer is refused when memory that it reaches over RDMA is taken back.

A peer at the other end of a cable reads without a pause. Its memory is taken away by the kernel
alone (one `ibv_dereg_mr` of another program's, none of our code involved), by a lease that ends in
order, and by the kill of a lease's cgroup, which is the reaper's cut. What is told of each: when
the last read came back that went through, and when the first came back that did not.

Rule: all of them on the same devices with the same peer, in turns. What ends with a process ends
when the kernel has ended that, so beside the reaper's cut there is what the kernel alone takes for
the same owner of the same objects: one word to cgroup.kill, nothing before it. A request that finds
its queue pair gone is answered by nobody, so after a kill the peer's own timer says when it gives
up: what it is set to is told beside it.

Needs the machine of tests/vm: two soft-RoCE devices.
"""

from __future__ import annotations

import os
import select
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from leased.hardware.devices import Devices
from leased.terms.moment import NS_PER_MS
from tests.bench.loadgen import Figures
from tests.doubles.rdma_host import SoftDevice, cabled
from tests.doubles.rdma_leases import Held, hands, holding, now_ns, race, region
from tests.vm.guest.remote_peer import GIVES_UP_MS, RemotePeer

Taken = tuple[int, int, dict[str, Any]]
"""When the taking away began, when it had been done, and what the peer tells."""

REAPER_PRIORITY = 10
"""systemd/leased-reaper.service."""

_VENDOR = Path("/sys/class/dmi/id/sys_vendor")


def measure_regions(*, rounds: int, say: Callable[[str], None]) -> list[Figures]:
    """`rounds` of each way; nothing on a machine whose network is somebody's."""
    if not _VENDOR.exists() or _VENDOR.read_text().strip() != "QEMU":
        say("NOT MEASURED: memory taken from an RDMA peer: needs the machine of tests/vm")
        return []
    found: dict[str, list[Taken]] = {way: [] for way in WAYS}
    with cabled() as device, hands() as devices:
        # Programs that stay: a machine under emulation takes seconds to begin each.
        peers = device.peer(here=True), device.peer()
        for _ in range(rounds):
            for way, take in WAYS.items():
                found[way].append(trio.run(take, device, devices, *peers))
                for peer in peers:
                    peer.begin_anew()
        device.part()
    return [_figures(way, taken, say) for way, taken in found.items()]


async def _by_the_kernel(
    _device: SoftDevice, _devices: Devices, theirs: RemotePeer, peer: RemotePeer
) -> Taken:
    """No agent, no owner: two programs, one of which takes its own memory back."""
    for one, other in ((theirs, peer), (peer, theirs)):
        one.ask("connect", mtu=1024, **other.end)
    peer.tell("race", **theirs.ask("region"))
    assert peer.answer() == {"racing": True}
    done = theirs.ask("deregister")
    return done["began_ns"], done["ended_ns"], peer.answer()


async def _withdrawn(
    device: SoftDevice, devices: Devices, _theirs: RemotePeer, peer: RemotePeer
) -> Taken:
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        steps = await devices.withdraw(held.lease)
        told = await trio.to_thread.run_sync(peer.answer)
        # Windows invalidated, memory deregistered: what follows takes nothing from anybody.
        return steps[0].began_ns, steps[1].ended_ns, told


async def _killed(
    device: SoftDevice, devices: Devices, _theirs: RemotePeer, peer: RemotePeer
) -> Taken:
    return await _ended(device, devices, peer, Held.kill)


async def _killed_by_the_kernel(
    device: SoftDevice, devices: Devices, _theirs: RemotePeer, peer: RemotePeer
) -> Taken:
    return await _ended(device, devices, peer, _by_one_word)


def _by_one_word(held: Held) -> tuple[int, int]:
    """The kernel's own part of a cut; (began, everybody gone), boottime ns."""
    pidfd = os.pidfd_open(held.owner_pid)
    try:
        began_ns = now_ns()
        Path(held.prepared.cgroup, "cgroup.kill").write_text("1")
        select.select([pidfd], [], [])
        return began_ns, now_ns()
    finally:
        os.close(pidfd)


async def _ended(
    device: SoftDevice,
    devices: Devices,
    peer: RemotePeer,
    how: Callable[[Held], tuple[int, int]],
) -> Taken:
    async with holding(devices, region(device)) as held:
        await race(peer, await held.connect(peer))
        with real_time():
            began_ns, ended_ns = how(held)
        return began_ns, ended_ns, await trio.to_thread.run_sync(peer.answer)


@contextmanager
def real_time() -> Iterator[None]:
    """Go before everybody else, as the reaper does under its unit."""
    mine = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAPER_PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *mine)


WAYS = {
    "the kernel alone (ibv_dereg_mr)": _by_the_kernel,
    "the kernel alone (cgroup.kill)": _killed_by_the_kernel,
    "a lease that ends in order": _withdrawn,
    "a lease whose cgroup is killed": _killed,
}


def _figures(way: str, taken: list[Taken], say: Callable[[str], None]) -> Figures:
    """How long the taking away took, and from its beginning to the last answer, from its end to the
    first refusal."""
    times = {
        "taking": [ended - began for began, ended, _ in taken],
        "last": [told["last_ns"] - began for began, _, told in taken],
        "refused": [told["failed_ns"] - ended for _, ended, told in taken],
    }
    figures: Figures = {"way": way, "rounds": len(taken), "gives_up_ms": GIVES_UP_MS}
    words = []
    for name, all_ in times.items():
        middle, worst = statistics.median(all_), max(all_)
        figures |= {f"{name}_p50_ns": middle, f"{name}_max_ns": worst}
        words.append(f"{name} p50 {middle / NS_PER_MS:+.2f}, max {worst / NS_PER_MS:+.2f} ms")
    say(f"memory over RDMA taken by {way}: {'; '.join(words)} ({len(taken)} times)")
    return figures
