# SPDX-License-Identifier: Apache-2.0
"""Cgroup v2: our delegated root, its controllers, and one leaf per lease.

Rule: only a controller that v2 really has counts; what is bound to a v1 hierarchy is named as
such. Every write is one os.write, whose error is the kernel's answer (a buffered file would hide
it until close). A process is moved only while a pidfd proves that its number is still its own.

Does not kill (the reaper does) and does not wait for anybody.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from leased.hardware import leaves
from leased.hardware.calls import CgroupFacts, MakeLeaf
from leased.hardware.sysfs import format_list, parse_list, read_list, write_text
from leased.hardware.verbs import DeviceRule, attach_filter, load_filter
from leased.terms.errors import DeviceError

WANTED = ("cpu", "cpuset", "memory", "pids", "hugetlb", "rdma")
_MOUNTS = "/proc/self/mountinfo"
_CPU_PERIOD_US = 100_000
PROGRAMS_MAX = 16
"""Device filters that a worker keeps loaded: one for leases without devices, and one for each
device of a full host."""

_PROGRAMS: dict[tuple[DeviceRule, ...], int] = {}
_OUR_CHARGES = ("anon", "file")
"""What must be 0 in memory.stat (`shmem` is a part of `file`); memory.current keeps some of the
kernel's own pages for a while and means nothing by itself."""


def write(path: str, text: str) -> None:
    """Write one value. Raises DeviceError with the kernel's errno."""
    write_text(path, text, "cgroup_write")


