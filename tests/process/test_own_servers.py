# SPDX-License-Identifier: Apache-2.0
"""A holder who waits in the kernel for a file system that he serves himself (FUSE, in a user
namespace: it takes no privilege), so that no SIGKILL ends him before he likes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware.adoption.servers import (
    CONNECTIONS,
    PATIENCE,
    Killed,
    Loosen,
    _uids_of_the_stuck,
    is_in_driver,
    is_kept_by,
    loosen,
)
from leased.service.reclaimer import LOOKS_MAX
from tests.doubles.host import not_proven
from tests.doubles.host_agent import NOBODY, REPOSITORY, HostAgent, exited, mem
from tests.doubles.lingering import held_pipe
from tests.doubles.reaper_host import cgroup_root

pytestmark = pytest.mark.root

CUT_S_MAX = 3
OTHER = NOBODY - 1
SERVED = """
import ctypes, json, mmap, os, select, struct, sys
uid, mounts, opens = int(sys.argv[1]), int(sys.argv[2]), "opens" in sys.argv
servers, asks = (int(sys.argv[-2]), sys.argv[-1]) if opens else (1, "")
can = dict(reads=1 << 15, writes=1 << 16, faults=1).get(asks, 0)
libc = ctypes.CDLL(None)
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
libc.prctl(4, 1, 0, 0, 0)
assert libc.unshare(0x10020000) == 0
mapped = "0 %d 1" % uid
for name, said in ("setgroups", "deny"), ("uid_map", mapped), ("gid_map", mapped):
    open("/proc/self/" + name, "w").write(said)
assert libc.mount(b"none", b"/mnt", b"tmpfs", 0, b"") == 0
served = {}
for number in range(servers):
    at, fuse = "/mnt/%d" % number, os.open("/dev/fuse", os.O_RDWR)
    os.mkdir(at)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
    assert libc.mount(b"own", at.encode(), b"fuse", 0, options) == 0
    served[fuse] = at
if os.fork() == 0:
    poll = select.poll()
    for fuse in served:
        poll.register(fuse, select.POLLIN)
    while True:
        [(fuse, mask), *_] = poll.poll()
        if mask & ~select.POLLIN:
            poll.unregister(fuse)
            continue
        length, asked, unique = struct.unpack_from("<IIQ", os.read(fuse, 1 << 17))
        if asked == 26:
            body = struct.pack("<IIIIHHIIHH28x", 7, 31, 4096, can, 0, 0, 4096, 1, 1, 0)
            os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
        elif asked == 1 and opens:
            attributes = struct.pack("<QQ44xII20x", 2, 4096, 0o100666, 1)
            body = struct.pack("<4Q2I", 2, 0, 60, 60, 0, 0) + attributes
            os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
        elif asked == 14:
            os.write(fuse, struct.pack("<IiQQ8x", 32, 0, unique, 1))
        elif asked == 22:
            os.write(fuse, struct.pack("<IiQ", 16, -38, unique))
        elif asked == 1:
            print("he waits", flush=True)
for fuse in served:
    os.close(fuse)
if mounts:
    assert libc.mount(b"none", b"/srv", b"tmpfs", 0, b"") == 0
    at = "/srv" + 15 * ("/" + 250 * "m")
    os.makedirs(at)
    for _ in range(mounts):
        assert libc.mount(b"none", at.encode(), b"tmpfs", 0, b"") == 0

def begin(file):
    # What the kernel will wait for at the end, but for the close.
    if asks == "writes":
        os.write(file, bytes(4096))
    view = mmap.mmap(-1 if asks == "reads" else file, 4096)
    at = ctypes.addressof(ctypes.c_char.from_buffer(view))
    if asks == "reads":
        ring, order = ctypes.c_ulong(), struct.pack("<QQHhIQQ24x", 0, 0, 0, 0, file, at, 4096)
        assert libc.syscall(206, 1, ctypes.byref(ring)) == 0
        assert libc.syscall(209, ring, 1, ctypes.byref(ctypes.c_char_p(order))) == 1
    if asks == "faults":
        assert libc.syscall(273, ctypes.c_void_p(at), 24) == 0
    return view

def wait(said=""):
    print(said, flush=True)
    if opens:
        how = os.O_RDWR | (os.O_DIRECT if asks == "reads" else 0)
        files = [os.open(at + "/file", how) for at in reversed(served.values())]
        files.append(begin(files[0]))
        print("he waits", flush=True)
        asks != "execs" or os.execv("/bin/true", ["true"])
        __import__("signal").pause()
    os.stat("/mnt/0/file")
