# SPDX-License-Identifier: Apache-2.0
"""Gossip: what other collectors have cosigned of a log, compared with what this one holds of it.

Rule: whoever shows one history to one collector and another to the next is found as soon as the two
read each other's own log: a head that another has cosigned is of the tree that is held here, or it
is a fork. A head that lies beyond the end of the log, as the node says that it ends after that head
was known here, is a rollback: a log never shrinks. A head that lies beyond what was pulled says
nothing yet.

Does not pull other collectors' logs (`puller`) and does not keep heads (`heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from leased.chain.canonical import decode
from leased.chain.evidence import Cosigned
from leased.chain.record import HEADER, hash_prefix, parse_frame
from leased.collector.ingest import QUIET_KINDS, State, Taken
from leased.collector.reconcile import Finding, Verdict
from leased.terms.event import KIND, HeadCosigned

_COSIGNED = KIND[HeadCosigned]
_KEPT = range(1 << 63)


class PeerHead(msgspec.Struct, frozen=True):
    """A head of `log_id` that the collector `peer` says it has cosigned, in record `sequence` of
    its own log."""

    peer: str
    sequence: int
    log_id: bytes
    origin: str
    size: int
    root: bytes
    time_s: int
    signature: bytes


def heads_in(frames: bytes, peer: str, log_id: bytes) -> list[PeerHead]:
    """What a page of the log `log_id` of the collector `peer` says it has cosigned. The page has
    been verified; a head that no database keeps is of no log."""
    found, offset, prefix = [], 0, hash_prefix(log_id)
    while offset < len(frames):
        length, _, sequence, _, kind, *_ = HEADER.unpack_from(frames, offset)
        if kind == _COSIGNED:
            record = parse_frame(frames[offset : offset + length], 0, prefix)
            event = decode(record.kind, record.schema, record.body, sequence=sequence)
            if isinstance(event, HeadCosigned) and _can_be_kept(event):
                fields = (event.log_id, event.origin, event.size, event.root, event.time_s)
                found.append(PeerHead(peer, sequence, *fields, event.signature))
        offset += length
    return found


def _can_be_kept(event: HeadCosigned) -> bool:
    return event.size in _KEPT and event.time_s in _KEPT and "\0" not in event.origin


def hushed(taken: Taken, before: State, collectors: frozenset[bytes]) -> Taken:
    """A page of another collector's own log, which is no news where all it adds is that logs of
    collectors (by their ids) were cosigned: their acknowledgements would chase each other."""
    if before.loud or not taken.state.loud:
        return taken
    offset, prefix = 0, hash_prefix(taken.state.pinned.log_id)
    while offset < len(taken.frames):
        length, _, sequence, _, kind, *_ = HEADER.unpack_from(taken.frames, offset)
        if kind not in QUIET_KINDS:
            record = parse_frame(taken.frames[offset : offset + length], 0, prefix)
            event = decode(record.kind, record.schema, record.body, sequence=sequence)
            if not isinstance(event, HeadCosigned) or event.log_id not in collectors:
                return taken
        offset += length
    return msgspec.structs.replace(taken, state=msgspec.structs.replace(taken.state, loud=False))


def judge_heads(
    heads: Iterable[PeerHead],
    size: int,
    root_at: Callable[[int], bytes],
    *,
    ends_at: int | None = None,
) -> tuple[Finding, PeerHead] | None:
    """Compare heads with a log of which `size` records are held, whose first n have the root
    `root_at(n)`. `ends_at`: the node has said, after all of these heads were known, that its log
    ends there. None: nothing speaks against it."""
    for head in heads:
        ours = root_at(head.size) if head.size <= size else b""
        told = Cosigned(head.peer, head.size, head.root.hex(), head.time_s, head.signature.hex())
        if ours and ours != head.root:
            why = f"{head.peer} was given another tree of {head.size} records, and cosigned it"
            return Finding(Verdict.FORK, why, cosigned=told, root_here=ours), head
        if ends_at is not None and head.size > ends_at:
            why = f"the node ends at {ends_at} records, and gave {head.size} to {head.peer}"
            return Finding(Verdict.ROLLBACK, why, cosigned=told), head
    return None


def answered(
    heads: Iterable[PeerHead], verdict: Verdict, size: int, root_at: Callable[[int], bytes]
) -> list[PeerHead]:
    """Those that speak for a verdict on a log that ends at `size`, which an operator has resolved:
    they would have it reached again at every turn, and no record takes back what they say."""
    if verdict is Verdict.FORK:
        return [one for one in heads if one.size <= size and root_at(one.size) != one.root]
    if verdict is Verdict.ROLLBACK:
        return [one for one in heads if one.size > size]
    return []
