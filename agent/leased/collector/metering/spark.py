# SPDX-License-Identifier: Apache-2.0
"""Apache Spark: the engine of a fleet that has a cluster, reached through Spark Connect.

Rule: the cluster reads the very files that DuckDB reads and runs the very statements; rows of a
result come back, nothing else does. Arithmetic is ANSI, so it raises. Every call has an end: a
server that is gone, refuses, hangs, or loses a query is `EngineGone`, and nothing of the run is
used.

Three things that Spark would do otherwise are prevented. A view is read as all the statements below
it, each time that it is named, so that planning the last ones took a hundred times as long as
running them: what a run derives is kept by two executors each, rows without a past. One may die;
with both the run is lost, and begun again. Spark recognises a kept result by the names of the files
below it: without the run's own mark, rows that somebody keeps of files that have grown since would
be taken for new ones. And the client would try for ten minutes to reach a server that is not there.

Does not know what is computed (`engine`), and brings no Java: the thin client is an extra
(`leased[spark]`).
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from pyspark.errors import PySparkException
from pyspark.sql.connect.client import DefaultChannelBuilder
from pyspark.sql.connect.client.retries import DefaultPolicy
from pyspark.sql.connect.session import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.storagelevel import StorageLevel

from leased.collector.metering.engine import EngineGone, Overflow, Rows
from leased.terms.moment import NS_PER_S

CONNECT_S: Final = 30.0
SETTINGS: Final = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.decimalOperations.allowPrecisionLoss": "false",
    "spark.sql.session.timeZone": "UTC",
}
"""What makes bills right, whatever the cluster's own settings are."""

KEPT: Final = StorageLevel.MEMORY_AND_DISK_2
"""How what is derived is kept: serialised, in memory or else on disk, by two executors each."""

_OVERFLOWS: Final = (
    "ARITHMETIC_OVERFLOW",
    "BINARY_ARITHMETIC_OVERFLOW",
    "CAST_OVERFLOW",
    "NUMERIC_VALUE_OUT_OF_RANGE",
)
_FUNCTIONS: Final = (
    "CREATE TEMPORARY FUNCTION idiv(a BIGINT, b BIGINT) RETURNS BIGINT RETURN a DIV b",
    "CREATE TEMPORARY FUNCTION wide(a BIGINT) RETURNS DECIMAL(38,0)"
    " RETURN CAST(a AS DECIMAL(38,0))",
)
T = TypeVar("T")

# Both are said by the error that is raised; the client says them again, at length, on stderr.
logging.getLogger("SQLQueryContextLogger").disabled = True
warnings.filterwarnings("ignore", message=r"\[RETRIES_EXCEEDED\]")


class Cluster(msgspec.Struct, frozen=True):
    """Where a Spark Connect server is. `files` goes before every path of a file: workers may see
    the state directory elsewhere, or by another scheme. `timeout_ns` is that of one statement."""

    url: str = ""
    token: str = ""
    files: str = "file://"
    timeout_ns: int = 900 * NS_PER_S

    def __repr__(self) -> str:
        return f"Cluster({self.url!r})"


class SparkEngine:
    """`engine.Engine` by a Spark cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Raises EngineGone if it cannot be reached."""
        self._cluster = cluster
        self._mark = uuid.uuid4().hex
        self._kept: list[Any] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spark")
        self._session: Any = None
        try:
            self._session = self._within(CONNECT_S, self._connect)
            for key, value in SETTINGS.items():
                self._ask(partial(self._session.conf.set, key, value))
            for function in _FUNCTIONS:
                self._run(function)
        except BaseException:
            self.close()
            self._thread.shutdown(wait=False)
            raise

    def query(self, sql: str) -> Rows:
        """See `engine.Engine`."""
        return self._ask(lambda: [tuple(row) for row in self._session.sql(sql).collect()])

    def arrow(self, sql: str) -> Any:
        """See `engine.Engine`."""
        return self._ask(lambda: self._session.sql(sql).toArrow())

    def load(self, name: str, columns: Sequence[str], rows: Rows) -> None:
        """See `engine.Engine`."""
        fields = ", ".join(f"{column} BIGINT" for column in columns)
        made = list(rows)
        self._ask(lambda: self._session.createDataFrame(made, fields).createOrReplaceTempView(name))

    def load_files(self, name: str, paths: Sequence[Path], more: Any) -> None:
        """See `engine.Engine`."""
        listed = [f"{self._cluster.files}{path.absolute()}" for path in paths]
        marked = f"'{self._mark}' <> ''"

        def load() -> None:
            # Of no rows Spark does not see what they are.
            rows = self._session.createDataFrame(more, from_arrow_schema(more.schema))
            if listed:
                rows = self._session.read.parquet(*listed).unionByName(rows)
            rows.filter(marked).createOrReplaceTempView(name)

        self._ask(load)

    def derive(self, name: str, sql: str) -> None:
        """See `engine.Engine`."""

        def keep() -> None:
            kept = self._session.sql(sql).localCheckpoint(True, KEPT)
            self._kept.append(kept)  # the executors drop what no client holds
            kept.createOrReplaceTempView(name)

        self._ask(keep)

    def close(self) -> None:
        """Let the executors drop what was kept. Idempotent; a server that is gone has, itself."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            self._forget(session)
        finally:
            self._thread.shutdown(wait=False)

    def _forget(self, session: Any) -> None:
        try:
            self._within(CONNECT_S, self._kept.clear)
            self._within(CONNECT_S, session.stop)
        except (EngineGone, Overflow):
            session.client.close()

    def _connect(self) -> Any:
        builder = DefaultChannelBuilder(self._cluster.url)
        if self._cluster.token:
            builder.set(builder.PARAM_TOKEN, self._cluster.token)
        # By its builder it is this thread's session, which a kept result is made of.
        session = SparkSession.builder.channelBuilder(builder).create()
        session.client.set_retry_policies([DefaultPolicy(max_retries=4, max_backoff=2000)])
        try:
            _ = session.version
        except BaseException:
            session.client.close()
            raise
        return session

    def _run(self, sql: str) -> None:
        self._ask(lambda: self._session.sql(sql).collect())

    def _ask(self, ask: Callable[[], T]) -> T:
        return self._within(self._cluster.timeout_ns / NS_PER_S, ask)

    def _within(self, seconds: float, ask: Callable[[], T]) -> T:
        """What `ask` gives, in time; Spark's errors as ours."""
        # The client has no deadline of its own: a server that stands still would hold us for ever.
        waiting = self._thread.submit(ask)
        try:
            return waiting.result(seconds)
        except TimeoutError:
            if self._session is not None:
                self._session.client.close()  # which ends what waits
            raise EngineGone(f"{self._cluster.url}: no answer in {seconds:g} s") from None
        except Exception as error:
            self._refuse(error)
            raise

    def _refuse(self, error: Exception) -> None:
        """Raise Spark's error as ours; one that is not Spark's is left to the caller."""
        if not isinstance(error, PySparkException) and not _is_of_grpc(error):
            return
        details = getattr(error, "details", None)
        text = str(details() if callable(details) else error)
        first = (text.splitlines() or [type(error).__name__])[0]
        if any(f"[{name}" in text for name in _OVERFLOWS):
            raise Overflow(first) from error
        raise EngineGone(f"{self._cluster.url}: {first}") from error


def _is_of_grpc(error: Exception) -> bool:
    """The client lets some of the transport's errors through, of a package that it owns."""
    return type(error).__module__.startswith("grpc")
