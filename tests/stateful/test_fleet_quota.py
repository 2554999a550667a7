# SPDX-License-Identifier: Apache-2.0
"""A quota of the whole fleet under nodes that come, go, hear late, tell late and hear nothing at
all, changes of it, windows, and a collector that restarts.

Rule: the issuer is the real one over a real register, and a node has in force what the real policy
it took says at its time (`turned`). What all nodes may grant together is at no moment more than the
quota; after it was lowered, at no moment more than had been handed out until then. No node has more
than the collector says it may. Whoever may hear and tell gets what it asks for, if the fleet has
it.

Does not judge requests (`test_policy_model`): a node grants up to what it has in force.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from leased.chain.policy_note import open_policy
from leased.chain.signing import Signer
from leased.collector.fleet import Fleet
from leased.collector.governance.issuer import Issuer
from leased.collector.governance.quotas import Override, Quota, Schedule, Terms
from leased.collector.governance.register import Register
from leased.collector.live_lease import LiveLease
from leased.collector.node_view import NodeView, Want
from leased.service.policy.windows import open_windows
from leased.terms.identity import TenantId
from leased.terms.moment import Moment
from leased.terms.policy import Policy, digest
from leased.terms.policy_turn import turned
from leased.terms.quantity import parse_instant
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind
from tests.doubles.economics_history import boot, subject
from tests.doubles.fleet_archive import gpus

S = 1_000_000_000
GPU = 1000
TENANT = "acme"
REFUSED = int(RefusalReason.TENANT_CAPACITY)
VALID_NS = 900 * S
BEGIN_NS = parse_instant("2026-03-28T20:00:00Z")
"""The night in which clocks go forward in Berlin."""


class Node:
    """One node: what it has in force, what is held on it, and what of that the collector has."""

    def __init__(self, number: int) -> None:
        self.id = f"{number:032x}"
        self.policy = Policy()
        self.generation = 0
        self.held = 0
        self.parted = False
        self.view = NodeView(self.id)
        self.view.node = self.view.name = self.id
        self.view.policy_hash = bytes(32).hex()
        self.view._totals = {ResourceKind.GPU: 64 * GPU}

    def limit(self, now_ns: int) -> int | None:
        """What the tenant may have here; None: nobody says."""
        expires_ns = self.policy.expires_wall_ns
        if expires_ns is not None and expires_ns <= now_ns:
            return None
        now = turned(
            self.policy, wall_ns=now_ns, windows=open_windows(self.policy, now_ns), host=self.id
        )
        rows = dict(now.tenants).get(TenantId(TENANT), now.tenant_default).capacities
        return rows[0].capacity if rows else None

    def tell(self) -> None:
        """Its records are pulled and verified."""
        view = self.view
        view.policy_generation = self.generation
        view.policy_hash = digest(self.policy).hex()
        view.leases = {
            f"{number}": LiveLease(
                f"{number}", subject(gpus(1), tenant=TENANT), "granted", 0, 0, 1, 0, 0
            )
            for number in range(self.held)
        }

    def refuse(self, now_ns: int, limit: int, usage: int, requested: int) -> None:
        """A request, and the record of it is pulled."""
        self.view.moment = Moment(boot(1), now_ns, now_ns)
        want = Want(now_ns, limit, usage, requested, now_ns)
        self.view.wants[TENANT, REFUSED, ResourceKind.GPU] = want


class FleetQuota(RuleBasedStateMachine):
    """Steps."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="leased-quota-"))
        self.now_ns = BEGIN_NS
        self.nodes: list[Node] = []
        self.fleet = Fleet()
        self.register = Register(self.directory)
        self.register.connection.execute("PRAGMA synchronous = OFF")
        self.numbers = itertools.count(1)
        self.most = 0
        self.issuer: Issuer

    def teardown(self) -> None:
        self.register.close()
        shutil.rmtree(self.directory)

    @initialize(
        quota=st.integers(0, 20),
        night=st.none() | st.integers(0, 30),
        count=st.integers(1, 5),
    )
    def begin(self, quota: int, night: int | None, count: int) -> None:
        if night is not None:
            schedule = Schedule(
                "0" * 32,
                TENANT,
                "0 22 * * *",
                "Europe/Berlin",
                6 * 3600 * S,
                {"gpus": night * GPU},
                0,
                "a",
            )
            with self.register.transaction():
                self.register.add_schedule(schedule)
        self._say(quota)
        self.restart()
        for _ in range(count):
            self.join()

    def _say(self, quota: int) -> None:
        with self.register.transaction():
            self.register.put_quota(Quota(TENANT, {"gpus": quota * GPU}, Terms()))

    # -- what happens ------------------------------------------------------------------------------

    @rule()
    def restart(self) -> None:
        """The collector restarts, and knows what its register does."""
        self.issuer = Issuer(
            register=self.register,
            signer=Signer(bytes(31) + b"\1"),
            key_name="fleet/policy",
            fleet="fleet",
            ground=Policy,
            valid_ns=24 * 3600 * S,
            share_valid_ns=VALID_NS,
            seen=lambda: self.fleet,
            wall_ns=lambda: self.now_ns,
        )

    @precondition(lambda self: len(self.nodes) < 7)
    @rule()
    def join(self) -> None:
        node = Node(len(self.nodes) + 1)
        self.nodes.append(node)
        self.fleet.logs[node.id] = node.view
        self.issuer.come(node.id)

    @rule(quota=st.integers(0, 20))
    def change(self, quota: int) -> None:
        self._say(quota)
        self.issuer.look_again()

    @rule(quota=st.integers(0, 30), minutes=st.integers(1, 40))
    def override(self, quota: int, minutes: int) -> None:
        override = Override(
            f"{next(self.numbers):032x}",
            TENANT,
            {"gpus": quota * GPU},
            "why",
            self.now_ns,
            self.now_ns + minutes * 60 * S,
            "a",
        )
        with self.register.transaction():
            self.register.add_override(override)
        self.issuer.look_again()

    @rule(seconds=st.sampled_from((1, 30, 61, 300, 1000, 3600)))
    def wait(self, seconds: int) -> None:
        """Time goes by; whoever hears, asks."""
        for _ in range(min(seconds, 20)):
            self.now_ns += seconds * S // min(seconds, 20)
            for node in self.nodes:
                if not node.parted:
                    self.issuer.come(node.id)
            self.issuer.turn()
            self.whole()

    @rule(at=st.integers(0, 6), parted=st.booleans())
    def part(self, at: int, parted: bool) -> None:
        self.nodes[at % len(self.nodes)].parted = parted

    @rule(at=st.integers(0, 6))
    def hear(self, at: int) -> None:
        """A node is handed what it gets now."""
        node = self.nodes[at % len(self.nodes)]
        if node.parted:
            return
        self.issuer.come(node.id)
        self.issuer.turn()
        self._take(node)

    @rule(quota=st.integers(0, 20), at=st.integers(0, 6), tells=st.booleans())
    def hear_between(self, quota: int, at: int, tells: bool) -> None:
        """A limit is changed; while the nodes' policies are made one of them is handed what it may
        have still, or nothing, and tells."""
        node = self.nodes[at % len(self.nodes)]
        if node.parted:
            return
        self._say(quota)
        self.issuer.look_again()
        self.issuer.come(node.id)
        for _ in self.issuer.turning():
            if self.issuer.of(node.id) is not None:
                self._take(node)
            if tells:
                node.tell()
        self._take(node)

    def _take(self, node: Node) -> None:
        issued = self.issuer.of(node.id)
        assert issued is not None
        grant, policy = open_policy(issued.note, issued.document, self.issuer.key, "fleet", node.id)
        assert grant.generation >= node.generation
        node.policy, node.generation = policy, grant.generation

    @rule(at=st.integers(0, 6))
    def tell(self, at: int) -> None:
        """A node's records come in."""
        node = self.nodes[at % len(self.nodes)]
        if not node.parted:
            node.tell()
            self.issuer.turn()

    @rule(at=st.integers(0, 6), count=st.integers(1, 12), queued=st.booleans())
    def ask(self, at: int, count: int, queued: bool) -> None:
        """Somebody wants so many; refused, the record says so, and who waits in the node's queue is
        told with its next question."""
        node = self.nodes[at % len(self.nodes)]
        limit = node.limit(self.now_ns)
        if limit is None:
            return
        if (node.held + count) * GPU <= limit:
            node.held += count
        elif queued:
            if not node.parted:
                self.issuer.note_waiting(node.id, {(TENANT, "gpus"): count * GPU})
        else:
            node.refuse(self.now_ns, limit, node.held * GPU, count * GPU)

    @rule(at=st.integers(0, 6), count=st.integers(1, 12))
    def release(self, at: int, count: int) -> None:
        node = self.nodes[at % len(self.nodes)]
        node.held = max(0, node.held - count)

    @rule(at=st.integers(0, 6), queued=st.booleans())
    def settle(self, at: int, queued: bool) -> None:
        """Everybody hears and tells, twice, with nobody holding anything: one node asks for all
        there is, or has somebody wait for it, and has it."""
        for node in self.nodes:
            node.parted, node.held = False, 0
            node.view.wants.clear()
            self.issuer.note_waiting(node.id, {})
        wanted = self.nodes[at % len(self.nodes)]
        self._hear_all()
        limit = self._quota_now()
        most = min(limit, 64 * GPU)
        if not most:
            return
        has = wanted.limit(self.now_ns)
        assert has is not None
        if has < most and queued:
            self.issuer.note_waiting(wanted.id, {(TENANT, "gpus"): most})
        elif has < most:
            wanted.refuse(self.now_ns, has, 0, most)
        self._hear_all()
        self._hear_all()
        has = wanted.limit(self.now_ns)
        floors = sum(one.floor for one in self.issuer.divided(TENANT)[1] if one.node != wanted.id)
        assert has is not None and has >= most - floors, (has, most, floors)

    def _hear_all(self) -> None:
        for node in self.nodes:
            self.issuer.come(node.id)
        self.issuer.turn()
        for node in self.nodes:
            self._take(node)
            node.tell()
        self.whole()

    # -- what must hold ----------------------------------------------------------------------------

    def _quota_now(self) -> int:
        return self.issuer._plan.limits.get((TENANT, "gpus"), 0)

    @invariant()
    def whole(self) -> None:
        """The sum of what nodes may grant is not above the quota."""
        if not hasattr(self, "issuer"):
            return
        self.issuer.turn()
        has = {node.id: node.limit(self.now_ns) or 0 for node in self.nodes}
        assert sum(has.values()) <= max(self._quota_now(), self.most), has
        bounds = {one.node: one.bound for one in self.issuer.divided(TENANT)[1]}
        if bounds:
            assert all(has[node] <= bounds.get(node, 0) for node in has), (has, bounds)
        self.most = sum(bounds.values())


FleetQuota.TestCase.settings = settings(
    max_examples=int(os.environ.get("LEASED_EXAMPLES", "25")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestFleetQuota = FleetQuota.TestCase
