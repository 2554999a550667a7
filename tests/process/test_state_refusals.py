# SPDX-License-Identifier: Apache-2.0
"""State that cannot be used: the agent refuses to start, names the file and where in it, says what
to do, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.durable.keyfile import KEY_FILE
from tests.doubles.host import not_proven
from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.story import judge, tell

pytestmark = pytest.mark.root

EX_USAGE, EX_DATAERR, EX_CONFIG = 64, 65, 78


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of the log but the lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def patch(path: Path, offset: int, data: bytes | None = None) -> None:
    """Write over what is there (None: flip a bit of it), in place."""
    fd = os.open(path, os.O_RDWR)
    try:
        if data is None:
            data = bytes([os.pread(fd, 1, offset)[0] ^ 1])
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


@pytest.fixture
def grown() -> Iterator[HostAgent]:
    """An agent that has ended; its log has the story of one lease."""
    with HostAgent() as agent:
        agent.start()
        agent.wait_for(agent.acquire(ttl_ms=500)["lease_id"])
        assert agent.stop() == 0
        yield agent


def assert_refused(agent: HostAgent, status: int, *words: str) -> str:
    """It ends with the status, has said the words, and has changed nothing."""
    before = contents(agent.audit)
    found, said = agent.refused()
    print(said)
    assert found == status, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, f"{word!r} is not in {said!r}"
    assert contents(agent.audit) == before
    return said


def first_segment(agent: HostAgent) -> Path:
    return sorted(agent.audit.glob("seg-*"))[0]


def test_a_record_edited_by_hand(grown: HostAgent) -> None:
    segment = first_segment(grown)
    patch(segment, 4096 + 700)
    assert_refused(
        grown, EX_DATAERR, str(segment), "offset", "nothing was changed", "from a backup"
    )
    # The auditor's own check says the same.
    verdict = grown.leasectl("verify", "--log", str(grown.audit), check=EX_DATAERR)
    assert segment.name in verdict.stdout + verdict.stderr
    patch(segment, 4096 + 700)
    grown.start()
    judge(grown)


def test_a_tail_cut_off(grown: HostAgent) -> None:
    segment = first_segment(grown)
    data = segment.read_bytes()
    end = len(data.rstrip(b"\0"))
    patch(segment, end - 400, bytes(400))
    assert_refused(grown, EX_DATAERR, segment.name, "nothing was changed")


def test_both_anchors_edited_by_hand(grown: HostAgent) -> None:
    anchor = grown.audit / "anchor"
    for offset in range(40, 8192, 512):  # each slot is there twice
        patch(anchor, offset)
    assert_refused(grown, EX_DATAERR, str(anchor), "nothing was changed")


def test_one_anchor_slot_edited_by_hand_is_made_good(grown: HostAgent) -> None:
    """One fault is what the second slot is for."""
    for slot in (0, 4096):
        for offset in range(slot + 40, slot + 4096, 512):
            patch(grown.audit / "anchor", offset)
        grown.start()
        judge(grown)
        grown.stop()


def test_a_checksum_that_the_disk_has_changed_is_told(grown: HostAgent) -> None:
    """The record holds by its hash, so there is nothing to refuse."""
    patch(first_segment(grown), 4096 + 4)
    grown.start()
    assert "the disk has changed the log: record 0 is the first" in grown.log()
    judge(grown)


def test_an_older_anchor_put_back(grown: HostAgent) -> None:
    """A log and anchor rolled back apart do not hold together."""
    old = (grown.audit / "anchor").read_bytes()
    grown.start()
    for _ in range(3):
        grown.wait_for(grown.acquire(ttl_ms=500)["lease_id"])
    grown.stop()
    patch(grown.audit / "anchor", 0, old)
    assert_refused(grown, EX_DATAERR, "nothing was changed")


def test_an_older_journal_put_back(grown: HostAgent) -> None:
    segment = first_segment(grown)
    old = segment.read_bytes()
    grown.start()
    grown.wait_for(grown.acquire(ttl_ms=500)["lease_id"])
    grown.stop()
    patch(segment, 0, old)
    assert_refused(grown, EX_DATAERR, segment.name, "nothing was changed")


def test_a_missing_segment_and_a_missing_anchor(grown: HostAgent) -> None:
    for path in (first_segment(grown), grown.audit / "anchor", grown.audit / "log.id"):
        away = grown.directory / path.name
        path.rename(away)
        assert_refused(grown, EX_DATAERR, str(path.parent))
        away.rename(path)
    grown.start()


def test_a_missing_or_foreign_key(grown: HostAgent) -> None:
    key = grown.audit / KEY_FILE
    right = key.read_bytes()
    with HostAgent() as other:
        other.start()
        other.stop()
        foreign = (other.audit / key.name).read_bytes()
    patch(key, 0, foreign)
    assert_refused(grown, EX_CONFIG, str(key), "restore")
    key.unlink()
    assert_refused(grown, EX_CONFIG, key.name)
    key.write_bytes(right)
    key.chmod(0o600)
    grown.start()


def test_a_second_agent_on_the_same_state() -> None:
    with HostAgent() as first:
        first.start()
        with HostAgent(state=first.state) as second:
            status, said = second.refused()
        assert status == EX_CONFIG and "BUSY" in said and "stop it first" in said
        # And with the same doors but its own state.
        text = first.config.read_text()
        config = first.directory / "second.toml"
        config.write_text(text.replace(str(first.state), str(first.directory / "other")))
        (first.directory / "other").mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "leased.service.daemon", "--config", str(config)],
            env={**os.environ, **first.sockets()},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == EX_CONFIG, done.stderr
        assert "another agent answers here" in done.stderr
        first.wait_for(first.acquire(ttl_ms=500)["lease_id"])
        judge(first)


def in_a_mount_namespace(script: str) -> tuple[str, ...]:
    """What goes before a command so that `script` has been run in a mount namespace of its own."""
    return (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'{script}; exec "$@"',
        "-",
    )


def test_a_state_directory_from_another_node(grown: HostAgent) -> None:
    other = grown.directory / "machine-id"
    other.write_text("0123456789abcdef0123456789abcdef\n")
    before = contents(grown.audit)
    wrap = in_a_mount_namespace(f"mount --bind {other} /etc/machine-id")
    if not os.path.exists("/etc/machine-id"):
        not_proven("a state directory from another node", "the host has no /etc/machine-id")
    status, said = grown.refused(wrap=wrap)
    assert status == EX_CONFIG, said
    assert "another machine" in said and str(grown.audit) in said and "move the directory" in said
    assert contents(grown.audit) == before


def test_a_read_only_state_directory(grown: HostAgent) -> None:
    before = contents(grown.audit)
    script = f"mount --bind {grown.state} {grown.state}; mount -o remount,bind,ro {grown.state}"
    status, said = grown.refused(wrap=in_a_mount_namespace(script))
    assert status == EX_CONFIG, said
    assert "read-only" in said and "remount" in said and "Traceback" not in said
    assert contents(grown.audit) == before
    grown.start()
    judge(grown)


def test_a_state_directory_on_tmpfs() -> None:
    """What is gone after a power cut is no log; the refusal says what may be done."""
    with HostAgent() as agent:
        script = f"mount -t tmpfs none {agent.state}"
        status, said = agent.refused(wrap=in_a_mount_namespace(script))
        assert status == EX_CONFIG, said
        assert "tmpfs" in said and "move the state directory" in said


def test_a_state_directory_that_is_not_there() -> None:
    with HostAgent() as agent:
        agent.state.rmdir()
        status, said = agent.refused()
        assert status == EX_CONFIG and str(agent.state) in said and "make the parent" in said


def test_a_configuration_that_cannot_be_meant() -> None:
    for policy, words in (
        ('ttl_min = "1ms"', ("ttl_min",)),
        ('ttl_mim = "1s"', ("ttl_mim", "ttl_min")),
        ('ttl_min = "1 parsec"', ("ttl_min", "1 parsec")),
        ("ttl_min = [", ("leased.toml",)),
    ):
        with HostAgent(policy=policy) as agent:
            status, said = agent.refused()
            assert status == EX_CONFIG, said
            for word in (*words, str(agent.config)):
                assert word in said
            assert "Traceback" not in said


def test_a_wall_clock_that_steps_by_a_day_changes_no_deadline(grown: HostAgent) -> None:
    """The host's clock is everyone's; a time namespace moves the wrong one. The VM does it."""
    with contextlib.suppress(AssertionError):
        tell(grown)
    not_proven("clock steps of one day under a live lease", "done in the VM, where it is safe")


@pytest.mark.parametrize("which", ["state", "audit", "runtime"])
def test_a_directory_that_anybody_may_write_to(grown: HostAgent, which: str) -> None:
    directory = getattr(grown, which)
    mode = directory.stat().st_mode & 0o777
    directory.chmod(mode | 0o002)
    assert_refused(grown, EX_CONFIG, str(directory), "anybody may write there", "chmod o-w")
    directory.chmod(mode)
    grown.start()


def test_a_runtime_directory_that_is_none(grown: HostAgent) -> None:
    """Who waited there for a reaper waited half a minute, and was told to start one."""
    kept = grown.runtime.rename(grown.directory / "kept")
    grown.runtime.touch()
    grown.launch()
    assert grown.wait() == EX_CONFIG
    assert f"{grown.runtime}: " in grown.log() and "no directory is in its place" in grown.log()
    grown.runtime.unlink()
    kept.rename(grown.runtime)
    grown.start()


def test_a_runtime_directory_that_is_read_only(grown: HostAgent) -> None:
    shut = f"mount -t tmpfs -o ro leased-test {grown.runtime}"
    status, said = grown.refused(wrap=in_a_mount_namespace(shut))
    assert status == EX_CONFIG and f"{grown.runtime}: cannot be written" in said
    grown.start()


@pytest.mark.parametrize("name", ["log.id", "anchor", "node.key", "seal.key", "segment"])
def test_a_pipe_where_a_file_of_the_log_should_be(grown: HostAgent, name: str) -> None:
    """Whoever opens one waits for a writer: the start hung."""
    place = first_segment(grown) if name == "segment" else grown.audit / name
    kept = place.rename(grown.directory / "kept")
    os.mkfifo(place, 0o600)
    status, said = grown.refused()
    assert status in (EX_DATAERR, EX_CONFIG), said
    assert str(place) in said or place.name in said
    assert "a pipe" in said and "Traceback" not in said
    if not name.endswith(".key"):  # an auditor's copy has no keys
        verdict = grown.leasectl("verify", "--log", str(grown.audit), check=status)
        assert "a pipe" in verdict.stdout + verdict.stderr
    place.unlink()
    kept.rename(place)
    grown.start()
    judge(grown)


def test_a_configuration_that_is_no_file() -> None:
    with HostAgent() as agent:
        written = agent.config.read_text("utf-8")
        agent.config.unlink()
        os.mkfifo(agent.config)
        status, said = agent.refused()
        assert (status, "a pipe" in said, "Traceback" in said) == (EX_CONFIG, True, False), said
        agent.config.unlink()
        agent.config.symlink_to("/dev/zero")
        status, said = agent.refused()
        assert (status, "a device" in said) == (EX_CONFIG, True), said
        agent.config.unlink()
        agent.config.write_text(written, "utf-8")
        agent.start()


def test_a_command_line_that_cannot_be_meant_ends_with_64() -> None:
    words = [sys.executable, "-m", "leased.service.daemon", "--nonsense"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == EX_USAGE
    assert "--nonsense" in done.stderr and done.stdout == ""
