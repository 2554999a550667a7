# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware]`: for every key which field it sets, and how its text is
read.

Rule: a key that is not here is refused; `configs/leased.toml` has each with its reason.

Does not read files and does not judge what the values mean together (`service.config_file`,
`service.config.check`).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final

from leased.hardware.block.config import CANARIES_MAX, KEY_BITS, MADE_MAX, BlockConfig, Offer
from leased.hardware.block.drives import Erase
from leased.hardware.config import EscapeePolicy
from leased.hardware.dax.config import DaxConfig
from leased.hardware.gpu.config import GpuConfig
from leased.hardware.gpu.facts import Question
from leased.hardware.rdma.config import PEERS_MAX, RdmaConfig, Windows
from leased.terms.lease import Priority
from leased.terms.reading import (
    Keys,
    choice,
    duration,
    flag,
    integer,
    member,
    rows,
    section,
    size,
    table,
    text,
)
from leased.terms.resource import TierKind


def _peers(value: Any) -> int:
    if not 1 <= integer(value) <= PEERS_MAX:
        raise ValueError(f"a number from 1 to {PEERS_MAX}")
    return int(value)


def _mig_place(value: Any) -> str:
    if not re.fullmatch(r"[1-9]g\.\d+gb(\+[a-z.]+)?@\d", text(value)):
        raise ValueError('a profile and its first memory slice, such as "1g.10gb@4"')
    return str(value)


def _question(value: Any) -> Question:
    return Question(choice(tuple(one.value for one in Question), value))


def _erase(value: Any) -> Erase:
    return Erase(choice(tuple(Erase), value))


def _key_bits(value: Any) -> int:
    if value not in KEY_BITS or isinstance(value, bool):
        raise ValueError(f"one of {', '.join(map(str, KEY_BITS))}")
    return int(value)


def _canaries(value: Any) -> int:
    if not 2 <= integer(value) <= CANARIES_MAX:
        raise ValueError(f"a number from 2 to {CANARIES_MAX}")
    return int(value)


def _attached(value: Any) -> tuple[str, int]:
    nqn, _, nsid = text(value).rpartition("/")
    if not nqn or not re.fullmatch(r"[1-9]\d{0,9}", nsid, re.ASCII):
        raise ValueError('"<subsystem NQN>/<nsid>"')
    return nqn, int(nsid)


def _made(value: Any) -> tuple[str, int, int]:
    nqn, _, wanted = text(value).rpartition("/")
    found = re.fullmatch(r"([1-9]\d{0,3})x(.+)", wanted, re.ASCII)
    if not nqn or found is None or int(found[1]) > MADE_MAX:
        raise ValueError(f'"<subsystem NQN>/<count>x<size>", with a count of 1 to {MADE_MAX}')
    size_bytes = size(found[2])
    if not 0 < size_bytes < 1 << 63:
        raise ValueError("a size above 0")
    return nqn, int(found[1]), size_bytes


def _tiers(value: Any) -> tuple[tuple[int, TierKind], ...]:
    """{ node1 = "cxl" }: the operator's word goes before the firmware's."""
    found = []
    for name, tier in table(value).items():
        if not (name.startswith("node") and name[4:].isdecimal()):
            raise ValueError(f'"{name}" is not a NUMA node, such as "node1"')
        found.append((int(name[4:]), member(TierKind, tier)))
    return tuple(found)


_GPU_KEYS: Final[Keys] = {
    "offer": ("offer", flag),
    "root": ("root", text),
    "accept_missing": ("accept_missing", lambda value: rows(value, _question)),
    "scrub_later": ("scrub_later", lambda value: rows(value, partial(member, Priority))),
    "guests": ("guests", lambda value: rows(value, text)),
    "close_free": ("close_free", flag),
    "listen": ("listen", flag),
    "mig_layout": ("mig_layout", lambda value: rows(value, _mig_place)),
    "mig_budget": ("mig_budget_ns", duration),
    "mps_dir": ("mps_dir", text),
    "attach_budget": ("attach_budget_ns", duration),
    "release_budget": ("release_budget_ns", duration),
    "settle_apart": ("settle_apart_ns", duration),
    "scan_budget": ("scan_budget_ns", duration),
    "used_slack": ("used_slack_bytes", size),
    "overhead": ("overhead_bytes", size),
    "scrub_rate": ("scrub_bytes_per_s", size),
}
_BLOCK_KEYS: Final[Keys] = {
    "offer": ("offer", lambda value: Offer(choice(tuple(Offer), value))),
    "namespaces": ("namespaces", lambda value: rows(value, text)),
    "attach": ("attach", lambda value: rows(value, _attached)),
    "make": ("make", lambda value: rows(value, _made)),
    "raw": ("raw", flag),
    "cipher": ("cipher", text),
    "key_bits": ("key_bits", _key_bits),
    "crypt_erase": ("crypt_erase", lambda value: rows(value, _erase)),
    "raw_erase": ("raw_erase", lambda value: rows(value, _erase)),
    "detach_stuck": ("detach_stuck", flag),
    "canaries": ("canaries", _canaries),
    "erase_budget": ("erase_budget_ns", duration),
    "zero_rate": ("zero_bytes_per_s", size),
    "settle_budget": ("settle_budget_ns", duration),
}
_RDMA_KEYS: Final[Keys] = {
    "offer": ("offer", flag),
    "devices": ("devices", lambda value: rows(value, text)),
    "windows": ("windows", lambda value: Windows(choice(tuple(Windows), value))),
    "program": ("program", text),
    "peers_max": ("peers_max", _peers),
    "gid_index": ("gid_index", lambda value: -1 if value == "auto" else integer(value)),
    "prober": ("prober", text),
    "withdraw_budget": ("withdraw_budget_ns", duration),
}
_DAX_KEYS: Final[Keys] = {
    "offer": ("offer", flag),
    "persistent": ("persistent", flag),
    "rebind_budget": ("rebind_budget_ns", duration),
    "scan_budget": ("scan_budget_ns", duration),
}
KEYS: Final[Keys] = {
    "cgroup_root": ("cgroup_root", text),
    "normal_share_pm": ("normal_share_pm", integer),
    "hugepages": ("hugepages", flag),
    "tiers": ("tiers", _tiers),
    "cpu_cores": ("cpu_cores", text),
    "lease_pids_max": ("lease_pids_max", integer),
    "escapees": ("escapees", lambda value: EscapeePolicy(choice(("kill", "fence"), value))),
    "reaper_path": ("reaper_path", text),
    "call_budget": ("call_budget_ns", duration),
    "touch_rate": ("touch_bytes_per_s", size),
    "kill_budget": ("kill_budget_ns", duration),
    "settle_budget": ("settle_budget_ns", duration),
    "bulk_size": ("bulk_bytes", size),
    "bulk_workers": ("bulk_workers", integer),
    "leaf_devices": ("leaf_devices", lambda value: rows(value, text)),
    "gpu": ("gpu", section(GpuConfig, _GPU_KEYS, "hardware.gpu.")),
    "block": ("block", section(BlockConfig, _BLOCK_KEYS, "hardware.block.")),
    "rdma": ("rdma", section(RdmaConfig, _RDMA_KEYS, "hardware.rdma.")),
    "dax": ("dax", section(DaxConfig, _DAX_KEYS, "hardware.dax.")),
}
