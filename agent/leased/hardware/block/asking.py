# SPDX-License-Identifier: Apache-2.0
"""Asking: what a worker is asked about one namespace of a lease.

Rule: everything follows from the lease and the configuration, so that whoever asks after a restart
asks the same.

Does not ask.
"""

from __future__ import annotations

from collections.abc import Iterable

from leased.hardware.block import calls
from leased.hardware.block.config import BlockConfig, Offer
from leased.hardware.block.drives import Erase
from leased.hardware.block.names import (
    identity_in,
    is_raw,
    mapping_name,
    mapping_uuid,
    number_of,
)
from leased.terms.lease import Lease, LeaseState
from leased.terms.resource import Allotment, ResourceKind


def mappings_of(leases: Iterable[Lease]) -> dict[str, str]:
    """By which mapping each namespace of theirs is had, where none has begun to end."""
    return {
        identity_in(one.resource_id): mapping_uuid(lease.lease_id, number_of(lease, one))
        for lease in leases
        if lease.state in (LeaseState.ACTIVE, LeaseState.DRAINING)
        for one in lease.subject.allotments
        if one.kind is ResourceKind.BLOCK
    }


def ask_ready(config: BlockConfig, lease: Lease, allotment: Allotment) -> calls.Ready:
    """Make the mapping."""
    number, identity = number_of(lease, allotment), identity_in(allotment.resource_id)
    return calls.Ready(
        uuid=mapping_uuid(lease.lease_id, number),
        name=mapping_name(lease.lease_id, number),
        identity=identity,
        size_bytes=allotment.capacity,
        raw=is_raw(allotment),
        cipher=config.cipher,
        key_bits=config.key_bits,
        uid=lease.subject.uid,
        seed=_seed(lease, identity),
        canaries=config.canaries,
        blank=config.offer is Offer.UNUSED,
    )


def ask_clean(config: BlockConfig, lease: Lease, allotment: Allotment) -> calls.Clean:
    """End the mapping and erase the namespace."""
    number, identity = number_of(lease, allotment), identity_in(allotment.resource_id)
    raw = is_raw(allotment)
    return calls.Clean(
        uuid=mapping_uuid(lease.lease_id, number),
        name=mapping_name(lease.lease_id, number),
        identity=identity,
        size_bytes=allotment.capacity,
        raw=raw,
        ways=config.raw_erase if raw else config.crypt_erase,
        detach_stuck=config.detach_stuck,
        seed=_seed(lease, identity),
        canaries=config.canaries,
        settle_ns=config.settle_budget_ns,
        erase_ns=config.erase_budget_ns,
    )


def ask_prove(
    config: BlockConfig,
    lease: Lease,
    allotment: Allotment,
    outcome: calls.Cleaned | None,
    *,
    untouched: bool,
) -> calls.Prove:
    """Look again. `outcome` is what the erasing came to, where this run of the agent did it."""
    identity = identity_in(allotment.resource_id)
    return calls.Prove(
        uuid=mapping_uuid(lease.lease_id, number_of(lease, allotment)),
        identity=identity,
        size_bytes=allotment.capacity,
        zeroed=outcome is None or outcome.way in ("", Erase.ZERO),
        untouched=untouched,
        seed=_seed(lease, identity),
        canaries=config.canaries,
        settle_ns=config.settle_budget_ns,
    )


def _seed(lease: Lease, identity: str) -> bytes:
    """What the canaries follow from."""
    return lease.lease_id + identity.encode()
