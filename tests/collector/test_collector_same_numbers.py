# SPDX-License-Identifier: Apache-2.0
"""The verbs of the collector and its API say the same of the same records and telemetry."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from contextlib import closing
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from leased.collector.api import settings
from leased.collector.api.desk import Desk
from leased.collector.api.routes import Call, Caller
from leased.collector.archive.archive import Archive
from leased.collector.main import main
from leased.collector.telemetry.decoding import Key
from leased.collector.telemetry.rollup import WINDOW_S, Rollup
from leased.collector.telemetry.store import Store
from leased.ctl.console import Console
from leased.terms.moment import NS_PER_S
from leased.terms.resource import Allotment, ResourceKind, TierKind
from leased.terms.series import KIND
from tests.doubles.economics_history import History, lease_id, subject
from tests.doubles.fleet_archive import GIB, HOUR_NS, NODE_A, begin_of, store

PLAIN = msgspec.json.Encoder(decimal_format="number")
HBM = TierKind.HBM
PRICES = """
[rates]
gpu = "0.01"
cpu = "0.95"
mem = "0.001"
"mem.hbm" = "0.9"
[infrastructure]
mem = "0.001"
"mem.hbm" = "0.7"
"""
CONFIG = """
[http]
listen = ["127.0.0.1:0"]
[governance]
policy_file = "policy.toml"
[capacity]
scale_up = "99.9%"
scale_down = "99%"
cooldown = "2000h"
"""
POLICY = """
overage = "35%"
overage_for = "40min"
"""


def fleet(state: Path, now_ns: int) -> None:
    """One node: a lease of memory of a dear tier, twenty small ones of cores, and one of cores that
    is large; seen for two hours by telemetry, the memory's idle, the cores used."""
    history = History(wall_offset_ns=begin_of(now_ns))
    dear = Allotment("mem:node4:4096", ResourceKind.MEM, HBM, 3 * GIB)
    core = Allotment("cpu:0", ResourceKind.CPU, None, 400_000)
    history.start()
    history.inventory(dear, core)
    history.boot_ns = (now_ns - begin_of(now_ns)) // HOUR_NS * HOUR_NS - 6 * HOUR_NS
    ends_ns = history.boot_ns + 48 * HOUR_NS
    held = {1: dear} | {
        number: Allotment("cpu:0", ResourceKind.CPU, None, 1_000) for number in range(2, 22)
    }
    held[22] = Allotment("cpu:0", ResourceKind.CPU, None, 50_000)
    tenants = {22: "beta"}
    for number, one in held.items():
        history.allocate(number, subject(one, tenant=tenants.get(number, "acme")), ends_ns)
    history.boot_ns = now_ns - begin_of(now_ns)
    history.touch()
    with closing(Archive(state)) as archive:
        store(archive, "host-a", NODE_A, history, now_ns)
    begin_s = now_ns // NS_PER_S // WINDOW_S * WINDOW_S
    used = {1: 0, 22: 100_000}
    rows = []
    for number, one in held.items():
        for name, most in (("capacity", one.capacity), ("utilization", used.get(number, 900_000))):
            whose = (lease_id(number).hex(), tenants.get(number, "acme"))
            attributes = ((KIND, one.kind.name.lower()),)
            key = Key(NODE_A, "", *whose, f"leased.lease.{name}", attributes)
            active = 10 if most else 0
            for back in range(24):
                at_s = begin_s - back * WINDOW_S
                rows.append((key, Rollup(at_s, 10, 10 * most, most, active, 300 * 10**9)))
    host = Key(NODE_A, "", "", "", "leased.pressure.time", ())
    rows.append((host, Rollup(begin_s, 1, 0, 0, 0, 1)))
    with closing(Store(state)) as samples:
        samples.append(rows)


def read(desk: Desk) -> None:
    """All records that there are."""
    while desk.books._follow():
        pass
    desk.books._refresh()
    assert desk.books.is_read


def test_idle_waste_headroom_and_capacity(tmp_path: Path) -> None:
    now_ns, state = time.time_ns(), tmp_path / "state"
    fleet(state, now_ns)
    (tmp_path / "billing.toml").write_text(PRICES)
    (tmp_path / "policy.toml").write_text(POLICY)
    config = tmp_path / "leased-collector.toml"
    config.write_text(CONFIG)
    desk = Desk(partial(settings.load, config), state, tmp_path, say=print)
    for sock in desk.server._plain:  # nobody is answered by it
        sock.close()
    read(desk)

    def verb(*words: str) -> Any:
        out = io.StringIO()
        more = ("--json", "--config", str(config))
        console = Console(out, out, wall_ns=lambda: now_ns)
        assert main(("--state", str(state), *words, *more), console) == 0
        said = json.loads(out.getvalue(), parse_float=Decimal)
        assert said.pop("version") == 1
        return said

    def api(path: str) -> Any:
        (route,) = (one for one in desk.routes if one.path == f"/v1/governance/{path}")
        query = route.takes_query() if route.takes_query is not None else None
        answer = route.act(Call(Caller("ops", frozenset()), None, query, None, now_ns))
        return json.loads(PLAIN.encode(answer.value), parse_float=Decimal)

    try:
        idle = api("optimize/idle")
        # Three GiB for two hours at 0.7 a second.
        (lease,) = (one for one in idle["idle_resources"] if one["type"] == "lease")
        assert str(lease["wasted_cost"]) == "15120.000000"
        assert verb("idle") == idle
        capacity = api("capacity")
        assert list(capacity["headroom"].values()) == [35, 40]
        assert capacity["recommendations"] == []  # the worker came less than a cooldown ago
        assert verb("capacity") == capacity
        told = {one["lease_id"]: one["waste"] for one in api("optimize/waste")["leases"]}
        assert sorted(Counter(told.values()).values()) == [1, 1, 20]
        assert set(told.values()) == {"idle", "premium_waste", "fragmented"}
        assert {one["lease"]: one["class"] for one in verb("waste")["leases"]} == told
    finally:
        desk.close()


def test_capacity_as_csv_is_what_there_is_and_who_has_it(tmp_path: Path) -> None:
    """It was what to do about it, and nothing where there is nothing to do."""
    now_ns = time.time_ns()
    fleet(tmp_path, now_ns)
    prices = tmp_path / "billing.toml"
    prices.write_text(PRICES)
    words = ("--state", str(tmp_path), "capacity", "--terms", str(prices))

    def said(form: str) -> str:
        out = io.StringIO()
        assert main((*words, form), Console(out, out, wall_ns=lambda: now_ns)) == 0
        return out.getvalue()

    by_kind = json.loads(said("--json"), parse_float=Decimal)["current"]["by_kind"]
    rows = list(csv.DictReader(io.StringIO(said("--csv"))))
    assert {row.pop("kind"): {name: Decimal(row[name]) for name in row} for row in rows} == by_kind
    assert by_kind["cpu"]["allocated"] > 0
