# SPDX-License-Identifier: Apache-2.0
"""Carrying: what a worker does for the block backend, by verb.

Does not remember anything between two verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leased.hardware import openers
from leased.hardware.block import arranging, calls, erasing, examining, mapping, proof, verbs
from leased.hardware.block.names import PREFIX
from leased.hardware.block.namespaces import list_namespaces
from leased.hardware.block.users import find_ours, find_uses
from leased.hardware.instant import now_ns
from leased.hardware.openers import Sought


def look(_: calls.Look) -> calls.Seen:
    """What sysfs and /proc tell; no drive is asked."""
    namespaces = list_namespaces()
    numbers = [number for one in namespaces for number in one.numbers]
    return calls.Seen(namespaces, find_uses(numbers) if numbers else (), *find_ours())


def stand_ready(_: calls.Nothing) -> calls.Nothing:
    """That this worker runs and has loaded what it needs is all there is to it."""
    return calls.Nothing()


def find(call: calls.Ask) -> calls.Users:
    """Who uses a namespace or a mapping of it: processes, and the kernel itself."""
    [*found] = [one for one in list_namespaces() if one.identity == call.identity]
    numbers = [number for one in found for number in one.numbers]
    names = [name for one in found for name in (one.name, *(name for name, _ in one.parts))]
    users = [_kernel(use.what) for use in find_uses(numbers) if not use.uuid]
    with mapping.control() as dm:
        for uuid in verbs.list_mappings(dm, PREFIX):
            ours = verbs.describe_mapping(dm, uuid)
            if ours is not None and set(verbs.below_mapping(dm, uuid)) & set(numbers):
                users += [_kernel(use.what) for use in find_uses([ours.number])]
                numbers.append(ours.number)
                names.append(f"dm-{ours.number[1]}")
    sought = Sought(tuple(numbers), tuple(names), block=True)
    deadline_ns = now_ns() + call.budget_ns
    found_open = openers.scan(sought, exempt=dict(call.exempt), deadline_ns=deadline_ns)
    users += [calls.User(one.pid, one.uid, one.name, one.via) for one in found_open]
    return calls.Users(tuple(dict.fromkeys(users)))


def _kernel(what: str) -> calls.User:
    first = what.split()[0]
    via = {"mounted": "mount", "swap": "swap", "behind": "loop"}.get(first, "dm")
    return calls.User(0, 0, what, via)


def _alone(verb: Callable[[Any], Any]) -> Callable[[Any, Sequence[int]], Any]:
    """A verb that no descriptor comes with."""

    def carry_out(call: Any, fds: Sequence[int]) -> Any:
        assert not fds
        return verb(call)

    return carry_out


VERBS = {
    "look": (calls.Look, _alone(look)),
    "examine": (calls.Examine, _alone(examining.examine)),
    "arrange": (calls.Arrange, _alone(arranging.arrange)),
    "ready": (calls.Ready, _alone(mapping.ready)),
    "undo": (calls.Undo, _alone(mapping.undo)),
    "clear": (calls.Clear, _alone(erasing.clear)),
    "clean": (calls.Clean, _alone(erasing.clean)),
    "prove": (calls.Prove, _alone(proof.prove)),
    "list": (calls.Nothing, _alone(mapping.list_ours)),
    "find": (calls.Ask, _alone(find)),
    "stand ready": (calls.Nothing, _alone(stand_ready)),
}
