# SPDX-License-Identifier: Apache-2.0
"""Heads that others have cosigned: kept until they were compared, and no longer; where collectors
share a fleet, whoever has the log is told what another has heard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from leased.chain.head import GENESIS
from leased.chain.note import NoteKey, write_note
from leased.chain.signing import Signer
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import LogEntry, Manifest
from leased.collector.archive.manifest_postgres import PartLost
from leased.collector.archive.manifests import share
from leased.collector.archive.parts import PARTS
from leased.collector.case import Case, resolution_text
from leased.collector.gossip import PeerHead, heads_in
from leased.collector.heads import Heads, SharedHeads, open_heads
from leased.terms.event import HeadCosigned
from leased.terms.identity import EventId
from tests.collector.test_collector_manifests import empty
from tests.doubles.nodes import PulledNode
from tests.doubles.postgres_server import PostgresServer

ENTRY = LogEntry("1d" * 16, "4e" * 16, "alpha", "o/n", GENESIS, state=b"state")
LOG = bytes.fromhex(ENTRY.log_id)
EVERY = range(PARTS)
OPERATOR = Signer(b"\x0f" * 32)


def head(sequence: int, size: int, peer: str = "north") -> PeerHead:
    return PeerHead(peer, sequence, LOG, "o/n", size, bytes([size]) * 32, 7, bytes(64))


def enrolled(state: Path) -> Path:
    state.mkdir(mode=0o700)
    manifest = Manifest(state)
    manifest.add_log(ENTRY)
    manifest.close()
    return state


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


@pytest.fixture
def pair(tmp_path: Path, server: PostgresServer) -> Iterator[tuple[Archive, Archive]]:
    """Two collectors of one fleet, of which west has all of it."""
    empty(server)
    state = enrolled(tmp_path / "state")
    alone = Archive(state, name="west")
    kept = Heads(alone)
    kept.add([head(1, 3)])
    kept.close()
    alone.close()
    share(state, server.database, "west")
    west, east = Archive(state, name="west"), Archive(state, name="east")
    west.manifest.take("west/1", EVERY, 60)
    yield west, east
    west.close()
    east.close()


@pytest.fixture(params=["alone", "shared"])
def heads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Heads | SharedHeads]:
    if request.param == "shared":
        west, _ = request.getfixturevalue("pair")
        found = open_heads(west)
        found.settle(ENTRY.log_id, found.of(ENTRY.log_id))
        yield found
        found.close()
        return
    archive = Archive(enrolled(tmp_path / "state"), name="west")
    found = open_heads(archive)
    yield found
    found.close()
    archive.close()


def test_what_was_compared_is_forgotten_and_nothing_else(heads: Heads | SharedHeads) -> None:
    """A head that came while another was being compared waits for its own turn."""
    heads.add([head(1, 3), head(2, 9)])
    known = heads.of(ENTRY.log_id)
    assert known == [head(1, 3), head(2, 9)] and heads.waits(ENTRY.log_id)
    heads.add([head(3, 4), head(1, 3), head(1, 3, "south")])
    heads.settle(ENTRY.log_id, [one for one in known if one.size <= 5])
    assert heads.of(ENTRY.log_id) == [head(2, 9), head(3, 4), head(1, 3, "south")]
    heads.settle(ENTRY.log_id, heads.of(ENTRY.log_id))
    assert not heads.of(ENTRY.log_id) and not heads.waits(ENTRY.log_id)


def test_heads_of_logs_that_nobody_enrolled_are_not_kept(heads: Heads | SharedHeads) -> None:
    heads.add([PeerHead("north", 1, bytes(16), "o/x", 3, bytes(32), 7, bytes(64))])
    assert not heads.waits("00" * 16) and not heads.of("00" * 16)


def test_a_head_that_no_database_can_hold_is_none(heads: Heads | SharedHeads) -> None:
    """Another collector's log says what that collector likes; it does not end this one."""
    north = PulledNode()
    wild = ((1 << 63, 7, "o/n"), (-1, 7, "o/n"), (5, 1 << 63, "o/n"), (5, 7, "o\0n"))
    for size, time_s, origin in (*wild, (6, 7, "o/n")):
        signed = (LOG, origin, size, bytes(32), time_s, bytes(64))
        north.seal([HeadCosigned(EventId(bytes(16)), *signed)])
    heads.add(heads_in(b"".join(north.frames), "north", north.log_id))
    assert [one.size for one in heads.of(ENTRY.log_id)] == [6]


def test_what_one_hears_the_other_compares(pair: tuple[Archive, Archive]) -> None:
    west, east = pair
    one, two = open_heads(west), open_heads(east)
    assert one.of(ENTRY.log_id) == [head(1, 3)], "what waited before the fleet was shared"
    one.settle(ENTRY.log_id, [head(1, 3)])
    two.refresh()
    assert not one.waits(ENTRY.log_id) and not two.waits(ENTRY.log_id)
    two.add([head(2, 5)])  # east follows north, and west has the node
    one.refresh()
    assert one.waits(ENTRY.log_id) and one.of(ENTRY.log_id) == [head(2, 5)]
    with pytest.raises(PartLost):
        two.settle(ENTRY.log_id, [head(2, 5)])
    assert one.of(ENTRY.log_id) == [head(2, 5)], "who has not the log settles nothing of it"
    one.settle(ENTRY.log_id, [head(2, 5)])
    two.refresh()
    assert not two.waits(ENTRY.log_id)
    one.close()
    two.close()


def test_who_has_not_the_log_throws_no_resolution_away(pair: tuple[Archive, Archive]) -> None:
    """West had stopped (a VM that slept) while east had its nodes, and looks for a resolution of
    what it knew the log to be."""
    west, east = pair
    was = msgspec.structs.replace(ENTRY, verdict="GAP")
    known = msgspec.structs.replace(ENTRY, verdict="FORK")
    west.manifest.set(ENTRY.log_id, GENESIS, verdict="FORK")
    text, key = resolution_text(known, "looked at"), NoteKey("mia", OPERATOR.public_key)
    note = write_note(text, [(key, OPERATOR.sign(text.encode()))])
    west.manifest.add_resolution(ENTRY.log_id, note)
    waits = west.manifest.resolutions(ENTRY.log_id)
    # East's configuration names another operator.
    for archive, entry, operators in ((west, was, [key]), (east, was, [key]), (east, known, [])):
        case = Case(archive, None, lambda: 1, 1.0)
        with contextlib.suppress(PartLost):
            case.apply_resolutions(None, entry, operators)
        assert west.manifest.resolutions(ENTRY.log_id) == waits
