# SPDX-License-Identifier: Apache-2.0
"""The store over real chains: SQL and reference agree, made again it has the same bytes, a bill is
recomputed from the chains alone, and what is interrupted leaves nothing half."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from leased.chain.head import GENESIS
from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import Archive, ArchiveReader, LogEntry, Page
from leased.collector.demo import Node, Wish, make_fleet
from leased.collector.main import main
from leased.collector.metering import blocks as block_files
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import EXACT, OVERFLOWS, Overflow, Rows, check_engine
from leased.collector.metering.projecting import MARK
from leased.collector.metering.reference import read_archive
from leased.collector.metering.rollup import stretches
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.verbs.store import compare, opened
from leased.ctl.console import Console
from leased.ctl.main import main as leasectl
from leased.economics.contracts import Terms
from leased.terms.errors import InvariantError, StateError
from tests.doubles.collector_server import REPOSITORY, CollectorServer

UNTIL_NS = 1_767_225_600 * 10**9
"""2026-01-01T00:00:00Z."""

WISH = Wish(nodes=2, days=35, seed=7, until_ns=UNTIL_NS, leases_per_day=12)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a small fleet, and its store."""
    state = tmp_path_factory.mktemp("collector") / "state"
    archive = Archive(state)
    make_fleet(archive, WISH)
    Store(state).refresh(archive)
    archive.close()
    return state


def copy_of(fleet: Path, where: Path) -> Path:
    shutil.copytree(fleet, where / "state")
    return where / "state"


def derived(state: Path) -> dict[str, str]:
    """Every derived file and the digest of its bytes."""
    root = state / "derived"
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_makes_the_same_chains(fleet: Path, tmp_path: Path):
    archive = Archive(tmp_path / "state")
    make_fleet(archive, WISH)
    once, again = ArchiveReader(fleet), archive
    for one, other in zip(once.logs(), again.logs(), strict=True):
        assert one.head == other.head and one.head.size > 1_000
    with pytest.raises(StateError, match="empty directory"):
        make_fleet(archive, WISH)
    archive.close()
    once.close()


def test_store_and_reference_say_the_same(fleet: Path):
    archive = ArchiveReader(fleet)
    reference = read_archive(archive)
    source = StoreSource(Store(fleet).rollups)
    assert compare(source, reference) == []
    assert source.tenants() == reference.tenants() and source.first_ns() == reference.first_ns()
    for month in ("2025-11", "2025-12"):
        for tenant in source.tenants():
            bills = [Accounts(one, Terms()).bill(tenant, month) for one in (source, reference)]
            assert bills[0].canonical() == bills[1].canonical()
            assert bills[0].final and bills[0].line_items
    answers = [Accounts(one, Terms()) for one in (source, reference)]
    assert answers[0].costs(answers[0].last("30d")) == answers[1].costs(answers[1].last("30d"))
    assert answers[0].chargeback("2025-12") == answers[1].chargeback("2025-12")
    source.close()
    archive.close()


def test_the_meter_and_the_sealed_summaries_agree(fleet: Path):
    archive = ArchiveReader(fleet)
    for chain in read_archive(archive)._chains:
        assert chain.fold.ledger.disagreements == []
        assert chain.fold.ledger.orphans == 0
    archive.close()


def test_every_nanosecond_of_every_unit_is_somebodys(fleet: Path):
    source = StoreSource(Store(fleet).rollups)
    sums: dict[tuple[object, ...], int] = {}
    for key, amount in source.cells((0, 1 << 62)).items():
        sums[(key.kind, key.pool.name)] = sums.get((key.kind, key.pool.name), 0) + amount
    for kind in {kind for kind, _ in sums}:
        held = sum(sums.get((kind, pool), 0) for pool in ("TENANT", "TEARDOWN", "FENCED"))
        assert 0 < held <= sums[(kind, "PROVISIONED")]
        assert sums[(kind, "TEARDOWN")] > 0
    source.close()


