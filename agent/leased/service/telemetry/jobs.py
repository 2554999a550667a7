# SPDX-License-Identifier: Apache-2.0
"""Jobs: which lease has which GPU, written for dcgm-exporter (`--hpc-job-mapping-dir`).

There one file is named after each GPU's index and holds a job a line; dcgm-exporter adds it to the
GPU's metrics as `hpc_job`. Here a job is the lease's id.

Rule: the directory says what the agent knows now. A file is replaced whole and never removed
(dcgm-exporter takes a file that went away for an error): a GPU that nobody has, or that is there no
more, has an empty one, also where an earlier run of the agent wrote it. Files of other names are
left alone, and only regular files are read: a pipe would be waited at for ever.

Does not make the directory: whoever configures it decides who may read it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import trio

from leased.terms.lease import Lease, LeaseState
from leased.terms.resource import ResourceKind

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,3}")
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_BYTES_MAX: Final = 1 << 20
"""Far more than the jobs of one GPU."""

HELD: Final = (LeaseState.GRANTED, LeaseState.ACTIVE, LeaseState.DRAINING)


def jobs_of(indices: Mapping[str, int], leases: Iterable[Lease]) -> dict[int, tuple[str, ...]]:
    """The leases on each GPU, by its index; `indices` are those of the GPUs' UUIDs, and of what is
    leased of them."""
    found: dict[int, list[str]] = {index: [] for index in indices.values()}
    for lease in leases:
        if lease.state not in HELD:
            continue
        for allotment in lease.subject.allotments:
            index = indices.get(allotment.resource_id)
            if allotment.kind is ResourceKind.GPU and index is not None:
                found[index].append(lease.lease_id.hex())
    return {index: tuple(sorted(set(jobs))) for index, jobs in found.items()}


class JobFiles:
    """Keeps a directory up to date. `fill` does nothing while nothing has changed."""

    def __init__(self, directory: str, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._written: dict[int, tuple[str, ...]] = {}
        self._is_known = False
        self._trouble = ""

    async def fill(self, jobs: Mapping[int, tuple[str, ...]]) -> None:
        """Make the directory say this."""
        if not self._is_known:
            try:
                self._written = await trio.to_thread.run_sync(self._read)
            except OSError as error:
                self._complain(f"{self._directory}: {error.strerror}")
                return
            self._is_known = True
        changed = {index: told for index, told in jobs.items() if self._written.get(index) != told}
        gone = {index: () for index in self._written if index not in jobs and self._written[index]}
        trouble = ""
        for index, told in {**changed, **gone}.items():
            try:
                await trio.to_thread.run_sync(self._replace, index, told)
            except OSError as error:
                # Whatever is in the way of one GPU's file: the others' are written.
                trouble = trouble or f"{self._directory}: {error.strerror}"
                continue
            self._written[index] = told
        self._complain(trouble)

    def _read(self) -> dict[int, tuple[str, ...]]:
        """What the directory says of each GPU. What is no file says nothing."""
        names = [name for name in os.listdir(self._directory) if _INDEX.fullmatch(name)]
        found = {}
        for name in names:
            with suppress(OSError):
                opened = os.open(os.path.join(self._directory, name), _FLAGS)
                with open(opened, encoding="utf-8", errors="replace") as file:
                    if stat.S_ISREG(os.fstat(opened).st_mode):
                        found[int(name)] = tuple(file.read(_BYTES_MAX).splitlines())
        return found

    def _replace(self, index: int, jobs: Iterable[str]) -> None:
        """It is a copy: nothing is lost with the host, so nothing is synced."""
        path = os.path.join(self._directory, str(index))
        temporary = os.path.join(self._directory, f".{index}.new")
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # left by an agent that was killed, or somebody else's
        with open(temporary, "x", encoding="ascii") as file:
            file.write("".join(f"{job}\n" for job in jobs))
        os.replace(temporary, path)

    def _complain(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._say(f"telemetry: job mapping cannot be written: {trouble}")
        self._trouble = trouble
