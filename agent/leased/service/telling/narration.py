# SPDX-License-Identifier: Apache-2.0
"""Narration: an event as a line of the system journal: one sentence for people, fields for
everything else.

Rule: every kind of event has a MESSAGE_ID that never changes and an entry in the catalog
(`systemd/leased.catalog`); a test walks both. Fields are ASCII text, ids and hashes in hex. Nothing
here is sealed and nothing is read back: the chain is the record, this is a copy.

Does not send anything (`journald`) and holds no state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from leased.terms import event
from leased.terms.lease import Level, OverageCause, RevocationReason
from leased.terms.moment import NS_PER_MS
from leased.terms.quantity import print_duration
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment
from leased.terms.teardown import TeardownStep, tell_failed

CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
"""Priorities of syslog(3)."""

Fields = dict[str, str | bytes]

MESSAGE_ID: Final[dict[type[event.Event], str]] = {
    event.NodeStarted: "88ad9088751f4252b5aa902fddbf50ce",
    event.NodeStopped: "d8412e9dde2f496391d1c0b56fd25263",
    event.InventoryChanged: "1739d85117fc4f90b1135d6de8af7052",
    event.PolicyChanged: "25b7f092cbc640e69215b0e06f7c906d",
    event.HealthChanged: "b29e69ed00f04fc18685c239f99d8a17",
    event.ClockStepped: "1049d0a4e8364338903183296879c71f",
    event.KeyRotated: "58525e19b14b4a34b979765180595b90",
    event.HeadCountersigned: "536f200e583b418e9e7dba04ae9370eb",
    event.CordonChanged: "3dece7fcd1204139bbba21ab143d0d0b",
    event.ResourceFenced: "701943d1f9044c9eb71a8d2a3bc4d2ad",
    event.StrayEnded: "1dae3cc5778541dcaf12638a8b6b16dc",
    event.Refused: "5a619775b9874cceb2e8d4543ab66497",
    event.Allocated: "d4799dcc111a45e68a55ff9a700d74a4",
    event.Activated: "3d092411931844d1b092947223f78a51",
    event.Renewed: "7cd652c3dfd0418891f9083fad0faf3a",
    event.Released: "eaaaf81cb2484724838185a0a949648b",
    event.Expired: "ec6b25a6ca7c4332a46bce00c5816974",
    event.Revoked: "a76d5a5fc83a4af785d5955509e9ba41",
    event.DrainNotified: "f24f8291dd664f5e9c8362766344a298",
    event.TeardownBegun: "00f1826e1b8a4e0a87ebe4527f2bffd4",
    event.AccessCut: "84214a587ebe4f9dba0e61740e9b7b97",
    event.Scrubbed: "11cba45058b14fcdbb86d4838f1dd5b2",
    event.Reclaimed: "9e0fa82834d04795a5f413e88490b4a7",
    event.Fenced: "99e3ce16f0cc4251bcd540c32dc2631c",
    event.Unfenced: "19f2506b812b4231a22b0c067b33a89e",
    event.Preempted: "82a4f7daf28c404fb6645f3d7c1b50d1",
    event.PolicyTurned: "c0d1b0f7f1a548b3ab0b2f6a3f0a7f11",
    event.OverageBegan: "5f0f7d5b5b3c4c59a7a4f7d31c5f2b0e",
    event.OverageEnded: "9a4cf7b81c0d4d62a0b7c4f1d83e6a55",
    event.PeriodBegan: "e27a1b7c6b1f4b0f9d9f0a5c3b7e8d21",
    event.Metered: "0b8f3c1de57a4b66a7c8d2b90f41e6c7",
    event.Admitted: "7d5e2a90c3f84e1bb6a1d07f5c92e384",
    event.Adopted: "1d771fbfd1174c6a8f11c533971643d4",
    event.Recovered: "7231cc90576d46dd8ae9876fc994fb67",
    event.Voided: "9010cad0dd1d43e6bd2bea6a7e06c32d",
    event.EpochSealed: "6d1f0b5c9c0a4d0f8f5d2a7b93c1e64a",
    event.SegmentEnd: "3af1ddef5ae14cbf8a39bdf651116414",
    event.CheckpointSigned: "83935c1202ce47d5bc187d325a8eb856",
    event.Pruned: "5b0c2f6d8e9147a3b1d4c07e62f8a915",
    event.HeadCosigned: "c81e4a7f20d34b5f9e6a1378d05bc246",
    event.VerdictReached: "2e97d1c6a4f84083b75e09c3d8a1f62b",
    event.VerdictResolved: "f4a05b38c7d94e62816fa92be3d07c15",
}
DROPPED_MESSAGE_ID: Final = "e47405c2363c4a2e925f93521acd18b5"
REPORT_MESSAGE_ID: Final = "4ae8880600e14119b05f17774bae1460"

PRIORITY: Final[dict[type[event.Event], int]] = {
    event.Fenced: ERROR,
    event.HealthChanged: WARNING,
    event.Refused: WARNING,
    event.Preempted: WARNING,
    event.Revoked: WARNING,
    event.ClockStepped: WARNING,
    event.Recovered: WARNING,
    event.ResourceFenced: WARNING,
    event.StrayEnded: WARNING,
    event.OverageBegan: WARNING,
    event.Metered: DEBUG,
    event.TeardownBegun: DEBUG,
    event.Renewed: DEBUG,
    event.EpochSealed: DEBUG,
    event.SegmentEnd: DEBUG,
    event.CheckpointSigned: DEBUG,
}
"""What is not listed is INFO for events of a lease and NOTICE for those of the node."""


def narrate(told: event.Event, sequence: int, record_hash: bytes) -> Fields:
    """The journal entry of one sealed event."""
    kind = type(told)
    about_lease = isinstance(told, event.LeaseEvent)
    fields: Fields = {
        "MESSAGE": _sentence(told),
        "MESSAGE_ID": MESSAGE_ID[kind],
        "PRIORITY": str(PRIORITY.get(kind, INFO if about_lease else NOTICE)),
        "LEASE_EVENT": kind.__name__,
        "LEASE_SEQ": str(sequence),
        "LEASE_HASH": record_hash.hex(),
    }
    if isinstance(told, event.LeaseEvent):
        fields |= {
            "LEASE_ID": told.lease_id.hex(),
            "LEASE_TENANT": told.subject.tenant,
            "LEASE_UID": str(told.subject.uid),
            "LEASE_GENERATION": str(told.generation),
            "LEASE_RESOURCES": _allotments(told.subject.allotments),
            "LEASE_EFFECTIVE_NS": str(told.effective_ns),
        }
        if told.subject.workload:
            fields["LEASE_WORKLOAD"] = told.subject.workload
    if isinstance(told, event.Refused):
        fields |= {
            "LEASE_TENANT": told.tenant,
            "LEASE_UID": str(told.uid),
            "LEASE_REASON": _name(RefusalReason, told.reason),
        }
    if isinstance(told, event.Revoked | event.DrainNotified):
        fields["LEASE_REASON"] = _name(RevocationReason, told.reason)
    evidence = getattr(told, "evidence", None)
    if evidence:
        fields["LEASE_EVIDENCE"] = evidence.hex()
    return fields


def narrate_drops(dropped: int) -> Fields:
    """The entry that stands for those that were not written."""
    return {
        "MESSAGE": f"{dropped} events were not copied here; `leasectl audit log` has them",
        "MESSAGE_ID": DROPPED_MESSAGE_ID,
        "PRIORITY": str(WARNING),
        "LEASE_DROPPED": str(dropped),
    }


def narrate_report(lease_id: bytes, step: str, report: bytes, evidence: bytes) -> Fields:
    """A teardown step's whole report, whose SHA-256 is sealed: who has this entry can check it
    against the chain.
    """
    return {
        "MESSAGE": f"lease {lease_id.hex()[:8]}: report of {step}",
        "MESSAGE_ID": REPORT_MESSAGE_ID,
        "PRIORITY": str(DEBUG),
        "LEASE_ID": lease_id.hex(),
        "LEASE_STEP": step,
        "LEASE_EVIDENCE": evidence.hex(),
        "LEASE_REPORT": report,
    }


def _sentence(told: event.Event) -> str:
    said = _SENTENCES[type(told)](told)
    return f"lease {told.lease_id.hex()[:8]} {said}" if isinstance(told, event.LeaseEvent) else said


def _allotments(allotments: tuple[Allotment, ...]) -> str:
    return " ".join(f"{allotment.resource_id}={allotment.capacity}" for allotment in allotments)


def _name(members: Any, number: int) -> str:
    return str(members(number).name.lower())


def _lag(ns: int) -> str:
    return f"{ns / NS_PER_MS:.1f} ms"


def _resource(resource_id: str) -> str:
    return resource_id or "the node"


_SENTENCES: Final[Mapping[type[event.Event], Callable[[Any], str]]] = {
    event.NodeStarted: lambda e: (
        f"serving: start {e.epoch} of this chain, "
        f"version {e.version}, {e.durability} on {e.filesystem}"
    ),
    event.NodeStopped: lambda e: f"stopped cleanly; {e.live_leases} leases go on without the agent",
    event.InventoryChanged: lambda e: f"inventory: {len(e.inventory.resources)} resources to lease",
    event.PolicyChanged: lambda e: (
        f"policy {e.policy_hash.hex()[:8]} (generation {e.policy_generation}) is in force"
    ),
    event.HealthChanged: lambda e: f"{e.resource_id} is {e.health} (cause {e.cause})",
    event.ClockStepped: lambda e: (
        f"the wall clock stepped by {_lag(e.delta_ns)}; no deadline moved"
    ),
    event.KeyRotated: lambda e: (
        f"the signing key was replaced; the new one is {e.public_key.hex()[:8]}"
    ),
    event.HeadCountersigned: lambda e: f"a collector countersigned the first {e.size} records",
    event.CordonChanged: lambda e: (
        f"grants on {_resource(e.resource_id)} were "
        f"{'stopped' if e.cordoned else 'resumed'} by uid {e.operator_uid}"
    ),
    event.ResourceFenced: lambda e: (
        f"{e.allotment.capacity} of {e.allotment.resource_id} were "
        f"{'fenced' if e.fenced else 'put back'} by uid {e.operator_uid}"
    ),
    event.Refused: lambda e: (
        f"refused {e.tenant}: {_name(RefusalReason, e.reason)} "
        f"(asked {e.requested}, in use {e.usage}, limit {e.limit})"
    ),
    event.Allocated: lambda e: (
        f"granted to {e.subject.tenant} "
        f"for {print_duration(e.ttl_ns)}: {_allotments(e.subject.allotments)}"
    ),
    event.Activated: lambda e: "is active: prepared, and the reaper holds it",
    event.Renewed: lambda e: f"renewed for {print_duration(e.ttl_ns)}",
    event.Released: lambda e: "was given back by its holder",
    event.Expired: lambda e: "expired",
    event.Revoked: lambda e: f"was revoked: {_name(RevocationReason, e.reason)}",
    event.DrainNotified: lambda e: f"was told to leave: {_name(RevocationReason, e.reason)}",
    event.TeardownBegun: lambda e: "is being torn down",
    event.AccessCut: lambda e: f"access cut{' by the reaper' if e.by_reaper else ''}",
    event.Scrubbed: lambda e: f"scrubbed: {e.scrubbed_bytes} bytes overwritten and read back",
    event.Reclaimed: lambda e: (
        f"reclaimed: cut after {_lag(e.cut_lag_ns)}, proven clean after {_lag(e.proof_lag_ns)}"
    ),
    event.Fenced: lambda e: (
        f"fenced: {_allotments(e.fenced)} not proven clean: "
        + tell_failed(_name(TeardownStep, e.step), e.errno, os.strerror(e.errno))
    ),
    event.Unfenced: lambda e: (
        f"put back by {'the agent' if e.operator_uid < 0 else f'uid {e.operator_uid}'}"
    ),
    event.Preempted: lambda e: (
        f"lost to lease {e.preemptor_lease_id.hex()[:8]} of {e.preemptor_tenant}"
    ),
    event.PolicyTurned: lambda e: f"open windows of the policy: {', '.join(e.windows) or 'none'}",
    event.OverageBegan: lambda e: (
        f"{e.holder} has {e.usage} of {e.rule}, more than {e.limit} "
        f"({_name(OverageCause, e.cause)} limit)"
    ),
    event.OverageEnded: lambda e: f"{e.holder} is within its limit of {e.rule} again",
    event.PeriodBegan: lambda e: f"budgets of the {e.period} begin anew",
    event.Metered: lambda e: f"noted what {e.tenant} has used of its budgets",
    event.Admitted: lambda e: f"was granted at level {_name(Level, e.level)}",
    event.StrayEnded: lambda e: (
        f"cgroup {e.cgroup} belonged to no lease: {e.processes} processes killed"
        + (f"; it is still there: {os.strerror(e.errno)} (errno {e.errno})" if e.errno else "")
    ),
    event.Adopted: lambda e: (
        f"uid {e.operator_uid} brought process {e.pid} under it ({e.processes} in all)"
    ),
    event.Recovered: lambda e: (
        f"recovered: {e.kept_records} records rolled forward, {e.torn_bytes} torn bytes put aside"
    ),
    event.Voided: lambda e: f"the grant in record {e.sequence} never took effect",
    event.EpochSealed: lambda e: f"epoch {e.epoch} is sealed over {e.size} records",
    event.SegmentEnd: lambda e: f"segment {e.segment_no} is full",
    event.CheckpointSigned: lambda e: f"signed the tree of {e.size} records",
    event.Pruned: lambda e: (
        f"{e.segments} segments were removed: the log begins with record {e.min_seq} now"
    ),
    event.HeadCosigned: lambda e: f"cosigned {e.size} records of {e.origin}",
    event.VerdictReached: lambda e: f"found {e.origin} to be {e.verdict} at {e.size} records",
    event.VerdictResolved: lambda e: f"an operator resolved {e.verdict} of log {e.log_id.hex()}",
}
