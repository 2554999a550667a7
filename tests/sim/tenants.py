# SPDX-License-Identifier: Apache-2.0
"""Tenants and operators as they come: greedy, forgetful, retrying, racing their own deadlines,
lying about ids.

Rule: each draws from its own random source, so that one tenant's luck does not move another's. What
a tenant was told is kept as an `Ack` for the auditor; what it was not told (the connection broke)
it may try again under the same command id.

Does not know the lessor's rules: it asks for anything.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec
import trio

from leased.terms import command as commands
from leased.terms.identity import CommandId, LeaseId, TenantId
from leased.terms.lease import (
    BOUND_TO_CGROUP,
    BOUND_TO_NOTHING,
    Lease,
    LeaseState,
    Level,
)
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.reply import Changed, Granted, Listed, Refusal, RefusalReason, Reply
from leased.terms.resource import Ask, Health, ResourceKind
from tests.sim.auditor import Ack
from tests.sim.hardware import CORE_MILLI, CORES, NODES, PAGE_BYTES

if TYPE_CHECKING:
    from tests.sim.world import World

TTLS_NS = (0, 100 * NS_PER_MS, 300 * NS_PER_MS, NS_PER_S, 4 * NS_PER_S, 20 * NS_PER_S, 10**12)
ANOTHER = "another"
WAITS_NS = (0, 0, 200 * NS_PER_MS, 3 * NS_PER_S, 10 * NS_PER_S)
OPERATOR_UID = 0
SHARED_IDS = (bytes(16), b"everybody's id 1", b"everybody's id 2", b"everybody's id 3")


class Tenant:
    """One uid. `held` are leases it was told of; `unanswered` requests whose connection broke."""

    def __init__(self, world: World, uid: int, random: Random) -> None:
        self._world = world
        self._random = random
        self.name = TenantId(f"tenant-{uid % 3}")
        self.caller = commands.Caller(uid, uid, 1000 + uid, self.name)
        self.held: dict[LeaseId, Lease] = {}
        self._asked: dict[LeaseId, commands.Acquire] = {}
        self.unanswered: list[commands.Acquire] = []

    async def run(self) -> None:
        """Act until told to stop."""
        while not self._world.calm:
            await trio.sleep(self._random.randrange(1, 400) / 1000)
            act = self._random.choices(
                (
                    self._acquire,
                    self._renew,
                    self._extend,
                    self._release,
                    self._look,
                    self._die,
                    self._retry,
                    self._join,
                    self._all_at_once,
                ),
                (10, 12, 4, 5, 4, 1, 3, 2, 3),
            )[0]
            await act()

    # -- acts -------------------------------------------------------------------------------------

    async def _acquire(self) -> None:
        random = self._random
        level = random.choice(list(Level))
        request = commands.Acquire(
            self._command_id(),
            self.caller,
            tuple(self._ask() for _ in range(random.choice((1, 1, 1, 2, 3)))),
            random.choices(TTLS_NS, (1, 4, 8, 12, 8, 4, 1))[0],
            level.priority,
            random.choice(WAITS_NS),
            random.choice((None, None, 0, 500 * NS_PER_MS, 2 * NS_PER_S)),
            bind_pid=random.choice((BOUND_TO_NOTHING, BOUND_TO_CGROUP, self.caller.pid)),
            level=random.choice((None, level)),
        )
        await self._send_acquire(request)

    async def _send_acquire(self, request: commands.Acquire) -> None:
        """Now and then twice, over two connections: the answer to the first is slow."""
        async with trio.open_nursery() as connections:
            connections.start_soon(self._send, request)
            if self._random.random() < 0.15:
                await trio.sleep(self._random.choice((0, 0.0005, 0.002, 0.02)))
                connections.start_soon(self._send, request)

    async def _retry(self) -> None:
        """The same command once more: after a lost answer, or for no reason at all; or another one
        under its id, which must not find the lease."""
        if self.unanswered:
            await self._send_acquire(self.unanswered.pop(0))
        elif self.held and self._random.random() < 0.3:
            lease = self._pick()
            again = self._asked[lease.lease_id]
            if lease.lease_id[0] & 1:
                again = msgspec.structs.replace(again, workload=ANOTHER)
            await self._send_acquire(again)

    async def _send(self, request: commands.Acquire) -> None:
        patience_s = request.wait_ns / NS_PER_S + 60
        if self._random.random() < 0.1:
            # Hangs up soon: the place in the queue must be given up, a grant must find its end.
            patience_s = self._random.randrange(1, 50) / 1000
        reply, broken = await self._world.call(request, patience_s=patience_s)
        if reply is None and broken:
            self.unanswered.append(request)
        used = isinstance(reply, Refusal) and reply.reason is RefusalReason.COMMAND_ID_USED
        if used and request.workload != ANOTHER and request.command_id not in SHARED_IDS:
            self._world.breach("a retry was taken for another request")
        if isinstance(reply, Granted):
            lease = reply.lease
            if lease.subject.workload != request.workload:
                self._world.breach("a request was given the lease of another")
            self.held[lease.lease_id] = lease
            self._asked[lease.lease_id] = request
            what = "attach" if reply.attached else "grant"
            self._acknowledge(what, lease, reply.sequence, reply.record_hash)
            self._world.judge_grant(request, reply)

    async def _renew(self) -> None:
        if self.held:
            await self._renew_one(self._pick())

    async def _renew_one(self, lease: Lease) -> None:
        if self._random.random() < 0.3:
            # As late as can be: some of these must win and some must lose.
            until_ns = lease.deadline_ns - self._random.randrange(-2, 6) * NS_PER_MS
            await self._world.clock.sleep_until(until_ns)
        ttl_ns = self._random.choices((None, *TTLS_NS), (8, 1, 2, 4, 6, 4, 2, 1))[0]
        renew = commands.Renew(self._command_id(), self.caller, lease.lease_id, ttl_ns)
        reply, _ = await self._world.call(renew)
        if isinstance(reply, Changed):
            self.held[lease.lease_id] = reply.lease
            self._acknowledge("renew", reply.lease)

    async def _extend(self) -> None:
        """Told to leave or not, more time is asked for."""
        if self.held:
            await self._extend_one(self._pick())

    async def _extend_one(self, lease: Lease) -> None:
        needed_ns = self._random.choice((50 * NS_PER_MS, NS_PER_S, 4 * NS_PER_S))
        extend = commands.Extend(self._command_id(), self.caller, lease.lease_id, needed_ns)
        reply, _ = await self._world.call(extend)
        if isinstance(reply, Changed):
            self.held[lease.lease_id] = reply.lease
            self._acknowledge("extend", reply.lease)

    async def _release(self) -> None:
        if self.held:
            await self._release_one(self._pick())

    async def _release_one(self, lease: Lease) -> None:
        release = commands.Release(self._command_id(), self.caller, lease.lease_id)
        reply, _ = await self._world.call(release)
        if isinstance(reply, Changed):
            self.held.pop(lease.lease_id, None)
            self._acknowledge("release", reply.lease)

    async def _join(self) -> None:
        """A process enters the leaf of a lease."""
        agent = self._world.agent
        if self.held and agent is not None:
            agent.join(self._pick().lease_id)

    async def _all_at_once(self) -> None:
        """Whatever may be asked of one lease is, by everybody, in one instant and in any order."""
        if not self.held:
            return
        lease = self._pick()
        acts = [self._renew_one, self._extend_one, self._renew_one, self._extend_one]
        if self._random.random() < 0.3:
            acts.append(self._release_one)
        async with trio.open_nursery() as everybody:
            everybody.start_soon(self._world.operator.press, lease.lease_id)
            for act in self._random.sample(acts, len(acts)):
                everybody.start_soon(act, lease)
            everybody.start_soon(self._join)
            everybody.start_soon(self._retry)

    async def _look(self) -> None:
        """Ask about one's own, and about what is not one's own."""
        question = self._random.choice(("describe", "list", "why", "plan", "stranger"))
        command_id = self._command_id()
        if question == "list":
            reply, _ = await self._world.call(commands.ListLeases(command_id, self.caller, True))
            if isinstance(reply, Listed):
                for lease in reply.leases:
                    assert lease.subject.uid == self.caller.uid or (
                        lease.subject.tenant == self.name
                    ), "another tenant's lease was listed"
            return
        if question == "plan":
            request = commands.Acquire(command_id, self.caller, (self._ask(),), NS_PER_S)
            await self._world.call(commands.Plan(command_id, request))
            return
        if question == "stranger":
            await self._meddle()
            return
        if self.held:
            lease_id = self._pick().lease_id
            asked = commands.Describe if question == "describe" else commands.Why
            await self._world.call(asked(command_id, self.caller, lease_id))

    async def _meddle(self) -> None:
        """P7: another tenant's lease cannot be seen, renewed or freed."""
        strangers = [
            lease_id
            for other in self._world.tenants
            if other.name != self.name
            for lease_id in other.held
        ]
        if not strangers:
            return
        lease_id = self._random.choice(strangers)
        asked = self._random.choice((commands.Describe, commands.Release, commands.Renew))
        reply, _ = await self._world.call(asked(self._command_id(), self.caller, lease_id))
        assert not isinstance(reply, Changed), f"{asked.__name__} of another tenant's lease"

    async def _die(self) -> None:
        """The process behind every bound lease exits."""
        agent = self._world.agent
        for lease in list(self.held.values()):
            if lease.pid > 0 and agent is not None:
                agent.lose_holder(lease.lease_id)
                self.held.pop(lease.lease_id)

    # -- draws ------------------------------------------------------------------------------------

    def _command_id(self) -> CommandId:
        """Mostly its own; sometimes one that others use too, or the agent itself (all zeros)."""
        if self._random.random() < 0.08:
            return CommandId(self._random.choice(SHARED_IDS))
        return CommandId(self._random.randbytes(16))

    def _ask(self) -> Ask:
        random = self._random
        odd = random.random() < 0.04
        if random.random() < 0.6:
            pages = random.choice((1, 2, 5, 16, 40, 64, 90))
            capacity = pages * PAGE_BYTES + (1 if odd else 0)
            pinned = f"mem:node{random.randrange(NODES + 1)}:{PAGE_BYTES}"
            return Ask(
                ResourceKind.MEM,
                capacity,
                node=random.choice((None, None, 0, 1)),
                resource_id=pinned if random.random() < 0.1 else None,
            )
        if random.random() < 0.5:
            cores = random.randrange(1, CORES + 1)
            return Ask(ResourceKind.CPU, cores * CORE_MILLI - (7 if odd else 0), exclusive=True)
        return Ask(ResourceKind.CPU, random.choice((1, 50, 250, 700, 1500)), exclusive=False)

    def _pick(self) -> Lease:
        return self._random.choice(list(self.held.values()))

    def _acknowledge(
        self, what: str, lease: Lease, sequence: int = -1, record_hash: bytes = b""
    ) -> None:
        self._world.note(f"ack {what} {lease.lease_id.hex()[:8]} until {lease.deadline_ns}")
        self._world.acks.append(
            Ack(
                self._world.clock.true_ns(),
                what,
                lease.lease_id,
                lease.command_id,
                lease.subject.uid,
                lease.generation,
                lease.deadline_ns,
                lease.boot_id,
                sequence,
                record_hash,
                lease.ended,
            )
        )


