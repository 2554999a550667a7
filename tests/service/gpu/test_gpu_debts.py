# SPDX-License-Identifier: Apache-2.0
"""What an earlier lease may have left on a GPU: overwritten before whom, and known by whom."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from leased.hardware.gpu.calls import Released
from leased.terms.errors import DeviceError
from leased.terms.lease import Priority
from tests.doubles.gpu import gpu, released
from tests.doubles.gpu_bench import A, B, Bench, gpu_lease


async def test_within_a_tenant_the_overwriting_waits_for_another(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, scrub_later=(Priority.SCAVENGER,))
    await bench.start()
    scavenger = gpu_lease(A, priority=Priority.SCAVENGER)
    await bench.prepare(scavenger)
    bench.crew.asked.clear()
    await bench.end(scavenger)
    assert [call.writes for call in bench.of("scrub")] == [False]
    again = gpu_lease(A, priority=Priority.SCAVENGER)
    await bench.prepare(again)
    await bench.end(again)
    assert [call.writes for call in bench.of("scrub")] == [False, False]
    await bench.prepare(gpu_lease(A, tenant="other"))
    assert [call.writes for call in bench.of("scrub")] == [False, False, True]
    assert bench.crew.verbs()[-2:] == ["scrub", "ready"], "before anybody is let in"


async def test_who_was_there_before_a_restart_is_another_tenant(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, B, scrub_later=(Priority.SCAVENGER,))
    kept = gpu_lease(B, priority=Priority.SCAVENGER)
    await bench.start(kept)
    await bench.prepare(gpu_lease(A))
    assert [call.writes for call in bench.of("scrub")] == [True]
    await bench.end(kept)
    assert bench.of("scrub")[-1].writes, "nobody knows how much was in use before it"


async def test_who_was_there_before_a_gpu_came_is_another_tenant(tmp_path: Path) -> None:
    """A GPU that the driver did not tell of when the agent took over: what an earlier run owed on
    it nobody remembers."""
    bench = Bench(tmp_path, A, scrub_later=(Priority.SCAVENGER,))
    await bench.start()
    bench.gpus.append(B)
    await bench.backend.survey()
    late = gpu_lease(B, priority=Priority.SCAVENGER)
    await bench.prepare(late)
    assert [call.writes for call in bench.of("scrub")] == [True]
    await bench.end(late)
    await bench.prepare(gpu_lease(B))
    assert [call.writes for call in bench.of("scrub")] == [True, False], "the same tenant"


async def test_what_an_earlier_run_left_is_overwritten_whatever_is_configured_now(
    tmp_path: Path,
) -> None:
    """`scrub_later` was emptied and the agent restarted: another tenant got the GPU as it was."""
    before = Bench(tmp_path, A, B, scrub_later=(Priority.SCAVENGER,))
    sealed = (await before.backend.survey()).resources
    assert all(("scrub", "later") in one.attributes for one in sealed)
    bench = Bench(tmp_path, A, B, new=True)
    bench.backend.remember(sealed)
    kept = gpu_lease(B, priority=Priority.SCAVENGER)
    await bench.start(kept)
    assert (await bench.backend.survey()).resources == sealed, "a third run is to know as well"
    await bench.prepare(gpu_lease(A))
    assert [call.writes for call in bench.of("scrub")] == [True]
    assert bench.crew.verbs()[-2:] == ["scrub", "ready"], "before anybody is let in"
    await bench.end(kept)
    after = (await bench.backend.survey()).resources
    assert not any(("scrub", "later") in one.attributes for one in after)
    bench.crew.asked.clear()
    await bench.prepare(gpu_lease(B, tenant="other"))
    assert bench.of("scrub") == [], "it was overwritten at the end of the lease before"


async def test_what_this_log_does_not_know_to_be_overwritten_is_before_anybody_has_it(
    tmp_path: Path,
) -> None:
    """A log that was replaced while a tenant had the GPU: the next tenant got it as it was."""
    bench = Bench(tmp_path, A, new=True)
    await bench.start()
    [seen] = (await bench.backend.survey()).resources
    assert ("scrub", "later") in seen.attributes
    first = gpu_lease(A)
    await bench.prepare(first)
    assert [call.writes for call in bench.of("scrub")] == [True]
    assert bench.crew.verbs()[-2:] == ["scrub", "ready"], "before anybody is let in"
    await bench.end(first)
    bench.crew.asked.clear()
    await bench.prepare(gpu_lease(A, tenant="other"))
    assert bench.of("scrub") == [], "it was overwritten at the end of the lease before"
    [seen] = (await bench.backend.survey()).resources
    assert ("scrub", "later") not in seen.attributes


async def test_a_gpu_that_was_away_while_something_was_owed_on_it_is_overwritten(
    tmp_path: Path,
) -> None:
    """Between two looks another run of the agent saw no such GPU: what was owed was forgotten."""
    before = Bench(tmp_path, A, scrub_later=(Priority.SCAVENGER,))
    marked = (await before.backend.survey()).resources
    away = Bench(tmp_path, new=True)
    away.backend.remember(marked)
    sealed = (await away.backend.survey()).resources
    assert sealed == ()
    back = Bench(tmp_path, A, new=True)
    back.backend.remember(sealed)
    await back.start()
    await back.prepare(gpu_lease(A, tenant="other"))
    assert [call.writes for call in back.of("scrub")] == [True]


async def test_what_was_split_meanwhile_is_overwritten_when_it_is_whole_again(
    tmp_path: Path,
) -> None:
    """MIG was turned on and off again beside a running agent: the GPU was as clean for it as its
    own last lease had left it, whatever the parts' leases had."""
    bench = Bench(tmp_path, A)
    await bench.start()
    first = gpu_lease(A)
    await bench.prepare(first)
    await bench.end(first)
    bench.gpus = [gpu(0, mig_enabled=True, mig_pending=True, slices=7)]
    await bench.backend.survey()
    bench.gpus = [A]
    [seen] = (await bench.backend.survey()).resources
    assert ("scrub", "later") in seen.attributes
    bench.crew.asked.clear()
    await bench.prepare(gpu_lease(A, tenant="other"))
    assert [call.writes for call in bench.of("scrub")] == [True]


