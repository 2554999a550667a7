# SPDX-License-Identifier: Apache-2.0
"""Samples: one value of one series, who it is of, and when it was read.

Rule: a value is an integer in the unit that its series names (`terms.series`), so no float and no
rounding is on the way to a reader. A value that could not be read is no sample: missing is never 0.

Does not say what the series mean.
"""

from __future__ import annotations

import msgspec

from leased.terms.identity import LeaseId

Attributes = tuple[tuple[str, str], ...]


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """One value as it was read: of a resource, or of what the asker calls `subject`."""

    series: str
    subject: str
    value: int
    attributes: Attributes = ()


class Readings(msgspec.Struct, frozen=True, array_like=True):
    """What one look brought: when it was over (boottime), and `failed`, what of it had no answer,
    each with the reason."""

    read_ns: int
    readings: tuple[Reading, ...]
    failed: tuple[tuple[str, str], ...] = ()


class Sample(msgspec.Struct, frozen=True):
    """One value of one series. `lease_id` None: of the host, else `uid` and `tenant` are its
    holder's. A counter counts since `since_ns` (boottime)."""

    name: str
    resource_id: str
    value: int
    sampled_ns: int
    attributes: Attributes = ()
    lease_id: LeaseId | None = None
    uid: int | None = None
    tenant: str = ""
    since_ns: int = 0

    @property
    def key(self) -> tuple[str, str, LeaseId | None, Attributes]:
        """What makes it the same series as another sample."""
        return self.name, self.resource_id, self.lease_id, self.attributes
