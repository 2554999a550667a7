# SPDX-License-Identifier: Apache-2.0
"""Placement: which resources a request gets, all of its asks or nothing. Deterministic: same pools,
same answer.

Rule: memory and network come from one resource each, the tightest that fits (best fit), plainest
tier and page size first. CPU shares are packed on as few cores as possible, then on the tightest;
whole cores take only cores that are fully free, on one NUMA node where one suffices; what is leased
whole is chosen in `wholes`. GPUs are placed first, then the asks that have the fewest choices; what
one ask takes is gone for the next, and where it went, and what a request pins to a NUMA node, draws
the others near. Ties go by the order of the inventory.

`taken` is capacity to leave out, by the id of the resource that counts it: what earlier asks took;
a negative number is capacity imagined free.

Does not look at limits (`lessor.admission`) and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from operator import itemgetter

from leased.lessor.pool import Pool, Pools
from leased.lessor.wholes import Near, choose, wholes_of
from leased.terms.resource import Allotment, Ask, ResourceKind

NONE_BARRED: AbstractSet[str] = frozenset()
Shares = list[tuple[Pool, int]]
_TIGHTNESS = itemgetter(0, 1)


def spans(ask: Ask) -> bool:
    """Whether one ask may take shares of several resources."""
    return ask.kind == ResourceKind.CPU or wholes_of(ask) is not None


def place(
    asks: Sequence[Ask],
    pools: Pools,
    *,
    barred: AbstractSet[str] = NONE_BARRED,
    taken: dict[str, int] | None = None,
) -> tuple[Allotment, ...] | int:
    """The allotments, in the order of the asks; or the index of the ask that does not fit."""
    if len(asks) == 1 and taken is None and not spans(asks[0]):  # by far the most frequent request
        ask = asks[0]
        pool = _tightest(ask, pools.usable(ask), barred, {}, ())
        return 0 if pool is None else (_allot(pool, ask.capacity),)
    taken = {} if taken is None else dict(taken)
    near = [ask.node for ask in asks if ask.node is not None]
    placed: list[Shares] = [[] for _ in asks]
    for index in sorted(range(len(asks)), key=lambda i: (_urgency(asks[i], pools), i)):
        ask = asks[index]
        shares = _share(ask, pools.usable(ask), barred, taken, near)
        if shares is None:
            return index
        for pool, capacity in shares:
            taken[pool.counted.resource_id] = taken.get(pool.counted.resource_id, 0) + capacity
            if pool.resource.node >= 0:
                near.append(pool.resource.node)
        placed[index] = shares
    return tuple(_allot(pool, capacity) for shares in placed for pool, capacity in shares)


def could_hold(asks: Sequence[Ask], pools: Pools) -> bool:
    """Whether there is room for all of `asks` once every lease has ended."""
    used = {one: -(pool.leased + pool.teardown) for one, pool in pools.by_id.items()}
    return isinstance(place(asks, pools, taken=used), tuple)


def _urgency(ask: Ask, pools: Pools) -> tuple[bool, int, int]:
    return (ask.kind != ResourceKind.GPU, len(pools.usable(ask)), -ask.capacity)


def _allot(pool: Pool, capacity: int) -> Allotment:
    resource = pool.resource
    return Allotment(resource.resource_id, resource.kind, resource.tier, capacity)


def _share(
    ask: Ask,
    pools: Sequence[Pool],
    barred: AbstractSet[str],
    taken: dict[str, int],
    near: Near,
) -> Shares | None:
    if not spans(ask):
        pool = _tightest(ask, pools, barred, taken, near)
        return None if pool is None else [(pool, ask.capacity)]
    open_pools = [pool for pool in pools if pool.counted.resource_id not in barred]
    wanted = wholes_of(ask)
    if wanted is not None:
        free = [pool for pool in open_pools if 0 < pool.capacity == _free(pool, taken)]
        chosen = choose(wanted, ask.kind, free, near)
        return None if chosen is None else [(pool, pool.capacity) for pool in chosen]
    open_pools = [pool for pool in open_pools if ask.capacity % pool.granule == 0]
    fill = _whole if ask.exclusive else _packed
    return _on_one_node(open_pools, lambda some: fill(ask.capacity, some, taken), near)


def _free(pool: Pool, taken: dict[str, int]) -> int:
    return pool.free - taken.get(pool.counted.resource_id, 0)


def _tightest(
    ask: Ask,
    pools: Iterable[Pool],
    barred: AbstractSet[str],
    taken: dict[str, int],
    near: Near,
) -> Pool | None:
    """The pool with the least free that still fits, among the plainest rank that has one; a near
    one before a far one."""
    need = ask.capacity
    best: Pool | None = None
    best_fit = (False, 0)
    for pool in pools:
        if best is not None and pool.rank != best.rank:
            break
        free = _free(pool, taken) if taken else pool.free
        if free < need or need % pool.granule or pool.counted.resource_id in barred:
            continue
        fit = (bool(near) and pool.resource.node not in near, free)
        if best is None or fit < best_fit:
            best, best_fit = pool, fit
    return best


def _on_one_node(
    pools: list[Pool], fill: Callable[[list[Pool]], Shares | None], near: Near
) -> Shares | None:
    """Fill from the one NUMA node that needs the fewest resources, is near and fits tightest; else
    from all of them.
    """
    by_node: dict[int, list[Pool]] = {}
    for pool in pools:
        some = by_node.get(pool.cell[2])
        if some is None:
            by_node[pool.cell[2]] = [pool]
        else:
            some.append(pool)
    if len(by_node) == 1:
        return fill(pools)
    best: tuple[int, bool, int] | None = None
    best_node, best_shares = 0, None
    for node in sorted(by_node):
        shares = fill(by_node[node])
        if shares is None:
            continue
        left_over = sum([pool.free - capacity for pool, capacity in shares])
        rank = (len(shares), bool(near) and node not in near, left_over)
        if (
            best is None
            or rank < best
            or (rank == best and _sum_free(by_node[node]) < _sum_free(by_node[best_node]))
        ):
            best, best_node, best_shares = rank, node, shares
    return best_shares if best_shares is not None else fill(pools)


def _sum_free(pools: Sequence[Pool]) -> int:
    return sum([pool.free for pool in pools])


def _whole(need: int, pools: Sequence[Pool], taken: dict[str, int]) -> Shares | None:
    shares: Shares = []
    for pool in pools:
        free = _free(pool, taken)
        if 0 < pool.capacity == free and free <= need:
            shares.append((pool, free))
            need -= free
            if need == 0:
                return shares
    return None


def _packed(need: int, pools: Sequence[Pool], taken: dict[str, int]) -> Shares | None:
    """As few resources as possible: the emptiest ones, and for the rest the tightest that fits."""
    if taken:
        frees = [(_free(pool, taken), pool.index, pool) for pool in pools]
    else:
        frees = [(pool.free, pool.index, pool) for pool in pools]
    fitting = [one for one in frees if one[0] >= need]
    if fitting:
        return [(min(fitting, key=_TIGHTNESS)[2], need)]
    frees = sorted([one for one in frees if one[0] > 0], key=lambda one: (-one[0], one[1]))
    shares: Shares = []
    for position, (free, _, pool) in enumerate(frees):
        if free >= need:
            fitting = [one for one in frees[position:] if one[0] >= need]
            return [*shares, (min(fitting, key=_TIGHTNESS)[2], need)]
        shares.append((pool, free))
        need -= free
    return None
