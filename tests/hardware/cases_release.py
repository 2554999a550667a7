# SPDX-License-Identifier: Apache-2.0
"""Cases: what a kill gives back, how fast, and what is in it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tests.hardware.bench import Bench, kill_all
from tests.hardware.case import Measured, NotRun, case, demand
from tests.hostile.cuda_process import Holder

SLACK_BYTES = 16 << 20
BASELINE_LOOKS = 20
GIB = 1 << 30


@case(
    "With nobody there, the memory in use stays the same",
    seconds_most=10,
    headline=("used_least", "used_most"),
)
def baseline(bench: Bench) -> Measured:
    """teardown.md 2.10 (f), with the persistence mode as it is."""
    bench.demand_idle()
    looks = [bench.used_bytes() for _ in range(BASELINE_LOOKS)]
    again = []
    for _ in range(3):
        with bench.unwatched():
            pass
        again.append(bench.used_bytes())
    measured: Measured = {
        "persistence": str(bench.ask("settings")["persistence"]),
        "used_least": min(looks),
        "used_most": max(looks),
        "used_after_attaching_anew": max(again),
        "reserved": int(bench.ask("memory")["reserved"]),
    }
    spread = max(*looks, *again) - min(*looks, *again)
    demand(spread <= SLACK_BYTES, f"it differs by {spread} bytes", measured)
    return measured


@contextlib.contextmanager
def _leaf_or_none(bench: Bench, measured: Measured):  # type: ignore[no-untyped-def]
    try:
        with bench.leaf() as leaf:
            measured["killed_by"] = "cgroup.kill"
            yield leaf
            return
    except NotRun as lacking:
        measured["killed_by"] = f"SIGKILL ({lacking})"
    yield None


def _kill(leaf: Path | None, held: Holder) -> None:
    if leaf is not None:
        kill_all(leaf)
    held.kill()


@case(
    "A kill gives all memory back, with most of it allocated and a kernel running",
    seconds_most=60,
    headline=("held_bytes", "list_empty_ms", "used_back_ms", "taken_again_ms"),
)
def kill_with_everything(bench: Bench) -> Measured:
    """teardown.md 2.10 (b)."""
    before = bench.demand_idle()
    measured: Measured = {}
    with _leaf_or_none(bench, measured) as leaf, bench.hold("busy", leaf=leaf) as held:
        measured["held_bytes"] = int(held.words[0])
        began = time.monotonic()
        _kill(leaf, held)
        measured["dead_ms"] = round((time.monotonic() - began) * 1000)
        empty = bench.time_until(lambda told: held.pid not in told["pids"])
        measured["list_empty_ms"] = _since(began, empty)
        back = bench.time_until(lambda told: told["used"] <= before + SLACK_BYTES)
        measured["used_back_ms"] = _since(began, back)
    free = int(bench.ask("memory")["free"])
    with bench.hold("most") as proof:
        measured["taken_again_bytes"] = int(proof.words[0])
        measured["taken_again_ms"] = _since(began, 0)
    measured["used_residue_bytes"] = max(0, bench.used_bytes() - before) if back is None else 0
    measured["utilization_after"] = str(bench.ask("health")["utilization"])
    demand(empty is not None, f"still listed after {bench.patience_s:g} s", measured)
    demand(back is not None, f"memory still in use after {bench.patience_s:g} s", measured)
    demand(
        int(measured["taken_again_bytes"]) >= free * 9 // 10,
        "the memory that is free cannot be taken",
        measured,
    )
    return measured


def _since(began_s: float, found_ms: int | None) -> int | str:
    return "never" if found_ms is None else round((time.monotonic() - began_s) * 1000)


@case(
    "What a killed process wrote is not there for the next one",
    seconds_most=60,
    headline=("read_bytes", "not_zero_bytes"),
)
def first_read(bench: Bench) -> Measured:
    """teardown.md 2.10 (c): nothing of ours has overwritten anything yet."""
    before = bench.demand_idle()
    with bench.hold("most") as held:
        written = int(held.words[0])
        held.kill()
    bench.time_until(lambda told: told["used"] <= before + SLACK_BYTES)
    told = bench.run("tests.hardware.scrubbing", "look", bench.uuid, budget_s=60)
    measured: Measured = {
        "written_bytes": written,
        "read_bytes": int(told["taken_bytes"]),
        "not_zero_bytes": int(told["found_bytes"]),
        "read_gib_per_s": _rate(int(told["taken_bytes"]), int(told["read_ns"])),
    }
    demand(measured["not_zero_bytes"] == 0, "the driver does not clear what it frees", measured)
    return measured


@case(
    "The kernel that counts residue finds a single wrong word, wherever it is",
    seconds_most=40,
    headline=("planted", "found_units"),
)
def residue_is_found(bench: Bench) -> Measured:
    """That the PTX does what its name says, on this architecture."""
    bench.demand_idle()
    told = bench.run("tests.hardware.scrubbing", "plant", bench.uuid, budget_s=60)
    measured: Measured = {"planted": int(told["planted"]), "found_units": int(told["found"])}
    demand(told["clean"] == 0, f"{told['clean']} bytes where there is no residue", measured)
    demand(measured["planted"] == measured["found_units"], "residue was overlooked", measured)
    return measured


@case(
    "The scrubber reaches nearly all memory, and leaves zero",
    seconds_most=60,
    headline=("taken_bytes", "scrub_ms", "moved_gib_per_s"),
)
def scrub(bench: Bench) -> Measured:
    """The agent's own scrubber; who is first to take the memory again finds zero."""
    bench.demand_idle()
    told = bench.run("tests.hardware.scrubbing", "scrub", bench.uuid, budget_s=120)
    memory = bench.ask("memory")
    reachable = int(memory["total"]) - int(memory["reserved"])
    taken = int(told["taken_bytes"])
    measured: Measured = {
        "taken_bytes": taken,
        "not_reached_bytes": reachable - taken,
        "residue_bytes": int(told["residue_bytes"]),
        "scrub_ms": int(told["scrub_ns"]) // 1_000_000,
        # Twice written, three times read.
        "moved_gib_per_s": _rate(taken * 5, int(told["scrub_ns"])),
    }
    demand(measured["residue_bytes"] == 0, "memory could not be overwritten", measured)
    demand(reachable - taken <= GIB, "more than 1 GiB was out of reach", measured)
    return measured


def _rate(size_bytes: int, took_ns: int) -> int:
    return size_bytes * 1_000_000_000 // max(took_ns, 1) // GIB
