# SPDX-License-Identifier: Apache-2.0
"""Whole runs of the puller over real TLS: what is pulled is what was sealed, a head is cosigned
when it is stored, and every way to lie ends in its verdict with evidence."""

from __future__ import annotations

import errno
import json
import re
import sqlite3
import sys
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import trio

from leased.chain.certificate import Role
from leased.chain.evidence import Bundle, collector_key, weigh
from leased.chain.note import NoteKey, parse_key, write_note
from leased.chain.signing import Signer
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.manifest import Manifest
from leased.collector.case import encode_bundle, resolution_text
from leased.collector.config import PullConfig
from leased.collector.enrolment import enrol, read_enrolment
from leased.collector.ingest import decode_state, encode_state
from leased.collector.pulling import Reached, clock, pull
from leased.collector.witness import load_cosigner, os_entropy
from leased.durable.reader import read_log
from leased.terms.errors import ConfigError
from leased.terms.event import HeadCosigned, VerdictReached, VerdictResolved
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import live, node
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import BOOT, moment_at
from tests.doubles.node_server import NodeServer, serving
from tests.doubles.nodes import EPOCH_NS, PulledNode

SECOND = 10**9
MS = 10**6
OPERATOR = Signer(b"\x0f" * 32)


class Collector:
    """One collector: its state directory, its certificate, its nodes."""

    def __init__(self, tmp_path: Path, pki: FleetPki, name: str = "west") -> None:
        self.state = tmp_path / name
        self.state.mkdir(mode=0o700)
        certificate = pki.issue(Role.COLLECTOR, name)
        self.told: list[str] = []
        self.key = load_cosigner(self.state, name, os_entropy).key
        self.config = PullConfig(
            name=name,
            ca=str(pki.ca),
            certificate=str(certificate),
            key=str(certificate.with_suffix(".key")),
            wait_ns=2 * SECOND,
            pace_ns=5 * MS,
            interval_ns=100 * MS,
            timeout_ns=5 * SECOND,
            cosign_ns=SECOND,
            operators=(NoteKey("mia", OPERATOR.public_key),),
        )

    def enrol(self, server: NodeServer, name: str = "alpha", **options) -> None:
        on = server.node
        server.cosigner = self.key
        document = {
            "format": "leased-enrolment/1",
            "node_id": on.node_id.hex(),
            "log_id": on.log_id.hex(),
            "origin": on.origin,
            "vkey": NoteKey(on.origin, on.signer.public_key).text(),
            "epoch_ns": on.epoch_ns,
            "first_public_key": on.first_key.hex(),
            "size": 0,
            "head": "",
            "seal_epoch": 0 if on.epoch_ns else None,
            "seal_key": on.seal_key.key.hex() if on.epoch_ns else None,
        }
        pinned = read_enrolment(json.dumps(document).encode(), "a test")
        manifest = Manifest(self.state)
        enrol(manifest, name, server.url, pinned, time.time_ns(), **options)
        manifest.close()

    def tell(self, name: str, text: str) -> None:
        self.told.append(f"{name}: {text}")

    async def pull(self, **options) -> dict[str, Reached]:
        with trio.fail_after(30):
            reached = await pull(
                self.state,
                self.config,
                only=(),
                **{"once": True, "tell": self.tell, **options},
            )
        return {one.name: one for one in reached}

    def words(self, config: Path) -> list[str]:
        """The program that pulls once, with a configuration made there."""
        ours = self.config
        config.write_text(
            f'[pull]\nname = "west"\nca = "{ours.ca}"\ncertificate = "{ours.certificate}"\n'
            f'key = "{ours.key}"\ntimeout = "60s"\n'
        )
        state = ["--state", str(self.state)]
        pull = [*state, "pull", "--once", "--config", str(config)]
        return [sys.executable, "-m", "leased.collector.main", *pull]

    def frames(self, on: PulledNode) -> bytes:
        reader = ArchiveReader(self.state)
        try:
            return b"".join(reader.frames(on.log_id.hex()))
        finally:
            reader.close()

    def own_events(self) -> list:
        log = read_log(self.state / "log")
        try:
            return [event for _, event, _ in log.events()]
        finally:
            log.close()

    def bundle(self) -> Bundle:
        [path] = (self.state / "evidence").glob("*.json")
        return msgspec.json.decode(path.read_bytes(), type=Bundle)