async def test_an_end_that_was_broken_off_leaves_a_gpu_that_nobody_knows_to_be_clean(
    tmp_path: Path,
) -> None:
    """It overran its published bound, and an operator lifted the fence: the GPU was as clean as
    before that lease."""
    bench = Bench(tmp_path, A)
    await bench.start()
    first = gpu_lease(A)
    await bench.prepare(first)
    bound = trio.CancelScope()

    def too_late(name: str, call: object) -> Released:
        bound.cancel()
        return released()

    bench.crew.answers["release"] = too_late
    with bound:
        await bench.end(first)
    assert bound.cancelled_caught
    bench.crew.asked.clear()
    await bench.prepare(gpu_lease(A, tenant="other"))
    assert [call.writes for call in bench.of("scrub")] == [True]


async def test_what_a_lease_had_when_the_agent_ended_is_not_as_it_was_seen_before(
    tmp_path: Path,
) -> None:
    """Sealed before the lease, and never again: the agent was killed with the lease fenced."""
    before = Bench(tmp_path, A)
    sealed = (await before.backend.survey()).resources
    bench = Bench(tmp_path, A, new=True)
    bench.backend.remember(sealed)
    bench.backend.recall([gpu_lease(A)])
    await bench.start()
    await bench.prepare(gpu_lease(A, tenant="other"))
    assert [call.writes for call in bench.of("scrub")] == [True]


async def test_an_end_does_not_reach_the_lease_that_has_the_gpu_by_then(tmp_path: Path) -> None:
    """An operator lifted the fence while it was tried once more."""
    bench = Bench(tmp_path, A)
    await bench.start()
    first, second = gpu_lease(A), gpu_lease(A)
    await bench.prepare(second)
    bench.crew.asked.clear()
    assert (await bench.end(first)).unproven
    assert bench.of("release") == [] and bench.of("scrub") == []
    assert bench.backend.is_held(second.subject.allotments[0])
    assert not (await bench.end(second)).unproven


async def test_a_debt_that_cannot_be_paid_is_no_grant(tmp_path: Path) -> None:
    bench = Bench(tmp_path, A, scrub_later=(Priority.SCAVENGER,))
    await bench.start()
    bench.crew.answers["scrub"] = DeviceError("cuCtxCreate_v2", errno.EBUSY, "taken")
    with pytest.raises(DeviceError):
        await bench.prepare(gpu_lease(A))
    assert not any(call.sets_mode for call in bench.of("ready")), "nobody is let in"
