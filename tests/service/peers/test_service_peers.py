# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end, by the kernel's word: credentials, groups, pidfds, trust."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.service.api.peers import PIDFD_THREAD, check_sent_pidfd, identify, peer_pidfd
from leased.terms.command import Caller
from leased.terms.errors import PermissionDenied
from leased.terms.identity import TenantId
from leased.terms.lease import Trust
from tests.doubles.calling import as_uid
from tests.doubles.host import not_proven

ACME = TenantId("acme")

_VISIT = """
import os, socket, sys
uid, groups, path = int(sys.argv[1]), [int(g) for g in sys.argv[2].split(",") if g], sys.argv[3]
os.setgroups(groups)
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
peer = socket.socket(socket.AF_UNIX)
peer.connect(path)
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket that everybody may reach."""
    walk = tmp_path
    while walk != walk.parent:
        if not walk.stat().st_mode & 0o001:
            walk.chmod(walk.stat().st_mode | 0o011)
        walk = walk.parent
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "door"))
        (tmp_path / "door").chmod(0o666)
        listener.listen(8)
        yield listener


@contextlib.contextmanager
def pair(door: socket.socket, uid: int | None = None) -> Iterator[socket.socket]:
    """The agent's end of a connection from this process."""
    with socket.socket(socket.AF_UNIX) as ours:
        with as_uid(uid):
            ours.connect(door.getsockname())
        theirs, _ = door.accept()
        with theirs:
            yield theirs


@contextlib.contextmanager
def visitor(
    door: socket.socket, uid: int, groups: tuple[int, ...] = ()
) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The agent's end of a connection from a process of its own."""
    if os.geteuid() != 0:
        not_proven("what another user's process looks like", "only root can be somebody else")
    process = subprocess.Popen(
        [sys.executable, "-c", _VISIT, str(uid), ",".join(map(str, groups)), door.getsockname()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        theirs, _ = door.accept()
        with theirs:
            yield theirs, process
    finally:
        process.communicate()


def everybody(uid: int, gids: tuple[int, ...]) -> TenantId:
    """One tenant for all."""
    return ACME


def test_the_caller_is_who_the_kernel_says(door: socket.socket) -> None:
    with pair(door) as theirs:
        caller = identify(theirs, tenant_of=everybody, operator=False)
    assert (caller.uid, caller.gid, caller.pid) == (os.geteuid(), os.getegid(), os.getpid())
    assert caller.tenant == ACME and not caller.operator


def test_the_door_makes_the_operator(door: socket.socket) -> None:
    with pair(door) as theirs:
        assert identify(theirs, tenant_of=everybody, operator=True).operator


def test_nobody_we_serve_is_told_where_to_look(door: socket.socket) -> None:
    with pair(door, uid=4242) as theirs, pytest.raises(PermissionDenied, match="uid 4242"):
        identify(theirs, tenant_of=lambda uid, gids: None, operator=True)


def test_a_tenant_may_be_a_supplementary_group(door: socket.socket) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    def tenant_of(uid: int, gids: tuple[int, ...]) -> TenantId | None:
        asked.append((uid, gids))
        return ACME if 7001 in gids else None

    with visitor(door, 4242, (7000, 7001)) as (theirs, _):
        caller = identify(theirs, tenant_of=tenant_of, operator=False)
    assert caller.uid == 4242
    [(uid, gids)] = asked
    assert uid == 4242 and set(gids) == {4242, 7000, 7001}


def test_who_could_undo_the_walls_is_not_trusted_to_be_confined(door: socket.socket) -> None:
    if os.geteuid() != 0:
        not_proven("that root is told apart", "this is not root")
    with pair(door) as theirs:
        assert identify(theirs, tenant_of=everybody, operator=False).trust is Trust.ROOT
    with visitor(door, 4242) as (theirs, _):
        assert identify(theirs, tenant_of=everybody, operator=False).trust is Trust.CONFINED


def test_nobody_calls_itself_confined(door: socket.socket) -> None:
    """A name may have a carriage return in it, and what comes after it was read as a line."""
    if os.geteuid() != 0:
        not_proven("that root is told apart", "this is not root")
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    name.write_bytes(b"\rCapEff:\t0")
    try:
        with pair(door) as theirs:
            assert identify(theirs, tenant_of=everybody, operator=False).trust is Trust.ROOT
    finally:
        name.write_bytes(before)


def test_a_peer_that_has_gone_is_still_who_it_was(door: socket.socket) -> None:
    """The credentials are those of the connect, and trust is never guessed upwards."""
    with visitor(door, 4242) as (theirs, process):
        process.communicate()
        caller = identify(theirs, tenant_of=everybody, operator=False)
        pidfd = peer_pidfd(theirs)
    assert (caller.uid, caller.trust) == (4242, Trust.CONFINED)
    if pidfd is not None:
        with pytest.raises(PermissionDenied):
            check_sent_pidfd(pidfd, caller)
        os.close(pidfd)


def test_the_pidfd_of_the_peer_is_that_of_its_process(door: socket.socket) -> None:
    with visitor(door, 4242) as (theirs, process):
        pidfd = peer_pidfd(theirs)
        if pidfd is None:
            not_proven("SO_PEERPIDFD", "the kernel is older than 6.5")
        caller = identify(theirs, tenant_of=everybody, operator=False)
        assert caller.pid == process.pid
        check_sent_pidfd(pidfd, caller)
        os.close(pidfd)


# ---- a pidfd that was sent -----------------------------------------------------------------------


def caller_of(pid: int) -> Caller:
    """Somebody whose pid the kernel says is `pid`."""
    return Caller(1000, 1000, pid, ACME)


def test_a_pidfd_counts_only_as_what_it_is() -> None:
    own = os.pidfd_open(os.getpid())
    check_sent_pidfd(own, caller_of(os.getpid()))
    with pytest.raises(PermissionDenied, match="not a pidfd of the calling process"):
        check_sent_pidfd(own, caller_of(os.getppid()))
    with open("/dev/null", "rb") as null, pytest.raises(PermissionDenied):
        check_sent_pidfd(null.fileno(), caller_of(os.getpid()))
    os.close(own)
    with pytest.raises(PermissionDenied, match="cannot be examined"):
        check_sent_pidfd(own, caller_of(os.getpid()))


def test_a_pidfd_of_one_thread_is_none_of_its_process() -> None:
    """When its leader has exited the others are not killed by it, nor heard of."""
    try:
        pidfd = os.pidfd_open(os.getpid(), PIDFD_THREAD)
    except OSError:
        pytest.skip("older than Linux 6.9")
    try:
        with pytest.raises(PermissionDenied, match="of one thread"):
            check_sent_pidfd(pidfd, caller_of(os.getpid()))
    finally:
        os.close(pidfd)


def test_a_pidfd_of_the_dead_proves_nothing() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(process.pid)
    try:
        check_sent_pidfd(pidfd, caller_of(process.pid))
        assert process.stdin is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(PermissionDenied, match="has exited"):
            check_sent_pidfd(pidfd, caller_of(process.pid))
        process.wait()
        with pytest.raises(PermissionDenied):
            check_sent_pidfd(pidfd, caller_of(process.pid))
    finally:
        os.close(pidfd)
        process.wait()
