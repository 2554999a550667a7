# SPDX-License-Identifier: Apache-2.0
"""Cases: the evidence of a sticky verdict gathered, kept and sealed, and operators' resolutions.

Rule: evidence first. The bundle is durable in `evidence/`, its hash is sealed in the collector's
own log, and only then does the verdict stand. What the node says is kept if a key that it has, or
had, has signed it: anything else would spoil the bundle. A resolution counts if one of the
configured operators signed exactly this verdict at this head; it is sealed before the verdict is
lifted.

Does not judge (`reconcile`) and does not weigh (`chain.evidence`).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.evidence import FORMAT, Bundle, Start, node_keys
from leased.chain.note import NoteKey, open_note, parse_checkpoint
from leased.chain.page import split_page
from leased.chain.proof import FORMAT as PROOF_FORMAT
from leased.chain.proof import Proof, check_proof, inclusion_path, subtree_of
from leased.collector.archive.archive import Archive
from leased.collector.archive.manifest import LogEntry
from leased.collector.archive.parts import part_of
from leased.collector.archive.storing import Storer
from leased.collector.asking import ask_checkpoint, ask_proof
from leased.collector.ingest import State
from leased.collector.reconcile import Finding, Problem, Verdict
from leased.collector.transport import Connection, Unreachable
from leased.collector.witness import Witness
from leased.durable.files import DirectoryDisk, make_durably, write_whole
from leased.terms.errors import CallerError, ChainError
from leased.terms.reading import UNREADABLE

EVIDENCE: Final = "evidence"
_NAME: Final = re.compile(r"([0-9a-f]{8}|[0-9a-f]{16})-[A-Z_]+-[0-9]+-([0-9]{1,20})\.json")
_RESOLUTION: Final = "leased resolution v1"


class Case:
    """Everything about verdicts that is kept."""

    def __init__(
        self, archive: Archive, storer: Storer, wall_ns: Callable[[], int], timeout_s: float
    ) -> None:
        self._archive = archive
        self._storer = storer
        self._wall_ns = wall_ns
        self._timeout_s = timeout_s

    async def gather(
        self,
        state: State,
        entry: LogEntry,
        finding: Finding,
        connection: Connection,
        problem: Problem | None,
        page: bytes,
    ) -> Bundle:
        """A bundle, with whatever else the node still says."""
        pinned, key = state.pinned, NoteKey(state.pinned.origin, state.public_key)
        keys = node_keys(entry.log_id, key, state.rotations)
        said = problem.checkpoint if problem is not None else _note_in(page, pinned.log_id)
        other_note = _signed(finding.note or said, keys)
        proof = other_proof = None
        if finding.verdict is Verdict.FORK and state.head.size and finding.cosigned is None:
            other_proof = await self._ask_proof(connection, entry, state.head.size - 1)
            if other_proof is not None:
                proof = await self._storer.call(lambda: self._own_proof(entry, state))
            if proof is None or other_proof is None or not _differ(proof, other_proof, keys):
                proof = other_proof = None
        elif not other_note and not page:
            other_note = _signed(await self._ask_note(connection, entry), keys)
        carried = state.verifier
        peaks = tuple(one.hex() for one in carried.frontier.peaks) if carried is not None else ()
        batch = carried.batch if carried is not None else 0
        return Bundle(
            FORMAT,
            finding.verdict,
            finding.why,
            entry.name,
            pinned.node_id.hex(),
            entry.log_id,
            pinned.origin,
            key.text(),
            pinned.epoch_ns,
            self._wall_ns(),
            problem.status if problem is not None else 200,
            state.head.size,
            state.head.hash.hex(),
            _signed(entry.note, keys),
            other_note,
            proof,
            other_proof,
            Start(state.head.size, state.head.hash.hex(), peaks, batch) if page else None,
            b64encode(page).decode() if page else "",
            finding.cosigned,
            finding.root_here.hex(),
            state.rotations or msgspec.UNSET,
        )

    def close(
        self, witness: Witness, state: State, entry: LogEntry, finding: Finding, bundle: Bundle
    ) -> Path:
        """Keep a bundle and seal that it is kept. In the storer's thread. Raises OSError."""
        bundle = msgspec.structs.replace(bundle, signature=witness.sign(encode_bundle(bundle)))
        data = msgspec.json.format(msgspec.json.encode(bundle), indent=1)
        directory = self._archive.directory
        make_durably(directory, EVIDENCE)
        # No two logs that are followed begin with the same sixteen digits (`enrolment`).
        name = f"{entry.log_id[:16]}-{finding.verdict}-{state.head.size}-{bundle.found_ns}.json"
        with closing(DirectoryDisk(directory / EVIDENCE)) as disk:
            write_whole(disk, name, data)
        origin, head = state.pinned.origin, state.head
        fields = (state.pinned.log_id, origin, str(finding.verdict), head.size, head.hash)
        witness.tell_verdict(*fields, data)
        return directory / EVIDENCE / name

    def apply_resolutions(
        self, witness: Witness, entry: LogEntry, operators: Sequence[NoteKey]
    ) -> list[str]:
        """Apply what operators have left for a log; what to tell. In the storer's thread. Raises
        PartLost where it is another's now."""
        told: list[str] = []
        manifest = self._archive.manifest
        now = manifest.log(entry.log_id)
        if now is None or (now.verdict, now.head) != (entry.verdict, entry.head):
            return told  # what is resolved is to be read again
        for number, note in manifest.resolutions(entry.log_id):
            try:
                signed = open_note(note, list(operators))
                by = signed.signatures[0].name
                if signed.text.rpartition("\n")[0].rpartition("\n")[0] != resolution_head(entry):
                    raise CallerError(f"{by} resolved something else than {entry.verdict} here")
            except (ChainError, CallerError) as error:
                with manifest.transaction():
                    manifest.hold(part_of(entry.node))
                    manifest.applied(number)
                told.append(f"a resolution was refused ([pull] operators: whose count): {error}")
                continue
            witness.tell_resolution(bytes.fromhex(entry.log_id), entry.verdict, note)
            with manifest.transaction():
                manifest.applied(number)
                manifest.set(entry.log_id, entry.head, verdict=str(Verdict.BEHIND), why="")
            told.append(f"{entry.verdict} was resolved by {by}")
            break
        return told

    async def _ask_note(self, connection: Connection, entry: LogEntry) -> str:
        """What the node signs now; "" if it says nothing more."""
        if not connection.reusable:
            return ""
        try:
            note = await ask_checkpoint(connection, entry.log_id, timeout_s=self._timeout_s)
        except Unreachable:
            return ""
        return note if isinstance(note, str) else note.checkpoint

    async def _ask_proof(
        self, connection: Connection, entry: LogEntry, sequence: int
    ) -> Proof | None:
        """The node's proof of the record that it has in place of ours."""
        if not connection.reusable:
            return None
        try:
            raw = await ask_proof(connection, entry.log_id, sequence, timeout_s=self._timeout_s)
            return None if isinstance(raw, Problem) else msgspec.json.decode(raw, type=Proof)
        except (Unreachable, *UNREADABLE):
            return None

    def _own_proof(self, entry: LogEntry, state: State) -> Proof | None:
        """Our proof that the record before the head is in the tree the node signed for us."""
        if entry.signed_size != state.head.size:
            return None
        hashes = list(self._archive.hashes(entry.log_id))
        sequence, size = state.head.size - 1, state.head.size
        path = inclusion_path(sequence, size, lambda start, stop: subtree_of(hashes[start:stop]))
        key = NoteKey(state.pinned.origin, state.public_key)
        return Proof(
            PROOF_FORMAT,
            entry.log_id,
            state.pinned.origin,
            key.text(),
            sequence,
            size,
            hashes[-1].hex(),
            tuple(one.hex() for one in path),
            entry.note,
        )


