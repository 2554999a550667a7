# SPDX-License-Identifier: Apache-2.0
"""NVMe namespaces: seen and listed by their permanent identity, not leased yet.

Rule: the identity is NGUID, else EUI-64, else UUID, else the wwid; never the name in /dev, which
moves (teardown.md 1.1). From sysfs alone: no ioctl is sent to a drive to list it.

Does not grant, cut or erase a namespace: that is a later issue, and the inventory says so.
"""

from __future__ import annotations

import re
from pathlib import Path

from leased.hardware.sysfs import list_names, read_int, read_text
from leased.terms.resource import Absence, ResourceKind

_LATER = "seen; leased in a later issue"
_HEAD = re.compile(r"nvme\d+n\d+")
"""The head of a namespace; nvme0c0n1 is only one path to it."""

_EMPTY = re.compile(r"[0\s-]*")
_SECTOR_BYTES = 512


def survey_namespaces(root: Path = Path("/")) -> tuple[tuple[Absence, ...], tuple[str, ...]]:
    """Why no namespace is leased, and one note for each that is there."""
    block = root / "sys/block"
    notes = tuple(
        f"block:{identify(block / name)} {(read_int(block / name / 'size') or 0) * _SECTOR_BYTES}"
        f" bytes: {_LATER}"
        for name in list_names(block)
        if _HEAD.fullmatch(name)
    )
    why = f"{len(notes)} NVMe namespaces {_LATER}" if notes else "no NVMe namespace"
    return (Absence(ResourceKind.BLOCK, why),), notes


def identify(device: Path) -> str:
    """The namespace's permanent identity."""
    for attribute in ("nguid", "eui", "uuid"):
        text = read_text(device / attribute)
        if text is not None and not _EMPTY.fullmatch(text):
            return text.replace(" ", "").replace("-", "").lower()
    return read_text(device / "wwid") or f"unidentified {device.name}"
