# SPDX-License-Identifier: Apache-2.0
"""The chains that a bill names, read from pulled segments: verified, folded, and whether what the
bill follows from was signed by whom it should be.

Rule: a chain is checked from its first record to the head that the bill names, every record with
its place, and with an enrolment every checkpoint and seal by the keys that were enrolled, never by
what a chain says of itself. What is not there is named by its ranges, and proves nothing
(`Missing`); what is there and does not hold is a ChainError.

Does not compute bills (`bill`) and does not ask the collector.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.canonical import Unknown, decode
from leased.chain.segment import SEGMENT_BYTES_MAX
from leased.chain.verifier import Verifier
from leased.ctl.enrolled import Signer, read_signer
from leased.durable.reading import read_file
from leased.economics.hourly import NodeFold, NodeSpan
from leased.terms.errors import ChainError, InvalidParameter
from leased.terms.event import EpochSealed, Event, NodeStarted
from leased.terms.identity import BootId, parse_id
from leased.terms.moment import Moment

_SEGMENT: Final = re.compile(r"([0-9]{20})-([0-9]{20})-[0-9a-f]{8}\.seg\Z")


class Missing(msgspec.Struct, frozen=True):
    """Records that prove nothing: `absent`, or `unsigned` (there, and below no checkpoint of the
    node's), or of a log whose signer is `unknown`."""

    why: str
    node_id: str
    log_id: str
    first: int
    last: int

    def text(self) -> str:
        """A line for people."""
        said = {
            "absent": "are not there",
            "unsigned": "are below no checkpoint that the node signed",
            "unknown": "are of a log that no --enrolment is for",
        }[self.why]
        return f"records {self.first} to {self.last} of node {self.node_id} {said}"


def read_signers(paths: Iterable[Path], now_ns: int) -> dict[str, Signer]:
    """Signers by their logs, from files or directories of them. Raises InvalidParameter."""
    found = {}
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            one = read_signer(file, now_ns)
            if not one.origin:
                raise InvalidParameter("enrolment", f"{file}: lacks the log's origin")
            found[one.log_id.hex()] = one
    return found


class Chains:
    """Pulled segments below some directories."""

    def __init__(self, archives: Sequence[Path], signers: dict[str, Signer] | None) -> None:
        """Without `signers`, checkpoints are compared with the tree and their signatures are not
        checked."""
        self._archives, self._signers = archives, signers

    def fold(self, span: NodeSpan, until_ns: int) -> tuple[NodeFold, list[Missing]]:
        """One chain up to the head that the bill names, folded; and what of its records before
        `until_ns` proves nothing. Raises ChainError."""
        absent = self._absent(span)
        if absent:
            return NodeFold(), absent
        signer = (self._signers or {}).get(span.log_id)
        verifier = _verifier(parse_id(span.log_id, "log_id"), signer)
        fold, head, relevant = NodeFold(), b"", -1
        for sequence, event, moment, digest in self._events(span, verifier):
            if sequence > span.last_sequence:
                break
            fold.observe(sequence, event, moment)
            head = digest
            if moment.wall_ns < until_ns:
                relevant = sequence
        if fold.ledger.last_sequence != span.last_sequence or head.hex() != span.head:
            raise ChainError(
                "FORK_OR_ROLLBACK",
                f"log {span.log_id} does not have the head {span.head} that the bill names",
                sequence=fold.ledger.last_sequence,
            )
        if self._signers is None:
            return fold, []
        if signer is None:
            return fold, [_missing("unknown", span, 0, span.last_sequence)]
        signed = self._signed(span, verifier, relevant)
        return fold, [] if signed > relevant else [_missing("unsigned", span, signed, relevant)]

    def _signed(self, span: NodeSpan, verifier: Verifier, relevant: int) -> int:
        """Below which record a checkpoint covers all: that of a later segment will do."""
        while (signed := verifier.verified().signed_size) <= relevant:
            if not self._found(span, verifier.verified().head.size):
                break
            self._feed(span, verifier)
        return signed

    def _absent(self, span: NodeSpan) -> list[Missing]:
        """The ranges that no segment holds. A node that has had two logs has files of both."""
        reach, gaps = 0, []
        for first, last in sorted((first, last) for first, last, _ in self._files(span)):
            if first > span.last_sequence:
                break
            if first > reach:
                gaps.append(_missing("absent", span, reach, first - 1))
            reach = max(reach, last + 1)
        if reach <= span.last_sequence:
            gaps.append(_missing("absent", span, reach, span.last_sequence))
        return gaps

    def _files(self, span: NodeSpan) -> Iterator[tuple[int, int, Path]]:
        parse_id(span.node_id, "node_id")
        for archive in self._archives:
            directory = archive / "segments" / f"node={span.node_id}"
            if not (archive / "segments").is_dir():
                why = f"{archive}: no segments/ in it: where a collector keeps what it pulled"
                raise InvalidParameter("archive", why)
            for path in sorted(directory.iterdir()) if directory.is_dir() else ():
                match = _SEGMENT.match(path.name)
                if match is not None:
                    yield int(match[1]), int(match[2]), path

    def _events(
        self, span: NodeSpan, verifier: Verifier
    ) -> Iterator[tuple[int, Event | Unknown, Moment, bytes]]:
        """Every event of a log, each record verified."""
        boot_id, boot_ns = BootId(bytes(16)), 0
        while verifier.verified().head.size <= span.last_sequence:
            walk = self._feed(span, verifier)
            for index in range(len(walk.offsets)):
                record = walk.record(index)
                event = decode(record.kind, record.schema, record.body, sequence=record.sequence)
                if isinstance(event, NodeStarted):
                    boot_id = event.boot_id
                if not isinstance(event, EpochSealed):
                    # A seal may have been written by the boot that the next NodeStarted names.
                    boot_ns = record.boot_ns
                moment = Moment(boot_id, boot_ns, record.wall_ns)
                yield record.sequence, event, moment, record.hash

    def _found(self, span: NodeSpan, size: int) -> list[tuple[int, Path]]:
        return sorted(
            ((last, path) for first, last, path in self._files(span) if first == size),
            reverse=True,
        )

    def _feed(self, span: NodeSpan, verifier: Verifier) -> Any:
        """Feed the segment that follows. Raises ChainError."""
        size = verifier.verified().head.size
        found = self._found(span, size)
        if not found:
            why = f"no segment of log {span.log_id} begins with record {size}"
            raise ChainError("GAP", why, sequence=size)
        path = found[0][1]
        if len(found) > 1 and verifier.verified().whole:
            path = self._following(span, verifier, found)
        verifier.file = path.name
        return verifier.feed(read_file(path, most=SEGMENT_BYTES_MAX))

    def _following(
        self, span: NodeSpan, verifier: Verifier, found: Sequence[tuple[int, Path]]
    ) -> Path:
        """Which of several segments goes on from here: the others are of another log of the node's,
        or the same in other pieces. A verifier that refused something is of no use any more, so
        each is tried by one of its own. Raises ChainError."""
        why: ChainError | None = None
        for _, path in found:
            one = Verifier(parse_id(span.log_id, "log_id"), file=path.name)
            if verifier.verified().head.size:
                one.resume(verifier.carried())
            try:
                one.feed(read_file(path, most=SEGMENT_BYTES_MAX))
            except ChainError as error:
                why = error
                continue
            return path
        assert why is not None, "there is more than one"
        raise why


def _missing(why: str, span: NodeSpan, first: int, last: int) -> Missing:
    return Missing(why, span.node_id, span.log_id, first, last)


def _verifier(log_id: bytes, signer: Signer | None) -> Verifier:
    if signer is None:
        return Verifier(log_id)
    return Verifier(
        log_id,
        origin=signer.origin,
        public_key=signer.public_key,
        epoch_ns=signer.epoch_ns,
        seal_key=signer.seal_key,
        latest_epoch=signer.latest_epoch,
    )
