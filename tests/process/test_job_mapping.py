# SPDX-License-Identifier: Apache-2.0
"""dcgm-exporter's job mapping as the hardened unit lets it be written: in a mount namespace with
what `leased.service` and its drop-in leave writable, and nothing else, with the unit's mask and
capabilities; and read by somebody who is nobody.

Not systemd itself: what it makes of the settings is made here by hand, from the same files.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.host import not_proven

pytestmark = pytest.mark.root

TOP = Path(__file__).resolve().parents[2]
UNIT = TOP / "systemd" / "leased.service"
DROP_IN = TOP / "systemd" / "dropins" / "leased.service.d" / "job-mapping.conf"
WRITER = """
import sys, trio
from leased.service.telemetry.jobs import JobFiles
files = JobFiles(sys.argv[1], print)
trio.run(files.fill, {0: ("aa" * 16,), 1: ()})
trio.run(files.fill, {0: ("bb" * 16,), 1: ()})
"""
SCENE = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs /run
umask 0022
for one in $RUNTIME; do mkdir -p "/run/$one"; done
mount --bind /run/leased /run/leased
mount -o remount,ro,bind /run
mount -o remount,ro,bind /
umask "$MASK"
setpriv --bounding-set "-all,$CAPABILITIES" --inh-caps=-all --no-new-privs \
  "$PYTHON" -c "$WRITER" "$DIRECTORY"
stat -c '%a %U %n' "$DIRECTORY" "$DIRECTORY"/* 2>/dev/null || true
setpriv --reuid nobody --regid nogroup --clear-groups sh -c 'cat "$0"/0; ls -A "$0"' "$DIRECTORY" \
  2>/dev/null || true
"""


def values(file: Path, key: str) -> list[str]:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    return [word for line in re.findall(rf"^{key}=(.*)$", text, re.M) for word in line.split()]


def written(directory: str, *, drop_in: bool) -> list[str]:
    """What was said, and what somebody else then reads."""
    for program in ("unshare", "setpriv"):
        if shutil.which(program) is None:
            not_proven("the job mapping under the unit", f"there is no {program}")
    runtime = values(UNIT, "RuntimeDirectory") + (
        values(DROP_IN, "RuntimeDirectory") if drop_in else []
    )
    held = [one.removeprefix("CAP_").lower() for one in values(UNIT, "CapabilityBoundingSet")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCENE],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(TOP / "agent"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUNTIME": " ".join(runtime),
            "MASK": values(UNIT, "UMask")[0],
            "CAPABILITIES": ",".join(f"+{one}" for one in held),
            "PYTHON": sys.executable,
            "WRITER": WRITER,
            "DIRECTORY": directory,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unshare failed" in done.stderr:
        not_proven("the job mapping under the unit", done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_with_the_drop_in_it_is_written_and_everybody_may_read_it() -> None:
    directory = "/run/leased/jobs"
    said = written(directory, drop_in=True)
    assert said == [
        f"755 root {directory}",
        f"644 root {directory}/0",
        f"644 root {directory}/1",
        "bb" * 16,
        *("0", "1"),
    ]
    assert (
        directory in DROP_IN.read_text()
        and directory in (TOP / "configs" / "leased.toml").read_text()
    )


def test_without_it_or_elsewhere_the_agent_says_so_once_and_goes_on() -> None:
    [said, *_] = written("/run/leased/jobs", drop_in=False)
    assert said == (
        "telemetry: job mapping cannot be written: /run/leased/jobs: No such file or directory"
    )
    [said, *_] = written("/var/tmp", drop_in=True)
    assert said == "telemetry: job mapping cannot be written: /var/tmp: Read-only file system"


def test_the_drop_in_opens_nothing_else() -> None:
    kept = [line for line in DROP_IN.read_text().splitlines() if line and line[0] != "#"]
    assert kept == ["[Service]", "RuntimeDirectory=leased/jobs"]
