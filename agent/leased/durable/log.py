# SPDX-License-Identifier: Apache-2.0
"""Opening a log: lock, checks, the recovery rule carried out, and what the rest of the agent is
handed.

Rule: nothing is served from a log that does not hold. Every refusal names the file, where in it,
and what to do; a refusal changes nothing on disk. What recovery repairs lies beyond the anchor, and
is told (`OpenedLog.recovered`).

Does not append events of its own: the service seals NodeStarted first and then Recovered, from what
it is handed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from leased.chain.epochs import (
    EPOCH_NS,
    EpochKey,
    Open,
    Ratchet,
    carry_over,
    first_epoch,
    next_epoch,
)
from leased.chain.keys import change_of, followed
from leased.chain.segment import (
    FLAG_SEALED_PROFILE,
    HEADER_BYTES,
    SEGMENT_BYTES,
    LogIdentity,
    machine_hash,
    parse_header,
    parse_log_id,
)
from leased.chain.signing import Signer
from leased.chain.verdict import SEAL_KEY
from leased.durable.anchor import ANCHOR
from leased.durable.binding import Binding
from leased.durable.countersigned import Countersignatures
from leased.durable.files import DirectoryDisk, Disk, explain, make_directory
from leased.durable.genesis import LOG_ID, create_log
from leased.durable.journal import Committer, FileJournal
from leased.durable.keyfile import KEY_FILE, NEXT_KEY_FILE, load_key, settle_key
from leased.durable.opened import OpenedLog, RecoveredTail, read_places
from leased.durable.repair import ADVICE, Examined, examine, repair
from leased.durable.retention import live_segments, remove_pruned
from leased.durable.scan import Scan
from leased.durable.sealkey import SEAL_KEY_FILE, load_seal_key, replace_seal_key
from leased.durable.spares import Spares
from leased.ports import Entropy
from leased.terms.errors import ChainError, LogBusy, StateError
from leased.terms.event import EpochSealed, KeyChange, KeyRotated, NodeStarted
from leased.terms.moment import Moment

__all__ = ["OpenedLog", "RecoveredTail", "open_log"]


def open_log(
    directory: Path,
    *,
    moment: Moment,
    entropy: Entropy,
    machine_id: bytes,
    origin: str,
    best_effort: bool = False,
    segment_bytes: int = SEGMENT_BYTES,
    epoch_ns: int = EPOCH_NS,
    background: bool = True,
    disk: Disk | None = None,
    committer: Callable[[], Committer] | None = None,
    binding: Binding | None = None,
) -> OpenedLog:
    """Open the log in `directory` for writing; make it if there is none. Raises StateError or
    ChainError.

    `origin` (a prefix such as "lease-log.fleet/node"), `segment_bytes` and `epoch_ns` (0: its
    epochs are not sealed) count only when a log is made. `background` false prepares and changes
    segments in line; `disk` and `committer` are for tests. With a `binding` the log is opened only
    if its counter says that it is the newest.
    """
    try:
        if disk is None:
            make_directory(directory)
            disk = DirectoryDisk(directory)
        try:
            opening = _Opening(
                disk, moment=moment, entropy=entropy, machine_id=machine_id, binding=binding
            )
            return opening.open(
                origin,
                best_effort=best_effort,
                segment_bytes=segment_bytes,
                epoch_ns=epoch_ns,
                background=background,
                committer=committer,
            )
        except BaseException:
            disk.close()
            raise
    except OSError as error:
        raise StateError(explain(error, directory)) from error


class _Opening:
    """The steps of `open_log`, in order."""

    def __init__(
        self,
        disk: Disk,
        *,
        moment: Moment,
        entropy: Entropy,
        machine_id: bytes,
        binding: Binding | None,
    ) -> None:
        self._disk = disk
        self._binding = binding
        self._moment = moment
        self._entropy = entropy
        self._machine_id = machine_id
        self._before: tuple[KeyChange, ...] = ()

    def open(
        self,
        origin: str,
        *,
        best_effort: bool,
        segment_bytes: int,
        epoch_ns: int,
        background: bool,
        committer: Callable[[], Committer] | None,
    ) -> OpenedLog:
        """Lock, check, recover, hand over."""
        disk = self._disk
        if not disk.lock():
            raise LogBusy(f"{disk.directory}: BUSY: another agent has this log open; stop it first")
        filesystem = disk.filesystem()
        if filesystem.why and not best_effort:
            raise StateError(
                f"{disk.directory}: {filesystem.why}; move the state directory, or set durability "
                '= "best-effort" to accept that a power cut may lose acknowledged records'
            )
        binding, anchor = self._binding, str(disk.directory / ANCHOR)
        if binding is not None and LOG_ID not in disk.names():
            binding.judge(0, anchor)
        identity = self._identity(origin, segment_bytes, epoch_ns, best_effort=bool(filesystem.why))
        own = load_key(disk)
        found = self._examine(identity)
        standing = binding.judge(found.slot.tpm_counter, anchor) if binding else None
        signer = _find_signer(disk, own, _key_in_force(identity, self._changes(identity, found)))
        if not found.tail.kept_records:
            self._held_key(identity, found.scan)  # what is kept may hold the seal that it follows
        for name in disk.names():
            if name.endswith(".new"):
                disk.unlink(name)
        remove_pruned(disk, found.slot.min_seq)
        spares = Spares(disk, identity.segment_bytes)
        spares.adopt()
        writer, recovered = repair(disk, identity, found, spares, self._moment)
        if found.tail.kept_records:
            found = self._examine(identity)  # once more: the next opening would do no less
        changes = self._changes(identity, found)
        signer = _settled(disk, signer, _key_in_force(identity, changes))
        ratchet = self._ratchet(identity, found.scan)
        if not background:
            spares.try_fill()
        if binding is not None and standing is not None:
            # Before anything is sealed: from here on no earlier copy of all this is opened again.
            binding.settle(writer, standing, self._moment)
        opened = OpenedLog(
            disk,
            identity,
            FileJournal(
                disk,
                writer,
                (committer or _native_committer)(),
                aside=trio.to_thread.run_sync if background else _in_line,
            ),
            writer,
            found.scan,
            found.tail.frontier,
            signer=signer,
            ratchet=ratchet,
            entropy=self._entropy,
            recovered=recovered,
            filesystem=filesystem,
            key_changes=changes,
            binding=binding,
        )
        if background:
            spares.start()
        return opened

    def _examine(self, identity: LogIdentity) -> Examined:
        """All of it holds, and what is not here any more was pruned by the rules: every verifier
        and every collector would refuse it otherwise. Changes nothing. Raises ChainError."""
        disk, found = self._disk, examine(self._disk, identity)
        slot = found.slot
        if not slot.min_seq:
            return found
        first = live_segments(disk.names(), slot.min_seq)[0]
        begins = parse_header(disk.read_part(first, 0, HEADER_BYTES), first).head
        acks = Countersignatures()
        for _, event, _ in read_places(disk, found.scan.places, identity.log_id):
            acks.note(event)
        try:
            shown = acks.compare(disk, identity, slot, begins.size, begins.hash)
            self._before = shown.pruned.key_changes if shown.pruned is not None else ()
        except ChainError as error:
            why, path = error.why + ADVICE, str(disk.directory / first)
            raise ChainError(error.verdict, why, sequence=error.sequence, file=path) from error
        return found

    def _changes(self, identity: LogIdentity, found: Examined) -> list[tuple[int, KeyChange]]:
        """Every change of the log's key, with its sequence; of those before its beginning, with
        that of the last record before it. Raises ChainError (BAD_SIGNATURE)."""
        changes = [(found.slot.min_seq - 1, change) for change in self._before]
        places = found.scan.rotations
        for sequence, event, _ in read_places(self._disk, places, identity.log_id):
            assert isinstance(event, KeyRotated)
            changes.append((sequence, change_of(event)))
        try:
            followed(identity.log_id, identity.public_key, [change for _, change in changes])
        except ChainError as error:
            path = str(self._disk.directory)
            raise ChainError(error.verdict, error.why + ADVICE, file=path) from error
        return changes

    def _ratchet(self, identity: LogIdentity, scan: Scan) -> Ratchet | None:
        """The open epoch and its key, evolved if a crash came between a seal and that. Raises
        ChainError (SEAL_KEY)."""
        held = self._held_key(identity, scan)
        if held is None:
            return None
        key, opened = held
        epoch = opened.epoch if opened is not None else 0
        if key.epoch < epoch:
            key = key.evolved(epoch - key.epoch)
            replace_seal_key(self._disk, identity.log_id, key)
        return Ratchet(identity.log_id, opened, key, identity.epoch_ns)

    def _held_key(self, identity: LogIdentity, scan: Scan) -> tuple[EpochKey, Open | None] | None:
        """The key on disk and the epoch that is open; None: not sealed. Changes nothing. Raises
        ChainError (SEAL_KEY)."""
        if not identity.flags & FLAG_SEALED_PROFILE:
            return None
        key = load_seal_key(self._disk, identity.log_id)
        opened = self._opened_epoch(identity, scan)
        epoch = opened.epoch if opened is not None else 0
        if key.epoch > epoch:
            why = (
                f"the key is of epoch {key.epoch}, and the log has no seal after that of epoch "
                f"{epoch - 1}: an earlier state of the log was put back"
            )
            path = str(self._disk.directory / SEAL_KEY_FILE)
            raise ChainError(SEAL_KEY, why + "; ask the collector", file=path)
        return key, opened

    def _opened_epoch(self, identity: LogIdentity, scan: Scan) -> Open | None:
        """The epoch that was open when the log was left; None: it is empty."""
        opened: Open | None = None
        for _, event, record in read_places(self._disk, scan.epochs, identity.log_id):
            if isinstance(event, EpochSealed):
                opened = next_epoch(event, identity.epoch_ns)
            elif isinstance(event, NodeStarted):
                began = Moment(event.boot_id, record.boot_ns, record.wall_ns)
                if opened is not None:
                    opened = carry_over(opened, began, identity.epoch_ns)
                elif record.sequence == 0:
                    opened = first_epoch(began, identity.epoch_ns)
        return opened

    def _identity(
        self, origin: str, segment_bytes: int, epoch_ns: int, *, best_effort: bool
    ) -> LogIdentity:
        """The log's identity, made if there is no log. Raises ChainError, StateError."""
        disk = self._disk
        if LOG_ID not in disk.names():
            return create_log(
                disk,
                moment=self._moment,
                entropy=self._entropy,
                machine_id=self._machine_id,
                origin=origin,
                segment_bytes=segment_bytes,
                best_effort=best_effort,
                epoch_ns=epoch_ns,
            )
        identity = parse_log_id(disk.read(LOG_ID), str(disk.directory / LOG_ID))
        if identity.machine_hash != machine_hash(self._machine_id, identity.log_id):
            raise StateError(
                f"{disk.directory}: this log was begun on another machine; a log stays with its "
                "machine: move the directory away to begin a new one here"
            )
        return identity


