# SPDX-License-Identifier: Apache-2.0
"""Scrubbing: a batch of memfds after the cut, from "who is still in?" to "every page given up".

Order: keep everybody out (or find and kill who is in) -> overwrite with zero -> read back through
a second mapping -> truncate. The order matters: with a writer left, zeroes prove nothing.

Rule: the way through /proc is paid once per batch, and only by those memfds of which the kernel
itself (`exclusion.hold`) does not say that nobody else has them open. Nobody unseen can hurt the
worker: where exclusion was not given, a child does the overwriting, because a holder who truncates
meanwhile would kill it with SIGBUS.

Does not judge: `devices` compares the counters, `lessor` decides what is fenced.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from leased.hardware import exclusion, occupants, parallel, verbs
from leased.hardware.calls import Batch, Cleaned, Counted, Pool, Scrub
from leased.hardware.execs import is_bare
from leased.hardware.failure import tell_failure
from leased.hardware.instant import now_ns
from leased.hardware.memory import read_charge, read_pool
from leased.hardware.occupants import Inode, Occupant, Sought
from leased.hardware.procfs import start_time
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep

REAPER_NAME = "leased-reaper"
PASSES_MAX = 5
"""Passes over the host: two that find nobody end it; a holder who keeps moving ends fenced."""

PASS_BUDGET_NS = 2_000_000_000
"""What each pass adds to the time of the search. They share it: on a host that is short of
processor, one pass may need what all were given."""
_ALIGN_BYTES = 2 << 20
_BLOCK_BYTES = 512
_CHILD_TOLD = 16
"""Bytes that the child writes: overwritten and residue, 8 each."""


class Scan(Protocol):
    """Who has which of the memfds: `occupants.scan`."""

    def __call__(
        self, sought: Sequence[Sought], *, exempt: Mapping[int, int], deadline_ns: int
    ) -> dict[Inode, list[Occupant]]: ...


class _One:
    """One memfd on its way."""

    def __init__(self, call: Scrub, fd: int) -> None:
        status = os.fstat(fd)
        self.call, self.fd = call, fd
        self.sought = Sought((status.st_dev, status.st_ino), call.name)
        self.size_bytes = min(call.size_bytes, status.st_size)
        self.kept = exclusion.hold(fd)
        # Without `apart` a tenant may have the keepers' own open file, which is not counted.
        self.alone = call.apart and self.kept is not None
        self.killed = 0
        self.left = 0
        self.errno = 0
        self.steps: list[StepReport] = []


def scrub_batch(
    batch: Batch,
    calls: Sequence[Scrub],
    fds: Sequence[int],
    *,
    opens_counted: bool,
    scan: Scan = occupants.scan,
    clock: Callable[[], int] = now_ns,
) -> list[Cleaned]:
    """Scrub every memfd; one that fails spoils no other. `opens_counted`: see `exclusion`; `scan`
    and `clock` are what the search is made with."""
    ones = [_One(call, fd) for call, fd in zip(calls, fds, strict=True)]
    began_ns = now_ns()
    suspects = [one for one in ones if not (one.alone and opens_counted)]
    if suspects:
        _clear_out(suspects, batch, scan, clock)
    for one in ones:
        _report(one, TeardownStep.ESCAPEE_SCAN, one.errno, began_ns, one.left or one.killed)
    return [_clean(one, batch) for one in ones]


def _clear_out(
    suspects: Sequence[_One],
    batch: Batch,
    scan: Scan = occupants.scan,
    clock: Callable[[], int] = now_ns,
) -> None:
    """Find and kill until two passes in a row find nobody: one pass is not atomic."""
    sought = [one.sought for one in suspects]
    exempt = {**dict(batch.exempt), os.getpid(): start_time(os.getpid()) or 0}
    quiet = 0
    spent_ns, began_ns = 0, clock()
    try:
        for _ in range(PASSES_MAX):
            deadline_ns = began_ns + spent_ns + PASSES_MAX * PASS_BUDGET_NS
            seen = scan(sought, exempt=exempt, deadline_ns=deadline_ns)
            seen = {inode: _strangers(found, batch) for inode, found in seen.items()}
            everyone = [occupant for found in seen.values() for occupant in found]
            quiet = quiet + 1 if not everyone else 0
            for one in suspects:
                one.left = len(seen.get(one.sought.inode, ()))
            if quiet == 2 or (everyone and not batch.kill_escapees):
                break
            if everyone:
                waiting_ns = clock()
                occupants.evict(everyone, sought, budget_ns=batch.kill_budget_ns)
                spent_ns += clock() - waiting_ns  # that has a budget of its own
                for one in suspects:
                    one.killed += one.left
    except DeviceError as error:
        tell_failure(TeardownStep.ESCAPEE_SCAN, error)
        for one in suspects:
            one.errno = error.errno
    for one in suspects:
        if one.left:
            one.errno = errno.EBUSY
        if one.kept is None:
            one.kept = exclusion.hold(one.fd)
        one.alone = one.kept is not None


def _strangers(found: Sequence[Occupant], batch: Batch) -> list[Occupant]:
    """Those who are not the reaper, which keeps every lease's memfds by right."""
    return [one for one in found if not _is_reaper(one.pid, batch.reaper_path)]


