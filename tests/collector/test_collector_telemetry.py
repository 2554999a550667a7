# SPDX-License-Identifier: Apache-2.0
"""The fleet's telemetry: what nodes send is judged, rolled up, kept within bounds, and asked."""

from __future__ import annotations

import gzip
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

from leased.collector.api.routes import Call, Caller
from leased.collector.api.telemetry_routes import Observed
from leased.collector.fleet import Fleet
from leased.collector.telemetry import views
from leased.collector.telemetry.decoding import (
    BODY_BYTES_MAX,
    FUTURE_NS_MAX,
    Key,
    Point,
    decode,
    unpack,
)
from leased.collector.telemetry.receiver import PRUNE_EVERY, Receiver
from leased.collector.telemetry.rollup import GAP_NS, WINDOW_S, Folding, Rollup
from leased.collector.telemetry.store import NAME, PRUNED_AT_ONCE, Store
from leased.economics.rates import DEFAULT_CARD
from leased.economics.waste import Waste
from leased.service.telemetry.otlp import Origin, encode
from leased.terms.errors import CallerError, StateError
from leased.terms.identity import LeaseId
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.resource import ResourceKind
from leased.terms.sample import Sample
from leased.terms.series import SERIES

NODE = "0123456789abcdef0123456789abcdef"
BEGIN_S = 1_767_225_600
NOW_NS = BEGIN_S * NS_PER_S
LEASE = LeaseId(b"\xab" * 16)


def moment(wall_ns: int = NOW_NS) -> Moment:
    return Moment(boot_ns=10**15, wall_ns=wall_ns, boot_id=b"b" * 16)  # type: ignore[arg-type]


def sample(name: str, value: int, resource: str = "gpu:GPU-1", **more: Any) -> Sample:
    attributes = more.pop("attributes", tuple((key, "x") for key in SERIES[name].attributes))
    return Sample(name, resource, value, 10**15, attributes, **more)


def sent(*samples: Sample, wall_ns: int = NOW_NS, node: str = NODE) -> bytes:
    return encode(Origin(node, "host", "1"), samples, moment(wall_ns))


# ---- decoding ------------------------------------------------------------------------------------


def test_what_the_node_read_comes_back_to_the_last_digit() -> None:
    """Every series, at both ends of what it may be."""
    for name, series in SERIES.items():
        for value in {series.least, series.least + 1, min(series.most, 2**52)}:
            told = decode(sent(sample(name, value)), NOW_NS)
            assert (told.node, told.rejected) == (NODE, 0), told.why
            [point] = told.points
            assert (point.key.name, point.value) == (name, value)
            assert point.key.attributes == tuple((key, "x") for key in series.attributes)
            assert point.time_ns == NOW_NS


def test_a_lease_and_its_tenant_come_along() -> None:
    one = sample("leased.lease.processes", 3, "", lease_id=LEASE, tenant="acme")
    [point] = decode(sent(one), NOW_NS).points
    assert (point.key.lease, point.key.tenant, point.key.resource) == (LEASE.hex(), "acme", "")


