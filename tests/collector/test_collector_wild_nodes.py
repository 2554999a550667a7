# SPDX-License-Identifier: Apache-2.0
"""A node whose chain verifies and says what cannot be: its own figures suffer by it, and nobody
else's. Root on a node may seal what it likes; the archive keeps that for good."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.chain.canonical import decode, encode, schema_of
from leased.chain.head import GENESIS
from leased.chain.note import Checkpoint, NoteKey, write_note
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.invoices import Invoices
from leased.collector.api.books import Books
from leased.collector.archive.archive import Archive, LogEntry, Page
from leased.collector.archive.manifest import Manifest
from leased.collector.archive.manifests import share
from leased.collector.demo import Wish, make_fleet
from leased.collector.enrolment import enrol
from leased.collector.ingest import Pinned
from leased.collector.main import main
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.planning.forecast import forecast
from leased.collector.planning.reserving import reservations
from leased.ctl.console import Console
from leased.economics.contracts import Terms
from leased.terms import event as e
from leased.terms.errors import ChainError, ConfigError
from leased.terms.moment import DAY_NS, HOUR_NS, Moment
from leased.terms.resource import AMOUNT_MAX
from tests.collector.test_collector_ingest import node
from tests.collector.test_collector_pull import Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import CountedEntropy, events_of_every_kind, lease_life, moment_at, started
from tests.doubles.node_server import NodeServer, serving
from tests.doubles.nodes import PulledNode
from tests.doubles.postgres_server import PostgresServer

UNTIL_NS = 1_767_225_600 * 10**9
EXTREMES = (0, AMOUNT_MAX, AMOUNT_MAX + 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63))
CLOCKS = (0, 1 << 60, 2**63 - 1, 2**63, 2**64 - 1)
Records = list[tuple[e.Event, Moment]]


def with_numbers(value: Any, extreme: int) -> Iterator[Any]:
    """The value once for each number in it, that number another."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield extreme
    elif isinstance(value, list):
        for at, one in enumerate(value):
            for changed in with_numbers(one, extreme):
                yield [*value[:at], changed, *value[at + 1 :]]


def sayable(event: e.Event) -> Iterator[e.Event]:
    """The event with each of its numbers at each edge, as far as a record can say it."""
    kind, schema = e.KIND[type(event)], schema_of(event)
    for extreme in EXTREMES:
        for changed in with_numbers(msgspec.msgpack.decode(encode(event)), extreme):
            try:
                told = decode(kind, schema, msgspec.msgpack.encode(changed))
            except ChainError:
                continue
            assert isinstance(told, e.Event)
            yield told


def wild_histories() -> Iterator[Records]:
    """Of everything that bears on usage: among leases that begin, go on and end."""
    for event in events_of_every_kind():
        for changed in sayable(event):
            begun = [] if isinstance(changed, e.NodeStarted) else [started()]
            told = [*begun, *lease_life(1), changed, *lease_life(2)[:2]]
            yield [(one, moment_at(at)) for at, one in enumerate(told)]
    for clock in CLOCKS:
        for field in ("boot_ns", "wall_ns"):
            for event in (started(), e.ClockStepped(started().event_id, 5), *lease_life(3)[:1]):
                told = [started(), *lease_life(1), event, *lease_life(2)[:2]]
                records = [(one, moment_at(at)) for at, one in enumerate(told)]
                at = told.index(event, 1)
                wild = msgspec.structs.replace(records[at][1], **{field: clock})
                yield [*records[:at], (event, wild), *records[at + 1 :]]


def keep(archive: Archive, number: int, records: Records) -> None:
    """As a log of its own."""
    log_id = number.to_bytes(4, "big") * 4
    sealer = Sealer(log_id, GENESIS, EMPTY, 1, entropy=CountedEntropy(log_id))
    sealed = [sealer.seal([one]) for one in records]
    frames, head = b"".join(one.frames for one in sealed), sealed[-1].new_head
    name = f"wild-{number}"
    archive.add_log(LogEntry(log_id.hex(), log_id.hex(), name, f"{name}.test", GENESIS))
    page = Page(log_id.hex(), GENESIS, head, frames, b"", head.size - 1, "", UNTIL_NS)
    assert archive.persist([page]) == [None]


