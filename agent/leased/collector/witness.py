# SPDX-License-Identifier: Apache-2.0
"""The witness: cosigns heads of nodes' logs, and keeps a sealed log of its own of what it has
signed, found and had resolved.

Rule: in the sense of C2SP tlog-witness: a head is cosigned after every record below it was verified
and stored, and after the cosignature itself is durable in the collector's own log; never a smaller
tree than before, never two roots of one size. The own log has the same format as a node's, so that
`leasectl verify` judges the collector too. Its key is one thing, the cosigning key another. What
has no room in the own log was not begun, and may be asked for again.

Blocks as long as the disk does: the storer's thread calls it. Does not decide when (`puller`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Final

from leased import __version__
from leased.chain.evidence import collector_key, statement
from leased.chain.note import (
    COSIGNATURE_V1,
    NoteKey,
    SignatureLine,
    cosignature_message,
    parse_checkpoint,
    parse_note,
    write_note,
)
from leased.chain.signing import SEED_BYTES, Signer, parse_pem
from leased.durable.files import DirectoryDisk, write_whole
from leased.durable.log import open_log
from leased.durable.opened import OpenedLog
from leased.terms.command import NoteCountersigned
from leased.terms.errors import StateError
from leased.terms.event import (
    Event,
    HeadCosigned,
    HeadCountersigned,
    NodeStarted,
    VerdictReached,
    VerdictResolved,
)
from leased.terms.identity import BootId, EventId
from leased.terms.moment import NS_PER_S, Moment

LOG: Final = "log"
COSIGN_KEY: Final = "cosign.key"

Now = Callable[[], Moment]
Entropy = Callable[[], bytes]


class Cosigner:
    """The cosigning key, under the collector's name."""

    def __init__(self, name: str, signer: Signer) -> None:
        self._signer = signer
        self.key = NoteKey(name, signer.public_key, COSIGNATURE_V1)

    def cosign(self, text: str, time_s: int) -> SignatureLine:
        """A cosignature/v1 over a checkpoint's text."""
        raw = self._signer.sign(cosignature_message(text, time_s))
        return SignatureLine(self.key.name, self.key.key_id, time_s.to_bytes(8, "big") + raw)

    def sign(self, encoded: bytes) -> str:
        """A note that states what this collector has found."""
        text = statement(encoded)
        return write_note(text, [(collector_key(self.key), self._signer.sign(text.encode()))])


def load_cosigner(directory: Path, name: str, entropy: Entropy) -> Cosigner:
    """The cosigning key of a state directory, made if there is none. Raises StateError."""
    path = directory / COSIGN_KEY
    with closing(DirectoryDisk(directory)) as disk:
        if COSIGN_KEY not in disk.names():
            seed = (entropy() + entropy())[:SEED_BYTES]
            write_whole(disk, COSIGN_KEY, Signer(seed).pem())
        if disk.mode(COSIGN_KEY) & 0o077:
            raise StateError(f"{path}: others may read the cosigning key; run `chmod 600 {path}`")
        try:
            return Cosigner(name, parse_pem(disk.read(COSIGN_KEY)))
        except ValueError as error:
            raise StateError(f"{path}: {error}") from error


