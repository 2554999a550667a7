# SPDX-License-Identifier: Apache-2.0
"""What each tier promised, and what of it was kept, by records."""

from __future__ import annotations

from decimal import Decimal

import pytest

from leased.collector.accounts.accounts import Accounts
from leased.collector.api.settings import parse
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.collector.planning.flow import summed
from leased.collector.planning.slo import TIERS, Tier, service_levels
from leased.economics.contracts import Terms
from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.event import Revoked
from leased.terms.lease import AccountingTag, Priority, RevocationReason
from leased.terms.moment import HOUR_NS
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.accounts import JANUARY_NS, WrittenSource
from tests.doubles.economics_history import History, subject

SECOND = 10**9
CPU = ResourceKind.CPU
CORE = Allotment("cpu:0", CPU, None, 1000)


def a_fleet(*ends: tuple[int, Priority, int, RevocationReason | None]) -> Fleet:
    """A host with leases one after the other: hour of January, priority, seconds held, why."""
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    history.inventory(CORE)
    for number, (hour, priority, seconds, reason) in enumerate(ends, 1):
        history.boot_ns = max(history.boot_ns, hour * HOUR_NS)
        history.allocate(number, subject(CORE, priority=priority), history.boot_ns + HOUR_NS)
        history.boot_ns += seconds * SECOND
        if reason is None:
            history.release(number)
        else:
            history.seal(Revoked(*history._lease(number, history.boot_ns), reason))
        history.reclaim(number)
    fleet = Fleet()
    view = fleet.logs["00"] = NodeView("00")
    view.node = view.name = "host"
    for record in history.records:
        view.apply(*record)
    return fleet


def accounts() -> Accounts:
    """Ten cores of guaranteed and of standard leases, for two hours of the 9th of February; and a
    synthetic probe."""
    source = WrittenSource()
    at = 39 * 24
    source.hold("acme", CPU, 10_000, range(at, at + 2), priority=Priority.GUARANTEED)
    source.hold("acme", CPU, 10_000, range(at, at + 2))
    source.hold("acme", CPU, 1_000, range(at, at + 2), tag=AccountingTag("", flags=1))
    return Accounts(source, Terms())


HOUR = 39 * 24
GOLD = Tier("gold", Priority.STANDARD, 10 * SECOND, 990_000, 2, 1500)


def told(fleet: Fleet, tier: Tier = GOLD, period: str = "24h") -> dict[str, tuple[object, ...]]:
    (found,) = service_levels(accounts(), fleet, period, (tier,)).tiers
    return {one.name: (one.good, one.total, one.attainment, one.met) for one in found.objectives}


def test_good_of_all_is_counted_by_lease_and_by_hour() -> None:
    standard = Priority.STANDARD
    fleet = a_fleet(
        (HOUR, standard, 5, None),
        (HOUR, standard, 9, None),
        (HOUR + 1, standard, 600, None),
        (HOUR + 1, Priority.SCAVENGER, 600, RevocationReason.OPERATOR_DRAIN),
        (HOUR + 2, standard, 1, RevocationReason.PRIORITY_PREEMPTION),
    )
    assert told(fleet) == {
        "latency_p99": (3, 4, Decimal("0.75"), False),
        "availability": (3, 4, Decimal("0.75"), False),
        "throughput_min": (1, 24, Decimal("0.041666"), False),
    }
    silver = Tier("silver", Priority.SCAVENGER, availability_ppm=0, latency_ns=HOUR_NS)
    assert told(fleet, silver) == {"latency_p99": (1, 1, Decimal(1), True)}


@pytest.mark.parametrize("reason", list(RevocationReason))
def test_taken_away_is_what_the_operators_side_ended(reason: RevocationReason) -> None:
    own = {"QUOTA_CUT", "BURST_EXPIRED", "BUDGET_EXHAUSTED", "POLICY_VIOLATION", "HOLDER_LOST"}
    found = told(a_fleet((HOUR, Priority.STANDARD, 5, reason)))
    assert found["availability"][0] == (1 if reason.name in own else 0)


def test_a_lease_was_held_as_long_as_it_was() -> None:
    """Not for the two hours by which the clock was set, nor for the hour after its end in which no
    agent was there to seal it."""
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    history.boot_ns = HOUR * HOUR_NS
    for number in (1, 2):
        history.allocate(number, subject(CORE), history.boot_ns + HOUR_NS)
    history.boot_ns += 5 * SECOND
    history.step_clock(2 * HOUR_NS)
    history.release(1)
    ended_ns, history.boot_ns = history.boot_ns, history.boot_ns + HOUR_NS
    history.end(2, ended_ns)
    view = NodeView("00")
    for record in history.records:
        view.apply(*record)
    fleet = Fleet()
    fleet.logs["00"] = view
    view.node = view.name = "host"
    assert told(fleet)["latency_p99"] == (2, 2, Decimal(1), True)
    assert summed(view.flow.days.values()).total_ns == 10 * SECOND


def test_where_nothing_ended_nothing_is_kept_or_broken() -> None:
    assert set(told(a_fleet()).values()) == {(0, 0, None, None)}


def test_the_price_is_the_list_price_times_the_multiplier() -> None:
    levels = service_levels(accounts(), a_fleet(), "24h", TIERS)
    # Ten cores for two hours at 7.2 an hour.
    assert [(one.tier, one.base_cost, one.estimated_cost) for one in levels.tiers] == [
        ("platinum", 144, 432),
        ("gold", 144, 216),
        ("silver", 0, 0),
    ]
    with pytest.raises(InvalidParameter, match="at most 35d"):
        service_levels(accounts(), a_fleet(), "36d", TIERS)


def test_tiers_are_read_from_the_file() -> None:
    text = '[slo_tiers.gold]\npriority = "standard"\n'
    more = 'latency_p99 = "10s"\navailability = "99%"\nthroughput_min = "2/h"\n'
    (found,) = parse(f'{text}{more}estimated_cost_multiplier = "1.5"\n').slo_tiers
    assert found == GOLD
    assert parse("").slo_tiers == TIERS
    for wrong, why in (
        ("[slo_tiers.gold]\n", "gold needs a priority"),
        (f'{text}availability = "101%"\n', "slo_tiers.gold.availability"),
        (f'{text}availability = "99.99999%"\n', "99.99%"),
        (f'{text}estimated_cost_multiplier = "1,5"\n', "a factor in quotes"),
        (text + text.replace("gold", "other"), "a priority is of one tier"),
    ):
        with pytest.raises(ConfigError, match=why):
            parse(wrong)
