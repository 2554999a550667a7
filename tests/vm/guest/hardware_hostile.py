# SPDX-License-Identifier: Apache-2.0
"""Holders that will not let go, against the agent as it is installed: each loses access and its
memory is proven clean, or it is fenced, and the record says why.

What is asserted of each case: the lease is closed as it should be, in time; nobody who had it has
it still; and whoever asks next gets the same capacity, empty. When all have been played the log
must hold, and only then the verdicts are recorded, with its times (`tests/hostile/verdicts.py`).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import host
import pytest
from host import ADMIN, MIB, Connection, Failed, call, eventually, memory
from victims import agent, comes_to, killed_at, reaper, replaced, stopped, workers

from tests.hostile.verdicts import Verdict, record

HOLDER = Path(__file__).with_name("hostile_holder.py")
NODE = 1
RESOURCE = f"mem:node{NODE}:4096"
MEMORY = memory(2 * MIB, node=NODE)
SLICE = Path("/sys/fs/cgroup/leased.slice")
HALF_A_CORE = {"kind": "cpu", "capacity": 500}


class Holder:
    """One hostile holder, and perhaps a second process of its that was never in the leaf."""

    def __init__(
        self, trick: str, *asks: dict[str, Any], user: str = "alice", **order: Any
    ) -> None:
        self.asks = asks or (MEMORY,)
        words = [sys.executable, str(HOLDER)]
        words.append(json.dumps({"trick": trick, "asks": self.asks, **order}))
        top = str(HOLDER.parents[3])
        self.process = subprocess.Popen(
            ["runuser", "-u", user, "--", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{HOLDER.parent}:{top}"},
        )
        assert self.process.stdout is not None
        facts = json.loads(self.process.stdout.readline() or "{}")
        assert facts, f"{trick}: the holder ended before it had played"
        self.lease_id: str = facts["lease_id"]
        self.pid, self.other = (os.pidfd_open(facts[name]) for name in ("pid", "other"))

    def ask(self, line: str = "?") -> str:
        """What the process that plays can still do; "" when it is gone."""
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.tell(line)
            return self.process.stdout.readline().rstrip("\n")
        return ""

    def tell(self, line: str) -> None:
        """A line that nobody waits to be answered."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def revoke(self) -> None:
        """An operator takes the lease back."""
        call("Admin.Revoke", ADMIN, lease_id=self.lease_id)

    def close(self) -> None:
        """Nothing of it is left."""
        for pidfd in (self.other, self.pid):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def holding(trick: str, *asks: dict[str, Any], **order: Any) -> Iterator[Holder]:
    """A holder that has played its trick."""
    one = Holder(trick, *asks, **order)
    try:
        yield one
    finally:
        one.close()


class Played(NamedTuple):
    """A case whose asserts have held."""

    lease_id: str
    case: str
    kinds: tuple[str, ...]
    reason: str
    evidence: str
    timed: bool


PLAYED: list[Played] = []


@pytest.fixture(scope="module", autouse=True)
def the_log_tells_of_them() -> Iterator[None]:
    """When all have been played: the log holds, and says what became of each, and when."""
    host.offered(RESOURCE)
    yield
    assert host.leasectl("verify").startswith("ok: ")
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in host.records():
        told.setdefault(entry.get("lease_id", ""), {})[entry["kind"]] = entry
    for one in PLAYED:
        story = told[one.lease_id]
        last = story["Fenced" if one.reason else "Reclaimed"]
        proven_ms = None
        if not one.reason:
            proven_ms = (last["effective_ns"] - story["AccessCut"]["effective_ns"]) / 1e6
        cut_ms = last["cut_lag_ns"] / 1e6 if "AccessCut" in story else None
        reason = ""
        if one.reason:
            reason = f"{one.reason}, {os.strerror(last['errno'])}"
            assert last["step"] == one.reason, last
        if not one.timed:
            cut_ms = proven_ms = None
        verdict = "fenced" if reason else "clean"
        for kind in one.kinds:
            record(Verdict(one.case, kind, "vm", verdict, reason, cut_ms, proven_ms, one.evidence))


