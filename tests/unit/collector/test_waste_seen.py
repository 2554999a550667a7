# SPDX-License-Identifier: Apache-2.0
"""Waste as the API tells it: telemetry says what is used, the chains what it is of."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec

from leased.collector.api.routes import Call, Caller
from leased.collector.api.telemetry_routes import Observed, WasteQuery
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from leased.economics.rates import DEFAULT_CARD, Rate
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, ResourceKind, TierKind
from leased.terms.series import KIND
from tests.doubles.economics_history import History, lease_id, memory, subject
from tests.doubles.fleets import fleet_of

NODE = "a1" * 16
NOW_S = 1_767_225_600
GIB = 1 << 30
CPU, MEM = ResourceKind.CPU, ResourceKind.MEM
HBM = Allotment("mem:node4:4096", MEM, TierKind.HBM, GIB)
RATES = (Rate(CPU, 10), Rate(ResourceKind.NET, 1), Rate(MEM, 1), Rate(MEM, 90, TierKind.HBM))
CARD = msgspec.structs.replace(DEFAULT_CARD, rates=RATES)


def used(store: Store, number: int, allotment: Allotment, share_ppm: int) -> None:
    """The lease was held, and used so far, in the hour before now."""
    attributes = ((KIND, allotment.kind.name.lower()),)
    for at_s in range(NOW_S - 3600, NOW_S, WINDOW_S):
        for name, value in (("capacity", allotment.capacity), ("utilization", share_ppm)):
            key = Key(NODE, "", lease_id(number).hex(), "acme", f"leased.lease.{name}", attributes)
            row = Rollup(at_s, 30, value * 30, value, 30, WINDOW_S * NS_PER_S)
            store.append([(key, row)])


def seen(state: Path, history: History) -> dict[str, str]:
    """Each lease's class."""
    fleet = fleet_of({NODE: history})
    caller = Caller("ops", frozenset())
    call = Call(caller, SimpleNamespace(), WasteQuery(), None, NOW_S * NS_PER_S)
    answer = Observed(state, lambda: CARD, lambda: fleet).waste(call)
    return {one.lease_id: str(one.waste) for one in answer.value.leases}


def test_what_was_found_is_told_again_until_it_is_two_seconds_old(tmp_path: Path) -> None:
    history, card = History(), CARD
    history.start()
    history.inventory(core_of(64_000))
    history.allocate(1, subject(core_of(500)), 1 << 60)
    fleet = fleet_of({NODE: history})
    observed = Observed(tmp_path, lambda: card, lambda: fleet)

    def found(after_ms: int, last: str = "1h") -> tuple[str, int]:
        now_ns = NOW_S * NS_PER_S + after_ms * 10**6
        query = WasteQuery(last=last)
        call = Call(Caller("ops", frozenset()), SimpleNamespace(), query, None, now_ns)
        [one] = observed.waste(call).value.leases
        return str(one.waste), one.samples

    with closing(Store(tmp_path)) as store:
        used(store, 1, core_of(500), 200_000)
        assert found(0) == ("overprovisioned", 360)
        used(store, 1, core_of(500), 800_000)
    assert found(1_999) == ("overprovisioned", 360)
    assert found(2_000) == ("healthy", 720)
    assert found(1_999) == ("healthy", 720), "a clock was set back"
    assert found(1_999, "30m") == ("healthy", 360), "of another time"
    with closing(Store(tmp_path)) as store:
        used(store, 1, core_of(500), 800_000)
    card = msgspec.structs.replace(CARD, rates=())
    assert found(1_999, "30m") == ("healthy", 540), "at other prices"


def core_of(millis: int) -> Allotment:
    return Allotment("cpu:0", CPU, None, millis)


def test_many_small_leases_of_one_node_are_fragmented(tmp_path: Path) -> None:
    """What the node has is in its chain: telemetry alone never called anything fragmented."""
    history = History()
    history.start()
    history.inventory(core_of(64_000))
    with closing(Store(tmp_path)) as store:
        for number in range(16):
            history.allocate(number, subject(core_of(500)), 1 << 60)
            used(store, number, core_of(500), 800_000)
    assert set(seen(tmp_path, history).values()) == {"fragmented"}


def test_a_tier_is_as_expensive_as_its_own_rate(tmp_path: Path) -> None:
    history = History()
    history.start()
    history.inventory(HBM, memory(64 * GIB))
    leases = {1: (HBM,), 2: (memory(GIB),), 3: (HBM, memory(GIB))}
    with closing(Store(tmp_path)) as store:
        for number, allotments in leases.items():
            history.allocate(number, subject(*allotments), 1 << 60)
            used(store, number, allotments[0], 200_000)
        used(store, 9, HBM, 200_000)  # of which there is no record yet
    found = seen(tmp_path, history)
    classes = [found[lease_id(number).hex()] for number in (1, 2, 3, 9)]
    assert classes == ["premium_waste", *["overprovisioned"] * 3]
