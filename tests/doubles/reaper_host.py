# SPDX-License-Identifier: Apache-2.0
"""The real reaper on this host: the real binary in a directory of its own, on a real cgroup2.

Rule: whatever a test makes here (cgroups, processes, memory) is gone when the `with` ends, also
after a failure. `supervise=True` plays systemd: it takes READY and the descriptors that are to be
stored, and hands them to the next reaper, in reverse order as systemd does.

Does not pretend anything: what a test sees is what the kernel did.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from leased.hardware.cgroup import find_mounts, read_names
from leased.service.reaper.process import find_reaper
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from tests.doubles.leases import lease as any_lease

NS_PER_MS = 1_000_000
WAIT_S = 10.0
SLEEPER = (sys.executable, "-S", "-c", "import signal; print(flush=True); signal.pause()")


def boot_ns() -> int:
    """CLOCK_BOOTTIME now."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def cgroup_root() -> Path | None:
    """Where cgroup2 is mounted, or None."""
    unified, _ = find_mounts(read_names("/proc/self/mountinfo"))
    return None if unified is None else Path(unified)


def usable() -> bool:
    """Whether this host lets us run the real thing: root, and a cgroup2 we may write to."""
    root = cgroup_root()
    return os.geteuid() == 0 and root is not None and os.access(root, os.W_OK)


def lease_of(*, ttl_ms: int, generation: int = 1, lease_id: LeaseId | None = None) -> Lease:
    """A lease that ends `ttl_ms` from now."""
    return msgspec.structs.replace(
        any_lease(),
        lease_id=lease_id or LeaseId(secrets.token_bytes(16)),
        deadline_ns=boot_ns() + ttl_ms * NS_PER_MS,
        ttl_ns=ttl_ms * NS_PER_MS,
        generation=generation,
    )


