# SPDX-License-Identifier: Apache-2.0
"""Handling: what a worker does with one device-dax range.

Order at the end of a lease: find and kill whoever has it -> take the region away and give it back,
which ends every mapping and descriptor that no search sees -> overwrite through a mapping of the
new device -> read back. The proof (`witness`) is asked of another worker.

Rule: a step that failed is the last one: a range that could not be taken away is not overwritten,
because whoever has it would write after. No node of a range that is nobody's may be opened by
anybody but root.

Does not judge: the backend does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from leased.hardware import openers, parallel
from leased.hardware.dax import calls
from leased.hardware.dax.lost import read_lost
from leased.hardware.dax.ranges import DEVICE_MODE, Range, read_ranges
from leased.hardware.dax.regions import find_all, find_range, recreate, restore_probing
from leased.hardware.instant import now_ns
from leased.hardware.nodes import read_nodes, read_speed
from leased.hardware.openers import Opener
from leased.hardware.procfs import start_time
from leased.hardware.verbs import Scrubbed, look_at_dax, scrub_dax
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep

_ALIGN_BYTES = 1 << 30
"""A part that a thread takes begins on this: no device is aligned to more."""

_PASSES = 2
_TOLD_MAX = 4
_PRIVATE = 0o600


def look(call: calls.Look, fds: list[int]) -> calls.Seen:
    """What there is."""
    root = Path(call.root)
    ranges = read_ranges(root)
    numbers = sorted({one.node for one in ranges if one.node >= 0})
    speeds = tuple((number, read_speed(number, root)) for number in numbers)
    return calls.Seen(ranges, read_nodes(root), speeds, read_lost(root))


def ready(call: calls.Ready, fds: list[int]) -> calls.Readied:
    """Give the node to its lease's user. Raises DeviceError(EBUSY) naming whoever is there."""
    root = Path(call.root)
    one = _leasable(call.identity, root)
    here = _openers(one, root, call.search)
    if here:
        raise DeviceError("dax_ready", errno.EBUSY, _name_them(here))
    overwritten = 0
    if not call.clean:
        one = recreate(one, root)
        done = _overwrite(one, root)
        if done.residue_bytes or done.overwritten_bytes != one.size_bytes:
            detail = f"{done.residue_bytes} bytes do not read back as zero"
            raise DeviceError("dax_ready", errno.EIO, detail)
        overwritten = done.overwritten_bytes
    path = root / one.path.lstrip("/")
    os.chown(path, call.uid, call.gid)
    os.chmod(path, _PRIVATE)
    number = os.stat(path).st_rdev
    return calls.Readied(one.name, one.birth, os.major(number), os.minor(number), overwritten)


def release(call: calls.Release, fds: list[int]) -> calls.Released:
    """Take it back, step by step."""
    root = Path(call.root)
    steps: list[StepReport] = []
    anew: list[Range] = []
    done: list[Scrubbed] = []

    def revoke() -> int:
        anew.append(recreate(one, root))
        return 0

    one, is_there = _to_release(call, root)
    with contextlib.suppress(_Ended):
        if is_there:
            _step(steps, TeardownStep.ESCAPEE_SCAN, lambda: _clear_out(one, root, call))
        _step(steps, TeardownStep.OBJECT_REVOKE, revoke)
        _step(steps, TeardownStep.SCRUB, lambda: _scrub(anew[0], root, done))
        _step(steps, TeardownStep.READ_BACK, lambda: _residue(done[0]))
    name = anew[0].name if anew else ""
    return calls.Released(name, done[0].overwritten_bytes if done else 0, tuple(steps))


def _to_release(call: calls.Release, root: Path) -> tuple[Range, bool]:
    """The range, and whether anybody can have it. One that was taken away and not given back
    (whoever did that was ended before) is as it is remembered. What the host has made something
    else of meanwhile is not touched. Raises DeviceError."""
    found = find_all(call.identity, root)
    if not found and call.known is not None:
        return call.known, False
    if len(found) == 1 and not found[0].driver and found[0].whole:
        return found[0], False
    return _leasable(call.identity, root), True


def witness(call: calls.Witness, fds: list[int]) -> calls.Steps:
    """Look as somebody who has done nothing: through a descriptor and mappings of its own."""
    root = Path(call.root)
    steps: list[StepReport] = []

    def nobody() -> int:
        one = _leasable(call.identity, root)
        status = os.stat(root / one.path.lstrip("/"))
        if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o077:
            raise DeviceError("dax_witness", errno.EACCES, f"{one.path} is not root's alone")
        for _ in range(_PASSES):
            here = _openers(one, root, call.search)
            if here:
                raise DeviceError("dax_witness", errno.EBUSY, _name_them(here))
        return 0

    def zero() -> int:
        one = _leasable(call.identity, root)
        if one.size_bytes != call.size_bytes:
            raise DeviceError("dax_witness", errno.EINVAL, f"{one.path} has another size")
        residue = _look(one, root)
        if residue:
            raise DeviceError("dax_witness", errno.EIO, f"{residue} bytes are not zero")
        return one.size_bytes

    with contextlib.suppress(_Ended):
        _step(steps, TeardownStep.RELEASE, nobody)
        _step(steps, TeardownStep.WITNESS, zero)
    return calls.Steps(tuple(steps))


