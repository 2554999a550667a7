# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it works without the tree it was built from."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from leased.service.config import Config
from leased.terms.moment import NS_PER_MS

TOP = Path(__file__).resolve().parents[3]


SCRIPT = """
from leased import client

try:
    with client.plain.acquire(mem="64MiB", ttl=60) as held:
        reveal_type(held.mem())
        reveal_type(held.lease.runtime.allotments[0].capacity)
except client.LeasedError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built once. Without isolation where the build's needs are here, so
    that it is quick.
    """
    into = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into)]
    try:
        import editables  # noqa: F401
        import hatchling  # noqa: F401

        words.append("--no-build-isolation")
    except ImportError:
        pass
    done = subprocess.run([*words, str(TOP)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (built,) = into.glob("leased-*.whl")
    return built


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_is_for_this_platform(wheel: Path) -> None:
    assert not wheel.name.endswith("-none-any.whl")
    assert f"cp{sys.version_info[0]}{sys.version_info[1]}" in wheel.name


def test_the_compiled_parts_are_in_it(wheel: Path) -> None:
    found = names(wheel)
    assert [name for name in found if name.startswith("leased/_native.") and name.endswith(".so")]
    assert "leased/bin/leased-reaper" in found


def test_the_reaper_in_it_is_static_and_may_be_executed(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo("leased/bin/leased-reaper")
        assert info.external_attr >> 16 & stat.S_IXUSR
        reaper = Path(archive.extract(info, tmp_path))
    reaper.chmod(0o755)
    assert b"NEEDED" not in subprocess.run(["readelf", "-d", reaper], capture_output=True).stdout
    said = subprocess.run([reaper, "--version"], capture_output=True, text=True, check=True, env={})
    assert said.stdout.startswith("leased-reaper ")


def test_a_reaper_that_systemd_starts_has_the_configurations_budgets(
    wheel: Path, tmp_path: Path
) -> None:
    """The unit names none, so the program's own defaults must be those of [timing]."""
    with zipfile.ZipFile(wheel) as archive:
        reaper = Path(archive.extract("leased/bin/leased-reaper", tmp_path))
    reaper.chmod(0o755)
    said = subprocess.run([reaper, "--help"], capture_output=True, text=True, check=True).stdout
    (kill_ms,) = re.findall(r"--kill-ms .*\(default (\d+)\)", said)
    (backstop_ms,) = re.findall(r"--backstop-ms .*\(default (\d+)\)", said)
    timing = Config().timing
    assert int(kill_ms) * NS_PER_MS == timing.cut_ns
    assert int(backstop_ms) * NS_PER_MS == timing.backstop_ns


def test_every_module_and_every_interface_is_in_it(wheel: Path) -> None:
    found = set(names(wheel))
    source = TOP / "agent" / "leased"
    for path in (*source.rglob("*.py"), *source.rglob("*.varlink")):
        assert f"leased/{path.relative_to(source)}" in found


def test_types_are_known_to_who_installs_it(wheel: Path, tmp_path: Path) -> None:
    """Of a stranger's script, by mypy at its strictest; a package without the mark is all Any."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site-packages")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": "", "PYTHONPATH": str(tmp_path / "site-packages")},
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if "Revealed" in line or "error" in line]
    assert [line.rpartition("is ")[2] for line in told] == ['"mmap.mmap"', '"int"'], done.stdout


def test_nothing_else_is_in_it(wheel: Path) -> None:
    for name in names(wheel):
        assert name.startswith(("leased/", "leased-")), name
        assert "__pycache__" not in name
        assert not name.endswith((".c", ".h", ".o"))


def test_both_programs_start_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (entries,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        declared = archive.read(entries).decode()
    for program in ("leased", "leasectl"):
        (target,) = [
            line.partition(" = ")[2]
            for line in declared.splitlines()
            if line.startswith(f"{program} =")
        ]
        module, function = target.split(":")
        done = subprocess.run(
            [sys.executable, "-I", "-c",
             f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module} as m;"
             f"sys.argv[:] = [{program!r}, '--version']; sys.exit(m.{function}())"],
            capture_output=True, text=True, cwd="/", env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(program)
