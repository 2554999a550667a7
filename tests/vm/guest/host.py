# SPDX-License-Identifier: Apache-2.0
"""The guest as its operator has it: units, the journal, cgroups, and the sockets by the bare
protocol.

Rule: the suite drives what is installed, from outside: the commands people type, and frames on the
socket. Nothing of the agent's own code is imported, so that a mistake in it cannot hide in the test
as well.

Rule: waiting has an end, and that tells a machine that hangs from one that is slow. A lease that
has to live is had for long, and is told to end when the test has seen what it came for; what comes
before what is told by the moments in the records, not by who looked first. How fast anything is,
is for `tests/bench`.

Rule: who waits leaves the processor to what is waited for: both of the machine's are one thread of
its host. So one asks less often, the more the question costs (`eventually`).
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

USER, ADMIN = "/run/leased/io.leased", "/run/leased/io.leased.admin"
CGROUP = Path("/sys/fs/cgroup/leased.slice/leased-cgroup.service")
NODES = Path("/sys/devices/system/node")
S = 1_000_000_000
HANGS_S = 180.0
"""Whoever has not answered by then hangs."""

LATE_S_MAX = 30.0
"""What comes so soon after a deadline came because of it, and not because somebody found it by
chance much later. Not a figure: the machine is emulated, and its host is busy."""

LIVES_S = 600.0
"""How long a lease is had that has to live until a test ends it."""

MIB = 1 << 20


class Failed(Exception):
    """A call that was answered with an error."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(f"{name} {parameters}")
        self.name = name
        self.parameters = parameters


