# SPDX-License-Identifier: Apache-2.0
"""Carries out what a command line says, and turns what comes of it into an exit status.

Rule: an error of ours is told as it is, and so is a file that cannot be written. After an
interrupt, or when the reader of our output has gone (`| head`), only the status says that the
answer was not given in full. The status is right even where the message could not be written. A
failure because a disk was full, or failed, has EX_IOERR: another try may succeed, and a service
manager makes one. One for want of a file that was named has EX_NOINPUT.

Declares no verb (`main` of each program).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from leased.ctl.console import Console
from leased.ctl.refusals import tell
from leased.terms.errors import (
    EX_DATAERR,
    EX_IOERR,
    EX_NOINPUT,
    EX_USAGE,
    LeasedError,
    disk_error,
)

INTERRUPTED: Final = 128 + signal.SIGINT
UNREAD: Final = 128 + signal.SIGPIPE
ENDED_BY_OTHERS: Final = (
    (INTERRUPTED, "interrupted"),
    (UNREAD, "whoever read the output had enough of it"),
)
"""For the help of every program: statuses that are no verb's own."""


def carry_out(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    console: Console,
    settle: Callable[[argparse.Namespace], None] = lambda options: None,
) -> int:
    """Run the verb that `words` name, and then, however it ended, `settle`; returns the program's
    exit status. Raises SystemExit where the parser ends it: help, and what cannot be meant."""
    try:
        return _carry_out(parser, words, console, settle)
    finally:
        console.end_progress()
        _flush_or_close(console.err, sys.stderr)


def _carry_out(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    console: Console,
    settle: Callable[[argparse.Namespace], None],
) -> int:
    try:
        try:
            options = parser.parse_args(words)
        except SystemExit:
            console.out.flush()
            raise
        try:
            status: int = options.act(options, console)
        finally:
            settle(options)
        console.out.flush()
    except LeasedError as error:
        status = tell(error, console)
        if disk_error(error):
            return EX_IOERR
        nowhere = isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError))
        return EX_NOINPUT if nowhere and status == EX_DATAERR else status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        # trio wraps an interrupt in the group of the tasks that it interrupted.
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return INTERRUPTED
    except UnicodeEncodeError:
        if all(map(_is_text, words)):
            raise
        console.end_progress()
        console.note("the command line has words that are not UTF-8")
        return EX_USAGE
    except BrokenPipeError:
        # Whoever read us has read enough. The interpreter must not flush into the pipe again.
        _write_no_more(sys.stdout)
        return UNREAD
    except OSError as error:
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        console.note(f"{named}{error.strerror or error}")
        _flush_or_close(console.out, sys.stdout)
        return EX_IOERR
    return status


def _is_text(word: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in word)


def _flush_or_close(stream: TextIO, standard: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        _write_no_more(standard)


def _write_no_more(standard: TextIO) -> None:
    """The interpreter flushes what is still in the buffer, which cannot be written either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), standard.fileno())
