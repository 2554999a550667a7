# SPDX-License-Identifier: Apache-2.0
"""FOCUS 1.2 (FinOps Open Cost and Usage Specification): a bill as rows that other people's tools
read.

Rule: the rows' BilledCost adds up to the bill's total, to the last digit, and so does their
EffectiveCost: what a line of the rate card costs is divided among its days and tags by the largest
remainder, and what a plan's fee pays for is a row of its own, billed at nothing. Every column of
the specification is there; what does not apply is empty. Custom columns begin with x_.

Does not compute a bill (`accounts`).
"""

from __future__ import annotations

import csv
import enum
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.corrections import PREFIX
from leased.collector.accounts.crediting import given_of
from leased.collector.accounts.focus_sku import OTHER, service_of, unit_name
from leased.economics.amounts import exact, fixed, split, units
from leased.economics.billing import Bill, BillLine
from leased.economics.contracts import Terms
from leased.economics.credits import named
from leased.economics.meter import UsageKey
from leased.economics.model_lines import card_kinds
from leased.economics.pools import UNIT, Pool
from leased.terms.lease import AccountingTag, is_probe
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_S
from leased.terms.quantity import WHOLE_PM, print_instant
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
FEE_UNIT: Final = "month"
AMOUNTS: Final = tuple(name for name in COLUMNS if name.endswith(("Cost", "Price", "Quantity")))
_Part = tuple[int, AccountingTag | None, int]
_Window = tuple[int, int]


def focus_rows(bill: Bill, cells: Mapping[UsageKey, int], terms: Terms) -> Iterator[dict[str, str]]:
    """The rows of a bill. `cells` are those that it was made from, `terms` its own."""
    for line, window, parts in _divided(bill, cells, terms):
        if parts:
            yield from map(_priced, _usage_rows(bill, line, window, parts))
        else:
            yield _priced(_whole_row(bill, line, window))
            if line.unit == FEE_UNIT:
                yield _priced(_covered_row(bill, line, window))
    for one in given_of(bill):
        amount = fixed(-one.amount, bill.decimals)
        late = one.credit.month != bill.period
        if not one.amount:
            continue
        yield _priced(
            _row(bill)
            | {
                "ChargeCategory": "Credit",
                "ChargeClass": "Correction" if late else "",
                "ChargeDescription": named(one.credit, bill.period),
                "ChargeFrequency": "One-Time",
                "BilledCost": amount,
                "EffectiveCost": amount,
                "ListCost": "0",
                "ContractedCost": "0",
            }
        )


