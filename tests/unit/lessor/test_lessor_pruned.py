# SPDX-License-Identifier: Apache-2.0
"""What is said anew when old records go is all that whoever begins to read there needs to know."""

from __future__ import annotations

from leased.lessor.ledger import rows_of
from leased.lessor.lessor import Lessor
from leased.service.evidence import NO_COMMAND
from leased.terms import event as e
from leased.terms.command import NotePruned
from leased.terms.identity import TenantId
from leased.terms.policy import Policy
from tests.doubles.logs import PRUNED_PAST_KEYS, CountedEntropy, moment_at, started

ID, ACME = e.EventId(bytes(16)), TenantId("acme")
USED = (("day", 1, -1, 1, (7 << 70).to_bytes(16, "big")), ("month", 1, 2, 1, b"\1" * 16))


def test_whoever_begins_to_read_there_knows_the_same() -> None:
    before, after = (Lessor(CountedEntropy(seed), Policy()) for seed in (b"a", b"b"))
    history = [
        started(),
        e.PolicyChanged(ID, b"p" * 32, 4, b"r" * 32, -1),
        e.PeriodBegan(ID, "day", 1_000, 5),
        e.PeriodBegan(ID, "month", 900, 3),
        e.Metered(ID, ACME, USED),
    ]
    for sequence, event in enumerate(history):
        before.replay(event, moment_at(0), sequence)
    identity = {"node_id": b"n" * 16, "version": "1", "filesystem": "ext4", "durability": "strict"}
    pruned = {"min_seq": 3, "head": b"h" * 32, "segments": 1, "acked_size": 4}
    pruned["key_changes"] = PRUNED_PAST_KEYS.key_changes
    proposal = before.propose(NotePruned(NO_COMMAND, **pruned, **identity), moment_at(1))
    assert isinstance(proposal.events[0], e.NodeStarted)
    assert proposal.events[-1] == e.Pruned(proposal.events[-1].event_id, *pruned.values())
    for event in proposal.events:
        after.replay(event, moment_at(1))
    for lessor in (before, after):
        table = lessor.table
        assert (table.epoch, table.boot_id) == (started().epoch, started().boot_id)
        assert (table.policy_hash, table.policy_generation) == (b"p" * 32, 4)
        meter = table.ledger.meter(ACME)
        assert meter is not None and sorted(rows_of(meter)) == sorted(USED)
    assert after.table.ledger.began_ns == before.table.ledger.began_ns
    assert after.table.ledger.began_wall_ns == before.table.ledger.began_wall_ns
    assert sorted(before.table.ledger.began_ns.values())[-2:] == [3, 5]
