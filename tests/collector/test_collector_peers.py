# SPDX-License-Identifier: Apache-2.0
"""Two collectors that follow each other over real TLS: each cosigns the other's own log, and a node
that shows each of them another history is found."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from leased.chain.evidence import collector_key, weigh
from leased.chain.note import NoteKey, parse_key, write_note
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import Manifest
from leased.collector.case import encode_bundle, resolution_text
from leased.collector.enrolment import enrol, read_enrolment
from leased.collector.gossip import PeerHead
from leased.collector.heads import Heads
from leased.collector.pulling import clock, pull
from leased.collector.witness import open_witness, os_entropy
from leased.ctl.proofs import enrolment_document
from leased.durable.reader import read_log
from leased.terms.event import HeadCosigned, HeadCountersigned, VerdictReached
from tests.collector.test_collector_ingest import live, node
from tests.collector.test_collector_pull import OPERATOR, Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.node_server import NodeServer, serving

PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def pair(tmp_path: Path, pki: FleetPki) -> tuple[Collector, Collector]:
    """Two collectors that serve their own logs and have enrolled each other's."""
    west, east = Collector(tmp_path, pki, "west"), Collector(tmp_path, pki, "east")
    ports = {one: free_port() for one in (west, east)}
    for one, other, name in ((west, east, "east"), (east, west, "west")):
        own = {"address": "127.0.0.1", "port": ports[one], "quorum": 0}
        own["collectors"] = [{"name": name, "key": other.key.text()}]
        one.config = msgspec.structs.replace(one.config, own_log=own)
        witness = open_witness(other.state, name, now=clock(), entropy=os_entropy)
        witness.close()
        follow(one, name, f"https://127.0.0.1:{ports[other]}/collector/{name}", other)
    return west, east


def follow(one: Collector, name: str, url: str, other: Collector) -> None:
    """As `leased-collector enrol` does, by what `leasectl audit enrolment --log` prints."""
    document = enrolment_document(other.state / "log", 1, with_seal_key=False)
    manifest = Manifest(one.state)
    try:
        enrol(manifest, name, url, read_enrolment(json.dumps(document).encode(), "a test"), 1)
    finally:
        manifest.close()


async def run_until(pair: tuple[Collector, Collector], done) -> None:
    """Both pull until `done`."""

    async def keep(one: Collector) -> None:
        await pull(
            one.state,
            one.config,
            only=(),
            once=False,
            tell=lambda name, text: one.told.append(f"{name}: {text}"),
        )

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for one in pair:
                nursery.start_soon(keep, one)
            while not await trio.to_thread.run_sync(done):
                await trio.sleep(0)
            nursery.cancel_scope.cancel()


def entries(one: Collector) -> dict[str, Any]:
    manifest = Manifest(one.state, read_only=True)
    try:
        return {entry.name: entry for entry in manifest.logs()}
    finally:
        manifest.close()


async def test_each_cosigns_the_others_log_and_they_come_to_rest(
    pair: tuple[Collector, Collector],
) -> None:
    west, east = pair

    def cosigned() -> bool:
        return all(
            entries(one)[name].cosigned_size > 0 for one, name in ((west, "east"), (east, "west"))
        )

    await run_until(pair, cosigned)
    for one, other in ((west, east), (east, west)):
        kinds = one.own_events()
        assert any(isinstance(event, HeadCosigned) for event in kinds)
        acks = [event for event in kinds if isinstance(event, HeadCountersigned)]
        assert acks and acks[0].key_id == int.from_bytes(other.key.key_id, "big")
        assert len([event for event in kinds if isinstance(event, HeadCosigned)]) <= 3, "no chase"
        read_log(one.state / "log", leases=True, countersigned=True).close()


async def test_a_node_that_shows_each_another_history_is_found(
    pair: tuple[Collector, Collector], pki: FleetPki
) -> None:
    west, east = pair
    shown = node()
    live(shown, 13)
    hidden = shown.clone()
    live(shown, 14)
    live(hidden, 15)
    one, two = NodeServer(shown), NodeServer(hidden)
    async with serving(pki, one, two):
        west.enrol(one)
        east.enrol(two)

        def found() -> bool:
            return any(entries(held)["alpha"].verdict == "FORK" for held in pair)

        await run_until(pair, found)
    finder, other = (west, east) if entries(west)["alpha"].verdict == "FORK" else (east, west)
    assert "was given another tree" in entries(finder)["alpha"].why
    assert any(isinstance(event, VerdictReached) for event in finder.own_events())
    bundle = finder.bundle()
    keys = [collector_key(one.key) for one in pair]
    weighed = weigh(bundle, encode_bundle(bundle), parse_key(bundle.vkey), keys)
    assert set(weighed.collectors) == {one.key.name for one in pair}
    assert any(text.startswith(f"{other.key.name} cosigned a tree") for text in weighed.proven)
    assert len(set(weighed.proven)) == len(weighed.proven), "one note, told twice, proves no fork"


@pytest.mark.parametrize("size", [3, 1 << 60])
async def test_what_an_operator_has_resolved_is_not_found_in_the_same_head_again(
    tmp_path: Path, pki: FleetPki, size: int
) -> None:
    """Another collector may lie, too: its word would have kept the log from being followed."""
    west, server = Collector(tmp_path, pki), NodeServer(node())
    verdict = "FORK" if size == 3 else "ROLLBACK"

    def hear(sequence: int) -> None:
        log_id, origin = server.node.log_id, server.node.origin
        lie = PeerHead("east", sequence, log_id, origin, size, bytes(32), 7, bytes(64))
        with closing(Archive(west.state)) as archive, closing(Heads(archive)) as heads:
            heads.add([lie])

    async with serving(pki, server):
        west.enrol(server)
        for sequence in (1, 2):
            hear(sequence)
            assert (await west.pull())["alpha"].verdict == verdict
            with closing(Manifest(west.state)) as manifest:
                [entry] = manifest.logs()
                text = resolution_text(entry, "east lied")
                key = NoteKey("mia", OPERATOR.public_key)
                note = write_note(text, [(key, OPERATOR.sign(text.encode()))])
                manifest.add_resolution(entry.log_id, note)
            await west.pull()
            assert (await west.pull())["alpha"].verdict == "OK"