class Witness:
    """The cosigner and the collector's own log, open for writing."""

    def __init__(self, cosigner: Cosigner, log: OpenedLog, now: Now, entropy: Entropy) -> None:
        self._cosigner = cosigner
        self._log = log
        self._now = now
        self._entropy = entropy
        self._sealer = log.sealer()
        self.failed = False
        """Whether a write to the own log failed: no more is written before a restart."""
        self.tree = self._sealer.frontier
        """That of what is anchored of the own log."""
        self.told: Callable[[Sequence[Event], Sequence[int]], None] = lambda events, at: None
        """Called after each batch of the own log, where it was sealed."""

    @property
    def node_id(self) -> bytes:
        """By which the own log says whose it is."""
        return sha256(self.key.text().encode()).digest()[:16]

    @property
    def log(self) -> OpenedLog:
        """The own log."""
        return self._log

    @property
    def key(self) -> NoteKey:
        """What nodes and auditors check cosignatures against."""
        return self._cosigner.key

    def start(self) -> None:
        """The first record of a run."""
        moment, log, node_id = self._now(), self._log, self.node_id
        names = (__version__, log.filesystem, log.durability)
        begun = NodeStarted(self._id(), BootId(moment.boot_id), node_id, 1, *names)
        self._seal(begun, moment)

    def cosign(self, log_id: bytes, note: str) -> str:
        """Cosign a node's note that holds; durable before it is returned, as a note with this one
        signature. Raises OSError, StateError."""
        moment = self._now()
        text = parse_note(note).text
        checkpoint = parse_checkpoint(text)
        line = self._cosigner.cosign(text, moment.wall_ns // NS_PER_S)
        fields = (log_id, checkpoint.origin, checkpoint.size, checkpoint.root)
        time_s, raw = int.from_bytes(line.signature[:8], "big"), line.signature[8:]
        self._seal(HeadCosigned(self._id(), *fields, time_s, raw), moment)
        return write_note(text, [(self.key, line.signature)])

    def tell_verdict(
        self, log_id: bytes, origin: str, verdict: str, size: int, head: bytes, bundle: bytes
    ) -> None:
        """Seal what was found. Raises OSError, StateError."""
        evidence = sha256(bundle).digest()
        fields = (log_id, origin, verdict, size, head, evidence)
        self._seal(VerdictReached(self._id(), *fields), self._now())

    def tell_resolution(self, log_id: bytes, verdict: str, note: str) -> None:
        """Seal an operator's word. Raises OSError, StateError."""
        self._seal(VerdictResolved(self._id(), log_id, verdict, note), self._now())

    def countersign(self, head: NoteCountersigned) -> None:
        """Seal that another collector has cosigned this one's log. Raises OSError, StateError."""
        fields = (head.size, head.root, head.key_id, head.time_s, head.signature)
        self._seal(HeadCountersigned(self._id(), *fields), self._now())

    def sign(self, encoded: bytes) -> str:
        """This collector's note over an evidence bundle."""
        return self._cosigner.sign(encoded)

    def close(self) -> None:
        """Close the own log. Idempotent."""
        self._log.close()

    def _id(self) -> EventId:
        return EventId(self._entropy())

    def _seal(self, event: Event, moment: Moment) -> None:
        try:
            self._log.journal.make_room()
        except OSError as error:
            why = f"{error.strerror or error}; the next record needs another segment"
            raise StateError(f"{self._log.directory}: {why}") from error
        batch = self._sealer.seal([(event, moment)], sign=True)
        self.failed = True
        self._log.journal.commit_blocking(batch.frames, batch.count, batch.head, moment)
        self.failed = False
        if batch.ends_epoch:
            self._log.forget_epoch()
        self.tree = self._sealer.frontier
        self.told([event], batch.sequences)


def open_witness(directory: Path, name: str, *, now: Now, entropy: Entropy) -> Witness:
    """Open, or make, the cosigning key and the own log of a state directory. Raises StateError,
    ChainError."""
    cosigner = load_cosigner(directory, name, entropy)
    log = open_log(
        directory / LOG,
        moment=now(),
        entropy=entropy,
        machine_id=_machine_id(),
        origin=name,
        best_effort=True,
        segment_bytes=1 << 20,
        epoch_ns=0,
        background=False,
    )
    witness = Witness(cosigner, log, now, entropy)
    try:
        witness.start()
    except BaseException:
        witness.close()
        raise
    return witness


def _machine_id() -> bytes:
    try:
        return Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        return platform.node().encode()


def os_entropy() -> bytes:
    """`ports.Entropy` of the kernel."""
    return os.urandom(16)
