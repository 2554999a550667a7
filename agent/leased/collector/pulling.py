# SPDX-License-Identifier: Apache-2.0
"""One run of the puller: archive, witness and a task per node, put together and taken apart.

Rule: every task ends with the run. Nodes are reached in a bounded number of connections; the storer
outlives the pullers, so that what was handed to it is stored.

Does not parse arguments (`verbs.pull`).
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from leased.chain.certificate import Role
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import ManifestGone
from leased.collector.archive.parts import part_of
from leased.collector.archive.sharing import BEAT_S, Sharing
from leased.collector.archive.storing import Storer
from leased.collector.case import Case
from leased.collector.config import PullConfig
from leased.collector.enrolment import enrol, read_file
from leased.collector.heads import Heads, SharedHeads, open_heads
from leased.collector.own_clock import OwnClock
from leased.collector.own_door import HostClock, OwnDoor, read_listening
from leased.collector.puller import Puller
from leased.collector.reconcile import Verdict
from leased.collector.running import Outage, Run
from leased.collector.transport import Credentials, parse_url, read_pem
from leased.collector.witness import Now, Witness, open_witness, os_entropy
from leased.terms.errors import (
    NO_ROOM,
    CallerError,
    ConfigError,
    LeasedError,
    StateError,
    disk_error,
)
from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_S, Moment

Tell = Callable[[str, str], None]
Upkeep = Callable[[Archive, Callable[[Callable[[], Any]], Any]], str]
"""What is to be done every hour with an archive, and how to have the thread that has it do a short
piece of work; returns what to tell, or "". Raises LeasedError."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
UPKEEP_S: Final = 3600
_START: Final = ""
"""Who lacks room before there is anybody who pulls."""


class Reached(msgspec.Struct, frozen=True):
    """How one node's turn ended."""

    name: str
    log_id: str
    verdict: str
    size: int
    cosigned_size: int
    unreachable: str = ""


def clock(boot_id_path: Path = BOOT_ID) -> Callable[[], Moment]:
    """Both clocks of this host. Where a unit hides the boot's id (ProcSubset=pid) every run counts
    as a boot of its own."""
    try:
        boot = boot_id_path.read_text("ascii").strip().replace("-", "")
        boot_id = BootId(bytes.fromhex(boot))
    except OSError:
        boot_id = BootId(os_entropy())
    return lambda: Moment(boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


async def pull(
    directory: Path,
    config: PullConfig,
    *,
    once: bool,
    only: Sequence[str],
    tell: Tell,
    alarm: Tell | None = None,
    upkeep: Upkeep | None = None,
    now: Now | None = None,
) -> list[Reached]:
    """Pull every node; `once` to the end of each log, else until cancelled. `only` names nodes;
    `alarm` (default: `tell`) is told what an operator has to see to; `upkeep` is asked every hour,
    in a thread of its own, and told what it did; `now` are both clocks (default: of this host).
    Raises ConfigError, StateError, ChainError."""
    now = now or clock()
    fleet_name, collector = whose(Path(config.certificate))
    files = (config.ca, config.certificate, config.key)
    credentials = Credentials(*files, lambda text: tell("pull", text))
    listening = read_listening(config.own_log, (config.certificate, config.key, config.ca))
    name = config.name or collector
    room = Outage("disk", tell, alarm=alarm, again="has room again")
    with contextlib.ExitStack() as opened:
        while True:
            try:
                stores = _open(opened, directory, config, name, tell, now)
                break
            except (OSError, StateError) as error:
                if once or disk_error(error) not in NO_ROOM:
                    raise
                room.begin(f"{error}; nothing is pulled until there is room", _START)
                opened.close()
                await trio.sleep(BEAT_S)
        room.leave(_START)
        run = _make_run(stores, config, credentials, room, fleet=fleet_name, now=now, tell=tell)
        if once:
            return await _run(run, stores, only=only, once=True)
        door = None
        if listening.on:
            door = OwnDoor(stores.witness, run.storer, listening, HostClock(now), collector)
            tell("own log", f"other collectors may connect to port {door.ports[0]}")
        return await _run(run, stores, only=only, door=door, upkeep=upkeep)


class _Stores(msgspec.Struct, frozen=True):
    """What is written to during a run."""

    archive: Archive
    heads: Heads | SharedHeads
    witness: Witness
    sharing: Sharing


def _open(
    opened: contextlib.ExitStack,
    directory: Path,
    config: PullConfig,
    name: str,
    tell: Tell,
    now: Now,
) -> _Stores:
    """Open what is written to; last the own log, which has each opening on record. Raises OSError,
    StateError, ChainError."""
    archive = opened.enter_context(contextlib.closing(Archive(directory, name=name)))
    for node in config.nodes:
        pinned = read_file(Path(node.enrolment))
        told = enrol(archive.manifest, node.name, node.url, pinned, time.time_ns())
        if told:
            tell(node.name, told)
    heads = opened.enter_context(contextlib.closing(open_heads(archive)))
    witness = open_witness(archive.own, name, now=now, entropy=os_entropy)
    opened.enter_context(contextlib.closing(witness))
    return _Stores(archive, heads, witness, Sharing(archive, name, os_entropy()))


def _make_run(
    stores: _Stores,
    config: PullConfig,
    credentials: Credentials,
    room: Outage,
    *,
    fleet: str,
    now: Now,
    tell: Tell,
) -> Run:
    archive, own_clock = stores.archive, OwnClock(now)
    storer = Storer(archive, lambda text: tell("archive", text))
    return Run(
        config,
        storer,
        stores.witness,
        Case(archive, storer, own_clock.wall_ns, config.timeout_ns / NS_PER_S),
        credentials,
        fleet=fleet,
        nodes=len(archive.manifest.nodes()),
        heads=stores.heads,
        clock=own_clock,
        jitter=random.SystemRandom().random,
        tell=tell,
        room=room,
    )


async def _run(
    run: Run,
    stores: _Stores,
    *,
    only: Sequence[str],
    once: bool = False,
    door: OwnDoor | None = None,
    upkeep: Upkeep | None = None,
) -> list[Reached]:
    archive, sharing, storer = stores.archive, stores.sharing, run.storer
    followed: dict[tuple[str, str, str], _Followed] = {}
    async with trio.open_nursery() as outer:
        outer.start_soon(storer.run)
        if upkeep is not None:
            outer.start_soon(_keep_up, run, archive, sharing, upkeep)
        if door is not None:
            outer.start_soon(door.run)
        try:
            async with trio.open_nursery() as inner:

                def begin(one: _Followed) -> None:
                    inner.start_soon(one.run, _one_turn if once else Puller.run)

                while True:
                    if told := run.clock.look_again():
                        run.tell("clock", told)
                    if door is not None and (told := door.look_again()):
                        run.tell("own log", told)
                    try:
                        await _deal(run, archive, sharing, followed, only, begin)
                        run.archive.end()
                    except ManifestGone as error:
                        run.archive.begin(str(error))
                    if once:
                        break
                    # Who is enrolled, moved or forgotten while this runs needs no restart.
                    await trio.sleep(BEAT_S)
        finally:
            with trio.CancelScope(shield=True), contextlib.suppress(ManifestGone):
                await storer.call(sharing.leave)
        outer.cancel_scope.cancel()
    return [_reached(one.puller) for one in followed.values()]


async def _deal(
    run: Run,
    archive: Archive,
    sharing: Sharing,
    followed: dict[tuple[str, str, str], _Followed],
    only: Sequence[str],
    begin: Callable[[_Followed], None],
) -> None:
    """End who is not this collector's any more, and begin who is from now on. Raises ManifestGone,
    SegmentDamaged, StateError."""
    storer = run.storer
    surplus = await storer.call(sharing.beat)
    nodes = await storer.call(archive.manifest.nodes)
    await _end(followed, nodes, sharing.parts)
    await storer.call(lambda: sharing.give_back(surplus))
    await storer.call(run.heads.refresh)
    for node in nodes:
        if node not in followed and (not only or node[0] in only):
            puller = await _puller(run, *node)
            if part_of(puller.entry.node) in sharing.parts:
                followed[node] = _Followed(puller)
                begin(followed[node])


async def _keep_up(run: Run, archive: Archive, sharing: Sharing, upkeep: Upkeep) -> None:
    """What has time, now and then, and as soon as parts were taken over: their collector may have
    died at it."""

    def do(work: Callable[[], Any]) -> Any:
        return trio.from_thread.run(run.storer.call, work)

    tell = run.tell
    while True:
        parts = sharing.parts
        try:
            told = await trio.to_thread.run_sync(lambda: upkeep(archive, do))
            if told:
                tell("archive", told)
        except (LeasedError, OSError, sqlite3.Error) as error:
            tell("archive", f"nothing was removed: {error}")
        with trio.move_on_after(UPKEEP_S):
            while sharing.parts <= parts:
                await trio.sleep(BEAT_S)


class _Followed:
    """A puller, and how to end it."""

    def __init__(self, puller: Puller) -> None:
        self.puller = puller
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, follow: Callable[[Puller], Awaitable[None]]) -> None:
        """Until it ends, or is ended."""
        try:
            with self._scope:
                await follow(self.puller)
        finally:
            self._ended.set()

    async def end(self) -> None:
        """End it, and see it ended."""
        self._scope.cancel()
        await self._ended.wait()


