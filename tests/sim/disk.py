# SPDX-License-Identifier: Apache-2.0
"""The simulated disk: a directory in memory that knows what was synced, and the hand that writes to
it.

Rule: the log on it is the real one (`durable.log`): its files, its recovery, its verdicts. A
process that dies leaves what it had written; a power cut leaves, of everything not synced, any part
of every write. A commit that the process survived is on the disk for ever.

Does not lose names: that is searched exhaustively by the crash tests of `durable`.
"""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import trio

from leased.durable.filesystem import Filesystem
from leased.durable.writer import Writes
from leased.terms.moment import NS_PER_MS
from tests.sim.faults import AgentDied, CommitStep, Faults

SECTOR_BYTES = 512
SYNC_NS_MIN = 30_000


class _File:
    """Bytes as a reader sees them, and what was there before every write not yet synced."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []


class MemoryDisk:
    """`durable.files.Disk`."""

    def __init__(self) -> None:
        self.directory = Path("/simulated/audit")
        self._files: dict[str, _File] = {}
        self._handles: dict[int, _File] = {}
        self._next_handle = 3
        self._locked = False

    # -- what happens to it -----------------------------------------------------------------------

    def process_died(self) -> None:
        """The kernel closes what the process had open."""
        self._handles.clear()
        self._locked = False

    def power_cut(self, faults: Faults) -> None:
        """Of every write not synced, any number of its first sectors survives."""
        self.process_died()
        for file in self._files.values():
            for offset, before in reversed(file.unsynced):
                kept = faults.pick(len(before) // SECTOR_BYTES + 2) * SECTOR_BYTES
                file.data[offset + kept : offset + len(before)] = before[kept:]
            file.unsynced.clear()

    def copied(self) -> dict[str, bytes]:
        """Everything on it, as a backup has it."""
        return {name: bytes(file.data) for name, file in self._files.items()}

    def put_back(self, copy: dict[str, bytes]) -> None:
        """Nothing is on it but this copy."""
        self._files = {name: _File() for name in copy}
        for name, data in copy.items():
            self._files[name].data[:] = data

    # -- the port ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(name for name in self._files if "/" not in name)

    def size(self, name: str) -> int:
        return len(self._file(name).data)

    def allocated(self, name: str) -> int:
        return self.size(name)

    def mode(self, name: str) -> int:
        return 0o600

    def read(self, name: str, *, direct: bool = False) -> bytes:
        return bytes(self._file(name).data)

    def read_part(self, name: str, offset: int, length: int) -> bytes:
        return self.read(name)[offset : offset + length]

    def map(self, name: str) -> mmap.mmap | bytes:
        return self.read(name)

    def open(self, name: str) -> int:
        return self._opened(self._file(name))

    def create(self, name: str) -> int:
        if name in self._files:
            raise FileExistsError(errno.EEXIST, name)
        file = self._files[name] = _File()
        return self._opened(file)

    def reserve(self, handle: int, length: int) -> None:
        data = self._handles[handle].data
        data.extend(bytes(max(0, length - len(data))))

    def write(self, handle: int, data: bytes, offset: int) -> None:
        file = self._handles[handle]
        end = offset + len(data)
        if end > len(file.data):
            file.data.extend(bytes(end - len(file.data)))
        file.unsynced.append((offset, bytes(file.data[offset:end])))
        file.data[offset:end] = data

    def sync(self, handle: int) -> None:
        self._handles[handle].unsynced.clear()

    def close_handle(self, handle: int) -> None:
        del self._handles[handle]

    def rename(self, old: str, new: str) -> None:
        self._files[new] = self._files.pop(old)

    def unlink(self, name: str) -> None:
        del self._files[name]

    def sync_names(self) -> None:
        pass

    def make_directory(self, name: str) -> None:
        pass

    def lock(self) -> bool:
        taken, self._locked = self._locked, True
        return not taken

    def is_locked(self) -> bool:
        return self._locked

    def filesystem(self) -> Filesystem:
        return Filesystem("simulated", "")

    def close(self) -> None:
        self.process_died()

    def _file(self, name: str) -> _File:
        if name not in self._files:
            raise FileNotFoundError(errno.ENOENT, name)
        return self._files[name]

    def _opened(self, file: _File) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = file
        return handle


class SimCommitter:
    """`durable.journal.Committer` of one run of the agent. `dead` is set when the process is killed
    from outside.
    """

    def __init__(self, disk: MemoryDisk, faults: Faults) -> None:
        self._disk = disk
        self._faults = faults
        self._busy = False
        self.dead = False

    async def write(self, asked: Writes) -> None:
        """Write data and sync, then block and sync, and die on the way if that is drawn."""
        assert not self._busy, "two commits at once"
        if self.dead:
            raise AgentDied
        self._busy = True
        step = self._faults.commit_step()
        latency_s = self._faults.latency_s(SYNC_NS_MIN, 3 * NS_PER_MS, slow="slow disk")
        if self._faults.strikes("hung disk", 2):
            latency_s += 6
        await trio.sleep(latency_s)
        if self.dead:
            # Killed from outside while it was at it.
            step = self._faults.dying_step()
        self._carry_out(step, asked)
        self._busy = False

    def write_at_once(self, asked: Writes) -> bool:
        """The same on the spot, if it is drawn that the disk is quick."""
        assert not self._busy, "two commits at once"
        if self.dead or self._faults.strikes("no commit on the spot", 500):
            return False
        step = self._faults.commit_step()
        self._carry_out(step, asked)
        return True

    def close(self) -> None:
        self.dead = True

    def _carry_out(self, step: CommitStep | None, asked: Writes) -> None:
        disk, faults = self._disk, self._faults
        if step is CommitStep.BEFORE_APPEND:
            self._die(step)
        if step in (CommitStep.TORN_APPEND, CommitStep.APPEND_REFUSED):
            disk.write(asked.segment, asked.data[: faults.pick(len(asked.data))], asked.offset)
            self._die(step, errno.ENOSPC if step is CommitStep.APPEND_REFUSED else 0)
        disk.write(asked.segment, asked.data, asked.offset)
        if step is CommitStep.APPENDED:
            self._die(step)
        if step is CommitStep.SYNC_FAILED:
            self._die(step, errno.EIO)
        disk.sync(asked.segment)
        if step is CommitStep.SYNCED:
            self._die(step)
        if step is CommitStep.ANCHOR_REFUSED:
            self._die(step, errno.EIO)
        if step is CommitStep.TORN_ANCHOR:
            torn = asked.block[: faults.pick(len(asked.block))]
            disk.write(asked.anchor, torn, asked.block_offset)
            self._die(step)
        disk.write(asked.anchor, asked.block, asked.block_offset)
        if step is CommitStep.ANCHOR_SYNC_FAILED:
            self._die(step, errno.EIO)
        disk.sync(asked.anchor)
        if step is CommitStep.ANCHORED:
            self._die(step)

    def _die(self, step: CommitStep, number: int = 0) -> None:
        """Killed, or ended by an error that no commit survives."""
        self.dead = True
        raise OSError(number, step.value) if number else AgentDied(step.value)
