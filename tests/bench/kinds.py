# SPDX-License-Identifier: Apache-2.0
"""How late access to each kind of resource ends, and how late it is proven clean, on this machine.

Rule: every kind that this machine offers is leased, held by a process in the lease's leaf that
ignores SIGTERM, and ended by its deadline; the times are the chain's own (`expiry.lags`). Nothing
is imitated here: a kind that the machine does not have is said not to have been measured. What the
agent publishes for the kind is printed beside what was measured, and so is what the kernel alone
takes to end such a holder (cgroup.kill until it has ended, nobody of ours involved): no cut can be
sooner. A namespace's cut is a call of device-mapper's driver, which waits for the processors of the
whole machine (two grace periods of SRCU): at the very deadline of each lease somebody beside it has
the driver suspend a mapping that is nobody's, on nothing, and no cut can be sooner than that. With
memory over RDMA an owner of the driver's objects dies beside the holder: in turns with the leases
the kernel alone ends such a holder and such an owner, of the same objects on the same device.

A lease is had for long, and its deadline is set when its holder is there: rounds wait for nothing
but what is measured. Does not lend what the operator of the machine has not named: a namespace is
overwritten, so it is taken only if it is blank and unused (`offer = "unused"`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leased.ctl import asks
from leased.hardware import leaves
from leased.hardware.block import verbs as block
from leased.hardware.rdma.calls import Prepare
from leased.hardware.rdma.carrying import prepare
from leased.hardware.rdma.config import RdmaConfig, Windows
from leased.terms.moment import NS_PER_MS, NS_PER_S
from tests.bench.expiry import lags, percentiles
from tests.bench.loadgen import Figures
from tests.bench.running_agent import RunningAgent
from tests.doubles.reaper_host import cgroup_root
from tests.vm.guest.host import Connection, Failed

HARDWARE = """
[timing]
reclaim_max = "10m"

[hardware]
call_budget = "20s"

[hardware.block]
offer = "unused"
raw = true
raw_erase = ["zero"]

[hardware.dax]
offer = true
persistent = true
"""
"""The budget tells a hang from slow work: an emulated machine takes seconds to start a worker that
a drive is erased by."""

HELD_NS = 120 * 1000 * NS_PER_MS
LEFT_NS = 500 * NS_PER_MS
"""What is left to the deadline when a holder is there: no lease is shorter."""

TRIES_MAX = 2
"""For each lease that is wanted: see `_hold_past_the_deadline`."""

CLOSED_S_MAX = 120

RDMA = "mem:rdma-"
REGION_BYTES = 4 << 20


@dataclass(frozen=True)
class Kind:
    """What is asked for, and which resource of the inventory answers for it."""

    name: str
    ask: dict[str, Any]
    prefix: str
    suffix: str = ""


KINDS = (
    Kind("memory, 4 KiB pages", asks.memory("16MiB,page=4KiB"), "mem:node", ":4096"),
    Kind("memory, 2 MiB pages", asks.memory("16MiB,page=2MiB"), "mem:node", f":{2 << 20}"),
    Kind("memory as a budget", asks.memory("64MiB,budget"), "mem:budget"),
    Kind("one core", asks.cores("1"), "cpu:"),
    Kind("half a core", asks.cores("500m"), "cpu:"),
    Kind("namespace, encrypted", asks.block("32MiB"), "block:"),
    Kind("namespace, raw, zeroed", asks.block("32MiB,raw"), "block:raw"),
    Kind("device-dax", asks.memory("16MiB,dax"), "mem:dax"),
    Kind("memory over RDMA", asks.memory(f"{REGION_BYTES >> 20}MiB,rdma"), RDMA),
)


def measure_kinds(directory: Path, *, rounds: int, say: Callable[[str], None]) -> list[Figures]:
    """`rounds` leases of each kind, one after the other, with one agent."""
    measured: list[tuple[Kind, Figures, set[str]]] = []
    agent = RunningAgent(directory / "kinds", more=HARDWARE)
    agent.start()
    try:
        for kind in KINDS:
            offered = _published(agent, kind)
            if offered is None:
                say(f"NOT MEASURED: {kind.name}: this machine offers none")
                continue
            alone_ns, leases = [], set()
            resource_id, bounds = offered
            with _twin(kind, resource_id) as twin:
                for _ in range(TRIES_MAX * rounds):
                    leases |= _hold_past_the_deadline(agent, kind, twin)
                    alone_ns.append(_end_by_kernel_alone())
                    twin.in_turn()
                    if len(leases) == rounds:
                        break
            alone = percentiles("kernel_alone", alone_ns)
            if twin.took_ns:
                alone |= percentiles("driver_alone", twin.took_ns)
            measured.append((kind, bounds | alone, leases))
            say(f"{kind.name}: {len(leases)} leases have ended")
    finally:
        agent.close()
    return [_figures(agent, *one, say) for one in measured]


def _figures(
    agent: RunningAgent, kind: Kind, known: Figures, leases: set[str], say: Callable[[str], None]
) -> Figures:
    figures = {"kind": kind.name, **known, **lags(agent.state / "audit", leases)}
    say(
        f"{kind.name}: cut p50 {figures['cut_p50_ns'] / NS_PER_MS:.2f} ms, "
        f"max {figures['cut_max_ns'] / NS_PER_MS:.2f} ms "
        f"(the kernel alone {figures['kernel_alone_p50_ns'] / NS_PER_MS:.2f}); "
        f"cut to proven p50 {figures['cut_to_proven_p50_ns'] / NS_PER_MS:.1f} ms, "
        f"max {figures['cut_to_proven_max_ns'] / NS_PER_MS:.1f} ms, "
        f"to scrubbed max {figures['cut_to_scrubbed_max_ns'] / NS_PER_MS:.1f} ms "
        f"({figures['ended']} leases, {figures['fenced']} fenced)"
    )
    return figures


def _published(agent: RunningAgent, kind: Kind) -> tuple[str, Figures] | None:
    """The first resource that is offered, and its bounds; None if there is none."""
    inventory = agent.call("io.leased.Device.List")
    for one in inventory["resources"]:
        named = one["resource_id"].startswith(kind.prefix)
        if named and one["resource_id"].endswith(kind.suffix) and _room(one) > 0:
            said = one["bounds"]
            bounds = {"cut_bound_ns": said["cut_ns"], "whole_bound_ns": sum(said.values())}
            return one["resource_id"], bounds
    return None


def _room(resource: dict[str, Any]) -> int:
    use = resource.get("use")
    return int(resource["capacity"] if use is None else use["free"])


class Twin:
    """What a driver takes for something of nobody's that is like what is leased."""

    def __init__(self) -> None:
        self.took_ns: list[int] = []

    def beside(self, deadline_ns: int) -> AbstractContextManager[None]:
        """At the deadline of a lease, whatever is done in the `with`."""
        return nullcontext()

    def in_turn(self) -> None:
        """After a lease."""

    def close(self) -> None:
        """Take it away."""


