# SPDX-License-Identifier: Apache-2.0
"""A stage: plays a scenario file on a real lessor, step by step, and holds it to what it says.

Rule: a file names leases, never ids; time moves only by its steps, and whatever falls due meanwhile
happens in between, at its own instant. What a file does not know is refused, so that a misspelled
expectation cannot pass. After every step all invariants hold, and nobody is above a hard limit.

Teardowns are clean and at once, unless a file says `teardown = "manual"`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leased.lessor.quota import account_of
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState, Level
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Mode
from leased.terms.policy_text import read_policy
from leased.terms.quantity import parse_duration
from leased.terms.reply import Changed, Granted, Refusal, Reply
from leased.terms.resource import Ask, Resource, ResourceKind
from tests.doubles.desk import OPERATOR, PAGE, Desk, boot, cores, mem, tenant

TENANTS = ("acme", "beta", "carl", "dora")
LEAVING = (LeaseState.REVOKING, LeaseState.SCRUBBING, LeaseState.VERIFYING)


def gpus(count: int) -> tuple[Resource, ...]:
    """So many GPUs, two on a NUMA node."""
    return tuple(
        Resource(f"gpu:{n}", ResourceKind.GPU, None, 1000, 1000, n // 2) for n in range(count)
    )


class Stage:
    """One scenario on one node."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        node = scenario.get("node", {})
        resources = (
            *(mem(index, pages) for index, pages in enumerate(node.get("mem_pages", []))),
            *gpus(node.get("gpus", 0)),
            *cores(node.get("cores", 0)),
        )
        document = {"tenant_default": {"level_max": "critical"}, **scenario.get("policy", {})}
        self.desk = Desk(*resources, policy=read_policy(document))
        self.manual = scenario.get("teardown") == "manual"
        self.requests: dict[str, commands.Acquire] = {}
        self.leases: dict[str, LeaseId] = {}
        self.seen = 0
        self.answer: Reply | None = None
        self.happened: list[str] = []

    def play(self, step: Mapping[str, Any]) -> None:
        """One step, and what it says must be so then."""
        rest = dict(step)
        act = getattr(self, "_" + rest.pop("do").replace("-", "_"))
        expected = {key[7:]: rest.pop(key) for key in list(rest) if key.startswith("expect_")}
        events_before = len(self.desk.history)
        act(rest)
        assert not rest, f"unknown: {rest}"
        self._settle()
        self.happened = [type(event).__name__ for event, _ in self.desk.history[events_before:]]
        self._hold_limits()
        for what, value in expected.items():
            getattr(self, "_expect_" + what)(value)

    # ---- what can happen -------------------------------------------------------------------------

    def _acquire(self, rest: dict[str, Any]) -> None:
        """A request; `name` is its lease's from then on."""
        name, who = rest.pop("name"), rest.pop("tenant", "acme")
        asks = []
        if "gpu" in rest:
            asks.append(Ask(ResourceKind.GPU, 1000 * rest.pop("gpu")))
        if "pages" in rest:
            asks.append(
                Ask(ResourceKind.MEM, PAGE * rest.pop("pages"), node=rest.pop("node", None))
            )
        if "cpu" in rest:
            asks.append(Ask(ResourceKind.CPU, 1000 * rest.pop("cpu")))
        again = self.requests.get(name) if rest.pop("again", False) else None
        requeue = rest.pop("requeue", None)
        level = Level[rest.pop("level", "normal").upper()]
        acquire = self.desk.acquire(
            *asks,
            caller=tenant(who, 1000 + TENANTS.index(who)),
            ttl=parse_duration(rest.pop("ttl", "10min")) / NS_PER_S,
            wait=parse_duration(rest.pop("wait", "0s")) / NS_PER_S,
            level=level,
            requeue_of=None if requeue is None else self.leases[requeue],
            grace=parse_duration(rest.pop("grace", "30s")) / NS_PER_S,
        )
        if again is not None:
            acquire = again
        self.requests[name] = acquire
        self.answer = self.desk.say(acquire)

    def _renew(self, rest: dict[str, Any]) -> None:
        lease = self.lease(rest.pop("name"))
        ttl = rest.pop("ttl", None)
        ttl_ns = None if ttl is None else parse_duration(ttl)
        caller = self._owner(lease)
        command_id = self.desk.command_id()
        self.answer = self.desk.say(commands.Renew(command_id, caller, lease.lease_id, ttl_ns))

    def _extend(self, rest: dict[str, Any]) -> None:
        """The holder asks for its notice to end so long from now."""
        lease, needed_ns = self.lease(rest.pop("name")), parse_duration(rest.pop("needed"))
        command_id = self.desk.command_id()
        order = commands.Extend(command_id, self._owner(lease), lease.lease_id, needed_ns)
        self.answer = self.desk.say(order)

    def _release(self, rest: dict[str, Any]) -> None:
        lease = self.lease(rest.pop("name"))
        self.answer = self.desk.release(lease, self._owner(lease))

    def _cancel(self, rest: dict[str, Any]) -> None:
        waiting_id = self.requests[rest.pop("name")].command_id
        self.answer = self.desk.say(commands.CancelWait(self.desk.command_id(), waiting_id))

    def _revoke(self, rest: dict[str, Any]) -> None:
        lease, grace_ns = self.lease(rest.pop("name")), parse_duration(rest.pop("grace", "0s"))
        order = commands.Revoke(self.desk.command_id(), OPERATOR, lease.lease_id, grace_ns=grace_ns)
        self.answer = self.desk.say(order)

    def _sleep(self, rest: dict[str, Any]) -> None:
        """Time passes; what falls due happens when it does."""
        desk = self.desk
        end_ns = desk.now_ns + parse_duration(rest.pop("for"))
        while True:
            due_ns = desk.lessor.next_deadline_ns()
            if due_ns is None or due_ns > end_ns:
                break
            desk.now_ns = max(desk.now_ns, due_ns)
            desk.tick()
            self._settle()
        desk.now_ns = end_ns
        desk.tick()

    def _policy(self, rest: dict[str, Any]) -> None:
        """Another document takes force."""
        document = {"tenant_default": {"level_max": "critical"}, **rest.pop("document")}
        order = commands.SetPolicy(
            self.desk.command_id(), OPERATOR, read_policy(document), b"q" * 32, b"r" * 32
        )
        self.answer = self.desk.say(order)
        self.desk.policy = self.desk.lessor.policy

    def _reclaim(self, rest: dict[str, Any]) -> None:
        """The proof of a lease, where teardowns are manual."""
        self.desk.reclaim(self.lease(rest.pop("name")))

    def _fence(self, rest: dict[str, Any]) -> None:
        """The proof of a lease fails for all it had."""
        lease = self.lease(rest.pop("name"))
        self.desk.cut(lease)
        self.desk.scrub(lease)
        self.desk.prove(lease, *lease.subject.allotments)

    def _unfence(self, rest: dict[str, Any]) -> None:
        """An operator puts what a lease left fenced back."""
        lease = self.lease(rest.pop("name"))
        order = commands.Unfence(self.desk.command_id(), OPERATOR, lease.lease_id)
        self.answer = self.desk.say(order)

    def _restart(self, rest: dict[str, Any]) -> None:
        """The agent is killed and comes back; the reaper held everything."""
        live = [one for one, lease in self.desk.table.leases.items() if lease.ended is None]
        self.desk.restart(known=live)

    def _reboot(self, rest: dict[str, Any]) -> None:
        number = int.from_bytes(self.desk.boot_id, "big") + 1
        assert boot(number) != self.desk.boot_id
        self.desk.restart(boot_number=number)

    # ---- what must be so -------------------------------------------------------------------------

    def _expect_answer(self, wanted: str) -> None:
        """granted, waits, changed, done, or the reason of a refusal."""
        answer = self.answer
        if isinstance(answer, Refusal):
            assert answer.reason.name.lower() == wanted, answer
        elif answer is None:
            assert wanted == "waits", f"it waits, not {wanted}"
        else:
            assert type(answer).__name__.lower() == wanted, answer

    def _expect_rule(self, wanted: str) -> None:
        assert isinstance(self.answer, Refusal) and self.answer.rule == wanted, self.answer

    def _expect_earliest(self, wanted: str) -> None:
        """How long from now a refusal says it will be at the earliest; "never"."""
        assert isinstance(self.answer, Refusal), self.answer
        at_ns = self.answer.retry_at_ns
        if wanted == "never":
            assert at_ns is None, at_ns
        else:
            assert at_ns is not None
            assert at_ns - self.desk.now_ns == parse_duration(wanted), at_ns - self.desk.now_ns

    def _expect_states(self, wanted: Mapping[str, str]) -> None:
        """The state of every lease named; "waiting", or "refused" for a wait that ended."""
        for name, state in wanted.items():
            assert self.state(name) == state, f"{name} is {self.state(name)}, not {state}"

    def _expect_reasons(self, wanted: Mapping[str, str]) -> None:
        """Why leases were told to leave."""
        for name, reason in wanted.items():
            found = self.lease(name).reason
            assert found is not None and found.name.lower() == reason, (name, found)

    def _expect_queue(self, wanted: list[str]) -> None:
        """Who waits, in order."""
        names = {one.command_id: name for name, one in self.requests.items()}
        found = [names[one.acquire.command_id] for one in self.desk.lessor.queue]
        assert found == wanted, found

    def _expect_free(self, wanted: Mapping[str, int]) -> None:
        """Free whole GPUs, or pages of a node."""
        pools = self.desk.table.pools.by_id
        for what, amount in wanted.items():
            if what == "gpu":
                found = sum(p.free for one, p in pools.items() if one.startswith("gpu:")) // 1000
            else:
                found = pools[f"mem:{what}:4096"].free // PAGE
            assert found == amount, (what, found)

    def _expect_event(self, wanted: str) -> None:
        assert wanted in self.happened, self.happened

    def _expect_no_event(self, wanted: str) -> None:
        assert wanted not in self.happened, self.happened

    def _expect_preemptor(self, wanted: Mapping[str, str]) -> None:
        """Whose request each victim made way for, as its sealed event says."""
        named = {
            event.lease_id: event.preemptor_tenant
            for event, _ in self.desk.history
            if isinstance(event, events.Preempted)
        }
        for name, who in wanted.items():
            assert named.get(self.leases[name]) == who, (name, named)

    def _expect_ends_in(self, wanted: Mapping[str, str]) -> None:
        """How long a lease still has."""
        for name, text in wanted.items():
            lease = self.lease(name)
            end_ns = lease.deadline_ns
            if lease.drain_deadline_ns is not None:
                end_ns = min(end_ns, lease.drain_deadline_ns)
            assert end_ns - self.desk.now_ns == parse_duration(text), (name, end_ns)

    # ---- looking ---------------------------------------------------------------------------------

    def lease(self, name: str) -> Lease:
        """The lease of that name, as it is."""
        lease = self.desk.table.find(self.leases[name])
        assert lease is not None, f"{name} is forgotten"
        return lease

    def state(self, name: str) -> str:
        """What became of a request."""
        if name in self.leases:
            return self.lease(name).state.name.lower()
        if self.desk.lessor.queue.find(self.requests[name].command_id) is not None:
            return "waiting"
        return "refused"

    def _owner(self, lease: Lease) -> commands.Caller:
        return tenant(lease.subject.tenant, lease.subject.uid)

    def _settle(self) -> None:
        """Grants become active, and what ended is made clean, until nothing moves."""
        moved = True
        while moved:
            moved = False
            answers: Mapping[bytes, Reply] = self.desk.answers
            for name, request in self.requests.items():
                reply = answers.get(request.command_id)
                if isinstance(reply, Granted | Changed):
                    self.leases.setdefault(name, reply.lease.lease_id)
            for lease in tuple(self.desk.table.leases.values()):
                if lease.state is LeaseState.GRANTED:
                    self.desk.activate(lease)
                    moved = True
                elif lease.state in LEAVING and not self.manual:
                    self.desk.reclaim(lease)
                    moved = True

    def _hold_limits(self) -> None:
        """Nobody has more than a hard limit allows, unless it was lowered or lent."""
        admission, overages = self.desk.lessor.admission, self.desk.table.overages
        if admission.policy.borrowing.enabled:
            return
        for limits in admission.book.named().values():
            account = account_of(self.desk.table.accounts, limits)
            for row in limits.rows:
                if row.mode is Mode.HARD and account is not None:
                    used = account.used(row.kind, row.tier, row.node)
                    assert used <= row.limit or overages.open(limits.holder, row), (limits, used)


def load(path: Path) -> dict[str, Any]:
    """A scenario; what its file does not know is refused."""
    scenario = tomllib.loads(path.read_text("utf-8"))
    known = {"title", "peers", "node", "policy", "teardown", "steps"}
    assert not set(scenario) - known, f"{path.name}: {set(scenario) - known}"
    assert scenario["title"] and scenario["steps"], path.name
    return scenario


def perform(path: Path) -> Stage:
    """Play a file from its first step to its last."""
    scenario = load(path)
    stage = Stage(scenario)
    for number, step in enumerate(scenario["steps"], 1):
        try:
            stage.play(step)
        except AssertionError as error:
            raise AssertionError(f"{path.name}, step {number} {step}: {error}") from error
    return stage
