# SPDX-License-Identifier: Apache-2.0
"""Hard times of a collector: nodes that never stop talking or stop in the middle, a disk that is
full, and a thousand nodes at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import h11
import msgspec
import pytest
import trio

from leased.chain.tree import Frontier
from leased.collector import asking
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.heads import Heads
from leased.collector.pulling import clock
from leased.collector.transport import Answer
from leased.collector.witness import Witness, load_cosigner, os_entropy
from leased.durable.files import DirectoryDisk
from leased.durable.reader import read_log
from leased.terms import event as e
from leased.terms.errors import EX_IOERR, LeasedError, StateError, disk_error
from leased.terms.event import Event
from leased.terms.identity import BootId
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import node
from tests.collector.test_collector_pull import SECOND, Collector
from tests.doubles.collector_server import REPOSITORY
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import open_in, started
from tests.doubles.node_server import NodeServer, Reply, serving
from tests.doubles.nodes import EPOCH_NS, PulledNode
from tests.doubles.small_disk import fill, mounted_small

MIB = 1 << 20
GIB = 1 << 30
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}
NODES = int(os.environ.get("LEASED_FLEET_NODES", "1000"))


@pytest.fixture
def west(tmp_path: Path, pki: FleetPki) -> Collector:
    return Collector(tmp_path, pki)


class Endless(NodeServer):
    """A node that answers every request with ten GB, or with so much as it gets rid of."""

    sent = 0

    async def serve_connection(self, stream: trio.SSLStream) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            while type(event := http.next_event()) is not h11.EndOfMessage:
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some())
            await self.pour(stream, http)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def pour(self, stream: trio.SSLStream, http: h11.Connection) -> None:
        await stream.send_all(http.send(h11.Response(status_code=200, headers=self.kind())))
        while self.sent < 10 * GIB:
            await stream.send_all(http.send(h11.Data(data=bytes(MIB))))
            self.sent += MIB

    def kind(self) -> list[tuple[str, str]]:
        return [("content-type", "application/vnd.leased.records"), *self.framing()]

    def framing(self) -> list[tuple[str, str]]:
        return [("transfer-encoding", "chunked")]


class Announced(Endless):
    """The same, and says so first."""

    def framing(self) -> list[tuple[str, str]]:
        return [("content-length", str(10 * GIB))]


class Crumbling(Endless):
    """A node that sends its answer a byte at a time, in pieces: 12 MiB are 12 million of them."""

    why = "does not say its Content-Length"

    def framing(self) -> list[tuple[str, str]]:
        return [("content-length", "9"), ("transfer-encoding", "chunked")]

    async def pour(self, stream: trio.SSLStream, http: h11.Connection) -> None:
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.kind())
        await stream.send_all(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode())
        while self.sent < 10 * GIB:
            await stream.send_all(b"1\r\nx\r\n" * 10_000)
            self.sent += 60_000


class Promising(Endless):
    """A node that has another answer coming, for ever."""

    why = "nobody asked for"

    async def pour(self, stream: trio.SSLStream, http: h11.Connection) -> None:
        while self.sent < 10 * GIB:
            await stream.send_all(b"HTTP/1.1 103 x\r\n\r\n" * 1000)
            self.sent += 18_000


class Stalling(NodeServer):
    """A node that stops within a frame, and stays on the line."""

    async def serve_connection(self, stream: trio.SSLStream) -> None:
        http = h11.Connection(h11.SERVER)
        while type(event := http.next_event()) is not h11.EndOfMessage:
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
        page = self.node.page(0, bytes(32), MIB)
        length = [("content-length", str(len(page)))]
        head = http.send(h11.Response(status_code=200, headers=length))
        await stream.send_all(head + http.send(h11.Data(data=page[:100])))
        await trio.sleep_forever()


@pytest.mark.parametrize("kind", [Endless, Announced, Crumbling, Promising, Stalling])
async def test_a_node_that_does_not_end_costs_nobody_else(
    west: Collector, pki: FleetPki, kind: type[NodeServer]
) -> None:
    west.config = msgspec.structs.replace(west.config, timeout_ns=3 * SECOND)
    bad, good = kind(PulledNode(2)), NodeServer(node())
    bad.node.start()
    async with serving(pki, bad, good):
        west.enrol(good, "good")
        west.enrol(bad, "bad")
        size = good.node.size
        reached = await west.pull()
    # What is no answer says nothing about the log: no verdict, nothing stored, the next is asked.
    assert getattr(kind, "why", "") in reached["bad"].unreachable
    assert reached["bad"].unreachable and reached["bad"].verdict == "BEHIND"
    assert reached["bad"].size == 0 and reached["good"].size == size
    assert west.frames(good.node) == b"".join(good.node.frames[:size])
    assert getattr(bad, "sent", 0) < 64 * MIB, "it was cut off"
    assert not list((west.state / "segments").rglob(f"*{bad.node.node_id.hex()}*/*"))


DEEP = b'{"x":' + b"[" * 100_000
"""No decoder goes so deep, and not all of them call that an error of the text."""
PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("part", "status", "kind", "body"),
    [
        ("records", 409, PROBLEM, DEEP),
        ("records", 409, PROBLEM, b'{"detail":"\xed\xa0\x80"}'),
        ("ack", 200, "application/json", DEEP),
        ("ack", 200, "application/json", b'{"size":1e999}'),
        ("ack", 409, PROBLEM, DEEP),
        ("proof", 200, "application/json", DEEP),
    ],
)
async def test_an_answer_that_no_decoder_takes_costs_nobody_else(
    west: Collector, pki: FleetPki, part: str, status: int, kind: str, body: bytes
) -> None:
    bad, good = NodeServer(node()), NodeServer(PulledNode(2))
    good.node.start()
    async with serving(pki, bad, good):
        west.enrol(bad, "bad")
        west.enrol(good, "good")
        if part == "proof":
            await west.pull()
        told = {"type": "urn:leased:audit:fork", "size": 1, "hash": "ab" * 32}
        fork = (409, PROBLEM, json.dumps({**told, "checkpoint": bad.node.note()}).encode())

        def sabotage(target: str, reply: Reply) -> Reply:
            forked = fork if part == "proof" and "/records" in target else reply
            return (status, kind, body) if f"/{part}" in target else forked

        bad.sabotage = sabotage
        good.node.seal([e.NodeStopped(started().event_id, 1)])
        size = good.node.size
        reached = await west.pull()
    assert reached["good"].size == size and reached["good"].verdict == "OK"
    assert reached["bad"].unreachable or reached["bad"].verdict in ("OK", "FORK")


@pytest.mark.parametrize("status", [500, 503])
async def test_what_a_node_says_is_told_in_a_line(
    west: Collector, pki: FleetPki, status: int
) -> None:
    """It comes into the journal, where 12 MiB of it would be."""
    bad, detail = NodeServer(node()), "the disk is full, " + "x" * MIB
    body = json.dumps({"detail": detail, "verdict": detail}).encode()
    bad.sabotage = lambda target, reply: (status, PROBLEM, body)
    async with serving(pki, bad):
        west.enrol(bad, "bad")
        reached = await west.pull()
    [told] = [one for one in west.told if "not reached" in one]
    assert "the disk is full" in told and len(told) < 1000
    assert len(reached["bad"].unreachable) < 1000


def test_a_node_that_says_wait_for_ever_is_asked_again() -> None:
    answer = Answer(429, {"retry-after": "9" * 5000}, b"")
    with pytest.raises(asking.SlowDown) as raised:
        asking._problem(answer, "/audit")
    assert raised.value.seconds == 1


@pytest.mark.parametrize(
    "edits", [{"begin_ns": 1 << 63}, {"end_wall_ns": 1 << 63}, {"skipped": (1 << 63) - 1}]
)
async def test_a_node_that_seals_what_cannot_be_costs_nobody_else(
    west: Collector, pki: FleetPki, edits: dict[str, int]
) -> None:
    """Root on a node has the key of the open epoch, and writes into the next seal what it likes."""
    bad, good = NodeServer(PulledNode(2, epoch_ns=EPOCH_NS)), NodeServer(node())
    ratchet = bad.node.ratchet
    assert ratchet is not None
    rebooted = BootId(b"\x0b" * 16)
    bad.node.start()
    restarted = msgspec.structs.replace(started(), boot_id=rebooted)
    bad.node.seal([restarted], Moment(rebooted, 5, 1))
    key = ratchet.key
    ended = Moment(rebooted, 5 + EPOCH_NS, 1)
    first = bad.node.size
    made = ratchet.seal(bytes(16), first, bad.node.tree(first).root(), ended)
    forged = msgspec.structs.replace(made, boot_id=rebooted, **edits)
    with contextlib.suppress(struct.error):
        forged = msgspec.structs.replace(forged, tag=key.tag(bad.node.log_id, forged))
    bad.node.sealer.ratchet = None
    bad.node.seal([forged], ended)
    counts = {"epoch": made.epoch + forged.skipped + 1, "skipped": 0, "first_seq": first}
    counts |= {"begin_ns": forged.end_ns, "end_ns": forged.end_ns + EPOCH_NS}
    counts |= {"size": bad.node.size, "boot_id": rebooted}
    root = bad.node.tree(bad.node.size).root()
    later = msgspec.structs.replace(made, **counts, root=root)
    bad.node.seal([later], Moment(rebooted, forged.end_ns + 1, 1))
    size = good.node.size
    async with serving(pki, bad, good):
        west.enrol(good, "good")
        west.enrol(bad, "bad")
        reached = await west.pull()
    assert reached["bad"].verdict == "BAD_SEAL"
    assert (reached["good"].verdict, reached["good"].size) == ("OK", size)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    with mounted_small(tmp_path / "small") as where:
        yield where


@pytest.mark.root
async def test_a_full_disk_loses_nothing_and_is_gone_on_from(
    tmp_path: Path, pki: FleetPki, small_disk: Path
) -> None:
    west = Collector(small_disk, pki)
    server = NodeServer(node(200))
    async with serving(pki, server):
        west.enrol(server)
        first = (await west.pull())["alpha"].size
        filler = fill(small_disk)
        for number in range(400):
            server.node.seal([_more(number)])
        told = ""
        try:
            found = (await west.pull())["alpha"]
            told = found.unreachable
        except (LeasedError, BaseExceptionGroup, OSError) as error:
            told = str(_innermost(error))
        assert "space" in told or "full" in told, told
        filler.unlink()
        size = server.node.size
        assert (await west.pull())["alpha"].verdict == "OK"
        assert west.frames(server.node)[: len(b"".join(server.node.frames[:size]))] == b"".join(
            server.node.frames[:size]
        )
    assert first > 0


@pytest.mark.root
@pytest.mark.parametrize("left", [0, 65_536])
async def test_a_full_disk_is_no_end_for_systemd(
    tmp_path: Path, pki: FleetPki, small_disk: Path, left: int
) -> None:
    """The unit does not start what ended with one of these again: nobody would follow the fleet
    when there is room."""
    unit = (REPOSITORY / "systemd/leased-collector-pull.service").read_text()
    [final] = [one for one in unit.splitlines() if one.startswith("RestartPreventExitStatus=")]
    west, config = Collector(small_disk, pki), tmp_path / "west.toml"
    server = NodeServer(node(200))
    async with serving(pki, server):
        west.enrol(server)
        fill(small_disk, left)
        process = await trio.run_process(
            west.words(config), check=False, capture_stderr=True, env=ENVIRONMENT
        )
    assert process.returncode == EX_IOERR, process.stderr
    assert str(EX_IOERR) not in final.partition("=")[2].split()
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.root
def test_what_others_cosigned_waits_for_room_as_well(pki: FleetPki, small_disk: Path) -> None:
    archive = Archive(Collector(small_disk, pki).state)
    heads = Heads(archive)
    filler = fill(small_disk)
    for _ in range(2):
        with pytest.raises(StateError, match="nothing of it was stored") as raised:
            for size in range(1, 4096):
                heads.remember("ab" * 32, Frontier(size, (bytes(32),) * size.bit_count()))
        assert disk_error(raised.value) == errno.ENOSPC
    filler.unlink()
    heads.remember("ab" * 32, Frontier(1, (bytes(32),)))
    heads.close()
    archive.close()


class Brimful(DirectoryDisk):
    """A disk that has no block left, for a while."""

    full = False

    def reserve(self, handle: int, length: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().reserve(handle, length)


def test_an_own_log_without_room_for_its_next_segment_goes_on_later(
    west: Collector, tmp_path: Path
) -> None:
    """The segment was ended first and its successor looked for then: only a restart helped, every
    two seconds."""
    directory = tmp_path / "own"
    directory.mkdir(mode=0o700)
    disk = Brimful(directory)
    log = open_in(directory, disk=disk, segment_bytes=65_536, epoch_ns=0)
    cosigner = load_cosigner(west.state, "west", os_entropy)
    with contextlib.closing(Witness(cosigner, log, clock(), os_entropy)) as witness:
        witness.start()
        disk.full = True
        with pytest.raises(StateError, match="the next record needs another segment") as raised:
            for _ in range(200):
                witness.tell_resolution(bytes(16), "FORK", "x" * 1000)
        assert (disk_error(raised.value), witness.failed) == (errno.ENOSPC, False)
        size = witness.tree.size
        disk.full = False
        witness.tell_resolution(bytes(16), "FORK", "room")
        assert witness.tree.size > size
    with contextlib.closing(read_log(directory)) as read:
        told = [one.note for _, one, _ in read.events() if isinstance(one, e.VerdictResolved)]
    assert told[-1] == "room" and len(list(directory.glob("seg-*"))) > 1


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _more(number: int) -> Event:
    return e.HeadCountersigned(
        e.EventId(number.to_bytes(16, "big")), 1, bytes(32), 1, number, bytes(64)
    )


def _peak_kib_of(pid: int) -> int:
    """The most memory that a process has had; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