def altered(change: Any) -> bytes:
    """One point of power, changed by the test."""
    request = service.ExportMetricsServiceRequest.FromString(sent(sample("hw.power", 1000)))
    metric = request.resource_metrics[0].scope_metrics[0].metrics[0]
    change(metric, metric.gauge.data_points[0])
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m, p: setattr(m, "name", "nobody.knows"), "no series"),
        (lambda m, p: setattr(p, "as_double", math.nan), "not a number"),
        (lambda m, p: setattr(p, "as_double", 1e300), "cannot have"),
        (lambda m, p: setattr(p, "as_double", -1.0), "cannot have"),
        (lambda m, p: setattr(p, "time_unix_nano", 5), "not about now"),
        (lambda m, p: setattr(p, "time_unix_nano", NOW_NS + 3600 * NS_PER_S), "not about now"),
        (lambda m, p: setattr(p.attributes[0].value, "string_value", "x" * 300), "too long"),
        (lambda m, p: p.attributes.add(key="extra"), "not its own"),
        (
            lambda m, p: p.attributes.add(key="leased.lease.id").value.__setattr__(
                "string_value", "zz" * 16
            ),
            "lease",
        ),
        (lambda m, p: m.sum.data_points.add().CopyFrom(p), "not a sum"),
    ],
)
def test_what_cannot_be_meant_is_left_out_and_named(change: Any, why: str) -> None:
    told = decode(altered(change), NOW_NS)
    assert told.points == () and told.rejected == 1 and why in told.why


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "gzip"),
        (gzip.compress(b"\0" * (BODY_BYTES_MAX + 1), mtime=0), "gzip"),
        (gzip.compress(b"one", mtime=0) + gzip.compress(b"another", mtime=0), "gzip"),
        (b"", "br"),
    ],
)
def test_a_body_that_is_none_or_is_a_bomb_is_refused(body: bytes, encoding: str) -> None:
    with pytest.raises(CallerError):
        unpack(body, encoding)


async def test_what_media_and_codings_are_called_has_no_case(store: Store) -> None:
    clocks = {"wall_ns": lambda: NOW_NS, "newest_ns": lambda: NOW_NS}
    receiver = Receiver(store, **clocks, identify=lambda scope: NODE)
    told: list[dict[str, Any]] = []

    async def ask(body: bytes) -> tuple[int, bytes]:
        headers = {b"Content-Type": b"Application/X-Protobuf", b"Content-Encoding": b"GZIP"}
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/metrics"}
        scope["headers"] = list(headers.items())
        told.clear()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": gzip.compress(body, mtime=0)}

        async def send(message: dict[str, Any]) -> None:
            told.append(message)

        await receiver(scope, receive, send)
        return told[0]["status"], told[1]["body"]

    assert (await ask(sent(sample("hw.temperature", 1000))))[0] == 200
    # Who it says it is, is cut where it is too long, and not within a letter.
    status, body = await ask(sent(sample("hw.temperature", 1000), node="x" + "\U0001f600" * 40))
    assert status == 403 and body[2:].decode().startswith("a request of node x")
    assert len(body[2:]) == body[1] <= 120


@given(st.binary(max_size=400))
def test_no_bytes_do_harm(body: bytes) -> None:
    try:
        assert decode(body, NOW_NS).points == ()
    except CallerError:
        pass


# ---- rollups -------------------------------------------------------------------------------------


def key(name: str = "leased.lease.utilization", lease: str = "a") -> Key:
    return Key(NODE, "", lease, "acme", name, (("leased.resource.kind", "gpu"),))


def points(values: list[int | None], every_s: int = 10, **of: str) -> list[Point]:
    return [
        Point(key(**of), NOW_NS + at * every_s * NS_PER_S, value) for at, value in enumerate(values)
    ]


def folded(told: list[Point], takes: tuple[int, ...] = ()) -> dict[int, Rollup]:
    """Windows, added up; rows are taken after these many points, too."""
    folding, found = Folding(), {}
    for at, point in enumerate([*told, None], 1):
        if point is not None:
            assert folding.fold([point]) == 0
        if at in takes or point is None:
            for _, row in folding.take(told[min(at, len(told)) - 1].time_ns if told else NOW_NS):
                known = found.get(row.begin_s)
                found[row.begin_s] = row if known is None else known + row
    return found


def test_a_gauge_is_its_mean_its_most_and_the_time_it_covers() -> None:
    told = folded(points([0, 500_000, 1_000_000, 40_000]))
    assert told == {BEGIN_S: Rollup(BEGIN_S, 4, 1_540_000, 1_000_000, 2, 30 * NS_PER_S)}


def test_a_counter_is_how_much_it_grew_and_one_that_began_anew_is_not_negative() -> None:
    told = folded(points([1000, 3000, 100, 600], name="leased.lease.cpu.time"))
    assert told == {BEGIN_S: Rollup(BEGIN_S, 2, 2500, 200, 2, 20 * NS_PER_S)}


