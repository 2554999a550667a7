# SPDX-License-Identifier: Apache-2.0
"""Holdings: what a node has of a kind, and what a lease has of it by the tier that it is priced by.
So say the chains, to whoever knows the rest from telemetry.

Rule: of the moment in which it was made. A lease that has ended is known for as long as its node's
view keeps it; of what is not known there is nothing.

Does not read records (`fleet`).
"""

from __future__ import annotations

from leased.collector.fleet import Fleet
from leased.terms.resource import ResourceKind, TierKind


class Holdings:
    """One look at a fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._nodes = {view.node: view for view in fleet.nodes()}

    def capacity(self, node: str, kind: ResourceKind) -> int | None:
        """What a node has, in the raw unit."""
        view = self._nodes.get(node)
        return None if view is None else view.totals().get(kind)

    def tiers(self, node: str, lease_id: str, kind: ResourceKind) -> dict[TierKind | None, int]:
        """What a lease has, in the raw unit."""
        found: dict[TierKind | None, int] = {}
        view = self._nodes.get(node)
        if view is None:
            return found
        live = view.leases.get(lease_id)
        subject = live.subject if live is not None else view.ended.get(lease_id)
        for one in subject.allotments if subject is not None else ():
            if one.kind is kind:
                found[one.tier] = found.get(one.tier, 0) + one.capacity
        return found
