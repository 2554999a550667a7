# SPDX-License-Identifier: Apache-2.0
"""A collector that comes when a node has pruned, or has lost what it had: it takes the records in
from a copy, which it believes nothing; a bill then rests on all of them."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from io import StringIO
from pathlib import Path

import pytest

from leased.chain.head import GENESIS
from leased.chain.record import FLAG_LAST
from leased.chain.tree import EMPTY
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import Manifest
from leased.collector.archive.manifests import POINTER
from leased.collector.importing import Imported, import_copy
from leased.collector.main import main
from leased.ctl.console import Console
from leased.terms import event as e
from leased.terms.errors import ChainError, StateError
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import live, node
from tests.collector.test_collector_pull import OPERATOR, Collector, serving
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import BOOT, moment_at
from tests.doubles.node_server import NodeServer
from tests.doubles.nodes import EPOCH_NS, PulledNode


def sign(on: PulledNode) -> None:
    """A checkpoint, as a node seals one each second."""
    on.seal([e.NodeStopped(e.EventId(bytes(16)), 0)], moment_at(on.size), sign=True)


def copy_of(on: PulledNode, directory: Path, *ends: int) -> Path:
    """As another collector has it, in files that end before these records."""
    place = directory / "segments" / f"node={on.node_id.hex()}"
    place.mkdir(parents=True, exist_ok=True)
    first = 0
    for end in ends or (on.size,):
        head = on.hashes[end - 1].hex()[:8]
        name = f"{first:020d}-{end - 1:020d}-{head}.seg"
        (place / name).write_bytes(b"".join(on.frames[first:end]))
        first = end
    return directory


def bring(state: Path, source: Path, **most: int) -> Imported:
    archive = Archive(state)
    try:
        [entry] = archive.logs()
        return import_copy(archive, entry, source, 1, **most)
    finally:
        archive.close()


@pytest.fixture
def west(tmp_path: Path, pki: FleetPki) -> Collector:
    return Collector(tmp_path, pki)


@pytest.fixture
def server(west: Collector) -> NodeServer:
    """Enrolled, and never pulled."""
    made = NodeServer(node())
    sign(made.node)
    west.enrol(made)
    return made


async def test_what_a_node_has_pruned_comes_from_another_collector(
    tmp_path: Path,
    pki: FleetPki,
    west: Collector,
) -> None:
    east, server = Collector(tmp_path, pki, "east"), NodeServer(node(epoch_ns=EPOCH_NS))
    at = Moment(BOOT, 10**10 + 3 * EPOCH_NS, 10**18 + 3 * EPOCH_NS)
    server.node.seal([e.NodeStopped(e.EventId(bytes(16)), 0)], at, sign=True)
    server.seal_acks = False  # by a clock of their own
    async with serving(pki, server):
        east.enrol(server)
        assert (await east.pull())["alpha"].verdict == "OK"
        signed = server.node.size - 2
        server.node.min_seq = 5
        west.enrol(server)
        found = (await west.pull())["alpha"]
        assert (found.verdict, found.size) == ("GAP", 0)
        assert main(["--state", str(west.state), "import", "alpha", str(east.state)]) == 0
        assert (await west.pull())["alpha"].verdict == "GAP", "an operator says that it is well"
        key = tmp_path / "mia.pem"
        key.write_bytes(OPERATOR.pem())
        resolve = ["resolve", "alpha", "--operator", "mia", "--key", str(key)]
        assert main(["--state", str(west.state), *resolve, "--reason", "a copy was brought"]) == 0
        await west.pull()
        found = (await west.pull())["alpha"]
    assert found.verdict == "OK" and found.cosigned_size > signed, found
    assert west.frames(server.node) == b"".join(server.node.frames)


async def test_what_another_collector_has_a_note_of_is_taken_to_the_last_record(
    tmp_path: Path,
    pki: FleetPki,
    west: Collector,
    server: NodeServer,
) -> None:
    """The node is gone for good. The note is by the node, or it counts for nothing."""
    east, on = Collector(tmp_path, pki, "east"), server.node
    live(on, 60)
    async with serving(pki, server):
        east.enrol(server)
        assert (await east.pull())["alpha"].verdict == "OK"
    manifest = Manifest(east.state)
    [entry] = manifest.logs()
    size = entry.signed_size
    assert size == entry.head.size
    for touched in (
        {"note": entry.note.replace("\n" + str(size), "\n" + str(size - 1))},
        {"note": ""},
        {"signed_size": size - 1},
        {"signed_size": size + 1},
    ):
        manifest.set(entry.log_id, entry.head, **touched)
        archive = tmp_path / "other"
        shutil.copytree(west.state, archive)
        assert bring(archive, east.state).unsigned > 0, touched
        shutil.rmtree(archive)
        manifest.set(entry.log_id, entry.head, note=entry.note, signed_size=size)
    manifest.close()
    assert bring(west.state, east.state) == Imported(0, size, 0)
    assert west.frames(on) == b"".join(on.frames[:size])


def test_records_below_no_checkpoint_are_left_to_the_node(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    """Else whoever forges the end of a copy would have the node called a liar."""
    on, signed = server.node, server.node.size - 1
    twin = on.clone()
    for number in range(60, 63):
        live(twin, number)
    done = bring(west.state, copy_of(twin, tmp_path / "copy"))
    assert 0 < done.next_seq <= signed and done.unsigned == twin.size - done.next_seq
    assert west.frames(on) == b"".join(on.frames[: done.next_seq])


def test_what_goes_on_without_a_checkpoint_is_not_gathered_without_end(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    """Whoever made the copy may have left all checkpoints out; what is signed before is kept."""
    on, signed = server.node, server.node.size - 1
    twin = on.clone()
    for number in range(60, 90):
        live(twin, number)
    ends = [at + 1 for at in range(on.size, twin.size) if twin.frames[at][27] & FLAG_LAST]
    source = copy_of(twin, tmp_path / "copy", *ends)
    done = bring(west.state, source, unsigned_bytes_max=4096)
    assert 0 < done.next_seq <= signed and 0 < done.unsigned < twin.size - done.next_seq


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_copy_in_files_of_any_size_and_an_export_are_taken(
    west: Collector, server: NodeServer, tmp_path: Path, pieces: int
) -> None:
    on = server.node
    ends = [at + 1 for at in range(on.size) if on.frames[at][27] & FLAG_LAST][-pieces:]
    source = copy_of(on, tmp_path / "copy", *ends)
    assert bring(west.state, source).next_seq == on.size - 2
    sign(on)
    export = tmp_path / "frames"
    export.write_bytes(b"".join(on.frames))
    assert bring(west.state, export) == Imported(on.size - 4, on.size - 2, 2), "it goes on"


def test_the_files_of_another_log_of_the_node_are_passed_over(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    other = PulledNode(9)
    other.start()
    for number in range(4):
        live(other, number)
    other.node_id = server.node.node_id
    source = copy_of(other, tmp_path / "copy")
    with pytest.raises(ChainError, match="CORRUPT_RECORD"):
        bring(west.state, source)
    copy_of(server.node, source)
    assert bring(west.state, source).next_seq == server.node.size - 2


def test_a_copy_that_was_altered_is_refused(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    on = server.node
    data = bytearray(b"".join(on.frames))
    data[len(on.frames[0]) + 100] ^= 1
    export = tmp_path / "frames"
    export.write_bytes(data)
    with pytest.raises(ChainError) as refused:
        bring(west.state, export)
    assert refused.value.sequence == 1
    assert west.frames(on) == b"", "nothing of its piece is taken"


def test_a_copy_by_another_key_is_refused(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    """Whoever makes a whole log up, links and all, cannot sign it."""
    forged = PulledNode()
    forged.signer = PulledNode(7).signer
    forged.sealer = forged._sealer(GENESIS, EMPTY, 2)
    forged.start()
    live(forged, 1)
    sign(forged)
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        bring(west.state, copy_of(forged, tmp_path / "copy"))


def test_what_is_no_copy_says_so(west: Collector, server: NodeServer, tmp_path: Path) -> None:
    frames, on = tmp_path / "frames", server.node
    for data, why in (
        (b"".join(on.frames)[:-8], "middle of a batch"),
        (b"something else", "middle of a batch"),
        (b"".join(on.frames[3:]), "record 3 stands where record 0 belongs"),
        (b"", "no record 0 of log"),
    ):
        frames.write_bytes(data)
        with pytest.raises((StateError, ChainError), match=why):
            bring(west.state, frames)
    with pytest.raises(StateError, match="no segments/ in it"):
        bring(west.state, tmp_path)
    (tmp_path / "segments").mkdir()
    with pytest.raises(StateError, match="no record 0 of log"):
        bring(west.state, tmp_path)


@pytest.mark.parametrize("begins", ["zeros", "a batch that does not end"])
def test_a_copy_in_which_no_batch_ends_is_not_gathered_without_end(
    west: Collector, server: NodeServer, tmp_path: Path, begins: str
) -> None:
    on, export = server.node, tmp_path / "frames"
    first = bytearray(on.frames[0])
    first[27] &= ~FLAG_LAST
    with export.open("wb") as file:
        if begins == "zeros":
            file.truncate(256 << 20)
        else:
            for _ in range((128 << 20) // len(first * 1024)):
                file.write(first * 1024)
    tracemalloc.start()
    try:
        with pytest.raises(StateError, match="no frames"):
            bring(west.state, export)
        assert tracemalloc.get_traced_memory()[1] < 112 << 20
    finally:
        tracemalloc.stop()


def test_a_pipe_in_a_copy_is_not_waited_for(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    on = server.node
    source = copy_of(on, tmp_path / "copy")
    size = on.size + 1
    place = source / "segments" / f"node={on.node_id.hex()}"
    os.mkfifo(place / f"{0:020d}-{size:020d}-{'0' * 8}.seg")
    assert bring(west.state, source).first_seq == 0


def test_the_verb_says_where_it_stands(
    west: Collector, server: NodeServer, tmp_path: Path
) -> None:
    source, out, err = copy_of(server.node, tmp_path / "copy"), StringIO(), StringIO()

    def say(*words: str) -> int:
        console = Console(out, err, program="leased-collector")
        return main(["--state", str(west.state), "import", *words], console)

    assert say("beta", str(source)) == 66 and "no such node" in err.getvalue()
    archive = Archive(west.state)
    assert say("alpha", str(source)) == 78 and "another collector has it" in err.getvalue()
    archive.close()
    assert say("alpha", str(source), "--json") == 0
    told = json.loads(out.getvalue())
    assert (told["first_sequence"], told["next_sequence"]) == (0, server.node.size - 2)
    manifest = Manifest(west.state)
    [entry] = manifest.logs()
    for verdict, status in (("FORK", 65), ("OK", 0)):
        manifest.set(entry.log_id, entry.head, verdict=verdict)
        assert (say("alpha", str(source)) if status else 0) == status
    assert "alpha is FORK" in err.getvalue()
    manifest.close()
    sign(server.node)
    copy_of(server.node, source)
    assert say("alpha", str(source)) == 0 and "hold, signed by the node" in out.getvalue()
    assert "2 more are in the copy, below no checkpoint" in err.getvalue()
    # Of collectors that share a directory: what it names is not connected to.
    (source / POINTER).write_text("host=192.0.2.1 dbname=theirs\n")
    sign(server.node)
    copy_of(server.node, source)
    assert say("alpha", str(source)) == 0
    assert "what `leased-collector backup` makes there" in err.getvalue()
