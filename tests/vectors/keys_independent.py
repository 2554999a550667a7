# SPDX-License-Identifier: Apache-2.0
"""The keys of a log for the second verifier, written from FORMAT.md section 6d alone.

It follows each change of the key, compares what a Pruned says anew of them, and finds what the last
Pruned says of a log whose beginning is gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.vectors.c2sp_independent import need, signature_holds


class Keys:
    """The keys of a log, from its first on."""

    def __init__(self, log_id: bytes, first: bytes) -> None:
        self.log_id, self.first, self.key = log_id, first, first
        self.begins, self.gone = 0, []
        self.here: list[tuple[int, list]] = []

    def begin(self, begins: int, said: list) -> None:
        """The log begins with record `begins`, and `said` led to the key that it has there."""
        for change in said:
            self._follow(change, "the last Pruned")
        self.begins, self.gone = begins, said

    def rotated(self, change: list, sequence: int, where: str) -> None:
        self._follow(change, where)
        self.here.append((sequence, change))

    def pruned(self, value: list, where: str) -> None:
        """Exactly the changes before record min_seq. Of an earlier beginning than the present one
        it can only be said that they were the first of those that are gone."""
        min_seq, said = value[1], value[5] if len(value) > 5 else []
        right = self.gone + [change for sequence, change in self.here if sequence < min_seq]
        if min_seq < self.begins:
            right = right[: len(said)]
        need(said == right, f"{where}: not the changes of the key before record {min_seq}")

    def _follow(self, change: list, where: str) -> None:
        new, by_old, by_new = change
        message = b"leased key rotation v1\n" + self.log_id + self.key + new
        both = signature_holds(self.key, message, by_old)
        need(both and signature_holds(new, message, by_new), f"{where}: key rotation")
        self.key = new


def last_pruned(frames: Iterable[bytes]) -> tuple[int, bytes]:
    """Schema and body of the last Pruned; (0, nothing): there is none. `frames` are those of each
    segment, one behind the other, and are checked when they are walked."""
    found = 0, b""
    for data in frames:
        at = 0
        while at + 112 <= len(data):
            size, n, kind, schema = (
                int.from_bytes(data[at + far : at + far + width], "little")
                for far, width in ((0, 4), (28, 4), (24, 2), (26, 1))
            )
            if size < 112:
                break
            if kind == 70 and schema in (1, 2):
                found = schema, data[at + 80 : at + 80 + n]
            at += size
    return found
