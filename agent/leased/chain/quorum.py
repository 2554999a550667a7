# SPDX-License-Identifier: Apache-2.0
"""Whose cosignatures it takes: the C2SP tlog-policy file, and how far a log has come by it.

Rule: as the specification says: a witness is a name and a cosigning key, a group counts as one
witness once enough of its members do, and exactly one of them is the quorum. A cosignature by a key
that the policy does not name counts for nothing; one by a key that it names and that does not hold
refuses the whole. A cosigned tree vouches for every smaller tree of the same log, so what a quorum
vouches for is a size.

Does not read files, and does not compare roots with a log (`countersigned` does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from leased.chain.note import (
    COSIGNATURE_V1,
    ED25519,
    Checkpoint,
    NoteKey,
    cosignature_message,
    open_note,
    parse_checkpoint,
    parse_key,
    parse_note,
)
from leased.chain.signing import verifies
from leased.chain.verdict import BAD_POLICY, BAD_SIGNATURE, BELOW_QUORUM
from leased.terms.errors import ChainError
from leased.terms.event import HeadCountersigned

NONE: Final = "none"
POLICY_BYTES_MAX: Final = 256 * 1024
LINES_MAX: Final = 4096
DEPTH_MAX: Final = 64
_KEY_IDS: Final = range(1 << 32)


class Group(msgspec.Struct, frozen=True):
    """Counts as a witness once `least` of its members do."""

    least: int
    members: tuple[str, ...]


class WitnessPolicy(msgspec.Struct, frozen=True):
    """The logs that are meant (none: any), the witnesses and groups by name, and which of them is
    the quorum."""

    logs: tuple[NoteKey, ...] = ()
    witnesses: dict[str, NoteKey] = {}
    groups: dict[str, Group] = {}
    quorum: str = NONE

    def reached(self, sizes: Mapping[str, int], whole: int) -> int:
        """How many records the quorum vouches for, of `whole`, where each witness vouches for
        `sizes` of them (absent: none)."""
        return whole if self.quorum == NONE else self._size(self.quorum, sizes)

    def named(self, key_id: bytes) -> tuple[str, NoteKey] | None:
        """The witness whose key has this id."""
        for name, key in self.witnesses.items():
            if key.key_id == key_id:
                return name, key
        return None

    def told(self) -> str:
        """The quorum, for people: `2 of east, north, west`."""
        group = self.groups.get(self.quorum)
        if group is None:
            return "nobody" if self.quorum == NONE else self.quorum
        return f"{group.least} of {', '.join(group.members)}"

    def _size(self, name: str, sizes: Mapping[str, int]) -> int:
        group = self.groups.get(name)
        if group is None:
            return sizes.get(name, 0)
        reached = sorted((self._size(one, sizes) for one in group.members), reverse=True)
        return reached[group.least - 1]


def flat(witnesses: Mapping[str, NoteKey], least: int) -> WitnessPolicy:
    """The policy of `least` of these witnesses; 0 or more than there are: all. Nobody where there
    are none."""
    if not witnesses:
        return WitnessPolicy()
    names = tuple(sorted(witnesses))
    count = least if 0 < least <= len(names) else len(names)
    return WitnessPolicy((), dict(witnesses), {"quorum": Group(count, names)}, "quorum")


def parse_policy(raw: bytes) -> WitnessPolicy:
    """The policy in a file. Raises ChainError (BAD_POLICY), which names the line."""
    if len(raw) > POLICY_BYTES_MAX or raw.count(b"\n") > LINES_MAX:
        raise ChainError(BAD_POLICY, f"more than {POLICY_BYTES_MAX} bytes or {LINES_MAX} lines")
    reading = _Reading()
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            if any(octet < 0x20 and octet != 0x09 or octet == 0x7F for octet in line):
                raise ValueError("a control character")
            # Octets with the high bit set are opaque: Latin-1 keeps each as it is.
            words = line.decode("latin-1").replace("\t", " ").split(" ")
            words = [word for word in words if word]
            if words and not words[0].startswith("#"):
                reading.take(*words)
        except ChainError as error:
            raise ChainError(BAD_POLICY, f"line {number}: {error.why}") from error
        except (TypeError, ValueError) as error:
            raise ChainError(BAD_POLICY, f"line {number}: {error}") from error
    if reading.quorum is None:
        raise ChainError(BAD_POLICY, "no quorum line: who must have cosigned?")
    return WitnessPolicy(tuple(reading.logs), reading.witnesses, reading.groups, reading.quorum)


class _Reading:
    """A policy as far as it was read."""

    def __init__(self) -> None:
        self.logs: list[NoteKey] = []
        self.witnesses: dict[str, NoteKey] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._members: set[str] = set()
        self._depths: dict[str, int] = {}

    def take(self, what: str, *words: str) -> None:
        """One line. Raises ValueError, ChainError."""
        if what == "log" and len(words) in (1, 2):
            self._log(words[0])
        elif what == "witness" and len(words) in (2, 3):
            self._witness(words[0], words[1])
        elif what == "group" and len(words) >= 3:
            self._group(words[0], words[1], words[2:])
        elif what == "quorum" and len(words) == 1:
            if self.quorum is not None:
                raise ValueError("a second quorum")
            if words[0] != NONE:
                self._known(words[0])
            self.quorum = words[0]
        else:
            raise ValueError(f"not a line of a policy: {what[:40]} with {len(words)} words")

    def _log(self, text: str) -> None:
        key = parse_key(text)
        if key.kind != ED25519:
            raise ValueError("a log signs with a key of type 01")
        if any(key.public_key == one.public_key for one in self.logs):
            raise ValueError("a second log with this key")
        self.logs.append(key)

    def _witness(self, name: str, text: str) -> None:
        key = parse_key(text)
        if key.kind != COSIGNATURE_V1:
            raise ValueError("a witness cosigns with a key of type 04")
        if any(key.public_key == one.public_key for one in self.witnesses.values()):
            raise ValueError("a second witness with this key")
        self._unused(name)
        self.witnesses[name] = key
        self._depths[name] = 0

    def _group(self, name: str, least: str, members: Sequence[str]) -> None:
        self._unused(name)
        for member in members:
            self._known(member)
            if member in self._members:
                raise ValueError(f"{member} is a member already")
            self._members.add(member)
        depth = 1 + max(self._depths[member] for member in members)
        if depth > DEPTH_MAX:
            raise ValueError(f"groups more than {DEPTH_MAX} deep")
        worded = {"all": len(members), "any": 1}.get(least)
        if worded is None:
            decimal = least.isascii() and least.isdecimal() and len(least) <= 4
            worded = int(least) if decimal and not least.startswith("0") else 0
        if not 1 <= worded <= len(members):
            raise ValueError(f"{least[:20]}: all, any, or 1 to {len(members)}")
        self.groups[name] = Group(worded, tuple(members))
        self._depths[name] = depth

    def _unused(self, name: str) -> None:
        if name == NONE or name in self._depths:
            raise ValueError(f"{name}: the name is taken")

    def _known(self, name: str) -> None:
        if name not in self._depths:
            raise ValueError(f"{name}: no witness or group before this line")


def vouched(
    policy: WitnessPolicy, origin: str, newest: Sequence[HeadCountersigned]
) -> dict[str, int]:
    """How far each witness of the policy vouches for the log, by its countersignatures. The caller
    has compared their roots with the log. Raises ChainError (BAD_SIGNATURE)."""
    sizes: dict[str, int] = {}
    for event in newest:
        known = event.key_id in _KEY_IDS
        found = policy.named(event.key_id.to_bytes(4, "big")) if known else None
        if found is None:
            continue
        name, key = found
        text = Checkpoint(origin, event.size, event.root).text()
        if not verifies(key.public_key, cosignature_message(text, event.time_s), event.signature):
            why = f"the countersignature of {event.size} records is not by {name}"
            raise ChainError(BAD_SIGNATURE, why)
        sizes[name] = max(sizes.get(name, 0), event.size)
    return sizes


def judge_note(policy: WitnessPolicy, raw: str) -> tuple[Checkpoint, tuple[str, ...]]:
    """A checkpoint that one of the policy's logs has signed and its quorum has cosigned, and the
    names of who did. Raises ChainError (BELOW_QUORUM, BAD_SIGNATURE, BAD_NOTE)."""
    if policy.logs:
        open_note(raw, policy.logs)
    note = parse_note(raw)
    checkpoint = parse_checkpoint(note.text)
    known = list(policy.witnesses.values())
    named = {(key.name, key.key_id): name for name, key in policy.witnesses.items()}
    signed = {(line.name, line.key_id) for line in note.signatures}
    held = open_note(raw, known).signatures if signed & set(named) else ()
    names = tuple(named[line.name, line.key_id] for line in held)
    if not policy.reached(dict.fromkeys(names, 1), 1):
        by = ", ".join(names) or "nobody"
        why = f"the checkpoint of {checkpoint.size} records is cosigned by {by}"
        raise ChainError(BELOW_QUORUM, f"{why}; it takes {policy.told()}")
    return checkpoint, names
