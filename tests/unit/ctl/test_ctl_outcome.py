# SPDX-License-Identifier: Apache-2.0
"""What cannot be written is told in a line and a status, not as a traceback."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from leased.ctl.console import Console
from leased.ctl.main import main
from leased.ctl.outcome import carry_out
from leased.terms.errors import EX_CONFIG, EX_DATAERR, EX_IOERR, EX_NOINPUT, StateError


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    def act(options: argparse.Namespace, console: Console) -> int:
        return (tmp_path / "none" / "bill.json").write_bytes(b"")

    parser, console = argparse.ArgumentParser(), Console(io.StringIO(), io.StringIO())
    parser.set_defaults(act=act)
    assert carry_out(parser, [], console) == EX_IOERR
    [line] = console.err.getvalue().splitlines()
    assert line.endswith("/none/bill.json: No such file or directory")


def full_database() -> sqlite3.Error:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError) as raised:
            database.execute("CREATE TABLE one (a)")
    return raised.value


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (OSError(errno.ENOSPC, "full"), EX_IOERR),
        (OSError(errno.EIO, "fails"), EX_IOERR),
        (full_database(), EX_IOERR),
        (OSError(errno.EACCES, "closed"), EX_CONFIG),
        (sqlite3.DatabaseError("file is not a database"), EX_CONFIG),
        (None, EX_CONFIG),
    ],
    ids=str,
)
def test_a_state_on_a_disk_that_is_full_may_go_at_another_try(
    cause: Exception | None, status: int
) -> None:
    """systemd does not start again what ends with 78."""

    def act(options: argparse.Namespace, console: Console) -> int:
        try:
            raise StateError("one.sqlite: nothing was stored") from cause
        except StateError as error:
            raise StateError("state: nothing was stored") from error

    parser, console = argparse.ArgumentParser(), Console(io.StringIO(), io.StringIO())
    parser.set_defaults(act=act)
    assert carry_out(parser, [], console) == status


@pytest.mark.parametrize("words", [("completion", "bash"), ("ls", "--help"), ("--help",)])
def test_an_output_that_is_full(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "leased.ctl.main", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == EX_IOERR
    assert done.stderr.splitlines() == ["leasectl: No space left on device"]


@pytest.mark.parametrize("words", [("completion", "bash"), ("ls", "--help")])
def test_a_reader_that_has_had_enough(words: tuple[str, ...]) -> None:
    """As of a program that SIGPIPE ended, so that `verify | head` is not taken for "it holds"."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as unread:
        done = subprocess.run(
            [sys.executable, "-m", "leased.ctl.main", *words],
            stdout=unread,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_line_with_what_a_terminal_obeys() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leased.ctl.main", "ls", "\x1b[2J"], capture_output=True, text=True
    )
    assert done.returncode == 64 and "\\u001b[2J" in done.stderr and "\x1b" not in done.stderr


def run_without(number: int, *words: str) -> subprocess.CompletedProcess[str]:
    """leasectl with one of the standard streams closed."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -m leased.ctl.main "$@" {number}>&-', sys.executable, *words],
        capture_output=True,
        text=True,
    )


def test_an_output_that_is_closed() -> None:
    done = run_without(1, "completion", "bash")
    assert done.returncode == EX_IOERR
    assert done.stderr.splitlines() == ["leasectl: Bad file descriptor"]


def test_an_error_output_that_is_closed() -> None:
    """What asks is answered; what fails ends with its status, which nobody is told more of."""
    done = run_without(2, "completion", "bash")
    assert done.returncode == 0 and "complete" in done.stdout
    assert run_without(2, "--socket", "/no/where", "ls").returncode == 69


@pytest.mark.parametrize(
    "words",
    [
        ("policy", "check"),
        ("evidence", "verify"),
        ("verify", "--log", "/", "--policy"),
        ("verify", "--log", "/", "--enrolment"),
        ("audit", "check-proof"),
        ("audit", "acknowledged", "--config"),
        ("rates", "--rates"),
        ("pki", "show"),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_file_without_an_end_and_one_that_never_begins(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for place in ("/dev/zero", str(pipe)):
        done = subprocess.run(
            [sys.executable, "-m", "leased.ctl.main", *words, place],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode in (EX_DATAERR, EX_NOINPUT, EX_CONFIG), done
        [line] = done.stderr.splitlines()
        assert "not a regular file" in line and place in line


def test_a_log_that_cannot_be_looked_at_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, why in (("none", "No such file or directory"), ("file", "Not a directory")):
        err = io.StringIO()
        words = ["verify", "--log", str(tmp_path / name)]
        assert main(words, Console(io.StringIO(), err)) == EX_CONFIG
        [line] = err.getvalue().splitlines()
        assert f"leasectl: {tmp_path / name}: {why}; give the directory" in line
