# SPDX-License-Identifier: Apache-2.0
"""Cases: the installed agent, asked over its socket, with tenants that outlast their leases. What
became of each is read from the sealed chain, which both verifiers judge afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hardware.bench import Bench
from tests.hardware.case import Failed, Measured, NotRun, case, demand
from tests.hostile.verdicts import Verdict, record

if TYPE_CHECKING:
    from tests.doubles.host_agent import HostAgent
    from tests.hardware.agents import Tenant

PROVEN_MS_MAX, UNSCRUBBED_MS_MAX = 5_000, 1_000


@contextlib.contextmanager
def _agent(bench: Bench, *, later: bool = False) -> Iterator[HostAgent]:
    if os.geteuid() != 0:
        raise NotRun("not root: an agent cannot enforce anything")
    try:
        from tests.doubles.reaper_host import usable
        from tests.doubles.wire_peer import Remote
        from tests.hardware.agents import NotHeld, agent_with
    except ImportError as error:
        raise NotRun(f"the agent is not built here: {error}") from error
    if not usable():
        raise NotRun("no cgroup v2 that could be written to")
    bench.demand_idle()
    try:
        with bench.unwatched(), agent_with(bench.root, bench.environment, later=later) as agent:
            yield agent
    except (AssertionError, NotHeld, Remote) as broke:
        raise Failed(f"{type(broke).__name__}: {broke}") from broke


def _ttl_s(bench: Bench) -> int:
    from tests.hardware.agents import MOCK_TTL_S, TTL_S

    return TTL_S if str(bench.root) == "/" else MOCK_TTL_S


def _tenant(bench: Bench, agent: HostAgent, trick: str, ttl_s: int) -> Tenant:
    """Of the GPU under test, whatever others there are."""
    from tests.hardware.agents import Tenant

    return Tenant(agent, bench.environment, trick, ttl_s, f"uuid={bench.uuid}")


def _proven(bench: Bench, trick: str, *, later: bool = False, most_ms: int = 0) -> Measured:
    """The times of a lease whose holder plays a trick and stays past the deadline. Failed if it is
    not proven clean, or on a real GPU later than `most_ms`."""
    with (
        _agent(bench, later=later) as agent,
        _tenant(bench, agent, trick, _ttl_s(bench)) as tenant,
    ):
        measured, closed = _times(agent, tenant.lease_id, tenant.outlast())
        _demand_clean(measured, agent, closed["lease_id"])
    if most_ms and str(bench.root) == "/":
        took_ms = int(measured["proven_ms"])
        demand(took_ms <= most_ms, f"the proof took {took_ms} ms", measured)
    return measured


def _times(
    agent: HostAgent, lease_id: str, closed: dict[str, Any]
) -> tuple[Measured, dict[str, Any]]:
    from tests.bench.expiry import lags

    told = lags(agent.audit, {lease_id})
    measured: Measured = {"ended": closed["runtime"]["state"]}
    if told["ended"]:
        measured["cut_us"] = told["cut_max_ns"] // 1000
        measured["cut_by"] = "reaper" if told["by_reaper"] else "agent"
    if measured["ended"] == "reclaimed":
        measured["proven_ms"] = told["cut_to_proven_max_ns"] // 1_000_000
    return measured, closed


def _demand_clean(measured: Measured, agent: HostAgent, lease_id: str) -> None:
    if measured["ended"] != "reclaimed":
        why = agent.leasectl("why", lease_id, check=None).stdout.strip()
        raise Failed(f"not proven clean: {why}", measured)


def _is_alive(pid: str) -> bool:
    """Not so a zombie that init has yet to reap."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def _tell(bench: Bench, name: str, measured: Measured, reason: str = "") -> None:
    if str(bench.root) != "/":
        return  # a stand-in's verdict is not one of a GPU
    took = {key: float(value) for key, value in measured.items() if isinstance(value, int)}
    cut_ms = took["cut_us"] / 1000 if "cut_us" in took else None
    times = {"cut_ms": cut_ms, "proven_ms": took.get("proven_ms")}
    verdict = "fenced" if reason else "clean"
    record(Verdict(name, "gpu", "gpu", verdict, reason, evidence="tests/hardware/run", **times))