"""
KILLED = f"""{SERVED}
wait()
"""
HOLDER = f"""{SERVED}
from tests.doubles.wire_peer import Peer
path, bind, leases = *sys.argv[3:5], int(sys.argv[5])
peer = Peer(path)
asked = dict(resources=[{mem(1 << 20)!r}], ttl_ns=60_000_000_000, bind=bind)
lease = [peer.call("Lease.Acquire", **asked)["lease"] for _ in range(leases)][0]
outside = os.fork()
if outside == 0:
    view = mmap.mmap(peer.fds[0], 1 << 20)
    while True:
        view[0] = 1
if bind == "cgroup":
    peer.call("Lease.Join", lease_id=lease["lease_id"])
wait(json.dumps(dict(lease_id=lease["lease_id"], outside=outside)))
"""


@pytest.fixture(scope="module", autouse=True)
def _connections() -> Iterator[None]:
    """Where the kernel tells of connections and aborts them; systemd mounts it where FUSE is."""
    if not os.path.exists("/dev/fuse"):
        not_proven("holders who serve themselves", "no /dev/fuse")
    if os.path.ismount(CONNECTIONS):
        yield
        return
    libc, at = ctypes.CDLL(None), os.fsencode(CONNECTIONS)
    if libc.mount(b"fusectl", at, b"fusectl", 0, None):
        not_proven("holders who serve themselves", f"{CONNECTIONS} cannot be mounted")
    yield
    libc.umount(at)


def test_nobody_has_anothers_connection_aborted_by_keeping_himself_waiting() -> None:
    tenant, other, hidden = 1000, 1001, frozenset({40})
    assert is_kept_by(50, tenant, frozenset({tenant}), frozenset())
    assert is_kept_by(40, other, frozenset({tenant}), hidden)
    assert not is_kept_by(51, other, frozenset({tenant}), hidden), "the host sees it"
    assert not is_kept_by(40, 0, frozenset({0}), hidden), "root's"


def test_whom_a_driver_keeps_costs_nobody_a_mount() -> None:
    """A GPU that is slow to close; what is waited for elsewhere may be a server's."""
    at = b"[<0>] %s+0x1d/0x40%s"
    ends, closes = at % (b"do_exit", b""), at % (b"fuse_flush", b" [fuse]")
    assert is_in_driver(b"\n".join((at % (b"os_acquire_mutex", b" [nvidia]"), ends)))
    assert is_in_driver(b"\n".join((at % (b"dm_blk_close", b" [dm_mod]"), closes, ends)))
    for stack in (b"", ends, closes, at % (b"exit_aio", b"")):
        assert not is_in_driver(stack), stack
    assert not is_in_driver(b"\n".join((closes, at % (b"ovl_flush", b" [overlay]"), ends)))


