# SPDX-License-Identifier: Apache-2.0
"""What the API tells of now: nodes that will not be heard of again have and hold nothing any more,
and a price that begins later prices nothing yet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import Archive
from leased.collector.metering.reference import read_archive
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.planning.capacity import capacity, idle
from leased.economics.contracts import Terms
from tests.collector.test_collector_metrics import scraped
from tests.doubles.collector_server import CollectorServer
from tests.doubles.economics_history import History
from tests.doubles.fleet_archive import HOUR_NS, NODE_A, NODE_B, cores, sample, store

GOVERNANCE = "/v1/governance"
LATER = '[[cards]]\nsince = "2099-01-01"\ngpu = "9"\ncpu = "9"\nmem = "9"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("now")
    sample(directory / "state", time.time_ns())
    (directory / "billing.toml").write_text(f'retired_nodes = ["{NODE_B}"]\n{LATER}')
    with CollectorServer(directory=directory) as running:
        running.wait_for("usage is up to date")
        yield running


def test_a_retired_node_is_no_capacity_and_counts_against_nobody(server: CollectorServer) -> None:
    there = {"cpu_cores": 400, "memory_gb": 1024, "gpus": 8}
    assert server.ask("GET", f"{GOVERNANCE}/allocations").json["capacity"] == there
    told = server.ask("GET", f"{GOVERNANCE}/capacity").json["current"]
    assert (told["cpu_cores"]["total"], told["by_kind"]["gpu"]["total"]) == (400, 8)
    assert told["workers"] == {"total": 1, "active": 1, "draining": 0, "idle": 0}
    assert server.ask("GET", f"{GOVERNANCE}/usage/beta").json["quotas"]["max_leases"]["used"] == 1
    assert server.ask("GET", f"{GOVERNANCE}/optimize/idle").json["idle_resources"] == []
    best = server.ask("GET", f"{GOVERNANCE}/optimize/placement?tenant=beta&cpu=1").json
    assert NODE_B not in str(best["nodes"])


def test_it_is_still_known(server: CollectorServer) -> None:
    nodes = server.ask("GET", "/v1/nodes").json["nodes"]
    assert {row["name"]: row["state"] for row in nodes} == {"host-a": "active", "host-b": "retired"}


def test_the_metrics_are_of_what_is_there_at_todays_prices(server: CollectorServer) -> None:
    found = scraped(server)
    hourly = found["grey_cost_hourly_dollars"]
    assert sum(hourly.values()) == pytest.approx(400 * 7.2 + 1024 * 3.6 + 8 * 36)
    mine = found["grey_cost_tenant_hourly_dollars"]['tenant="tenant-acme"']
    assert mine == pytest.approx(45 * 7.2 + 128 * 3.6)
    # Who will not be heard of again is not silent for ever; what it sealed was verified.
    assert list(found["grey_chain_head_age_seconds"]) == ['node="host-a"']
    assert len(found["grey_chain_verified_records_total"]) == 2


def idle_for_two_hours(archive: Archive, node: str, log: str, count: int) -> None:
    """A node that has so many cores and was not used, by one of its logs."""
    now_ns = time.time_ns() // HOUR_NS * HOUR_NS
    history = History(wall_offset_ns=now_ns - 2 * HOUR_NS)
    history.start()
    history.inventory(cores(count))
    history.boot_ns = 2 * HOUR_NS
    history.touch()
    store(archive, node[:2], node, history, now_ns, log=log)
    archive.manifest.follow(node[:2], f"https://{node[:2]}", log)


def both(archive: Archive, state: Path, terms: Terms, **how: Any) -> Iterator[Accounts]:
    """The accounts by the store, and by the reference."""
    rollups = Store(state)
    rollups.refresh(archive, **how)
    for source in (StoreSource(rollups.rollups), read_archive(archive)):
        yield Accounts(source, terms)
    archive.close()


def test_a_node_with_another_log_is_there_once(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    idle_for_two_hours(archive, NODE_A, "08" * 16, 8)
    idle_for_two_hours(archive, NODE_A, "0c" * 16, 12)
    for accounts in both(archive, tmp_path, Terms()):
        told = capacity(accounts).current
        assert (told.cpu_cores.total, told.workers.total) == (12, 1)


def test_that_a_node_was_idle_until_it_retired_was_waste(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    idle_for_two_hours(archive, NODE_A, "08" * 16, 8)
    idle_for_two_hours(archive, NODE_B, "0c" * 16, 12)
    terms = Terms(retired_nodes=(NODE_B,))
    for accounts in both(archive, tmp_path, terms, retired=frozenset(terms.retired_nodes)):
        told = idle(accounts)
        assert [one.resource for one in told.idle_resources] == [NODE_A]
        assert told.total_waste_last_7d == Decimal("288")  # 20 cores for two hours at 7.2
