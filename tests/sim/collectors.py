# SPDX-License-Identifier: Apache-2.0
"""Collectors in simulated time: the real door of a log, the real ingest, witness and own log of two
collectors that read each other, and links between them that lose and repeat what is said.

Does not touch a socket, a thread or a file, and does not judge (`witnesses`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec
import trio

from leased.chain.certificate import Identity, Role
from leased.chain.quorum import flat
from leased.chain.record import HEADER
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY, Frontier
from leased.collector import reconcile
from leased.collector.asking import acknowledge, ask_page
from leased.collector.gossip import PeerHead, heads_in, hushed, judge_heads
from leased.collector.ingest import Pinned, State, Taken, take_page
from leased.collector.reconcile import Problem, Verdict
from leased.collector.transport import Answer, Unreachable
from leased.collector.witness import Cosigner, Witness
from leased.durable.log import OpenedLog, open_log
from leased.service.fleet.config import Countersigner
from leased.service.fleet.countersigning import Countersigning
from leased.service.fleet.pulling import PulledLog
from leased.service.fleet.routes import AuditRoutes
from leased.service.fleet.web import Request
from leased.terms.command import Command, NoteCountersigned
from leased.terms.errors import ChainError
from leased.terms.event import EventId, HeadCountersigned
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.reply import Done, Reply
from tests.sim.agent import SEGMENT_BYTES
from tests.sim.clock import SimClock
from tests.sim.disk import MemoryDisk

if TYPE_CHECKING:
    from tests.sim.witnesses import WitnessWorld

FLEET = "sim.example"
NODE_ID = b"n" * 16
NAMES = ("west", "east")
KEYS = {name: Signer(name.encode().ljust(32, b".")) for name in NAMES}
COSIGNERS = {name: Cosigner(f"{name}.example/collector", KEYS[name]) for name in NAMES}
POLICY = flat({name: one.key for name, one in COSIGNERS.items()}, 0)
TIMEOUT_S = 5.0


async def at_once(work: Callable[..., Any], *args: Any) -> Any:
    """What a thread would do, here and now: the seed decides the order, not the kernel."""
    return work(*args)


class Door:
    """What a log's fleet sees of it: the real routes over the real log."""

    def __init__(
        self,
        opened: OpenedLog,
        *,
        latest: Callable[[], Frontier],
        node_id: bytes,
        ask: Callable[[Command], Awaitable[Reply]],
        clock: Any,
        trusted: tuple[str, ...] = NAMES,
    ) -> None:
        keys = {name: COSIGNERS[name].key for name in trusted}
        self.log = PulledLog(opened, latest=latest, gather_ns=NS_PER_MS, aside=at_once)
        self.acks = Countersigning(
            self.log,
            collectors=lambda: tuple(Countersigner(*one) for one in keys.items()),
            policy=lambda: flat(keys, 0),
            apart_ns=lambda: NS_PER_S,
            ask=ask,
            clock=clock,
        )
        self.routes = AuditRoutes(
            self.log,
            self.acks,
            node_id=node_id,
            clock=clock,
            metrics=str,
            state=lambda: ("healthy", ""),
        )
        self.alive = True


def countersigned(command: NoteCountersigned, entropy: Callable[[], bytes]) -> HeadCountersigned:
    """The event that a cosigned note becomes."""
    fields = (command.size, command.root, command.key_id, command.time_s, command.signature)
    return HeadCountersigned(EventId(entropy()), *fields)


class Link:
    """`collector.transport.Connection` without a network: what is asked may be lost on the way
    there or back, or come twice."""

    reusable = True

    def __init__(self, world: WitnessWorld, me: str, whom: str) -> None:
        self._world, self._me, self._whom = world, me, whom

    async def ask(
        self, method: str, target: str, *, body: bytes = b"", body_bytes_max: int, **_: Any
    ) -> Answer:
        world, faults = self._world, self._world.faults
        await trio.sleep(faults.latency_s(NS_PER_MS, 20 * NS_PER_MS))
        door = world.door_of(self._whom, self._me)
        if door is None or self._me in world.parted or faults.strikes("message lost", 30):
            raise Unreachable(f"{self._whom}: nobody answers")
        path, _, query = target.partition("?")
        request = Request(method, path, dict(parse_qsl(query)), {}, body)
        identity = Identity(FLEET, Role.COLLECTOR, self._me)
        if faults.strikes("message twice", 30):
            await door.routes.attend(identity, request)
        answer = await door.routes.attend(identity, request)
        await trio.sleep(faults.latency_s(NS_PER_MS, 20 * NS_PER_MS))
        if not door.alive or self._me in world.parted or faults.strikes("answer lost", 30):
            raise Unreachable(f"{self._whom}: the connection ended before the answer")
        assert len(answer.body) <= body_bytes_max
        headers = {name.lower(): value for name, value in answer.headers}
        return Answer(answer.status, {**headers, "content-type": answer.content_type}, answer.body)


class Followed:
    """What a collector holds of one log, on its disk."""

    def __init__(self, pinned: Pinned, now_ns: int) -> None:
        self.state = State(msgspec.structs.replace(pinned, printed_ns=now_ns))
        self.hashes: list[bytes] = []
        self.verdict = Verdict.BEHIND
        self.why = ""

    def root_at(self, size: int) -> bytes:
        return EMPTY.extended(self.hashes[:size]).root()


