# SPDX-License-Identifier: Apache-2.0
"""Faults: what a call can fail with, each with the exit status a program should end with.

Rule: every error the agent can send becomes one of these or one of `terms.errors`; none is a bare
string. A refusal says its token, its numbers and the next step, and carries the numbers for
programs.

Does not retry (`session`) and does not end the lease (`holding`).
"""

from __future__ import annotations

import errno
from typing import Any, Final

import msgspec

from leased.client.amounts import told
from leased.terms.errors import (
    EX_LEASE_LOST,
    EX_NOPERM,
    EX_PROTOCOL,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    CallerError,
    ChainError,
    ConfigError,
    DeviceError,
    InvalidParameter,
    LeasedError,
    NoSuchLease,
    PermissionDenied,
    ProtocolError,
)
from leased.wire.objects import Refusal

REFUSED = "io.leased.Lease.Refused"


class Refused(LeasedError):
    """The agent understood and said no; `refusal` has the reason, the limit, the usage and when to
    try again.
    """

    wire = REFUSED
    exit_status = EX_TEMPFAIL

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal_text(refusal))
        self.refusal = refusal


class LeaseLost(LeasedError):
    """The lease is no longer ours, or will not be by the time we could be sure. Stop using what it
    gave.
    """

    wire = "io.leased.Client.LeaseLost"
    exit_status = EX_LEASE_LOST

    def __init__(self, lease_id: str, why: str) -> None:
        super().__init__(f"lease {lease_id[:8]} is lost: {why}")
        self.lease_id = lease_id
        self.why = why


_HINTS: Final = {
    errno.ENOENT: "does leased.service run here? `leasectl doctor` looks",
    errno.ECONNREFUSED: "it has ended: `systemctl status leased.service` tells why",
    errno.EACCES: "the operators' socket is root's",
}
"""What to do about a socket that cannot be reached."""


class AgentUnavailable(LeasedError):
    """No agent answers on the socket. Leases go on without it until their deadline."""

    wire = "io.leased.Client.AgentUnavailable"
    exit_status = EX_UNAVAILABLE

    @classmethod
    def at(cls, path: str, error: OSError) -> AgentUnavailable:
        """What the socket at `path` said, and what to do about it."""
        hint = _HINTS.get(error.errno or 0, "`leasectl doctor` looks what is wrong")
        told = cls(f"no agent at {path}: {error.strerror or error}; {hint}")
        if error.errno == errno.EACCES:
            told.exit_status = EX_NOPERM
        return told


class CallTimeout(AgentUnavailable):
    """The agent took the call and did not answer in time; whether it was carried out is unknown."""

    wire = "io.leased.Client.CallTimeout"


class RemoteError(LeasedError):
    """An error that this library has no class for; `name` and `parameters` are as they came."""

    exit_status = EX_PROTOCOL

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(f"{name} {msgspec.json.encode(parameters).decode()}")
        self.name = name
        self.parameters = parameters


def refusal_text(refusal: Refusal) -> str:
    """One line for people: token, numbers, next step."""
    text = refusal.reason
    if refusal.what:
        asked, used, limit = (
            told(refusal.what, number)
            for number in (refusal.requested, refusal.usage, refusal.limit)
        )
        text += f": {refusal.what}: asked {asked}"
        if refusal.limit:
            text += f", {used} of {limit} in use" if refusal.usage else f", the limit is {limit}"
    if refusal.seconds_until_retry is None:
        return f"{text}; waiting does not help"
    return f"{text}; could succeed in {refusal.seconds_until_retry} s, try waiting"


def fault_of(name: str, parameters: dict[str, Any], why: str) -> LeasedError:
    """The exception for an error reply. `why` is the explanation beside the error, if any."""
    said = why or str(parameters.get("why", ""))
    if name == REFUSED:
        try:
            return Refused(msgspec.convert(parameters, Refusal))
        except msgspec.ValidationError:
            return RemoteError(name, parameters)
    if name == InvalidParameter.wire:
        return InvalidParameter(str(parameters.get("parameter", "")), said or "not accepted")
    if name == NoSuchLease.wire:
        return NoSuchLease(f"no such lease: {parameters.get('lease_id', '')}")
    if name in (PermissionDenied.wire, "org.varlink.service.PermissionDenied"):
        return PermissionDenied(said or "not allowed")
    if name == ProtocolError.wire:
        return ProtocolError(said)
    if name == ConfigError.wire:
        return ConfigError(said)
    if name == CallerError.wire:
        return CallerError(said)
    if name == DeviceError.wire:
        errno = parameters.get("errno")
        return DeviceError(
            str(parameters.get("verb", "")),
            errno if isinstance(errno, int) else 0,
            str(parameters.get("detail", "")),
        )
    if name == ChainError.wire:
        return ChainError(str(parameters.get("verdict", "")), said)
    return RemoteError(name, parameters)