class Suspended(Twin):
    """A mapping that has no device below it and no lease, which the driver is asked to suspend at
    the deadlines of leases."""

    UUID = "LEASED-BENCH"
    """Nobody's, and yet udev keeps away from it (systemd/udev)."""

    def __init__(self) -> None:
        super().__init__()
        self._control = block.open_control()
        block.create_mapping(self._control, name="leased-bench", uuid=self.UUID)
        block.load_table(self._control, self.UUID, sectors=2048, target="zero", parameters="")
        block.resume_mapping(self._control, self.UUID)

    @contextmanager
    def beside(self, deadline_ns: int) -> Iterator[None]:
        """Suspend it at the deadline, whatever is done in the `with`."""
        thread = threading.Thread(target=self._suspend, args=(deadline_ns,))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _suspend(self, deadline_ns: int) -> None:
        # As the reaper's cutters do.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        while (left_ns := deadline_ns - _boot_ns()) > 0:
            time.sleep(left_ns / NS_PER_S)
        began_ns = _boot_ns()
        block.suspend_mapping(self._control, self.UUID)
        self.took_ns.append(_boot_ns() - began_ns)

    def in_turn(self) -> None:
        """Let it go on: udev hears of that, and is to have no work beside the lease's proof."""
        block.resume_mapping(self._control, self.UUID)

    def close(self) -> None:
        """Take it away."""
        block.remove_mapping(self._control, self.UUID, timeout_ms=5_000)
        os.close(self._control)


class Owned(Twin):
    """Memory registered on the device that memory is leased over, as much and in the same way, by
    an owner that dies with a holder by one word to cgroup.kill: no lease, agent or reaper."""

    def __init__(self, guid: str) -> None:
        super().__init__()
        self._guid = guid

    def in_turn(self) -> None:
        """Both of them, in a leaf with rooms."""
        with _leaf() as leaf:
            fd = os.memfd_create("leased-bench", os.MFD_CLOEXEC)
            try:
                os.posix_fallocate(fd, 0, REGION_BYTES)
                owner = prepare(self._asked(str(leaf)), [fd])
            finally:
                os.close(fd)
            with _bystander(Path(leaves.inside(str(leaf)))) as holder:
                owning = os.pidfd_open(owner.pid)
                try:
                    self.took_ns.append(_end_by_one_word(leaf, (holder, owning)))
                finally:
                    os.close(owning)

    def _asked(self, leaf: str) -> Prepare:
        of = RdmaConfig()
        return Prepare(
            leaf=leaf,
            guid=self._guid,
            program=of.program,
            sizes=(REGION_BYTES,),
            peers_max=of.peers_max,
            windows=of.windows is Windows.AUTO,
            gid_index=of.gid_index,
            budget_ns=CLOSED_S_MAX * NS_PER_S,
        )


