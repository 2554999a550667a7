# SPDX-License-Identifier: Apache-2.0
"""Every sticky verdict leaves a bundle that `leasectl evidence verify` judges elsewhere, with
public keys and nothing else; and not one word of it can be changed.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from leased.chain.epochs import EpochKey
from leased.chain.note import Checkpoint, NoteKey, write_note
from leased.chain.signing import Signer
from leased.collector.reconcile import Problem, Verdict
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.terms.event import NodeStopped
from leased.terms.identity import EventId
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import (
    flip,
    live,
    node,
    other_root,
    unsigned,
)
from tests.collector.test_collector_pull import Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import BOOT
from tests.doubles.node_server import NodeServer, serving
from tests.doubles.nodes import EPOCH_NS, PulledNode

Spoil = Callable[[NodeServer, PulledNode], None]


def _page(make: Callable[[PulledNode], bytes]) -> Spoil:
    """Every page is what `make` makes of the node."""

    def spoil(server: NodeServer, _twin: PulledNode) -> None:
        server.sabotage = lambda target, reply: (
            (200, "application/vnd.leased.records", make(server.node))
            if "/records" in target
            else reply
        )

    return spoil


def _pruned(server: NodeServer, _twin: PulledNode) -> None:
    told = Problem(410, "pruned", min_seq=server.node.size + 5, checkpoint=server.node.note())
    reply = server._problem(told)
    server.sabotage = lambda target, other: reply if "/records" in target else other


def _cut(server: NodeServer, _twin: PulledNode) -> None:
    server.node.cut(server.node.size - 3)


def _forked(server: NodeServer, twin: PulledNode) -> None:
    for number in range(51, 55):
        live(twin, number)
    server.node = twin


def _another(server: NodeServer, _twin: PulledNode) -> None:
    server.node = PulledNode(9)
    server.node.start()


STORIES: dict[Verdict, tuple[bool, Spoil, str]] = {
    Verdict.ROLLBACK: (True, _cut, "signed a tree of"),
    Verdict.FORK: (True, _forked, "two different records in two signed trees"),
    Verdict.GAP: (True, _pruned, "signed a tree of"),
    Verdict.NEW_LOG: (True, _another, "signed a tree of"),
    Verdict.BAD_RECORD: (False, _page(lambda on: flip(on.page(0), 200)), "CORRUPT_RECORD"),
    Verdict.BAD_SIG: (False, _page(unsigned), "does not hold: BAD_SIGNATURE"),
    Verdict.BAD_ROOT: (False, _page(other_root), "signed another tree than that of the"),
    Verdict.BAD_SEAL: (False, lambda server, twin: None, "but for its seals"),
}
"""By verdict: whether something was pulled before, what the node does then, and what anybody sees
in the bundle."""


def judged(*words: str) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    status = main(["evidence", "verify", *words], Console(out, err, terminal=False))
    return status, out.getvalue() + err.getvalue()


def test_there_is_a_story_of_every_sticky_verdict() -> None:
    assert STORIES.keys() == {one for one in Verdict if one.sticky}


@pytest.mark.parametrize("verdict", STORIES)
async def test_a_bundle_is_judged_offline_and_cannot_be_changed(
    tmp_path: Path, verdict: Verdict
) -> None:
    before, spoil, seen = STORIES[verdict]
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    on = PulledNode(epoch_ns=EPOCH_NS) if verdict is Verdict.BAD_SEAL else node()
    if verdict is Verdict.BAD_SEAL:
        on.ratchet._key = EpochKey(0, b"\x99" * 32)
        on.start()
        on.seal([NodeStopped(EventId(bytes(16)), 1)], Moment(BOOT, 10**9 + EPOCH_NS, 10**18))
    server = NodeServer(on)
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        twin = server.node.clone()
        if before:
            live(server.node, 50)
            assert (await west.pull())["alpha"].verdict == Verdict.OK
        spoil(server, twin)
        assert (await west.pull())["alpha"].verdict == verdict
    bundle = west.bundle()
    [path] = (west.state / "evidence").glob("*.json")
    case = tmp_path / "elsewhere" / "case.json"
    case.parent.mkdir()
    shutil.copy(path, case)
    for gone in (west.state, pki.directory):
        shutil.rmtree(gone)
    keys = ("--key", bundle.vkey, "--collector", west.key.text())
    status, text = judged(*keys, str(case))
    assert status == 0 and text.startswith(f"alpha: {verdict}, found "), text
    assert seen in text and "signed by west" in text, text
    _, document = judged(*keys, "--json", str(case))
    assert json.loads(document)["key_given"] is True

    fields = json.loads(case.read_bytes())
    for name, value in fields.items():
        if name != "signature" and isinstance(value, (str, int)):
            changed = value + 1 if isinstance(value, int) else f"{value}0" if value else "00"
            case.write_bytes(msgspec.json.encode({**fields, name: changed}))
            assert judged(*keys, str(case))[0] == 65, f"{name} was changed, and nobody minded"


async def test_what_cannot_follow_is_judged_by_who_has_all_records(tmp_path: Path) -> None:
    """A lease that was granted in a page before is granted again: the page holds by itself, and the
    bundle was said to show nothing."""
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    server = NodeServer(node())
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        live(server.node, 0)
        assert (await west.pull())["alpha"].verdict == Verdict.BAD_RECORD
    [path] = (west.state / "evidence").glob("*.json")
    keys = ("--key", west.bundle().vkey, "--collector", west.key.text())
    status, text = judged(*keys, str(path))
    assert status == 0 and "who has all records judges" in text and "signed by west" in text, text


@pytest.mark.parametrize(
    ("more", "verdict", "seen"),
    [(0, "ROLLBACK", "of 15 records, by a key that"), (6, "FORK", "two different records")],
)
async def test_a_host_put_back_to_its_former_key_is_shown_to_whoever_knows_one_of_its_keys(
    tmp_path: Path, more: int, verdict: str, seen: str
) -> None:
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    server = NodeServer(node())
    server.seal_acks = False
    first = NoteKey(server.node.origin, server.node.signer.public_key)
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        twin = server.node.clone()
        server.node.rotate(Signer(b"\x21" * 32))
        live(server.node, 50)
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        for number in range(more):
            live(twin, 60 + number)
        server.node = twin
        assert (await west.pull())["alpha"].verdict == verdict
    [path] = (west.state / "evidence").glob("*.json")
    for known in (first.text(), west.bundle().vkey):
        status, text = judged("--key", known, "--collector", west.key.text(), str(path))
        assert (status, seen in text, "signed by west" in text) == (0, True, True), text
    policy = tmp_path / "policy"
    policy.write_text(f"log {first.text()}\nwitness west {west.key.text()}\nquorum west\n")
    status, text = judged("--policy", str(policy), str(path))
    assert status == 0 and "quorum (west): reached" in text, text
    another = NoteKey(first.name, Signer(b"\x22" * 32).public_key).text()
    assert judged("--key", another, "--collector", west.key.text(), str(path))[0] == 65
    fields = json.loads(path.read_bytes())
    fields["rotations"][0]["signature_old"] = "00" * 64
    path.write_bytes(msgspec.json.encode(fields))
    assert judged("--key", first.text(), str(path))[0] == 65, "a key that nobody has introduced"


@pytest.mark.parametrize(
    ("back", "seen"), [(0, "does not hold: BAD_SIGNATURE"), (5, "which keys it says anew")]
)
async def test_a_pruning_that_leaves_a_key_out_is_shown(
    tmp_path: Path, back: int, seen: str
) -> None:
    """From the page alone, unless the log is said to begin before it."""
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    server = NodeServer(node())
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        for number in (1, 2):
            server.node.rotate(Signer(bytes([number]) * 32))
        for number in range(50, 55):
            live(server.node, number)
        server.node.prune(server.node.size - 5)
        server.node.min_seq = 0
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        [(_, oldest), _] = server.node.changes
        server.node.prune(server.node.size - back, (oldest,))
        assert (await west.pull())["alpha"].verdict == Verdict.BAD_SIG
    [path] = (west.state / "evidence").glob("*.json")
    keys = ("--key", west.bundle().vkey, "--collector", west.key.text())
    status, told = judged(*keys, str(path))
    assert status == 0 and seen in told, told


async def test_two_roots_of_one_tree_are_a_fork_that_is_proven(tmp_path: Path) -> None:
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    server = NodeServer(node())
    server.seal_acks = False
    on = server.node
    text = Checkpoint(on.origin, on.size, b"\x11" * 32).text()
    key = NoteKey(on.origin, on.signer.public_key)
    lie = write_note(text, [(key, on.signer.sign(text.encode()))])
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        _page(lambda on: on.trailer(on.size, note=lie))(server, on)
        assert (await west.pull())["alpha"].verdict == Verdict.FORK
    [path] = (west.state / "evidence").glob("*.json")
    status, told = judged("--key", west.bundle().vkey, "--collector", west.key.text(), str(path))
    assert status == 0 and f"two roots of {on.size} records" in told, told


async def test_a_node_cannot_spoil_the_evidence_by_what_it_says_besides(tmp_path: Path) -> None:
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    server = NodeServer(node())
    server.seal_acks = False
    async with serving(pki, server):
        west.enrol(server)
        assert (await west.pull())["alpha"].verdict == Verdict.OK
        told = Problem(416, "behind", size=3, checkpoint="nothing that is a note")
        reply = server._problem(told)
        server.sabotage = lambda target, other: reply if "/records" in target else other
        assert (await west.pull())["alpha"].verdict == Verdict.ROLLBACK
    [path] = (west.state / "evidence").glob("*.json")
    keys = ("--key", west.bundle().vkey, "--collector", west.key.text())
    status, text = judged(*keys, str(path))
    assert status == 0 and "signed by west" in text, text
