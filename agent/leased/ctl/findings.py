# SPDX-License-Identifier: Apache-2.0
"""Findings of the doctor: what was looked at, what was found, what to do.

Rule: a grade other than OK says what it takes away; FAIL means that a promise cannot be kept on
this host.
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec

from leased.durable.reading import read_file


class Grade(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    grade: Grade
    topic: str
    text: str
    advice: str = ""

    def document(self) -> dict[str, str]:
        """As plain values."""
        return {
            "grade": str(self.grade),
            "check": self.topic,
            "found": self.text,
            "advice": self.advice,
        }


def read_text(path: Path) -> str | None:
    """A small file of the kernel's, or None where there is none that we may read."""
    data = read_bytes(path)
    return None if data is None else data.decode("utf-8", "replace").strip()


def read_bytes(path: Path) -> bytes | None:
    """The same, as it is."""
    try:
        return read_file(path)
    except OSError:
        return None
