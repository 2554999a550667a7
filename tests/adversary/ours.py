# SPDX-License-Identifier: Apache-2.0
"""A sealed log under attack: six epochs, one of them empty, written by the real writer; root's
tools to bend it; and the judge, `leasectl verify` in a process of its own.

Root has the node's signing key, the key of the open epoch, older copies of the directory, and our
own code to compute hashes with. Root has neither the keys of sealed epochs nor the collector's
memory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import msgspec

from leased.chain.canonical import decode, encode
from leased.chain.epochs import EpochKey
from leased.chain.note import COSIGNATURE_V1, Checkpoint, NoteKey, cosignature_message
from leased.chain.record import (
    FLAG_LAST,
    PADDING,
    PREFIX,
    SEALED,
    Record,
    frame_bytes,
    hash_prefix,
    parse_frame,
)
from leased.chain.sealer import Sealer
from leased.chain.segment import HEADER_BYTES, parse_log_id
from leased.chain.signing import Signer, parse_pem
from leased.chain.tree import EMPTY
from leased.durable.anchor import encode_slot
from leased.durable.files import DirectoryDisk
from leased.durable.log import OpenedLog, open_log
from leased.durable.reader import read_log
from leased.durable.sealkey import load_seal_key
from leased.ports import AnchorSlot
from leased.terms.event import (
    KIND,
    CheckpointSigned,
    EpochSealed,
    Event,
    HeadCountersigned,
    Pruned,
    Refused,
)
from leased.terms.identity import CommandId, EventId, TenantId
from leased.terms.moment import Moment
from tests.doubles.logs import MACHINE, ORIGIN, CountedEntropy, commit_and_forget, started
from tests.doubles.logs import moment_at as moment

SEGMENT = "seg-0000000000000000.log"
SEGMENT_BYTES = 64 * 1024
EPOCH_NS = 1_000_000_000
TICKS = 10
"""Ten moments of 100 ms are an epoch."""
REFUSED = KIND[Refused]
SEALED_KIND, CHECKPOINT = KIND[EpochSealed], KIND[CheckpointSigned]
ROOT = Path(__file__).resolve().parents[2]


def refusal(number: int) -> Refused:
    """The `number`-th event of a log: a request that was refused."""
    ids = sha256(b"refusal%d" % number).digest()
    tenant = TenantId("research")
    return Refused(EventId(ids[:16]), tenant, 1000, CommandId(ids[16:]), 5, 8, number, 8)


class Victim:
    """A log in `directory`, what was enrolled of it, and copies from before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "audit"
        self.heads: list[str] = []
        log = _open(self.directory)
        assert log.ratchet is not None
        enrolled = {
            "format": "leased-enrolment/1",
            "log_id": log.log_id.hex(),
            "first_public_key": log.signer.public_key.hex(),
            "seal_epoch": log.ratchet.key.epoch,
            "seal_key": log.ratchet.key.key.hex(),
        }
        self.enrolment = folder / "enrolment.json"
        self.enrolment.write_text(json.dumps(enrolled))
        self._write(log, (0, 1, 2))
        self.copy("epoch2")
        self._write(_open(self.directory), (4, 5))
        self.head = self.heads[-1]
        """What the collector pulled last, and remembers."""

    def copy(self, name: str) -> Path:
        """A copy of the directory as it is."""
        return shutil.copytree(self.directory, self.folder / name)

    def put_back(self, *names: str) -> None:
        """Files, or everything, as in the copy of epoch 2."""
        if not names:
            shutil.rmtree(self.directory)
            shutil.copytree(self.folder / "epoch2", self.directory)
        for name in names:
            shutil.copyfile(self.folder / "epoch2" / name, self.directory / name)

    def go_on(self, epochs: Sequence[int], first: int = 1000) -> None:
        """The node goes on, as if nothing had happened."""
        self._write(_open(self.directory), epochs, first)

    def change(self, at: int, data: bytes, name: str = SEGMENT) -> None:
        """Overwrite bytes of a file."""
        with (self.directory / name).open("r+b") as file:
            file.seek(at)
            file.write(data)

    def read(self, at: int, length: int) -> bytes:
        """Bytes of the segment."""
        with (self.directory / SEGMENT).open("rb") as file:
            file.seek(at)
            return file.read(length)

    def records(self) -> list[tuple[Record, int]]:
        """Every record and where its frame begins."""
        log = read_log(self.directory)
        prefix, data = hash_prefix(log.log_id), b"".join(log.frames())
        log.close()
        found, at = [], 0
        while at < len(data):
            record = parse_frame(data, at, prefix)
            found.append((record, HEADER_BYTES + at))
            at += record.frame_bytes
        return found

    def key(self) -> EpochKey:
        """The key of the open epoch, as it lies on the disk."""
        log_id = parse_log_id((self.directory / "log.id").read_bytes(), "log.id").log_id
        disk = DirectoryDisk(self.directory)
        try:
            return load_seal_key(disk, log_id)
        finally:
            disk.close()

    def _write(self, log: OpenedLog, epochs: Sequence[int], first: int = 0) -> None:
        """Five records in each epoch, one by one, and the log is closed; seals of epochs that have
        ended come by themselves."""
        sealer = log.sealer()
        for epoch in epochs:
            for number in range(5):
                event = started() if sealer.head.size == 0 else refusal(first + 10 * epoch + number)
                self._commit(log, sealer, [event], moment(epoch * TICKS + 2 + number))
            if epoch == 2:
                # Nothing happens in epoch 3; its end is sealed all the same, as the agent does.
                self._commit(log, sealer, [], moment(3 * TICKS + 2))
                self._commit(log, sealer, [], moment(4 * TICKS + 2))
        log.close()

    def _commit(self, log: OpenedLog, sealer: Sealer, events: list[Event], at: Moment) -> None:
        batch = sealer.seal([(event, at) for event in events], moment=at)
        commit_and_forget(log, batch, at)
        self.heads.append(batch.head.hex())