def close(call: calls.Close, fds: list[int]) -> calls.Nothing:
    """Root's alone again."""
    path = Path(call.root) / find_range(call.identity, Path(call.root)).path.lstrip("/")
    os.chown(path, 0, 0)
    os.chmod(path, _PRIVATE)
    return calls.Nothing()


def mend(call: calls.Mend, fds: list[int]) -> calls.Nothing:
    """End what somebody before us began and could not end. Raises DeviceError."""
    root = Path(call.root)
    restore_probing(root)
    if call.broken is not None:
        found = find_all(call.broken.identity, root)
        if not any(one.driver for one in found):  # nobody was faster
            recreate(call.broken, root)
    return calls.Nothing()


def who(call: calls.Who, fds: list[int]) -> calls.Present:
    """Everybody who has it."""
    root = Path(call.root)
    return calls.Present(_openers(find_range(call.identity, root), root, call.search))


# ---- parts -------------------------------------------------------------------------------------


class _Ended(Exception):
    """A step failed, and was the last."""


def _step(steps: list[StepReport], step: TeardownStep, carry_out: Callable[[], int]) -> None:
    began_ns = now_ns()
    try:
        measured, failed = carry_out(), 0
    except DeviceError as error:
        measured, failed = 0, error.errno
    except OSError as error:
        measured, failed = 0, error.errno or errno.EIO
    steps.append(StepReport(step, failed, began_ns, now_ns(), measured))
    if failed:
        raise _Ended


def _leasable(identity: str, root: Path) -> Range:
    one = find_range(identity, root)
    if one.driver != DEVICE_MODE or not one.whole:
        what = f"the driver {one.driver or 'of nobody'} has it" if one.whole else "it was divided"
        detail = f"{one.resource_id} ({one.name}) is no device of its own any more: {what}"
        raise DeviceError("dax_find", errno.ENXIO, detail)
    return one


def _openers(one: Range, root: Path, search: calls.Search) -> tuple[Opener, ...]:
    number = os.stat(root / one.path.lstrip("/")).st_rdev
    sought = openers.Sought(((os.major(number), os.minor(number)),), (one.name,))
    exempt = {**dict(search.exempt), os.getpid(): start_time(os.getpid()) or 0}
    return openers.scan(sought, exempt=exempt, deadline_ns=now_ns() + search.budget_ns)


def _clear_out(one: Range, root: Path, call: calls.Release) -> int:
    """Kill until two looks in a row see nobody; how many. Raises DeviceError(EBUSY)."""
    killed = quiet = 0
    end_ns = now_ns() + call.search.budget_ns + call.kill_budget_ns
    while quiet < _PASSES:
        here = _openers(one, root, call.search)
        quiet = 0 if here else quiet + 1
        if here and (not call.kill or now_ns() >= end_ns):
            raise DeviceError("dax_release", errno.EBUSY, _name_them(here))
        if here:
            sought = openers.Sought(tuple({opener.node for opener in here}), (one.name,))
            killed += openers.evict(here, sought, budget_ns=call.kill_budget_ns)[0]
    return killed


def _scrub(one: Range, root: Path, done: list[Scrubbed]) -> int:
    done.append(_overwrite(one, root))
    if done[0].overwritten_bytes != one.size_bytes:
        raise DeviceError("dax_scrub", errno.EIO, "not all of it could be written")
    return done[0].overwritten_bytes


def _residue(done: Scrubbed) -> int:
    if done.residue_bytes:
        raise DeviceError("dax_scrub", errno.EIO, f"{done.residue_bytes} bytes are not zero")
    return 0


def _overwrite(one: Range, root: Path) -> Scrubbed:
    fd = os.open(root / one.path.lstrip("/"), os.O_RDWR | os.O_CLOEXEC)
    try:
        return parallel.share(
            lambda at, length: scrub_dax(fd, size_bytes=length, from_byte=at),
            one.size_bytes,
            _ALIGN_BYTES,
        )
    finally:
        os.close(fd)


def _look(one: Range, root: Path) -> int:
    fd = os.open(root / one.path.lstrip("/"), os.O_RDONLY | os.O_CLOEXEC)

    def part(at: int, length: int) -> Scrubbed:
        return Scrubbed(0, look_at_dax(fd, size_bytes=length, from_byte=at))

    try:
        return parallel.share(part, one.size_bytes, _ALIGN_BYTES).residue_bytes
    finally:
        os.close(fd)


def _name_them(seen: tuple[Opener, ...]) -> str:
    shown = ", ".join(f"{one.pid} ({one.name}, {one.via})" for one in seen[:_TOLD_MAX])
    more = len(seen) - _TOLD_MAX
    return f"in use by {shown}" + (f" and {more} more" if more > 0 else "")
