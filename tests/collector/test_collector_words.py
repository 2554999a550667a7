# SPDX-License-Identifier: Apache-2.0
"""Words of a command line that name nothing, or cannot be meant, are answered as such by every verb
of the collector: a table of nothing, and 0, says that there is nothing."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path

import pytest

from leased.collector.archive.manifests import open_manifest
from leased.collector.governance.directory import DIRECTORY
from leased.collector.main import main
from leased.ctl.console import Console
from leased.terms.quantity import parse_instant

NOW_NS = parse_instant("2026-01-05T09:30:00Z")
CONFIG = """
[pull]
certificate = "collector.pem"
key = "collector.key"
ca = "ca.pem"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("words") / "state"
    assert run(state, "demo", "--nodes", "3", "--days", "2")[0] == 0
    (state / DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    (state.parent / "collector.toml").write_text(CONFIG)
    return state


def run(state: Path, *words: str) -> tuple[int, str, str]:
    console = Console(io.StringIO(), io.StringIO(), wall_ns=lambda: NOW_NS)
    status = main(["--state", str(state), *words], console)
    return status, console.out.getvalue(), console.err.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ("use", "--node", "beta"),
        ("use", "--node", "f" * 32),
        ("use", "--node", ""),
        ("waste", "--node", "beta"),
        ("placement", "--gpu", "1", "--near", "beta"),
        ("pull", "--once", "--node", "beta"),
        ("import", "beta", "/nowhere"),
        ("verdict", "beta"),
    ],
    ids=" ".join,
)
def test_a_node_that_there_is_not(fleet: Path, words: tuple[str, ...]) -> None:
    config = ("--config", str(fleet.parent / "collector.toml"))
    more = config if words[0] in ("pull", "import") else ()
    status, out, err = run(fleet, *words, *more)
    assert (status, out) == (66, "")
    assert "no such node; see `leased-collector nodes`" in err


def test_a_node_is_named_as_it_is_shown(fleet: Path) -> None:
    with closing(open_manifest(fleet, read_only=True)) as manifest:
        [one, *others] = manifest.logs()
    every = json.loads(run(fleet, "use", "--json")[1])["leases"]
    mine = [lease for lease in every if lease["node"] == one.node]
    assert mine and len(mine) < len(every) and len(others) == 2
    for word in (one.name, one.node, one.node[:8]):
        assert json.loads(run(fleet, "use", "--json", "--node", word)[1])["leases"] == mine
        near = run(fleet, "placement", "--cpu", "1", "--near", word, "--json")[1]
        assert near == run(fleet, "placement", "--cpu", "1", "--near", one.node, "--json")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("invite", "beta", "https://beta:7443", "--valid", "soon"), "a duration is a number"),
        (("webhook", "replay", "1" * 32, "--since", "yesterday"), "since: an instant"),
        (("webhook", "deliveries", "1" * 32, "--count", "-4"), "count: at least 1"),
    ],
    ids=lambda one: one[0] if isinstance(one, tuple) else "",
)
def test_what_cannot_be_meant_is_no_traceback(
    fleet: Path, words: tuple[str, ...], says: str
) -> None:
    status, _, err = run(fleet, *words)
    assert status == 65 and says in err


@pytest.mark.parametrize(
    "words",
    [("forget", "\udcff"), ("webhook", "test", "\udcff")],
    ids=lambda words: words[0],
)
def test_what_is_not_utf_8_is_no_traceback(fleet: Path, words: tuple[str, ...]) -> None:
    status, _, err = run(fleet, *words)
    assert status == 64 and "not UTF-8" in err