def bundles_of(state: Path, entry: LogEntry) -> list[Path]:
    """The bundles of what a log is now, newest first. Those of before have eight digits of it in
    their names, which another log may have, too."""
    found: list[tuple[int, Path]] = []
    for path in (state / EVIDENCE).glob(f"{entry.log_id[:8]}*-{entry.verdict}-*.json"):
        match = _NAME.fullmatch(path.name)
        if match is not None and entry.log_id.startswith(match[1]):
            found.append((int(match[2]), path))
    return [path for _, path in sorted(found, reverse=True)]


def _note_in(page: bytes, log_id: bytes) -> str:
    """The node's note at the end of a page that does not hold; "" if it has none."""
    try:
        return split_page(page, log_id)[1].note if page else ""
    except ChainError:
        return ""


def _signed(note: str, keys: Sequence[NoteKey]) -> str:
    """A note if it is a checkpoint by one of these keys; else ""."""
    try:
        checkpoint = parse_checkpoint(open_note(note, keys).text)
    except ChainError:
        return ""
    return note if checkpoint.origin == keys[0].name else ""


def _differ(one: Proof, other: Proof, keys: Sequence[NoteKey]) -> bool:
    """Whether two proofs show two records in one place."""
    try:
        for proof in (one, other):
            check_proof(proof, keys)
    except ChainError:
        return False
    return one.sequence == other.sequence and one.record_hash != other.record_hash


def encode_bundle(bundle: Bundle) -> bytes:
    """What is signed of a bundle: all of it but the signature, as one line of JSON."""
    return msgspec.json.encode(msgspec.structs.replace(bundle, signature=""))


def resolution_head(entry: LogEntry) -> str:
    """The lines of a resolution that say what is resolved."""
    return f"{_RESOLUTION}\n{entry.log_id}\n{entry.verdict}\n{entry.head.text()}"


def resolution_text(entry: LogEntry, reason: str) -> str:
    """What an operator signs. Raises CallerError."""
    if not reason.strip() or "\n" in reason:
        raise CallerError("a reason is one line that says why")
    return f"{resolution_head(entry)}\n{reason}\n"
