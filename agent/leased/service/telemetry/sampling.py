# SPDX-License-Identifier: Apache-2.0
"""Sampling: what the host, its devices and the leases are seen to do, round after round; lossy, and
never billed from.

Rule: a sample carries when it was read. What could not be read is missing, not zero: the last value
stays, and grows stale. What a series cannot mean (`terms.series`) is counted and goes no further.
A round looks at so many leases at most; on a host with more, each has its turn, and what was left
to a later round is counted, too.

Does not read anything itself (`ports.Observer`), and sends nothing.
"""

from __future__ import annotations

import resource
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

import trio

from leased.ports import Clock, Observer
from leased.service.custody import Custodian
from leased.service.telemetry.exposition import expose
from leased.service.telemetry.seen import PPM, Seen
from leased.service.telemetry.streaming import Streaming
from leased.terms import series
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease, LeaseState
from leased.terms.moment import NS_PER_S
from leased.terms.resource import RAW_PREFIX, ResourceKind
from leased.terms.sample import Attributes, Reading, Readings, Sample
from leased.terms.series import SERIES, TABLE_NAME
from leased.terms.teardown import Utilization

Key = tuple[str, str, LeaseId | None, Attributes]
"""`Sample.key`"""

DEFAULTS: Final = Streaming()
CLOSELY_EVERY: Final = 6
"""A drive's own log changes slowly, and asking wakes a drive that sleeps: once a minute."""

SAMPLES_MAX: Final = 65_536
"""Newest samples that are kept: those of 2 000 leases with everything. Beyond it, none is added."""

_BUDGET: Final = "mem:budget:"
_GPU_SHARES: Final = (
    ("leased.gpu.active", ((series.ENGINE, "sm"),)),
    ("leased.gpu.active", ((series.ENGINE, "graphics"),)),
    ("hw.gpu.utilization", ((series.GPU_TASK, "general"),)),
)
"""How busy a GPU is, the best witness first: GPM where there is any, else the driver's estimate."""


