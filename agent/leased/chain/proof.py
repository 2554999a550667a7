# SPDX-License-Identifier: Apache-2.0
"""Inclusion proofs of RFC 6962: that a record is in the tree of a checkpoint, shown by hashes only.

Rule: a proof is judged by whoever gets it, against a note that a key they know has signed; what the
proof says of itself (origin, key) decides nothing. The hashes on the path are of whole subtrees of
records with random ids in them: they tell nothing of anybody.

Does not read records: the hash of a subtree is asked for (`durable.pages` answers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain.note import Note, NoteKey, open_note, parse_checkpoint
from leased.chain.tree import EMPTY
from leased.chain.verdict import BAD_PROOF
from leased.terms.errors import ChainError

FORMAT: Final = "leased-proof/1"
HASH_BYTES: Final = 32
PATH_MAX: Final = 64
Subtree = Callable[[int, int], bytes]
"""The hash of the tree over the records [start, stop)."""


class Proof(msgspec.Struct, frozen=True):
    """Record `sequence`, whose hash is `record_hash`, is in the tree that `checkpoint` (a signed
    note) is of; `path` leads from the leaf to the root. `vkey` is a hint at who signed."""

    format: str
    log_id: str
    origin: str
    vkey: str
    sequence: int
    size: int
    record_hash: str
    path: tuple[str, ...]
    checkpoint: str


def inclusion_path(sequence: int, size: int, subtree: Subtree) -> list[bytes]:
    """PATH(sequence, D[size]) of RFC 6962 section 2.1.1: siblings from the leaf upwards."""
    assert 0 <= sequence < size
    start, stop, path = 0, size, []
    while stop - start > 1:
        middle = start + (1 << ((stop - start - 1).bit_length() - 1))
        if sequence < middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start = middle
    return [subtree(*sibling) for sibling in reversed(path)]


def root_of_path(sequence: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes | None:
    """The root that `path` leads to from `leaf`; None if it has not the length that it must have.
    RFC 9162 section 2.1.3.2."""
    if not 0 <= sequence < size:
        return None
    first, last, node = sequence, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if first & 1 or first == last:
            node = _above(sibling, node)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            node = _above(node, sibling)
        first, last = first >> 1, last >> 1
    return node if last == 0 else None


def subtree_of(leaves: Sequence[bytes]) -> bytes:
    """The hash of a tree of these leaves."""
    return EMPTY.extended(leaves).root()


def check_proof(proof: Proof, keys: Sequence[NoteKey]) -> Note:
    """Judge a proof by keys that the reader has from elsewhere. Returns the note with the
    signatures that count. Raises ChainError (BAD_PROOF, BAD_NOTE, BAD_SIGNATURE)."""
    note = open_note(proof.checkpoint, keys)
    signed = parse_checkpoint(note.text)
    leaf, *path = [_hash(text) for text in (proof.record_hash, *proof.path)]
    if proof.format != FORMAT or len(path) > PATH_MAX:
        raise ChainError(BAD_PROOF, f"not a proof of the format {FORMAT}")
    if signed.size != proof.size or signed.origin != proof.origin:
        raise ChainError(
            BAD_PROOF,
            f"the checkpoint is of {signed.origin} at {signed.size} records, and the proof says"
            f" {proof.origin} at {proof.size}",
        )
    if root_of_path(proof.sequence, proof.size, leaf, path) != signed.root:
        raise ChainError(
            BAD_PROOF,
            f"the path does not lead from record {proof.sequence} to the root that was signed",
            sequence=proof.sequence,
        )
    return note


def _above(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _hash(text: str) -> bytes:
    """32 bytes in lower-case hex. Raises ChainError (BAD_PROOF)."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != HASH_BYTES or raw.hex() != text:
        raise ChainError(BAD_PROOF, f"not a hash: {text[:80]!r}")
    return raw
