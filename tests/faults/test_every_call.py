# SPDX-License-Identifier: Apache-2.0
"""Every kind of system call by which the running agent touches its log fails once, or is its last:
at its first start, which makes the log, and at a later one, which cleans up after a crash and ends
epochs (T3 of the plan, on the daemon; each write and barrier of a commit: `test_commit_path`).

Calls are counted, and fail, on the paths of the log alone, by strace; the last ones are the shim's
(`tests/doubles/killed.c`). `LEASED_FAULTS_EACH` is how many of each
are drawn (the long form is 20), `LEASED_CRASH_SEED` draws others.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from tests.doubles.host_agent import PATIENCE_S, HostAgent
from tests.doubles.killed import SIGKILLED, Killed
from tests.doubles.ledger import Ledger
from tests.doubles.story import judge, tell
from tests.faults.test_commit_path import EX_SOFTWARE, can_trace  # noqa: F401

pytestmark = [pytest.mark.root, pytest.mark.slow]

EACH = int(os.environ.get("LEASED_FAULTS_EACH", "1"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
EX_CONFIG = 78
FAILS, ENDS = "error=EIO", "killed"
CALLS = {
    "openat": (FAILS, "error=ENOSPC", ENDS),
    "pwrite64": (FAILS, ENDS),
    "fdatasync": (FAILS, ENDS),
    "fsync": (FAILS, ENDS),
    "renameat": (FAILS, "error=ENOSPC", ENDS),
    "unlinkat": (FAILS, ENDS),
    "fallocate": ("error=ENOSPC", ENDS),
    "flock": (FAILS, ENDS),
    "mkdir": ("error=ENOSPC",),
    "pread64": (FAILS,),
    "newfstatat": (FAILS,),
    "getdents64": (FAILS,),
}
ALWAYS = ("openat", "pwrite64", "fdatasync", "fsync", "renameat", "flock")
NEVER = ("ftruncate", "ioctl")
"""Of the plan's list; a log is not made with them on ext4 and xfs, which is looked at, too."""

FOUND = (("newfstatat", FAILS, 2),)
"""What the long form found: the look at who may write to the state directory was a traceback."""

FIRST, LATER = "first", "later"
NAMES = ("log.id", "anchor", "seal.key", "node.key", "checkpoint")
FILES = (
    *NAMES,
    *(f"{name}.new" for name in NAMES),
    "seg-0000000000000000.log",
    *(f"next-{number:08x}.tmp" for number in range(6)),
)
SETTINGS = '[log]\nepoch = "1s"\n'


@contextmanager
def host(scene: str) -> Iterator[HostAgent]:
    """An agent that has never started, or one that has."""
    with HostAgent(more=SETTINGS) as agent:
        agent.start_reaper()
        if scene == LATER:
            agent.start()
            agent.kill()
        yield agent


def leave_behind(agent: HostAgent) -> None:
    """What a crash between two names leaves."""
    (agent.audit / "checkpoint.new").write_bytes(b"half a no")


