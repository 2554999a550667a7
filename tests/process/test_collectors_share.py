# SPDX-License-Identifier: Apache-2.0
"""Several collectors on one fleet, as processes over real TLS, with their manifest in a real
PostgreSQL: one is killed and the database crashes while nodes seal, and in the end every record is
there once and what is metered has the bytes of one collector's that nothing ever happened to.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from leased.chain.certificate import Role
from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import ManifestGone
from leased.collector.archive.manifest_postgres import PostgresManifest
from leased.collector.archive.manifests import share
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.pulling import clock
from leased.collector.witness import open_witness, os_entropy
from leased.economics.contracts import Terms
from leased.terms import event as e
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import live
from tests.collector.test_collector_peers import follow, free_port
from tests.collector.test_collector_pull import Collector
from tests.doubles.economics_history import memory, subject
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import BOOT, started
from tests.doubles.node_server import NodeServer, Reply, serving
from tests.doubles.nodes import PulledNode
from tests.doubles.postgres_server import PostgresServer

REPOSITORY = Path(__file__).resolve().parents[2]
NODES = 6
MINUTE_NS = 60 * 10**9
START_NS = 1_764_547_200 * 10**9
"""2025-12-01T00:00:00Z."""

PATIENCE_S = 120.0
FORKED = 8
"""So many that each of two collectors has some."""


class Acknowledged(NodeServer):
    """Takes anybody's cosignature, and seals none: what is sealed does not depend on who pulls."""

    def _ack(self, note: str) -> Reply:
        self.acked.append(int(note.splitlines()[1]))
        return 200, "application/json", json.dumps({"size": self.acked[-1]}).encode()


class Sealing:
    """Nodes that seal a life of a lease now and then; minutes of theirs are moments of ours."""

    def __init__(self, nodes: int = NODES) -> None:
        self.servers = []
        self._minute = 0
        for number in range(1, nodes + 1):
            on = PulledNode(number, origin=f"o/{number}")
            on.seal([started()], Moment(BOOT, 10**10, START_NS))
            self.servers.append(Acknowledged(on))

    def seal(self, lives: int) -> None:
        for _ in range(lives):
            self._minute += 7
            for server in self.servers:
                self._one_life(server.node, self._minute)

    def let_pass(self, minutes: int) -> None:
        """Nothing is sealed for so long."""
        self._minute += minutes

    def _one_life(self, on: PulledNode, minute: int) -> None:
        begun = Moment(BOOT, 10**10 + minute * MINUTE_NS, START_NS + minute * MINUTE_NS)
        ended = Moment(BOOT, begun.boot_ns + 5 * MINUTE_NS, begun.wall_ns + 5 * MINUTE_NS)
        lease_id, whose = on.entropy(), subject(memory(1 << 30), tenant=f"tenant-{minute % 3}")

        def head(at: Moment) -> tuple[object, ...]:
            return e.EventId(on.entropy()), lease_id, whose, 1, at.boot_ns

        ttl_ns, until_ns = 60 * MINUTE_NS, begun.boot_ns + 60 * MINUTE_NS
        granted = e.Allocated(*head(begun), on.entropy(), ttl_ns, until_ns, 0, 0)
        on.seal([granted, e.Activated(*head(begun), bytes(32))], begun)
        on.seal([e.Released(*head(ended)), e.TeardownBegun(*head(ended))], ended)
        cut = e.AccessCut(*head(ended), False, bytes(32))
        scrubbed = e.Scrubbed(*head(ended), 1 << 30, bytes(32))
        proof = e.Reclaimed(*head(ended), (0,), 0, 0, None, None, None, 0, 0, bytes(32))
        on.seal([cut, scrubbed, proof], ended)


