# SPDX-License-Identifier: Apache-2.0
"""The library without async, against an agent in another thread, in real time (short lengths, no
sleeping).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.client import AgentUnavailable, LeaseLost, Refused, plain
from leased.terms.errors import InvalidParameter
from leased.terms.lease import Ending
from leased.wire import parameters
from tests.doubles.varlink_server import SmallAgent, small_agent_in_a_thread


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "io.leased")


@pytest.fixture
def agent(path: str) -> Iterator[SmallAgent]:
    with small_agent_in_a_thread(path) as small:
        yield small


def test_a_lease_is_held_by_a_thread_and_released(path: str, agent: SmallAgent) -> None:
    with plain.acquire(path, mem=4096, ttl=60) as held:
        held.mem()[:2] = b"ok"
        held.renew()
        assert held.notice is None
        assert held.lease.runtime.state == "active"
        held.check()
    (lease,) = agent.leases.values()
    assert lease.ended is Ending.RELEASED
    assert lease.generation == 2


def test_a_lease_can_be_released_early(path: str, agent: SmallAgent) -> None:
    with plain.acquire(path, mem=4096, ttl=60) as held:
        held.release()
    assert len(agent.calls(parameters.Release)) == 1


def test_an_exception_of_the_block_comes_out_after_the_release(
    path: str, agent: SmallAgent
) -> None:
    with pytest.raises(ZeroDivisionError), plain.acquire(path, mem=4096, ttl=60):
        raise ZeroDivisionError
    (lease,) = agent.leases.values()
    assert lease.ended is Ending.RELEASED


def test_refusals_and_mistakes_come_out_where_they_were_made(path: str, agent: SmallAgent) -> None:
    with pytest.raises(Refused), plain.acquire(path, mem="2GiB"):
        raise AssertionError("there is no lease to work under")
    with pytest.raises(InvalidParameter), plain.acquire(path):
        raise AssertionError("nothing was asked for")
    for seconds in ("60s", float("nan"), float("inf")):
        wrong = pytest.raises(InvalidParameter, match="ttl")
        with wrong, plain.acquire(path, mem=4096, ttl=seconds):
            raise AssertionError("that is no time")


def test_what_is_asked_of_a_lease_after_its_block_says_so(path: str, agent: SmallAgent) -> None:
    with plain.acquire(path, mem=4096, ttl=60) as held:
        pass
    for asked in (held.check, held.renew, held.release, held.mem, lambda: held.extend(1)):
        with pytest.raises(LeaseLost, match="it was given back"):
            asked()


def test_a_lost_lease_is_told(path: str, agent: SmallAgent) -> None:
    agent.hang.append(parameters.Renew)
    with pytest.raises(LeaseLost), plain.acquire(path, mem=4096, ttl=0.2) as held:
        while True:
            held.check()


def test_calls_without_a_lease(path: str, agent: SmallAgent) -> None:
    assert plain.call(path, "io.leased.Device.List")["resources"]
    listed = plain.run(path, lambda session: session.devices())
    assert len(listed.resources) == 2


def test_no_agent(path: str) -> None:
    with pytest.raises(AgentUnavailable), plain.acquire(path, mem=4096):
        raise AssertionError("nobody is there")


PATIENCE_S = 30
INTERRUPTED = """
import signal, sys
from leased.client import plain
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
try:
    with plain.acquire(sys.argv[1], mem=4096, wait=600):
        print("granted")
except KeyboardInterrupt:
    print("interrupted")
"""
FORKS = """
import os, sys
from leased.client import LeaseLost, plain
with plain.acquire(sys.argv[1], mem=4096, ttl=60) as held:
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        held.renew()
        held.check()
    else:
        for ask in (held.check, held.renew, held.release):
            try:
                ask()
            except LeaseLost as error:
                assert str(os.getppid()) in str(error)
            else:
                raise AssertionError(ask)
print("parent" if pid else "child", flush=True)
"""

STAYS_OPEN = """
import sys, threading
from leased.client import plain
block = plain.acquire(sys.argv[1], mem=4096, ttl=60)
held = block.__enter__()
def hold():
    with plain.acquire(sys.argv[1], mem=4096, ttl=60):
        ready.set()
        threading.Event().wait()
ready = threading.Event()
threading.Thread(target=hold, daemon=True).start()
ready.wait()
print("held", flush=True)
"""
ENDS_LAST = """
import sys, threading
from leased.client import plain
def hold():
    threading.main_thread().join()
    with plain.acquire(sys.argv[1], mem=4096, ttl=60) as held:
        held.renew()
    print("held", flush=True)
threading.Thread(target=hold).start()
"""


def program(text: str, path: str) -> subprocess.Popen[str]:
    """Python of its own, which may hang."""
    return subprocess.Popen(
        [sys.executable, "-c", text, path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=PATIENCE_S)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_an_interrupt_ends_the_wait_for_a_lease(path: str, agent: SmallAgent) -> None:
    """It waited on, held what it was granted in the end, and never came back."""
    agent.hang.append(parameters.Acquire)
    process = program(INTERRUPTED, path)
    pidfd = os.pidfd_open(process.pid)
    while not agent.calls(parameters.Acquire):
        assert not select.select([pidfd], [], [], 0.01)[0], "it ended"
    os.close(pidfd)
    process.send_signal(signal.SIGINT)
    assert said(process) == "interrupted\n"
    assert not agent.leases


def test_a_block_that_is_open_when_the_interpreter_ends_is_left(
    path: str, agent: SmallAgent
) -> None:
    """The thread behind it renewed on, and the process never ended."""
    assert said(program(STAYS_OPEN, path)) == "held\n"
    assert [lease.ended for lease in agent.leases.values()] == [Ending.RELEASED] * 2


def test_a_thread_that_outlives_the_main_one_may_hold_a_lease(
    path: str, agent: SmallAgent
) -> None:
    """It was RuntimeError: the pool that the holding thread came from had shut down."""
    assert said(program(ENDS_LAST, path)) == "held\n"
    (lease,) = agent.leases.values()
    assert (lease.ended, lease.generation) == (Ending.RELEASED, 2)


def test_a_process_forked_in_the_block_leaves_it_and_the_lease(
    path: str, agent: SmallAgent
) -> None:
    assert said(program(FORKS, path)) == "child\nparent\n"
    (lease,) = agent.leases.values()
    assert (lease.ended, lease.generation) == (Ending.RELEASED, 2)
    assert len(agent.calls(parameters.Release)) == 1
