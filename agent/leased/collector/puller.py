# SPDX-License-Identifier: Apache-2.0
"""The puller: one task per node, which asks, has checked, has stored, and cosigns.

Rule: verify, persist, then cosign, then acknowledge; a crash between any two is asked again from
the stored cursor. How many connections there are, how many pages are in memory, and how many are
being checked at once is bounded for the whole fleet; every wait has a deadline; who fails waits
longer each time, by a random share of it, and so does who finds the disk full. A sticky verdict
ends the pulling of that log until it is resolved.

Does not judge (`ingest`, `reconcile`) and writes nothing by itself (`storing`, `witness`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import trio

from leased.chain.certificate import Role
from leased.collector.archive.archive import CursorMoved, LogEntry, Page
from leased.collector.archive.manifest import ManifestGone
from leased.collector.asking import SlowDown, acknowledge, ask_page
from leased.collector.gossip import PeerHead, answered, heads_in, hushed, judge_heads
from leased.collector.ingest import State, Taken, decode_state, encode_state, noted, take_page
from leased.collector.own_clock import SET_NS
from leased.collector.reconcile import (
    Finding,
    Problem,
    Verdict,
    judge_problem,
    judge_refusal,
    judge_silence,
)
from leased.collector.running import Run
from leased.collector.transport import Connection, Endpoint, Unreachable, connect
from leased.terms.errors import NO_ROOM, ChainError, StateError, disk_error
from leased.terms.moment import NS_PER_S

INLINE_BYTES_MAX: Final = 16 * 1024
"""A page so small is checked quicker than handed to a thread: a third of a millisecond."""

TURN_PAGES_MAX: Final = 64
"""A node that takes turns gives its place up after so many pages: 256 MiB."""


class Puller:
    """One node's log."""

    def __init__(self, run: Run, entry: LogEntry, endpoint: Endpoint) -> None:
        self._run = run
        self._endpoint = endpoint
        self.name = entry.name
        self.log_id = entry.log_id
        self.entry = entry
        self.state: State = decode_state(entry.state)
        self.unreachable = ""
        self.kept_from = ""
        """What was pulled could not be stored: why the archive could not be reached."""
        self._is_peer = endpoint.role is Role.COLLECTOR
        if self._is_peer:
            run.collectors.add(self.state.pinned.log_id)
        self._failures = self._slow_s = 0
        self._set_ns = run.clock.set_ns()
        self._cosigned_s = -math.inf
        self._adrift = False

    @property
    def verdict(self) -> Verdict:
        """Of the log, as it stands in the manifest."""
        return Verdict(self.entry.verdict)

    async def _set(self, **fields: Any) -> None:
        """Say this of the log, in the manifest and here. Raises CursorMoved."""
        await self._run.storer.set(self.log_id, self.entry.head, fields)
        self.entry = msgspec.structs.replace(self.entry, **(fields | {"state": b""}))

    async def run(self) -> None:
        """Follow the log until cancelled."""
        room = self._run.room
        try:
            while True:
                try:
                    await self.turn(standing=self._run.standing)
                    room.leave(self.name)
                except (OSError, StateError) as error:
                    self._wait_for_room(error)
                await trio.sleep(self._delay_s())
        finally:
            room.leave(self.name)

    def _wait_for_room(self, error: OSError | StateError) -> None:
        """What found no room was not stored, and so not cosigned, and is asked for again. Raises
        whatever is not that; what failed in the own log, half written, is for a restart to say."""
        if disk_error(error) not in NO_ROOM or self._run.witness.failed:
            raise error
        self._failures += 1
        self._adrift = True
        why = f"{error}; nothing more is pulled or acknowledged until there is room"
        self._run.room.begin(why, self.name)

    async def turn(self, *, standing: bool) -> None:
        """One connection: to the end of the log, and where it is `standing`, on from there."""
        try:
            if self._adrift:
                await self._reload()
                self._adrift = False
                self._run.archive.end()
            if self.verdict.sticky:
                await self._look_for_resolution()
                return
            await self._reach(standing=standing)
            await self._note_silence()
        except CursorMoved as error:
            self._run.tell(self.name, str(error))
            self._adrift = True
        except ManifestGone as error:
            # Whether the last page counts is known when the cursor can be read again.
            self._failures += 1
            self._adrift, self.kept_from = True, str(error)
            self._run.archive.begin(str(error))

    async def _reach(self, *, standing: bool) -> None:
        try:
            async with self._run.places:
                await self._converse(standing=standing)
        except Unreachable as error:
            self._failures += 1
            self._slow_s = error.seconds if isinstance(error, SlowDown) else 0
            if str(error) != self.unreachable:
                self.unreachable = str(error)
                self._run.tell(self.name, f"not reached: {error}")

    async def _converse(self, *, standing: bool) -> None:
        config = self._run.config
        timeout_s = config.timeout_ns / NS_PER_S
        try:
            with trio.fail_after(timeout_s):
                context = self._run.credentials.context
                connection = await connect(self._endpoint, context, self._run.fleet)
        except trio.TooSlowError as error:
            raise Unreachable(f"{self._endpoint.host}: no handshake in {timeout_s:g} s") from error
        try:
            pages, wait_ms = 0, 0
            while standing or pages < TURN_PAGES_MAX:
                fresh = await self._pull(connection, wait_ms)
                pages += 1
                if self.verdict.sticky or not connection.reusable:
                    return
                if fresh:
                    await self._cosign(connection, at_once=not standing)
                    self._run.room.end(self.name)
                    if not standing or self.verdict.sticky or not connection.reusable:
                        return
                    # What comes within the pace comes together: one file and one commit.
                    await trio.sleep(config.pace_ns / NS_PER_S)
                wait_ms = config.wait_ns // 1_000_000 if fresh else 0
        finally:
            await connection.aclose()

    async def _pull(self, connection: Connection, wait_ms: int) -> bool:
        """One page, from the question to the disk; whether the log ends there."""
        run, config = self._run, self._run.config
        reading = trio.CancelScope()
        try:
            known = await self._heads()
            with reading:
                answer = await ask_page(
                    connection,
                    self.log_id,
                    self.state.head,
                    bytes_max=config.page_bytes,
                    wait_ms=wait_ms,
                    timeout_s=config.timeout_ns / NS_PER_S,
                    before_body=lambda: run.rooms.take(reading),
                )
                run.rooms.read(reading)
            if reading.cancelled_caught:
                raise Unreachable("its page came slowly, and others waited for the room")
            if isinstance(answer, Problem):
                await self._found(judge_problem(self.state, answer), connection, answer)
                return True
            taken = await self._check(answer, connection)
            if taken is not None:
                await self._store(taken)
                await self._compare(known, taken, connection)
            return taken is None or taken.fresh
        finally:
            run.rooms.leave(reading)

    async def _check(self, page: bytes, connection: Connection) -> Taken | None:
        try:
            now_ns = self._run.wall_ns()
            if len(page) <= INLINE_BYTES_MAX:
                taken = take_page(self.state, page, now_ns)
            else:
                taken = await trio.to_thread.run_sync(
                    take_page, self.state, page, now_ns, limiter=self._run.workers
                )
            if self._is_peer:
                taken = hushed(taken, self.state, frozenset(self._run.collectors))
            return taken
        except ChainError as error:
            finding = judge_refusal(self.state, error)
            if finding is None:
                raise Unreachable(f"a page that was damaged on the way: {error}") from error
            await self._found(finding, connection, None, page)
            return None

    async def _store(self, taken: Taken) -> None:
        self._move_with_clock()
        run, old = self._run, self.entry
        now_ns = run.wall_ns()
        state, was = noted(self.state, taken.state, now_ns), self.verdict
        stopped = judge_silence(state, now_ns, now_ns) if taken.fresh else None
        verdict = Verdict.OK if taken.fresh else Verdict.BEHIND
        verdict = verdict if stopped is None else stopped.verdict
        page = Page(
            self.log_id,
            taken.before,
            taken.after,
            taken.frames,
            encode_state(state),
            taken.after.size if taken.note else old.signed_size,
            taken.note or old.note,
            now_ns,
            verdict,
        )
        if self._is_peer and taken.frames:
            told = heads_in(taken.frames, self.name, self.state.pinned.log_id)
            await run.storer.call(lambda: run.heads.add(told))
        await run.storer.store(page)
        self.state = state
        self.entry = msgspec.structs.replace(
            old,
            head=page.after,
            signed_size=page.signed_size,
            note=page.note,
            contact_ns=now_ns,
            verdict=verdict,
            why="",
            state=b"",
        )
        if stopped is not None:
            await self._tell_stale(stopped, anew=was is not Verdict.STALE)
        elif self.unreachable or was is Verdict.STALE:
            run.tell(self.name, f"reached again, at {page.after.size} records")
        self.unreachable = self.kept_from = ""
        self._failures = self._slow_s = 0
        if taken.fresh:
            run.skews.note(self.name, taken.trailer.wall_ns - now_ns)

    def _move_with_clock(self) -> bool:
        """Where our own clock was set, what is remembered by it was as long ago as before; whether
        it was."""
        by_ns = self._run.clock.set_ns() - self._set_ns
        if abs(by_ns) < SET_NS:
            return False
        self._set_ns += by_ns
        at = [one and max(1, one + by_ns) for one in (self.entry.contact_ns, self.state.sealed_ns)]
        self.entry = msgspec.structs.replace(self.entry, contact_ns=at[0])
        self.state = msgspec.structs.replace(self.state, sealed_ns=at[1])
        return True

    async def _heads(self) -> list[PeerHead]:
        """What other collectors have cosigned of this log and is not compared yet."""
        heads, log_id = self._run.heads, self.log_id
        if not heads.waits(log_id):
            return []
        return await self._run.storer.call(lambda: heads.of(log_id))

    async def _compare(self, known: list[PeerHead], taken: Taken, connection: Connection) -> None:
        """Compare what others have cosigned, and was known before the page was asked for, with
        what is held now."""
        if not known:
            return
        heads, log_id, size = self._run.heads, self.log_id, taken.after.size
        ends_at = size if taken.fresh else None

        def judge() -> tuple[Finding, PeerHead] | None:
            found = judge_heads(known, size, lambda at: heads.root_at(log_id, at), ends_at=ends_at)
            if found is None:
                heads.settle(log_id, [one for one in known if one.size <= size])
            return found

        found = await self._run.storer.call(judge)
        if found is not None:
            await self._found(found[0], connection, None)

    async def _cosign(self, connection: Connection, *, at_once: bool) -> None:
        """Cosign the head that was stored last, if there is something new to it and it is time."""
        run, entry = self._run, self.entry
        now_s = trio.current_time()
        due = at_once or now_s - self._cosigned_s >= run.config.cosign_ns / NS_PER_S
        if not due or not self.state.loud or entry.signed_size != entry.head.size:
            return
        log_id, note = self.state.pinned.log_id, entry.note
        carried = self.state.verifier

        def sign() -> str:
            if carried is not None:
                run.heads.remember(self.log_id, carried.frontier)
            return run.witness.cosign(log_id, note)

        cosigned = await run.storer.call(sign)
        self._cosigned_s = now_s
        try:
            answer = await acknowledge(
                connection, self.log_id, cosigned, timeout_s=run.config.timeout_ns / NS_PER_S
            )
        except Unreachable as error:
            run.tell(self.name, f"not acknowledged, to be tried again: {error}")
            return
        if isinstance(answer, Problem):
            await self._found(judge_problem(self.state, answer), connection, answer)
            return
        self.state = msgspec.structs.replace(self.state, loud=False)
        await self._set(cosigned_size=entry.head.size, state=encode_state(self.state))

    async def _found(
        self,
        finding: Finding | None,
        connection: Connection,
        problem: Problem | None,
        page: bytes = b"",
    ) -> None:
        """A verdict: keep the evidence, seal that there is one, then set it."""
        if finding is None:
            return
        run = self._run
        run.tell(self.name, f"{finding.verdict}: {finding.why}")
        bundle = await run.case.gather(self.state, self.entry, finding, connection, problem, page)
        now_ns, state, entry = run.wall_ns(), self.state, self.entry
        await run.storer.call(
            lambda: run.case.close(run.witness, state, entry, finding, bundle)
        )
        await self._set(verdict=finding.verdict, why=finding.why, since_ns=now_ns)

    async def _note_silence(self) -> None:
        moved, now_ns = self._move_with_clock(), self._run.wall_ns()
        if self.entry.contact_ns > now_ns or moved:
            # Our own clock was ahead, before this run: silence counts from here on.
            await self._set(contact_ns=min(self.entry.contact_ns, now_ns))
        if self.verdict.sticky or self.verdict is Verdict.STALE:
            return
        finding = judge_silence(self.state, self.entry.contact_ns, now_ns)
        if finding is not None:
            await self._tell_stale(finding, anew=True)

    async def _tell_stale(self, finding: Finding, *, anew: bool) -> None:
        fields: dict[str, Any] = {"verdict": finding.verdict, "why": finding.why}
        if anew:
            self._run.tell(self.name, f"{finding.verdict}: {finding.why}")
            fields["since_ns"] = self._run.wall_ns()
        await self._set(**fields)

    async def _look_for_resolution(self) -> None:
        """Whether an operator has resolved the verdict meanwhile."""
        run, was, log_id = self._run, self.verdict, self.log_id
        operators = run.config.operators
        applied = await run.storer.call(
            lambda: run.case.apply_resolutions(run.witness, self.entry, operators)
        )
        for told in applied:
            run.tell(self.name, told)
        await self._reload()
        if self.verdict.sticky:
            return
        heads, size = run.heads, self.entry.head.size

        def let_go() -> None:
            known = heads.of(log_id)
            heads.settle(log_id, answered(known, was, size, lambda at: heads.root_at(log_id, at)))

        await run.storer.call(let_go)

    async def _reload(self) -> None:
        entry = await self._run.storer.read(self.log_id)
        if entry is None:
            raise StateError(f"log {self.log_id} is not in the manifest any more")
        self.entry, self.state = entry, decode_state(entry.state)

    def _delay_s(self) -> float:
        """How long to wait before the next turn, where silence is judged: never as a node likes."""
        config = self._run.config
        if self.verdict.sticky or not self._failures:
            return config.interval_ns / NS_PER_S
        backoff_ns = min(config.backoff_max_ns, config.interval_ns << min(self._failures, 20))
        share = 0.5 + self._run.jitter() / 2
        slow_ns = min(self._slow_s * NS_PER_S, config.backoff_max_ns)
        return max(slow_ns, backoff_ns * share) / NS_PER_S
