# SPDX-License-Identifier: Apache-2.0
"""Metering: events of a fleet to hourly usage, peaks and bills, by DuckDB and by PostgreSQL 15 with
the same SQL file.

Rule: both begin with the same rows, already where they read them (Parquet; unlogged, analysed
tables), and must come to the same sums, or there is no figure. The rows are made by SQL with the
shapes of a real fleet: they are not sealed records, of which ten million take minutes to make;
that real records give the same cells is tested elsewhere.

Run as a program it is the DuckDB side alone, so that its memory is its own.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

from leased.collector.metering import tables
from leased.collector.metering.duck import DuckEngine
from leased.collector.metering.engine import RESULTS, SMALL_TABLES, check_engine, meter, statements
from leased.economics.billing import Month, make_bill
from leased.economics.contracts import Terms
from leased.economics.hourly import HOUR_NS, NodeSpan
from tests.bench.loadgen import Figures
from tests.bench.table import Say

LOGS, TENANTS, DAYS = 1_000, 200, 30
END_NS = DAYS * 24 * HOUR_NS
WANTED = ("usage", "peaks", "tasks")
LIBRARY = Path("/usr/lib/postgresql/15/bin")

_MAKE = """
CREATE TABLE leases AS SELECT i, i * 7919 % {logs} AS log,
  (hash(i * 3) % {end_us})::BIGINT * 1000 AS start_ns,
  (60 + hash(i * 5) % 14400)::BIGINT * 1000000000 AS length_ns,
  floor(power(hash(i * 11) % 1000000 / 1000000.0, 3) * {tenants})::INT AS t,
  [3, 0, 4, 0, 1][1 + (hash(i * 13) % 5)::INT] AS kind
  FROM range({leases}) r(i);
CREATE TABLE acts AS SELECT * FROM (
  SELECT log::BIGINT AS log, i * 8 + 1 AS seq, 0 AS boot, (hash(i) >> 1)::BIGINT AS lease_hi,
    i AS lease_lo, 1 AS act, start_ns AS at_ns, start_ns AS sealed_ns,
    start_ns + 14400000000000 AS deadline_ns, i AS terms, NULL::BIGINT AS ref FROM leases
  UNION ALL SELECT log, i * 8 + 2, 0, (hash(i) >> 1)::BIGINT, i, 2, start_ns + 30000000000,
    start_ns + 30000000000, start_ns + 28800000000000, i, NULL FROM leases WHERE i % 3 < 2
  UNION ALL SELECT log, i * 8 + 4, 0, (hash(i) >> 1)::BIGINT, i, 4, start_ns + length_ns,
    start_ns + length_ns, NULL, NULL, NULL FROM leases WHERE start_ns + length_ns < {end_ns}
  UNION ALL SELECT log, i * 8 + 5, 0, (hash(i) >> 1)::BIGINT, i, 5,
    start_ns + length_ns + 900000000, start_ns + length_ns + 900000000, NULL, NULL, NULL
    FROM leases WHERE start_ns + length_ns < {end_ns}) ORDER BY log, seq;
CREATE TABLE holds AS SELECT log::BIGINT AS log, i * 8 + 1 AS seq, 0 AS slot,
  'tenant-' || lpad(t::VARCHAR, 3, '0') AS tenant, kind,
  CASE WHEN kind = 0 THEN 0 ELSE -1 END AS tier, (t + kind) % 3 AS priority,
  CASE WHEN t % 4 > 0 THEN '["cc-' || (t % 7) || '","p","","",0]' ELSE '' END AS tag,
  CASE WHEN kind IN (3, 4) THEN 1000 * (1 + i % 8) ELSE (1 + i % 64) * 1073741824 END::BIGINT
    AS capacity FROM leases ORDER BY log, seq;
