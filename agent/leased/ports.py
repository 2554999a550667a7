# SPDX-License-Identifier: Apache-2.0
"""The ports: what the agent needs of the world, each with its promises. Four methods at most.

Rule: every promise in a docstring here has a test in `tests/contract`, run on the fake and on the
real thing alike. Nothing pure reads a clock, a disk, a driver or randomness: it is handed one of
these, or a value that came from one.

Does not implement anything: `hardware` and `durable` do, and `tests/doubles`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId, LogId
from leased.terms.lease import Lease
from leased.terms.moment import Moment
from leased.terms.resource import Inventory
from leased.terms.sample import Readings
from leased.terms.teardown import CutReport, ProofReport, ScrubReport, Utilization

Submit = Callable[..., None]
"""Leaves a command on the sequencer's channel (and who takes its answer, if anyone does). Never
blocks."""

Entropy = Callable[[], bytes]
"""Returns 16 uniformly random bytes, never the same twice."""


class Clock(Protocol):
    """Time. `now` never goes back in `boot_ns` within a boot; `wall_ns` may jump either way."""

    def now(self) -> Moment:
        """Both clocks and the boot id, read together."""
        ...

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME alone, for whoever asks with every call."""
        ...

    async def sleep_until(self, boot_ns: int) -> None:
        """Return at or after `boot_ns` on CLOCK_BOOTTIME; suspend counts. Cancellable."""
        ...


class AnchorSlot(msgspec.Struct, frozen=True, gc=False):
    """What an anchor slot says (FORMAT.md section 4). `generation` is `gen`, `head` the hash of
    record next_seq-1."""

    generation: int
    log_id: LogId
    next_seq: int
    segment_no: int
    end_offset: int
    head: bytes
    min_seq: int = 0
    acked_size: int = 0
    tpm_counter: int = 0
    boottime_ns: int = 0
    boot_id: bytes = bytes(16)


class Counter(Protocol):
    """A number that is not on the disk and only ever grows, whatever is put back there. Its `str`
    is what an operator calls it. Every call blocks."""

    def read(self) -> int | None:
        """The number; None if it was never advanced. Raises StateError if it cannot be asked."""
        ...

    def advance(self) -> int:
        """One more, for good when this returns (where it raises, perhaps). Raises StateError."""
        ...

    def rested(self) -> bool:
        """Whether it may be advanced again: what it is kept in wears out."""
        ...


class Journal(Protocol):
    """The sealed log on disk. One writer. A commit that raised is indeterminate: the process must
    end."""

    async def commit(self, frames: bytes, count: int, head: bytes, moment: Moment) -> None:
        """Append a whole batch, fdatasync, write the anchor slot in place, fdatasync.

        On return all `count` records are durable and anchored at `head`. Raises OSError or
        StateError; nothing may be committed after that, and no fsync is asked twice.
        """
        ...

    def frames(self, first_seq: int) -> Iterator[bytes]:
        """Anchored frames from `first_seq` on, in order, in chunks of whole frames."""
        ...

    def reserve_ok(self, live_leases: int) -> bool:
        """Whether the terminal records of `live_leases` + 1 leases fit without allocating a
        block."""
        ...

    def close(self) -> None:
        """Release the lock and the files. Idempotent."""
        ...


