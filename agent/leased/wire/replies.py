# SPDX-License-Identifier: Apache-2.0
"""Replies: what each method gives, one struct a method, and the one encoding of replies and errors
to bytes.

Rule: field for field the right side of the method in the IDL. `encode` and `encode_error` are the
only places that make bytes of a reply, and always end them with the NUL.

Does not know `terms` values: `calls` chooses the reply for one.
"""

from __future__ import annotations

import msgspec

from leased.wire.objects import (
    Absence,
    Access,
    Allowance,
    Change,
    Evenness,
    Graces,
    Holder,
    Lease,
    LeaseCounts,
    LeaseFd,
    Notice,
    Refusal,
    RemoteRegion,
    Removal,
    Resource,
    Sample,
    Tolerant,
    Waiting,
)


class AcquireReply(Tolerant, frozen=True):
    """io.leased.Lease.Acquire"""

    lease: Lease
    fds: list[LeaseFd]
    access: list[Access]
    attached: bool
    sequence: int | None = None
    record_hash: str | None = None
    log_id: str | None = None


class RenewReply(Tolerant, frozen=True, gc=False):
    """io.leased.Lease.Renew"""

    lease_id: str
    generation: int
    deadline_boottime_ns: int
    state: str


class LeaseReply(Tolerant, frozen=True):
    """io.leased.Lease.Release, Done, Extend, Wait; io.leased.Admin.Revoke, Adopt"""

    lease: Lease


class DescribeReply(Tolerant, frozen=True):
    """io.leased.Lease.Describe"""

    lease: Lease
    access: list[Access]


class JoinReply(Tolerant, frozen=True):
    """io.leased.Lease.Join"""

    lease: Lease
    environment: dict[str, str]
    fds: list[LeaseFd]
    access: list[Access]


class ConnectReply(Tolerant, frozen=True):
    """io.leased.Lease.Connect"""

    gid: str
    lid: int
    qp_number: int
    packet_number: int
    mtu: int
    regions: list[RemoteRegion]


class DisconnectReply(Tolerant, frozen=True):
    """io.leased.Lease.Disconnect"""


class ListReply(Tolerant, frozen=True):
    """io.leased.Lease.List"""

    leases: list[Lease]
    waiting: list[Waiting]


class WatchReply(Tolerant, frozen=True):
    """io.leased.Lease.Watch"""

    sequence: int
    leases: list[Lease]
    gap: bool
    notice: Notice | None = None


class PlanReply(Tolerant, frozen=True):
    """io.leased.Lease.Plan"""

    grantable: bool
    resource_ids: list[str]
    removals: list[Removal]
    cost_nano: int
    refusal: Refusal | None = None
    position: int | None = None
    within_boottime_ns: int | None = None
    assumes: list[str] | None = None


class WhyReply(Tolerant, frozen=True):
    """io.leased.Lease.Why"""

    lease: Lease | None = None
    refusal: Refusal | None = None
    position: int | None = None
    step: str | None = None
    errno: int | None = None
    preemptor_tenant: str | None = None
    preemptor_lease_id: str | None = None
    told_boottime_ns: int | None = None
    latest_boottime_ns: int | None = None
    rule: str | None = None


class QuotasReply(Tolerant, frozen=True):
    """io.leased.Lease.Quotas"""

    allowances: list[Allowance]
    evenness: list[Evenness]


class DeviceListReply(Tolerant, frozen=True):
    """io.leased.Device.List"""

    resources: list[Resource]
    absences: list[Absence]
    notes: list[str]
    graces: Graces


class HoldersReply(Tolerant, frozen=True):
    """io.leased.Device.Holders"""

    holders: list[Holder]


class DeviceWatchReply(Tolerant, frozen=True):
    """io.leased.Device.Watch"""

    sequence: int
    resources: list[Resource]
    gap: bool


class HeadReply(Tolerant, frozen=True):
    """io.leased.Audit.Head"""

    log_id: str
    next_sequence: int
    head: str
    boot_id: str
    checkpoint: str | None = None


