# SPDX-License-Identifier: Apache-2.0
"""The real collector serving HTTP, as a process, on a port of its own.

Rule: nothing here pretends: requests go through sockets to the installed program. Whatever a test
makes is gone when the `with` ends; only the process that was started is ended. Waiting is always
for something: a line, an answer, an exit.

Does not judge answers.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leased.chain.certificate import Role
from tests.doubles.fleet_pki import FleetPki

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0


class Response(NamedTuple):
    """One answer; `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class CollectorServer:
    """One collector over one state directory; `more` are further lines of its configuration."""

    def __init__(
        self,
        *,
        http: str = "",
        access: str = 'loopback = "write"',
        governance: str = "",
        more: str = "",
        state: Path | None = None,
        directory: Path | None = None,
        wrap: tuple[str, ...] = (),
    ) -> None:
        self._wrap = wrap
        self._made = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="leased-api-"))
        self.state = state or self.directory / "state"
        self.config = self.directory / "leased-collector.toml"
        listen = "" if "listen" in http else 'listen = ["127.0.0.1:0"]\n'
        self.config.write_text(
            f"[http]\n{listen}requests_per_s_max = 100000\nrequests_burst = 100000\n{http}\n"
            f"[access]\n{access}\n[governance]\n{governance}\n{more}\n"
        )
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.said: list[str] = []

    def __enter__(self) -> CollectorServer:
        self.start()
        return self

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.process = subprocess.Popen(
            [
                *self._wrap,
                *(sys.executable, "-m", "leased.collector.main", "--state", str(self.state)),
                *("serve", "--config", str(self.config)),
            ],
            cwd=REPOSITORY,
            env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.port = int(self.wait_for(r"serving http://127\.0\.0\.1:(\d+)$")[1])

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line that it says and that matches."""
        assert self.process is not None and self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            match = re.search(pattern, line.rstrip("\n"))
            if match is not None:
                return match
        self.process.wait(PATIENCE_S)
        self.process.stderr.close()
        raise AssertionError(f"it ended ({self.process.returncode}) and said {self.said}")

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._made:
                shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stderr is not None and not self.process.stderr.closed:
                self.said += self.process.stderr.read().splitlines()
                self.process.stderr.close()
        return status

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://localhost:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> Response:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
            connection.request(method, path, sent, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, found, answer.read())
        finally:
            connection.close()


def over_tls(directory: Path, pki: FleetPki, more: str = "") -> CollectorServer:
    """A collector of the fleet that also serves mutual TLS; `more` are further lines of [http]."""
    directory.mkdir()
    certificate = pki.issue(Role.COLLECTOR, "west")
    tls = (
        'listen = ["127.0.0.1:0"]\ntls_listen = ["127.0.0.1:0"]\n'
        f'certificate = "{certificate}"\ncertificate_key = "{certificate.with_suffix(".key")}"\n'
        f'client_ca = "{pki.ca}"{more}'
    )
    return CollectorServer(http=tls, governance=f'fleet = "{pki.fleet}"', directory=directory)
