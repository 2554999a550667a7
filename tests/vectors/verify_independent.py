# SPDX-License-Identifier: Apache-2.0
"""A second verifier, written from FORMAT.md alone: shares no code with `leased` and is in no hurry.

It checks what `leasectl verify` does: identity, anchor, segment headers, every frame, body, lease,
checkpoint, key rotation and epoch seal, what lies beyond the anchor, and C2SP notes and their
cosignatures (`note_holds`). Ed25519 is RFC 8032 as it is written there, so that not even a library
is shared.

`python -m tests.vectors.verify_independent DIRECTORY [SEAL_KEY_HEX | -] [POLICY]` prints the head
of a log whose beginning a quorum vouches for, or what does not hold (exit status 1).
"""

from __future__ import annotations

import base64
import hashlib
import sys
import zlib
from pathlib import Path

from tests.vectors.c2sp_independent import (
    Broken,
    Policy,
    key_id,
    need,
    note_holds,
    quorum_size,
    read_policy,
    signature_holds,
)
from tests.vectors.keys_independent import Keys, last_pruned
from tests.vectors.seals_independent import Seals

__all__ = ["Broken", "note_holds", "read_policy", "signature_holds", "tree_root", "verify"]

ENUMERATIONS = {
    "kind": range(5),
    "tier": range(5),
    "priority": range(3),
    "trust": range(2),
    "cause": range(14),
    "grade": ("measured on device", "emulated", "not run"),
    "health": ("ok", "sick", "gone", "busy"),
}
SUBJECT = ("s", "i", "i", "s", "?s", "?tag", "priority", "trust", ["allotment"], "b32", "?b", "?s")
SHAPES = {
    "tag": ("s", "s", "s", "s", "i"),
    "allotment": ("s", "kind", "?tier", "n"),
    "inventory": (["resource"], ["absence"], ["s"]),
    "absence": ("kind", "s"),
    "pair": ("s", "s"),
    "change": ("b32", "b64", "b64"),
    "borrowed": ("kind", "i"),
    "metered": ("s", "i", "i", "i", "b16"),
    "resource": ("s", "kind", "?tier", "n", "n", "i", "grade", "health")
    + ("?i", "?i", "?i", "?i", ["s"], ["pair"]),
    "subject": SUBJECT,
}
LEASE = ("b16", "b16", "subject", "i", "i")
BODIES = {
    1: ("b16", "b16", "b", "i", "s", "s", "s"),
    2: ("b16", "i"),
    3: ("b16", "inventory"),
    4: ("b16", "b32", "i", "b32", "i"),
    5: ("b16", "s", "s", "i"),
    6: ("b16", "i"),
    7: ("b16", "b32", "b64", "b64"),
    8: ("b16", "i", "b32", "i", "i", "b64"),
    9: ("b16", "s", "t", "i"),
    10: ("b16", "allotment", "t", "i"),
    11: ("b16", "s", "i", "b16", "i", "i", "i", "i"),
    12: ("b16", "s", "i", "i"),
    13: ("b16", "b32", ["s"]),
    14: ("b16", "s", "s", "i", "i", "i", "i"),
    15: ("b16", "s", "s", "i"),
    16: (*LEASE, "b16", "i", "i", "i", "i"),
    17: (*LEASE, "b"),
    18: (*LEASE, "i", "i"),
    19: LEASE,
    20: LEASE,
    21: (*LEASE, "cause"),
    22: (*LEASE, "cause", "i"),
    23: LEASE,
    24: (*LEASE, "t", "b"),
    25: (*LEASE, "i", "b"),
    26: (*LEASE, ["b16"], "i", "i", "?i", "?i", "?i", "i", "i", "b"),
    27: (*LEASE, ["allotment"], "i", "i", ["b16"], "i", "b"),
    28: (*LEASE, "i", "b"),
    29: (*LEASE, "b16", "s"),
    30: (*LEASE, "i", "i", "i"),
    31: (*LEASE, "i", "i", "i", ["borrowed"]),
    32: ("b16", "s", "i", "i"),
    33: ("b16", "s", ["metered"]),
    64: ("b16", "i", "i", "b32"),
    65: ("b16", "i"),
    66: ("b16", "i", "i", "b16", "i", "i", "i", "i", "i", "i", "b32", "b32"),
    68: ("b16", "i"),
    69: ("b16", "i", "b32", "b64"),
    70: ("b16", "i", "b32", "i", "i"),
    80: ("b16", "b16", "s", "i", "b32", "i", "b64"),
    81: ("b16", "b16", "s", "s", "i", "b32", "b32"),
    82: ("b16", "b16", "s", "s"),
}
SECOND = {11: (*BODIES[11], "kind"), 70: (*BODIES[70], ["change", "at least one"])}
SCHEMAS = {1: BODIES, 2: SECOND}


