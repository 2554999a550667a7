# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware.gpu]`, with every default spelled out.

Rule: a value; units last, integers only.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import msgspec

from leased.hardware.gpu.facts import Question
from leased.terms.lease import Priority


class GpuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware.gpu]` table. `offer` False: nothing of this kind is leased, or looked at.

    `root` is where the driver's files and nodes are; anywhere but "/" they are a stand-in's, and
    the evidence says "emulated". `accept_missing` are questions that a GPU may leave unanswered
    and be offered all the same. `scrub_later` are priorities whose leases leave the overwriting
    to the next grant to another tenant. `guests` are names of root's processes (of another user's,
    with "@" and the user) that may have any GPU open. `mig_layout` are places ("1g.10gb@4") at
    which instances are made for each lease, on every GPU with MIG on; empty: what operators made
    is leased. `close_free`: no context can be made on a GPU that nobody leases. `listen`: hear of
    the driver's errors as they happen, which keeps the GPUs attached.
    """

    offer: bool = True
    root: str = "/"
    accept_missing: tuple[Question, ...] = (Question.RECOVERY, Question.REPAIRS)
    scrub_later: tuple[Priority, ...] = ()
    guests: tuple[str, ...] = (
        "nvidia-persiste",
        "nvidia-persiste@nvidia-persistenced",
        "nvidia-persiste@nvpd",
        "nv-fabricmanage",
        "nv-hostengine",
        "dcgm-exporter",
        "nvidia-smi",
    )
    close_free: bool = True
    listen: bool = True
    mig_layout: tuple[str, ...] = ()
    mps_dir: str = "/run/leased/mps"

    release_budget_ns: int = 10_000_000_000
    """How long the driver may take to give back the memory of a process that was killed."""

    settle_apart_ns: int = 500_000_000
    """Two looks so far apart that agree are believed."""

    scan_budget_ns: int = 2_000_000_000
    """One pass over all processes' descriptors."""

    used_slack_bytes: int = 16 << 20
    """How much more memory than before the lease may be in use and count as the driver's own."""

    mig_budget_ns: int = 10_000_000_000
    """How long the removal of an instance that is still in use is tried again."""

    overhead_bytes: int = 1 << 30
    """What a context and its page tables take of the memory that a scrub should reach. A GPU of
    which more is in use by nobody who is seen is not granted."""

    scrub_bytes_per_s: int = 8 << 30
    """Slowest overwriting, with the reading back, that still counts as progress."""
