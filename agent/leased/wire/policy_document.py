# SPDX-License-Identifier: Apache-2.0
"""The policy document: JSON text to a checked `Policy`.

Rule: the field names are those of `terms.policy.Policy`, tenants and capacities are objects by
name; what is absent is the built-in default; what is unknown is refused, because a limit that is
not understood must not be dropped.

Does not put it in force.
"""

from __future__ import annotations

import hashlib

import msgspec

from leased.terms.errors import InvalidParameter
from leased.terms.identity import parse_tenant
from leased.terms.policy import CapacityLimit, Policy, TenantLimits, check
from leased.terms.resource import ResourceKind
from leased.wire.objects import Count, Kind, Strict

_KIND = {kind.name.lower(): kind for kind in ResourceKind}
_DEFAULT = Policy()


class LimitsDocument(Strict, frozen=True):
    """What a tenant may have; absent: no limit of its own."""

    leases_max: Count | None = None
    waiting_max: Count | None = None
    capacities: dict[Kind, Count] | None = None


class PolicyDocument(Strict, frozen=True):
    """Field for field `Policy`; absent: its default."""

    generation: Count = _DEFAULT.generation
    ttl_ns_default: Count = _DEFAULT.ttl_ns_default
    ttl_ns_min: Count = _DEFAULT.ttl_ns_min
    ttl_ns_max_scavenger: Count = _DEFAULT.ttl_ns_max_scavenger
    ttl_ns_max_standard: Count = _DEFAULT.ttl_ns_max_standard
    ttl_ns_max_guaranteed: Count = _DEFAULT.ttl_ns_max_guaranteed
    grace_ns_release: Count = _DEFAULT.grace_ns_release
    grace_ns_preempt: Count = _DEFAULT.grace_ns_preempt
    grace_ns_max: Count = _DEFAULT.grace_ns_max
    leases_max: Count = _DEFAULT.leases_max
    waiting_max: Count = _DEFAULT.waiting_max
    wait_ns_max: Count = _DEFAULT.wait_ns_max
    asks_max: Count = _DEFAULT.asks_max
    closed_leases_kept: Count = _DEFAULT.closed_leases_kept
    tenant_default: LimitsDocument = LimitsDocument()
    tenants: dict[str, LimitsDocument] = {}


_DECODER = msgspec.json.Decoder(PolicyDocument)
_PLAIN = [
    name for name in PolicyDocument.__struct_fields__ if name not in ("tenant_default", "tenants")
]


def decode_policy(document: str) -> Policy:
    """Return the policy that `document` says. Raises InvalidParameter (not such a document) or
    ConfigError (a contradiction).
    """
    try:
        read = _DECODER.decode(document)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidParameter("document", str(error)[:256]) from error
    return check(
        Policy(
            **{name: getattr(read, name) for name in _PLAIN},
            tenant_default=_limits(read.tenant_default),
            tenants=tuple(
                (parse_tenant(name, "document.tenants"), _limits(limits))
                for name, limits in read.tenants.items()
            ),
        )
    )


def policy_hash(document: str) -> bytes:
    """SHA-256 of the document exactly as it came."""
    return hashlib.sha256(document.encode("utf-8")).digest()


def _limits(limits: LimitsDocument) -> TenantLimits:
    capacities = limits.capacities or {}
    return TenantLimits(
        limits.leases_max,
        limits.waiting_max,
        tuple(CapacityLimit(_KIND[kind], capacity) for kind, capacity in capacities.items()),
    )
