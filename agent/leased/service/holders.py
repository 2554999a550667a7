# SPDX-License-Identifier: Apache-2.0
"""Holders: the processes that leases are bound to, watched by pidfd; and cgroups, watched for the
moment in which the last process has left. A leaf that the holder's processes have left ends its
lease; so does an owner's room in it (`hardware.leaves`), without whom the lease is lost.

Rule: identity is the pidfd, never the number. A connection enrols its peer once; every lease bound
to it shares that pidfd. When it becomes readable the process is gone, and each of its leases is
told so by `HolderGone`. At a lease's end the reaper kills all of them, and they die one after the
other: whoever is found gone then is the cut's doing, of which the ticker hears when it is over, and
nobody works in the way of those who still die.

cgroup.events is always readable to plain EPOLLIN (kernfs), so it is watched for EPOLLPRI in an
epoll of our own, and trio waits for that epoll. Does not kill anyone.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator

import trio

from leased.hardware.leaves import owners
from leased.ports import Submit
from leased.service.api.peers import has_exited
from leased.service.evidence import NO_COMMAND
from leased.terms.command import HolderGone
from leased.terms.identity import LeaseId


class Holders:
    """Who is bound to what."""

    def __init__(
        self,
        submit: Submit,
        lose: Callable[[LeaseId], None],
        is_due: Callable[[LeaseId], bool] = lambda _lease_id: False,
    ) -> None:
        """`is_due`: whether the lease's time is over, and only its end not sealed yet."""
        self._submit = submit
        self._lose = lose
        self._is_due = is_due
        self._epoll = select.epoll()
        self._pidfds: dict[int, int] = {}
        self._references: dict[int, int] = {}
        self._leases: dict[int, set[LeaseId]] = {}
        self._bound: dict[LeaseId, int] = {}
        self._expected: dict[LeaseId, int] = {}
        self._leaves: dict[int, LeaseId] = {}
        self._leaf_of: dict[LeaseId, int] = {}
        self._rooms: dict[int, LeaseId] = {}
        self._in_turn = False
        self._alive: set[int] = set()

    # -- processes ---------------------------------------------------------------------------------

    def enrol(self, pid: int, pidfd: int) -> bool:
        """A connection vouches for `pid`; the pidfd is duplicated. False: the number is still that
        of a process that has ended and whose connection somebody has, perhaps with a request that
        waits; until that is gone, nobody is known by it."""
        if pid in self._pidfds and has_exited(self._pidfds[pid]):
            self._lose_process(pid)
        if pid not in self._pidfds:
            if self._references.get(pid, 0) > 0:
                return False
            self._pidfds[pid] = os.dup(pidfd)
            self._leases[pid] = set()
            self._epoll.register(self._pidfds[pid], select.EPOLLIN)
        self._references[pid] = self._references.get(pid, 0) + 1
        return True

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Requests are read: within this nothing waits, and a process is looked at once for all
        that it asks."""
        self._in_turn = True
        try:
            yield
        finally:
            self._in_turn = False
            self._alive.clear()

    def lives(self, pid: int) -> bool:
        """Whether an enrolled process has not ended."""
        if pid in self._alive:
            return True
        if pid not in self._pidfds or has_exited(self._pidfds[pid]):
            return False
        if self._in_turn:
            self._alive.add(pid)
        return True

    def dismiss(self, pid: int) -> None:
        """The connection is gone; the process stays watched while a lease is bound to it."""
        self._references[pid] -= 1
        self._retire(pid)

    def expect(self, lease_id: LeaseId, pid: int) -> None:
        """The lease is being made ready for it. Until it is bound to it or forgotten, the process
        stays watched whatever becomes of the connection: who hangs up meanwhile lives, and must not
        be cut as the holder of what he never had. Idempotent."""
        if lease_id not in self._expected and pid in self._pidfds:
            self._expected[lease_id] = pid
            self._references[pid] += 1

    def pidfd_for(self, pid: int) -> int | None:
        """A duplicate of the pidfd of an enrolled process for its lease's custody; None for pid 0
        or a stranger."""
        watched = self._pidfds.get(pid)
        return os.dup(watched) if watched is not None else None

    def bind(self, lease_id: LeaseId, pid: int) -> None:
        """The lease ends when the process does."""
        if self._expected.pop(lease_id, None) is not None:
            self._references[pid] -= 1
        if pid in self._pidfds:
            self._bound[lease_id] = pid
            self._leases[pid].add(lease_id)
        elif pid > 0:
            # It was gone before the grant was complete.
            self._retire(pid)
            self._submit(HolderGone(NO_COMMAND, lease_id))

    def rebind(self, lease_id: LeaseId, pid: int, pidfd: int | None) -> None:
        """A lease of an earlier run of the agent: its holder's pidfd comes from the reaper. Takes
        `pidfd` over."""
        if pidfd is None:
            self._submit(HolderGone(NO_COMMAND, lease_id))
            return
        enrolled = self.enrol(pid, pidfd)
        os.close(pidfd)
        self.bind(lease_id, pid)
        if enrolled:
            self.dismiss(pid)

    def _retire(self, pid: int) -> None:
        if self._references.get(pid, 0) <= 0 and not self._leases.get(pid):
            self._references.pop(pid, None)
            self._leases.pop(pid, None)
            pidfd = self._pidfds.pop(pid, None)
            if pidfd is not None:
                self._epoll.unregister(pidfd)
                os.close(pidfd)

    # -- cgroups -----------------------------------------------------------------------------------

    def watch_leaf(self, lease_id: LeaseId, cgroup: str) -> None:
        """A process has joined the leaf: from here on, an empty leaf ends the lease."""
        if lease_id in self._leaf_of:
            return
        fd = self._watch(cgroup)
        self._leaves[fd] = lease_id
        self._leaf_of[lease_id] = fd

    def watch_owners(self, lease_id: LeaseId, cgroup: str) -> None:
        """What the lease comes with is held by processes of ours in rooms of its leaf: from here
        on, an empty room is the loss of the lease."""
        for room in owners(cgroup):
            self._rooms[self._watch(room)] = lease_id

    def _watch(self, cgroup: str) -> int:
        fd = os.open(os.path.join(cgroup, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        self._epoll.register(fd, select.EPOLLPRI)
        return fd

    def forget(self, lease_id: LeaseId) -> None:
        """The lease has ended, or will not be: stop watching for it. Idempotent."""
        expected = self._expected.pop(lease_id, None)
        if expected is not None:
            self.dismiss(expected)
        pid = self._bound.pop(lease_id, None)
        if pid is not None:
            self._leases[pid].discard(lease_id)
            self._retire(pid)
        fds = [fd for fd, owned in self._rooms.items() if owned == lease_id] if self._rooms else []
        leaf = self._leaf_of.pop(lease_id, None)
        for fd in fds if leaf is None else [leaf, *fds]:
            self._leaves.pop(fd, None)
            self._rooms.pop(fd, None)
            self._epoll.unregister(fd)
            os.close(fd)

    # -- watching ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Report every end until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            by_pidfd = {pidfd: pid for pid, pidfd in self._pidfds.items()}
            for fd, _ in self._epoll.poll(0):
                if fd in self._leaves or fd in self._rooms:
                    self._look_at(fd)
                elif self._pidfds.get(by_pidfd.get(fd, 0)) == fd:
                    # Still watched: the room that was looked at just now may have ended its lease.
                    self._lose_process(by_pidfd[fd])

    def _look_at(self, fd: int) -> None:
        # Reading from 0 re-arms EPOLLPRI; an unchanged "populated 1" is only the first, spurious
        # wake-up.
        try:
            text = os.pread(fd, 256, 0)
        except OSError:  # ENODEV: only an empty leaf can be removed
            text = b"populated 0"
        owned = fd in self._rooms
        lease_id = (self._rooms if owned else self._leaves)[fd]
        if b"populated 0" not in text or self._is_due(lease_id):
            return
        self.forget(lease_id)
        if owned:
            self._lose(lease_id)
        else:
            self._submit(HolderGone(NO_COMMAND, lease_id, left=True))

    def _lose_process(self, pid: int) -> None:
        lost = sorted(self._leases[pid])
        self._epoll.unregister(self._pidfds[pid])
        os.close(self._pidfds.pop(pid))
        self._leases[pid] = set()
        for lease_id in lost:
            self._bound.pop(lease_id, None)
            if not self._is_due(lease_id):
                self._submit(HolderGone(NO_COMMAND, lease_id))
        if self._references.get(pid, 0) <= 0:
            self._references.pop(pid, None)
            self._leases.pop(pid, None)
