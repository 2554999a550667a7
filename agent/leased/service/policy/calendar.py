# SPDX-License-Identifier: Apache-2.0
"""The calendar: tells the lessor when what the time of day means for the policy has changed.

Rule: budgets begin anew at midnight of the policy's time zone (weeks on Monday, months on the
first); windows open and close, changes of limits end, and a policy that expires gives way to the
configured one, at the instants they name. The wall clock is looked at again at least every
`LOOK_NS`, so that a step of it, either way, is not noticed late.

Does not know limits, and decides nothing: it submits a `Turn`, or the configured policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from leased.economics.rates import RateCard
from leased.ports import Clock, Submit
from leased.service.evidence import NO_COMMAND
from leased.service.policy.windows import begins_ns, ends_ns, next_window_ns, open_windows
from leased.terms.command import SetPolicy, Turn
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import Calendar, Period, Policy, Price, Running
from leased.terms.policy_turn import next_turn_ns
from leased.terms.resource import ResourceKind, TierKind

LOOK_NS: Final = 30 * NS_PER_S

Standing = tuple[tuple[str, ...], tuple[int, ...], int | None]
"""What the time is for a policy: its open windows, when the periods that run began, and which of
its ends comes next.
"""


def calendar_at(policy: Policy, moment: Moment) -> Calendar:
    """What the time is for `policy`."""
    offset_ns, wall_ns, zone = moment.boot_ns - moment.wall_ns, moment.wall_ns, policy.timezone
    return Calendar(
        open_windows(policy, wall_ns),
        tuple(
            Running(
                period,
                begins_ns(period, wall_ns, zone),
                ends_ns(period, wall_ns, zone) + offset_ns,
            )
            for period in Period
        ),
    )


def standing_at(policy: Policy, wall_ns: int) -> Standing:
    """As `calendar_at`, without what moves with the clocks."""
    began = tuple(begins_ns(period, wall_ns, policy.timezone) for period in Period)
    return open_windows(policy, wall_ns), began, next_turn_ns(policy, wall_ns)


def prices_of(card: RateCard) -> tuple[Price, ...]:
    """What the rate card says a capacity-second costs, for budgets in money."""
    return tuple(
        Price(
            kind,
            -1 if tier is None else int(tier),
            int(priority),
            card.rate(kind, tier, priority).exact * card.multiplier_pm(priority),
        )
        for kind in ResourceKind
        for tier in (None, *TierKind)
        for priority in Priority
    )


class CalendarWatch:
    """Submits what follows from the time. `policy` is the document in force, `floor` the command
    that puts the configured one in its place.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        submit: Submit,
        policy: Callable[[], Policy],
        floor: Callable[[], SetPolicy],
        prices: Callable[[], tuple[Price, ...]],
    ) -> None:
        self._clock = clock
        self._submit = submit
        self._policy = policy
        self._floor = floor
        self._prices = prices
        self._sleep = trio.CancelScope()

    def look(self) -> None:
        """Another policy is in force: its instants are other ones."""
        self._sleep.cancel()

    async def run(self) -> None:
        """Watch until cancelled."""
        now = self._clock.now()
        policy = self._policy()
        self._submit(Turn(NO_COMMAND, calendar_at(policy, now), self._prices()))
        told = standing_at(policy, now.wall_ns)
        while True:
            now, policy = self._clock.now(), self._policy()
            standing = standing_at(policy, now.wall_ns)
            if policy.expires_wall_ns is not None and policy.expires_wall_ns <= now.wall_ns:
                self._submit(self._floor())
            elif standing != told:
                self._submit(Turn(NO_COMMAND, calendar_at(policy, now)))
            told = standing
            ends = (
                now.wall_ns + LOOK_NS,
                next_turn_ns(policy, now.wall_ns),
                next_window_ns(policy, now.wall_ns),
                ends_ns(Period.DAY, now.wall_ns, policy.timezone),
            )
            next_ns = min(end_ns for end_ns in ends if end_ns is not None)
            with trio.CancelScope() as self._sleep:
                await self._clock.sleep_until(now.boot_ns + max(1, next_ns - now.wall_ns))