class Telemetry:
    """Samples on an interval; `read` is the newest of every series, `utilization` what a lease's
    record will say. `told` is called with a round's samples."""

    def __init__(
        self,
        *,
        clock: Clock,
        custodian: Custodian,
        live_leases: Callable[[], Iterable[Lease]],
        observer: Observer,
        settings: Streaming = DEFAULTS,
        queue_depth: Callable[[], int] | None = None,
    ) -> None:
        """`queue_depth`: how many requests wait; None: nobody here can tell."""
        self._clock = clock
        self._custodian = custodian
        self._live_leases = live_leases
        self._observer = observer
        self._leases_max = settings.leases_max
        self._gpus = settings.gpus
        self._queue_depth = queue_depth
        self._newest: dict[Key, Sample] = {}
        self._keys: dict[LeaseId, list[Key]] = {}
        self._seen: dict[LeaseId, Seen] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._turn = 0
        self._rounds = 0
        self._turns = 1
        self._began_ns = clock.now().boot_ns
        self.interval_ns = settings.interval_ns
        self.told: list[Callable[[Sequence[Sample]], None]] = []

    # -- what is known -----------------------------------------------------------------------------

    def read(self, resource_id: str | None = None, lease_id: LeaseId | None = None) -> list[Sample]:
        """The newest sample of each series."""
        return [
            sample
            for sample in self._newest.values()
            if resource_id in (None, sample.resource_id) and lease_id in (None, sample.lease_id)
        ]

    def is_fresh(self, sample: Sample, now_ns: int) -> bool:
        """Whether it is of the last round that could have brought it."""
        turns = self._turns if sample.lease_id is not None else 1
        if sample.resource_id.startswith("block:") and not sample.name.startswith("system."):
            turns = CLOSELY_EVERY  # what the drive itself said
        return now_ns - sample.sampled_ns <= (2 * turns + 1) * self.interval_ns // 2

    def expose(self) -> Iterator[str]:
        """The newest samples as Prometheus reads them, without those that have gone stale."""
        now_ns = self._clock.now().boot_ns
        return expose(one for one in self._newest.values() if self.is_fresh(one, now_ns))

    def utilization(self, lease: Lease) -> Utilization:
        """What was seen of a lease, in per mille of what it holds; forgets the lease."""
        seen = self._forget(lease.lease_id)
        held_ns = self._clock.now().boot_ns - lease.granted_ns
        return Utilization() if seen is None else seen.utilization(held_ns)

    def count(self, name: str, more: int, source: str = "") -> None:
        """One of telemetry's own counters, without its prefix."""
        self._counts[name, source] = self._counts.get((name, source), 0) + more

    # -- rounds ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sample until cancelled. A round longer than the interval is followed at once."""
        while True:
            due_ns = self._clock.now().boot_ns + self.interval_ns
            samples = await self.sample()
            for tell in self.told:
                tell(samples)
            await self._clock.sleep_until(due_ns)
            await trio.lowlevel.checkpoint()

    async def sample(self) -> list[Sample]:
        """One round: every source at once, so that none waits for another. What it brought."""
        began_ns = self._clock.now().boot_ns
        leases = tuple(self._live_leases())
        self._forget_others(leases)
        chosen = self._choose(leases)
        brought: list[Sample] = []

        async def look(source: str, question: Callable[[], Awaitable[Readings]]) -> None:
            brought.extend(self._take(source, await self._ask(source, question), chosen))

        closely = self._rounds % CLOSELY_EVERY == 0
        self._rounds += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, "host", self._observer.host)
            if self._gpus:
                nursery.start_soon(look, "gpu", self._observer.gpus)
            nursery.start_soon(look, "device", lambda: self._observer.others(closely=closely))
            if chosen:
                leaves = [(name, self._path(one)) for name, one in chosen.items()]
                nursery.start_soon(look, "lease", lambda: self._observer.leaves(leaves))
        for lease in chosen.values():
            brought.extend(self._judge(lease))
        now_ns = self._clock.now().boot_ns
        self.count("round.time", now_ns - began_ns)
        brought.extend(self._own(now_ns))
        return brought

    async def _ask(self, source: str, question: Callable[[], Awaitable[Readings]]) -> Readings:
        try:
            told = await question()
        except DeviceError:
            self.count("failures", 1, source)
            return Readings(0, ())
        if told.failed:
            self.count("failures", len(told.failed), source)
        return told

    def _take(self, source: str, told: Readings, chosen: dict[str, Lease]) -> Iterator[Sample]:
        """What a look brought and can be meant, kept and told."""
        for reading in told.readings:
            described = SERIES.get(reading.series)
            if described is None or not described.holds(reading.value):
                self.count("rejected", 1, source)
                continue
            yield self._keep(_sample(reading, told.read_ns, chosen.get(reading.subject)))

    def _keep(self, sample: Sample) -> Sample:
        key = sample.key
        if key not in self._newest:
            if len(self._newest) >= SAMPLES_MAX:
                return sample
            if sample.lease_id is not None:
                self._keys.setdefault(sample.lease_id, []).append(key)
        self._newest[key] = sample
        return sample

    # -- leases ------------------------------------------------------------------------------------

    def _choose(self, leases: Sequence[Lease]) -> dict[str, Lease]:
        """The leases of this round, by the name that they are asked under; those that waited
        longest are next."""
        live = [
            lease for lease in leases if lease.state in (LeaseState.ACTIVE, LeaseState.DRAINING)
        ]
        self._turns = max(1, -(-len(live) // self._leases_max))
        if len(live) > self._leases_max:
            self.count("postponed", len(live) - self._leases_max)
            begin = self._turn % len(live)
            self._turn = begin + self._leases_max
            live = (live[begin:] + live[:begin])[: self._leases_max]
        return {lease.lease_id.hex(): lease for lease in live}

    def _path(self, lease: Lease) -> str:
        """Of its leaf; one that has none counts nothing."""
        return self._custodian.of(lease.lease_id).cgroup or "/nonexistent"

    def _forget_others(self, leases: Iterable[Lease]) -> None:
        kept = {lease.lease_id for lease in leases if lease.state is not LeaseState.FENCED}
        for lease_id in [lease_id for lease_id in self._seen if lease_id not in kept]:
            self._forget(lease_id)

    def _forget(self, lease_id: LeaseId) -> Seen | None:
        for key in self._keys.pop(lease_id, ()):
            del self._newest[key]
        return self._seen.pop(lease_id, None)

    def _judge(self, lease: Lease) -> Iterator[Sample]:
        """How much of what it holds the lease used since the last look, by kind."""
        seen = self._seen.setdefault(lease.lease_id, Seen())
        held: dict[ResourceKind, int] = {}
        for allotment in lease.subject.allotments:
            held[allotment.kind] = held.get(allotment.kind, 0) + allotment.capacity
        for kind, capacity in held.items():
            attributes = ((series.KIND, kind.name.lower()),)
            now_ns = self._clock.now().boot_ns
            yield self._keep(_of("leased.lease.capacity", lease, capacity, now_ns, attributes))
            looked = self._share(lease, kind, capacity, seen)
            if looked is not None and 0 <= looked[0] <= series.SHARE_MAX:
                share_ppm, span_ns, read_ns = looked
                seen.note(kind, share_ppm, span_ns)
                name = "leased.lease.utilization"
                yield self._keep(_of(name, lease, share_ppm, read_ns, attributes))

    def _share(
        self, lease: Lease, kind: ResourceKind, capacity: int, seen: Seen
    ) -> tuple[int, int, int] | None:
        """(share in ppm, over how long, read when); None where it cannot be seen."""
        if kind is ResourceKind.CPU:
            modes = [
                self._lease_value(lease, "leased.lease.cpu.time", ((series.CPU_MODE, mode),))
                for mode in ("user", "system")
            ]
            return _rate(seen, "cpu", [one for one in modes if one is not None], 2, capacity)
        if kind is ResourceKind.MEM:
            return self._budget_share(lease, seen)
        if kind is ResourceKind.GPU:
            return self._gpu_share(lease, capacity, seen)
        if kind is ResourceKind.BLOCK:
            names = [one.resource_id for one in lease.subject.allotments if one.kind is kind]
            busy = [
                self._newest.get(("system.disk.io_time", _plain(name), None, ())) for name in names
            ]
            return _rate(seen, "block", [one for one in busy if one], len(names), 1000 * len(names))
        return None

    def _lease_value(self, lease: Lease, name: str, attributes: Attributes = ()) -> Sample | None:
        return self._newest.get((name, "", lease.lease_id, attributes))

    def _budget_share(self, lease: Lease, seen: Seen) -> tuple[int, int, int] | None:
        """Of a cgroup's budget, what is charged; of memory that was handed out, nobody can tell."""
        capacity = sum(
            one.capacity for one in lease.subject.allotments if one.resource_id.startswith(_BUDGET)
        )
        used = self._lease_value(lease, "leased.lease.memory.usage")
        if not capacity or used is None:
            return None
        spanned = seen.advance("mem", used.sampled_ns, used.sampled_ns)
        return (
            None if spanned is None else (used.value * PPM // capacity, spanned[1], used.sampled_ns)
        )

    def _gpu_share(self, lease: Lease, capacity: int, seen: Seen) -> tuple[int, int, int] | None:
        """The mean over its GPUs, by weight; None while one of them is not seen."""
        total = read_ns = 0
        for allotment in lease.subject.allotments:
            if allotment.kind is not ResourceKind.GPU:
                continue
            looks = (
                self._newest.get((name, allotment.resource_id, None, attributes))
                for name, attributes in _GPU_SHARES
            )
            best = next((look for look in looks if look is not None), None)
            if best is None or best.sampled_ns < lease.granted_ns:
                return None
            total += best.value * allotment.capacity
            read_ns = max(read_ns, best.sampled_ns)
        spanned = seen.advance("gpu", read_ns, read_ns)
        return None if spanned is None else (total // capacity, spanned[1], read_ns)

    # -- itself ------------------------------------------------------------------------------------

    def _own(self, now_ns: int) -> Iterator[Sample]:
        """What the agent costs, and what telemetry lost."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        for mode, seconds in (("user", used.ru_utime), ("system", used.ru_stime)):
            value, spent = int(seconds * NS_PER_S), ((series.CPU_MODE, mode),)
            yield self._keep(Sample("process.cpu.time", "agent", value, now_ns, spent))
        yield self._keep(Sample("process.memory.usage", "agent", _resident(), now_ns))
        if self._queue_depth is not None:
            yield self._keep(Sample("leased.queue.depth", "agent", self._queue_depth(), now_ns))
        for (name, source), value in self._counts.items():
            attributes = ((series.SOURCE, source),) if source else ()
            yield self._keep(
                Sample(
                    f"{TABLE_NAME}.{name}",
                    "agent",
                    value,
                    now_ns,
                    attributes,
                    since_ns=self._began_ns,
                )
            )


def _rate(
    seen: Seen, counter: str, samples: Sequence[Sample], wanted: int, milli: int
) -> tuple[int, int, int] | None:
    """The share of `milli` thousandths of a time that counters of ns grew by; all `wanted` of them
    must have been read at once."""
    if len(samples) < wanted or len({one.sampled_ns for one in samples}) != 1 or not milli:
        return None
    read_ns = samples[0].sampled_ns
    grown = seen.advance(counter, sum(one.value for one in samples), read_ns)
    if grown is None:
        return None
    return grown[0] * 1000 * PPM // (grown[1] * milli), grown[1], read_ns


def _sample(reading: Reading, read_ns: int, lease: Lease | None) -> Sample:
    if lease is not None:
        return _of(reading.series, lease, reading.value, read_ns, reading.attributes)
    return Sample(reading.series, reading.subject, reading.value, read_ns, reading.attributes)


def _of(name: str, lease: Lease, value: int, read_ns: int, attributes: Attributes) -> Sample:
    subject = lease.subject
    return Sample(
        name,
        "",
        value,
        read_ns,
        attributes,
        lease.lease_id,
        subject.uid,
        subject.tenant,
        since_ns=lease.granted_ns,
    )


def _plain(resource_id: str) -> str:
    """A namespace that is leased as it is has the counters of the namespace."""
    return f"block:{resource_id.removeprefix(RAW_PREFIX).removeprefix('block:')}"


def _resident() -> int:
    """Resident bytes of this process; 0 is no such thing, and no procfs."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
