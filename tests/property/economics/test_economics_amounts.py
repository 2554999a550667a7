# SPDX-License-Identifier: Apache-2.0
"""Laws of amounts, of attribution and of bills: nothing is lost, nothing depends on an order, and
there is one rounding."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from leased.economics.amounts import decimal, exact, rounded, split, wholes
from leased.economics.attribution import Basis, Spread, attribute, by_name, spread_shared
from leased.economics.billing import Month, make_bill
from leased.economics.contracts import (
    CardVersion,
    Contract,
    Model,
    Plan,
    TaskTier,
    Terms,
    TierMode,
    check_terms,
)
from leased.economics.hourly import NodeSpan
from leased.economics.meter import UsageKey
from leased.economics.model_lines import _tier_items
from leased.economics.pools import Pool
from leased.economics.rates import DEFAULT_CARD, NANO, Rate, RateCard
from leased.terms.lease import AccountingTag, Priority
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind, TierKind

HOURS = 40
MONTH = Month("1970-01", 0, HOURS * HOUR_NS)
NODES = (NodeSpan("4e" * 16, "1d" * 16, 0, 9, "ab" * 32, HOURS * HOUR_NS),)

positive = st.fractions(min_value=0, max_value=10**30, max_denominator=10**12)
fractions = st.fractions(min_value=-(10**30), max_value=10**30, max_denominator=10**12)
cells = st.dictionaries(
    st.builds(
        UsageKey,
        pool=st.just(Pool.TENANT),
        tenant=st.sampled_from(("a", "b")),
        kind=st.sampled_from(ResourceKind),
        tier=st.sampled_from((None, *TierKind)),
        priority=st.sampled_from(Priority),
        tag=st.sampled_from((None, AccountingTag("cc-1"), AccountingTag("cc-2", flags=1))),
        bucket=st.integers(0, HOURS - 1),
    ),
    st.integers(1, 1 << 100),
    max_size=20,
)
pools = st.dictionaries(
    st.builds(
        UsageKey,
        pool=st.sampled_from((Pool.TEARDOWN, Pool.FENCED, Pool.PROVISIONED)),
        tenant=st.just(""),
        kind=st.sampled_from(ResourceKind),
        tier=st.sampled_from((None, TierKind.HBM)),
        priority=st.none(),
        tag=st.none(),
        bucket=st.integers(0, HOURS - 1),
    ),
    st.integers(1, 1 << 100),
    max_size=20,
)
DEAR = RateCard(
    (
        *(Rate(r.kind, 3 * r.nano) for r in DEFAULT_CARD.rates),
        Rate(ResourceKind.MEM, 7, TierKind.CXL),
    ),
    multipliers_pm=((Priority.GUARANTEED, 1500), (Priority.SCAVENGER, 333)),
)
TERMS = Terms((CardVersion(0, DEFAULT_CARD), CardVersion(17 * HOUR_NS, DEAR)), infrastructure=DEAR)


@given(fractions, st.integers(0, 9))
def test_one_rounding_half_to_even(amount: Fraction, decimals: int):
    unit = Fraction(1, 10**decimals)
    found = rounded(amount, decimals) * unit
    assert abs(found - amount) * 2 <= unit
    if abs(found - amount) * 2 == unit:
        assert rounded(amount, decimals) % 2 == 0


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=9, min_value=-(10**12), max_value=10**12
    )
)
def test_amounts_round_as_decimal_does(amount: Decimal):
    with localcontext() as context:
        context.prec = 60
        expected = amount.quantize(Decimal("0.01"), ROUND_HALF_EVEN)
    assert Decimal(rounded(Fraction(amount), 2)).scaleb(-2) == expected


@given(fractions)
def test_exact_text_is_the_amount(amount: Fraction):
    assert Fraction(exact(amount)) == amount
    assert abs(Fraction(decimal(amount)) - amount) <= Fraction(1, 2 * 10**9)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_parts_add_up_and_none_is_a_whole_unit_off(total: int, weights: list[int]):
    parts = split(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        share = Fraction(total * weight, whole) if whole else Fraction(total, len(weights))
        assert abs(part - share) < 1


@given(st.integers(0, 10**15), st.lists(positive, min_size=1, max_size=30))
def test_what_is_left_goes_to_the_largest_remainders(total: int, weights: list[Fraction]):
    whole = sum(weights, Fraction(0))
    even = Fraction(1, len(weights))
    shares = [total * (weight / whole if whole else even) for weight in weights]
    got = zip(split(total, weights), shares, strict=True)
    rows = [(part, share, share - floor(share)) for part, share in got]
    assert all(floor(share) == part - (part > share) for part, share, _ in rows)
    more = [rest for part, share, rest in rows if part > share]
    less = [rest for part, share, rest in rows if part < share]
    assert not more or not less or min(more) >= max(less)


@given(st.lists(fractions, max_size=30))
def test_whole_numbers_are_in_the_order_and_proportion_of_fractions(amounts: list[Fraction]):
    found = wholes(amounts)
    assert all(type(one) is int for one in found)
    pairs = list(zip(amounts, found, strict=True))
    assert all(a * m == b * n for (a, n), (b, m) in zip(pairs, pairs[1:], strict=False))
    assert sorted(pairs, key=lambda pair: pair[0]) == sorted(pairs, key=lambda pair: pair[1])


@given(cells)
def test_costs_by_any_name_add_up_to_those_of_tenants(held: dict[UsageKey, int]):
    for basis in Basis:
        found = attribute(held.items(), TERMS, basis)
        assert by_name(held.items(), TERMS, basis, lambda key: key.tenant) == found.by_tenant
        by_kind = by_name(held.items(), TERMS, basis, lambda key: key.kind)
        assert sum(by_kind.values(), Fraction(0)) == found.tenants_total


@given(cells, pools)
def test_infrastructure_is_divided_without_a_rest(
    held: dict[UsageKey, int], there: dict[UsageKey, int]
):
    found = attribute([*held.items(), *there.items()], TERMS, Basis.INFRASTRUCTURE)
    provisioned = attribute(
        [(key, n) for key, n in there.items() if key.pool is Pool.PROVISIONED],
        TERMS,
        Basis.INFRASTRUCTURE,
    )
    assert found.total == provisioned.total
    assert sum(found.by_type.values(), Fraction(0)) == found.total
    assert sum(found.by_center.values(), Fraction(0)) == found.total
    for spread in Spread:
        assert sum(spread_shared(found.by_center, spread).values(), Fraction(0)) == found.total


@given(cells, pools)
def test_types_and_tenants_are_two_views_of_one_sum(
    held: dict[UsageKey, int], there: dict[UsageKey, int]
):
    found = attribute([*held.items(), *there.items()], TERMS, Basis.RATE_CARD)
    assert sum(found.by_type.values(), Fraction(0)) == found.total
    assert found.tenants_total == sum(found.by_tenant.values(), Fraction(0))


def bill(held: dict[UsageKey, int], terms: Terms, tenant: str = "a"):
    return make_bill(tenant, MONTH, held, {}, terms, NODES, fleet_watermark_ns=HOURS * HOUR_NS)


@given(cells, st.randoms(use_true_random=False))
def test_a_bill_does_not_depend_on_the_order_of_its_cells(held: dict[UsageKey, int], random):
    shuffled = list(held.items())
    random.shuffle(shuffled)
    assert bill(dict(shuffled), TERMS).canonical() == bill(held, TERMS).canonical()


@given(cells)
def test_a_bill_is_the_sum_of_its_rounded_lines_and_charges_every_cell_once(
    held: dict[UsageKey, int],
):
    made = bill(held, TERMS)
    assert Decimal(made.total) == sum((Decimal(line.total) for line in made.line_items), Decimal(0))
    priced = Fraction(0)
    for key, amount in held.items():
        if key.tenant == "a" and not (key.tag and key.tag.flags & 1):
            card = TERMS.cards[TERMS.card_number(key.bucket)].card
            priced += card.cost(amount, key.kind, key.tier, key.priority)
    assert sum((Fraction(line.cost_exact) for line in made.line_items), Fraction(0)) == priced


@given(cells, st.integers(1, HOURS - 1))
def test_a_month_is_the_sum_of_its_parts(held: dict[UsageKey, int], cut: int):
    """Usage of a month = usage of its two parts, whatever hour it is cut at."""
    early = make_bill(
        "a", Month("x", 0, cut * HOUR_NS), held, {}, TERMS, NODES, fleet_watermark_ns=0
    )
    late = make_bill(
        "a",
        Month("x", cut * HOUR_NS, HOURS * HOUR_NS),
        held,
        {},
        TERMS,
        NODES,
        fleet_watermark_ns=0,
    )
    parts = (*early.line_items, *late.line_items)
    whole = bill(held, TERMS).line_items
    assert sum(Fraction(line.cost_exact) for line in parts) == sum(
        Fraction(line.cost_exact) for line in whole
    )


@given(cells, st.integers(0, 5_000), st.integers(1, HOURS))
def test_overage_is_what_is_held_beyond_the_plan(held: dict[UsageKey, int], cores: int, until: int):
    plan = Plan("p", cores * 1000, 0, 31 * NANO, NANO, 0)
    contract = Contract("a", 0, Model.RESERVED, until * HOUR_NS, "p", rest_by_card=False)
    terms = check_terms(Terms(plans=(plan,), contracts=(contract,)))
    made = bill(held, terms)
    hours: dict[int, int] = {}
    for key, amount in held.items():
        billed = key.tenant == "a" and not (key.tag and key.tag.flags & 1)
        if billed and key.kind is ResourceKind.CPU and key.bucket < until:
            hours[key.bucket] = hours.get(key.bucket, 0) + amount
    beyond = sum(max(0, amount - cores * 1000 * HOUR_NS) for amount in hours.values())
    found = [line for line in made.line_items if line.description == "CPU Overage (hours)"]
    assert sum((Fraction(line.cost_exact) for line in found), Fraction(0)) == Fraction(
        beyond, 1000 * HOUR_NS
    )
    fee = next(line for line in made.line_items if line.description.startswith("Reserved"))
    assert Fraction(fee.cost_exact) == Fraction(31 * until, HOURS)


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True),
    st.integers(0, 3000),
    st.lists(st.integers(0, 10**6), min_size=5, max_size=5),
)
def test_graduated_tiers_charge_every_task_once_at_the_rate_of_its_number(
    borders: list[int], tasks: int, prices: list[int]
):
    lows = [0, *sorted(borders)]
    tiers = [TaskTier(low, price) for low, price in zip(lows, prices, strict=False)]
    items = list(_tier_items(tiers, TierMode.GRADUATED, tasks))
    assert sum(item.quantity for item in items) == tasks
    expected = sum(
        next(tier.task_nano for tier in reversed(tiers) if tier.low <= number)
        for number in range(tasks)
    )
    assert sum((item.amount for item in items), Fraction(0)) == Fraction(expected, NANO)
