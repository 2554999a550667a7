# SPDX-License-Identifier: Apache-2.0
"""What the agent counts, as Prometheus reads it.

Rule: whatever only rises ends in `_total`; every name carries its unit; labels are of closed sets,
or of what an operator configured: no lease, tenant or address is a label. Nothing is computed here
but sums.

Does not write the format (`exposition`), does not serve (`fleet.routes`) and keeps no history: that
is Prometheus's trade.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from leased import __version__
from leased.terms.exposition import family
from leased.terms.lease import LeaseState

if TYPE_CHECKING:
    from leased.service.agent import Agent

_STATES: Final = ("healthy", "drain", "failed")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def expose(agent: Agent) -> Iterator[str]:
    """The lines of an answer to a scrape."""
    yield from _gauge("leased_build_info", "The version that runs.", 1, version=__version__)
    yield from _of_leases(agent)
    yield from _of_resources(agent)
    yield from _of_log(agent)
    yield from _of_fleet(agent)
    yield from _of_process()


def _of_leases(agent: Agent) -> Iterator[str]:
    lessor = agent.sequencer.lessor
    counts = dict.fromkeys(LeaseState, 0)
    del counts[LeaseState.RECLAIMED]
    for lease in lessor.table.leases.values():
        counts[lease.state] += 1
    by_state = {state.name.lower(): count for state, count in counts.items()}
    what = "Leases that are not over, by state."
    yield from _by("state", "leased_leases", "gauge", what, by_state)
    waiting = len(lessor.queue)
    yield from _gauge("leased_requests_waiting", "Requests that wait for capacity.", waiting)
    yield from _gauge(
        "leased_reaper_connected", "1: a reaper holds the leases.", int(agent.reaper.connected)
    )
    yield from _gauge(
        "leased_draining",
        "1: the whole host grants nothing.",
        int("" in lessor.table.pools.cordoned),
    )
    local = agent.listener.connections if agent.listener is not None else 0
    yield from _gauge("leased_local_connections", "Open connections to the local sockets.", local)
    yield from _total("leased_batches_total", "Commits since the start.", agent.sequencer.batches)


def _of_resources(agent: Agent) -> Iterator[str]:
    pools = agent.sequencer.lessor.table.pools
    sums: dict[tuple[str, str], int] = {}
    for pool in pools.by_id.values():
        use, kind = pool.use(cordoned=False), pool.resource.kind.name.lower()
        for name in ("free", "leased", "teardown", "fenced"):
            key = (kind, name)
            sums[key] = sums.get(key, 0) + getattr(use, name)
    what = "Capacity by kind and use, in the unit of the kind (bytes, milli-cores, milli-devices)."
    samples = (((("kind", kind), ("use", use)), n) for (kind, use), n in sums.items())
    yield from family("leased_capacity", "gauge", what, samples)


def _of_log(agent: Agent) -> Iterator[str]:
    state = agent.fleet.log_state()[0]
    states = {name: int(name == state) for name in _STATES}
    yield from _by("state", "leased_log_state", "gauge", "How the sealed log is.", states)
    size = agent.vitals.tree.size
    yield from _total("leased_log_records_total", "Records that are anchored.", size)


def _of_fleet(agent: Agent) -> Iterator[str]:
    fleet = agent.fleet
    routes, listener = fleet.routes, fleet.listener
    answers = {str(status): count for status, count in routes.answered.items()}
    what = "Answers to the fleet."
    yield from _by("status", "leased_pull_answers_total", "counter", what, answers)
    yield from _total("leased_pull_sent_bytes_total", "Bytes of their bodies.", routes.bytes_sent)
    held = {name: one.size for name, one in fleet.countersigning.by_name.items()}
    what = "Records that a collector has."
    yield from _by("collector", "leased_acknowledged_records", "gauge", what, held)
    what = "Records that as many collectors have as [listener] quorum wants."
    yield from _gauge("leased_quorum_records", what, fleet.countersigning.quorum_size())
    if listener is not None:
        yield from _gauge(
            "leased_pull_connections", "Open connections of the fleet.", listener.connections
        )
        refused = listener.refused
        yield from _total("leased_pull_refused_total", "Connections over the limit.", refused)
        yield from _total(
            "leased_pull_handshakes_failed_total",
            "Connections that did not prove who they are.",
            listener.handshakes_failed,
        )
        not_after_s = listener.credentials.certificate.not_after_s
        yield from _gauge(
            "leased_certificate_not_after_seconds", "End of the node's certificate.", not_after_s
        )


def _of_process() -> Iterator[str]:
    """What every process tells, by the names that Prometheus's own clients use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = f"{used.ru_utime + used.ru_stime:.3f}"
    yield from _total("process_cpu_seconds_total", "CPU time.", cpu_s)
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * _PAGE_BYTES
    yield from _gauge("process_resident_memory_bytes", "Resident memory.", resident)
    yield from _gauge("process_open_fds", "Open descriptors.", len(os.listdir("/proc/self/fd")))


def _gauge(name: str, what: str, value: int, **labels: str) -> Iterator[str]:
    return family(name, "gauge", what, [(tuple(labels.items()), value)])


def _total(name: str, what: str, value: int | str) -> Iterator[str]:
    return family(name, "counter", what, [((), value)])


def _by(label: str, name: str, kind: str, what: str, values: Mapping[str, int]) -> Iterator[str]:
    return family(name, kind, what, ((((label, one),), value) for one, value in values.items()))