class ProveReply(Tolerant, frozen=True):
    """io.leased.Audit.Prove"""

    format: str
    log_id: str
    origin: str
    vkey: str
    sequence: int
    size: int
    record_hash: str
    path: list[str]
    checkpoint: str


class RotateKeyReply(Tolerant, frozen=True):
    """io.leased.Admin.RotateKey"""

    old_vkey: str
    vkey: str


class ReadReply(Tolerant, frozen=True):
    """io.leased.Audit.Read. `frames` are bytes here and base64 on the wire."""

    from_sequence: int
    next_sequence: int
    frames: bytes


class AuditWatchReply(Tolerant, frozen=True):
    """io.leased.Audit.Watch. `frames` are bytes here and base64 on the wire."""

    from_sequence: int
    next_sequence: int
    frames: bytes
    gap: bool


class VerifyReply(Tolerant, frozen=True):
    """io.leased.Audit.Verify"""

    verdict: str
    why: str
    records: int
    head: str
    sequence: int | None = None
    offset: int | None = None
    file: str | None = None


class TelemetryReply(Tolerant, frozen=True):
    """io.leased.Telemetry.Read"""

    samples: list[Sample]


class TelemetryWatchReply(Tolerant, frozen=True):
    """io.leased.Telemetry.Watch"""

    samples: list[Sample]
    dropped: int


class DrainReply(Tolerant, frozen=True):
    """io.leased.Admin.Drain"""

    affected: list[str]


class LetGoReply(Tolerant, frozen=True):
    """io.leased.Admin.LetGo"""

    holders: list[Holder]


class UnfenceReply(Tolerant, frozen=True):
    """io.leased.Admin.Unfence"""

    lease: Lease | None = None


class SetPolicyReply(Tolerant, frozen=True):
    """io.leased.Admin.SetPolicy"""

    policy_hash: str


class GetPolicyReply(Tolerant, frozen=True):
    """io.leased.Admin.GetPolicy"""

    document: str
    policy_hash: str
    generation: int
    configured: bool
    windows: list[str]


class CheckPolicyReply(Tolerant, frozen=True):
    """io.leased.Admin.CheckPolicy"""

    policy_hash: str
    changes: list[Change]
    allowances: list[Allowance]
    why: str | None = None


class StatusReply(Tolerant, frozen=True):
    """io.leased.Admin.Status"""

    version: str
    node_id: str
    boot_id: str
    epoch: int
    started_boottime_ns: int
    now_boottime_ns: int
    log_id: str
    next_sequence: int
    head: str
    filesystem: str
    durability: str
    policy_generation: int
    policy_hash: str
    reaper_connected: bool
    draining: bool
    connections: int
    leases: LeaseCounts
    log_state: str | None = None
    log_why: str | None = None


class EmptyReply(Tolerant, frozen=True):
    """io.leased.Admin.Resume, Fence, Reload"""


class InfoReply(Tolerant, frozen=True):
    """org.varlink.service.GetInfo"""

    vendor: str
    product: str
    version: str
    url: str
    interfaces: list[str]


class DescriptionReply(Tolerant, frozen=True):
    """org.varlink.service.GetInterfaceDescription"""

    description: str


class _Answer(msgspec.Struct, gc=False):
    parameters: Tolerant


class _Continued(msgspec.Struct, gc=False):
    parameters: Tolerant
    continues: bool = True


_ENCODER = msgspec.json.Encoder()
_WHY_KEY = "io.leased.why"
"""A header key with a dot is an extension that others overlook: InvalidParameter itself has room
for a name only.
"""


def encode(reply: Tolerant, *, continues: bool = False) -> bytes:
    """Return the message that gives `reply`, NUL and all. `continues`: more replies to the same
    call will follow.
    """
    if continues:
        return _ENCODER.encode(_Continued(reply)) + b"\0"
    return _ENCODER.encode(_Answer(reply)) + b"\0"


def encode_fault(
    name: str, parameters: dict[str, object] | Tolerant, why: str | None = None
) -> bytes:
    """Return the message that says the error `name`."""
    message: dict[str, object] = {"error": name, "parameters": parameters}
    if why is not None:
        message[_WHY_KEY] = why
    return _ENCODER.encode(message) + b"\0"
