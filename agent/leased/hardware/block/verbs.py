# SPDX-License-Identifier: Apache-2.0
"""The door to the C verbs for block devices: device-mapper, NVMe admin commands, the block layer.

Rule: below 0 is an errno, above 0 a drive's status; either is a DeviceError that names the verb and
says it in words. Every call may block for as long as a drive likes, so only workers call them.

Does not decide which command may be sent.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from leased._native import ffi, lib
from leased.hardware.block.statuses import is_unknown, name_status
from leased.hardware.verbs import checked
from leased.terms.errors import DeviceError

PAGE_BYTES: Final = lib.LEASED_NVME_PAGE_BYTES
SECTOR_BYTES: Final = 512
"""What device-mapper and sysfs count in, whatever the LBA of the drive is."""

_LIST_FIRST_BYTES: Final = 1 << 14
_LIST_BYTES_MAX: Final = 1 << 22
"""The kernel clears, copies and copies back as much as it is offered, however few there are."""
_BELOW_MAX: Final = 16

Number = tuple[int, int]
"""Major and minor of a block device."""


class NotKnown(DeviceError):
    """A drive has no such command, list or log, and never will."""


class Mapping(NamedTuple):
    """A device-mapper device and its table. `target` is "" while there is none; `inactive`: another
    table waits for the next resume."""

    name: str
    number: Number
    sectors: int
    target: str
    open_count: int
    suspended: bool
    inactive: bool


class Measures(NamedTuple):
    """A block device's size."""

    size_bytes: int
    lba_bytes: int
    read_only: bool


def _accepted(verb: str, rc: int, detail: str = "") -> None:
    """0, or what the kernel or the drive has against it."""
    if rc > 0:
        refused = NotKnown if is_unknown(rc) else DeviceError
        raise refused(verb, errno.EREMOTEIO, " ".join([name_status(rc), detail]).rstrip())
    checked(verb, rc, detail)


# ---- device-mapper -----------------------------------------------------------------------------


def open_control() -> int:
    """The control device of device-mapper."""
    return checked("dm_open", lib.leased_dm_open())


def create_mapping(control: int, *, name: str, uuid: str) -> Number:
    """A mapping without a table; its device number."""
    major, minor = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    rc = lib.leased_dm_create(control, name.encode(), uuid.encode(), major, minor)
    checked("dm_create", rc, name if rc == -errno.EBUSY else "")
    return int(major[0]), int(minor[0])


def load_table(control: int, uuid: str, *, sectors: int, target: str, parameters: str) -> None:
    """A table of one target, for the next resume."""
    table = (sectors, target.encode(), parameters.encode())
    checked("dm_load", lib.leased_dm_load(control, uuid.encode(), *table, 0))


def load_crypt(
    control: int,
    uuid: str,
    *,
    sectors: int,
    device: Number,
    cipher: str,
    key_bytes: int,
    options: str,
) -> None:
    """A dm-crypt table over all of `device`, with a key that is made on the way and that nobody
    sees, for the next resume."""
    how = (cipher.encode(), key_bytes, *device, options.encode())
    checked("dm_crypt", lib.leased_dm_load_crypt(control, uuid.encode(), sectors, *how))


def resume_mapping(control: int, uuid: str) -> None:
    """Make the loaded table the active one and let I/O go."""
    checked("dm_resume", lib.leased_dm_resume(control, uuid.encode()))


def suspend_mapping(control: int, uuid: str) -> None:
    """Hold new I/O back and wait for what the drive has in hand."""
    checked("dm_suspend", lib.leased_dm_suspend(control, uuid.encode()))


def describe_mapping(control: int, uuid: str) -> Mapping | None:
    """The mapping with its active table, or None: there is none."""
    found = ffi.new("struct leased_dm_mapping *")
    rc = lib.leased_dm_describe(control, uuid.encode(), False, found)
    if rc == -errno.ENXIO:
        return None
    checked("dm_describe", rc)
    return Mapping(
        ffi.string(found.name).decode(),
        (found.major, found.minor),
        found.sectors,
        ffi.string(found.target).decode(),
        found.open_count,
        bool(found.suspended),
        bool(found.inactive),
    )


def below_mapping(control: int, uuid: str) -> tuple[Number, ...]:
    """The devices that the active table is on."""
    devices = ffi.new("uint64_t[]", _BELOW_MAX)
    rc = lib.leased_dm_below(control, uuid.encode(), devices, _BELOW_MAX)
    count = min(checked("dm_below", rc), _BELOW_MAX)
    return tuple((devices[at] >> 32, devices[at] & 0xFFFFFFFF) for at in range(count))


def remove_mapping(control: int, uuid: str, *, timeout_ms: int, later: bool = False) -> None:
    """Take the mapping away; DeviceError(EBUSY) when somebody has it open to the end (`later`: then
    it goes with its last user)."""
    checked("dm_remove", lib.leased_dm_remove(control, uuid.encode(), timeout_ms, later))


