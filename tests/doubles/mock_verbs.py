# SPDX-License-Identifier: Apache-2.0
"""leased-rdma under sanitizers, on a libibverbs without hardware (`tests/mocks/ibverbs`), in a real
cgroup with rooms.

Rule: faults are chosen by environment, per start; a report of a sanitizer fails the test that
caused it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from leased.hardware import leaves
from leased.hardware.rdma import owner, protocol
from leased.hardware.rdma.owner import Door
from tests.doubles.reaper_host import cgroup_root, usable

NATIVE = Path(__file__).resolve().parents[2] / "native"
MOCK = Path(__file__).resolve().parents[1] / "mocks/ibverbs/mock.c"
GUID = "00000000000000aa"
WHERE = protocol.Where("mock0", 1, 0)
BUDGET_NS = 5_000_000_000


@contextlib.contextmanager
def build_native() -> Iterator[ModuleType]:
    """native/build_native.py, which is not in any package."""
    sys.path.insert(0, str(NATIVE))
    try:
        import build_native as module

        yield module
    finally:
        sys.path.remove(str(NATIVE))


def build(into: Path) -> Path:
    """The program under sanitizers, and the library beside it."""
    with build_native() as module:
        program: Path = module.build_rdma(into, sanitize=True)
        flags = [flag for flag in module.STRICT if flag != "-Wconversion"]
        library = into / "libibverbs.so.1"
        module.run(module.compiler(), *flags, "-fPIC", "-shared", MOCK, "-o", library)
    return program


class Stage:
    """A leaf with an owner's room, a program, and where its sanitizers report."""

    def __init__(self, program: Path, leaf: Path, reports: Path) -> None:
        self.program, self.leaf, self.reports = program, str(leaf), reports
        self.room = leaves.make_room(self.leaf, f"{owner.PREFIX}{GUID}")

    def start(self, patch: pytest.MonkeyPatch, pinned_bytes: int = 1 << 20, **told: str) -> Door:
        """An owner; `told` is its environment: MOCK_VERBS_FAULT and the like."""
        self.tell(patch, **told)
        return owner.start_owner(str(self.program), self.room, pinned_bytes, budget_ns=BUDGET_NS)

    def tell(self, patch: pytest.MonkeyPatch, **told: str) -> None:
        """The environment of what is started from here on."""
        patch.setenv("LD_LIBRARY_PATH", str(self.program.parent))
        # The leak check traces, which a process that closed up forbids.
        options = f"detect_leaks=0:log_path={self.reports}/asan"
        patch.setenv("ASAN_OPTIONS", options)
        patch.setenv("UBSAN_OPTIONS", f"log_path={self.reports}/ubsan")
        for name in ("MOCK_VERBS_FAULT", "MOCK_VERBS_WINDOWS", "MOCK_VERBS_BROKEN"):
            patch.delenv(name, raising=False)
        for name, value in told.items():
            patch.setenv(name, value)

    @property
    def members(self) -> list[int]:
        """Who is in the room."""
        return owner.members(self.room)

    def close(self) -> None:
        """Everybody out; what the sanitizers found is the test's failure."""
        owner.end_owner(self.room, BUDGET_NS)
        leaves.remove(self.leaf)
        found = [path.read_text() for path in self.reports.iterdir()]
        assert not found, "\n".join(found)


def stage_in(program: Path, directory: Path) -> Stage:
    """A leaf of its own. Only where there is a cgroup2 to write to."""
    leaf = cgroup_root() / f"leased-test-rdma-{os.getpid()}"
    leaf.mkdir()
    reports = directory / "reports"
    reports.mkdir()
    return Stage(program, leaf, reports)


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program to its end."""
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


__all__ = ["BUDGET_NS", "GUID", "WHERE", "Stage", "build", "run", "stage_in", "usable"]
