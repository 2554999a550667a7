# SPDX-License-Identifier: Apache-2.0
"""Windows and periods over changes of the clock, and that what follows from the time is said at its
instant.
"""

from __future__ import annotations

import pytest
import trio

from leased.service.policy import windows
from leased.service.policy.calendar import CalendarWatch
from leased.terms.command import Command, SetPolicy, Turn
from leased.terms.errors import ConfigError
from leased.terms.moment import DAY_NS, HOUR_NS, MINUTE_NS, NS_PER_S
from leased.terms.policy import Period, Policy, digest
from leased.terms.policy_text import read_policy
from leased.terms.quantity import parse_instant, print_instant
from tests.doubles.clock import FakeClock
from tests.doubles.desk import OPERATOR

pytestmark = pytest.mark.autojump


def scheduled(cron: str, duration: str, timezone: str = "UTC") -> Policy:
    """A policy with one window of that tenant."""
    window = {"cron": cron, "duration": duration, "timezone": timezone, "gpu": 8}
    return read_policy({"tenants": {"acme": {"schedules": {"window": window}}}})


def is_open(policy: Policy, instant: str) -> bool:
    return windows.open_windows(policy, parse_instant(instant)) == ("acme/window",)


def turns_after(policy: Policy, instant: str) -> str:
    next_ns = windows.next_window_ns(policy, parse_instant(instant))
    assert next_ns is not None
    return print_instant(next_ns)


def test_a_window_is_half_open_and_follows_its_zone() -> None:
    policy = scheduled("0 8 * * 1-5", "10h", "America/New_York")
    # A Monday in winter: 08:00 there is 13:00 UTC.
    assert not is_open(policy, "2026-01-05T12:59:59Z")
    assert is_open(policy, "2026-01-05T13:00:00Z")
    assert is_open(policy, "2026-01-05T22:59:59Z")
    assert not is_open(policy, "2026-01-05T23:00:00Z")
    assert not is_open(policy, "2026-01-04T15:00:00Z"), "a Sunday"
    # In summer an hour earlier.
    assert is_open(policy, "2026-07-06T12:00:00Z") and not is_open(policy, "2026-07-06T11:59:59Z")
    assert turns_after(policy, "2026-01-05T12:00:00Z") == "2026-01-05T13:00:00Z"
    assert turns_after(policy, "2026-01-05T13:00:00Z") == "2026-01-05T23:00:00Z"
    assert turns_after(policy, "2026-01-09T23:00:00Z") == "2026-01-12T13:00:00Z"


def test_a_window_across_a_change_of_the_clock_is_as_long_as_it_says() -> None:
    """In New York clocks go on on 2026-03-08 at 02:00 and back on 2026-11-01 at 02:00."""
    night = scheduled("0 0 * * *", "6h", "America/New_York")
    assert is_open(night, "2026-03-08T05:00:00Z") and is_open(night, "2026-03-08T10:59:59Z")
    assert not is_open(night, "2026-03-08T11:00:00Z"), "six hours, though the clock there says 7"
    assert is_open(night, "2026-11-01T09:59:59Z") and not is_open(night, "2026-11-01T10:00:00Z")


def test_an_instant_that_is_left_out_comes_when_the_clock_goes_on() -> None:
    policy = scheduled("30 2 * * *", "1h", "America/New_York")
    assert turns_after(policy, "2026-03-08T05:00:00Z") == "2026-03-08T07:00:00Z"
    assert is_open(policy, "2026-03-08T07:00:00Z")


def test_an_instant_that_comes_twice_counts_once() -> None:
    policy = scheduled("30 1 * * *", "10min", "America/New_York")
    assert is_open(policy, "2026-11-01T05:30:00Z")
    assert not is_open(policy, "2026-11-01T06:30:00Z")


def test_overlapping_windows_of_one_schedule_are_one() -> None:
    policy = scheduled("*/5 * * * *", "7min")
    for minute in range(0, 60, 3):
        assert is_open(policy, f"2026-05-01T10:{minute:02}:30Z")


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({"timezone": "Mars/Olympus"}, "policy.timezone = Mars/Olympus: no such time zone"),
        ({"timezone": "../../etc/passwd"}, "policy.timezone"),
        ({"cron": "61 * * * *"}, "tenants.a.schedules.w.cron = 61"),
        ({"cron": "0 0 30 2 *"}, "tenants.a.schedules.w.cron = 0 0 30 2"),
        ({"cron": "a b c d e"}, "tenants.a.schedules.w.cron"),
        ({"zone": "Europe/Nowhere"}, "tenants.a.schedules.w.timezone = Europe/Nowhere"),
    ],
)
def test_what_is_no_cron_line_or_zone_is_named(policy: dict[str, str], key: str) -> None:
    window = {
        "cron": policy.get("cron", "0 0 * * *"),
        "duration": "1h",
        "gpu": 1,
        "timezone": policy.get("zone", "UTC"),
    }
    document = {"tenants": {"a": {"schedules": {"w": window}}}}
    with pytest.raises(ConfigError, match=key.replace("*", r"\*").replace(".", r"\.")):
        windows.check_windows(read_policy(document | {"timezone": policy.get("timezone", "UTC")}))


