# SPDX-License-Identifier: Apache-2.0
"""A bill read back: from its canonical bytes to the values that it was made of.

Rule: what is not exactly a bill of a known version is refused; nothing is guessed. Reading a bill
and writing it again gives the same bytes.

Does not check that a bill is right (`leasectl verify --bill`).
"""

from __future__ import annotations

import json
from typing import Any

from leased.economics.billing import VERSIONS, Bill, BillLine
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Credit,
    Model,
    Plan,
    TaskTier,
    Terms,
    TierMode,
    UsageRates,
)
from leased.economics.hourly import NodeSpan
from leased.economics.rates import Rate, RateCard
from leased.terms.lease import Priority
from leased.terms.resource import ResourceKind, TierKind

BYTES_MAX = 64 * 1024 * 1024


def parse_bill(raw: bytes) -> Bill:
    """The bill that `raw` is. Raises ValueError."""
    if len(raw) > BYTES_MAX:
        raise ValueError("too long for a bill")
    try:
        document = json.loads(raw)
    except RecursionError:
        raise ValueError("nested without an end") from None
    if not isinstance(document, dict) or document.get("version") not in VERSIONS:
        raise ValueError(f"this release reads bills of version {VERSIONS[0]} to {VERSIONS[-1]}")
    try:
        fields = dict(document)
        fields["line_items"] = tuple(BillLine(**line) for line in document["line_items"])
        fields["audit"] = tuple(NodeSpan(**span) for span in document["audit"])
        fields["credits"] = tuple((text, amount) for text, amount in document["credits"])
        fields["corrections"] = tuple((text, amount) for text, amount in document["corrections"])
        bill = Bill(**fields)
        _ = bill.pair, int(bill.as_of_ns)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a field is missing, or is none of a bill: {error}") from error
    return bill


def terms_of(document: dict[str, Any]) -> Terms:
    """Undo `billing.document_of`. Raises ValueError."""
    try:
        return Terms(
            cards=tuple(CardVersion(since, card_of(card)) for since, card in document["cards"]),
            infrastructure=card_of(document["infrastructure"]),
            plans=tuple(Plan(**plan) for plan in document["plans"]),
            contracts=tuple(_contract_of(contract) for contract in document["contracts"]),
            credits=tuple(Credit(**credit) for credit in document["credits"]),
            time_zones=tuple((tenant, zone) for tenant, zone in document["time_zones"]),
            allow_negative=document["allow_negative"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the terms cannot be read: {error}") from error


def card_of(document: dict[str, Any]) -> RateCard:
    """Undo `RateCard.document`, the order of rows aside."""
    return RateCard(
        rates=tuple(
            Rate(
                ResourceKind[kind.upper()],
                nano,
                TierKind[tier.upper()] if tier else None,
                Priority[priority.upper()] if priority else None,
                *pico,
            )
            for kind, tier, priority, nano, *pico in document["rates"]
        ),
        currency=document["currency"],
        decimals=document["decimals"],
        multipliers_pm=tuple(
            (Priority[name.upper()], multiplier) for name, multiplier in document["multipliers_pm"]
        ),
    )


def _contract_of(document: dict[str, Any]) -> Contract:
    fields = dict(document)
    fields["model"] = Model(fields["model"])
    fields["tier_mode"] = TierMode(fields["tier_mode"])
    fields["rates"] = UsageRates(**fields["rates"])
    fields["tiers"] = tuple(TaskTier(*tier) for tier in fields["tiers"])
    return Contract(**fields)
