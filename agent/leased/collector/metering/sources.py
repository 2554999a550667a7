# SPDX-License-Identifier: Apache-2.0
"""Where hourly cells come from: what every source tells, in the same words.

Rule: every source gives the same cells for the same records: the Python reference (`reference`) and
the SQL engines (`store`).

Does not price anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from leased.economics.hourly import NodeSpan, PeakKey
from leased.economics.meter import UsageKey
from leased.economics.pools import Pool
from leased.terms.lease import SYNTHETIC, AccountingTag, is_probe
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind

PROBE: Final = AccountingTag("", flags=SYNTHETIC)
"""What is left of a probe's tag where tags are not told apart."""


class Held(msgspec.Struct, frozen=True):
    """What is held, or there, now: at the last record of its node. `tenant` is empty where no lease
    is behind it. One of each node, pool, tenant, kind and tier: nobody asks which of a hundred
    cores."""

    node_id: str
    pool: Pool
    tenant: str
    kind: ResourceKind
    tier: TierKind | None
    capacity: int


def added_up(parts: Iterable[Held]) -> tuple[Held, ...]:
    """What is of the same node, pool, tenant, kind and tier, added up."""
    sums: dict[tuple[str, Pool, str, ResourceKind, TierKind | None], int] = {}
    for one in parts:
        what = (one.node_id, one.pool, one.tenant, one.kind, one.tier)
        sums[what] = sums.get(what, 0) + one.capacity
    return tuple(Held(*what, capacity) for what, capacity in sums.items())


class Quiet(msgspec.Struct, frozen=True):
    """A node on which nobody held anything in [from_ns, to_ns), although there was something."""

    node_id: str
    from_ns: int
    to_ns: int


class Counted(msgspec.Struct, frozen=True):
    """So many leases, and what they held together, in raw unit x ns."""

    leases: int
    cap_ns: int


class NodeAmount(msgspec.Struct, frozen=True):
    """Of one kind and tier of a node, in raw unit x ns: what there was, and who had it. `idle` is
    what nobody had, and `missing`, below zero, what was held beyond what there was."""

    node_id: str
    kind: ResourceKind
    tier: TierKind | None
    provisioned: int
    tenant: int
    teardown: int
    fenced: int
    idle: int
    missing: int


class Source(Protocol):
    """Hourly cells. Windows are in label time; None of `tenant` is all."""

    def nodes(self) -> tuple[NodeSpan, ...]:
        """What of each chain the cells follow from."""
        ...

    def replaced(self) -> frozenset[str]:
        """The ids of logs that nobody waits for: the same node is followed by another."""
        ...

    def first_ns(self) -> int:
        """The label of the oldest record."""
        ...

    def tenants(self) -> tuple[str, ...]:
        """Every tenant that ever had a lease, sorted."""
        ...

    def cells(self, window: tuple[int, int], tenant: str | None = None) -> dict[UsageKey, int]:
        """Capacity x ns of every pool (of TENANT only, if one is given)."""
        ...

    def sums(
        self, window: tuple[int, int], tenant: str | None = None, *, tags: bool = False
    ) -> dict[UsageKey, int]:
        """The same over the whole window, in one cell per key, of its first hour. Without `tags`
        there is none but PROBE: there may be one for each lease, and a price asks for no more."""
        ...

    def peaks(self, window: tuple[int, int], tenant: str | None = None) -> dict[PeakKey, int]:
        """The most held at once, by hour: of every tenant; and under "" of all together."""
        ...

    def tasks(
        self, window: tuple[int, int], tenant: str | None = None
    ) -> dict[tuple[str, int], int]:
        """Tasks done, by tenant and hour."""
        ...

    def leases(
        self, window: tuple[int, int], tenant: str, bucket_hours: int
    ) -> dict[UsageKey, Counted]:
        """The leases behind the rows of a tenant's usage, of so many hours each (0: of the whole
        window), by the first hour of the row. What is not there, or does not hold what the cells
        say, cannot be said."""
        ...

    def node_amounts(self, window: tuple[int, int]) -> list[NodeAmount]:
        """What each node had, and who had it, of each log by itself."""
        ...

    def contributing(self, window: tuple[int, int], tenant: str) -> tuple[NodeSpan, ...]:
        """The chains on which a tenant held or released something on the days of `window`."""
        ...

    def held(self) -> list[Held]:
        """What is held and what there is, now; by the last log of each node."""
        ...

    def draining(self) -> frozenset[str]:
        """The ids of the nodes on which grants are stopped."""
        ...

    def quiet(self, window: tuple[int, int]) -> list[Quiet]:
        """Where nobody held anything for an hour or longer, cut to `window`, longest first."""
        ...


def cut_quiet(stretches: Iterable[Quiet], window: tuple[int, int]) -> list[Quiet]:
    """`stretches` within `window`, longest first."""
    begin_ns, end_ns = window
    inside = [one for one in stretches if one.from_ns < end_ns and one.to_ns > begin_ns]
    found = [
        # Nearly all are as they were: a fleet has a hundred thousand of them.
        one
        if begin_ns <= one.from_ns and one.to_ns <= end_ns
        else Quiet(one.node_id, max(one.from_ns, begin_ns), min(one.to_ns, end_ns))
        for one in inside
        if one.from_ns < one.to_ns
    ]
    return sorted(found, key=lambda one: (one.from_ns - one.to_ns, one.node_id, one.from_ns))


def summed(
    cells: dict[UsageKey, int], window: tuple[int, int], *, tags: bool = False
) -> dict[UsageKey, int]:
    """Hourly cells of `window` put together, as `Source.sums` tells them."""
    found: dict[UsageKey, int] = {}
    for key, amount in cells.items():
        tag = key.tag if tags else PROBE if is_probe(key.tag) else None
        whole = msgspec.structs.replace(key, bucket=window[0] // HOUR_NS, tag=tag)
        found[whole] = found.get(whole, 0) + amount
    return found
