# SPDX-License-Identifier: Apache-2.0
"""A Pool: one resource, and how its capacity is split. All pools of a node together are the Pools.

Rule: free + leased + teardown + fenced = capacity, at every instant. When a resource shrinks below
what is in use, `free` goes below zero and says by how much: nothing is granted until it is positive
again. A resource that disappears while something of it is held keeps its pool with capacity 0 until
the last share has come back. A Way is another resource to the same capacity: it has no columns of
its own.

Does not know leases; `lessor.table` moves shares between the columns as events say.
"""

from __future__ import annotations

import msgspec

from leased.lessor.deadlines import Deadlines, Endings
from leased.terms.identity import LeaseId
from leased.terms.reply import ResourceUse
from leased.terms.resource import (
    MIG_PREFIX,
    Allotment,
    Ask,
    Health,
    Inventory,
    Resource,
    ResourceKind,
    Shape,
    TierKind,
    capacity_id,
    kind_scope,
    shape_of,
)


class Pool:
    """The split of one resource's capacity. `fenced` includes `fenced_by_operator`, `leased` what
    is `draining`; `present` is False once it is lost.
    """

    __slots__ = (
        "capacity",
        "cell",
        "counted",
        "draining",
        "endings",
        "fenced",
        "fenced_by_operator",
        "free",
        "granule",
        "holders",
        "index",
        "leased",
        "present",
        "rank",
        "resource",
        "resource_id",
        "teardown",
    )

    def __init__(self, resource: Resource, index: int, deadlines: Deadlines[LeaseId]) -> None:
        self.resource_id = resource.resource_id
        self.free = self.leased = self.teardown = self.fenced = self.fenced_by_operator = 0
        self.draining = 0
        self.capacity = 0
        self.endings: Endings[LeaseId] = Endings(deadlines)
        self.holders: dict[LeaseId, None] = {}
        self.counted: Pool = self
        self.describe(resource, index)

    def describe(self, resource: Resource, index: int) -> None:
        """Take over what the inventory says now; the difference in capacity goes to `free`."""
        self._describe(resource, index)
        self.free += resource.capacity - self.capacity
        self.capacity = resource.capacity

    def _describe(self, resource: Resource, index: int) -> None:
        self.resource = resource
        self.index = index
        self.granule = max(1, resource.granule)
        # An ask that names neither a tier nor a page size gets the plainest of both: dram before
        # hbm, small pages before large ones.
        tier = -1 if resource.tier is None else int(resource.tier)
        self.rank = (tier, self.granule)
        # What quotas count a share of it as.
        self.cell = (int(resource.kind), tier, resource.node)
        self.present = True

    def lose(self) -> None:
        """The resource is no longer there: nothing of it can be granted."""
        self.free -= self.capacity
        self.capacity = 0
        self.present = False

    @property
    def used(self) -> int:
        """What is not free."""
        return self.leased + self.teardown + self.fenced

    def use(self, *, cordoned: bool) -> ResourceUse:
        """The split as a reply shows it."""
        return ResourceUse(
            self.resource_id,
            self.resource.kind,
            self.free,
            self.leased,
            self.teardown,
            self.fenced,
            cordoned,
        )


class Way(Pool):
    """Another way to have what `counted` counts. Its columns are read there and moved there."""

    __slots__ = ()

    def __init__(self, resource: Resource, index: int, counted: Pool) -> None:
        self.resource_id = resource.resource_id
        self.counted = counted
        self.describe(resource, index)

    def describe(self, resource: Resource, index: int) -> None:
        """Take over what the inventory says now."""
        self._describe(resource, index)

    def lose(self) -> None:
        """This way is no longer there; the capacity is."""
        self.present = False

    free = property(lambda self: self.counted.free)
    leased = property(lambda self: self.counted.leased)
    teardown = property(lambda self: self.counted.teardown)
    fenced = property(lambda self: self.counted.fenced)
    fenced_by_operator = property(lambda self: self.counted.fenced_by_operator)
    capacity = property(lambda self: self.counted.capacity)
    endings = property(lambda self: self.counted.endings)
    holders = property(lambda self: self.counted.holders)


Where = tuple[
    ResourceKind,
    "int | None",
    "int | None",
    "str | None",
    "int | None",
    "Shape | None",
    tuple[tuple[str, str], ...],
    bool,
]


def where_of(ask: Ask) -> Where:
    """What an ask says about *where*, in which shape and of what, without how much."""
    return (
        ask.kind,
        ask.tier,
        ask.node,
        ask.resource_id,
        ask.granule,
        ask.shape,
        ask.attributes,
        ask.adopts,
    )


