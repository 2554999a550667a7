# SPDX-License-Identifier: Apache-2.0
"""Cases: whole leases by the agent's own hands, taken from holders that do not let go."""

from __future__ import annotations

import os
from typing import Any

from tests.hardware.bench import Bench
from tests.hardware.case import Measured, NotRun, case, demand

LEASE_BUDGET_S = 90


@case(
    "The driver answers whatever the agent asks of a GPU, and the agent would lease it",
    seconds_most=20,
    headline=("unanswered", "fabric"),
)
def described(bench: Bench) -> Measured:
    """Each question that is asked at each look, by the agent's own code."""
    told = bench.run("tests.hardware.described_as", str(bench.root), bench.uuid, budget_s=30)
    faults, finding = told.pop("faults"), told.pop("finding", "it is not there")
    unanswered = ", ".join(told.pop("unanswered", ())) or "nothing"
    measured: Measured = {
        "unanswered": unanswered,
        **{name: value if isinstance(value, int) else str(value) for name, value in told.items()},
    }
    demand(not faults, f"the look fails: {faults}", measured)
    demand(not finding, f"it would not be granted: {finding}", measured)
    return measured


def _lease(bench: Bench, trick: str) -> dict[str, Any]:
    if os.geteuid() != 0:
        raise NotRun("not root: no leaf can be made")
    bench.demand_idle()
    with bench.leaf():
        pass  # says why where leaves cannot be made
    with bench.unwatched():
        # Whoever watches has the node open, and would be a stranger to the lease.
        words = (trick, str(bench.root), bench.uuid, str(bench.node))
        return bench.run("tests.hardware.leasing", *words, budget_s=LEASE_BUDGET_S)


def _times(told: dict[str, Any]) -> Measured:
    wanted = ("evidence", "grant_ms", "cut_ms", "scrub_ms", "proof_ms", "scrubbed_bytes")
    return {name: told[name] for name in wanted if name in told}


@case(
    "A lease ends proven, its holder killed with all memory and a kernel running",
    seconds_most=90,
    headline=("grant_ms", "cut_ms", "proof_ms"),
)
def lease_ends_proven(bench: Bench) -> Measured:
    """Grant to proof, with the compute mode left alone."""
    told = _lease(bench, "busy")
    measured = _times(told)
    demand("refused" not in told, f"no grant: {told.get('refused')}", measured)
    demand(not told["unproven"], f"not proven clean: {told['failed']}", measured)
    return measured


@case(
    "Somebody outside who opened the GPU meanwhile is killed, or the GPU fenced",
    seconds_most=90,
    headline=("stranger", "fenced"),
)
def lease_with_a_stranger(bench: Bench) -> Measured:
    """An escapee by another way than inheritance."""
    told = _lease(bench, "small+outside")
    measured = _times(told)
    demand("refused" not in told, f"no grant: {told.get('refused')}", measured)
    measured["stranger"] = told["stranger"]
    measured["fenced"] = "yes" if told["unproven"] else "no"
    caught = told["stranger"] == "killed" or bool(told["unproven"])
    demand(caught, "he has it open still, and the GPU counts as clean", measured)
    return measured
