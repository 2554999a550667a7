# SPDX-License-Identifier: Apache-2.0
"""What collectors have acknowledged: cosigned heads, checked and sealed (PULL.md, `ack`).

Rule: only a root that is the node's own, cosigned by the key that was enrolled under the name in
the certificate, is put on record, for each collector by itself: a quorum is told by the log alone.
A countersignature is a record itself. So where a head is ahead of the collector's last one by
nothing but countersignatures, none is sealed for it: two collectors would have the log grow for
ever by acknowledging each other. What is acknowledged never shrinks, not even by a restart.

Does not prune what is acknowledged, and does not judge what a collector says of the time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import trio

from leased.chain.note import open_note, parse_checkpoint
from leased.chain.quorum import WitnessPolicy
from leased.ports import Clock
from leased.service.evidence import NO_COMMAND
from leased.service.fleet.config import Countersigner
from leased.service.fleet.pulling import PulledLog
from leased.terms.command import Command, NoteCountersigned
from leased.terms.errors import ChainError
from leased.terms.event import Event, HeadCountersigned
from leased.terms.quantity import print_duration
from leased.terms.reply import Reply

TIME_BYTES: Final = 8


class Acknowledged(msgspec.Struct, frozen=True):
    """How far a collector has the log. `sequence`: the record that says so; None: none was needed.
    `sealed_ns`: when the last one was."""

    size: int
    sequence: int | None
    sealed_ns: int | None = None


class Denied(msgspec.Struct, frozen=True):
    """An acknowledgement that changed nothing, as PULL.md section 3 names it. `hash` is the node's
    root where another was cosigned."""

    status: int
    word: str
    why: str
    hash: bytes = b""


class Countersigning:
    """Takes cosigned notes; one at a time."""

    def __init__(
        self,
        log: PulledLog,
        *,
        collectors: Callable[[], Sequence[Countersigner]],
        policy: Callable[[], WitnessPolicy],
        apart_ns: Callable[[], int],
        ask: Callable[[Command], Awaitable[Reply]],
        clock: Clock,
    ) -> None:
        self._log = log
        self._collectors, self._policy, self._apart_ns = collectors, policy, apart_ns
        self._ask = ask
        self._clock = clock
        self._lock = trio.Lock()
        self._loud_size = log.anchored.next_seq
        """Up to here there is something that is no countersignature."""
        self._sealed: tuple[int, int] | None = None
        self.by_name: dict[str, Acknowledged] = {}

    def restore(self) -> None:
        """Know again what the log says was acknowledged before this start, and by which
        cosignatures: proofs show them."""
        keys = {}
        for collector in self._collectors():
            key_id = int.from_bytes(collector.key.key_id, "big")
            keys[key_id] = collector.key
            size = self._log.acknowledged.get(key_id)
            if size is not None and collector.name not in self.by_name:
                self.by_name[collector.name] = Acknowledged(size, None)
        for event in self._log.countersigned:
            if event.key_id in keys:
                signature = event.time_s.to_bytes(TIME_BYTES, "big") + event.signature
                self._log.keep_cosignature(event.size, keys[event.key_id], signature)
        self._tell_anchor()

    def tell(self, events: Sequence[Event], sequences: Sequence[int]) -> None:
        """These were sealed."""
        if type(events[0]) is not HeadCountersigned or len(events) > 1:
            self._loud_size = sequences[-1] + 1
        if self._lock.locked():
            for event, sequence in zip(events, sequences, strict=True):
                if type(event) is HeadCountersigned:
                    self._sealed = (event.size, sequence)

    def end_epoch(self) -> None:
        """A seal is anchored: that is news for a collector, too."""
        self._loud_size = self._log.anchored.next_seq

    async def take(self, name: str, text: str) -> Acknowledged | Denied:
        """Take the cosigned note `text` of the collector `name`. Raises ChainError, StateError or
        OSError where the log cannot be read."""
        collector = next((one for one in self._collectors() if one.name == name), None)
        if collector is None:
            why = f"no cosigning key is enrolled for {name}; [[listener.collectors]] wants what"
            why += " `leased-collector cosigner` prints there"
            return Denied(403, "unknown-key", why)
        try:
            note = open_note(text, [collector.key])
            cosigned = parse_checkpoint(note.text)
        except ChainError as error:
            if error.verdict == "BAD_SIGNATURE":
                return Denied(403, "unknown-key", f"{error.why}; {name} has {collector.key.name}")
            return Denied(400, "malformed", error.why)
        if cosigned.origin != self._log.origin:
            return Denied(400, "malformed", f"a note of {cosigned.origin}, not {self._log.origin}")
        async with self._lock:
            slot = self._log.anchored
            if cosigned.size > slot.next_seq:
                return Denied(416, "behind", f"this log has {slot.next_seq} records")
            root = (await self._log.tree(cosigned.size, slot)).root()
            if root != cosigned.root:
                why = f"the root of {cosigned.size} records is another here"
                return Denied(409, "fork", why, root)
            [line, *_] = note.signatures
            self._log.keep_cosignature(cosigned.size, collector.key, line.signature)
            return await self._acknowledge(collector, cosigned.size, root, line.signature)

    async def _acknowledge(
        self, collector: Countersigner, size: int, root: bytes, signature: bytes
    ) -> Acknowledged | Denied:
        """Put a cosigned head on record, if it says anything new."""
        held = self.by_name.get(collector.name, Acknowledged(-1, None))
        if size <= held.size:
            return held
        if held.size >= self._loud_size:
            self.by_name[collector.name] = Acknowledged(size, None, held.sealed_ns)
            return self.by_name[collector.name]
        now_ns = self._clock.now().boot_ns
        if held.sealed_ns is not None and now_ns - held.sealed_ns < self._apart_ns():
            apart = print_duration(self._apart_ns())
            why = f"the last acknowledgement of {collector.name} is less than {apart} old"
            return Denied(429, "slow-down", why)
        self._sealed = None
        await self._ask(
            NoteCountersigned(
                NO_COMMAND,
                size=size,
                root=root,
                key_id=int.from_bytes(collector.key.key_id, "big"),
                time_s=int.from_bytes(signature[:TIME_BYTES], "big"),
                signature=signature[TIME_BYTES:],
            )
        )
        sequence = self._sealed[1] if self._sealed is not None else None
        self.by_name[collector.name] = Acknowledged(size, sequence, now_ns)
        self._tell_anchor()
        return self.by_name[collector.name]

    def quorum_size(self) -> int:
        """How many records as many collectors as the quorum wants have acknowledged."""
        policy = self._policy()
        sizes = {name: max(one.size, 0) for name, one in self.by_name.items()}
        return policy.reached(sizes, 0)

    def _tell_anchor(self) -> None:
        self._log.acknowledge(self.quorum_size())
