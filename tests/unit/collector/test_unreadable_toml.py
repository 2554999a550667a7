# SPDX-License-Identifier: Apache-2.0
"""TOML that somebody else wrote: what is none is refused by the name of its file, wherever read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from leased.collector.accounts.terms_file import load_terms, load_terms_for
from leased.collector.config import load
from leased.collector.metering.engines import load_store
from leased.collector.retention_rule import load_rule
from leased.ctl.policy_file import load_policy
from leased.ctl.rate_file import load_card
from leased.terms.errors import ConfigError
from leased.terms.reading import read_toml

LOADERS = (load, load_card, load_policy, load_rule, load_store, load_terms, load_terms_for)
UNREADABLE = {
    "a number without an end": b"a = " + b"9" * 5_000,
    "brackets without an end": b"a = " + b"[" * 100_000,
    "no text": b"a = '\xff'",
    "a key twice": b"a = 1\na = 2\n",
    "a mark of another editor": b"\xef\xbb\xbfa = 1\n",
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.__module__)
def test_no_file_is_a_traceback(
    loader: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.toml"
    file.write_bytes(UNREADABLE[kind])
    with pytest.raises(ConfigError, match="file.toml"):
        loader(file)


def test_dates_are_read_as_they_are_written() -> None:
    found = read_toml("[[cards]]\nsince = 2026-11-01\nat = [2026-11-01T12:00:00Z, 07:30:00]\n")
    assert found == {
        "cards": [{"since": "2026-11-01", "at": ["2026-11-01T12:00:00+00:00", "07:30:00"]}]
    }


def test_a_byte_order_mark_is_told_as_one() -> None:
    with pytest.raises(ConfigError, match="byte order mark .*: save it as UTF-8 without"):
        read_toml("\ufeff[a]\n")


def test_what_is_wrong_is_told_by_line_and_key() -> None:
    with pytest.raises(ConfigError, match="line 2, 'a': given twice"):
        read_toml("a = 1\na = 2\n")
