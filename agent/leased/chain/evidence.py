# SPDX-License-Identifier: Apache-2.0
"""Evidence bundles: what a collector keeps of a sticky verdict, and what of it anybody can check
with public keys alone.

Rule: what is proven and what rests on the collector's word are told apart. Two signed trees that
cannot be of one log are a proof: of one size with two roots, or with two different records in one
place (each shown to be in its tree by an inclusion proof). That a node served a page which does not
hold, or answered with less than it had, is the collector's word, which it signed; the page is
checked again from the place that the node's own note is of. Whoever knows one key of the node knows
those before and after it, by the rotations in the bundle: a host that was put back to an earlier
state signs with the key that it had then.

Does not gather bundles (`collector.case`) and reads no files.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from leased.chain.bodies import check_bodies
from leased.chain.grammar import Grammar
from leased.chain.head import Head
from leased.chain.note import (
    ED25519,
    Checkpoint,
    NoteKey,
    cosignature_message,
    open_note,
    parse_checkpoint,
)
from leased.chain.page import split_page
from leased.chain.proof import HASH_BYTES, Proof, check_proof
from leased.chain.signing import rotation_message, verifies
from leased.chain.tree import Frontier
from leased.chain.verdict import BAD_NOTE, BAD_PROOF, BAD_ROOT, BAD_SIGNATURE
from leased.chain.verifier import Verifier
from leased.terms.errors import ChainError
from leased.terms.event import KIND, KeyChange, Pruned

FORMAT: Final = "leased-evidence/1"


class Start(msgspec.Struct, frozen=True):
    """Where a page begins: head and tree before it, and the batch number there."""

    size: int
    head: str
    peaks: tuple[str, ...]
    batch: int


class Rotation(msgspec.Struct, frozen=True):
    """One replacement of a node's key, in hex, as its KeyRotated record has it: signed by both."""

    old: str
    new: str
    signature_old: str
    signature_new: str

    def change(self) -> KeyChange:
        """As a record says it anew. Raises ValueError for hex that is none."""
        fields = (self.new, self.signature_old, self.signature_new)
        return KeyChange(*(bytes.fromhex(one) for one in fields))


class Cosigned(msgspec.Struct, frozen=True):
    """What another collector says it has cosigned of the log: a tree of `size` records."""

    peer: str
    size: int
    root: str
    time_s: int
    signature: str


class Bundle(msgspec.Struct, frozen=True):
    """One case. Hashes and ids in hex, notes as text, the page in base64. `note` is the node's
    newest note that held, `other_note` what it signed besides; `proof` and `other_proof` show one
    sequence in both trees; `cosigned` is what another collector was given, where the first records
    here, as many, have the root `root_here`; `vkey` is the node's key as the collector knew it,
    `rotations` (left out where there were none) how it came to that from the first. `signature` is
    the collector's note over everything else (`statement`)."""

    format: str
    verdict: str
    why: str
    name: str
    node_id: str
    log_id: str
    origin: str
    vkey: str
    epoch_ns: int
    found_ns: int
    status: int
    size: int
    head: str
    note: str = ""
    other_note: str = ""
    proof: Proof | None = None
    other_proof: Proof | None = None
    start: Start | None = None
    page: str = ""
    cosigned: Cosigned | None = None
    root_here: str = ""
    rotations: tuple[Rotation, ...] | msgspec.UnsetType = msgspec.UNSET
    signature: str = ""


class Weighed(msgspec.Struct, frozen=True):
    """What a bundle comes to: sentences that are proven, and those that are somebody's word."""

    proven: tuple[str, ...]
    told: tuple[str, ...]
    collectors: tuple[str, ...] = ()
    """The names of the keys, of those that were given, by which it was signed or cosigned."""


def statement(encoded: bytes) -> str:
    """What the collector signs: the hash of the bundle's canonical bytes, the signature left
    out."""
    return f"leased evidence v1\n{sha256(encoded).hexdigest()}\n"


