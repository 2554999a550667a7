# SPDX-License-Identifier: Apache-2.0
"""The policy that a collector hands to nodes: what is signed, and how it is believed.

Rule: a C2SP signed note states the fleet, the generation, when it was issued, when it ends, the
head of the collector's sealed changes and the hash of the policy; the policy goes beside it in its
canonical text. Whoever has the collector's verifier key text believes nothing else: not the server
that it came from, not the TLS below. Text:

    io.leased/policy/v1
    <fleet, or fleet/node id in hex: for that node alone>
    <generation>
    <issued, ns since the Unix epoch>
    <expires, ns since the Unix epoch>
    <changes: how many, a space, hash of the last in hex>
    <SHA-256 of the policy in hex, as the log names it>

Does not hold keys, and puts nothing in force (`SetPolicy` does).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Final

import msgspec

from leased.chain.note import ED25519, NoteKey, open_note, write_note
from leased.chain.signing import PUBLIC_KEY_BYTES, Signer
from leased.chain.verdict import BAD_NOTE
from leased.terms.errors import ChainError, ConfigError
from leased.terms.policy import Policy, canonical, decode, digest
from leased.terms.policy_check import check

HEADER: Final = "io.leased/policy/v1"
LINES: Final = 7
DIGITS_MAX: Final = 19


class Grant(msgspec.Struct, frozen=True):
    """What a note about a policy states. `fleet` may be one node of it (`for_node`); `changes`
    counts the collector's sealed changes, `head` is the hash of the last."""

    fleet: str
    generation: int
    issued_ns: int
    expires_ns: int
    changes: int
    head: bytes
    policy_hash: bytes

    def text(self) -> str:
        """The lines that are signed."""
        return (
            f"{HEADER}\n{self.fleet}\n{self.generation}\n{self.issued_ns}\n{self.expires_ns}\n"
            f"{self.changes} {self.head.hex()}\n{self.policy_hash.hex()}\n"
        )


def sign(grant: Grant, signer: Signer, name: str) -> str:
    """The note of `grant` by the key called `name`."""
    key = NoteKey(name, signer.public_key)
    return write_note(grant.text(), [(key, signer.sign(grant.text().encode()))])


def parse_key(text: str) -> NoteKey:
    """The key that a verifier key text `name+keyid+base64` stands for. Raises ConfigError."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        blob = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if name and len(blob) == 1 + PUBLIC_KEY_BYTES and blob[0] == ED25519:
        key = NoteKey(name, blob[1:])
        if key.text() == text.strip() and key.key_id.hex() == key_id:
            return key
    raise ConfigError(
        f"{text[:80]!r} is no verifier key: name+keyid+base64, as `leased-collector key` prints it"
    )


def parse_grant(text: str) -> Grant:
    """What the text of a note states. Raises ChainError (BAD_NOTE)."""
    lines = text.split("\n")
    if len(lines) != LINES + 1 or lines[0] != HEADER or not lines[1] or lines[-1]:
        raise ChainError(BAD_NOTE, "not a note about a policy of version 1")
    count, _, head = lines[5].partition(" ")
    numbers = [*lines[2:5], count]
    if not all(one.isascii() and one.isdecimal() and len(one) <= DIGITS_MAX for one in numbers):
        raise ChainError(BAD_NOTE, "generation, times and the count of changes are decimal")
    try:
        head_hash, policy_hash = bytes.fromhex(head), bytes.fromhex(lines[6])
    except ValueError:
        raise ChainError(BAD_NOTE, "hashes are in hex") from None
    generation, issued_ns, expires_ns, changes = map(int, numbers)
    grant = Grant(
        lines[1], generation, issued_ns, expires_ns, changes, head_hash, policy_hash
    )
    if grant.text() != text or len(grant.head) != 32 or len(grant.policy_hash) != 32:
        raise ChainError(BAD_NOTE, "not the one way to write it")
    return grant


def for_node(fleet: str, node: str) -> str:
    """How a note says that it is for one node (its id in hex) of a fleet."""
    return f"{fleet}/{node}"


def open_policy(
    note: str, document: str, key: NoteKey, fleet: str, node: str = ""
) -> tuple[Grant, Policy]:
    """The policy in `document`, if the holder of `key` has granted it to `fleet`, or to `node` of
    it: with its generation and its end. Raises ChainError, or ConfigError for what this release
    cannot mean."""
    grant = parse_grant(open_note(note, [key]).text)
    if grant.fleet not in (fleet, for_node(fleet, node)):
        raise ChainError(BAD_NOTE, f"for the fleet {grant.fleet[:80]}, and not for {fleet}")
    policy = decode(document.encode())
    if digest(policy) != grant.policy_hash:
        raise ChainError(BAD_NOTE, "the policy beside the note is another than the note names")
    return grant, check(
        msgspec.structs.replace(
            policy, generation=grant.generation, expires_wall_ns=grant.expires_ns
        )
    )


def offer(policy: Policy) -> str:
    """The text that goes beside the note: without what the note states itself."""
    return canonical(bare(policy)).decode()


def bare(policy: Policy) -> Policy:
    """A policy without its generation and its end."""
    return msgspec.structs.replace(policy, generation=0, expires_wall_ns=None)