def _open(
    directory: Path, epoch_ns: int = EPOCH_NS, entropy: Callable[[], bytes] | None = None
) -> OpenedLog:
    return open_log(
        directory,
        moment=moment(0),
        entropy=entropy or CountedEntropy(str(directory).encode()),
        machine_id=MACHINE,
        origin=ORIGIN,
        best_effort=True,
        segment_bytes=SEGMENT_BYTES,
        epoch_ns=epoch_ns,
        background=False,
    )


def rewrite(
    victim: Victim,
    records: Sequence[Record],
    *,
    key: EpochKey | None = None,
    signing: bool = True,
) -> None:
    """Compute the whole log anew from `records`, and the anchor with it: sequences, links, roots,
    checkpoints, and the MACs of those seals that `key` is for."""
    identity = parse_log_id((victim.directory / "log.id").read_bytes(), "log.id")
    signer = parse_pem((victim.directory / "node.key").read_bytes())
    prefix, tree, head, last_seal = hash_prefix(identity.log_id), EMPTY, bytes(32), 0
    data = bytearray()
    for sequence, record in enumerate(records):
        body = record.body
        rare = record.kind in (SEALED_KIND, CHECKPOINT)
        event = decode(record.kind, record.schema, body) if rare else None
        if isinstance(event, EpochSealed):
            event = msgspec.structs.replace(
                event, size=sequence, first_seq=last_seal, root=tree.root()
            )
            if key is not None and key.epoch == event.epoch:
                event = msgspec.structs.replace(event, tag=key.tag(identity.log_id, event))
            body, last_seal = encode(event), sequence
        elif isinstance(event, CheckpointSigned) and signing:
            text = Checkpoint(identity.origin, sequence, tree.root()).text()
            root, signature = tree.root(), signer.sign(text.encode())
            body = encode(CheckpointSigned(event.event_id, sequence, root, signature))
        made = frame(record, sequence, head, body, prefix)
        data += made
        head = made[-32:]
        tree = tree.extended([head])
    whole = (victim.directory / SEGMENT).read_bytes()[:HEADER_BYTES] + data
    (victim.directory / SEGMENT).write_bytes(whole.ljust(SEGMENT_BYTES, b"\0"))
    _anchor(victim, records[-1].batch, len(records), head, len(whole))


