# SPDX-License-Identifier: Apache-2.0
"""What an operator may say about the hardware, with every default spelled out.

Rule: a value; units last, integers only. Nothing here is guessed again elsewhere: what is not
configured is discovered, and what is configured wins over what was discovered.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import enum

import msgspec

from leased.hardware.block.config import BlockConfig
from leased.hardware.dax.config import DaxConfig
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.rdma.config import RdmaConfig
from leased.terms.resource import TierKind


class EscapeePolicy(enum.StrEnum):
    """What becomes of a process outside the lease that still holds its memory after the cut."""

    KILL = "kill"
    FENCE = "fence"


class HardwareConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware]` table.

    `cgroup_root` is the delegated cgroup, relative to the cgroup2 mount (with systemd
    "leased.slice/leased-cgroup.service"). `normal_share_pm` is the share of each node's memory,
    after its hugepages, that is leased as normal pages. `tiers` overrides the classification
    (NUMA node, tier). `cpu_cores` is "none", "auto" (all but the first core and its siblings) or a
    list such as "2-7,10". `lease_pids_max` bounds fork bombs where the pids controller is there.
    `reaper_path` names the reaper's binary, if it is not called leased-reaper: its process is never
    taken for an escapee. `leaf_devices` are device nodes that every lease may open besides its own
    and the harmless ones (/dev/null and its like). One table for each further kind follows.
    """

    cgroup_root: str = "leased"
    normal_share_pm: int = 500
    hugepages: bool = True
    tiers: tuple[tuple[int, TierKind], ...] = ()
    cpu_cores: str = "auto"
    lease_pids_max: int = 4096
    escapees: EscapeePolicy = EscapeePolicy.KILL
    reaper_path: str = ""
    leaf_devices: tuple[str, ...] = ()
    gpu: GpuConfig = GpuConfig()
    block: BlockConfig = BlockConfig()
    rdma: RdmaConfig = RdmaConfig()
    dax: DaxConfig = DaxConfig()

    call_budget_ns: int = 5_000_000_000
    """A worker answers an empty call in microseconds; 5 s mean that it hangs in the kernel."""

    touch_bytes_per_s: int = 128 << 20
    """Slowest page touching, overwriting and reading back that still counts as progress."""

    kill_budget_ns: int = 2_000_000_000
    """An escapee that outlives SIGKILL by this long hangs in the kernel: its memory is fenced."""

    settle_budget_ns: int = 2_000_000_000
    """How long the kernel may take to give back pages of a ring, a pipe or a process that ends."""

    bulk_bytes: int = 16 << 20
    """More memory than this (about 5 ms of touching) goes to a worker of its own."""

    bulk_workers: int = 4