def bills(state: Path) -> dict[str, bytes]:
    """Those of the honest tenants, without whose chains they are of."""
    accounts = Accounts(StoreSource(Store(state).rollups), Terms())
    honest = sorted(one for one in accounts.source.tenants() if one != "research")
    told = {one: accounts.bill(one, "2025-12") for one in honest}
    return {one: msgspec.json.encode(bill.line_items) for one, bill in told.items()}


def test_what_one_node_says_ends_nobody_elses_bill(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "state")
    try:
        make_fleet(archive, Wish(nodes=1, days=35, seed=7, until_ns=UNTIL_NS, leases_per_day=12))
        Store(tmp_path / "state").refresh(archive)
        before = bills(tmp_path / "state")
        assert len(before) > 2
        histories = list(wild_histories())
        assert len(histories) > 1000
        for number, records in enumerate(histories, start=1):
            keep(archive, number, records)
        Store(tmp_path / "state").refresh(archive)
        assert bills(tmp_path / "state") == before
    finally:
        archive.close()


def test_a_tenant_that_nobody_may_be_called_keeps_nobody_from_a_bill(tmp_path: Path) -> None:
    until_ns, names = UNTIL_NS + 2 * DAY_NS, ("", "a\nb", "n\0", "../../../x", "y" * 300, "ü")
    with closing(Archive(tmp_path)) as archive:
        make_fleet(archive, Wish(nodes=1, days=5, seed=7, until_ns=until_ns, leases_per_day=12))
        granted = lease_life(1)[0]
        for number, name in enumerate(names, 1):
            whose = msgspec.structs.replace(granted.subject, tenant=name)
            told = [started(), msgspec.structs.replace(granted, subject=whose)]
            records = [(one, moment_at(at)) for at, one in enumerate(told)]
            keep(
                archive,
                number,
                [(one, msgspec.structs.replace(at, wall_ns=until_ns)) for one, at in records],
            )
        Store(tmp_path).refresh(archive)
        accounts = Accounts(StoreSource(Store(tmp_path).rollups), Terms(), Invoices(tmp_path))
        assert set(names) < set(accounts.source.tenants())
        issued = {bill.tenant for bill in accounts.issue("2025-12")}
    assert len(issued) > 2 and issued.isdisjoint(names)


def lately(state: Path) -> tuple[dict[str, Any], list[str]]:
    """What everybody cost in the last 30 days, and what else was said, by the verb and by whoever
    the server asks."""
    out, err = io.StringIO(), io.StringIO()
    assert main(("--state", str(state), "costs", "--json"), Console(out, err)) == 0
    said: list[str] = []
    books = Books(state, Terms, said.append)
    while books._follow():
        pass
    books._refresh()
    served = books.ask(lambda accounts: accounts.costs(accounts.last("30d")))
    assert served is not None
    told: dict[str, Any] = json.loads(out.getvalue(), parse_float=Decimal)
    assert told["total_cost"] == served.total_cost
    heard = [one for one in said if one.startswith("node ")]
    assert [f"leasectl: {one}" for one in heard] == err.getvalue().splitlines()
    return told, heard


def test_a_node_whose_clock_is_ahead_tells_nobody_else_what_time_it_is(tmp_path: Path) -> None:
    """Its host booted ten years ahead: what it seals is of then, until then."""
    state = tmp_path / "state"
    with closing(Archive(state)) as archive:
        make_fleet(archive, Wish(nodes=2, days=35, seed=7, until_ns=UNTIL_NS, leases_per_day=12))
        before, said = lately(state)
        assert not said
        records = [(one, moment_at(at)) for at, one in enumerate([started(), *lease_life(1)])]
        keep(
            archive,
            1,
            [
                (event, msgspec.structs.replace(at, wall_ns=at.wall_ns + 3650 * DAY_NS))
                for event, at in records
            ],
        )
        after, said = lately(state)
    assert ["labels what it seals 2036-" in one for one in said] == [True]
    assert before["total_cost"] > 1000
    for name in ("total_cost", "by_tenant", "interval", "period"):
        assert after[name] == before[name]
    assert after["reach"]["as_of"] == before["reach"]["as_of"]


