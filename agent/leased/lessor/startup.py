# SPDX-License-Identifier: Apache-2.0
"""Start: what becomes of every lease that an earlier run of the agent left behind.

Rule: decided per lease from two witnesses, the sealed history and the reaper. Same boot and known
to the reaper: it goes on with the same deadline. Same boot and unknown: it was never armed
(GRANT_FAILED) or is held by nobody (REAPER_LOST). Another boot: its processes are gone
(NODE_REBOOT). All that does not go on is torn down, and so is, again, everything whose teardown had
not ended; the proof decides what is clean, not the restart.

Does not read the history (`Lessor.replay` has) and does not wait for any teardown.
"""

from __future__ import annotations

from leased.lessor.draft import Draft, Facts
from leased.lessor.lifecycle import LIVE, Trigger
from leased.lessor.operations import prove_returned
from leased.lessor.table import end_ns
from leased.terms import event as events
from leased.terms.command import Start
from leased.terms.effect import Forget
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState, RevocationReason
from leased.terms.reply import Done


def start(draft: Draft, command: Start) -> None:
    """Begin a run: seal what the node is, then decide about each lease, oldest first."""
    table, moment = draft.table, draft.moment
    draft.emit(
        events.NodeStarted(
            draft.event_id(),
            moment.boot_id,
            command.node_id,
            table.epoch + 1,
            command.version,
            command.filesystem,
            command.durability,
        )
    )
    before = table.pools.inventory
    if command.inventory != before:
        draft.emit(events.InventoryChanged(draft.event_id(), command.inventory))
    if (command.policy_hash, command.rate_hash) != (table.policy_hash, table.rate_hash):
        draft.emit(
            events.PolicyChanged(
                draft.event_id(),
                command.policy_hash,
                command.policy.generation or table.policy_generation + 1,
                command.rate_hash,
                -1,
            )
        )
    ended: list[LeaseId] = []
    for lease in tuple(table.leases.values()):
        if lease.state in LIVE and not _goes_on(draft, lease, command):
            ended.append(lease.lease_id)
        elif lease.state not in LIVE:
            draft.move(lease, Trigger.BOOT_KEPT, Facts(draft.now_ns))
    for lease_id in sorted(command.known_to_reaper):
        known = table.leases.get(lease_id)
        if known is None or (known.state is LeaseState.FENCED and known.cut_ns is not None):
            draft.effects.append(Forget(lease_id))
    prove_returned(draft, before)
    draft.answer(command.command_id, Done(tuple(ended)))


def _goes_on(draft: Draft, lease: Lease, command: Start) -> bool:
    same_boot = lease.boot_id == draft.moment.boot_id
    if same_boot and lease.lease_id in command.known_to_reaper:
        # A deadline that passed meanwhile is the next tick's business: the reaper did not wait.
        if lease.state is LeaseState.DRAINING and not lease.activated:
            draft.move(lease, Trigger.ACTIVATE, Facts(draft.now_ns))  # the record of that was lost
            lease = draft.table.leases[lease.lease_id]
        draft.move(lease, Trigger.BOOT_KEPT, Facts(draft.now_ns))
        return True
    if not same_boot:
        # On the clock of its own boot, which stopped at the last moment sealed in it.
        last = draft.table.previous_boot_last
        known_ns = (
            lease.granted_ns if last is None or last.boot_id != lease.boot_id else last.boot_ns
        )
        facts = Facts(
            max(lease.granted_ns, min(known_ns, end_ns(lease))),
            begun_ns=draft.now_ns,
            reason=RevocationReason.NODE_REBOOT,
        )
        draft.move(lease, Trigger.BOOT_LOST, facts)
    elif not lease.activated:
        # Never armed, so nobody has ever had it: whether its time is over by now changes nothing.
        at_ns = min(draft.now_ns, end_ns(lease))
        facts = Facts(at_ns, reason=RevocationReason.GRANT_FAILED)
        draft.move(lease, Trigger.BOOT_LOST, facts)
    elif draft.now_ns >= end_ns(lease):
        draft.end_by_time(lease)
    else:
        facts = Facts(draft.now_ns, reason=RevocationReason.REAPER_LOST)
        draft.move(lease, Trigger.BOOT_LOST, facts)
    return False
