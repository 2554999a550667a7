# SPDX-License-Identifier: Apache-2.0
"""Statements: lines that cite, cost exactly, round once, and come out the same for everyone."""

from __future__ import annotations

import random
from decimal import Decimal

import msgspec
import pytest

from leased.economics.intervals import fold
from leased.economics.rates import DEFAULT_CARD, RateCard
from leased.economics.statement import Span, Statement, runs, state
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import AccountingTag, Priority
from tests.doubles.economics_history import RATE_HASH, History, memory, subject

SECOND = 1_000_000_000
GIB = 1 << 30
SPAN = Span("4e" * 16, 0, 9, "ab" * 32)


def bill(history: History, *, from_ns: int = 0, to_ns: int = 10**18, shuffle: int = 0) -> Statement:
    """acme's statement of `history` under the default card."""
    ledger, found = fold(history.records)
    if shuffle:
        random.Random(shuffle).shuffle(found)
    assert ledger.boot_id is not None
    return state(
        found,
        ledger.timeline,
        tenant=TenantId("acme"),
        from_ns=from_ns,
        to_ns=to_ns,
        watermark_ns=ledger.timeline.label(ledger.boot_id, ledger.watermark_ns),
        cards={RATE_HASH: DEFAULT_CARD},
        span=SPAN,
        known_from_ns=ledger.known_from_ns,
    )


def lived(seconds: int, *, tag: AccountingTag | None = None) -> History:
    """One GiB held by acme for `seconds`, and closed."""
    history = History(wall_offset_ns=0)
    history.allocate(1, subject(memory(GIB), tag=tag), deadline_ns=10**15)
    history.boot_ns = seconds * SECOND
    history.end(1)
    history.reclaim(1)
    return history


def test_a_line_cites_its_records_and_states_its_exact_cost() -> None:
    statement = bill(lived(60), to_ns=60 * SECOND)
    (line,) = statement.lines
    assert (line.kind, line.tier, line.priority) == ("mem", "dram", "standard")
    assert (line.capacity_seconds, line.unit, line.rate) == ("60", "GiB-second", "0.001000000")
    assert (line.cost_exact, line.cost, statement.total) == ("0.06", "0.060000", "0.060000")
    assert line.sequences == ((0, 0), (2, 2))
    assert line.leases == 1
    assert statement.complete


def test_what_is_open_has_a_line_of_its_own_and_the_statement_is_not_complete() -> None:
    history = lived(60)
    history.allocate(2, subject(memory(GIB)), deadline_ns=10**15)
    history.boot_ns += 5 * SECOND
    history.touch()
    statement = bill(history, to_ns=65 * SECOND)
    assert [(line.provisional, line.capacity_seconds) for line in statement.lines] == [
        (False, "60"),
        (True, "5"),
    ]
    assert not statement.complete


def test_a_period_that_the_records_do_not_cover_is_not_complete() -> None:
    assert not bill(lived(60), to_ns=61 * SECOND).complete


def test_a_period_whose_records_were_pruned_is_not_complete() -> None:
    """Of a lease whose grant is gone nobody knows what it had, up to its end."""
    history = lived(60)
    history.boot_ns += 10 * SECOND
    history.touch()
    assert bill(history, to_ns=70 * SECOND).complete
    del history.records[:1]
    assert not bill(history, to_ns=70 * SECOND).complete
    assert not bill(history, from_ns=59 * SECOND, to_ns=70 * SECOND).complete
    assert bill(history, from_ns=60 * SECOND, to_ns=70 * SECOND).complete
    del history.records[:-1]
    assert not bill(history, from_ns=69 * SECOND, to_ns=70 * SECOND).complete


def test_two_periods_add_up_to_one() -> None:
    history = lived(60)
    halves = (bill(history, to_ns=17 * SECOND), bill(history, from_ns=17 * SECOND))
    whole = bill(history)
    assert sum(int(half.lines[0].capacity_ns) for half in halves) == int(whole.lines[0].capacity_ns)
    assert sum(Decimal(half.lines[0].cost_exact) for half in halves) == Decimal(
        whole.lines[0].cost_exact
    )


