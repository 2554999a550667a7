# SPDX-License-Identifier: Apache-2.0
"""Logs that released versions wrote: they verify as they did then, in whatever state a crash left
them, and this release goes on where they end (T14). A record that only a later release knows is
carried and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leased.chain.epochs import EpochKey
from leased.durable.reader import Enrolled, read_log
from leased.terms.moment import Moment
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import CountedEntropy, commit_and_forget, moment_at, open_on, renewal
from tests.vectors import verify_independent as independent
from tests.vectors.release import LOGS, SCENES, unpack

RELEASES = {path.stem: json.loads(path.read_text("utf-8")) for path in LOGS.glob("*.json")}
KEPT = [(release, name) for release, logs in RELEASES.items() for name in logs]


def found(files: dict[str, bytes], seal_key: bytes) -> dict[str, object]:
    """What a reader finds in a log, and where a writer goes on."""
    disk = MemoryDisk(files)
    enrolled = Enrolled(seal_key=EpochKey(0, seal_key) if seal_key else None)
    facts = read_log(disk.directory, disk=disk, enrolled=enrolled).facts
    opened = open_on(MemoryDisk(files), entropy=CountedEntropy(b"later"))
    return {
        "head": facts.head.text(),
        "segments": len(facts.segments),
        "signed_size": facts.verified.signed_size,
        "seals_proven": facts.verified.seals_proven,
        "unknown": facts.verified.unknown,
        "unanchored_records": facts.unanchored_records,
        "torn_bytes": facts.torn_bytes,
        "opened": opened.head.text(),
    }


def _files(release: str, name: str) -> dict[str, bytes]:
    return {file: unpack(text) for file, text in RELEASES[release][name]["files"].items()}


def test_there_is_a_log_of_every_scene_of_a_release() -> None:
    assert RELEASES, "python -m tests.vectors.release"
    for logs in RELEASES.values():
        assert set(logs) >= {scene.__name__ for scene in SCENES}
        assert logs["from_later"]["found"]["unknown"] == 2, "a kind, and a schema of a known kind"


@pytest.mark.parametrize(("release", "name"), KEPT)
def test_a_log_of_a_release_is_read_as_it_was(release: str, name: str) -> None:
    log = RELEASES[release][name]
    assert found(_files(release, name), bytes.fromhex(log["seal_key"])) == log["found"]


@pytest.mark.parametrize(("release", "name"), KEPT)
def test_a_log_of_a_release_goes_on(release: str, name: str) -> None:
    disk = MemoryDisk(_files(release, name))
    log = open_on(disk, entropy=CountedEntropy(b"later"))
    boot_ns = moment_at(10_000).boot_ns
    at = Moment(moment_at(0).boot_id, boot_ns, moment_at(10_000).wall_ns)
    batch = log.sealer().seal([(renewal(5000), at)])
    commit_and_forget(log, batch, at)
    again = read_log(disk.directory, disk=MemoryDisk(disk.contents()))
    assert again.head == batch.new_head
    assert open_on(MemoryDisk(disk.contents())).head == batch.new_head


@pytest.mark.parametrize(("release", "name"), KEPT)
def test_the_second_verifier_agrees(tmp_path: Path, release: str, name: str) -> None:
    for file, data in _files(release, name).items():
        (tmp_path / file).write_bytes(data)
    size, digest = independent.verify(tmp_path)
    assert f"{size}:{digest}" == RELEASES[release][name]["found"]["head"]
