# SPDX-License-Identifier: Apache-2.0
"""The watcher: what of the fleet becomes a fact.

Rule: what is looked at is durable elsewhere (verified records, verdicts, issued bills), and how far
was looked moves in the transaction that puts the facts in: nothing is left out by a crash, and what
is seen twice has the id of the first time. With nobody who listens the cursors move on and nothing
is kept. What is over is forgotten by its age, as the newest record has it: a clock that is ahead
would take what does not come back.

Does not decide who hears (`outbox`) and does not send (`courier`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from leased.chain.canonical import decode
from leased.collector.accounts.answers import IdleResource
from leased.collector.accounts.corrections import corrected
from leased.collector.accounts.invoices import Invoices
from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import LogEntry
from leased.collector.archive.manifests import is_there
from leased.collector.webhooks.facts import Fact, Kind
from leased.collector.webhooks.lease_facts import KINDS, lease_fact
from leased.collector.webhooks.outbox import Outbox, Webhook
from leased.collector.webhooks.task_outbox import TaskOutbox
from leased.economics.billing import Bill
from leased.economics.waste import Judged, Waste
from leased.terms.errors import LeasedError
from leased.terms.event import LeaseEvent
from leased.terms.moment import HOUR_NS

LOOK_S: Final = 1.0
SLOW_S: Final = 2.0
SHARE: Final = 20
"""Between two looks at thresholds, bills and waste: so long, and so many times what one takes."""

RECORDS_MAX: Final = 2_000
"""In one transaction, so that whoever changes a quota meanwhile does not wait for long."""

_QUIET: Final = ("OK", "BEHIND")
"""A log goes back and forth between these as it is pulled."""


_WASTE: Final = (Waste.IDLE, Waste.OVERPROVISIONED, Waste.FRAGMENTED, Waste.PREMIUM)


class Seen(msgspec.Struct, frozen=True):
    """What was looked at, outside of the outbox's transaction: used of each limit, by tenant; nodes
    that nobody uses; leases and their classes of waste; bills; the newest record of any node."""

    shares: Mapping[str, Mapping[str, Fraction]]
    idle: list[IdleResource]
    waste: list[Judged]
    bills: list[Path]
    newest_ns: int = 0


class Look(msgspec.Struct, frozen=True):
    """What the server knows beside the archive. `shares`: used of each limit, by tenant;
    `idle`: nodes that nobody uses; `waste`: leases of the last hour and their classes; `newest_ns`:
    when the newest record of any node was sealed."""

    shares: Callable[[], Mapping[str, Mapping[str, Fraction]]]
    idle: Callable[[], Iterable[IdleResource]]
    waste: Callable[[], Iterable[Judged]] = tuple
    newest_ns: Callable[[], int] = int


class Watcher:
    """Puts facts in until cancelled. `thresholds_pm` are shares of a limit, lowest first."""

    def __init__(
        self,
        outbox: TaskOutbox,
        state: Path,
        look: Look,
        *,
        thresholds_pm: tuple[int, ...],
        idle_ns: int,
        keep_ns: int,
        keep_dead_ns: int,
        wall_ns: Callable[[], int],
        put: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """`put` is told that something was."""
        self._outbox, self._state, self._look = outbox, state, look
        self._thresholds_pm, self._idle_ns = thresholds_pm, idle_ns
        self._keep_ns, self._keep_dead_ns = keep_ns, keep_dead_ns
        self._wall_ns, self._put, self._say = wall_ns, put, say
        self._archive: ArchiveReader | None = None
        self._forgetting: frozenset[str] = frozenset()
        self._said = self._last = ""

    async def run(self) -> None:
        """Look, now and again."""
        slow_at = trio.current_time()
        while True:
            try:
                more = await self._outbox.ask(self.follow_logs, writes=True)
                if trio.current_time() >= slow_at:
                    began = trio.current_time()
                    seen = await trio.to_thread.run_sync(self._see)
                    took = trio.current_time() - began
                    slow_at = trio.current_time() + max(SLOW_S, SHARE * took)
                    await self._outbox.ask(partial(self.note, seen=seen), writes=True)
                self._said = ""
            except LeasedError as error:
                more = False
                if str(error) != self._said:
                    self._said = str(error)
                    self._say(f"webhooks: what happened cannot be read: {error}")
            self._put()
            await trio.sleep(0 if more else LOOK_S)

    # -- logs --------------------------------------------------------------------------------------

    def follow_logs(self, outbox: Outbox) -> bool:
        """Take in what is new of every log; whether there is more."""
        if self._archive is None:
            if not is_there(self._state):
                return False
            self._archive = ArchiveReader(self._state)
        webhooks = [one for one in outbox.webhooks() if not one.disabled]
        cursors = outbox.cursors("log/") | outbox.cursors("verdict/")
        left, room = RECORDS_MAX, outbox.room()
        entries = sorted(self._archive.logs(), key=lambda one: one.log_id)
        for entry in entries:
            self._follow_verdict(outbox, webhooks, entry, cursors)
        # From the one after who was last: who writes without end has a turn, and not all.
        later = [one for one in entries if one.log_id > self._last]
        for entry in (*later, *entries[: len(entries) - len(later)]):
            at = int(cursors.get(f"log/{entry.log_id}", "0"))
            if at >= entry.head.size or not left:
                continue
            self._last, to = entry.log_id, entry.head.size
            if webhooks:
                to = min(to, at + left)
                left -= to - at
                for fact in self._facts_of(entry, at, to):
                    outbox.put(fact, webhooks, room)
            outbox.set_cursor(f"log/{entry.log_id}", str(to))
        return not left

    def _facts_of(self, entry: LogEntry, at: int, to: int) -> Iterator[Fact]:
        assert self._archive is not None
        for record in self._archive.records(entry.log_id, at):
            if record.sequence >= to:
                return
            event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
            if isinstance(event, LeaseEvent) and type(event) in KINDS:
                yield lease_fact(KINDS[type(event)], event, record, entry)

    def _follow_verdict(
        self,
        outbox: Outbox,
        webhooks: list[Webhook],
        entry: LogEntry,
        cursors: Mapping[str, str],
    ) -> None:
        name = f"verdict/{entry.log_id}"
        was = cursors.get(name, "OK")
        is_quiet = entry.verdict in _QUIET
        now = "OK" if is_quiet else f"{entry.verdict}@{entry.since_ns}"
        if now == was:
            return
        outbox.set_cursor(name, now)
        wall_ns = self._wall_ns() if is_quiet else entry.since_ns
        data = {
            "node": entry.node,
            "node_name": entry.name,
            "log_id": entry.log_id,
            "verdict": entry.verdict,
            "was": was.partition("@")[0],
            "why": entry.why,
            "sequence": entry.head.size,
            "hash": entry.head.hash.hex(),
        }
        key = f"{entry.log_id}/{was}/{now}"
        fact = Fact(Kind.NODE_VERDICT, key, f"nodes/{entry.node}", None, wall_ns, data)
        outbox.put(fact, webhooks)

    # -- what is computed --------------------------------------------------------------------------

    def _see(self) -> Seen:
        found = sorted((self._state / "invoices").glob("tenant=*/????-??.json"))
        look = self._look
        newest_ns = look.newest_ns()
        return Seen(look.shares(), list(look.idle()), list(look.waste()), found, newest_ns)

    def note(self, outbox: Outbox, seen: Seen) -> None:
        """Take in what was seen, and forget what is over since long."""
        now_ns = self._wall_ns()
        webhooks, room = outbox.settle_webhooks(now_ns), outbox.room()
        for fact in (
            *self._crossed(outbox, seen.shares, now_ns),
            *self._wasted(outbox, seen.idle, now_ns),
            *self._judged(outbox, seen.waste, now_ns),
            *self._billed(outbox, seen.bills),
        ):
            outbox.put(fact, webhooks, room)
        self._say_forgotten(outbox.trim())
        over_ns = min(now_ns, seen.newest_ns)
        outbox.sweep(over_ns - self._keep_ns, over_ns - self._keep_dead_ns)

    def _say_forgotten(self, gone: Mapping[str, int]) -> None:
        """Once for each receiver that more was given up for than is kept."""
        for id in gone.keys() - self._forgetting:
            self._say(f"webhook {id}: too much was given up; the oldest of it is forgotten")
        self._forgetting = frozenset(gone)

    def _crossed(
        self, outbox: Outbox, shares: Mapping[str, Mapping[str, Fraction]], now_ns: int
    ) -> Iterator[Fact]:
        known = outbox.cursors("share/")
        for tenant, by_key in shares.items():
            for key, share in by_key.items():
                name = f"share/{tenant}/{key}"
                was = int(known.pop(name, "0"))
                above = [pm for pm in self._thresholds_pm if share * 1000 >= pm]
                now = above[-1] if above else 0
                # Down only when it is clearly below, so that a wobble is not told.
                if now == was or (now < was and share * 1000 > was - 50):
                    continue
                outbox.set_cursor(name, str(now))
                if now < was:
                    continue
                data = {
                    "tenant": tenant,
                    "quota": key,
                    "threshold_percent": now / 10,
                    "used_percent": int(share * 1000) / 10,
                }
                place, id = f"tenants/{tenant}", f"{tenant}/{key}/{now}/{now_ns}"
                yield Fact(Kind.QUOTA_THRESHOLD, id, place, tenant, now_ns, data)
        for name in known:
            outbox.drop_cursor(name)

    def _wasted(self, outbox: Outbox, idle: Iterable[IdleResource], now_ns: int) -> Iterator[Fact]:
        known = outbox.cursors("idle/")
        for one in idle:
            name = f"idle/{one.resource}"
            was = known.pop(name, "")
            if was == one.idle_since or one.idle_hours * HOUR_NS < self._idle_ns:
                continue
            outbox.set_cursor(name, one.idle_since)
            data = {"class": "idle", **msgspec.to_builtins(one, builtin_types=(Decimal,))}
            key = f"{one.resource}/{one.idle_since}"
            yield Fact(Kind.WASTE_FOUND, key, f"nodes/{one.resource}", None, now_ns, data)
        for name in known:
            outbox.drop_cursor(name)

    def _judged(self, outbox: Outbox, judged: Iterable[Judged], now_ns: int) -> Iterator[Fact]:
        """Each class that a lease was found in, once: one that goes back and forth is not told
        again."""
        known = outbox.cursors("waste/")
        for one in judged:
            held = one.held
            kind = held.kind.name.lower()
            name = f"waste/{held.lease}/{kind}"
            told = [part for part in known.pop(name, "").split(",") if part]
            if one.waste not in _WASTE or one.waste in told:
                continue
            outbox.set_cursor(name, ",".join([*told, one.waste]))
            key = f"{held.lease}/{kind}/{one.waste}"
            whose = held.tenant or None
            data = _waste_data(one)
            yield Fact(Kind.WASTE_FOUND, key, f"leases/{held.lease}", whose, now_ns, data)
        for name in known:
            outbox.drop_cursor(name)

    def _billed(self, outbox: Outbox, bills: Iterable[Path]) -> Iterator[Fact]:
        known = outbox.cursors("bill/")
        invoices = Invoices(self._state)
        for path in bills:
            tenant, month = path.parent.name.removeprefix("tenant="), path.stem
            if f"bill/{tenant}/{month}" in known:
                continue
            bill = invoices.issued(tenant, month)
            if bill is None:
                continue
            outbox.set_cursor(f"bill/{tenant}/{month}", bill.digest().hex())
            issued_ns = path.stat().st_mtime_ns
            yield _bill_fact(Kind.BILL_FINAL, bill, issued_ns, {})
            for text, amount in bill.corrections:
                more = {"corrects": corrected(text), "amount": amount}
                yield _bill_fact(Kind.BILL_CORRECTED, bill, issued_ns, more)

    def close(self) -> None:
        """Idempotent."""
        if self._archive is not None:
            self._archive.close()


def _waste_data(one: Judged) -> dict[str, Any]:
    """Shares from 0 to 1, each beside how much it rests on."""
    held, seen = one.held, one.held.utilization

    def share(pm: int | None) -> Decimal | None:
        return None if pm is None else Decimal(pm).scaleb(-3)

    return {
        "class": str(one.waste),
        "tenant": held.tenant,
        "lease_id": held.lease,
        "node": held.node,
        "kind": held.kind.name.lower(),
        "capacity": held.capacity,
        "utilization": share(seen.mean_pm),
        "active_share": share(seen.active_share_pm),
        "unused_share": share(one.unused_pm),
        "samples": seen.sample_count,
        "coverage": share(seen.coverage_pm),
    }


def _bill_fact(kind: Kind, bill: Bill, issued_ns: int, more: dict[str, Any]) -> Fact:
    sha256 = bill.digest().hex()
    data = {
        "tenant": bill.tenant,
        "month": bill.period,
        "invoice_id": bill.invoice_id,
        "total": bill.total,
        "currency": bill.currency,
        "sha256": sha256,
        **more,
    }
    place = f"bills/{bill.tenant}/{bill.period}"
    key = f"{place}/{sha256}/{more.get('corrects', '')}"
    return Fact(kind, key, place, bill.tenant, issued_ns, data)
