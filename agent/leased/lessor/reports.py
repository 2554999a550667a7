# SPDX-License-Identifier: Apache-2.0
"""Reports: what the agent's own tasks say about a lease, turned into triggers of its lifecycle.

Rule: a report about a lease that is past the step it speaks of changes nothing, so every report may
come twice. What could not be done, or not be proven, fences: all of the lease when a step failed,
exactly what `unproven` names when the proof did.

Does not carry out a teardown (`service.reclaimer`) and does not decide what follows
(`lessor.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from leased.lessor.draft import Draft, Facts
from leased.lessor.ledger import Meter, rows_of
from leased.lessor.lifecycle import Trigger
from leased.terms import command as commands
from leased.terms import event as events
from leased.terms.command import Command
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, RevocationReason
from leased.terms.reply import Changed, Done, Missing, Refusal, RefusalReason
from leased.terms.resource import Allotment
from leased.terms.teardown import StepReport, TeardownStep

_DONE = Done()


def activate(draft: Draft, command: commands.Activate) -> None:
    """The hardware is ready. Too late, or for a lease that was ended meanwhile, it is refused and
    nothing is granted.
    """
    lease = draft.table.find(command.lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(command.lease_id))
        return
    draft.end(lease, Trigger.ACTIVATE, Facts(draft.now_ns, evidence=command.evidence))
    after = draft.table.find(command.lease_id)
    assert after is not None
    if after.ended is None:
        draft.answer(command.command_id, Changed(after))
    else:
        draft.answer(
            command.command_id,
            Refusal(RefusalReason.DEADLINE_PASSED, "lease", after.deadline_ns, draft.now_ns),
        )


def grant_failed(draft: Draft, command: commands.GrantFailed) -> None:
    """Preparing or arming failed."""
    lease = draft.table.find(command.lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(command.lease_id))
        return
    draft.answer(command.command_id, command.refusal)
    draft.end(
        lease, Trigger.GRANT_FAILED, Facts(draft.now_ns, reason=RevocationReason.GRANT_FAILED)
    )


def note_adoption(draft: Draft, command: commands.NoteAdoption) -> None:
    """Put on record who brought whom under the lease."""
    lease = draft.table.find(command.lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(command.lease_id))
        return
    draft.answer(command.command_id, Changed(lease))
    draft.emit(
        events.Adopted(
            *draft.begins(lease),
            draft.now_ns,
            command.operator_uid,
            command.pid,
            command.processes,
        )
    )


def note_stray(draft: Draft, command: commands.NoteStray) -> None:
    """Put on record what was ended without a lease."""
    draft.answer(command.command_id, _DONE)
    draft.emit(
        events.StrayEnded(draft.event_id(), command.cgroup, command.processes, command.errno)
    )


def note_pruned(draft: Draft, command: commands.NotePruned) -> None:
    """Put on record that old segments go. What only the latest of its kind says may lie in them, so
    it is said anew, as a start would: of the same boot and the same start."""
    table, new_id = draft.table, draft.event_id
    names = (command.version, command.filesystem, command.durability)
    policy = (table.policy_hash, table.policy_generation, table.rate_hash)
    draft.answer(command.command_id, _DONE)
    draft.emit(
        events.NodeStarted(new_id(), draft.moment.boot_id, command.node_id, table.epoch, *names)
    )
    draft.emit(events.InventoryChanged(new_id(), table.pools.inventory))
    draft.emit(events.PolicyChanged(new_id(), *policy, -1))
    ledger = table.ledger
    meters = [(tenant, rows_of(ledger.meter(tenant) or Meter())) for tenant in ledger.tenants()]
    for period, began_wall_ns in tuple(ledger.began_wall_ns.items()):
        if began_wall_ns:
            began = (period.value, began_wall_ns, ledger.began_ns[period])
            draft.emit(events.PeriodBegan(new_id(), *began))
    for tenant, rows in meters:  # as they were before their periods began anew
        draft.emit(events.Metered(new_id(), tenant, rows))
    fields = (command.min_seq, command.head, command.segments, command.acked_size)
    draft.emit(events.Pruned(new_id(), *fields, command.key_changes))


def note_countersigned(draft: Draft, command: commands.NoteCountersigned) -> None:
    """Put on record how far a collector has the log."""
    draft.answer(command.command_id, _DONE)
    draft.emit(
        events.HeadCountersigned(
            draft.event_id(),
            command.size,
            command.root,
            command.key_id,
            command.time_s,
            command.signature,
        )
    )


def note_rotated(draft: Draft, command: commands.NoteRotated) -> None:
    """Put on record which key signs from here on."""
    draft.answer(command.command_id, _DONE)
    draft.emit(
        events.KeyRotated(
            draft.event_id(), command.public_key, command.signature_old, command.signature_new
        )
    )


def holder_gone(draft: Draft, command: commands.HolderGone) -> None:
    """Nobody is there to use it any more."""
    lease = draft.table.find(command.lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(command.lease_id))
        return
    draft.answer(command.command_id, _DONE)
    if command.left:  # everybody went home: that is a release, whoever forgot to say so
        draft.end(lease, Trigger.RELEASE, Facts(draft.now_ns))
        return
    draft.end(lease, Trigger.HOLDER_GONE, Facts(draft.now_ns, reason=RevocationReason.HOLDER_LOST))


def cut_ended(draft: Draft, command: commands.CutEnded) -> None:
    """Access was cut, when the report says, or could not be."""
    report = command.report
    if report.clean:
        facts = Facts(report.cut_ns, evidence=command.evidence, by_reaper=report.by_reaper)
        _step(draft, command, report.lease_id, Trigger.CUT_CLEAN, facts)
    else:
        facts = _failure(draft, report.steps, TeardownStep.KILL, command.evidence)
        _step(draft, command, report.lease_id, Trigger.CUT_FAILED, facts)


def scrub_ended(draft: Draft, command: commands.ScrubEnded) -> None:
    """The hardware was overwritten and read back, or not."""
    report = command.report
    if report.clean:
        facts = Facts(
            report.ended_ns, evidence=command.evidence, scrubbed_bytes=report.scrubbed_bytes
        )
        _step(draft, command, report.lease_id, Trigger.SCRUB_CLEAN, facts)
    else:
        facts = _failure(draft, report.steps, TeardownStep.READ_BACK, command.evidence)
        _step(draft, command, report.lease_id, Trigger.SCRUB_FAILED, facts)


def proof_ended(draft: Draft, command: commands.ProofEnded) -> None:
    """Another source has looked: all of it is free again, or what it could not vouch for is
    fenced.
    """
    report = command.report
    if not report.unproven:
        facts = Facts(
            draft.now_ns,
            evidence=command.evidence,
            proof_ns=report.ended_ns,
            utilization=command.utilization,
        )
        _step(draft, command, report.lease_id, Trigger.PROOF_CLEAN, facts)
        return
    facts = _failure(draft, report.steps, TeardownStep.COUNTERS, command.evidence)
    lease = draft.table.leases.get(report.lease_id)
    if lease is not None:
        facts.fenced = _held_of(lease, report.unproven)
    _step(draft, command, report.lease_id, Trigger.PROOF_FAILED, facts)


def teardown_failed(draft: Draft, command: commands.TeardownFailed) -> None:
    """A step failed or took too long: the whole lease is fenced."""
    if command.step <= TeardownStep.REMOVE_CGROUP:
        trigger = Trigger.CUT_FAILED
    elif command.step <= TeardownStep.TRUNCATE:
        trigger = Trigger.SCRUB_FAILED
    else:
        trigger = Trigger.PROOF_FAILED
    facts = Facts(
        draft.now_ns, evidence=command.evidence, step=int(command.step), errno=command.errno
    )
    _step(draft, command, command.lease_id, trigger, facts)


def _step(
    draft: Draft, command: Command, lease_id: LeaseId, trigger: Trigger, facts: Facts
) -> None:
    lease = draft.table.find(lease_id)
    if lease is None:
        draft.answer(command.command_id, Missing(lease_id))
        return
    draft.answer(command.command_id, _DONE)
    draft.move(lease, trigger, facts)


def _failure(
    draft: Draft, steps: Sequence[StepReport], otherwise: TeardownStep, evidence: bytes
) -> Facts:
    """The first step with an errno is what failed; a report that names none is blamed on
    `otherwise`.
    """
    failed = next((step for step in steps if step.errno), None)
    return Facts(
        draft.now_ns,
        evidence=evidence,
        step=int(otherwise if failed is None else failed.step),
        errno=0 if failed is None else failed.errno,
    )


def _held_of(lease: Lease, unproven: Sequence[Allotment]) -> tuple[Allotment, ...]:
    """`unproven` as far as the lease holds it; () (which fences everything) if it names anything
    else.
    """
    left: dict[str, int] = {}
    for allotment in lease.subject.allotments:
        left[allotment.resource_id] = left.get(allotment.resource_id, 0) + allotment.capacity
    for allotment in unproven:
        left[allotment.resource_id] = left.get(allotment.resource_id, 0) - allotment.capacity
        if left[allotment.resource_id] < 0 or allotment.capacity <= 0:
            return ()
    return tuple(unproven)


REPORTS: Final[dict[type[Command], Callable[[Draft, Any], None]]] = {
    commands.Activate: activate,
    commands.GrantFailed: grant_failed,
    commands.HolderGone: holder_gone,
    commands.NoteAdoption: note_adoption,
    commands.NoteStray: note_stray,
    commands.NotePruned: note_pruned,
    commands.NoteCountersigned: note_countersigned,
    commands.NoteRotated: note_rotated,
    commands.CutEnded: cut_ended,
    commands.ScrubEnded: scrub_ended,
    commands.ProofEnded: proof_ended,
    commands.TeardownFailed: teardown_failed,
}
