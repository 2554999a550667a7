# SPDX-License-Identifier: Apache-2.0
"""Which SQL engine brings the store up to date: section [store] of the configuration, and what
makes one of it.

Rule: DuckDB in process is the default and needs nothing; another engine is chosen by name, and what
it needs is refused by its key before anything is begun. Whichever it is, the files have the same
bytes, so it may be changed at any time. Answers are read by DuckDB always.

Does not import an engine that is not chosen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from leased.collector.config import CONFIG, read_section
from leased.collector.extras import how_to_have
from leased.collector.metering.engine import MakeEngine
from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S
from leased.terms.reading import Keys, choice, duration, section, text

ENGINES: Final = ("duckdb", "spark")


class StoreConfig(msgspec.Struct, frozen=True):
    """Section [store]."""

    engine: str = "duckdb"
    spark_url: str = ""
    spark_token_file: str = ""
    spark_files: str = "file://"
    spark_timeout_ns: int = 900 * NS_PER_S


def check_store(config: StoreConfig) -> StoreConfig:
    """What must go together. Raises ConfigError."""
    if config.engine == "spark" and not config.spark_url.startswith("sc://"):
        raise ConfigError('store.spark_url: an address such as "sc://spark.example.org:15002"')
    if "token=" in config.spark_url:
        raise ConfigError("store.spark_url: no token in it: store.spark_token_file keeps it apart")
    if config.spark_timeout_ns < 1 * NS_PER_S:
        raise ConfigError("store.spark_timeout: at least 1s")
    return config


def load_store(path: Path | None) -> tuple[StoreConfig, Path]:
    """Section [store] of a file, and the directory that its paths start from; without a file, that
    of /etc if there is one. Raises ConfigError."""
    return read_section(path, "store", SECTION, check_store), (path or CONFIG).parent


def maker(config: StoreConfig, directory: Path) -> MakeEngine | None:
    """What makes the engine that was chosen; None: the store's own. Raises ConfigError."""
    if config.engine == "duckdb":
        return None
    try:
        from leased.collector.metering.spark import Cluster, SparkEngine
    except ModuleNotFoundError as error:
        raise ConfigError(f'store.engine = "spark": {how_to_have(error, "spark")}') from error
    cluster = Cluster(
        config.spark_url,
        _token(config.spark_token_file, directory),
        config.spark_files,
        config.spark_timeout_ns,
    )
    return partial(SparkEngine, cluster)


def _token(name: str, directory: Path) -> str:
    if not name:
        return ""
    path = directory / name
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"store.spark_token_file: others may read it: chmod 600 {path}")
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"store.spark_token_file: {path}: {error}") from error


KEYS: Final[Keys] = {
    "engine": ("engine", lambda value: choice(ENGINES, value)),
    "spark_url": ("spark_url", text),
    "spark_token_file": ("spark_token_file", text),
    "spark_files": ("spark_files", text),
    "spark_timeout": ("spark_timeout_ns", duration),
}
SECTION: Final = ("store", section(StoreConfig, KEYS, "store."))
