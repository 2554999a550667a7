# SPDX-License-Identifier: Apache-2.0
"""The real agent on this host: its own state and runtime directory, its own cgroup root, its own
reaper.

Rule: nothing here pretends: what a test sees is what the daemon, the reaper and the kernel did.
Whatever a test makes (processes, cgroups, memory, files) is gone when the `with` ends, also after
a failure; only processes found by this agent's own directories are ended. Waiting is always for
something: a socket, a pidfd, an answer; never for time to pass.

Does not judge what the chain says (`story`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from leased.hardware.leaves import ROOMS_MAX
from leased.service.reaper.process import find_reaper
from leased.terms.errors import DeviceError
from tests.doubles import second_opinion
from tests.doubles.host import not_proven
from tests.doubles.reaper_host import _remove, cgroup_root, usable
from tests.doubles.wire_peer import Peer, Remote
from tests.doubles.workers import workers_of

REPOSITORY = Path(__file__).resolve().parents[2]
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
READY_S_MAX = 60.0
PATIENCE_S = 30.0
POLL_S = 0.01
NOBODY = 65534

CONFIG = """
[paths]
state_dir = "{state}"
runtime_dir = "{runtime}"
{paths}
[hardware]
cgroup_root = "{cgroup}"
cpu_cores = "none"
hugepages = false
{hardware}
[policy]
{policy}
{more}
"""


def boot_ns() -> int:
    """CLOCK_BOOTTIME now."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def exited(pidfd: int, timeout_s: float = PATIENCE_S) -> bool:
    """Wait until the process is gone; whether it is."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def must_be_possible(what: str) -> None:
    """Skip, saying what is not proven, where the real thing cannot run."""
    if not usable():
        not_proven(what, "needs root and a writable cgroup2")
    try:
        find_reaper()
    except DeviceError:
        not_proven(what, "native/ is not built")


class HostAgent:
    """One run of the agent after another over one state directory."""

    def __init__(
        self,
        *,
        policy: str = 'ttl_min = "500ms"',
        hardware: str = "",
        more: str = "",
        state: Path | None = None,
        limits: str = "",
    ) -> None:
        """`limits` are further sections of the file as text, `state` a directory that is not ours
        to remove."""
        self._policy, self._hardware, self._more = policy, hardware, more + limits
        self._state = state
        self._exits = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.runs = 0

    def __enter__(self) -> HostAgent:
        must_be_possible("anything of the real agent")
        # Short, for a socket's path may have 107 bytes; on a disk, for a log wants one.
        self.directory = Path(tempfile.mkdtemp(prefix="leased-"))
        self.directory.chmod(0o755)
        self._exits.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.state = self._state or self.directory / "state"
        self.runtime = self.directory / "run"
        for path in (self.state, self.runtime):
            path.mkdir(parents=True, exist_ok=True)
        mount = cgroup_root()
        assert mount is not None
        name = f"leased-test-{secrets.token_hex(4)}"
        self.cgroup = mount / name
        self.config = self.directory / "leased.toml"
        self.config.write_text(
            CONFIG.format(
                state=self.state,
                runtime=self.runtime,
                cgroup=name,
                paths="",
                hardware=self._hardware,
                policy=self._policy,
                more=self._more,
            ),
            "utf-8",
        )
        self._exits.callback(self._remove_cgroups)
        self._exits.callback(self._judge_log)
        self._exits.callback(self._end_all)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._sound = error is None
        if error is not None:
            print(f"--- agent.log\n{self.log()[-6000:]}")
            with contextlib.suppress(OSError):
                print(f"--- reaper.log\n{(self.runtime / 'reaper.log').read_text()[-2000:]}")
        self._exits.close()

    # -- the agent ---------------------------------------------------------------------------------

    @property
    def socket(self) -> Path:
        """The users' door."""
        return self.runtime / "io.leased"

    @property
    def admin_socket(self) -> Path:
        """The operators' door."""
        return self.runtime / "io.leased.admin"

    @property
    def audit(self) -> Path:
        """The sealed log."""
        return self.state / "audit"

    @property
    def pid(self) -> int:
        """The agent's own process id."""
        assert self._process is not None, "the agent does not run"
        return self._process.pid

    def log(self) -> str:
        """What all its runs said."""
        path = self.directory / "agent.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def launch(
        self,
        wrap: Sequence[str] = (),
        *,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        preexec_fn: object = None,
    ) -> subprocess.Popen[bytes]:
        """Start it and wait for nothing. `wrap` goes before the command: strace, prlimit; `flags`
        behind it."""
        self.runs += 1
        told = {"PYTHONPATH": str(REPOSITORY / "agent"), **(environment or {})}
        inherited = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        with open(self.directory / "agent.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *wrap,
                    sys.executable,
                    "-m",
                    "leased.service.daemon",
                    "--config",
                    str(self.config),
                    *flags,
                ],
                env={**inherited, **told},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=preexec_fn,  # type: ignore[arg-type]
            )
        return self._process

    def start(self, wrap: Sequence[str] = (), **how: object) -> HostAgent:
        """Start it; return when it has answered. Fails if it ends instead."""
        self.launch(wrap, **how)  # type: ignore[arg-type]
        assert self.ready(), f"the agent ended: {self.log()[-3000:]}"
        return self

    def ready(self) -> bool:
        """Wait until it answers on the operators' door, which it opens last; False: it ended."""
        assert self._process is not None
        pidfd = os.pidfd_open(self._process.pid)
        try:
            until = time.monotonic() + READY_S_MAX
            while time.monotonic() < until:
                try:
                    with self.connect(admin=True) as peer:
                        peer.call("org.varlink.service.GetInfo")
                        return True
                except (ConnectionError, FileNotFoundError, EOFError):
                    # Until there is a door to wait at, wait for the end, which may come first.
                    if select.select([pidfd], [], [], POLL_S)[0]:
                        self._process.wait()
                        return False
        finally:
            os.close(pidfd)
        raise AssertionError(f"not ready after {READY_S_MAX} s: {self.log()[-3000:]}")

    def refused(self, **how: object) -> tuple[int, str]:
        """Start it where it must refuse: exit status and what it said in this run."""
        before = len(self.log())
        process = self.launch(**how)  # type: ignore[arg-type]
        assert not self.ready(), "it started"
        self._process = None
        return process.returncode, self.log()[before:]

    def kill(self) -> None:
        """kill -9. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        assert self._process is not None
        try:
            status = self._process.wait(PATIENCE_S)
        finally:
            if self._process.returncode is None:
                self._process.kill()
                self._process.wait()
        self._process = None
        return status

    def wait_traced(self) -> int:
        """Wait for the end of an agent that was launched under another program, which ends as it
        does."""
        status = self.wait()
        self._end_daemons()
        return status

    def stop_traced(self) -> None:
        """SIGTERM to the agent itself, not to what it runs under."""
        for pid in self._ours(self.config):
            if pid != self.pid:
                os.kill(pid, signal.SIGTERM)
        self.wait_traced()

    def signal(self, number: int) -> None:
        """To the agent alone."""
        os.kill(self.pid, number)

    def workers(self) -> list[int]:
        """The agent's device workers."""
        return workers_of(self.pid)

    @contextlib.contextmanager
    def stopped(self, *pids: int) -> Iterator[None]:
        """SIGSTOP these for a while. Those gone meanwhile are left alone."""
        pidfds = [os.pidfd_open(pid) for pid in pids]
        try:
            for pidfd in pidfds:
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            yield
        finally:
            for pidfd in pidfds:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                os.close(pidfd)

    # -- the reaper --------------------------------------------------------------------------------

    def start_reaper(self) -> None:
        """One of its own, before the agent would start one; returns when it listens."""
        with open(self.runtime / "reaper.log", "ab") as log:
            subprocess.run(
                [str(find_reaper()), "--detach", "--runtime-dir", str(self.runtime)],
                check=True,
                stdin=subprocess.DEVNULL,
                stderr=log,
                timeout=PATIENCE_S,
            )

    def reaper_pid(self) -> int:
        """Whoever listens on the reaper's socket, by the kernel's word. Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(self.runtime / "reaper.sock"))
            credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little")

    def kill_reaper(self) -> int:
        """kill -9; the process id it had."""
        pid = self.reaper_pid()
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert exited(pidfd)
        os.close(pidfd)
        return pid

    def await_reaper(self, *, other_than: int = 0) -> int:
        """Wait until (another) one listens; its process id."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                pid = self.reaper_pid()
            except OSError:
                pid = 0
            if pid not in (0, other_than):
                return pid
            select.select([], [], [], POLL_S)
        raise AssertionError("no reaper listens")

    # -- calls -------------------------------------------------------------------------------------

    def connect(self, *, admin: bool = False) -> Peer:
        """A connection of this process."""
        return Peer(self.admin_socket if admin else self.socket)

    def call(self, method: str, *, admin: bool = False, **parameters: object) -> dict[str, object]:
        """One call over a connection of its own. `Lease.Renew` is short for io.leased.Lease.Renew.
        Raises Remote."""
        with self.connect(admin=admin) as peer:
            return peer.call(method, **parameters)

    def acquire(self, size_bytes: int = 4096, ttl_ms: int = 60_000, **more: object) -> dict:
        """A lease over memory bound to nobody; its description."""
        asked = {"resources": [mem(size_bytes)], "ttl_ns": ttl_ms * NS_PER_MS, "bind": "cgroup"}
        with self.connect() as peer:
            answer = peer.call("Lease.Acquire", **{**asked, **more})
            peer.drop_fds()
        return answer["lease"]

    def describe(self, lease_id: str) -> dict:
        """The lease as an operator sees it."""
        return self.call("Lease.Describe", admin=True, lease_id=lease_id)["lease"]

    def wait_for(self, lease_id: str, until: str = "closed", timeout_s: float = PATIENCE_S) -> dict:
        """The agent's own Wait."""
        timeout_ns = int(timeout_s * NS_PER_S)
        return self.call(
            "Lease.Wait", admin=True, lease_id=lease_id, until=until, timeout_ns=timeout_ns
        )["lease"]

    def leasectl(
        self, *words: str, check: int | None = 0, **how: object
    ) -> subprocess.CompletedProcess[str]:
        """leasectl as people run it; `check` is the exit status it must have."""
        done = subprocess.run(
            [sys.executable, "-m", "leased.ctl.main", *words],
            env={**os.environ, **self.sockets()},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S * 2,
            stdin=subprocess.DEVNULL,
            **how,  # type: ignore[call-overload]
        )
        if check is not None:
            assert done.returncode == check, (
                f"{words}: {done.returncode} {done.stderr}{done.stdout}"
            )
        return done

    def begin_leasectl(self, *words: str) -> subprocess.Popen[str]:
        """leasectl that goes on while the test does."""
        begun = subprocess.Popen(
            [sys.executable, "-m", "leased.ctl.main", *words],
            env={**os.environ, **self.sockets()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.track(begun)
        return begun

    def sockets(self) -> dict[str, str]:
        """The environment in which leasectl finds this agent."""
        return {
            "LEASE_SOCKET": str(self.socket),
            "LEASE_ADMIN_SOCKET": str(self.admin_socket),
            "PYTHONPATH": str(REPOSITORY / "agent"),
        }

    def track(self, process: subprocess.Popen) -> subprocess.Popen:
        """End it with this agent, if it has not ended by then."""
        self._exits.callback(end, process)
        return process

    def defer(self, work: object, *arguments: object) -> None:
        """Call it at the end, before the agent is ended."""
        self._exits.callback(work, *arguments)  # type: ignore[arg-type]

    # -- the end -----------------------------------------------------------------------------------

    def _judge_log(self) -> None:
        """What it leaves is judged by both verifiers."""
        if self._sound and (self.audit / "log.id").exists():
            second_opinion.judge(self.audit)

    def _end_all(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        # A reaper that was just being started comes up after its agent is gone.
        self._end_daemons(self.runtime, self.config)

    def _end_daemons(self, *paths: Path) -> None:
        until = time.monotonic() + PATIENCE_S
        while (ours := self._ours(*(paths or (self.config,)))) and time.monotonic() < until:
            for pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    pidfd = os.pidfd_open(pid)
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    exited(pidfd, 5)
                    os.close(pidfd)

    def _ours(self, *paths: Path) -> list[int]:
        """Daemons or reapers that were told one of these paths of ours, and nobody else."""
        wanted = {str(path).encode() for path in paths}
        return [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit()
            and int(name) != os.getpid()
            and not wanted.isdisjoint(_cmdline(int(name)).split(b"\0"))
        ]

    def _remove_cgroups(self) -> None:
        if not self.cgroup.exists():
            return
        (self.cgroup / "cgroup.kill").write_text("1", "ascii")
        until = time.monotonic() + PATIENCE_S
        for path, _, _ in os.walk(self.cgroup, topdown=False):
            _remove(Path(path), until)


@contextlib.contextmanager
def obstructed(leaf: Path) -> Iterator[None]:
    """While this lasts, nobody is in the leaf and it cannot be removed all the same: it has more
    rooms than go with a leaf. A proof waits for it."""
    rooms = [leaf / f"room{number}" for number in range(ROOMS_MAX + 1)]
    for room in rooms:
        room.mkdir()
    yield
    for room in rooms:
        with contextlib.suppress(FileNotFoundError):  # from the 64th on they go with the leaf
            room.rmdir()


def end(process: subprocess.Popen) -> None:
    """SIGKILL it and wait. Idempotent."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait(PATIENCE_S)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def mem(size_bytes: int, **more: object) -> dict[str, object]:
    """One ask for memory in normal pages."""
    return {"kind": "mem", "capacity": size_bytes, "page_size": 4096, **more}


def denied(reason: str) -> contextlib.AbstractContextManager:
    """The call inside is refused for this reason."""
    return pytest.raises(Remote, match=f"Refused.*'reason': '{reason}'")


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
