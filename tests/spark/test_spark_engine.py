# SPDX-License-Identifier: Apache-2.0
"""Apache Spark on the same files by the same SQL: a real master, two workers and a Connect server,
started here and stopped here. The golden month has the same bytes as by DuckDB and the same cells
as by the reference, also when a worker is killed in the middle of a query; without a server the
collector goes on, and nothing of what it had is lost.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.demo import Wish, make_fleet
from leased.collector.metering.engine import EXACT, OVERFLOWS, EngineGone, Overflow, check_engine
from leased.collector.metering.reference import read_archive
from leased.collector.metering.store import Store
from leased.collector.metering.store_source import StoreSource
from leased.collector.verbs.store import compare
from leased.terms.moment import NS_PER_S
from tests.doubles.collector_server import CollectorServer
from tests.doubles.spark_cluster import SparkCluster, spark_home

pytestmark = pytest.mark.filterwarnings("ignore")  # grpc's and pandas', of the client

UNTIL_NS = 1_767_225_600 * NS_PER_S
"""2026-01-01T00:00:00Z: the golden month is December 2025."""

ENDLESS = "SELECT SUM(id % 7) FROM range(1000000000000000)"
"""A thousand at a time, and ended between them where it is given up."""

WISH = Wish(nodes=3, days=31, seed=12, until_ns=UNTIL_NS, leases_per_day=16)
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    with SparkCluster(tmp_path_factory.mktemp("spark")) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden month, metered by DuckDB."""
    spark_home()
    state = tmp_path_factory.mktemp("golden") / "state"
    archive = Archive(state)
    make_fleet(archive, WISH)
    Store(state).refresh(archive)
    archive.close()
    return state


def without_usage(fleet: Path, where: Path) -> Path:
    """A copy of a state in which nothing was metered yet."""
    shutil.copytree(fleet, where / "state")
    shutil.rmtree(where / "state" / "derived" / "rollup")
    return where / "state"


def rollups(state: Path) -> dict[str, str]:
    found = sorted((state / "derived" / "rollup").iterdir())
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in found}


def place(cluster: SparkCluster) -> object:
    from leased.collector.metering.spark import Cluster

    return Cluster(cluster.url, cluster.token)


def test_spark_raises_where_a_number_does_not_fit(cluster: SparkCluster) -> None:
    from leased.collector.metering.spark import SparkEngine

    engine = SparkEngine(place(cluster))
    assert check_engine(engine) == len(OVERFLOWS) + len(EXACT)
    with pytest.raises(Overflow):
        engine.derive("wrong", OVERFLOWS[0])
    engine.close()
    engine.close()


def test_a_token_that_is_not_the_servers_is_refused(cluster: SparkCluster) -> None:
    from leased.collector.metering.spark import Cluster, SparkEngine

    with pytest.raises(EngineGone) as refused:
        SparkEngine(Cluster(cluster.url, "not-the-token"))
    assert cluster.token not in repr(place(cluster)) + str(refused.value)


def test_old_rows_of_a_run_that_was_cut_short_are_not_taken_for_new_ones(
    cluster: SparkCluster, tmp_path: Path
) -> None:
    """Spark knows a kept result by the names of its files, and blocks that grow keep theirs."""
    from leased.collector.metering.duck import DuckEngine
    from leased.collector.metering.spark import SparkEngine

    path = tmp_path / "block.parquet"
    maker = DuckEngine()
    counts = []
    cut_short = []
    for rows in (3, 5):
        maker.query(f"COPY (SELECT range AS seq FROM range({rows})) TO '{path}' (FORMAT parquet)")
        engine = SparkEngine(place(cluster))
        engine.load_files("acts", [path], maker.arrow("SELECT -1 AS seq WHERE false"))
        engine.derive("facts", "SELECT COUNT(*) AS n FROM acts")
        counts.append(engine.query("SELECT n FROM facts"))
        cut_short.append(engine)  # and not closed: its rows are kept over there
    assert counts == [[(3,)], [(5,)]]
    for engine in cut_short:
        engine.close()
    maker.close()


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_server_that_stops_or_goes_in_a_query_is_given_up_in_its_time(
    cluster: SparkCluster, how: str
) -> None:
    """Stopped, it holds its connections and says nothing. Back again it is asked again; what it
    computes then is the golden month of the next test."""
    from leased.collector.metering.spark import SparkEngine

    # A slow host is none that stands still: where the query had not begun in its time, it has more.
    assert any(gives_up(cluster, how, seconds) for seconds in (5, 20, 80))
    again = SparkEngine(place(cluster))
    assert again.query("SELECT 1") == [(1,)]
    again.close()


