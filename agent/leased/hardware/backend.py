# SPDX-License-Identifier: Apache-2.0
"""A backend: one kind of hardware beyond plain memory and cores, as `Devices` drives it.

Rule: a backend works through workers only (`crew`), so that a driver that hangs costs its own
device and nothing else. Every method has its own deadline and raises DeviceError; one that failed
has left nothing behind, or `prove` names it. `scrub` and `prove` are called after the cut, also for
a lease whose `prepare` failed half-way or whose agent has been restarted since: they look at the
hardware, not at what this process remembers.

Order: the leaf is made, memory is created, `prepare` of each backend, then the leaf's device
filter with every backend's rules. Where there is time before the cut, `withdraw`; after it `scrub`
of each backend in the reverse order, then memory, then `prove`.

Does not decide what is fenced: it names what is unproven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from leased.hardware.calls import Surveyed
from leased.hardware.verbs import DeviceRule
from leased.ports import Access, Holder, Revocable
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, Resource, ResourceKind
from leased.terms.teardown import StepReport


class Readied(msgspec.Struct, frozen=True):
    """What a backend made ready of a lease: the device nodes that its leaf must be able to open,
    what was measured meanwhile (it is hashed into the grant's evidence), and what the reaper has to
    revoke at the cut."""

    rules: tuple[DeviceRule, ...] = ()
    evidence: bytes = b""
    objects: tuple[Revocable, ...] = ()


class Wiped(msgspec.Struct, frozen=True):
    """What a backend's scrub did. `clean`: every byte that it could reach was overwritten, or its
    key forgotten, and that was read back."""

    scrubbed_bytes: int
    clean: bool
    steps: tuple[StepReport, ...] = ()


class Verdict(msgspec.Struct, frozen=True):
    """What a source other than the scrub says: how much of each allotment is not proven clean."""

    unproven: Mapping[Allotment, int]
    steps: tuple[StepReport, ...] = ()


class Backend(Protocol):
    """One kind of hardware. `serves` splits a lease's allotments among the backends."""

    kind: ResourceKind

    def serves(self, allotment: Allotment) -> bool:
        """Whether the allotment is this backend's."""
        ...

    async def survey(self) -> Surveyed:
        """What there is of it, and why what is not offered is not. Never raises: a survey that
        failed is an Absence, and one that failed after one that did not is the last one."""
        ...

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """Make the allotments ready. `leaf` is the path of the lease's cgroup, nobody in it yet;
        `fds` are the lease's memfds in the order of `pieces.memory_pieces`. Raises DeviceError."""
        ...

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """How the holder reaches what it got (for GPUs: CUDA_VISIBLE_DEVICES and
        NVIDIA_VISIBLE_DEVICES): also for a lease that an earlier run of the agent prepared. Asked
        at the end of preparing: a DeviceError fails the grant."""
        ...

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """A descriptor to hand to the holder, or None where there is none to hand out. Must not
        block. Raises OSError."""
        ...

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Take back a `prepare` that succeeded, because another part of the lease failed. Nobody
        ever had access."""
        ...

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """Cut what the reaper could not, and make clean. Idempotent."""
        ...

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Ask another source whether it is clean."""
        ...

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Who uses the resource now, with a lease or without, but for our own workers. Raises
        DeviceError where that cannot be said."""
        ...

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Leases of an earlier run of the agent that go on. Before the first grant; whatever is
        there beyond them is nobody's and is ended."""
        ...


@runtime_checkable
class Detachable(Protocol):
    """A backend whose driver can be replaced under the running agent."""

    async def let_go(self) -> tuple[Holder, ...]:
        """Close whatever of ours has the driver open, and leave it alone until `take_up`: surveys
        say what they last said. Who else has it, without asking the driver. Raises DeviceError
        where that cannot be said."""
        ...

    async def take_up(self) -> None:
        """The driver may be used again."""
        ...


@runtime_checkable
class Watchful(Protocol):
    """A backend that hears of changes by itself."""

    async def watch(self, noticed: Callable[[], None]) -> None:
        """Run until cancelled; call `noticed`, a reason to look again, whenever something is
        heard."""
        ...


@runtime_checkable
class Queues(Protocol):
    """A backend of which not everything that a lease has is made clean at the same time."""

    def lines(self, allotments: Sequence[Allotment]) -> Sequence[Sequence[Allotment]]:
        """The allotments by what they wait in line for: their bounds add up (`bounds.in_turn`)."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """A backend to which a resource looks different where a lease has left something on it."""

    def recall(self, leases: Iterable[Lease]) -> None:
        """Leases of an earlier run that have not ended, fenced ones too, before it surveys."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A backend whose driver may not answer when the agent starts."""

    def remember(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen of its own, before it surveys."""
        ...


@runtime_checkable
class Withdraws(Protocol):
    """A backend that can end access in order, before whoever is in the leaf is killed."""

    async def withdraw(
        self, lease: Lease, allotments: Sequence[Allotment]
    ) -> tuple[StepReport, ...]:
        """End what others reach, as far as that takes no longer than a moment. What it does not
        do, the cut and `scrub` do. Raises DeviceError."""
        ...
