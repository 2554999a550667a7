# SPDX-License-Identifier: Apache-2.0
"""Wire objects: what the IDL's types look like as values, used by both ends.

Rule: field for field what `idl/*.varlink` says; an absent field is None and is left out; enums are
their lower-case names; ids are hex; no floats. `context` is what was asked, `runtime` what is. A
test compares each struct with its IDL.

Does not know `terms` values: `portrayal` makes these from them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from leased.terms.reading import INTEGER_MAX

Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Positive = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]
HexId = Annotated[str, Meta(max_length=64)]
GID = r"^([0-9a-f]{4}:?){7}[0-9a-f]{4}\Z"
LABEL = r"^[^\x00-\x1f\x7f]*\Z"

Label = Annotated[str, Meta(max_length=128, pattern=LABEL)]
Kind = Literal["mem", "block", "net", "gpu", "cpu"]
Tier = Literal["dram", "hbm", "cxl", "pmem", "remote"]
Shape = Literal["memfd", "budget", "dax", "rdma", "crypt", "raw"]
PriorityName = Literal["scavenger", "standard", "guaranteed"]
LevelName = Literal["background", "low", "normal", "high", "critical"]
Reason = Literal[
    "priority_preemption",
    "quota_reclaim",
    "quota_cut",
    "burst_expired",
    "budget_exhausted",
    "operator_revoke",
    "operator_drain",
    "maintenance",
    "policy_violation",
    "device_unhealthy",
    "holder_lost",
    "node_reboot",
    "grant_failed",
    "reaper_lost",
]


class Strict(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An object that a caller sends: a field we do not know is a mistake of the caller."""


class Tolerant(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An object that we send: a newer agent may add fields, so the client overlooks what it does
    not know.
    """


class AccountingTag(Strict, frozen=True):
    """Who the cost is put down to."""

    cost_center: Label
    project: Label | None = None
    request_class: Label | None = None
    budget_group: Label | None = None
    flags: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None


class RemoteRegion(Tolerant, frozen=True):
    """Memory that a remote peer reaches. The key is a capability: no repr shows it."""

    resource_id: str
    address: int
    length: int
    key: int

    def __repr__(self) -> str:
        return f"RemoteRegion({self.resource_id!r}, ...)"


class Ask(Strict, frozen=True):
    """What is wanted of one kind."""

    kind: Kind
    capacity: Positive
    tier: Tier | None = None
    node: Annotated[int, Meta(ge=0, le=65535)] | None = None
    resource_id: Label | None = None
    page_size: Positive | None = None
    exclusive: bool | None = None
    shape: Shape | None = None
    count: Annotated[int, Meta(ge=1, le=1024)] | None = None
    attributes: Annotated[dict[Label, Label], Meta(max_length=16)] | None = None


class Allotment(Tolerant, frozen=True):
    """A share of one resource."""

    resource_id: str
    kind: str
    capacity: int
    tier: str | None = None


class Context(Tolerant, frozen=True):
    """What was asked."""

    command_id: str
    ttl_ns: int
    grace_ns: int
    priority: str
    workload: str | None = None
    accounting_tag: AccountingTag | None = None


class Runtime(Tolerant, frozen=True):
    """What is."""

    state: str
    generation: int
    tenant: str
    uid: int
    gid: int
    pid: int
    trust: str
    cgroup: str
    allotments: list[Allotment]
    boot_id: str
    granted_boottime_ns: int
    granted_wall_ns: int
    deadline_boottime_ns: int
    remaining_ns: int
    fenced: list[Allotment]
    drain_deadline_boottime_ns: int | None = None
    ended: str | None = None
    reason: str | None = None
    cut_boottime_ns: int | None = None
    granted_sequence: int | None = None


class Lease(Tolerant, frozen=True):
    """One lease."""

    lease_id: str
    context: Context
    runtime: Runtime


class LeaseFd(Tolerant, frozen=True):
    """One descriptor that came with a reply, by its position."""

    resource_id: str
    index: int
    purpose: str


class Access(Tolerant, frozen=True):
    """What a holder must know to use a resource. A value may be a capability: no repr shows it."""

    resource_id: str
    name: str
    value: str

    def __repr__(self) -> str:
        return f"Access({self.resource_id!r}, {self.name!r}, ...)"


class Refusal(Tolerant, frozen=True):
    """No, and why."""

    reason: str
    what: str
    limit: int
    usage: int
    requested: int
    retry_at_boottime_ns: int | None = None
    seconds_until_retry: int | None = None
    rule: str | None = None


class Removal(Tolerant, frozen=True):
    """A lease that would have to make way."""

    lease_id: str | None
    tenant: str | None
    level: str
    reason: str
    until_boottime_ns: int
    allotments: list[Allotment]


class Allowance(Tolerant, frozen=True):
    """One limit, and what its holder has."""

    holder: str
    rule: str
    what: str
    limit: int
    ceiling: int
    usage: int
    mode: str
    capacity: int
    leaving: int
    until_boottime_ns: int | None = None


class Evenness(Tolerant, frozen=True):
    """How evenly a kind is divided by its weights, in millionths."""

    rule: str
    index: int


class Change(Tolerant, frozen=True):
    """One key of a policy document, before and after."""

    key: str
    before: str | None = None
    after: str | None = None


class Waiting(Tolerant, frozen=True):
    """A request in the queue."""

    command_id: str
    position: int
    reason: str


class Notice(Tolerant, frozen=True):
    """The holder should leave by the deadline. The lines of the notify descriptor are these."""

    lease_id: str
    reason: str
    deadline_boottime_ns: int
    seconds_left: int


class Use(Tolerant, frozen=True):
    """One resource's capacity, split without remainder."""

    free: int
    leased: int
    teardown: int
    fenced: int
    cordoned: bool


class Bounds(Tolerant, frozen=True):
    """How long each part of a teardown may take."""

    cut_ns: int
    scrub_ns: int
    overwrite_ns: int
    prove_ns: int


class Graces(Tolerant, frozen=True):
    """How long a holder is told before it has to leave."""

    release_ns: int
    preempt_ns: int
    max_ns: int


class Resource(Tolerant, frozen=True):
    """One leasable thing of the node."""

    resource_id: str
    kind: str
    capacity: int
    granule: int
    node: int
    evidence: str
    health: str
    limits: list[str]
    attributes: dict[str, str]
    tier: str | None = None
    read_latency_ns: int | None = None
    write_latency_ns: int | None = None
    read_bandwidth_mibps: int | None = None
    write_bandwidth_mibps: int | None = None
    use: Use | None = None
    bounds: Bounds | None = None


class Absence(Tolerant, frozen=True):
    """A kind that the host does not offer, and why."""

    kind: str
    why: str


class Holder(Tolerant, frozen=True):
    """A process that holds or maps a resource."""

    pid: int
    uid: int
    name: str
    via: str
    resource_id: str
    lease_id: str | None = None


class Sample(Tolerant, frozen=True):
    """One observed value."""

    name: str
    unit: str
    kind: str
    resource_id: str
    sampled_boottime_ns: int
    age_ns: int
    quality: str
    attributes: dict[str, str]
    lease_id: str | None = None
    value: int | None = None


class LeaseCounts(Tolerant, frozen=True, omit_defaults=False):
    """Leases by state."""

    granted: int = 0
    active: int = 0
    draining: int = 0
    revoking: int = 0
    scrubbing: int = 0
    verifying: int = 0
    reclaimed: int = 0
    fenced: int = 0
    waiting: int = 0
