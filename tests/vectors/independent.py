# SPDX-License-Identifier: Apache-2.0
"""A second verifier, written from FORMAT.md alone: shares no code with `leased` and is in no hurry.

`python -m tests.vectors.independent DIRECTORY` prints the head of a log, or what does not hold
(exit status 1).
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

SUBJECT = ("s", "u", "u", "s", "?s", "?tag", "u", "u", ["allotment"], "b32", "?b", "?s")
SHAPES = {
    "tag": ("s", "s", "s", "s", "u"),
    "allotment": ("s", "u", "?u", "u"),
    "inventory": (["resource"], ["absence"], ["s"]),
    "absence": ("u", "s"),
    "pair": ("s", "s"),
    "borrowed": ("u", "u"),
    "metered": ("s", "u", "i", "u", "b16"),
    "resource": ("s", "u", "?u", "u", "u", "i", "s", "s", "?u", "?u", "?u", "?u", ["s"], ["pair"]),
    "subject": SUBJECT,
}
LEASE = ("b16", "b16", "subject", "u", "u")
BODIES = {
    1: ("b16", "b16", "b", "u", "s", "s", "s"),
    2: ("b16", "u"),
    3: ("b16", "inventory"),
    4: ("b16", "b32", "u", "b32", "i"),
    5: ("b16", "s", "s", "i"),
    6: ("b16", "i"),
    7: ("b16", "b32", "b64", "b64"),
    8: ("b16", "u", "b32", "u", "u", "b64"),
    9: ("b16", "s", "t", "i"),
    10: ("b16", "allotment", "t", "i"),
    11: ("b16", "s", "u", "b16", "u", "u", "u", "u"),
    12: ("b16", "s", "u", "i"),
    13: ("b16", "b32", ["s"]),
    14: ("b16", "s", "s", "u", "u", "u", "u"),
    15: ("b16", "s", "s", "u"),
    16: (*LEASE, "b16", "u", "u", "u", "u"),
    17: (*LEASE, "b32"),
    18: (*LEASE, "u", "u"),
    19: LEASE,
    20: LEASE,
    21: (*LEASE, "u"),
    22: (*LEASE, "u", "u"),
    23: LEASE,
    24: (*LEASE, "t", "b32"),
    25: (*LEASE, "u", "b32"),
    26: (*LEASE, ["b16"], "i", "i", "?u", "?u", "?u", "u", "u", "b32"),
    27: (*LEASE, ["allotment"], "u", "i", ["b16"], "i", "b32"),
    28: (*LEASE, "i", "b32"),
    29: (*LEASE, "b16", "s"),
    30: (*LEASE, "i", "i", "i"),
    31: (*LEASE, "u", "u", "u", ["borrowed"]),
    32: ("b16", "s", "u", "u"),
    33: ("b16", "s", ["metered"]),
    64: ("b16", "u", "u", "b32"),
    65: ("b16", "u"),
    68: ("b16", "u"),
    69: ("b16", "u", "b32", "b64"),
}


class Broken(Exception):
    """Something does not hold."""


def need(condition: bool, why: str) -> None:
    if not condition:
        raise Broken(why)


def take(data: bytes, at: int) -> tuple[object, int]:
    """Read one value in the strict profile. Lists come as lists, nil as None."""
    need(at < len(data), "the body is cut short")
    head, at = data[at], at + 1

    def big(count: int) -> int:
        need(at + count <= len(data), "the body is cut short")
        return int.from_bytes(data[at : at + count], "big")

    def run(length: int, begin: int, text: bool) -> tuple[object, int]:
        need(begin + length <= len(data), "the body is cut short")
        raw = data[begin : begin + length]
        return (raw.decode("utf-8", "strict") if text else raw), begin + length

    def items(count: int, begin: int) -> tuple[object, int]:
        found = []
        for _ in range(count):
            value, begin = take(data, begin)
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
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return isinstance(value, list) and len(value) == len(shape) and all(map(fits, value, shape))
    if shape.startswith("?"):
        return value is None or fits(value, shape[1:])
    if shape in SHAPES:
        return fits(value, SHAPES[shape])
    match shape[0]:
        case "s":
            return isinstance(value, str)
        case "t":
            return isinstance(value, bool)
        case "u" | "i":
            return (
                isinstance(value, int)
                and not isinstance(value, bool)
                and (shape == "i" or value >= 0)
            )
        case "b":
            return isinstance(value, bytes) and (shape == "b" or len(value) == int(shape[1:]))
    return False


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_root(leaves[:split]) + tree_root(leaves[split:])).digest()


def number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width], "little")


def closed(block: bytes, what: str) -> bytes:
    need(hashlib.sha256(block[:-32]).digest() == block[-32:], f"the hash of {what} does not hold")
    return block


def signature_holds(key: bytes, message: bytes, signature: bytes) -> bool:
    """Ask openssl, so that not even the library is shared."""
    der = bytes.fromhex("302a300506032b6570032100") + key
    with tempfile.TemporaryDirectory() as place:
        files = {"key": der, "message": message, "signature": signature}
        paths = {name: Path(place) / name for name in files}
        for name, content in files.items():
            paths[name].write_bytes(content)
        command = [
            "openssl",
            "pkeyutl",
            "-verify",
            "-pubin",
            "-keyform",
            "DER",
            "-inkey",
            str(paths["key"]),
            "-rawin",
        ]
        command += ["-in", str(paths["message"]), "-sigfile", str(paths["signature"])]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def newest_slot(anchor: bytes, log_id: bytes) -> bytes:
    need(len(anchor) == 8192, "the anchor is not 8192 bytes")
    found = []
    for index in (0, 1):
        for at in (0, 2048):
            copy = anchor[4096 * index + at : 4096 * index + at + 512]
            if hashlib.sha256(copy[:-32]).digest() == copy[-32:] and copy[:8] == b"LANCHOR1":
                need(
                    number(copy, 8, 8) % 2 == index and copy[16:32] == log_id,
                    "a slot is misplaced or of another log",
                )
                found.append(copy)
    need(bool(found), "no valid slot")
    return max(found, key=lambda copy: number(copy, 8, 8))


class Chain:
    """What has been walked so far."""

    def __init__(self, log_id: bytes, key: bytes | None, origin: bytes) -> None:
        self.log_id, self.key, self.origin = log_id, key, origin
        self.leaves: list[bytes] = []
        self.head, self.batch, self.ended, self.kind = bytes(32), 0, True, 0

    def begin(self, header: bytes, index: int, name: str) -> None:
        """FORMAT.md section 3."""
        size = len(self.leaves)
        need(header[:8] == b"LSEG\r\n\x1a\n" and header[16:32] == self.log_id, f"{name}: not ours")
        need(number(header, 32, 8) == index and number(header, 40, 8) == size, f"{name}: order")
        need(header[48:80] == self.head and number(header, 80, 8) == size, f"{name}: link")
        peaks, rest = [], self.leaves
        for bit in reversed(range(size.bit_length())):
            if size >> bit & 1:
                peaks.append(tree_root(rest[: 1 << bit]))
                rest = rest[1 << bit :]
        need(header[88] == len(peaks), f"{name}: number of peaks")
        need(header[96 : 96 + 32 * len(peaks)] == b"".join(peaks), f"{name}: peaks")

    def take_frame(self, data: bytes, at: int, name: str) -> int:
        """FORMAT.md section 5; return where the next frame begins."""
        where = f"record {len(self.leaves)} at {name}+{at}"
        need(at + 112 <= len(data), f"{where}: cut short")
        n, size = number(data, at + 28, 4), number(data, at, 4)
        need(size == (112 + n + 7) // 8 * 8 <= 65536, f"{where}: frame length")
        need(at + size <= len(data), f"{where}: cut short")
        frame = data[at : at + size]
        crc = zlib.crc32(frame[8:], zlib.crc32(frame[:4]))
        need(crc == number(frame, 4, 4), f"{where}: CRC")
        need(number(frame, 8, 8) == len(self.leaves), f"{where}: sequence")
        need(frame[48:80] == self.head, f"{where}: link")
        flags, this = frame[27], number(frame, 16, 8)
        need(this > self.batch if self.ended else this == self.batch, f"{where}: batch")
        need(flags < 4 and not any(frame[80 + n : -32]), f"{where}: reserved")
        hashed = b"\0LEASEREC1\0" + self.log_id + frame[8 : 80 + n]
        need(hashlib.sha256(hashed).digest() == frame[-32:], f"{where}: hash")
        self.kind = number(frame, 24, 2)
        if self.kind in BODIES and frame[26] == 1:
            self.check_body(frame[80 : 80 + n], where)
        self.head, self.batch, self.ended = frame[-32:], this, bool(flags & 1)
        self.leaves.append(self.head)
        return at + size

    def check_body(self, body: bytes, where: str) -> None:
        """FORMAT.md section 6."""
        value, end = take(body, 0)
        need(end == len(body) and fits(value, BODIES[self.kind]), f"{where}: body")
        if self.kind == 69:
            _, size, root, signature = value
            need(size == len(self.leaves) and root == tree_root(self.leaves), f"{where}: root")
            text = self.origin + b"\n%d\n" % size + base64.b64encode(root) + b"\n"
            holds = self.key is None or signature_holds(self.key, text, signature)
            need(holds, f"{where}: signature")


def verify(directory: Path, *, signatures: bool = True) -> tuple[int, str]:
    """Return (size, head in hex). Raises Broken."""
    identity = closed((directory / "log.id").read_bytes(), "log.id")
    need(len(identity) == 512 and identity[:10] == b"LEASELOG\1\0", "not a log.id")
    length = number(identity, 144, 2)
    key = identity[32:64] if signatures else None
    chain = Chain(identity[16:32], key, identity[146 : 146 + length])
    slot = newest_slot((directory / "anchor").read_bytes(), chain.log_id)
    last, end = number(slot, 40, 8), number(slot, 48, 8)
    for index, path in enumerate(sorted(directory.glob("seg-*.log"))):
        data, at = path.read_bytes(), 4096
        chain.begin(closed(data[:4096], path.name), index, path.name)
        while at < end if index == last else any(data[at : at + 4]):
            at = chain.take_frame(data, at, path.name)
        if index == last:
            break
        need(chain.kind == 68 and chain.ended, f"{path.name}: no closing record")
    anchored = len(chain.leaves) == number(slot, 32, 8) and chain.head == slot[56:88]
    need(anchored and chain.ended, "the chain does not end where the anchor says")
    return len(chain.leaves), chain.head.hex()


if __name__ == "__main__":
    try:
        print(*verify(Path(sys.argv[1])))
    except Broken as error:
        print(error)
        sys.exit(1)
