# SPDX-License-Identifier: Apache-2.0
"""Times both ways, JSON with a version, progress to people only."""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from datetime import UTC

import pytest

from leased.ctl import render
from leased.ctl.console import Console, length, parse_instant, plain, relative, timestamp

SECOND = 10**9
NOON = 1_700_049_600 * SECOND


def console(*, terminal: bool = False) -> Console:
    """A console at noon, 100 s after boot."""
    return Console(
        io.StringIO(),
        io.StringIO(),
        wall_ns=lambda: NOON,
        boot_ns=lambda: 100 * SECOND,
        zone=UTC,
        terminal=terminal,
    )


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (5_000_000, "5 ms"),
        (42 * SECOND, "42 s"),
        (200 * SECOND, "3 min 20 s"),
        (3600 * SECOND, "1 h"),
        (3601 * SECOND, "1 h"),
        (90_000 * SECOND, "1 d 1 h"),
    ],
)
def test_lengths(ns: int, text: str) -> None:
    assert length(ns) == text


def test_instants_are_told_both_ways() -> None:
    assert console().time_of_boot(142 * SECOND) == "in 42 s (12:00:42)"
    assert console().time_of_boot(40 * SECOND) == "1 min ago (11:59:00)"
    assert console().time_of_day(NOON + 86_400 * SECOND) == "2023-11-16 12:00:00"
    assert (relative(1), relative(-1)) == ("now", "just now")


def test_timestamps_keep_every_digit() -> None:
    assert timestamp(NOON + 1) == "2023-11-15T12:00:00.000000001Z"
    assert parse_instant("2023-11-15T12:00:00Z") == NOON
    assert parse_instant("2023-11-15T14:00:00+02:00") == NOON
    assert parse_instant("2023-11-15") == NOON - 12 * 3600 * SECOND
    with pytest.raises(ValueError, match="a time is written"):
        parse_instant("yesterday")


def test_json_has_a_version() -> None:
    one = console()
    one.document({"leases": []})
    one.line({"a": 1})
    assert isinstance(one.out, io.StringIO)
    head, _, tail = one.out.getvalue().rpartition("\n{")
    assert json.loads(head) == {"version": 1, "leases": []}
    assert json.loads("{" + tail) == {"version": 1, "a": 1}


def test_progress_is_for_terminals() -> None:
    quiet, shown = console(), console(terminal=True)
    for one in (quiet, shown):
        one.progress("working")
        one.end_progress()
    assert isinstance(quiet.err, io.StringIO) and isinstance(shown.err, io.StringIO)
    assert quiet.err.getvalue() == ""
    assert "working" in shown.err.getvalue()


@pytest.mark.parametrize(
    "hostile",
    ["\x1b[2J", "ends never\rends now", "\x9b31m", "\x07", "\u202eemos", "a\u2028b", "\x7f"],
)
def test_a_terminal_does_not_obey_what_a_tenant_calls_its_job(hostile: str) -> None:
    one = console(terminal=True)
    one.document({"workload": hostile})
    assert isinstance(one.out, io.StringIO) and isinstance(one.err, io.StringIO)
    assert json.loads(one.out.getvalue())["workload"] == hostile
    one.say(hostile)
    one.note(hostile)
    one.aside({"workload": hostile})
    shown = one.out.getvalue() + one.err.getvalue()
    assert not set(shown) & set("\r\x1b\x9b\x07\x7f\u202e\u2028"), shown


def test_what_people_write_is_shown_as_it_is() -> None:
    for text in ("ein Test — über\t2 Zeilen\r\n", "租户 🦊", "\u200d\xad"):
        assert plain(text) == text


def test_what_an_encoding_has_no_sign_for_is_written_as_json_would() -> None:
    """A locale of ASCII, and a file's name that is no text."""
    for encoding in ("ascii", "latin-1", "utf-8"):
        written = io.BytesIO()
        one = Console(io.TextIOWrapper(written, encoding), io.StringIO())
        name = "租é 🦊 \udcff"
        one.document({"workload": name[:-1]})
        one.out.flush()
        assert json.loads(written.getvalue().decode(encoding))["workload"] == name[:-1]
        one.say(name)
        one.out.flush()
        assert written.getvalue().decode(encoding).endswith(" \\udcff\n")


def on_a_terminal(term: str, columns: int, script: str) -> str:
    """What a terminal gets of a console's script."""
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    command = f"from leased.ctl.console import Console; one = Console(); {script}"
    try:
        subprocess.run(
            [sys.executable, "-c", command],
            stdout=follower,
            stderr=follower,
            env={**os.environ, "TERM": term},
            check=True,
        )
    finally:
        os.close(follower)
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as read, suppress(OSError):  # EIO is the end of it
        while chunk := read.read(4096):
            shown += chunk
    return shown.decode()


@pytest.mark.parametrize(("term", "columns"), [("xterm", 40), ("xterm", 0), ("dumb", 40), ("", 40)])
def test_only_a_terminal_that_can_is_drawn_on_and_no_wider_than_it_is(
    term: str, columns: int
) -> None:
    shown = on_a_terminal(term, columns, "one.progress('waiting ' * 30); print(one.live)")
    able = term == "xterm"
    assert shown.endswith(f"{able}\r\n")
    line = shown.removesuffix(f"{able}\r\n")
    assert line.startswith("\r\x1b[Kwaiting") if able else line == ""
    assert len(line.removeprefix("\r\x1b[K")) == (((columns or 80) - 1) if able else 0)


@pytest.mark.parametrize("tell", ["say", "note", "alarm"])
def test_what_is_told_takes_the_progress_line_away(tell: str) -> None:
    shown = on_a_terminal("xterm", 40, f"one.progress('waiting'); one.{tell}('done')")
    assert "waiting\r\x1b[K" in shown and shown.endswith("done\r\n")


def test_columns_are_as_wide_as_what_a_terminal_shows_in_them() -> None:
    names = ("租户", "e\u0301te\u0301", "\x1b", "plain")
    rows = render.table(("NAME", "ID"), [(name, "x") for name in names])
    assert [render.columns(row.rpartition("x")[0]) for row in rows[1:]] == [8] * 4
    assert rows[1:] == ["租户    x", "e\u0301te\u0301     x", "\\u001b  x", "plain   x"]
