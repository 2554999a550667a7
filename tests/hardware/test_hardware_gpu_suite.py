# SPDX-License-Identifier: Apache-2.0
"""The hardware suite itself, run on the mock so that it cannot rot: what it finds, what it says
when something is not as claimed or cannot be found out, and that it changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.host import not_proven
from tests.hardware import table
from tests.hardware.case import HELD, NOT_RUN
from tests.hardware.packing import WANTED, packages
from tests.hardware.suite import cases
from tests.mocks.nvml.control import Machine, Unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
NO_GPU, CHANGED = 66, 70
NOBODY = 65534
SUITE_BUDGET_S = 330


@contextlib.contextmanager
def mock_machine(gpus: list[str], **fields: Any) -> Iterator[Machine]:
    try:
        with Machine.create(gpus=gpus, release_ms=20, release_busy_ms=50, **fields) as one:
            yield one
    except Unavailable as error:
        not_proven("that the hardware suite works", str(error))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with mock_machine(["H100"]) as one:
        yield one


def suite(machine: Machine | None, *words: str, before: tuple[str, ...] = ()) -> list[str]:
    root = ["--root", str(machine.root)] if machine else []
    return [*before, sys.executable, "-m", "tests.hardware.suite", *root, *words]


def environment(machine: Machine | None) -> dict[str, str]:
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "agent")))
    plain = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    return {**plain, **(machine.environment() if machine else {})}


def run(
    machine: Machine | None, *words: str, before: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        suite(machine, *words, before=before),
        env={**environment(machine), **more},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SUITE_BUDGET_S,
    )


def results(folder: Path) -> dict[str, Any]:
    [path] = folder.iterdir()
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def abandoned_leaves() -> list[str]:
    """Leaves of suites that are over: another one may run beside this."""
    found = []
    for path in Path("/sys/fs/cgroup").glob("**/leased-hardware-*"):
        [pid] = re.findall(r"^leased-hardware-(?:lease-)?(\d+)", path.name)
        if not Path(f"/proc/{pid}").exists():
            found.append(path.name)
    return found


def test_every_claim_holds_on_the_mock_and_the_results_say_emulated(
    machine: Machine, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    with tempfile.TemporaryDirectory() as left:  # short: there will be sockets in it
        done = run(machine, "--results", str(found), TMPDIR=left)
        assert done.returncode == 0, done.stdout + done.stderr
        assert os.listdir(left) == []
    told = results(found)
    assert told["evidence"] == "emulated" and table.read_results(found) == []
    assert machine.processes(0) == []
    assert abandoned_leaves() == []
    assert {one["case"] for one in told["cases"]} == {one.name for one in cases()}
    lacking = [one for one in told["cases"] if one["verdict"] != HELD]
    lacking = [one for one in lacking if one["why"] != "the stand-in has no MPS"]
    if lacking:
        not_proven(", ".join(one["claim"] for one in lacking), lacking[0]["why"])


def test_a_driver_that_does_not_clear_is_found_out(machine: Machine) -> None:
    machine.set(0, scrub_on_free=0)
    done = run(machine, "--case", "first_read")
    assert done.returncode == 1
    assert "failed   first_read" in done.stdout and "does not clear what it frees" in done.stdout


def test_a_driver_that_lets_go_late_is_found_out(machine: Machine) -> None:
    machine.set(0, release_busy_ms=60_000)
    done = run(machine, "--patience-s", "2", "--case", "kill_with_everything")
    assert done.returncode == 1 and "still listed after 2 s" in done.stdout
    machine.set(0, release_busy_ms=0)


def test_a_silent_driver_ends_a_case_and_not_the_suite(machine: Machine) -> None:
    machine.fault("nvmlDeviceGetMemoryInfo_v2", "hang", after=1, count=1)
    done = run(machine, "--patience-s", "2", "--case", "baseline", "--case", "settles")
    machine.clear()
    assert done.returncode == 1
    assert "NVML did not answer in 2 s" in done.stdout and "held     settles" in done.stdout


def test_a_program_of_ours_that_breaks_is_a_failure(machine: Machine) -> None:
    """It was "not run", and the suite's status 0."""
    machine.fault("nvmlDeviceGetCount_v2", "return:999")
    done = run(machine, "--case", "described")
    machine.clear()
    assert done.returncode == 1 and "failed   described" in done.stdout, done.stdout


def test_a_gpu_that_somebody_uses_is_left_alone(machine: Machine) -> None:
    machine.ghost(0, os.getpid(), 1 << 20)
    done = run(machine, "--patience-s", "1", "--case", "scrub")
    assert done.returncode == 0
    assert f"somebody uses this GPU: pids [{os.getpid()}]" in done.stdout


