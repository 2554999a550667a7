# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else wrote, handed to the verbs that read them: what is no document of the
kind is refused by name, and never ends with a traceback."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from leased.chain.note import NoteKey
from leased.collector.enrolment import read_enrolment
from leased.collector.main import main as collector
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.terms.errors import EX_NOINPUT, ConfigError
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


def test_a_file_that_is_not_there_is_no_input(tmp_path: Path) -> None:
    """Other than one that is there and cannot be meant, and whatever verb was to read it."""
    gone = str(tmp_path / "gone")
    by = ["--operator", "mia", "--reason", "disk"]
    for run, words in (
        (main, ["audit", "enrol", "https://collector:8443", "--invite-file", gone]),
        (main, ["audit", "check-proof", gone, "--key", KEY]),
        (main, ["audit", "prove", "--receipt", gone]),
        (main, ["evidence", "verify", gone]),
        (main, ["verify", "--bill", gone]),
        (main, ["pki", "renew", gone]),
        (main, ["policy", "check", "--offline", gone]),
        (main, ["policy", "apply", gone]),
        (main, ["rates", "--rates", gone]),
        (collector, ["enrol", "alpha", "https://alpha:7443", gone]),
        (collector, ["--state", gone, "resolve", "alpha", "--key", gone, *by]),
    ):
        err = io.StringIO()
        assert run(words, Console(io.StringIO(), err)) == EX_NOINPUT, words
        assert f"{gone}: No such file or directory" in err.getvalue()
