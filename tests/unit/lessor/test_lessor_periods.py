# SPDX-License-Identifier: Apache-2.0
"""When budgets begin anew, under a wall's clock that is set, either way, and over restarts."""

from __future__ import annotations

from leased.service.policy.calendar import calendar_at
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.moment import DAY_NS, HOUR_NS, Moment
from leased.terms.policy import Period, Policy
from leased.terms.quantity import parse_instant
from tests.doubles.desk import Desk, boot, mem

NOON_NS = parse_instant("2026-11-18T12:00:00Z")
"""A Wednesday."""


class Budgets:
    """A desk, and a wall's clock of its own. `begins` is how often each period has begun."""

    def __init__(self) -> None:
        self.desk = Desk(mem(0, 1))
        self.boot_number = 1
        self.wall_ns = NOON_NS

    def look(self) -> dict[str, int]:
        """Tell the time. What has begun by it."""
        moment = Moment(boot(self.boot_number), self.desk.moment.boot_ns, self.wall_ns)
        before = len(self.desk.history)
        self.desk.say(commands.Turn(self.desk.command_id(), calendar_at(Policy(), moment)))
        began = [one for one, _ in self.desk.history[before:] if type(one) is events.PeriodBegan]
        return {one.period: one.began_wall_ns for one in began}

    def pass_by(self, ns: int) -> dict[str, int]:
        """So much later by every clock."""
        self.desk.sleep(ns / 10**9)
        self.wall_ns += ns
        return self.look()

    def restart(self) -> None:
        """The host boots."""
        self.boot_number += 1
        self.desk.restart(boot_number=self.boot_number)


def test_a_clock_that_is_set_back_begins_no_period_again() -> None:
    budgets = Budgets()
    assert budgets.look().keys() == set(Period)
    assert budgets.pass_by(12 * HOUR_NS).keys() == {Period.DAY}, "midnight"
    budgets.wall_ns -= HOUR_NS
    assert budgets.look() == {}
    assert budgets.pass_by(2 * HOUR_NS) == {}, "midnight again"
    assert budgets.pass_by(24 * HOUR_NS).keys() == {Period.DAY}


def test_a_clock_that_is_not_set_yet_begins_no_period() -> None:
    """It begins in 1970, and is set when the network is there: at every start."""
    budgets = Budgets()
    budgets.look()
    for _ in range(3):
        budgets.restart()
        right_ns, budgets.wall_ns = budgets.wall_ns, 0
        assert budgets.look() == {}
        budgets.wall_ns = right_ns
        assert budgets.look() == {}
    assert budgets.pass_by(12 * HOUR_NS).keys() == {Period.DAY}


def test_a_clock_that_was_years_ahead_keeps_no_budget_from_beginning() -> None:
    budgets = Budgets()
    budgets.look()
    budgets.wall_ns += 30 * 365 * DAY_NS
    assert budgets.look().keys() == set(Period)
    budgets.wall_ns = NOON_NS
    assert budgets.look() == {}
    begins = dict.fromkeys(Period, 0)
    for _ in range(70):
        for period in budgets.pass_by(DAY_NS):
            begins[Period(period)] += 1
    assert begins == {Period.DAY: 70, Period.WEEK: 10, Period.MONTH: 2}, "as the calendar has"
