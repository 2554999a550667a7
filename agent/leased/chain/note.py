# SPDX-License-Identifier: Apache-2.0
"""C2SP signed notes, tlog checkpoints and witness cosignatures, as text.

Rule: as the C2SP specifications say (signed-note, tlog-checkpoint, tlog-cosignature): unknown
signatures are ignored, a known key with a bad signature refuses the note. The key name of a log is
its origin.

Does not hold keys and does not decide when to sign (`sealer`).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verifies
from leased.chain.verdict import BAD_NOTE, BAD_SIGNATURE
from leased.terms.errors import ChainError

ED25519: Final = 0x01
COSIGNATURE_V1: Final = 0x04
NOTE_BYTES_MAX: Final = 65_536
SIZE_DIGITS_MAX: Final = 19
_DASH = "\u2014 "
_CONTROL: Final = re.compile("[\0-\t\v-\x1f]")
"""The specification forbids them; a database's text cannot hold all of them."""


class NoteKey(msgspec.Struct, frozen=True):
    """A public key that notes are checked against: its name, what it signs (`kind`), its 32
    bytes."""

    name: str
    public_key: bytes
    kind: int = ED25519

    @property
    def key_id(self) -> bytes:
        """The four bytes that stand before its signatures."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public_key).digest()[
            :4
        ]

    def text(self) -> str:
        """The verifier key text `name+keyid+base64`, as other C2SP tools read it."""
        encoded = b64encode(bytes([self.kind]) + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"


class Checkpoint(msgspec.Struct, frozen=True):
    """The tree of `size` records of the log `origin` has `root`."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"


class SignatureLine(msgspec.Struct, frozen=True):
    """One signature of a note; `signature` is what follows the key id."""

    name: str
    key_id: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A text and who signed it."""

    text: str
    signatures: tuple[SignatureLine, ...]


def parse_key(text: str) -> NoteKey:
    """Return the key that a verifier key text `name+keyid+base64` stands for. Raises ChainError
    (BAD_NOTE)."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    blob = _decode(encoded)
    if not name or any(char.isspace() for char in name) or len(blob) != 1 + PUBLIC_KEY_BYTES:
        raise ChainError(BAD_NOTE, f"not a verifier key, name+keyid+base64: {text[:80]!r}")
    key = NoteKey(name, blob[1:], blob[0])
    if key.kind not in (ED25519, COSIGNATURE_V1):
        raise ChainError(BAD_NOTE, f"{name}: keys of type {key.kind:#04x} are not known here")
    if key.key_id.hex() != key_id:
        raise ChainError(BAD_NOTE, f"{name}: the key id {key_id[:16]} is not that of the key")
    return key


def log_origin(prefix: str, log_id: bytes) -> str:
    """Return the origin of a log: the operator's prefix and the first 8 hex digits of the log
    id."""
    return f"{prefix}/{log_id.hex()[:8]}"


def write_note(text: str, signatures: Sequence[tuple[NoteKey, bytes]]) -> str:
    """Return `text` followed by its signature lines."""
    lines = (
        f"{_DASH}{key.name} {b64encode(key.key_id + raw).decode()}\n" for key, raw in signatures
    )
    return text + "\n" + "".join(lines)


def parse_note(raw: str) -> Note:
    """Take a signed note apart. Raises ChainError (BAD_NOTE)."""
    text, separator, tail = raw.rpartition("\n\n")
    is_text = len(raw) <= NOTE_BYTES_MAX and not _CONTROL.search(raw)
    if not is_text or not separator or not tail.endswith("\n"):
        raise ChainError(BAD_NOTE, "a note is text, an empty line and signature lines")
    lines = []
    for line in tail[:-1].split("\n"):
        name, space, encoded = line.removeprefix(_DASH).rpartition(" ")
        if not line.startswith(_DASH) or not space or not name or " " in name or "+" in name:
            raise ChainError(BAD_NOTE, f"not a signature line: {line[:80]!r}")
        blob = _decode(encoded)
        if len(blob) < 5:
            raise ChainError(BAD_NOTE, f"signature of {name} is too short")
        lines.append(SignatureLine(name, blob[:4], blob[4:]))
    return Note(text + "\n", tuple(lines))


def open_note(raw: str, keys: Sequence[NoteKey]) -> Note:
    """Return the note with only the signatures by `keys`, each checked; at least one. Raises
    ChainError."""
    note = parse_note(raw)
    known = {(key.name, key.key_id): key for key in keys}
    checked = []
    for line in note.signatures:
        key = known.get((line.name, line.key_id))
        if key is None:
            continue
        if not _line_verifies(note.text, line, key):
            raise ChainError(BAD_SIGNATURE, f"the signature of {line.name} does not hold")
        checked.append(line)
    if not checked:
        raise ChainError(BAD_SIGNATURE, "no signature by a known key")
    return Note(note.text, tuple(checked))


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint that a note's text states. Raises ChainError (BAD_NOTE)."""
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not lines[0]:
        raise ChainError(BAD_NOTE, "a checkpoint is three lines: origin, size, root")
    origin, size, root = lines[:3]
    canonical_size = size.isascii() and size.isdecimal() and (size == "0" or size[0] != "0")
    canonical_size = canonical_size and len(size) <= SIZE_DIGITS_MAX
    if not canonical_size or len(_decode(root)) != 32:
        raise ChainError(
            BAD_NOTE, "a checkpoint's size is decimal and its root is 32 bytes in base64"
        )
    return Checkpoint(origin, int(size), _decode(root))


def cosignature_message(text: str, time_s: int) -> bytes:
    """What a witness signs: at `time_s` this was the largest consistent tree it had seen."""
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _line_verifies(text: str, line: SignatureLine, key: NoteKey) -> bool:
    """Whether one known signature line holds."""
    if key.kind == ED25519:
        return len(line.signature) == SIGNATURE_BYTES and verifies(
            key.public_key, text.encode(), line.signature
        )
    if key.kind == COSIGNATURE_V1 and len(line.signature) == 8 + SIGNATURE_BYTES:
        time_s = int.from_bytes(line.signature[:8], "big")
        return verifies(key.public_key, cosignature_message(text, time_s), line.signature[8:])
    return False


def _decode(encoded: str) -> bytes:
    """Return the bytes of strict base64. Raises ChainError (BAD_NOTE)."""
    try:
        raw = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ChainError(BAD_NOTE, f"not base64: {encoded[:80]!r}") from error
    if b64encode(raw).decode() != encoded:
        raise ChainError(BAD_NOTE, f"not the one base64 form: {encoded[:80]!r}")
    return raw