@pytest.fixture
def west(tmp_path: Path, pki: FleetPki) -> Collector:
    return Collector(tmp_path, pki)


@pytest.mark.parametrize("epoch_ns", [0, EPOCH_NS])
async def test_what_was_sealed_is_pulled_stored_cosigned_and_acknowledged(
    west: Collector, pki: FleetPki, epoch_ns: int
) -> None:
    server = NodeServer(node(epoch_ns=epoch_ns))
    async with serving(pki, server):
        west.enrol(server)
        size = server.node.size
        reached = await west.pull()
    assert reached["alpha"].verdict == "OK" and reached["alpha"].cosigned_size == size
    assert server.acked == [size] and not server.complaints
    # The acknowledgement is a record itself, and was not there yet when the head was signed.
    assert west.frames(server.node) == b"".join(server.node.frames[:size])
    [cosigned] = [event for event in west.own_events() if isinstance(event, HeadCosigned)]
    assert (cosigned.size, cosigned.root) == (size, server.node.tree(size).root())
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].size == size + 1
    assert server.acked == [size], "an acknowledgement alone is not acknowledged"


async def test_who_asks_for_a_day_is_asked_again_as_soon_as_who_is_away(
    west: Collector, pki: FleetPki
) -> None:
    """Silence is judged at each turn: who bids one wait would be well for a day."""
    west.config = msgspec.structs.replace(west.config, backoff_max_ns=200 * MS)
    server = NodeServer(node())
    server.retry_after = "86400"
    server.sabotage = lambda target, reply: (503, "text/plain", b"")
    async with serving(pki, server), trio.open_nursery() as nursery:
        west.enrol(server)
        nursery.start_soon(lambda: west.pull(once=False))
        with trio.fail_after(20):
            while not server.requests:
                await trio.sleep(0)
            server.sabotage = lambda target, reply: reply
            while not server.acked:
                await trio.sleep(0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "no room"), sqlite3.OperationalError("disk I/O error")],
    ids=["disk", "database"],
)
async def test_a_rule_that_cannot_be_carried_out_ends_nobodys_pulling(
    west: Collector, pki: FleetPki, error: Exception
) -> None:
    """It is carried out at each start, too: the collector would end at each."""

    def upkeep(archive: Archive, do: object) -> str:
        raise error

    server = NodeServer(node())
    async with serving(pki, server), trio.open_nursery() as nursery:
        west.enrol(server)
        nursery.start_soon(lambda: west.pull(once=False, upkeep=upkeep))
        with trio.fail_after(20):
            while not (server.acked and any("nothing was removed" in one for one in west.told)):
                await trio.sleep(0)
        nursery.cancel_scope.cancel()


async def test_a_follower_hears_of_records_as_they_come(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())
    async with serving(pki, server), trio.open_nursery() as nursery:
        west.enrol(server)
        nursery.start_soon(lambda: west.pull(once=False))
        reader = None
        with trio.fail_after(20):
            for number in range(20, 24):
                while reader is None or reader.logs()[0].head.size < server.node.size:
                    await trio.sleep(0)
                    reader = reader or ArchiveReader(west.state)
                live(server.node, number)
        reader.close()
        nursery.cancel_scope.cancel()
    assert server.open_most == 1 and not server.complaints


async def test_a_certificate_that_was_renewed_counts_without_a_restart(
    west: Collector, pki: FleetPki
) -> None:
    server = NodeServer(node())
    async with serving(pki, server), trio.open_nursery() as nursery:
        west.enrol(server)
        nursery.start_soon(lambda: west.pull(once=False))
        with trio.fail_after(20):
            while not server.acked:
                await trio.lowlevel.checkpoint()
            before = server.shown[-1]
            key = Path(west.config.key)
            made = key.read_bytes()
            key.write_bytes(b"half of a renewal")
            server.sabotage = lambda target, reply: None  # the connection is lost
            while not any("stay in force" in told for told in west.told):
                await trio.lowlevel.checkpoint()
            key.write_bytes(made)
            server.sabotage = lambda target, reply: reply
            pki.issue(Role.COLLECTOR, "west")
            asked = len(server.shown)
            live(server.node, 50)
            while len(server.acked) < 2:
                await trio.lowlevel.checkpoint()
            assert len(server.shown) > asked
            server.sabotage = lambda target, reply: None
            live(server.node, 51)
            while server.shown[-1] == before:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert "pull: certificate, key and CA were read anew" in west.told


