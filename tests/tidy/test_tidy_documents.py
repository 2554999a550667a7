# SPDX-License-Identifier: Apache-2.0
"""Documents that are generated, or that name things of the tree, say what is."""

from __future__ import annotations

import re
from pathlib import Path

from leased.lessor.lifecycle import render

ROOT = Path(__file__).parents[2]


def between(text: str, mark: str) -> str:
    """What stands between the two comments of a generated part."""
    return text.partition(f"<!-- {mark}:begin -->")[2].partition(f"<!-- {mark}:end -->")[0]


def test_the_state_diagram_is_that_of_the_table() -> None:
    shown = between((ROOT / "agent/ARCHITECTURE.md").read_text("utf-8"), "lifecycle")
    assert shown.strip() == f"```mermaid\n{render()}\n```"


def test_every_path_that_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"`((?:tests|packaging|agent|configs|native|systemd)/[\w./-]+)`", text))
    named |= set(re.findall(r"\]\(((?!http)[\w./-]+)\)", text))
    named |= {
        line.split()[0] for line in text.splitlines() if re.match(r"(packaging|tests)/\w+", line)
    }
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_test_that_the_track_record_names_is_there() -> None:
    """By its whole name, or by the beginning of it where `…` stands."""
    tests = ROOT / "tests"
    text = (tests / "README.md").read_text("utf-8")
    there = {path.stem for path in tests.rglob("test_*.py")}
    for path in tests.rglob("*.py"):
        there |= set(re.findall(r"def (test_\w+)", path.read_text("utf-8")))
    named = set(re.findall(r"`(test_[a-z0-9_]*[a-z0-9])(…?)(?:\.py)?(?:\[[^`]*\])?`", text))
    gone = [
        name
        for name, more in named
        if name not in there and not (more and any(one.startswith(name) for one in there))
    ]
    assert len(named) > 400
    assert sorted(gone) == []


def test_no_merge_is_half_done() -> None:
    mark = re.compile(rb"^(?:<<<<<<<|>>>>>>>) ", re.MULTILINE)
    roots = ("agent", "configs", "native", "packaging", "systemd", "tests")
    files = [file for root in roots for file in (ROOT / root).rglob("*") if file.is_file()]
    texts = [file for file in (*files, *ROOT.glob("*.*")) if file.suffix not in (".so", ".pyc")]
    assert len(texts) > 500
    assert [str(file) for file in texts if file.is_file() and mark.search(file.read_bytes())] == []
