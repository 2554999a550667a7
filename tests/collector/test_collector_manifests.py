# SPDX-License-Identifier: Apache-2.0
"""Both manifests keep the same promises: a cursor moves by compare-and-swap, a transaction counts
whole or not at all; and the one of several collectors refuses who has lost its part."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from leased.chain.head import GENESIS, Head
from leased.collector.archive.archive import Archive, Page
from leased.collector.archive.manifest import (
    CursorMoved,
    LogEntry,
    Manifest,
    ManifestGone,
    ManifestTables,
)
from leased.collector.archive.manifest_postgres import PartLost, PostgresManifest
from leased.collector.archive.manifests import (
    POINTER,
    is_shared,
    open_manifest,
    own_directory,
    share,
)
from leased.collector.archive.parts import PARTS, part_of, share_of
from leased.collector.archive.segments import Segment
from leased.collector.archive.sharing import Sharing
from leased.collector.main import main
from leased.ctl.console import Console
from leased.durable.files import DirectoryDisk
from leased.durable.filesystem import Filesystem
from leased.terms.errors import EX_UNAVAILABLE, InvalidParameter, StateError
from tests.doubles.collector_server import REPOSITORY
from tests.doubles.postgres_server import PostgresServer

ENTRY = LogEntry("1d" * 16, "4e" * 16, "alpha", "o/n", GENESIS, state=b"\x00carried\xff")
ONE, TWO = Head(3, b"\x01" * 32), Head(5, b"\x02" * 32)
SEGMENT = Segment(ENTRY.node, ENTRY.log_id, 0, 2, "01" * 32, "segments/a", "ab" * 32, 300)
EVERY = range(PARTS)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


Open = Callable[[], ManifestTables]


@pytest.fixture(params=["sqlite", "postgres"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens one and the same empty manifest, as often as it is called."""
    opened: list[ManifestTables] = []
    if request.param == "postgres":
        server = request.getfixturevalue("server")
        empty(server)

    def again() -> ManifestTables:
        if request.param == "sqlite":
            opened.append(Manifest(tmp_path))
            return opened[-1]
        made = PostgresManifest(server.database)
        # Its time is over at once: whoever asks next has every part.
        made.take(f"test {len(opened)}", EVERY, -1.0)
        opened.append(made)
        return made

    yield again
    for one in opened:
        one.close()


def empty(server: PostgresServer) -> None:
    manifest = PostgresManifest(server.database)
    tables = "segments, nodes, resolutions, heads, logs, collectors"
    manifest.connection.execute(f"TRUNCATE {tables}")
    manifest.connection.execute("UPDATE parts SET holder = '', until = '-infinity'")
    manifest.close()


def test_what_was_taken_in_is_there(open_again: Open) -> None:
    one = open_again()
    one.add_log(ENTRY)
    other = msgspec.structs.replace(ENTRY, log_id="2d" * 16, name="Älpha")
    one.add_log(other)
    with pytest.raises(StateError, match="known already"):
        one.add_log(ENTRY)
    one.follow("alpha", "https://a:1", ENTRY.log_id)
    one.follow("alpha", "https://b:2", ENTRY.log_id)
    again = open_again()
    assert again.log(ENTRY.log_id) == ENTRY and again.log("3d" * 16) is None
    assert {entry.log_id for entry in again.logs()} == {ENTRY.log_id, other.log_id}
    assert again.nodes() == [("alpha", "https://b:2", ENTRY.log_id)]
    assert again.leave("alpha") and not again.leave("alpha")
    again.add_resolution(ENTRY.log_id, "a note")
    ((number, note),) = one.resolutions(ENTRY.log_id)
    one.applied(number)
    assert note == "a note" and again.resolutions(ENTRY.log_id) == []


def test_a_cursor_moves_by_compare_and_swap(open_again: Open) -> None:
    one = open_again()
    one.add_log(ENTRY)
    one.move(ENTRY.log_id, GENESIS, ONE, verdict="OK", state=b"s")
    with pytest.raises(CursorMoved):
        one.move(ENTRY.log_id, GENESIS, TWO)
    with pytest.raises(CursorMoved):
        one.set(ENTRY.log_id, GENESIS, verdict="FORK")
    one.set(ENTRY.log_id, ONE, contact_ns=7)
    found = open_again().log(ENTRY.log_id)
    assert found is not None
    assert (found.head, found.verdict, found.state, found.contact_ns) == (ONE, "OK", b"s", 7)


