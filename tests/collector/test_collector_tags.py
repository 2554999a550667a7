# SPDX-License-Identifier: Apache-2.0
"""Tags: one of its own for each lease, without a cost centre, of synthetic probes. Metered as the
reference says, in memory that does not grow with the number of tags.

Does not look at bills line by line (`test_collector_accounts`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.accounts import periods
from leased.collector.accounts.accounts import Accounts
from leased.collector.archive.archive import Archive, ArchiveReader, LogEntry, Page
from leased.collector.metering.blocks import BLOCK_RECORDS, PARTIES_MAX, LogBlocks
from leased.collector.metering.projecting import MARK
from leased.collector.metering.reference import read_archive
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.verbs.store import compare
from leased.economics.contracts import Contract, Model, Terms, UsageRates
from leased.economics.pools import Pool
from leased.terms.lease import SYNTHETIC, AccountingTag
from leased.terms.moment import HOUR_NS
from leased.terms.resource import ResourceKind
from tests.doubles.accounts import WrittenSource
from tests.doubles.economics_history import History, memory, subject
from tests.doubles.fleet_archive import GIB, JANUARY_NS, NODE_A, NODE_B
from tests.doubles.logs import CountedEntropy

TAGS = PARTIES_MAX + 500
LEASES = BLOCK_RECORDS // 3 + 1_000
PROBES = 3
BATCH = 4_096
WINDOW = (JANUARY_NS, JANUARY_NS + 24 * HOUR_NS)


def lived(leases: int) -> History:
    """So many leases, a second each; the tags come round, the first few are probes."""
    history = History(wall_offset_ns=JANUARY_NS)
    history.start()
    history.inventory(memory(GIB))
    for number in range(1, leases + 1):
        flags = SYNTHETIC if number <= PROBES else 0
        odd = '"],1]' if number == LEASES else ""
        tag = AccountingTag(f"cc{odd}", f"run-{number % TAGS}", budget_group=odd, flags=flags)
        history.allocate(number, subject(memory(GIB), tag=tag), history.boot_ns + HOUR_NS)
        history.boot_ns += 10**9
        history.release(number)
        history.reclaim(number)
    history.boot_ns = 24 * HOUR_NS
    history.touch()
    return history


def keep(archive: Archive, node: str, history: History) -> None:
    """As one log of a node, in one page."""
    log_id = bytes.fromhex(node)[::-1]
    archive.add_log(LogEntry(log_id.hex(), node, node[:8], f"test/{log_id.hex()[:8]}", GENESIS))
    sealer = Sealer(log_id, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    events = [(event, moment) for _, event, moment in history.records]
    sealed = [sealer.seal(events[at : at + BATCH]) for at in range(0, len(events), BATCH)]
    head, frames = sealed[-1].new_head, b"".join(one.frames for one in sealed)
    page = Page(log_id.hex(), GENESIS, head, frames, b"", head.size, "", WINDOW[1])
    assert archive.persist([page]) == [None]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes with the same tags, metered."""
    state = tmp_path_factory.mktemp("collector") / "state"
    archive = Archive(state)
    keep(archive, NODE_A, lived(LEASES))
    keep(archive, NODE_B, lived(TAGS))
    Store(state).refresh(archive)
    archive.close()
    yield state


def logs(state: Path) -> list[LogBlocks]:
    names = (bytes.fromhex(node)[::-1].hex() for node in (NODE_A, NODE_B))
    return [LogBlocks(state / "derived", log_id) for log_id in names]


def test_many_tags_are_in_a_file_and_not_in_memory(fleet: Path) -> None:
    first, second = logs(fleet)
    assert [one.parties is None for one in first.sidecars()] == [True, False]
    assert [one.parties is None for one in second.sidecars()] == [True]
    for blocks in (first, second):
        (path,) = blocks.parties(blocks.sidecars())
        assert path.stat().st_size > 10 * (path.parent / "00000000.rare").stat().st_size


def test_whoever_has_many_tags_is_metered_as_the_reference_says(fleet: Path) -> None:
    archive = ArchiveReader(fleet)
    ours, theirs = StoreSource(Store(fleet).rollups), read_archive(archive)
    try:
        assert compare(ours, theirs) == []
        for whose in (None, "acme"):
            for tags in (False, True):
                told = ours.sums(WINDOW, whose, tags=tags)
                assert told == theirs.sums(WINDOW, whose, tags=tags)
                assert (len(told) < 10) != tags
        assert ours.leases(WINDOW, "acme", 1) == theirs.leases(WINDOW, "acme", 1)
        swept = sorted(map(repr, ours.node_amounts(WINDOW)))
        assert swept == sorted(map(repr, theirs.node_amounts(WINDOW)))
        assert sum(ours.tasks(WINDOW).values()) == LEASES + TAGS - 2 * PROBES
    finally:
        ours.close()
        archive.close()


def test_a_probe_is_no_task_on_a_bill(fleet: Path) -> None:
    rates = UsageRates(task_nano=1_000_000_000)
    contract = Contract("acme", 0, Model.USAGE_BASED, rates=rates)
    source = StoreSource(Store(fleet).rollups)
    accounts = Accounts(source, Terms(contracts=(contract,)))
    lines = accounts.bill("acme", "2024-01").line_items
    charged = {line.description: line.quantity for line in lines}
    told = accounts.usage("acme", periods.window("2024-01-01", "2024-01-01"), "total")
    source.close()
    assert charged["Tasks"] == str(LEASES + TAGS - 2 * PROBES) == str(told.tasks)


def test_a_tag_without_a_cost_centre_is_shared_cost() -> None:
    """`run --tag project=atlas` names a project, and nobody who pays."""
    source = WrittenSource()
    for tag in (None, AccountingTag("", "atlas"), AccountingTag("CC-1", "atlas")):
        source.hold("t", ResourceKind.CPU, 1_000, range(4), tag=tag)
    source.hold("", ResourceKind.CPU, 3_000, range(4), pool=Pool.PROVISIONED)
    told = Accounts(source, Terms()).chargeback("2024-01")
    assert [(row.cost_center, row.share) for row in told.allocations] == [
        ("CC-SHARED", Decimal("0.67")),
        ("CC-1", Decimal("0.33")),
    ]


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_of_tags_that_a_power_cut_took_is_made_again(
    fleet: Path, tmp_path: Path, gone: bool
) -> None:
    state = tmp_path / "state"
    shutil.copytree(fleet, state)
    (path,) = logs(state)[0].parties(logs(state)[0].sidecars())
    before = path.read_bytes()
    path.unlink() if gone else path.write_bytes(bytes(len(before)))
    (state / "derived" / MARK).write_text("another boot")
    (state / "derived/rollup/rollup.json").unlink()
    archive = ArchiveReader(state)
    Store(state).refresh(archive)
    archive.close()
    assert path.read_bytes() == before
