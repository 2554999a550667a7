# SPDX-License-Identifier: Apache-2.0
"""Epochs: the forward-secure seals that freeze history against whoever takes the node later.

Rule: one seal per epoch, epochs follow each other, empty ones are sealed too; a stretch in which
nobody ran is one seal that says how many epochs it skipped. A seal is a MAC by the epoch's key, and
the key is evolved one way and forgotten right after, so whoever takes the node in epoch e cannot
make the seals of epochs before e again. Epochs advance by the boot clock; over a reboot by the wall
clock, never backwards. Nothing is sealed early, at a stop neither.

Whoever has no key can check all of this but the MACs (`Continuity`); whoever was enrolled with the
key of an epoch checks those from there on.

Does not keep the key on disk (`durable.sealkey`) and cannot erase what the interpreter copied: what
is erased is the file.
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

import msgspec

from leased.terms.event import EpochSealed
from leased.terms.identity import BootId, EventId
from leased.terms.moment import NS_PER_S, Moment

EPOCH_NS: Final = 60 * NS_PER_S
EPOCH_NS_MIN: Final = 1 * NS_PER_S
KEY_BYTES: Final = 32
LIFE_NS: Final = 1 << 60
"""36 years of epochs, more than a log lasts: for each of them whoever proves seals takes a step, so
a seal that says more would keep its readers for good."""
REBOOT_EPOCHS_MAX: Final = 1024
"""So many epochs end over a reboot at most: how long that took is said by the wall clock alone."""
EPOCHS_AHEAD_MAX: Final = 1 << 15
"""So many more epochs than can have ended by a reader's own clock may be sealed: 32 reboots with a
wall clock far ahead, a tenth of a second of reckoning."""

_I64: Final = range(-(1 << 63), 1 << 63)
_DOMAIN = b"leased epoch seal v1\n"
_FIELDS = struct.Struct(">QQ16sqqqqQQ")


class EpochKey(msgspec.Struct, frozen=True):
    """The key of one epoch. Not in any log, message or repr."""

    epoch: int
    key: bytes

    def __repr__(self) -> str:
        return f"EpochKey(epoch={self.epoch})"

    def evolved(self, epochs: int) -> EpochKey:
        """The key `epochs` later. There is no way back."""
        key = self.key
        for _ in range(epochs):
            key = hmac.digest(key, b"evolve", "sha256")
        return EpochKey(self.epoch + epochs, key)

    def tag(self, log_id: bytes, seal: EpochSealed) -> bytes:
        """The MAC of a seal of this very epoch."""
        assert seal.epoch == self.epoch
        return hmac.digest(hmac.digest(self.key, b"tag", "sha256"), message(log_id, seal), "sha256")

    def holds(self, log_id: bytes, seal: EpochSealed) -> bool:
        """Whether the seal was made with this key."""
        return hmac.compare_digest(self.tag(log_id, seal), seal.tag)


class Open(msgspec.Struct, frozen=True):
    """The epoch that is open: what its seal will say. `begin_ns` and `end_ns` are on the boot
    clock, `begin_ns` on that of the boot in which it began."""

    epoch: int
    boot_id: BootId
    begin_ns: int
    end_ns: int
    begin_wall_ns: int
    first_seq: int


def message(log_id: bytes, seal: EpochSealed) -> bytes:
    """What a seal's MAC is over: everything in it but its id and the MAC itself."""
    fields = _FIELDS.pack(
        seal.epoch,
        seal.skipped,
        seal.boot_id,
        seal.begin_ns,
        seal.end_ns,
        seal.begin_wall_ns,
        seal.end_wall_ns,
        seal.first_seq,
        seal.size,
    )
    return _DOMAIN + log_id + fields + seal.root


def latest_epoch(known: int, since_ns: int, now_ns: int, epoch_ns: int) -> int:
    """The latest epoch that can be open, for a reader who has had the key of epoch `known` since
    `since_ns` by its own clock."""
    return known + max(0, now_ns - since_ns) // epoch_ns + EPOCHS_AHEAD_MAX


def first_epoch(moment: Moment, epoch_ns: int) -> Open:
    """Epoch 0, which begins with the log's first record."""
    end_ns = moment.boot_ns + epoch_ns
    return Open(0, moment.boot_id, moment.boot_ns, end_ns, moment.wall_ns, 0)


def next_epoch(last: EpochSealed, epoch_ns: int) -> Open:
    """The epoch that opened with the newest seal, on the clock of its boot."""
    epoch, end_ns = last.epoch + last.skipped + 1, last.end_ns + epoch_ns
    return Open(epoch, last.boot_id, last.end_ns, end_ns, last.end_wall_ns, last.size)


