# SPDX-License-Identifier: Apache-2.0
"""Cases: who can reach the GPU, and who is seen to."""

from __future__ import annotations

import os
import select
import socket
import time

from tests.hardware.bench import Bench, NoAnswer
from tests.hardware.case import Failed, Measured, NotRun, case, demand
from tests.hostile.cuda_process import TrickFailed

MONITORS_KILLED = 5
NVML_ANSWERS_IN_S = 2.0


@case(
    "NVML attaches every GPU at its start; asked not to it knows of none; its end lets go of all",
    seconds_most=15,
    headline=("unattached_count", "attached"),
)
def attachment(bench: Bench) -> Measured:
    """teardown.md 2.10 (g), where the documentation says that handles attach."""
    with bench.unwatched():
        told = bench.run("tests.contract.gpu.questions", "attachment", budget_s=60)
    if "error" in told:
        raise Failed(f"NVML says {told['error']}")
    node = f"nvidia{told['minor']}"
    measured: Measured = {"unattached_count": int(told["unattached_count"])}
    for name in ("unattached", "attached", "handle", "shutdown"):
        measured[name] = " ".join(sorted(set(told[name]))) or "none"
    demand(node not in told["unattached"], "the node is open all the same", measured)
    demand(told["unattached_count"] == 0, "GPUs are known without being attached", measured)
    demand(node in told["attached"], "what is counted is not attached", measured)
    demand(not told["shutdown"], "descriptors stay open after the shutdown", measured)
    return measured


@case(
    "A device filter refuses new contexts, and only new ones",
    seconds_most=20,
    headline=("deny_us", "open_context"),
)
def filter_gates(bench: Bench) -> Measured:
    """teardown.md 2.10 (a)."""
    bench.demand_idle()
    try:
        from leased.hardware.verbs import deny_devices
    except ImportError as error:
        raise NotRun(f"the C verbs are not built here: {error}") from error
    with bench.leaf() as leaf, bench.hold("small", leaf=leaf) as held:
        measured: Measured = {"before": held.ask()}
        descriptor = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            began_ns = time.monotonic_ns()
            deny_devices(descriptor)
            measured["deny_us"] = (time.monotonic_ns() - began_ns) // 1000
        finally:
            os.close(descriptor)
        measured["open_context"] = held.ask()
        try:
            with bench.hold("small", leaf=leaf):
                measured["new_context"] = "made"
        except TrickFailed as refused:
            measured["new_context"] = str(refused)
        demand(measured["new_context"] != "made", "a denied process made a context", measured)
        return measured


@case("A killed monitor leaves NVML answering", seconds_most=20, headline=("slowest_answer_ms",))
def monitor_killed(bench: Bench) -> Measured:
    """teardown.md 2.10, the first of the known bugs."""
    slowest_ms = 0
    for _ in range(MONITORS_KILLED):
        with bench.hold("monitor") as watcher:
            watcher.watch(int(watcher.words[0]))
            select.select([], [], [], 0.1)
            watcher.close()
        began = time.monotonic()
        try:
            bench.ask("lists", NVML_ANSWERS_IN_S)
        except NoAnswer as silence:
            raise Failed(f"after a monitor was killed: {silence}") from silence
        slowest_ms = max(slowest_ms, round((time.monotonic() - began) * 1000))
    return {"killed": MONITORS_KILLED, "slowest_answer_ms": slowest_ms}


@case(
    "Whoever has the node open is found, with a context or without",
    seconds_most=20,
    headline=("scan_ms",),
)
def openers_found(bench: Bench) -> Measured:
    """The scan of the agent, on real nodes."""
    if os.geteuid() != 0:
        raise NotRun("not root: other users' descriptors cannot be seen")
    bench.demand_idle()
    with bench.hold("small") as first, bench.hold("node_only", str(bench.node)) as second:
        told = bench.run("tests.hardware.openers_of", str(bench.node), budget_s=30)
        found = {int(pid): how for pid, how in told["openers"].items()}
        measured: Measured = {
            "context": found.get(first.pid, "not found"),
            "node_only": found.get(second.pid, "not found"),
            "asker": found.get(bench.asker_pid, "not found"),
            "scan_ms": int(told["scan_ms"]),
        }
        demand("not found" not in measured.values(), "a holder was not found", measured)
    try:
        with bench.hold("ring_file", str(bench.node)) as third:
            told = bench.run("tests.hardware.openers_of", str(bench.node), budget_s=30)
            how = told["openers"].get(str(third.pid), "not found")
            measured["io_uring"] = how
            demand(how != "not found", "a file in an io_uring was not found", measured)
    except TrickFailed as refused:
        measured["io_uring"] = f"not played: {refused}"
    return measured


@case(
    "A node that was sent away keeps its context, and shows in the lists",
    seconds_most=30,
    headline=("listed_after_kill", "released_ms"),
)
def node_sent_away(bench: Bench) -> Measured:
    """Whether the driver's client lives as long as the last copy of its descriptor."""
    before = bench.demand_idle()
    ours, theirs = socket.socketpair()
    kept: list[int] = []
    measured: Measured = {}
    with ours, theirs:
        try:
            with bench.hold("nodes_sent", str(theirs.fileno()), fds=[theirs.fileno()]) as sender:
                while select.select([ours], [], [], 0)[0]:
                    kept += socket.recv_fds(ours, 1, 4)[1]
                measured["descriptors"] = len(kept)
                sender.kill()
            gone = bench.time_until(lambda told: sender.pid not in told["pids"], 2.0)
            measured["listed_after_kill"] = "for as long as it is open" if gone is None else "no"
            measured["used_while_open"] = bench.used_bytes() - before
        finally:
            for descriptor in kept:
                os.close(descriptor)
    released = bench.time_until(lambda told: told["used"] <= before)
    measured["released_ms"] = "never" if released is None else released
    demand(bool(kept), "no descriptor of the GPU's node was found in the holder", measured)
    demand(released is not None, "memory stays in use with nobody there", measured)
    hidden = measured["listed_after_kill"] == "no" and int(measured["used_while_open"]) > 0
    demand(not hidden, "memory is kept by a descriptor, and nobody is listed", measured)
    return measured
