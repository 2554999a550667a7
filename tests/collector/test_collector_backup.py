# SPDX-License-Identifier: Apache-2.0
"""Backup beside a running collector, and a restore that has the same bills, quotas and records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.archive.archive import Archive, ArchiveReader, LogEntry, Page
from leased.collector.archive.backup import LIST, back_up, read_listing, restore
from leased.collector.archive.manifest_postgres import PostgresManifest
from leased.collector.archive.manifests import COLLECTORS, POINTER, share
from leased.collector.archive.parts import PARTS
from leased.collector.gossip import PeerHead
from leased.collector.heads import DATABASE as HEADS
from leased.collector.heads import Heads
from leased.terms.errors import StateError
from tests.doubles.collector_server import REPOSITORY, CollectorServer
from tests.doubles.economics_history import History
from tests.doubles.fleet_archive import HOUR_NS, JANUARY_NS, cores, sample
from tests.doubles.logs import CountedEntropy
from tests.doubles.postgres_server import PostgresServer

QUOTA = "/v1/governance/quotas/tenant-acme"
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


def database(server: PostgresServer, name: str) -> str:
    """A new one, by a libpq connection string."""
    with psycopg.connect(server.database, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.database.replace("dbname=postgres", f"dbname={name}")


def collector(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leased.collector.main", "--state", str(state), *words]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


class Growing:
    """A log that goes on, page by page, in small segments that are put together now and then."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.log_id, self.head = archive, b"\x77" * 16, GENESIS
        self.history = History(wall_offset_ns=JANUARY_NS)
        self.sealer = Sealer(self.log_id, GENESIS, EMPTY, 2, entropy=CountedEntropy())
        node = (self.log_id.hex(), "cc" * 16, "host-c", "test/77")
        archive.add_log(LogEntry(*node, GENESIS))
        self.history.start()
        self.history.inventory(cores(8))
        self.done = 0

    def grow(self) -> None:
        if self.done:
            self.history.boot_ns += HOUR_NS
            self.history.touch()
        for _, event, moment in self.history.records[self.done :]:
            batch = self.sealer.seal([(event, moment)])
            page = Page(
                *(self.log_id.hex(), self.head, batch.new_head, batch.frames),
                *(b"", batch.new_head.size, "", 0),
            )
            assert self.archive.persist([page]) == [None]
            self.head = batch.new_head
        self.done = len(self.history.records)


def test_a_restored_collector_has_the_same_bills_quotas_and_receivers(tmp_path: Path) -> None:
    state, kept, again = tmp_path / "state", tmp_path / "backup", tmp_path / "again"
    sample(state, time.time_ns(), JANUARY_NS)
    bill = ("bill", "tenant-acme", "2024-01", "--out")
    assert collector(state, "issue", "2024-01").returncode == 0
    assert collector(state, *bill, str(tmp_path / "before.json")).returncode == 0
    with CollectorServer(directory=tmp_path) as server:
        body = {"cpu_cores": 7, "reason": "x"}
        assert server.ask("PATCH", QUOTA, body).status == 200
        hook = {"url": "https://example.org/", "events": ["*"]}
        assert server.ask("POST", "/v1/webhooks", hook).status == 201
        made = collector(state, "backup", str(kept))
        assert made.returncode == 0, made.stderr
        # What comes later is not in it.
        assert server.ask("PATCH", QUOTA, {"cpu_cores": 9, "reason": "x"}).status == 200
        changes = server.ask("GET", "/v1/governance/changes").json["changes"]
    assert not list(kept.glob("derived*")) and not list(kept.rglob("*-wal"))
    assert kept.stat().st_mode & 0o77 == 0
    done = collector(again, "restore", str(kept), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["changes"], told["bills"]) == (2, 2) and told["segments"] > 0
    assert collector(again, "check").returncode == 0
    assert collector(again, *bill, str(tmp_path / "after.json")).returncode == 0
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "after.json").read_bytes()
    with CollectorServer(directory=tmp_path, state=again) as server:
        assert server.ask("GET", QUOTA).json["quotas"]["cpu_cores"] == 7
        assert len(server.ask("GET", "/v1/webhooks").json["webhooks"]) == 1
        seen = server.ask("GET", "/v1/governance/changes").json["changes"]
        assert seen == changes[1:]