def gives_up(cluster: SparkCluster, how: str, seconds: int) -> bool:
    """Give up a query for a server that stops, then for `seconds`, or goes while it runs. Whether
    it ran."""
    from leased.collector.metering.spark import SparkEngine

    met: list[float] = []
    over = threading.Event()

    def meet() -> None:
        while not over.is_set():
            if cluster.works(within_s=1):
                cluster.pause("server") if how == "stopped" else cluster.kill("server")
                met.append(time.monotonic())
                return

    assert cluster.rests(within_s=PATIENCE_S)
    engine = SparkEngine(place(cluster))
    if how == "stopped":
        cut = msgspec.structs.replace(engine._cluster, timeout_ns=seconds * NS_PER_S)
        engine._cluster = cut
    meeting = threading.Thread(target=meet)
    meeting.start()
    try:
        with pytest.raises(EngineGone, match=cluster.url):
            engine.query(ENDLESS)
        ended = time.monotonic()
        engine.close()
    finally:
        over.set()
        meeting.join()
        if met:
            cluster.go_on("server") if how == "stopped" else cluster.start_server()
    return bool(met) and met[0] < ended


def test_the_golden_month_is_the_same_though_a_worker_is_killed_in_a_query(
    cluster: SparkCluster, fleet: Path, tmp_path: Path
) -> None:
    from leased.collector.metering.spark import SparkEngine

    killed: list[str] = []

    def kill_a_worker() -> None:
        assert cluster.works(within_s=PATIENCE_S)
        cluster.kill("worker-0")
        killed.append("worker-0")

    class Watched(SparkEngine):
        def derive(self, name: str, sql: str) -> None:
            killer = threading.Thread(target=kill_a_worker)
            if name == "spans":
                assert cluster.executors() == 2
                killer.start()
            super().derive(name, sql)
            if name == "spans":
                killer.join()

    state = without_usage(fleet, tmp_path)
    archive = ArchiveReader(state)
    store = Store(state, make_engine=lambda: Watched(place(cluster)))
    assert store.refresh(archive).closed == WISH.days
    assert killed == ["worker-0"] and cluster.executors() == 1
    assert rollups(state) == rollups(fleet)
    source = StoreSource(store.rollups)
    assert compare(source, read_archive(archive)) == []
    source.close()
    archive.close()


def test_without_spark_the_collector_goes_on_and_loses_nothing(
    cluster: SparkCluster, fleet: Path, tmp_path: Path
) -> None:
    """The server is killed and stays away: what was metered is answered, with its watermark."""
    cluster.kill("server")
    state = tmp_path / "state"
    shutil.copytree(fleet, state)
    before = rollups(state)
    archive = Archive(state)
    entry = archive.logs()[0]
    # A node that nobody waits for any more: what is closed may be other days, so there is work.
    from leased.collector.metering.spark import Cluster, SparkEngine

    gone = Cluster(cluster.url, cluster.token)
    store = Store(state, make_engine=lambda: SparkEngine(gone))
    with pytest.raises(EngineGone, match=cluster.url):
        store.refresh(archive, retired=frozenset({entry.node}))
    assert rollups(state) == before
    archive.close()
    token = tmp_path / "token"
    token.write_text(cluster.token)
    token.chmod(0o600)
    terms = tmp_path / "terms.toml"
    terms.write_text(f'retired_nodes = ["{entry.node}"]\n')
    more = f'[store]\nengine = "spark"\nspark_url = "{cluster.url}"\nspark_token_file = "{token}"\n'
    with CollectorServer(
        directory=tmp_path, state=state, governance=f'terms_file = "{terms}"', more=more
    ) as server:
        server.wait_for(r"usage is not up to date: sc://")
        answer = server.ask("GET", "/v1/governance/costs?period=30d")
        assert answer.status == 200, answer.body
    assert rollups(state) == before
