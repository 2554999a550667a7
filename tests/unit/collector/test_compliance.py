# SPDX-License-Identifier: Apache-2.0
"""Quota compliance from records: what counts as a request, as above a quota, as refused by it."""

from __future__ import annotations

from fractions import Fraction

import pytest

from leased.collector.api.views import THROTTLED_NS, Views
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.collector.planning.compliance import HOUR_NS, together
from leased.lessor.throttle import TOLD_NS
from leased.terms import event as events
from leased.terms.identity import CommandId, EventId, TenantId
from leased.terms.lease import OverageCause
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind
from tests.doubles.economics_history import History, subject
from tests.doubles.fleet_archive import cores, gpus


def refusal(tenant: str, reason: RefusalReason) -> events.Refused:
    head = (EventId(bytes(16)), TenantId(tenant), 0, CommandId(bytes(16)))
    return events.Refused(*head, int(reason), 1, 1, 1)


def seen(history: History) -> NodeView:
    view = NodeView("log")
    for sequence, event, moment in history.records:
        view.apply(sequence, event, moment)
    return view


def test_every_request_counts_once() -> None:
    history = History(wall_offset_ns=100 * HOUR_NS)
    whose, hour = subject(cores(1)), HOUR_NS
    history.allocate(1, whose, hour)
    history.seal(refusal("acme", RefusalReason.TENANT_CAPACITY))
    history.seal(refusal("acme", RefusalReason.NO_CAPACITY))
    # The one that goes above a soft limit, and the one after it, are above it; then no more.
    history.allocate(2, whose, hour)
    cause = int(OverageCause.SOFT)
    for rule in ("cpu", "cpu@0"):  # one request, however many limits
        history.seal(events.OverageBegan(history.event_id(), "acme", rule, cause, 1, 2, hour))
    history.allocate(3, whose, hour)
    history.allocate(6, subject(gpus(1)), hour)  # of GPUs it has not more than it may
    for rule in ("cpu", "cpu@0"):
        history.seal(events.OverageEnded(history.event_id(), "acme", rule, 1))
    history.allocate(4, whose, hour)
    # A limit that was lowered makes nothing that was granted before a breach.
    cut = int(OverageCause.CUT)
    history.seal(events.OverageBegan(history.event_id(), "beta", "gpu", cut, 1, 2, hour))
    # Borrowed is above one's own.
    history.allocate(5, whose, hour)
    head = history._lease(5, 0)
    history.seal(events.Admitted(*head, 5, 0, 0, ((ResourceKind.CPU, 1000),)))
    history.seal(events.Admitted(*head, 5, 0, 0, ((ResourceKind.CPU, 1000),)))
    tally = seen(history).compliance.between(0, 200 * HOUR_NS)["acme"]
    assert (tally.requests, tally.over, tally.refused) == (8, 3, 1)
    assert tally.share == Fraction(4, 8)


def test_a_limit_that_is_lowered_is_no_breach_and_a_groups_is_its_members() -> None:
    history = History(wall_offset_ns=100 * HOUR_NS)
    history.allocate(1, subject(cores(1)), HOUR_NS)
    history.boot_ns += 1
    began = ("cpu", int(OverageCause.SOFT), 1, 2, HOUR_NS)
    # A policy, not the grant before it.
    history.seal(events.OverageBegan(history.event_id(), "acme", *began))
    history.seal(events.OverageEnded(history.event_id(), "acme", "cpu", 1))
    history.allocate(2, subject(cores(1), tenant="beta"), HOUR_NS)
    history.seal(events.OverageBegan(history.event_id(), "@crew", *began))
    # Cut: it has too much, but not by a soft limit, and asks for nothing more of it.
    cut = ("cpu", int(OverageCause.CUT), 1, 2, HOUR_NS)
    history.seal(events.OverageBegan(history.event_id(), "acme", *cut))
    view = seen(history)
    found = view.compliance.between(0, 200 * HOUR_NS)
    assert (found["acme"].over, found["beta"].over) == (0, 1)
    assert (found.keys(), view.over.keys()) == ({"acme", "beta"}, {("@crew", "cpu")})


@pytest.mark.parametrize("reason", ["SUBMIT_RATE", "API_RATE", "THROTTLED", "NO_CAPACITY"])
def test_who_is_held_back_is_told_so_for_a_minute(reason: str) -> None:
    history = History(wall_offset_ns=100 * HOUR_NS)
    history.start()
    history.seal(refusal("acme", RefusalReason[reason]))
    fleet = Fleet()
    fleet.logs["log"] = seen(history)
    views = Views(lambda: fleet, lambda tenant, now_ns: {}, lambda: ["acme"], Policy)
    assert TOLD_NS < THROTTLED_NS, "or it would come and go"
    for later_s, is_held_back in ((0, True), (59, True), (60, False)):
        told = views.usage_of("acme", 100 * HOUR_NS + later_s * NS_PER_S)
        assert told.throttled is (is_held_back and reason != "NO_CAPACITY")


def test_a_reboot_ends_what_was_above_a_limit() -> None:
    history = History(wall_offset_ns=100 * HOUR_NS)
    history.start()
    history.allocate(1, subject(cores(1)), HOUR_NS)
    cause = int(OverageCause.SOFT)
    history.seal(events.OverageBegan(history.event_id(), "acme", "cpu", cause, 1, 2, HOUR_NS))
    history.start()  # the agent alone: its log says that it is still so
    assert seen(history).over
    # Of another boot nobody has anything, and no record says so.
    history.boot_number += 1
    history.start()
    history.allocate(2, subject(cores(1)), HOUR_NS)
    view = seen(history)
    tally = view.compliance.between(0, 200 * HOUR_NS)["acme"]
    assert (view.over, tally.requests, tally.over) == ({}, 2, 1)