def frame(record: Record, sequence: int, prev: bytes, body: bytes, prefix: bytes) -> bytes:
    """The frame of a record at another place."""
    fields = (sequence, record.batch, record.kind, record.schema, record.flags, len(body))
    content = SEALED.pack(*fields, record.wall_ns, record.boot_ns, prev) + body
    digest = sha256(prefix + content).digest()
    length = frame_bytes(len(body))
    tail = content + PADDING[length - 112 - len(body)] + digest
    return PREFIX.pack(length, crc32(tail, crc32(length.to_bytes(4, "little")))) + tail


def _anchor(victim: Victim, batch: int, size: int, head: bytes, end: int) -> None:
    identity = parse_log_id((victim.directory / "log.id").read_bytes(), "log.id")
    for generation in (batch - 1, batch):
        slot = AnchorSlot(generation, identity.log_id, size, 0, end, head)
        victim.change(4096 * (generation & 1), encode_slot(slot), "anchor")


def judge(victim: Victim, level: str, policy: Path | None = None) -> str:
    """What `leasectl verify` says, given the log alone, what was enrolled, or the collector's head
    too; and with a policy."""
    command = [sys.executable, "-m", "leased.ctl.main", "verify", "--json"]
    command += ["--log", str(victim.directory)]
    if level in ("key", "head"):
        command += ["--enrolment", str(victim.enrolment)]
    if level == "head":
        command += ["--head", victim.head]
    if policy is not None:
        command += ["--policy", str(policy)]
    path = {"PYTHONPATH": f"{ROOT}/agent", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=path
    )
    if done.returncode == 0:
        damaged = json.loads(done.stdout)["crc_damaged"]
        return f"ok, {damaged} damaged" if damaged else "ok"
    if "there is no log here" in done.stderr:
        return "no log"
    if done.returncode == 66:
        return str(json.loads(done.stdout)["verdict"])
    assert done.returncode == 65, done.stderr
    return done.stderr.removeprefix("leasectl: ").partition(":")[0].replace("_OR_ROLLBACK", "")


# ---- the manipulations, by the names in `attacks` ----


def body_bit(victim: Victim) -> None:
    record, at = victim.records()[8]
    victim.change(at + 90, bytes([record.body[10] ^ 1]))


def header_bit(victim: Victim) -> None:
    _, at = victim.records()[8]
    victim.change(at + 32, bytes([victim.read(at + 32, 1)[0] ^ 1]))


def crc_bit(victim: Victim) -> None:
    _, at = victim.records()[8]
    victim.change(at + 4, bytes([victim.read(at + 4, 1)[0] ^ 1]))


