# SPDX-License-Identifier: Apache-2.0
"""How late a remote peer is refused when memory that it reaches over RDMA is taken back.

A peer at the other end of a cable reads without a pause. Its memory is taken away by the kernel
alone (one `ibv_dereg_mr` of another program's, none of our code involved), by a lease that ends in
order, and by the kill of a lease's cgroup, which is the reaper's cut. What is told of each: when
the last read came back that went through, and when the first came back that did not.

Rule: all three on the same devices with the same peer, in turns. A request that finds its queue
pair gone is answered by nobody, so after a kill the peer's own timer says when it gives up: what it
is set to is told beside it.

Needs the machine of tests/vm: two soft-RoCE devices.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from leased.terms.moment import NS_PER_MS
from tests.bench.loadgen import Figures
from tests.doubles.rdma_host import SoftDevice, cabled
from tests.doubles.rdma_leases import hands, holding, race, region
from tests.vm.guest.remote_peer import GIVES_UP_MS

Taken = tuple[int, int, dict[str, Any]]
"""When the taking away began, when it had been done, and what the peer tells."""

_VENDOR = Path("/sys/class/dmi/id/sys_vendor")


def measure_regions(*, rounds: int, say: Callable[[str], None]) -> list[Figures]:
    """`rounds` of each way; nothing on a machine whose network is somebody's."""
    if not _VENDOR.exists() or _VENDOR.read_text().strip() != "QEMU":
        say("NOT MEASURED: memory taken from an RDMA peer: needs the machine of tests/vm")
        return []
    found: dict[str, list[Taken]] = {way: [] for way in WAYS}
    with cabled() as device:
        for _ in range(rounds):
            for way, take in WAYS.items():
                found[way].append(trio.run(take, device))
                device.part()
    return [_figures(way, taken, say) for way, taken in found.items()]


async def _by_the_kernel(device: SoftDevice) -> Taken:
    """No agent, no owner: two programs, one of which takes its own memory back."""
    theirs, peer = device.peer(here=True), device.peer()
    for one, other in ((theirs, peer), (peer, theirs)):
        one.ask("connect", mtu=1024, **other.end)
    peer.tell("race", **theirs.ask("region"))
    assert peer.answer() == {"racing": True}
    done = theirs.ask("deregister")
    return done["began_ns"], done["ended_ns"], peer.answer()


async def _withdrawn(device: SoftDevice) -> Taken:
    peer = device.peer()
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            await race(peer, await held.connect(peer))
            steps = await devices.withdraw(held.lease)
            told = await trio.to_thread.run_sync(peer.answer)
            # Windows invalidated, memory deregistered: what follows takes nothing from anybody.
            return steps[0].began_ns, steps[1].ended_ns, told


async def _killed(device: SoftDevice) -> Taken:
    peer = device.peer()
    with hands() as devices:
        async with holding(devices, region(device)) as held:
            await race(peer, await held.connect(peer))
            began_ns, ended_ns = held.kill()
            return began_ns, ended_ns, await trio.to_thread.run_sync(peer.answer)


WAYS = {
    "the kernel alone (ibv_dereg_mr)": _by_the_kernel,
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
