# SPDX-License-Identifier: Apache-2.0
"""Metering: raw segments of a fleet to hourly usage, peaks and bills, by the store's own parts and
DuckDB; and the SQL of it by PostgreSQL 15, of the same rows.

Rule: ours begins with sealed records as they lie in the archive (`fleet`): read, compared with the
manifest, projected, written as Parquet, metered, billed, tenant by tenant, in one process of its
own, whose memory is told. Theirs begins where the rows are in unlogged, analysed tables, so what is
compared is the SQL alone. They take turns, and both must come to the same sums, or there is no
figure.

Told beside it, without a bar: `Store.refresh`, which does more (fleet peaks, what is quiet, what is
held, rollups on disk with a digest for each day). Run as a program this is our side alone.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import ArchiveReader
from leased.collector.metering import tables
from leased.collector.metering.blocks import Gathered
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import (
    PARTY_COLUMNS,
    PROJECTION,
    RESULTS,
    SMALL_TABLES,
    check_engine,
    statements,
)
from leased.collector.metering.projecting import project_logs
from leased.collector.metering.projection import log_number
from leased.collector.metering.rollup import Rollups
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.economics.billing import Month, make_bill
from leased.economics.contracts import Terms
from leased.economics.hourly import NodeSpan
from leased.terms.moment import HOUR_NS
from tests.bench.fleet import BEGIN_NS, LENGTH_NS, MONTH, fleet_archive
from tests.bench.loadgen import Figures
from tests.bench.table import Say

ROUNDS = 3
WANTED = ("usage", "peaks", "tasks", "contributors")
METERED = [name for name in statements() if name not in RESULTS or name in WANTED]
LIBRARY = Path("/usr/lib/postgresql/15/bin")
SMALL = "small.json"
LEASES, LEASES_SHORT = 3_000_000, 65_000
_Rows = dict[str, list[tuple[int, ...]]]


def measure_metering(directory: Path, *, short: bool, say: Say) -> Figures:
    """Make the archive, run both in turns, compare. The archive stays for the next time, beside
    `directory`."""
    leases = LEASES_SHORT if short else LEASES
    archive = fleet_archive(directory.parent, leases, say)
    say("metering: the same as a refresh of the store")
    refresh = _by_itself("refresh", archive, directory)
    say(f"metering: {leases:,} leases by DuckDB, from raw segments")
    ours = [_by_itself("rows", archive, directory)]
    found: Figures = {"leases": leases, "events": ours[0]["records"], "refresh": refresh}
    with ExitStack() as stack:
        theirs: list[Figures] = []
        if LIBRARY.is_dir():
            say("metering: the same rows to PostgreSQL 15")
            small = json.loads((directory / SMALL).read_bytes())
            meter = stack.enter_context(postgresql(directory, small))
            theirs.append(meter())
        else:
            say("metering: no PostgreSQL 15 here: not compared")
        for _ in range(1, 1 if short else ROUNDS):
            say("metering: another round")
            ours.append(_by_itself("meter", archive, directory))
            theirs.extend([meter()] if theirs else [])
    sums = [one["sums"] for one in (*ours, *theirs)]
    assert all(one == sums[0] for one in sums), f"the engines disagree: {sums}"
    return found | {"duckdb": ours} | ({"postgresql": theirs} if theirs else {})


def _by_itself(what: str, archive: Path, directory: Path) -> Figures:
    os.sync()  # what the other has written is not written while this one is measured
    words = [sys.executable, "-m", "tests.bench.metering", what, str(archive), str(directory)]
    told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    figures: Figures = json.loads(told.stdout)
    return figures


def run_duckdb(archive: Path, directory: Path, *, keeps: bool = False) -> Figures:
    """Raw segments to bills, in this process. `keeps`: the rows are left in `directory`."""
    engine = DuckEngine(spill=directory)
    check_engine(engine)
    # It is left there: where many files were just removed, ext4 takes longer to make others.
    derived = Path(tempfile.mkdtemp(dir=directory, prefix="projected-"))
    reader = ArchiveReader(archive)
    began = time.perf_counter()
    spans, gathered = [], Gathered()
    for entry, blocks, sidecars in project_logs(derived, reader, reader.logs()):
        gathered.add(blocks, sidecars)
        found = gathered.shapes[blocks.number]
        ends = (found.first_seq, found.last_seq, entry.head.hash.hex(), found.watermark_ns)
        spans.append(NodeSpan(entry.node, entry.log_id, *ends))
    projected_s = time.perf_counter() - began
    for name, paths, more in gathered.tables():
        engine.load_files(name, paths, more)
    small = tables.small_tables(gathered.shapes)
    for name, numbers in small.items():
        engine.load(name, SMALL_TABLES[name], numbers)
    metering = time.perf_counter()
    for name in METERED:
        engine.derive(name, statements()[name])
    metered_s = time.perf_counter() - metering
    bills = make_bills(engine, spans)
    whole_s = time.perf_counter() - began
    spent = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "projected_s": projected_s,
        "metered_s": metered_s,
        "whole_s": whole_s,
        "cpu_s": spent.ru_utime + spent.ru_stime,
        "peak_mib": spent.ru_maxrss // 1024,
        "bills": bills,
        "records": sum(one.last_sequence + 1 for one in spans),
        "raw_bytes": sum(path.stat().st_size for path in archive.glob("segments/*/*.seg")),
        "sums": [str(row) for row in engine.query(_SUMS)],
    }
    for name, names in (PROJECTION | {"parties": PARTY_COLUMNS}).items() if keeps else ():
        columns = ", ".join(names)
        engine.derive("rows", f"SELECT {columns} FROM {name}")
        engine.query(f"COPY rows TO '{directory}/{name}.csv'")
    (directory / SMALL).write_text(json.dumps(small))
    return told


def run_refresh(archive: Path, directory: Path) -> Figures:
    """Raw segments to everything that is derived, and the bills as they are asked for."""
    store, reader = _store(archive, directory / "refreshed"), ArchiveReader(archive)
    began = time.perf_counter()
    store.refresh(reader)
    whole_s = time.perf_counter() - began
    accounts = Accounts(StoreSource(store.rollups), Terms())
    bills = [accounts.bill(tenant, MONTH) for tenant in accounts.source.tenants()]
    assert all(bill.final for bill in bills)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    billed_s = time.perf_counter() - began - whole_s
    return {"whole_s": whole_s, "billed_s": billed_s, "bills": len(bills), "peak_mib": peak_mib}


def _store(archive: Path, derived: Path) -> Store:
    """A store of that archive whose derived files are elsewhere."""
    store = Store(archive)
    store.directory, store.rollups = derived, Rollups(derived)
    derived.mkdir()
    return store


def make_bills(engine: DuckEngine, spans: list[NodeSpan]) -> int:
    """The bill of every tenant for the month."""
    month, terms, made = Month(MONTH, BEGIN_NS, BEGIN_NS + LENGTH_NS), Terms(), 0
    watermark_ns = min(one.watermark_ns for one in spans)
    # As the accounts ask where there is one price and no plan, of everybody at once.
    by_tenant: dict[str, list[Any]] = {}
    for row in engine.query(
        f"SELECT {BEGIN_NS // HOUR_NS}, pool, tenant, kind, tier, priority, tag, SUM(cap_ns)"
        " FROM usage WHERE pool = 0 GROUP BY pool, tenant, kind, tier, priority, tag"
    ):
        by_tenant.setdefault(str(row[2]), []).append(row)
    by_log = {log_number(one.log_id): one for one in spans}
    nodes: dict[str, list[NodeSpan]] = {}
    for log, tenant in engine.query("SELECT DISTINCT log, tenant FROM contributors ORDER BY log"):
        nodes.setdefault(str(tenant), []).append(by_log[int(str(log))])
    for tenant, rows in sorted(by_tenant.items()):
        cells, audit = tables.cells(rows), nodes[tenant]
        bill = make_bill(tenant, month, cells, {}, terms, audit, fleet_watermark_ns=watermark_ns)
        assert bill.final
        made += 1
    return made


_SUMS = (
    "SELECT 'usage', COUNT(*), CAST(SUM(cap_ns) AS VARCHAR) FROM usage"
    " UNION ALL SELECT 'peaks', COUNT(*), CAST(SUM(held) AS VARCHAR) FROM peaks ORDER BY 1"
)


@contextmanager
def postgresql(directory: Path, small: _Rows) -> Iterator[Callable[[], Figures]]:
    """A server of its own on a socket, with the rows copied in; what is called runs the same
    statements."""
    account = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    as_who: dict[str, Any] = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    )
    data, socket = directory / "pg", directory / "pg-socket"
    for path in (data, socket):
        path.mkdir()
        if account:
            os.chown(path, account.pw_uid, account.pw_gid)
    directory.chmod(0o755)

    def run(*words: str, **more: Any) -> str:
        told = subprocess.run(words, capture_output=True, text=True, cwd="/", **as_who, **more)
        assert told.returncode == 0, told.stderr[-2000:]
        return told.stdout

    run(str(LIBRARY / "initdb"), "-D", str(data), "-U", "bench", "--no-sync", timeout=120)
    settings = ["fsync=off", "synchronous_commit=off", "listen_addresses=", "shared_buffers=1GB"]
    settings += ["work_mem=512MB", "max_parallel_workers_per_gather=2", "jit=off"]
    settings += ["autovacuum=off", "max_wal_size=8GB"]
    words = [str(LIBRARY / "postgres"), "-D", str(data), "-k", str(socket)]
    words += [word for one in settings for word in ("-c", one)]
    server = subprocess.Popen(words, cwd="/", stderr=subprocess.DEVNULL, **as_who)
    try:
        yield _filled(directory, small, run, str(socket))
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(data, ignore_errors=True)


def _filled(directory: Path, small: _Rows, run: Any, socket: str) -> Callable[[], Figures]:
    """Copy the rows into a server that is starting; what meters them."""
    psql = [str(LIBRARY / "psql"), "-h", socket, "-U", "bench", "-d", "postgres"]
    psql += ["-v", "ON_ERROR_STOP=1", "-qAt"]
    until = time.monotonic() + 60
    while True:
        if subprocess.run([*psql, "-c", "SELECT 1"], capture_output=True).returncode == 0:
            break
        assert time.monotonic() < until, "PostgreSQL did not start"
        time.sleep(0.1)
    script = directory / "load.sql"
    script.write_text(_loading(directory, small))
    run(*psql, "-f", str(script), timeout=600)
    query = directory / "meter.sql"
    query.write_text(
        "".join(
            f"DROP TABLE IF EXISTS {name};\n"
            f"CREATE UNLOGGED TABLE {name} AS {sql};\nANALYZE {name};\n"
            for name, sql in statements().items()
            if name in METERED
        )
    )

    def meter() -> Figures:
        os.sync()
        began = time.perf_counter()
        run(*psql, "-f", str(query), timeout=1800)
        took = time.perf_counter() - began
        rows = [line.split("|") for line in run(*psql, "-c", _SUMS).splitlines()]
        sums = [str((name, int(count), total)) for name, count, total in rows]
        return {"metered_s": took, "sums": sums}

    return meter


def _loading(directory: Path, small: _Rows) -> str:
    whole = "log bigint, seq bigint, "
    held = "party_hi bigint, party_lo bigint, capacity bigint"
    lines = [
        "CREATE FUNCTION idiv(a bigint, b bigint) RETURNS bigint IMMUTABLE PARALLEL SAFE"
        " LANGUAGE sql AS $$ SELECT a / b $$;",
        "CREATE FUNCTION wide(a bigint) RETURNS numeric IMMUTABLE PARALLEL SAFE"
        " LANGUAGE sql AS $$ SELECT a::numeric $$;",
        f"CREATE UNLOGGED TABLE acts ({whole} boot int, lease_hi bigint, lease_lo bigint, act int,"
        " at_ns bigint, sealed_ns bigint, deadline_ns bigint, terms bigint, ref bigint);",
        f"CREATE UNLOGGED TABLE holds ({whole} slot int, {held});",
        f"CREATE UNLOGGED TABLE lives ({whole} slot int, boot int, granted_ns bigint,"
        f" torn_ns bigint, ended_ns bigint, released_ns bigint, {held});",
    ]
    lines.append(
        "CREATE UNLOGGED TABLE parties (party_hi bigint, party_lo bigint, kind int, tier int,"
        " priority int, probe int, tenant text, tag text);"
    )
    for name in (*PROJECTION, "parties"):
        lines.append(f"\\copy {name} FROM '{directory}/{name}.csv' WITH (FORMAT csv, HEADER)")
    for name, rows in small.items():
        fields = ", ".join(f"{column} bigint" for column in SMALL_TABLES[name])
        values = ",".join(f"({', '.join(map(str, row))})" for row in rows)
        lines.append(
            f"CREATE UNLOGGED TABLE {name} ({fields}); INSERT INTO {name} VALUES {values};"
        )
    lines.append("ANALYZE;")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    verbs = {"meter": run_duckdb, "rows": partial(run_duckdb, keeps=True), "refresh": run_refresh}
    print(json.dumps(verbs[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))))
