# SPDX-License-Identifier: Apache-2.0
"""Sights: one look at a GPU or MIG device from outside, in a worker: contexts, nodes, memory.

Rule: who has a node open is the kernel's word, who has a context the driver's; neither stands for
the other. A pid that the driver lists and the kernel does not know is a ghost, and counts as
somebody. Whoever is a guest has the node and no context.

Does not judge a look (`verdict`).
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import msgspec

from leased.hardware import openers
from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Guests, Present, Sight, Who
from leased.hardware.gpu.examining import usage_of
from leased.hardware.gpu.facts import Target
from leased.hardware.gpu.nodes import Nodes, find_nodes
from leased.hardware.instant import now_ns
from leased.hardware.openers import Opener

WORKER_COMM = "leased-worker"


def parent_of(target: Target) -> nvml.Handle:
    """The GPU's handle. Raises DeviceError(ENODEV) when another one is at its address."""
    nvml.open_library()
    return nvml.at_pci(target.pci, target.uuid)


def handle_of(target: Target) -> nvml.Handle:
    """The handle of what is leased: the GPU, or its MIG device."""
    parent = parent_of(target)
    if target.instance is None:
        return parent
    return nvml.mig_handle(parent, target.instance.uuid)


def as_now(target: Target) -> Target:
    """The target by the numbers that it has now: a driver that was loaded anew may have given those
    of the last look to another GPU."""
    parent = parent_of(target)
    instance = target.instance
    if instance is not None:
        there = nvml.instance_of(nvml.mig_handle(parent, instance.uuid))
        instance = msgspec.structs.replace(there, start=instance.start)
    return msgspec.structs.replace(target, minor=nvml.minor_of(parent), instance=instance)


def look(
    handle: nvml.Handle, target: Target, root: str, guests: Guests, scan_budget_ns: int
) -> Sight:
    """One look. Raises DeviceError if any part of it has no answer."""
    processes = nvml.processes_of(handle)
    everybody = sorted({pid for pids in processes for pid in pids})
    ghosts = tuple(pid for pid in everybody if not os.path.exists(f"/proc/{pid}"))
    target = as_now(target)
    seen = scan(find_nodes(target, Path(root)), target, guests, scan_budget_ns)
    return Sight(processes, ghosts, seen, usage_of(handle), now_ns())


def scan(nodes: Nodes, target: Target, guests: Guests, scan_budget_ns: int) -> tuple[Opener, ...]:
    """Whoever has a node of the target and is no guest."""
    found = openers.scan(
        nodes.sought(target), exempt=dict(guests.exempt), deadline_ns=now_ns() + scan_budget_ns
    )
    parent = os.getppid()
    return tuple(
        one for one in found if not is_worker(one, parent) and not is_guest(one, nodes, guests)
    )


def is_guest(one: Opener, nodes: Nodes, guests: Guests) -> bool:
    """Whether the process may have the node: the host's own daemons by name and user, and of the
    GPU's own node whoever leases another MIG device of it."""
    if any(_is_daemon(one, *named.partition("@")[::2]) for named in guests.names):
        return True
    if one.node in nodes.capabilities:
        return False
    return any(one.cgroup == leaf or one.cgroup.startswith(f"{leaf}/") for leaf in guests.leaves)


def _is_daemon(one: Opener, name: str, user: str) -> bool:
    """Whether it is called so and runs as that user, root if none is said. Anybody can take the
    name."""
    if one.name != name:
        return False
    try:
        return one.uid == (pwd.getpwnam(user).pw_uid if user else 0)
    except KeyError:
        return False


def is_worker(one: Opener, parent: int) -> bool:
    """Whether it is a worker, as we are: one may have been started since the agent said who is
    exempt. `parent` is ours."""
    return one.parent == parent and one.name == WORKER_COMM


def who(call: Who, fds: list[int]) -> Present:
    """Everybody who has a node of the target, guests but us included, and everybody with a
    context."""
    target = as_now(call.target)
    sought = find_nodes(target, Path(call.root)).sought(target)
    deadline_ns = now_ns() + call.scan_budget_ns
    everybody = openers.scan(sought, exempt=dict(call.exempt), deadline_ns=deadline_ns)
    parent = os.getppid()
    found = tuple(one for one in everybody if not is_worker(one, parent))
    listed = nvml.processes_of(handle_of(target))
    return Present(found, tuple(sorted({pid for pids in listed for pid in pids})))
