# SPDX-License-Identifier: Apache-2.0
"""The swarm in CI: every seed is judged by the auditor, the same seed gives the same trace, and the
auditor can fail.

Rule: a seed that falls is named with the command that replays it. `LEASED_SIM_SEEDS` asks for more
of them.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from leased.terms import event as events
from leased.terms.moment import Moment
from tests.sim.auditor import Auditor, Sealed
from tests.sim.faults import CommitStep
from tests.sim.swarm import TICKS, run_seed, run_seeds

SEEDS = int(os.environ.get("LEASED_SIM_SEEDS", "200"))


def test_no_seed_falls() -> None:
    met: dict[str, int] = {}
    leases = 0
    for outcome in run_seeds(range(SEEDS)):
        replay = f"python -m tests.sim --seed {outcome.seed} --ticks {TICKS} --trace"
        assert not outcome.breaches, f"{replay}\n" + "\n".join(outcome.breaches)
        leases += outcome.leases
        for name, count in outcome.faults.items():
            met[name] = met.get(name, 0) + count
    # A swarm that met no fault proves nothing.
    assert leases > 10 * SEEDS
    wanted = {"die in commit", "prepare fails", "scrub fails", "proof fails", "partly unproven"}
    assert wanted <= met.keys()
    assert sum(name.startswith("commit: ") for name in met) == len(CommitStep)


def test_the_same_seed_tells_the_same_story() -> None:
    first, second, other = run_seed(7), run_seed(7), run_seed(8)
    assert first.trace == second.trace
    assert first.trace != other.trace


def test_processes_tell_the_same_story() -> None:
    """The hash seed of the process must not matter."""
    here = run_seed(9)
    [there] = run_seeds([9], workers=1)
    assert here.fingerprint == there.fingerprint


@pytest.fixture(scope="module")
def chain() -> list[Sealed]:
    """A chain without a breach, to be broken by the tests below."""
    records: list[Sealed] = []
    run_seed(3, keep=records)
    return records


def _audit(records: list[Sealed]) -> list[str]:
    auditor = Auditor()
    for sequence, record in enumerate(records):
        auditor.observe(Sealed(sequence, record.event, record.moment, record.hash))
    return auditor.judge([], [], [])


def _without(chain: list[Sealed], kind: type, which: int = 0) -> list[Sealed]:
    found = [at for at, record in enumerate(chain) if isinstance(record.event, kind)]
    return chain[: found[which]] + chain[found[which] + 1 :]


def test_a_period_of_budgets_that_begins_again_is_a_breach(chain: list[Sealed]) -> None:
    began = next(one for one in chain if isinstance(one.event, events.PeriodBegan))
    assert any("began again" in breach for breach in _audit([*chain, began]))


def test_the_chain_itself_passes(chain: list[Sealed]) -> None:
    assert _audit(chain) == []


@pytest.mark.parametrize(
    "kind",
    [events.Allocated, events.TeardownBegun, events.AccessCut, events.Scrubbed, events.Reclaimed],
)
def test_the_auditor_misses_what_was_left_out(chain: list[Sealed], kind: type) -> None:
    assert _audit(_without(chain, kind))


def test_the_auditor_sees_a_double_grant(chain: list[Sealed]) -> None:
    """The same capacity granted again to someone else while it is held."""
    at, record = next((i, r) for i, r in enumerate(chain) if isinstance(r.event, events.Allocated))
    allocated = record.event
    assert isinstance(allocated, events.Allocated)
    copies = [
        Sealed(
            0,
            _changed(allocated, lease_id=bytes([n]) * 16, command_id=bytes([n]) * 16),
            record.moment,
            b"",
        )
        for n in range(200)
    ]
    assert any("held at once" in breach for breach in _audit(chain[: at + 1] + copies))


def test_the_auditor_sees_a_refilled_deadline(chain: list[Sealed]) -> None:
    at, record = next((i, r) for i, r in enumerate(chain) if isinstance(r.event, events.Expired))
    late = _changed(record.event, effective_ns=record.event.effective_ns + 1)
    moment = Moment(record.moment.boot_id, record.moment.boot_ns + 1, record.moment.wall_ns)
    changed = chain[:at] + [Sealed(0, late, moment, b"")] + chain[at + 1 :]
    assert any("another time than the deadline" in breach for breach in _audit(changed))


def _changed(event: Any, **fields: object) -> Any:
    return msgspec.structs.replace(event, **fields)