def planned(archive: Archive) -> Any:
    """What to expect and to reserve."""
    Store(archive.directory).refresh(archive)
    accounts = Accounts(StoreSource(Store(archive.directory).rollups), Terms())
    expected, worth = forecast(accounts, "31d"), reservations(accounts, "90d")
    return expected.history_days, expected.predictions, worth.recommendations


def test_a_host_that_began_by_an_old_clock_is_no_history_of_a_fleet(tmp_path: Path) -> None:
    """It has none while it is off, and was told what time it is after its first records."""
    with closing(Archive(tmp_path)) as archive:
        make_fleet(archive, Wish(nodes=1, days=35, seed=7, until_ns=UNTIL_NS, leases_per_day=12))
        before = planned(archive)
        begun = [started(), *lease_life(1), e.ClockStepped(started().event_id, UNTIL_NS)]
        records = [(one, moment_at(at)) for at, one in enumerate(begun)]
        old_ns = UNTIL_NS - 400 * DAY_NS
        walls = [*range(old_ns, old_ns + len(records) - 1), UNTIL_NS - HOUR_NS]
        told = zip(records, walls, strict=True)
        keep(
            archive,
            1,
            [(one, msgspec.structs.replace(at, wall_ns=wall_ns)) for (one, at), wall_ns in told],
        )
        assert planned(archive) == before
    assert before[0] == 35 and before[1] and before[2]


@pytest.mark.parametrize("amount", [-1, AMOUNT_MAX + 1, 2**64 - 1])
def test_an_amount_that_nothing_has_is_no_record(amount: int) -> None:
    granted = lease_life(1)[0]
    raw = msgspec.msgpack.decode(encode(granted))
    raw[2][8][0][3] = amount
    with pytest.raises(ChainError, match="BAD_BODY"):
        decode(e.KIND[e.Allocated], 1, msgspec.msgpack.encode(raw))


def test_a_log_whose_id_begins_as_anothers_is_not_followed(tmp_path: Path) -> None:
    """Usage is reckoned by eight bytes of it: one such log would end the usage of all."""
    manifest = Manifest(tmp_path)
    first = Pinned(b"12345678abcdefgh", b"n" * 16, "one.test", b"k" * 32, 0, 0, None)
    other = msgspec.structs.replace(first, log_id=b"12345678ijklmnop", node_id=b"m" * 16)
    try:
        assert enrol(manifest, "one", "https://one:7443", first, 1)
        with pytest.raises(ConfigError, match="it was chosen"):
            enrol(manifest, "two", "https://two:7443", other, 1)
        assert [name for name, _, _ in manifest.nodes()] == ["one"]
    finally:
        manifest.close()


class Extended(PulledNode):
    """Signs a checkpoint with one line more, in which there is what no database's text can hold."""

    def note(self, *given: Any, **options: Any) -> str:
        text = Checkpoint(self.origin, self.size, self.tree(self.size).root()).text() + "more\0\n"
        key = NoteKey(self.origin, self.signer.public_key)
        return write_note(text, [(key, self.signer.sign(text.encode()))])


async def test_what_a_node_signs_ends_no_collector_that_shares_the_fleet(tmp_path: Path) -> None:
    pki = FleetPki(tmp_path / "pki")
    west = Collector(tmp_path, pki)
    bad, good = NodeServer(Extended(2)), NodeServer(node())
    bad.node.start()
    size = good.node.size
    with PostgresServer() as server:
        async with serving(pki, bad, good):
            west.enrol(bad, "bad")
            west.enrol(good, "good")
            share(west.state, server.database, "west")
            reached = await west.pull()
    assert (reached["good"].verdict, reached["good"].size) == ("OK", size)
    assert reached["bad"].verdict == "BAD_SIG"
