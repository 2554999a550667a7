# SPDX-License-Identifier: Apache-2.0
"""Advice from hand-written cells and telemetry: heat, nearness and waiting count, and nothing that
was not seen does."""

from __future__ import annotations

import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.main import main
from leased.collector.metering.sources import Held
from leased.collector.planning.advice import Request, placement, sensitivities
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import Rollup
from leased.collector.telemetry.store import Store
from leased.collector.telemetry.views import waits
from leased.ctl.console import Console
from leased.economics.contracts import Terms
from leased.economics.placement import Strategy
from leased.economics.pools import Pool
from leased.terms.lease import SYNTHETIC, AccountingTag
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import JANUARY_NS, WrittenSource

CPU, GPU = ResourceKind.CPU, ResourceKind.GPU
A, B = "0a" * 16, "0b" * 16
HOURS = range(24 * 30, 24 * 40)
TRAIN = AccountingTag("cc", "train", "", "", 0)


@pytest.fixture
def accounts() -> Accounts:
    """Two nodes alike. Of acme's project nine tenths of the cost are GPUs; it has one on B."""
    source = WrittenSource()
    source.hold("acme", GPU, 1000, HOURS, tag=TRAIN)
    source.hold("acme", CPU, 500, HOURS, tag=TRAIN)
    for node in (A, B):
        source.now.append(Held(node, Pool.PROVISIONED, "", GPU, None, 8000))
        source.now.append(Held(node, Pool.PROVISIONED, "", CPU, None, 64_000))
    source.now.append(Held(B, Pool.TENANT, "acme", GPU, None, 1000))
    source.now.append(Held(A, Pool.TENANT, "beta", CPU, None, 32_000))
    return Accounts(source, Terms())


@pytest.fixture
def samples(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


def first(accounts: Accounts, samples: Store | None = None, **wish: object) -> str:
    request = Request(**{"asked": {"gpu": 1000}, "strategy": Strategy.SPREAD, **wish})
    return placement(accounts, request, samples).nodes[0].node_id


def told(samples: Store, key: Key, rollup: Rollup) -> None:
    samples.append([(key, rollup)])


def test_a_hot_node_is_not_the_first_choice(accounts: Accounts, samples: Store) -> None:
    assert first(accounts) == first(accounts, samples) == A
    at_s = accounts.now_ns() // NS_PER_S // 300 * 300
    hot = Key(A, "gpu:1", "", "", "hw.temperature", (("hw.type", "gpu"), ("hw.id", "gpu")))
    told(samples, hot, Rollup(at_s, 30, 30 * 89_000, 89_000, 30, 300 * NS_PER_S))
    assert first(accounts, samples) == B
    request = Request({"gpu": 1000}, Strategy.SPREAD)
    heats = {one.node_id: one.heat_pm for one in placement(accounts, request, samples).nodes}
    assert heats[A] > 900 and heats[B] == 0


def test_a_workload_goes_where_its_data_is(accounts: Accounts) -> None:
    assert first(accounts, tenant="acme") == B, "where it has most already"
    assert first(accounts, tenant="acme", near=(A,)) == A, "where it was said to be"
    assert first(accounts, tenant="beta") == A


def test_a_workload_goes_where_there_is_what_it_lives_by(accounts: Accounts) -> None:
    """B has all cores and a GPU less, A has half of the cores and all GPUs."""
    both = {"asked": {"gpu": 1000, "cpu": 8000}, "near": ("00" * 16,)}
    assert first(accounts, **both, tenant="acme") == B
    assert first(accounts, **both, tenant="acme", project="train") == A
    request = Request(**both, strategy=Strategy.SPREAD, tenant="acme", project="train")
    assert placement(accounts, request).lives_by == ("gpu",)
    unknown = msgspec.structs.replace(request, project="nobody knows")
    assert placement(accounts, unknown).lives_by == ("cpu", "gpu")


def test_who_waits_for_something_lives_by_it(accounts: Accounts, samples: Store) -> None:
    window = accounts.last("30d")

    def level(kind: str, store: Store | None) -> tuple[str, Decimal | None]:
        rows = sensitivities(accounts, window, store).rows
        [row] = [row for row in rows if row.kind == kind]
        return row.level, row.wait_share

    assert level("cpu", None) == level("cpu", samples) == ("low", None)
    begin_s = window.to_ns // NS_PER_S - 3600
    for lease, waited_s in (("1e" * 16, 150), ("2e" * 16, 40)):
        pairs = (("leased.pressure.resource", "cpu"), ("leased.pressure.kind", "some"))
        key = Key(A, "", lease, "acme", "leased.pressure.time", pairs)
        told(samples, key, Rollup(begin_s, 30, waited_s * NS_PER_S, 0, 0, 300 * NS_PER_S))
        of_all = msgspec.structs.replace(key, attributes=(pairs[0], (pairs[1][0], "full")))
        told(samples, of_all, Rollup(begin_s, 30, 300 * NS_PER_S, 0, 0, 300 * NS_PER_S))
    assert waits(samples, begin_s, begin_s + 1) == {("acme", CPU): 317}
    assert level("cpu", samples) == ("critical", Decimal("0.317"))
    assert level("gpu", samples) == ("critical", None)
    assert level("mem", samples) == ("unused", None)


def test_a_probe_is_nobodys_workload() -> None:
    source = WrittenSource()
    source.hold("acme", CPU, 1000, HOURS, tag=TRAIN)
    source.hold("acme", GPU, 8000, HOURS, tag=msgspec.structs.replace(TRAIN, flags=SYNTHETIC))
    accounts = Accounts(source, Terms())
    rows = {row.kind: row.level for row in sensitivities(accounts, accounts.last("30d")).rows}
    assert rows["gpu"] == "unused" and rows["cpu"] == "critical"


def test_what_is_above_a_border_by_little_is_above_it() -> None:
    for cores, gib, level in ((2_500, 5_000, "moderate"), (2_502, 4_996, "critical")):
        source = WrittenSource()
        # 7.20 a core and 3.60 a GiB: half of the cost, and 50.04 % of it.
        source.hold("acme", CPU, cores * 1000, range(1))
        source.hold("acme", ResourceKind.MEM, gib << 30, range(1))
        accounts = Accounts(source, Terms())
        window = periods.Window(JANUARY_NS, JANUARY_NS + HOUR_NS)
        rows = {row.kind: row for row in sensitivities(accounts, window).rows}
        assert rows["cpu"].level == level, rows


def test_a_project_is_somebodys(tmp_path: Path) -> None:
    """The API said so; the verb went by no workload at all."""
    out = io.StringIO()
    words = ["--state", str(tmp_path), "placement", "--gpu", "1", "--project", "train"]
    assert main(words, Console(out, out)) == 65
    assert "tenant: a project is some tenant's" in out.getvalue()
