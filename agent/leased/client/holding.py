# SPDX-License-Identifier: Apache-2.0
"""Holding a lease: renew in the background, learn of notices, give it up in time.

Rule: whoever works under `scope` has stopped before the agent acts: the scope closes at
*surrender*, the deadline less max(2 s, TTL/10), and never less than three quarters of a short TTL
away from the last renewal. From then on the lease counts as lost here, whatever the agent may still
think. A lost lease is a LeaseLost where it is noticed, never a silence.

Deadlines are instants of the boot clock handed to the session. Does not ask for a lease
(`acquisition`) and does not restart work.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec
import trio

from leased.client.faults import LeaseLost, Refused
from leased.client.notice import NoticeBoard, surrender_margin_ns
from leased.client.session import Session
from leased.terms.errors import LeasedError, NoSuchLease
from leased.terms.moment import NS_PER_S
from leased.wire import objects, parameters, replies
from leased.wire.portrayal import environment_of

_WATCH_BACKOFF_S = 1.0
_OVER = frozenset({"revoking", "scrubbing", "verifying", "reclaimed", "fenced"})
_NOTICE = msgspec.json.Decoder(objects.Notice)

GIVEN_BACK = "it was given back"


class Holding:
    """A lease we hold. `lease` is how the agent last described it; `lost` is set when it is ours no
    more, `released` when we want it no more, `given_back` when the agent has said so. `owed` is set
    once that is over where no agent took it at the end of the block (None: one did).
    """

    def __init__(self, session: Session, granted: replies.AcquireReply, fds: Sequence[int]) -> None:
        self._session = session
        self._fds = list(fds)
        self._mapped: list[mmap.mmap] = []
        self._scopes: list[trio.CancelScope] = []
        self._ttl_ns = granted.lease.context.ttl_ns
        self._told = False
        self._notice_margin_ns = self._told_generation = 0
        self.lease = granted.lease
        self.granted = granted
        self.generation = granted.lease.runtime.generation
        self.notice = NoticeBoard()
        self._moved = trio.Event()
        self.lost = trio.Event()
        self.lost_why = ""
        self.released = self.given_back = False
        self.owed: trio.Event | None = None
        self._deadline_ns = granted.lease.runtime.deadline_boottime_ns

    @property
    def lease_id(self) -> str:
        """The lease's id, 32 hex digits."""
        return self.lease.lease_id

    @property
    def deadline_ns(self) -> int:
        """Until when (boot clock) the agent leaves us alone, as far as we know."""
        notice = self.notice.value
        if notice is None:
            return self._deadline_ns
        return min(self._deadline_ns, notice.deadline_boottime_ns)

    @property
    def surrender_ns(self) -> int:
        """When (boot clock) we count it as lost ourselves."""
        surrender_ns = self._deadline_ns - surrender_margin_ns(self._ttl_ns)
        notice = self.notice.value
        if notice is None:
            return surrender_ns
        return min(surrender_ns, notice.deadline_boottime_ns - self._notice_margin_ns)

    # ---- what it gives -------------------------------------------------------------------------

    def fd(self, purpose: str, resource_id: str | None = None) -> int:
        """The descriptor for `purpose` (memory, block, notify, hold); it stays ours. Raises
        KeyError, and LeaseLost once the block has ended or the lease was given back.
        """
        for item in self.granted.fds:
            if item.purpose == purpose and resource_id in (None, item.resource_id):
                if not self._fds:
                    raise LeaseLost(self.lease_id, self.lost_why or GIVEN_BACK)
                return self._fds[item.index]
        raise KeyError(f"no {purpose} descriptor came with lease {self.lease_id}")

    def mem(self, resource_id: str | None = None) -> mmap.mmap:
        """The leased memory, mapped until the lease is given back. After its loss touching it is
        fatal (SIGBUS): work under `scope`.
        """
        fd = self.fd("memory", resource_id)
        mapped = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED)
        self._mapped.append(mapped)
        return mapped

    @property
    def access(self) -> list[objects.Access]:
        """What we must know to use what we hold, resource by resource."""
        return self.granted.access

    @property
    def environment(self) -> dict[str, str]:
        """The same as a program that we start should see it: CUDA_VISIBLE_DEVICES and the like."""
        return environment_of(self.granted.access)

    def devices(self, kind: str = "gpu") -> list[str]:
        """The resources of one kind by name, without the prefix: GPU UUIDs for gpu."""
        prefix = f"{kind}:"
        return [
            allotment.resource_id.removeprefix(prefix)
            for allotment in self.lease.runtime.allotments
            if allotment.kind == kind
        ]

    # ---- working under it ----------------------------------------------------------------------

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[trio.CancelScope]:
        """Work that must not outlive the lease: cancelled at surrender or at the loss. Raises
        LeaseLost then.
        """
        self.check()
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)
        if scope.cancelled_caught and self.lost.is_set():
            self.check()

    def check(self) -> None:
        """Raise LeaseLost if the lease is lost, or was given back."""
        if self.lost.is_set():
            self._told = True
            raise LeaseLost(self.lease_id, self.lost_why)
        if self.released:
            raise LeaseLost(self.lease_id, GIVEN_BACK)

    async def renew(self, ttl_ns: int | None = None) -> None:
        """Renew now; `ttl_ns` changes the length from here on. Raises Refused, LeaseLost."""
        self.check()
        await self._renew(self._session.timeout_s, ttl_ns)

    async def extend(self, needed_ns: int) -> None:
        """Once told to leave: let the notice end `needed_ns` from now, to save what is not saved.
        Raises Refused beyond what the policy allows in all, LeaseLost.
        """
        self.check()
        self._see(await self._session.extend(self.lease_id, needed_ns))

    async def done(self) -> None:
        """Say that we have left, before the grace ends."""
        self.released = True
        self.close()
        self.lease = await self._session.done(self.lease_id)
        self.given_back = True

    async def release(self) -> None:
        """Give it back now instead of at the end of the block."""
        self.released = True
        self.close()
        self.lease = await self._session.release(self.lease_id)
        self.given_back = True

    def another_session(self) -> Session:
        """A session with the same agent, whatever becomes of ours."""
        return self._session.another()

    # ---- in the background ---------------------------------------------------------------------

    async def keep(self) -> None:
        """Renew at a third of the TTL, a little early by chance, for as long as it helps."""
        renewed = True
        while not (self.lost.is_set() or self.released):
            third_s = self._ttl_ns / 3 / NS_PER_S
            pause_s = third_s if renewed else min(1.0, third_s / 4)
            await trio.sleep(pause_s * (1 - 0.2 * self._session.chance()))
            if self.notice.is_set() or self.released:
                return
            renewed = await self._keep_once(third_s)

    async def _keep_once(self, patience_s: float) -> bool:
        """Renew once; whether it worked. What did not is tried again until the guard says stop."""
        try:
            await self._renew(patience_s)
        except Refused as refused:
            if refused.refusal.reason == "deadline_passed":
                self.lose("the deadline passed before a renewal")
            return False
        except NoSuchLease:
            self.lose("the agent does not know it")
            return False
        except LeasedError:
            # The agent restarts, hangs or has failed; the reaper does not.
            return False
        return True

    async def guard(self) -> None:
        """Count the lease as lost at surrender, wherever that has moved to."""
        while not (self.lost.is_set() or self.released):
            left_ns = self.surrender_ns - self._session.clock_ns()
            if left_ns <= 0:
                self.lose(
                    "it was not renewed in time"
                    if not self.notice.is_set()
                    else "the grace is over"
                )
                return
            with trio.move_on_after(left_ns / NS_PER_S):
                await self._moved_or_lost()

    async def heed(self) -> None:
        """Learn of notices and of the end: from the notify descriptor, if any, and Watch."""
        async with trio.open_nursery() as nursery:
            if any(item.purpose == "notify" for item in self.granted.fds):
                nursery.start_soon(self._heed_notify)
            await self._heed_watch()

    def lose(self, why: str) -> None:
        """Count it as lost: every scope closes."""
        if self.lost.is_set() or self.released:
            return
        self.lost_why = why
        self.lost.set()
        self._wake()
        for scope in self._scopes:
            scope.cancel()

    def close(self) -> None:
        """Close every descriptor that came with it, and every mapping of `mem`. Idempotent.

        Before the lease is given back, for whoever has its memory after that is killed. What
        something else still looks into (a memoryview, an array) cannot be unmapped here.
        """
        for mapped in self._mapped:
            with suppress(BufferError):
                mapped.close()
        self._mapped.clear()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    @property
    def unspoken_loss(self) -> bool:
        """Whether it was lost and nobody has been told."""
        return self.lost.is_set() and not self._told

    async def _moved_or_lost(self) -> None:
        """Return at a notice, which brings the end nearer, and when it is brought nearer still; a
        renewal only puts it off.
        """
        if self.notice.is_set():
            await self._moved.wait()
        else:
            await self.notice.wait()

    async def _renew(self, timeout_s: float, ttl_ns: int | None = None) -> None:
        renewed = await self._session.renew(self.lease_id, ttl_ns=ttl_ns, timeout_s=timeout_s)
        if renewed.generation >= self.generation:
            self.generation = renewed.generation
            self._deadline_ns = renewed.deadline_boottime_ns
            self._ttl_ns = self._ttl_ns if ttl_ns is None else ttl_ns

    async def _heed_notify(self) -> None:
        # trio's stream owns what it reads, so it gets a descriptor of its own.
        stream = trio.lowlevel.FdStream(os.dup(self.fd("notify")))
        rest = b""
        async with stream:
            async for chunk in stream:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._post(line)

    def _post(self, line: bytes) -> None:
        try:
            notice = _NOTICE.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # Not for us: a newer agent may say other things there.
        self._heed_notice(notice)

    def _heed_notice(self, notice: objects.Notice) -> None:
        if notice.lease_id != self.lease_id or self.notice.is_set():
            return
        grace_ns = notice.deadline_boottime_ns - self._session.clock_ns()
        self._notice_margin_ns = surrender_margin_ns(max(0, grace_ns))
        self.notice.post(notice)

    async def _heed_watch(self) -> None:
        while not (self.lost.is_set() or self.released):
            try:
                await self._watch_once()
            except NoSuchLease:
                self.lose("the agent does not know it")
            except LeasedError:
                # Not being watched loses a notice at worst; the deadline is kept by the guard.
                pass
            await trio.sleep(_WATCH_BACKOFF_S * (1 - self._session.chance() / 2))

    async def _watch_once(self) -> None:
        asked = parameters.Watch(self.lease_id)
        async with self._session.follow(asked, replies.WatchReply) as changes:
            async for change in changes:
                if change.notice is not None:
                    self._heed_notice(change.notice)
                for lease in change.leases:
                    self._see(lease)

    def _see(self, lease: objects.Lease) -> None:
        if lease.lease_id != self.lease_id:
            return
        self.lease = lease
        runtime = lease.runtime
        if runtime.state in _OVER:
            self.lose(
                f"{runtime.ended or 'ended'}{': ' + runtime.reason if runtime.reason else ''}"
            )
        drain_ns = runtime.drain_deadline_boottime_ns
        if runtime.state == "draining" and drain_ns is not None:
            left_s = max(0, drain_ns - self._session.clock_ns()) // NS_PER_S
            reason = runtime.reason or "operator_drain"
            notice = objects.Notice(lease.lease_id, reason, drain_ns, left_s)
            if runtime.generation > self._told_generation and self.notice.is_set():
                self.notice.replace(notice)
                self._wake()
            self._heed_notice(notice)
            self._told_generation = max(self._told_generation, runtime.generation)
            self._deadline_ns = max(self._deadline_ns, runtime.deadline_boottime_ns)

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
