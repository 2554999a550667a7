# SPDX-License-Identifier: Apache-2.0
"""What capacity costs the operator has versions: what was charged back is not changed by what it
costs from later on, and cannot be altered once its month is issued."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.invoices import Invoices
from leased.collector.accounts.node_costs import node_costs
from leased.collector.accounts.periods import Window
from leased.collector.accounts.terms_file import parse_terms
from leased.collector.api.problems import Problem
from leased.collector.api.reports import told
from leased.collector.metering.sources import NodeAmount
from leased.economics.contracts import Terms
from leased.economics.pools import Pool
from leased.terms.errors import ConfigError, InvalidParameter, StateError
from leased.terms.lease import AccountingTag
from leased.terms.moment import HOUR_NS
from leased.terms.reading import read_toml
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_HOURS, JANUARY_NS, NODE, WrittenSource

CPU = ResourceKind.CPU
LATER = msgspec.structs.replace(NODE, watermark_ns=NODE.watermark_ns + 90 * 24 * HOUR_NS)
PLAIN = """
[infrastructure]
currency = "USD"
decimals = 2
cpu = "0.001"
"""
FEBRUARY = '[[infrastructure_cards]]\nsince = "2024-02-01"\ncpu = "0.003"\n'
MIDDLE = '[[infrastructure_cards]]\nsince = "2024-02-11"\ncpu = "0.005"\n'


class Fleet(WrittenSource):
    """One node of ten cores, of which a cost centre has four, in all hours from January on."""

    def __init__(self) -> None:
        super().__init__(node=LATER)
        hours = range(JANUARY_HOURS + 60 * 24)
        self.hold("", CPU, 10_000, hours, pool=Pool.PROVISIONED)
        self.hold("t", CPU, 4_000, hours, tag=AccountingTag("cc-1"))

    def node_amounts(self, window: tuple[int, int]) -> list[NodeAmount]:
        length_ns = window[1] - window[0]
        there, held = 10_000 * length_ns, 4_000 * length_ns
        return [NodeAmount("4e" * 16, CPU, None, there, held, 0, 0, there - held, 0)]


def terms(text: str) -> Terms:
    return parse_terms(read_toml(text), "billing.toml")


def accounts(text: str, directory: Path) -> Accounts:
    return Accounts(Fleet(), terms(text), Invoices(directory))


def charged(answers: Accounts, month: str) -> dict[str, str]:
    """By cost centre, and in all; the same however it is asked for."""
    told = answers.chargeback(month)
    period = answers.month(month)
    window = Window(period.from_ns, period.to_ns)
    costs, nodes = answers.costs(window, basis="infrastructure"), node_costs(answers, window)
    assert costs.total_cost == nodes.provisioned_cost == told.total_infrastructure_cost
    assert costs.currency == nodes.currency == told.currency and nodes.complete
    found = {one.cost_center: str(one.cost) for one in told.allocations}
    assert sum(map(Decimal, found.values())) == told.total_infrastructure_cost
    return found


def test_what_it_costs_from_later_on_changes_no_month_before(tmp_path: Path) -> None:
    """A core costs 3.60 an hour in January, 10.80 in the first ten days of February, then 18."""
    before = charged(accounts(PLAIN, tmp_path), "2024-01")
    assert before == {"cc-1": "10713.60", "CC-SHARED": "16070.40"}
    changed = accounts(PLAIN + FEBRUARY + MIDDLE, tmp_path)
    assert charged(changed, "2024-01") == before
    total = (Decimal("10.80") * 10 + Decimal(18) * 19) * 24
    assert charged(changed, "2024-02") == {
        "cc-1": str(total * 4),
        "CC-SHARED": str(total * 6),
    }
    assert changed.infrastructure().rates[1].nano == 5_000_000  # what is planned is by now's


def test_what_was_charged_back_is_refused_to_be_altered(tmp_path: Path) -> None:
    accounts(PLAIN + FEBRUARY, tmp_path).issue("2024-01")
    raw = (tmp_path / "invoices" / "infrastructure.json").read_bytes()
    dearer = accounts(PLAIN.replace("0.001", "0.002"), tmp_path)
    ask: dict[str, Any] = {
        "issue": lambda: dearer.issue("2024-02"),
        "chargeback": lambda: dearer.chargeback("2024-01"),
        "costs": lambda: dearer.costs(
            Window(JANUARY_NS, JANUARY_NS + HOUR_NS), basis="infrastructure"
        ),
        "nodes": lambda: node_costs(dearer, Window(JANUARY_NS, JANUARY_NS + HOUR_NS)),
    }
    for name, asked in ask.items():
        with pytest.raises(ConfigError, match=r"infrastructure.cpu: .* was 0\.001, .* 0\.002 n"):
            asked()
        with pytest.raises(Problem, match=r"put it back") as problem:
            told(asked)
        assert problem.value.status == 503, name
    assert dearer.chargeback("2024-02").currency == "USD"  # that month is open
    assert dearer.costs(Window(JANUARY_NS, JANUARY_NS + HOUR_NS)).currency == "credits"
    assert dearer.bill("t", "2024-02").total
    assert (tmp_path / "invoices" / "infrastructure.json").read_bytes() == raw
    early = FEBRUARY.replace("2024-02-01", "2024-01-31T23:00:00Z")
    with pytest.raises(ConfigError, match="from 2024-01-31T23:00:00Z on"):
        accounts(PLAIN + early, tmp_path).issue("2024-02")


def test_what_says_the_same_in_other_words_is_no_change(tmp_path: Path) -> None:
    accounts(PLAIN, tmp_path).issue("2024-01")
    same = PLAIN.replace("0.001", "0.0010") + 'mem = "0.001"\n[rates]\ngpu = "9"\n'
    with pytest.raises(ConfigError, match="infrastructure.gpu"):  # it comes from [rates]
        accounts(same, tmp_path).chargeback("2024-01")
    again = '[[infrastructure_cards]]\nsince = "2024-01-10"\ncpu = "0.001"\n'
    prices = '[rates.multipliers_pm]\nguaranteed = 9\n[[cards]]\nsince = "2024-01-05"\ncpu = "1"\n'
    charged(accounts(PLAIN + again + MIDDLE + prices, tmp_path), "2024-01")


def test_it_is_kept_as_far_as_months_are_issued(tmp_path: Path) -> None:
    accounts(PLAIN + FEBRUARY, tmp_path).issue("2024-02")
    accounts(PLAIN + FEBRUARY + MIDDLE.replace("02-11", "03-01"), tmp_path).issue("2024-01")
    for text in (PLAIN, PLAIN + MIDDLE, PLAIN + FEBRUARY + MIDDLE):
        with pytest.raises(ConfigError, match="what was charged back would change"):
            accounts(text, tmp_path).issue("2024-03")
    path = tmp_path / "invoices" / "infrastructure.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StateError, match="restore it from a backup"):
        accounts(PLAIN, tmp_path).chargeback("2024-01")


def test_another_currency_begins_with_a_version_and_is_in_no_sum(tmp_path: Path) -> None:
    yen = FEBRUARY + 'currency = "JPY"\ndecimals = 0\n'
    answers = accounts(PLAIN + yen, tmp_path)
    assert charged(answers, "2024-01")["cc-1"] == "10713.60"
    assert answers.chargeback("2024-02").currency == "JPY"
    window = Window(JANUARY_NS, JANUARY_NS + (JANUARY_HOURS + 1) * HOUR_NS)
    for ask in (lambda: answers.costs(window, basis="infrastructure"), lambda: node_costs(
        answers, window
    )):
        with pytest.raises(InvalidParameter, match="in JPY from within that time on, and was in U"):
            ask()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (MIDDLE + FEBRUARY, r"infrastructure_cards\[1\].since: versions are listed oldest first"),
        (MIDDLE.replace("-11", "-11T00:30:00Z"), r"infrastructure_cards\[0\].since: .* full hour"),
        (MIDDLE.replace("2024-02-11", "1970-01-01"), r"infrastructure_cards\[0\].since"),
        ('[[infrastructure_cards]]\ncpu = "1"\n', r"infrastructure_cards\[0\].since"),
        (MIDDLE.replace('"0.005"', "0.005"), r"infrastructure_cards\[0\].cpu"),
    ],
)
def test_versions_that_cannot_be_meant(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        terms(PLAIN + text)