def take(data: bytes, at: int, depth: int = 0) -> tuple[object, int]:
    """Read one value in the strict profile. Lists come as lists, nil as None."""
    need(at < len(data), "the body is cut short")
    need(depth < 9, "no body is so deep")
    head, at = data[at], at + 1

    def big(count: int) -> int:
        need(at + count <= len(data), "the body is cut short")
        return int.from_bytes(data[at : at + count], "big")

    def run(length: int, begin: int, text: bool) -> tuple[object, int]:
        need(begin + length <= len(data), "the body is cut short")
        raw = data[begin : begin + length]
        if not text:
            return raw, begin + length
        try:
            return raw.decode("utf-8", "strict"), begin + length
        except UnicodeDecodeError:
            raise Broken("text is not UTF-8") from None

    def items(count: int, begin: int) -> tuple[object, int]:
        found = []
        for _ in range(count):
            value, begin = take(data, begin, depth + 1)
            found.append(value)
        return found, begin

    if head < 0x80:
        return head, at
    if head >= 0xE0:
        return head - 256, at
    if 0x90 <= head <= 0x9F:
        return items(head & 15, at)
    if 0xA0 <= head <= 0xBF:
        return run(head & 31, at, True)
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if 0xCC <= head <= 0xCF:
        width = 1 << (head - 0xCC)
        least = {1: 128, 2: 1 << 8, 4: 1 << 16, 8: 1 << 32}[width]
        value = big(width)
        need(value >= least, "an integer is not in its shortest form")
        return value, at + width
    if 0xD0 <= head <= 0xD3:
        width = 1 << (head - 0xD0)
        value = big(width) - (1 << 8 * width)
        below = {1: -32, 2: -(1 << 7), 4: -(1 << 15), 8: -(1 << 31)}[width]
        need(-(1 << 8 * width - 1) <= value < below, "an integer is not in its shortest form")
        return value, at + width
    for first, text in ((0xC4, False), (0xD9, True)):
        if first <= head <= first + 2:
            width = 1 << (head - first)
            least = {1: 32 if text else 0, 2: 256, 4: 65536}[width]
            length = big(width)
            need(length >= least, "a length is not in its shortest form")
            return run(length, at + width, text)
    if head in (0xDC, 0xDD):
        width = 2 if head == 0xDC else 4
        count = big(width)
        need(count >= (16 if width == 2 else 65536), "a length is not in its shortest form")
        return items(count, at + width)
    raise Broken(f"byte {head:02x} is not in the profile")


def fits(value: object, shape: object) -> bool:
    """Whether a value has the shape that FORMAT.md section 6 gives."""
    if isinstance(shape, list):
        enough = isinstance(value, list) and len(value) >= len(shape) - 1
        return enough and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
    if shape.startswith("?"):
        return value is None or fits(value, shape[1:])
    if shape in SHAPES:
        return fits(value, SHAPES[shape])
    if shape in ENUMERATIONS:
        return not isinstance(value, bool) and value in ENUMERATIONS[shape]
    match shape[0]:
        case "s":
            return isinstance(value, str)
        case "t":
            return isinstance(value, bool)
        case "i" | "n":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and (shape == "i" or 0 <= value <= 1 << 56)
        case "b":
            return isinstance(value, bytes) and (shape == "b" or len(value) == int(shape[1:]))
    return False


class Tree:
    """RFC 6962, grown leaf by leaf: the roots of full subtrees, largest first."""

    def __init__(self, size: int = 0, peaks: tuple[bytes, ...] = ()) -> None:
        self.size, self.peaks = size, list(peaks)

    def add(self, leaf: bytes) -> None:
        size = self.size
        while size & 1:
            leaf = hashlib.sha256(b"\x01" + self.peaks.pop() + leaf).digest()
            size >>= 1
        self.peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        node = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            node = hashlib.sha256(b"\x01" + peak + node).digest()
        return node


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


# ---- the log ----


