# SPDX-License-Identifier: Apache-2.0
"""A fake backend that argues back: invented devices of one kind, prepared once and given back once.

Rule: what a driver could not survive is an AssertionError here: a lease prepared twice, taken back
without having been prepared, proven before its scrub. `failing` names the methods that raise, and
what they raise, `slow_s` those that take their time; a method that failed has done nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

import trio

from leased.hardware.backend import Readied, Verdict, Wiped
from leased.hardware.calls import Surveyed
from leased.ports import Access, Holder, Revocable
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.resource import Allotment, Resource, ResourceKind


def _each_alone(allotments: Sequence[Allotment]) -> Sequence[Sequence[Allotment]]:
    return [[one] for one in allotments]


class FakeBackend:
    """Devices `<prefix>0`, `<prefix>1`, ... with nothing behind them."""

    def __init__(self, kind: ResourceKind, prefix: str, story: list[str] | None = None) -> None:
        self.kind = kind
        self.prefix = prefix
        self.story: list[str] = [] if story is None else story
        self.failing: dict[str, DeviceError] = {}
        self.slow_s: dict[str, float] = {}
        self.held: set[LeaseId] = set()
        self.users: list[Holder] = []
        self.objects: tuple[Revocable, ...] = ()
        self.lines: Callable[[Sequence[Allotment]], Sequence[Sequence[Allotment]]] = _each_alone
        self._scrubbed: set[LeaseId] = set()

    def serves(self, allotment: Allotment) -> bool:
        """Those with our prefix."""
        return allotment.resource_id.startswith(self.prefix)

    async def survey(self) -> Surveyed:
        """Two of them."""
        await trio.lowlevel.checkpoint()
        ids = (f"{self.prefix}{number}" for number in range(2))
        return Surveyed(tuple(Resource(one, self.kind, None, 1000, 1000) for one in ids), (), ())

    async def prepare(
        self, lease: Lease, allotments: Sequence[Allotment], leaf: str, fds: Sequence[int]
    ) -> Readied:
        """Remember that it is held."""
        await self._enter("prepare")
        assert lease.lease_id not in self.held, "prepared twice"
        self.held.add(lease.lease_id)
        return Readied((), self.prefix.encode(), self.objects)

    async def access(self, lease: Lease, allotments: Sequence[Allotment]) -> tuple[Access, ...]:
        """One name for each."""
        await self._enter("access")
        name = f"LEASE_{self.kind.name}"
        return tuple(Access(one.resource_id, name, one.resource_id) for one in allotments)

    def open(self, lease: Lease, allotment: Allotment) -> int | None:
        """Nothing to hand out."""
        if "open" in self.failing:
            raise OSError(self.failing["open"].errno, "as told")
        return None

    async def abandon(self, lease: Lease, allotments: Sequence[Allotment]) -> None:
        """Take back what nobody had."""
        await self._enter("abandon")
        assert lease.lease_id in self.held, "abandoned what was never prepared"
        self.held.remove(lease.lease_id)

    async def scrub(self, lease: Lease, allotments: Sequence[Allotment]) -> Wiped:
        """Idempotent, as promised."""
        await self._enter("scrub")
        self._scrubbed.add(lease.lease_id)
        return Wiped(0, clean=True)

    async def prove(self, lease: Lease, allotments: Sequence[Allotment]) -> Verdict:
        """Clean, if it was scrubbed."""
        await self._enter("prove")
        assert lease.lease_id in self._scrubbed, "proven before its scrub"
        self.held.discard(lease.lease_id)
        return Verdict({})

    async def holders(self, allotment: Allotment) -> tuple[Holder, ...]:
        """Whom the test put there."""
        await self._enter("holders")
        return tuple(one for one in self.users if one.resource_id == allotment.resource_id)

    async def adopt(self, leases: Iterable[Lease]) -> None:
        """Hold again what is ours."""
        await self._enter("adopt")
        for lease in leases:
            if any(map(self.serves, lease.subject.allotments)):
                self.held.add(lease.lease_id)

    async def _enter(self, method: str) -> None:
        await trio.lowlevel.checkpoint()
        self.story.append(f"{self.prefix}{method}")
        await trio.sleep(self.slow_s.get(method, 0))
        if method in self.failing:
            raise self.failing[method]


def failed(verb: str = "as_told") -> DeviceError:
    """What a driver that fails says."""
    return DeviceError(verb, errno.EIO, "as told")