def _key_in_force(identity: LogIdentity, changes: Sequence[tuple[int, KeyChange]]) -> bytes:
    """The log's key: the first one, or the one that it was changed to last."""
    return changes[-1][1].public_key if changes else identity.public_key


def _settled(disk: Disk, signer: Signer, key: bytes) -> Signer:
    """The signer of `key`, which has its place on disk when this returns: a rotation may have been
    among what was rolled forward. Raises StateError, OSError."""
    settle_key(disk, key)
    return signer if signer.public_key == key else _find_signer(disk, load_key(disk), key)


def _find_signer(disk: Disk, own: Signer, key: bytes) -> Signer:
    """The key on disk, or the one staged beside it, must be the log's. Raises StateError."""
    if own.public_key == key:
        return own
    if NEXT_KEY_FILE in disk.names():
        staged = load_key(disk, NEXT_KEY_FILE)
        if staged.public_key == key:
            return staged
    path = disk.directory / KEY_FILE
    raise StateError(
        f"{path}: this is not the key of this log ({key.hex()}); restore the right one from a"
        " backup"
    )


async def _in_line(call: Callable[..., None], *arguments: object) -> None:
    """Where nobody waits for anything else."""
    await trio.lowlevel.checkpoint()
    call(*arguments)


def _native_committer() -> Committer:
    """The C disk thread. Imported here, so that reading a log needs no compiled part. Raises
    StateError."""
    try:
        from leased.durable.committer import NativeCommitter
    except ImportError as error:
        raise StateError(
            f"the compiled part of leased is missing ({error}); reinstall the package"
        ) from error
    return NativeCommitter()
