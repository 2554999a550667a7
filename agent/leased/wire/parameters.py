# SPDX-License-Identifier: Apache-2.0
"""Parameters: what each method takes, one struct a method, decoded in one go.

Rule: field for field the left side of the method in the IDL; a field we do not know, or one out of
its bounds, is InvalidParameter and nothing has happened. `METHODS` is the closed list of what can
be called.

Does not say what a method means: `calls` and the service do.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from leased.wire.objects import (
    GID,
    AccountingTag,
    Ask,
    Count,
    HexId,
    Kind,
    Label,
    LevelName,
    Positive,
    PriorityName,
    Reason,
    Strict,
)

Gid = Annotated[str, Meta(pattern=GID)]
QueuePairNumber = Annotated[int, Meta(ge=0, le=0xFFFFFF)]
"""Of 24 bits, as packet numbers are."""

Asks = Annotated[list[Ask], Meta(min_length=1, max_length=64)]


class Plan(Strict, frozen=True):
    """io.leased.Lease.Plan"""

    resources: Asks
    ttl_ns: Positive | None = None
    priority: PriorityName | None = None
    wait_ns: Count | None = None
    grace_ns: Count | None = None
    workload: Label | None = None
    accounting_tag: AccountingTag | None = None
    bind: Literal["process", "cgroup", "deadline"] | None = None
    level: LevelName | None = None
    requeue_of: HexId | None = None


class Acquire(Plan, frozen=True):
    """io.leased.Lease.Acquire"""

    command_id: HexId | None = None


class Join(Strict, frozen=True):
    """io.leased.Lease.Join"""

    lease_id: HexId


class Quotas(Strict, frozen=True):
    """io.leased.Lease.Quotas"""

    tenant: Label | None = None


class Connect(Strict, frozen=True):
    """io.leased.Lease.Connect"""

    lease_id: HexId
    gid: Gid
    qp_number: QueuePairNumber
    packet_number: QueuePairNumber
    resource_id: Label | None = None
    lid: Annotated[int, Meta(ge=0, le=0xFFFF)] | None = None
    mtu: Annotated[int, Meta(ge=256, le=65536)] | None = None
    access: Literal["read", "read_write"] | None = None


class Disconnect(Strict, frozen=True):
    """io.leased.Lease.Disconnect"""

    lease_id: HexId
    qp_number: QueuePairNumber
    resource_id: Label | None = None


class Renew(Strict, frozen=True, gc=False):
    """io.leased.Lease.Renew"""

    lease_id: HexId
    command_id: HexId | None = None
    ttl_ns: Positive | None = None


class Release(Strict, frozen=True, gc=False):
    """io.leased.Lease.Release"""

    lease_id: HexId
    command_id: HexId | None = None


class Done(Release, frozen=True, gc=False):
    """io.leased.Lease.Done"""


class Extend(Strict, frozen=True, gc=False):
    """io.leased.Lease.Extend"""

    lease_id: HexId
    needed_ns: Positive
    command_id: HexId | None = None


class Describe(Strict, frozen=True):
    """io.leased.Lease.Describe"""

    lease_id: HexId


class List(Strict, frozen=True):
    """io.leased.Lease.List"""

    closed: bool | None = None


class Watch(Strict, frozen=True):
    """io.leased.Lease.Watch"""

    lease_id: HexId | None = None


class Why(Strict, frozen=True):
    """io.leased.Lease.Why"""

    lease_id: HexId


class Wait(Strict, frozen=True):
    """io.leased.Lease.Wait"""

    lease_id: HexId
    until: Literal["active", "ended", "closed"] | None = None
    timeout_ns: Count | None = None


class DeviceList(Strict, frozen=True):
    """io.leased.Device.List"""


class Holders(Strict, frozen=True):
    """io.leased.Device.Holders"""

    resource_id: Label | None = None


class DeviceWatch(Strict, frozen=True):
    """io.leased.Device.Watch"""


class AuditHead(Strict, frozen=True):
    """io.leased.Audit.Head"""


class AuditRead(Strict, frozen=True):
    """io.leased.Audit.Read"""

    from_sequence: Count
    records_max: Positive | None = None
    bytes_max: Positive | None = None


class AuditProve(Strict, frozen=True):
    """io.leased.Audit.Prove"""

    sequence: Count
    size: Count | None = None


class AuditWatch(Strict, frozen=True):
    """io.leased.Audit.Watch"""

    from_sequence: Count | None = None


class AuditVerify(Strict, frozen=True):
    """io.leased.Audit.Verify"""

    from_sequence: Count | None = None


class TelemetryRead(Strict, frozen=True):
    """io.leased.Telemetry.Read"""

    resource_id: Label | None = None
    lease_id: HexId | None = None


class TelemetryWatch(Strict, frozen=True):
    """io.leased.Telemetry.Watch"""

    resource_id: Label | None = None
    lease_id: HexId | None = None
    interval_ns: Positive | None = None


class Revoke(Strict, frozen=True):
    """io.leased.Admin.Revoke"""

    lease_id: HexId
    command_id: HexId | None = None
    reason: Reason | None = None
    grace_ns: Count | None = None


class Drain(Strict, frozen=True):
    """io.leased.Admin.Drain"""

    command_id: HexId | None = None
    resource_id: Label | None = None
    grace_ns: Count | None = None
    reason: Reason | None = None


class Resume(Strict, frozen=True):
    """io.leased.Admin.Resume"""

    command_id: HexId | None = None
    resource_id: Label | None = None


class LetGo(Strict, frozen=True):
    """io.leased.Admin.LetGo"""

    kind: Kind


class Fence(Strict, frozen=True):
    """io.leased.Admin.Fence"""

    resource_id: Label
    capacity: Positive
    command_id: HexId | None = None


class Unfence(Strict, frozen=True):
    """io.leased.Admin.Unfence"""

    command_id: HexId | None = None
    lease_id: HexId | None = None
    resource_id: Label | None = None


class SetPolicy(Strict, frozen=True):
    """io.leased.Admin.SetPolicy"""

    document: str | None = None
    command_id: HexId | None = None
    rate_hash: HexId | None = None


class GetPolicy(Strict, frozen=True):
    """io.leased.Admin.GetPolicy"""


class CheckPolicy(Strict, frozen=True):
    """io.leased.Admin.CheckPolicy"""

    document: str


class Adopt(Strict, frozen=True):
    """io.leased.Admin.Adopt"""

    lease_id: HexId | None = None
    command_id: HexId | None = None
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    resources: Asks | None = None
    ttl_ns: Positive | None = None
    priority: PriorityName | None = None
    grace_ns: Count | None = None
    workload: Label | None = None
    accounting_tag: AccountingTag | None = None


class RotateKey(Strict, frozen=True):
    """io.leased.Admin.RotateKey"""


class Reload(Strict, frozen=True):
    """io.leased.Admin.Reload"""


class Status(Strict, frozen=True):
    """io.leased.Admin.Status"""


class GetInfo(Strict, frozen=True):
    """org.varlink.service.GetInfo"""


class GetInterfaceDescription(Strict, frozen=True):
    """org.varlink.service.GetInterfaceDescription"""

    interface: str


Parameters = Strict
"""Of any method."""


class Method(msgspec.Struct, frozen=True, eq=False):
    """One method: its parameters, whether it must be called with more, and how many descriptors it
    takes.
    """

    name: str
    interface: str
    parameters: type[Parameters]
    decoder: msgspec.json.Decoder[Parameters]
    streams: bool
    fds_max: int


_STREAMS = (Watch, DeviceWatch, AuditWatch, TelemetryWatch)
_TAKE_PIDFD = (Acquire, Join, Adopt)
_NAMED: Final[dict[str, type[Parameters]]] = {
    "io.leased.Lease.Acquire": Acquire,
    "io.leased.Lease.Plan": Plan,
    "io.leased.Lease.Join": Join,
    "io.leased.Lease.Renew": Renew,
    "io.leased.Lease.Release": Release,
    "io.leased.Lease.Done": Done,
    "io.leased.Lease.Extend": Extend,
    "io.leased.Lease.Describe": Describe,
    "io.leased.Lease.List": List,
    "io.leased.Lease.Watch": Watch,
    "io.leased.Lease.Why": Why,
    "io.leased.Lease.Wait": Wait,
    "io.leased.Lease.Quotas": Quotas,
    "io.leased.Lease.Connect": Connect,
    "io.leased.Lease.Disconnect": Disconnect,
    "io.leased.Device.List": DeviceList,
    "io.leased.Device.Holders": Holders,
    "io.leased.Device.Watch": DeviceWatch,
    "io.leased.Audit.Head": AuditHead,
    "io.leased.Audit.Read": AuditRead,
    "io.leased.Audit.Prove": AuditProve,
    "io.leased.Audit.Watch": AuditWatch,
    "io.leased.Audit.Verify": AuditVerify,
    "io.leased.Telemetry.Read": TelemetryRead,
    "io.leased.Telemetry.Watch": TelemetryWatch,
    "io.leased.Admin.Revoke": Revoke,
    "io.leased.Admin.Drain": Drain,
    "io.leased.Admin.Resume": Resume,
    "io.leased.Admin.LetGo": LetGo,
    "io.leased.Admin.Fence": Fence,
    "io.leased.Admin.Unfence": Unfence,
    "io.leased.Admin.SetPolicy": SetPolicy,
    "io.leased.Admin.GetPolicy": GetPolicy,
    "io.leased.Admin.CheckPolicy": CheckPolicy,
    "io.leased.Admin.Adopt": Adopt,
    "io.leased.Admin.RotateKey": RotateKey,
    "io.leased.Admin.Reload": Reload,
    "io.leased.Admin.Status": Status,
    "org.varlink.service.GetInfo": GetInfo,
    "org.varlink.service.GetInterfaceDescription": GetInterfaceDescription,
}


def _method(name: str, parameters: type[Parameters]) -> Method:
    return Method(
        name=name,
        interface=name.rpartition(".")[0],
        parameters=parameters,
        decoder=msgspec.json.Decoder(parameters),
        streams=parameters in _STREAMS,
        fds_max=1 if parameters in _TAKE_PIDFD else 0,
    )


METHODS: Final[dict[str, Method]] = {
    name: _method(name, parameters) for name, parameters in _NAMED.items()
}