@pytest.fixture(autouse=True)
def nothing_is_fenced() -> Iterator[None]:
    """Each test begins with all of the node free, and leaves it so."""
    before = host.free(RESOURCE)
    assert before["fenced"] == 0
    yield
    for one in call("Lease.List", ADMIN, closed=True)["leases"]:
        if one["runtime"]["state"] == "fenced":  # of a test that failed
            unfence(one["lease_id"])
    eventually("the capacity is back", lambda: host.free(RESOURCE) == before)


def is_gone(pidfd: int, seconds: float = host.HANGS_S) -> bool:
    """Wait for the end of a process."""
    return bool(select.select([pidfd], [], [], seconds)[0])


def grant_again(*asks: dict[str, Any]) -> None:
    """Whoever asks next gets the same, empty."""
    connection = Connection()
    lease_id = connection.acquire(*asks, bind="cgroup")["lease"]["lease_id"]
    with mmap.mmap(connection.fds[0], 2 * MIB) as view:
        assert view[:] == bytes(2 * MIB)
    connection.close_fds()
    connection.call("Lease.Release", lease_id=lease_id)
    assert host.closed(lease_id)["state"] == "reclaimed"
    connection.close()


def clean(one: Holder, case: str, *kinds: str, timed: bool = True) -> None:
    """The lease has ended well and in time, and its capacity is somebody else's now. Not `timed`:
    the times would be those of what the test itself held up."""
    ended = host.closed(one.lease_id)
    assert ended["state"] == "reclaimed", host.leasectl("--admin", "why", one.lease_id)
    if ended["ended"] == "expired":
        assert host.came_at(ended["deadline_boottime_ns"], ended["cut_boottime_ns"])
    assert not host.leaf(one.lease_id).exists()
    grant_again(*one.asks)
    PLAYED.append(Played(one.lease_id, case, kinds or ("mem",), "", evidence(), timed))


def fenced(one: Holder, case: str, reason: str, *kinds: str) -> None:
    """The lease is fenced, for this step; by an operator's word its capacity comes back: at once,
    or when it is proven that nobody has it any more."""
    assert host.closed(one.lease_id)["state"] == "fenced"
    unfence(one.lease_id)
    comes_to(one.lease_id, "reclaimed")
    grant_again(*one.asks)
    PLAYED.append(Played(one.lease_id, case, kinds or ("mem",), reason, evidence(), True))


def unfence(lease_id: str) -> None:
    """An operator's word. Where somebody had it at the cut, the teardown is begun again."""
    try:
        call("Admin.Unfence", ADMIN, lease_id=lease_id)
    except Failed as refused:
        assert refused.parameters["reason"] == "still_held"


def evidence() -> str:
    """Where a reader finds what showed it."""
    return "hardware_hostile.py::" + os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split()[0]


# ---- inside the leaf -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trick", "case"),
    [
        ("double_fork", "double_fork"),
        ("stopped", "stopped"),
        ("user_namespace", "user_namespace_root"),
        ("seal", "seals"),
    ],
)
def test_whoever_is_in_the_leaf_is_killed_with_it(trick: str, case: str) -> None:
    with holding(trick) as one:
        if trick == "seal":
            assert one.ask() == "EPERM EPERM EPERM"
        one.revoke()
        assert is_gone(one.pid) and is_gone(one.other)
        clean(one, case)


def test_a_holder_that_ignores_every_signal_ends_at_the_deadline() -> None:
    with holding("ignores_signals") as one:
        host.end_in(one.lease_id, 1)
        assert is_gone(one.pid)
        clean(one, "ignores_signals")


def test_a_fork_bomb_ends_at_the_deadline() -> None:
    with holding("fork_bomb", MEMORY, HALF_A_CORE) as one:
        host.end_in(one.lease_id, 3)
        one.tell("explode")
        assert is_gone(one.pid)
        clean(one, "fork_bomb", "mem", "cpu")
    left = ["pgrep", "-u", "alice", "python"]
    eventually("it is gone", lambda: not subprocess.run(left, capture_output=True).stdout)


