# SPDX-License-Identifier: Apache-2.0
"""Remembered: a backend's resources as they were seen last, if need be by an earlier run of the
agent.

Rule: what does not answer is not gone. A look that failed leaves everything as it was; one that
saw a device which did not answer finds it sick, and no lease on it ends by that, whether the agent
was restarted meanwhile or not. What the kernel or the driver says is gone, or does not count any
more, is.

Does not look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from leased.hardware.calls import Surveyed
from leased.terms.resource import Health, Resource


class Remembered:
    """What stands in for what cannot be seen now."""

    def __init__(self) -> None:
        self._resources: tuple[Resource, ...] = ()
        self.last: Surveyed | None = None
        """The last answer of this run."""

    def take(self, sealed: Iterable[Resource]) -> None:
        """What an earlier run has seen of the backend's own."""
        self._resources = tuple(sealed)

    def forget(self) -> None:
        """Who answers for it all says that it is gone."""
        self._resources, self.last = (), None

    def stand_in(self, why: str) -> Surveyed | None:
        """For a look that failed; None where nothing is known."""
        if self.last is not None or not self._resources:
            return self.last
        return Surveyed(tuple(_sick(one, why) for one in self._resources), (), (why,))

    def complete(self, seen: Surveyed, why_silent: Callable[[Resource], str]) -> Surveyed:
        """With what is there and does not answer: `why_silent` tells why, or "" where that is not
        so."""
        there = {one.resource_id for one in seen.resources}
        silent = [(one, why_silent(one)) for one in self._resources if one.resource_id not in there]
        silent = [(one, why) for one, why in silent if why]
        self._resources = (*seen.resources, *(one for one, _ in silent))
        if silent:
            stand = tuple(_sick(one, why) for one, why in silent)
            seen = msgspec.structs.replace(seen, resources=(*seen.resources, *stand), absences=())
        self.last = seen
        return seen


def _sick(resource: Resource, why: str) -> Resource:
    limits = (why, *(one for one in resource.limits if one != why))
    return msgspec.structs.replace(resource, health=Health.SICK, limits=limits)
