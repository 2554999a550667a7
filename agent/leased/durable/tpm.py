# SPDX-License-Identifier: Apache-2.0
"""A TPM 2.0's monotonic counter: the real Counter port, by tpm2-tools.

Rule: the TPM is asked by child processes with a deadline each, because its driver may hang: a child
that does not answer is killed and left behind. What is asked is an NV index of the type counter and
of no other type, which whoever owns the TPM has defined; it never goes back, not even when it is
taken away and defined anew. Its memory wears out, so it is not advanced twice within `apart_ns`: a
stamp on a tmpfs remembers when it was.

Does not judge what a counter means for a log (`durable.binding`), and never defines an index.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.durable.reading import read_text
from leased.terms.errors import ConfigError, StateError
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reading import Keys, duration, text

COUNTER_BYTES: Final = 8
STAMP_BYTES_MAX: Final = 128
LEFT_S: Final = 1.0
DEFINE: Final = "tpm2 nvdefine {} -C o -s 8 -a 'nt=counter|authread|authwrite|no_da'"
"""Nothing but counting is possible with such an index. Whoever may open the TPM may count, which
makes a log be refused and never be taken."""

_UNWRITTEN = re.compile(r"\(0x0*14a\)", re.IGNORECASE)
"""TPM_RC_NV_UNINITIALIZED: defined, and never advanced."""
_ATTRIBUTES = re.compile(r"attributes:.*?value: (0x[0-9a-f]+)", re.IGNORECASE | re.DOTALL)
_TYPE_MASK, _TYPE_COUNTER = 0xF0, 0x10
_INDEX = re.compile(r"0x01[0-9a-f]{6}")


class CounterConfig(msgspec.Struct, frozen=True):
    """The `[log.counter]` table. Off where `index` is empty."""

    index: str = ""
    tcti: str = "device:/dev/tpmrm0"
    program: str = "tpm2"
    period_ns: int = 3600 * NS_PER_S
    apart_ns: int = 60 * NS_PER_S
    budget_ns: int = 10 * NS_PER_S
    accept: str = ""

    @property
    def on(self) -> bool:
        """Whether the log is bound to a counter."""
        return bool(self.index)


def check(settings: CounterConfig) -> CounterConfig:
    """Return it if it can be meant. Raises ConfigError."""
    for name in ("period_ns", "apart_ns", "budget_ns"):
        if getattr(settings, name) <= 0:
            raise ConfigError(f"log.counter.{name.removesuffix('_ns')}: must be above zero")
    if settings.apart_ns > settings.period_ns:
        raise ConfigError("log.counter.apart: above log.counter.period")
    return settings


def _index(value: Any) -> str:
    if value and not _INDEX.fullmatch(text(value).lower()):
        raise ValueError('an NV index such as "0x01800a11", or "": no counter')
    return text(value).lower()


def _accept(value: Any) -> str:
    if value and not re.fullmatch(r"\d+/(\d+|none)", text(value)):
        raise ValueError('what a refusal said, such as "17/19", or ""')
    return text(value)


KEYS: Final[Keys] = {
    "index": ("index", _index),
    "tcti": ("tcti", text),
    "program": ("program", text),
    "period": ("period_ns", duration),
    "apart": ("apart_ns", duration),
    "budget": ("budget_ns", duration),
    "accept": ("accept", _accept),
}


class TpmCounter:
    """An NV index. Every call blocks, for `budget_ns` at most."""

    def __init__(
        self, settings: CounterConfig, pace: tuple[Path, Callable[[], Moment]] | None
    ) -> None:
        """`pace`: the stamp's file on a tmpfs, and a clock. None: it will not be advanced."""
        self._settings = settings
        self._pace = pace

    def __str__(self) -> str:
        return f"the TPM's counter {self._settings.index}"

    def read(self) -> int | None:
        """As `ports.Counter.read`."""
        done = self._ask("nvread", "-s", str(COUNTER_BYTES))
        unwritten = done.returncode != 0 and _UNWRITTEN.search(_said(done)) is not None
        if not unwritten and done.returncode != 0:
            raise self._refusal("cannot be read", done)
        public = self._ask("nvreadpublic")
        found = _ATTRIBUTES.search(public.stdout.decode("utf-8", "replace"))
        if public.returncode or found is None:
            raise self._refusal("cannot be looked at", public)
        if int(found[1], 16) & _TYPE_MASK != _TYPE_COUNTER:
            raise StateError(f"{self} is no counter but memory that can be written: {self._advice}")
        if unwritten:
            return None
        if len(done.stdout) != COUNTER_BYTES:
            raise self._refusal(f"has {len(done.stdout)} bytes and not {COUNTER_BYTES}", done)
        return int.from_bytes(done.stdout, "big")

    def advance(self) -> int:
        """As `ports.Counter.advance`."""
        assert self._pace is not None, "whoever advances has a pace"
        stamp, now = self._pace
        moment = now()
        try:
            _put(stamp, f"{moment.boot_id.hex()} {moment.boot_ns}\n")
        except OSError as error:
            why = f"{stamp}, which says when that was last, cannot be written: {error.strerror}"
            raise StateError(f"{self} is not advanced: {why}") from error
        done = self._ask("nvincrement")
        if done.returncode:
            raise self._refusal("cannot be advanced", done)
        found = self.read()
        if found is None:
            raise self._refusal("has no value after it was advanced", done)
        return found

    def rested(self) -> bool:
        """As `ports.Counter.rested`."""
        assert self._pace is not None, "whoever advances has a pace"
        stamp, now = self._pace
        moment = now()
        try:
            boot_id, boot_ns = read_text(stamp, most=STAMP_BYTES_MAX).split()
            since_ns = moment.boot_ns - int(boot_ns)
        except (OSError, ValueError):
            return True
        # One of a time to come was not written by us.
        return boot_id != moment.boot_id.hex() or not 0 <= since_ns < self._settings.apart_ns

    @property
    def _advice(self) -> str:
        return f"define it with `{DEFINE.format(self._settings.index)}`, or change log.counter"

    def _ask(self, verb: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        """One command to its end. Raises StateError if there is no answer."""
        settings = self._settings
        command = [settings.program, verb, "-T", settings.tcti, settings.index, *words]
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
            )
        except OSError as error:
            why = f"{settings.program}: {error.strerror}; install tpm2-tools"
            raise StateError(f"{self} cannot be asked: {why}, or change log.counter") from error
        try:
            out, err = child.communicate(timeout=settings.budget_ns / NS_PER_S)
        except subprocess.TimeoutExpired as error:
            _leave(child)
            why = f"`{' '.join(command)}` did not end within log.counter.budget"
            raise StateError(f"{self} does not answer: {why}") from error
        return subprocess.CompletedProcess(command, child.returncode, out, err)

    def _refusal(self, what: str, done: subprocess.CompletedProcess[bytes]) -> StateError:
        errors = [line for line in _said(done).splitlines() if line.startswith("ERROR: ")]
        why = errors[0].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
        return StateError(f"{self} {what}: {why}; {self._advice}")


def _put(stamp: Path, text: str) -> None:
    """In the place of whatever lies there, which may be a pipe. Raises OSError."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    new = stamp.with_name(stamp.name + ".new")
    new.unlink(missing_ok=True)
    with open(new, "x", encoding="ascii") as file:
        file.write(text)
    new.replace(stamp)


def _leave(child: subprocess.Popen[bytes]) -> None:
    """Kill it, and do not wait long: in the kernel's driver it may not die."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(LEFT_S)
    except subprocess.TimeoutExpired:
        child.returncode = -9  # Popen would warn about it in its finaliser


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode("utf-8", "replace")