async def test_a_lost_answer_is_asked_again_from_the_cursor(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())
    lost = iter([True, False, True])
    server.sabotage = lambda target, reply: None if next(lost, False) else reply
    async with serving(pki, server):
        west.enrol(server)
        assert "ended before the answer" in (await west.pull())["alpha"].unreachable
        reached = (await west.pull())["alpha"]
        assert reached.verdict == "OK" and reached.cosigned_size == 0, "the ack was lost"
        assert (await west.pull())["alpha"].cosigned_size > 0
    assert west.frames(server.node)[: len(server.node.frames[0])] == server.node.frames[0]


async def test_another_node_at_the_address_is_not_believed(west: Collector, pki: FleetPki) -> None:
    server, other = NodeServer(node()), NodeServer(PulledNode(7))
    other.node.start()
    async with serving(pki, server, other):
        server.port, other.port = other.port, server.port
        west.enrol(server)
        assert "answers for node" in (await west.pull())["alpha"].unreachable
    assert not other.requests


async def test_a_certificate_of_another_fleets_ca_is_no_fleet(
    tmp_path: Path, pki: FleetPki
) -> None:
    server = NodeServer(node())
    west = Collector(tmp_path, FleetPki(tmp_path / "other"))
    async with serving(pki, server):
        west.enrol(server)
        assert "TLS" in (await west.pull())["alpha"].unreachable
    assert not server.requests


async def test_a_fork_is_proven_by_two_signed_trees(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        twin = server.node.clone()
        live(server.node, 50)
        await west.pull()
        for number in range(51, 55):
            live(twin, number)
        server.node = twin
        acked = list(server.acked)
        reached = (await west.pull())["alpha"]
        assert reached.verdict == "FORK"
        asked = len(server.requests)
        assert (await west.pull())["alpha"].verdict == "FORK"
        assert len(server.requests) == asked and server.acked == acked, "sticky: not even asked"
    bundle = west.bundle()
    found = weigh(bundle, encode_bundle(bundle), parse_key(bundle.vkey), [collector_key(west.key)])
    assert any("two different records" in one for one in found.proven)
    assert any("signed by west" in one for one in found.told)
    [sealed] = [event for event in west.own_events() if isinstance(event, VerdictReached)]
    assert sealed.verdict == "FORK"


async def test_a_restore_from_a_backup_is_a_rollback_until_it_is_resolved(
    west: Collector, pki: FleetPki
) -> None:
    server = NodeServer(node())
    server.seal_acks = False
    whole = server.node.clone()
    async with serving(pki, server):
        west.enrol(server)
        await west.pull()
        server.node.cut(server.node.size - 3)
        assert (await west.pull())["alpha"].verdict == "ROLLBACK"
        bundle = west.bundle()
        found = weigh(bundle, encode_bundle(bundle), parse_key(bundle.vkey))
        assert len(found.proven) == 2, "both notes are the node's"
        server.node = whole  # the operator found the right disk
        manifest = Manifest(west.state)
        entry = manifest.logs()[0]
        stranger = Signer(b"\x0e" * 32)
        for signer in (stranger, OPERATOR):
            text = resolution_text(entry, "the right disk is back")
            key = NoteKey("mia", signer.public_key)
            note = write_note(text, [(key, signer.sign(text.encode()))])
            manifest.add_resolution(entry.log_id, note)
        manifest.close()
        reached = (await west.pull())["alpha"]
    assert reached.verdict == "OK"
    assert any("refused ([pull] operators: whose count)" in one for one in west.told)
    assert any("resolved by mia" in one for one in west.told)
    [resolved] = [event for event in west.own_events() if isinstance(event, VerdictResolved)]
    assert "the right disk is back" in resolved.note


async def test_a_page_that_does_not_hold_is_kept_as_it_came(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())

    def spoil(target: str, reply):
        status, kind, body = reply
        if "records" in target:
            body = body[:200] + bytes([body[200] ^ 1]) + body[201:]
        return status, kind, body

    server.sabotage = spoil
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == "BAD_RECORD"
    assert west.frames(server.node) == b""
    bundle = west.bundle()
    found = weigh(bundle, encode_bundle(bundle), parse_key(bundle.vkey))
    assert any("does not hold: CORRUPT_RECORD" in one for one in found.told)


async def test_a_log_begun_anew_is_followed_only_when_it_is_said(
    west: Collector, pki: FleetPki
) -> None:
    server = NodeServer(node())
    async with serving(pki, server):
        west.enrol(server)
        await west.pull()
        server.node = PulledNode(9)
        server.node.node_id = b"\x40" * 15 + bytes([1])
        server.node.start()
        assert (await west.pull())["alpha"].verdict == "NEW_LOG"
        with pytest.raises(Exception, match="--replace"):
            west.enrol(server)
        west.enrol(server, replace=True)
        assert (await west.pull())["alpha"].verdict == "OK"


async def test_two_collectors_each_cosign_and_a_fork_between_them_is_found_by_one(
    tmp_path: Path, pki: FleetPki, west: Collector
) -> None:
    east = Collector(tmp_path, pki, "east")
    server = NodeServer(node())
    server.seal_acks = False
    twin = server.node.clone()
    live(server.node, 60)
    async with serving(pki, server):
        west.enrol(server)
        await west.pull()
        for number in (61, 62, 63):
            live(twin, number)
        server.node = twin
        east.enrol(server)
        assert (await east.pull())["alpha"].verdict == "OK"
        assert (await west.pull())["alpha"].verdict == "FORK"


async def test_many_nodes_share_a_bounded_number_of_connections(
    west: Collector, pki: FleetPki
) -> None:
    servers = []
    for number in range(1, 31):
        on = PulledNode(number)
        on.start()
        servers.append(NodeServer(on))
    west.config = msgspec.structs.replace(west.config, connections_max=4)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(server.open_now for server in servers))
            await trio.sleep(0)

    async with serving(pki, *servers), trio.open_nursery() as nursery:
        for number, server in enumerate(servers):
            west.enrol(server, f"node-{number}")
        nursery.start_soon(watch)
        reached = await west.pull()
        nursery.cancel_scope.cancel()
    assert {one.verdict for one in reached.values()} == {"OK"} and len(reached) == 30
    assert 1 < most <= 6, "four, and those whose end the other side has not seen yet"


