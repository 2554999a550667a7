# SPDX-License-Identifier: Apache-2.0
"""Complaints: what a decoder says of a value that does not fit, for the people who sent it.

Rule: the parameter is named by its path; what it may be is told in words: no one reads a regular
expression, or the decoder's names of types with a length.

Does not decode.
"""

from __future__ import annotations

import re
from typing import Final

from leased.wire.objects import GID, LABEL

_PLACE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD: Final = re.compile(r"^Object (?:contains unknown|missing required) field `([^`]*)`")
_LENGTH: Final = re.compile(r"`(str|array|object)` of length (<=|>=) (\d+)")
_PATTERNS: Final = {
    LABEL: "text without control characters",
    GID: "a GID: 8 groups of 4 hex digits",
}
_COUNTED: Final = {
    "str": ("text", "characters"),
    "array": ("a list", "entries"),
    "object": ("an object", "fields"),
}


def has_place(complaint: str) -> bool:
    """Whether it is about something within the value."""
    return _PLACE.search(complaint) is not None


def in_words(complaint: str) -> str:
    """What is wrong, without the place."""
    complaint = _PLACE.sub("", complaint)
    for pattern, words in _PATTERNS.items():
        complaint = complaint.replace(f"`str` matching regex {pattern!r}", words)
    return _LENGTH.sub(_length_in_words, complaint)


def _length_in_words(found: re.Match[str]) -> str:
    what, unit = _COUNTED[found[1]]
    bound = f"at most {found[3]}" if found[2] == "<=" else f"{found[3]} or more"
    return f"{what} of {bound} {unit}"


def blamed_parameter(complaint: str) -> str:
    """The parameter that it is about, as a path: `resources[0].kind`."""
    place = _PLACE.search(complaint)
    path = place.group(1) if place else ""
    field = _FIELD.match(complaint)
    if field is None:
        return path or "parameters"
    return f"{path}.{field.group(1)}" if path else field.group(1)
