# SPDX-License-Identifier: Apache-2.0
"""Fittings: what a lease has beyond memory and cores, prepared and taken back through its backends.

Rule: all or nothing per lease: what was prepared before another part failed is abandoned in the
reverse order. After the cut every backend is asked, in the reverse order of preparing, and the
failure of one keeps none of the others from being asked. The leaf's device filter is the last thing
that is made: it lets through what the backends name, and the harmless nodes every program needs.

Does not know any backend: it is handed them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import trio

from leased.hardware.backend import Backend, Queues, Recalls, Remembers, Verdict, Wiped, Withdraws
from leased.hardware.calls import Filter
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.descriptors import close_all
from leased.hardware.failure import failed_step
from leased.hardware.instant import now_ns
from leased.hardware.pieces import is_handed_out
from leased.hardware.verbs import (
    ACCESS_MKNOD,
    ACCESS_READ,
    ACCESS_WRITE,
    ANY_MINOR,
    DEVICE_BLOCK,
    DEVICE_CHAR,
    DeviceRule,
)
from leased.ports import Access, Holder, Revocable
from leased.terms.bounds import Bounds, in_turn
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.resource import Allotment, Inventory, Resource
from leased.terms.teardown import StepReport, TeardownStep

READ_WRITE = ACCESS_READ | ACCESS_WRITE
PSEUDO_DEVICES = (
    *(
        DeviceRule(DEVICE_CHAR, ACCESS_MKNOD | READ_WRITE, major, minor)
        for major, minor in (
            (1, 3),  # null
            (1, 5),  # zero
            (1, 7),  # full
            (1, 8),  # random
            (1, 9),  # urandom
            (5, 0),  # tty
            (5, 2),  # ptmx
        )
    ),
    DeviceRule(DEVICE_CHAR, READ_WRITE, 136, ANY_MINOR),  # pts
)
"""What systemd's DevicePolicy=closed allows: nothing of it is anybody's. A container that root
starts has nodes of its own made for them."""


class Fitted(msgspec.Struct, frozen=True):
    """What was fitted: what was measured meanwhile, how the holder reaches it, and what the reaper
    has to revoke."""

    evidence: bytes = b""
    access: tuple[Access, ...] = ()
    objects: tuple[Revocable, ...] = ()


class Fittings:
    """The backends of this host, and each lease's share of them."""

    def __init__(
        self,
        crew: Crew,
        config: HardwareConfig,
        backends: Sequence[Backend],
        bounds: Callable[[Allotment], Bounds],
    ) -> None:
        """`bounds` says how long the teardown of each allotment may take."""
        self._bounds = bounds
        self._crew = crew
        self._config = config
        self._backends = tuple(backends)

    def parts(self, lease: Lease) -> list[tuple[Backend, list[Allotment]]]:
        """The lease's allotments by backend, in the order in which they are prepared."""
        if all(map(is_handed_out, lease.subject.allotments)):
            return []  # memory as a descriptor, which is most leases, is no backend's
        allotments = [a for a in lease.subject.allotments if not is_handed_out(a)]
        split = [
            (backend, [a for a in allotments if backend.serves(a)]) for backend in self._backends
        ]
        return [(backend, allotments) for backend, allotments in split if allotments]

    async def prepare(self, lease: Lease, leaf: str, fds: Sequence[int]) -> Fitted:
        """Prepare every part and let the leaf open it. Raises DeviceError."""
        parts = self.parts(lease)
        done: list[tuple[Backend, list[Allotment]]] = []
        rules, evidence = list(PSEUDO_DEVICES), b""
        objects: list[Revocable] = []
        try:
            for backend, allotments in parts:
                readied = await backend.prepare(lease, allotments, leaf, fds)
                done.append((backend, allotments))
                rules.extend(readied.rules)
                objects.extend(readied.objects)
                evidence += readied.evidence
            if leaf:
                await self.filter(leaf, rules)
            access = await self.access(lease)
        except DeviceError:
            for backend, allotments in reversed(done):
                await backend.abandon(lease, allotments)
            raise
        return Fitted(evidence, access, tuple(objects))

    async def filter(self, leaf: str, rules: Sequence[DeviceRule] = PSEUDO_DEVICES) -> None:
        """Give a new leaf its device filter. Raises DeviceError."""
        await self._crew.one("grant", Filter(leaf, (*rules, *self._more_nodes())))

    async def access(self, lease: Lease) -> tuple[Access, ...]:
        """How the holder reaches what it got. Raises DeviceError."""
        found: list[Access] = []
        for backend, allotments in self.parts(lease):
            found.extend(await backend.access(lease, allotments))
        return tuple(found)

    def open(self, lease: Lease) -> list[tuple[str, int]]:
        """(resource id, descriptor) of everything that is handed out besides memfds. Raises
        DeviceError; then nothing is open."""
        opened: list[tuple[str, int]] = []
        try:
            for backend, allotments in self.parts(lease):
                for allotment in allotments:
                    fd = backend.open(lease, allotment)
                    if fd is not None:
                        opened.append((allotment.resource_id, fd))
        except OSError as error:
            close_all(fd for _, fd in opened)
            raise DeviceError("handout", error.errno or errno.EIO, str(error)) from error
        return opened

    def withdraws(self, lease: Lease) -> bool:
        """Whether any part can be ended in order."""
        return any(isinstance(backend, Withdraws) for backend, _ in self.parts(lease))

    async def withdraw(self, lease: Lease) -> tuple[StepReport, ...]:
        """End in order what can be, before the cut. Raises DeviceError."""
        steps: tuple[StepReport, ...] = ()
        for backend, allotments in reversed(self.parts(lease)):
            if isinstance(backend, Withdraws):
                steps += await backend.withdraw(lease, allotments)
        return steps

    async def scrub(self, lease: Lease) -> Wiped:
        """Every part made clean, or not; raises the first DeviceError when all have been tried."""
        total, clean, failed = 0, True, None
        steps: list[StepReport] = []
        for backend, allotments in reversed(self.parts(lease)):
            limit_ns = max(one.clean_ns for one in self._limits(backend, allotments))
            try:
                with _within(limit_ns, backend, "clean"):
                    wiped = await backend.scrub(lease, allotments)
            except DeviceError as error:
                failed = failed or error
                continue
            total += wiped.scrubbed_bytes
            clean = clean and wiped.clean
            steps.extend(wiped.steps)
        if failed is not None:
            raise failed
        return Wiped(total, clean, tuple(steps))

    async def prove(self, lease: Lease) -> Verdict:
        """What is not proven of every part. A question that cannot be answered proves nothing."""
        unproven: dict[Allotment, int] = {}
        steps: list[StepReport] = []
        for backend, allotments in self.parts(lease):
            limit_ns = max(one.prove_ns for one in self._limits(backend, allotments))
            began_ns = now_ns()
            try:
                with _within(limit_ns, backend, "proven"):
                    verdict = await backend.prove(lease, allotments)
            except DeviceError as error:
                unproven.update({a: a.capacity for a in allotments})
                steps.append(failed_step(TeardownStep.WORKER, error, began_ns))
            else:
                unproven.update(verdict.unproven)
                steps.extend(verdict.steps)
        return Verdict(unproven, tuple(steps))

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Who uses a resource that a backend serves. Raises DeviceError."""
        for backend in self._backends:
            if backend.serves(allotment):
                return await backend.holders(allotment)
        return ()

    def recall(self, leases: Iterable[Lease], sealed: Inventory) -> None:
        """Leases of an earlier run, fenced ones too, and what it saw, before anything is
        surveyed."""
        kept = tuple(leases)
        for backend in self._backends:
            if isinstance(backend, Remembers):
                backend.remember([one for one in sealed.resources if backend.serves(_whole(one))])
            if isinstance(backend, Recalls):
                backend.recall(kept)

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Leases of an earlier run that go on, to every backend."""
        kept = tuple(leases)
        for backend in self._backends:
            await backend.adopt(kept)

    def _limits(self, backend: Backend, allotments: Sequence[Allotment]) -> list[Bounds]:
        """What each line of a part may take; lines go at the same time."""
        lines = [[allotment] for allotment in allotments]
        if isinstance(backend, Queues):
            lines = [[*line] for line in backend.lines(allotments)]
        return [in_turn(map(self._bounds, line)) for line in lines]

    def _more_nodes(self) -> list[DeviceRule]:
        """The nodes that the operator lets every lease open."""
        rules = []
        for path in self._config.leaf_devices:
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue  # a node of a driver that is not loaded
            kind = DEVICE_CHAR if stat.S_ISCHR(status.st_mode) else DEVICE_BLOCK
            major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            rules.append(DeviceRule(kind, READ_WRITE, major, minor))
        return rules


def _whole(one: Resource) -> Allotment:
    return Allotment(one.resource_id, one.kind, one.tier, one.capacity)


@contextmanager
def _within(limit_ns: int, backend: Backend, what: str) -> Iterator[None]:
    """What overruns its published bound has failed; the worker that it is stuck in is abandoned."""
    try:
        with trio.fail_after(limit_ns / NS_PER_S):
            yield
    except trio.TooSlowError:
        name = backend.kind.name.lower()
        detail = f"{name} was not {what} in the {limit_ns // NS_PER_MS} ms that are published"
        raise DeviceError("teardown_bound", errno.ETIMEDOUT, detail) from None