def note(agent: HostAgent) -> int:
    """When the node's signed note was written; 0: there is none."""
    try:
        return (agent.audit / "checkpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def works(agent: HostAgent, ledger: Ledger, before: int) -> bool:
    """Have it serve until it has put another note in the place of `before`, the one thing that it
    renames and nobody asks for; False: it ended."""
    until = time.monotonic() + PATIENCE_S
    while agent.ready() and ledger.fill(agent):
        if note(agent) != before:
            return True
        assert time.monotonic() < until, "it puts no note beside the log"
    return False


def under(agent: HostAgent, calls: str, *more: str, out: str = "/dev/null") -> tuple[str, ...]:
    """What goes before the command: only calls on the log's paths count."""
    paths = (agent.state, agent.audit, *(agent.audit / name for name in FILES))
    narrow = [word for path in paths for word in ("-P", str(path))]
    strace = ("strace", "-f", "--seccomp-bpf", "-qqq", "-o", out)
    return (*strace, *narrow, "-e", f"trace={calls}", *more)


def counted(scene: str) -> Counter[str]:
    """How many there are of each call, in the thread that has most of them."""
    with host(scene) as agent:
        out = agent.directory / "trace"
        leave_behind(agent) if scene == LATER else None
        before = note(agent)
        agent.launch(under(agent, ",".join((*CALLS, *NEVER)), out=str(out)))
        assert works(agent, Ledger(), before)
        agent.stop_traced()
        lines = re.findall(r"^(\d+)\s+(\w+)\(", out.read_text("utf-8", "replace"), re.M)
    found: Counter[str] = Counter()
    for (_, call), count in Counter(lines).items():
        found[call] = max(found[call], count)
    return found


def fail_once(
    agent: HostAgent, ledger: Ledger, killed: Killed, call: str, fault: str, when: int
) -> str:
    """One start with one fault; how it ended."""
    said, before = len(agent.log()), note(agent)
    if fault == ENDS:
        agent.launch(environment=killed.at(call, when, agent.state))
    else:
        agent.launch(under(agent, call, "-e", f"inject={call}:{fault}:when={when}"))
    if works(agent, ledger, before):
        agent.stop() if fault == ENDS else agent.stop_traced()
        return "went on"
    status = agent.wait_traced()
    if status in SIGKILLED:
        assert fault == ENDS, "killed by nobody"
        return "killed"
    assert status in (EX_SOFTWARE, EX_CONFIG), (status, agent.log()[said:])
    assert re.search(r"Errno|failed", agent.log()[said:]), "it did not say why"
    return "ended"


def drawn(scene: str, counts: Counter[str]) -> list[tuple[str, str, int]]:
    """Which calls are to fail, how, and at which occurrence."""
    random = Random(f"{SEED} {scene}")
    return [
        *FOUND,
        *(
            (call, fault, random.randint(1, counts[call]))
            for call, faults in CALLS.items()
            for fault in faults
            for _ in range(min(EACH, counts[call]))
        ),
    ]


def report(scene: str, ends: Counter[str], own: str) -> None:
    """Say how they ended; all that a log is known to be made with must have failed once."""
    print(f"{scene}, seed {SEED}: {dict(ends)}")
    missing = {*ALWAYS, own} - {end.partition(" ")[0] for end in ends}
    assert not missing, f"a log does not call {missing} any more"


@pytest.mark.usefixtures("can_trace")
def test_no_call_that_fails_costs_a_log_that_is_being_made(killed: Killed) -> None:
    counts, ends = counted(FIRST), Counter[str]()
    assert not {call for call in NEVER if counts[call]}, counts
    for call, fault, when in drawn(FIRST, counts):
        with host(FIRST) as agent:
            ledger = Ledger()
            how = fail_once(agent, ledger, killed, call, fault, when)
            agent.start()
            assert ledger.fill(agent)
            agent.stop()
            ledger.assert_kept(judge(agent))
            assert "Traceback" not in agent.log(), agent.log()[-3000:]
        ends[f"{call} {fault}: {how}"] += 1
    report(FIRST, ends, "fallocate")


@pytest.mark.usefixtures("can_trace")
def test_no_call_that_fails_costs_what_was_told(killed: Killed) -> None:
    """One state directory goes through all of it: every start is a recovery from the one before."""
    counts, ends = counted(LATER), Counter[str]()
    assert not {call for call in NEVER if counts[call]}, counts
    with host(LATER) as agent:
        ledger = Ledger()
        for call, fault, when in drawn(LATER, counts):
            leave_behind(agent)
            how = fail_once(agent, ledger, killed, call, fault, when)
            ledger.assert_kept(tell(agent))
            ends[f"{call} {fault}: {how}"] += 1
        agent.start()
        assert ledger.fill(agent)
        ledger.assert_kept(judge(agent))
        assert "Traceback" not in agent.log(), agent.log()[-3000:]
    report(LATER, ends, "unlinkat")
