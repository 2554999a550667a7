# SPDX-License-Identifier: Apache-2.0
"""A lease's mapping of one namespace: made, given to its holder, ended.

Rule: made whole or not at all. The error table that ends it is loaded when it is made, so that the
cut has only to swap. It is ended when its table is `error`; that it then also goes is tidiness:
what is still open of it reads and writes nothing, and goes with its last user (decisions/0013).

Does not know what was leased to whom.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from leased.hardware.block import canaries, verbs
from leased.hardware.block.calls import NOT_BEGUN, Mapped, Nothing, Readied, Ready, Undo
from leased.hardware.block.contents import describe_contents, read_each, write_each
from leased.hardware.block.names import PREFIX, lease_in
from leased.hardware.block.namespaces import Namespace, is_still
from leased.hardware.block.opening import opened, resolve
from leased.hardware.block.users import find_uses
from leased.hardware.block.verbs import Mapping, Number
from leased.terms.errors import DeviceError

KEPT_MAX = 64
"""Mappings of leases that are over which one user may keep open. Each costs the kernel a thread and
memory, charged to nobody, until its last descriptor is closed, wherever that is."""

_NODE_MODE = 0o600
_FAST = ("no_read_workqueue", "no_write_workqueue")
"""dm-crypt's own queues cost more than they save on a drive that answers in microseconds; kernels
before 5.9 do not know the words."""


@contextlib.contextmanager
def control() -> Iterator[int]:
    """device-mapper, for the `with`."""
    fd = verbs.open_control()
    try:
        yield fd
    finally:
        os.close(fd)


def _admit(call: Ready) -> Namespace:
    namespace = resolve(call.identity, call.size_bytes)
    uses = find_uses(namespace.numbers)
    if uses:
        raise DeviceError("users", errno.EBUSY, f"{call.identity}: {uses[0].what}")
    with opened(namespace, os.O_RDONLY | os.O_EXCL | os.O_DIRECT) as fd:
        contents = describe_contents(fd, namespace.size_bytes) if call.blank else ""
    if contents:
        raise DeviceError("contents", errno.EBUSY, f"{namespace.identity}: {contents}")
    return namespace


def admit(call: Ready, look: Callable[[Ready], Namespace] = _admit) -> Namespace:
    """The namespace, if nobody uses it. Somebody may have made a file system since the survey.
    Raises DeviceError with the verb NOT_BEGUN."""
    try:
        return look(call)
    except (DeviceError, OSError) as error:
        detail = error.detail if isinstance(error, DeviceError) else f"{call.identity}: {error}"
        raise DeviceError(NOT_BEGUN, error.errno or errno.EIO, detail) from error


def refuse_hoarder(uid: int, ours: Iterable[Mapping], root: Path = Path("/")) -> None:
    """Raises DeviceError(NOT_BEGUN) where the user keeps too many that are of no use any more: a
    node is its holder's as long as there is one."""
    kept = 0
    for one in ours:
        with contextlib.suppress(OSError):  # it has just gone
            node = os.stat(root / f"dev/dm-{one.number[1]}") if one.target == "error" else None
            kept += node is not None and node.st_uid == uid
    if kept >= KEPT_MAX:
        detail = f"uid {uid} keeps {kept} mappings of leases that are over open: close some first"
        raise DeviceError(NOT_BEGUN, errno.EUSERS, detail)


def ready(call: Ready, look: Callable[[Ready], Namespace] = _admit) -> Readied:
    """Make it. Raises DeviceError or OSError; then nothing of it is left. The verb NOT_BEGUN: and
    nothing was written."""
    namespace = admit(call, look)
    with control() as dm:
        ours = verbs.list_mappings(dm, PREFIX)
        if len(ours) >= KEPT_MAX:
            found = (verbs.describe_mapping(dm, uuid) for uuid in ours)
            refuse_hoarder(call.uid, [one for one in found if one is not None])
        number = verbs.create_mapping(dm, name=call.name, uuid=call.uuid)
        try:
            _load(dm, call, namespace)
            _hand_to(number, call.name, call.uid)
            checked = 0 if call.raw else _check_encrypted(number, namespace, call)
        except BaseException:
            end(dm, call.uuid, call.name)
            raise
    return Readied(number, namespace.nsid, namespace.diskseq, checked)