# ---- beside the leaf -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trick", "case"),
    [
        ("mapped", "mapped_and_closed"),
        ("cow", "cow"),
        ("ring_file", "io_uring_file"),
        ("reopens", "reopens"),
    ],
)
def test_whoever_has_it_outside_the_leaf_is_found_and_killed(trick: str, case: str) -> None:
    with holding(f"outside:{trick}") as one:
        one.revoke()
        assert is_gone(one.pid) and is_gone(one.other)
        clean(one, case)


@pytest.mark.parametrize(
    ("trick", "case", "said"),
    [
        ("in_flight", "fd_in_flight", "size 0, growing EPERM"),
        ("pipe_page", "vmsplice", bytes(8).hex()),
    ],
)
def test_what_nobody_can_see_is_worth_nothing_when_it_arrives(
    trick: str, case: str, said: str
) -> None:
    with holding(f"outside:{trick}") as one:
        one.revoke()
        assert is_gone(one.pid)
        assert host.closed(one.lease_id)["state"] == "reclaimed"
        assert not is_gone(one.other, 0)
        assert one.ask() == said
        clean(one, case)


def test_a_tracer_keeps_nobody_alive() -> None:
    with holding("outside:traced") as one:
        one.revoke()
        assert is_gone(one.pid)
        clean(one, "ptraced")


# ---- out of the leaf -----------------------------------------------------------------------------


def test_a_tenant_finds_no_way_out_of_its_leaf() -> None:
    with holding("escapes") as one:
        assert one.ask() == "none"
        one.revoke()
        assert is_gone(one.pid)
        clean(one, "cgroup_escape", "any")


def test_root_that_moves_a_child_out_is_found_by_what_it_holds() -> None:
    with holding("leaves", user="root") as one:
        child = os.pidfd_open(int(one.ask()))
        assert host.describe(one.lease_id)["trust"] == "root"
        one.revoke()
        assert is_gone(one.pid) and is_gone(child)
        os.close(child)
        clean(one, "cgroup_escape", "any")


def test_root_that_makes_rooms_in_its_leaf_is_killed_in_them() -> None:
    with holding("nests", user="root") as one:
        one.revoke()
        assert is_gone(one.pid)
        clean(one, "cgroup_escape", "any")


# ---- a kernel that does not let go ---------------------------------------------------------------


@pytest.fixture
def device() -> Iterator[str]:
    """A device that can be suspended."""
    name = "hostile-suspended"
    host.run("dmsetup", "create", name, "--table", "0 2048 zero")
    os.chmod(f"/dev/mapper/{name}", 0o644)
    yield name
    host.run("dmsetup", "resume", name, check=False)
    host.run("dmsetup", "remove", "--retry", name)


def test_a_holder_in_d_state_is_fenced_until_the_kernel_lets_go(device: str) -> None:
    host.run("dmsetup", "suspend", device)
    with holding("uninterruptible", device=f"/dev/mapper/{device}") as one:
        child = os.pidfd_open(int(one.ask()))
        one.revoke()
        assert host.closed(one.lease_id)["state"] == "fenced"
        assert not is_gone(child, 0)
        host.run("dmsetup", "resume", device)
        assert is_gone(child)
        os.close(child)
        fenced(one, "d_state", "kill", "mem")


def test_who_serves_what_it_waits_for_is_let_go_of() -> None:
    with holding("own_server") as one:
        child = os.pidfd_open(int(one.ask()))
        one.revoke()
        assert is_gone(child) and is_gone(one.pid)
        os.close(child)
        clean(one, "own_server")


# ---- the clock -----------------------------------------------------------------------------------


def test_the_wall_clock_jumps_a_day_both_ways_and_the_deadline_holds() -> None:
    day = 86400.0
    wall, boot = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        for step in (day, -day):
            with holding("hold") as one:
                host.end_in(one.lease_id, 2)
                time.clock_settime(time.CLOCK_REALTIME, time.time() + step)
                assert is_gone(one.pid)
                clean(one, "clock_steps", "any")
    finally:
        passed = time.clock_gettime(time.CLOCK_BOOTTIME) - boot
        time.clock_settime(time.CLOCK_REALTIME, wall + passed)


