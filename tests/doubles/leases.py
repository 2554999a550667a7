# SPDX-License-Identifier: Apache-2.0
"""Leases for tests of the hardware: any size, page size, binding and reason, with a fresh id."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from leased.terms.identity import BootId, CommandId, LeaseId, TenantId
from leased.terms.lease import (
    Lease,
    LeaseState,
    Priority,
    RevocationReason,
    Subject,
    Trust,
)
from leased.terms.resource import Allotment, ResourceKind, TierKind

NS_PER_S = 1_000_000_000


def memory(capacity: int = 4096, page_bytes: int = 4096, node: int = 0) -> Allotment:
    """Memory of `node`."""
    resource_id = f"mem:node{node}:{page_bytes}"
    return Allotment(resource_id, ResourceKind.MEM, TierKind.DRAM, capacity)


def core(number: int, milli: int = 1000) -> Allotment:
    """A share of one core."""
    return Allotment(f"cpu:{number}", ResourceKind.CPU, None, milli)


def lease(
    *allotments: Allotment,
    pid: int = 1,
    reason: RevocationReason | None = None,
    activated: bool = True,
) -> Lease:
    """A lease of `allotments`; `pid` 0 gives it a leaf."""
    lease_id = LeaseId(os.urandom(16))
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    boot = uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    subject = Subject(
        tenant=TenantId("acme"),
        uid=65534,
        gid=65534,
        cgroup=lease_id.hex(),
        workload=None,
        tag=None,
        priority=Priority.STANDARD,
        trust=Trust.CONFINED,
        allotments=allotments or (memory(),),
        rate_hash=bytes(32),
    )
    return Lease(
        lease_id=lease_id,
        command_id=CommandId(lease_id),
        subject=subject,
        state=LeaseState.GRANTED,
        boot_id=BootId(boot.bytes),
        granted_ns=now_ns,
        deadline_ns=now_ns + 60 * NS_PER_S,
        ttl_ns=60 * NS_PER_S,
        generation=1,
        pid=pid,
        grace_ns=0,
        reason=reason,
        activated=activated,
    )
