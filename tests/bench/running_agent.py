# SPDX-License-Identifier: Apache-2.0
"""The agent under measurement: its own state and runtime directory, its own reaper, its real
socket.

Rule: it runs as it would in production but for its paths and limits on callers: what is in /run
there is on a tmpfs here, because a cut writes down what it does, and on a disk would wait for the
journal of the file system whenever somebody syncs. What it is asked goes over the socket. Only
processes started here are ended, each by its id.

Does not measure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.doubles.workers import servers_of, workers_of

TMPFS = Path("/dev/shm")
REPOSITORY = Path(__file__).resolve().parents[2]
READY_S_MAX = 300
STOP_S_MAX = 20

CONFIG = """
[paths]
state_dir = "{state}"
runtime_dir = "{runtime}"

[sockets]
connections_max = 2048
connections_per_uid_max = 1024

[policy]
ttl_min = "500ms"

[journald]
copied = false
{more}
"""


class RunningAgent:
    """One agent over one state directory: `start` and `stop` as often as wanted, then `close`."""

    def __init__(self, directory: Path, *, more: str = "") -> None:
        """`more` are further sections of its configuration, as text."""
        self.state = directory / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.runtime = Path(tempfile.mkdtemp(dir=TMPFS, prefix="leased-bench-"))
        self.runtime.chmod(0o755)
        self.config = directory / "leased.toml"
        self.config.write_text(
            CONFIG.format(state=self.state, runtime=self.runtime, more=more)
        )
        self._log = directory / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper_pid = 0

    @property
    def socket(self) -> Path:
        """The users' socket."""
        return self.runtime / "io.leased"

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self._process is not None, "the agent does not run"
        return self._process.pid

    def start(self) -> float:
        """Start it; seconds until it answered its first call."""
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "agent")}
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "leased.service.daemon", "--config", self.config],
                env=environment,
                stdout=log,
                stderr=log,
            )
        while time.monotonic() - began < READY_S_MAX:
            if self._process.poll() is not None:
                raise SystemExit(f"bench: the agent ended: {self._log.read_text()[-2000:]}")
            try:
                self.call("org.varlink.service.GetInfo")
            except (ConnectionError, FileNotFoundError):
                time.sleep(0.005)
                continue
            took_s = time.monotonic() - began
            self._reaper_pid = self._find_reaper()
            return took_s
        raise SystemExit(f"bench: the agent is not ready: {self._log.read_text()[-2000:]}")

    def said(self) -> str:
        """What all its runs said."""
        return self._log.read_text("utf-8", "replace")

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """A clean stop; the reaper stays, and with it every lease."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop the agent and then its reaper. Idempotent."""
        self.stop()
        if self._reaper_pid:
            os.kill(self._reaper_pid, signal.SIGKILL)
            self._reaper_pid = 0
        shutil.rmtree(self.runtime, ignore_errors=True)

    def call(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """One Varlink call over a connection of its own. Raises SystemExit if it is refused."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self.socket))
            text = json.dumps({"method": method, "parameters": parameters or {}})
            connection.sendall(text.encode() + b"\0")
            reply = b""
            while not reply.endswith(b"\0"):
                got = connection.recv(1 << 20)
                if not got:
                    raise ConnectionError("the agent closed the connection")
                reply += got
        answer: dict[str, Any] = json.loads(reply[:-1])
        if "error" in answer:
            raise SystemExit(f"bench: {method}: {answer}")
        found: dict[str, Any] = answer.get("parameters", {})
        return found

    def wait_closed(self, seconds: float) -> None:
        """Until no lease is left that is not reclaimed or fenced."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            leases = self.call("io.leased.Lease.List").get("leases", [])
            if all(one["runtime"]["state"] in ("reclaimed", "fenced") for one in leases):
                return
            time.sleep(0.1)
        raise SystemExit("bench: leases are still being torn down")

    def processes(self) -> dict[str, int]:
        """Process ids by what they are: the agent, its reaper, its workers and who forks them."""
        [server] = servers_of(self.pid)
        found = {"agent": self.pid, "reaper": self._reaper_pid, "fork server": server}
        return found | {f"worker {at}": pid for at, pid in enumerate(workers_of(self.pid))}

    def _find_reaper(self) -> int:
        """Whoever listens on the reaper's socket, as the kernel tells it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(self.runtime / "reaper.sock"))
            credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, _, _ = struct.unpack("iII", credentials)
        return int(pid)


def resident_bytes(pid: int) -> int:
    """VmRSS of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def shared_bytes(pid: int) -> int:
    """Pss of a process: of what several have in common, its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
