# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else wrote, handed to the verbs that read them: what is no document of the
kind is refused by name, and never ends with a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from leased.chain.note import NoteKey
from leased.collector.enrolment import read_enrolment
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.terms.errors import ConfigError
from tests.doubles.logs import open_in, write_batches

UNREADABLE = {
    "deep": b'{"x":' + b"[" * 100_000,
    "deeper": b"[" * 100_000,
    "cut": b'{"log_id":',
    "no text": b'{"log_id":"\xed\xa0\x80"}',
    "another document": b"[]",
    "nothing": b"",
}
KEY = NoteKey("lease-log.test/node", bytes(32)).text()


@pytest.mark.parametrize("kind", UNREADABLE)
def test_no_file_is_a_traceback(kind: str, tmp_path: Path) -> None:
    file, log = tmp_path / "file", open_in(tmp_path / "log")
    write_batches(log, [1])
    log.close()
    file.write_bytes(UNREADABLE[kind])
    for words in (
        ("audit", "check-proof", file, "--key", KEY),
        ("audit", "prove", "--receipt", file),
        ("evidence", "verify", file),
        ("verify", "--log", tmp_path / "log", "--enrolment", file),
        ("verify", "--bill", file, "--enrolment", tmp_path),
    ):
        err = io.StringIO()
        assert main([str(word) for word in words], Console(io.StringIO(), err)) == 65, words
        assert str(file) in err.getvalue() or "bill" in err.getvalue(), err.getvalue()
    with pytest.raises(ConfigError, match="enrolment"):
        read_enrolment(UNREADABLE[kind], "enrolment")