# ---- somebody of ours dies on the way ------------------------------------------------------------


@contextlib.contextmanager
def obstructed(leaf: Path) -> Iterator[None]:
    """While this lasts the leaf cannot be removed, so the proof waits: it has more rooms than go
    with a leaf."""
    rooms = [leaf / f"room{number}" for number in range(65)]
    for room in rooms:
        room.mkdir()
    yield
    for room in rooms:
        with contextlib.suppress(FileNotFoundError):  # from the 64th on they go with the leaf
            room.rmdir()


def test_the_agent_dies_with_a_teardown_at_each_step() -> None:
    with contextlib.ExitStack() as stack:
        uncut, dirty, unproven = (stack.enter_context(holding("mapped")) for _ in range(3))
        pid = agent()
        with obstructed(host.leaf(unproven.lease_id)):
            unproven.revoke()
            comes_to(unproven.lease_id, "verifying")
            with stopped(*workers()):
                dirty.revoke()
                comes_to(dirty.lease_id, "scrubbing")
                with stopped(reaper()):
                    uncut.revoke()
                    comes_to(uncut.lease_id, "revoking")
                    os.kill(pid, signal.SIGKILL)
        replaced(pid, agent)
        for one in (uncut, dirty, unproven):
            assert is_gone(one.pid)
            clean(one, "agent_killed", timed=False)


@pytest.mark.parametrize(
    ("step", "call_name", "nth"),
    [("deny", "bpf", 1), ("kill", "write", 1), ("freeze", "write", 2), ("look", "pread64", 1)],
)
def test_the_reaper_dies_at_each_step_of_the_cut(step: str, call_name: str, nth: int) -> None:
    with holding("mapped") as one:
        pid = reaper()
        with killed_at(call_name, nth, pid):
            one.revoke()
            replaced(pid, reaper)
        assert is_gone(one.pid)
        clean(one, "reaper_killed")


def test_the_reaper_dies_after_the_cut() -> None:
    with holding("mapped") as one:
        pid = reaper()
        with stopped(*workers()):
            one.revoke()
            comes_to(one.lease_id, "scrubbing")
            os.kill(pid, signal.SIGKILL)
        replaced(pid, reaper)
        clean(one, "reaper_killed")


@pytest.mark.parametrize("call_name", ["ftruncate", "rmdir"])
def test_the_worker_dies_while_it_scrubs_and_while_it_proves(call_name: str) -> None:
    with holding("outside:in_flight") as one:
        with killed_at(call_name, 1, *workers()):
            one.revoke()
            host.closed(one.lease_id)
        assert is_gone(one.pid)
        assert one.ask() == "size 0, growing EPERM"
        clean(one, "worker_killed")


# ---- the host itself -----------------------------------------------------------------------------


@pytest.fixture
def swap(tmp_path: Path) -> Iterator[None]:
    """Somewhere to swap to."""
    file = tmp_path / "swap"
    file.touch(0o600)
    host.run("fallocate", "-l", "64M", str(file))
    host.run("mkswap", str(file))
    host.run("swapon", str(file))
    yield
    host.run("swapoff", str(file))


@pytest.mark.usefixtures("swap")
def test_what_was_leased_is_in_no_other_place_also_when_memory_is_short() -> None:
    """What is swapped out lies on a disk when it has been overwritten in memory."""
    connection = Connection()
    lease_id = connection.acquire(memory(16 * MIB, node=NODE), bind="cgroup")["lease"]["lease_id"]
    with mmap.mmap(connection.fds[0], 16 * MIB) as view:
        view[:] = os.urandom(MIB) * 16
    before = swapped_bytes()
    with contextlib.suppress(BlockingIOError):  # it could not reclaim as much as that
        (SLICE / "memory.reclaim").write_text(str(64 * MIB))
    assert swapped_bytes() == before == 0
    connection.close_fds()
    connection.call("Lease.Release", lease_id=lease_id)
    assert host.closed(lease_id)["state"] == "reclaimed"
    connection.close()


def swapped_bytes() -> int:
    return int((SLICE / "memory.swap.current").read_text())
