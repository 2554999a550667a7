# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL 15 with a cluster of its own, on a Unix socket and no port, not as root.

Rule: everything is below one directory of /tmp (a socket's path has 107 bytes) and is gone when it
is left; only what was started here is ended. `restart` ends it as a crash does.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.doubles.host import not_proven

LIBRARY = Path("/usr/lib/postgresql/15/bin")
START_S = 120.0


class PostgresServer:
    """Started on entry, gone at exit."""

    def __init__(self) -> None:
        if not (LIBRARY / "postgres").exists():
            not_proven("several collectors on one manifest", "PostgreSQL 15 is not installed")
        self.directory = Path(tempfile.mkdtemp(prefix="leased-pg-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(self.directory, account.pw_uid, account.pw_gid)
        # The collectors of the tests are another user than the server.
        self.directory.chmod(0o755)

    @property
    def database(self) -> str:
        """A libpq connection string."""
        return f"host={self.directory} user=leased dbname=postgres"

    def __enter__(self) -> PostgresServer:
        try:
            words = ["-D", str(self.directory / "data"), "-U", "leased", "--no-sync"]
            subprocess.run(
                [str(LIBRARY / "initdb"), *words, "--auth=trust", "--locale=C", "-E", "UTF8"],
                check=True,
                capture_output=True,
                cwd="/",
                timeout=START_S,
                **self._as,
            )
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until it answers."""
        words = [str(LIBRARY / "postgres"), "-D", str(self.directory / "data")]
        for setting in (f"unix_socket_directories={self.directory}", "listen_addresses="):
            words += ["-c", setting]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(words, cwd="/", stderr=log, stdout=log, **self._as)
        asked = [str(LIBRARY / "pg_isready"), "-q", "-h", str(self.directory)]
        until = time.monotonic() + START_S
        while subprocess.run(asked).returncode:
            said = (self.directory / "log").read_text("utf-8", "replace")[-1000:]
            assert self.process.poll() is None and time.monotonic() < until, said
            select.select([], [], [], 0.05)

    def crash(self) -> None:
        """End it at once; what was committed is replayed at the next start."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(START_S)

    def stop(self) -> None:
        """End it and remove everything."""
        if self.process is not None and self.process.poll() is None:
            self.crash()
        shutil.rmtree(self.directory, ignore_errors=True)
