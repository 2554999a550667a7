# SPDX-License-Identifier: Apache-2.0
"""The one encoding of an event to bytes: MessagePack in a strict profile, one positional array per
(kind, schema).

Rule: there is exactly one legal encoding of a value. What decodes but does not encode back to the
same bytes is refused. Heads are the shortest that fit; only integers of at most 64 bits, byte
strings, UTF-8 text, nil, bool and arrays occur. An integer that may need more (capacity x ns of a
terabyte over an hour) is 16 bytes big-endian, like an id.

Does not frame, hash or link (`record`, `sealer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from leased.chain.shapes import compile_shapes
from leased.chain.verdict import BAD_BODY
from leased.terms.errors import ChainError, InvariantError
from leased.terms.event import (
    KIND,
    Event,
    Fenced,
    KeyChange,
    LeaseEvent,
    Pruned,
    Reclaimed,
    Refused,
    Wide,
)
from leased.terms.identity import ID, CommandId, Hash, TenantId
from leased.terms.resource import Allotment, ResourceKind

SCHEMA: Final = 1
"""Of nearly every body. Where a kind has two, an event is of the first that can say it."""

WIDE_BYTES: Final = 16

_MANY: Final = 4
"""With fewer bodies than that a native call costs more than it saves."""

LEASE_ID_OFFSET: Final = 21
"""Where the 16 bytes of the lease id begin in the body of a lease event: array head, event id,
two-byte bin head."""

_ENCODER = msgspec.msgpack.Encoder()


class Unknown(msgspec.Struct, frozen=True):
    """A record of a kind or schema this release does not know: carried and counted, never
    dropped."""

    kind: int
    schema: int
    body: bytes


class _ReclaimedBody(LeaseEvent, frozen=True, array_like=True):
    """`Reclaimed` as stored: the capacity x ns integers are 16 bytes each."""

    held_capacity_ns: tuple[Wide, ...]
    cut_lag_ns: int
    proof_lag_ns: int
    utilization_mean_pm: int | None
    utilization_max_pm: int | None
    active_share_pm: int | None
    sample_count: int
    coverage_pm: int
    evidence: bytes


class _FencedBody(LeaseEvent, frozen=True, array_like=True):
    """`Fenced` as stored: the capacity x ns integers are 16 bytes each."""

    fenced: tuple[Allotment, ...]
    step: int
    errno: int
    held_capacity_ns: tuple[Wide, ...]
    cut_lag_ns: int
    evidence: bytes


class _RefusedFirst(Event, frozen=True, array_like=True):
    """`Refused` in schema 1, which says of no kind."""

    tenant: TenantId
    uid: int
    command_id: Annotated[CommandId, ID]
    reason: int
    limit: int
    usage: int
    requested: int


class _RefusedSecond(_RefusedFirst, frozen=True, array_like=True):
    """`Refused` in schema 2: of a kind."""

    resource_kind: ResourceKind


class _PrunedFirst(Event, frozen=True, array_like=True):
    """`Pruned` in schema 1, of a log that has its first key there."""

    min_seq: int
    head: Hash
    segments: int
    acked_size: int


class _PrunedSecond(_PrunedFirst, frozen=True, array_like=True):
    """`Pruned` in schema 2: how the log came to the key that it has there."""

    key_changes: Annotated[tuple[KeyChange, ...], msgspec.Meta(min_length=1)]


_STORED: Final[dict[type[Event], type[LeaseEvent]]] = {
    Reclaimed: _ReclaimedBody,
    Fenced: _FencedBody,
}
_SAID: Final[dict[type[Event], tuple[str, type[Event], type[Event]]]] = {
    Refused: ("resource_kind", _RefusedFirst, _RefusedSecond),
    Pruned: ("key_changes", _PrunedFirst, _PrunedSecond),
}
"""Of two schemas: what only the second says, and both."""

_FIRST: Final[dict[type[Event], type[Event]]] = {
    **_STORED,
    **{event: first for event, (_, first, _) in _SAID.items()},
}
_EVENT_OF: Final[dict[int, type[Event]]] = {kind: event for event, kind in KIND.items()}
_BODY_OF: Final[dict[tuple[int, int], type[Event]]] = {
    **{(kind, SCHEMA): _FIRST.get(event, event) for event, kind in KIND.items()},
    **{(KIND[event], 2): second for event, (_, _, second) in _SAID.items()},
}
_DECODERS: Final[dict[tuple[int, int], msgspec.msgpack.Decoder[Event]]] = {
    of: msgspec.msgpack.Decoder(body) for of, body in _BODY_OF.items()
}
SHAPES: Final = compile_shapes(_BODY_OF)
"""What `decode` would take, said natively. Where the two could differ there is no shape; that what
fits one is taken is a property test's word."""

