# SPDX-License-Identifier: Apache-2.0
"""What is asked of several devices at once: one that hangs costs itself, and not the time that the
others' answers are waited for.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from leased.hardware.rdma import carrying, owner, prober
from leased.hardware.rdma.devices import RdmaDevice

BUDGET_NS = 1_000_000_000
SAYS = "region_bytes_max=4096\nwindows_2b=1\nwindows_max=8\natomics=0\n"

HANGS = """#!/bin/sh
case "$2" in sick*) exec sleep 60;; esac
printf '%s'
"""

STAYS = """#!{python}
import ctypes, os, sys, time
SEIZE, TRACE_EXIT = 0x4206, 0x40
if sys.argv[2].startswith("sick"):
    program, (told, tell) = os.getpid(), os.pipe()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        assert ctypes.CDLL(None).ptrace(SEIZE, program, None, ctypes.c_void_p(TRACE_EXIT)) == 0
        with open({pid!r}, "w") as file:
            file.write(str(os.getpid()))
        os.write(tell, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(told, 1)
    time.sleep(60)
print({says!r}, end="")
"""


def device(name: str) -> RdmaDevice:
    return RdmaDevice(1, name, "0" * 15 + "1", "", "roce", "mlx5", 0, ())


def looked(program: Path, *names: str) -> tuple[list[str], float]:
    began = time.monotonic()
    found = carrying.abilities(str(program), [device(name) for name in names], BUDGET_NS)
    return [one.trouble for one in found], time.monotonic() - began


def test_those_that_hang_are_waited_for_together(tmp_path: Path) -> None:
    """One after the other they took longer than the worker that asks has, and no device of the host
    was offered."""
    program = tmp_path / "look"
    program.write_text(HANGS % SAYS.replace("\n", "\\n"))
    program.chmod(0o755)
    troubles, took_s = looked(program, "sick0", "well0", "sick1", "sick2")
    assert troubles[1] == "" and all("timed out" in troubles[at] for at in (0, 2, 3))
    assert took_s < 2 * BUDGET_NS / 1e9


def test_one_that_does_not_even_die_is_left(tmp_path: Path) -> None:
    """Killed in the kernel it does not end, and was waited for without a limit."""
    program, pid = tmp_path / "look", tmp_path / "pid"
    program.write_text(STAYS.format(python=sys.executable, pid=str(pid), says=SAYS))
    program.chmod(0o755)
    try:
        troubles, took_s = looked(program, "sick0", "well0")
        assert troubles[1] == "" and "timed out" in troubles[0]
        assert took_s < 5 * BUDGET_NS / 1e9
    finally:
        let_die(pid)
    [left] = owner._left
    assert left.wait(10) == -signal.SIGKILL


def test_a_prober_that_does_not_even_die_is_left(tmp_path: Path) -> None:
    """What it read was known, and was lost with the worker that waited for its end."""
    program, pid = tmp_path / "probe", tmp_path / "pid"
    program.write_text(STAYS.format(python=sys.executable, pid=str(pid), says=SAYS))
    process = subprocess.Popen([sys.executable, program, "probe", "sick0"])
    ours, theirs = socket.socketpair()
    try:
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
        ended = threading.Thread(target=prober._Prober(process, owner.Door(ours), 0, 0).end)
        ended.start()
        ended.join(5 * BUDGET_NS / 1e9)
        assert not ended.is_alive()
    finally:
        theirs.close()
        let_die(pid)
    assert process.wait(10) == -signal.SIGKILL


def let_die(pid: Path) -> None:
    """End whoever holds what was killed."""
    tracer = os.pidfd_open(int(pid.read_text()))
    signal.pidfd_send_signal(tracer, signal.SIGKILL)
    assert select.select([tracer], [], [], 10)[0], "it holds what was killed"
    os.close(tracer)


@pytest.mark.parametrize("said", ["", "region_bytes_max=many\n"])
def test_one_that_says_something_else_is_not_believed(tmp_path: Path, said: str) -> None:
    program = tmp_path / "look"
    program.write_text(HANGS % said.replace("\n", "\\n"))
    program.chmod(0o755)
    assert "something else" in looked(program, "well0")[0][0]
