# SPDX-License-Identifier: Apache-2.0
"""Detachment: a kind's driver let go for as long as it is being replaced.

Rule: only what is drained and wholly reclaimed is let go: a driver that leaves under a lease takes
the proof of its end along. What was let go stays so over a restart of the agent, for as long as the
kind is drained and nothing of it is held: a start in the middle of an upgrade must not open the
driver either.

Does not drain and does not resume: the lessor does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from leased.lessor.table import LeaseTable
from leased.ports import Holder
from leased.terms.errors import DeviceError
from leased.terms.lease import LeaseState
from leased.terms.reply import Refusal, RefusalReason
from leased.terms.resource import KIND_SCOPES, ResourceKind, in_scope, kind_scope


class Drivers(Protocol):
    """What is needed of the device room."""

    async def let_go(self, kind: ResourceKind) -> tuple[Holder, ...]:
        """Have nothing of the kind's drivers open; who else has. Raises DeviceError where that
        cannot be seen; they are let go all the same, unless it says ENOTSUP."""
        ...

    async def take_up(self, kind: ResourceKind) -> None:
        """The kind's drivers may be used again."""
        ...


class Detachment:
    """Which kinds are let go."""

    def __init__(self, *, drivers: Drivers, table: LeaseTable, look: Callable[[], None]) -> None:
        """`look` has the inventory read soon."""
        self._drivers = drivers
        self._table = table
        self._look = look

    async def restore(self, say: Callable[[str], None]) -> None:
        """At a start, before any driver is opened. That nobody can say who else has one is no
        reason not to start: it is left alone all the same."""
        for name, kind in KIND_SCOPES.items():
            if self._is_drained(kind) and not self._held(kind):
                try:
                    await self._drivers.let_go(kind)
                except DeviceError as error:
                    if error.errno != errno.ENOTSUP:  # what can never be let go was not
                        scope = name.rstrip(":")
                        say(
                            f"the driver of {scope} is let go until `leasectl resume {scope}`;"
                            f" who else has it open could not be seen ({error})"
                        )

    async def let_go(self, kind: ResourceKind) -> tuple[Holder, ...] | Refusal:
        """Who still has the driver, or why it is not let go. Raises DeviceError."""
        held = self._held(kind)
        if held or not self._is_drained(kind):
            return Refusal(RefusalReason.STILL_HELD, kind.name.lower(), usage=held)
        return await self._drivers.let_go(kind)

    async def take_up(self, scope: str) -> None:
        """Grants on it resumed: look at what is there now. Raises DeviceError."""
        for name, kind in KIND_SCOPES.items():
            if scope in ("", name):
                await self._drivers.take_up(kind)
        self._look()

    def _is_drained(self, kind: ResourceKind) -> bool:
        cordoned = self._table.pools.cordoned
        return "" in cordoned or kind_scope(kind) in cordoned

    def _held(self, kind: ResourceKind) -> int:
        """How many leases have something of the kind, until it is proven clean or fenced."""
        return sum(
            any(in_scope(a.resource_id, kind_scope(kind)) for a in lease.subject.allotments)
            for lease in self._table.leases.values()
            if lease.state is not LeaseState.FENCED
        )
