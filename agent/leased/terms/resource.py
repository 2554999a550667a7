# SPDX-License-Identifier: Apache-2.0
"""Resources: named things with an integer capacity, and what a node has of them.

Rule: a resource is keyed by a stable identity, never by a node name in /dev. Capacities are
integers in the raw unit of their kind: bytes for `mem` and `block`, 1/1000 core for `cpu`, 1/1000
device for `gpu`, bit/s for `net`.

Ids: `mem:node<N>:<page bytes>`, `cpu:<core>`, `gpu:<GPU uuid>`, `block:<nguid|eui64|uuid>`,
`mem:dax-<identity>`. Some memory can be had in more than one way: `mem:budget:node<N>:<page bytes>`
and `mem:rdma-<guid>:node<N>:<page bytes>` take from what `mem:node<N>:<page bytes>` counts
(`capacity_id`), as `block:raw:<nguid|eui64|uuid>` takes what `block:<nguid|eui64|uuid>` counts.

Does not discover anything (`hardware`) and does not count what is in use (`lessor.table`).
"""

from __future__ import annotations

import enum
import functools
from functools import lru_cache
from typing import Annotated, Final

import msgspec

AMOUNT_MAX: Final = 1 << 56

Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
"""A capacity as records may say it: more than anything has (64 PiB), and so little that sums over a
month of a fleet fit 38 digits, whatever a node seals."""


class ResourceKind(enum.IntEnum):
    """The five kinds of the source document, in its order: the numbers are on disk for ever."""

    MEM = 0
    BLOCK = 1
    NET = 2
    GPU = 3
    CPU = 4


UNIT = {
    ResourceKind.MEM: 1 << 30,
    ResourceKind.BLOCK: 1 << 30,
    ResourceKind.NET: 10**9,
    ResourceKind.GPU: 1_000,
    ResourceKind.CPU: 1_000,
}
"""What people count a kind in, in its raw unit: GiB, GiB, Gbit/s, devices, cores."""


class TierKind(enum.IntEnum):
    """Where memory lives, as `hardware.tiers` finds out: by HMAT, else by origin, else by
    distance."""

    DRAM = 0
    HBM = 1
    CXL = 2
    PMEM = 3
    REMOTE = 4


class Shape(enum.StrEnum):
    """How memory is granted: a descriptor of sealed memory; the right of a cgroup to use so much; a
    whole device-dax range; a region that remote peers reach. And how a namespace is: encrypted with
    a key that ends with the lease, or as it is."""

    MEMFD = "memfd"
    BUDGET = "budget"
    DAX = "dax"
    RDMA = "rdma"
    CRYPT = "crypt"
    RAW = "raw"


MEMORY_SHAPES = (Shape.MEMFD, Shape.BUDGET, Shape.DAX, Shape.RDMA)
BLOCK_SHAPES = (Shape.CRYPT, Shape.RAW)
RAW_PREFIX = "block:raw:"
MIG_PREFIX = "gpu:MIG-"


@lru_cache(maxsize=1024)
def shape_of(resource_id: str) -> Shape | None:
    """The shape of what the id names; None for what is neither memory nor block storage."""
    if resource_id.startswith("block:"):
        return Shape.RAW if resource_id.startswith(RAW_PREFIX) else Shape.CRYPT
    if not resource_id.startswith("mem:"):
        return None
    for shape in (Shape.BUDGET, Shape.DAX, Shape.RDMA):
        if resource_id.startswith(f"mem:{shape}"):
            return shape
    return Shape.MEMFD


@lru_cache(maxsize=1024)
@functools.lru_cache(maxsize=4096)
def capacity_id(resource_id: str) -> str:
    """The resource that counts what is taken of `resource_id`: itself, or what it is another way
    to."""
    if resource_id.startswith(RAW_PREFIX):
        return f"block:{resource_id.removeprefix(RAW_PREFIX)}"
    if shape_of(resource_id) in (Shape.BUDGET, Shape.RDMA):
        _, found, place = resource_id.partition(":node")
        if found:
            return f"mem:node{place}"
    return resource_id