def test_a_transaction_counts_whole_or_not_at_all(open_again: Open) -> None:
    one = open_again()
    one.add_log(ENTRY)
    with pytest.raises(ZeroDivisionError), one.transaction():
        one.move(ENTRY.log_id, GENESIS, ONE)
        one.add_segment(SEGMENT)
        raise ZeroDivisionError
    found = one.log(ENTRY.log_id)
    assert found is not None and found.head == GENESIS and one.segments() == []
    with one.transaction():
        one.move(ENTRY.log_id, GENESIS, ONE)
        one.add_segment(SEGMENT)
        with pytest.raises(CursorMoved):
            one.move(ENTRY.log_id, GENESIS, TWO)
    later = msgspec.structs.replace(SEGMENT, first_seq=3, last_seq=4, path="segments/b")
    one.add_segment(later)
    again = open_again()
    assert again.segments() == [SEGMENT, later] and again.segments(ENTRY.log_id, 3) == [later]
    again.forget_segments([SEGMENT])
    assert again.segments() == [later]


def test_a_database_without_room_is_told(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    try:
        manifest.add_log(ENTRY)
        (pages,) = manifest.connection.execute("PRAGMA page_count").fetchone()
        manifest.connection.execute(f"PRAGMA max_page_count = {pages}")
        for write in (
            lambda: manifest.set(ENTRY.log_id, GENESIS, note="x" * 100_000),
            lambda: manifest.add_resolution(ENTRY.log_id, "x" * 100_000),
        ):
            with pytest.raises(StateError, match="full"):
                write()
        assert manifest.log(ENTRY.log_id) == ENTRY
    finally:
        manifest.close()


# ---- several collectors --------------------------------------------------------------------------


def test_a_part_goes_to_one_and_moves_only_when_somebody_comes_or_goes() -> None:
    names = [f"collector-{number}" for number in range(5)]
    shares = {name: share_of(name, names) for name in names}
    assert sorted(part for share in shares.values() for part in share) == list(EVERY)
    assert all(shares.values())
    for name in names[1:]:
        left = share_of(name, names[1:])
        assert shares[name] <= left and left - shares[name] <= shares[names[0]]
    assert 0 <= part_of("4e" * 16) < PARTS


def test_who_lost_its_part_is_refused_and_changes_nothing(server: PostgresServer) -> None:
    empty(server)
    west, east = PostgresManifest(server.database), PostgresManifest(server.database)
    west.add_log(ENTRY)
    with pytest.raises(PartLost):
        west.move(ENTRY.log_id, GENESIS, ONE)
    assert west.take("west", EVERY, 60.0) == list(EVERY)
    west.move(ENTRY.log_id, GENESIS, ONE)
    assert east.take("east", EVERY, 60.0) == [], "it is held"
    assert west.live("west", -1.0) == [], "its time is over"
    assert east.take("east", EVERY, 60.0) == list(EVERY)
    for late in (
        lambda: west.move(ENTRY.log_id, ONE, TWO),
        lambda: west.set(ENTRY.log_id, ONE, verdict="FORK"),
        lambda: west.add_segment(SEGMENT),
        lambda: west.forget_segments([SEGMENT]),
    ):
        with pytest.raises(PartLost):
            late()
    found = east.log(ENTRY.log_id)
    assert found is not None and (found.head, found.verdict) == (ONE, "OK")
    assert east.segments() == []
    east.move(ENTRY.log_id, ONE, TWO)
    east.leave_fleet("east")
    assert west.take("west again", EVERY, 60.0) == list(EVERY), "what was given back is free"
    west.close()
    east.close()


def test_a_takeover_waits_for_a_commit_that_has_begun(server: PostgresServer) -> None:
    empty(server)
    west, east = PostgresManifest(server.database), PostgresManifest(server.database)
    west.add_log(ENTRY)
    west.take("west", EVERY, -1.0)
    east.connection.execute("SET lock_timeout = '200ms'")
    with west.transaction():
        west.move(ENTRY.log_id, GENESIS, ONE)
        with pytest.raises(StateError, match="lock timeout"):
            east.take("east", [part_of(ENTRY.node)], 60.0)
    assert east.take("east", [part_of(ENTRY.node)], 60.0) == [part_of(ENTRY.node)]
    found = east.log(ENTRY.log_id)
    assert found is not None and found.head == ONE
    west.close()
    east.close()


def test_a_server_that_was_restarted_is_reached_again(server: PostgresServer) -> None:
    empty(server)
    manifest = PostgresManifest(server.database)
    manifest.add_log(ENTRY)
    manifest.take("west", EVERY, 600.0)
    server.crash()
    with pytest.raises(ManifestGone):
        manifest.move(ENTRY.log_id, GENESIS, ONE)
    with pytest.raises(ManifestGone):
        manifest.logs()
    server.start()
    manifest.move(ENTRY.log_id, GENESIS, ONE)
    assert manifest.logs()[0].head == ONE
    manifest.close()


def test_a_database_whose_disk_is_full_is_waited_for(server: PostgresServer) -> None:
    """As PostgreSQL says it (53100) where a table has to grow: nothing was stored, and it goes on
    when there is room."""
    empty(server)
    with closing(PostgresManifest(server.database)) as manifest:
        manifest.add_log(ENTRY)
        manifest.take("west", EVERY, 600.0)
        manifest.connection.execute(_NO_ROOM)
        with pytest.raises(ManifestGone, match="No space left on device") as raised:
            manifest.move(ENTRY.log_id, GENESIS, ONE)
        assert raised.value.exit_status == EX_UNAVAILABLE and manifest.logs()[0].head == GENESIS
        manifest.connection.execute("DROP FUNCTION no_room CASCADE")
        manifest.move(ENTRY.log_id, GENESIS, ONE)
        assert manifest.logs()[0].head == ONE


_NO_ROOM = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE 'could not extend file "base/5/16455": No space left on device' USING ERRCODE = '53100';
END $$;
CREATE TRIGGER no_room BEFORE UPDATE ON logs FOR EACH ROW EXECUTE FUNCTION no_room();
"""


def test_a_server_that_is_away_at_the_start_is_tried_again_by_systemd(tmp_path: Path) -> None:
    """A host that starts its database later than its collector, or while that crashed."""
    (tmp_path / POINTER).write_text(f"host={tmp_path} user=leased dbname=postgres\n")
    told = io.StringIO()
    assert main(["--state", str(tmp_path), "status"], Console(told, told)) == EX_UNAVAILABLE
    assert "the manifest's database: " in told.getvalue()
    for unit in (REPOSITORY / "systemd").glob("leased-collector*.service"):
        [final] = re.findall(r"RestartPreventExitStatus=(.*)", unit.read_text())
        assert str(EX_UNAVAILABLE) not in final.split()


def test_a_directory_is_shared_once_and_as_it_was(server: PostgresServer, tmp_path: Path) -> None:
    empty(server)
    old = Manifest(tmp_path)
    old.add_log(ENTRY)
    old.move(ENTRY.log_id, GENESIS, ONE)
    old.add_segment(SEGMENT)
    old.follow("alpha", "https://a:1", ENTRY.log_id)
    before = (old.logs(), old.segments(), old.nodes())
    old.close()
    (tmp_path / "cosign.key").write_text("a key")
    with pytest.raises(InvalidParameter, match="whose key"):
        share(tmp_path, server.database)
    with pytest.raises(InvalidParameter, match="password"):
        share(tmp_path, f"{server.database} password=x")
    assert not is_shared(tmp_path) and share(tmp_path, server.database, "west") == 1
    assert (own_directory(tmp_path, "west") / "cosign.key").read_text() == "a key"
    assert (tmp_path / POINTER).stat().st_mode & 0o077 == 0
    new = open_manifest(tmp_path, read_only=True)
    assert (new.logs(), new.segments(), new.nodes()) == before
    with pytest.raises(StateError, match="read-only"):
        new.follow("beta", "https://b:1", ENTRY.log_id)
    new.close()
    with pytest.raises(StateError, match="shared already"):
        share(tmp_path, server.database)
    with pytest.raises(StateError, match="several collectors"):
        Archive(tmp_path)


class Elsewhere(DirectoryDisk):
    """On a file system that other hosts may have."""

    kind = "nfs4"

    def filesystem(self) -> Filesystem:
        return Filesystem(self.kind, "not tested")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse", "fuse.sshfs"])
def test_what_other_hosts_may_have_is_not_shared(
    server: PostgresServer, tmp_path: Path, kind: str
) -> None:
    empty(server)
    Manifest(tmp_path).close()
    Elsewhere.kind = kind
    with pytest.raises(StateError, match=f"on {kind}, .* a disk of this host"):
        share(tmp_path, server.database, open_disk=Elsewhere)
    assert not is_shared(tmp_path)
    share(tmp_path, server.database)
    for read_only in (False, True):
        with pytest.raises(StateError, match="other hosts"):
            open_manifest(tmp_path, read_only=read_only, open_disk=Elsewhere)
    with pytest.raises(StateError, match="other hosts"):
        Archive(tmp_path, name="west", open_disk=Elsewhere)
    Archive(tmp_path, name="west").close()


def test_what_the_one_before_left_half_done_is_cleared_at_the_takeover(
    server: PostgresServer, tmp_path: Path
) -> None:
    empty(server)
    Manifest(tmp_path).close()
    share(tmp_path, server.database)
    archive = Archive(tmp_path, name="west")
    archive.add_log(ENTRY)
    left = archive.files.write(ENTRY.node, ENTRY.log_id, 0, 2, "01" * 32, b"frames")
    sharing = Sharing(archive, "west", b"run-1234")
    assert sharing.parts == frozenset() and sharing.beat() == frozenset()
    assert sharing.parts == frozenset(EVERY) and not (tmp_path / left.path).exists()
    beyond = archive.files.write(ENTRY.node, ENTRY.log_id, 1, 2, "01" * 32, b"frames")
    with pytest.raises(StateError, match="begins beyond"):
        archive.recover_parts(frozenset(EVERY))
    assert (tmp_path / beyond.path).exists()
    sharing.leave()
    archive.close()


class Standing(DirectoryDisk):
    """Stands still when a file's bytes are there, and its name is not, until others were at it."""

    meanwhile: Callable[[], object] | None = None

    def sync(self, handle: int) -> None:
        super().sync(handle)
        meanwhile, Standing.meanwhile = Standing.meanwhile, None
        if meanwhile is not None:
            meanwhile()


@pytest.mark.parametrize("late", ["west", "east"])
def test_who_was_thought_dead_ends_neither_itself_nor_who_took_over(
    server: PostgresServer, tmp_path: Path, late: str
) -> None:
    """Both write the same page: west has stood still in the middle of it, or begins it anew in the
    middle of east's."""
    empty(server)
    Manifest(tmp_path).close()
    share(tmp_path, server.database)
    disks = {"west": DirectoryDisk, "east": DirectoryDisk, late: Standing}
    west, east = (Archive(tmp_path, name=one, open_disk=disks[one]) for one in ("west", "east"))
    west.add_log(ENTRY)
    west.manifest.take("west", EVERY, -1.0)
    page = Page(ENTRY.log_id, GENESIS, ONE, b"frames", b"state", 3, "a note", 7)

    def take_over() -> None:
        east.manifest.take("east", EVERY, 60.0)
        east.recover_parts(frozenset(EVERY))

    def take_over_and_store() -> None:
        take_over()
        assert east.persist([page]) == [None]

    if late == "west":
        Standing.meanwhile = take_over_and_store
        [refused] = west.persist([page])
    else:
        take_over()
        told: list[CursorMoved | None] = []
        Standing.meanwhile = lambda: told.extend(west.persist([page]))
        assert east.persist([page]) == [None]
        [refused] = told
    assert isinstance(refused, PartLost)
    assert b"".join(east.frames(ENTRY.log_id)) == b"frames"
    named = {one.path for one in east.manifest.segments()}
    assert {path for path, *_ in east.files.found()} == named
    west.close()
    east.close()


def test_a_server_whose_clock_was_set_back_gives_the_parts_of_the_dead_to_the_living(
    server: PostgresServer,
) -> None:
    """Else nobody follows them until the time of before has come again."""
    empty(server)
    dead, living = (PostgresManifest(server.database) for _ in range(2))
    dead.live("dead", 15.0)
    assert len(dead.take("dead", EVERY, 15.0)) == PARTS
    # What was said while the clock was an hour ahead.
    for table in ("collectors", "parts"):
        dead.connection.execute(f"UPDATE {table} SET until = until + INTERVAL '1 hour'")
    assert living.live("living", 15.0) == ["dead", "living"], "it has the time to say that it lives"
    assert living.take("living", EVERY, 15.0) == []
    left = "SELECT extract(epoch FROM max(until) - clock_timestamp()) FROM "
    for table in ("collectors", "parts"):
        ((left_s,),) = living.connection.execute(left + table).fetchall()
        assert 0 < left_s <= 15
    for one in (dead, living):
        one.close()
