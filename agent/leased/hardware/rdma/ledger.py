# SPDX-License-Identifier: Apache-2.0
"""The ledger: which of the objects that the kernel lists on a device are whose.

Rule: everything an owner makes hangs on its contexts (domains and completion queues on a context,
regions and queue pairs on a domain), so the contexts that were seen at the grant name all of it,
whoever holds the device's descriptor by then and whatever has been made through it since. A lease
whose contexts nobody saw (the agent was restarted after its owner had ended) answers for every
object that nobody else answers for and whose maker is dead. What was left once is blamed on one
lease only, and on that one for as long as it is there, however often it is asked.

Pure. Does not ask the kernel (`nldev`).
"""

from __future__ import annotations

from collections.abc import Iterable

from leased.hardware.rdma.calls import Object
from leased.terms.identity import LeaseId

Key = tuple[str, int]
"""An object: its kind and number."""


def key(one: Object) -> Key:
    """What identifies an object on its device."""
    return one.kind, one.number


def belonging(objects: Iterable[Object], contexts: Iterable[int]) -> frozenset[Key]:
    """The objects that hang on these contexts."""
    objects, wanted = tuple(objects), frozenset(contexts)
    of_context = [
        one
        for one in objects
        if (one.kind == "context" and one.number in wanted) or one.context in wanted
    ]
    domains = {one.number for one in of_context if one.kind == "domain"}
    of_domain = [one for one in objects if one.kind != "domain" and one.domain in domains]
    return frozenset(map(key, (*of_context, *of_domain)))


def orphans(objects: Iterable[Object]) -> frozenset[Key]:
    """Objects whose maker is dead: somebody holds the descriptor that they live by."""
    return frozenset(key(one) for one in objects if not one.pid and not one.kernel)


class Ledger:
    """One device's objects."""

    def __init__(self) -> None:
        self._contexts: dict[LeaseId, frozenset[int]] = {}
        self._blamed: dict[LeaseId, frozenset[Key]] = {}
        self._known: frozenset[Key] = frozenset()

    def claim(self, lease_id: LeaseId, contexts: Iterable[int]) -> None:
        """The lease's owner has these contexts."""
        self._contexts[lease_id] = self._contexts.get(lease_id, frozenset()) | frozenset(contexts)

    def settle(self, objects: Iterable[Object]) -> None:
        """What is an orphan now is no lease's of ours."""
        self._known |= orphans(objects)

    def left(self, lease_id: LeaseId, objects: Iterable[Object]) -> frozenset[Key]:
        """What is still there of the lease."""
        objects = tuple(objects)
        contexts = self._contexts.get(lease_id)
        if contexts is not None:
            return belonging(objects, contexts)
        others = (
            belonging(objects, contexts)
            for other, contexts in self._contexts.items()
            if other != lease_id
        )
        news = orphans(objects) - self._known - frozenset().union(*others)
        return news | (self._blamed.get(lease_id, frozenset()) & frozenset(map(key, objects)))

    def forget(self, lease_id: LeaseId, left: frozenset[Key]) -> None:
        """The lease is over. What is left of it is known, and no other lease's."""
        self._contexts.pop(lease_id, None)
        self._blamed.pop(lease_id, None)
        if left:
            self._blamed[lease_id] = left
        self._known |= left
