# SPDX-License-Identifier: Apache-2.0
"""Boot: from what is on disk and what the reaper still holds to an agent that may serve.

Rule: nothing is granted before every record is verified, the table rebuilt by the same `apply` as
live traffic, and every resource not proven clean is on its way through teardown. What the reaper
holds keeps its remaining time, never more. The order: lock, verify and repair the log -> replay ->
ask the reaper -> `Start` through the seven steps.

Does not repair what is not a torn tail: the log's own verdict, with file and offset, is the
operator's to act on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from leased.chain.sealer import Sealer
from leased.durable.log import OpenedLog
from leased.hardware.adoption.strays import Stray
from leased.hardware.cgroup import is_populated
from leased.hardware.leaves import inside
from leased.lessor.lessor import Lessor
from leased.lessor.table import end_ns
from leased.ports import Clock, Entropy, Journal
from leased.service.config import Config
from leased.service.custody import Custodian
from leased.service.evidence import NO_COMMAND
from leased.service.holders import Holders
from leased.service.log.pruning import prune
from leased.service.reaper.link import RosterEntry
from leased.service.sequencer import Sequencer
from leased.terms.command import NoteStray, Start
from leased.terms.errors import DeviceError
from leased.terms.event import Recovered
from leased.terms.identity import EventId, LeaseId
from leased.terms.lease import BOUND_TO_CGROUP
from leased.terms.policy import Calendar, Policy, Price
from leased.terms.resource import Inventory


class Ground(msgspec.Struct, frozen=True):
    """What the agent stands on when it starts."""

    node_id: bytes
    version: str
    inventory: Inventory
    policy: Policy
    policy_hash: bytes
    rate_hash: bytes
    prices: tuple[Price, ...] = ()
    calendar: Calendar = Calendar()


def replay(lessor: Lessor, opened: OpenedLog) -> int:
    """Rebuild the table from the sealed history; how many events it took."""
    count = 0
    moment = None
    for sequence, event, moment in opened.history():
        lessor.replay(event, moment, sequence)
        count += 1
    if moment is not None:
        # The history leaves out what is over, but what was held in a boot that has ended is
        # bounded by the last moment sealed in it, whatever the record was about.
        last = opened.last_moment(moment.boot_id)
        assert last is not None, "a log with a history has a last record"
        lessor.witness(last)
    return count


async def settle(
    opened: OpenedLog,
    sealer: Sealer,
    config: Config,
    clock: Clock,
    entropy: Entropy,
    say: Callable[[str], None],
) -> None:
    """What is to be done about the log itself once the start is sealed: tell what is wrong with the
    disk and what was repaired, let go what is old."""
    if opened.crc_damaged:
        say(
            f"the disk has changed the log: record {opened.crc_damaged[0]} is the first whose"
            " checksum is wrong; by their hashes all records hold"
        )
    await seal_repair(opened, sealer, opened.journal, clock, entropy)
    kept = (config.log.retention_ns, config.log.free_bytes_min)
    await prune(opened, sealer, config.listener, *kept, clock, entropy, say)


async def seal_repair(
    opened: OpenedLog, sealer: Sealer, journal: Journal, clock: Clock, entropy: Entropy
) -> None:
    """Put on record what opening the log had to repair. After `start`, so that the record's boot is
    known."""
    facts = opened.recovered
    if facts is None:
        return
    moment = clock.now()
    event = Recovered(EventId(entropy()), facts.kept_records, facts.torn_bytes, facts.torn_hash)
    sealed = sealer.seal([(event, moment)], sign=True)
    await journal.commit(sealed.frames, sealed.count, sealed.head, moment)
    if sealed.ends_epoch:
        opened.forget_epoch()


def take_custody(roster: Sequence[RosterEntry], custodian: Custodian) -> frozenset[LeaseId]:
    """Hold again what the reaper holds; the leases it knows."""
    for entry in roster:
        custodian.keep(entry.lease_id, tuple(entry.fds), entry.cgroup, None)
    return frozenset(entry.lease_id for entry in roster)


async def start(
    sequencer: Sequencer, opened: OpenedLog, ground: Ground, known: frozenset[LeaseId]
) -> None:
    """Seal that the agent serves, and let the lessor decide about every lease it found."""
    await sequencer.commit_now(
        Start(
            NO_COMMAND,
            node_id=ground.node_id,
            version=ground.version,
            filesystem=opened.filesystem,
            durability=opened.durability,
            inventory=ground.inventory,
            policy=ground.policy,
            policy_hash=ground.policy_hash,
            rate_hash=ground.rate_hash,
            known_to_reaper=known,
            prices=ground.prices,
            calendar=ground.calendar,
        )
    )


async def end_strays(
    end: Callable[[Sequence[str]], Awaitable[tuple[Stray, ...]]],
    leaves: Sequence[str],
    say: Callable[[str], None],
) -> tuple[Stray, ...]:
    """Whoever is inside a lease that there is not must not share what is granted later. `leaves`
    are those of the leases that there are."""
    try:
        return await end(leaves)
    except DeviceError as error:
        say(f"cgroups without a lease could not be looked for ({error})")
        return ()


async def note_strays(sequencer: Sequencer, strays: Sequence[Stray]) -> None:
    """Put on record what was ended. After `start`, so that the record's boot is known."""
    for one in strays:
        await sequencer.commit_now(NoteStray(NO_COMMAND, one.name, one.processes, one.errno))


def rebind(
    roster: Sequence[RosterEntry], lessor: Lessor, holders: Holders, now_ns: int
) -> list[tuple[LeaseId, int]]:
    """Watch again the holders and leaves of the leases that go on. Returned are those that cannot,
    and why: the reaper lost their memory's descriptors, which nobody has any more (EBADF), or cut
    them before their time (ETIME: it had not heard of a renewal). Of one whose time is over
    nothing is said: the next tick ends it."""
    lost: list[tuple[LeaseId, int]] = []
    for entry in roster:
        lease = lessor.table.leases.get(entry.lease_id)
        pid = lease.pid if lease is not None and lease.ended is None else None
        is_lost = entry.cut is not None or entry.memfds_missing
        if lease is not None and pid is not None and is_lost:
            if now_ns < end_ns(lease):
                lost.append((entry.lease_id, errno.EBADF if entry.cut is None else errno.ETIME))
            pid = None
        if pid is not None and pid > 0:
            holders.rebind(entry.lease_id, pid, entry.pidfd)
        elif entry.pidfd is not None:
            os.close(entry.pidfd)
        # Whether anybody ever joined is not known any more: an empty leaf keeps its deadline.
        if pid == BOUND_TO_CGROUP and is_populated(inside(entry.cgroup)):
            holders.watch_leaf(entry.lease_id, inside(entry.cgroup))
        if pid is not None and entry.cgroup:
            holders.watch_owners(entry.lease_id, entry.cgroup)
    return lost
