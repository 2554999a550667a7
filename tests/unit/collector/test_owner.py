# SPDX-License-Identifier: Apache-2.0
"""What a verb that root ran has made in the collector's state directory is the service's."""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest

from leased.collector.archive.owner import hand_over
from leased.collector.main import main
from leased.ctl.console import Console
from leased.ctl.proofs import enrolment_document
from leased.terms.errors import EX_CONFIG
from tests.doubles.logs import moment_at, open_in, started

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
OWNER = (65534, 65533)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory as systemd makes it: the service's user's."""
    directory = tmp_path / "collector"
    directory.mkdir(mode=0o700)
    os.chown(directory, *OWNER)
    return directory


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def said(*words: str) -> tuple[int, str]:
    console = Console(io.StringIO(), io.StringIO())
    return main(words, console), console.err.getvalue()


def enrol(state: Path) -> int:
    """Enrol a node as the README says; the verb's status."""
    opened = open_in(state.parent / "audit")
    batch = opened.sealer().seal([(started(), moment_at(0))])
    opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(0))
    opened.close()
    enrolment = state.parent / "enrolment.json"
    document = enrolment_document(state.parent / "audit", 1, with_seal_key=False)
    enrolment.write_bytes(msgspec.json.encode(document))
    words = ("--state", str(state), "enrol", "alpha", "https://alpha:7443", str(enrolment))
    return said(*words)[0]


def test_what_a_verb_makes_is_the_services(state: Path) -> None:
    assert enrol(state) == 0
    assert owner(state / "collector.sqlite") == OWNER
    assert {owner(path) for path in state.rglob("*")} == {OWNER}


def test_what_a_verb_made_before_it_failed(state: Path) -> None:
    enrolment = state.parent / "enrolment.json"
    enrolment.write_text("{}")
    words = ("--state", str(state), "enrol", "alpha", "https://alpha:7443", str(enrolment))
    assert said(*words)[0] != 0
    assert {owner(path) for path in state.rglob("*")} <= {OWNER}


def test_nothing_else_is_given_away(state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "shadow"
    outside.write_text("")
    (state / "link").symlink_to(outside)
    (state / "second").hardlink_to(outside)
    (state / "folder").symlink_to(tmp_path)
    (state / "own").mkdir()
    (state / "own" / "file").write_text("")
    (state / "theirs").write_text("")
    os.chown(state / "theirs", 1000, 1000)
    hand_over(state)
    assert owner(outside) == (0, 0) == owner(tmp_path)
    assert owner(state / "own" / "file") == owner(state / "own") == OWNER
    assert owner(state / "theirs") == (1000, 1000)


def test_a_directory_that_is_roots_stays_roots(tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    assert enrol(tmp_path / "fleet") == 0
    assert owner(tmp_path / "fleet" / "collector.sqlite") == (0, 0)


def test_before_the_first_node_it_says_what_to_do(state: Path) -> None:
    status, line = said("--state", str(state), "status")
    assert status == EX_CONFIG
    assert "no node was ever enrolled here: `leased-collector enrol` does" in line