def list_mappings(control: int, prefix: str) -> tuple[str, ...]:
    """The uuids of all mappings of this host that begin so."""
    size = _LIST_FIRST_BYTES
    while True:
        room, into = ffi.new("char[]", size), ffi.new("char[]", size)
        rc = lib.leased_dm_list(control, prefix.encode(), room, size, into, size)
        if rc != -errno.E2BIG or size >= _LIST_BYTES_MAX:
            break
        size *= 16
    uuids: list[str] = []
    at = into + 0
    for _ in range(checked("dm_list", rc)):
        uuid = ffi.string(at)
        uuids.append(uuid.decode("ascii", "replace"))
        at += len(uuid) + 1
    return tuple(uuids)


def cut_mapping(control: int, uuid: str) -> bool:
    """From the return on nobody reads or writes through it: EIO. Whether a key was wiped. Nothing
    to do where there is none."""
    key, ended_ns = ffi.new("int *"), ffi.new("uint64_t *")
    checked("dm_cut", lib.leased_dm_cut(control, uuid.encode(), key, ended_ns))
    return bool(key[0])


# ---- NVMe --------------------------------------------------------------------------------------


def identify(fd: int, *, nsid: int, cns: int, timeout_ms: int) -> bytes:
    """4096 bytes of Identify."""
    page = ffi.new("char[]", PAGE_BYTES)
    rc = lib.leased_nvme_identify(fd, nsid, cns, page, timeout_ms)
    _accepted("nvme_identify", rc, f"(CNS {cns:#04x})")
    return bytes(ffi.buffer(page))


def read_log(fd: int, *, nsid: int, log: int, size_bytes: int, timeout_ms: int) -> bytes:
    """The beginning of a log page."""
    page = ffi.new("char[]", size_bytes)
    rc = lib.leased_nvme_log(fd, nsid, log, page, size_bytes, timeout_ms)
    _accepted("nvme_log", rc, f"(log {log:#04x})")
    return bytes(ffi.buffer(page))


def format_namespace(fd: int, *, nsid: int, lbaf: int, ses: int, timeout_ms: int) -> None:
    """Format one namespace (where the drive has it so: all of them)."""
    _accepted("nvme_format", lib.leased_nvme_format(fd, nsid, lbaf, ses, timeout_ms))


def begin_sanitize(fd: int, *, action: int, timeout_ms: int) -> None:
    """Begin to sanitize the whole subsystem."""
    _accepted("nvme_sanitize", lib.leased_nvme_sanitize(fd, action, timeout_ms))


def create_namespace(fd: int, *, blocks: int, lbaf: int, shared: bool, timeout_ms: int) -> int:
    """Make a namespace, attached to nobody; its number."""
    nsid = ffi.new("uint32_t *")
    rc = lib.leased_nvme_create_namespace(fd, blocks, lbaf, shared, nsid, timeout_ms)
    _accepted("nvme_create", rc)
    return int(nsid[0])


def delete_namespace(fd: int, *, nsid: int, timeout_ms: int) -> None:
    """Give a namespace's capacity back to the drive."""
    _accepted("nvme_delete", lib.leased_nvme_delete_namespace(fd, nsid, timeout_ms))


def attach_namespace(
    fd: int, *, nsid: int, controllers: tuple[int, ...], attach: bool, timeout_ms: int
) -> None:
    """Attach a namespace to these controllers, or detach it from them."""
    who = (ffi.new("uint16_t[]", list(controllers)), len(controllers))
    rc = lib.leased_nvme_attach_namespace(fd, nsid, attach, *who, timeout_ms)
    _accepted("nvme_attach" if attach else "nvme_detach", rc)


def rescan_controller(fd: int) -> None:
    """Let the kernel look at the controller's namespaces again."""
    checked("nvme_rescan", lib.leased_nvme_rescan(fd))


# ---- the block layer ---------------------------------------------------------------------------


def measure_device(fd: int) -> Measures:
    """How large it is."""
    found = ffi.new("struct leased_block_device *")
    checked("block_measure", lib.leased_block_measure(fd, found))
    return Measures(found.bytes, found.lba_bytes, bool(found.read_only))


def flush_device(fd: int) -> None:
    """Throw cached blocks away: whoever reads next reads the drive."""
    checked("block_flush", lib.leased_block_flush(fd))


def zero_device(fd: int, *, offset: int, size_bytes: int) -> None:
    """Let the drive (or, where it cannot, the kernel) write zeroes."""
    checked("block_zero", lib.leased_block_zero(fd, offset, size_bytes))


def device_behind_loop(fd: int) -> Number | None:
    """What is behind a loop device, if it is in use and that is a device."""
    device = ffi.new("uint64_t *")
    rc = lib.leased_loop_behind(fd, device)
    if rc == -errno.ENXIO:
        return None
    checked("loop_behind", rc)
    return (int(device[0]) >> 32, int(device[0]) & 0xFFFFFFFF) if device[0] else None
