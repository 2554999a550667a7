# SPDX-License-Identifier: Apache-2.0
"""A table of leases small enough to read: what the small agent decides with.

Rule: it argues back like the real one: a capacity it has not is refused, an id it has not is
missing, a late renewal loses, a command_id it knows gets the lease it got before.

Does not queue, expire, preempt or remember anything that ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from leased.terms import command as commands
from leased.terms import reply as answers
from leased.terms.command import Command
from leased.terms.identity import CommandId, LeaseId
from leased.terms.lease import Ending, Lease, LeaseState, Subject, Trust
from leased.terms.moment import Moment
from leased.terms.resource import Allotment, Inventory, Resource, ResourceKind, TierKind

BOOT_ID = bytes(range(16))
MEM_ID = "mem:node0:4096"
MEM_BYTES = 1 << 30
INVENTORY = Inventory(
    (
        Resource(MEM_ID, ResourceKind.MEM, TierKind.DRAM, MEM_BYTES, 4096, node=0),
        Resource("gpu:GPU-1", ResourceKind.GPU, None, 1000, 1000, attributes=(("model", "H200"),)),
    )
)
USE = (
    answers.ResourceUse(MEM_ID, ResourceKind.MEM, MEM_BYTES, 0, 0, 0, False),
    answers.ResourceUse("gpu:GPU-1", ResourceKind.GPU, 1000, 0, 0, 0, False),
)


class LeaseTable:
    """The leases of one node. `now_ns` is its boot clock."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.now_ns = now_ns
        self.leases: dict[bytes, Lease] = {}
        self.granted: dict[bytes, bytes] = {}
        self._ids = 0

    def moment(self) -> Moment:
        """Now."""
        return Moment(BOOT_ID, self.now_ns(), 1_700_000_000_000_000_000)

    def decide(self, command: Command | None) -> answers.Reply:
        """Carry out a command and answer it."""
        match command:
            case commands.Acquire():
                return self._grant(command)
            case commands.Plan():
                ids = tuple(MEM_ID for _ in command.acquire.asks)
                return answers.Planned(self._denial(command.acquire), ids)
            case commands.ListLeases():
                return answers.Listed(tuple(self.leases.values()))
            case commands.ListResources():
                return answers.Inventoried(INVENTORY, USE)
            case (
                commands.Renew()
                | commands.Release()
                | commands.Extend()
                | commands.Describe()
                | commands.Why()
            ):
                lease = self.leases.get(command.lease_id)
                if lease is None:
                    return answers.Missing(command.lease_id)
                if isinstance(command, commands.Why):
                    return answers.Explained(lease)
                return self._change(command, lease)
            case _:
                return answers.Forbidden()

    def _change(
        self,
        command: commands.Renew | commands.Release | commands.Extend | commands.Describe,
        lease: Lease,
    ) -> answers.Reply:
        now_ns = self.now_ns()
        if isinstance(command, commands.Renew):
            if lease.deadline_ns <= now_ns:
                return answers.Refusal(answers.RefusalReason.DEADLINE_PASSED)
            ttl_ns = lease.ttl_ns if command.ttl_ns is None else command.ttl_ns
            lease = msgspec.structs.replace(
                lease, ttl_ns=ttl_ns, deadline_ns=now_ns + ttl_ns, generation=lease.generation + 1
            )
        elif isinstance(command, commands.Extend):
            until_ns = now_ns + command.needed_ns
            lease = msgspec.structs.replace(
                lease,
                deadline_ns=max(lease.deadline_ns, until_ns),
                drain_deadline_ns=until_ns,
                generation=lease.generation + 1,
            )
        elif isinstance(command, commands.Release):
            lease = msgspec.structs.replace(lease, state=LeaseState.REVOKING, ended=Ending.RELEASED)
        self.leases[lease.lease_id] = lease
        return answers.Changed(lease)

    def _denial(self, acquire: commands.Acquire) -> answers.Refusal | None:
        asked = sum(ask.capacity for ask in acquire.asks if ask.kind is ResourceKind.MEM)
        if asked <= MEM_BYTES:
            return None
        return answers.Refusal(
            answers.RefusalReason.NO_CAPACITY,
            "mem",
            limit=MEM_BYTES,
            usage=0,
            requested=asked,
            retry_at_ns=self.now_ns() + 1_500_000_000,
        )

    def _grant(self, acquire: commands.Acquire) -> answers.Reply:
        known = self.granted.get(acquire.command_id)
        if known is not None:
            return answers.Granted(self.leases[known], 7, bytes(32), attached=True)
        denial = self._denial(acquire)
        if denial is not None:
            return denial
        lease_id = LeaseId(self.draw())
        caller = acquire.caller
        allotments = tuple(
            Allotment(MEM_ID, ResourceKind.MEM, TierKind.DRAM, ask.capacity)
            if ask.kind is ResourceKind.MEM
            else Allotment("gpu:GPU-1", ask.kind, None, ask.capacity)
            for ask in acquire.asks
        )
        subject = Subject(
            caller.tenant,
            caller.uid,
            caller.gid,
            lease_id.hex(),
            acquire.workload,
            acquire.tag,
            acquire.priority,
            Trust.CONFINED,
            allotments,
            bytes(32),
        )
        now_ns = self.now_ns()
        lease = Lease(
            lease_id=lease_id,
            command_id=acquire.command_id,
            subject=subject,
            state=LeaseState.ACTIVE,
            boot_id=BOOT_ID,
            granted_ns=now_ns,
            deadline_ns=now_ns + acquire.ttl_ns,
            ttl_ns=acquire.ttl_ns,
            generation=1,
            pid=acquire.bind_pid,
            grace_ns=acquire.grace_ns or 0,
            activated=True,
        )
        self.leases[lease_id] = lease
        self.granted[acquire.command_id] = lease_id
        return answers.Granted(lease, 7, bytes(32))

    def draw(self) -> CommandId:
        """The next id."""
        self._ids += 1
        return CommandId(self._ids.to_bytes(16, "big"))
