# SPDX-License-Identifier: Apache-2.0
"""Every log that a test leaves behind is judged twice: by the code of `leasectl verify`, and by a
second verifier that shares none of it. What a skip did not prove is told, whoever skipped.

Rule: a test that damaged its log on purpose is no exception: they must agree on that too. What an
agent of `tests/doubles/host_agent.py` leaves is judged there.

The C side that is tested is that of the tree: where its sources are newer than what was built of
them, it is built first.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.doubles.killed import Killed

TOP = Path(__file__).resolve().parents[1]
LOGS_MAX = 8
"""Of one test: a crash search leaves hundreds that differ by a sector."""


def pytest_configure(config: pytest.Config) -> None:
    """Build what is out of date, if there is a compiler; once, not in every worker of a tier."""
    if hasattr(config, "workerinput"):
        return
    built = [path.stat().st_mtime for path in (TOP / "agent/leased").glob("_native*.so")]
    sources = [TOP / "native/verbs.h", *(TOP / "native/verbs").glob("*.[ch]")]
    stale = built and max(path.stat().st_mtime for path in sources) > min(built)
    if stale and shutil.which("cc"):
        subprocess.run([sys.executable, str(TOP / "native/build_native.py")], check=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """`autojump`, of a module or a test, is pytest-trio's fixture without the argument."""
    if item.get_closest_marker("autojump") and iscoroutinefunction(getattr(item, "obj", None)):
        item.add_marker(pytest.mark.trio(run=_run_autojumping), append=False)


def _run_autojumping(main: Callable[..., Any], **how: Any) -> None:
    from trio import run
    from trio.testing import MockClock

    run(main, **{**how, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture(autouse=True)
def _judged_twice(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test: compare the verdicts on every log in its own directory, if it has one, and on
    those in memory that it made last."""
    place: Path | None = None
    if "tmp_path" in request.fixturenames:
        place = request.getfixturevalue("tmp_path")
    disks = sys.modules.get("tests.doubles.disk")
    if disks is not None:
        disks.RECENT.clear()
    yield
    disks = sys.modules.get("tests.doubles.disk")
    if place is None and not (disks and disks.RECENT):
        return
    # Not before the C side is that of the tree.
    from tests.doubles.second_opinion import judge, judge_files

    for path in sorted(place.rglob("log.id"))[:LOGS_MAX] if place is not None else ():
        judge(path.parent)
    while disks and disks.RECENT:
        files = disks.RECENT.pop().contents()
        if "log.id" in files:
            judge_files(files)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """What kills a program on its way into a system call, built."""
    from tests.doubles.killed import Killed

    return Killed(tmp_path_factory.mktemp("killed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, None, None]:
    """An async test skips within a nursery, and pytest-trio skips anew without the reason."""
    report = yield
    if report.skipped and call.excinfo is not None:
        within = call.excinfo.value.__context__
        while isinstance(within, BaseExceptionGroup):
            within = within.exceptions[0]
        if isinstance(within, pytest.skip.Exception):
            place, line, _ = report.longrepr
            report.longrepr = (place, line, f"Skipped: {within.msg}")
    return report