def read_identity(directory: Path) -> bytes:
    """FORMAT.md section 2."""
    identity = closed((directory / "log.id").read_bytes(), "log.id")
    need(len(identity) == 512 and identity[:10] == b"LEASELOG\1\0", "not a log.id")
    size, origin = number(identity, 12, 4), number(identity, 144, 2)
    need(size in [1 << n for n in range(14, 31)], "the size of segments")
    need((number(identity, 10, 2) & 1 == 1) == (number(identity, 64, 8) > 0), "sealed or not")
    need(number(identity, 10, 2) < 4 and 1 <= origin <= 255, "flags and origin of log.id")
    need(not any(identity[146 + origin : 480]), "log.id: zero")
    try:
        identity[146 : 146 + origin].decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Broken("the origin is not UTF-8") from None
    return identity


def number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "little")


def closed(block: bytes, what: str) -> bytes:
    need(hashlib.sha256(block[:-32]).digest() == block[-32:], f"the hash of {what} does not hold")
    return block


def read_slots(anchor: bytes, log_id: bytes) -> tuple[bytes, bool]:
    """The newest valid slot, and whether both are valid (FORMAT.md section 4)."""
    newest: list[bytes | None] = [None, None]
    for index in (0, 1):
        for at in (0, 2048):
            copy = anchor[4096 * index + at : 4096 * index + at + 512]
            valid = len(copy) == 512 and hashlib.sha256(copy[:-32]).digest() == copy[-32:]
            if not valid or copy[:8] != b"LANCHOR1" or number(copy, 8, 8) % 2 != index:
                continue
            if any(copy[136:480]):
                continue
            held = newest[index]
            if held is None or number(copy, 8, 8) > number(held, 8, 8):
                newest[index] = copy
    whole = [slot for slot in newest if slot is not None]
    need(bool(whole), "no valid slot")
    need(all(slot[16:32] == log_id for slot in whole), "a slot is of another log")
    generations = sorted(number(slot, 8, 8) for slot in whole)
    need(len(whole) == 1 or generations[0] + 1 == generations[1], "generations do not follow")
    return max(whole, key=lambda slot: number(slot, 8, 8)), len(whole) == 2


GROWS = {  # stage -> {kind: next stage}; FORMAT.md section 6b
    "": {16: "granted"},
    "granted": {17: "active"},
    "active": {18: "active"},
    "draining": {17: "draining"},
    "ended": {23: "revoking"},
    "revoking": {24: "scrubbing", 27: "fenced"},
    "scrubbing": {25: "verifying", 27: "fenced"},
    "verifying": {26: "closed", 27: "fenced"},
    "fenced": {28: "closed"},
}
for _stage in ("granted", "active", "draining"):
    GROWS[_stage] |= {31: _stage, 30: _stage, 29: _stage, 22: "draining"}
    GROWS[_stage] |= {19: "ended", 20: "ended", 21: "ended"}
SHOWN = {kind: to for stage in GROWS.values() for kind, to in stage.items()}