class Operator:
    """Revokes, drains, fences, sees devices fall ill, and puts everything back."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self.caller = commands.Caller(OPERATOR_UID, 0, 1, TenantId("operator"), operator=True)

    async def run(self) -> None:
        """Act now and then until told to stop; then put everything back."""
        while not self._world.calm:
            await trio.sleep(self._random.randrange(200, 4000) / 1000)
            await self._act()
        await self.put_back()

    async def _act(self) -> None:
        random, command_id = self._random, CommandId(self._random.randbytes(16))
        resource_id = random.choice(["", *self._world.devices.capacity])
        grace_ns = random.choice((0, 300 * NS_PER_MS, 2 * NS_PER_S))
        act = random.choice(
            (
                "revoke",
                "drain",
                "resume",
                "resume",
                "fence",
                "unfence",
                "unfence",
                "health",
                "policy",
            )
        )
        if act == "revoke":
            leases = [lease for one in self._world.tenants for lease in one.held]
            if leases:
                lease_id = random.choice(leases)
                await self._world.call(
                    commands.Revoke(command_id, self.caller, lease_id, grace_ns=grace_ns)
                )
        elif act == "drain":
            grace = random.choice((None, grace_ns))
            await self._world.call(commands.Drain(command_id, self.caller, resource_id, grace))
        elif act == "resume":
            await self._world.call(commands.Resume(command_id, self.caller, resource_id))
        elif act == "fence" and resource_id:
            granule = PAGE_BYTES if resource_id.startswith("mem") else 1
            capacity = random.randrange(1, 20) * granule
            await self._world.call(commands.Fence(command_id, self.caller, resource_id, capacity))
        elif act == "unfence":
            await self._unfence_one()
        elif act == "policy":
            number = random.randrange(256)
            policy, known = self._world.policy(number), bytes([number]) * 32
            await self._world.call(
                commands.SetPolicy(command_id, self.caller, policy, known, b"r" * 32)
            )
        elif act == "health" and resource_id:
            health = random.choice((Health.SICK, Health.GONE, Health.OK, Health.OK))
            await self._world.call(commands.ObserveHealth(command_id, resource_id, health, 79))

    async def press(self, lease_id: LeaseId) -> None:
        """Whoever holds the lease is to leave: once, twice, and with everybody else there."""
        random = self._random
        for _ in range(random.choice((1, 2))):
            grace_ns = random.choice((20 * NS_PER_MS, 300 * NS_PER_MS, 2 * NS_PER_S))
            order = commands.Revoke(self._id(), self.caller, lease_id, grace_ns=grace_ns)
            await self._world.call(order)
        if random.random() < 0.2:
            await self._world.call(commands.Drain(self._id(), self.caller, "", NS_PER_S))
            await self._world.call(commands.Resume(self._id(), self.caller, ""))

    async def _unfence_one(self) -> None:
        fenced = await self._fenced()
        if fenced:
            await self._unfence(self._random.choice(fenced).lease_id)
        else:
            command_id = CommandId(self._random.randbytes(16))
            resource_id = self._random.choice(list(self._world.devices.capacity))
            await self._world.call(commands.Unfence(command_id, self.caller, None, resource_id))

    async def _unfence(self, lease_id: LeaseId) -> None:
        self._world.devices.repair(lease_id)
        command_id = self._id()
        await self._world.call(commands.Unfence(command_id, self.caller, lease_id))

    async def _fenced(self) -> list[Lease]:
        command_id = CommandId(self._random.randbytes(16))
        reply, _ = await self._world.call(commands.ListLeases(command_id, self.caller))
        leases = reply.leases if isinstance(reply, Listed) else ()
        return [lease for lease in leases if lease.state is LeaseState.FENCED]

    async def put_back(self) -> None:
        """Every cordon lifted, nothing fenced: what remains must drain by itself."""
        for resource_id in ("", *self._world.devices.capacity):
            await self._insist(commands.Resume(self._id(), self.caller, resource_id))
            if resource_id:
                await self._insist(commands.Unfence(self._id(), self.caller, None, resource_id))
                well = commands.ObserveHealth(self._id(), resource_id, Health.OK, 0)
                await self._insist(well)

    async def unfence_all(self) -> None:
        """The last act of a run."""
        for lease in await self._fenced():
            await self._unfence(lease.lease_id)

    async def usage(self) -> Reply:
        """What the agent says of its resources."""
        return await self._insist(commands.ListResources(self._id(), self.caller))

    async def _insist(self, command: commands.Command) -> Reply:
        """Ask again until the agent has answered."""
        while True:
            await self._world.serving()
            reply, _ = await self._world.call(command)
            if reply is not None:
                return reply

    def _id(self) -> CommandId:
        return CommandId(self._random.randbytes(16))