@pytest.mark.slow
def test_of_several_gpus_the_agent_leases_the_one_that_is_looked_at() -> None:
    with mock_machine(["L4", "L4"]) as two:
        done = run(two, "--gpu", "1", "--case", "agent_importer_outside")
    assert done.returncode == 0 and "held     agent_importer_outside" in done.stdout, done.stdout


def test_a_gpu_in_parts_is_not_tested_as_a_whole() -> None:
    with mock_machine(["A100"], mig={0: True}) as parts:
        words = [word for one in cases() for word in ("--case", one.name)]
        done = run(parts, *words)
    assert done.returncode == 0, done.stdout
    assert "not run  scrub" in done.stdout and "MIG is on" in done.stdout
    assert "held     described" in done.stdout


def test_a_setting_that_changed_meanwhile_is_the_loudest_result(machine: Machine) -> None:
    process = subprocess.Popen(
        suite(machine, "--case", "settles"),
        env=environment(machine),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("NVIDIA H100")
    machine.set(0, persistence=0)
    _, complaint = process.communicate(timeout=SUITE_BUDGET_S)
    assert process.returncode == CHANGED and "SETTINGS CHANGED" in complaint


def test_without_rights_it_says_what_it_could_not_find_out(
    machine: Machine, tmp_path: Path
) -> None:
    setpriv = shutil.which("setpriv")
    someone = (str(setpriv), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    reads = subprocess.run([*someone, sys.executable, "-c", ""], capture_output=True)
    if setpriv is None or reads.returncode:
        not_proven("what the hardware suite says without rights", "nobody cannot run this Python")
    tmp_path.chmod(0o777)
    cases = ("filter_gates", "openers_found", "kill_with_everything", "lease_ends_proven")
    words = [word for name in cases for word in ("--case", name)]
    done = run(machine, *words, before=someone)
    lines = done.stdout.splitlines()
    for name in ("filter_gates", "openers_found", "lease_ends_proven"):
        assert any(line.startswith(f"not run  {name}") and "root" in line for line in lines), lines
    kill = next(line for line in lines if "kill_with_everything" in line)
    assert kill.startswith("held") and "SIGKILL" in kill


def test_what_is_packed_is_what_the_agent_needs_and_no_more() -> None:
    names = {one.metadata["Name"].lower() for one in packages(WANTED)}
    assert {"trio", "attrs", "msgspec", "cffi", "pycparser", "nvidia-ml-py", "pytest"} <= names
    assert not {"duckdb", "pyarrow", "ruff", "mypy"} & names
    lent = REPOSITORY / "tests/hardware/lent"
    said = subprocess.run([lent, "--help"], capture_output=True, text=True, check=True).stdout
    assert "lent pack" in said and "lent run" in said


def test_no_time_left_is_said(machine: Machine) -> None:
    done = run(machine, "--budget-s", "5", "--case", "scrub")
    assert done.returncode == 0 and "5 s left, it may take 60" in done.stdout


def test_help_builds_nothing(tmp_path: Path) -> None:
    """Any Python says it, of a tree in which nothing was built and with nothing to build it."""
    (tmp_path / "tests").mkdir()
    shutil.copytree(REPOSITORY / "tests/hardware", tmp_path / "tests/hardware")
    words = [tmp_path / "tests/hardware/run", "--mock", "H100", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SUITE_BUDGET_S)
    assert done.returncode == 0 and "--budget-s" in done.stdout and not done.stderr
    assert not (tmp_path / ".venv").exists()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        suite(None),
        env={**environment(None), "LD_LIBRARY_PATH": str(tmp_path)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SUITE_BUDGET_S,
    )
    if done.returncode != NO_GPU:
        pytest.skip("not proven: what the suite says without a GPU (there is one)")
    assert "no GPU can be asked here" in done.stderr


def test_the_evidence_shows_what_was_measured_and_nothing_else() -> None:
    text = table.EVIDENCE.read_text("utf-8")
    told = "python -m tests.hardware.table --write"
    assert table.inserted(text, table.current()) == text, f"run {told}"


def test_the_table_says_not_run_held_and_failed() -> None:
    first, second, third = cases()[:3]
    told = {
        "gpu": "NVIDIA X",
        "driver": "1",
        "on": "2026-01-01",
        "cases": [
            {"case": first.name, "verdict": HELD, "why": "", "measured": {}},
            {"case": second.name, "verdict": NOT_RUN, "why": "not root", "measured": {}},
            {"case": third.name, "verdict": "failed", "why": "it hung", "measured": {}},
        ],
    }
    lines = table.make([told], cases()[:4]).splitlines()
    assert [line.rsplit("| ", 1)[1] for line in lines[2:]] == [
        "held |",
        "not run: not root |",
        "**failed**: it hung |",
        "not run |",
    ]
