# SPDX-License-Identifier: Apache-2.0
"""Bounds: how long each part of a resource's teardown may take; published with the resource.

Rule: a bound is a promise: what overruns it is fenced, and says so. It counts for a lease alone;
leases that fall together wait for one another, and each bound counts from its turn. So do resources
of one lease that can only be made clean one after the other (`in_turn`): namespaces of one drive.
In an inventory the bounds stand among the attributes, which is where a resource says more of
itself.

Does not keep the time: `hardware.fittings`, `hardware.crew` and `service.reaper.link` do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from leased.terms.moment import NS_PER_MS
from leased.terms.resource import Resource

ATTRIBUTE: Final = "teardown_ms"


class Bounds(msgspec.Struct, frozen=True):
    """From the deadline (or the end of the notice) on: access is cut within `cut_ns`; what is left
    of it is ended, searched for and made clean within `scrub_ns`, and overwritten or erased within
    `overwrite_ns` more; it is proven within `prove_ns`."""

    cut_ns: int
    scrub_ns: int
    overwrite_ns: int
    prove_ns: int

    @property
    def total_ns(self) -> int:
        """From the deadline to the proof."""
        return self.cut_ns + self.scrub_ns + self.overwrite_ns + self.prove_ns

    @property
    def clean_ns(self) -> int:
        """What the scrub may take with its overwriting."""
        return self.scrub_ns + self.overwrite_ns


def in_turn(bounds: Iterable[Bounds]) -> Bounds:
    """Those of several resources of a lease that wait for one another. Access to all of them is cut
    at once."""
    each = tuple(bounds)
    return Bounds(
        max(one.cut_ns for one in each),
        sum(one.scrub_ns for one in each),
        sum(one.overwrite_ns for one in each),
        sum(one.prove_ns for one in each),
    )


def publish(resource: Resource, bounds: Bounds) -> Resource:
    """The resource with its bounds, in ms, rounded up."""
    parts = (bounds.cut_ns, bounds.scrub_ns, bounds.overwrite_ns, bounds.prove_ns)
    said = "+".join(str(-(-part // NS_PER_MS)) for part in parts)
    others = tuple(pair for pair in resource.attributes if pair[0] != ATTRIBUTE)
    return msgspec.structs.replace(resource, attributes=(*others, (ATTRIBUTE, said)))


def published(resource: Resource) -> Bounds | None:
    """The bounds that a resource says; None if it says none, as of a release before there were
    any."""
    for name, said in resource.attributes:
        if name == ATTRIBUTE:
            cut, scrub, overwrite, prove = (int(part) * NS_PER_MS for part in said.split("+"))
            return Bounds(cut, scrub, overwrite, prove)
    return None