def test_rebuilt_it_has_the_same_bytes(fleet: Path, tmp_path: Path):
    state = copy_of(fleet, tmp_path)
    before = derived(state)
    archive = ArchiveReader(state)
    done, changed = Store(state).rebuild(archive)
    assert changed == [] and derived(state) == before
    assert done.closed == 35 and not done.revised
    shutil.rmtree(state / "derived")
    Store(state).refresh(archive)
    assert derived(state) == before
    archive.close()


def test_a_store_of_another_release_is_made_again_by_whoever_opens_it(fleet: Path, tmp_path: Path):
    state = copy_of(fleet, tmp_path)
    before = derived(state)
    listing = state / "derived" / "rollup" / "rollup.json"
    older = json.loads(listing.read_bytes())
    del older["layout"], older["draining"]
    listing.write_text(json.dumps(older | {"version": 1}))
    for sidecar in (state / "derived" / "parquet").rglob("*.rare"):
        sidecar.write_bytes(b"\x93\x01" + sidecar.read_bytes()[18:])
    with CollectorServer(directory=tmp_path, state=state) as server:
        server.wait_for("another release: it is made again")
        server.wait_for("usage is up to date")
        assert server.ask("GET", "/v1/governance/costs?period=30d").status == 200
    assert derived(state) == before


def test_a_store_that_grew_page_by_page_has_the_bytes_of_one_made_at_once(
    tmp_path: Path,
):
    """Pages end where they end; blocks, days and bytes do not depend on it."""
    wish = Wish(nodes=1, days=3, seed=3, until_ns=UNTIL_NS, leases_per_day=200)
    whole = Archive(tmp_path / "whole")
    make_fleet(whole, wish)
    Store(tmp_path / "whole").refresh(whole)
    (entry,) = whole.logs()
    assert entry.head.size > 2_000
    parts = Archive(tmp_path / "parts")
    parts.add_log(LogEntry(entry.log_id, entry.node, entry.name, entry.origin, GENESIS))
    before = GENESIS
    store = Store(tmp_path / "parts")
    for frames, after in pages(whole, entry.log_id, 700):
        page = Page(entry.log_id, before, after, frames, b"", 0, "", 0)
        assert parts.persist([page]) == [None]
        before = after
        store.refresh(parts)
    assert derived(tmp_path / "parts") == derived(tmp_path / "whole")
    whole.close()
    parts.close()


def pages(archive: Archive, log_id: str, count: int):
    """The frames of a log, `count` records at a time."""
    frames, taken = b"", 0
    last = archive.log(log_id).head.size - 1
    data = b"".join(archive.frames(log_id))
    offset = 0
    for record in archive.records(log_id):
        frames += data[offset : offset + record.frame_bytes]
        offset += record.frame_bytes
        taken += 1
        if taken == count or record.sequence == last:
            yield frames, type(GENESIS)(record.sequence + 1, record.hash)
            frames, taken = b"", 0


@pytest.mark.parametrize("victim", ["lives.parquet", "rare", "usage-", "rollup.json"])
def test_what_was_damaged_is_named_and_made_again(fleet: Path, tmp_path: Path, victim: str):
    state = copy_of(fleet, tmp_path)
    before = derived(state)
    path = next(p for p in sorted((state / "derived").rglob("*")) if victim in p.name)
    path.write_bytes(path.read_bytes()[:-7])
    archive = ArchiveReader(state)
    store = Store(state)
    if victim == "usage-":
        assert store.rollups.check(store.rollups.listing()) == [path.name]
    _, changed = store.rebuild(archive)
    assert changed == [str(path.relative_to(state / "derived"))]
    assert derived(state) == before
    archive.close()


def test_a_refresh_makes_again_what_a_power_cut_took(fleet: Path, tmp_path: Path):
    """Rollups are not synced one by one: a file may come back empty, and its name tells."""
    state = copy_of(fleet, tmp_path)
    before = derived(state)
    rollups = state / "derived" / "rollup"
    for path in [*rollups.glob("usage-*"), *rollups.glob("peaks-*")][::2]:
        path.write_bytes(b"")
    next(rollups.glob("tasks-*")).unlink()
    archive = ArchiveReader(state)
    Store(state).refresh(archive)
    assert derived(state) == before
    archive.close()


