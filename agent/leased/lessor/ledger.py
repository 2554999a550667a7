# SPDX-License-Identifier: Apache-2.0
"""The ledger: what tenants with budgets have used up in the periods that run, in capacity x ns.

Rule: a lease counts from its grant for all that it may still use, up to the deadline that it has; a
renewal adds what it adds, an early end gives back what was not used. So what is on the ledger is
never less than what was used, and when a lease ends it is exactly that. When a period begins anew,
what live leases may still use is all there is. Closed leases are not replayed: `Metered` says, at
the end of each, what the ledger has.

Does not know what a budget allows (`budget`) and does not make bills (`economics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from leased.lessor.accounts import ANY
from leased.terms import event as events
from leased.terms.identity import TenantId
from leased.terms.lease import Lease, Priority, Subject
from leased.terms.policy import Period
from leased.terms.resource import ResourceKind, TierKind

WIDE_BYTES = 16

Key = tuple[int, int, int]
"""Kind, tier (or ANY) and priority: what has a price."""

Rows = tuple[tuple[str, int, int, int, bytes], ...]
"""What `Metered` says: period, kind, tier, priority, capacity x ns."""


_KEYS: Final = tuple(
    tuple(
        {
            tier: (int(kind), ANY if tier is None else int(tier), int(priority))
            for tier in (None, *TierKind)
        }
        for kind in ResourceKind
    )
    for priority in Priority
)
"""Every key there is, once: by priority, kind and tier."""


def keyed(subject: Subject) -> list[tuple[Key, int]]:
    """What a lease has, by what has a price."""
    keys = _KEYS[subject.priority]
    return [(keys[one.kind][one.tier], one.capacity) for one in subject.allotments]


class Meter:
    """What one tenant has on the ledger, by period. `spare` is what it may certainly still use up,
    in capacity x ns of whatever is dearest, as far as `spare_by` goes (`budget`). `said` is what
    an event that is about to be sealed says of it, and what it is.
    """

    __slots__ = ("_rows", "_to_all", "said", "spare", "spare_by")

    def __init__(self) -> None:
        self._rows: dict[Period, dict[Key, int]] = {period: {} for period in Period}
        self._to_all: dict[Key, int] = {}
        self.said: Rows = ()
        self.spare = 0
        self.spare_by: tuple[object, object] = (None, None)

    @property
    def rows(self) -> dict[Period, dict[Key, int]]:
        """Capacity x ns by period."""
        if self._to_all:
            for rows in self._rows.values():
                for key, more in self._to_all.items():
                    rows[key] = rows.get(key, 0) + more
            self._to_all = {}
        return self._rows

    def add_to_all(self, subject: Subject, ns: int) -> None:
        """So much more time of a lease, in every period: noted once, and put where it belongs when
        somebody looks.
        """
        to_all, keys = self._to_all, _KEYS[subject.priority]
        for one in subject.allotments:
            key, more = keys[one.kind][one.tier], one.capacity * ns
            to_all[key] = to_all.get(key, 0) + more
            if more > 0:  # what is given back is spare when the budgets are looked at again
                self.spare -= more

    def add(self, period: Period, lease: Lease, ns: int) -> None:
        """So much more time of a lease, in one period."""
        rows = self.rows[period]
        for key, capacity in keyed(lease.subject):
            rows[key] = rows.get(key, 0) + capacity * ns


class Ledger:
    """Every meter by tenant. `began` is since when each period counts, on this boot's clock, and
    on the wall's.
    """

    __slots__ = ("_last_ns", "_meters", "began_ns", "began_wall_ns")

    def __init__(self) -> None:
        self._meters: dict[TenantId, Meter] = {}
        self._last_ns = 0
        self.began_ns: dict[Period, int] = dict.fromkeys(Period, 0)
        self.began_wall_ns: dict[Period, int] = dict.fromkeys(Period, 0)

    def meter(self, tenant: str) -> Meter | None:
        """The meter of a tenant that has a budget."""
        found: Meter | None = self._meters.get(tenant)  # type: ignore[call-overload]
        return found

    def tenants(self) -> Iterator[TenantId]:
        """Who has one."""
        return iter(tuple(self._meters))

    def change(self, lease: Lease, from_ns: int, until_ns: int) -> None:
        """A lease that would have ended at `from_ns` now ends at `until_ns`."""
        meters = self._meters
        meter = meters.get(lease.subject.tenant) if meters else None
        if meter is None:
            return
        last_ns = self._last_ns
        if from_ns >= last_ns and until_ns >= last_ns:
            meter.add_to_all(lease.subject, until_ns - from_ns)
            return
        for key, capacity in keyed(lease.subject):
            meter.spare -= max(0, capacity * (until_ns - from_ns))
            for period, began_ns in self.began_ns.items():
                rows = meter.rows[period]
                more = capacity * (max(until_ns, began_ns) - max(from_ns, began_ns))
                rows[key] = rows.get(key, 0) + more

    def begin(self, event: events.PeriodBegan, ends: Iterable[tuple[Lease, int]]) -> None:
        """A period begins anew; `ends` are the live leases and when each ends."""
        period, at_ns = Period(event.period), event.effective_ns
        self.began_ns[period], self.began_wall_ns[period] = at_ns, event.began_wall_ns
        self._last_ns = max(self.began_ns.values())
        for meter in self._meters.values():
            meter.rows[period] = {}
        for lease, ends_ns in ends:
            meter_of = self._meters.get(lease.subject.tenant)
            if meter_of is not None:
                meter_of.add(period, lease, max(0, ends_ns - at_ns))

    def set(self, event: events.Metered) -> None:
        """What a tenant has, all of it."""
        known = self._meters.get(event.tenant)
        if known is not None and known.said is event.rows:
            known.said = ()
            return
        if not event.rows:
            self._meters.pop(event.tenant, None)
            return
        meter = self._meters[event.tenant] = Meter()
        for period, kind, tier, priority, wide in event.rows:
            meter.rows[Period(period)][kind, tier, priority] = int.from_bytes(wide, "big")

    def reboot(self) -> None:
        """Another boot's clock: its leases begin after every period did."""
        self.began_ns, self._last_ns = dict.fromkeys(Period, 0), 0


def rows_of(meter: Meter) -> Rows:
    """What `Metered` says of a meter. A tenant that has used nothing has one row of nothing."""
    found = [
        (period.value, *key, capacity_ns.to_bytes(WIDE_BYTES, "big"))
        for period, rows in meter.rows.items()
        for key, capacity_ns in rows.items()
        if capacity_ns
    ]
    return tuple(found) or ((Period.DAY.value, 0, ANY, 0, bytes(WIDE_BYTES)),)


def fresh(leases: Iterable[tuple[Lease, int]], now_ns: int) -> Meter:
    """The meter of a tenant that has a budget from now on: what its live leases may still use."""
    meter = Meter()
    for lease, ends_ns in leases:
        for period in Period:
            meter.add(period, lease, max(0, ends_ns - now_ns))
    return meter


def used_ns(rows: Mapping[Key, int], kind: int, tier: int) -> int:
    """Capacity x ns of a kind, or of one tier of it."""
    used = 0
    for key, capacity_ns in rows.items():
        if key[0] == kind and (tier == ANY or tier == key[1]):
            used += capacity_ns
    return used