"""


def measure_metering(directory: Path, *, short: bool, say: Say) -> Figures:
    """Make the rows, run both, compare."""
    leases = 65_000 if short else 2_600_000
    say(f"metering: making the events of {leases:,} leases")
    events = make_rows(directory, leases)
    say(f"metering: {events:,} events by DuckDB")
    words = [sys.executable, "-m", "tests.bench.metering", str(directory)]
    told = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    found: Figures = {"events": events, "leases": leases, "duckdb": json.loads(told.stdout)}
    if not LIBRARY.is_dir():
        say("metering: no PostgreSQL 15 here: not compared")
        return found
    say("metering: the same by PostgreSQL 15")
    found["postgresql"] = run_postgresql(directory)
    ours, theirs = found["duckdb"]["sums"], found["postgresql"]["sums"]
    assert ours == theirs, f"the engines disagree: {ours} and {theirs}"
    return found


def make_rows(directory: Path, leases: int) -> int:
    """Parquet for one, CSV for the other; how many events."""
    maker = duckdb.connect()
    sizes = {"logs": LOGS, "tenants": TENANTS, "end_us": END_NS // 1000, "end_ns": END_NS}
    maker.execute(_MAKE.format(leases=leases, **sizes))
    for name in ("acts", "holds"):
        maker.execute(f"COPY {name} TO '{directory}/{name}.parquet' (COMPRESSION zstd)")
        maker.execute(f"COPY {name} TO '{directory}/{name}.csv'")
    count = maker.execute("SELECT COUNT(*) FROM acts").fetchone()
    maker.close()
    return int(count[0]) if count else 0


def small_rows() -> dict[str, list[tuple[int, ...]]]:
    """One boot and one era per node, and what each has."""
    logs = range(LOGS)
    return {
        "boots": [(log, 0, 0, END_NS, 1) for log in logs],
        "eras": [(log, 0, 0, END_NS, 0, 1) for log in logs],
        "others": [(log, 4, kind, -1, 10**6, 0, END_NS) for log in logs for kind in (0, 3, 4)],
        "hours": [(hour,) for hour in range(END_NS // HOUR_NS)],
    }


def run_duckdb(directory: Path) -> Figures:
    """Parquet to bills, in this process."""
    engine = DuckEngine(spill=directory / "spill")
    check_engine(engine)
    began = time.perf_counter()
    for name in ("acts", "holds"):
        engine.load_files(name, [directory / f"{name}.parquet"], "")
    for name, rows in small_rows().items():
        engine.load(name, SMALL_TABLES[name], rows)
    meter(engine, WANTED)
    metered_s = time.perf_counter() - began
    bills = make_bills(engine)
    whole_s = time.perf_counter() - began
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "metered_s": metered_s,
        "whole_s": whole_s,
        "cpu_s": spent.ru_utime + spent.ru_stime,
        "peak_mib": spent.ru_maxrss // 1024,
        "bills": bills,
        "sums": [str(row) for row in engine.query(_SUMS)],
    }


def make_bills(engine: DuckEngine) -> int:
    """The bill of every tenant for the month."""
    node = NodeSpan("4e" * 16, "1d" * 16, 0, 1, "ab" * 32, END_NS)
    month, terms, made = Month("1970-01", 0, END_NS), Terms(), 0
    # As the accounts ask where there is one price and no plan, of everybody at once.
    by_tenant: dict[str, list[Any]] = {}
    for row in engine.query(
        "SELECT 0, pool, tenant, kind, tier, priority, tag, SUM(cap_ns) FROM usage"
        " WHERE pool = 0 GROUP BY pool, tenant, kind, tier, priority, tag"
    ):
        by_tenant.setdefault(str(row[2]), []).append(row)
    for tenant, rows in sorted(by_tenant.items()):
        bill = make_bill(
            tenant, month, tables.cells(rows), {}, terms, [node], fleet_watermark_ns=END_NS
        )
        assert bill.final
        made += 1
    return made


_SUMS = (
    "SELECT 'usage', COUNT(*), CAST(SUM(cap_ns) AS VARCHAR) FROM usage"
    " UNION ALL SELECT 'peaks', COUNT(*), CAST(SUM(held) AS VARCHAR) FROM peaks ORDER BY 1"
)


def run_postgresql(directory: Path) -> Figures:
    """A server of its own on a socket, the rows copied in, the same statements."""
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
        return _ask_postgresql(directory, run, str(socket))
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(data, ignore_errors=True)


def _ask_postgresql(directory: Path, run: Any, socket: str) -> Figures:
    psql = [str(LIBRARY / "psql"), "-h", socket, "-U", "bench", "-d", "postgres"]
    psql += ["-v", "ON_ERROR_STOP=1", "-qAt"]
    until = time.monotonic() + 60
    while True:
        if subprocess.run([*psql, "-c", "SELECT 1"], capture_output=True).returncode == 0:
            break
        assert time.monotonic() < until, "PostgreSQL did not start"
        time.sleep(0.1)
    script = directory / "load.sql"
    script.write_text(_loading(directory))
    run(*psql, "-f", str(script), timeout=600)
    query = directory / "meter.sql"
    wanted = [name for name in statements() if name not in RESULTS or name in WANTED]
    query.write_text(
        "".join(
            f"CREATE UNLOGGED TABLE {name} AS {sql};\nANALYZE {name};\n"
            for name, sql in statements().items()
            if name in wanted
        )
    )
    began = time.perf_counter()
    run(*psql, "-f", str(query), timeout=1800)
    took = time.perf_counter() - began
    rows = [line.split("|") for line in run(*psql, "-c", _SUMS).splitlines()]
    sums = [str((name, int(count), total)) for name, count, total in rows]
    return {"metered_s": took, "sums": sums}


def _loading(directory: Path) -> str:
    whole = "log bigint, seq bigint, "
    lines = [
        "CREATE FUNCTION idiv(a bigint, b bigint) RETURNS bigint IMMUTABLE PARALLEL SAFE"
        " LANGUAGE sql AS $$ SELECT a / b $$;",
        f"CREATE UNLOGGED TABLE acts ({whole} boot int, lease_hi bigint, lease_lo bigint, act int,"
        " at_ns bigint, sealed_ns bigint, deadline_ns bigint, terms bigint, ref bigint);",
        f"CREATE UNLOGGED TABLE holds ({whole} slot int, tenant text, kind int, tier int,"
        " priority int, tag text, capacity bigint);",
    ]
    for name in ("acts", "holds"):
        lines.append(f"\\copy {name} FROM '{directory}/{name}.csv' WITH (FORMAT csv, HEADER)")
    for name, rows in small_rows().items():
        fields = ", ".join(f"{column} bigint" for column in SMALL_TABLES[name])
        values = ",".join(str(row) if len(row) > 1 else f"({row[0]})" for row in rows)
        lines.append(
            f"CREATE UNLOGGED TABLE {name} ({fields}); INSERT INTO {name} VALUES {values};"
        )
    lines.append("ANALYZE;")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(run_duckdb(Path(sys.argv[1]))))
