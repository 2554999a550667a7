# SPDX-License-Identifier: Apache-2.0
"""Reading: values and tables of a decoded document (TOML, JSON), each by a table of known keys.

Rule: a key that is in no table is refused (with the one it looks like), so a typo never means
"default"; a value that cannot be read is refused with its key, itself and what is allowed. Nothing
is guessed: 1 is not "1s", "yes" is not true.

Does not read files and does not judge what values mean together.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from leased.terms.errors import ConfigError, InvalidParameter
from leased.terms.quantity import (
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    print_duration,
)

Read = Callable[[Any], Any]
"""Reads one value. Raises ValueError saying what is allowed."""

Keys = Mapping[str, tuple[str, Read]]
"""Key of the document -> (field, how to read it)."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a decoder raises at bytes that are no JSON, or are nested without an end."""

SHOWN_CHARS_MAX = 60
INTEGER_MAX: Final = 2**63 - 1
"""What records, replies and other programs hold."""

DURATION_NS_MAX: Final = 36_500 * 86_400 * 10**9
"""A century: any instant so far ahead is still one that a record holds."""

_LINE = re.compile(r"\(at line (\d+), column \d+\)")
_NAMED = re.compile(r"key '([^']+)'")
_TWICE = ("Cannot overwrite", "Cannot declare", "Duplicate inline table key")


def integer(value: Any) -> int:
    """A whole number, not negative."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("a whole number, not negative")
    if value > INTEGER_MAX:
        raise ValueError(f"at most {INTEGER_MAX}")
    return value


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """A string. None of what is read may hold a NUL, which ends a path."""
    if not isinstance(value, str):
        raise ValueError("a string")
    if "\0" in value:
        raise ValueError("a string without NUL")
    return value


def duration(value: Any) -> int:
    """A time with its unit, in ns."""
    if not isinstance(value, str):
        raise ValueError('a duration with its unit, such as "60s" or "100ms"')
    duration_ns = parse_duration(value)
    if duration_ns > DURATION_NS_MAX:
        raise ValueError(f"at most {print_duration(DURATION_NS_MAX)}")
    return duration_ns


def size(value: Any) -> int:
    """A size with its unit, in bytes."""
    if not isinstance(value, str):
        raise ValueError('a size with its unit, such as "16MiB"')
    return parse_size(value)


def share(value: Any) -> int:
    """A percentage, in per mille."""
    if not isinstance(value, str):
        raise ValueError('a share in quotes, such as "20%"')
    return parse_share(value)


def rate(value: Any) -> tuple[int, int]:
    """So many per so much time (ns)."""
    if not isinstance(value, str):
        raise ValueError('a rate in quotes, such as "100/s"')
    return parse_rate(value)


def choice(choices: tuple[str, ...], value: Any) -> str:
    """One of `choices`."""
    if value not in choices:
        raise ValueError("one of " + ", ".join(choices))
    return str(value)


def member(members: Any, value: Any) -> Any:
    """The member of an enumeration that `value` names."""
    names = {one.name.lower(): one for one in members}
    return names[choice(tuple(names), value)]


def rows(value: Any, read: Read) -> tuple[Any, ...]:
    """Each row of a list, read by `read`."""
    if not isinstance(value, list):
        raise ValueError("a list")
    return tuple(read(row) for row in value)


def table(value: Any) -> Mapping[str, Any]:
    """A table."""
    if not isinstance(value, dict):
        raise ValueError("a table")
    return value


def fields(
    found: Mapping[str, Any], keys: Keys, at: str, *, also: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read every key of `found` by `keys`. Raises ConfigError naming the key, its value and the
    reason. `also` are keys that are read elsewhere, for the hint.
    """
    read_so_far: dict[str, Any] = {}
    for key, value in found.items():
        if key not in keys:
            raise unknown(f"{at}{key}", key, (*keys, *also))
        field, read = keys[key]
        read_so_far[field] = one(read, value, f"{at}{key}")
    return read_so_far


def one(read: Read, value: Any, where: str) -> Any:
    """Read one value. Raises ConfigError naming the key, the value and the reason."""
    try:
        return read(value)
    except (ValueError, InvalidParameter) as error:
        raise ConfigError(f"{where} = {shown(value)}: {error}") from error


def unknown(where: str, key: str, known: tuple[str, ...]) -> ConfigError:
    """What to say of a key that is in no table."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else "; known are " + ", ".join(sorted(known))
    return ConfigError(f"{where}: unknown key{hint}")


def read_toml(text: str) -> dict[str, Any]:
    """What a TOML text says, its dates and times as they are written. Raises ConfigError if it is
    none, with the line and the key."""
    _refuse_mark(text)
    try:
        return {key: _spelled(value) for key, value in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_misread(text, str(error))) from error
    except (ValueError, RecursionError) as error:  # numbers and nesting without an end
        raise ConfigError(str(error)) from error


def _refuse_mark(text: str) -> None:
    if text.startswith("\ufeff"):
        raise ConfigError("begins with a byte order mark (BOM): save it as UTF-8 without one")


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_spelled(one) for one in value]
    # A date or a time: nothing else that TOML has can be written as one.
    return value.isoformat() if hasattr(value, "isoformat") else value


def _misread(text: str, complaint: str) -> str:
    """What a TOML decoder complained of, with the line and the key that stand where it says."""
    found = _LINE.search(complaint)
    rows = text.splitlines()
    if found is None or int(found[1]) > len(rows):
        return complaint
    number = int(found[1])
    row = rows[number - 1].strip()
    key = row.partition("=")[0].strip() if not row.startswith("[") else row
    named = _NAMED.search(complaint)
    if named is not None:
        key = named[1]
    why = "given twice" if complaint.startswith(_TWICE) else complaint[: found.start()].strip()
    return f"line {number}, {shown(key)}: {why}"


class _Twice:
    """What stands in a table for a key that a JSON text gives twice."""


def read_json(text: str, at: str) -> Any:
    """What a JSON text says. Raises ConfigError if it gives a key twice, ValueError or
    RecursionError if it is none.
    """
    _refuse_mark(text)
    found = json.loads(text, object_pairs_hook=_table_of)
    for key in _twice(found, ""):
        raise ConfigError(f"{at}{key}: given twice")
    return found


def read_answer(raw: bytes) -> Any:
    """What another program answered in JSON. Raises one of UNREADABLE."""
    return msgspec.json.decode(raw)


def _table_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        table[key] = _Twice() if key in table else value
    return table


def _twice(found: Any, at: str) -> Iterator[str]:
    """Every key that is given twice, with the tables that it stands in."""
    if isinstance(found, _Twice):
        yield at
    elif isinstance(found, list):
        for number, one in enumerate(found, 1):
            yield from _twice(one, f"{at}[{number}]")
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _twice(value, f"{at}.{key}" if at else key)


def shown(value: Any) -> str:
    """A value as an error shows it."""
    as_text = repr(value)
    return as_text if len(as_text) <= SHOWN_CHARS_MAX else as_text[: SHOWN_CHARS_MAX - 3] + "..."


def section(made: Callable[..., Any], keys: Keys, at: str) -> Read:
    """How to read a table whose fields make one value."""
    return lambda value: made(**fields(table(value), keys, at))