def focus_csv(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> str:
    """Rows as CSV with a heading."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _divided(
    bill: Bill, cells: Mapping[UsageKey, int], terms: Terms
) -> Iterator[tuple[BillLine, _Window, list[_Part]]]:
    """Each line with what it is made of, and of which time. Where it does not say that (bills of
    before version 3), those of one contract are together, in the order of the contracts."""
    whole = bill.pair
    contracts = terms.contracts_of(bill.tenant, whole)
    after: dict[tuple[object, ...], int] = {}
    at = 0
    for line in bill.line_items:
        window, parts = whole, list[_Part]()
        if line.window is not None:
            if line.card is not None:
                parts = _parts(bill, line, line.window, cells, terms)
            yield line, line.window, parts
            continue
        what = (line.kind, line.tier, line.priority, line.card)
        at = max(at, after.get(what, 0))
        for number, (contract, *mine) in enumerate(contracts[at:], at):
            if line.card is not None and line.kind in [*map(_name, card_kinds(contract))]:
                parts = _parts(bill, line, (mine[0], mine[1]), cells, terms)
            if parts:
                at, after[what], window = number, number + 1, (mine[0], mine[1])
                break
        yield line, window, parts


def _parts(
    bill: Bill, line: BillLine, window: _Window, cells: Mapping[UsageKey, int], terms: Terms
) -> list[_Part]:
    """What a line of the rate card is made of, by day and tag, if it is of that time."""
    sums: dict[tuple[int, AccountingTag | None], int] = {}
    for key, amount in cells.items():
        tier = None if key.tier is None else _name(key.tier)
        priority = None if key.priority is None else _name(key.priority)
        mine = key.pool is Pool.TENANT and key.tenant == bill.tenant
        if not mine or is_probe(key.tag) or not window[0] <= key.bucket * HOUR_NS < window[1]:
            continue
        what = (_name(key.kind), tier, priority, terms.card_number(key.bucket))
        if what == (line.kind, line.tier, line.priority, line.card):
            place = (key.bucket // 24, key.tag)
            sums[place] = sums.get(place, 0) + amount
    found = [(day, tag, amount) for (day, tag), amount in sums.items()]
    total = sum(amount for _, _, amount in found)
    unit = UNIT[ResourceKind[(line.kind or "").upper()]] * NS_PER_S
    if Fraction(total, unit) != _quantity(line):
        return []
    return sorted(found, key=lambda part: (part[0], _tags(part[1])))


def _name(one: enum.Enum) -> str:
    return one.name.lower()


def _quantity(line: BillLine) -> Fraction:
    """The exact quantity of a line of the rate card, from its exact cost."""
    price = Fraction(line.unit_price) * Fraction(line.multiplier_pm, WHOLE_PM)
    return Fraction(line.cost_exact) / price if price else Fraction(line.quantity)


def _usage_rows(
    bill: Bill, line: BillLine, window: _Window, parts: list[_Part]
) -> Iterator[dict[str, str]]:
    shares = split(units(line.total, bill.decimals), [amount for _, _, amount in parts])
    unit = UNIT[ResourceKind[(line.kind or "").upper()]] * NS_PER_S
    listed = Fraction(line.unit_price)
    price = listed * Fraction(line.multiplier_pm, WHOLE_PM)
    for (day, tag, amount), share in zip(parts, shares, strict=True):
        quantity = Fraction(amount, unit)
        start_ns = max(day * DAY_NS, window[0])
        end_ns = min((day + 1) * DAY_NS, window[1])
        billed = fixed(share, bill.decimals)
        yield (
            _row(bill)
            | service_of(line)
            | {
                "ChargeCategory": "Usage",
                "ChargeDescription": line.description,
                "ChargeFrequency": "Usage-Based",
                "ChargePeriodStart": print_instant(start_ns),
                "ChargePeriodEnd": print_instant(end_ns),
                "BilledCost": billed,
                "EffectiveCost": billed,
                "ListCost": exact(listed * quantity),
                "ListUnitPrice": exact(listed),
                "ContractedCost": exact(price * quantity),
                "ContractedUnitPrice": exact(price),
                "ConsumedQuantity": exact(quantity),
                "ConsumedUnit": unit_name(line.unit),
                "PricingQuantity": exact(quantity),
                "PricingUnit": unit_name(line.unit),
                "PricingCategory": _category(line),
                "Tags": _tags(tag),
            }
        )


def _whole_row(bill: Bill, line: BillLine, window: _Window) -> dict[str, str]:
    """A line that is not divided: a plan's fee, overage, tasks, a minimum, a correction."""
    row = _row(bill) | {
        "ChargeDescription": line.description,
        "ChargePeriodStart": print_instant(window[0]),
        "ChargePeriodEnd": print_instant(window[1]),
        "BilledCost": line.total,
        "EffectiveCost": line.total,
    }
    if not line.unit:
        corrects = line.description.startswith(PREFIX)
        return row | {
            "ChargeCategory": "Adjustment",
            "ChargeClass": "Correction" if corrects else "",
            "ChargeFrequency": "One-Time",
            "ListCost": line.total,
            "ContractedCost": line.total,
        }
    fee = line.unit == FEE_UNIT
    # Of the quantity as it is written, which may have been rounded: readers multiply.
    listed, quantity = Fraction(line.unit_price), Fraction(line.quantity)
    price = listed * Fraction(line.multiplier_pm, WHOLE_PM)
    return (
        row
        | service_of(line)
        | {
            "ChargeCategory": "Purchase" if fee else "Usage",
            "ChargeFrequency": "Recurring" if fee else "Usage-Based",
            "EffectiveCost": "0" if fee else line.total,
            "ListCost": exact(listed * quantity),
            "ListUnitPrice": line.unit_price,
            "ContractedCost": exact(price * quantity),
            "ContractedUnitPrice": exact(price),
            "PricingQuantity": line.quantity,
            "PricingUnit": unit_name(line.unit),
            "PricingCategory": "Committed" if fee else _category(line),
            "ConsumedQuantity": "" if fee else line.quantity,
            "ConsumedUnit": "" if fee else unit_name(line.unit),
        }
    )


def _category(line: BillLine) -> str:
    return "Dynamic" if line.priority == "scavenger" else "Standard"


def _covered_row(bill: Bill, line: BillLine, window: _Window) -> dict[str, str]:
    """What a plan's fee pays for, used or not: it costs what the fee was, and is billed at
    nothing."""
    covered = msgspec.structs.replace(line, description=f"{line.description}, used or not")
    return _whole_row(bill, covered, window) | {
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "BilledCost": fixed(0, bill.decimals),
        "EffectiveCost": line.total,
        "ListCost": "0",
        "ListUnitPrice": "0",
        "ContractedCost": "0",
        "ContractedUnitPrice": "0",
        "ConsumedQuantity": line.quantity,
        "ConsumedUnit": unit_name(line.unit),
    }


def _priced(row: dict[str, str]) -> dict[str, str]:
    """Prices are in the currency of the bill; and a number is never mistaken for a count: a reader
    that guesses types from what it sees is to guess decimals."""
    told = row | {
        "PricingCurrency": row["BillingCurrency"],
        "PricingCurrencyListUnitPrice": row["ListUnitPrice"],
        "PricingCurrencyContractedUnitPrice": row["ContractedUnitPrice"],
        "PricingCurrencyEffectiveCost": row["EffectiveCost"],
    }
    for name in AMOUNTS:
        if told[name] and "." not in told[name]:
            told[name] += ".0"
    return told


def _row(bill: Bill) -> dict[str, str]:
    """What every row of a bill has."""
    start, end = map(print_instant, bill.pair)
    category, sub, name = OTHER
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
