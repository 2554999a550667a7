# SPDX-License-Identifier: Apache-2.0
"""Capacity against its marks: what is told, and what is recommended."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.collector.accounts.accounts import Accounts
from leased.collector.metering.sources import Held
from leased.collector.planning.capacity import capacity
from leased.collector.planning.thresholds import Load, Thresholds, alerts, check_marks, scaling
from leased.economics.contracts import Terms
from leased.economics.pools import Pool
from leased.terms.errors import ConfigError
from leased.terms.moment import HOUR_NS, NS_PER_S
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import NODE, WrittenSource

CPU, GPU = ResourceKind.CPU, ResourceKind.GPU
MARKS = Thresholds()
NOW_NS = 10**18
LONG_AGO = {"changed_ns": 0, "now_ns": NOW_NS}


def told(cpu: int, memory: int) -> list[tuple[str, str]]:
    loads = {"cpu": Load(1000, cpu), "memory": Load(1000, memory)}
    return [(one.resource, one.level) for one in alerts(loads, MARKS)]


def test_a_mark_is_passed_above_it_and_the_highest_is_told() -> None:
    assert told(750, 800) == []
    assert told(751, 801) == [("cpu", "warning"), ("memory", "warning")]
    assert told(900, 920) == [("cpu", "warning"), ("memory", "warning")]
    assert told(901, 921) == [("cpu", "critical"), ("memory", "critical")]
    (one, *_) = alerts({"cpu": Load(400, 399)}, MARKS)
    assert (one.utilization, one.threshold) == (Decimal("0.99"), Decimal("0.9"))
    assert alerts({"cpu": Load(0, 0)}, MARKS) == []


def test_a_queue_is_told_of_above_its_marks_where_it_is_known() -> None:
    def levels(depth: int | None) -> list[tuple[str, str, Decimal]]:
        found = alerts({}, MARKS, depth)
        assert all(one.utilization is None for one in found)
        return [(one.level, one.resource, one.threshold) for one in found]

    assert levels(None) == levels(0) == levels(5_000) == []
    assert levels(5_001) == levels(20_000) == [("warning", "queue_depth", Decimal(5_000))]
    assert levels(20_001) == [("critical", "queue_depth", Decimal(20_000))]


def test_growing_is_up_to_the_mark_of_the_fullest() -> None:
    # 50 workers of 8 cores: 360 of 400 are held, so 450 are needed for 80 %.
    loads = {"cpu": Load(400, 360), "memory": Load(1024, 100)}
    (advice,) = scaling(loads, 50, MARKS, **LONG_AGO)
    assert (advice.action, advice.add_workers) == ("scale_up", 7)
    assert advice.reason == "cpu is 90 % allocated, above 80 %"
    assert advice.by_date == "2001-09-09"
    assert scaling({"cpu": Load(400, 320)}, 50, MARKS, **LONG_AGO) == []


def test_shrinking_is_to_the_middle_and_one_stays() -> None:
    loads = {"cpu": Load(400, 120), "memory": Load(1000, 390)}
    (advice,) = scaling(loads, 50, MARKS, **LONG_AGO)
    assert (advice.action, advice.add_workers) == ("scale_down", -17)  # 390/0.6 = 650 of 1000
    (advice,) = scaling({"cpu": Load(400, 0)}, 50, MARKS, **LONG_AGO)
    assert advice.add_workers == -49
    assert scaling({"cpu": Load(400, 0)}, 1, MARKS, **LONG_AGO) == []
    assert scaling({"cpu": Load(400, 160)}, 50, MARKS, **LONG_AGO) == []


def test_nothing_is_recommended_while_the_last_change_works() -> None:
    full = {"cpu": Load(10, 10)}
    lately = NOW_NS - 600 * NS_PER_S
    assert scaling(full, 5, MARKS, changed_ns=lately + 1, now_ns=NOW_NS) == []
    assert scaling(full, 5, MARKS, changed_ns=lately, now_ns=NOW_NS)
    assert scaling({"cpu": Load(0, 0)}, 5, MARKS, **LONG_AGO) == []
    assert scaling(full, 0, MARKS, **LONG_AGO) == []


@given(st.integers(1, 500), st.integers(1, 64), st.integers(0, 1 << 20))
def test_what_is_recommended_asks_for_nothing_more(workers: int, each: int, used: int) -> None:
    total = workers * each * 1000
    load = Load(total, min(used, total))
    for advice in scaling({"cpu": load}, workers, MARKS, **LONG_AGO):
        then = workers + advice.add_workers
        assert then >= 1
        after = Load(then * each * 1000, load.used)
        again = scaling({"cpu": after}, then, MARKS, **LONG_AGO)
        assert again == [] or (advice.action == again[0].action == "scale_down")


@pytest.mark.parametrize(
    ("marks", "why"),
    [
        (Thresholds(cpu_warning_pm=900), "capacity.cpu_warning"),
        (Thresholds(memory_critical_pm=1001), "capacity.memory_warning"),
        (Thresholds(scale_down_pm=800), "capacity.scale_down"),
        (Thresholds(queue_warning=20_000), "capacity.queue_warning"),
    ],
)
def test_marks_that_cannot_be_meant(marks: Thresholds, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_marks(marks)


def test_a_worker_that_came_by_a_clock_that_is_ahead_holds_no_advice_back() -> None:
    source = WrittenSource()
    whole = Held("4e" * 16, Pool.PROVISIONED, "", ResourceKind.CPU, None, 1_000)
    source.now = [whole, msgspec.structs.replace(whole, pool=Pool.TENANT, tenant="t")]
    accounts = Accounts(source, Terms())
    just, ten_years = NODE.watermark_ns - 1, NODE.watermark_ns + 3650 * 24 * HOUR_NS
    for turned_ns, advised in (((0,), True), ((0, just), False), ((0, ten_years), True)):
        assert bool(capacity(accounts, turned_ns=turned_ns).recommendations) is advised


def fleet(*nodes: tuple[bool, dict[ResourceKind, tuple[int, int]]]) -> WrittenSource:
    """Of each node whether it drains, and what it has and a tenant holds of each kind."""
    source = WrittenSource()
    for number, (drains, kinds) in enumerate(nodes):
        node = f"{number:032x}"
        for kind, (there, used) in kinds.items():
            source.now.append(Held(node, Pool.PROVISIONED, "", kind, None, there))
            source.now.append(Held(node, Pool.TENANT, "t", kind, None, used))
        source.spans = (*source.spans, msgspec.structs.replace(NODE, node_id=node))
        if drains:
            source.cordoned |= {node}
    source.spans = source.spans[1:]
    return source


def advised(source: WrittenSource) -> list[tuple[str, int, str]]:
    told = capacity(Accounts(source, Terms())).recommendations
    return [(one.action, one.add_workers, one.reason) for one in told]


def test_no_worker_is_spared_whose_gpus_are_needed() -> None:
    """Three of six were, though five would not have been enough."""
    node = {CPU: (64_000, 14_000), GPU: (8_000, 5_000)}
    assert advised(fleet(*[(False, node)] * 6)) == []
    full = {CPU: (64_000, 14_000), GPU: (8_000, 7_000)}
    more = ("scale_up", 1, "gpu is 87 % allocated, above 80 %")
    assert advised(fleet(*[(False, full)] * 6)) == [more]
    idle = {CPU: (64_000, 14_000), GPU: (8_000, 2_000)}
    fewer = ("scale_down", -3, "gpu is 25 % allocated, below 40 %")
    assert advised(fleet(*[(False, idle)] * 6)) == [fewer]


def test_what_drains_is_no_room_and_what_is_there_will_need_some() -> None:
    half, full = {CPU: (8_000, 4_000)}, {CPU: (8_000, 8_000)}
    empty = {CPU: (8_000, 0)}
    # Of ten workers five drain: two of the others were to go, for all ten were a quarter full.
    assert advised(fleet(*[(False, half)] * 5, *[(True, empty)] * 5)) == []
    reason = "cpu is 200 % allocated without what drains, above 80 %"
    assert advised(fleet(*[(False, full), (True, full)] * 5)) == [("scale_up", 8, reason)]