def carry_over(left: Open, moment: Moment, epoch_ns: int) -> Open:
    """The open epoch as it is at `moment`: over a reboot an epoch that has not ended by the wall
    clock goes on in this boot; one that has is left as it is, to be sealed."""
    elapsed_ns = max(0, moment.wall_ns - left.begin_wall_ns)
    if left.boot_id == moment.boot_id or elapsed_ns >= epoch_ns:
        return left
    end_ns = moment.boot_ns + epoch_ns - elapsed_ns
    return msgspec.structs.replace(left, boot_id=moment.boot_id, end_ns=end_ns)


class Ratchet:
    """The open epoch and its key: makes seals, one after the other."""

    def __init__(self, log_id: bytes, opened: Open | None, key: EpochKey, epoch_ns: int) -> None:
        """`opened` None: the log is empty, and its first record opens epoch 0."""
        assert key.epoch == (opened.epoch if opened else 0), "the key is that of the open epoch"
        self._log_id = log_id
        self._epoch_ns = epoch_ns
        self._key = key
        self.open = opened

    @property
    def key(self) -> EpochKey:
        """The key of the open epoch: what the file must hold, and what a collector is enrolled
        with."""
        return self._key

    def due(self, moment: Moment) -> bool:
        """Whether the open epoch has ended. The first batch after a reboot asks, and carries an
        epoch over that has not."""
        opened = self.open
        if opened is not None and opened.boot_id == moment.boot_id:
            return moment.boot_ns >= opened.end_ns
        if self.open is None:
            self.open = first_epoch(moment, self._epoch_ns)
        self.open = carry_over(self.open, moment, self._epoch_ns)
        return moment.boot_id != self.open.boot_id or moment.boot_ns >= self.open.end_ns

    @property
    def end_ns(self) -> int:
        """When the open epoch ends, on the boot clock. Once something has been sealed."""
        assert self.open is not None
        return self.open.end_ns

    def seal(self, event_id: bytes, size: int, root: bytes, moment: Moment) -> EpochSealed:
        """Seal the open epoch over the tree of `size` records, and open the next."""
        now, epoch_ns = self.open, self._epoch_ns
        assert now is not None, "`due` was asked"
        if now.boot_id == moment.boot_id:
            skipped = (moment.boot_ns - now.end_ns) // epoch_ns
            end_ns = now.end_ns + skipped * epoch_ns
            end_wall_ns = moment.wall_ns - (moment.boot_ns - end_ns)
            begin_ns, next_end_ns = end_ns, end_ns + epoch_ns
        else:
            # A wall clock that is decades ahead must neither use up what epochs a log may have nor
            # make it one that no reader would follow.
            elapsed_ns = max(epoch_ns, moment.wall_ns - now.begin_wall_ns)
            left = (LIFE_NS // epoch_ns - now.epoch) // 2
            skipped = min(elapsed_ns // epoch_ns, REBOOT_EPOCHS_MAX, max(left, 1)) - 1
            end_ns = now.end_ns + skipped * epoch_ns
            end_wall_ns = now.begin_wall_ns + elapsed_ns - elapsed_ns % epoch_ns
            begin_ns = moment.boot_ns
            next_end_ns = moment.boot_ns + epoch_ns - elapsed_ns % epoch_ns
        fields = (now.epoch, skipped, now.boot_id, now.begin_ns, end_ns)
        walls = (now.begin_wall_ns, end_wall_ns)
        bare = EpochSealed(EventId(event_id), *fields, *walls, now.first_seq, size, root, b"")
        sealed = msgspec.structs.replace(bare, tag=self._key.tag(self._log_id, bare))
        self._key = self._key.evolved(skipped + 1)
        self.open = Open(self._key.epoch, moment.boot_id, begin_ns, next_end_ns, end_wall_ns, size)
        return sealed


class CarriedEpochs(msgspec.Struct, frozen=True, array_like=True):
    """Where a `Continuity` stands, for another to go on from. Not in any log: it holds a key."""

    next: int | None
    first_seq: int | None
    boot_id: bytes | None
    counted: bool
    last: EpochSealed | None
    epoch: int
    key: bytes | None
    sealed: int
    proven: int
    begin_ns: int
    limit_ns: int | None

    def __repr__(self) -> str:
        return f"CarriedEpochs(next={self.next}, epoch={self.epoch})"


class Continuity:
    """What can be checked of the seals of a chain, in order, from any place on."""

    def __init__(
        self,
        log_id: bytes,
        epoch_ns: int,
        key: EpochKey | None,
        *,
        from_genesis: bool,
        latest: int | None = None,
    ) -> None:
        """`key` is what the verifier was enrolled with; seals of epochs before it are counted, not
        proven. No epoch after `latest` (`latest_epoch`) can be open: none is reckoned with."""
        self._log_id = log_id
        self._epoch_ns = epoch_ns
        self._next = 0 if from_genesis else None
        self._first_seq = 0 if from_genesis else None
        self._boot_id: bytes | None = None
        self._counted = from_genesis  # the open epoch began on this boot's clock
        self._last: EpochSealed | None = None
        self._key = key
        self._latest = latest
        self.sealed = 0
        self.proven = 0
        self.begin_ns = 0
        self.limit_ns: int | None = None
        """A record of this boot clock or later lies beyond the open epoch."""

    @property
    def end_wall_ns(self) -> int:
        """When the last epoch that was sealed ended, by the node's wall clock; 0: none was."""
        return self._last.end_wall_ns if self._last is not None else 0

    def carried(self) -> CarriedEpochs:
        """Where this stands."""
        return CarriedEpochs(
            next=self._next,
            first_seq=self._first_seq,
            boot_id=self._boot_id,
            counted=self._counted,
            last=self._last,
            epoch=0 if self._key is None else self._key.epoch,
            key=None if self._key is None else self._key.key,
            sealed=self.sealed,
            proven=self.proven,
            begin_ns=self.begin_ns,
            limit_ns=self.limit_ns,
        )

    def resume(self, carried: CarriedEpochs) -> None:
        """Go on from where another stood."""
        self._next, self._first_seq = carried.next, carried.first_seq
        self._boot_id, self._counted, self._last = carried.boot_id, carried.counted, carried.last
        self._key = None if carried.key is None else EpochKey(carried.epoch, carried.key)
        self.sealed, self.proven = carried.sealed, carried.proven
        self.begin_ns, self.limit_ns = carried.begin_ns, carried.limit_ns

    def started(self, boot_id: bytes, boot_ns: int) -> None:
        """A NodeStarted: in another boot the open epoch ends within one epoch of it."""
        if boot_id != self._boot_id:
            self._counted = self._boot_id is None and self._counted
            self._boot_id, self.begin_ns = boot_id, 0
            self.limit_ns = boot_ns + self._epoch_ns

    def judge(self, seal: EpochSealed, sequence: int) -> str | None:
        """Take the next seal in; what is wrong with it. Its root is not looked at."""
        why = self._order(seal, sequence) or self._sense(seal) or self._window(seal)
        if why is None and self._key is not None and seal.epoch >= self._key.epoch:
            self._key = self._key.evolved(seal.epoch - self._key.epoch)
            if not self._key.holds(self._log_id, seal):
                why = f"it was not made with the key of epoch {seal.epoch}"
            self.proven += 1
        self._next, self._first_seq, self._last = seal.epoch + seal.skipped + 1, sequence, seal
        self.sealed += 1
        self._boot_id, self._counted = seal.boot_id, True
        self.begin_ns, self.limit_ns = seal.end_ns, seal.end_ns + self._epoch_ns
        return why

    def _order(self, seal: EpochSealed, sequence: int) -> str | None:
        if self._next is not None and seal.epoch != self._next:
            return f"epoch {seal.epoch} is sealed where epoch {self._next} belongs"
        if self._boot_id is not None and seal.boot_id != self._boot_id:
            return "it is of another boot than the records before it"
        if seal.size != sequence:
            return f"it seals {seal.size} records and stands at record {sequence}"
        if self._first_seq is not None and seal.first_seq != self._first_seq:
            return f"it begins at record {seal.first_seq}, the epoch at {self._first_seq}"
        return None

    def _sense(self, seal: EpochSealed) -> str | None:
        times = (seal.begin_ns, seal.end_ns, seal.begin_wall_ns, seal.end_wall_ns)
        if not all(one in _I64 for one in times) or not 0 <= seal.first_seq <= seal.size:
            return "it says numbers that its MAC has no room for"
        if min(seal.epoch, seal.skipped) < 0:
            return "epochs are counted from 0"
        if (seal.epoch + seal.skipped + 1) * self._epoch_ns > LIFE_NS:
            return f"it ends with epoch {seal.epoch + seal.skipped}: no log lasts so long"
        if self._latest is not None and seal.epoch + seal.skipped >= self._latest:
            said = f"it ends with epoch {seal.epoch + seal.skipped}"
            return f"{said}, and by the reader's clock none after {self._latest} can be open"
        return None

    def _window(self, seal: EpochSealed) -> str | None:
        if not self._counted:
            return None  # begun on another boot's clock, or before we looked
        length_ns = (seal.skipped + 1) * self._epoch_ns
        if seal.end_ns - seal.begin_ns != length_ns:
            return f"it covers {seal.end_ns - seal.begin_ns} ns and not {length_ns}"
        if self._last is not None and seal.begin_ns != self._last.end_ns:
            return f"it begins at {seal.begin_ns}, the epoch before it ended at {self._last.end_ns}"
        return None