def weigh(
    bundle: Bundle, encoded: bytes, node: NoteKey, collectors: Sequence[NoteKey] = ()
) -> Weighed:
    """Check everything in a bundle that can be checked. `encoded` is it without its signature.
    Raises ChainError where something in it does not hold: then it is no evidence."""
    if bundle.format != FORMAT:
        raise ChainError(BAD_PROOF, f"not a bundle of the format {FORMAT}")
    if not 0 <= bundle.found_ns < 1 << 64:
        raise ChainError(BAD_PROOF, "it was found at no time that there is")
    proven: list[str] = []
    told = [f"{bundle.verdict}: {bundle.why}"]
    keys = node_keys(bundle.log_id, node, bundle.rotations or ())
    first = _checked(bundle, bundle.note, keys)
    other = _checked(bundle, bundle.other_note, keys)
    for signed, note in ((first, bundle.note), (other, bundle.other_note)):
        if signed is not None and (signed is first or signed != first):
            by = _by_whom(bundle, note, keys)
            proven.append(f"{bundle.origin} signed a tree of {signed.size} records{by}")
    if first is not None and other is not None and _fork(first, other):
        proven.append(f"two roots of {first.size} records: two histories of one log")
    if bundle.proof is not None and bundle.other_proof is not None:
        proven.append(_two_records(bundle, keys))
    if bundle.page:
        told.append(_replay(bundle, keys, first))
    names: list[str] = []
    if bundle.cosigned is not None:
        _weigh_cosigned(bundle, bundle.cosigned, first, collectors, (proven, told, names))
    if bundle.signature and collectors:
        vouched = open_note(bundle.signature, list(collectors))
        if vouched.text != statement(encoded):
            raise ChainError(BAD_PROOF, "the collector signed another bundle")
        told.append(f"signed by {vouched.signatures[0].name}")
        names.append(vouched.signatures[0].name)
    elif bundle.signature:
        told.append("signed by a collector whose key was not given")
    return Weighed(tuple(proven), tuple(told), tuple(names))


def node_keys(log_id: str, node: NoteKey, rotations: Sequence[Rotation]) -> list[NoteKey]:
    """The key that is known, and those that the node had before and after it. Raises ChainError
    (BAD_SIGNATURE) for a rotation that both keys have not signed, ValueError for hex that is
    none."""
    of: dict[bytes, list[Rotation]] = {}
    for one in rotations:
        for end in _ends(one):
            of.setdefault(end, []).append(one)
    known: dict[bytes, None] = {node.public_key: None}
    left = [node.public_key]
    while left:
        for found in of.pop(left.pop(), ()):
            old, new = bytes.fromhex(found.old), bytes.fromhex(found.new)
            if old in known and new in known:
                continue
            message = rotation_message(bytes.fromhex(log_id), old, new)
            for key, signature in ((old, found.signature_old), (new, found.signature_new)):
                if not verifies(key, message, bytes.fromhex(signature)):
                    raise ChainError(BAD_SIGNATURE, "the key rotation is not signed by both keys")
                if key not in known:
                    known[key] = None
                    left.append(key)
    return [NoteKey(node.name, key, node.kind) for key in known]


def led_to(key: bytes, rotations: Sequence[Rotation]) -> list[Rotation]:
    """Those that led to `key`, from the first on, whatever their order."""
    of = {bytes.fromhex(one.new): one for one in rotations}
    found: list[Rotation] = []
    while key in of:
        found.append(of.pop(key))
        key = bytes.fromhex(found[-1].old)
    return found[::-1]


def _ends(rotation: Rotation) -> set[bytes]:
    return {bytes.fromhex(rotation.old), bytes.fromhex(rotation.new)}


def collector_key(cosigner: NoteKey) -> NoteKey:
    """The key that checks a collector's statements: the same bytes as its cosigning key, for plain
    notes."""
    return NoteKey(cosigner.name, cosigner.public_key, ED25519)


def _weigh_cosigned(
    bundle: Bundle,
    cosigned: Cosigned,
    first: Checkpoint | None,
    collectors: Sequence[NoteKey],
    into: tuple[list[str], list[str], list[str]],
) -> None:
    """What another collector was given, beside what this one was. Raises ValueError for hex that
    is none."""
    proven, told, names = into
    root, signature = bytes.fromhex(cosigned.root), bytes.fromhex(cosigned.signature)
    text = Checkpoint(bundle.origin, cosigned.size, root).text()
    message = cosignature_message(text, cosigned.time_s)
    by = [key for key in collectors if verifies(key.public_key, message, signature)]
    what = f"a tree of {cosigned.size} records with the root {cosigned.root}"
    if by:
        names.append(by[0].name)
        proven.append(f"{by[0].name} cosigned {what}")
    else:
        told.append(f"{cosigned.peer} cosigned {what}, by a key that was not given")
    if first is not None and first.size == cosigned.size and first.root != root:
        proven.append(f"{bundle.origin} signed another tree of {first.size} records")
    elif bundle.root_here:
        told.append(f"the first {cosigned.size} records here have the root {bundle.root_here}")


