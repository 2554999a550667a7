# SPDX-License-Identifier: Apache-2.0
"""The calendar: tells the lessor when what the time of day means for the policy has changed.

Rule: budgets begin anew at midnight UTC (weeks on Monday, months on the first); changes of limits
end, and a policy that expires gives way to the configured one, at the instants they name. The wall
clock is looked at again at least every `LOOK_NS`, so that a step of it is not noticed late.

Does not know limits, and decides nothing: it submits a `Turn`, or the configured policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from leased.economics.rates import RateCard
from leased.ports import Clock, Submit
from leased.service.config import Config
from leased.service.evidence import NO_COMMAND
from leased.terms.command import Caller, SetPolicy, Turn
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.policy import DAY_NS, Calendar, Period, Policy, Price, Running, digest
from leased.terms.policy_turn import next_turn_ns
from leased.terms.quantity import parse_instant, print_instant
from leased.terms.resource import ResourceKind, TierKind

LOOK_NS: Final = 30 * NS_PER_S
_MONDAY_NS: Final = 4 * DAY_NS
"""The first Monday after the Unix epoch, a Thursday."""


def begins_ns(period: Period, wall_ns: int) -> int:
    """When the period that `wall_ns` is in began."""
    if period is Period.DAY:
        return wall_ns - wall_ns % DAY_NS
    if period is Period.WEEK:
        return wall_ns - (wall_ns - _MONDAY_NS) % (7 * DAY_NS)
    return parse_instant(print_instant(wall_ns)[:8] + "01T00:00:00Z")


def ends_ns(period: Period, wall_ns: int) -> int:
    """When the period that `wall_ns` is in ends."""
    began = begins_ns(period, wall_ns)
    if period is Period.DAY:
        return began + DAY_NS
    if period is Period.WEEK:
        return began + 7 * DAY_NS
    return begins_ns(Period.MONTH, began + 31 * DAY_NS)


def calendar_at(moment: Moment) -> Calendar:
    """What the time is for any policy."""
    offset_ns = moment.boot_ns - moment.wall_ns
    return Calendar(
        (),
        tuple(
            Running(
                period,
                begins_ns(period, moment.wall_ns),
                ends_ns(period, moment.wall_ns) + offset_ns,
            )
            for period in Period
        ),
    )


def prices_of(card: RateCard) -> tuple[Price, ...]:
    """What the rate card says a capacity-second costs, for budgets in money."""
    return tuple(
        Price(
            kind,
            -1 if tier is None else int(tier),
            int(priority),
            card.rate(kind, tier, priority).nano * card.multiplier_pm(priority),
        )
        for kind in ResourceKind
        for tier in (None, *TierKind)
        for priority in Priority
    )


def configured(config: Config, operator: Caller) -> SetPolicy:
    """The command that puts the configured policy in force."""
    policy = msgspec.structs.replace(config.policy, generation=0)
    hashes = digest(policy), config.rates.digest()
    return SetPolicy(NO_COMMAND, operator, policy, *hashes, prices_of(config.rates))


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

    async def run(self) -> None:
        """Watch until cancelled."""
        now = self._clock.now()
        self._submit(Turn(NO_COMMAND, calendar_at(now), self._prices()))
        told = now.wall_ns
        while True:
            now = self._clock.now()
            policy = self._policy()
            if policy.expires_wall_ns is not None and policy.expires_wall_ns <= now.wall_ns:
                self._submit(self._floor())
            elif self._turned(policy, told, now.wall_ns):
                self._submit(Turn(NO_COMMAND, calendar_at(now)))
            told = now.wall_ns
            turn_ns = next_turn_ns(policy, now.wall_ns)
            next_ns = min(turn_ns or now.wall_ns + LOOK_NS, ends_ns(Period.DAY, now.wall_ns))
            wait_ns = max(1, min(LOOK_NS, next_ns - now.wall_ns))
            await self._clock.sleep_until(now.boot_ns + wait_ns)

    @staticmethod
    def _turned(policy: Policy, told_ns: int, now_ns: int) -> bool:
        if begins_ns(Period.DAY, told_ns) != begins_ns(Period.DAY, now_ns):
            return True
        turn_ns = next_turn_ns(policy, min(told_ns, now_ns))
        return now_ns < told_ns or (turn_ns is not None and turn_ns <= now_ns)
