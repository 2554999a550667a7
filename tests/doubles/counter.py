# SPDX-License-Identifier: Apache-2.0
"""Counters to bind a log to: one in memory that argues back, and a real one in an emulated TPM.

`MemoryCounter` keeps its value whatever becomes of the log, tires, and can be made to fail before
or after it has counted. `Tpm` is swtpm over a socket, asked by tpm2-tools.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from leased.terms.errors import StateError
from tests.doubles.host import not_proven

INDEX = "0x01800a11"
PATIENCE_S = 30.0
OUR_ATTRIBUTES = "nt=counter|authread|authwrite|no_da"


class MemoryCounter:
    """`ports.Counter` in memory. `fail`: None, "before" or "after": how the next advance fails;
    `tired`: it was advanced a moment ago."""

    def __init__(self, value: int | None = None) -> None:
        self.value = value
        self.tired = False
        self.fail: str | None = None
        self.advances = 0
        self.gone = False

    def __str__(self) -> str:
        return "the counter"

    def read(self) -> int | None:
        if self.gone:
            raise StateError(f"{self} does not answer")
        return self.value

    def advance(self) -> int:
        if self.gone or self.fail == "before":
            self.fail = None
            raise StateError(f"{self} does not answer")
        self.value = (self.value or 0) + 1
        self.advances += 1
        if self.fail == "after":
            self.fail = None
            raise StateError(f"{self} does not answer")
        return self.value

    def rested(self) -> bool:
        return not self.tired


class Tpm:
    """An emulated TPM 2.0 in `directory`: started and stopped at will, its memory stays."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("swtpm") or not shutil.which("tpm2"):
            not_proven("the TPM counter", "swtpm or tpm2-tools is not installed")
        self.directory = directory
        self._socket = directory / "tpm"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(exist_ok=True)

    def __enter__(self) -> Tpm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def tcti(self) -> str:
        """How tpm2-tools reaches it."""
        return f"swtpm:path={self._socket}"

    def start(self) -> None:
        """Power on."""
        self._process = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.directory}"),
                *("--server", f"type=unixio,path={self._socket}"),
                # Where libtss2-tcti-swtpm looks for it.
                *("--ctrl", f"type=unixio,path={self._socket}.ctrl"),
                *("--flags", "not-need-init,startup-clear"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + PATIENCE_S
        while self._tool("getcap", "handles-nv-index").returncode:
            alive = self._process.poll() is None
            assert alive and time.monotonic() < give_up, "swtpm did not start"

    def stop(self) -> None:
        """Power off."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for name in (self._socket, Path(f"{self._socket}.ctrl")):
            name.unlink(missing_ok=True)

    def define(self, attributes: str = OUR_ATTRIBUTES) -> None:
        """What whoever owns the TPM does once."""
        self.ask("nvdefine", INDEX, "-C", "o", "-s", "8", "-a", attributes)

    def undefine(self) -> None:
        """What whoever owns the TPM can do at any time."""
        self.ask("nvundefine", INDEX, "-C", "o")

    def ask(self, verb: str, *words: str) -> bytes:
        """A command that has to succeed."""
        done = self._tool(verb, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _tool(self, verb: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["tpm2", verb, "-T", self.tcti, *words],
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
