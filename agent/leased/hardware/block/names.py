# SPDX-License-Identifier: Apache-2.0
"""What things are called: namespaces by their permanent identity, mappings by their lease.

Rule: a namespace is NGUID, else EUI-64, else UUID, else the wwid that the kernel makes of serial
number and nsid; never its name in /dev, which moves. A mapping's uuid follows
from the lease and the place of its allotment among the lease's namespaces, so that the reaper, the
agent and whoever cleans up after both need not be told (native/reaper_protocol.h).

Does not look at the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from leased.terms.identity import ID_BYTES, LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import RAW_PREFIX, Allotment, ResourceKind

PREFIX = "LEASED-"
_UUID = re.compile(r"LEASED-([0-9a-f]{32})-(\d{1,3})")
_EMPTY = re.compile(r"[0\s-]*")
_UNFIT = re.compile(r"[^0-9a-zA-Z.-]+")


def identity_of(told: Callable[[str], str | None]) -> str:
    """The namespace's permanent identity from what sysfs says of it under each name, asked no
    further than it must be; "" if it has none."""
    for name in ("nguid", "eui", "uuid"):
        text = told(name)
        if text is not None and not _EMPTY.fullmatch(text):
            return re.sub(r"[\s-]", "", text).lower()
    return _UNFIT.sub("_", told("wwid") or "")


def resource_id(identity: str, *, raw: bool = False) -> str:
    """The resource that the namespace is, encrypted or as it is."""
    return f"{RAW_PREFIX}{identity}" if raw else f"block:{identity}"


def identity_in(resource: str) -> str:
    """The namespace's identity in a resource id."""
    return resource.removeprefix(RAW_PREFIX).removeprefix("block:")


def is_raw(allotment: Allotment) -> bool:
    """Whether the namespace is leased as it is."""
    return allotment.resource_id.startswith(RAW_PREFIX)


def number_of(lease: Lease, allotment: Allotment) -> int:
    """The allotment's place among the namespaces of its lease."""
    namespaces = [a for a in lease.subject.allotments if a.kind is ResourceKind.BLOCK]
    return namespaces.index(allotment)


def mapping_uuid(lease_id: LeaseId, number: int) -> str:
    """What device-mapper knows the mapping by."""
    return f"{PREFIX}{lease_id.hex()}-{number}"


def mapping_name(lease_id: LeaseId, number: int) -> str:
    """What people know it by: its name in /dev/mapper."""
    return f"lease-{lease_id.hex()}-{number}"


def name_of(uuid: str) -> str:
    """The name of the mapping with this uuid."""
    return f"lease-{uuid.removeprefix(PREFIX)}"


def mapping_path(lease_id: LeaseId, number: int) -> str:
    """Where a holder opens it."""
    return f"/dev/mapper/{mapping_name(lease_id, number)}"


def lease_in(uuid: str) -> LeaseId | None:
    """Whose mapping it is, if it is one of ours."""
    found = _UUID.fullmatch(uuid)
    if found is None:
        return None
    lease_id = bytes.fromhex(found.group(1))
    assert len(lease_id) == ID_BYTES
    return LeaseId(lease_id)