def _load(dm: int, call: Ready, namespace: Namespace) -> None:
    sectors = namespace.size_bytes // verbs.SECTOR_BYTES
    if call.raw:
        major, minor = namespace.number
        parameters = f"{major}:{minor} 0"
        verbs.load_table(dm, call.uuid, sectors=sectors, target="linear", parameters=parameters)
    else:
        _load_crypt(dm, call, namespace, sectors)
    # The table has the device of that number open: it is nobody else's from here on.
    if not is_still(namespace, namespace.number):
        raise DeviceError(NOT_BEGUN, errno.ENODEV, f"{namespace.identity} went away")
    verbs.resume_mapping(dm, call.uuid)
    verbs.load_table(dm, call.uuid, sectors=sectors, target="error", parameters="")


def _load_crypt(dm: int, call: Ready, namespace: Namespace, sectors: int) -> None:
    options = ["allow_discards"]
    if namespace.lba_bytes > verbs.SECTOR_BYTES:
        options.append(f"sector_size:{namespace.lba_bytes}")
    for more in (_FAST, ()):
        said = [*options, *more]
        try:
            verbs.load_crypt(
                dm,
                call.uuid,
                sectors=sectors,
                device=namespace.number,
                cipher=call.cipher,
                key_bytes=call.key_bits // 8,
                options=" ".join([str(len(said)), *said]),
            )
            return
        except DeviceError as error:
            if error.errno != errno.EINVAL or not more:
                raise


def _hand_to(number: Number, name: str, uid: int) -> None:
    """Let the holder open the node. devtmpfs makes it with the device; the name beside it is udev's
    to make, and ours where udev is late or not there."""
    node = f"/dev/dm-{number[1]}"
    os.chmod(node, _NODE_MODE)
    os.chown(node, uid, 0)
    with contextlib.suppress(FileExistsError):
        os.symlink(f"../dm-{number[1]}", f"/dev/mapper/{name}")


def _check_encrypted(number: Number, namespace: Namespace, call: Ready) -> int:
    """Write canaries through the mapping: they read back through it, and are not on the drive. How
    many. Raises DeviceError(EIO) where that is not so."""
    flags = os.O_DIRECT | os.O_CLOEXEC
    fd = os.open(f"/dev/dm-{number[1]}", os.O_RDWR | flags)
    try:
        with opened(namespace, os.O_RDONLY | os.O_DIRECT) as below:
            offsets = canaries.places(call.seed, namespace.size_bytes, call.canaries)
            written = {offset: canaries.content(call.seed, offset) for offset in offsets}
            write_each(fd, written.items(), canaries.BLOCK_BYTES)
            for offset, read in read_each(fd, offsets, canaries.BLOCK_BYTES):
                if read != written[offset]:
                    raise DeviceError("block_check", errno.EIO, "a block does not read back")
            for offset, read in read_each(below, offsets, canaries.BLOCK_BYTES):
                if read == written[offset]:
                    raise DeviceError("block_check", errno.EIO, "a block is not encrypted")
    finally:
        os.close(fd)
    return len(offsets)


def end(dm: int, uuid: str, name: str) -> bool:
    """Cut it, forget its key, and let it go, now or with its last user. Whether a key was wiped
    now. Raises DeviceError when it is not `error` afterwards."""
    wiped = verbs.cut_mapping(dm, uuid)
    left = verbs.describe_mapping(dm, uuid)
    if left is not None:
        if left.target not in ("error", "") or left.suspended:
            raise DeviceError("dm_cut", errno.EBUSY, f"{uuid} is still {left.target}")
        _drop_cache(left.number)
        with contextlib.suppress(DeviceError):
            verbs.remove_mapping(dm, uuid, timeout_ms=0, later=True)
    _forget_name(name)
    return wiped


def _drop_cache(number: Number) -> None:
    """What was read through it and is not mapped by anybody. Where that fails, whoever has it open
    may read on what it read before, which is its own: the next lease has a mapping, and a cache,
    of its own."""
    with contextlib.suppress(OSError, DeviceError):
        fd = os.open(f"/dev/dm-{number[1]}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            verbs.flush_device(fd)
        finally:
            os.close(fd)


def _forget_name(name: str) -> None:
    path = f"/dev/mapper/{name}"
    with contextlib.suppress(OSError):
        if os.path.islink(path) and not os.path.exists(path):
            os.unlink(path)


def undo(call: Undo) -> Nothing:
    """Take away what nobody ever had."""
    with control() as dm:
        end(dm, call.uuid, call.name)
    return Nothing()


def list_ours(_: Nothing) -> Mapped:
    """Those of leases. Where there is no device-mapper there is nothing."""
    try:
        with control() as dm:
            there = verbs.list_mappings(dm, PREFIX)
    except DeviceError as error:
        if error.errno != errno.ENODEV:
            raise
        there = ()
    return Mapped(tuple(uuid for uuid in there if lease_in(uuid) is not None))
