# SPDX-License-Identifier: Apache-2.0
"""Errors, by whose fault they are; each class has one stable wire name and one sysexits status.

Rule: a denial is not an error. "Quota exceeded" is a `reply.Refusal` value; what lives here is what
stops a call or the program. The four families: CallerError (you), DeviceError (the hardware or the
kernel), ChainError (the evidence does not hold: stop), InvariantError (our bug: stop).

Does not catch, log or retry anything.
"""

from __future__ import annotations

from errno import EDQUOT, EIO, ENOMEM, ENOSPC
from typing import Final

EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE, EX_SOFTWARE = 64, 65, 66, 69, 70
EX_OSERR, EX_IOERR, EX_TEMPFAIL, EX_PROTOCOL, EX_NOPERM, EX_CONFIG, EX_LEASE_LOST = (
    71,
    74,
    75,
    76,
    77,
    78,
    79,
)

NO_ROOM: Final = (ENOSPC, EDQUOT)
_OF_SQLITE: Final = {10: EIO, 13: ENOSPC, 10 | 19 << 8: ENOSPC}
"""SQLITE_IOERR, SQLITE_FULL and SQLITE_IOERR_SHMSIZE (no room beside the database), without the
database."""


def disk_error(error: BaseException) -> int:
    """What the disk said (one of `NO_ROOM`, or EIO) where an error comes of a disk that is full or
    fails; else 0."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (*NO_ROOM, EIO):
            return cause.errno
        code: int = getattr(cause, "sqlite_errorcode", 0)
        if told := _OF_SQLITE.get(code) or _OF_SQLITE.get(code & 0xFF):
            return told
        cause = cause.__cause__
    return 0


class LeasedError(Exception):
    """Root of every error of this program. `wire` is its name on the socket, `exit_status` what a
    CLI exits with."""

    wire = "io.leased.Error"
    exit_status = EX_SOFTWARE


class CallerError(LeasedError):
    """The caller asked for something that cannot be meant. Nothing has changed."""

    wire = "io.leased.Lease.CallerError"
    exit_status = EX_DATAERR


class InvalidParameter(CallerError):
    """A parameter is missing, malformed or out of its bounds; `parameter` names it, `why` says what
    is allowed."""

    wire = "org.varlink.service.InvalidParameter"

    def __init__(self, parameter: str, why: str) -> None:
        super().__init__(f"{parameter}: {why}")
        self.parameter = parameter
        self.why = why


class ProtocolError(CallerError):
    """Bytes that are not the protocol; the connection is closed and nothing has changed."""

    wire = "io.leased.Lease.ProtocolError"
    exit_status = EX_PROTOCOL


class NoSuchLease(CallerError):
    """The lease does not exist, or is not the caller's to see (the two are not told apart, on
    purpose)."""

    wire = "io.leased.Lease.NoSuchLease"
    exit_status = EX_NOINPUT


class PermissionDenied(CallerError):
    """The kernel's word on who the caller is does not allow this."""

    wire = "io.leased.Lease.PermissionDenied"
    exit_status = EX_NOPERM


class ConfigError(CallerError):
    """A configuration file was refused whole: names file, key, value and reason."""

    wire = "io.leased.Admin.ConfigError"
    exit_status = EX_CONFIG


class DeviceError(LeasedError):
    """A driver or the kernel failed or did not answer in time: `verb` is what was asked, `errno`
    what it said. That is never 0: steps of a teardown are told by it, and 0 is proven clean."""

    wire = "io.leased.Lease.DeviceError"
    exit_status = EX_OSERR

    def __init__(self, verb: str, errno: int, detail: str = "") -> None:
        errno = errno or EIO
        super().__init__(f"{verb}: errno {errno}{': ' + detail if detail else ''}")
        self.verb = verb
        self.errno = errno
        self.detail = detail


class Shortage(DeviceError):
    """Less was there than was to be given: of `limit` bytes `usage` are in use, `requested` were
    wanted. `again_ns`: when it will have been seen how much there is (boottime ns), if it was not
    yet."""

    def __init__(
        self, resource_id: str, limit: int, usage: int, requested: int, again_ns: int | None
    ) -> None:
        super().__init__("mem_create", ENOMEM, f"{resource_id}: {limit - usage} bytes are free")
        self.resource_id = resource_id
        self.limit = limit
        self.usage = usage
        self.requested = requested
        self.again_ns = again_ns


class ChainError(LeasedError):
    """The evidence does not hold. `verdict` is a closed name (`chain.verdict`), `sequence` and
    `offset` say where."""

    wire = "io.leased.Audit.ChainBroken"
    exit_status = EX_DATAERR

    def __init__(
        self, verdict: str, why: str, *, sequence: int = -1, offset: int = -1, file: str = ""
    ) -> None:
        where = ", ".join(
            part
            for part in (
                f"file {file}" if file else "",
                f"sequence {sequence}" if sequence >= 0 else "",
                f"offset {offset}" if offset >= 0 else "",
            )
            if part
        )
        super().__init__(f"{verdict}: {why}{' (' + where + ')' if where else ''}")
        self.verdict = verdict
        self.why = why
        self.sequence = sequence
        self.offset = offset
        self.file = file

    def at(self, sequence: int, offset: int, file: str) -> ChainError:
        """The same, found there."""
        return ChainError(self.verdict, self.why, sequence=sequence, offset=offset, file=file)


class StateError(LeasedError):
    """The state directory cannot be used as it is (busy, foreign, read-only, full). Says what to
    do."""

    wire = "io.leased.Error.State"
    exit_status = EX_CONFIG


class RecordsPruned(StateError):
    """What was asked for is not in the log any more, and that is as it should be."""


class LogBusy(StateError):
    """Another agent has the log open."""


class InvariantError(LeasedError):
    """Our own mistake: a state that must be impossible. The process ends; recovery decides."""

    wire = "io.leased.Error.Invariant"
