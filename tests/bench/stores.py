# SPDX-License-Identifier: Apache-2.0
"""Two more peers, named by what people would otherwise keep leases in: PostgreSQL 15 with one
INSERT a transaction, and Redis with `appendfsync always` and one SET with an expiry.

Rule: each is Debian's, on an empty directory of the same disk, over a Unix socket, with one request
outstanding per client and the load of its own people (pgbench, redis-benchmark). Durability is on
and nothing else is set: PostgreSQL's default is `synchronous_commit = on`; Redis is told `always`,
because by default it may lose a second.

Does not install anything: `tests/bench/run` does.
"""

from __future__ import annotations

import csv
import io
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.loadgen import Figures

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
READY_S_MAX = 60
SCHEMA = """CREATE TABLE leases (
  id uuid PRIMARY KEY, holder text NOT NULL, resource text NOT NULL, bytes bigint NOT NULL,
  deadline timestamptz NOT NULL)"""
INSERT = """INSERT INTO leases VALUES (gen_random_uuid(), 'bench', 'mem:node0:4096', 4096,
  now() + interval '60 s');
"""
_AS_WHOM = "postgres"
"""The server refuses to be root."""


def missing() -> list[str]:
    """The Debian packages that are not there."""
    needed = {"postgresql-15": POSTGRESQL / "pgbench", "redis-server": "redis-benchmark"}
    return [package for package, program in needed.items() if shutil.which(program) is None]


@contextmanager
def postgresql(directory: Path) -> Iterator[Path]:
    """A running cluster of its own below `directory`; yields the directory of its socket."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="pg-") as made:
        place = Path(made)
        as_whom = _account(place)
        data = place / "data"
        _run("initdb", "-D", data, "-U", "bench", "--auth=trust", cwd="/", **as_whom)
        words = [POSTGRESQL / "postgres", "-D", data, "-k", place, "-c", "listen_addresses="]
        server = subprocess.Popen(words, cwd="/", stderr=subprocess.DEVNULL, **as_whom)
        try:
            _wait(lambda: _psql(place, "SELECT 1").returncode == 0, "PostgreSQL")
            _psql(place, SCHEMA).check_returncode()
            yield place
        finally:
            server.terminate()
            server.wait()


def inserts(socket: Path, *, clients: int, requests: int, scratch: Path) -> Figures:
    """Single INSERTs over so many connections: transactions/s and percentiles; the first tenth is
    warm-up."""
    script = scratch / "insert.sql"
    script.write_text(INSERT)
    with tempfile.TemporaryDirectory(dir=scratch) as logs:
        words = ["-h", socket, "-U", "bench", "-n", "-f", script, "-c", clients, "-j", 2]
        _run("pgbench", *words, "-t", requests // clients, "-l", "postgres", cwd=logs)
        # client, transaction, microseconds, script, end in s, us
        rows = [line.split() for one in Path(logs).iterdir() for line in one.open()]
    ended = sorted((int(row[4]) * 10**6 + int(row[5]), int(row[2])) for row in rows)
    return _figures("PostgreSQL INSERT", clients, ended[len(ended) // 10 :])


@contextmanager
def redis(directory: Path) -> Iterator[Path]:
    """A running Redis on an append-only file below `directory`; yields its socket."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="redis-") as made:
        socket = Path(made) / "s"
        words = ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", made]
        words += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            ping = ["redis-cli", "-s", str(socket), "ping"]
            _wait(lambda: b"PONG" in subprocess.run(ping, capture_output=True).stdout, "Redis")
            yield socket
        finally:
            server.terminate()
            server.wait()


def sets(socket: Path, *, clients: int, requests: int) -> Figures:
    """SETs with an expiry over so many connections: requests/s and percentiles."""
    words = ["redis-benchmark", "-s", str(socket), "-c", str(clients), "-n", str(requests)]
    words += ["-r", "100000000", "--csv", "SET", "lease:__rand_int__", "bench", "PX", "60000"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    [row] = list(csv.DictReader(io.StringIO(said)))
    return {
        "mode": "Redis SET",
        "clients": clients,
        "operations_per_s": float(row["rps"]),
        "latency": {
            "count": requests,
            "p50_ns": int(float(row["p50_latency_ms"]) * 1e6),
            "p99_ns": int(float(row["p99_latency_ms"]) * 1e6),
        },
    }


def _figures(mode: str, clients: int, ended: list[tuple[int, int]]) -> Figures:
    """Of (end, duration) in microseconds."""
    took = sorted(us for _, us in ended)
    span_us = ended[-1][0] - ended[0][0]
    return {
        "mode": mode,
        "clients": clients,
        "operations_per_s": len(ended) * 1e6 / span_us,
        "latency": {
            "count": len(took),
            "p50_ns": took[len(took) // 2] * 1000,
            "p99_ns": took[len(took) * 99 // 100] * 1000,
        },
    }


def _account(place: Path) -> dict[str, object]:
    """Who the server runs as, and may write below `place`."""
    if os.getuid() != 0:
        return {}
    account = pwd.getpwnam(_AS_WHOM)
    place.parent.chmod(0o755)
    os.chown(place, account.pw_uid, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _run(program: str, *words: object, **options: object) -> str:
    done = subprocess.run(
        [str(POSTGRESQL / program), *map(str, words)],
        capture_output=True,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise SystemExit(f"bench: {program}: {done.stderr[-1000:]}")
    if program == "pgbench" and re.search(r"number of failed transactions: [1-9]", done.stdout):
        raise SystemExit(f"bench: pgbench did not succeed:\n{done.stdout}")
    return str(done.stdout)


def _psql(socket: Path, text: str) -> subprocess.CompletedProcess[bytes]:
    words = [POSTGRESQL / "psql", "-h", socket, "-U", "bench", "-d", "postgres", "-c", text]
    return subprocess.run(words, capture_output=True)


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {what} did not start")
        time.sleep(0.05)
