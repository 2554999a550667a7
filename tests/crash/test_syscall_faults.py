# SPDX-License-Identifier: Apache-2.0
"""A system call of the running journal fails: the process ends naming the step, and nothing is lost
(T3 of chain.md section 11, in the small; strace injects the fault into every thread).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from leased.chain.head import parse_head
from tests.doubles.logs import open_in, write_batches

CALLS = [
    ("fdatasync", "EIO", 9),
    ("fdatasync", "EIO", 10),
    ("fdatasync", "ENOSPC", 31),
    ("pwrite64", "EIO", 9),
    ("pwrite64", "ENOSPC", 10),
    ("renameat", "EIO", 1),
    ("fsync", "EIO", 2),
]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("call", "error", "when"), CALLS)
def test_a_failing_call_ends_the_process_and_loses_nothing(
    tmp_path: Path, call: str, error: str, when: int
) -> None:
    pytest.importorskip("leased._native", reason="the compiled part is not built")
    directory = tmp_path / "audit"
    log = open_in(directory, segment_bytes=64 * 1024)
    write_batches(log, [1])
    log.close()
    fault = f"inject={call}:error={error}:when={when}+"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", fault]
    command += [sys.executable, "-m", "tests.crash.committing", str(directory), "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        command, capture_output=True, env=environment, text=True, timeout=60, check=False
    )
    if "ptrace" in ended.stderr:
        pytest.skip("strace may not trace here")
    assert ended.returncode != 0 and "OSError" in ended.stderr, ended.stderr[-2000:]
    heard = [line for line in ended.stdout.splitlines(keepends=True) if line.endswith("\n")]
    again = open_in(directory)
    if heard:
        acked = parse_head(heard[-1].strip())
        assert again.head.size >= acked.size
        frames = b"".join(again.journal.frames(acked.size - 1))
        length = int.from_bytes(frames[:4], "little")
        assert frames[length - 32 : length] == acked.hash
    again.close()