@pytest.mark.parametrize("victim", ["lives.parquet", "rare", "batches"])
def test_what_a_power_cut_took_of_the_projection_is_made_again(
    fleet: Path, tmp_path: Path, victim: str
):
    """Blocks are not synced at all. A file that came back empty, or as zeroes, is found in the
    first refresh of another boot that has something to do; and a page of zeroes among the rows
    that are in `.rare`."""
    state = copy_of(fleet, tmp_path)
    before = derived(state)
    name = "rare" if victim == "batches" else victim
    paths = sorted((state / "derived/parquet").rglob(f"*.{name}"))
    assert paths, "nothing was taken"
    for index, path in enumerate(paths):
        if victim == "batches":
            path.write_bytes(without_a_batch(path.read_bytes()))
        else:
            path.write_bytes(b"" if index % 2 else bytes(path.stat().st_size))
    (state / "derived" / MARK).write_text("another boot")
    (state / "derived/rollup/rollup.json").unlink()
    archive = ArchiveReader(state)
    Store(state).refresh(archive)
    assert derived(state) == before
    archive.close()


def without_a_batch(raw: bytes) -> bytes:
    """A sidecar in which the rows of one table are zeroes."""
    found = msgspec.msgpack.decode(raw, type=block_files.Sidecar)
    first, *others = found.batches
    assert first
    batches = (bytes(len(first)), *others)
    return msgspec.msgpack.encode(msgspec.structs.replace(found, batches=batches))


def test_months_that_are_over_are_whole_and_the_running_one_is_days():
    january, leap = 19_723, 19_723 + 31 + 29
    assert list(stretches(january + 3, leap + 2)) == [
        (january + 3, january + 31),
        (january + 31, leap),
        (leap, leap + 1),
        (leap + 1, leap + 2),
    ]
    assert list(stretches(january, january)) == []


