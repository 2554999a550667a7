# SPDX-License-Identifier: Apache-2.0
"""The console: where output goes, what time it is, and how people are told.

Rule: answers go to `out`, everything else to `err`; progress only to a terminal that can take a
line back. What cannot be written to `err` is told to nobody and stops nothing. No terminal obeys
what others call their jobs, and what an encoding has no sign for is written as JSON would.
Times are given both ways, "in 42 s" and as a time of day. With --json, `out` carries one JSON
document with `"version": 1` (streams: one a line) and nothing else.

Does not talk to the agent.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, TextIO

import msgspec

from leased.terms.moment import NS_PER_S

JSON_VERSION: Final = 1
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))

_JSON = msgspec.json.Encoder(decimal_format="number")
_OBEYED: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)"
)
_ESCAPED: Final = "leased.escaped"
_COLUMNS: Final = 80
"""Of a terminal that does not say how wide it is."""


class Console:
    """One run's output and clock. Tests hand in their own."""

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        zone: tzinfo | None = None,
        terminal: bool | None = None,
        program: str = "leasectl",
    ) -> None:
        _claim_streams()
        self.out = sys.stdout if out is None else out
        self.err = sys.stderr if err is None else err
        self.program = program
        self.wall_ns = wall_ns
        self.boot_ns = boot_ns
        self._zone = zone
        self._shown = False
        self._terminal = _redraws(self.err) if terminal is None else terminal
        for stream in (self.out, self.err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=_ESCAPED)

    @property
    def live(self) -> bool:
        """Whether an answer can be drawn anew over itself."""
        return _redraws(self.out)

    def say(self, *lines: str) -> None:
        """Lines of the answer."""
        self.end_progress()
        for text in lines:
            self.out.write(plain(text) + "\n")

    def answer(self, as_json: bool, content: Mapping[str, Any], *lines: str) -> None:
        """The answer, as one JSON document or in words."""
        if as_json:
            self.document(content)
        else:
            self.say(*lines)

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self.end_progress()
        self._tell(f"{self.program}: {plain(text)}\n")

    def alarm(self, text: str) -> None:
        """A line beside the answer that somebody has to see to: at CRIT where a journal reads."""
        self.end_progress()
        mark = "<2>" if _is_journal(self.err) else ""
        self._tell(f"{mark}{self.program}: {plain(text)}\n")

    def progress(self, text: str) -> None:
        """A line that the next one replaces, and whatever is told next; only where a person
        watches. No longer than the terminal's: of one that is broken the last part alone could be
        replaced."""
        if self._terminal:
            self._shown = True
            self._tell(f"\r\x1b[K{plain(text)[: _columns(self.err) - 1]}")

    def end_progress(self) -> None:
        """Take the progress line away: for what is written past this console."""
        if self._shown:
            self._shown = False
            self._tell("\r\x1b[K")

    def _tell(self, text: str) -> None:
        with suppress(OSError):
            self.err.write(text)
            self.err.flush()

    def document(self, content: Mapping[str, Any]) -> None:
        """The answer as one JSON document."""
        text = _JSON.encode({"version": JSON_VERSION, **content})
        self.say(msgspec.json.format(text, indent=2).decode())

    def line(self, content: Mapping[str, Any]) -> None:
        """One document of a stream, on one line, at once."""
        self.say(_JSON.encode({"version": JSON_VERSION, **content}).decode())
        self.out.flush()

    def aside(self, content: Mapping[str, Any]) -> None:
        """One document beside the answer, on one line, at once: for where `out` is another's."""
        text = _JSON.encode({"version": JSON_VERSION, **content}).decode()
        with suppress(BrokenPipeError):  # a reader that went away is no error
            self.err.write(plain(text) + "\n")
            self.err.flush()

    def time_of_boot(self, boot_ns: int) -> str:
        """A boottime instant of this boot, both ways: "in 42 s (12:00:42)"."""
        left_ns = boot_ns - self.boot_ns()
        return f"{relative(left_ns)} ({self.time_of_day(self.wall_ns() + left_ns)})"

    def until(self, boot_ns: int) -> str:
        """The same after "by" or "until": "12:00:42 (in 42 s)"."""
        left_ns = boot_ns - self.boot_ns()
        return f"{self.time_of_day(self.wall_ns() + left_ns)} ({relative(left_ns)})"

    def time_of_day(self, wall_ns: int) -> str:
        """A wall instant: the time alone if it is today, else with its date. To the second."""
        moment = self._local(wall_ns)
        today = self._local(self.wall_ns())
        return moment.strftime("%H:%M:%S" if moment.date() == today.date() else "%F %T")

    def _local(self, wall_ns: int) -> datetime:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wall_ns // 1_000)
        return moment.astimezone(self._zone)


def _claim_streams() -> None:
    """What was closed before we began is no file or socket of ours: standard output cannot be
    written, and on standard error nobody is told."""
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream is the one that systemd has connected with its journal."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _redraws(stream: TextIO) -> bool:
    """Whether it is a terminal that moves its cursor where it is told."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except OSError:  # no terminal after all
        return _COLUMNS


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What the encoding has no sign for, and bytes of a name that were no text."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error(_ESCAPED, _escaped)


def plain(text: str) -> str:
    """What a terminal shows and does not obey, and in the order in which it is written: names are
    their owners' words. Within a JSON string it means the same."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def relative(left_ns: int) -> str:
    """How far away: "in 42 s", "3 min ago", "now", "just now"."""
    if abs(left_ns) < NS_PER_S:
        return "now" if left_ns >= 0 else "just now"
    text = length(abs(left_ns))
    return f"in {text}" if left_ns > 0 else f"{text} ago"


def length(ns: int) -> str:
    """A duration in its two largest units: "42 s", "3 min 20 s", "2 d 1 h"; or ms."""
    seconds = ns // NS_PER_S
    if seconds == 0:
        return f"{ns // 1_000_000} ms"
    found: list[str] = []
    for unit, scale in _UNITS:
        count, rest = divmod(seconds, scale)
        if count or found:
            found.append(f"{count} {unit}" if count else "")
            if len(found) == 2:
                break
        seconds = rest
    return " ".join(part for part in found if part)


def timestamp(wall_ns: int) -> str:
    """RFC 3339 with all nine digits, in UTC."""
    seconds, ns = divmod(wall_ns, NS_PER_S)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns:09d}Z"


def parse_instant(text: str) -> int:
    """Wall ns of "2026-01-31", "2026-01-31T12:00:00Z" or with an offset; without one: UTC. Raises
    ValueError.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError('a time is written "2026-01-31" or "2026-01-31T12:00:00Z"') from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1_000
