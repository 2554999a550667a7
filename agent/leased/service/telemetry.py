# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what the host and the leases are seen to do, sampled, lossy, and never billed from.

Rule: a value carries when it was read; a series that could not be read is missing, not zero.
Counters are summed by whoever reads them. Per lease, only what a leaf cgroup can tell is sampled:
processor time against what was allotted. How much of a memory lease is *used* cannot be seen from
outside its holder, so its utilization is unknown, and says so.

Reads procfs and sysfs only, which cannot hang on a driver; drivers are sampled by their own
workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import msgspec
import trio

from leased.ports import Clock
from leased.service.custody import Custodian
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.resource import ResourceKind
from leased.terms.teardown import Utilization

INTERVAL_NS = 10 * NS_PER_S
"""dcgm-exporter samples every 30 s and Nomad every minute; 10 s still shows a one-minute lease six
times."""

ACTIVE_PM_MIN = 50
"""A sample counts as active from 5 % of what was allotted: below that a process is only kept
alive."""


class Sample(msgspec.Struct, frozen=True):
    """One value of one series; `lease_id` None: of the host, else `uid` is its holder's."""

    name: str
    unit: str
    counter: bool
    resource_id: str
    lease_id: LeaseId | None
    value: int
    sampled_ns: int
    uid: int | None = None


class _Usage(msgspec.Struct):
    """What was seen of one lease so far."""

    first_ns: int
    last_ns: int
    last_usage_ns: int
    allotted_milli: int
    counted: int = 0
    active: int = 0
    covered_ns: int = 0
    used_ns: int = 0
    max_pm: int = 0


class Telemetry:
    """Samples on an interval; `read` is the newest of every series, `utilization` what a lease's
    record will say."""

    def __init__(
        self,
        *,
        clock: Clock,
        custodian: Custodian,
        live_leases: Callable[[], Iterable[Lease]],
        node_directory: str = "/sys/devices/system/node",
        pressure_directory: str = "/proc/pressure",
    ) -> None:
        self._clock = clock
        self._custodian = custodian
        self._live_leases = live_leases
        self._node_directory = node_directory
        self._pressure_directory = pressure_directory
        self._newest: dict[tuple[str, str, LeaseId | None], Sample] = {}
        self._usage: dict[LeaseId, _Usage] = {}

    def read(self, resource_id: str | None = None, lease_id: LeaseId | None = None) -> list[Sample]:
        """The newest sample of each series."""
        return [
            sample
            for sample in self._newest.values()
            if resource_id in (None, sample.resource_id) and lease_id in (None, sample.lease_id)
        ]

    def utilization(self, lease: Lease) -> Utilization:
        """What was seen of a lease, in per mille of what it was allotted; forgets the lease."""
        usage = self._forget(lease.lease_id)
        held_ns = max(1, self._clock.now().boot_ns - lease.granted_ns)
        if usage is None or not usage.covered_ns:
            return Utilization()
        return Utilization(
            mean_pm=usage.used_ns * 1000 * 1000 // (usage.covered_ns * usage.allotted_milli),
            max_pm=usage.max_pm,
            active_share_pm=usage.active * 1000 // usage.counted,
            sample_count=usage.counted,
            coverage_pm=min(1000, usage.covered_ns * 1000 // held_ns),
        )

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self.sample()
            await self._clock.sleep_until(self._clock.now().boot_ns + INTERVAL_NS)
            await trio.lowlevel.checkpoint()

    def sample(self) -> None:
        """Read every series once."""
        now_ns = self._clock.now().boot_ns
        self._sample_nodes(now_ns)
        self._sample_pressure(now_ns)
        leases = tuple(self._live_leases())
        kept = {lease.lease_id for lease in leases if lease.state is not LeaseState.FENCED}
        for lease_id in [lease_id for lease_id in self._usage if lease_id not in kept]:
            self._forget(lease_id)
        for lease in leases:
            if lease.state in (LeaseState.ACTIVE, LeaseState.DRAINING):
                self._sample_lease(lease, now_ns)

    def _forget(self, lease_id: LeaseId) -> _Usage | None:
        for key in [key for key in self._newest if key[2] == lease_id]:
            del self._newest[key]
        return self._usage.pop(lease_id, None)

    def _keep(self, sample: Sample) -> None:
        self._newest[sample.name, sample.resource_id, sample.lease_id] = sample

    def _sample_nodes(self, now_ns: int) -> None:
        for entry in sorted(_entries(self._node_directory)):
            if not entry.startswith("node") or not entry[4:].isdigit():
                continue
            for line in _text(f"{self._node_directory}/{entry}/meminfo").splitlines():
                fields = line.split()
                if len(fields) >= 4 and fields[2] in ("MemFree:", "MemUsed:"):
                    name = "memory.free" if fields[2] == "MemFree:" else "memory.used"
                    value = int(fields[3]) * 1024
                    self._keep(Sample(name, "By", False, f"mem:{entry}", None, value, now_ns))

    def _sample_pressure(self, now_ns: int) -> None:
        for resource in ("cpu", "memory", "io"):
            for line in _text(f"{self._pressure_directory}/{resource}").splitlines():
                kind, _, rest = line.partition(" ")
                total = rest.rpartition("total=")[2]
                if total.isdigit():
                    name = f"pressure.{kind}"
                    self._keep(Sample(name, "ns", True, resource, None, int(total) * 1000, now_ns))

    def _sample_lease(self, lease: Lease, now_ns: int) -> None:
        milli = sum(a.capacity for a in lease.subject.allotments if a.kind is ResourceKind.CPU)
        cgroup = self._custodian.of(lease.lease_id).cgroup
        if not cgroup or not milli:
            return
        for line in _text(f"{cgroup}/cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                used_ns, uid = int(value) * 1000, lease.subject.uid
                self._count(lease, now_ns, used_ns, milli)
                self._keep(
                    Sample("cpu.time", "ns", True, "cpu", lease.lease_id, used_ns, now_ns, uid)
                )

    def _count(self, lease: Lease, now_ns: int, used_ns: int, milli: int) -> None:
        usage = self._usage.get(lease.lease_id)
        if usage is None:
            self._usage[lease.lease_id] = _Usage(now_ns, now_ns, used_ns, milli)
            return
        span_ns, burned_ns = now_ns - usage.last_ns, used_ns - usage.last_usage_ns
        usage.last_ns, usage.last_usage_ns = now_ns, used_ns
        if span_ns <= 0 or burned_ns < 0:
            return
        share_pm = burned_ns * 1000 * 1000 // (span_ns * milli)
        usage.counted += 1
        usage.active += share_pm >= ACTIVE_PM_MIN
        usage.covered_ns += span_ns
        usage.used_ns += burned_ns
        usage.max_pm = max(usage.max_pm, share_pm)


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