def test_killed_at_any_moment_it_ends_with_the_same_bytes(fleet: Path, tmp_path: Path):
    """kill -9 of a refresh, again and again, each time a little later."""
    state = copy_of(fleet, tmp_path)
    want = derived(state)
    shutil.rmtree(state / "derived")
    words = [sys.executable, "-m", "leased.collector.main", "--state", str(state), "refresh"]
    killed = 0
    for tenths in (4, 8, 12, 16, 20, 26):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(tenths / 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed, "nothing was killed: the times are too long for this machine"
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert {name: told for name, told in derived(state).items() if ".new" not in name} == want


def test_only_one_process_writes(fleet: Path, tmp_path: Path):
    state = copy_of(fleet, tmp_path)
    archive = ArchiveReader(state)
    store = Store(state)
    with store.locked(), pytest.raises(StateError, match="another process"):
        Store(state).refresh(archive)
    archive.close()


def test_who_asks_while_the_first_is_made_has_its_answer_from_it(fleet: Path, tmp_path: Path):
    """A bill that was asked for beside a collector that has just started was refused."""
    state = copy_of(fleet, tmp_path)
    shutil.rmtree(state / "derived")
    words = argparse.Namespace(state=state, terms=None, config=None)
    with ExitStack() as made:
        made.enter_context(Store(state).locked())

        class Watched(Console):
            def progress(self, text: str) -> None:
                if text.startswith("waiting"):
                    made.close()

        console = Watched(io.StringIO(), io.StringIO())
        with opened(words, console) as (source, _):
            assert source.nodes()
        assert console.err.getvalue() == ""


def test_a_refresh_that_breaks_off_leaves_the_old_state(fleet: Path, tmp_path: Path):
    """The engine fails in the middle: what counted before still counts."""
    state = copy_of(fleet, tmp_path)
    before = derived(state)

    class Failing(DuckEngine):
        def derive(self, name: str, sql: str) -> None:
            if name == "peaks":
                raise Overflow("a sum does not fit")
            super().derive(name, sql)

    archive = ArchiveReader(state)
    with pytest.raises(Overflow):
        Store(state, make_engine=Failing).refresh(archive, retired=frozenset({"5e" * 16}))
    assert derived(state) == before
    archive.close()


def test_a_rebuild_that_breaks_off_leaves_nothing_on_the_disk(fleet: Path, tmp_path: Path):
    """Where there is no room it would keep the disk full, and the collector from pulling."""
    state = copy_of(fleet, tmp_path)
    before = derived(state)

    class Full(DuckEngine):
        def derive(self, name: str, sql: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = ArchiveReader(state)
    with pytest.raises(OSError):
        Store(state, make_engine=Full).rebuild(archive)
    assert derived(state) == before
    # Nor what a rebuild left that was killed.
    (state / "derived" / "again").mkdir()
    (state / "derived" / "again" / "listing.new").touch()
    Store(state).refresh(archive)
    assert derived(state) == before
    archive.close()


def test_a_log_that_another_replaced_keeps_no_bill_from_being_final(tmp_path: Path):
    """`enrol --replace`: of the log before no record is to come, and its last one is no watermark
    of the fleet; what it says counts as before."""
    whole = Archive(tmp_path / "whole")
    make_fleet(whole, Wish(nodes=2, days=2, seed=5, until_ns=UNTIL_NS, leases_per_day=60))
    before, now = whole.logs()
    archive = Archive(tmp_path / "state")
    for entry, most in ((before, 3), (now, 10_000)):
        archive.add_log(LogEntry(entry.log_id, now.node, "alpha", entry.origin, GENESIS))
        head = GENESIS
        for frames, after in list(pages(whole, entry.log_id, 100))[:most]:
            page = Page(entry.log_id, head, after, frames, b"", 0, "", 0)
            assert archive.persist([page]) == [None]
            head = after
    store = Store(tmp_path / "state")
    watermarks = []
    for followed in ((), (("alpha", now.log_id),)):
        for name, log_id in followed:
            archive.manifest.follow(name, "https://alpha:7443", log_id)
        store.refresh(archive)
        source = StoreSource(store.rollups)
        spans = {span.log_id: span.watermark_ns for span in source.nodes()}
        watermarks.append(Accounts(source, Terms()).watermark_ns())
        source.close()
    assert spans[before.log_id] < spans[now.log_id]
    assert watermarks == [spans[before.log_id], spans[now.log_id]]
    archive.close()
    whole.close()


def test_records_that_came_late_revise_the_day_and_keep_what_it_was(tmp_path: Path):
    """A node that nobody waited for came back: the closed day gets new files, the old ones stay."""
    wish = Wish(nodes=2, days=2, seed=5, until_ns=UNTIL_NS, leases_per_day=60)
    whole = Archive(tmp_path / "whole")
    make_fleet(whole, wish)
    late, prompt = whole.logs()
    archive = Archive(tmp_path / "state")
    heads = {}
    for entry in (late, prompt):
        archive.add_log(LogEntry(entry.log_id, entry.node, entry.name, entry.origin, GENESIS))
        heads[entry.log_id] = GENESIS

    def pull(entry: LogEntry, most: int) -> None:
        for number, (frames, after) in enumerate(pages(whole, entry.log_id, 100)):
            if after.size > heads[entry.log_id].size and number < most:
                page = Page(entry.log_id, heads[entry.log_id], after, frames, b"", 0, "", 0)
                assert archive.persist([page]) == [None]
                heads[entry.log_id] = after

    pull(prompt, 10_000)
    pull(late, 1)
    store = Store(tmp_path / "state")
    retired = frozenset({late.node})
    assert store.refresh(archive, retired=retired).closed == 2
    first = Accounts(StoreSource(store.rollups), Terms(retired_nodes=(late.node,)))
    total = first.costs(first.last("48h")).total_cost
    pull(late, 10_000)
    done = store.refresh(archive, retired=retired)
    assert done.revised
    listing = store.rollups.listing()
    one = next(one for one in listing.closed if one.first_day in done.revised)
    assert one.earlier and all(
        (store.rollups.directory / name).exists() for name in one.earlier[0].values()
    )
    then = Accounts(StoreSource(store.rollups), Terms())
    assert then.costs(then.last("48h")).total_cost > total
    before = derived(tmp_path / "state")
    assert store.rebuild(archive, retired=retired)[1] == []
    assert derived(tmp_path / "state") == before
    (store.rollups.directory / one.earlier[0]["usage"]).write_bytes(b"otherwise")
    changed = store.rebuild(archive, retired=retired)[1]
    assert f"rollup/{one.earlier[0]['usage']}" in changed
    whole.close()
    archive.close()


class Wrapping:
    """An engine whose sums wrap, as several do."""

    def query(self, sql: str) -> Rows:
        return [[-8_906_460_784_596_450_948]]


class Rounding:
    """An engine that raises, and divides by floating point."""

    def query(self, sql: str) -> Rows:
        if sql in OVERFLOWS:
            raise Overflow(sql)
        return [[dict(EXACT)[sql] + (1 if "idiv" in sql else 0)]]


def test_an_engine_that_wraps_or_rounds_is_refused():
    for engine in (Wrapping(), Rounding()):
        with pytest.raises(InvariantError):
            check_engine(engine)  # type: ignore[arg-type]
    duck = DuckEngine()
    assert check_engine(duck) == len(OVERFLOWS) + len(EXACT)
    duck.close()


SPILLING = """
from pathlib import Path
from leased.collector.metering.duck import DuckEngine
engine = DuckEngine(memory="64MiB", spill=Path({spill!r}))
engine.derive("big", "SELECT CAST(hash(range) AS VARCHAR) AS b FROM range(2000000) ORDER BY b")
print(engine.query("SELECT COUNT(*) FROM big")[0][0])
"""


@pytest.mark.parametrize("end", ["engine.close()", ""])
def test_what_is_more_than_memory_is_spilled_wherever_it_runs(tmp_path: Path, end: str):
    """As a service does, in a directory that nobody can write to."""
    spill, program = tmp_path / "spill", tmp_path / "program.py"
    spill.mkdir()
    program.write_text(SPILLING.format(spill=str(spill)) + end)
    path = {"PYTHONPATH": str(REPOSITORY / "agent")}
    done = subprocess.run(
        [sys.executable, str(program)], cwd="/proc", env=path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("2000000\n", "", 0)
    assert list(spill.iterdir()) == []


def run(program, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = program(list(words), Console(out=out, err=err, terminal=False))
    return status, out.getvalue(), err.getvalue()


def test_what_nodes_cost_is_what_the_fleet_does(fleet: Path):
    state = ("--state", str(fleet))

    def told(*words: str) -> dict[str, object]:
        status, out, _ = run(main, *state, *words, "--last", "7d", "--json")
        assert status == 0
        return json.loads(out)

    nodes, whole = told("node-costs"), told("costs", "--basis", "infrastructure")
    assert nodes["complete"] is True and nodes["nodes"]
    # There each part is rounded by itself.
    assert nodes["provisioned_cost"] == pytest.approx(whole["total_cost"], abs=1e-5)
    idle = nodes["idle_cost"] + nodes["unattributed_negative"]
    assert idle == pytest.approx(whole["idle_cost"])
    for one in nodes["nodes"]:
        parts = ("tenant_cost", "teardown_cost", "fenced_cost", "idle_cost")
        held = sum(one[part] for part in parts) + one["unattributed_negative"]
        assert held == pytest.approx(one["provisioned_cost"], abs=1e-5)


def test_the_verbs_print_text_json_and_csv(fleet: Path):
    state = ("--state", str(fleet))
    for words in (
        ("costs",),
        ("costs", "--basis", "infrastructure"),
        ("usage", "acme", "--start", "2025-12-01", "--end", "2025-12-31"),
        ("bill", "acme", "2025-12"),
        ("chargeback", "2025-12", "--spread", "even"),
        ("capacity",),
        ("forecast", "--kind", "gpu"),
        ("idle",),
        ("reservations", "--last", "30d"),
        ("spot", "--percent", "40"),
        ("node-costs", "--last", "7d"),
        ("scaling", "--last", "7d"),
        ("placement", "--gpu", "2", "--strategy", "binpack"),
        ("sensitivity", "--last", "30d"),
        ("refresh",),
    ):
        status, out, _ = run(main, *state, *words)
        assert status == 0 and out
        status, out, _ = run(main, *state, *words, "--json")
        assert status == 0 and json.loads(out)["version"] == 1
        if words[0] != "refresh":
            assert run(main, *state, *words, "--csv")[0] == 0
    _, out, _ = run(main, *state, "costs", "--csv")
    assert out.splitlines()[0] == "tenant,cost,share,others" and len(out.splitlines()) == 6
    status, _, err = run(main, *state, "bill", "nobody", "2025-12")
    assert status == 66 and "nobody" in err
    status, _, err = run(main, *state, "bill", "acme", "12/2025")
    assert status == 65 and "month" in err
    assert run(main, *state, "rebuild", "--reference")[0] == 0


@pytest.mark.parametrize(("kind", "unit"), [("cpu", "core"), ("gpu", "device"), ("mem", "GiB")])
def test_a_forecast_is_told_by_its_kind(fleet: Path, kind: str, unit: str):
    words = ("--state", str(fleet), "forecast", "--kind", kind)
    told = json.loads(run(main, *words, "--json")[1])
    assert (told["kind"], told["unit"]) == (kind, unit)
    columns = ["date", f"predicted_{kind}_demand", "confidence", "lower", "upper"]
    assert told["predictions"] and all(list(one) == columns for one in told["predictions"])
    text = run(main, *words)[1]
    assert f"PREDICTED {kind.upper()} DEMAND" in text and f"unit: {unit}" in text
    assert run(main, *words, "--csv")[1].splitlines()[0] == ",".join(columns)


def test_a_bill_is_recomputed_from_the_chains_alone(fleet: Path, tmp_path: Path):
    bill = tmp_path / "bill.json"
    state = ("--state", str(fleet))
    assert run(main, *state, "bill", "acme", "2025-12", "--out", str(bill))[0] == 0
    alone = tmp_path / "alone"
    shutil.copytree(fleet / "segments", alone / "segments")
    check = ("verify", "--bill", str(bill), "--archive", str(alone))
    status, out, _ = run(leasectl, *check)
    assert status == 0 and "byte for byte" in out
    assert json.loads(run(leasectl, *check, "--json")[1])["verdict"] == "ok"
    honest = bill.read_bytes()
    total = json.loads(honest)["total"]
    for old, new in (
        (f'"total":"{total}"'.encode(), b'"total":"1.000000"'),
        (b'"tenant":"acme"', b'"tenant":"batch"'),
        (b"10000000]", b"10000001]"),  # the price of a GPU
        (b'"version":1', b'"version": 1'),
    ):
        assert old in honest
        bill.write_bytes(honest.replace(old, new))
        status, out, _ = run(leasectl, *check)
        assert status == 65 and "BILL_WRONG" in out
    bill.write_bytes(honest.replace(b'"head":"', b'"head":"00', 1))
    status, _, err = run(leasectl, *check)
    assert status == 65 and "FORK_OR_ROLLBACK" in err
    for nonsense in (b"", b"{}", b"[]", b'{"version":1}', b"\xff\xfe", b'{"version":2}'):
        bill.write_bytes(nonsense)
        assert run(leasectl, *check)[0] == 65
    bill.write_bytes(honest)
    segment = next(iter(sorted((alone / "segments").rglob("*.seg"))))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    status, _, err = run(leasectl, *check)
    assert status == 65 and segment.name in err
    segment.unlink()
    status, out, _ = run(leasectl, *check)
    assert status == 65 and "NOT_PROVEN" in out and "are not there" in out


def test_a_demo_node_lives_in_its_own_stream():
    """Another number of nodes changes nothing of the first."""
    one, other = Node(Wish(1, 2, 7, UNTIL_NS), 0), Node(Wish(5, 2, 7, UNTIL_NS), 0)
    assert list(one.history()) == list(other.history())


def test_parquet_has_the_same_bytes_for_the_same_rows():
    acts = [(1, 2, 0, 3, 4, 1, 5, 6, 7, 8, None)]
    block = block_files.Block(acts, [], [], [], [], block_files.Carry())
    table = block_files.arrow_tables(block)["acts"]
    assert block_files.parquet_bytes(table) == block_files.parquet_bytes(table)