@pytest.mark.slow
async def test_a_thousand_nodes_at_once(tmp_path: Path, pki: FleetPki) -> None:
    """Real TLS on both sides, the installed program; its memory has a bound, whoever answers."""
    west, servers = Collector(tmp_path, pki), []
    for number in range(1, NODES + 1):
        on = PulledNode(number)
        on.start()
        servers.append(NodeServer(on))
    words = [*west.words(tmp_path / "west.toml"), "--json"]

    def run() -> tuple[str, int, int]:
        peak_kib = 0
        with (tmp_path / "said").open("w+") as said:
            process = subprocess.Popen(
                words, stdout=said, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True
            )
            ended, over = os.pidfd_open(process.pid), select.poll()  # its number may be a large one
            over.register(ended, select.POLLIN)
            while not over.poll(20):
                # Not wait4's, which begins with what we have ourselves.
                peak_kib = max(peak_kib, _peak_kib_of(process.pid))
            os.close(ended)
            said.seek(0)
            return said.read(), process.wait(), peak_kib

    async with serving(pki, *servers):
        for number, server in enumerate(servers):
            west.enrol(server, f"node-{number:04}")
        with trio.fail_after(600):
            out, status, peak_kib = await trio.to_thread.run_sync(run)
    assert status == 0
    reached = json.loads(out[out.rindex('{\n  "version"') :])["nodes"]
    assert len(reached) == NODES and {one["verdict"] for one in reached} == {"OK"}
    reader = ArchiveReader(west.state)
    assert sum(entry.head.size for entry in reader.logs()) >= sum(s.node.size - 1 for s in servers)
    reader.close()
    assert {len(server.acked) for server in servers} == {1}
    print(f"{NODES} nodes, {peak_kib >> 10} MiB")
    assert 0 < peak_kib < 300 << 10
