# SPDX-License-Identifier: Apache-2.0
"""Strangers whose files no search can look at as it looks at others, or who have thousands of
threads, on this host's own /proc: nobody is kept from being proven clean by them, and nothing that
may be a device is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import occupants
from leased.hardware.cgroup import home_of
from leased.hardware.occupants import memory_of
from leased.hardware.openers import Opener, Sought, scan
from leased.hardware.procfs import start_time
from leased.terms.errors import DeviceError
from tests.doubles.host import not_proven
from tests.doubles.stuck_files import stuck_files

pytestmark = pytest.mark.quiet  # they are in the way of every search on the host

FAR_NS = 1 << 62
LOOK_S = 10
XFS_BYTES = 304 << 20
XFS_GOES_DOWN = 0x8004587D
ZERO = Sought(((1, 5),), ("zero",))
LOOP = Sought(((7, 0),), ("loop0",), block=True)
MEMORY = occupants.Sought((1, 1), "leased-nothing")

HAS = """
import ctypes, os, sys
from tests.doubles.intruder import ring_file
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
def deep(at, name):
    os.chdir(at)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    return os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
def mapped(fd, times):
    for at in range(times):
        assert libc.mmap(None, 4096, 1 + at % 2 * 2, 1, fd, 0) != (1 << 64) - 1
def bound(at):
    assert libc.unshare(0x20000) == 0
    assert libc.mount(None, b"/", None, 1 << 18 | 1 << 14, None) == 0
    os.close(os.open(at, os.O_CREAT))
    assert libc.mount(b"/dev/zero", at.encode(), None, 4096, None) == 0
    return os.open(at, os.O_RDONLY)