class ReaperHost:
    """One reaper after another in one runtime directory."""

    def __init__(
        self, *options: str, binary: Path | None = None, supervise: bool = False, slots: int = 256
    ) -> None:
        self._binary = binary or find_reaper()
        self._options = (f"--slots={slots}", *options)
        self._supervise = supervise
        self._exits = contextlib.ExitStack()
        self.stored: list[tuple[str, int]] = []

    def __enter__(self) -> ReaperHost:
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(
            self._exits.enter_context(tempfile.TemporaryDirectory(prefix="reaper-", dir=base))
        )
        root = cgroup_root()
        assert root is not None
        self.cgroup = root / f"leased-test-{secrets.token_hex(4)}"
        self.cgroup.mkdir()
        self._exits.callback(self._remove_cgroups)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.directory / "notify"))
        self._exits.enter_context(self.notify)
        self._exits.callback(self._drop_stored)
        self.start()
        self._exits.callback(self.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    # -- the reaper -------------------------------------------------------------------------------

    @property
    def socket_path(self) -> Path:
        """Where it listens."""
        return self.directory / "reaper.sock"

    @property
    def state_path(self) -> Path:
        """Where its state is."""
        return self.directory / "reaper.state"

    def start(self, *, expect: int | None = None) -> None:
        """Start one and wait until it is ready (or, with `expect`, until it exits so)."""
        command = [str(self._binary), "--runtime-dir", str(self.directory), *self._options]
        environment = dict(os.environ, NOTIFY_SOCKET=str(self.directory / "notify"))
        with open(self.directory / "log", "ab") as log:
            handed = list(reversed(self.stored)) if self._supervise else []
            self.process = subprocess.Popen(
                _with_fds(command, handed),
                stderr=log,
                env=environment,
                pass_fds=[fd for _, fd in handed],
            )
        if expect is not None:
            assert self.process.wait(WAIT_S) == expect, self.log()
            return
        self.take_notices(until="READY=1")

    def take_notices(self, *, until: str | None = None) -> list[str]:
        """Play systemd: read what the reaper says, keep what it stores.

        Stops at `until` or, without it, when nothing more waits.
        """
        notices: list[str] = []
        self.notify.settimeout(WAIT_S)
        while True:
            if until is None:
                self.notify.setblocking(False)
            try:
                data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(64))
            except BlockingIOError:
                return notices
            except TimeoutError as error:
                raise AssertionError(f"the reaper did not say {until}: {self.log()}") from error
            text = data.decode()
            notices.append(text)
            fields = dict(line.split("=", 1) for line in text.splitlines())
            for _, _, raw in ancillary:
                self._store(fields["FDNAME"], array("i", raw))
            if "FDSTOREREMOVE" in fields:
                self._unstore(fields["FDNAME"])
            if until is not None and until in text.splitlines():
                return notices

    def kill(self) -> None:
        """SIGKILL it. Idempotent."""
        self.process.kill()
        self.process.wait(WAIT_S)

    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text("utf-8", "replace")

    # -- what leases hold -------------------------------------------------------------------------

    def leaf(self, lease: Lease) -> str:
        """A leaf cgroup for the lease."""
        path = self.cgroup / lease.lease_id.hex()
        path.mkdir()
        return str(path)

    def sleeper(self, leaf: str = "") -> subprocess.Popen[bytes]:
        """A process that does nothing for ever, in `leaf` if given."""
        process = subprocess.Popen(SLEEPER, stdout=subprocess.PIPE)
        self._exits.callback(_end, process)
        assert process.stdout is not None
        process.stdout.readline()
        if leaf:
            Path(leaf, "cgroup.procs").write_text(str(process.pid), "ascii")
        return process

    def pidfd(self, process: subprocess.Popen[bytes]) -> int:
        """A pidfd of it, closed at the end."""
        fd = os.pidfd_open(process.pid)
        self._exits.callback(os.close, fd)
        return fd

    def ran_ns(self) -> int:
        """How long it has had a processor."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text("ascii").split()[0])

    def connect(self) -> socket.socket:
        """A raw connection, closed at the end."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._exits.enter_context(sock)
        sock.settimeout(WAIT_S)
        sock.connect(str(self.socket_path))
        return sock

    def closing(self, fd: int) -> int:
        """Close `fd` at the end."""
        self._exits.callback(os.close, fd)
        return fd

    # -- inside -----------------------------------------------------------------------------------

    def _store(self, name: str, fds: Sequence[int]) -> None:
        for fd in fds:
            if self._supervise:
                self.stored.append((name, fd))
            else:
                os.close(fd)

    def _unstore(self, name: str) -> None:
        for entry in [entry for entry in self.stored if entry[0] == name]:
            os.close(entry[1])
            self.stored.remove(entry)

    def _drop_stored(self) -> None:
        for _, fd in self.stored:
            os.close(fd)

    def _remove_cgroups(self) -> None:
        (self.cgroup / "cgroup.freeze").write_text("0", "ascii")
        (self.cgroup / "cgroup.kill").write_text("1", "ascii")
        until = time.monotonic() + WAIT_S
        for leaf in [path for path in self.cgroup.iterdir() if path.is_dir()]:
            _remove(leaf, until)
        _remove(self.cgroup, until)


def _remove(leaf: Path, until: float) -> None:
    """A killed process leaves its cgroup a moment after the kill."""
    while True:
        try:
            leaf.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                raise


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(WAIT_S)
    if process.stdout is not None:
        process.stdout.close()


_HAND_OVER = """
import os, sys
numbers, names, command = sys.argv[1], sys.argv[2], sys.argv[3:]
fds = [int(number) for number in numbers.split(",")]
high = [os.dup2(fd, 100 + at) for at, fd in enumerate(fds)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.closerange(3 + len(fds), 200 + len(fds))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


def _with_fds(command: list[str], handed: list[tuple[str, int]]) -> list[str]:
    """The command, started as systemd starts a unit that has descriptors in store."""
    if not handed:
        return command
    numbers = ",".join(str(fd) for _, fd in handed)
    names = ":".join(name for name, _ in handed)
    return [sys.executable, "-S", "-c", _HAND_OVER, numbers, names, *command]


def open_fds(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def v1_frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process in a frozen v1 freezer cgroup: not even SIGKILL ends it until the `with` ends."""
    path = Path("/sys/fs/cgroup/freezer") / f"leased-test-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        (path / "cgroup.procs").write_text(str(process.pid), "ascii")
        (path / "freezer.state").write_text("FROZEN", "ascii")
        until = time.monotonic() + WAIT_S
        while (path / "freezer.state").read_text("ascii").strip() != "FROZEN":
            assert time.monotonic() < until, "the process could not be frozen"
        yield
    finally:
        (path / "freezer.state").write_text("THAWED", "ascii")
        process.wait(WAIT_S)
        _remove(path, time.monotonic() + WAIT_S)
