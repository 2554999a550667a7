# SPDX-License-Identifier: Apache-2.0
"""Documents that are generated, or that name things of the tree, say what is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leased.lessor.lifecycle import render

ROOT = Path(__file__).parents[2]


def between(text: str, mark: str) -> str:
    """What stands between the two comments of a generated part."""
    return text.partition(f"<!-- {mark}:begin -->")[2].partition(f"<!-- {mark}:end -->")[0]


def test_the_state_diagram_is_that_of_the_table() -> None:
    shown = between((ROOT / "agent/ARCHITECTURE.md").read_text("utf-8"), "lifecycle")
    assert shown.strip() == f"```mermaid\n{render()}\n```"


def anchors(text: str) -> set[str]:
    """What a `#` can lead to in a document: its headings, as GitHub names them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def astray(document: Path) -> list[str]:
    """The links of a document that lead nowhere in the tree."""
    found = []
    for link in re.findall(r"\]\((?!https?:)([^()\s]+)\)", document.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        there = document.parent / name if name else document
        if not there.exists() or (anchor and anchor not in anchors(there.read_text("utf-8"))):
            found.append(f"{document.relative_to(ROOT)}: {link}")
    return found


def test_every_link_of_every_document_leads_somewhere() -> None:
    roots = ("agent", "configs", "native", "packaging", "systemd", "tests")
    found = [ROOT / "README.md", *(it for root in roots for it in (ROOT / root).rglob("*.md"))]
    assert len(found) > 50
    assert [link for document in found for link in astray(document)] == []


@pytest.mark.parametrize("name", ["README.md", "packaging/FLEET.md", "tests/EVIDENCE.md"])
def test_every_path_that_a_document_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    named = set(re.findall(r"`((?:tests|packaging|agent|configs|native|systemd)/[\w./-]+)`", text))
    named |= {
        line.split()[0] for line in text.splitlines() if re.match(r"(packaging|tests)/\w+", line)
    }
    assert len(named) > 3
    assert sorted(one for one in named if not (ROOT / one).exists()) == []


def test_the_readme_is_short_enough_to_be_read() -> None:
    """What is longer belongs into `packaging/FLEET.md` or `tests/EVIDENCE.md`."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


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


def test_nothing_refers_to_what_is_not_in_the_tree() -> None:
    """The plans that this was built from are elsewhere: whoever reads the code does not have them.
    Decisions and the track record tell how it came to be, and may name them."""
    plans = re.compile(r"\bDESIGN\b|\b(?:chain|teardown|economics|codebases)\.md\b")
    roots = ("agent/leased", "native", "packaging", "configs", "systemd")
    endings = (".c", ".h", ".md", ".py", ".service", ".toml", ".varlink")
    files = [path for root in roots for path in (ROOT / root).rglob("*") if path.suffix in endings]
    named = [str(path.relative_to(ROOT)) for path in files if plans.search(path.read_text("utf-8"))]
    assert len(files) > 500 and named == []


def test_every_module_that_the_agent_names_is_there() -> None:
    """In backticks, by its path below `leased` or in its own package."""
    house = ROOT / "agent/leased"
    rooms = "|".join(sorted(path.name for path in house.iterdir() if path.is_dir()))
    gone = []
    for path in house.rglob("*.py"):
        for name in re.findall(rf"`((?:{rooms})(?:\.\w+)+)[`(]", path.read_text("utf-8")):
            if not any(_is_there(base, name.split(".")) for base in (house, path.parent)):
                gone.append(f"{path.relative_to(ROOT)}: {name}")
    assert gone == []


def _is_there(base: Path, parts: list[str]) -> bool:
    """Whether that is a module or a package below `base`, or a name in one."""
    for end in range(len(parts), 0, -1):
        place = base.joinpath(*parts[:end])
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.exists():
            rest = parts[end:]
            return not rest or re.search(rf"\b{rest[0]}\b", module.read_text("utf-8")) is not None
    return False


def test_no_merge_is_half_done() -> None:
    mark = re.compile(rb"^(?:<<<<<<<|>>>>>>>) ", re.MULTILINE)
    roots = ("agent", "configs", "native", "packaging", "systemd", "tests")
    files = [file for root in roots for file in (ROOT / root).rglob("*") if file.is_file()]
    texts = [file for file in (*files, *ROOT.glob("*.*")) if file.suffix not in (".so", ".pyc")]
    assert len(texts) > 500
    assert [str(file) for file in texts if file.is_file() and mark.search(file.read_bytes())] == []
