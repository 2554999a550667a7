# SPDX-License-Identifier: Apache-2.0
"""The survey's answer: what of the GPUs that were seen is leasable, and why what is not is not.

Rule: a GPU is one resource of 1000; with MIG on it is none, and each of its MIG devices is one of
its share of the slices. What cannot be proven there later is said here first (`limits`), or the
device is not offered at all. Nothing here changes from one look to the next unless the hardware
did: what is volatile belongs to telemetry.

Does not ask the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from leased.hardware.calls import Surveyed
from leased.hardware.gpu.calls import Listed
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import (
    FABRIC_FAILED,
    Gpu,
    Instance,
    Place,
    Question,
    Target,
    target_of,
)
from leased.hardware.gpu.health import WELL, Finding, judge_fault
from leased.hardware.gpu.measured import evidence_of
from leased.terms.resource import MIG_PREFIX, Absence, Health, Resource, ResourceKind

LATER: Final = ("scrub", "later")
"""The attribute of what is overwritten before its next lease: an earlier one may have left
something there, of this log or of another. Sealed with the inventory: of what is without it the
next run of the agent knows that nothing is."""

GPU_MILLI: Final = 1000
PREFIX: Final = "gpu:"
_MIB: Final = 1 << 20

_LIMITS: Final = {
    Question.RECOVERY: "the driver does not say whether the GPU wants to be reset",
    Question.REPAIRS: "the driver does not say whether defects of the memory wait for a reset",
    Question.RESERVED: "the driver does not tell its own memory from that of processes",
    Question.COMPUTE_MODE: "the driver cannot close the GPU while it is free",
}
_MIG_LIMIT: Final = "a MIG device cannot be closed while it is free: only its nodes' modes guard it"


class Seen(msgspec.Struct, frozen=True):
    """Everything that one look brought: GPUs with their facts (of now, or the last there were), the
    findings of those that are not well, by UUID, and what is known of no GPU by name."""

    gpus: tuple[Gpu, ...] = ()
    findings: Mapping[str, Finding] = msgspec.field(default_factory=dict)
    strangers: tuple[Listed, ...] = ()
    real: bool = False


def resource_id(uuid: str) -> str:
    """What a GPU or MIG device is called as a resource."""
    return f"{PREFIX}{uuid}"


def describe(seen: Seen, config: GpuConfig, dirty: Mapping[str, int]) -> Surveyed:
    """The resources of one look. `dirty` are GPUs on which a scrub found bytes that the driver
    should have cleared, by UUID."""
    links = link_groups(seen.gpus)
    resources: list[Resource] = []
    notes: list[str] = []
    for gpu in seen.gpus:
        why = _refused(gpu, config)
        if why:
            notes.append(f"{resource_id(gpu.uuid)} {gpu.name}: not offered: {why}")
            continue
        finding = seen.findings.get(gpu.uuid, WELL)
        plain = Resource(
            resource_id(gpu.uuid),
            ResourceKind.GPU,
            None,
            GPU_MILLI,
            GPU_MILLI,
            node=gpu.node,
            evidence=evidence_of(gpu.name, gpu.branch, real=seen.real),
            health=finding.health,
            limits=_limits(gpu, finding, dirty.get(gpu.uuid, 0)),
            attributes=_attributes(gpu, links.get(gpu.pci, ())),
        )
        if gpu.mig_enabled:
            offered, said = _parts(gpu, plain, config.mig_layout)
            resources += offered
            notes += said
        else:
            resources.append(plain)
    for fault in seen.strangers:
        notes.append(f"gpu {fault.uuid or fault.pci or 'without an address'}: {fault.fault}")
    absences = () if resources else (Absence(ResourceKind.GPU, _absence(seen)),)
    return Surveyed(tuple(resources), absences, tuple(notes))


def _refused(gpu: Gpu, config: GpuConfig) -> str:
    """What cannot be proven there, and may not be missing."""
    lacking = [one for one in gpu.unanswered if one not in config.accept_missing]
    if Question.RECOVERY in gpu.unanswered and not config.listen:
        return f"{_LIMITS[Question.RECOVERY]}, and [hardware.gpu] listen = false"
    if not lacking:
        return ""
    words = "; ".join(_LIMITS.get(Question(one), one) for one in lacking)
    return f'{words} ([hardware.gpu] accept_missing = ["{lacking[0]}"] would offer it all the same)'


def _limits(gpu: Gpu, finding: Finding, dirty_bytes: int) -> tuple[str, ...]:
    limits = [_LIMITS[Question(one)] for one in gpu.unanswered]
    if gpu.mig_enabled != gpu.mig_pending:
        limits.append(f"MIG is turned {'on' if gpu.mig_pending else 'off'} by the next reset")
    if gpu.fabric.startswith(FABRIC_FAILED) and not gpu.mig_enabled:
        limits.append(f"it reaches no GPU by NVLink: joining its fabric {gpu.fabric}")
    if dirty_bytes:
        limits.append(
            f"the driver does not clear memory that it frees: {dirty_bytes} bytes of an earlier"
            " tenant were still there, and were overwritten"
        )
    if finding.why:
        limits.insert(0, finding.why)
    return tuple(limits)


def _attributes(gpu: Gpu, linked: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("model", gpu.name),
        ("memory", f"{gpu.memory.total_bytes // _MIB} MiB"),
        ("driver", gpu.driver),
        ("pci", gpu.pci),
        ("nvlink", ",".join(linked)),
        ("fabric", gpu.fabric),
        ("persistence", {True: "on", False: "off", None: ""}[gpu.persistent]),
    )
    return tuple((name, value) for name, value in pairs if value)


def mark_later(found: Surveyed, owing: Collection[str]) -> Surveyed:
    """Say of these resources that what is left there is overwritten at the next grant."""
    resources = tuple(
        msgspec.structs.replace(one, attributes=(*one.attributes, LATER))
        if one.resource_id in owing
        else one
        for one in found.resources
    )
    return msgspec.structs.replace(found, resources=resources)


def memory_bytes_of(resource: Resource) -> int:
    """What a resource of ours says of its memory; 0 of one that says nothing."""
    said = dict(resource.attributes).get("memory", "0 MiB")
    return int(said.partition(" ")[0]) * _MIB


def gpu_of(resource: Resource) -> str:
    """The UUID of the GPU that a resource of ours is, or is a part of."""
    return dict(resource.attributes).get("gpu", resource.resource_id.removeprefix(PREFIX))


def why_silent(seen: Seen) -> Callable[[Resource], str]:
    """Why a resource that an earlier run has seen is not gone, though nobody has seen it now; ""
    where that is not so. A GPU that cannot be asked for its name is known by its address; one that
    cannot even be asked for that may be any that is missing."""
    there = {gpu.uuid for gpu in seen.gpus}
    silent = [
        one
        for one in seen.strangers
        if judge_fault(one.errno, one.fault).health is not Health.GONE
    ]

    def why(resource: Resource) -> str:
        uuid, pci = gpu_of(resource), dict(resource.attributes).get("pci", "")
        for one in silent:
            if one.uuid == uuid or (uuid not in there and not one.uuid and one.pci in ("", pci)):
                return one.fault
        return ""

    return why


# ---- MIG ---------------------------------------------------------------------------------------


def _instances(gpu: Gpu, plain: Resource) -> tuple[list[Resource], list[str]]:
    offered: list[Resource] = []
    notes: list[str] = []
    if not gpu.instances:
        notes.append(f"{plain.resource_id} {gpu.name}: MIG is on, and there is no MIG device")
    for one in gpu.instances:
        if one.neighbours:
            notes.append(
                f"{resource_id(one.uuid)}: not offered: it shares its memory with"
                f" {one.neighbours} more of GPU instance {one.gpu_instance}"
            )
            continue
        offered.append(of_instance(plain, gpu, one))
    return offered, notes


def _parts(gpu: Gpu, plain: Resource, layout: Sequence[str]) -> tuple[list[Resource], list[str]]:
    """The MIG devices of a GPU, as found or as they are made."""
    return _places(gpu, plain, layout) if layout else _instances(gpu, plain)


def _places(gpu: Gpu, plain: Resource, layout: Sequence[str]) -> tuple[list[Resource], list[str]]:
    """Each configured place that the GPU can have beside those before it."""
    offered: list[Resource] = []
    notes: list[str] = []
    taken: dict[int, str] = {}
    for place in map(parse_place, layout):
        profile = next((one for one in gpu.profiles if one.name == place.profile), None)
        span = range(place.start, place.start + (0 if profile is None else profile.span))
        clash = next((taken[at] for at in span if at in taken), "")
        if profile is None or place.start not in profile.starts:
            notes.append(f"{place_id(gpu, place)}: not offered: {gpu.name} has no such place")
        elif clash:
            notes.append(f"{place_id(gpu, place)}: not offered: it overlaps {clash}")
        else:
            taken.update(dict.fromkeys(span, place.name))
            made = Instance("", -1, -1, profile.name, profile.slices, profile.memory_bytes)
            one = of_instance(plain, gpu, made)
            offered.append(msgspec.structs.replace(one, resource_id=place_id(gpu, place)))
    return offered, notes


def parse_place(text: str) -> Place:
    """ "1g.10gb@4"."""
    profile, _, start = text.partition("@")
    return Place(profile, int(start))


def place_id(gpu: Gpu, place: Place) -> str:
    """What a place is called as a resource: it is there when its MIG device is not."""
    return f"{MIG_PREFIX}{gpu.uuid}/{place.name}"


def is_place(named: str) -> bool:
    """Whether a resource is called so because it is a place."""
    return named.startswith(MIG_PREFIX) and "@" in named


def of_instance(plain: Resource, gpu: Gpu, one: Instance) -> Resource:
    """A MIG device as a resource: what its GPU is, with its own share."""
    share = weight(one.slices, gpu.slices)
    own = {"memory": f"{one.memory_bytes // _MIB} MiB", "nvlink": ""}
    kept = tuple((name, own.get(name, value)) for name, value in plain.attributes)
    return msgspec.structs.replace(
        plain,
        resource_id=resource_id(one.uuid),
        capacity=share,
        granule=share,
        limits=(*plain.limits, _MIG_LIMIT),
        attributes=(
            ("mig", one.profile),
            ("gpu", gpu.uuid),
            *((name, value) for name, value in kept if value),
        ),
    )


def weight(slices: int, of_slices: int) -> int:
    """A MIG device's share of its GPU in thousandths, rounded down: no sum is more than the GPU."""
    return max(1, GPU_MILLI * slices // max(of_slices, slices, 1))


# ---- links -------------------------------------------------------------------------------------


def link_groups(gpus: Iterable[Gpu]) -> dict[str, tuple[str, ...]]:
    """By PCI address, the UUIDs of the GPUs that each reaches by NVLink: directly, or through a
    switch that both have a link to."""
    known = tuple(gpus)
    found: dict[str, tuple[str, ...]] = {}
    for gpu in known:
        peers = tuple(
            other.uuid
            for other in known
            if other.pci != gpu.pci
            and (
                other.pci in gpu.links
                or gpu.pci in other.links
                or frozenset(gpu.links) & frozenset(other.links)
            )
        )
        if peers:
            found[gpu.pci] = peers
    return found


def targets(gpus: Iterable[Gpu], layout: Sequence[str] = ()) -> dict[str, Target]:
    """Everything that could be leased, by resource id."""
    found: dict[str, Target] = {}
    for gpu in gpus:
        if gpu.mig_enabled and layout:
            for place in map(parse_place, layout):
                there = [
                    one
                    for one in gpu.instances
                    if (one.profile, one.start) == (place.profile, place.start)
                ]
                target = target_of(gpu, there[0] if there else None)
                found[place_id(gpu, place)] = msgspec.structs.replace(target, place=place)
        elif gpu.mig_enabled:
            for one in gpu.instances:
                found[resource_id(one.uuid)] = target_of(gpu, one)
        else:
            found[resource_id(gpu.uuid)] = target_of(gpu)
    return found


def _absence(seen: Seen) -> str:
    if seen.strangers:
        return f"{len(seen.strangers)} GPU seen, none usable: {seen.strangers[0].fault}"
    if seen.gpus:
        return f"{len(seen.gpus)} GPU seen, none that can be leased; see the notes"
    return "the driver counts no GPU"
