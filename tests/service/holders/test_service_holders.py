# SPDX-License-Identifier: Apache-2.0
"""Who is bound to what: real children by their real pidfds, real leaves running empty."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio
import trio.testing

from leased.hardware.cgroup import find_mounts
from leased.hardware.leaves import inside, make_room, remove
from leased.service.holders import Holders
from leased.terms.command import Command, HolderGone
from leased.terms.identity import LeaseId
from tests.doubles.host import not_proven
from tests.doubles.serving import descriptors

A, B, C = (LeaseId(letter * 16) for letter in (b"a", b"b", b"c"))
WITHIN_S = 10


class Inbox:
    """What holders submit."""

    def __init__(self) -> None:
        self.gone: list[HolderGone] = []
        self.lost: list[LeaseId] = []
        self.due: set[LeaseId] = set()
        self._more = trio.Event()

    def lose(self, lease_id: LeaseId) -> None:
        """An owner has ended."""
        self.lost.append(lease_id)
        self._more.set()

    async def lost_one(self) -> LeaseId:
        """Whose owner has ended, when one has."""
        with trio.fail_after(WITHIN_S):
            while not self.lost:
                self._more = trio.Event()
                await self._more.wait()
        return self.lost[-1]

    def __call__(self, command: Command) -> None:
        assert isinstance(command, HolderGone)
        self.gone.append(command)
        self._more.set()

    async def next(self, count: int) -> list[LeaseId]:
        """The ids, when so many have come."""
        with trio.fail_after(WITHIN_S):
            while len(self.gone) < count:
                self._more = trio.Event()
                await self._more.wait()
        return [one.lease_id for one in self.gone]


@contextlib.contextmanager
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is told to end."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate()


@contextlib.asynccontextmanager
async def watching() -> AsyncIterator[tuple[Holders, Inbox]]:
    """Holders whose `run` runs."""
    inbox = Inbox()
    holders = Holders(inbox, inbox.lose, lambda lease_id: lease_id in inbox.due)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holders.run)
        await trio.testing.wait_all_tasks_blocked()
        yield holders, inbox
        nursery.cancel_scope.cancel()


def enrol(holders: Holders, process: subprocess.Popen[bytes]) -> None:
    """A connection of the process."""
    pidfd = os.pidfd_open(process.pid)
    holders.enrol(process.pid, pidfd)
    os.close(pidfd)


def test_a_process_is_looked_at_once_in_a_turn_and_anew_in_the_next() -> None:
    inbox = Inbox()
    holders = Holders(inbox, inbox.lose)
    with child() as process:
        enrol(holders, process)
        with holders.turn():
            assert holders.lives(process.pid)
            process.kill()
            process.wait()
            assert holders.lives(process.pid), "what is asked in one turn has one answer"
        assert not holders.lives(process.pid)
        with holders.turn():
            assert not holders.lives(process.pid)
    assert not holders.lives(os.getpid()), "nobody has vouched for it"


async def test_every_lease_of_a_process_ends_with_it() -> None:
    async with watching() as (holders, inbox):
        with child() as one, child() as other:
            enrol(holders, one)
            enrol(holders, other)
            for lease_id in (A, B):
                holders.bind(lease_id, one.pid)
            holders.bind(C, other.pid)
            one.communicate()
            assert await inbox.next(2) == [A, B]
            assert not any(command.left for command in inbox.gone)
            holders.forget(A)
            assert len(inbox.gone) == 2, "the other process lives"


async def test_a_process_is_watched_beyond_its_connection() -> None:
    async with watching() as (holders, inbox):
        with child() as one:
            enrol(holders, one)
            holders.bind(A, one.pid)
            holders.dismiss(one.pid)
            await trio.testing.wait_all_tasks_blocked()
            assert not inbox.gone
            one.communicate()
            assert await inbox.next(1) == [A]


async def test_a_process_gone_before_the_grant_was_complete_ends_the_lease() -> None:
    """Its connection may live on in a child that inherited the socket."""
    async with watching() as (holders, inbox):
        with child() as one:
            enrol(holders, one)
            one.communicate()
            with trio.fail_after(WITHIN_S):
                while holders.pidfd_for(one.pid) is not None:
                    await trio.lowlevel.checkpoint()
            holders.bind(A, one.pid)
            assert await inbox.next(1) == [A], "a lease was bound to a process that has gone"


async def test_who_hangs_up_before_the_grant_is_complete_is_its_holder() -> None:
    async with watching() as (holders, inbox):
        with child() as one:
            enrol(holders, one)
            for lease_id in (A, A, B):
                holders.expect(lease_id, one.pid)
            holders.dismiss(one.pid)
            holders.bind(A, one.pid)
            holders.forget(B)  # its grant failed
            await trio.testing.wait_all_tasks_blocked()
            assert not inbox.gone, "it lives, and would be killed as a holder that is lost"
            one.communicate()
            assert await inbox.next(1) == [A]
        holders.expect(B, one.pid)
        assert holders.pidfd_for(one.pid) is None
        pidfd = os.pidfd_open(os.getpid())
        assert holders.enrol(one.pid, pidfd), "its number may be another's"
        os.close(pidfd)


async def test_a_number_that_is_anothers_by_now_is_nobodys_while_the_first_is_there() -> None:
    """The first has ended, and a request of his may wait: what it is granted must not be bound to
    the second, who has his number."""
    inbox = Inbox()
    holders = Holders(inbox, inbox.lose)
    with child() as first, child() as second:
        number, pidfd = first.pid, os.pidfd_open(second.pid)
        enrol(holders, first)
        holders.bind(A, number)
        first.communicate()
        assert not holders.enrol(number, pidfd)
        assert [one.lease_id for one in inbox.gone] == [A]
        assert holders.pidfd_for(number) is None
        holders.bind(B, number)
        assert [one.lease_id for one in inbox.gone] == [A, B]
        holders.dismiss(number)
        assert holders.enrol(number, pidfd)
        os.close(pidfd)
        held = holders.pidfd_for(number)
        assert held is not None
        [pid] = re.findall(r"^Pid:\t(\d+)$", Path(f"/proc/self/fdinfo/{held}").read_text(), re.M)
        os.close(held)
        assert int(pid) == second.pid


async def test_a_stranger_is_gone_and_nobody_is_nobody() -> None:
    async with watching() as (holders, inbox):
        holders.bind(A, 0)
        holders.bind(B, -1)
        assert not inbox.gone
        holders.bind(C, 999_999_999)
        assert await inbox.next(1) == [C]


async def test_a_lease_of_an_earlier_run_is_watched_by_the_reapers_pidfd() -> None:
    async with watching() as (holders, inbox):
        with child() as one:
            holders.rebind(A, one.pid, os.pidfd_open(one.pid))
            holders.rebind(B, one.pid, os.pidfd_open(one.pid))
            holders.rebind(C, 4242, None)
            assert await inbox.next(1) == [C]
            one.communicate()
            assert sorted(await inbox.next(3)) == [A, B, C]


async def test_a_forgotten_lease_is_told_of_no_more() -> None:
    async with watching() as (holders, inbox):
        with child() as one:
            enrol(holders, one)
            holders.bind(A, one.pid)
            holders.forget(A)
            holders.forget(A)
            one.communicate()
            await trio.testing.wait_all_tasks_blocked()
            assert not inbox.gone


async def test_no_descriptor_is_left_over() -> None:
    async with watching() as (holders, inbox):
        before = descriptors()
        for number in range(12):
            with child() as one:
                enrol(holders, one)
                custody = holders.pidfd_for(one.pid)
                assert custody is not None
                os.close(custody)
                holders.bind(A, one.pid)
                if number % 3 == 0:
                    holders.forget(A)
                if number % 2:
                    holders.dismiss(one.pid)
                one.communicate()
                await trio.testing.wait_all_tasks_blocked(0.01)
                if number % 2 == 0:
                    holders.dismiss(one.pid)
                holders.forget(A)
        assert descriptors() == before


# ---- leaves --------------------------------------------------------------------------------------


@contextlib.contextmanager
def leaf(name: str) -> Iterator[Path]:
    """A real cgroup of our own."""
    unified, _ = find_mounts(Path("/proc/self/mountinfo").read_text("utf-8"))
    if os.geteuid() != 0 or unified is None or not os.access(unified, os.W_OK):
        not_proven("a leaf that runs empty", "needs root and a writable cgroup2")
    path = Path(unified) / f"leased-holders-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()


async def test_a_leaf_that_runs_empty_ends_its_lease() -> None:
    async with watching() as (holders, inbox):
        with leaf("empty") as path, child() as one, child() as other:
            for process in (one, other):
                (path / "cgroup.procs").write_text(str(process.pid))
            holders.watch_leaf(A, str(path))
            holders.watch_leaf(A, str(path))
            await trio.testing.wait_all_tasks_blocked(0.01)
            one.communicate()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not inbox.gone, "one is still in"
            other.communicate()
            assert await inbox.next(1) == [A]
            assert inbox.gone[0].left, "whoever leaves the leaf has given the lease back"


async def test_a_leaf_that_was_empty_already_ends_its_lease() -> None:
    async with watching() as (holders, inbox):
        with leaf("vacant") as path:
            holders.watch_leaf(A, str(path))
            assert await inbox.next(1) == [A]


async def test_a_leaf_that_somebody_removed_ends_its_lease_and_not_the_agent() -> None:
    async with watching() as (holders, inbox):
        with leaf("removed") as path, child() as one:
            (path / "cgroup.procs").write_text(str(one.pid))
            holders.watch_leaf(A, str(path))
            await trio.testing.wait_all_tasks_blocked(0.01)
            with open(path / "cgroup.events", "rb", buffering=0) as events, select.epoll() as told:
                told.register(events, select.EPOLLPRI)
                told.poll(WITHIN_S)
                events.read()
                one.communicate()
                assert told.poll(WITHIN_S), "holders have been told too, and have not looked yet"
            path.rmdir()
            assert await inbox.next(1) == [A]


# ---- owners --------------------------------------------------------------------------------------


async def test_an_owner_that_ends_loses_its_lease_and_the_leaf_still_tells_of_its_holder() -> None:
    """Whoever is in the leaf beside an owner is in a room of its own."""
    async with watching() as (holders, inbox):
        with leaf("owned") as path, child() as owner, child() as holder:
            room = Path(make_room(str(path), "rdma-0000000000000001"))
            try:
                (room / "cgroup.procs").write_text(str(owner.pid))
                (Path(inside(str(path))) / "cgroup.procs").write_text(str(holder.pid))
                holders.watch_owners(A, str(path))
                holders.watch_leaf(B, inside(str(path)))
                holders.watch_owners(C, str(path))
                holders.forget(C)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not inbox.gone and not inbox.lost
                holder.communicate()
                assert await inbox.next(1) == [B]
                assert inbox.gone[0].left and not inbox.lost, "the owner lives"
                owner.communicate()
                assert await inbox.lost_one() == A
                assert inbox.lost == [A], "C was forgotten"
            finally:
                remove(str(path))
                path.mkdir()


async def test_an_owner_that_had_ended_before_anybody_watched_loses_its_lease() -> None:
    async with watching() as (holders, inbox):
        with leaf("ownerless") as path:
            make_room(str(path), "rdma-0000000000000001")
            try:
                holders.watch_owners(A, str(path))
                assert await inbox.lost_one() == A
            finally:
                remove(str(path))
                path.mkdir()


async def test_an_owner_and_a_holder_that_end_together_end_the_lease_and_not_the_agent() -> None:
    """A cut kills both, and closes the holder's connection: one look finds both gone."""
    async with watching() as (holders, inbox):
        with leaf("both") as path, child() as owner, child() as holder:
            room = Path(make_room(str(path), "rdma-0000000000000001"))
            try:
                (room / "cgroup.procs").write_text(str(owner.pid))
                enrol(holders, holder)
                holders.bind(A, holder.pid)
                holders.dismiss(holder.pid)
                holders.watch_owners(A, str(path))
                await trio.testing.wait_all_tasks_blocked(0.01)
                path_of_events = room / "cgroup.events"
                with open(path_of_events, "rb", buffering=0) as events, select.epoll() as told:
                    told.register(events, select.EPOLLPRI)
                    told.poll(WITHIN_S)
                    events.read()
                    owner.communicate()
                    assert told.poll(WITHIN_S), "the room has told holders first"
                holder.communicate()
                assert await inbox.lost_one() == A
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert inbox.lost == [A] and not inbox.gone, "its end was told of already"
            finally:
                remove(str(path))
                path.mkdir()


async def test_whom_a_cut_ends_one_after_the_other_is_nobodys_loss_and_no_release() -> None:
    """At its end a lease is the reaper's: who works then is in the way of those who still die."""
    async with watching() as (holders, inbox):
        with leaf("due") as path, child() as owner, child() as holder, child() as bound:
            room = Path(make_room(str(path), "rdma-0000000000000001"))
            try:
                (room / "cgroup.procs").write_text(str(owner.pid))
                (Path(inside(str(path))) / "cgroup.procs").write_text(str(holder.pid))
                enrol(holders, bound)
                holders.bind(A, bound.pid)
                holders.bind(B, bound.pid)
                holders.watch_owners(A, str(path))
                holders.watch_leaf(A, str(path))
                await trio.testing.wait_all_tasks_blocked(0.01)
                inbox.due.add(A)
                for process in (owner, holder, bound):
                    process.communicate()
                assert await inbox.next(1) == [B], "of whom time is not over"
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(inbox.gone) == 1 and not inbox.lost
                holders.forget(A)
            finally:
                remove(str(path))
                path.mkdir()
