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

from leased.service.api.peers import has_exited, identify, peer_pidfd
from leased.service.api.speaker import ROOM, Speaker
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
        assert has_exited(pidfd)
        os.close(pidfd)


def test_the_pidfd_of_the_peer_is_that_of_its_process(door: socket.socket) -> None:
    with visitor(door, 4242) as (theirs, process):
        pidfd = peer_pidfd(theirs)
        if pidfd is None:
            not_proven("SO_PEERPIDFD", "the kernel is older than 6.5")
        caller = identify(theirs, tenant_of=everybody, operator=False)
        assert caller.pid == process.pid == pid_of(pidfd)
        assert not has_exited(pidfd)
        os.close(pidfd)


# ---- where the kernel does not name them ---------------------------------------------------------


def pid_of(pidfd: int) -> int:
    """The process of a pidfd, which lives."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        [pid] = (int(line.split()[1]) for line in info if line.startswith("Pid:"))
    return pid


def hear(speaker: Speaker, theirs: socket.socket) -> int | None:
    """Read once, and what that proves."""
    data, control, _, _ = theirs.recvmsg(100, ROOM)
    return speaker.hear(len(data), control)


def test_who_speaks_after_it_was_asked_who_it_is_is_proven(door: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(door.getsockname())
        ours.sendall(b"before")
        theirs, _ = door.accept()
        with theirs:
            speaker = Speaker(theirs, os.getpid())
            ours.sendall(b"after, but it is read with what came before")
            assert hear(speaker, theirs) is None
            ours.sendall(b"after")
            pidfd = hear(speaker, theirs)
            assert pidfd is not None and pid_of(pidfd) == os.getpid()
            os.close(pidfd)
            ours.sendall(b"what is said later brings nothing with it")
            assert theirs.recvmsg(100)[2] == 0


def test_what_somebody_else_says_proves_nothing(door: socket.socket) -> None:
    """Who inherited the connection is not who made it, nor may it say so."""
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(door.getsockname())
        theirs, _ = door.accept()
        with theirs:
            speaker = Speaker(theirs, os.getpid())
            subprocess.run(["echo", "me"], stdout=ours.fileno(), check=True)
            assert hear(speaker, theirs) is None
            ours.sendall(b"me")
            pidfd = hear(speaker, theirs)
            assert pidfd is not None
            os.close(pidfd)


_SAYS = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
print(flush=True)
sys.stdin.readline()
peer.send(b"me")
"""


def test_what_the_dead_have_said_proves_nothing(door: socket.socket) -> None:
    """Their number may have been another's when it was said."""
    words = [sys.executable, "-c", _SAYS, door.getsockname()]
    both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, **both) as process:
        theirs, _ = door.accept()
        with theirs:
            speaker = Speaker(theirs, process.pid)
            process.communicate(b"\n")
            assert hear(speaker, theirs) is None
            assert hear(speaker, theirs) is None, "its end"
            speaker.close()


def test_who_has_gone_before_it_could_be_asked_is_never_proven(door: socket.socket) -> None:
    with visitor(door, os.geteuid()) as (theirs, process):
        process.communicate()
        speaker = Speaker(theirs, process.pid)
        assert hear(speaker, theirs) is None
        speaker.close()


def test_descriptors_beside_what_is_said_are_seen_and_not_taken(door: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(door.getsockname())
        theirs, _ = door.accept()
        with theirs:
            speaker = Speaker(theirs, os.getpid())
            socket.send_fds(ours, [b"me"], [0])
            _, control, flags, _ = theirs.recvmsg(100, ROOM, socket.MSG_PEEK)
            assert flags & socket.MSG_CTRUNC
            assert [kind for _, kind, _ in control] == [socket.SCM_CREDENTIALS]
            speaker.close()
