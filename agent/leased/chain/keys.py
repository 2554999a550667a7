# SPDX-License-Identifier: Apache-2.0
"""The keys of a log: which is in force where, from the first one on.

Rule: a key is the log's if the one before it has signed that, and it has itself. Whoever begins to
read where records were pruned comes to the key in force there by what the last Pruned says anew:
all changes of the key before that place, as they were sealed. A Pruned that leaves one out, or has
another, says something else than the records before it, and does not hold.

Does not check what the keys sign (`verifier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from leased.chain.findings import CarriedKeys
from leased.chain.signing import rotation_message, verifies
from leased.chain.verdict import BAD_SIGNATURE
from leased.terms.errors import ChainError
from leased.terms.event import KeyChange, KeyRotated, Pruned

_PRUNED_BYTES: Final = 202
"""The frame of a Pruned at its longest, but for the changes; and each of these adds:"""
_CHANGE_BYTES: Final = 167


class Keys:
    """The keys of one log, followed record by record. `before` are the changes before record
    `begins`, from the `first` key on, and hold (`followed`)."""

    def __init__(
        self, log_id: bytes, first: bytes, before: Sequence[KeyChange] = (), begins: int = 0
    ) -> None:
        self._log_id = log_id
        self._begins, self._before = begins, tuple(before)
        self._since: list[tuple[int, KeyChange]] = []
        self._known = True
        self.current = before[-1].public_key if before else first
        """The key in force."""

    def follow(self, event: object, sequence: int) -> None:
        """Record `sequence`: a change of the key is followed, and what is said anew of them is
        compared. Raises ChainError (BAD_SIGNATURE)."""
        if isinstance(event, KeyRotated):
            change = change_of(event)
            self.current = followed(self._log_id, self.current, [change])
            self._since.append((sequence, change))
        elif isinstance(event, Pruned) and self._known:
            self._compare(event)

    def _compare(self, event: Pruned) -> None:
        said, right = event.key_changes, self._before
        if event.min_seq < self._begins:
            # Of those before here it is not known which were before there.
            right = right[: len(said)]
        right += tuple(change for at, change in self._since if at < event.min_seq)
        if said != right:
            why = f"the {len(said)} changes of the key that it says anew are not the {len(right)}"
            why += f" before record {event.min_seq}"
            raise ChainError(BAD_SIGNATURE, why)

    def carried(self) -> CarriedKeys | None:
        """For `resume`."""
        if not self._known:
            return None
        return CarriedKeys(self._begins, self._before, tuple(self._since))

    def resume(self, carried: CarriedKeys | None, current: bytes, size: int) -> None:
        """Go on after `size` records, where `current` is in force. What an earlier release carried
        says no more than that: then all changes are those that this was made with, if they lead
        there."""
        if carried is not None:
            self._begins, self._before = carried.begins, carried.before
            self._since = list(carried.since)
        else:
            self._begins, self._known = size, self.current == current
        self.current = current


def changes_max(frame_bytes_max: int) -> int:
    """How many changes of its key a log can say anew: a Pruned is one frame."""
    return (frame_bytes_max - _PRUNED_BYTES) // _CHANGE_BYTES


def change_of(event: KeyRotated) -> KeyChange:
    """What a KeyRotated says, to be said anew."""
    return KeyChange(event.public_key, event.signature_old, event.signature_new)


def followed(log_id: bytes, first: bytes, changes: Sequence[KeyChange]) -> bytes:
    """The key that `changes` lead to from `first`. Raises ChainError (BAD_SIGNATURE) at the first
    that both keys have not signed."""
    key = first
    for change in changes:
        message = rotation_message(log_id, key, change.public_key)
        if not verifies(key, message, change.signature_old) or not verifies(
            change.public_key, message, change.signature_new
        ):
            raise ChainError(BAD_SIGNATURE, "the key rotation is not signed by both keys")
        key = change.public_key
    return key
