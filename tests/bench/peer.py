# SPDX-License-Identifier: Apache-2.0
"""The peer: Debian's etcd, asked for leases over gRPC by h2load on the same disk.

Rule: every round gets a fresh etcd on an empty directory, so no round pays for the leases of the
one before, and its durability is left at its default (fsync on). One request outstanding per
connection, as on our side. The body is one LeaseGrantRequest with a TTL of 60 s in a gRPC frame.

Does not tune etcd: a snapshot count or a batch delay of our choosing would be our figure, not its.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.loadgen import Figures

LEASE_GRANT_BODY = bytes.fromhex("000000000208") + b"\x3c"
"""gRPC frame: not compressed, 2 bytes, field 1 (TTL) varint 60."""

READY_S_MAX = 30


@contextmanager
def etcd(directory: Path) -> Iterator[str]:
    """A running etcd below `directory`; yields its URL and leaves nothing behind."""
    client, internal = _free_port(), _free_port()
    url = f"http://127.0.0.1:{client}"
    with tempfile.TemporaryDirectory(dir=directory, prefix="etcd-") as data:
        process = subprocess.Popen(
            [
                "etcd",
                f"--data-dir={data}",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls=http://127.0.0.1:{internal}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{internal}",
                f"--initial-cluster=default=http://127.0.0.1:{internal}",
                "--log-level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_ready(url)
            yield url
        finally:
            process.kill()
            process.wait()


def lease_grants(url: str, *, clients: int, requests: int, scratch: Path) -> Figures:
    """`requests` LeaseGrants over `clients` connections: operations/s and percentiles."""
    body, log = scratch / "lease-grant.bin", scratch / "h2load.log"
    body.write_bytes(LEASE_GRANT_BODY)
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [
            "h2load",
            f"--requests={requests}",
            f"--clients={clients}",
            "--threads=1",
            "--max-concurrent-streams=1",
            f"--data={body}",
            f"--log-file={log}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"{url}/etcdserverpb.Lease/LeaseGrant",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    counts = re.search(r"requests: .* (\d+) succeeded, (\d+) failed", done.stdout)
    if counts is None or int(counts[1]) != requests:
        raise SystemExit(f"bench: h2load did not succeed:\n{done.stdout}")
    granted = _granted(url)
    if granted != requests:
        raise SystemExit(f"bench: etcd granted {granted} of {requests} leases")
    return read_log_file(log, clients)


def _granted(url: str) -> int:
    """How many leases etcd itself says it granted: gRPC answers 200 to a refusal as well."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    counted = re.search(r"^etcd_debugging_lease_granted_total ([\d.e+]+)$", text, re.MULTILINE)
    return int(float(counted[1])) if counted else -1


def read_log_file(log: Path, clients: int) -> Figures:
    """From h2load's log: start (us since the epoch), status, microseconds; the first tenth is
    warm-up.
    """
    rows = [tuple(map(int, line.split("\t")[:3])) for line in log.read_text().splitlines()]
    if any(status != 200 for _, status, _ in rows):
        raise SystemExit("bench: etcd refused a LeaseGrant")
    measured = sorted(rows)[len(rows) // 10 :]
    took = sorted(us for _, _, us in measured)
    began, ended = measured[0][0], max(start + us for start, _, us in measured)
    return {
        "mode": "etcd LeaseGrant",
        "clients": clients,
        "operations_per_s": len(measured) * 1e6 / (ended - began),
        "latency": {
            "count": len(took),
            "p50_ns": took[len(took) // 2] * 1000,
            "p99_ns": took[len(took) * 99 // 100] * 1000,
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
                if b"true" in answer.read():
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit("bench: etcd did not become healthy")
