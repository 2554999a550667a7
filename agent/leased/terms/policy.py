# SPDX-License-Identifier: Apache-2.0
"""Policy: every limit of admission, with its unit in its name.

Rule: a Policy value is valid by construction (`check`): nothing else in the program asks whether a
floor lies above a ceiling. Defaults are written with their reasons in `configs/leased.toml`; a test
keeps the two equal.

Does not read files and does not judge requests (`lessor.admission`, `lessor.quota`).
"""

from __future__ import annotations

import msgspec

from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.resource import ResourceKind


class CapacityLimit(msgspec.Struct, frozen=True):
    """At most `capacity` (raw unit) of `kind` at once."""

    kind: ResourceKind
    capacity: int


class TenantLimits(msgspec.Struct, frozen=True):
    """Hard limits of one tenant; None is "no limit of its own"."""

    leases_max: int | None = None
    waiting_max: int | None = None
    capacities: tuple[CapacityLimit, ...] = ()


class Policy(msgspec.Struct, frozen=True):
    """What may be granted, to whom, for how long. `generation` counts accepted documents."""

    generation: int = 0
    ttl_ns_default: int = 60 * NS_PER_S
    ttl_ns_min: int = 1 * NS_PER_S
    ttl_ns_max_scavenger: int = 900 * NS_PER_S
    ttl_ns_max_standard: int = 14_400 * NS_PER_S
    ttl_ns_max_guaranteed: int = 86_400 * NS_PER_S
    grace_ns_release: int = 10 * NS_PER_S
    grace_ns_preempt: int = 30 * NS_PER_S
    grace_ns_max: int = 300 * NS_PER_S
    leases_max: int = 16_384
    waiting_max: int = 1_024
    wait_ns_max: int = 86_400 * NS_PER_S
    asks_max: int = 16
    closed_leases_kept: int = 4_096
    tenant_default: TenantLimits = TenantLimits()
    tenants: tuple[tuple[TenantId, TenantLimits], ...] = ()

    def ttl_ns_max(self, priority: Priority) -> int:
        """The TTL ceiling of a priority, in ns."""
        if priority is Priority.GUARANTEED:
            return self.ttl_ns_max_guaranteed
        return (
            self.ttl_ns_max_standard if priority is Priority.STANDARD else self.ttl_ns_max_scavenger
        )


def check(policy: Policy) -> Policy:
    """Return `policy` if it can be meant. Raises ConfigError naming the key."""
    if policy.ttl_ns_min < 100 * NS_PER_MS:
        raise ConfigError("policy.ttl_min: below 100ms a lease could not be torn down in time")
    for priority in Priority:
        ceiling = policy.ttl_ns_max(priority)
        if not policy.ttl_ns_min <= ceiling:
            raise ConfigError(f"policy.ttl_max_{priority.name.lower()}: below policy.ttl_min")
    if not policy.ttl_ns_min <= policy.ttl_ns_default:
        raise ConfigError("policy.ttl_default: below policy.ttl_min")
    for name in ("leases_max", "waiting_max", "asks_max", "closed_leases_kept"):
        if getattr(policy, name) < 1:
            raise ConfigError(f"policy.{name}: must be at least 1")
    for name in ("grace_ns_release", "grace_ns_preempt", "wait_ns_max"):
        if getattr(policy, name) < 0:
            raise ConfigError(f"policy.{name}: must not be negative")
    if policy.grace_ns_preempt > policy.grace_ns_max:
        raise ConfigError("policy.grace_preempt: above policy.grace_max")
    seen: set[TenantId] = set()
    for tenant, limits in policy.tenants:
        if tenant in seen:
            raise ConfigError(f"policy.tenants.{tenant}: listed twice")
        seen.add(tenant)
        for limit in limits.capacities:
            if limit.capacity < 0:
                raise ConfigError(
                    f"policy.tenants.{tenant}.{limit.kind.name.lower()}: must not be negative"
                )
    return policy