def test_the_bytes_do_not_depend_on_the_order_of_intervals() -> None:
    history = History(wall_offset_ns=0)
    for number in range(1, 30):
        tag = AccountingTag(f"cc-{number % 3}") if number % 4 else None
        priority = Priority(number % 3)
        whose = subject(memory(GIB // number), tag=tag, priority=priority)
        history.allocate(number, whose, deadline_ns=10**15)
        history.boot_ns += SECOND // number
        if number % 2:
            history.end(number)
    plain = bill(history)
    for seed in (1, 2, 3):
        other = bill(history, shuffle=seed)
        assert other.canonical() == plain.canonical()
        assert other.digest() == plain.digest()


def test_no_float_is_in_it() -> None:
    def floats(value: object) -> bool:
        if isinstance(value, float):
            return True
        if isinstance(value, dict):
            return any(floats(inner) for inner in value.values())
        return isinstance(value, list) and any(floats(inner) for inner in value)

    assert not floats(msgspec.json.decode(bill(lived(7)).canonical()))


def test_synthetic_probes_and_other_tenants_are_not_billed() -> None:
    probe = lived(60, tag=AccountingTag("cc", flags=1))
    assert bill(probe).lines == ()
    other = History(wall_offset_ns=0)
    other.allocate(1, subject(memory(GIB), tenant="other"), deadline_ns=10**15)
    other.boot_ns = SECOND
    other.touch()
    assert bill(other).lines == ()


def test_a_lease_is_priced_by_the_card_of_its_grant_or_not_at_all() -> None:
    history = History(wall_offset_ns=0)
    history.allocate(1, subject(memory(GIB), rate_hash=b"\x01" * 32), deadline_ns=10**15)
    history.boot_ns = SECOND
    history.touch()
    with pytest.raises(ConfigError, match="01" * 32):
        bill(history)


def test_cards_of_two_currencies_are_not_added() -> None:
    history = lived(1)
    history.allocate(2, subject(memory(GIB), rate_hash=b"\x01" * 32), deadline_ns=10**15)
    history.boot_ns += SECOND
    history.touch()
    ledger, found = fold(history.records)
    with pytest.raises(ConfigError, match="disagree on currency"):
        state(
            found,
            ledger.timeline,
            tenant=TenantId("acme"),
            from_ns=0,
            to_ns=10**18,
            watermark_ns=0,
            cards={RATE_HASH: DEFAULT_CARD, b"\x01" * 32: RateCard(DEFAULT_CARD.rates, "EUR", 2)},
            span=SPAN,
        )


def test_sequences_are_cited_as_runs() -> None:
    assert runs([5, 1, 2, 3, 3, 9]) == ((1, 3), (5, 5), (9, 9))


def test_the_golden_bill() -> None:
    statement = bill(lived(60), to_ns=60 * SECOND)
    assert statement.canonical() == (
        b'{"complete":true,"currency":"credits","decimals":6,"from_ns":"0","lines":[{"capacity_ns":'
        b'"64424509440000000000","capacity_seconds":"60","cost":"0.060000","cost_exact":"0.06",'
        b'"kind":"mem","leases":1,"multiplier_pm":1000,"priority":"standard","provisional":false,'
        b'"rate":"0.001000000","rate_card":"' + b"00" * 32 + b'","sequences":[[0,0],[2,2]],'
        b'"tag":null,"tier":"dram","unit":"GiB-second"}],"span":{"first_sequence":0,"head":"'
        + b"ab" * 32
        + b'","last_sequence":9,"node_id":"'
        + b"4e" * 16
        + b'"},"tenant":"acme","to_ns":"60000000000","total":"0.060000","version":1,'
        b'"watermark_ns":"60000000000"}'
    )