def _is_reaper(pid: int, reaper_path: str) -> bool:
    """Root's, and running the reaper's binary: the configured one, or (an upgrade may have replaced
    the file under the running process) one of its name. No tenant runs as root but one that is
    trusted with everything anyway."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != 0:
            return False
        if pid == 1:
            # systemd keeps the reaper's memfds for it (FDSTORE).
            return True
        if is_bare(pid):
            return False  # it may hang in an exec, and whoever asks would wait with it
        name = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        if os.path.basename(name) == REAPER_NAME:
            return True
        return bool(reaper_path) and os.path.samefile(f"/proc/{pid}/exe", reaper_path)
    except OSError:
        return False


# ---- one memfd ---------------------------------------------------------------------------------


def _clean(one: _One, batch: Batch) -> Cleaned:
    """Overwrite, read back, truncate. The truncation happens whatever went before: it ends access
    for everybody who maps the memory still."""
    blocks = os.fstat(one.fd).st_blocks
    try:
        overwritten = residue = 0
        began_ns = now_ns()
        try:
            if one.size_bytes:
                overwritten, residue = _overwrite(one)
            failed = 0
        except DeviceError as error:
            failed = error.errno
        except OSError as error:  # there is no process, or no descriptor, to be had
            failed = error.errno or errno.EIO
        _report(one, TeardownStep.SCRUB, failed, began_ns, overwritten)
        residue_errno = failed or (errno.EIO if residue else 0)
        _report(one, TeardownStep.READ_BACK, residue_errno, began_ns, residue)
        before, short_pages, freed_pages = _truncate(one, blocks)
        if one.kept is not None and not exclusion.held(one.kept):
            # Somebody waits to open it. What they get is empty and cannot grow, but they are
            # strangers with a reference, and are dealt with as such.
            one.killed = one.left = 0
            _clear_out([one], batch)
            _report(one, TeardownStep.ESCAPEE_SCAN, one.errno, now_ns(), one.left or one.killed)
    finally:
        if one.kept is not None:
            os.close(one.kept)
    clean = all(step.errno == 0 for step in one.steps)
    return Cleaned(overwritten, clean, tuple(one.steps), before, short_pages, freed_pages)


def _overwrite(one: _One) -> tuple[int, int]:
    return _overwrite_here(one) if one.alone else _overwrite_in_child(one)


def _overwrite_here(one: _One) -> verbs.Scrubbed:
    def part(at: int, length: int) -> verbs.Scrubbed:
        return verbs.scrub_memory(one.fd, size_bytes=length, from_byte=at)

    pool = one.call.pool
    align_bytes = _ALIGN_BYTES if pool is None else max(_ALIGN_BYTES, pool.page_bytes)
    return parallel.share(part, one.size_bytes, align_bytes)


def _overwrite_in_child(one: _One) -> tuple[int, int]:
    """The same, but a SIGBUS kills only the child."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                done = _overwrite_here(one)
                told = done.overwritten_bytes.to_bytes(8, "little")
                os.write(writing, told + done.residue_bytes.to_bytes(8, "little"))
                status = 0
            except DeviceError as error:
                status = min(error.errno, 255) or 1
            finally:
                os._exit(status)
        os.close(writing)
        told = os.read(reading, _CHILD_TOLD)
        _, status = os.waitpid(pid, 0)
    if len(told) != _CHILD_TOLD:
        signalled = os.WIFSIGNALED(status)
        raise DeviceError("mem_scrub", errno.EFAULT if signalled else os.WEXITSTATUS(status))
    return int.from_bytes(told[:8], "little"), int.from_bytes(told[8:], "little")


def _truncate(one: _One, blocks: int) -> tuple[Counted | None, int, int]:
    """Give the pages up; the pool's counters before, how many did not come back at once, and how
    many did for certain. The file had so many blocks before we filled its holes.

    A lease's pages are charged to us who made them, to the end, whoever maps or pins them; what
    anybody else takes of the pool is charged to whoever takes it."""
    began_ns = now_ns()
    pool = one.call.pool
    filled_bytes = (os.fstat(one.fd).st_blocks - blocks) * _BLOCK_BYTES
    before, charged = _count(pool), _charge(pool)
    try:
        blocks_left = verbs.truncate_memory(one.fd)
        failed = errno.EBUSY if blocks_left else 0
    except DeviceError as error:
        blocks_left, failed = 0, error.errno
    _report(one, TeardownStep.TRUNCATE, failed, began_ns, blocks_left)
    freed_bytes = charged - _charge(pool) - filled_bytes
    after = _count(pool)
    if pool is None or before is None or after is None:
        return before, 0, 0
    came_back = after.free_pages - before.free_pages
    short_pages = one.call.size_bytes // pool.page_bytes - came_back
    return before, max(short_pages, 0), max(freed_bytes // pool.page_bytes, 0)


def _charge(pool: Pool | None) -> int:
    return 0 if pool is None else read_charge(pool)


def _count(pool: Pool | None) -> Counted | None:
    """The pool's counters; None where they cannot be read, which the proof will find as well."""
    try:
        return None if pool is None else read_pool(pool)
    except DeviceError:
        return None


def _report(one: _One, step: TeardownStep, failed: int, began_ns: int, measured: int) -> None:
    one.steps.append(StepReport(step, failed, began_ns, now_ns(), measured))