def _splice(victim: Victim, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Take the segment apart into frames, edit their list, put it together; the anchor follows."""
    records = victim.records()
    frames = [victim.read(at, record.frame_bytes) for record, at in records]
    edited = edit(list(frames))
    data = b"".join(edited)
    victim.change(HEADER_BYTES, data.ljust(SEGMENT_BYTES - HEADER_BYTES, b"\0"))
    batch = int.from_bytes(edited[-1][16:24], "little")
    _anchor(victim, batch, len(edited), edited[-1][-32:], HEADER_BYTES + len(data))


def deleted(victim: Victim) -> None:
    _splice(victim, lambda frames: frames[:8] + frames[9:])


def swapped(victim: Victim) -> None:
    _splice(victim, lambda frames: [*frames[:8], frames[9], frames[8], *frames[10:]])


def duplicated(victim: Victim) -> None:
    _splice(victim, lambda frames: frames[:9] + frames[8:])


def spliced(victim: Victim) -> None:
    record, at = victim.records()[8]
    other = hash_prefix(b"another log's id")
    made = frame(record, record.sequence, record.prev_hash, record.body, other)
    victim.change(at, made)


def cut(victim: Victim) -> None:
    record, at = victim.records()[-1]
    victim.change(at, bytes(record.frame_bytes))


def cut_anchored(victim: Victim) -> None:
    records = [record for record, _ in victim.records()]
    kept = sum(record.batch < records[-1].batch for record in records)
    _splice(victim, lambda frames: frames[:kept])


def old_anchor(victim: Victim) -> None:
    victim.put_back("anchor")


def old_segment(victim: Victim) -> None:
    victim.put_back(SEGMENT)


def restored(victim: Victim) -> None:
    victim.put_back()


def continued(victim: Victim) -> None:
    victim.put_back()
    victim.go_on((4, 5, 6))


def _after(records: Sequence[Record], record: Record) -> Record:
    """The same record, to be appended in a batch of its own."""
    return msgspec.structs.replace(record, batch=records[-1].batch + 1, flags=FLAG_LAST)


def _lied(records: list[Record], number: int) -> list[Record]:
    """The records with another body in place of that of one refusal."""
    at = [at for at, record in enumerate(records) if record.kind == REFUSED][number]
    records[at] = msgspec.structs.replace(records[at], body=encode(refusal(77)))
    return records


def recomputed(victim: Victim) -> None:
    rewrite(victim, _lied([record for record, _ in victim.records()], 8))


def resealed(victim: Victim) -> None:
    rewrite(victim, _lied([record for record, _ in victim.records()], 8), key=victim.key())


def open_epoch(victim: Victim) -> None:
    records = [record for record, _ in victim.records()]
    last = max(at for at, record in enumerate(records) if record.kind == REFUSED)
    victim.head = records[last - 1].hash.hex()  # what was not pulled yet is what can be bent
    rewrite(victim, _lied(records, -1), key=victim.key())


def back_dated(victim: Victim) -> None:
    records = [record for record, _ in victim.records()]
    early = msgspec.structs.replace(records[8], kind=REFUSED, body=encode(refusal(77)))
    rewrite(victim, [*records, _after(records, early)], key=victim.key())


def empty_epoch(victim: Victim) -> None:
    """Epoch 3 is no more: the seal before it says now that it had no time to be in."""
    records = [record for record, _ in victim.records()]
    seals = [at for at, record in enumerate(records) if record.kind == SEALED_KIND]
    before, empty = seals[2], seals[3]
    first, second = (decode(SEALED_KIND, 1, records[at].body) for at in (before, empty))
    assert isinstance(first, EpochSealed) and isinstance(second, EpochSealed)
    assert second.epoch == 3 and first.epoch == 2
    later = {"end_ns": second.end_ns, "end_wall_ns": second.end_wall_ns, "skipped": 1}
    joined = encode(msgspec.structs.replace(first, **later))
    records[before] = msgspec.structs.replace(records[before], body=joined, flags=FLAG_LAST)
    rewrite(victim, records[: before + 1] + records[empty + 1 :], key=victim.key())


def second_seal(victim: Victim) -> None:
    records = [record for record, _ in victim.records()]
    newest = max(at for at, record in enumerate(records) if record.kind == SEALED_KIND)
    rewrite(victim, [*records, _after(records, records[newest])], key=victim.key())


def _begin_anew(victim: Victim, epoch_ns: int, log_id: bytes | None) -> None:
    """A new log in the same place, with the same signing key, and the same id if told."""
    pem = (victim.directory / "node.key").read_bytes()
    shutil.rmtree(victim.directory)
    victim.directory.mkdir(0o700)
    (victim.directory / "node.key").write_bytes(pem)
    (victim.directory / "node.key").chmod(0o600)
    drawn = iter([log_id] if log_id else [])
    counted = CountedEntropy(b"anew")
    log = _open(victim.directory, epoch_ns, lambda: next(drawn, None) or counted())
    victim._write(log, (0,))


def unsealed(victim: Victim) -> None:
    log_id = parse_log_id((victim.directory / "log.id").read_bytes(), "log.id").log_id
    _begin_anew(victim, 0, log_id)


def fresh(victim: Victim) -> None:
    _begin_anew(victim, EPOCH_NS, None)


def cloned(victim: Victim) -> None:
    """The clone went on first and was pulled; now the other one is."""
    here = victim.copy("here")
    victim.go_on((6,), first=2000)
    victim.head = victim.heads[-1]
    shutil.rmtree(victim.directory)
    here.rename(victim.directory)
    victim.go_on((6,), first=3000)


def checkpoint(victim: Victim) -> None:
    """The node's key signs a size that was never anchored."""
    identity = parse_log_id((victim.directory / "log.id").read_bytes(), "log.id")
    signer = parse_pem((victim.directory / "node.key").read_bytes())
    records = [record for record, _ in victim.records()]
    size, root = len(records) + 100, bytes(32)
    signature = signer.sign(Checkpoint(identity.origin, size, root).text().encode())
    body = encode(CheckpointSigned(EventId(bytes(16)), size, root, signature))
    late = msgspec.structs.replace(records[-1], kind=CHECKPOINT, body=body)
    rewrite(victim, [*records, _after(records, late)], key=victim.key(), signing=False)


def re_encoded(victim: Victim) -> None:
    """The last record again, with its uid in more bytes than it needs."""
    records = [record for record, _ in victim.records()]
    last = max(at for at, record in enumerate(records) if record.kind == REFUSED)
    short, long = msgspec.msgpack.encode(1000), b"\xce" + (1000).to_bytes(4, "big")
    assert short in records[last].body
    body = records[last].body.replace(short, long, 1)
    records[last] = msgspec.structs.replace(records[last], body=body)
    victim.head = records[last - 1].hash.hex()
    rewrite(victim, records)


def cosigned(log: OpenedLog, signer: Signer, name: str, size: int) -> HeadCountersigned:
    """A countersignature of the first `size` records by somebody's key."""
    root = log.pages().tree(size, log.journal.anchored).root()
    text = Checkpoint(log.origin, size, root).text()
    key_id = int.from_bytes(NoteKey(name, signer.public_key, COSIGNATURE_V1).key_id, "big")
    raw = signer.sign(cosignature_message(text, 1))
    return HeadCountersigned(EventId(bytes(16)), size, root, key_id, 1, raw)


def drop(
    victim: Victim,
    signer: Signer | None,
    name: str = "",
    *,
    late: bool = False,
    forged: bool = False,
) -> int:
    """Fill some segments and remove the first ones as a start does: after a countersignature by
    `signer` and a Pruned record, or (None) without a word. `late`: what is cosigned is less than
    what goes; `forged`: by nobody. Where the log begins then."""
    log = _open(victim.directory)
    sealer, at = log.sealer(), moment(0)
    for batch in range(20):
        at = moment((6 + batch) * TICKS + 2)  # each seals the epoch of the one before
        victim._commit(log, sealer, [refusal(5000 + 50 * batch + n) for n in range(50)], at)
    log.close()
    log = _open(victim.directory, entropy=CountedEntropy(b"dropping"))
    sealer, size = log.sealer(), log.head.size
    going = {"acked_size": size, "older_than_wall_ns": 1 << 62, "pressed": True}
    removal = log.removal(**going)
    assert removal is not None and len(removal.names) > 1
    if signer is None:
        log._writer.min_seq = removal.min_seq  # no record says so, so root says it to the anchor
    log.stage(removal)
    events: list[Event] = [refusal(9999)]
    if signer is None:
        log._writer.min_seq = removal.min_seq  # without the record, which whoever prunes does not
    else:
        acked = removal.min_seq - 1 if late else size
        said = (removal.min_seq, removal.head, len(removal.names), acked)
        ack = cosigned(log, signer, name, acked)
        ack = msgspec.structs.replace(ack, signature=bytes(64)) if forged else ack
        events = [ack, Pruned(EventId(bytes(16)), *said)]
    victim._commit(log, sealer, events, at)
    log.remove(removal)
    log.close()
    victim.head = victim.heads[-1]
    return removal.min_seq


def dropped(victim: Victim) -> None:
    drop(victim, None)


def dropped_told(victim: Victim) -> None:
    """Root writes what a pruning writes, with a key of its own for the collector's."""
    drop(victim, Signer(b"root's own key, no collector's 32"[:32]), "west.example/collector")


def emptied(victim: Victim) -> None:
    for path in victim.directory.iterdir():
        path.unlink()
