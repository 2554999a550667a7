# SPDX-License-Identifier: Apache-2.0
"""What a drive says when it refuses: the NVMe status field in words.

Rule: a status above 0 is a failure, however friendly its name; one that is not listed is still told
by its numbers.

Does not decide whether to ask again: `is_unknown` says whether it would ever have an answer.
"""

from __future__ import annotations

from typing import Final

_KINDS: Final = ("generic", "command specific", "media and data integrity", "path related")
_NAMES: Final = {
    (0, 0x01): "invalid command opcode",
    (0, 0x02): "invalid field in command",
    (0, 0x04): "data transfer error",
    (0, 0x05): "aborted: power loss",
    (0, 0x06): "internal error",
    (0, 0x07): "abort requested",
    (0, 0x0B): "invalid namespace or format",
    (0, 0x0C): "command sequence error",
    (0, 0x15): "operation denied",
    (0, 0x1C): "sanitize failed",
    (0, 0x1D): "sanitize in progress",
    (0, 0x20): "namespace is write protected",
    (0, 0x80): "LBA out of range",
    (0, 0x81): "capacity exceeded",
    (0, 0x82): "namespace not ready",
    (0, 0x83): "reservation conflict",
    (0, 0x84): "format in progress",
    (1, 0x09): "invalid log page",
    (1, 0x0A): "invalid format",
    (1, 0x15): "namespace insufficient capacity",
    (1, 0x16): "namespace identifier unavailable",
    (1, 0x18): "namespace already attached",
    (1, 0x19): "namespace is private",
    (1, 0x1A): "namespace not attached",
    (1, 0x1B): "thin provisioning not supported",
    (1, 0x1C): "controller list invalid",
    (1, 0x29): "sanitize prohibited",
    (2, 0x80): "write fault",
    (2, 0x81): "unrecovered read error",
    (2, 0x86): "access denied",
    (3, 0x00): "internal path error",
    (3, 0x02): "asymmetric access inaccessible",
    (3, 0x71): "aborted by host",
}

_UNKNOWN: Final = ((0, 0x01), (0, 0x02), (0, 0x0B), (1, 0x09))
"""What drives say of a command, a list or a log that they do not have."""


def name_status(status: int) -> str:
    """The status in words, its numbers included."""
    kind, code = status >> 8 & 7, status & 0xFF
    family = _KINDS[kind] if kind < len(_KINDS) else f"type {kind}"
    words = _NAMES.get((kind, code), f"{family} {code:#04x}")
    return f"NVMe status {status:#06x}: {words}"


def is_unknown(status: int) -> bool:
    """Whether the drive does not know what it was asked; anything else is an answer that it did
    not give this time."""
    return (status >> 8 & 7, status & 0xFF) in _UNKNOWN
