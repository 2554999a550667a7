# SPDX-License-Identifier: Apache-2.0
"""Starting a reaper where systemd does not: development machines and containers.

Rule: the promise is the same as with the unit, so the reaper must not share the agent's fate: it is
detached (own session, adopted by init, its log in the runtime directory), and an agent that finds
one running uses that one.

Does not supervise it: the link notices when it is gone and calls here again.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from leased.service.config import Config
from leased.terms.errors import EX_TEMPFAIL, DeviceError
from leased.terms.moment import NS_PER_MS

START_WAIT_S: Final = 10.0
_PACKAGE: Final = Path(__file__).resolve().parents[2]
CANDIDATES: Final = (
    _PACKAGE / "bin" / "leased-reaper",
    _PACKAGE.parent.parent / "native" / "build" / "leased-reaper",
    Path("/usr/lib/leased/leased-reaper"),
)


def find_reaper() -> Path:
    """The reaper of this installation: in the wheel, in a source tree, or of the distribution
    package."""
    for candidate in CANDIDATES:
        if os.access(candidate, os.X_OK):
            return candidate
    raise DeviceError("reaper_start", errno.ENOENT, "no leased-reaper is installed")


async def spawn_reaper(binary: Path, runtime_dir: Path, *, options: Sequence[str] = ()) -> bool:
    """Start a detached reaper and return when it listens. False: one was already running there.

    Raises DeviceError when it does not start within START_WAIT_S.
    """
    command = [str(binary), "--detach", "--realtime", "--runtime-dir", str(runtime_dir), *options]
    path = runtime_dir / "reaper.log"
    try:
        runtime_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DeviceError("reaper_start", error.errno or 0, f"{path}: {error.strerror}") from error
    try:
        with trio.fail_after(START_WAIT_S):
            done = await trio.run_process(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
            )
    except trio.TooSlowError:
        raise DeviceError("reaper_start", errno.ETIMEDOUT, "not ready in time") from None
    except OSError as error:
        raise DeviceError("reaper_start", error.errno or errno.EIO, str(binary)) from error
    finally:
        os.close(log)
    if done.returncode == EX_TEMPFAIL:
        return False
    if done.returncode != 0:
        raise DeviceError(
            "reaper_start",
            errno.EIO,
            f"exit status {done.returncode}, see {path}",
        )
    return True


class ReaperStarter:
    """`spawn_reaper` with the binary, the directory and the budgets of the configuration. Why one
    did not start is kept in `trouble` and said, once for each reason."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self.trouble = ""

    async def __call__(self) -> None:
        """Start one. Raises DeviceError."""
        named, timing = self._config.hardware.reaper_path, self._config.timing
        options = (
            f"--kill-ms={timing.cut_ns // NS_PER_MS}",
            f"--backstop-ms={timing.backstop_ns // NS_PER_MS}",
        )
        try:
            binary = Path(named) if named else find_reaper()
            await spawn_reaper(binary, self._config.paths.runtime_dir, options=options)
        except DeviceError as error:
            if str(error) != self.trouble:
                self._say(f"no reaper could be started ({error}): nothing is granted or renewed")
            self.trouble = str(error)
            raise
        self.trouble = ""
