# SPDX-License-Identifier: Apache-2.0
"""Facts: what the driver says of a GPU, as plain values that cross from a worker to the agent.

Rule: a question that the driver does not answer is None and is named in `Gpu.unanswered`; a number
that stands for "not available" never leaves the worker. Nothing here is kept as a handle: handles
die with a driver, UUIDs and PCI addresses do not.

Does not judge (`health`, `verdict`) and does not ask (`nvml`).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

FABRIC_WAITS: Final = ("not started", "in progress")
FABRIC_FAILED: Final = "failed"
"""How far a GPU behind an NVLink switch has joined its fabric, when it has not."""


class Question(enum.StrEnum):
    """What a proof wants to know and some drivers or models cannot say."""

    RECOVERY = "recovery action"
    REPAIRS = "pending repairs"
    RESERVED = "reserved memory"
    COMPUTE_MODE = "compute mode"


class ComputeMode(enum.IntEnum):
    """Who may make a context on a GPU. The numbers are NVML's."""

    DEFAULT = 0
    EXCLUSIVE_THREAD = 1
    PROHIBITED = 2
    EXCLUSIVE_PROCESS = 3


class Instance(msgspec.Struct, frozen=True, array_like=True):
    """A MIG device: one compute instance of a GPU instance. `neighbours` share its memory, `start`
    is its first memory slice where that was asked."""

    uuid: str
    gpu_instance: int
    compute_instance: int
    profile: str
    slices: int
    memory_bytes: int
    neighbours: int = 0
    start: int = -1


class Profile(msgspec.Struct, frozen=True, array_like=True):
    """A size that a GPU instance can have, and the places (first memory slices) it can have;
    `span` is how many it takes."""

    name: str
    slices: int
    memory_bytes: int
    starts: tuple[int, ...]
    span: int


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a lease's own GPU instance is made: "1g.10gb@4"."""

    profile: str
    start: int

    @property
    def name(self) -> str:
        """As it is configured."""
        return f"{self.profile}@{self.start}"


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """What the driver says of a GPU's health; None where it does not say."""

    recovery_action: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retirement_pending: bool | None = None


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Memory of a device. `reserved_bytes` is what the driver keeps for itself."""

    total_bytes: int
    reserved_bytes: int
    used_bytes: int


class Gpu(msgspec.Struct, frozen=True, array_like=True):
    """One GPU as its driver describes it. `links` are the PCI addresses of its NVLink peers,
    `fabric` says how far it has joined one; `other_nodes` are further device nodes that reach it
    (DRM)."""

    uuid: str
    pci: str
    minor: int
    name: str
    driver: str
    memory: Usage
    node: int = -1
    mig_enabled: bool = False
    mig_pending: bool = False
    slices: int = 0
    instances: tuple[Instance, ...] = ()
    links: tuple[str, ...] = ()
    fabric: str = ""
    compute_mode: int | None = None
    persistent: bool | None = None
    condition: Condition = Condition()
    processes: int = 0
    other_nodes: tuple[tuple[int, int], ...] = ()
    unanswered: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = ()

    @property
    def branch(self) -> str:
        """The driver's release branch: "570" of "570.86.15"."""
        return self.driver.partition(".")[0]


class Target(msgspec.Struct, frozen=True, array_like=True):
    """What a lease is of: a GPU, or one MIG device of it, or (with `place`) a MIG device that is
    made for the lease and is there only as long."""

    uuid: str
    pci: str
    minor: int
    instance: Instance | None = None
    other_nodes: tuple[tuple[int, int], ...] = ()
    place: Place | None = None

    @property
    def visible(self) -> str:
        """The UUID that CUDA is to see."""
        return self.instance.uuid if self.instance is not None else self.uuid

    @property
    def name(self) -> str:
        """What it is called here, whether or not it is made."""
        return self.visible if self.place is None else f"{self.uuid}/{self.place.name}"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a GPU."""
        return self.instance is None and self.place is None


def target_of(gpu: Gpu, instance: Instance | None = None) -> Target:
    """The GPU, or a MIG device of it, as what a lease is of."""
    return Target(gpu.uuid, gpu.pci, gpu.minor, instance, gpu.other_nodes)
