# SPDX-License-Identifier: Apache-2.0
"""Exposition: what the agent counts, as Prometheus reads it (text format 0.0.4).

Rule: whatever only rises ends in `_total`; every name carries its unit; labels are of closed sets,
or of what an operator configured: no lease, tenant or address is a label. Nothing is computed here
but sums.

Does not serve (`fleet.routes`) and keeps no history: that is Prometheus's trade.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from leased import __version__
from leased.terms.lease import LeaseState

if TYPE_CHECKING:
    from leased.service.agent import Agent

_STATES: Final = ("healthy", "drain", "failed")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_ESCAPED: Final = re.compile(r'[\\"\n]')


class Sample(NamedTuple):
    """One value of a family."""

    value: int | float
    labels: Mapping[str, str] = {}


class Family(NamedTuple):
    """Everything of one name: what it is, and its samples."""

    name: str
    kind: str
    what: str
    samples: tuple[Sample, ...]


def write(families: Iterator[Family]) -> str:
    """The text of an answer to a scrape."""
    lines = []
    for name, kind, what, samples in families:
        lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
        for value, labels in samples:
            told = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{told}}} {value}" if told else f"{name} {value}")
    return "\n".join(lines) + "\n"


def of_agent(agent: Agent) -> Iterator[Family]:
    """What there is to tell of the agent."""
    yield _gauge("leased_build_info", "The version that runs.", 1, version=__version__)
    yield from _of_leases(agent)
    yield from _of_resources(agent)
    yield from _of_log(agent)
    yield from _of_fleet(agent)
    yield from of_process()


def _of_leases(agent: Agent) -> Iterator[Family]:
    lessor = agent.sequencer.lessor
    counts = dict.fromkeys(LeaseState, 0)
    del counts[LeaseState.RECLAIMED]
    for lease in lessor.table.leases.values():
        counts[lease.state] += 1
    by_state = tuple(Sample(n, {"state": state.name.lower()}) for state, n in counts.items())
    yield Family("leased_leases", "gauge", "Leases that are not over, by state.", by_state)
    yield _gauge("leased_requests_waiting", "Requests that wait for capacity.", len(lessor.queue))
    yield _gauge(
        "leased_reaper_connected", "1: a reaper holds the leases.", int(agent.reaper.connected)
    )
    yield _gauge(
        "leased_draining",
        "1: the whole host grants nothing.",
        int("" in lessor.table.pools.cordoned),
    )
    local = agent.listener.connections if agent.listener is not None else 0
    yield _gauge("leased_local_connections", "Open connections to the local sockets.", local)
    yield _total("leased_batches_total", "Commits since the start.", agent.sequencer.batches)


def _of_resources(agent: Agent) -> Iterator[Family]:
    pools = agent.sequencer.lessor.table.pools
    sums: dict[tuple[str, str], int] = {}
    for pool in pools.by_id.values():
        use, kind = pool.use(cordoned=False), pool.resource.kind.name.lower()
        for name in ("free", "leased", "teardown", "fenced"):
            key = (kind, name)
            sums[key] = sums.get(key, 0) + getattr(use, name)
    samples = tuple(Sample(n, {"kind": kind, "use": use}) for (kind, use), n in sums.items())
    what = "Capacity by kind and use, in the unit of the kind (bytes, milli-cores, milli-devices)."
    yield Family("leased_capacity", "gauge", what, samples)


def _of_log(agent: Agent) -> Iterator[Family]:
    state = agent.fleet.log_state()[0]
    states = tuple(Sample(int(name == state), {"state": name}) for name in _STATES)
    yield Family("leased_log_state", "gauge", "How the sealed log is.", states)
    yield _total("leased_log_records_total", "Records that are anchored.", agent.vitals.tree.size)


def _of_fleet(agent: Agent) -> Iterator[Family]:
    fleet = agent.fleet
    routes, listener = fleet.routes, fleet.listener
    answers = tuple(Sample(n, {"status": str(status)}) for status, n in routes.answered.items())
    yield Family("leased_pull_answers_total", "counter", "Answers to the fleet.", answers)
    yield _total("leased_pull_sent_bytes_total", "Bytes of their bodies.", routes.bytes_sent)
    held = tuple(
        Sample(one.size, {"collector": name}) for name, one in fleet.countersigning.by_name.items()
    )
    yield Family("leased_acknowledged_records", "gauge", "Records that a collector has.", held)
    what = "Records that as many collectors have as [listener] quorum wants."
    yield _gauge("leased_quorum_records", what, fleet.countersigning.quorum_size())
    if listener is not None:
        yield _gauge(
            "leased_pull_connections", "Open connections of the fleet.", listener.connections
        )
        yield _total("leased_pull_refused_total", "Connections over the limit.", listener.refused)
        yield _total(
            "leased_pull_handshakes_failed_total",
            "Connections that did not prove who they are.",
            listener.handshakes_failed,
        )
        not_after_s = listener.credentials.certificate.not_after_s
        yield _gauge(
            "leased_certificate_not_after_seconds", "End of the node's certificate.", not_after_s
        )


def of_process() -> Iterator[Family]:
    """What every process tells, by the names that Prometheus's own clients use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield _total("process_cpu_seconds_total", "CPU time.", round(used.ru_utime + used.ru_stime, 3))
    with open("/proc/self/statm", encoding="ascii") as file:
        resident = int(file.read().split()[1]) * _PAGE_BYTES
    yield _gauge("process_resident_memory_bytes", "Resident memory.", resident)
    yield _gauge("process_open_fds", "Open descriptors.", len(os.listdir("/proc/self/fd")))


def _gauge(name: str, what: str, value: int | float, **labels: str) -> Family:
    return Family(name, "gauge", what, (Sample(value, labels),))


def _total(name: str, what: str, value: int | float) -> Family:
    return Family(name, "counter", what, (Sample(value),))


def _escape(text: str) -> str:
    return _ESCAPED.sub(lambda found: {"\\": "\\\\", '"': '\\"', "\n": "\\n"}[found[0]], text)