@contextmanager
def _twin(kind: Kind, resource_id: str) -> Iterator[Twin]:
    if kind.prefix.startswith("block:"):
        twin: Twin = Suspended()
    elif kind.prefix == RDMA:
        twin = Owned(resource_id.removeprefix(RDMA).partition(":")[0])
    else:
        twin = Twin()
    try:
        yield twin
    finally:
        twin.close()


def _hold_past_the_deadline(agent: RunningAgent, kind: Kind, twin: Twin) -> set[str]:
    """One lease, from its grant to its proof; its id, unless its deadline had come before it was
    told: the log may wait that long for a disk that others write to."""
    connection = Connection(str(agent.socket))
    try:
        asked = {"resources": [kind.ask], "ttl_ns": HELD_NS, "bind": "cgroup"}
        granted = connection.call("Lease.Acquire", **asked)
        lease_id = str(granted["lease"]["lease_id"])
        connection.close_fds()
        with _holder(str(agent.socket), lease_id) as pidfd:
            deadline_ns = _end_soon(connection, lease_id)
            told_late = _boot_ns() >= deadline_ns
            with twin.beside(deadline_ns):
                if not select.select([pidfd], [], [], CLOSED_S_MAX)[0]:
                    raise SystemExit(f"bench: {kind.name}: the holder outlived its deadline")
        waiting = {"until": "closed", "timeout_ns": CLOSED_S_MAX * 1000 * NS_PER_MS}
        connection.call("Lease.Wait", lease_id=lease_id, **waiting)
    finally:
        connection.close()
    return set() if told_late else {lease_id}


def _end_soon(connection: Connection, lease_id: str) -> int:
    """Have the deadline come, and tell it (boottime ns); a busy machine may be told of it when it
    has come already."""
    ttl_ns = LEFT_NS
    while True:
        try:
            renewed = connection.call("Lease.Renew", lease_id=lease_id, ttl_ns=ttl_ns)
            return int(renewed["deadline_boottime_ns"])
        except Failed as error:
            if error.parameters.get("reason") != "deadline_passed":
                raise
        told = connection.call("Lease.Describe", lease_id=lease_id)
        if told["lease"]["runtime"]["state"] != "active":
            return _boot_ns()
        ttl_ns *= 2


@contextmanager
def _holder(socket: str, lease_id: str) -> Iterator[int]:
    """A process in the lease's leaf that has what is leased and ignores SIGTERM; its pidfd."""
    heard, told = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            joined = Connection(socket)
            joined.call("Lease.Join", lease_id=lease_id)
            os.write(told, b"x")
            while True:
                time.sleep(600)
        finally:
            os._exit(1)
    os.close(told)
    pidfd = os.pidfd_open(pid)
    try:
        if os.read(heard, 1) != b"x":
            raise SystemExit("bench: the holder could not join its lease")
        yield pidfd
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        os.close(heard)


def _end_by_kernel_alone() -> int:
    """Nanoseconds from cgroup.kill to the end of a holder like the one above."""
    with _leaf() as leaf, _bystander(leaf) as pidfd:
        return _end_by_one_word(leaf, (pidfd,))


@contextmanager
def _leaf() -> Iterator[Path]:
    mount = cgroup_root()
    assert mount is not None, "the agent has found it"
    leaf = mount / f"leased-bench-{os.getpid()}"
    leaf.mkdir()
    try:
        yield leaf
    finally:
        (leaf / "cgroup.kill").write_text("1")
        leaves.remove(str(leaf))


@contextmanager
def _bystander(place: Path) -> Iterator[int]:
    """A holder of nothing, in that cgroup; its pidfd."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(600)
    pidfd = os.pidfd_open(pid)
    try:
        (place / "cgroup.procs").write_text(str(pid))
        yield pidfd
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _end_by_one_word(leaf: Path, pidfds: Sequence[int]) -> int:
    """Nanoseconds from cgroup.kill until all of them have ended."""
    began_ns = time.monotonic_ns()
    (leaf / "cgroup.kill").write_text("1")
    for pidfd in pidfds:
        select.select([pidfd], [], [])
    return time.monotonic_ns() - began_ns


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