class Connection:
    """One connection to the agent. Descriptors of the last reply are in `fds`."""

    def __init__(self, path: str = USER) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(HANGS_S + 30)
        self.socket.connect(path)
        self.fds: list[int] = []
        self._read = b""
        # Before Linux 6.5 the agent knows us by what we say after its first answer.
        self._call("org.varlink.service.GetInfo", {})

    def tell(self, method: str, /, **parameters: Any) -> None:
        """A call whose reply nobody waits for."""
        self._send(f"io.leased.{method}", parameters)

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """One call, its reply's parameters. Raises Failed."""
        return self._call(f"io.leased.{method}", parameters)

    def _send(self, method: str, parameters: dict[str, Any]) -> None:
        frame = json.dumps({"method": method, "parameters": parameters}).encode()
        self.socket.sendall(frame + b"\0")

    def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._send(method, parameters)
        self.fds = []
        while b"\0" not in self._read:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(64 * 4))
            if not data:
                raise ConnectionError("the agent closed the connection")
            self._read += data
            for level, kind, raw in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.fds += array.array("i", raw[: len(raw) // 4 * 4])
        reply, _, self._read = self._read.partition(b"\0")
        said = json.loads(reply)
        if "error" in said:
            raise Failed(said["error"], said.get("parameters", {}))
        return dict(said["parameters"])

    def acquire(self, *asks: dict[str, Any], ttl_s: float = 60, **more: Any) -> dict[str, Any]:
        """A lease: the reply of Acquire."""
        resources = list(asks)
        return self.call("Lease.Acquire", resources=resources, ttl_ns=int(ttl_s * S), **more)

    def close_fds(self) -> None:
        """Let go of what came with the last reply."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        self.close_fds()
        self.socket.close()


def call(method: str, /, path: str = USER, **parameters: Any) -> dict[str, Any]:
    """One call on a connection of its own."""
    connection = Connection(path)
    try:
        return connection.call(method, **parameters)
    finally:
        connection.close()


def memory(capacity: int, *, node: int, page_size: int = 4096) -> dict[str, Any]:
    """An ask for memory."""
    return {"kind": "mem", "capacity": capacity, "node": node, "page_size": page_size}


def describe(lease_id: str) -> dict[str, Any]:
    """What a lease is now, as an operator sees it."""
    return dict(call("Lease.Describe", ADMIN, lease_id=lease_id)["lease"]["runtime"])


def end_in(lease_id: str, seconds: float) -> int:
    """Have a lease end so soon; its deadline."""
    call("Lease.Renew", ADMIN, lease_id=lease_id, ttl_ns=int(seconds * S))
    return int(describe(lease_id)["deadline_boottime_ns"])


def closed(lease_id: str, seconds: float = HANGS_S) -> dict[str, Any]:
    """Wait until a lease is reclaimed or fenced; what it is then."""
    waited = call(
        "Lease.Wait", ADMIN, lease_id=lease_id, until="closed", timeout_ns=int(seconds * S)
    )
    return dict(waited["lease"]["runtime"])


def records(*choice: str) -> list[dict[str, Any]]:
    """The chain, verified and read by leasectl."""
    lines = leasectl("audit", "log", "--json", *choice).splitlines()
    return [json.loads(line) for line in lines]


def history(lease_id: str, seconds: float = HANGS_S) -> list[dict[str, Any]]:
    """What the chain says of a lease, once its closing record is there."""

    def whole() -> list[dict[str, Any]]:
        found = records("--lease", lease_id)
        return found if found and found[-1]["kind"] in ("Reclaimed", "Fenced") else []

    return list(eventually(f"lease {lease_id} is closed", whole, seconds))


def run(*command: str, check: bool = True, user: str | None = None, seconds: float = 600) -> str:
    """A command's standard output."""
    words = ["runuser", "-u", user, "--", *command] if user else list(command)
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    if check and done.returncode:
        raise AssertionError(f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def leasectl(*words: str, user: str | None = None) -> str:
    """What leasectl says. A call may take as long as the machine is slow."""
    return run("leasectl", "--timeout", f"{HANGS_S:g}", *words, user=user)


def prop(unit: str, name: str) -> str:
    """A property of a unit."""
    return run("systemctl", "show", "-P", name, unit).strip()


def main_pid(unit: str) -> int:
    return int(prop(unit, "MainPID"))


def eventually(what: str, holds: Callable[[], Any], seconds: float = HANGS_S) -> Any:
    """Ask again until it holds; its value. Fails when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(min(max(0.05, 2 * (time.monotonic() - asked)), 1.0))


def serving(seconds: float = 2 * HANGS_S) -> None:
    """Wait until the agent answers."""

    def answers() -> bool:
        try:
            return bool(call("Admin.Status", ADMIN))
        except (OSError, ConnectionError):
            return False

    eventually("the agent answers", answers, seconds)


def came_at(deadline_ns: int, at_ns: int) -> bool:
    """Whether something came because of a deadline."""
    return 0 <= at_ns - deadline_ns < LATE_S_MAX * S


def started_ns(unit: str) -> int:
    """When the unit's present process was started (boottime: this machine is never suspended)."""
    return int(prop(unit, "ExecMainStartTimestampMonotonic")) * 1000


def boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def journal(*match: str, seconds: float = HANGS_S, least: int = 1) -> list[dict[str, Any]]:
    """Entries of the journal that match, as soon as there are `least` of them."""

    def found() -> list[dict[str, Any]]:
        run("journalctl", "--sync")
        lines = run(
            "journalctl", "-o", "json", "--no-pager", "--all", *match, check=False
        ).splitlines()
        entries = [json.loads(line) for line in lines]
        return entries if len(entries) >= least else []

    return list(eventually(f"{least} entries of {match}", found, seconds))


def leaf(lease_id: str) -> Path:
    """A lease's cgroup."""
    return CGROUP / lease_id


def offered(*resource_ids: str) -> None:
    """Wait until these are. The agent serves before it has seen a host that is busy booting."""

    def all_there() -> bool:
        found = {one["resource_id"] for one in call("Device.List")["resources"]}
        return found.issuperset(resource_ids)

    eventually(f"{resource_ids} are offered", all_there)


def free(resource_id: str) -> dict[str, int]:
    """How a resource's capacity is split now."""
    resources = call("Device.List")["resources"]
    (found,) = [resource for resource in resources if resource["resource_id"] == resource_id]
    return dict(found["use"])


def huge_pages_free(node: int) -> int:
    return int((NODES / f"node{node}/hugepages/hugepages-2048kB/free_hugepages").read_text())
