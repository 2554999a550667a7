# SPDX-License-Identifier: Apache-2.0
"""The survey: which namespaces may be leased, and why the others may not.

Rule: no disk is offered by surprise. By default only what the operator has named by its permanent
identity is; `unused` offers besides only what is blank. Whatever the host uses (mounted anywhere,
swap, in an array or a mapping, behind a loop), whatever other hosts may reach, and two namespaces
that call themselves the same are refused under every policy, and each refusal says why.

Pure: what was seen in, an inventory out.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping

from leased.hardware.block.calls import Examined, Seen
from leased.hardware.block.config import BlockConfig, Offer
from leased.hardware.block.drives import Erase
from leased.hardware.block.erasing import choose
from leased.hardware.block.names import lease_in, resource_id
from leased.hardware.block.namespaces import LIVE, Namespace
from leased.hardware.calls import Surveyed
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.resource import Absence, Evidence, Health, Resource, ResourceKind

VIRTUAL_MODELS = ("QEMU NVMe Ctrl",)
"""Drives that are none: what is measured on them is emulated."""

ERASED = ("proven", "erased")
"""The attribute of what was proven erased after its last lease, sealed with the inventory: what a
log does not know so is erased before anybody has it as it is."""

LBA_BYTES = (512, 4096)
WAS_AWAY = "its drive was away while it was leased, and its lease ends by that"
UNMAPPED = "somebody removed its lease's mapping, and the lease ends by that"
_NAME_IT = "not offered: name it in hardware.block.namespaces"
CACHED_LIMIT = (
    "what the holder has read stays readable in its own memory after the cut, until it ends"
)
ERASE_LIMIT = "erasing was never measured on a drive of this model"


def candidates(
    seen: Seen,
    config: BlockConfig,
    leases: Mapping[str, LeaseId],
    mappings: Iterable[tuple[str, str]] = (),
) -> tuple[dict[str, Namespace], tuple[str, ...]]:
    """What may be offered as far as sysfs and the policy go, by identity; and why not the rest.
    `leases`: who had it last; `mappings`: by which mapping a lease has it now. What was away and is
    back is not what its lease has."""
    losers = {lease_in(uuid) for uuid in seen.lost}
    unmapped = {identity for identity, uuid in mappings if uuid not in seen.mapped}
    counts: dict[str, int] = {}
    for one in seen.namespaces:
        counts[one.identity] = counts.get(one.identity, 0) + 1
    offered: dict[str, Namespace] = {}
    notes: list[str] = []
    for one in seen.namespaces:
        uses = [use for use in seen.uses if use.number in one.numbers]
        ours = {lease_in(use.uuid) for use in uses if use.uuid}
        used = [use.what for use in uses if not use.uuid]
        # What is leased stays in the inventory until its lease has ended, whatever the policy.
        why = "" if ours else why_not(one, used, counts[one.identity], config)
        if leases.get(one.identity) in losers - ours:
            why = WAS_AWAY
        elif one.identity in unmapped:
            why = UNMAPPED
        if why:
            notes.append(describe(one, why))
        else:
            offered[one.identity] = one
    return offered, tuple(notes)


def absent(why: str) -> Surveyed:
    """No namespace at all."""
    return Surveyed((), (Absence(ResourceKind.BLOCK, why),), ())


def why_not(one: Namespace, uses: Iterable[str], alike: int, config: BlockConfig) -> str:
    """Why the namespace must not be leased; "" if nothing speaks against it so far."""
    used = "; ".join(uses)
    remote = sorted({c.transport for c in one.controllers if c.transport != "pcie"})
    if not one.identity:
        return "it has no identity that stays the same"
    if alike > 1:
        return f"{alike} namespaces of this host call themselves so"
    if used:
        return used
    if one.parts and config.offer is not Offer.LISTED:
        return f"it has {len(one.parts)} partitions"
    if remote:
        return f"it is reached over {', '.join(remote)}: other hosts may reach it, too"
    if one.read_only:
        return "it is read-only"
    if one.lba_bytes not in LBA_BYTES:
        return f"its blocks have {one.lba_bytes} bytes"
    if config.offer is Offer.LISTED and one.identity not in map(plain, config.namespaces):
        return _NAME_IT
    return ""


def plain(named: str) -> str:
    """An identity as an operator may write it: with the resource's prefix, as a UUID with dashes,
    in capitals."""
    text = named.removeprefix("block:")
    return text if text.startswith("nvme.") else text.replace("-", "").lower()


def survey(
    offered: Mapping[str, Namespace],
    examined: Mapping[str, Examined | str],
    config: BlockConfig,
    notes: Iterable[str],
    erased: Collection[str] = (),
) -> Surveyed:
    """The inventory's part. `examined` holds what each offered drive said, or why it did not;
    `erased` are the identities of what is proven erased."""
    resources: list[Resource] = []
    told = list(notes)
    for identity, one in offered.items():
        facts = examined[identity]
        why = facts if isinstance(facts, str) else why_not_now(facts, config)
        if why:
            told.append(describe(one, why))
            continue
        assert isinstance(facts, Examined)
        for raw, ways in classes(config):
            way = choose(ways, facts.drive, alone=not facts.others)
            if way is None and (ways or raw):
                called = "raw" if raw else "encrypted"
                wants = ", ".join(ways) or "nothing"
                told.append(describe(one, f"not {called}: its drive cannot do {wants} to it alone"))
            else:
                known = raw and identity in erased
                resources.append(_resource(one, facts, raw=raw, way=way, erased=known))
    absences: tuple[Absence, ...] = ()
    if not resources:
        why = f"{len(told)} NVMe namespaces, none offered" if told else "no NVMe namespace"
        absences = (Absence(ResourceKind.BLOCK, why),)
    return Surveyed(tuple(resources), absences, tuple(sorted(told)))


def why_not_now(facts: Examined, config: BlockConfig) -> str:
    """What the drive says that speaks against leasing the namespace."""
    if facts.busy:
        return "somebody has it exclusively"
    if facts.strangers:
        others = ", ".join(map(str, facts.strangers))
        return f"controllers that are not this host's are attached to it: {others}"
    if facts.contents and config.offer is Offer.UNUSED:
        return f"it is not blank: {facts.contents}"
    if facts.layout.metadata_bytes:
        return f"its blocks carry {facts.layout.metadata_bytes} bytes of metadata"
    return ""


def why_silent(error: DeviceError) -> str:
    """Why a drive said nothing."""
    if error.errno not in (errno.EPERM, errno.EACCES):
        return f"its drive does not answer: {error}"
    lacks = "DeviceAllow= of its unit" if error.verb.endswith("_open") else "CAP_SYS_ADMIN"
    return f"the agent may not ask its drive without {lacks}: {error}"


def classes(config: BlockConfig) -> tuple[tuple[bool, tuple[Erase, ...]], ...]:
    """The ways to have a namespace (raw or not), and how it may be erased afterwards."""
    crypt = (False, config.crypt_erase)
    return (crypt, (True, config.raw_erase)) if config.raw else (crypt,)


def _resource(
    one: Namespace, facts: Examined, *, raw: bool, way: Erase | None, erased: bool
) -> Resource:
    virtual = one.model in VIRTUAL_MODELS
    can = [found for found, wide in facts.drive.erases if not (wide and facts.others)]
    live = any(controller.state == LIVE for controller in one.controllers)
    return Resource(
        resource_id=resource_id(one.identity, raw=raw),
        kind=ResourceKind.BLOCK,
        tier=None,
        capacity=one.size_bytes,
        granule=one.lba_bytes,
        node=one.node,
        evidence=Evidence.EMULATED if virtual else Evidence.NOT_RUN,
        health=Health.OK if live and not facts.sick else Health.SICK,
        limits=(CACHED_LIMIT,) if virtual else (CACHED_LIMIT, ERASE_LIMIT),
        attributes=(
            ("device", one.name),
            ("model", one.model),
            ("serial", one.serial),
            ("firmware", one.firmware),
            ("subsystem", one.nqn),
            ("nsid", str(one.nsid)),
            ("lba", str(one.lba_bytes)),
            ("erase", "+".join(filter(None, ["" if raw else "key", way]))),
            ("can", ",".join(can)),
            *((("sick", facts.sick),) if facts.sick else ()),
            *((ERASED,) if erased else ()),
        ),
    )


def describe(one: Namespace, why: str) -> str:
    """A namespace that is not leased, in words."""
    name = resource_id(one.identity) if one.identity else one.name
    return f"{name} ({one.name}, {one.model}, {one.size_bytes >> 20} MiB): {why}"
