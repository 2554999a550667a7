# SPDX-License-Identifier: Apache-2.0
"""The verbs top and health: what leases and devices do now, and how each device is.

Rule: the newest samples, each as old as it says: what is stale is marked, what is not known is "-",
never 0. On a terminal `top` draws itself anew until it is interrupted; elsewhere, and with --once,
it says it once. With --json each look is one document on one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from leased.client import Session
from leased.ctl import render
from leased.ctl.agent import online
from leased.ctl.asks import parse_duration
from leased.ctl.console import Console, length
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import EX_UNAVAILABLE, InvalidParameter
from leased.wire import objects, parameters, replies

CLEAR: Final = "\x1b[H\x1b[J"
_PPM_OF_PERCENT: Final = 10_000
_SM: Final = {"leased.gpu.engine": "sm"}
_GENERAL: Final = {"hw.gpu.task": "general"}
LEASE_HEADINGS: Final = ("LEASE", "TENANT", "HELD", "USED", "CPU", "MEMORY", "PIDS", "ENDS")
DEVICE_HEADINGS: Final = ("DEVICE", "BUSY", "MEMORY", "POWER", "HEAT", "LEASE")
HEALTH_HEADINGS: Final = ("DEVICE", "HEALTH", "HEAT", "ERRORS", "WHY")


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(verbs, "top", "what leases and devices do, live", "leasectl top --once")
    one.add_argument("--once", action="store_true", help="say it once and end")
    one.add_argument("--every", default="2s", metavar="TIME", help="how often (default: 2s)")
    one.set_defaults(act=online(top))
    one = verb(verbs, "health", "how each device is", "leasectl health --json")
    one.set_defaults(act=online(health))


class Seen:
    """The samples of one look, found by what they are of."""

    def __init__(self, samples: Iterable[objects.Sample]) -> None:
        self._samples = tuple(samples)
        self.stale = sum(one.quality != "fresh" for one in self._samples)

    def of(
        self, name: str, *, lease: str | None = None, resource: str = "", **more: str
    ) -> objects.Sample | None:
        """The sample of a series, or None."""
        return next(iter(self.all(name, lease=lease, resource=resource, attributes=more)), None)

    def all(
        self,
        name: str,
        *,
        lease: str | None = None,
        resource: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> list[objects.Sample]:
        """Every sample of a series."""
        wanted = (attributes or {}).items()
        return [
            one
            for one in self._samples
            if (one.name, one.lease_id, one.resource_id) == (name, lease, resource)
            and wanted <= one.attributes.items()
        ]

    def busy(self, resource: str) -> objects.Sample | None:
        """How busy a GPU is, by the best witness there is."""
        for name, attributes in (("leased.gpu.active", _SM), ("hw.gpu.utilization", _GENERAL)):
            for one in self.all(name, resource=resource, attributes=attributes):
                return one
        return None

    def hottest(self, resource: str) -> objects.Sample | None:
        """Of its sensors."""
        found = self.all("hw.temperature", resource=resource)
        return max(found, key=lambda one: one.value or 0, default=None)


async def top(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Show leases and devices."""
    every_ns = parse_duration(options.every)
    if every_ns <= 0:
        raise InvalidParameter("every", f"{options.every}: above 0")
    live = not options.once and not options.json and console.live
    lasting = live or (options.json and not options.once)
    watched = parameters.TelemetryWatch(interval_ns=every_ns)
    await session.devices()  # an agent that hangs is told of in time: a stream may be silent
    async with session.follow(watched, replies.TelemetryWatchReply) as looks:
        async for look in looks:
            # Beside the stream: leases and devices change while samples come.
            leases = (await session.leases()).leases
            told = await session.devices()
            if options.json:
                console.line(_document(look.samples, leases, told.resources))
            else:
                lines = _screen(Seen(look.samples), leases, told.resources, console)
                if live:
                    console.out.write(CLEAR)
                console.say("\n".join(lines))
                console.out.flush()
            if not lasting:
                break
    return 0


def _document(
    samples: Sequence[objects.Sample],
    leases: Sequence[objects.Lease],
    resources: Sequence[objects.Resource],
) -> dict[str, Any]:
    """Every lease and device with its own samples; those of the host beside them."""
    named = {one.resource_id for one in resources}
    return {
        "leases": [
            {
                "lease_id": one.lease_id,
                "tenant": one.runtime.tenant,
                "state": one.runtime.state,
                "samples": [render.plain(s) for s in samples if s.lease_id == one.lease_id],
            }
            for one in leases
        ],
        "devices": [
            {
                "resource_id": one.resource_id,
                "kind": one.kind,
                "health": one.health,
                "samples": [render.plain(s) for s in samples if s.resource_id == one.resource_id],
            }
            for one in resources
        ],
        "host": [
            render.plain(s) for s in samples if s.lease_id is None and s.resource_id not in named
        ],
    }