def test_a_state_that_collectors_share_is_whole_without_its_database(
    tmp_path: Path, server: PostgresServer
) -> None:
    """Restored, it is one collector's, with the same bills; and again that of several."""
    state, kept, again = tmp_path / "state", tmp_path / "backup", tmp_path / "again"
    sample(state, time.time_ns(), JANUARY_NS)
    bill = ("bill", "tenant-acme", "2024-01", "--out")
    assert collector(state, "issue", "2024-01").returncode == 0
    assert collector(state, *bill, str(tmp_path / "before.json")).returncode == 0
    (state / "cosign.key").write_bytes(b"a key")
    (state / "log").mkdir()
    (state / "log" / "log.id").write_bytes(b"a log")
    first = database(server, "first")
    share(state, first, "west")
    with closing(PostgresManifest(first)) as manifest:
        [log_id, *_] = [entry.log_id for entry in manifest.logs()]
        manifest.add_heads([(log_id, "east", 7, "o/east", 3, b"\x01" * 32, 5, b"signed")])
        manifest.add_resolution(log_id, "somebody's word")
        logs, nodes = manifest.logs(), manifest.nodes()
    made = collector(state, "backup", str(kept))
    assert made.returncode == 0, made.stderr
    with closing(PostgresManifest(first)) as manifest, manifest.transaction():
        manifest._ask("DROP TABLE segments, resolutions, heads, nodes, logs")
    assert not (kept / POINTER).exists()
    done = collector(again, "restore", str(kept))
    assert done.returncode == 0 and "share" in done.stderr, done.stderr
    assert collector(again, "check").returncode == 0
    assert collector(again, *bill, str(tmp_path / "after.json")).returncode == 0
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "after.json").read_bytes()
    with closing(Archive(again)) as archive:
        with closing(Heads(archive)) as heads:
            [head] = heads.of(log_id)
        assert (head.peer, head.sequence, head.signature) == ("east", 7, b"signed")
        assert [note for _, note in archive.manifest.resolutions(log_id)] == ["somebody's word"]
        assert (archive.manifest.logs(), archive.manifest.nodes()) == (logs, nodes)
    share(again, database(server, "second"), "west")
    own = again / COLLECTORS / "west"
    assert (own / "cosign.key").read_bytes() == b"a key" and (own / HEADS).exists()
    [aside] = own.glob("log.of-*")
    assert (aside / "log.id").read_bytes() == b"a log" and not (own / "log").exists()
    assert collector(again, *bill, str(tmp_path / "shared.json")).returncode == 0
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "shared.json").read_bytes()


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_a_backup_beside_a_writer_is_one_state(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Records come, and segments are put together, between any two files that are copied."""
    archive = Archive(tmp_path / "state")
    if kind == "shared":
        archive.close()
        share(tmp_path / "state", database(request.getfixturevalue("server"), "writer"))
        archive = Archive(tmp_path / "state", name="west")
        archive.manifest.take("west", range(PARTS), 3600.0)
    growing = Growing(archive)
    for _ in range(40):
        growing.grow()
    count = 0

    def progress(_: str) -> None:
        nonlocal count
        count += 1
        if count % 7 == 0 and count < 70:
            growing.grow()
            archive.consolidate(growing.log_id.hex())

    back_up(tmp_path / "state", tmp_path / "kept", now_ns=1, progress=progress)
    archive.close()
    restore(tmp_path / "kept", tmp_path / "again")
    reader = ArchiveReader(tmp_path / "again")
    [entry] = reader.logs()
    assert [one.sequence for one in reader.records(entry.log_id)] == [*range(entry.head.size)]
    assert entry.head.size >= 40 and count > 7
    reader.close()
    # It goes on: what a crash may leave there is nothing that the manifest does not name.
    Archive(tmp_path / "again").close()


def test_every_database_is_taken_as_it_is_at_one_moment(tmp_path: Path) -> None:
    """What was committed lies beside the file, in the log of a database that somebody has open."""
    sample(tmp_path / "state", time.time_ns())
    with closing(Archive(tmp_path / "state")) as archive, closing(Heads(archive)) as heads:
        [log_id, *_] = [entry.log_id for entry in archive.logs()]
        heads.add([PeerHead("east", 7, bytes.fromhex(log_id), "o", 3, bytes(32), 5, b"signed")])
        back_up(tmp_path / "state", tmp_path / "kept", now_ns=1)
    restore(tmp_path / "kept", tmp_path / "again")
    with closing(Archive(tmp_path / "again")) as archive, closing(Heads(archive)) as heads:
        assert [one.sequence for one in heads.of(log_id)] == [7]


def test_what_is_there_already_is_linked(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    first, second = tmp_path / "one", tmp_path / "two"
    back_up(tmp_path / "state", first, now_ns=1)
    back_up(tmp_path / "state", second, now_ns=2, before=first)
    segments = [path for path in read_listing(second).files if path.startswith("segments/")]
    assert segments
    for path in segments:
        assert os.path.samefile(first / path, second / path)


@pytest.mark.parametrize("harm", ["flip", "drop", "leads out"])
def test_what_is_not_what_was_backed_up_is_not_restored(tmp_path: Path, harm: str) -> None:
    sample(tmp_path / "state", time.time_ns())
    kept = tmp_path / "kept"
    listing = back_up(tmp_path / "state", kept, now_ns=1)
    back_up(tmp_path / "state", tmp_path / "whole", now_ns=1)
    path = next(path for path in listing.files if path.startswith("segments/"))
    if harm == "flip":
        raw = bytearray((kept / path).read_bytes())
        raw[len(raw) // 2] ^= 1
        (kept / path).write_bytes(raw)
    elif harm == "drop":
        (kept / path).unlink()
    else:
        listed = (kept / "backup.json").read_text().replace(path, f"../{path}")
        (kept / "backup.json").write_text(listed)
    with pytest.raises(StateError, match="not what|missing|leads out"):
        restore(kept, tmp_path / "again")
    # Nothing there looks like a collector's state, or is in the way of another backup.
    assert not (tmp_path / "again").exists() or not any((tmp_path / "again").iterdir())
    assert restore(tmp_path / "whole", tmp_path / "again").files == len(listing.files)


def test_what_was_altered_before_the_backup_is_not_found_at_the_restore(tmp_path: Path) -> None:
    state = tmp_path / "state"
    sample(state, time.time_ns())
    segment = sorted((state / "segments").rglob("*.seg"))[0]
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = collector(state, "backup", str(tmp_path / "bad"))
    assert done.returncode == 78 and f"{segment.name}: was altered" in done.stderr
    with pytest.raises(StateError, match="no backup, or one that was not finished"):
        read_listing(tmp_path / "bad")
    segment.write_bytes(whole)
    assert collector(state, "backup", str(tmp_path / "good")).returncode == 0


def test_a_backup_that_was_killed_is_none(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    command = [sys.executable, "-m", "leased.collector.main", "--state", str(tmp_path / "state")]
    process = subprocess.Popen([*command, "backup", str(tmp_path / "kept")], env=ENVIRONMENT)
    while not (tmp_path / "kept").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (tmp_path / "kept" / LIST).exists():
        return  # it was faster: whole, and nothing to prove
    with pytest.raises(StateError, match="not finished"):
        restore(tmp_path / "kept", tmp_path / "again")
    # Nothing is made beside what is there.
    with pytest.raises(StateError, match="something in it"):
        back_up(tmp_path / "state", tmp_path / "state", now_ns=1)


def test_a_restore_goes_into_nothing(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    back_up(tmp_path / "state", tmp_path / "kept", now_ns=1)
    with pytest.raises(StateError, match="something in it"):
        restore(tmp_path / "kept", tmp_path / "state")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / POINTER).write_text("host=db.example.org\n")
    with pytest.raises(StateError, match="database"):
        back_up(tmp_path / "shared", tmp_path / "other", now_ns=1)
    # Each would be in the next one, and so twice as large as the one before.
    with pytest.raises(StateError, match="within what it is to be a backup of"):
        back_up(tmp_path / "state", tmp_path / "state" / "backups" / "monday", now_ns=1)
    assert not (tmp_path / "state" / "backups").exists()
    with pytest.raises(StateError, match="no collector's state"):
        back_up(tmp_path / "none", tmp_path / "other", now_ns=1)