class Chain:
    """What has been walked so far."""

    def __init__(
        self,
        identity: bytes,
        *,
        signatures: bool,
        leases: bool,
        seal_key: bytes | None,
        latest: int | None = None,
    ) -> None:
        length = number(identity, 144, 2)
        self.log_id, self.origin = identity[16:32], identity[146 : 146 + length]
        self.first_key = identity[32:64]
        self.keys = Keys(self.log_id, self.first_key) if signatures else None
        self.epoch_ns, self.seal_key = number(identity, 64, 8), seal_key
        self.latest = latest
        self.tree, self.head, self.batch = Tree(), bytes(32), 0
        self.ended, self.kind, self.crc_damaged = True, 0, 0
        self.stages: dict[bytes, str] | None = {} if leases else None
        self.midway, self.segment_no = False, 0
        self.begins, self.leaves, self.pruned = Tree(), [], None
        self.acks: dict[int, list] = {}
        self.seals = self._seals(genesis=True)

    def _seals(self, *, genesis: bool) -> Seals | None:
        if not self.epoch_ns:
            return None
        return Seals(self.log_id, self.epoch_ns, self.seal_key, self.latest, genesis)

    def begin(self, header: bytes, name: str, *, first: bool) -> None:
        """FORMAT.md section 3."""
        need(header[:12] == b"LSEG\r\n\x1a\n\1\0\0\0" and number(header, 12, 4) == 4096, name)
        need(header[16:32] == self.log_id, f"{name}: of another log")
        size, count = number(header, 40, 8), header[88]
        need(count == bin(size).count("1") and number(header, 80, 8) == size, f"{name}: tree")
        need(not any(header[89:96]) and not any(header[96 + 32 * count : 4064]), f"{name}: zero")
        peaks = [header[at : at + 32] for at in range(96, 96 + 32 * count, 32)]
        if first and size:
            self.tree, self.head, self.midway = Tree(size, tuple(peaks)), header[48:80], True
            self.begins = Tree(size, tuple(peaks))
            self.segment_no, self.seals = number(header, 32, 8), self._seals(genesis=False)
            need(self.segment_no > 0, f"{name}: an earlier segment is missing")
        need(number(header, 32, 8) == self.segment_no and size == self.tree.size, f"{name}: order")
        need(header[48:80] == self.head and peaks == self.tree.peaks, f"{name}: link")
        need(name == f"seg-{size:016x}.log", f"{name}: not the name of this segment")
        self.segment_no += 1

    def look_ahead(self, paths: list[Path], last: int, end: int) -> None:
        """FORMAT.md section 6d: the key where the log begins is known from its last Pruned."""
        found, begins = [], int(paths[0].name[4:20], 16)
        for path in paths:
            data = path.read_bytes()
            if number(data, 32, 8) <= last:
                found.append(data[4096 : end if number(data, 32, 8) == last else len(data)])
        schema, body = last_pruned(found)
        value, stop = take(body, 0) if schema == 2 else (None, 0)
        if value is not None:
            need(stop == len(body) and fits(value, SECOND[70]), "the last Pruned: body")
        # Of another beginning it says nothing of this one.
        self.keys.begin(begins, value[5] if value is not None and value[1] == begins else [])

    def take_frame(self, data: bytes, at: int, name: str) -> int:
        """FORMAT.md section 5; return where the next frame begins."""
        where = f"record {self.tree.size} at {name}+{at}"
        need(at + 112 <= len(data), f"{where}: cut short")
        n, size = number(data, at + 28, 4), number(data, at, 4)
        need(size == (112 + n + 7) // 8 * 8 <= 65536, f"{where}: frame length")
        need(at + size <= len(data), f"{where}: cut short")
        frame = data[at : at + size]
        need(number(frame, 8, 8) == self.tree.size, f"{where}: sequence")
        need(frame[48:80] == self.head, f"{where}: link")
        flags, this = frame[27], number(frame, 16, 8)
        need(this > self.batch if self.ended else this == self.batch, f"{where}: batch")
        need(flags < 4 and not any(frame[80 + n : -32]), f"{where}: reserved")
        hashed = b"\0LEASEREC1\0" + self.log_id + frame[8 : 80 + n]
        need(hashlib.sha256(hashed).digest() == frame[-32:], f"{where}: hash")
        if zlib.crc32(frame[8:], zlib.crc32(frame[:4])) != number(frame, 4, 4):
            self.crc_damaged += 1
        self.kind = number(frame, 24, 2)
        value: list | None = None
        shape = SCHEMAS.get(frame[26], {}).get(self.kind)
        if shape is not None:
            found, end = take(frame[80 : 80 + n], 0)
            need(end == n and fits(found, shape), f"{where}: body")
            value = found if isinstance(found, list) else []
        self.judge(value, number(frame, 40, 8), frame, where)
        self.head, self.batch, self.ended = frame[-32:], this, bool(flags & 1)
        self.tree.add(self.head)
        self.leaves.append(self.head)
        return at + size

    def judge(self, value: list | None, boot_ns: int, frame: bytes, where: str) -> None:
        """What a record says about the chain itself (FORMAT.md sections 6, 6a, 6b)."""
        if self.seals is not None and self.kind == 66 and value is not None:
            self.seals.seal(value, self.tree.size, where)
        elif self.seals is not None and self.kind == 1 and value is not None:
            self.seals.start(value[1], boot_ns)
        elif self.seals is not None and self.kind not in (1, 66):
            self.seals.record(boot_ns, where)
        if self.stages is not None and 16 <= self.kind < 32 and self.kind in BODIES:
            self.step(frame[101:117], where)
        if value is None:
            return
        if self.kind == 8 and value[1] >= self.acks.get(value[3], [b"", 0])[1]:
            self.acks[value[3]] = value
        if self.kind == 70:
            self.pruned = value
        if self.kind == 66:
            need(value[10] == self.tree.root(), f"{where}: root of the seal")
        if self.kind == 69:
            _, size, root, signature = value
            need(size == self.tree.size and root == self.tree.root(), f"{where}: root")
            text = self.origin + b"\n%d\n" % size + base64.b64encode(root) + b"\n"
            holds = self.keys is None or signature_holds(self.keys.key, text, signature)
            need(holds, f"{where}: signature")
        if self.kind == 7 and self.keys is not None:
            self.keys.rotated(value[1:], self.tree.size, where)
        if self.kind == 70 and self.keys is not None:
            self.keys.pruned(value, where)

    def step(self, lease: bytes, where: str) -> None:
        """FORMAT.md section 6b."""
        stages = self.stages if self.stages is not None else {}
        stage = stages.get(lease, "")
        if not stage and self.midway:
            to = SHOWN[self.kind]
        else:
            need(self.kind in GROWS[stage], f"{where}: order of the lease's events")
            to = GROWS[stage][self.kind]
        stages.pop(lease, None)
        if to != "closed":
            stages[lease] = to

    def countersigned(self, first_prev: bytes) -> None:
        """FORMAT.md section 6c: what was cosigned is this log, and what is gone was."""
        gone = self.begins.size
        for _, size, root, *_ in self.acks.values():
            need(size <= self.tree.size, f"{size} records were cosigned")
            if size < gone:
                continue
            tree = Tree(gone, tuple(self.begins.peaks))
            for leaf in self.leaves[: size - gone]:
                tree.add(leaf)
            need(tree.root() == root, f"another tree of {size} records was cosigned")
        if gone:
            said = self.pruned is not None and self.pruned[1:3] == [gone, first_prev]
            need(said, f"no record says that {gone} records were pruned")
            most = max((value[1] for value in self.acks.values()), default=0)
            need(most >= gone, f"{gone} records are gone that nobody had acknowledged")

    def vouched(self, policy: Policy) -> int:
        """How many records the quorum vouches for. Raises Broken if not for all that are gone, or
        if other logs are meant."""
        witnesses, _, quorum, logs = policy
        last = self.keys.key if self.keys is not None else self.first_key
        ours = [(self.origin, key) for key in (self.first_key, last)]
        need(not logs or any(one in logs for one in ours), "the policy is of other logs")
        sizes = {}
        for name, (called, key) in witnesses.items():
            value = self.acks.get(int.from_bytes(key_id(called, 4, key), "big"))
            if value is not None:
                _, size, root, _, seconds, signature = value
                text = self.origin + b"\n%d\n" % size + base64.b64encode(root) + b"\n"
                message = b"cosignature/v1\ntime %d\n" % seconds + text
                need(signature_holds(key, message, signature), f"a cosignature of {name}")
                sizes[name] = size
        found = self.tree.size if quorum == "none" else quorum_size(policy, sizes, quorum)
        need(found > 0 or not self.tree.size, "no tree of the log has a quorum")
        need(found >= self.begins.size, "what is gone was not cosigned by a quorum")
        return found


def verify(
    directory: Path,
    *,
    signatures: bool = True,
    leases: bool = False,
    seal_key: bytes | None = None,
    latest_epoch: int | None = None,
    live: bool = False,
    countersigned: bool = False,
    policy: Policy | None = None,
) -> tuple[int, str]:
    """Return (size, head in hex). `live`: a writer has it open, and what is beyond the anchor is
    its business; `latest_epoch` the last that can be open by the reader's clock. Raises Broken."""
    identity = read_identity(directory)
    keys = {"seal_key": seal_key, "latest": latest_epoch}
    chain = Chain(identity, signatures=signatures, leases=leases, **keys)
    slot, both = read_slots((directory / "anchor").read_bytes(), chain.log_id)
    size, last, end = number(slot, 32, 8), number(slot, 40, 8), number(slot, 48, 8)
    paths = sorted(directory.glob("seg-" + "[0-9a-f]" * 16 + ".log"))
    min_seq = number(slot, 88, 8)
    pruned = [path for path in paths[1:] if int(path.name[4:20], 16) <= min_seq]
    paths = paths[len(pruned) :]
    need(end >= 4096, "the frames end within the header")
    if chain.keys is not None and paths and int(paths[0].name[4:20], 16):
        chain.look_ahead(paths, last, end)
    data, done, this = b"", 0, -1
    for index, path in enumerate(paths):
        data = path.read_bytes()
        chain.begin(closed(data[:4096], path.name), path.name, first=index == 0)
        need(index or chain.tree.size <= min_seq, f"{path.name}: an earlier one is missing")
        this, at = chain.segment_no - 1, 4096
        need(this != last or end <= len(data), f"{path.name}: ends before its anchored end")
        while at < end if this == last else any(data[at : at + 4]):
            at = chain.take_frame(data[:end] if this == last else data, at, path.name)
        need(this == last or not any(data[at:]), f"{path.name}: not zero beyond its frames")
        done = index
        if this == last:
            break
        need(chain.kind == 68 and chain.ended, f"{path.name}: no closing record")
    anchored = chain.tree.size == size and chain.head == slot[56:88]
    need(this == last, f"segment {last}, which the anchor names, is missing")
    need(anchored and chain.ended, "the chain does not end where the anchor says")
    found = chain.tree.size, chain.head.hex()
    if countersigned or policy is not None:
        chain.countersigned(paths[0].read_bytes()[48:80])
    if policy is not None:
        chain.vouched(policy)
    if not live:
        beyond(chain, data, end, paths[done + 1 :], number(slot, 8, 8), both=both)
    return found


def beyond(
    chain: Chain, data: bytes, at: int, later: list[Path], generation: int, *, both: bool
) -> None:
    """FORMAT.md section 8, row 8: at most one batch beyond the anchor, two if a slot is lost."""
    chain.keys, chain.seals, chain.stages = None, None, None
    most, ended = generation + (1 if both else 2), chain.kind == 68 and at > 4096
    while True:
        while not ended:
            end = whole_batch(chain, data, at, generation)
            if end is None:
                break
            need_not_rolled(chain.batch <= most, f"batch {chain.batch} beyond the anchor")
            at, generation, ended = end, chain.batch, chain.kind == 68
        if not ended or not later:
            break
        data, name = later[0].read_bytes(), later[0].name
        chain.begin(closed(data[:4096], name), name, first=False)
        generation += 1  # a switch takes one
        need_not_rolled(generation <= most, f"{name} beyond the anchor")
        later, at, ended = later[1:], 4096, False
    need_not_rolled(not later, "a segment that no kept batch leads to")
    for place in range((at + 7) // 8 * 8, len(data) - 111, 8):
        size, n, this = (number(data, place + far, width) for far, width in FRAME_FIELDS)
        if size != (112 + n + 7) // 8 * 8 or data[place + 27] > 3 or this <= most:
            continue
        frame = data[place : place + size]
        hashed = b"\0LEASEREC1\0" + chain.log_id + frame[8 : 80 + n]
        holds = size <= 65536 and hashlib.sha256(hashed).digest() == frame[-32:]
        need_not_rolled(not holds or any(frame[80 + n : -32]), f"batch {this} beyond the anchor")


FRAME_FIELDS = ((0, 4), (28, 4), (16, 8))


def whole_batch(chain: Chain, data: bytes, at: int, generation: int) -> int | None:
    """Take in a batch that is whole, follows and is of a later generation; its end. None, and
    nothing taken in: there is none."""
    tree, before = chain.tree, (chain.head, chain.batch, chain.ended, chain.kind)
    chain.tree, chain.batch = Tree(tree.size, tuple(tree.peaks)), generation
    try:
        while True:
            at = chain.take_frame(data, at, "beyond")
            if chain.ended:
                return at
    except Broken:
        chain.tree = tree
        chain.head, chain.batch, chain.ended, chain.kind = before
        return None


class RolledBack(Broken):
    """An older anchor was put back."""


def need_not_rolled(condition: bool, why: str) -> None:
    if not condition:
        raise RolledBack(why)


if __name__ == "__main__":
    try:
        known = sys.argv[2] if len(sys.argv) > 2 else "-"
        quorum = read_policy(Path(sys.argv[3]).read_bytes()) if len(sys.argv) > 3 else None
        enrolled = None if known == "-" else bytes.fromhex(known)
        checks = {"leases": True, "seal_key": enrolled, "countersigned": True, "policy": quorum}
        print(*verify(Path(sys.argv[1]), **checks))
    except (Broken, OSError) as error:
        print(error)
        sys.exit(1)