@case(
    "At its deadline a lease is cut and proven within 5 s, all memory held and a kernel running",
    seconds_most=90,
    headline=("cut_us", "proven_ms"),
)
def agent_ends_hostile(bench: Bench) -> Measured:
    """From `leasectl run` to the closing record, with everything overwritten and read back."""
    measured = _proven(bench, "busy", most_ms=PROVEN_MS_MAX)
    for name in ("endless_kernel", "all_memory"):
        _tell(bench, name, measured)
    return measured


@case(
    "Where the overwriting is left to the next tenant's grant, the proof is there within 1 s",
    seconds_most=90,
    headline=("cut_us", "proven_ms"),
)
def agent_overwrites_later(bench: Bench) -> Measured:
    """`scrub_later`: what is owed is known, and nobody else gets it before it is done."""
    return _proven(bench, "small", later=True, most_ms=UNSCRUBBED_MS_MAX)


@case(
    "A holder that re-opens the GPU as fast as it can across the cut loses it",
    seconds_most=90,
    headline=("cut_us", "proven_ms"),
)
def agent_reopened(bench: Bench) -> Measured:
    """The filter first, then the kill: nothing is opened in between that stays."""
    measured = _proven(bench, "reopens")
    _tell(bench, "reopens", measured)
    return measured


@case(
    "An MPS server that a tenant starts ends with the lease, its clients too",
    seconds_most=90,
    headline=("cut_us", "proven_ms"),
)
def agent_ends_mps(bench: Bench) -> Measured:
    """The tenant computes in the server's context, with the pipe directory of its lease."""
    if str(bench.root) != "/":
        raise NotRun("the stand-in has no MPS")
    with _agent(bench) as agent:
        from tests.hardware.agents import NotHeld

        try:
            tenant = _tenant(bench, agent, "mps", _ttl_s(bench))
        except NotHeld as refused:
            raise NotRun(f"MPS is not possible here: {refused}") from refused
        with tenant:
            demand(bool(tenant.words), "it computes, and no MPS server serves it", {})
            answer = tenant.ask()
            measured, closed = _times(agent, tenant.lease_id, tenant.outlast())
            _demand_clean(measured, agent, closed["lease_id"])
    measured["meanwhile"] = answer
    measured["servers"] = len(tenant.words)
    alive = [pid for pid in tenant.words if _is_alive(pid)]
    demand(answer == "works", "it could not compute", measured)
    demand(not alive, f"servers that outlived the lease: {alive}", measured)
    _tell(bench, "mps_server", measured)
    return measured


@case(
    "Memory imported outside is not granted again: the importer ends, or the GPU is fenced",
    seconds_most=120,
    headline=("importer", "ended"),
)
def agent_importer_outside(bench: Bench) -> Measured:
    """CUDA IPC out of the lease."""
    from tests.hostile.cuda_process import TrickFailed

    with _agent(bench) as agent:
        with _tenant(bench, agent, "ipc_export", _ttl_s(bench)) as tenant:
            try:
                with bench.hold("ipc_import", tenant.words[0]) as importer:
                    measured, closed = _times(agent, tenant.lease_id, tenant.outlast())
                    gone = importer.process.poll() is not None
            except TrickFailed as refused:
                raise NotRun(f"IPC is not possible here: {refused}") from refused
        why = agent.leasectl("why", closed["lease_id"]).stdout.strip()
        why = why.rpartition("the step that failed is ")[2]
    measured["importer"] = "killed" if gone else "alive"
    fenced = measured["ended"] != "reclaimed"
    demand(gone or fenced, "he has the memory still, and the GPU counts as clean", measured)
    _tell(bench, "ipc_export", measured, why if fenced else "")
    return measured


@case(
    "A tenant computes on while its agent is killed and started again, and is ended in time",
    seconds_most=90,
    headline=("meanwhile", "cut_us", "proven_ms"),
)
def agent_killed(bench: Bench) -> Measured:
    """kill -9: the reaper keeps the deadline, the next agent adopts the lease."""
    with _agent(bench) as agent:
        from tests.hardware.agents import at_home

        with _tenant(bench, agent, "small", 2 * _ttl_s(bench)) as tenant:
            agent.kill()
            before = tenant.ask()
            agent.start(environment=at_home(bench.environment))
            after = tenant.ask()
            measured, closed = _times(agent, tenant.lease_id, tenant.outlast())
        measured["meanwhile"] = f"{before}, {after}"
        _demand_clean(measured, agent, closed["lease_id"])
    demand(before == after == "works", "it could not compute on", measured)
    return measured