class Pools:
    """Every pool by resource id, in the order of the inventory, and which of them an ask may use.
    `changes` counts what was observed, ordered or fenced of them.
    """

    __slots__ = ("_deadlines", "_matching", "_usable", "by_id", "changes", "cordoned", "inventory")

    def __init__(self, deadlines: Deadlines[LeaseId]) -> None:
        self._deadlines = deadlines
        self.by_id: dict[str, Pool] = {}
        self.cordoned: dict[str, None] = {}
        self.inventory = Inventory(())
        self.changes = 0
        self._matching: dict[Where, tuple[Pool, ...]] = {}
        self._usable: dict[Where, tuple[Pool, ...]] = {}

    def observe(self, inventory: Inventory) -> None:
        """Replace the inventory; shares that are held stay where they are."""
        self.changes += 1
        before = self.by_id
        after: dict[str, Pool] = {}
        ways: list[tuple[int, Resource]] = []
        for index, resource in enumerate(inventory.resources):
            if capacity_id(resource.resource_id) != resource.resource_id:
                ways.append((index, resource))
                continue
            pool = before.get(resource.resource_id)
            if pool is None:
                pool = Pool(resource, index, self._deadlines)
            else:
                pool.describe(resource, index)
            after[resource.resource_id] = pool
        for index, resource in ways:
            counted = after.get(capacity_id(resource.resource_id))
            if counted is not None:  # a way to what is not offered leads nowhere
                after[resource.resource_id] = Way(resource, index, counted)
        for resource_id, pool in before.items():
            if resource_id not in after and pool.used:
                if pool.present:
                    pool.lose()
                after[resource_id] = pool
        self.by_id = after
        self.inventory = inventory
        self._forget_matches()

    def observe_health(self, resource_id: str, health: Health) -> None:
        """Note one resource's health, in the inventory too."""
        self.changes += 1
        resources = tuple(
            msgspec.structs.replace(resource, health=health)
            if resource.resource_id == resource_id
            else resource
            for resource in self.inventory.resources
        )
        self.inventory = msgspec.structs.replace(self.inventory, resources=resources)
        pool = self.by_id.get(resource_id)
        if pool is not None:
            pool.resource = msgspec.structs.replace(pool.resource, health=health)
        self._usable.clear()

    def cordon(self, resource_id: str, *, cordoned: bool) -> None:
        """Stop or resume grants on a resource ("" = the node)."""
        self.changes += 1
        if cordoned:
            self.cordoned[resource_id] = None
        else:
            self.cordoned.pop(resource_id, None)
        self._usable.clear()

    def is_cordoned(self, pool: Pool) -> bool:
        """Whether grants on it were stopped, or on what counts it, or on all of its kind."""
        if not self.cordoned:
            return False
        ids = (pool.resource_id, pool.counted.resource_id, kind_scope(pool.resource.kind))
        return any(one in self.cordoned for one in ids)

    def of(self, allotment: Allotment) -> Pool:
        """The pool of an allotment; one that no inventory names any more has a pool of capacity
        0.
        """
        pool = self.by_id.get(allotment.resource_id)
        if pool is not None:
            return pool.counted
        counted_by = capacity_id(allotment.resource_id)
        pool = self.by_id.get(counted_by)
        if pool is None:
            ghost = Resource(counted_by, allotment.kind, allotment.tier, 0, 1, health=Health.GONE)
            pool = self.by_id[counted_by] = Pool(ghost, len(self.by_id), self._deadlines)
            pool.present = False
        return pool

    def fence(self, pool: Pool, capacity: int) -> None:
        """So much of what is free is out of use; a negative number is put back."""
        self.changes += 1
        pool.fenced += capacity
        pool.free -= capacity

    def settle(self, pool: Pool) -> None:
        """Drop the pool of a lost resource when the last share of it has come back."""
        if not pool.present and not pool.used:
            self.by_id.pop(pool.resource_id, None)
            self._forget_matches()

    def matching(self, ask: Ask) -> tuple[Pool, ...]:
        """Every present pool that fits what the ask says of where, plainest first, then in
        inventory order.
        """
        where = where_of(ask)
        pools = self._matching.get(where)
        if pools is None:
            pools = tuple(
                sorted(
                    (
                        pool
                        for pool in self.by_id.values()
                        if pool.present and fits(pool.resource, ask)
                    ),
                    key=_plainest,
                )
            )
            if pools:  # only what exists is remembered: what callers make up must not fill memory
                self._matching[where] = pools
        return pools

    def usable(self, ask: Ask) -> tuple[Pool, ...]:
        """Those of `matching` that are healthy and not cordoned."""
        where = where_of(ask)
        pools = self._usable.get(where)
        if pools is None:
            pools = tuple(
                pool
                for pool in self.matching(ask)
                if _is_well(pool.resource, ask) and not self.is_cordoned(pool)
            )
            if pools:
                self._usable[where] = pools
        return pools

    def _forget_matches(self) -> None:
        self._matching.clear()
        self._usable.clear()


def _is_well(resource: Resource, ask: Ask) -> bool:
    health = resource.health
    return health == Health.OK or (ask.adopts and health == Health.BUSY)


def fits(resource: Resource, ask: Ask) -> bool:
    """Whether a resource is of what the ask says of where."""
    return (
        resource.kind == ask.kind
        and (ask.resource_id is None or ask.resource_id == resource.resource_id)
        and (ask.tier is None or ask.tier == resource.tier)
        and (ask.node is None or ask.node == resource.node)
        and (ask.granule is None or ask.granule == max(1, resource.granule))
        and _is_shaped(resource, ask)
        and all(_says(resource, name, value) for name, value in ask.attributes)
    )


def _says(resource: Resource, name: str, value: str) -> bool:
    """Whether an attribute is the value, or has it as one of its words: "H200" is an "NVIDIA
    H200". Letter case is nothing."""
    wanted = value.casefold()
    return any(
        known == name and (said.casefold() == wanted or wanted in said.casefold().split())
        for known, said in resource.attributes
    )


def _is_shaped(resource: Resource, ask: Ask) -> bool:
    """Whether the resource is granted as the ask wants it. Who names neither a shape nor the
    resource expects a descriptor of memory, an encrypted namespace, a GPU of which no part is
    somebody else's; remote memory has only its own shape."""
    shape = shape_of(resource.resource_id)
    if ask.shape is not None:
        return shape == ask.shape
    if ask.resource_id is not None:
        return True
    if resource.resource_id.startswith(MIG_PREFIX):
        return any(name == "mig" for name, _ in ask.attributes)
    if shape in (None, Shape.MEMFD, Shape.CRYPT):
        return True
    return shape is Shape.RDMA and ask.tier is TierKind.REMOTE


def _plainest(pool: Pool) -> tuple[tuple[int, int], int]:
    return (pool.rank, pool.index)
