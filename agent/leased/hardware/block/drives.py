# SPDX-License-Identifier: Apache-2.0
"""What a drive says of itself: Identify, its logs, and what follows for erasing.

Rule: what a drive can do is what its log of supported commands says (LID 05h), not what its
controller announces: drives announce commands that they then refuse. A drive without that log can
do nothing beyond what every drive can. What erases more than one namespace is `wide`, and whoever
uses it must ask who else is there.

Pure: pages in, values out. Does not send anything to a drive.
"""

from __future__ import annotations

import enum
import errno
import struct

import msgspec

from leased.terms.errors import DeviceError

IDENTIFY_NAMESPACE, IDENTIFY_CONTROLLER, ACTIVE_LIST = 0x00, 0x01, 0x02
ALLOCATED_LIST, ALLOCATED_NAMESPACE = 0x10, 0x11
ATTACHED_CONTROLLERS = 0x12
LOG_SMART, LOG_EFFECTS, LOG_SANITIZE = 0x02, 0x05, 0x81
EFFECTS_BYTES, SMART_BYTES, SANITIZE_BYTES = 4096, 512, 512
EVERY_NAMESPACE = 0xFFFFFFFF

_FORMAT, _SANITIZE, _MANAGE, _ATTACH = 0x80, 0x84, 0x0D, 0x15
_SUPPORTED = 1
_FNA_FORMAT_ALL, _FNA_ERASE_ALL, _FNA_CRYPTO = 1, 2, 4
_SMART_SPARE, _SMART_RELIABILITY, _SMART_READ_ONLY, _SMART_BACKUP = 1, 4, 8, 16


class Erase(enum.StrEnum):
    """A way to make a namespace forget, besides forgetting a key.

    `crypto` and `format` are Format with its cryptographic and its user-data erase; the three
    `sanitize-...` reach the whole subsystem; `zero` writes zeroes (the drive does, or the kernel).
    """

    CRYPTO = "crypto"
    FORMAT = "format"
    SANITIZE_CRYPTO = "sanitize-crypto"
    SANITIZE_BLOCK = "sanitize-block"
    SANITIZE_OVERWRITE = "sanitize-overwrite"
    ZERO = "zero"


SANITIZE_ACTIONS = {
    Erase.SANITIZE_BLOCK: 2,
    Erase.SANITIZE_OVERWRITE: 3,
    Erase.SANITIZE_CRYPTO: 4,
}
_SANICAP = {Erase.SANITIZE_CRYPTO: 1, Erase.SANITIZE_BLOCK: 2, Erase.SANITIZE_OVERWRITE: 4}


class Drive(msgspec.Struct, frozen=True, array_like=True):
    """What a controller can do. `erases`: (way, whether it reaches every namespace)."""

    erases: tuple[tuple[Erase, bool], ...] = ((Erase.ZERO, False),)
    manages: bool = False
    attaches: bool = False

    def reach(self, way: Erase) -> bool | None:
        """Whether the way reaches every namespace of the drive; None: the drive does not know
        it."""
        return dict(self.erases).get(way)


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """How a namespace is formatted: which LBA format (`lbaf`), and whether it can be reached
    through more than one controller."""

    size_blocks: int
    lba_bytes: int
    metadata_bytes: int
    lbaf: int
    shared: bool


class Sanitizing(enum.IntEnum):
    """Where a sanitization is."""

    NEVER = 0
    DONE = 1
    RUNNING = 2
    FAILED = 3
    DONE_DEALLOCATED = 4


def read_drive(controller: bytes, effects: bytes) -> Drive:
    """From Identify Controller and the log of supported commands ("" if the drive has none)."""
    [sanicap], fna = struct.unpack_from("<I", controller, 328), controller[524]
    erases: list[tuple[Erase, bool]] = []
    if _supports(effects, _FORMAT):
        erases.append((Erase.FORMAT, bool(fna & (_FNA_FORMAT_ALL | _FNA_ERASE_ALL))))
        if fna & _FNA_CRYPTO:
            erases.append((Erase.CRYPTO, bool(fna & (_FNA_FORMAT_ALL | _FNA_ERASE_ALL))))
    if _supports(effects, _SANITIZE):
        erases += [(way, True) for way, bit in _SANICAP.items() if sanicap & bit]
    erases.append((Erase.ZERO, False))
    return Drive(
        tuple(sorted(erases)), _supports(effects, _MANAGE), _supports(effects, _ATTACH)
    )


def _supports(effects: bytes, opcode: int) -> bool:
    """Of the admin commands."""
    if len(effects) < EFFECTS_BYTES:
        return False
    return bool(struct.unpack_from("<I", effects, 4 * opcode)[0] & _SUPPORTED)


def read_unallocated(controller: bytes) -> int:
    """Bytes that belong to no namespace (UNVMCAP), from Identify Controller."""
    return int.from_bytes(controller[296:312], "little")


def choose_format(every: bytes) -> tuple[int, int]:
    """(number, bytes of a block) of the quickest format without metadata that fits a page, from
    Identify Namespace of every namespace. Raises DeviceError."""
    found: list[tuple[int, int, int]] = []
    for lbaf in range(every[25] + 1):
        metadata_bytes, shift, speed = struct.unpack_from("<HBB", every, 128 + 4 * lbaf)
        if metadata_bytes == 0 and 9 <= shift <= 12:
            found.append((speed & 3, -shift, lbaf))
    if not found:
        raise DeviceError("nvme_create", errno.ENOTSUP, "it has no plain format")
    _, shift, lbaf = min(found)
    return lbaf, 1 << -shift


def read_layout(namespace: bytes) -> Layout:
    """From Identify Namespace."""
    (size_blocks,) = struct.unpack_from("<Q", namespace, 0)
    formats, used, nmic = namespace[25], namespace[26], namespace[30]
    # The upper bits mean something only where there are more than 16 formats.
    lbaf = used & 0xF | ((used >> 5 & 3) << 4 if formats > 15 else 0)
    metadata_bytes, shift = struct.unpack_from("<HB", namespace, 128 + 4 * lbaf)
    return Layout(size_blocks, 1 << shift, metadata_bytes, lbaf, bool(nmic & 1))


def read_list(page: bytes) -> tuple[int, ...]:
    """The nsids of a namespace list."""
    numbers = struct.unpack(f"<{len(page) // 4}I", page)
    return numbers[: numbers.index(0)] if 0 in numbers else numbers


def read_controllers(page: bytes) -> tuple[int, ...]:
    """The ids of a controller list."""
    (count,) = struct.unpack_from("<H", page)
    return struct.unpack_from(f"<{min(count, len(page) // 2 - 1)}H", page, 2)


def why_sick(smart: bytes) -> str:
    """What SMART warns of that speaks against leasing the drive; "" if nothing does. Heat passes,
    and is the operator's to see elsewhere."""
    warning = smart[0] if smart else 0
    named = (
        (_SMART_SPARE, "spare blocks run out"),
        (_SMART_RELIABILITY, "reliability is degraded"),
        (_SMART_READ_ONLY, "media is read-only"),
        (_SMART_BACKUP, "volatile memory backup failed"),
    )
    return ", ".join(words for bit, words in named if warning & bit)


def read_sanitizing(log: bytes) -> Sanitizing:
    """How far the last sanitization is."""
    (status,) = struct.unpack_from("<H", log, 2)
    return Sanitizing(status & 7)