def test_a_unit_that_hides_the_boots_id_is_a_boot_of_its_own(tmp_path: Path) -> None:
    hidden, again = clock(tmp_path / "boot_id"), clock(tmp_path / "boot_id")
    assert hidden().boot_id == hidden().boot_id != again().boot_id
    assert clock()().boot_id == clock()().boot_id


async def test_a_clock_that_is_off_is_told(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())
    server.node.clock = lambda: time.time_ns() + 3600 * SECOND
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == "OK", "an alarm, and nothing against the log"
    [told] = [text for text in west.told if "clock" in text]
    assert re.search(r"alpha: its clock is 3[56]\d\d s ahead of this host's", told), told


async def test_a_node_that_answers_and_seals_no_epoch_is_stale_until_it_does(
    west: Collector, pki: FleetPki
) -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    server = NodeServer(on)
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == "OK"
        manifest = Manifest(west.state)
        [entry] = manifest.logs()
        state = decode_state(entry.state)
        assert abs(state.sealed_ns - time.time_ns()) < 60 * SECOND
        aged = msgspec.structs.replace(state, sealed_ns=state.sealed_ns - 3600 * SECOND)
        manifest.set(entry.log_id, entry.head, state=encode_state(aged))
        manifest.close()
        assert (await west.pull())["alpha"].verdict == "STALE"
        manifest = Manifest(west.state, read_only=True)
        assert "it answers, and has sealed no epoch for 36" in manifest.logs()[0].why
        manifest.close()
        on.seal([], Moment(BOOT, moment_at(0).boot_ns + EPOCH_NS, 10**18))
        assert (await west.pull())["alpha"].verdict == "OK"
    assert [told for told in west.told if "STALE" in told or "again" in told][-1].startswith(
        "alpha: reached again"
    )


async def test_who_was_heard_while_our_clock_was_ahead_is_silent_from_now_on(
    west: Collector, pki: FleetPki
) -> None:
    server = NodeServer(node())
    async with serving(pki, server):
        west.enrol(server)
        await west.pull()
    manifest = Manifest(west.state)
    [entry] = manifest.logs()
    manifest.set(entry.log_id, entry.head, contact_ns=time.time_ns() + 3600 * SECOND)
    assert (await west.pull())["alpha"].verdict == "OK", "and not reached"
    heard_ns = manifest.logs()[0].contact_ns
    assert abs(time.time_ns() - heard_ns) < 60 * SECOND
    manifest.set(entry.log_id, entry.head, contact_ns=heard_ns - 3600 * SECOND)
    assert (await west.pull())["alpha"].verdict == "STALE"
    manifest.close()


