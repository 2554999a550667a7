# SPDX-License-Identifier: Apache-2.0
"""The telemetry of a demonstration fleet: what its hosts would have sent, by the way that hosts
send it: OTLP requests to the real receiver, which knows nothing of this.

Rule: what a lease does follows from its id and its workload, and so from the fleet's seed, and from
the instant: some are busy, some hold more than they use, some idle, and of some nothing can be
seen. Of the last week of the chains there is one look an hour, of the hour before now one every two
minutes, and as long as it is served (`follow`) it goes on. Only hosts of a demonstration speak
here.

Does not make chains (`collector.demo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from leased.collector.demo import PREFIX
from leased.collector.fleet import Fleet
from leased.collector.telemetry.decoding import LEASE_ID, RESOURCE_ID, TENANT
from leased.collector.telemetry.receiver import MEDIA_TYPE, PATH, Receiver
from leased.collector.telemetry.rollup import WINDOW_S
from leased.collector.telemetry.store import Store, recorded
from leased.terms import event as events
from leased.terms.lease import Subject
from leased.terms.moment import HOUR_NS, NS_PER_S, Moment
from leased.terms.resource import ResourceKind
from leased.terms.series import HW_TYPE, KIND, PRESSURE, REASON, SENSOR, SERIES

WEEK_NS: Final = 7 * 24 * HOUR_NS
LATELY_NS: Final = 75 * 60 * NS_PER_S
"""More than the hour that is judged by default."""

EVERY_NS: Final = 120 * NS_PER_S
"""What lies between two looks counts as seen: they are nearer than a gap."""

_MODEST: Final = ("-serve", "-notebook", "-panel")
_FOREVER: Final = 1 << 63
_GPU: Final = ((HW_TYPE, "gpu"),)
_Sample = tuple[str, str, str, str, tuple[tuple[str, str], ...], int]
"""Name, resource, lease, tenant, attributes, value."""


class Held(msgspec.Struct):
    """A lease on a host, over [from_ns, to_ns) of the wall clock."""

    node: str
    lease: str
    subject: Subject
    from_ns: int
    to_ns: int = _FOREVER


class Watch:
    """Who held what in the last week of chains that are being made."""

    def __init__(self, until_ns: int) -> None:
        self._since_ns = until_ns - WEEK_NS
        self._open: dict[bytes, Held] = {}
        self._closed: list[Held] = []

    def __call__(self, node: str, event: events.Event, moment: Moment) -> None:
        """Take note of an event."""
        if isinstance(event, events.Allocated):
            lease = event.lease_id
            self._open[lease] = Held(node, lease.hex(), event.subject, moment.wall_ns)
        elif isinstance(event, events.TeardownBegun) and event.lease_id in self._open:
            one = self._open.pop(event.lease_id)
            one.to_ns = moment.wall_ns
            if one.to_ns > self._since_ns:
                self._closed.append(one)

    def held(self) -> list[Held]:
        """All of them."""
        return [*self._closed, *self._open.values()]


def fill(state: Path, held: list[Held], until_ns: int, now_ns: int) -> int:
    """Send what was before now to a receiver whose clock is that of each look; how many points."""
    clock = [0]
    store = Store(state)
    receiver = Receiver(store, wall_ns=lambda: clock[0], newest_ns=lambda: clock[0])

    async def send() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.run)
            for at_ns in _looks(until_ns, now_ns):
                clock[0] = at_ns
                await look(receiver, held, at_ns)
            nursery.cancel_scope.cancel()

    with closing(store):
        trio.run(send)
    return receiver.points


async def follow(
    state: Path, fleet: Callable[[], Fleet], receiver: Receiver, wall_ns: Callable[[], int]
) -> None:
    """Go on for whoever looks around, from where it was left. `fleet` is empty until it is read."""
    with recorded(state) as samples:
        last_ns = (samples.last_s() + WINDOW_S) * NS_PER_S if samples is not None else 0
    while True:
        held = living(fleet())
        now_ns = wall_ns()
        last_ns = max(last_ns, now_ns - LATELY_NS)
        while held and last_ns + EVERY_NS <= now_ns:
            last_ns += EVERY_NS
            await look(receiver, held, last_ns)
        await trio.sleep(EVERY_NS / NS_PER_S if held else 1)


def living(fleet: Fleet) -> list[Held]:
    """What is held now on hosts of a demonstration."""
    made = {entry.node for entry in fleet.entries.values() if entry.origin.startswith(PREFIX)}
    return [
        Held(view.node, lease.lease_id, lease.subject, lease.granted_wall_ns)
        for view, lease in fleet.leases()
        if view.node in made and lease.is_held
    ]


async def look(receiver: Receiver, held: Iterable[Held], at_ns: int) -> None:
    """Every host that has leases looks at them and sends what it saw."""
    by_node: dict[str, list[Held]] = {}
    for one in held:
        if one.from_ns <= at_ns < one.to_ns:
            by_node.setdefault(one.node, []).append(one)
    for node, leases in by_node.items():
        await _post(receiver, node, request(node, _seen(node, leases, at_ns), at_ns))


def _looks(until_ns: int, now_ns: int) -> Iterator[int]:
    """When was looked, the earliest first."""
    lately_ns = (now_ns - LATELY_NS) // EVERY_NS * EVERY_NS
    yield from range(until_ns - WEEK_NS + HOUR_NS // 2, min(until_ns, lately_ns), HOUR_NS)
    yield from range(lately_ns, now_ns, EVERY_NS)


# ---- what is seen --------------------------------------------------------------------------------


def _seen(node: str, leases: list[Held], at_ns: int) -> Iterator[_Sample]:
    load: dict[str, int] = {}
    for one in leases:
        tenant, amounts = str(one.subject.tenant), dict[ResourceKind, int]()
        for part in one.subject.allotments:
            amounts[part.kind] = amounts.get(part.kind, 0) + part.capacity
        for kind, capacity in amounts.items():
            of = ("", one.lease, tenant, ((KIND, kind.name.lower()),))
            yield ("leased.lease.capacity", *of, capacity)
            used = used_ppm(one.lease, one.subject.workload or "", kind, at_ns)
            if used is None:
                continue
            yield ("leased.lease.utilization", *of, used)
            if kind is ResourceKind.CPU:
                waits = ((PRESSURE[0], "cpu"), (PRESSURE[1], "some"))
                waited_ns = at_ns * (used // 10_000) // 250
                yield ("leased.pressure.time", "", one.lease, tenant, waits, waited_ns)
            if kind is ResourceKind.GPU:
                load.update({a.resource_id: used for a in one.subject.allotments if a.kind is kind})
    # One host in five stands where it is warm.
    warm = 18_000 if _mix(node) % 5 == 0 else 0
    depth = _mix(node, at_ns // EVERY_NS) % 3
    yield ("leased.queue.depth", "agent", "", "", (), depth)
    for gpu, used in load.items():
        celsius = 34_000 + used * 38 // 1000 + warm + _mix(gpu, at_ns // EVERY_NS) % 2_000
        yield ("hw.temperature", gpu, "", "", (*_GPU, (SENSOR, "gpu")), celsius)
        slowed = int(celsius > 84_000)
        yield ("leased.gpu.throttled", gpu, "", "", ((REASON, "hardware_thermal"),), slowed)


def used_ppm(lease: str, workload: str, kind: ResourceKind, at_ns: int) -> int | None:
    """How much of what it holds a lease uses at an instant; None: nobody can see. Whoever waits for
    people asks for more than is ever used."""
    manner, chance = _mix(lease) % 10, _mix(lease, kind.name, at_ns // EVERY_NS) % 1000
    if manner < 2:
        return None
    if manner < 4:
        return chance * 20
    if manner < 6:
        return 90_000 + chance * 120
    if workload.endswith(_MODEST):
        return 120_000 + chance * 180
    return 540_000 + chance * 420


def _mix(*parts: object) -> int:
    return crc32("/".join(map(str, parts)).encode())


# ---- how it is sent ------------------------------------------------------------------------------


def request(node: str, samples: Iterable[_Sample], at_ns: int) -> bytes:
    """One request of OTLP, as a host makes it."""
    message = ExportMetricsServiceRequest()
    told = message.resource_metrics.add()
    _attribute(told.resource.attributes, "service.instance.id", node)
    scope = told.scope_metrics.add()
    metrics: dict[str, Any] = {}
    for name, resource, lease, tenant, attributes, value in samples:
        series = SERIES[name]
        if name not in metrics:
            metrics[name] = scope.metrics.add(name=name, unit=series.exported)
        metric = metrics[name]
        point = (metric.sum if series.counter else metric.gauge).data_points.add()
        point.time_unix_nano = at_ns
        places = ((RESOURCE_ID, resource), (LEASE_ID, lease), (TENANT, tenant))
        for key, text in (*attributes, *places):
            if text:
                _attribute(point.attributes, key, text)
        if series.per == 1:
            point.as_int = value
        else:
            point.as_double = value / series.per
    return bytes(message.SerializeToString())


def _attribute(attributes: Any, key: str, value: str) -> None:
    told = attributes.add()
    told.key, told.value.string_value = key, value


class _Shown(msgspec.Struct, frozen=True):
    """The certificate that a host would show."""

    node: str


async def _post(receiver: Receiver, node: str, body: bytes) -> None:
    """Send a request, without a socket. What is refused is lost, as telemetry may be."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "headers": [(b"content-type", MEDIA_TYPE.encode())],
        "state": {"certificate": _Shown(node)},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        del message

    await receiver(scope, receive, send)