def test_gaps_ends_and_repetitions_are_not_covered() -> None:
    first = points([100, 100])
    again = [*first, *first]
    assert folded(again) == folded(first), "sent again is counted once"
    late = Point(key(), first[-1].time_ns + GAP_NS + 1, 100)
    assert folded([*first, late])[BEGIN_S].covered_ns == 10 * NS_PER_S
    ended = points([100, None, 100])
    assert folded(ended)[BEGIN_S].covered_ns == 0, "between an end and a beginning nothing is known"


@given(
    st.lists(st.none() | st.integers(0, 4_000_000), max_size=80),
    st.lists(st.integers(1, 80), max_size=6),
    st.sampled_from(("leased.lease.utilization", "leased.lease.cpu.time")),
)
def test_rows_taken_at_any_time_add_up_to_the_same(
    values: list[int | None], takes: list[int], name: str
) -> None:
    told = points(values, every_s=13, name=name)
    assert folded(told, tuple(takes)) == folded(told)


ROLLUPS = st.builds(Rollup, st.just(BEGIN_S), *(st.integers(0, 2**40) for _ in range(5))).filter(
    lambda one: one.count > 0
)


@given(ROLLUPS, ROLLUPS, ROLLUPS)
def test_adding_rollups_knows_no_order(one: Rollup, two: Rollup, three: Rollup) -> None:
    assert one + two == two + one and (one + two) + three == one + (two + three)


def test_a_series_too_many_is_refused_and_a_silent_one_makes_room() -> None:
    folding = Folding(series_max=2)
    many = [Point(key(lease=name), NOW_NS, 1) for name in "abc"]
    assert folding.fold(many) == 1 and len(folding) == 2
    folding.take(NOW_NS + GAP_NS + 1)
    assert len(folding) == 0 and folding.fold(many[2:]) == 0


def test_a_node_that_begins_rows_without_end_takes_nobody_elses_room() -> None:
    """Series of names that it makes up, or the windows of a whole day again and again."""
    folding = Folding(begun_max=5)
    folding.take(NOW_NS)
    mine = [Point(key(lease=f"{n}"), NOW_NS, 1) for n in range(9)]
    assert folding.fold(mine) == 4 and len(folding) == 5
    later = [Point(mine[0].key, NOW_NS + n * WINDOW_S * NS_PER_S, 1) for n in range(9)]
    assert folding.fold(later) == 8, "the row that is there is added to"
    another = msgspec.structs.replace(mine[0].key, node="f" * 32)
    assert folding.fold([Point(another, NOW_NS, 1)]) == 0
    folding.take(NOW_NS + WINDOW_S * NS_PER_S)
    assert folding.fold(later[1:]) == 3


def test_a_series_is_heard_again_after_our_clock_was_ahead() -> None:
    """It was a day ahead, as were the nodes; both are set back."""
    folding, ahead = Folding(), 24 * 3600 * NS_PER_S
    first, second = points([100, 200])
    folding.fold([Point(one.key, one.time_ns + ahead, one.value) for one in (first, second)])
    folding.take(NOW_NS + ahead)
    folding.take(NOW_NS)
    folding.fold([first, second])
    assert [row.count for _, row in folding.take(NOW_NS)] == [2]
    # A node's own clock may be that much ahead.
    folding.fold([Point(first.key, NOW_NS + FUTURE_NS_MAX, 1)])
    folding.take(NOW_NS)
    assert len(folding) == 1


# ---- the store -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


def fill(store: Store, told: list[Point]) -> None:
    folding = Folding()
    folding.fold(told)
    store.append(folding.take(NOW_NS))


def test_a_window_is_one_row_however_often_it_is_added_to(store: Store) -> None:
    told = points([100, 200, 300])
    for point in told:
        fill(store, [point])
    assert store._base.execute("SELECT count(*) FROM rollups").fetchone() == (1,)
    [(of, rollup)] = store.read(("leased.lease.utilization",), BEGIN_S, BEGIN_S + 1)
    assert of == key() and (rollup.count, rollup.total, rollup.most) == (3, 600, 300)
    assert not list(store.read(("leased.lease.utilization",), BEGIN_S + WINDOW_S, BEGIN_S * 2))
    assert not list(store.read(("hw.power",), 0, BEGIN_S * 2))