@contextlib.contextmanager
def held(program: str, *words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that waits for a file system of its own, and what it said before."""
    told = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    asked = [sys.executable, "-c", program, *map(str, words)]
    with subprocess.Popen(
        asked, stdout=subprocess.PIPE, env=told, text=True, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout is not None
            said = holder.stdout.readline()
            assert holder.stdout.readline() == "he waits\n"
            yield holder, said
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)


@pytest.mark.parametrize("bind", ["process", "cgroup"])
@pytest.mark.parametrize(
    "how",
    [(), ("opens", 2, "closes"), ("opens", 1, "reads"), ("opens", 1, "execs")],
    ids=["waits", "ends", "reads", "execs"],
)
def test_who_serves_what_he_waits_for_ends_with_his_lease(
    shared_agent: HostAgent, bind: str, how: tuple[object, ...]
) -> None:
    with held(HOLDER, NOBODY, 0, shared_agent.socket, bind, 1, *how) as (holder, said):
        facts = json.loads(said)
        while "execs" in how and Path(f"/proc/{holder.pid}/cmdline").read_bytes():
            assert holder.poll() is None
        outside = os.pidfd_open(facts["outside"])
        try:
            shared_agent.call("Admin.Revoke", admin=True, lease_id=facts["lease_id"])
            ended = shared_agent.wait_for(facts["lease_id"])["runtime"]
            assert ended["state"] == "reclaimed", ended
            assert exited(outside)
            assert holder.wait(CUT_S_MAX) == -signal.SIGKILL
            assert "FUSE connection" in shared_agent.log()
        finally:
            os.close(outside)


def test_many_who_do_not_die_end_together(shared_agent: HostAgent) -> None:
    many = held(HOLDER, NOBODY, 100, shared_agent.socket, "process", 20)
    with many as (_, first), held(HOLDER, OTHER, 0, shared_agent.socket, "process", 1) as (_, said):
        shared_agent.call("Admin.Drain", admin=True, resource_id="", grace_ns=0)
        for lease_id in (json.loads(told)["lease_id"] for told in (first, said)):
            ended = shared_agent.wait_for(lease_id)["runtime"]
            assert ended["state"] == "reclaimed", ended
        shared_agent.call("Admin.Resume", admin=True, resource_id="")


def test_a_tenant_with_many_mounts_takes_its_own_share_of_the_look() -> None:
    """As many as are read take 20 ms and more. On a busy host a look may have no turn."""
    with held(KILLED, NOBODY, 4500) as (greedy, _), held(KILLED, OTHER, 0) as (other, _):
        killed = (greedy, other)
        for one in killed:
            one.kill()
            while not _uids_of_the_stuck(one.pid):
                os.sched_yield()
        asked = Loosen("", tuple((Killed(at, "", one.pid),) for at, one in enumerate(killed)))
        looks = (loosen(asked, (), budget_ns=12_000_000).connections for _ in range(50))
        found = next(filter(None, ([one for one in look if one.at == 1] for look in looks)))
        assert [(one.uid, one.tid) for one in found] == [(OTHER, other.pid)]
        assert other.wait(CUT_S_MAX) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("servers", "asks"),
    [(1, "closes"), (3 * PATIENCE, "closes"), (1, "reads"), (1, "writes"), (1, "faults")],
)
def test_who_is_kept_at_his_end_by_his_own_server_is_let_go(servers: int, asks: str) -> None:
    """The kernel asks it in the middle of the end: to close the last descriptor, for what was begun
    to be read (aio), to take what was written, for a page of a list of locks. Nothing is pending
    any more then, and the thread sleeps as any other. Behind a server the next one waits."""
    root = cgroup_root()
    assert root is not None
    leaf = root / f"leased-test-{secrets.token_hex(4)}"
    leaf.mkdir()
    try:
        with held(KILLED, NOBODY, 0, "opens", servers, asks) as (holder, _):
            (leaf / "cgroup.procs").write_text(str(holder.pid), "ascii")
            (leaf / "cgroup.kill").write_text("1", "ascii")
            asked = Loosen(str(root), ((Killed(0, leaf.name, 0),),))
            pidfd, looks = os.pidfd_open(holder.pid), 0
            while not exited(pidfd, 0.05) and looks < LOOKS_MAX:
                loosen(asked, ())
                looks += 1
            os.close(pidfd)
            assert holder.wait(CUT_S_MAX) == -signal.SIGKILL
    finally:
        leaf.rmdir()


HAS_PIPE = """
import os, signal, sys
uid, what, pipe = map(int, sys.argv[1:])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
print(flush=True)
os.write(pipe, b"x") if what else signal.pause()
"""


@pytest.mark.parametrize("writes", [1, 0], ids=["writes", "has"])
def test_who_waits_for_the_lock_of_a_pipe_is_let_go(writes: int) -> None:
    """Somebody beside him sleeps with it (`splice`): he waits to write, or at his end to close."""
    root = cgroup_root()
    assert root is not None
    leaf = root / f"leased-test-{secrets.token_hex(4)}"
    leaf.mkdir()
    try:
        with held_pipe(OTHER) as others, held_pipe(NOBODY) as ends:
            words = [sys.executable, "-c", HAS_PIPE, *map(str, (NOBODY, writes, ends[writes]))]
            holder = subprocess.Popen(words, stdout=subprocess.PIPE, pass_fds=ends)
            for end in ends:  # he is the last who has the one that is not in use
                os.close(end)
            assert holder.stdout is not None
            with holder.stdout as said:
                assert said.readline() == b"\n"
            (leaf / "cgroup.procs").write_text(str(holder.pid), "ascii")
            (leaf / "cgroup.kill").write_text("1", "ascii")
            while not _uids_of_the_stuck(holder.pid):
                os.sched_yield()
            done = loosen(Loosen(str(root), ((Killed(0, leaf.name, 0),),)), ())
            assert holder.wait(CUT_S_MAX) == -signal.SIGKILL
            assert [one.uid for one in done.ended] == [NOBODY], "another's is not touched"
        for end in others:
            os.close(end)
    finally:
        leaf.rmdir()