@pytest.mark.parametrize("door", [False, True])
@pytest.mark.parametrize("off", ["over", "not valid yet"])
async def test_a_certificate_whose_time_it_is_not_is_told(
    west: Collector, pki: FleetPki, off: str, door: bool
) -> None:
    """By a clock that may be off itself: it ends nobody, or nobody would pull once it is right."""
    server, told = NodeServer(node()), trio.Event()
    pki.now += timedelta(days=-31 if off == "over" else 31)
    path = pki.issue(Role.COLLECTOR, "west", file="off")
    files = {"certificate": str(path), "key": str(path.with_suffix(".key"))}
    own_log = {"address": "127.0.0.1", "port": 0, "quorum": 0, "collectors": []} if door else {}
    west.config = msgspec.structs.replace(west.config, own_log=own_log, **files)

    def tell(name: str, text: str) -> None:
        west.tell(name, text)
        if "not reached" in text:
            told.set()

    async with serving(pki, server), trio.open_nursery() as nursery:
        west.enrol(server)
        nursery.start_soon(lambda: west.pull(once=False, tell=tell))
        with trio.fail_after(20):
            await told.wait()
        nursery.cancel_scope.cancel()
    [said] = [text for text in west.told if f"{path} is {off}" in text]
    assert "by this host's clock (20" in said
    assert ("`leasectl pki renew" in said) == (off == "over")


@pytest.mark.parametrize(("days", "why"), [(-31, "has expired"), (31, "is not yet valid")])
async def test_a_nodes_certificate_is_judged_by_our_clock_and_that_is_said(
    west: Collector, pki: FleetPki, days: int, why: str
) -> None:
    """No verdict: nothing is said about its log."""
    server = NodeServer(node())
    pki.now += timedelta(days=days)
    async with serving(pki, server):
        west.enrol(server)
        found = (await west.pull())["alpha"]
    assert found.unreachable.endswith(f"TLS: certificate {why}, by this host's clock")
    assert found.verdict == "BEHIND"


async def test_a_node_that_moves_and_one_that_is_forgotten_beside_a_running_pull(
    west: Collector, pki: FleetPki
) -> None:
    """Two pullers of one log would have each other's cursor moved."""
    before = NodeServer(node())
    after = NodeServer(before.node)
    async with trio.open_nursery() as nursery, serving(pki, before, after):
        west.enrol(before)
        nursery.start_soon(lambda: west.pull(once=False))
        with trio.fail_after(20):
            while not before.acked:
                await trio.lowlevel.checkpoint()
            west.enrol(after)
            while before.open_now or not after.open_now:
                await trio.lowlevel.checkpoint()
            manifest = Manifest(west.state)
            assert manifest.leave("alpha")
            manifest.close()
            while after.open_now:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert not [told for told in west.told if "any more" in told], west.told


async def test_a_log_is_followed_under_one_name(west: Collector, pki: FleetPki) -> None:
    server = NodeServer(node())
    async with serving(pki, server):
        west.enrol(server)
        with pytest.raises(ConfigError, match="is followed as alpha already"):
            west.enrol(server, "beta")


async def test_a_cursor_that_moved_while_silence_is_noted_ends_nobody(
    west: Collector, pki: FleetPki
) -> None:
    """As it does for a collector that was thought dead: it wakes up, finds that it has not heard of
    anybody for long, and somebody else has the log by now."""
    server = NodeServer(node())
    async with serving(pki, server):
        west.enrol(server)
        await west.pull()
        manifest = Manifest(west.state)
        [entry] = manifest.logs()
        long_ago = entry.contact_ns - 3600 * SECOND
        manifest.set(entry.log_id, entry.head, contact_ns=long_ago, verdict="OK")

        def tell(name: str, text: str) -> None:
            west.tell(name, text)
            if "not reached" in text:
                moved = msgspec.structs.replace(entry.head, size=entry.head.size + 1)
                manifest.move(entry.log_id, entry.head, moved)

        server.sabotage = lambda target, reply: None
        assert (await west.pull(tell=tell))["alpha"].unreachable
        manifest.close()
    assert [text for text in west.told if "is not at" in text and "any more" in text], west.told
