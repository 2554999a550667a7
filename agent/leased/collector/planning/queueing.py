# SPDX-License-Identifier: Apache-2.0
"""Queueing: how long somebody is in a system of so many servers (M/M/c), and how many it takes.

Rule: rates are per second, times in seconds. A queue that grows without end has no time: infinity,
never a large number. Nothing here is billed from, so floats may be used.

Does not measure (`flow`) and does not price (`latency_cost`).
"""

from __future__ import annotations

import math
from typing import Final

SERVERS_MAX: Final = 200_000
SHARE: Final = 0.99


def erlang_c(servers: int, load: float) -> float:
    """The chance that whoever comes has to wait; `load` is arrivals x service, in servers."""
    if load >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return _waits(blocked, servers, load)


def _waits(blocked: float, servers: int, load: float) -> float:
    busy = load / servers
    return blocked / (1 - busy + busy * blocked)


def service_p99(service_s: float) -> float:
    """In 99 of 100 cases the service alone is no longer: no number of servers is quicker."""
    return service_s * -math.log(1 - SHARE)


def sojourn_p99(servers: int, load: float, service_s: float) -> float:
    """In 99 of 100 cases waiting and service together are no longer."""
    if load >= servers:
        return math.inf
    return _quantile(erlang_c(servers, load), servers, load, service_s)


def _quantile(waits: float, servers: int, load: float, service_s: float) -> float:
    low, high = 0.0, service_p99(service_s)
    while _longer(high, waits, servers, load, service_s) > 1 - SHARE:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        if _longer(middle, waits, servers, load, service_s) > 1 - SHARE:
            low = middle
        else:
            high = middle
    return high


def _longer(time_s: float, waits: float, servers: int, load: float, service_s: float) -> float:
    """The chance that it takes longer than `time_s`."""
    rate = 1 / service_s
    spare = servers - 1 - load
    served = math.exp(-rate * time_s)
    if abs(spare) < 1e-6:
        return served * (1 + waits * rate * time_s)
    # Not as the textbook has it, whose exponent is positive where the last server is needed.
    return served + waits * (served - math.exp(-rate * time_s * (servers - load))) / spare


def servers_for(target_s: float, load: float, service_s: float) -> int | None:
    """The fewest servers with which it takes no longer than `target_s` in 99 of 100 cases; None:
    none, or more than `SERVERS_MAX`."""
    if target_s < service_p99(service_s):
        return None
    blocked = 1.0
    for servers in range(1, SERVERS_MAX + 1):
        blocked = load * blocked / (servers + load * blocked)
        if load < servers:
            waits = _waits(blocked, servers, load)
            if _longer(target_s, waits, servers, load, service_s) <= 1 - SHARE:
                return servers
    return None
