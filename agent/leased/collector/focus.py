# SPDX-License-Identifier: Apache-2.0
"""FOCUS 1.2 (FinOps Open Cost and Usage Specification): a bill as rows that other people's tools
read.

Rule: the rows' BilledCost adds up to the bill's total, to the last digit: what a line of the rate
card costs is divided among its days and tags by the largest remainder. Every column of the
specification is there; what does not apply is empty. Custom columns begin with x_.

Does not compute a bill (`accounts`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Final

from leased.collector import periods
from leased.economics.amounts import decimal, exact, split, units
from leased.economics.billing import Bill, BillLine
from leased.economics.contracts import Terms
from leased.economics.hourly import HOUR_NS
from leased.economics.meter import UsageKey
from leased.economics.pools import UNIT, Pool
from leased.economics.rates import PERMILLE
from leased.economics.statement import SYNTHETIC, fixed
from leased.terms.lease import AccountingTag
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind

COLUMNS: Final = (
    "AvailabilityZone",
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "CapacityReservationId",
    "CapacityReservationStatus",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "CommitmentDiscountCategory",
    "CommitmentDiscountId",
    "CommitmentDiscountName",
    "CommitmentDiscountQuantity",
    "CommitmentDiscountStatus",
    "CommitmentDiscountType",
    "CommitmentDiscountUnit",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingCurrency",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
"""Of the Cost and Usage dataset, in the order of the specification."""

CUSTOM: Final = ("x_BillSha256",)
ISSUER: Final = "leased"
_SERVICE: Final = {
    "gpu": ("Compute", "Other (Compute)", "GPU leases"),
    "cpu": ("Compute", "Other (Compute)", "CPU leases"),
    "mem": ("Compute", "Other (Compute)", "Memory leases"),
    "block": ("Storage", "Other (Storage)", "Storage leases"),
    "net": ("Networking", "Other (Networking)", "Network leases"),
}
_OTHER: Final = ("Other", "Other (Other)", "Leases")
_Part = tuple[int, AccountingTag | None, int]


def focus_rows(bill: Bill, cells: Mapping[UsageKey, int], terms: Terms) -> Iterator[dict[str, str]]:
    """The rows of a bill. `cells` are those that it was made from, `terms` its own."""
    for line in bill.line_items:
        parts = _parts(bill, line, cells, terms)
        if parts:
            yield from _usage_rows(bill, line, parts)
        else:
            yield _whole_row(bill, line)
    for reason, amount in bill.credits:
        yield _row(bill) | {
            "ChargeCategory": "Credit",
            "ChargeDescription": reason,
            "ChargeFrequency": "One-Time",
            "BilledCost": amount,
            "EffectiveCost": amount,
            "ListCost": "0",
            "ContractedCost": "0",
        }


def focus_csv(rows: Iterator[dict[str, str]]) -> str:
    """Rows as CSV with a heading."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, *CUSTOM], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _parts(bill: Bill, line: BillLine, cells: Mapping[UsageKey, int], terms: Terms) -> list[_Part]:
    """What a line of the rate card is made of, by day and tag."""
    if line.card is None or line.kind is None:
        return []
    first, last = int(bill.from_ns) // HOUR_NS, int(bill.to_ns) // HOUR_NS
    sums: dict[tuple[int, AccountingTag | None], int] = {}
    for key, amount in cells.items():
        tier = None if key.tier is None else key.tier.name.lower()
        priority = None if key.priority is None else key.priority.name.lower()
        mine = key.pool is Pool.TENANT and key.tenant == bill.tenant
        free = key.tag is not None and key.tag.flags & SYNTHETIC
        if not mine or free or not first <= key.bucket < last:
            continue
        what = (key.kind.name.lower(), tier, priority, terms.card_number(key.bucket))
        if what == (line.kind, line.tier, line.priority, line.card):
            place = (key.bucket // 24, key.tag)
            sums[place] = sums.get(place, 0) + amount
    found = [(day, tag, amount) for (day, tag), amount in sums.items()]
    total = sum(amount for _, _, amount in found)
    if Fraction(total, UNIT[ResourceKind[line.kind.upper()]] * NS_PER_S) != _quantity(line):
        return []  # a part of the month under another contract: the line stays whole
    return sorted(found, key=lambda part: (part[0], _tags(part[1])))


def _quantity(line: BillLine) -> Fraction:
    """The exact quantity of a line of the rate card, from its exact cost."""
    price = Fraction(line.unit_price) * Fraction(line.multiplier_pm, PERMILLE)
    return Fraction(line.cost_exact) / price if price else Fraction(line.quantity)


def _usage_rows(bill: Bill, line: BillLine, parts: list[_Part]) -> Iterator[dict[str, str]]:
    shares = split(units(line.total, bill.decimals), [amount for _, _, amount in parts])
    unit = UNIT[ResourceKind[(line.kind or "").upper()]] * NS_PER_S
    listed = Fraction(line.unit_price)
    price = listed * Fraction(line.multiplier_pm, PERMILLE)
    for (day, tag, amount), share in zip(parts, shares, strict=True):
        quantity = Fraction(amount, unit)
        start_ns = max(day * periods.DAY_NS, int(bill.from_ns))
        end_ns = min((day + 1) * periods.DAY_NS, int(bill.to_ns))
        billed = fixed(share, bill.decimals)
        yield (
            _row(bill)
            | _service(line)
            | {
                "ChargeCategory": "Usage",
                "ChargeDescription": line.description,
                "ChargeFrequency": "Usage-Based",
                "ChargePeriodStart": periods.instant(start_ns),
                "ChargePeriodEnd": periods.instant(end_ns),
                "BilledCost": billed,
                "EffectiveCost": billed,
                "ListCost": exact(listed * quantity),
                "ListUnitPrice": exact(listed),
                "ContractedCost": exact(price * quantity),
                "ContractedUnitPrice": exact(price),
                "ConsumedQuantity": exact(quantity),
                "ConsumedUnit": f"{line.unit}s",
                "PricingQuantity": exact(quantity),
                "PricingUnit": f"{line.unit}s",
                "PricingCategory": "Dynamic" if line.priority == "scavenger" else "Standard",
                "Tags": _tags(tag),
            }
        )


def _whole_row(bill: Bill, line: BillLine) -> dict[str, str]:
    """A line that is not divided: a plan's fee, overage, tasks, a minimum, a correction."""
    row = _row(bill) | {
        "ChargeDescription": line.description,
        "BilledCost": line.total,
        "EffectiveCost": line.total,
    }
    if not line.unit:
        corrects = line.description.startswith("Correction of ")
        return row | {
            "ChargeCategory": "Adjustment",
            "ChargeClass": "Correction" if corrects else "",
            "ChargeFrequency": "One-Time",
            "ListCost": line.total,
            "ContractedCost": line.total,
        }
    fee = line.unit == "month"
    cost = line.cost_exact if "/" not in line.cost_exact else decimal(Fraction(line.cost_exact))
    return (
        row
        | _service(line)
        | {
            "ChargeCategory": "Purchase" if fee else "Usage",
            "ChargeFrequency": "Recurring" if fee else "Usage-Based",
            "ListCost": cost,
            "ListUnitPrice": line.unit_price,
            "ContractedCost": cost,
            "ContractedUnitPrice": line.unit_price,
            "PricingQuantity": line.quantity,
            "PricingUnit": f"{line.unit}s",
            "PricingCategory": "Committed" if fee else "Standard",
            "ConsumedQuantity": "" if fee else line.quantity,
            "ConsumedUnit": "" if fee else f"{line.unit}s",
        }
    )


def _row(bill: Bill) -> dict[str, str]:
    """What every row of a bill has."""
    start, end = periods.instant(int(bill.from_ns)), periods.instant(int(bill.to_ns))
    category, sub, name = _OTHER
    return dict.fromkeys((*COLUMNS, *CUSTOM), "") | {
        "BillingAccountId": bill.tenant,
        "BillingAccountName": bill.tenant,
        "BillingAccountType": "Tenant",
        "BillingCurrency": bill.currency,
        "BillingPeriodStart": start,
        "BillingPeriodEnd": end,
        "ChargePeriodStart": start,
        "ChargePeriodEnd": end,
        "InvoiceId": bill.invoice_id,
        "InvoiceIssuerName": ISSUER,
        "ProviderName": ISSUER,
        "PublisherName": ISSUER,
        "ServiceCategory": category,
        "ServiceSubcategory": sub,
        "ServiceName": name,
        "SubAccountId": bill.tenant,
        "SubAccountName": bill.tenant,
        "SubAccountType": "Tenant",
        "x_BillSha256": bill.digest().hex(),
    }


def _service(line: BillLine) -> dict[str, str]:
    category, sub, name = _SERVICE.get(line.kind or "", _OTHER)
    sku = line.kind or line.unit
    price = [sku, line.tier or "-", line.priority or "-", str(line.card or 0)]
    return {
        "ServiceCategory": category,
        "ServiceSubcategory": sub,
        "ServiceName": name,
        "SkuId": sku,
        "SkuMeter": f"{line.unit}s",
        "SkuPriceId": "/".join(price),
    }


def _tags(tag: AccountingTag | None) -> str:
    """A tag as a JSON object; what is empty is left out."""
    if tag is None:
        return "{}"
    fields = {
        "cost_center": tag.cost_center,
        "project": tag.project,
        "request_class": tag.request_class,
        "budget_group": tag.budget_group,
    }
    return json.dumps({name: value for name, value in fields.items() if value}, sort_keys=True)
