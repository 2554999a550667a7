# SPDX-License-Identifier: Apache-2.0
"""Crediting: which bill gives which credit, and what no bill has given yet.

Rule: a credit is on the bill of its month. Where that is issued, it is on the next one that is not,
and so is what a bill left of it, until all of it was given, once. What is on an issued bill is
known by it: a listed credit that was given may go, but not become another.

Does not compute what a bill gives (`economics.credits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.answers import money
from leased.collector.accounts.invoices import Invoices
from leased.economics.amounts import exact, fixed, rounded, units
from leased.economics.bill_text import terms_of
from leased.economics.billing import Bill
from leased.economics.contracts import Credit, Terms
from leased.economics.credits import Given, give
from leased.economics.rates import NANO
from leased.terms.errors import ConfigError

_NANO_DIGITS: Final = 9
_Name = tuple[str, int, str]


class CreditLeft(msgspec.Struct, frozen=True):
    """What no issued bill has given of a credit."""

    tenant: str
    month: str
    reason: str
    amount: Decimal


def given_of(bill: Bill) -> list[Given]:
    """What a bill gave of each of its credits."""
    terms = terms_of(bill.terms)
    return give(
        terms.credits,
        units(bill.subtotal, bill.decimals),
        bill.decimals,
        allow_negative=terms.allow_negative,
        version=bill.version,
    )


def on_bill(terms: Terms, tenant: str, month: str, issued: Iterable[Bill]) -> Terms:
    """`terms` with the credits of the bill of `month`, beside those that are `issued`. Raises
    ConfigError."""
    bills = list(issued)
    months = {month, *(bill.period for bill in bills if bill.period < month)}
    credits = [one for one in _open(terms, tenant, bills) if one.month in months]
    return msgspec.structs.replace(terms, credits=tuple(credits))


def left(
    terms: Terms, invoices: Invoices, until: str, tenants: Iterable[str] | None = None
) -> list[CreditLeft]:
    """What no issued bill has given of the credits for the months to `until`, of every tenant or of
    these."""
    named = {credit.tenant for credit in terms.credits}
    found = []
    for tenant in sorted(named if tenants is None else named.intersection(tenants)):
        for one in _open(terms, tenant, invoices.of_tenant(tenant)):
            worth = rounded(Fraction(one.nano, NANO), terms.decimals)
            amount = worth - rounded(Fraction(one.given_nano, NANO), terms.decimals)
            if one.month <= until and amount > 0:
                told = money(amount, terms.decimals)
                found.append(CreditLeft(tenant, one.month, one.reason, told))
    return found


def apart(issued: Iterable[Bill], terms: Terms) -> Iterator[tuple[str, str]]:
    """(month, words) of what bills in another currency left of their credits: money that is in no
    sum of these."""
    for bill in issued:
        for one in given_of(bill) if bill.currency != terms.currency else ():
            if one.left:
                rest = f"{fixed(one.left, bill.decimals)} {bill.currency}"
                yield one.credit.month, f"{rest} left of a credit ({one.credit.reason})"


def _open(terms: Terms, tenant: str, bills: list[Bill]) -> list[Credit]:
    """The listed credits of a tenant that issued bills have not given whole, oldest first."""
    listed = [one for one in terms.credits if one.tenant == tenant]
    given, seen = _given(bills, terms)
    _check_kept(tenant, Counter(map(_name, listed)), seen)
    found = []
    for credit in sorted(listed, key=lambda one: one.month):
        # Of two that are alike the first was given first.
        before = min(credit.nano, given[_name(credit)])
        given[_name(credit)] -= before
        if before < credit.nano:
            found.append(msgspec.structs.replace(credit, given_nano=before))
    return found


def _given(bills: list[Bill], terms: Terms) -> tuple[Counter[_Name], Counter[_Name]]:
    """What bills have given, in nano-units, and how many credits that are alike."""
    given, seen = Counter[_Name](), Counter[_Name]()
    for bill in bills:
        told = given_of(bill)
        for one in told:
            whole = not one.left or bill.currency != terms.currency
            rest = one.credit.nano - one.credit.given_nano
            nano = rest if whole else one.amount * 10 ** (_NANO_DIGITS - bill.decimals)
            given[_name(one.credit)] += nano
        seen |= Counter(_name(one.credit) for one in told)
    for name, nano in given.items():
        seen[name] = max(seen[name], -(-nano // max(1, name[1])))
    return given, seen


def _check_kept(tenant: str, listed: Counter[_Name], seen: Counter[_Name]) -> None:
    """Whether what was given is still what it was: else it would be given again."""
    gone = {name[0]: name for name in seen - listed}
    for name in listed - seen:
        if name[0] in gone:
            raise ConfigError(
                f"credits: {_text(gone[name[0]])} was given to {tenant} for {name[0]} by a bill"
                f" that is issued, and is not listed any more; {_text(name)} is: leave what was"
                " given as it was, and list what is given besides"
            )


def _name(credit: Credit) -> _Name:
    return credit.month, credit.nano, credit.reason


def _text(name: _Name) -> str:
    return f"{exact(Fraction(name[1], NANO))} ({name[2]})"
