# SPDX-License-Identifier: Apache-2.0
"""The answers of PULL.md over a real log in a directory, without TLS and without an agent: what was
pruned, what the disk lost, what was acknowledged, and who may ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from leased.chain.certificate import Identity, Role
from leased.chain.note import (
    COSIGNATURE_V1,
    Checkpoint,
    NoteKey,
    cosignature_message,
    open_note,
    write_note,
)
from leased.chain.page import split_page
from leased.chain.proof import check_proof
from leased.chain.quorum import WitnessPolicy, flat, judge_note
from leased.chain.sealer import Sealer
from leased.chain.signing import Signer
from leased.durable.log import OpenedLog
from leased.service.fleet.config import Countersigner
from leased.service.fleet.countersigning import Countersigning
from leased.service.fleet.pulling import PulledLog
from leased.service.fleet.routes import AuditRoutes
from leased.service.fleet.web import Answer, Request
from leased.terms import command as commands
from leased.terms import event as e
from leased.terms.identity import EventId
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reply import Done, Reply
from tests.doubles.clock import FakeClock
from tests.doubles.logs import moment_at, open_in, renewal, started

WEST = Signer(b"w" * 32)
WEST_KEY = NoteKey("west.example", WEST.public_key, COSIGNATURE_V1)
EAST = Signer(b"e" * 32)
EAST_KEY = NoteKey("east.example", EAST.public_key, COSIGNATURE_V1)
KEYS = {"west": WEST_KEY, "east": EAST_KEY}
COLLECTOR = Identity("gpu.example.org", Role.COLLECTOR, "west")
NODE = b"\xab" * 16


class Node:
    """The part of an agent that collectors see, with a sequencer of one line."""

    def __init__(self, directory: Path) -> None:
        self.opened: OpenedLog = open_in(directory)
        self.sealer: Sealer = self.opened.sealer()
        self.clock = FakeClock()
        self.count = 0
        self.state = ("healthy", "")
        self.log = PulledLog(self.opened, latest=lambda: self.sealer.frontier, gather_ns=1)
        self.acks = Countersigning(
            self.log,
            collectors=lambda: tuple(Countersigner(*one) for one in KEYS.items()),
            policy=lambda: flat(KEYS, 0),
            apart_ns=lambda: NS_PER_S,
            ask=self._ask,
            clock=self.clock,
        )
        self.routes = AuditRoutes(
            self.log,
            self.acks,
            node_id=NODE,
            clock=self.clock,
            metrics=lambda: "up 1\n",
            state=lambda: self.state,
        )
        self.seal(started())

    def seal(self, *events: e.Event) -> None:
        """One batch, told as the sequencer does."""
        at: Moment = moment_at(self.count)
        batch = self.sealer.seal([(event, at) for event in events])
        self.opened.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
        self.acks.tell(events, batch.sequences)
        self.log.wake()

    def live(self, batches: int, size: int = 7) -> None:
        """Renewals, in so many batches."""
        for _ in range(batches):
            self.seal(*(renewal(self.count + n) for n in range(size)))
            self.count += size

    async def _ask(self, command: commands.Command) -> Reply:
        assert isinstance(command, commands.NoteCountersigned)
        fields = (command.size, command.root, command.key_id, command.time_s, command.signature)
        self.seal(e.HeadCountersigned(EventId(b"\x08" * 16), *fields))
        return Done()

    async def get(self, what: str, who: Identity | None = COLLECTOR, **query: object) -> Answer:
        path = what if what.startswith("/") else f"/audit/v1/{self.opened.log_id.hex()}/{what}"
        asked = {name.rstrip("_"): str(value) for name, value in query.items()}
        return await self.routes.attend(who, Request("GET", path, asked, {}, b""))

    async def ack(
        self, size: int, signer: Signer = WEST, key: NoteKey = WEST_KEY, who: str = "west"
    ) -> Answer:
        root = (await self.log.tree(size, self.log.anchored)).root()
        text = Checkpoint(self.opened.origin, size, root).text()
        raw = bytes(8) + signer.sign(cosignature_message(text, 0))
        body = write_note(text, [(key, raw)]).encode()
        path = f"/audit/v1/{self.opened.log_id.hex()}/ack"
        asks = Identity("gpu.example.org", Role.COLLECTOR, who)
        return await self.routes.attend(asks, Request("POST", path, {}, {}, body))


def told(answer: Answer) -> Any:
    return json.loads(answer.body)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "audit")
    yield made
    made.opened.close()


async def test_what_was_pruned_is_gone_with_the_nodes_word_on_it(node: Node) -> None:
    node.live(30)
    directory = node.opened._disk.directory
    first, second = sorted(directory.glob("seg-*"))[:2]
    first.unlink()
    begins = int(second.name[4:20], 16)
    gone = await node.get("records", from_=0)
    assert gone.status == 410
    assert told(gone)["min_seq"] == begins
    open_note(told(gone)["checkpoint"], [node.log.key])
    there = await node.get("records", from_=begins)
    assert there.status == 200
    split_page(there.body, node.opened.log_id)
    [log] = told(await node.get("/audit/v1/logs"))
    assert log["min_seq"] == begins
    assert (await node.get("proof", seq=1)).status == 410


async def test_a_record_that_the_disk_changed_is_not_served_as_if_it_held(node: Node) -> None:
    node.live(3)
    [segment] = node.opened._disk.directory.glob("seg-*")
    data = bytearray(segment.read_bytes())
    length = int.from_bytes(data[4096:4100], "little")
    data[4096 + length - 1] ^= 1
    segment.write_bytes(data)
    broken = await node.get("records", from_=0)
    assert broken.status == 503
    assert "CORRUPT_RECORD" in told(broken)["verdict"]
    assert ("Retry-After", "5") in broken.headers
    segment.unlink()
    assert (await node.get("records", from_=0)).status == 503
    # What is known without the disk is still said.
    assert (await node.get("checkpoint")).status == 200


async def test_acknowledgements_do_not_chase_each_other(
    mock_clock: trio.testing.MockClock, node: Node
) -> None:
    node.live(2)
    size = node.log.anchored.next_seq
    first = await node.ack(size)
    assert (first.status, told(first)) == (200, {"size": size, "sequence": size})
    assert told(await node.ack(size)) == told(first)
    assert told(await node.ack(size - 3))["size"] == size  # it never shrinks
    # Nothing since but the acknowledgement itself.
    follow = await node.ack(node.log.anchored.next_seq)
    assert told(follow) == {"size": node.log.anchored.next_seq, "sequence": None}
    before = node.log.anchored.next_seq
    node.live(1)
    soon = await node.ack(node.log.anchored.next_seq)
    assert soon.status == 429
    assert "is less than 1s old" in told(soon)["detail"]
    assert ("Retry-After", "1") in soon.headers
    assert node.log.anchored.next_seq > before
    mock_clock.jump(1)
    later = node.log.anchored.next_seq
    assert told(await node.ack(later)) == {"size": later, "sequence": later}


async def test_each_collector_is_on_record_for_itself(
    mock_clock: trio.testing.MockClock, node: Node
) -> None:
    node.live(2)
    size = node.log.anchored.next_seq
    east = {"signer": EAST, "key": EAST_KEY, "who": "east"}
    assert told(await node.ack(size)) == {"size": size, "sequence": size}
    assert node.acks.quorum_size() == 0, "it takes both"
    # What west's acknowledgement added is no news, and east has the same to say for itself.
    assert told(await node.ack(size, **east)) == {"size": size, "sequence": size + 2}
    assert node.acks.quorum_size() == size
    assert told(await node.ack(node.log.anchored.next_seq))["sequence"] is None
    assert told(await node.ack(node.log.anchored.next_seq, **east))["sequence"] is None
    node.live(1)
    assert node.opened.journal.anchored.acked_size == size, "the next anchor says so"


async def test_less_than_all_that_is_new_leaves_the_rest_to_be_acknowledged(
    mock_clock: trio.testing.MockClock, node: Node
) -> None:
    node.live(2)
    size = node.log.anchored.next_seq
    assert told(await node.ack(size - 5))["sequence"] == size
    mock_clock.jump(1)
    assert told(await node.ack(size)) == {"size": size, "sequence": size + 2}


async def test_a_restart_forgets_no_acknowledgement(
    mock_clock: trio.testing.MockClock, node: Node, tmp_path: Path
) -> None:
    node.live(2)
    size = node.log.anchored.next_seq
    await node.ack(size)
    await node.ack(size, EAST, EAST_KEY, "east")
    node.opened.close()
    again = Node(tmp_path / "audit")
    try:
        assert list(again.opened.history()), "as a replay reads it"
        assert again.acks.by_name == {}
        again.acks.restore()
        assert {name: one.size for name, one in again.acks.by_name.items()} == {
            "west": size,
            "east": size,
        }
        before = again.log.anchored.next_seq
        assert told(await again.ack(size - 3)) == {"size": size, "sequence": None}
        assert again.log.anchored.next_seq == before, "it never shrinks"
        again.live(1)
        assert again.opened.journal.anchored.acked_size == size
        newest = again.log.anchored.next_seq
        assert told(await again.ack(newest))["sequence"] == newest
    finally:
        again.opened.close()


async def test_a_restart_forgets_no_cosignature(
    mock_clock: trio.testing.MockClock, node: Node, tmp_path: Path
) -> None:
    """Those on record: who cosigned a tree is shown in proofs again."""
    policy = flat(KEYS, 0)
    node.live(2)
    size = node.log.anchored.next_seq
    assert node.log.vouched_size(policy, 0) is None
    await node.ack(size)
    assert node.log.vouched_size(policy, 0) is None, "one of two is no quorum"
    assert node.log.vouched_size(flat(KEYS, 1), 0) == size
    await node.ack(size, EAST, EAST_KEY, "east")
    mock_clock.jump(1)
    node.live(1)
    assert (await node.ack(node.log.anchored.next_seq)).status == 200
    node.opened.close()
    again = Node(tmp_path / "audit")
    try:
        assert list(again.opened.history()), "as a replay reads it"
        again.acks.restore()
        assert again.log.vouched_size(policy, size - 1) == size, "the newest that both cosigned"
        assert again.log.vouched_size(policy, size) is None, "a record that is not in it"
        assert again.log.vouched_size(WitnessPolicy(), 0) is None, "nobody has to"
        proof = await again.log.prove(1, size, again.log.anchored)
        _, names = judge_note(policy, proof.checkpoint)
        assert sorted(names) == ["east", "west"]
        check_proof(proof, [WEST_KEY])
    finally:
        again.opened.close()


async def test_a_seal_of_an_epoch_is_news(mock_clock: trio.testing.MockClock, node: Node) -> None:
    node.live(1)
    await node.ack(node.log.anchored.next_seq)
    mock_clock.jump(1)
    node.acks.end_epoch()
    size = node.log.anchored.next_seq
    assert told(await node.ack(size)) == {"size": size, "sequence": size}


async def test_only_the_key_that_was_enrolled_acknowledges(node: Node) -> None:
    node.live(1)
    size, before = node.log.anchored.next_seq, node.log.anchored.next_seq
    for signer, key in (
        (EAST, EAST_KEY),
        (EAST, WEST_KEY),
        (WEST, NoteKey("west.example", WEST.public_key)),
    ):
        assert (await node.ack(size, signer, key)).status == 403
    assert node.log.anchored.next_seq == before


@pytest.mark.parametrize(
    ("who", "path", "status"),
    [
        (None, "/audit/v1/logs", 403),
        (Identity("gpu.example.org", Role.NODE, "ab" * 16), "/audit/v1/logs", 403),
        (Identity("gpu.example.org", Role.SCRAPER, "p"), "/audit/v1/logs", 403),
        (Identity("gpu.example.org", Role.SCRAPER, "p"), "/metrics", 200),
        (COLLECTOR, "/metrics", 200),
        (COLLECTOR, "/audit/v1/logs", 200),
        (COLLECTOR, "/audit/v2/logs", 404),
    ],
)
async def test_who_may_ask_what(node: Node, who: Identity | None, path: str, status: int) -> None:
    assert (await node.get(path, who)).status == status
    assert node.routes.answered == {status: 1}


async def test_a_log_that_failed_says_so_and_keeps_nobody_waiting(node: Node) -> None:
    node.live(1)
    node.state = ("failed", "EIO on sda")
    size = node.log.anchored.next_seq
    answer = await node.get("records", from_=size, wait=60_000)
    assert (answer.status, told(answer)["verdict"]) == (503, "EIO on sda")
    old = await node.get("records", from_=0)
    assert old.status == 200
    assert ("Leased-Log-State", "failed") in old.headers
