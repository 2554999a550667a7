# SPDX-License-Identifier: Apache-2.0
"""The files that dcgm-exporter reads: which lease has which GPU, by the driver's number."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from leased.service.telemetry.jobs import JobFiles, jobs_of
from leased.terms.lease import LeaseState
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.leases import lease, memory

INDICES = {"gpu:GPU-a": 0, "gpu:MIG-1": 1, "gpu:MIG-2": 1, "gpu:GPU-c": 2}


def gpus(*names: str, state: LeaseState = LeaseState.ACTIVE) -> object:
    allotments = [Allotment(f"gpu:{name}", ResourceKind.GPU, None, 1000) for name in names]
    return msgspec.structs.replace(lease(*allotments, memory()), state=state)


def test_a_job_is_a_lease_that_has_the_gpu_or_a_part_of_it() -> None:
    whole, part, other = gpus("GPU-a", "MIG-1"), gpus("MIG-2"), gpus("GPU-away")
    ended = gpus("GPU-c", state=LeaseState.SCRUBBING)
    found = jobs_of(INDICES, [whole, part, other, ended])  # type: ignore[list-item]
    both = sorted([whole.lease_id.hex(), part.lease_id.hex()])  # type: ignore[attr-defined]
    assert found[0] == (whole.lease_id.hex(),)  # type: ignore[attr-defined]
    assert found[1] == tuple(both) and found[2] == ()


async def test_files_follow_the_leases(tmp_path: Path) -> None:
    said: list[str] = []
    files = JobFiles(str(tmp_path), said.append)
    (tmp_path / "README").write_text("mine")
    await files.fill({0: ("a", "b"), 1: ()})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "a\nb\n",
        "1": "",
        "README": "mine",
    }
    (tmp_path / "1").unlink()
    await files.fill({0: (), 1: ()})
    assert (tmp_path / "0").read_text() == ""
    assert not (tmp_path / "1").exists(), "what has not changed is not written"
    await files.fill({0: ("c",)})
    await files.fill({1: ()})
    assert (tmp_path / "0").read_text() == "", "a GPU that went away is nobody's"
    assert said == []


async def test_what_an_agent_before_wrote_of_a_gpu_that_is_gone_is_emptied(tmp_path: Path) -> None:
    for name, told in (("0", "old\n"), ("1", "mine\n"), ("7", "old\n"), ("07", "x"), ("a", "y")):
        (tmp_path / name).write_text(told)
    as_it_was = (tmp_path / "1").stat().st_ino
    await JobFiles(str(tmp_path), print).fill({0: ("new",), 1: ("mine",)})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0": "new\n", "1": "mine\n", "7": "",
        "07": "x", "a": "y",
    }
    assert (tmp_path / "1").stat().st_ino == as_it_was, "what is right is not written"


async def test_only_regular_files_are_read_and_nothing_else_is_waited_at(tmp_path: Path) -> None:
    """A pipe has no end until somebody writes to it: neither agent nor test may read one."""
    for name in ("0", "8", ".1.new"):
        os.mkfifo(tmp_path / name)
    secret = tmp_path / "secret"
    secret.write_text("mine\n")
    for name in ("1", "7", ".0.new"):
        (tmp_path / name).symlink_to(secret)
    (tmp_path / "9").mkdir()
    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind(str(tmp_path / "10"))
    said: list[str] = []
    await JobFiles(str(tmp_path), said.append).fill({0: ("new",), 1: ("mine",)})
    for name, told in (("0", "new\n"), ("1", "mine\n")):
        assert (tmp_path / name).is_file() and not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == told
    assert (tmp_path / "8").is_fifo() and (tmp_path / "10").is_socket()
    assert (tmp_path / "7").is_symlink() and (tmp_path / "9").is_dir()
    assert secret.read_text() == "mine\n", "nothing is written through a link"
    assert not (tmp_path / ".0.new").exists() and not (tmp_path / ".1.new").exists()
    assert said == []


async def test_what_is_in_the_way_of_one_gpus_file_keeps_no_other_from_its_own(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    (tmp_path / "0").mkdir()
    files = JobFiles(str(tmp_path), said.append)
    for _ in range(2):
        await files.fill({0: ("a",), 1: ("b",)})
    assert (tmp_path / "1").read_text() == "b\n"
    assert len(said) == 1 and "Is a directory" in said[0]
    (tmp_path / "0").rmdir()
    await files.fill({0: ("a",), 1: ("b",)})
    assert (tmp_path / "0").read_text() == "a\n" and len(said) == 1


async def test_a_directory_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    files = JobFiles(str(tmp_path / "none"), said.append)
    for _ in range(3):
        await files.fill({0: ("a",)})
    assert len(said) == 1 and "No such file" in said[0]
    (tmp_path / "none").mkdir()
    await files.fill({0: ("a",)})
    assert (tmp_path / "none" / "0").read_text() == "a\n"


@pytest.mark.parametrize("name", sorted(INDICES))
def test_every_part_of_a_gpu_is_found_by_its_own_name(name: str) -> None:
    one = gpus(name.removeprefix("gpu:"))
    assert jobs_of(INDICES, [one])[INDICES[name]] == (one.lease_id.hex(),)  # type: ignore