class SimCollector:
    """One collector: the order of `collector.puller`, over links."""

    def __init__(self, world: WitnessWorld, name: str, random: Random) -> None:
        self.world, self.name, self._random = world, name, random
        self.clock = SimClock()
        self.followed: dict[str, Followed] = {}
        self.heads: list[PeerHead] = []
        self.wiped = False
        self._make_log()

    def _make_log(self) -> None:
        self.disk = MemoryDisk()
        self._open()

    def restart(self) -> None:
        """The process dies and begins again; what it had stored is there."""
        self.door.alive = False
        self.disk.process_died()
        self._open()

    def _open(self) -> None:
        opened = open_log(
            self.disk.directory,
            moment=self.clock.now(),
            entropy=self._entropy,
            machine_id=self.name.encode(),
            origin=self.name,
            segment_bytes=SEGMENT_BYTES,
            epoch_ns=0,
            background=False,
            disk=self.disk,
        )
        now = self.clock.now
        self.witness = Witness(COSIGNERS[self.name], opened, now, self._entropy)
        other = tuple(name for name in NAMES if name != self.name)
        self.door = Door(
            opened,
            latest=lambda: self.witness.tree,
            node_id=self.name.encode().ljust(16, b"."),
            ask=self._countersign,
            clock=self.clock,
            trusted=other,
        )
        self.witness.told = self.door.acks.tell
        self.witness.start()

    async def _countersign(self, command: Command) -> Reply:
        assert isinstance(command, NoteCountersigned)
        self.witness.countersign(command)
        return Done()

    def enrol(self, name: str, opened: OpenedLog, node_id: bytes) -> None:
        """Follow a log by what is known of it out of band."""
        identity = opened.identity
        fields = (identity.log_id, node_id, identity.origin, identity.public_key)
        self.followed[name] = Followed(
            Pinned(*fields, identity.epoch_ns), self.clock.now().wall_ns
        )

    def wipe(self) -> None:
        """Everything that it had is gone; the node it knows again by the operator's file."""
        self.wiped = True
        pinned = {name: one.state.pinned for name, one in self.followed.items()}
        now_ns = self.clock.now().wall_ns
        self.followed = {name: Followed(one, now_ns) for name, one in pinned.items()}
        self.heads.clear()
        self.door.alive = False
        self._make_log()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(self._random.randrange(100, 1500) / 1000)
            for name in list(self.followed):
                try:
                    await self._contact(name)
                except Unreachable:
                    self.world.faults.met["unreachable"] = (
                        self.world.faults.met.get("unreachable", 0) + 1
                    )

    async def _contact(self, name: str) -> None:
        """One page, from the question to the cosignature."""
        followed, link = self.followed[name], Link(self.world, self.name, name)
        if followed.verdict.sticky:
            return
        state, known, log_id = followed.state, len(self.heads), followed.state.pinned.log_id
        answer = await ask_page(
            link,  # type: ignore[arg-type]
            log_id.hex(),
            state.head,
            bytes_max=self._random.choice((1, 2000, 4 << 20)),
            wait_ms=self._random.choice((0, 200)),
            timeout_s=TIMEOUT_S,
        )
        if self.followed.get(name) is not followed:
            return  # wiped meanwhile
        if isinstance(answer, Problem):
            self._found(name, reconcile.judge_problem(state, answer))
            return
        try:
            taken = take_page(state, answer, self.clock.now().wall_ns)
        except ChainError as error:
            self._found(name, reconcile.judge_refusal(state, error))
            return
        if name in NAMES:
            others = [one.state.pinned.log_id for it, one in self.followed.items() if it in NAMES]
            ours = self.witness.log.log_id
            taken = hushed(taken, state, frozenset((*others, ours)))
        self._store(name, followed, taken)
        if self.world.faults.strikes("collector died", 20):
            self.restart()
            return
        self._compare(name, followed, taken, known)
        if taken.fresh and taken.note and not followed.verdict.sticky and followed.state.loud:
            await self._cosign(name, followed, taken, link)

    def _store(self, name: str, followed: Followed, taken: Taken) -> None:
        offset = 0
        while offset < len(taken.frames):
            length = HEADER.unpack_from(taken.frames, offset)[0]
            offset += length
            if self.world.remembers or self.name == "west":
                followed.hashes.append(taken.frames[offset - 32 : offset])
        followed.state = taken.state
        followed.verdict = Verdict.OK if taken.fresh else Verdict.BEHIND
        if name in NAMES:
            log_id = followed.state.pinned.log_id
            self.heads += heads_in(taken.frames, name, log_id)

    def _compare(self, name: str, followed: Followed, taken: Taken, known: int) -> None:
        log_id = followed.state.pinned.log_id
        if not self.world.gossips:
            return
        ours = [head for head in self.heads[:known] if head.log_id == log_id]
        ends_at = taken.after.size if taken.fresh else None
        found = judge_heads(ours, taken.after.size, followed.root_at, ends_at=ends_at)
        if found is not None:
            self._found(name, found[0])

    async def _cosign(self, name: str, followed: Followed, taken: Taken, link: Link) -> None:
        log_id = followed.state.pinned.log_id
        cosigned = self.witness.cosign(log_id, taken.note)
        answer = await acknowledge(
            link,  # type: ignore[arg-type]
            log_id.hex(),
            cosigned,
            timeout_s=TIMEOUT_S,
        )
        if self.followed.get(name) is not followed:
            return
        if isinstance(answer, Problem):
            self._found(name, reconcile.judge_problem(followed.state, answer))
        elif followed.state is taken.state:
            followed.state = msgspec.structs.replace(followed.state, loud=False)

    def _found(self, name: str, finding: reconcile.Finding | None) -> None:
        if finding is None:
            return
        followed = self.followed[name]
        state = followed.state
        followed.verdict, followed.why = finding.verdict, finding.why
        self.world.note(f"{self.name} says of {name}: {finding.verdict}: {finding.why}")
        fields = (state.pinned.log_id, state.pinned.origin, str(finding.verdict))
        self.witness.tell_verdict(*fields, state.head.size, state.head.hash, b"")

    def _entropy(self) -> bytes:
        return self._random.randbytes(16)
