# SPDX-License-Identifier: Apache-2.0
"""What of this host's memory can be leased to remote peers, through which device, and why not.

Rule: the memory is that which is leased here too (`memory.survey_memory`); a device is another way
to it, and takes nothing from it by being there. A node's memory is offered by the devices on that
node; where it has none, by every device. A device that cannot be told from another, or that the
kernel or the library does not let us use, is named with the reason.

Pure. Does not read anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leased.hardware.rdma.calls import Ability, Seen
from leased.hardware.rdma.config import RdmaConfig, Windows
from leased.hardware.rdma.devices import ACTIVE, PORT_STATES, RdmaDevice, ambiguous
from leased.terms.resource import (
    Evidence,
    Health,
    Resource,
    ResourceKind,
    Shape,
    TierKind,
    shape_of,
)

PROTOCOLS = ("ib", "roce")
"""Those whose peers are found by an address alone; iWARP needs a connection manager."""

OPEN_KEYS_LIMIT = (
    "the device has no memory windows of type 2B: a key works on every connection of its lease"
)
CARD_LIMIT = "cut and proof were never measured on a card of this make"


def why_not(device: RdmaDevice, config: RdmaConfig, unclear: bool) -> str:
    """Why the device is never offered; "" if it may be."""
    names = (device.name, device.guid, _with_colons(device.guid))
    if config.devices and not any(name in config.devices for name in names):
        return "not named in [hardware.rdma] devices"
    if unclear:
        return "its node GUID is 0 or another device's: it cannot be told apart"
    if device.protocol not in PROTOCOLS:
        return f"peers connect by {device.protocol or 'no known protocol'}, not by address"
    return ""


def why_not_now(device: RdmaDevice, ability: Ability, config: RdmaConfig) -> str:
    """Why a device that may be offered is not: one that was before is sick meanwhile."""
    if ability.trouble:
        return ability.trouble
    if device.port is None or device.port.gid(config.gid_index) is None:
        return "no port of it has an address (GID)"
    return ""


def why_silent(seen: Seen, config: RdmaConfig) -> dict[str, str]:
    """By GUID, the devices that are there, and only not to be used now."""
    unclear = ambiguous(list(seen.devices))
    return {
        device.guid: why_not_now(device, ability, config)
        for device, ability in zip(seen.devices, seen.abilities, strict=True)
        if not why_not(device, config, device.guid in unclear)
    }


def survey(
    seen: Seen, config: RdmaConfig, limits: Sequence[str]
) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
    """The resources, and a note for each device that is not offered. `limits`: what this host
    cannot enforce."""
    unclear = ambiguous(list(seen.devices))
    offered: list[tuple[RdmaDevice, Ability]] = []
    notes: list[str] = []
    for device, ability in zip(seen.devices, seen.abilities, strict=True):
        why = why_not(device, config, device.guid in unclear)
        why = why or why_not_now(device, ability, config)
        if why:
            notes.append(f"rdma {device.name} ({_with_colons(device.guid)}): {why}")
        else:
            offered.append((device, ability))
    resources = [
        _resource(device, ability, base, config, limits)
        for base in seen.memory
        if shape_of(base.resource_id) is Shape.MEMFD
        for device, ability in _near(base.node, offered)
    ]
    return tuple(resources), tuple(notes)


def _near(
    node: int, offered: Iterable[tuple[RdmaDevice, Ability]]
) -> list[tuple[RdmaDevice, Ability]]:
    offered = list(offered)
    return [one for one in offered if one[0].node == node] or offered


def _resource(
    device: RdmaDevice, ability: Ability, base: Resource, config: RdmaConfig, limits: Sequence[str]
) -> Resource:
    port = device.port
    assert port is not None
    gid = port.gid(config.gid_index)
    assert gid is not None
    windows = ability.windows and config.windows is not Windows.NEVER
    more = [*limits]
    if not windows:
        more.append(OPEN_KEYS_LIMIT)
    if not device.software:
        more.append(CARD_LIMIT)
    state = PORT_STATES[port.state] if 0 <= port.state < len(PORT_STATES) else "?"
    return Resource(
        resource_id=f"mem:rdma-{device.guid}:{base.resource_id.removeprefix('mem:')}",
        kind=ResourceKind.MEM,
        tier=TierKind.REMOTE,
        capacity=base.capacity,
        granule=base.granule,
        node=base.node,
        evidence=Evidence.EMULATED if device.software else Evidence.NOT_RUN,
        health=Health.OK if port.state == ACTIVE else Health.SICK,
        limits=(*base.limits, *more),
        attributes=(
            ("device", device.name),
            ("driver", device.driver),
            ("protocol", device.protocol),
            ("port", f"{port.number} {state}"),
            ("gid", gid.text),
            ("page_bytes", str(base.granule)),
            ("windows", "2B" if windows else "none"),
        ),
    )


def _with_colons(guid: str) -> str:
    return ":".join(guid[at : at + 4] for at in range(0, 16, 4))