def _by_whom(bundle: Bundle, note: str, keys: Sequence[NoteKey]) -> str:
    """Words for a key that is not the one that was in force when the case was found."""
    signed = {line.key_id for line in open_note(note, keys).signatures}
    current = {key.key_id for key in keys if key.text() == bundle.vkey}
    return "" if signed & current or not current else ", by a key that it has replaced since"


def _checked(bundle: Bundle, note: str, keys: Sequence[NoteKey]) -> Checkpoint | None:
    if not note:
        return None
    checkpoint = parse_checkpoint(open_note(note, keys).text)
    if checkpoint.origin != bundle.origin:
        raise ChainError(BAD_NOTE, f"a note of {checkpoint.origin} in a case of {bundle.origin}")
    return checkpoint


def _fork(first: Checkpoint, other: Checkpoint) -> bool:
    return first.size == other.size and first.root != other.root


def _two_records(bundle: Bundle, keys: Sequence[NoteKey]) -> str:
    """Two inclusion proofs of one sequence with different records. Raises ChainError."""
    one, two = bundle.proof, bundle.other_proof
    assert one is not None and two is not None
    for proof in (one, two):
        check_proof(proof, keys)
    if one.sequence != two.sequence or one.record_hash == two.record_hash:
        raise ChainError(BAD_PROOF, "the two proofs are not of two records in one place")
    return f"record {one.sequence} is two different records in two signed trees: a fork"


def _hashes(start: Start) -> tuple[bytes, tuple[bytes, ...]]:
    """Head and peaks of where a page begins. Raises ChainError if no tree of its size has them."""
    try:
        head, *peaks = (bytes.fromhex(one) for one in (start.head, *start.peaks))
    except ValueError as error:
        raise ChainError(BAD_PROOF, f"where the page begins: {error}") from error
    if not 0 <= start.size < 1 << 64 or len(peaks) != start.size.bit_count():
        raise ChainError(BAD_PROOF, f"{len(peaks)} peaks are of no tree of {start.size} records")
    if any(len(one) != HASH_BYTES for one in (head, *peaks)):
        raise ChainError(BAD_PROOF, "where the page begins is said by hashes that are none")
    return head, tuple(peaks)


def _replay(bundle: Bundle, keys: Sequence[NoteKey], signed: Checkpoint | None) -> str:
    """Check the page again, from where it begins. Raises ChainError if it holds after all, or
    does not begin where it says."""
    start = bundle.start
    if start is None:
        raise ChainError(BAD_PROOF, "a page without where it begins")
    head, peaks = _hashes(start)
    frontier = Frontier(start.size, peaks)
    if signed is not None and signed.size == start.size and signed.root != frontier.root():
        raise ChainError(BAD_ROOT, "the page does not begin where the node's note says")
    log_id = bytes.fromhex(bundle.log_id)
    page = b64decode(bundle.page)
    node = next((key for key in keys if key.text() == bundle.vkey), keys[0])
    led = led_to(node.public_key, bundle.rotations or ())
    verifier = Verifier(
        log_id,
        Head(start.size, head),
        frontier,
        batch=start.batch,
        origin=bundle.origin,
        public_key=bytes.fromhex(led[0].old) if led else node.public_key,
        key_changes=[one.change() for one in led],
        epoch_ns=bundle.epoch_ns,
        bodies=True,
    )
    try:
        end, trailer = split_page(page, log_id)
        walk = verifier.feed(page, stop=end)
        check_bodies(walk)
        Grammar(from_genesis=start.size == 0).follow(walk)
        now = NoteKey(bundle.origin, verifier.verified().public_key or node.public_key)
        checkpoint = parse_checkpoint(open_note(trailer.note, [*keys, now]).text)
    except ChainError as error:
        return f"the page that the node served does not hold: {error}"
    if checkpoint.root != verifier.verified().frontier.root():
        return f"the node signed another tree than that of the {checkpoint.size} records it served"
    if bundle.verdict == "BAD_SEAL":
        return "the page holds but for its seals, which the holder of their key judges"
    if bundle.verdict == "BAD_SIG" and KIND[Pruned] in walk.kinds:
        return "the page holds but for which keys it says anew, which who has all records judges"
    if bundle.verdict == "BAD_RECORD" and start.size:
        return "the page holds by itself; what it follows, who has all records judges"
    raise ChainError(BAD_PROOF, "the page holds: this bundle shows nothing")
