# SPDX-License-Identifier: Apache-2.0
"""Parts: how several collectors share a fleet.

Rule: a node belongs to one of `PARTS` parts for ever, by the hash of its id; a part belongs to the
collector that wins it among those that live (rendezvous hashing), so one that comes or goes moves
its own share and no other. Every collector that sees the same names comes to the same shares.

Pure. Does not lease parts (`manifest_postgres`).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

PARTS: Final = 64
"""More than there will be collectors, few enough to be looked at one by one. On disk for ever."""

RETENTION_PART: Final = 0
"""Whoever has it says what goes by the rule of retention; somebody always does."""


def part_of(node: str) -> int:
    """The part of a node, by its id in hex."""
    return _hash(node) % PARTS


def share_of(name: str, alive: Iterable[str]) -> frozenset[int]:
    """The parts that are a collector's among those that live."""
    names = sorted(alive)
    return frozenset(
        part
        for part in range(PARTS)
        if names and max(names, key=lambda one: (_hash(f"{part}/{one}"), one)) == name
    )


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