def test_what_is_older_than_a_day_is_forgotten_and_nodes_add_up() -> None:
    history = History(wall_offset_ns=100 * HOUR_NS)
    for number in range(60):
        history.boot_ns = number * HOUR_NS
        history.allocate(number, subject(cores(1)), history.boot_ns + HOUR_NS)
    compliance = seen(history).compliance
    assert len(compliance._hours) <= 25
    last_day = compliance.between((159 - 23) * HOUR_NS, 160 * HOUR_NS)
    assert last_day["acme"].requests == 24
    assert together([last_day, last_day])["acme"].requests == 48
    assert together([]) == {}


YEARS_NS = 10 * 365 * 24 * HOUR_NS


def node(number: int, wall_offset_ns: int, *more_ns: int) -> NodeView:
    """One that refuses a request, for there is a limit and no room, and again after each step of
    its clock."""
    history = History(wall_offset_ns=wall_offset_ns)
    history.start()
    history.inventory(cores(64))
    for step_ns in (0, *more_ns):
        history.step_clock(step_ns)
        for reason in (RefusalReason.SUBMIT_RATE, RefusalReason.NO_CAPACITY):
            head = (EventId(bytes(16)), TenantId("acme"), 0, CommandId(bytes(16)))
            history.seal(events.Refused(*head, int(reason), 1, 1, 1, ResourceKind.CPU))
    view = seen(history)
    view.node = view.name = f"{number:02}"
    return view


def test_what_is_of_a_time_to_come_is_of_no_last_day_and_no_last_minute() -> None:
    """One of three nodes is ten years ahead: nobody is held back, or waits, until then."""
    fleet, now_ns = Fleet(), 100 * HOUR_NS
    for number, ahead_ns in enumerate((0, 0, YEARS_NS)):
        fleet.logs[f"{number}"] = node(number, now_ns + ahead_ns)
    views = Views(lambda: fleet, lambda tenant, now_ns: {}, lambda: ["acme"], Policy)
    assert views.compliance_at(now_ns).requests == 4
    assert views.usage_of("acme", now_ns).throttled
    later_ns = now_ns + 30 * HOUR_NS
    assert views.compliance_at(later_ns).requests == 0
    assert not views.usage_of("acme", later_ns).throttled
    assert not fleet.unmet(later_ns - HOUR_NS, later_ns)
    # Where most are so, it is this clock that is behind.
    fleet.logs["3"] = node(3, now_ns + YEARS_NS)
    fleet.logs["4"] = node(4, now_ns + YEARS_NS)
    assert views.compliance_at(later_ns).requests == 6
    assert fleet.unmet(later_ns - HOUR_NS, later_ns)


def test_the_day_before_a_step_into_a_time_to_come_is_still_told() -> None:
    fleet, now_ns = Fleet(), 100 * HOUR_NS
    fleet.logs["0"] = node(0, now_ns, 0, YEARS_NS)
    fleet.logs["1"] = node(1, now_ns)
    views = Views(lambda: fleet, lambda tenant, now_ns: {}, lambda: ["acme"], Policy)
    assert views.compliance_at(now_ns).requests == 6


def test_what_is_had_on_a_node_that_is_ahead_was_not_given_after_what_is_wanted() -> None:
    fleet, now_ns = Fleet(), 100 * HOUR_NS
    history = History(wall_offset_ns=now_ns + YEARS_NS)
    history.start()
    history.allocate(1, subject(cores(1)), HOUR_NS)
    ahead = fleet.logs["2"] = seen(history)
    ahead.node = "02"
    for number in (0, 1):
        fleet.logs[f"{number}"] = node(number, now_ns)
    assert fleet.unmet(now_ns - HOUR_NS, now_ns) == {"acme": {ResourceKind.CPU: 1}}
    history = History(wall_offset_ns=now_ns + 1)
    history.start()
    history.allocate(2, subject(cores(1)), HOUR_NS)
    given = fleet.logs["3"] = seen(history)
    given.node = "03"
    assert not fleet.unmet(now_ns - HOUR_NS, now_ns)


def test_a_lease_on_a_node_that_is_ahead_is_as_old_as_it_is() -> None:
    """And has as long as it has: both are by the node's boot clock."""
    now_ns = 100 * HOUR_NS
    for ahead_ns in (0, YEARS_NS):
        history = History(wall_offset_ns=now_ns + ahead_ns)
        history.start()
        history.inventory(cores(64))
        history.allocate(1, subject(cores(1)), 4 * HOUR_NS)
        history.boot_ns = HOUR_NS
        history.touch()
        view, fleet = seen(history), Fleet()
        fleet.logs["log"] = view
        views = Views(lambda fleet=fleet: fleet, lambda *asked: {}, lambda: ["acme"], Policy)
        (lease,) = view.leases.values()
        assert view.left_ns(lease, now_ns + HOUR_NS) == 3 * HOUR_NS
        used = views.usage_of("acme", now_ns + HOUR_NS).quotas["max_task_duration"].used
        assert used == "1h"