def test_who_was_heard_while_our_clock_was_ahead_is_behind_until_it_is_heard_again(
    store: Store, tmp_path: Path
) -> None:
    """It was an hour ahead, as was the node's; both are set back."""
    ahead_ns = NOW_NS + 3600 * NS_PER_S
    observed = Observed(tmp_path, lambda: DEFAULT_CARD, Fleet)
    of_itself = Key(NODE, "", "", "", "hw.temperature", ())

    def told(at_ns: int) -> None:
        folding = Folding()
        folding.fold([Point(of_itself, at_ns, 1)])
        store.append(folding.take(at_ns), now_ns=at_ns)

    def behind(now_ns: int) -> list[str]:
        call = Call(Caller("ops", frozenset()), None, None, None, now_ns)
        return list(observed.heat(call).value.reach.nodes_behind)

    told(ahead_ns)
    assert behind(ahead_ns) == []
    assert behind(NOW_NS) == [NODE]
    told(NOW_NS)
    assert behind(NOW_NS) == []
    assert behind(NOW_NS + 3000 * NS_PER_S) == [NODE]


def test_a_clock_that_is_ahead_forgets_no_sample(store: Store) -> None:
    newest = [NOW_NS]
    receiver = Receiver(
        store, wall_ns=lambda: NOW_NS + 10**9 * NS_PER_S, newest_ns=lambda: newest[0]
    )
    fill(store, points([1] * 3, every_s=WINDOW_S))
    for kept in (3, 0):
        receiver._keep(prune=True)
        assert store._base.execute("SELECT count(*) FROM rollups").fetchone() == (kept,)
        newest[0] += 10**9 * NS_PER_S


@pytest.mark.parametrize("name", sorted(SERIES))
def test_no_node_says_more_than_the_store_holds(store: Store, name: str) -> None:
    """It ended the collector of the whole fleet: what is kept has 64 bits."""
    most, least = SERIES[name].most, SERIES[name].least
    folding = Folding()
    key = Key(NODE, "cpu", "", "", name, ())
    values = [least, most] if SERIES[name].counter else [most] * 2
    folding.fold(Point(key, NOW_NS + at, values[at % 2]) for at in range(400))
    rows = folding.take(NOW_NS)
    for _ in range(60):
        store.append(rows)
    assert 0 < rows[-1][1].most <= 2**56 and rows[-1][1].total <= 2**56
    whole = Rollup(BEGIN_S, 1, 2**56, 2**56, 1, 1)
    for window in range(200):
        same = Rollup(BEGIN_S + window * WINDOW_S, 1, 2**56, 2**56, 1, 1)
        store.append([(key, whole), (key, same)])
    [(_, found)] = store.read((name,), BEGIN_S, BEGIN_S + 200 * WINDOW_S)
    assert found.most == 2**56 and isinstance(found.total, int)
    assert found.total == 2**63 - 1, "of a long time, all that the answer holds"


def test_what_is_used_of_much_memory_is_told(store: Store) -> None:
    """Bytes times parts per million, of a fleet for a day: 64 bits were not enough, and the history
    of memory was refused as if the store was busy."""
    for lease in range(40):
        fill(store, lease_points(f"{lease:032x}", [250_000] * 9, 1 << 40, "mem"))
    [(used, held)] = store.shares_by("mem", BEGIN_S, BEGIN_S + 3600, 3600).values()
    assert held > 2**64 and used * 4 == held


