# SPDX-License-Identifier: Apache-2.0
"""The divider: what each node is to have of the fleet's limits now.

Rule: from verified records (what is held, what was asked for in vain, which policy is in force) and
from what was handed out alone; what waits on a node, by its own word, is a wish like what was asked
for in vain: it draws what is free and takes nothing that is held. Parts are made anew when limits,
nodes or the time make it so; in between only those limits are looked at of which somebody needs
more than it has. A share ends no later than the limit that it is a part of.

Does not keep or sign anything (`issuer`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from leased.collector.fleet import Fleet
from leased.collector.governance import windows
from leased.collector.governance.dimensions import BY_KEY, BY_KIND, DIVISIBLE
from leased.collector.governance.division import (
    Site,
    affordable,
    divided,
    floor_of,
    fractions,
    kept,
)
from leased.collector.governance.policies import Part, Saying
from leased.collector.governance.quotas import Opening, Per, Schedule, effective
from leased.collector.governance.shares import Shares
from leased.collector.node_view import NodeView, Want
from leased.terms.moment import MINUTE_NS
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind

SEEN_NS: Final = MINUTE_NS
"""What was granted while a smaller share was on its way is borne by the node for so long: meanwhile
its records come in, and it is given back what it holds."""

WANT_NS: Final = MINUTE_NS
"""Who asked in vain and has not asked again for so long has given up."""

OVER_MAX: Final = 101
"""A refusal names the limit with what a soft or burst one lets through: 10000 % more at most."""

_CAPACITIES: Final = frozenset(one.key for one in BY_KIND.values())
Limit = tuple[str, str]
"""A tenant and a dimension."""

_Why = tuple[int, ResourceKind | None]
"""The reason of a refusal, and of what kind it was, where its record says so."""


class Plan(msgspec.Struct, frozen=True):
    """What is divided, until when that is so, and everything that was said."""

    said: dict[str, Saying]
    limits: dict[Limit, int]
    until_ns: int | None


class Handout(msgspec.Struct, frozen=True):
    """What one node is to have."""

    node: str
    ppb: int
    until_ns: int
    parts: dict[str, Part]


class Portion(msgspec.Struct, frozen=True):
    """One node's part of one limit, and the most that it may still have."""

    key: str
    node: str
    floor: int
    share: int
    bound: int
    held: int
    until_ns: int
    present: bool


def openings_at(schedules: Collection[Schedule], now_ns: int) -> list[Opening]:
    """The windows that are open."""
    found = []
    for schedule in schedules:
        began = windows.last_opening_ns(schedule.cron, schedule.timezone, now_ns)
        if began is not None and began + schedule.duration_ns > now_ns:
            found.append(Opening(schedule, began + schedule.duration_ns))
    return found


def plan_of(said: Mapping[str, Saying], now_ns: int) -> Plan:
    """What of what was said is divided at `now_ns`."""
    limits: dict[Limit, int] = {}
    turns: list[int] = []
    for tenant, saying in said.items():
        if saying.quota.terms.per is not Per.FLEET:
            continue
        openings = openings_at(saying.schedules, now_ns)
        found = effective({}, saying.quota, saying.overrides, openings, now_ns)
        limits |= {(tenant, key): one.raw for key, one in found.items() if one.per is Per.FLEET}
        turns += [one.ends_ns for one in openings]
        turns += [one.expires_ns for one in saying.overrides]
        for one in saying.schedules:
            opens = windows.next_opening_ns(one.cron, one.timezone, now_ns)
            turns += [opens] if opens is not None else []
    ends = (turn_ns for turn_ns in turns if turn_ns > now_ns)
    return Plan(dict(said), limits, min(ends, default=None))


