# SPDX-License-Identifier: Apache-2.0
"""A holder who waits in the kernel for a file system that he serves himself (FUSE, in a user
namespace: it takes no privilege), so that no SIGKILL ends him before he likes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from leased.hardware.adoption.servers import CONNECTIONS, is_kept_by
from tests.doubles.host import not_proven
from tests.doubles.host_agent import NOBODY, REPOSITORY, HostAgent, exited, mem

pytestmark = pytest.mark.root

CUT_S_MAX = 3
HOLDER = f"""
import ctypes, json, mmap, os, struct, sys
libc = ctypes.CDLL(None)
os.setgroups([]); os.setresgid(*({NOBODY},) * 3); os.setresuid(*({NOBODY},) * 3)
libc.prctl(4, 1, 0, 0, 0)
assert libc.unshare(0x10020000) == 0
for name, said in ("setgroups", "deny"), ("uid_map", "0 {NOBODY} 1"), ("gid_map", "0 {NOBODY} 1"):
    open("/proc/self/" + name, "w").write(said)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fuse
assert libc.mount(b"own", b"/mnt", b"fuse", 0, options) == 0
if os.fork() == 0:
    while True:
        length, asked, unique = struct.unpack_from("<IIQ", os.read(fuse, 1 << 17))
        if asked == 26:
            body = struct.pack("<IIIIHHIIHH28x", 7, 31, 0, 0, 0, 0, 4096, 1, 1, 0)
            os.write(fuse, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
        elif asked == 1:
            print("he waits", flush=True)
os.close(fuse)
from tests.doubles.wire_peer import Peer
peer = Peer(sys.argv[1])
asked = dict(resources=[{mem(1 << 20)!r}], ttl_ns=60_000_000_000, bind=sys.argv[2])
lease = peer.call("Lease.Acquire", **asked)["lease"]
outside = os.fork()
if outside == 0:
    view = mmap.mmap(peer.fds[0], 1 << 20)
    while True:
        view[0] = 1
if sys.argv[2] == "cgroup":
    peer.call("Lease.Join", lease_id=lease["lease_id"])
print(json.dumps(dict(lease_id=lease["lease_id"], outside=outside)), flush=True)
os.stat("/mnt/file")
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


@pytest.mark.parametrize("bind", ["process", "cgroup"])
def test_who_serves_what_he_waits_for_ends_with_his_lease(
    shared_agent: HostAgent, bind: str
) -> None:
    words = [sys.executable, "-c", HOLDER, str(shared_agent.socket), bind]
    told = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, env=told, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        facts, waits = json.loads(holder.stdout.readline()), holder.stdout.readline()
        assert waits == "he waits\n"
        outside = os.pidfd_open(facts["outside"])
        try:
            shared_agent.call("Admin.Revoke", admin=True, lease_id=facts["lease_id"])
            ended = shared_agent.wait_for(facts["lease_id"])["runtime"]
            assert ended["state"] == "reclaimed", ended
            assert exited(outside)
            assert holder.wait(CUT_S_MAX) == -signal.SIGKILL
            assert "FUSE connection" in shared_agent.log()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)
            os.close(outside)