@pytest.mark.parametrize(
    ("period", "zone", "at", "began", "ends"),
    [
        ("day", "UTC", "2026-03-08T12:00:00Z", "2026-03-08T00:00:00Z", "2026-03-09T00:00:00Z"),
        (
            "day",
            "America/New_York",
            "2026-03-08T12:00:00Z",
            "2026-03-08T05:00:00Z",
            "2026-03-09T04:00:00Z",
        ),
        (
            "day",
            "America/New_York",
            "2026-11-01T12:00:00Z",
            "2026-11-01T04:00:00Z",
            "2026-11-02T05:00:00Z",
        ),
        (
            "day",  # there is no midnight: the clock jumps over it
            "America/Sao_Paulo",
            "2018-11-04T12:00:00Z",
            "2018-11-04T03:00:00Z",
            "2018-11-05T02:00:00Z",
        ),
        ("week", "UTC", "2026-03-08T12:00:00Z", "2026-03-02T00:00:00Z", "2026-03-09T00:00:00Z"),
        ("month", "UTC", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        (
            "month",
            "Asia/Tokyo",
            "2026-12-31T15:00:00Z",
            "2026-12-31T15:00:00Z",
            "2027-01-31T15:00:00Z",
        ),
    ],
)
def test_periods_begin_at_midnight_of_the_zone(
    period: str, zone: str, at: str, began: str, ends: str
) -> None:
    wall_ns = parse_instant(at)
    assert print_instant(windows.begins_ns(Period(period), wall_ns, zone)) == began
    assert print_instant(windows.ends_ns(Period(period), wall_ns, zone)) == ends


class Watch:
    """A watch over a policy that a test replaces, and what it submits."""

    def __init__(self, policy: Policy) -> None:
        self.clock, self.policy = FakeClock(), policy
        self.said: list[tuple[int, Command]] = []
        floor = SetPolicy(bytes(16), OPERATOR, Policy(), digest(Policy()), bytes(32))
        self.watch = CalendarWatch(
            clock=self.clock,
            submit=self._submit,
            policy=lambda: self.policy,
            floor=lambda: floor,
            prices=lambda: (),
        )

    def _submit(self, command: Command, deliver: object = None) -> None:
        self.said.append((self.clock.now().wall_ns, command))
        if isinstance(command, SetPolicy):
            self.policy = command.policy

    def turns(self) -> list[tuple[str, tuple[str, ...]]]:
        """When which windows were said to be open."""
        return [
            (print_instant(at_ns), one.calendar.windows)
            for at_ns, one in self.said
            if isinstance(one, Turn)
        ]


async def test_a_window_opens_and_closes_to_the_second(nursery: trio.Nursery) -> None:
    site = Watch(scheduled("0 12 * * *", "90s"))  # the fake clock begins at 08:16:40
    nursery.start_soon(site.watch.run)
    await site.clock.sleep_until(site.clock.now().boot_ns + 5 * HOUR_NS)
    opened = [turn for turn in site.turns() if turn[1]]
    assert [at for at, _ in opened] == ["2027-01-15T12:00:00Z"]
    assert ("2027-01-15T12:01:30Z", ()) in site.turns()
    assert len(site.turns()) == 3, "the first word, the opening, the closing"


async def test_another_policy_is_looked_at_at_once(nursery: trio.Nursery) -> None:
    site = Watch(Policy())
    nursery.start_soon(site.watch.run)
    await site.clock.sleep_until(site.clock.now().boot_ns + MINUTE_NS + NS_PER_S)
    site.policy = scheduled("* * * * *", "1s")
    site.watch.look()
    await site.clock.sleep_until(site.clock.now().boot_ns + 62 * NS_PER_S)
    assert len([turn for turn in site.turns() if turn[1]]) >= 1


async def test_a_policy_that_expires_gives_way_once(nursery: trio.Nursery) -> None:
    site = Watch(Policy())
    expires_ns = site.clock.now().wall_ns + 10 * NS_PER_S
    site.policy = Policy(expires_wall_ns=expires_ns)
    nursery.start_soon(site.watch.run)
    await site.clock.sleep_until(site.clock.now().boot_ns + 10 * MINUTE_NS)
    floors = [at_ns for at_ns, one in site.said if isinstance(one, SetPolicy)]
    assert len(floors) == 1 and 0 <= floors[0] - expires_ns < NS_PER_S


async def test_a_step_of_the_wall_clock_is_noticed_either_way(nursery: trio.Nursery) -> None:
    site = Watch(Policy())
    nursery.start_soon(site.watch.run)
    await trio.testing.wait_all_tasks_blocked()
    for step_ns in (DAY_NS, -DAY_NS):
        before = len(site.turns())
        site.clock.step(step_ns)
        await site.clock.sleep_until(site.clock.now().boot_ns + 31 * NS_PER_S)
        assert len(site.turns()) == before + 1
