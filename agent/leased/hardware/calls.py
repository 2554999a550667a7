# SPDX-License-Identifier: Apache-2.0
"""What is said between the agent and its workers: calls, answers, and one batch of either.

Rule: values as positional arrays; descriptors travel beside them in the order of the calls or
answers that own them. A call that failed is answered by `Failed` and sends no descriptor.

Does not encode: `worker` is the codec door of this room.
"""

from __future__ import annotations

import msgspec

from leased.hardware.config import HardwareConfig
from leased.terms.resource import Absence, Resource, ResourceKind
from leased.terms.teardown import StepReport


class Pool(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Hugepages of one size on one node."""

    node: int
    page_bytes: int


class CgroupFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The cgroup root as it is: its absolute path ("" if there is none), the controllers that its
    leaves have, those that only cgroup v1 has, and what stood in the way, in words."""

    path: str
    controllers: tuple[str, ...]
    v1_only: tuple[str, ...]
    troubles: tuple[str, ...] = ()


# ---- calls -------------------------------------------------------------------------------------


class Create(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """Make a memfd. Answered by Created and one descriptor; `handed`: and by one opened anew from
    it, for the holder."""

    name: str
    size_bytes: int
    page_bytes: int
    node: int
    handed: bool = False


class Scrub(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Overwrite, read back and truncate the memfd that comes with the call.

    `apart`: the tenant never had this very open file, only ones opened anew from it
    (`exclusion.reopen`), so the kernel can say whether any of them is left."""

    name: str
    size_bytes: int
    pool: Pool | None
    apart: bool


class Count(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Read a pool's counters."""

    pool: Pool


class MakeLeaf(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Make a lease's leaf. `cpus` and `cpu_milli` limit it where there is a cpu allotment,
    `memory_bytes` and `nodes` where there is a budget of memory."""

    path: str
    pids_max: int
    cpus: str = ""
    cpu_milli: int = 0
    memory_bytes: int = 0
    nodes: str = ""


class CloseLeaf(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Read what is still charged to the leaf and remove it. `budget`: what is charged is leased
    memory; the kernel is told to take it all back first, and the leaf stays until it has."""

    path: str
    budget: bool = False


class Join(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Move the process of the pidfd that comes with the call into the leaf."""

    path: str
    pid: int


class Found(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Find the cgroup2 mount, make the root, enable controllers. Answered by CgroupFacts."""

    root: str


class Survey(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Say what the host has, as far as the kernel's own files tell."""

    config: HardwareConfig
    cgroup: CgroupFacts


class Filter(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Let whoever is in the leaf open exactly these device nodes from here on (`verbs.DeviceRule`
    as numbers)."""

    path: str
    rules: tuple[tuple[int, int, int, int], ...]


class Task(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """What only one backend knows: `verb` in the `VERBS` of `hardware.<backend>.carrying`, its
    argument encoded, and how many descriptors come with it. Answered by Result."""

    backend: str
    verb: str
    argument: bytes
    fds: int = 0


Call = Create | Scrub | Count | MakeLeaf | CloseLeaf | Join | Found | Survey | Filter | Task


class Batch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Calls of one message. `exempt` are our own processes as (pid, start time): never escapees."""

    number: int
    calls: tuple[Call, ...]
    exempt: tuple[tuple[int, int], ...] = ()
    kill_escapees: bool = True
    kill_budget_ns: int = 0
    reaper_path: str = ""


# ---- answers -----------------------------------------------------------------------------------


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """The call failed; nothing of it is left."""

    verb: str
    errno: int
    detail: str


class Created(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The memfd: its inode and the blocks it has, as fstat tells them, and when it was ready."""

    device: int
    inode: int
    blocks: int
    ready_ns: int


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A pool's counters."""

    total_pages: int
    free_pages: int


class Cleaned(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """What a scrub did. Of a pool: its counters just before the truncation, how many of the lease's
    hugepages did not come back at once, and of how many the kernel's own account says that they
    did, whoever took others meanwhile."""

    scrubbed_bytes: int
    clean: bool
    steps: tuple[StepReport, ...]
    before: Counted | None = None
    short_pages: int = 0
    freed_pages: int = 0


class Leafed(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """The leaf is there (or is gone), and the process is in it."""

    ended_ns: int


class Charged(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """What the leaf was charged when it was closed; `removed` is 0 or the errno of rmdir
    (ENOTEMPTY: nobody is in it, but leased memory is still charged to it)."""

    memory_bytes: int
    hugetlb_bytes: int
    removed: int
    ended_ns: int


class Founded(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """The cgroup root."""

    facts: CgroupFacts


class Surveyed(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Part of an inventory. Of the kinds that `failed` nobody knows what there is."""

    resources: tuple[Resource, ...]
    absences: tuple[Absence, ...]
    notes: tuple[str, ...]
    failed: tuple[ResourceKind, ...] = ()


class Result(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """What a Task came to, encoded."""

    value: bytes


Answer = Failed | Created | Cleaned | Counted | Leafed | Charged | Founded | Surveyed | Result


class Answers(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answers to the batch of that number, in order."""

    number: int
    answers: tuple[Answer, ...]
