# SPDX-License-Identifier: Apache-2.0
"""What a log that was pruned carries of the keys that it had before its beginning: the last Pruned
says their changes anew.

Rule: whoever begins to read there has to know the key in force before anything else, so this is
looked for from the end on, segment by segment: a running node prunes often. Each segment is
verified before it is believed, and the changes are followed from the first key on.

Does not check that the Pruned is right about the beginning (`countersigned`), nor that the log is
signed by the key that was found (`chain.verifier`).
"""

from __future__ import annotations

from collections.abc import Sequence

from leased.chain.canonical import decode
from leased.chain.findings import Walk
from leased.chain.keys import followed
from leased.chain.record import Record
from leased.chain.segment import HEADER_BYTES, LogIdentity, parse_header
from leased.chain.verifier import Verifier
from leased.durable.files import Disk
from leased.durable.scan import frames_end
from leased.ports import AnchorSlot
from leased.terms.errors import ChainError
from leased.terms.event import KIND, KeyChange, Pruned

_PRUNED = KIND[Pruned]


def carried_changes(
    disk: Disk, names: Sequence[str], slot: AnchorSlot, identity: LogIdentity, begins: int
) -> tuple[KeyChange, ...]:
    """How the log in the segments `names`, which begins with record `begins`, came from its first
    key to the one in force there. Raises OSError, ChainError."""
    for name in reversed(names):
        data = disk.read(name)
        header = parse_header(data, name)
        if header.segment_no > slot.segment_no:
            continue
        verifier = Verifier(identity.log_id, header.head, header.frontier, file=name)
        last = header.segment_no == slot.segment_no
        stop = slot.end_offset if last else frames_end(data)
        record = _last_pruned(verifier.feed(data, start=HEADER_BYTES, stop=stop))
        if record is not None:
            return _said(identity, record, begins, name)
    return ()


def _said(identity: LogIdentity, record: Record, begins: int, file: str) -> tuple[KeyChange, ...]:
    """What the last Pruned says of a log that begins with record `begins`; of another beginning it
    says nothing. Raises ChainError (BAD_SIGNATURE)."""
    event = decode(record.kind, record.schema, record.body, sequence=record.sequence, file=file)
    if not isinstance(event, Pruned) or event.min_seq != begins:
        return ()
    try:
        followed(identity.log_id, identity.public_key, event.key_changes)
    except ChainError as error:
        raise error.at(record.sequence, -1, file) from None
    return event.key_changes


def _last_pruned(walk: Walk) -> Record | None:
    for index in reversed(walk.judged):
        if walk.kinds[index] == _PRUNED:
            return walk.record(index)
    return None