async def _end(
    followed: dict[tuple[str, str, str], _Followed],
    nodes: list[tuple[str, str, str]],
    parts: frozenset[int],
) -> None:
    """End the pullers of nodes that are not this collector's any more, or have another address:
    two of one log would have each other's cursor moved."""
    for node, one in list(followed.items()):
        if node not in nodes or part_of(one.puller.entry.node) not in parts:
            await one.end()
            del followed[node]


async def _puller(run: Run, name: str, url: str, log_id: str) -> Puller:
    entry = await run.storer.read(log_id)
    assert entry is not None, "a foreign key"
    entry = msgspec.structs.replace(entry, name=name)
    return Puller(run, entry, parse_url(url, entry.node))


async def _one_turn(puller: Puller) -> None:
    """To the end of the log, in as many turns as that takes."""
    while True:
        await puller.turn(standing=False)
        if puller.unreachable or puller.kept_from or puller.verdict is not Verdict.BEHIND:
            return


def _reached(puller: Puller) -> Reached:
    entry = puller.entry
    return Reached(
        puller.name,
        puller.log_id,
        str(puller.verdict),
        entry.head.size,
        entry.cosigned_size,
        puller.unreachable or puller.kept_from,
    )


def name_of(config: PullConfig) -> str:
    """As which of those that pull it is known to nodes. Raises ConfigError."""
    return config.name or whose(Path(config.certificate))[1]


def whose(path: Path) -> tuple[str, str]:
    """The fleet and the name that the collector's certificate says. Raises ConfigError."""
    try:
        identity = read_pem(path).identity
    except OSError as error:
        raise ConfigError(
            f"pull.certificate: {path}: {error.strerror}; put there what `leasectl pki collector` "
            "made, for the user that pulls to read"
        ) from error
    except (CallerError, ValueError) as error:
        raise ConfigError(f"pull.certificate: {path}: {error}") from error
    if identity.role is not Role.COLLECTOR:
        raise ConfigError(f"pull.certificate: {path} is of {identity.uri()}, not of a collector")
    return identity.fleet, identity.name
