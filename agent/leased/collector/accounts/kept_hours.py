# SPDX-License-Identifier: Apache-2.0
"""Kept hours: what the lines of an issued bill were made of, by day and tag, as it was issued.

Rule: they are kept beside the bill, name it by its digest, and are never written again: who exports
the bill (FOCUS) says what was issued, whatever was recorded, corrected or removed since. Of a day
and a price of it they keep one amount for each kind, tier, priority and tag.

Does not read or write files (`invoices`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from leased.economics.billing import Bill
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey
from leased.economics.pools import Pool
from leased.terms.lease import AccountingTag, Priority
from leased.terms.resource import ResourceKind, TierKind

VERSION: Final = 1
DAY_HOURS: Final = 24


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """An amount, in raw unit x ns; `hour` is the first of it. `tag` is its five fields, or none."""

    hour: int
    kind: int
    tier: int | None
    priority: int | None
    tag: tuple[str, str, str, str, int] | None
    cap_ns: str


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    bill_sha256: str
    rows: list[_Row]


def written(bill: Bill, cells: Mapping[UsageKey, int], terms: Terms) -> bytes:
    """What is kept of the `cells` that a bill was made of; `terms` are its own."""
    sums: dict[UsageKey, int] = {}
    first: dict[UsageKey, int] = {}
    for key, amount in cells.items():
        if key.pool is not Pool.TENANT or key.tenant != bill.tenant:
            continue
        day, card = key.bucket // DAY_HOURS, terms.card_number(key.bucket)
        place = msgspec.structs.replace(key, bucket=day * (len(terms.cards) + 1) + card)
        sums[place] = sums.get(place, 0) + amount
        first[place] = min(key.bucket, first.get(place, key.bucket))
    rows = [_row(key, first[key], amount) for key, amount in sums.items()]
    rows.sort(key=msgspec.json.encode)
    return msgspec.json.encode(_Document(VERSION, bill.digest().hex(), rows))


def read(raw: bytes, bill: Bill) -> dict[UsageKey, int]:
    """The cells of a bill. Raises ValueError."""
    found = msgspec.json.decode(raw, type=_Document)
    if found.version != VERSION:
        raise ValueError(f"of version {found.version}; this release reads {VERSION}")
    if found.bill_sha256 != bill.digest().hex():
        raise ValueError("of another bill")
    return {_key(row, bill.tenant): int(row.cap_ns) for row in found.rows}


def _row(key: UsageKey, hour: int, amount: int) -> _Row:
    tier = None if key.tier is None else int(key.tier)
    priority = None if key.priority is None else int(key.priority)
    tag = None if key.tag is None else msgspec.structs.astuple(key.tag)
    return _Row(hour, int(key.kind), tier, priority, tag, str(amount))


def _key(row: _Row, tenant: str) -> UsageKey:
    return UsageKey(
        Pool.TENANT,
        tenant,
        ResourceKind(row.kind),
        None if row.tier is None else TierKind(row.tier),
        None if row.priority is None else Priority(row.priority),
        None if row.tag is None else AccountingTag(*row.tag),
        row.hour,
    )
