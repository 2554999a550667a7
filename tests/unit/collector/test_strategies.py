# SPDX-License-Identifier: Apache-2.0
"""How a kind was divided when: sealed as it changes, and history is judged by what was in force."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from leased.collector.accounts.accounts import Accounts
from leased.collector.governance.register import Issued, Register
from leased.collector.governance.strategies import ACTION, Strategies
from leased.collector.planning.allocation_history import allocations
from leased.economics.contracts import Terms
from leased.economics.pools import Pool
from leased.terms.identity import TenantId
from leased.terms.moment import HOUR_NS
from leased.terms.policy import Allocation, Policy, Strategy, canonical
from leased.terms.quantity import print_instant
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.accounts import WrittenSource

CPU, GPU = ResourceKind.CPU, ResourceKind.GPU
EVEN = Allocation(CPU, strategy=Strategy.FAIR_SHARE, max_share_pm=1000)
HEAVY = Allocation(
    CPU,
    strategy=Strategy.FAIR_SHARE,
    max_share_pm=1000,
    weights_pm=((TenantId("acme"), 3000),),
)


def issued(policy: Policy) -> Issued:
    return Issued(1, b"", "", canonical(policy).decode(), 0, 0)


def test_what_changes_is_sealed_once_and_known_after_a_restart(tmp_path: Path) -> None:
    register = Register(tmp_path)
    found = Strategies(register)
    assert found.of(CPU) == ((0, Allocation(CPU)),)
    found.note(Policy(), None, 10)
    assert register.head()[0] == 0, "nothing is said, as before"
    even, heavy = Policy(allocations=(EVEN,)), Policy(allocations=(HEAVY,))
    found.note(even, issued(Policy()), 20)
    found.note(even, issued(even), 30)
    found.note(heavy, issued(even), 40)
    expected = ((0, Allocation(CPU)), (20, EVEN), (40, HEAVY))
    assert found.of(CPU) == expected and found.of(GPU)[-1] == (40, Allocation(GPU))
    assert register.check() == 2
    (change, _) = (one.change for one in register.changes(before=None, count=9))
    assert (change.action, change.actor) == (ACTION, "the operator's document")
    register.close()
    register = Register(tmp_path)
    again = Strategies(register)
    assert again.of(CPU) == expected
    again.note(heavy, issued(heavy), 50)
    assert register.head()[0] == 2
    register.close()


def test_before_the_first_that_is_known_it_was_what_that_says(tmp_path: Path) -> None:
    """A register of a release that did not seal it: its last policy says how it was."""
    register = Register(tmp_path)
    found = Strategies(register)
    found.note(Policy(allocations=(EVEN,)), issued(Policy(allocations=(HEAVY,))), 60)
    assert found.of(CPU) == ((0, HEAVY), (60, EVEN))
    other = Strategies(register)
    assert other.of(CPU) == found.of(CPU)
    register.close()


def test_at_the_first_start_it_has_always_been_so(tmp_path: Path) -> None:
    register = Register(tmp_path)
    found = Strategies(register)
    found.note(Policy(allocations=(EVEN,)), None, 70)
    assert [plan for _, plan in found.of(CPU)] == [EVEN, EVEN]
    register.close()


def test_a_part_of_a_kind_is_not_how_the_kind_is_divided(tmp_path: Path) -> None:
    register = Register(tmp_path)
    found = Strategies(register)
    tier = Allocation(ResourceKind.MEM, TierKind.CXL, Strategy.FAIR_SHARE)
    found.note(Policy(allocations=(tier,)), None, 5)
    assert found.of(ResourceKind.MEM)[-1][1] == Allocation(ResourceKind.MEM)
    register.close()


def test_fairness_is_judged_by_what_was_in_force() -> None:
    """Acme has three quarters all day. That is unfair while shares are even, and fair from noon on,
    when it has three times the weight; however it is divided today."""
    source = WrittenSource()
    hours = range(40 * 24)
    source.hold("", CPU, 40_000, hours, pool=Pool.PROVISIONED)
    source.hold("acme", CPU, 30_000, hours)
    source.hold("beta", CPU, 10_000, hours)
    accounts = Accounts(source, Terms())
    noon_ns = accounts.last("24h").from_ns + 12 * HOUR_NS

    def told(*plans: tuple[int, Allocation]) -> list[Decimal]:
        points = allocations(accounts, "24h", plans).points
        return [one.fairness_index for one in points]

    # Entitled to twenty each, of which beta wants ten: of what is left acme has all.
    assert set(told((0, EVEN))) == {Decimal(1)}
    half = Allocation(CPU, strategy=Strategy.FAIR_SHARE, max_share_pm=500)
    index = Decimal("0.9615")  # 30/20 and 10/10: 6.25 / (2 * 3.25)
    assert set(told((0, half))) == {index}
    assert told((0, half), (noon_ns, EVEN)) == [index] * 12 + [Decimal(1)] * 12


def test_a_point_of_many_hours_is_each_of_them_by_what_was_in_force() -> None:
    source = WrittenSource()
    source.hold("", CPU, 40_000, range(40 * 24), pool=Pool.PROVISIONED)
    source.hold("acme", CPU, 30_000, range(40 * 24))
    source.hold("beta", CPU, 10_000, range(40 * 24))
    accounts = Accounts(source, Terms())
    half = Allocation(CPU, strategy=Strategy.FAIR_SHARE, max_share_pm=500)
    window = accounts.last("30d")
    turn_ns = window.from_ns + HOUR_NS
    (first, second, *_) = allocations(accounts, "30d", ((0, half), (turn_ns, EVEN))).points
    # Two hours a point; in the first acme should have had 20 and 30 core-hours, and had 60.
    assert (first.ts, second.fairness_index) == (print_instant(window.from_ns), Decimal(1))
    assert first.fairness_index == Decimal("0.9918")  # 1.2 and 1: 4.84 / (2 * 2.44)
    assert (first.allocated, first.capacity) == (Decimal(40), Decimal(40))

