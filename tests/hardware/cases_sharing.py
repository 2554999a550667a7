# SPDX-License-Identifier: Apache-2.0
"""Cases: memory that somebody outside the lease has too, when its holder is killed."""

from __future__ import annotations

import os
import select
import socket

from tests.hardware.bench import Bench
from tests.hardware.case import Measured, NotRun, case, demand
from tests.hostile.cuda_holders import SECRET, SHARED_BYTES
from tests.hostile.cuda_process import TrickFailed

SECRET_WORD = f"{SECRET:08x}"
LINGER_S = 2.0


@case(
    "Memory imported by handle is accounted for as long as the importer lives",
    seconds_most=40,
    headline=("outlives_exporter", "released_ms"),
)
def importer_outlives(bench: Bench) -> Measured:
    """teardown.md 2.10 (e): CUDA IPC, the exporter killed."""
    before = bench.demand_idle()
    with bench.hold("ipc_export") as exporter:
        handle = exporter.words[0]
        try:
            with bench.hold("ipc_import", handle) as importer:
                measured: Measured = {"read_before": importer.words[0]}
                exporter.kill()
                gone = bench.time_until(lambda told: exporter.pid not in told["pids"])
                measured["exporter_unlisted_ms"] = "never" if gone is None else gone
                measured["read_after"] = importer.ask()
                told = bench.ask("lists")
                own = int(told["bytes"].get(str(importer.pid), 0))
                measured["used_beside_importer"] = int(told["used"]) - before - own
        except TrickFailed as refused:
            raise NotRun(f"IPC is not possible here: {refused}") from refused
    back = bench.time_until(lambda told: told["used"] <= before)
    measured["released_ms"] = "never" if back is None else back
    kept = measured["read_after"] == SECRET_WORD
    measured["outlives_exporter"] = "yes" if kept else "no"
    seen = int(measured["used_beside_importer"]) >= SHARED_BYTES or own >= SHARED_BYTES
    demand(not kept or seen, "the memory is readable and shows in no number", measured)
    demand(back is not None, "the memory stays in use with nobody there", measured)
    return measured


@case(
    "Memory as a descriptor outside is accounted for as long as it is open",
    seconds_most=40,
    headline=("outlives_exporter", "used_in_flight", "descriptor_is"),
)
def descriptor_outside(bench: Bench) -> Measured:
    """teardown.md 2.10 (d): a descriptor of memory, sent away, the sender killed."""
    before = bench.demand_idle()
    ours, theirs = socket.socketpair()
    measured: Measured = {}
    with ours, theirs:
        number = str(theirs.fileno())
        try:
            with bench.hold("descriptor_export", number, fds=[theirs.fileno()]) as exporter:
                exporter.kill()
        except TrickFailed as refused:
            raise NotRun(f"memory cannot be exported here: {refused}") from refused
        # Still in flight: it is in nobody's table of descriptors.
        bench.time_until(lambda told: told["used"] <= before, LINGER_S)
        measured["used_in_flight"] = bench.used_bytes() - before
        _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
    try:
        measured["descriptor_is"] = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        measured["used_while_open"] = bench.used_bytes() - before
        with bench.hold("descriptor_import", str(descriptor), fds=[descriptor]) as importer:
            measured["read_outside"] = importer.words[0]
    finally:
        os.close(descriptor)
    back = bench.time_until(lambda told: told["used"] <= before)
    measured["released_ms"] = "never" if back is None else back
    kept = measured["read_outside"] == SECRET_WORD
    measured["outlives_exporter"] = "yes" if kept else "no"
    seen = int(measured["used_while_open"]) >= SHARED_BYTES
    demand(not kept or seen, "the memory is readable and shows in no number", measured)
    demand(back is not None, "the memory stays in use with nobody there", measured)
    return measured


@case(
    "A child that only has the descriptors is seen in the lists or in the memory",
    seconds_most=30,
    headline=("used_after_parent", "listed"),
)
def forked_child(bench: Bench) -> Measured:
    """The parent killed, a child of fork alive."""
    before = bench.demand_idle()
    with bench.hold("forked") as parent:
        child = int(parent.words[0])
        parent.watch(child)
        parent.kill()
        bench.time_until(lambda told: told["used"] <= before, LINGER_S)
        told = bench.ask("lists")
        measured: Measured = {
            "used_after_parent": int(told["used"]) - before,
            "listed": "parent" if parent.pid in told["pids"] else "",
        }
        if child in told["pids"]:
            measured["listed"] = "child"
    back = bench.time_until(lambda told: told["used"] <= before)
    measured["released_ms"] = "never" if back is None else back
    demand(back is not None, "memory stays in use after the child's death", measured)
    return measured


@case(
    "Memory and lists settle: two looks half a second apart agree",
    seconds_most=30,
    headline=("first_look_differed",),
)
def settles(bench: Bench) -> Measured:
    """What the agent believes: two equal looks. Here after kills, and how often
    the first of them lied."""
    before = bench.demand_idle()
    early = 0
    for _ in range(5):
        with bench.hold("small") as held:
            held.kill()
        bench.time_until(lambda told, pid=held.pid: pid not in told["pids"])
        first = bench.used_bytes()
        select.select([], [], [], 0.5)
        early += first != bench.used_bytes()
    measured: Measured = {"kills": 5, "first_look_differed": early}
    demand(bench.used_bytes() <= before + (16 << 20), "memory in use grows with kills", measured)
    return measured