def _screen(
    seen: Seen,
    leases: Sequence[objects.Lease],
    resources: Sequence[objects.Resource],
    console: Console,
) -> list[str]:
    holders = {
        one.resource_id: render.short(lease.lease_id)
        for lease in leases
        for one in lease.runtime.allotments
    }
    lines = _host(seen)
    rows = [_lease_row(seen, lease, console) for lease in leases]
    lines += ["", *render.table(LEASE_HEADINGS, rows)] if rows else ["", "no lease"]
    devices = [one for one in resources if one.kind in ("gpu", "block")]
    if devices:
        rows = [_device_row(seen, one, holders) for one in devices]
        lines += ["", *render.table(DEVICE_HEADINGS, rows)]
    if seen.stale:
        lines += ["", f"{seen.stale} samples are stale (marked ~): what reads them does not answer"]
    return lines


def _host(seen: Seen) -> list[str]:
    """One line a NUMA node."""
    lines = []
    for number in range(1024):
        resource = f"mem:node{number}"
        limit = seen.of("system.memory.limit", resource=resource)
        if limit is None:
            if number:
                break
            continue
        used = seen.of("system.memory.usage", resource=resource, **{"system.memory.state": "used"})
        lines.append(f"node{number}: {_bytes(used)} of {_bytes(limit)} used")
    return lines


def _lease_row(seen: Seen, lease: objects.Lease, console: Console) -> tuple[str, ...]:
    name = lease.lease_id
    used = [
        f"{one.attributes.get('leased.resource.kind', '?')} {_share(one)}"
        for one in seen.all("leased.lease.utilization", lease=name)
    ]
    spent = [one.value or 0 for one in seen.all("leased.lease.cpu.time", lease=name)]
    inside = seen.of("leased.lease.processes", lease=name)
    return (
        render.short(name),
        lease.runtime.tenant,
        render.held(lease.runtime.allotments),
        ", ".join(used) or "-",
        length(sum(spent)) if spent else "-",
        _bytes(seen.of("leased.lease.memory.usage", lease=name)),
        "-" if inside is None else f"{inside.value}",
        render.when(lease, console),
    )


def _device_row(seen: Seen, one: objects.Resource, holders: Mapping[str, str]) -> tuple[str, ...]:
    resource = one.resource_id
    watts = seen.of("hw.power", resource=resource)
    return (
        resource,
        _share(seen.busy(resource)),
        _bytes(seen.of("hw.gpu.memory.usage", resource=resource)),
        "-" if watts is None else f"{_mark(watts)}{(watts.value or 0) // 1000} W",
        _degrees(seen.hottest(resource)),
        holders.get(resource, "free"),
    )


async def health(options: argparse.Namespace, console: Console, session: Session) -> int:
    """How each device is; 69 if one of them is not well."""
    told = await session.devices()
    samples = (await session.ask(parameters.TelemetryRead(), replies.TelemetryReply)).samples
    seen = Seen(samples)
    rows = [_health(seen, one) for one in told.resources]
    if options.json:
        keys = ("resource_id", "health", "temperature", "errors", "why")
        told_as = [[None if cell == "-" else cell for cell in row] for row in rows]
        console.document({"devices": [dict(zip(keys, row, strict=True)) for row in told_as]})
    else:
        console.say(*render.table(HEALTH_HEADINGS, rows))
        for absence in told.absences:
            console.say(f"no {absence.kind}: {absence.why}")
    return EX_UNAVAILABLE if any(one.health != "ok" for one in told.resources) else 0


def _health(seen: Seen, one: objects.Resource) -> tuple[str, ...]:
    errors = [
        f"{sample.value} {sample.attributes.get('error.type', '')}".strip()
        for sample in seen.all("hw.errors", resource=one.resource_id)
        if sample.value
    ]
    why = one.limits[0] if one.health != "ok" and one.limits else "-"
    heat = _degrees(seen.hottest(one.resource_id))
    return (one.resource_id, one.health, heat, ", ".join(errors) or "-", why)


def _mark(sample: objects.Sample) -> str:
    return "" if sample.quality == "fresh" else "~"


def _share(sample: objects.Sample | None) -> str:
    if sample is None or sample.value is None:
        return "-"
    return f"{_mark(sample)}{sample.value // _PPM_OF_PERCENT}%"


def _degrees(sample: objects.Sample | None) -> str:
    if sample is None or sample.value is None:
        return "-"
    return f"{_mark(sample)}{sample.value // 1000} C"


def _bytes(sample: objects.Sample | None) -> str:
    if sample is None or sample.value is None:
        return "-"
    value = sample.value
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 1 << shift:
            tenths = value * 10 >> shift
            return f"{_mark(sample)}{tenths // 10}.{tenths % 10} {unit}"
    return f"{_mark(sample)}{value} B"
