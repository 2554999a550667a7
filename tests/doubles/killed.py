# SPDX-License-Identifier: Apache-2.0
"""A program that is killed on its way into one system call (`killed.c`), without strace, which
would stop at every call of a Python that starts.

Does not count calls: that is strace's, in an undisturbed run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.doubles.host import not_proven

SIGKILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Killed:
    """What is preloaded, built once."""

    def __init__(self, directory: Path) -> None:
        if shutil.which("cc") is None:
            not_proven("kills within a system call", "there is no C compiler")
        self._shim = directory / "killed.so"
        words = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(self._shim)]
        subprocess.run([*words, str(Path(__file__).with_suffix(".c")), "-ldl"], check=True)

    def at(self, call: str, nth: int, under: Path | None = None) -> dict[str, str]:
        """The environment in which the `nth` such call of a thread is its last; only those on what
        is below `under` count."""
        more = {} if under is None else {"LEASED_KILLED_UNDER": os.fspath(under)}
        told = {"LEASED_KILLED_AT": call, "LEASED_KILLED": str(nth)}
        return {"LD_PRELOAD": str(self._shim), **told, **more}

