# SPDX-License-Identifier: Apache-2.0
"""The grammar of a lease in the log: which event of it may follow which.

Rule: judged by the kinds alone, without the lessor: a lease begins once, its end is said before its
teardown, and the steps of the teardown come in order. Whoever begins in the middle of a log takes a
lease that began before as it is found.

Does not decode bodies and keeps of a lease only how far it is; of a closed one nothing, so the same
id may begin again, and whoever meters counts both (`economics.intervals`, sql/metering.sql).
"""

from __future__ import annotations

import enum
from typing import Final

from leased.chain import native
from leased.chain.canonical import LEASE_ID_OFFSET
from leased.chain.findings import Walk
from leased.chain.record import HEADER_BYTES
from leased.chain.verdict import BAD_ORDER
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.event import KIND, Event


class Stage(enum.IntEnum):
    """How far a lease is."""

    NONE = 0
    GRANTED = 1
    ACTIVE = 2
    DRAINING = 3
    ENDED = 4
    REVOKING = 5
    SCRUBBING = 6
    VERIFYING = 7
    FENCED = 8
    CLOSED = 9


_S = Stage
_BEYOND: Final = 32
_LIVE: Final[dict[type[Event], Stage | None]] = {
    e.Admitted: None,
    e.Adopted: None,
    e.Preempted: None,
    e.DrainNotified: _S.DRAINING,
    e.Released: _S.ENDED,
    e.Expired: _S.ENDED,
    e.Revoked: _S.ENDED,
}
"""What may follow while the right lasts; None: the stage stays."""

FOLLOWS: Final[dict[Stage, dict[type[Event], Stage | None]]] = {
    _S.NONE: {e.Allocated: _S.GRANTED},
    _S.GRANTED: {**_LIVE, e.Activated: _S.ACTIVE},
    _S.ACTIVE: {**_LIVE, e.Renewed: None},
    _S.DRAINING: {**_LIVE, e.Activated: None},
    _S.ENDED: {e.TeardownBegun: _S.REVOKING},
    _S.REVOKING: {e.AccessCut: _S.SCRUBBING, e.Fenced: _S.FENCED},
    _S.SCRUBBING: {e.Scrubbed: _S.VERIFYING, e.Fenced: _S.FENCED},
    _S.VERIFYING: {e.Reclaimed: _S.CLOSED, e.Fenced: _S.FENCED},
    _S.FENCED: {e.Unfenced: _S.CLOSED},
}
_TABLE: Final[dict[int, int]] = {
    stage * _BEYOND + KIND[event]: stage if to is None else to
    for stage, cells in FOLLOWS.items()
    for event, to in cells.items()
}
_MIDWAY: Final[dict[int, int]] = {
    KIND[event]: stage if to is None else to
    for stage, cells in FOLLOWS.items()
    for event, to in cells.items()
}
"""Where a lease is after an event, whatever was before (the furthest of several)."""

_NAMES: Final = {kind: event.__name__ for event, kind in KIND.items()}
_LEASE_FROM: Final = HEADER_BYTES + LEASE_ID_OFFSET
_LEASE_TO: Final = _LEASE_FROM + native.ID_BYTES
_CLOSED: Final = int(_S.CLOSED)
assert native.LEASE_KINDS == e.LEASE_KINDS


def _moves() -> bytes:
    """`_TABLE` as C has it. A kind of a later release is not in it: C stops there."""
    first, moves = e.LEASE_KINDS.start, bytearray(native.STAGES * len(e.LEASE_KINDS))
    for at, to in _TABLE.items():
        stage, kind = divmod(at, _BEYOND)
        moves[stage * len(e.LEASE_KINDS) + kind - first] = to
    return bytes(moves)


_MOVES: Final = _moves()


class Grammar:
    """Follows the leases of one log. `stages` are those that are not closed, by id."""

    def __init__(self, stages: dict[bytes, int] | None = None, *, from_genesis: bool = True):
        self._leases = native.Leases(stages or {}, _MOVES, _CLOSED)
        self._from_genesis = from_genesis

    @property
    def stages(self) -> dict[bytes, int]:
        """The leases that are not closed."""
        return self._leases.stages()

    def follow(self, walk: Walk, *, file: str = "") -> None:
        """Take in verified records. Raises ChainError (BAD_ORDER) at the first that cannot
        follow."""
        index, count = 0, len(walk.offsets)
        while index < count:
            index += self._leases.follow(walk.data, walk.offsets, walk.kinds, index)
            if index < count:
                self.follow_one(walk, index, file=file)
                index += 1

    def follow_one(self, walk: Walk, index: int, *, file: str = "") -> None:
        """Take in the `index`-th record by itself. Raises ChainError (BAD_ORDER)."""
        kind, offset = walk.kinds[index], walk.offsets[index]
        if kind not in e.LEASE_KINDS:
            return
        lease = walk.data[offset + _LEASE_FROM : offset + _LEASE_TO]
        key = lease.ljust(native.ID_BYTES, b"\0")  # a body of a later release may be shorter
        stage = self._leases.stage(key)
        to = _TABLE.get(stage * _BEYOND + kind)
        if to is None:
            to = self._otherwise(stage, kind, lease, walk.first_seq + index, offset, file)
        if to != stage:
            self._leases.put(key, 0 if to == _CLOSED else to)

    def _otherwise(
        self, stage: int, kind: int, lease: bytes, sequence: int, offset: int, file: str
    ) -> int:
        """A pair that is not in the table."""
        if kind not in _NAMES:
            return stage  # of a later release: carried, not judged
        if stage == 0 and not self._from_genesis:
            return _MIDWAY[kind]
        before = "before it began" if stage == 0 else f"while it is {Stage(stage).name}"
        why = f"{_NAMES[kind]} of lease {lease.hex()} {before}"
        raise ChainError(BAD_ORDER, why, sequence=sequence, offset=offset, file=file)
