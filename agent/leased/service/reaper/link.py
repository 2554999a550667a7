# SPDX-License-Identifier: Apache-2.0
"""The link to the reaper: the Reaper port over its socket.

Rule: no call waits for ever (`exchange`): a caller whose time is up gets DeviceError. After each
reconnection everything the agent holds is armed again before anything else, so that a reaper that
lost its memory is told. A renewal takes no call: the deadlines lie in memory shared with the reaper
(decisions/0019). Descriptors given to `arm_many` stay the caller's and must stay open until
`disarm_many` has returned.

Does not decide what a failure means, and does not supervise the reaper: `restart` is called when
nobody listens.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import trio

from leased.hardware.descriptors import close_all
from leased.ports import Arming
from leased.service.reaper import protocol
from leased.service.reaper.board import Board, Hold, note_asked
from leased.service.reaper.exchange import ARMS_PER_PACKET, Exchange, Page
from leased.service.reaper.tickets import Chunk, Repeat, Ticket, as_error
from leased.terms.errors import DeviceError, InvalidParameter
from leased.terms.identity import ID_BYTES, LeaseId
from leased.terms.teardown import CutReport

ANSWER_S: Final = 5.0
CUT_S: Final = 10.0


class RosterEntry(NamedTuple):
    """A lease the reaper holds, found at the agent's start. The descriptors are the receiver's to
    keep and close."""

    lease_id: LeaseId
    generation: int
    deadline_ns: int
    cgroup: str
    fds: tuple[int, ...]
    pidfd: int | None
    pid: int
    memfds_missing: int
    cut: CutReport | None


class ReaperLink:
    """The reaper, as the agent reaches it. `run` must be running for any call to be answered."""

    def __init__(
        self,
        socket_path: Path,
        *,
        restart: Callable[[], Awaitable[object]] | None = None,
        lost: Callable[[LeaseId, int], None] | None = None,
        cut: Callable[[], None] = lambda: None,
        answer_s: float = ANSWER_S,
        cut_s: float = CUT_S,
    ) -> None:
        """`restart` starts a reaper when nobody listens; `lost` is told (lease, errno) of a lease
        that could not be armed again after a reconnection and is therefore not enforced any
        more; `cut` is called when the reaper has cut what nobody asked it to cut yet."""
        self._lost = lost
        self._cut = cut
        self._answer_s = answer_s
        self._cut_s = cut_s
        self._exchange = Exchange(socket_path, self, restart=restart, answer_s=answer_s)
        self._put = self._exchange.put
        self._reports: dict[LeaseId, list[Chunk]] = {}
        self._held: dict[LeaseId, Hold] = {}
        self._forgotten: set[LeaseId] = set()
        self._board: Board | None = None

    # -- the port ---------------------------------------------------------------------------------

    async def arm_many(self, leases: Sequence[Arming]) -> list[DeviceError | None]:
        """All or nothing for each lease."""
        ticket = self._ticket(len(leases), self._answer_s)
        asked = [Hold(a.lease.generation, a.lease.deadline_ns, *a[1:]) for a in leases]
        entries: list[bytes] = []
        fds: list[int] = []
        for at, held in enumerate(asked):
            own = held.passed
            try:
                entry = held.arm_entry(leases[at].lease.lease_id)
            except InvalidParameter as error:
                self._put_arms(entries, fds, ticket, at)
                ticket.answer(at, [DeviceError("arm", errno.E2BIG, str(error))])
                continue
            if len(entries) == ARMS_PER_PACKET or len(fds) + len(own) > protocol.FDS_MAX:
                self._put_arms(entries, fds, ticket, at)
            entries.append(entry)
            fds += own
        self._put_arms(entries, fds, ticket, len(asked))
        await ticket.wait()
        outcomes: list[DeviceError | None] = []
        for (lease, *_), held, answer in zip(leases, asked, ticket.answers, strict=True):
            if isinstance(answer, int) and answer >= 0:
                held.slot = answer
                self._hold(lease.lease_id, held)
                outcomes.append(None)
            else:
                outcomes.append(as_error("arm", answer))
        return outcomes

    async def renew_many(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool]:
        """(lease, generation, deadline_ns). DeviceError when the reaper did not answer: then
        nothing is known."""
        ticket, chunks = self._renewals(moves)
        for chunk in chunks:
            self._put(chunk)
        await ticket.wait()
        return self._renewed(moves, ticket)

    def renew_at_once(self, moves: Sequence[tuple[LeaseId, int, int]]) -> list[bool] | None:
        """As `renew_many`, on the board that the reaper shares, without asking it. None: not all of
        them could be moved there, and `renew_many` is to be asked for all."""
        board = self._board
        if board is None:
            return None
        return board.renew(moves, self._held)

    def renew_ahead(self, moves: Sequence[tuple[LeaseId, int, int]]) -> None:
        """Let the reaper know as soon as can be; `renew_many`, for the same moves, tells what it
        says."""
        _, chunks = self._renewals(moves)
        self._exchange.put_now(chunks)

    def _renewals(self, moves: Sequence[tuple[LeaseId, int, int]]) -> tuple[Ticket, list[Chunk]]:
        """What asks for these moves, in as many packets as it takes."""
        ticket = self._ticket(len(moves), self._answer_s)
        most = protocol.ENTRIES_MAX[protocol.RENEW]
        note_asked(moves, self._held)
        chunks = []
        for at in range(0, len(moves), most):
            part = moves[at : at + most]
            body = protocol.encode_renewals(part)
            chunks.append(Chunk(protocol.RENEW, body, len(part), ticket, at))
        return ticket, chunks

    def _renewed(self, moves: Sequence[tuple[LeaseId, int, int]], ticket: Ticket) -> list[bool]:
        held_of = self._held.get
        outcomes: list[bool] = []
        for (lease_id, generation, deadline_ns), answer in zip(moves, ticket.answers, strict=True):
            held = held_of(lease_id)
            # A later move of ours came first, on the board or ahead: the lease has that, no cut.
            overtaken = held is not None and held.overtook(generation, deadline_ns)
            if answer == 0 or (overtaken and answer == -errno.ESTALE):
                if answer == 0 and held is not None and generation > held.generation:
                    held.generation, held.deadline_ns = generation, deadline_ns
                    if self._board is not None and held.slot is None and held.all_open:
                        # The reaper held more than we knew, and would not say where.
                        self._put(self._arm_again(lease_id, held))
                outcomes.append(True)
            elif isinstance(answer, int):
                outcomes.append(False)
            else:
                raise as_error("renew", answer)
        return outcomes

    async def revoke_many(
        self, lease_ids: Sequence[LeaseId], *, spare: Collection[LeaseId] = ()
    ) -> list[CutReport | DeviceError]:
        """Cut now, or wait for the cut already begun. The holders of the leases in `spare` gave
        them back by themselves: their processes are left alive (what runs in the leaf cgroup is
        killed all the same)."""
        ticket = self._ticket(len(lease_ids), self._cut_s)
        for at, lease_id in enumerate(lease_ids):
            entry = protocol.encode_revoke(lease_id, spare_holder=lease_id in spare)
            chunk = Chunk(protocol.REVOKE, entry, 1, ticket, at)
            self._reports.setdefault(lease_id, []).append(chunk)
            self._put(chunk)
        try:
            await ticket.wait()
        finally:
            for lease_id in lease_ids:
                self._unawait(lease_id, ticket)
        return [
            answer if isinstance(answer, CutReport) else as_error("revoke", answer)
            for answer in ticket.answers
        ]

    async def disarm_many(self, lease_ids: Sequence[LeaseId]) -> None:
        """Forget. A reaper that cannot be reached is told at the next connection; nobody waits for
        that."""
        for lease_id in lease_ids:
            self._held.pop(lease_id, None)
        ticket = self._ticket(len(lease_ids), self._answer_s)
        most = protocol.ENTRIES_MAX[protocol.DISARM]
        for at in range(0, len(lease_ids), most):
            part = lease_ids[at : at + most]
            self._put(Chunk(protocol.DISARM, b"".join(part), len(part), ticket, at))
        try:
            await ticket.wait()
        except BaseException:
            self._forgotten.update(lease_ids)
            raise
        for lease_id, answer in zip(lease_ids, ticket.answers, strict=True):
            if answer != 0:
                self._forgotten.add(lease_id)

    # -- at the agent's start ---------------------------------------------------------------------

    async def roster(self) -> list[RosterEntry]:
        """Every lease the reaper holds, with duplicates of its descriptors. Called once, before
        anything is armed."""
        entries: list[RosterEntry] = []
        cursor = 0
        try:
            while True:
                ticket = self._ticket(1, self._answer_s)
                asked = protocol.LIST_ENTRY.pack(cursor, 1)
                self._put(Chunk(protocol.LIST, asked, 1, ticket))
                await ticket.wait()
                page = ticket.answers[0]
                if not isinstance(page, Page):
                    raise as_error("roster", page)
                entries.extend(self._take_page(page))
                cursor = page.cursor
                if cursor == 0:
                    return entries
        except BaseException:
            for entry in entries:
                close_all(entry.fds if entry.pidfd is None else (entry.pidfd, *entry.fds))
            raise

    async def ping(self) -> protocol.Pong:
        """What the reaper says of itself."""
        ticket = self._ticket(1, self._answer_s)
        self._put(Chunk(protocol.PING, b"", 1, ticket))
        await ticket.wait()
        answer = ticket.answers[0]
        if not isinstance(answer, protocol.Pong):
            raise as_error("ping", answer)
        return answer

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled. Reports started once the first one stands."""
        await self._exchange.run(task_status)

    @property
    def connected(self) -> bool:
        """Whether the reaper is reached now."""
        return self._exchange.connected

    # -- what the exchange asks of its owner ------------------------------------------------------

    def ask_again(self, unanswered: list[Chunk]) -> list[Chunk]:
        """First what must be true of the reaper, then what was not answered, in the order it was
        asked."""
        again = [Chunk(protocol.BOARD, b"", 1, Repeat(1, self._lent_board))]
        open_still = [item for item in self._held.items() if item[1].all_open]
        again += [self._arm_again(lease_id, held) for lease_id, held in open_still]
        self._forgotten.update(
            LeaseId(chunk.body[at : at + ID_BYTES])
            for chunk in unanswered
            if chunk.kind == protocol.DISARM and isinstance(chunk.ticket, Repeat)
            for at in range(0, len(chunk.body), ID_BYTES)
        )
        gone, self._forgotten = sorted(self._forgotten), set()
        most = protocol.ENTRIES_MAX[protocol.DISARM]
        for at in range(0, len(gone), most):
            part = gone[at : at + most]
            ticket = Repeat(len(part), lambda _answers: None)
            again.append(Chunk(protocol.DISARM, b"".join(part), len(part), ticket))
        again += [chunk for chunk in unanswered if not isinstance(chunk.ticket, Repeat)]
        # A REVOKE that was answered is asked again too, as long as its report has not come.
        asked = {id(chunk) for chunk in again}
        for waiters in self._reports.values():
            again += [chunk for chunk in waiters if id(chunk) not in asked]
        return again

    def lost_touch(self) -> None:
        """Until the next connection says where each lease is, nothing is moved on the board."""
        self._board = None
        for held in self._held.values():
            held.slot = None

    def reported(self, reports: Sequence[CutReport]) -> None:
        """Cuts have ended. Those that nobody asked for are told again when somebody does."""
        unasked = False
        for report in reports:
            waiters = self._reports.pop(report.lease_id, ())
            unasked = unasked or not waiters
            for chunk in waiters:
                chunk.ticket.answer(chunk.at, [report])
        if unasked:
            self._cut()

    def revoked(self, chunk: Chunk, status: int, boot_ns: int) -> None:
        """0: the report follows. A lease that neither we nor the reaper ever held has nothing to
        cut."""
        if status == 0:
            return
        lease_id = LeaseId(chunk.body[:ID_BYTES])
        if status == -errno.ENOENT and lease_id not in self._held:
            self.reported([CutReport(lease_id, boot_ns, by_reaper=False, clean=True, steps=())])
        else:
            self._unawait(lease_id, chunk.ticket)
            chunk.ticket.answer(chunk.at, [status])

    def waiting_tickets(self) -> list[Ticket]:
        """Who waits for a report."""
        return [chunk.ticket for waiters in self._reports.values() for chunk in waiters]

    # -- inside -----------------------------------------------------------------------------------

    def _arm_again(self, lease_id: LeaseId, held: Hold) -> Chunk:
        ticket = Repeat(1, partial(self._rearmed, lease_id))
        return Chunk(protocol.ARM, held.arm_entry(lease_id), 1, ticket, fds=held.passed)

    def _rearmed(self, lease_id: LeaseId, answers: list[object]) -> None:
        """ETIME and ESTALE say that the reaper knows better: it cuts already, or holds a later
        renewal."""
        status = answers[0]
        if not isinstance(status, int):
            return
        if status >= 0:
            held = self._held.get(lease_id)
            if held is not None:
                held.slot = status
        elif status not in (-errno.ETIME, -errno.ESTALE):
            self._held.pop(lease_id, None)
            if self._lost is not None:
                self._lost(lease_id, -status)

    def _lent_board(self, answers: list[object]) -> None:
        """The board's descriptor has come."""
        fds = answers[0]
        if isinstance(fds, tuple):  # not so: a reaper that has none
            self._board = Board.of(fds)

    def _ticket(self, size: int, seconds: float) -> Ticket:
        return Ticket(size, trio.current_time() + seconds)

    def _put_arms(self, entries: list[bytes], fds: list[int], ticket: Ticket, end: int) -> None:
        """Ask for what was gathered, the last of which was asked for before place `end`."""
        if entries:
            count = len(entries)
            body, own = b"".join(entries), tuple(fds)
            self._put(Chunk(protocol.ARM, body, count, ticket, end - count, own))
            entries.clear()
            fds.clear()

    def _hold(self, lease_id: LeaseId, held: Hold) -> None:
        """Remember a lease as armed; arming again adds to what was held, and takes no renewal back
        that was on the board before the answer came."""
        before = self._held.get(lease_id)
        if before is not None:
            if before.generation > held.generation:
                held.generation, held.deadline_ns = before.generation, before.deadline_ns
            held.asked = before.asked
            held.cgroup = held.cgroup or before.cgroup
            held.fds = tuple(dict.fromkeys((*before.fds, *held.fds)))
            held.pidfd = held.pidfd if held.pidfd is not None else before.pidfd
            held.objects = tuple(dict.fromkeys((*before.objects, *held.objects)))
        self._held[lease_id] = held

    def _unawait(self, lease_id: LeaseId, ticket: Ticket) -> None:
        waiters = self._reports.get(lease_id)
        if waiters is not None:
            waiters[:] = [chunk for chunk in waiters if chunk.ticket is not ticket]
            if not waiters:
                del self._reports[lease_id]

    def _take_page(self, page: Page) -> Iterator[RosterEntry]:
        at = 0
        for listed in page.listed:
            pidfd = page.fds[at] if listed.has_pidfd else None
            at += listed.has_pidfd
            memfds = page.fds[at : at + listed.memfds]
            at += listed.memfds
            if listed.cut is None:
                # The reaper knows the holder by pid and start time; the pidfd is the receiver's.
                held = Hold(listed.generation, listed.deadline_ns, listed.cgroup, memfds, None)
                held.objects, held.slot = listed.objects, listed.slot
                self._hold(listed.lease_id, held)
            yield RosterEntry(
                lease_id=listed.lease_id,
                generation=listed.generation,
                deadline_ns=listed.deadline_ns,
                cgroup=listed.cgroup,
                fds=memfds,
                pidfd=pidfd,
                pid=listed.pid,
                memfds_missing=listed.memfds_missing,
                cut=listed.cut,
            )
