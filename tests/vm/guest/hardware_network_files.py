# SPDX-License-Identifier: Apache-2.0
"""Files of a network mount (NFS) that its server has no more, open and mapped on this host: they
are nobody's device, and keep nothing from being proven clean.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import drives
import host
import pytest
from drives import B1, ask
from host import Connection, eventually

SERVED, MOUNTED = Path("/srv/share"), Path("/mnt/share")
KEEPS = """
import mmap, sys
file = open(sys.argv[1], "rb")
view = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
print(file.fileno(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def share() -> Iterator[Path]:
    """A directory that this host serves and has mounted, by way of the network."""
    for one in (SERVED, MOUNTED):
        one.mkdir()
    host.run("systemctl", "start", "nfs-server.service")
    export = f"127.0.0.1:{SERVED}"
    host.run("exportfs", "-o", "rw,no_root_squash,no_subtree_check,fsid=1", export)
    try:
        host.run("mount", "-t", "nfs4", "-o", "soft,noac", export, str(MOUNTED))
        yield MOUNTED
    finally:
        host.run("umount", "--lazy", str(MOUNTED), check=False)
        host.run("exportfs", "-u", export, check=False)
        host.run("systemctl", "stop", "nfs-server.service", check=False)


def test_files_that_their_server_has_deleted_fence_nothing(share: Path) -> None:
    """As after an upgrade of what all hosts have in common. Whoever asks the server is told ESTALE;
    a search asks none."""
    drives.configure(**drives.USUAL)
    drives.settled()
    (share / "library").write_bytes(bytes(4096))
    words = [sys.executable, "-c", KEEPS, str(share / "library")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        path = f"/proc/{keeper.pid}/fd/{int(keeper.stdout.readline())}"
        (SERVED / "library").unlink()
        eventually("nobody can look at it", lambda: is_stale(path))
        connection = Connection()
        lease_id = connection.acquire(*ask(B1))["lease"]["lease_id"]
        connection.close_fds()
        connection.call("Lease.Release", lease_id=lease_id)
        assert host.closed(lease_id)["state"] == "reclaimed"
        connection.close()
        assert is_stale(path)
        keeper.stdin.close()


def is_stale(path: str) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        assert error.errno == errno.ESTALE, error
        return True
    return False
