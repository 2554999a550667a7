# SPDX-License-Identifier: Apache-2.0
"""Wholes: entire devices for one ask: GPUs, MIG instances, namespaces, device-dax ranges.

Rule: a device is nobody else's. Of namespaces and ranges the smallest that suffice are taken. Of
GPUs those that have links to each other and live on one NUMA node, near what the same request got
already, and so that as few links as possible to those that stay free are cut off. Ties go by the
order of the inventory.

Does not look at limits and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from leased.lessor.pool import Pool
from leased.terms.resource import Ask, ResourceKind, Shape

GPU_MILLI: Final = 1000
"""One GPU in the raw unit of its kind."""

Near = Sequence[int]
"""NUMA nodes that the rest of a request is on."""


class Wholes(msgspec.Struct, frozen=True):
    """So many devices of at least so much."""

    count: int
    least: int


def wholes_of(ask: Ask) -> Wholes | None:
    """What an ask wants of entire devices; None for one that shares."""
    if ask.kind == ResourceKind.GPU and not ask.count:
        return Wholes(-(-ask.capacity // GPU_MILLI), GPU_MILLI)
    if ask.count or ask.kind == ResourceKind.BLOCK or ask.shape == Shape.DAX:
        return Wholes(max(1, ask.count), ask.capacity)
    return None


def may_grow(asks: Sequence[Ask]) -> bool:
    """Whether a lease may hold more than was asked for: entire devices count whole."""
    return any(wholes_of(ask) is not None for ask in asks)


def choose(
    wanted: Wholes, kind: ResourceKind, pools: Sequence[Pool], near: Near
) -> list[Pool] | None:
    """The devices of `pools`, all of them free, that the ask gets; None if they are too few."""
    fitting = [pool for pool in pools if pool.capacity >= wanted.least]
    if len(fitting) < wanted.count:
        return None
    if kind != ResourceKind.GPU:
        fitting.sort(key=lambda pool: (pool.capacity, _far(pool, near), pool.index))
        return fitting[: wanted.count]
    links = {pool.resource_id: _links(pool) for pool in fitting}

    def linked(one: Pool, other: Pool) -> bool:
        return other.resource_id in links[one.resource_id] or (
            one.resource_id in links[other.resource_id]
        )

    def rank(chosen: Sequence[Pool]) -> tuple[int, ...]:
        inside = sum(linked(a, b) for i, a in enumerate(chosen) for b in chosen[:i])
        cut_off = sum(linked(a, b) for a in chosen for b in fitting if b not in chosen)
        nodes = dict.fromkeys(pool.resource.node for pool in chosen)
        far = sum(_far(pool, near) for pool in chosen)
        size = sum(pool.capacity for pool in chosen)
        return (-inside, len(nodes), far, cut_off, size, *sorted(p.index for p in chosen))

    def grow(seed: Pool) -> list[Pool]:
        chosen = [seed]
        while len(chosen) < wanted.count:
            rest = [pool for pool in fitting if pool not in chosen]
            chosen.append(
                min(
                    rest,
                    key=lambda pool: (
                        -sum(linked(pool, other) for other in chosen),
                        pool.resource.node not in [other.resource.node for other in chosen],
                        _far(pool, near),
                        pool.index,
                    ),
                )
            )
        return chosen

    best = min((grow(seed) for seed in fitting), key=rank)
    return sorted(best, key=lambda pool: pool.index)


def _far(pool: Pool, near: Near) -> bool:
    return bool(near) and pool.resource.node not in near


def _links(pool: Pool) -> tuple[str, ...]:
    """The ids of the devices that one says it has a link to."""
    said = "".join(value for name, value in pool.resource.attributes if name == "nvlink")
    return tuple(f"gpu:{uuid.strip()}" for uuid in said.split(",") if uuid.strip())
