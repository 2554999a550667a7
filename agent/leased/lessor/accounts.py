# SPDX-License-Identifier: Apache-2.0
"""Accounts: what every tenant, and every group of tenants, has of the node now.

Rule: a lease is on the account of its tenant from the grant until its capacity is proven clean (or
fenced), because until then nobody else can have it. What a group has is the sum of what its members
have, kept as it changes.

Does not know limits (`lessor.quota`): the table moves leases through here, and readers compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from leased.lessor.deadlines import Deadlines, Endings
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease
from leased.terms.resource import ResourceKind

KIND_COUNT = len(ResourceKind)
ANY = -1
OCCUPIED, LIVE = -1, -2
"""In place of a kind: leases, also those that are being cleaned; leases that are used."""

Cell = tuple[int, int, int]
"""Kind, tier and NUMA node of a share; a tier or node that is not known is ANY."""

Charge = tuple[tuple[Cell, int], ...]
"""What one lease has, cell by cell."""


def group_key(name: str) -> str:
    """The name of a group among holders of accounts: no tenant's begins like that."""
    return f"@{name}"


class Account:
    """What one holder (a tenant or a group) has: leases that are used and leases that are being
    cleaned, capacity by kind and by cell, and the order in which the used ones end. `left` counts
    whatever made it less.
    """

    __slots__ = (
        "capacities",
        "cells",
        "charges",
        "endings",
        "holder",
        "leases",
        "left",
        "teardown",
    )

    def __init__(self, holder: str, deadlines: Deadlines[LeaseId]) -> None:
        self.holder = holder
        self.leases = self.left = 0
        self.charges: dict[LeaseId, Charge] = {}
        self.capacities = [0] * KIND_COUNT
        self.teardown = [0] * KIND_COUNT
        self.cells: dict[Cell, int] = {}
        self.endings: Endings[LeaseId] = Endings(deadlines)

    @property
    def occupied(self) -> int:
        """Leases, also those that are being cleaned."""
        return len(self.charges)

    def add(self, lease_id: LeaseId, charge: Charge, ends_ns: int) -> None:
        """A lease begins."""
        self.leases += 1
        self.charges[lease_id] = charge
        self.endings.add(lease_id, ends_ns)
        for cell, capacity in charge:
            self.capacities[cell[0]] += capacity
            self.cells[cell] = self.cells.get(cell, 0) + capacity

    def cut(self, lease_id: LeaseId) -> None:
        """A lease is used no more; what it had is being cleaned."""
        self.leases -= 1
        self.left += 1
        for cell, capacity in self.charges[lease_id]:
            self.teardown[cell[0]] += capacity

    def settle(self, lease_id: LeaseId) -> None:
        """What a lease had is clean, or fenced: nobody's of this account any more."""
        self.left += 1
        for cell, capacity in self.charges.pop(lease_id):
            self.capacities[cell[0]] -= capacity
            self.teardown[cell[0]] -= capacity
            left = self.cells[cell] - capacity
            if left:
                self.cells[cell] = left
            else:
                del self.cells[cell]

    def used(self, kind: int, tier: int, node: int) -> int:
        """Capacity of a kind, of one tier or NUMA node of it where they are not ANY."""
        if tier == ANY and node == ANY:
            return self.capacities[kind]
        return weigh(self.cells.items(), kind, tier, node)

    def has(self, kind: int, tier: int, node: int) -> int:
        """As `used`, of leases, too."""
        if kind < 0:
            return self.occupied if kind == OCCUPIED else self.leases
        return self.used(kind, tier, node)


def covers(kind: int, tier: int, node: int, cell: Cell) -> bool:
    """Whether what is counted by (kind, tier, node) counts `cell`."""
    return kind == cell[0] and (tier == ANY or tier == cell[1]) and (node == ANY or node == cell[2])


def weigh(charge: Iterable[tuple[Cell, int]], kind: int, tier: int, node: int) -> int:
    """How much of a lease (kind, tier, node) counts: what `covers` says, spelled out for the path
    that runs most.
    """
    weight = 0
    for (of_kind, of_tier, of_node), capacity in charge:
        if of_kind == kind and tier in (ANY, of_tier) and node in (ANY, of_node):
            weight += capacity
    return weight