def test_the_oldest_rows_go_by_age_and_by_number(tmp_path: Path) -> None:
    store = Store(tmp_path, keep_ns=3600 * NS_PER_S, rows_max=5)
    fill(store, points([1] * 12, every_s=WINDOW_S))
    assert store.prune(NOW_NS) == 7
    [(_, kept)] = store.read(("leased.lease.utilization",), 0, BEGIN_S * 2)
    assert kept.begin_s == BEGIN_S + 7 * WINDOW_S
    assert store.prune(NOW_NS + 100 * 3600 * NS_PER_S) == 5
    assert store._base.execute("SELECT count(*) FROM series").fetchone() == (0,)
    fill(store, points([1]))  # what was forgotten is made again
    store.close()


class _Filled:
    """In the place of a store that has more than goes at once, three times."""

    def __init__(self) -> None:
        self.rounds, self.pruned, self.done = 0, [3 * PRUNED_AT_ONCE], trio.Event()

    def append(self, rows: object, *, now_ns: int) -> None:
        self.rounds += 1
        if self.rounds == PRUNE_EVERY + 5:
            trio.from_thread.run_sync(self.done.set)

    def prune(self, now_ns: int) -> int:
        gone = min(self.pruned[-1], PRUNED_AT_ONCE)
        self.pruned.append(self.pruned[-1] - gone)
        return gone