def kind_scope(kind: ResourceKind) -> str:
    """What stands for every resource of a kind where one may be named: "gpu:"."""
    return f"{kind.name.lower()}:"


KIND_SCOPES = {kind_scope(kind): kind for kind in ResourceKind}


def in_scope(resource_id: str, scope: str) -> bool:
    """Whether a resource is meant: "" is the node, "gpu:" every GPU, and a resource's id is itself
    and whatever it counts."""
    if not scope or scope in (resource_id, capacity_id(resource_id)):
        return True
    return scope in KIND_SCOPES and resource_id.startswith(scope)


class Evidence(enum.StrEnum):
    """How far this node can enforce and prove what it grants of a resource; published with every
    inventory."""

    MEASURED = "measured on device"
    EMULATED = "emulated"
    NOT_RUN = "not run"


class Health(enum.StrEnum):
    """Whether a resource may be granted now. Recovers by itself when the probe recovers. BUSY is
    well, and used by processes without a lease: it is granted to nobody but them, by adoption."""

    OK = "ok"
    SICK = "sick"
    GONE = "gone"
    BUSY = "busy"


class Resource(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One leasable thing of this node.

    `capacity` is what may be leased of it, `granule` what requests must be multiples of (page, core
    share), both in the raw unit of the kind. `node` is the NUMA node or -1. Latency (ns) and
    bandwidth (MiB/s) are the kernel's HMAT figures or None where it tells none. `limits` lists what
    cannot be enforced here, each with its reason.

    Of the attributes placement reads `nvlink`, the UUIDs of the GPUs that this one has a link to,
    with commas between. Whoever asks may name any: `model`, `mig` (an instance's profile), ...
    """

    resource_id: str
    kind: ResourceKind
    tier: TierKind | None
    capacity: Amount
    granule: Amount
    node: int = -1
    evidence: Evidence = Evidence.MEASURED
    health: Health = Health.OK
    read_latency_ns: int | None = None
    write_latency_ns: int | None = None
    read_bandwidth_mibps: int | None = None
    write_bandwidth_mibps: int | None = None
    limits: tuple[str, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()


class Absence(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A kind that this host does not offer, and the reason in words an operator can act on."""

    kind: ResourceKind
    why: str


class Inventory(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the node has. `resources` are leasable, `absences` say what is not and why, `notes` list
    devices seen."""

    resources: tuple[Resource, ...]
    absences: tuple[Absence, ...] = ()
    notes: tuple[str, ...] = ()


class Allotment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A share of one resource held by one lease: `capacity` in the raw unit of the kind."""

    resource_id: str
    kind: ResourceKind
    tier: TierKind | None
    capacity: Amount


class Ask(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a request wants of one kind. None means "any".

    `capacity` in the raw unit. `resource_id` pins one resource; `node` a NUMA node; `tier` a memory
    tier; `granule` a page size (mem). `exclusive` asks for whole cores (cpu). `shape` None is a
    memfd, or with the tier `remote` whatever reaches it; of a namespace it is `crypt`.

    `count` > 0 asks for so many entire resources of at least `capacity` each (gpu, block, dax); 0
    is one of block and dax, and of GPUs as many as `capacity` makes. `attributes` are what each
    must say of itself. `adopts`: for work that runs already.
    """

    kind: ResourceKind
    capacity: int
    tier: TierKind | None = None
    node: int | None = None
    resource_id: str | None = None
    granule: int | None = None
    exclusive: bool = False
    shape: Shape | None = None
    count: int = 0
    attributes: tuple[tuple[str, str], ...] = ()
    adopts: bool = False


def counted(inventory: Inventory) -> tuple[Resource, ...]:
    """Resources that are no second way to what another counts."""
    there = {one.resource_id for one in inventory.resources}
    return tuple(
        one
        for one in inventory.resources
        if (counts := capacity_id(one.resource_id)) == one.resource_id or counts not in there
    )
