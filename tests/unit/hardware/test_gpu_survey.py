# SPDX-License-Identifier: Apache-2.0
"""What of the GPUs that were seen is offered, with which limits, and why what is not is not."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from leased.hardware.gpu.calls import Listed
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import Condition, Question
from leased.hardware.gpu.health import WELL, Finding, judge_condition, judge_fault
from leased.hardware.gpu.measured import MEASURED, evidence_of
from leased.hardware.gpu.survey import Seen, describe, link_groups, memory_bytes_of, weight
from leased.hardware.gpu.xids import Meaning, meaning_of
from leased.hardware.gpu.xids import describe as describe_xid
from leased.terms.resource import Evidence, Health, ResourceKind
from tests.doubles.gpu import GIB, gpu, instance

ROOT = Path(__file__).resolve().parents[3]
CONFIG = GpuConfig()


def test_a_gpu_is_one_whole_resource() -> None:
    [one] = describe(Seen((gpu(0),), real=True), CONFIG, {}).resources
    assert one.resource_id == f"gpu:{gpu(0).uuid}" and one.kind is ResourceKind.GPU
    assert one.capacity == one.granule == 1000 and one.node == 0 and one.health is Health.OK
    told = dict(one.attributes)
    assert told["model"] == "NVIDIA H100 80GB HBM3" and told["pci"] == "0000:10:00.0"
    assert memory_bytes_of(one) == 80 * GIB
    assert one.limits == ()


def test_what_is_volatile_changes_nothing() -> None:
    before = describe(Seen((gpu(0),), real=True), CONFIG, {})
    busy = gpu(0, processes=3, memory=gpu(0).memory.__class__(80 * GIB, GIB, 7 * GIB))
    assert describe(Seen((busy,), real=True), CONFIG, {}) == before


def test_with_mig_on_only_the_instances_are_offered_by_their_share() -> None:
    parts = (instance(0, 1), instance(1, 2), instance(2, 4))
    one = gpu(0, mig_enabled=True, mig_pending=True, slices=7, instances=parts)
    found = describe(Seen((one,), real=True), CONFIG, {})
    assert [(r.resource_id, r.capacity, r.granule) for r in found.resources] == [
        (f"gpu:{part.uuid}", share, share)
        for part, share in zip(parts, (142, 285, 571), strict=True)
    ]
    assert sum(r.capacity for r in found.resources) <= 1000
    first = dict(found.resources[0].attributes)
    assert first["mig"] == "1g.10gb" and first["gpu"] == one.uuid and first["memory"] == "10240 MiB"
    assert any("cannot be closed" in limit for limit in found.resources[0].limits)


def test_instances_that_share_memory_are_nobodys() -> None:
    parts = (instance(0, neighbours=1), instance(1, gpu_instance=7, neighbours=1))
    one = gpu(0, mig_enabled=True, mig_pending=True, slices=7, instances=parts)
    found = describe(Seen((one,), real=True), CONFIG, {})
    assert found.resources == () and len(found.absences) == 1
    assert all("shares its memory" in note for note in found.notes)


def test_mig_without_instances_and_a_mode_that_waits_are_said() -> None:
    empty = gpu(0, mig_enabled=True, mig_pending=True, slices=7)
    assert "no MIG device" in describe(Seen((empty,)), CONFIG, {}).notes[0]
    [one] = describe(Seen((gpu(0, mig_pending=True),)), CONFIG, {}).resources
    assert one.limits == ("MIG is turned on by the next reset",)


@pytest.mark.parametrize(
    ("slices", "of", "share"), [(1, 7, 142), (7, 7, 1000), (1, 4, 250), (2, 0, 1000), (0, 7, 1)]
)
def test_shares_are_rounded_down(slices: int, of: int, share: int) -> None:
    assert weight(slices, of) == share


def test_what_cannot_be_proven_is_a_limit_where_that_is_accepted_and_else_no_offer() -> None:
    one = gpu(0, unanswered=(Question.RECOVERY.value,))
    [offered] = describe(Seen((one,)), CONFIG, {}).resources
    assert "wants to be reset" in offered.limits[0]
    strict = GpuConfig(accept_missing=())
    refused = describe(Seen((one,)), strict, {})
    assert refused.resources == () and "accept_missing" in refused.notes[0]
    # Who neither is told nor listens would prove nothing, ever.
    assert describe(Seen((one,)), GpuConfig(listen=False), {}).resources == ()
    closed = gpu(0, unanswered=(Question.COMPUTE_MODE.value,))
    assert describe(Seen((closed,)), CONFIG, {}).resources == ()


def test_one_sick_gpu_spoils_no_other() -> None:
    finding = Finding(Health.SICK, "the driver wants a reset of the GPU")
    seen = Seen((gpu(0), gpu(1)), {gpu(1).uuid: finding}, (Listed("", "", 5, "Unknown Error"),))
    well, sick = describe(seen, CONFIG, {}).resources
    assert well.health is Health.OK and sick.health is Health.SICK
    assert sick.limits[0] == finding.why
    assert describe(seen, CONFIG, {}).notes == ("gpu without an address: Unknown Error",)


def test_a_driver_that_does_not_clear_memory_is_told_of() -> None:
    [one] = describe(Seen((gpu(0),)), CONFIG, {gpu(0).uuid: 4096}).resources
    assert "4096 bytes of an earlier tenant" in one.limits[0]


def test_nothing_there_is_said_in_words() -> None:
    assert describe(Seen(), CONFIG, {}).absences[0].why == "the driver counts no GPU"
    lost = Seen(strangers=(Listed("0000:10:00.0", "", errno.ENODEV, "GPU is lost"),))
    assert "none usable: GPU is lost" in describe(lost, CONFIG, {}).absences[0].why


def test_links_are_direct_or_through_a_switch_both_see() -> None:
    a, b = gpu(0, links=("0000:11:00.0",)), gpu(1)
    c, d = gpu(2, links=("0000:80:00.0",)), gpu(3, links=("0000:80:00.0", "0000:81:00.0"))
    found = link_groups((a, b, c, d, gpu(4)))
    assert found == {a.pci: (b.uuid,), b.pci: (a.uuid,), c.pci: (d.uuid,), d.pci: (c.uuid,)}
    [one, *_] = describe(Seen((a, b)), CONFIG, {}).resources
    assert dict(one.attributes)["nvlink"] == b.uuid


# ---- health, XIDs, evidence ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "health", "why"),
    [
        (Condition(), Health.OK, ""),
        (Condition(0, False, False, False), Health.OK, ""),
        (Condition(1), Health.SICK, "reset of the GPU"),
        (Condition(7), Health.SICK, "reboot of the system"),
        (Condition(99), Health.SICK, "action 99"),
        (Condition(0, True), Health.SICK, "next reset"),
        (Condition(0, False, True), Health.SICK, "could not be remapped"),
        (Condition(0, None, None, True), Health.SICK, "retired"),
    ],
)
def test_condition_is_judged_by_what_holds_now(
    condition: Condition, health: Health, why: str
) -> None:
    finding = judge_condition(condition)
    assert finding.health is health and why in finding.why
    assert (finding == WELL) == (health is Health.OK)


@pytest.mark.parametrize(
    ("number", "health"),
    [
        (errno.ENODEV, Health.GONE),
        (errno.ENXIO, Health.GONE),
        (errno.ETIMEDOUT, Health.SICK),
        (errno.ENOTRECOVERABLE, Health.SICK),
        (errno.EIO, Health.SICK),
    ],
)
def test_only_a_gpu_that_is_not_there_is_gone(number: int, health: Health) -> None:
    assert judge_fault(number, "words").health is health


def test_a_kill_makes_no_gpu_suspicious_and_an_unknown_error_does() -> None:
    for xid in (13, 31, 43, 45):
        assert meaning_of(xid) is Meaning.APPLICATION
    for xid in (48, 63, 64, 74, 94, 95, 119, 120, 154, 9999):
        assert meaning_of(xid) is Meaning.SUSPECT
    assert meaning_of(79) is Meaning.LOST
    assert describe_xid(79) == "XID 79, GPU has fallen off the bus"
    assert describe_xid(9999) == "XID 9999"


def test_evidence_is_what_was_run_and_never_more() -> None:
    assert evidence_of("NVIDIA H100 80GB HBM3", "570", real=False) is Evidence.EMULATED
    assert evidence_of("a model nobody ran on", "1", real=True) is Evidence.NOT_RUN


LATE = "the proof took "
"""It was proven, and later than it should have been: what the table of figures says as well."""


def test_every_measured_model_has_a_run_that_passed() -> None:
    ran = set()
    for path in (ROOT / "tests/hardware/results").glob("*.json"):
        told = json.loads(path.read_text("utf-8"))
        failed = [one for one in told["cases"] if one["verdict"] == "failed"]
        sound = all(one["why"].startswith(LATE) for one in failed)
        if told["evidence"] == "measured" and told["root"] and sound:
            ran.add((told["gpu"], told["driver"].partition(".")[0]))
    assert set(MEASURED) <= ran