def read_names(path: str) -> str:
    """A file of the kernel with names that anybody may have made: of any bytes but a newline."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()


def find_mounts(mountinfo: str) -> tuple[str | None, tuple[str, ...]]:
    """(where cgroup2 is mounted, the controllers that v1 hierarchies have), from mountinfo."""
    unified: str | None = None
    v1: dict[str, None] = {}
    for line in mountinfo.split("\n"):
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        kind = after.split(" ")
        if not dash or len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" and unified is None:
            unified = fields[4].replace("\\040", " ")
        elif kind[0] == "cgroup":
            v1.update(dict.fromkeys(o for o in kind[2].split(",") if o in (*WANTED, "blkio")))
    return unified, tuple(sorted(v1))


def found(root: str, mountinfo: str | None = None) -> CgroupFacts:
    """Make `root` below the cgroup2 mount and give its leaves every controller that v2 has."""
    unified, v1 = find_mounts(mountinfo or read_names(_MOUNTS))
    if unified is None:
        return CgroupFacts("", (), v1, ("no cgroup2 is mounted: leases cannot have a leaf",))
    troubles: list[str] = []
    path = unified
    for part in [p for p in root.split("/") if p]:
        _delegate(path, troubles)
        path = os.path.join(path, part)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass
        except OSError as error:
            troubles.append(f"{path}: {error.strerror}")
            return CgroupFacts("", (), v1, tuple(troubles))
    given = _delegate(path, troubles)
    _limit_root(path, given)
    in_v2 = _words(os.path.join(unified, "cgroup.controllers"))
    return CgroupFacts(path, given, tuple(c for c in v1 if c not in in_v2), tuple(troubles))


def _delegate(path: str, troubles: list[str]) -> tuple[str, ...]:
    """Enable for the children of `path` what it has itself; what they have afterwards."""
    for controller in _words(os.path.join(path, "cgroup.controllers")):
        if controller in WANTED:
            try:
                write(os.path.join(path, "cgroup.subtree_control"), f"+{controller}")
            except DeviceError as error:
                troubles.append(f"{path}: +{controller}: {os.strerror(error.errno)}")
    return tuple(sorted(_words(os.path.join(path, "cgroup.subtree_control"))))


def _limit_root(path: str, given: Iterable[str]) -> None:
    """Nothing in a lease may take pages from the pools by itself, or hide memory in swap.

    Lease memory is touched by the worker, outside this subtree, so a ceiling of 0 stops only what
    was never granted (what was swapped out lies on the disk, unencrypted, when its lease is over).
    """
    if "hugetlb" in given:
        for name in sorted(os.listdir(path)):
            if name.startswith("hugetlb.") and name.endswith(".max"):
                write(os.path.join(path, name), "0")
    for name in ("memory.swap.max", "memory.zswap.max"):
        if os.path.exists(os.path.join(path, name)):
            write(os.path.join(path, name), "0")


def why_missing(facts: CgroupFacts, needed: Sequence[str], what: str) -> str:
    """Why leaves lack what `what` needs, in words an operator can act on; "" if they do not."""
    wanted = f"{what} need the cgroup v2 controllers {' and '.join(needed)}"
    if not facts.path:
        return f"{what} need cgroup v2: " + "; ".join(facts.troubles)
    lacking = [name for name in needed if name not in facts.controllers]
    if not lacking:
        return ""
    bound = [name for name in lacking if name in facts.v1_only]
    if bound:
        return (
            f"{wanted}; {' and '.join(bound)} {'are' if len(bound) > 1 else 'is'} bound to cgroup"
            " v1 here: boot with systemd.unified_cgroup_hierarchy=1, or with"
            f" cgroup_no_v1={','.join(bound)}"
        )
    detail = "; ".join(facts.troubles) or "the kernel or the delegation does not offer them"
    return f"{what} need the cgroup v2 controllers {' and '.join(lacking)}: {detail}"


def _words(path: str) -> tuple[str, ...]:
    try:
        return tuple(Path(path).read_text("ascii").split())
    except OSError:
        return ()


# ---- leaves ------------------------------------------------------------------------------------


def make_leaf(call: MakeLeaf) -> None:
    """Make a leaf with its limits; on failure nothing of it is left."""
    path = call.path
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        # Ours from a grant that the agent did not survive; a populated one is somebody's.
        if is_populated(path):
            raise DeviceError("cgroup_make", errno.EBUSY, path) from None
    except OSError as error:
        raise DeviceError("cgroup_make", error.errno or errno.EIO, path) from error
    try:
        if os.path.exists(os.path.join(path, "pids.max")):
            write(os.path.join(path, "pids.max"), str(call.pids_max))
        if call.cpus:
            _confine(path, "cpuset.cpus", call.cpus)
            quota_us = call.cpu_milli * _CPU_PERIOD_US // 1000
            write(os.path.join(path, "cpu.max"), f"{quota_us} {_CPU_PERIOD_US}")
        if call.memory_bytes:
            _limit_memory(path, call.memory_bytes, call.nodes)
    except DeviceError:
        os.rmdir(path)
        raise


def _limit_memory(path: str, memory_bytes: int, nodes: str) -> None:
    """So many bytes, on these nodes, and none of them in swap: what is given back must be in no
    other place."""
    _confine(path, "cpuset.mems", nodes)
    for name in ("memory.swap.max", "memory.zswap.max"):
        if os.path.exists(os.path.join(path, name)):
            write(os.path.join(path, name), "0")
    write(os.path.join(path, "memory.max"), str(memory_bytes))


def _confine(path: str, name: str, numbers: str) -> None:
    """These and no others. Where a cgroup above does not have them (AllowedCPUs= of a slice), the
    kernel takes the request and gives all that there are above in their place."""
    write(os.path.join(path, name), numbers)
    given = read_list(Path(path, f"{name}.effective"))
    if given and given != parse_list(numbers):
        detail = f"{name}: {numbers} wanted, {format_list(given)} given: something above has less"
        raise DeviceError("cgroup_confine", errno.ENODEV, detail)


def allowed(facts: CgroupFacts, name: str, root: Path) -> tuple[int, ...]:
    """What the leases' cgroup has of cores (`cpuset.cpus`) or nodes (`cpuset.mems`); empty where
    nobody says so."""
    return read_list(root / facts.path.lstrip("/") / f"{name}.effective") if facts.path else ()


def let_open(path: str, rules: Sequence[DeviceRule]) -> None:
    """From the return on, whoever is in the leaf opens these device nodes and no others. Raises
    DeviceError."""
    leaf = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            attach_filter(leaf, _program(tuple(rules)))
        except DeviceError as error:
            if error.errno != errno.EINVAL:
                raise
            # The very program is on this leaf already, from a grant that failed later on.
            program = load_filter(rules)
            attach_filter(leaf, program)
            os.close(program)
    finally:
        os.close(leaf)


def _program(rules: tuple[DeviceRule, ...]) -> int:
    """The loaded filter of these rules. Loading one takes the kernel a hundred times as long as
    attaching it, and nearly every leaf has the same: the last few stay loaded."""
    program = _PROGRAMS.pop(rules, None)
    if program is None:
        program = load_filter(rules)
        while len(_PROGRAMS) >= PROGRAMS_MAX:
            os.close(_PROGRAMS.pop(next(iter(_PROGRAMS))))
    _PROGRAMS[rules] = program
    return program


def join(path: str, pid: int, pidfd: int) -> None:
    """Move `pid` into the leaf; `pidfd` proves that the number is still its own."""
    check_pid(pid, pidfd)
    before = home_of(pid)
    write(os.path.join(leaves.inside(path), "cgroup.procs"), str(pid))
    if not _exited(pidfd):
        # Alive now, so the number was its own all along: it is not given away before the exit.
        return
    _put_back(path, pid, before)
    raise DeviceError("cgroup_join", errno.ESRCH, f"process {pid} exited while it was moved")


def home_of(pid: int) -> str:
    """What /proc says of a process's cgroups. Raises DeviceError(ESRCH) of one that is gone."""
    try:
        return read_names(f"/proc/{pid}/cgroup")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise DeviceError("cgroup_join", errno.ESRCH, f"process {pid} has exited") from error