KNOWN: Final = frozenset(_BODY_OF)
"""The bodies that this release knows, by (kind, schema)."""


def schema_of(event: Event) -> int:
    """The schema that `encode` uses for an event."""
    said = _SAID.get(type(event))
    # Nothing is said by None, and by an empty array.
    return 2 if said is not None and getattr(event, said[0]) not in (None, ()) else SCHEMA


def encode(event: Event) -> bytes:
    """Return the body of `event`. Raises InvariantError for a value that has no encoding or does
    not read back."""
    [(_, body, _)] = written([event])
    return body


def written(events: Sequence[Event]) -> list[tuple[int, bytes, int]]:
    """Kind, body and schema of each, as they are sealed. Raises InvariantError, as `encode`
    does."""
    sealed: list[tuple[int, bytes, int]] = []
    for event in events:
        stored = _narrow(event) if type(event) in _FIRST else event
        try:
            body = _ENCODER.encode(stored)
        except (OverflowError, TypeError, ValueError) as error:
            raise _unwritable(event, error) from error
        sealed.append((KIND[type(event)], body, schema_of(event)))
    # A wrong type inside a field (a float of ns, a bool for a count, an id of 15 bytes) must be
    # found before it is sealed for ever.
    plain = _plain(sealed)
    for event, (kind, body, schema) in zip(events[plain:], sealed[plain:], strict=True):
        try:
            _DECODERS[kind, schema].decode(body)
        except ValueError as error:
            raise _unwritable(event, error) from error
    return sealed


def _plain(sealed: Sequence[tuple[int, bytes, int]]) -> int:
    """How many, from the first on, need not be read back: their shapes say it. Of a few a decoder
    says it sooner."""
    if len(sealed) < _MANY:
        return 0
    kinds, bodies, schemas = zip(*sealed, strict=True)
    return SHAPES.plain_unframed(bodies, kinds, schemas)


def _unwritable(event: Event, error: Exception) -> InvariantError:
    return InvariantError(f"{type(event).__name__} has no canonical form: {error}")


def decode(
    kind: int, schema: int, body: bytes, *, sequence: int = -1, offset: int = -1, file: str = ""
) -> Event | Unknown:
    """Return the event that `body` is the one legal encoding of, or Unknown. The rest locates a
    ChainError."""
    decoder = _DECODERS.get((kind, schema))
    if decoder is None:
        return Unknown(kind, schema, body)
    try:
        stored = decoder.decode(body)
        if _ENCODER.encode(stored) == body:
            return _widen(kind, stored) if _EVENT_OF[kind] in _FIRST else stored
        why = f"{_EVENT_OF[kind].__name__} is not in canonical form"
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        why = f"{_EVENT_OF[kind].__name__}: {error}"
    raise ChainError(BAD_BODY, why, sequence=sequence, offset=offset, file=file)


def _narrow(event: Event) -> Event:
    """Return the stored form of an event with wide integers, or of more than one schema."""
    fields = msgspec.structs.asdict(event)
    said = _SAID.get(type(event))
    if said is not None:
        name, first, second = said
        if schema_of(event) == 2:
            return second(**fields)
        del fields[name]
        return first(**fields)
    fields["held_capacity_ns"] = tuple(
        n.to_bytes(WIDE_BYTES, "big") for n in fields["held_capacity_ns"]
    )
    return _STORED[type(event)](**fields)


def _widen(kind: int, stored: Event) -> Event:
    """Undo `_narrow`."""
    fields = msgspec.structs.asdict(stored)
    if _EVENT_OF[kind] in _SAID:
        return _EVENT_OF[kind](**fields)
    fields["held_capacity_ns"] = tuple(
        int.from_bytes(raw, "big") for raw in fields["held_capacity_ns"]
    )
    return _EVENT_OF[kind](**fields)