async def test_what_is_too_much_to_go_at_once_goes_with_the_next_rounds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A thousand nodes tell 340 000 rows in ten minutes, and 100 000 went in as much time."""
    store = _Filled()
    clocks = {"wall_ns": lambda: NOW_NS, "newest_ns": lambda: NOW_NS}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Receiver(store, **clocks).run)  # type: ignore[arg-type]
        await store.done.wait()
        nursery.cancel_scope.cancel()
    assert store.pruned == [300_000, 200_000, 100_000, 0, 0]


def test_a_store_of_another_format_or_of_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(StateError, match="not a database"):
        Store(tmp_path)
    (tmp_path / NAME).unlink()
    base = sqlite3.connect(tmp_path / NAME)
    base.execute("PRAGMA user_version=9")
    base.close()
    with pytest.raises(StateError, match="format 9"):
        Store(tmp_path)


def test_a_store_that_was_only_begun_has_nothing_yet(tmp_path: Path) -> None:
    """As a disk leaves it that was full when it was to be made."""
    (tmp_path / NAME).touch()
    with pytest.raises(StateError, match="no telemetry was received yet"):
        Store(tmp_path, reading=True)


def test_a_page_that_the_disk_has_changed_is_told_and_no_traceback(tmp_path: Path) -> None:
    writer = Store(tmp_path)
    fill(writer, points([1, 2]))
    writer._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()
    raw = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))
    store = Store(tmp_path, reading=True)
    for ask in (store.last_s, store.heard, lambda: list(store.leases(0, BEGIN_S * 2))):
        with pytest.raises(StateError, match="malformed"):
            ask()
    store.close()


def test_whoever_reads_makes_nothing_and_disturbs_nobody(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no telemetry"):
        Store(tmp_path, reading=True)
    assert list(tmp_path.iterdir()) == []
    writer = Store(tmp_path)
    fill(writer, points([1, 2]))
    writer._base.execute("BEGIN IMMEDIATE")
    reader = Store(tmp_path, reading=True)
    [(_, seen)] = reader.read(("leased.lease.utilization",), 0, BEGIN_S * 2)
    assert seen.count == 2
    reader.close()
    writer.close()


# ---- views ---------------------------------------------------------------------------------------


def lease_points(
    lease: str, used: list[int], capacity: int, kind: str = "gpu", node: str = NODE
) -> list[Point]:
    told = []
    for at, value in enumerate(used):
        at_ns = NOW_NS + at * 10 * NS_PER_S
        for name, shown in (("utilization", value), ("capacity", capacity)):
            of = Key(
                node, "", lease, "acme", f"leased.lease.{name}", (("leased.resource.kind", kind),)
            )
            if shown >= 0:
                told.append(Point(of, at_ns, shown))
    return told


def test_utilization_of_a_lease_says_how_much_was_seen(store: Store) -> None:
    fill(store, lease_points("a", [200_000] * 13, 1000))
    [one] = views.leases(store, BEGIN_S, BEGIN_S + 1)
    assert (one.lease, one.tenant, one.kind) == ("a", "acme", ResourceKind.GPU)
    assert (one.capacity, one.held_ns) == (1000, 120 * NS_PER_S)
    seen = one.utilization
    assert (seen.mean_pm, seen.active_share_pm, seen.sample_count) == (200, 1000, 13)
    assert seen.coverage_pm == 1000
    assert views.leases(store, BEGIN_S, BEGIN_S + 1, node="b" * 32) == []


def test_waste_by_class(store: Store) -> None:
    fill(
        store,
        [
            *lease_points("idle", [0] * 20, 1000),
            *lease_points("premium", [240_000] * 20, 1000),
            *lease_points("healthy", [800_000] * 20, 1000),
            *lease_points("wide", [100_000] * 20, 4000, "cpu"),
            *lease_points("short", [0] * 4, 1000),
            *lease_points("unseen", [-1] * 20, 1 << 30, "mem"),
        ],
    )
    judged = views.waste(views.leases(store, BEGIN_S, BEGIN_S + 1), DEFAULT_CARD)
    assert {one.held.lease: one.waste for one in judged} == {
        "idle": Waste.IDLE,
        "premium": Waste.PREMIUM,
        "healthy": Waste.HEALTHY,
        "wide": Waste.OVERPROVISIONED,
        "short": Waste.UNKNOWN,
        "unseen": Waste.UNKNOWN,
    }


def test_the_queue_is_of_all_nodes_and_of_now(store: Store) -> None:
    def told(node: str, since_s: int, *depths: int) -> list[Point]:
        of = Key(node, "agent", "", "", "leased.queue.depth", ())
        return [
            Point(of, (BEGIN_S + since_s + 10 * at) * NS_PER_S, depth)
            for at, depth in enumerate(depths)
        ]

    assert views.queue_depth(store, BEGIN_S + 600) is None
    fill(store, [*told("a", 0, 10, 0, 1), *told("b", 300, 0, 0), *told("c", -900, 7)])
    # Of a the mean, rounded up; what c said is a quarter of an hour old.
    for into in range(0, 300, 23):  # however far the open window is
        assert views.queue_depth(store, BEGIN_S + 300 + into) == 4
        assert views.queue_depth(store, BEGIN_S + 600 + into) == 0
    assert views.queue_depth(store, BEGIN_S + 900) is None


def test_heat_is_of_the_hottest_and_of_the_last_quarter_of_an_hour(store: Store) -> None:
    def told(node: str, name: str, value: int, *attributes: str) -> list[Point]:
        pairs = tuple(zip(SERIES[name].attributes, attributes, strict=True))
        of = Key(node, "gpu:1", "", "", name, pairs)
        return [Point(of, NOW_NS + at * 10 * NS_PER_S, value) for at in range(4)]

    waits = Key(
        "c",
        "host",
        "",
        "",
        "leased.pressure.time",
        (("leased.pressure.resource", "io"), ("leased.pressure.kind", "some")),
    )
    fill(
        store,
        [
            *told("a", "hw.temperature", 75_000, "gpu", "gpu"),
            *told("a", "hw.temperature", 89_000, "physical_disk", "1"),
            *told("b", "leased.gpu.throttled", 1, "hardware_thermal"),
            *told("d", "leased.gpu.throttled", 1, "power_cap"),
            *(Point(waits, NOW_NS + at * 10 * NS_PER_S, at * NS_PER_S) for at in range(4)),
        ],
    )
    found = {node: (one.heat_pm, one.by) for node, one in views.heat(store, BEGIN_S).items()}
    assert found == {
        "a": (500, "temperature"),
        "b": (1000, "throttling"),
        "c": (200, "pressure"),
        "d": (0, ""),
    }
    # Its window ends five minutes after it begins, and is of the last quarter until 15 later.
    assert len(views.heat(store, BEGIN_S + 1_199)) == 4
    assert views.heat(store, BEGIN_S + 1_200) == {}