at = sys.argv[1]
exec(sys.argv[2])
print("has", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def process_that(has: str, at: Path) -> Iterator[int]:
    """The pid of one that `has` a file there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", HAS, str(at), has]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "has\n"
            yield process.pid
        finally:
            process.kill()


def all_but(*pids: int) -> dict[int, int]:
    """To be left alone."""
    others = {int(one) for one in os.listdir("/proc") if one.isdecimal()} - frozenset(pids)
    return {one: start_time(one) or 0 for one in others}


def search(pid: int) -> tuple[Opener, ...]:
    """Whatever is searched for, it comes to an end: who has /dev/zero."""
    exempt = all_but(pid)
    assert scan(LOOP, exempt=exempt, deadline_ns=FAR_NS) == ()
    assert occupants.scan([MEMORY], exempt=exempt, deadline_ns=FAR_NS) == {}
    return scan(ZERO, exempt=exempt, deadline_ns=FAR_NS)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory of tmpfs, where an empty file looks like an io_uring."""
    at = Path(f"/dev/shm/leased-odd-{os.getpid()}")
    at.mkdir()
    yield at
    shutil.rmtree(at)


@pytest.mark.parametrize(
    "has",
    ["fd = deep(at, 'f')", "mapped(deep(at, 'f'), 300)", "ring = ring_file(deep(at, 'f'))"],
    ids=["open", "mapped", "registered"],
)
def test_a_path_of_more_than_a_page_is_that_of_a_file(memory: Path, has: str) -> None:
    with process_that(has, memory) as pid:
        assert search(pid) == ()


@pytest.mark.parametrize("name", ["zero", "a\tb\\c d\ne"], ids=["plain", "escaped"])
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts where nobody else sees it")
def test_a_registered_device_is_found_under_any_name(memory: Path, name: str) -> None:
    with process_that(f"ring = ring_file(bound(at + {'/' + name!r}))", memory) as pid:
        assert [(one.pid, one.via) for one in search(pid)] == [(pid, "ring")]


def test_a_process_that_maps_files_by_the_ten_thousand_tells_of_them(memory: Path) -> None:
    """Looked at one by one they took twelve times as long: two of 60,000 (search engines map as
    many) were more than a GPU's search has time for."""
    many = "mapped(os.open(at + '/f', os.O_RDWR | os.O_CREAT), 20_000)"
    with process_that(many, memory) as pid:
        assert None not in list(memory_of(pid)[1])
        assert search(pid) == ()


def test_a_name_with_a_carriage_return_ends_no_line(memory: Path) -> None:
    """A file of anybody's ended every search for memory in an IndexError."""
    has = "mapped(os.open(at + '/\\rmemfd:x', os.O_RDWR | os.O_CREAT), 1)"
    with process_that(has, memory) as pid:
        assert search(pid) == ()


def test_no_name_in_a_tree_of_v1_says_where_a_process_is(memory: Path) -> None:
    """Whoever may make a cgroup of v1 (a container's user, where v1 and v2 are mounted) and named
    it so was a guest of the GPU, as if he were in the leaf of another lease there."""
    tree = Path("/sys/fs/cgroup/systemd")
    if os.geteuid() != 0 or not os.path.ismount(tree) or not (tree / "cgroup.procs").exists():
        not_proven("names in a tree of v1", "no v1 hierarchy is mounted")
    odd = tree / f"leased-odd-{os.getpid()}\u20280::" / "leased"
    odd.mkdir(parents=True)
    try:
        with process_that("zero = os.open('/dev/zero', 0)", memory) as pid:
            (odd / "cgroup.procs").write_text(str(pid), "ascii")
            [one] = search(pid)
            assert one.cgroup == home_of(pid).rpartition("\n0::")[2].rstrip("\n")
            (tree / "cgroup.procs").write_text(str(pid), "ascii")
    finally:
        odd.rmdir()
        odd.parent.rmdir()


# ---- threads -----------------------------------------------------------------------------------

THREADS = 40
CROWD = f"""
import threading
done = threading.Event()
for _ in range({THREADS}):
    threading.Thread(target=done.wait, daemon=True).start()
"""
LEADERLESS = """
import threading
memory, zero = os.memfd_create("leased-nothing"), os.open("/dev/zero", os.O_RDWR)
os.ftruncate(memory, 4096)
libc.mmap(None, 4096, 1, 1, memory, 0)
libc.mmap(None, 4096, 1, 2, zero, 0)
os.closerange(memory, zero + 1)
def live():
    while " Z " not in open(f"/proc/{os.getpid()}/stat").read():
        pass
    print("has", flush=True)
    threading.Event().wait()
threading.Thread(target=live).start()
libc.syscall(60, 0)
"""


def reads() -> int:
    """How many calls of this process's have read something, by the kernel's count."""
    return int(Path("/proc/self/io").read_text("ascii").partition("syscr:")[2].split()[0])


def test_the_mappings_of_a_process_are_read_once_however_many_threads_it_has(
    tmp_path: Path,
) -> None:
    """Of a process that had not what was sought, a search for memory read all that it maps once
    for each thread: one of two thousand threads took a minute, and no such search ended in its
    time."""
    with process_that(CROWD, tmp_path) as pid:
        taken = []
        for exempt in (all_but(pid), all_but()):
            before = reads()
            assert occupants.scan([MEMORY], exempt=exempt, deadline_ns=FAR_NS) == {}
            taken.append(reads() - before)
        assert taken[0] - taken[1] < THREADS


def test_what_a_process_maps_is_seen_after_its_first_threads_end(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        not_proven("a process without its first thread", "the number of exit(2) is x86-64's")
    with process_that(LEADERLESS, tmp_path) as pid:
        mapped = b"\n".join(text or b"" for text in memory_of(pid)[1])
        [line] = [one.split() for one in mapped.split(b"\n") if b"memfd:" in one]
        major, _, minor = line[3].partition(b":")
        inode = (os.makedev(int(major, 16), int(minor, 16)), int(line[4]))
        sought = occupants.Sought(inode, "leased-nothing")
        found = occupants.scan([sought], exempt=all_but(pid), deadline_ns=FAR_NS)
        assert [one.pid for one in found[inode]] == [pid]
        assert [(one.pid, one.via) for one in search(pid)] == [(pid, "map")]


SERVES = """
import pathlib, signal, sys
from tests.doubles.stuck_files import stuck_files
with stuck_files(pathlib.Path(sys.argv[1]), closes=True):
    print("serves", flush=True)
    signal.pause()
"""
LOOKS = """
import sys
from leased.hardware.openers import Sought, scan
found = scan(Sought(((1, 5),), ("zero",)), exempt={}, deadline_ns=1 << 62)
assert int(sys.argv[1]) not in [one.pid for one in found]
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of FUSE")
def test_of_a_registered_files_name_no_server_is_asked(tmp_path: Path) -> None:
    """A mount that anybody may see (sshfs, s3fs) and whose server hangs held each search for ever;
    one whose server had died ended it with ENOTCONN."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", SERVES, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        if server.stdout.readline() != "serves\n":
            not_proven("files of FUSE", "no file system of FUSE can be mounted")
        try:
            with process_that("ring = ring_file(os.open(at + '/file', 0))", tmp_path) as pid:
                server.send_signal(signal.SIGSTOP)
                words = [sys.executable, "-c", LOOKS, str(pid)]
                try:
                    subprocess.run(words, timeout=LOOK_S, check=True, env=environment)
                finally:
                    server.kill()
                    server.wait()
                assert search(pid) == ()
        finally:
            subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


EXECUTES = """
import os, sys
file = os.open(sys.argv[1], 0)
print("has", flush=True)
os.execv("/bin/true", ["true"])
"""
IS_OVER = "import sys; from leased.hardware.verbs import is_over; print(is_over(int(sys.argv[1])))"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of FUSE")
def test_whether_the_killed_are_dead_is_told_of_who_hangs_in_an_exec(tmp_path: Path) -> None:
    """Within it a file of his own server's is closed, and whoever reads his stat waits with him
    (Linux 6.18). So did the reaper, and for as long cut nobody's lease."""
    words = [sys.executable, "-c", EXECUTES, str(tmp_path / "file")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with contextlib.ExitStack() as stack, stuck_files(tmp_path):
        process = subprocess.Popen(words, stdout=subprocess.PIPE)
        stack.enter_context(process)  # it ends when nobody serves it any more
        assert process.stdout is not None and process.stdout.readline() == b"has\n"
        while Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert process.poll() is None
        process.kill()
        words = [sys.executable, "-c", IS_OVER, str(process.pid)]
        told = subprocess.run(words, timeout=LOOK_S, stdout=subprocess.PIPE, env=environment)
    assert told.stdout == b"False\n"


@contextlib.contextmanager
def xfs(at: Path) -> Iterator[Path]:
    """One of its own, mounted below; what it is on is gone afterwards."""
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs") or not os.path.exists("/dev/loop-control"):
        not_proven("files of an XFS that has ended", "root, mkfs.xfs and a loop device are needed")
    image, mount = at / "image", at / "mount"
    mount.mkdir()
    image.touch()
    os.truncate(image, XFS_BYTES)
    subprocess.run(["mkfs.xfs", "-q", "-f", str(image)], check=True)
    subprocess.run(["mount", "-t", "xfs", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def end_xfs(mount: Path) -> None:
    """As it ends by itself when its drive is gone."""
    fd = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(fd, XFS_GOES_DOWN, struct.pack("I", 2))
    os.close(fd)


def test_of_an_xfs_without_its_drive_only_what_may_be_a_device_is_in_the_way(
    tmp_path: Path,
) -> None:
    """It answers EIO to whoever looks at a file, and a host's scratch drive may die any day."""
    file = "fd = os.open(at + '/f', 66); os.ftruncate(fd, 4096); mapped(fd, 1); os.chdir(at)"
    node = "os.mknod(at + '/n', 0o20600, os.makedev(1, 5)); fd = os.open(at + '/n', 0)"
    with (
        xfs(tmp_path) as mount,
        process_that(file, mount) as of_file,
        process_that(node, mount) as of_node,
    ):
        end_xfs(mount)
        with pytest.raises(OSError, match="Input/output error"):
            os.stat(f"/proc/{of_file}/cwd")
        assert search(of_file) == ()
        with pytest.raises(DeviceError) as raised:
            search(of_node)
        assert raised.value.errno == errno.EIO
        said = raised.value.detail
        assert f"/proc/{of_node}/task/{of_node}/fd/" in said and f"'{mount}/n' of 'python" in said
