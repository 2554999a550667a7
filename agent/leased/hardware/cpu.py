# SPDX-License-Identifier: Apache-2.0
"""CPU cores: which the host has, which it offers, and why none where it offers none.

Rule: cores are leased only where cgroup v2 has both `cpu` (the share) and `cpuset` (the cores) for
our leaves; anything less could not be enforced, so it is an Absence that says what is missing.

Does not limit anybody: `cgroup.make_leaf` does.
"""

from __future__ import annotations

from pathlib import Path

from leased.hardware.calls import CgroupFacts
from leased.hardware.cgroup import allowed, why_missing
from leased.hardware.config import HardwareConfig
from leased.hardware.sysfs import list_names, parse_list, read_int, read_list
from leased.terms.errors import ConfigError
from leased.terms.resource import Absence, Resource, ResourceKind

MILLI_PER_CORE = 1000
NEEDED = ("cpu", "cpuset")
SHARED_LIMIT = (
    "whole cores are exclusive among leases; processes outside any lease may still run on them"
)


def survey_cpu(
    config: HardwareConfig, facts: CgroupFacts, root: Path = Path("/")
) -> tuple[tuple[Resource, ...], tuple[Absence, ...]]:
    """The cores that can be leased, or why none can."""
    why = why_missing(facts, NEEDED, "cpu leases")
    offered, offline = ((), ()) if why else offered_cores(config.cpu_cores, root)
    ours = allowed(facts, "cpuset.cpus", root) or offered
    kept = tuple(core for core in offered if core not in ours)
    offered = tuple(core for core in offered if core in ours)
    if kept:
        why = f"not had by the leases' cgroup (AllowedCPUs= of leased.slice?): {[*kept]}"
    elif offline:
        why = f"[hardware] cpu_cores = {config.cpu_cores!r}: no such core online: {[*offline]}"
    elif not why and not offered:
        why = "no core is offered: set [hardware] cpu_cores to a list such as 2-7"
    absences = (Absence(ResourceKind.CPU, why),) if why else ()
    return tuple(_resource(core, root) for core in offered), absences


def offered_cores(spec: str, root: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cores that `spec` names ("none", "auto" or a list): those that are online, and those that
    are not: a core may go offline under its lease. Raises ConfigError."""
    directory = root / "sys/devices/system/cpu"
    online = read_list(directory / "online")
    if spec == "none" or not online:
        return (), ()
    if spec == "auto":
        # The first core and its siblings stay with the host: interrupts, the agent, the reaper.
        kept = read_list(directory / f"cpu{online[0]}/topology/thread_siblings_list")
        return tuple(core for core in online if core != online[0] and core not in kept), ()
    try:
        named = parse_list(spec)
    except ValueError as error:
        raise ConfigError(f"[hardware] cpu_cores = {spec!r}: {error}") from error
    offline = tuple(core for core in named if core not in online)
    return tuple(core for core in named if core in online), offline


def _resource(core: int, root: Path) -> Resource:
    directory = root / f"sys/devices/system/cpu/cpu{core}"
    nodes = [name[4:] for name in list_names(directory) if name.startswith("node")]
    package = read_int(directory / "topology/physical_package_id")
    siblings = read_list(directory / "topology/thread_siblings_list")
    return Resource(
        resource_id=f"cpu:{core}",
        kind=ResourceKind.CPU,
        tier=None,
        capacity=MILLI_PER_CORE,
        granule=1,
        node=int(nodes[0]) if nodes and nodes[0].isdigit() else -1,
        limits=(SHARED_LIMIT,),
        attributes=(
            ("package", str(package if package is not None else -1)),
            ("siblings", ",".join(map(str, siblings))),
        ),
    )
