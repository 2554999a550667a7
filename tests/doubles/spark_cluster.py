# SPDX-License-Identifier: Apache-2.0
"""A real Spark: a master, two workers of one core each, and a Connect server, on loopback.

Rule: everything it starts is in process groups of its own and is gone when it is left, also where a
start fails; every wait has an end. Ports are the kernel's, files are below the directory it is
given. Clients show a token that is made for the run.

Does not install Spark: `tests/run` puts the full package into .venv/spark.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.doubles.host import not_proven

TOP = Path(__file__).resolve().parents[2]
START_S = 300.0
CORES, WORKERS = 1, 2
MEMORY = "1g"
QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
"""They live for minutes: what the second compiler would save later is spent on it first."""


def spark_home() -> Path:
    """Where the full Spark is. Skips, and says what that leaves unproven."""
    found = sorted((TOP / ".venv" / "spark").glob("lib/python3*/site-packages/pyspark"))
    if not found or not (found[0] / "bin" / "spark-class").exists():
        not_proven("bills by Spark equal those by DuckDB", "Spark is not in .venv/spark")
    if shutil.which("java") is None:
        not_proven("bills by Spark equal those by DuckDB", "there is no Java here")
    return found[0]


class SparkCluster:
    """Started on entry, gone at exit."""

    def __init__(self, directory: Path) -> None:
        self.home = spark_home()
        self.directory = directory
        self.token = secrets.token_hex(16)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.port, self.ui_port = free_ports(2)
        self.master = ""

    @property
    def url(self) -> str:
        """Where the Connect server is."""
        return f"sc://localhost:{self.port}"

    def __enter__(self) -> SparkCluster:
        try:
            spark = "org.apache.spark.deploy"
            local = ["--host", "127.0.0.1", "--webui-port", "0"]
            self._start("master", f"{spark}.master.Master", *local, "--port", "0")
            self.master = self._told("master", r"Starting Spark master at (spark://\S+)")
            for number in range(WORKERS):
                mine = ["--work-dir", str(self.directory / f"work-{number}")]
                size = ["--cores", str(CORES), "--memory", MEMORY]
                name = f"worker-{number}"
                self._start(name, f"{spark}.worker.Worker", *local, *size, *mine, self.master)
            for number in range(WORKERS):
                self._told(f"worker-{number}", r"Successfully registered with master (\S+)")
            self.start_server()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_server(self) -> None:
        """Start the Connect server, and the executors with it."""
        settings = {
            "spark.connect.grpc.binding.address": "127.0.0.1",
            "spark.connect.grpc.binding.port": self.port,
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.executor.memory": "768m",
            "spark.executor.cores": CORES,
            "spark.ui.port": self.ui_port,
            "spark.executor.extraJavaOptions": QUICK,
            "spark.sql.shuffle.partitions": 2,
            "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
            # A worker that is killed is given up soon, and not asked for its rows for minutes.
            "spark.executor.heartbeatInterval": "5s",
            "spark.network.timeout": "60s",
            "spark.shuffle.io.maxRetries": 1,
            "spark.shuffle.io.retryWait": "1s",
            # A query that its client gave up is ended soon, and not after seven minutes: the server
            # sees that nobody listens when it would begin the next stream of answers.
            "spark.connect.execute.reattachable.senderMaxStreamDuration": "5s",
            "spark.connect.execute.manager.detachedTimeout": "10s",
            "spark.connect.execute.manager.maintenanceInterval": "1s",
            "spark.sql.warehouse.dir": self.directory / "warehouse",
        }
        words = ["--master", self.master]
        for key, value in settings.items():
            words += ["--conf", f"{key}={value}"]
        service = "org.apache.spark.sql.connect.service.SparkConnectServer"
        submit = "org.apache.spark.deploy.SparkSubmit"
        self._start("server", submit, *words, "--class", service, "spark-internal")
        until = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                self._check("server", until)
                select.select([], [], [], 0.1)

    def kill(self, name: str) -> None:
        """Kill -9 a process and, of a worker, its executors."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pause(self, name: str) -> None:
        """Stop a process in the middle: its connections stay, and nothing is answered."""
        os.killpg(self.processes[name].pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let it go on."""
        os.killpg(self.processes[name].pid, signal.SIGCONT)

    def works(self, *, within_s: float) -> bool:
        """Whether a task runs now, or does so within that time."""
        return self._comes_to(True, within_s)

    def rests(self, *, within_s: float) -> bool:
        """Whether no task runs now, or none does within that time."""
        return self._comes_to(False, within_s)

    def _comes_to(self, work: bool, within_s: float) -> bool:
        base = f"http://127.0.0.1:{self.ui_port}/api/v1/applications"
        (application,) = _json(base)
        until = time.monotonic() + within_s
        while True:
            stages = _json(f"{base}/{application['id']}/stages?status=active")
            if any(one["numActiveTasks"] for one in stages) is work:
                return True
            if time.monotonic() > until:
                return False
            select.select([], [], [], 0.02)  # the processors are the query's

    def executors(self) -> int:
        """How many executors there are now."""
        base = f"http://127.0.0.1:{self.ui_port}/api/v1/applications"
        (application,) = _json(base)
        found = _json(f"{base}/{application['id']}/executors")
        return sum(one["id"] != "driver" for one in found)

    def stop(self) -> None:
        """End everything."""
        for name in list(self.processes):
            self.kill(name)

    def _start(self, name: str, program: str, *words: str) -> None:
        environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ},
            "SPARK_HOME": str(self.home),
            "SPARK_DAEMON_JAVA_OPTS": QUICK,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_LOCAL_DIRS": str(self.directory / "local"),
            # Of the server too, which Spark takes for a daemon and not for a driver.
            "SPARK_DAEMON_MEMORY": "1g" if name == "server" else "256m",
            "SPARK_CONNECT_AUTHENTICATE_TOKEN": self.token,
        }
        with self._log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [str(self.home / "bin" / "spark-class"), program, *words],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _told(self, name: str, pattern: str) -> str:
        """What a process says of itself in its log."""
        until = time.monotonic() + START_S
        while True:
            found = re.search(pattern, self._log(name).read_text("utf-8", "replace"))
            if found:
                return found[1]
            self._check(name, until)
            select.select([], [], [], 0.1)

    def _check(self, name: str, until: float) -> None:
        ended = self.processes[name].poll()
        if ended is not None or time.monotonic() > until:
            tail = self._log(name).read_text("utf-8", "replace")[-2000:]
            raise AssertionError(f"Spark's {name} did not start (status {ended}): {tail}")

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now, all different."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
