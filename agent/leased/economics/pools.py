# SPDX-License-Identifier: Apache-2.0
"""Pools and intervals: the values that usage is made of.

Rule: an interval is half-open, lies on the boot clock of one boot, names the payer and the records
that it follows from, and its capacity x time is an exact integer.

Does not say where intervals come from (`intervals`) or what they cost (`rates`).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.terms.identity import BootId, LeaseId
from leased.terms.lease import Subject
from leased.terms.resource import Allotment, ResourceKind

UNIT: Final[dict[ResourceKind, int]] = {
    ResourceKind.MEM: 1 << 30,
    ResourceKind.BLOCK: 1 << 30,
    ResourceKind.NET: 1_000_000_000,
    ResourceKind.GPU: 1_000,
    ResourceKind.CPU: 1_000,
}
"""Raw units in one rate unit (GiB, GiB, Gbit/s, device, core)."""

UNIT_NAME: Final[dict[ResourceKind, str]] = {
    ResourceKind.MEM: "GiB",
    ResourceKind.BLOCK: "GiB",
    ResourceKind.NET: "Gbit/s",
    ResourceKind.GPU: "device",
    ResourceKind.CPU: "core",
}


class Pool(enum.IntEnum):
    """Who pays. PROVISIONED is not a payer: it is what there was to be paid for."""

    TENANT = 0
    TEARDOWN = 1
    FENCED = 2
    IDLE = 3
    PROVISIONED = 4


class Interval(msgspec.Struct, frozen=True):
    """`allotment.capacity` of a resource, in `pool`, over [start_ns, end_ns) of `boot_id`.

    `opened_by` and `closed_by` are the sequences of the records that say so. `subject` and
    `lease_id` are None where no lease is behind it (idle, provisioned, fenced by an operator).
    `provisional`: not closed by a record yet.
    """

    pool: Pool
    allotment: Allotment
    boot_id: BootId
    start_ns: int
    end_ns: int
    opened_by: int
    closed_by: int
    subject: Subject | None = None
    lease_id: LeaseId | None = None
    provisional: bool = False

    @property
    def capacity_ns(self) -> int:
        """Raw units x ns, exact."""
        return self.allotment.capacity * (self.end_ns - self.start_ns)


class Disagreement(msgspec.Struct, frozen=True):
    """A closing record whose sealed usage summary is not what its own lease's records add up to."""

    sequence: int
    lease_id: LeaseId
    sealed: tuple[int, ...]
    folded: tuple[int, ...]