def mount_of(path: str) -> str:
    """The mount of cgroup v2 that a directory is in. Raises DeviceError."""
    unified, _ = find_mounts(read_names(_MOUNTS))
    if unified is None or not f"{path}/".startswith(f"{unified}/"):
        raise DeviceError("cgroup_find", errno.ENOENT, path)
    return unified


def check_pid(pid: int, pidfd: int) -> None:
    """Raise DeviceError(ESRCH) unless the pidfd is that process's, and it lives."""
    try:
        text = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii")
    except OSError as error:
        raise DeviceError("cgroup_join", error.errno or errno.EBADF, "pidfd") from error
    named = [line.split()[1] for line in text.splitlines() if line.startswith("Pid:")]
    if named != [str(pid)] or _exited(pidfd):
        raise DeviceError("cgroup_join", errno.ESRCH, f"the pidfd does not name process {pid}")


def _exited(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 0)[0])


def _put_back(leaf: str, pid: int, before: str) -> None:
    """Whoever got the number meanwhile does not belong here: back to where the v2 line says."""
    procs = Path(leaves.inside(leaf), "cgroup.procs").read_text("ascii").split()
    home = [line[3:] for line in before.split("\n") if line.startswith("0::")]
    unified, _ = find_mounts(read_names(_MOUNTS))
    if str(pid) in procs and home and unified is not None:
        write(os.path.join(unified, home[0].lstrip("/"), "cgroup.procs"), str(pid))


def close_leaf(
    path: str, *, budget: bool = False, patience_ns: int = 100_000_000
) -> tuple[int, int, int]:
    """(memory bytes, hugetlb bytes still charged, 0 or the errno of rmdir).

    A leaf that is gone already counts as removed. rmdir answers EBUSY for a moment after the last
    exit, so it is asked again for `patience_ns`. Removing a leaf hands its charges to its parent,
    where nobody would see them any more: a `budget`'s leaf that is charged for anything stays
    (ENOTEMPTY).
    """
    if not os.path.isdir(path):
        return 0, 0, 0
    if budget and not is_populated(path):
        # Page cache outlives its reader. With a limit of 0 the kernel takes back what it can.
        write(os.path.join(path, "memory.max"), "0")
    memory_bytes = sum(
        int(value)
        for name, value in _pairs(os.path.join(path, "memory.stat"))
        if name in _OUR_CHARGES
    )
    hugetlb_bytes = sum(
        int(text)
        for name in sorted(os.listdir(path))
        if name.startswith("hugetlb.") and name.endswith("current")
        for text in _words(os.path.join(path, name))
    )
    if budget and memory_bytes and not is_populated(path):
        return memory_bytes, hugetlb_bytes, errno.ENOTEMPTY
    end_ns = time.monotonic_ns() + patience_ns
    while True:
        try:
            leaves.remove(path)
            return memory_bytes, hugetlb_bytes, 0
        except FileNotFoundError:
            return memory_bytes, hugetlb_bytes, 0
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic_ns() >= end_ns or is_populated(path):
                return memory_bytes, hugetlb_bytes, error.errno or errno.EIO
        time.sleep(0.001)


def is_populated(path: str) -> bool:
    """Whether any process is in the leaf or below it; one that is gone has none."""
    return ("populated", "1") in _pairs(os.path.join(path, "cgroup.events"))


def _pairs(path: str) -> tuple[tuple[str, str], ...]:
    words = _words(path)
    return tuple(zip(words[::2], words[1::2], strict=True))
