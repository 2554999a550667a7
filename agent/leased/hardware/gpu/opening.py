# SPDX-License-Identifier: Apache-2.0
"""Opening and closing: a GPU made ready for the one lease that gets it, and closed to everybody
when it is nobody's, in a worker.

Rule: nothing is opened while anybody has a context, a node or memory of it: leases do not share,
and an MPS server that runs already belongs to somebody else. What the driver was told is read back.

Does not let anybody in: the leaf's filter does, by the rules that are returned.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from pathlib import Path

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Guard, Guarded, Readied, Ready, Sight
from leased.hardware.gpu.facts import ComputeMode
from leased.hardware.gpu.nodes import find_nodes, make_capabilities
from leased.hardware.gpu.sights import as_now, handle_of, look, parent_of
from leased.hardware.openers import Opener
from leased.hardware.procfs import cgroup_of
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S

_TOLD_MAX = 4


def ready(call: Ready, fds: list[int]) -> Readied:
    """Open the target for its lease. Raises DeviceError(EBUSY) naming whoever is there."""
    handle = handle_of(call.target)
    sight = _look(handle, call)
    if _why_not(sight, call):
        # Whoever only looked (any user's nvidia-smi) is gone in a moment, and what was freed just
        # now the driver may not have back yet.
        time.sleep(call.apart_ns / NS_PER_S)
        sight = _look(handle, call)
        if why := _why_not(sight, call):
            raise DeviceError("gpu_ready", errno.EBUSY, why)
    if call.sets_mode:
        set_mode(parent_of(call.target), ComputeMode.DEFAULT)
    root = Path(call.root)
    nodes = find_nodes(as_now(call.target), root)
    if root == Path("/"):
        make_capabilities(nodes, root / "dev/nvidia-caps")
    return Readied(nodes.rules(), sight.usage)


def _look(handle: nvml.Handle, call: Ready) -> Sight:
    return look(handle, call.target, call.root, call.guests, call.scan_budget_ns)


def _why_not(sight: Sight, call: Ready) -> str:
    """Who is there, or that the tenant would get less than there is (work that is adopted has some
    of it); "" where it may be opened."""
    everybody = sorted({pid for pids in sight.processes for pid in pids})
    here = [pid for pid in everybody if not _is_inside(pid, call.leaf)]
    strangers = [one for one in sight.openers if not _is_inside(one.pid, call.leaf)]
    if here or strangers:
        return name_them(here, strangers)
    if not call.leaf and sight.usage.used_bytes > call.used_max_bytes:
        used = f"{sight.usage.used_bytes >> 20} MiB of its memory are in use"
        return f"{used}, and nobody is seen to have them: a reset gives them back"
    return ""


def guard(call: Guard, fds: list[int]) -> Guarded:
    """Say who may make a context on a whole GPU."""
    handle = parent_of(call.target)
    before = nvml.compute_mode_of(handle)
    if before != call.mode:
        set_mode(handle, call.mode)
    return Guarded(before, call.mode)


def set_mode(handle: nvml.Handle, mode: int) -> None:
    """Set it and read it back. Raises DeviceError(EIO) if the driver did not take it."""
    nvml.set_compute_mode(handle, mode)
    told = nvml.compute_mode_of(handle)
    if told != mode:
        detail = f"compute mode is {told} after {mode} was set"
        raise DeviceError("nvml_set_compute_mode", errno.EIO, detail)


def _is_inside(pid: int, leaf: str) -> bool:
    """Whether the process is in the leaf of work that is adopted."""
    if not leaf:
        return False
    home = cgroup_of(pid)
    return home == leaf or home.startswith(f"{leaf}/")


def name_them(pids: Sequence[int], seen: Sequence[Opener]) -> str:
    """A few of the processes that are there."""
    named = {one.pid: f"{one.pid} ({one.name}, {one.via})" for one in seen}
    for pid in pids:
        named.setdefault(pid, f"{pid} (context)")
    shown = [named[pid] for pid in sorted(named)[:_TOLD_MAX]]
    more = len(named) - len(shown)
    return "in use by " + ", ".join(shown) + (f" and {more} more" if more else "")
