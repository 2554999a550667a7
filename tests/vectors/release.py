# SPDX-License-Identifier: Apache-2.0
"""Logs as a release writes them, kept for every later release to read:

    python -m tests.vectors.release

writes `logs/<version>.json` beside this file, once, when a version is released; a file that is
there is never written again. Each log is as it was found on disk: closed cleanly, torn by a crash,
cut off between a batch and its anchor, in the middle of a switch, without seals, and with records
that only a later release knows.

Rule: nothing here is random and no clock is asked, so the same tree writes the same bytes.
"""

from __future__ import annotations

import base64
import json
import zlib
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import leased
from leased.chain.record import FLAG_LAST, FRAME_BYTES_MIN, PADDING, PREFIX, SEALED, hash_prefix
from leased.chain.signing import Signer, rotation_message
from leased.durable.log import OpenedLog
from leased.terms import event as e
from leased.terms.identity import EventId
from tests.doubles.disk import CrashPoint, MemoryDisk
from tests.doubles.logs import (
    allocation,
    events_of_every_kind,
    moment_at,
    open_on,
    renewal,
    started,
)

LOGS = Path(__file__).parent / "logs"
EPOCH_NS = 10**9
BY_THE_SEALER = (e.NodeStarted, e.KeyRotated, e.EpochSealed, e.CheckpointSigned, e.SegmentEnd)


class Scene:
    """A log being written to a disk in memory."""

    def __init__(self, *, epoch_ns: int = EPOCH_NS) -> None:
        self.disk = MemoryDisk()
        self.log: OpenedLog = open_on(self.disk, epoch_ns=epoch_ns)
        self.key = self.log.ratchet.key.key if self.log.ratchet else b""
        self.sealer = self.log.sealer()
        self._tick = 0

    def write(self, events: list[e.Event]) -> None:
        """One batch, a tenth of a second after the one before."""
        at = moment_at(self._tick)
        self._tick += 1
        batch = self.sealer.seal([(event, at) for event in events])
        self.log.journal.commit_blocking(batch.frames, batch.count, batch.head, at)
        self.log.journal.spares.fill()
        if batch.ends_epoch:
            self.log.forget_epoch()

    def begin(self) -> Scene:
        """The first records of any log: so many that a segment ends among them."""
        self.write([started()])
        for number in range(12):
            self.write([allocation(number), *(renewal(10 * number + each) for each in range(4))])
        return self


def every_kind() -> tuple[Scene, dict[str, bytes]]:
    """Closed cleanly, with a record of each kind and a new key."""
    scene = Scene().begin()
    for event in events_of_every_kind():
        if not isinstance(event, BY_THE_SEALER):
            scene.write([event])
    signer, new = scene.log.signer, Signer(bytes(range(32)))
    message = rotation_message(scene.log.log_id, signer.public_key, new.public_key)
    signed = (new.public_key, signer.sign(message), new.sign(message))
    scene.sealer._signer = new
    scene.write([e.KeyRotated(EventId(b"r" * 16), *signed)])
    files = scene.disk.contents()
    return scene, {**files, "node.key": new.pem()}


class _NothingDrawn:
    """Nothing is drawn: the first state of all is the one where nothing on its way was kept."""


def torn() -> tuple[Scene, dict[str, bytes]]:
    """Half of a batch reached the disk."""
    scene = Scene().begin()
    scene.write([renewal(900)])
    files = scene.disk.contents()
    name = max(name for name in files if name.startswith("seg-"))
    end = scene.log.journal.anchored.end_offset
    scene.write([renewal(901), renewal(902), renewal(903)])
    half = scene.disk.contents()[name][end : end + 700]
    whole = files[name][:end] + half + files[name][end + len(half) :]
    return scene, {**files, name: whole}


def unanchored() -> tuple[Scene, dict[str, bytes]]:
    """A whole batch reached the disk, and its anchor did not."""
    scene = Scene().begin()
    files = scene.disk.contents()
    scene.write([allocation(500), renewal(900)])
    after = scene.disk.contents()
    name = max(name for name in files if name.startswith("seg-"))
    return scene, {**files, name: after[name]}


def in_a_switch() -> tuple[Scene, dict[str, bytes]]:
    """A segment has ended and the next one has no name yet."""
    scene = Scene().begin()
    names = {name for name in scene.disk.names() if name.startswith("seg-")}
    number = 0
    while True:
        began = len(scene.disk.ops)
        scene.write([renewal(1000 + number)])
        number += 1
        if {name for name in scene.disk.names() if name.startswith("seg-")} != names:
            break
    ops = scene.disk.ops
    # All up to the end of the batch that ended the segment: its anchor is the last before that.
    renamed = next(at for at in range(began, len(ops)) if ops[at][0] == "rename")
    anchor = scene.disk.table["anchor"]
    synced = max(at for at in range(began, renamed) if ops[at] == ("sync", anchor))
    states = CrashPoint(scene.disk, synced + 1).states(
        granule=512,
        random=_NothingDrawn(),
        samples=0,  # type: ignore[arg-type]
    )
    return scene, next(states)


def unsealed() -> tuple[Scene, dict[str, bytes]]:
    """A log without the sealed profile."""
    scene = Scene(epoch_ns=0).begin()
    return scene, scene.disk.contents()


def from_later() -> tuple[Scene, dict[str, bytes]]:
    """Records of a kind and of a schema that this release does not know."""
    scene = Scene().begin()
    for kind, schema in ((200, 1), (16, 2)):
        slot = scene.log.journal.anchored
        body = b"\x92\xc4\x10" + b"l" * 16 + b"\x07"
        at = moment_at(scene._tick)
        frame = _frame(slot.next_seq, slot.generation + 1, kind, schema, body, slot.head, scene)
        scene.log.journal.commit_blocking(frame, 1, frame[-32:], at)
    return scene, scene.disk.contents()


def _frame(
    sequence: int, batch: int, kind: int, schema: int, body: bytes, prev: bytes, scene: Scene
) -> bytes:
    at = moment_at(scene._tick - 1)
    fields = (sequence, batch, kind, schema, FLAG_LAST, len(body), at.wall_ns, at.boot_ns, prev)
    content = SEALED.pack(*fields) + body
    digest = sha256(hash_prefix(scene.log.log_id) + content).digest()
    length = (len(body) + FRAME_BYTES_MIN + 7) & -8
    tail = content + PADDING[length - len(body) - FRAME_BYTES_MIN] + digest
    size = length.to_bytes(4, "little")
    return PREFIX.pack(length, crc32(tail, crc32(size))) + tail


SCENES = (every_kind, torn, unanchored, in_a_switch, unsealed, from_later)


def pack(data: bytes) -> str:
    """A file as text."""
    return base64.b85encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> bytes:
    """A file again."""
    return zlib.decompress(base64.b85decode(text))


def written() -> dict[str, dict[str, object]]:
    """Every log with what this release finds in it."""
    from tests.vectors.test_vectors_releases import found

    logs: dict[str, dict[str, object]] = {}
    for scene in SCENES:
        made, files = scene()
        packed = {name: pack(data) for name, data in files.items()}
        logs[scene.__name__] = {
            "seal_key": made.key.hex(),
            "found": found(files, made.key),
            "files": packed,
        }
    return logs


if __name__ == "__main__":
    path = LOGS / f"{leased.__version__}.json"
    if path.exists():
        raise SystemExit(f"{path} is there: a release writes its logs once")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(written(), indent=1) + "\n", "utf-8")