class Divider:
    """`shares` is what was handed out, `valid_ns` how long a share is."""

    def __init__(
        self,
        shares: Shares,
        fleet: Callable[[], Fleet],
        valid_ns: int,
        waiting: Callable[[], Mapping[str, Mapping[Limit, int]]] = dict,
    ) -> None:
        """`waiting` is what waits for more of each limit, by node."""
        self._shares, self._fleet, self._valid_ns = shares, fleet, valid_ns
        self._waiting = waiting
        self._plan = Plan({}, {}, None)
        self._present: list[str] = []
        self._ppb: dict[str, int] = {}
        self._given: dict[Limit, dict[str, int]] = {}
        self._short: set[Limit] = set()
        self._wants: dict[tuple[str, str, _Why], tuple[Want, list[str]]] = {}
        self._held: dict[Limit, dict[str, int]] = {}
        self._made_ns = self._due_ns = 0
        self._until_ns = 0

    @property
    def plan(self) -> Plan:
        """What is divided."""
        return self._plan

    @property
    def due_ns(self) -> int:
        """When it must look again, whatever happens."""
        return self._due_ns

    def step(self, plan: Plan, now_ns: int, present: Collection[str]) -> list[Handout]:
        """What each of the nodes that are there is to have; those that are as they were, too."""
        nodes = sorted(present)
        in_time = self._made_ns <= now_ns < self._due_ns  # not before: our clock may be set back
        anew = not in_time or nodes != self._present or plan is not self._plan
        self._plan, self._present = plan, nodes
        held, wants = self._seen(now_ns)
        self._held = held
        if anew:
            self._ppb = fractions(self._shares.ppb(), nodes)
            ends = [now_ns + self._valid_ns, *([plan.until_ns] if plan.until_ns else [])]
            self._until_ns = min(ends)
            self._made_ns = now_ns
            self._due_ns = now_ns + max(1, (self._until_ns - now_ns) // 2)
            if plan.until_ns is not None and self._until_ns == plan.until_ns:
                self._due_ns = self._until_ns
            self._given = {limit: row for limit, row in self._given.items() if limit in plan.limits}
        nodes_seen = self._views()
        for limit, raw in plan.limits.items():
            if anew or self._is_short(limit, held, wants):
                needs = (held.get(limit, {}), wants.get(limit, {}))
                sites = self._sites(limit, raw, *needs, now_ns, nodes_seen)
                self._divide(limit, raw, sites, anew=anew)
        return [self._handout(node) for node in nodes]

    def portions(self, tenant: str, limits: Mapping[str, int], now_ns: int) -> list[Portion]:
        """Who has which part of these limits of a tenant."""
        held, _ = self._seen(now_ns)
        nodes_seen = self._views()
        found = []
        for key, raw in limits.items():
            limit = (tenant, key)
            sites = self._sites(limit, raw, held.get(limit, {}), {}, now_ns, nodes_seen)
            for node, site in sorted(sites.items()):
                last = self._shares.last(node)
                found.append(
                    Portion(
                        key=key,
                        node=node,
                        floor=last.floors.get(tenant, {}).get(key, 0) if last else 0,
                        share=last.shares.get(tenant, {}).get(key, 0) if last else 0,
                        bound=site.bound,
                        held=site.held,
                        until_ns=last.until_ns if last else now_ns,
                        present=node in self._present,
                    )
                )
        return found

    # -- what is seen ------------------------------------------------------------------------------

    def _seen(self, now_ns: int) -> tuple[dict[Limit, dict[str, int]], dict[Limit, dict[str, int]]]:
        """What is held and what was asked for in vain, of each limit, by node."""
        held: dict[Limit, dict[str, int]] = {}
        wants: dict[Limit, dict[str, int]] = {}
        tenants = {tenant for tenant, _ in self._plan.limits}
        for view in self._fleet().nodes():
            for tenant, key, amount in _held(view, tenants):
                if (tenant, key) in self._plan.limits:
                    row = held.setdefault((tenant, key), {})
                    row[view.node] = row.get(view.node, 0) + amount
            for (tenant, reason, kind), want in list(view.wants.items()):
                if tenant in tenants and view.since_ns(want, now_ns) < WANT_NS:
                    for key in self._wanted(view, tenant, (reason, kind), want):
                        row = wants.setdefault((tenant, key), {})
                        row[view.node] = max(want.usage + want.requested, row.get(view.node, 0))
        for node, rows in self._waiting().items():
            for limit, amount in rows.items():
                if limit in self._plan.limits:
                    row = wants.setdefault(limit, {})
                    has = held.get(limit, {}).get(node, 0)
                    row[node] = max(has + amount, row.get(node, 0))
        return held, wants

    def _wanted(
        self, view: NodeView, tenant: str, why: _Why, want: Want
    ) -> Collection[str]:
        """Which limits a refusal may have been about: of its kind, where its record says of which,
        and with its number. Worked out once, for what the node has is another number a moment
        later."""
        reason, kind = why
        known = self._wants.get((view.node, tenant, why))
        if known is not None and known[0] == want:
            return known[1]
        is_capacity = reason == RefusalReason.TENANT_CAPACITY
        found = []
        for key in DIVISIBLE if kind is None else (BY_KIND[kind].key,):
            if (tenant, key) in self._plan.limits and (key in _CAPACITIES) is is_capacity:
                least, most = self._shares.between(view.node, tenant, key)
                might_be = least <= want.limit <= most * OVER_MAX
                if might_be and want.requested <= _room(view, key):
                    found.append(key)
        self._wants[view.node, tenant, why] = want, found
        return found

    def _is_short(
        self,
        limit: Limit,
        held: Mapping[Limit, Mapping[str, int]],
        wants: Mapping[Limit, Mapping[str, int]],
    ) -> bool:
        given = self._given.get(limit, {})
        needs = [*held.get(limit, {}).items(), *wants.get(limit, {}).items()]
        more = any(amount > given.get(node, amount) for node, amount in needs)
        return more or limit in self._short

    def _views(self) -> tuple[dict[str, NodeView], frozenset[str]]:
        """Every node, and those that may have all of anything: with a policy in force that nobody
        here remembers."""
        views = {view.node: view for view in self._fleet().nodes()}
        is_beyond = self._shares.is_beyond
        return views, frozenset(
            node
            for node, view in views.items()
            if is_beyond(view.policy_generation, bytes.fromhex(view.policy_hash), node)
        )

    def _sites(
        self,
        limit: Limit,
        raw: int,
        held: Mapping[str, int],
        wants: Mapping[str, int],
        now_ns: int,
        nodes_seen: tuple[Mapping[str, NodeView], Collection[str]],
    ) -> dict[str, Site]:
        """Every node that counts: who is there, who holds something, who may have something."""
        tenant, key = limit
        views, beyond = nodes_seen
        found = {}
        for node in {*self._present, *held, *self._shares.nodes()}:
            view, has = views.get(node), held.get(node, 0)
            bound = max(has, self._shares.bound(node, tenant, key, now_ns))
            if node in beyond:
                bound = max(bound, raw)
            found[node] = Site(
                held=has,
                wanted=wants.get(node, 0),
                room=2**63 if view is None else _room(view, key),
                bound=bound,
                given=self._given.get(limit, {}).get(node),
            )
        return found

    # -- what is given -----------------------------------------------------------------------------

    def _divide(self, limit: Limit, raw: int, sites: Mapping[str, Site], *, anew: bool) -> None:
        key = limit[1]
        here = {node: sites[node] for node in self._present}
        elsewhere = sum(site.bound for node, site in sites.items() if node not in here)
        floors = {node: floor_of(raw, self._ppb[node], DIVISIBLE[key]) for node in self._present}
        found = None if anew else kept(raw - elsewhere, DIVISIBLE[key], floors, here)
        goals = found or divided(max(0, raw - elsewhere), DIVISIBLE[key], floors, here)
        given = affordable(raw, goals, here, elsewhere)
        self._given[limit] = given
        self._short.discard(limit)
        if given != goals:
            self._short.add(limit)

    def _handout(self, node: str) -> Handout:
        shares: dict[str, dict[str, int]] = {}
        floors: dict[str, dict[str, int]] = {}
        cut: set[str] = set()
        for (tenant, key), raw in self._plan.limits.items():
            share = self._given[tenant, key][node]
            shares.setdefault(tenant, {})[key] = share
            if share < floor_of(raw, self._ppb[node], DIVISIBLE[key]):
                floors.setdefault(tenant, {})[key] = share
            if share < self._held.get((tenant, key), {}).get(node, 0):
                cut.add(tenant)
        parts = {
            tenant: Part(
                self._ppb[node],
                floors.get(tenant, {}),
                amounts,
                self._until_ns,
                self._grace_ns(tenant, is_cut=tenant in cut),
            )
            for tenant, amounts in shares.items()
        }
        return Handout(node, self._ppb[node], self._until_ns, parts)

    def _grace_ns(self, tenant: str, *, is_cut: bool) -> int | None:
        """How long what lies above a share is borne: as long as its tenant was told where it is
        known to be too much, and longer where it may only have been granted meanwhile."""
        told_ns = self._plan.said[tenant].quota.grace_ns
        return told_ns if is_cut else max(SEEN_NS, told_ns or 0)


def _held(view: NodeView, tenants: Collection[str]) -> list[tuple[str, str, int]]:
    """(tenant, dimension, amount) of every lease of these, as the node counts them."""
    found = []
    for lease in list(view.leases.values()):
        tenant = str(lease.subject.tenant)
        if tenant not in tenants or not lease.counts:
            continue
        found += [(tenant, BY_KIND[one.kind].key, one.capacity) for one in lease.subject.allotments]
        found.append((tenant, "max_leases", 1))
        if lease.is_held:
            found.append((tenant, "max_concurrent_tasks", 1))
    return found


def _room(view: NodeView, key: str) -> int:
    kind = BY_KEY[key].kind
    return 2**63 if kind is None else view.totals().get(kind, 0)
