# SPDX-License-Identifier: Apache-2.0
"""The lessor against a model that keeps leases in dictionaries and recomputes everything.

Rule: the model is written from the glossary and DESIGN sections 5 and 10, not from the lessor: it
has no heap, no counters, no lifecycle table. After every command both must agree on the state, the
deadline and the generation of every lease, on who waits, and on every column of every resource; and
what a closing record says a tenant held must be what the model saw. So must what a collector makes
of the records.

Does not check placement (any node with room is right) or the texts of refusals.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leased.collector.node_view import NodeView
from leased.lessor.queue import LOOK_AGAIN_NS
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Caller
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, TenantLimits
from leased.terms.reply import Changed, Granted, Inventoried, Listed, Refusal, RefusalReason
from leased.terms.resource import Allotment, ResourceKind, Shape, TierKind
from tests.doubles.desk import ACME, BETA, OPERATOR, PAGE, Desk, ask_mem, mem
from tests.doubles.notebook import ACME_LEASES_MAX, LIVE, NODE_LEASES_MAX, NODES, Model

CHECKPOINT_NS_MAX = 300 * NS_PER_S
PHASE_OF_STEP = {"revoking": "cut", "scrubbing": "scrub", "verifying": "prove"}

pick = st.integers(0, 10**6)
rarely = st.sampled_from([False, False, False, True])
pages = st.integers(1, 6) | st.integers(1, 14)
seconds = st.sampled_from([1, 5, 10, 15, 20, 40])
callers = st.sampled_from([ACME, BETA])


def id_of(node: int) -> str:
    """The resource of a node."""
    return f"mem:node{node}:4096"


def way_to(node: int) -> str:
    """The other resource that takes from the same node."""
    return f"mem:budget:node{node}:4096"


class LessorMachine(RuleBasedStateMachine):
    """Drives both."""

    @initialize()
    def begin(self) -> None:
        policy = Policy(
            leases_max=NODE_LEASES_MAX,
            tenants=((ACME.tenant, TenantLimits(leases_max=ACME_LEASES_MAX)),),
        )
        nodes = [mem(node, count) for node, count in NODES.items()]
        ways = [msgspec.structs.replace(one, resource_id=way_to(one.node)) for one in nodes]
        self.desk = Desk(*ways, *nodes, policy=policy)
        self.model = Model()
        self.requests: list[commands.Acquire] = []
        self.boots = 1
        self.view = NodeView("log")

    # ---- both sides of a request -----------------------------------------------------------------

    def note_grant(self, request: dict[str, Any], reply: object) -> None:
        """The lessor granted: the model checks that it might, and writes it down."""
        assert isinstance(reply, Granted), reply
        lease = reply.lease
        [share] = lease.subject.allotments
        names = way_to if request["shape"] is Shape.BUDGET else id_of
        node = next(n for n in NODES if names(n) == share.resource_id)
        assert request["node"] in (None, node) and not self.model.cordoned[node]
        assert self.model.free(node) >= request["pages"]
        assert share.capacity == request["pages"] * PAGE
        assert lease.lease_id not in self.model.leases
        self.model.leases[lease.lease_id] = {
            "id": lease.lease_id,
            "tenant": request["caller"].tenant,
            "caller": request["caller"],
            "node": node,
            "resource_id": share.resource_id,
            "pages": request["pages"],
            "state": "granted",
            "granted_ns": self.desk.now_ns,
            "deadline_ns": self.desk.now_ns + request["ttl_ns"],
            "ttl_ns": request["ttl_ns"],
            "drain_ns": None,
            "told_ns": None,
            "final": False,
            "generation": 0,
            "ended": None,
            "paid_until_ns": None,
            "fenced_pages": 0,
            "boot": self.desk.boot_id,
            "cut": False,
            "armed": False,
            "never_armed": False,
        }

    def serve(self) -> None:
        """Whoever waits is looked at in order, as after everything that may free something."""
        ahead: list[tuple[str, Any]] = []
        for request in list(self.model.waiting):
            answer = self.desk.answers.get(request["id"])
            if request["until_ns"] <= self.desk.now_ns:
                assert isinstance(answer, Refusal), "its wait is over"
                self.model.waiting.remove(request)
                continue
            verdict = self.model.verdict(request, ahead)
            if verdict == "grant" and answer is None and self.is_looked_at_soon():
                continue
            if verdict == "grant":
                self.model.waiting.remove(request)
                self.note_grant(request, answer)
            else:
                assert answer is None, (verdict, answer)
                ahead += self.model.bars(request, verdict)

    def is_looked_at_soon(self) -> bool:
        """Who got more may keep no room any more, by its limits: that is seen within a second."""
        look_ns = self.desk.lessor.queue.look_ns
        return look_ns is not None and look_ns > self.desk.now_ns

    def ahead(self) -> list[tuple[str, Any]]:
        """What everybody who waits keeps from a newcomer."""
        ahead: list[tuple[str, Any]] = []
        for request in self.model.waiting:
            ahead += self.model.bars(request, self.model.verdict(request, ahead))
        return ahead

    def some(self, index: int, *states: str) -> dict[str, Any] | None:
        """One of the leases in `states`."""
        leases = [lease for lease in self.model.leases.values() if lease["state"] in states]
        return leases[index % len(leases)] if leases else None

    # ---- clients ---------------------------------------------------------------------------------

    @rule(
        caller=callers,
        count=pages,
        node=st.sampled_from([None, 0, 1]),
        shape=st.sampled_from([None, Shape.BUDGET]),
        ttl=seconds,
        wait=st.sampled_from([0, 0, 15, 60]),
        active=st.booleans(),
    )
    def acquire(
        self,
        caller: Caller,
        count: int,
        node: int | None,
        shape: Shape | None,
        ttl: int,
        wait: int,
        active: bool,
    ) -> None:
        ask = msgspec.structs.replace(ask_mem(count, node=node), shape=shape)
        acquire = self.desk.acquire(ask, caller=caller, ttl=ttl, wait=wait)
        self.requests.append(acquire)
        request = {
            "id": acquire.command_id,
            "caller": caller,
            "pages": count,
            "node": node,
            "shape": shape,
            "ttl_ns": ttl * NS_PER_S,
            "until_ns": self.desk.now_ns + wait * NS_PER_S,
        }
        verdict, old = self.model.verdict(request, self.ahead()), self.is_looked_at_soon()
        reply = self.desk.say(acquire)
        if old and verdict == "grant" and not isinstance(reply, Granted):
            verdict = "room"
        if verdict == "grant":
            self.note_grant(request, reply)
            if active:
                assert isinstance(reply, Granted)
                self.desk.activate(reply.lease)
                self.model.leases[reply.lease.lease_id] |= {"state": "active", "armed": True}
        elif verdict == "never" or wait == 0:
            assert isinstance(reply, Refusal), (verdict, reply)
        else:
            assert reply is None, (verdict, reply)
            self.model.waiting.append(request)

    @precondition(lambda self: self.requests)
    @rule(index=pick, other=st.sampled_from([{}, {}, {"workload": "x"}, {"asks": ()}]))
    def repeat_a_request(self, index: int, other: dict[str, Any]) -> None:
        first = self.requests[index % len(self.requests)]
        acquire = msgspec.structs.replace(first, **other)
        known = self.desk.table.requests.get((acquire.caller.uid, acquire.command_id))
        waits = any(request["id"] == acquire.command_id for request in self.model.waiting)
        if known is None and not waits:
            return
        sealed = len(self.desk.history)
        reply = self.desk.lessor.propose(acquire, self.desk.moment).answers
        assert len(self.desk.history) == sealed
        if other:
            [(_, refusal)] = reply
            assert isinstance(refusal, Refusal)
            assert refusal.reason is RefusalReason.COMMAND_ID_USED
        elif waits:
            assert reply == ()
        else:
            [(_, granted)] = reply
            if self.model.leases[known]["never_armed"]:
                assert isinstance(granted, Refusal)
                return
            assert isinstance(granted, Granted) and granted.attached
            assert granted.lease.lease_id == known

    @rule(index=pick)
    def activate(self, index: int) -> None:
        lease = self.some(index, "granted")
        if lease is None:
            return
        late = self.desk.now_ns >= self.model.end_of(lease)
        reply = self.desk.say(commands.Activate(self.desk.command_id(), lease["id"], b"e" * 32))
        if late:
            assert isinstance(reply, Refusal)
            self.model.end(lease, self.desk.now_ns, "expired")
            self.serve()
        else:
            lease |= {"state": "active", "armed": True}

    @rule(index=pick, ttl=st.none() | seconds)
    def renew(self, index: int, ttl: int | None) -> None:
        lease = self.some(index, *LIVE, "revoking", "closed")
        if lease is None:
            return
        in_time = self.desk.now_ns < self.model.end_of(lease)
        reply = self.desk.say(
            commands.Renew(
                self.desk.command_id(),
                lease["caller"],
                lease["id"],
                None if ttl is None else ttl * NS_PER_S,
            )
        )
        if lease["state"] == "active" and in_time:
            assert isinstance(reply, Changed)
            lease["ttl_ns"] = lease["ttl_ns"] if ttl is None else ttl * NS_PER_S
            lease["deadline_ns"] = self.desk.now_ns + lease["ttl_ns"]
            lease["generation"] += 1
        else:
            assert isinstance(reply, Refusal), "late, draining or not active: it loses"

    @rule(index=pick, needed=st.sampled_from([1, 10, 60, 299, 300]))
    def ask_for_time(self, index: int, needed: int) -> None:
        lease = self.some(index, *LIVE, "revoking")
        if lease is None:
            return
        now_ns, until_ns = self.desk.now_ns, self.desk.now_ns + needed * NS_PER_S
        in_time = now_ns < self.model.end_of(lease)
        command_id = self.desk.command_id()
        reply = self.desk.say(
            commands.Extend(command_id, lease["caller"], lease["id"], needed * NS_PER_S)
        )
        if lease["state"] != "draining" or not in_time:
            assert isinstance(reply, Refusal)
        elif until_ns <= self.model.end_of(lease):
            assert isinstance(reply, Changed), "it has that time anyway"
        elif lease["final"] or until_ns > lease["told_ns"] + CHECKPOINT_NS_MAX:
            assert isinstance(reply, Refusal)
        else:
            assert isinstance(reply, Changed)
            lease["drain_ns"] = until_ns
            lease["deadline_ns"] = max(lease["deadline_ns"], until_ns)
            lease["generation"] += 1

    @rule(index=pick)
    def release(self, index: int) -> None:
        lease = self.some(index, *LIVE)
        if lease is None:
            return
        self.desk.say(commands.Release(self.desk.command_id(), lease["caller"], lease["id"]))
        self.model.end(lease, self.desk.now_ns, "released")
        self.serve()

    @precondition(lambda self: self.model.waiting)
    @rule(index=pick)
    def give_up(self, index: int) -> None:
        request = self.model.waiting.pop(index % len(self.model.waiting))
        self.desk.say(commands.CancelWait(self.desk.command_id(), request["id"]))
        assert request["id"] not in self.desk.answers
        self.serve()

    # ---- time ------------------------------------------------------------------------------------

    @rule(duration=seconds, look=st.booleans())
    def sleep(self, duration: int, look: bool) -> None:
        self.desk.sleep(duration)
        if look:
            self.desk.tick()
            for lease in self.model.leases.values():
                if lease["state"] in LIVE and self.model.end_of(lease) <= self.desk.now_ns:
                    self.model.end(lease, self.desk.now_ns, "expired")
            self.serve()

    # ---- operators and the world -----------------------------------------------------------------

    @rule(index=pick, grace=st.sampled_from([0, 5, 20]))
    def revoke(self, index: int, grace: int) -> None:
        lease = self.some(index, *LIVE)
        if lease is None:
            return
        self.desk.say(
            commands.Revoke(
                self.desk.command_id(), OPERATOR, lease["id"], grace_ns=grace * NS_PER_S
            )
        )
        self.tell(lease, grace, final=True)
        self.serve()

    def tell(self, lease: dict[str, Any], grace: int | None, *, final: bool = False) -> None:
        """A live lease is told to leave; `final`: that is not put off."""
        now_ns = self.desk.now_ns
        until = lease["deadline_ns"]
        if grace is not None:
            until = min(until, now_ns + grace * NS_PER_S)
        if grace == 0:
            self.model.end(lease, now_ns, "revoked")
        elif lease["drain_ns"] is not None and until >= self.model.end_of(lease):
            return
        elif now_ns >= self.model.end_of(lease):
            self.model.end(lease, now_ns, "expired")
        else:
            lease["drain_ns"] = until
            lease["generation"] += 1
            lease["state"] = "draining"
            lease["told_ns"] = lease["told_ns"] or now_ns
            lease["final"] = final

    @rule(node=st.sampled_from([0, 1]), grace=st.sampled_from([None, 0, 10]))
    def drain(self, node: int, grace: int | None) -> None:
        grace_ns = None if grace is None else grace * NS_PER_S
        order = commands.Drain(self.desk.command_id(), OPERATOR, id_of(node), grace_ns)
        self.desk.say(order)
        self.model.cordoned[node] = True
        for lease in self.model.leases.values():
            if lease["node"] == node and lease["state"] in LIVE:
                self.tell(lease, grace)
        self.serve()

    @rule(node=st.sampled_from([0, 1]))
    def resume(self, node: int) -> None:
        self.desk.say(commands.Resume(self.desk.command_id(), OPERATOR, id_of(node)))
        self.model.cordoned[node] = False
        self.serve()

    @rule(node=st.sampled_from([0, 1]), count=pages)
    def fence(self, node: int, count: int) -> None:
        order = commands.Fence(self.desk.command_id(), OPERATOR, id_of(node), count * PAGE)
        reply = self.desk.say(order)
        if count <= self.model.free(node):
            self.model.fenced_by_operator[node] += count
        else:
            assert isinstance(reply, Refusal)
        self.serve()

    @rule(node=st.sampled_from([0, 1]))
    def unfence(self, node: int) -> None:
        self.desk.say(commands.Unfence(self.desk.command_id(), OPERATOR, None, id_of(node)))
        self.model.fenced_by_operator[node] = 0
        self.serve()

    @rule(index=pick)
    def holder_gone(self, index: int) -> None:
        lease = self.some(index, *LIVE)
        if lease is None:
            return
        self.desk.say(commands.HolderGone(self.desk.command_id(), lease["id"]))
        self.model.end(lease, self.desk.now_ns, "revoked")
        self.serve()

    # ---- teardown --------------------------------------------------------------------------------

    @rule(index=pick)
    def the_reaper_cuts_first(self, index: int) -> None:
        lease = self.some(index, *LIVE)
        if lease is None:
            return
        self.desk.cut(self.desk.table.leases[lease["id"]], by_reaper=True)
        self.model.end(lease, self.desk.now_ns, "revoked")
        lease.update(state="scrubbing", cut=True)
        self.serve()

    @rule(index=pick, unproven=st.none() | pages)
    def next_step_of_a_teardown(self, index: int, unproven: int | None) -> None:
        lease = self.some(index, *PHASE_OF_STEP)
        if lease is None:
            return
        real = self.desk.table.leases[lease["id"]]
        step = PHASE_OF_STEP[lease["state"]]
        if step == "cut":
            self.desk.cut(real)
            lease.update(state="scrubbing", cut=True)
        elif step == "scrub":
            self.desk.scrub(real)
            lease["state"] = "verifying"
        elif unproven is None:
            closing = self.desk.prove(real).events[0]
            assert isinstance(closing, events.Reclaimed)
            held_ns = lease["paid_until_ns"] - lease["granted_ns"]
            assert closing.held_capacity_ns == (lease["pages"] * PAGE * held_ns,)
            lease["state"] = "closed"
        else:
            count = min(unproven, lease["pages"])
            share = Allotment(lease["resource_id"], ResourceKind.MEM, TierKind.DRAM, count * PAGE)
            self.desk.prove(real, share)
            lease.update(state="fenced", fenced_pages=count)
        self.serve()

    @rule(index=pick)
    def a_step_fails(self, index: int) -> None:
        lease = self.some(index, *PHASE_OF_STEP)
        if lease is None:
            return
        self.desk.cut_failed(self.desk.table.leases[lease["id"]])
        lease.update(state="fenced", fenced_pages=lease["pages"])
        self.serve()

    @rule(index=pick)
    def unfence_a_lease(self, index: int) -> None:
        lease = self.some(index, "fenced")
        if lease is None:
            return
        reply = self.desk.say(commands.Unfence(self.desk.command_id(), OPERATOR, lease["id"]))
        if lease["cut"] or lease["boot"] != self.desk.boot_id:
            lease["state"] = "closed"
        else:
            assert isinstance(reply, Refusal), "the tenant may still have access"
        self.serve()

    @rule(index=pick)
    def a_fenced_lease_is_proven_after_all(self, index: int) -> None:
        lease = self.some(index, "fenced")
        if lease is None:
            return
        self.desk.prove(self.desk.table.leases[lease["id"]])
        lease["state"] = "closed"
        self.serve()

    # ---- restarts --------------------------------------------------------------------------------

    @rule(known=st.integers(0, 2**8 - 1), really=rarely)
    def restart(self, known: int, really: bool) -> None:
        if not really:
            return
        live = [lease for lease in self.model.leases.values() if lease["state"] in LIVE]
        held = [lease["id"] for n, lease in enumerate(live) if known >> (n % 8) & 1]
        self.desk.restart(known=held)
        for lease in live:
            if lease["id"] not in held:
                if not lease["armed"]:  # never armed, so nobody has ever had it
                    paid_until_ns = min(self.desk.now_ns, self.model.end_of(lease))
                    lease |= {"never_armed": True, "paid_until_ns": paid_until_ns}
                    lease |= {"ended": "revoked", "state": "revoking"}
                else:
                    self.model.end(lease, self.desk.now_ns, "revoked")
            elif lease["state"] == "granted":
                lease |= {"state": "active", "armed": True}
            else:
                lease["armed"] = True
        self.model.waiting.clear()

    @rule(really=rarely)
    def reboot(self, really: bool) -> None:
        if not really:
            return
        last_ns = self.desk.history[-1][1].boot_ns
        self.boots += 1
        self.desk.restart(boot_number=self.boots)
        for lease in self.model.leases.values():
            if lease["state"] in LIVE:
                lease["paid_until_ns"] = min(last_ns, self.model.end_of(lease))
                lease.update(ended="revoked", state="revoking")
        self.model.waiting.clear()

    # ---- agreement -------------------------------------------------------------------------------

    @invariant()
    def leases_agree(self) -> None:
        if not hasattr(self, "desk"):
            return
        for lease_id, expected in self.model.leases.items():
            real = self.desk.table.find(lease_id)
            if real is None:
                assert expected["state"] == "closed", (
                    "only what closed before a restart is forgotten"
                )
                continue
            state = {"RECLAIMED": "closed"}.get(real.state.name, real.state.name.lower())
            assert state == expected["state"]
            ended = None if real.ended is None else real.ended.name.lower()
            assert ended == expected["ended"]
            if expected["state"] in LIVE:
                assert real.deadline_ns == expected["deadline_ns"]
                assert real.generation == expected["generation"]
                assert real.drain_deadline_ns == expected["drain_ns"]
        assert len(self.desk.table.leases) == len(self.model.open())

    @invariant()
    def resources_agree(self) -> None:
        if not hasattr(self, "desk"):
            return
        reply = self.desk.say(commands.ListResources(self.desk.command_id(), OPERATOR))
        assert isinstance(reply, Inventoried)
        shown = [*zip(NODES, reply.use[:2], strict=True), *zip(NODES, reply.use[2:], strict=True)]
        assert {use.resource_id for use in reply.use} == {
            name for node in NODES for name in (id_of(node), way_to(node))
        }
        for node, use in shown:
            assert use.free == self.model.free(node) * PAGE >= 0
            for column in ("leased", "teardown", "fenced"):
                assert getattr(use, column) == self.model.column(node, column) * PAGE
            assert use.cordoned == self.model.cordoned[node]

    @invariant()
    def who_reads_the_records_agrees(self) -> None:
        """What a collector makes of them is what the node counts: quota, and what is not free."""
        if not hasattr(self, "desk"):
            return
        view, table = self.view, self.desk.table
        for sequence in range(view.next_seq, len(self.desk.history)):
            view.apply(sequence, *self.desk.history[sequence])
        for tenant in (ACME.tenant, BETA.tenant):
            account = table.accounts.get(tenant)
            mine = [one for one in view.leases.values() if one.subject.tenant == tenant]
            counted = [one for one in mine if one.counts]
            if account is None:
                assert not mine
                continue
            used = account.used(int(ResourceKind.MEM), -1, -1)
            assert view.held(tenant).get(ResourceKind.MEM, 0) == used
            assert len(counted) == account.occupied
            assert sum(one.is_held for one in counted) == account.leases
        columns = ("leased", "teardown", "fenced")
        gone = sum(self.model.column(node, column) for node in NODES for column in columns)
        assert view.held().get(ResourceKind.MEM, 0) == gone * PAGE

    @invariant()
    def the_queue_agrees(self) -> None:
        if not hasattr(self, "desk"):
            return
        reply = self.desk.say(commands.ListLeases(self.desk.command_id(), OPERATOR))
        assert isinstance(reply, Listed)
        assert [one[0] for one in reply.waiting] == [one["id"] for one in self.model.waiting]

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        if not hasattr(self, "desk"):
            return
        ends = [
            self.model.end_of(lease)
            for lease in self.model.leases.values()
            if lease["state"] in LIVE
        ]
        ends += [request["until_ns"] for request in self.model.waiting]
        look_ns = self.desk.lessor.queue.look_ns
        if look_ns is not None:  # the queue is looked through once more, and soon
            assert self.model.waiting and look_ns <= self.desk.now_ns + LOOK_AGAIN_NS
            ends.append(look_ns)
        assert self.desk.lessor.next_deadline_ns() == min(ends, default=None)


LessorMachine.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestLessorAgainstItsModel = LessorMachine.TestCase