class Access(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing a holder must know to use a resource: `name` is what it is called in the
    environment of a process inside the lease (CUDA_VISIBLE_DEVICES, LEASE_BLOCK_0, ...). Several of
    one name stand there with commas between. A value can be a capability (an rkey): no repr shows
    it."""

    resource_id: str
    name: str
    value: str

    def __repr__(self) -> str:
        return f"Access({self.resource_id!r}, {self.name!r}, ...)"


class ObjectKind(enum.IntEnum):
    """What kind of thing gives access by itself. The numbers are the reaper's."""

    DM = 1


class Revocable(NamedTuple):
    """What gives access by itself, to whoever holds it, and is revoked at the cut besides killing.
    A mapping's (DM) device-mapper uuid follows from the lease's id and `number`."""

    kind: ObjectKind
    number: int


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """What a device made ready: descriptors to pass (owned by the receiver), the leaf cgroup
    directory's path ("" if none was made), the SHA-256 of what was measured while preparing, what
    the holder must know, and what the reaper must revoke."""

    fds: tuple[int, ...]
    cgroup: str
    evidence: bytes
    access: tuple[Access, ...] = ()
    objects: tuple[Revocable, ...] = ()


class Device(Protocol):
    """Everything the agent does to hardware, many leases a call so that one trip to a worker serves
    a whole batch.

    Each answer stands in the place of its lease: a report, or the DeviceError that befell that
    lease alone. Every call has its own deadline; a worker that does not answer is abandoned, and
    its leases get DeviceError.
    """

    async def inventory(self) -> Inventory:
        """What the host offers now, with evidence and absences."""
        ...

    async def prepare_many(self, leases: Sequence[Lease]) -> list[Prepared | DeviceError]:
        """Make each lease's allotments ready: pages touched, cgroup limited. All or nothing per
        lease."""
        ...

    async def scrub_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ScrubReport | DeviceError]:
        """Overwrite, read back and give back what each lease held, after the cut. Does not take the
        fds over."""
        ...

    async def prove_many(
        self, leases: Sequence[tuple[Lease, Sequence[int]]]
    ) -> list[ProofReport | DeviceError]:
        """Ask a source other than the scrub whether everything came back; name what did not."""
        ...


class Arming(NamedTuple):
    """A lease to be held: its leaf's path if it has one, its memfds, its holder's pidfd if it is
    bound to one, and what is to be revoked."""

    lease: Lease
    cgroup: str = ""
    fds: tuple[int, ...] = ()
    pidfd: int | None = None
    objects: tuple[Revocable, ...] = ()


class Reaper(Protocol):
    """The enforcer of record, many leases a call. Each answer stands in the place of its lease."""

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        """From the return on each lease ends at its deadline whatever happens to the agent: whoever
        is inside or bound is killed, its objects are revoked. Arming again with the same or a newer
        generation adds what is new."""
        ...

    async def renew_many(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        """(lease, generation, deadline_ns). False if it came too late: the cut has begun and goes
        on. One that a later renewal has overtaken changes nothing, and is not late."""
        ...

    async def revoke_many(
        self, lease_ids: Sequence[LeaseId], *, spare: Collection[LeaseId] = ()
    ) -> list[CutReport | DeviceError]:
        """Cut now, or wait for and tell of the cut already begun. The bound holders of the leases
        in `spare` live on. A lease that was never armed has nothing to cut: its report is clean and
        has no steps."""
        ...

    async def disarm_many(self, lease_ids: Sequence[LeaseId]) -> None:
        """Forget the leases and close their descriptors. Idempotent. One that has not been cut is
        cut first: nobody is let go with somebody inside."""
        ...


class Sampler(Protocol):
    """Lossy observation; nothing is billed from it."""

    def utilization(self, lease: Lease) -> Utilization:
        """What was seen of a lease so far."""
        ...


class Observer(Protocol):
    """Looks at what there is, by workers, each look with its own deadline. What had no answer is
    named in the answer; DeviceError: nothing had."""

    async def host(self) -> Readings:
        """The host: processors, memory, pressure."""
        ...

    async def leaves(self, leaves: Sequence[tuple[str, str]]) -> Readings:
        """What these leaves count, as (what the answer calls it, path)."""
        ...

    async def gpus(self) -> Readings:
        """What every GPU does."""
        ...

    async def others(self, *, closely: bool) -> Readings:
        """Drives and ports; `closely`: what takes a drive longer to say, too."""
        ...


class Holder(msgspec.Struct, frozen=True, gc=False):
    """A process that uses a resource. `via` is how: cgroup (it is inside the lease), bound (the
    lease is bound to it), memory, pages, fd, map, ring, driver (the driver says so). Where the
    kernel itself uses it, `pid` is 0, `via` one of mount, dm, loop, swap, and `name` says which."""

    pid: int
    uid: int
    name: str
    via: str
    lease_id: LeaseId | None = None
    resource_id: str = ""


class Holders(Protocol):
    """Who uses what, lease or no lease."""

    async def scan(self, resource_ids: Sequence[str]) -> tuple[Holder, ...]:
        """Everybody who uses one of the resources, seen from the host's pid namespace. Raises
        DeviceError where that cannot be said."""
        ...
