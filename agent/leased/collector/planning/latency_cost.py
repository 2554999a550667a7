# SPDX-License-Identifier: Apache-2.0
"""What it costs to be quicker: from how leases come and go, by a queue of so many servers.

Rule: the model is named, and how far it is off what was measured stands beside it; a target that no
number of workers reaches says so. A worker is a node, with as many places as it ever had leases at
once. Leases are counted by whole days (UTC), from the one in which the period begins: how many come
in an hour is that count over the time that it is of. Costs are of the price of an hour of a node,
730 hours a month.

Does not order workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Reach, to_decimals
from leased.collector.accounts.clocks import AHEAD_NS
from leased.collector.accounts.periods import Window, duration
from leased.collector.fleet import Fleet
from leased.collector.planning import capacity, queueing
from leased.collector.planning.flow import DAYS_KEPT, Day, day_start_ns, summed
from leased.collector.planning.history import begun_ns
from leased.economics.pools import Pool
from leased.terms.errors import InvalidParameter
from leased.terms.moment import DAY_NS, HOUR_NS, NS_PER_MS, NS_PER_S
from leased.terms.resource import ResourceKind

MODEL: Final = "M/M/c"
SHARES: Final = ((2, 3), (1, 2), (1, 3))
"""Targets, of what it takes now, where none are named."""

DECILES: Final = 10


class MarginalCost(msgspec.Struct, frozen=True):
    """What a target takes beyond what is there; null where it cannot be reached."""

    target_p99_ms: int
    additional_cost_monthly: Decimal | None
    required_workers: int | None
    achievable: bool


class Throughput(msgspec.Struct, frozen=True):
    """What a million tasks cost in the hours in which so much of the processors was held."""

    utilization_from: Decimal
    utilization_to: Decimal
    hours: int
    tasks: int
    cost_per_million_tasks: Decimal | None


class LatencyCost(msgspec.Struct, frozen=True):
    """Waiting and holding together, in 99 of 100 cases: as the model has it, and (holding alone) as
    it was measured. Null: as many come as can be served, or more. `fit_error` is how far the
    model's holding is off the measured. `reason` says why there is nothing to tell."""

    current_p99_ms: int | None
    marginal_costs: list[MarginalCost]
    model: str
    fit_error: Decimal
    measured_hold_p99_ms: int
    mean_hold_ms: int
    arrivals_per_hour: Decimal
    workers: int
    places_per_worker: int
    throughput: list[Throughput]
    period: str
    currency: str
    reach: Reach
    reason: str | None = None


def latency_cost(
    accounts: Accounts, fleet: Fleet, period: str, targets_ms: Sequence[int]
) -> LatencyCost:
    """Of the leases of the last `period`. Raises InvalidParameter."""
    now_ns, views = accounts.now_ns(), fleet.nodes()
    span_ns = duration(period)
    if span_ns > DAYS_KEPT * DAY_NS:
        raise InvalidParameter("period", f"at most {DAYS_KEPT}d")
    begin_ns = day_start_ns(now_ns - span_ns, now_ns)
    day = summed(view.flow.between(begin_ns, now_ns + AHEAD_NS) for view in fleet.known())
    if not views or not day.ended or not day.total_ns:
        return _nothing(accounts, len(views), period)
    span_ns = max(HOUR_NS, now_ns - max(begin_ns, begun_ns(accounts)))
    places = max(1, max(view.flow.most for view in views))
    servers = places * len(views)
    service_s = day.total_ns / day.ended / NS_PER_S
    load = day.begun * NS_PER_S / span_ns * service_s
    current_s = queueing.sojourn_p99(servers, load, service_s)
    price = capacity.mean(capacity.node_prices(accounts, accounts.held()))
    targets = targets_ms or _targets(current_s, service_s)
    window = accounts.last(period)
    return LatencyCost(
        None if math.isinf(current_s) else round(current_s * 1000),
        [_marginal(one, servers, places, load, service_s, price, accounts) for one in targets],
        MODEL,
        _fit_error(day, service_s),
        day.quantile_ns(990) // NS_PER_MS,
        round(service_s * 1000),
        to_decimals(Fraction(day.begun * HOUR_NS, span_ns), 3),
        len(views),
        places,
        _throughput(accounts, window),
        period,
        accounts.infrastructure().currency,
        accounts.reach(window),
    )


def _nothing(accounts: Accounts, workers: int, period: str) -> LatencyCost:
    return LatencyCost(
        *(None, [], MODEL, Decimal(0), 0, 0, Decimal(0), workers, 0, [], period),
        accounts.infrastructure().currency,
        accounts.reach(accounts.last(period)),
        "insufficient_history",
    )


def _targets(current_s: float, service_s: float) -> list[int]:
    """Where none are named: parts of what it takes now; of three services where that has no end."""
    from_s = 3 * queueing.service_p99(service_s) if math.isinf(current_s) else current_s
    return [max(1, round(from_s * 1000 * part / whole)) for part, whole in SHARES]


def _marginal(
    target_ms: int,
    servers: int,
    places: int,
    load: float,
    service_s: float,
    price: Fraction,
    accounts: Accounts,
) -> MarginalCost:
    wanted = queueing.servers_for(target_ms / 1000, load, service_s)
    if wanted is None:
        return MarginalCost(target_ms, None, None, False)
    more = max(0, -(-(wanted - servers) // places))
    decimals = accounts.infrastructure().decimals
    cost = to_decimals(price * more * capacity.MONTH_H, decimals)
    return MarginalCost(target_ms, cost, more, True)


def _fit_error(day: Day, service_s: float) -> Decimal:
    measured = day.quantile_ns(990) / NS_PER_S
    if not measured:
        return Decimal(0)
    off = abs(queueing.service_p99(service_s) - measured) / measured
    return Decimal(str(round(min(off, 999.0), 3)))


def _throughput(accounts: Accounts, window: Window) -> list[Throughput]:
    """Hours by how much of the processors was held in them."""
    held: dict[int, int] = {}
    there: dict[int, int] = {}
    cost: dict[int, Fraction] = {}
    for key, amount in accounts.source.cells(window.pair).items():
        if key.pool is Pool.PROVISIONED:
            paid = capacity.infrastructure_cost(accounts, key.kind, key.tier, amount)
            cost[key.bucket] = cost.get(key.bucket, Fraction(0)) + paid
        if key.kind is ResourceKind.CPU:
            where = there if key.pool is Pool.PROVISIONED else held
            where[key.bucket] = where.get(key.bucket, 0) + amount
    tasks: dict[int, int] = {}
    for (_, hour), count in accounts.source.tasks(window.pair).items():
        tasks[hour] = tasks.get(hour, 0) + count
    hours: dict[int, list[int]] = {}
    for hour, amount in there.items():
        if amount:
            decile = min(DECILES - 1, held.get(hour, 0) * DECILES // amount)
            hours.setdefault(decile, []).append(hour)
    return [
        _decile(decile, found, tasks, cost, accounts.infrastructure().decimals)
        for decile, found in sorted(hours.items())
    ]


def _decile(
    decile: int,
    hours: Sequence[int],
    tasks: dict[int, int],
    cost: dict[int, Fraction],
    decimals: int,
) -> Throughput:
    done = sum(tasks.get(hour, 0) for hour in hours)
    paid = sum((cost.get(hour, Fraction(0)) for hour in hours), Fraction(0))
    each = None
    if done:
        each = to_decimals(paid * 10**6 / done, decimals)
    begin, end = Decimal(decile).scaleb(-1), Decimal(decile + 1).scaleb(-1)
    return Throughput(begin, end, len(hours), done, each)
