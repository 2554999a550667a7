# SPDX-License-Identifier: Apache-2.0
"""The GPU backend over a crew that answers as told: what is opened, asked, closed and fenced."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.hardware.backend import Backend, Verdict, Watchful
from leased.hardware.config import EscapeePolicy
from leased.hardware.gpu.calls import (
    Bus,
    Present,
    Readied,
)
from leased.hardware.gpu.facts import Condition, Usage
from leased.terms.errors import DeviceError
from leased.terms.lease import Priority, RevocationReason
from leased.terms.resource import Evidence, Health
from leased.terms.teardown import TeardownStep
from tests.doubles.gpu import (
    GIB,
    IDLE,
    gpu,
    hung,
    instance,
    killed,
    opener,
    released,
    sight,
    witnessed,
)
from tests.doubles.gpu_bench import RULES, A, B, Bench, allotment, gpu_lease


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def failed(verdict: Verdict) -> list[tuple[TeardownStep, int]]:
    return [(step.step, step.errno) for step in verdict.steps if step.errno]


# ---- a whole life ------------------------------------------------------------------------------


async def test_a_life_from_open_to_proven(directory: Path) -> None:
    bench = Bench(directory, A, B)
    assert isinstance(bench.backend, Watchful)
    backend: Backend = bench.backend
    await bench.start()
    one = gpu_lease(A, B)
    readied = await bench.prepare(one)
    assert [tuple(rule) for rule in readied.rules] == list(RULES)
    told = await backend.access(one, one.subject.allotments)
    visible = [access.value for access in told if access.name == "CUDA_VISIBLE_DEVICES"]
    assert visible == [A.uuid, B.uuid]
    pipe = bench.pipes / one.lease_id.hex()
    assert [a.value for a in told if a.name == "CUDA_MPS_PIPE_DIRECTORY"] == [str(pipe)]
    assert pipe.stat().st_mode & 0o777 == 0o700 and pipe.stat().st_uid == one.subject.uid
    assert backend.open(one, one.subject.allotments[0]) is None
    verdict = await bench.end(one)
    assert verdict.unproven == {} and not failed(verdict)
    assert not pipe.exists() and bench.crew.running == set()
    for verb in ("ready", "release", "scrub", "witness"):
        assert len(bench.of(verb)) == 2
    names = {name for name, verb, _ in bench.crew.asked if verb == "scrub"}
    assert names.isdisjoint(name for name, verb, _ in bench.crew.asked if verb == "witness")
    for scrub in bench.of("scrub"):
        assert scrub.writes and scrub.sets_mode
        assert scrub.expected_bytes == IDLE.total_bytes - IDLE.reserved_bytes - IDLE.used_bytes - (
            1 << 30
        )


async def test_memory_in_use_before_the_lease_is_what_may_be_in_use_after_it(
    directory: Path,
) -> None:
    bench = Bench(directory, A)
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    await bench.end(one)
    assert bench.of("release")[0].used_max_bytes == IDLE.used_bytes + (16 << 20)
    other = Bench(directory, A)
    await other.start(one)
    await other.end(one)
    assert other.of("release")[0].used_max_bytes == 16 << 20, "nobody remembers: the driver's own"


# ---- grants that fail ----------------------------------------------------------------------------


async def test_a_grant_is_all_or_nothing_and_its_end_finds_nothing_to_do(directory: Path) -> None:
    bench = Bench(directory, A, B)
    await bench.start()
    busy = DeviceError("gpu_ready", errno.EBUSY, "in use by 7 (python, fd)")
    bench.crew.answers["ready"] = lambda name, call: (
        busy if call.target.uuid == B.uuid else Readied(RULES, IDLE)
    )
    one = gpu_lease(A, B)
    with pytest.raises(DeviceError, match="in use by 7"):
        await bench.prepare(one)
    assert [call.target.uuid for call in bench.of("guard")] == [A.uuid, B.uuid]
    assert all(call.mode == 2 for call in bench.of("guard"))
    assert list(bench.pipes.iterdir()) == []
    bench.crew.asked.clear()
    ended = msgspec.structs.replace(one, reason=RevocationReason.GRANT_FAILED)
    verdict = await bench.end(ended)
    assert verdict.unproven == {} and bench.crew.asked == [], "whoever is there was there before"
    # And the next grant of the well one goes on as if nothing had been.
    await bench.prepare(gpu_lease(A))


async def test_nobody_is_killed_at_the_end_of_a_grant_that_let_nobody_in(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    for reason, kills in ((RevocationReason.GRANT_FAILED, False), (None, True)):
        one = gpu_lease(A, reason=reason)
        await bench.prepare(one)
        await bench.end(one)
        assert bench.of("release")[-1].kill is kills
    fencing = Bench(directory, A, escapees=EscapeePolicy.FENCE)
    await fencing.start()
    one = gpu_lease(A)
    await fencing.prepare(one)
    await fencing.end(one)
    assert not fencing.of("release")[0].kill


async def test_a_gpu_never_seen_is_neither_opened_nor_proven(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    with pytest.raises(DeviceError) as raised:
        await bench.prepare(gpu_lease(B))
    assert raised.value.errno == errno.ENODEV
    lost = gpu_lease(B)
    verdict = await bench.end(lost)
    assert set(verdict.unproven) == set(lost.subject.allotments)
    assert failed(verdict) == [(TeardownStep.RELEASE, errno.ENODEV)]


# ---- teardowns that fail -------------------------------------------------------------------------

DIRTY = [
    ("release", released(sight=sight(openers=(opener(),))), TeardownStep.ESCAPEE_SCAN, errno.EBUSY),
    ("release", DeviceError("nvml_memory", errno.ENODEV, "lost"), TeardownStep.RELEASE, 19),
    ("release", hung(), TeardownStep.RELEASE, errno.ETIMEDOUT),
    ("release", killed(), TeardownStep.RELEASE, errno.EPIPE),
    ("scrub", DeviceError("cuCtxCreate_v2", errno.EBUSY, "taken"), TeardownStep.SCRUB, errno.EBUSY),
    ("scrub", hung(), TeardownStep.SCRUB, errno.ETIMEDOUT),
    ("scrub", killed(), TeardownStep.SCRUB, errno.EPIPE),
    ("witness", witnessed(mode=0), TeardownStep.GUARD, errno.EACCES),
    ("witness", witnessed(sight=sight(seen_ns=1)), TeardownStep.WITNESS, errno.ENODATA),
    ("witness", witnessed(condition=Condition(2)), TeardownStep.HEALTH, errno.ENOTRECOVERABLE),
    ("witness", hung(), TeardownStep.WITNESS, errno.ETIMEDOUT),
    ("witness", killed(), TeardownStep.WITNESS, errno.EPIPE),
]


@pytest.mark.parametrize(("verb", "answer", "step", "number"), DIRTY)
async def test_what_fails_fences_that_gpu_alone_and_says_why(
    directory: Path, verb: str, answer: Any, step: TeardownStep, number: int
) -> None:
    bench = Bench(directory, A, B)
    await bench.start()
    one = gpu_lease(A, B)
    await bench.prepare(one)
    well = bench.crew.answers[verb]
    bench.crew.answers[verb] = lambda name, call: answer if call.target.uuid == B.uuid else well
    verdict = await bench.end(one)
    assert verdict.unproven == {allotment(B): 1000}
    assert (step, number) in failed(verdict)
    assert bench.crew.running == set()
    if verb == "release":
        assert [call.target.uuid for call in bench.of("scrub")] == [A.uuid], "not with others there"
        assert [call.target.uuid for call in bench.of("guard")] == [B.uuid], "closed all the same"


async def test_a_proof_without_a_scrub_proves_nothing(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    verdict = await bench.backend.prove(one, one.subject.allotments)
    assert verdict.unproven == {allotment(A): 1000}
    assert failed(verdict) == [(TeardownStep.WITNESS, errno.ENODATA)]


@pytest.mark.parametrize("verb", ["ready", "release", "scrub", "witness"])
async def test_a_worker_that_was_killed_once_is_replaced(directory: Path, verb: str) -> None:
    bench = Bench(directory, A)
    await bench.start()
    well, deaths = bench.crew.answers[verb], [killed()]
    bench.crew.answers[verb] = lambda name, call: deaths.pop() if deaths else well
    one = gpu_lease(A)
    await bench.prepare(one)
    assert (await bench.end(one)).unproven == {}
    assert len(bench.of(verb)) == 2


@pytest.mark.parametrize("verb", ["ready", "scrub"])
async def test_what_a_killed_worker_had_is_let_go_of_in_the_drivers_own_time(
    directory: Path, verb: str
) -> None:
    bench = Bench(directory, A)
    await bench.start()
    busy = DeviceError(f"gpu_{verb}", errno.EBUSY, "another context")
    well, first = bench.crew.answers[verb], [busy, busy, killed()]
    bench.crew.answers[verb] = lambda name, call: first.pop() if first else well
    one = gpu_lease(A)
    await bench.prepare(one)
    assert (await bench.end(one)).unproven == {}
    assert len(bench.of(verb)) == 4


async def test_a_hang_stops_grants_until_a_probe_passes(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    well, bench.crew.answers["scrub"] = bench.crew.answers["scrub"], hung()
    assert (await bench.end(one)).unproven
    [seen] = (await bench.backend.survey()).resources
    assert seen.health is Health.SICK
    bench.crew.answers["scrub"] = well
    bench.crew.asked.clear()
    [seen] = (await bench.backend.survey()).resources
    assert seen.health is Health.OK
    [probe] = bench.of("scrub")
    assert not probe.writes, "a probe takes everything and overwrites nothing"


async def test_a_probe_wants_what_a_killed_worker_still_had(directory: Path) -> None:
    """The last look saw nearly all of it in use: a probe that expected only the rest would find any
    GPU well."""
    held = Usage(IDLE.total_bytes, IDLE.reserved_bytes, 70 * GIB)
    bench = Bench(directory, gpu(0, memory=held))
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    well, bench.crew.answers["scrub"] = bench.crew.answers["scrub"], hung()
    assert (await bench.end(one)).unproven
    bench.crew.answers["scrub"] = well
    bench.crew.asked.clear()
    await bench.backend.survey()
    [probe] = bench.of("scrub")
    assert probe.expected_bytes > 70 * GIB


async def test_a_debt_is_paid_for_all_that_the_last_look_saw_in_use(directory: Path) -> None:
    held = Usage(IDLE.total_bytes, IDLE.reserved_bytes, 70 * GIB)
    bench = Bench(directory, gpu(0, memory=held), scrub_later=(Priority.SCAVENGER,))
    await bench.start()
    await bench.prepare(gpu_lease(A))
    [paid] = bench.of("scrub")
    assert paid.writes and paid.expected_bytes > 70 * GIB


async def test_of_two_that_are_probed_the_one_that_is_well_is_offered_at_once(
    directory: Path,
) -> None:
    bench = Bench(directory, A, B)
    await bench.start()
    leases = [gpu_lease(one) for one in (A, B)]
    for one in leases:
        await bench.prepare(one)
    well, bench.crew.answers["scrub"] = bench.crew.answers["scrub"], hung()
    for one in leases:
        assert (await bench.end(one)).unproven
    hangs = hung()
    bench.crew.answers["scrub"] = lambda name, call: hangs if call.target.uuid == B.uuid else well
    found = (await bench.backend.survey()).resources
    assert [one.health for one in found] == [Health.OK, Health.SICK]


async def test_the_same_teardown_again_is_harmless(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    for _ in range(2):
        assert (await bench.end(one)).unproven == {}


async def test_a_thousand_grants_that_fail_somewhere_leave_nothing(directory: Path) -> None:
    bench = Bench(directory, A, B)
    await bench.start()
    well = dict(bench.crew.answers)
    dice = random.Random(20261126)
    for _ in range(1000):
        failing = dice.choice(["ready", "guard", "release", "scrub", "witness", "none"])
        error = dice.choice([hung(), killed(), DeviceError("nvml_memory", errno.EIO, "Unknown")])
        which = dice.choice([A.uuid, B.uuid])
        bench.crew.answers = dict(well)
        if failing != "none":

            def answer(name: str, call: Any, *, verb: str = failing, uuid: str = which) -> Any:
                told = well[verb]
                told = told(name, call) if callable(told) else told
                return error if call.target.uuid == uuid else told  # noqa: B023

            bench.crew.answers[failing] = answer
        one = gpu_lease(*dice.choice([(A,), (A, B), (B, A)]))
        try:
            await bench.prepare(one)
        except DeviceError:
            one = msgspec.structs.replace(one, reason=RevocationReason.GRANT_FAILED)
        await bench.end(one)
        assert bench.crew.running == set()
        assert list(bench.pipes.iterdir()) == []
        assert not any(bench.backend.is_held(a) for a in one.subject.allotments)
    bench.crew.answers = well
    await bench.backend.survey()
    last = gpu_lease(A, B)
    await bench.prepare(last)
    assert (await bench.end(last)).unproven == {}
    assert bench.backend.remembered == 0


# ---- what is nobody's ----------------------------------------------------------------------------


async def test_what_nobody_leases_is_closed_at_the_start_and_at_every_look(directory: Path) -> None:
    opened = gpu(0, compute_mode=0)
    mig = gpu(2, mig_enabled=True, mig_pending=True, slices=7, compute_mode=0)
    mig = msgspec.structs.replace(mig, instances=(instance(0),))
    bench = Bench(directory, opened, gpu(1, compute_mode=0), mig)
    kept = gpu_lease(B)
    await bench.backend.survey()
    assert bench.of("guard") == [], "before it is known who goes on"
    await bench.backend.adopt([kept])
    assert [call.target.uuid for call in bench.of("guard")] == [opened.uuid]
    await bench.backend.survey()
    assert [call.target.uuid for call in bench.of("guard")] == [opened.uuid] * 2


async def test_an_operator_may_keep_the_mode_to_himself(directory: Path) -> None:
    bench = Bench(directory, gpu(0, compute_mode=0), close_free=False)
    await bench.start()
    one = gpu_lease(A)
    await bench.prepare(one)
    assert (await bench.end(one)).unproven == {}
    assert not bench.of("ready")[0].sets_mode and not bench.of("scrub")[0].sets_mode
    assert not bench.of("witness")[0].asks_mode and bench.of("guard") == []


async def test_a_gpu_that_somebody_uses_without_a_lease_is_not_granted(directory: Path) -> None:
    bench = Bench(directory, gpu(0, processes=1))
    await bench.start()
    [seen] = (await bench.backend.survey()).resources
    assert seen.health is Health.BUSY and "without a lease" in seen.limits[0]
    bench.gpus = [A]
    [seen] = (await bench.backend.survey()).resources
    assert seen.health is Health.OK
    await bench.prepare(gpu_lease(A))
    bench.gpus = [gpu(0, processes=1)]
    [seen] = (await bench.backend.survey()).resources
    assert seen.health is Health.OK, "with a lease that is what it is for"


async def test_neighbours_on_one_gpu_are_each_others_guests(directory: Path) -> None:
    parts = (instance(0), instance(1))
    one = gpu(0, mig_enabled=True, mig_pending=True, slices=7, instances=parts)
    bench = Bench(directory, one)
    await bench.start()
    leases = [
        msgspec.structs.replace(
            base,
            subject=msgspec.structs.replace(base.subject, allotments=(allotment(p.uuid, 142),)),
        )
        for base, p in zip((gpu_lease(A), gpu_lease(A)), parts, strict=True)
    ]
    for each in leases:
        await bench.prepare(each)
    first, second = bench.of("ready")
    assert first.guests.leaves == ()
    assert second.guests.leaves == (f"/leased/{leases[0].subject.cgroup}",)
    assert not first.sets_mode, "a MIG device cannot be closed"
    assert (await bench.end(leases[0])).unproven == {}
    assert bench.of("release")[0].guests.leaves == (f"/leased/{leases[1].subject.cgroup}",)


# ---- the survey ----------------------------------------------------------------------------------


async def test_no_driver_no_gpu_and_what_is_on_the_bus_is_said(directory: Path) -> None:
    bench = Bench(directory)
    bench.crew.answers["list"] = DeviceError("nvml_init", errno.ELIBACC, "NVML Shared Library")
    bench.crew.answers["bus"] = Bus(("0000:10:00.0",))
    found = await bench.backend.survey()
    assert found.resources == () and "1 GPU seen on the bus" in found.absences[0].why
    assert found.notes == ("gpu at 0000:10:00.0: on the bus, driver not usable",)


@pytest.mark.parametrize(("verb", "why"), [("worker_answer", "not known yet"), ("nvml", "no GPU")])
async def test_a_driver_that_does_not_answer_is_not_called_a_host_without_gpus(
    directory: Path, verb: str, why: str
) -> None:
    bench = Bench(directory)
    silent = hung() if verb == "worker_answer" else DeviceError(verb, errno.ENXIO, "no driver")
    bench.crew.answers["list"], bench.crew.answers["bus"] = silent, hung()
    assert (await bench.backend.survey()).absences[0].why.startswith(why)


async def test_a_survey_that_failed_is_not_an_empty_host_and_a_driver_that_left_is(
    directory: Path,
) -> None:
    bench = Bench(directory, A)
    before = await bench.backend.survey()
    assert before.resources[0].evidence in (Evidence.NOT_RUN, Evidence.MEASURED)
    bench.crew.answers["list"] = killed()
    assert await bench.backend.survey() == before
    bench.crew.answers["list"] = DeviceError("nvml_init", errno.ENXIO, "Driver Not Loaded")
    bench.crew.answers["bus"] = killed()
    assert (await bench.backend.survey()).resources == ()


async def test_what_is_not_offered_is_not_looked_at(directory: Path) -> None:
    bench = Bench(directory, A, offer=False)
    found = await bench.backend.survey()
    await bench.backend.adopt(())
    assert found.resources == () and "offer = false" in found.absences[0].why
    assert bench.crew.asked == []


async def test_holders_are_those_with_nodes_and_those_the_driver_lists(directory: Path) -> None:
    bench = Bench(directory, A)
    await bench.start()
    bench.crew.answers["who"] = Present((opener(77, 1000), opener(78, 0, via="map")), (77, 99))
    found = await bench.backend.holders(allotment(A))
    assert [(one.pid, one.via) for one in found] == [
        (77, "fd"),
        (78, "map"),
        (77, "driver"),
        (99, "driver"),
    ]
    assert bench.of("who")[0].exempt == ((1, 1),)
