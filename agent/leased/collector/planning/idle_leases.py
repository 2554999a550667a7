# SPDX-License-Identifier: Apache-2.0
"""Idle leases: what is held and not used, and since when.

Rule: a kind of a lease is idle in a window of telemetry in which it was active in less than a tenth
of the looks, as waste has it; a stretch is of windows without a gap, for what was not seen is not
called idle, and is told from an hour on. It costs what having that capacity costs the operator,
whoever holds it: the same price as a node that nobody holds anything of, tier by tier where the
lease is known.

Does not look at nodes (`capacity`), and nothing is billed from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.answers import Idle, IdleResource, to_decimals
from leased.collector.holdings import Holdings
from leased.collector.planning import capacity
from leased.collector.telemetry.rollup import WINDOW_S
from leased.collector.telemetry.store import IdleStretch, Store
from leased.terms.moment import HOUR_S, NS_PER_S
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind

WEEK_S: Final = 7 * 24 * HOUR_S
_KINDS: Final = {kind.name.lower(): kind for kind in ResourceKind}


def idle(
    accounts: Accounts,
    samples: Store | None = None,
    holdings: Holdings | None = None,
) -> Idle:
    """Nodes that nobody uses, and leases that do nothing: those of now, and what all of the last
    seven days cost. Without `holdings` a lease is priced by its kind."""
    nodes = capacity.idle(accounts)
    if samples is None:
        return nodes
    # Telemetry goes on after the last record: it is by its own newest window.
    heard = samples.heard()
    end_s = max(heard.values(), default=0) + WINDOW_S
    decimals = accounts.infrastructure().decimals
    listed: list[IdleResource] = []
    waste = Fraction(0)
    for stretch in _known(samples.idle(end_s - WEEK_S, end_s, HOUR_S)):
        cost = _cost(accounts, stretch, holdings)
        waste += cost
        if stretch.end_s >= heard.get(stretch.node, end_s):
            listed.append(_row(stretch, cost, decimals))
    listed.sort(key=lambda one: (-one.wasted_cost, one.resource, one.kind or ""))
    total = nodes.total_waste_last_7d + to_decimals(waste, decimals)
    return msgspec.structs.replace(
        nodes, idle_resources=[*nodes.idle_resources, *listed], total_waste_last_7d=total
    )


def _known(stretches: Iterable[IdleStretch]) -> Iterable[IdleStretch]:
    return (one for one in stretches if one.kind in _KINDS and one.capacity > 0)


def _cost(accounts: Accounts, one: IdleStretch, holdings: Holdings | None) -> Fraction:
    kind, for_ns = _KINDS[one.kind], (one.end_s - one.begin_s) * NS_PER_S
    known = holdings.tiers(one.node, one.lease, kind) if holdings is not None else {}
    tiers = known or {None: one.capacity}
    return sum(
        (
            capacity.infrastructure_cost(accounts, kind, tier, held * for_ns)
            for tier, held in tiers.items()
        ),
        Fraction(0),
    )


def _row(one: IdleStretch, cost: Fraction, decimals: int) -> IdleResource:
    return IdleResource(
        one.lease,
        print_instant(one.begin_s * NS_PER_S),
        (one.end_s - one.begin_s) // HOUR_S,
        to_decimals(cost, decimals),
        "Release it, or ask for less",
        "lease",
        one.node,
        one.tenant,
        one.kind,
    )