class Watcher(Protocol):
    """Whoever keeps a sum over tenants."""

    def moved(self, tenant: TenantId, charge: Charge, sign: int, now_ns: int) -> None:
        """A tenant has so much more (or less) than before."""
        ...


class Accounts:
    """Every account by holder. `watchers` are told of every change of a tenant's."""

    __slots__ = (
        "_charge",
        "_deadlines",
        "_group_of",
        "_groups",
        "_holders",
        "_tenants",
        "watchers",
    )

    def __init__(self, deadlines: Deadlines[LeaseId]) -> None:
        self._deadlines = deadlines
        self._charge: Charge = ()
        self._tenants: dict[TenantId, Account] = {}
        self._groups: dict[str, Account] = {}
        self._holders: dict[str, Account] = {}
        self._group_of: Mapping[TenantId, str] = {}
        self.watchers: Sequence[Watcher] = ()

    def __len__(self) -> int:
        return len(self._tenants)

    def get(self, tenant: TenantId) -> Account | None:
        """The account of a tenant that ever had one."""
        return self._tenants.get(tenant)

    def group(self, name: str) -> Account | None:
        """The account of a group any of whose members has a lease."""
        return self._groups.get(name)

    def holder(self, holder: str) -> Account | None:
        """The account of a tenant, or of a group by its `group_key`."""
        return self._holders.get(holder)

    def items(self) -> Iterable[tuple[TenantId, Account]]:
        """Every tenant's account."""
        return self._tenants.items()

    def groups(self) -> Iterable[tuple[str, Account]]:
        """Every group's account."""
        return self._groups.items()

    def begin(
        self, lease_id: LeaseId, tenant: TenantId, charge: Charge, ends_ns: int, now_ns: int
    ) -> None:
        """A lease begins."""
        if charge == self._charge:  # most leases are like the one before: kept once
            charge = self._charge
        else:
            self._charge = charge
        for account in self._of(tenant):
            account.add(lease_id, charge, ends_ns)
        for watcher in self.watchers:
            watcher.moved(tenant, charge, 1, now_ns)

    def end_earlier(self, lease: Lease, at_ns: int) -> None:
        """A lease will end sooner than was said."""
        for account in self._of(lease.subject.tenant):
            account.endings.add(lease.lease_id, at_ns)

    def cut(self, lease: Lease) -> None:
        """A lease is used no more."""
        for account in self._of(lease.subject.tenant):
            account.cut(lease.lease_id)

    def settle(self, lease: Lease, now_ns: int) -> None:
        """What a lease had is clean, or fenced."""
        tenant, lease_id = lease.subject.tenant, lease.lease_id
        charge = self._tenants[tenant].charges[lease_id]
        for account in self._of(tenant):
            account.settle(lease_id)
        for watcher in self.watchers:
            watcher.moved(tenant, charge, -1, now_ns)

    def regroup(self, group_of: Mapping[TenantId, str], live: Mapping[LeaseId, int]) -> None:
        """Who is in which group from here on; `live` says when each lease that is used ends."""
        self._group_of = group_of
        self._groups = {}
        self._holders = {}
        for tenant, account in self._tenants.items():
            self._holders[tenant] = account
            name = group_of.get(tenant)
            if name is None:
                continue
            group = self._group(name)
            for lease_id, charge in account.charges.items():
                ends_ns = live.get(lease_id)
                group.add(lease_id, charge, 0 if ends_ns is None else ends_ns)
                if ends_ns is None:
                    group.cut(lease_id)

    def _of(self, tenant: TenantId) -> tuple[Account, ...]:
        account = self._tenants.get(tenant)
        if account is None:
            account = self._tenants[tenant] = Account(tenant, self._deadlines)
            self._holders[tenant] = account
        name = self._group_of.get(tenant)
        return (account,) if name is None else (account, self._group(name))

    def _group(self, name: str) -> Account:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Account(group_key(name), self._deadlines)
            self._holders[group.holder] = group
        return group