class Shared:
    """One directory that two collectors share."""

    def __init__(self, one: Collector, database: str, directory: Path, pki: FleetPki) -> None:
        self.state, self.database, self.pki, self.directory = one.state, database, pki, directory
        share(one.state, database, "west")
        self.manifest = PostgresManifest(database, read_only=True)

    def configured(self, name: str) -> Path:
        """The configuration of one of them."""
        certificate = self.pki.issue(Role.COLLECTOR, name)
        config = self.directory / f"{name}.toml"
        config.write_text(
            f'[pull]\nname = "{name}"\nca = "{self.pki.ca}"\ncertificate = "{certificate}"\n'
            f'key = "{certificate.with_suffix(".key")}"\npage_size = "2KiB"\nwait = "2s"\n'
            'pace = "20ms"\ninterval = "100ms"\nbackoff_max = "1s"\ntimeout = "20s"\n'
        )
        return config

    @contextmanager
    def collector(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A collector as a process, until the block ends."""
        config = self.configured(name)
        words = ["-m", "leased.collector.main", "--state", str(self.state), "pull"]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words, "--config", str(config)],
                cwd=REPOSITORY,
                env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
                stderr=log,
                stdout=log,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def holders(self) -> set[str]:
        rows = self.manifest._rows("SELECT DISTINCT holder FROM parts WHERE holder <> ''")
        return {holder.partition("/")[0] for (holder,) in rows}

    def size(self) -> int:
        return sum(entry.head.size for entry in self.manifest.logs())

    def said(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return "\n".join(path.read_text("utf-8", "replace")[-2000:] for path in logs)


async def until(shared: Shared, holds: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
    """Look every now and then, and let the nodes go on sealing."""
    with trio.move_on_after(PATIENCE_S):
        while not holds():
            bad = [entry.why for entry in shared.manifest.logs() if entry.verdict.startswith("BAD")]
            assert not bad, bad
            meanwhile()
            await trio.sleep(0.1)
        return
    raise AssertionError(f"it does not come to that: {shared.said()}")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


async def test_one_is_killed_and_the_database_crashes_and_the_bill_is_that_of_one_collector(
    tmp_path: Path, server: PostgresServer
) -> None:
    pki, fleet = FleetPki(tmp_path / "pki"), Sealing()
    alone, both = Collector(tmp_path, pki, "alone"), Collector(tmp_path, pki, "both")
    fleet.seal(8)
    async with serving(pki, *fleet.servers):
        for one in (alone, both):
            for number, node_server in enumerate(fleet.servers):
                one.enrol(node_server, f"node-{number}")
        shared = Shared(both, server.database, tmp_path, pki)
        with shared.collector("west") as west, shared.collector("east") as east:
            await until(
                shared, lambda: shared.holders() == {"west", "east"} and shared.size() > 60, nothing
            )
            grown = shared.size()
            await until(shared, lambda: shared.size() > grown + 40, lambda: fleet.seal(1))
            west.send_signal(signal.SIGKILL)
            west.wait()
            fleet.seal(2)
            server.crash()
            fleet.seal(2)
            server.start()
            with contextlib.suppress(ManifestGone):
                shared.holders()  # the connection of before
            await until(shared, lambda: shared.holders() == {"east"}, nothing)
            fleet.seal(2)
            whole = sum(one.node.size for one in fleet.servers)
            await until(shared, lambda: shared.size() == whole, nothing)
            assert east.poll() is None, shared.said()
            assert "reached again, at" not in shared.said(), "told once, and not of each node"
            east.send_signal(signal.SIGTERM)
            east.wait(PATIENCE_S)
        assert all(not one.complaints for one in fleet.servers)
        await alone.pull()
    shared.manifest.close()
    check(fleet, alone, shared)


async def test_what_nodes_have_pruned_is_imported_by_one_while_none_follows(
    tmp_path: Path, server: PostgresServer
) -> None:
    pki, fleet = FleetPki(tmp_path / "pki"), Sealing(2)
    alone, both = Collector(tmp_path, pki, "alone"), Collector(tmp_path, pki, "both")
    fleet.seal(8)
    pruned = fleet.servers[0].node
    async with serving(pki, *fleet.servers):
        for one in (alone, both):
            for number, node_server in enumerate(fleet.servers):
                one.enrol(node_server, f"node-{number}")
        await alone.pull()
        pruned.min_seq = 20
        shared = Shared(both, server.database, tmp_path, pki)

        def verdict() -> str:
            return next(one.verdict for one in shared.manifest.logs() if one.name == "node-0")

        words = [sys.executable, "-m", "leased.collector.main", "--state", str(shared.state)]
        words += ["import", "node-0", str(alone.state), "--config", str(shared.configured("east"))]

        async def bring() -> subprocess.CompletedProcess[bytes]:
            path = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}
            return await trio.run_process(
                words, cwd=REPOSITORY, env=path, check=False, capture_stderr=True
            )

        with shared.collector("west") as west:
            await until(shared, lambda: verdict() == "GAP", nothing)
            refused = await bring()
            assert refused.returncode == 78 and b"followed by west; stop" in refused.stderr
            # Told to stop it gives back what it had, and nobody waits for it to be forgotten.
            west.send_signal(signal.SIGTERM)
            assert west.wait(PATIENCE_S) == 0, shared.said()
        done = await bring()
        assert done.returncode == 0, done.stderr
        assert not shared.holders()
    archive = ArchiveReader(shared.state)
    [entry] = [one for one in archive.logs() if one.name == "node-0"]
    assert entry.verdict == "GAP" and entry.head.size > pruned.min_seq, entry
    assert all(damaged is None for _, damaged in archive.check())
    archive.close()
    shared.manifest.close()


class Forked:
    """Nodes that show another history to a collector that is not of the fleet."""

    def __init__(self, count: int) -> None:
        self.shown, self.hidden = [], []
        for number in range(1, count + 1):
            on = PulledNode(number, origin=f"o/{number}")
            on.start()
            twin = on.clone()
            live(on, 1)
            live(twin, 2)
            self.shown.append(Acknowledged(on))
            self.hidden.append(Acknowledged(twin))


async def test_a_fork_that_one_hears_of_is_found_by_who_has_the_log(
    tmp_path: Path, server: PostgresServer
) -> None:
    """North, which one of the two follows, has cosigned other histories of nodes that either of
    them has."""
    pki, nodes = FleetPki(tmp_path / "pki"), Forked(FORKED)
    both, north = Collector(tmp_path, pki, "both"), Collector(tmp_path, pki, "north")
    port = free_port()
    own = {"address": "127.0.0.1", "port": port, "quorum": 0}
    own["collectors"] = [{"name": "both", "key": both.key.text()}]
    north.config = msgspec.structs.replace(north.config, own_log=own)
    open_witness(north.state, "north", now=clock(), entropy=os_entropy).close()
    async with serving(pki, *nodes.shown, *nodes.hidden):
        for number, (shown, hidden) in enumerate(zip(nodes.shown, nodes.hidden, strict=True)):
            both.enrol(shown, f"node-{number}")
            north.enrol(hidden, f"node-{number}")
        follow(both, "north", f"https://127.0.0.1:{port}/collector/north", north)
        shared = Shared(both, server.database, tmp_path, pki)

        def verdicts() -> list[str]:
            entries = shared.manifest.logs()
            return [one.verdict for one in entries if one.name.startswith("node-")]

        async with trio.open_nursery() as nursery:
            with shared.collector("west"), shared.collector("east"):
                both_there = {"west", "east"}
                await until(
                    shared,
                    lambda: shared.holders() == both_there and verdicts() == ["OK"] * FORKED,
                    nothing,
                )
                nursery.start_soon(partial(north.pull, once=False))
                await until(shared, lambda: verdicts() == ["FORK"] * FORKED, nothing)
            nursery.cancel_scope.cancel()
    whose = shared.manifest._rows(
        "SELECT l.name, split_part(p.holder, '/', 1) FROM logs l JOIN parts p ON p.part = l.part"
    )
    print(f"who had which log: {dict(whose)}")
    assert "was given another tree" in shared.manifest.logs()[0].why
    shared.manifest.close()


def check(fleet: Sealing, alone: Collector, shared: Shared) -> None:
    """No record is lost or doubled, and what follows from them is the same."""
    answers = []
    for state in (alone.state, shared.state):
        reader = ArchiveReader(state)
        for one in fleet.servers:
            frames = b"".join(reader.frames(one.node.log_id.hex()))
            assert frames == b"".join(one.node.frames)
            segments = reader.manifest.segments(one.node.log_id.hex())
            spans = [(segment.first_seq, segment.last_seq) for segment in segments]
            assert [first for first, _ in spans[1:]] == [last + 1 for _, last in spans[:-1]]
        store = Store(state)
        store.refresh(reader)
        source = StoreSource(store.rollups)
        tenants = source.tenants()
        assert tenants == ("tenant-0", "tenant-1", "tenant-2")
        bills = [Accounts(source, Terms()).bill(one, "2025-12").canonical() for one in tenants]
        files = {
            str(path.relative_to(state)): path.read_bytes()
            for path in sorted((state / "derived").rglob("*"))
            if path.is_file()
        }
        answers.append((bills, files))
        source.close()
        reader.close()
    assert answers[0] == answers[1]


def nothing() -> None:
    """Only wait."""
