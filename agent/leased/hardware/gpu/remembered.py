# SPDX-License-Identifier: Apache-2.0
"""Remembered: the GPUs that an earlier run of the agent has sealed, until this one has seen them.

Rule: a GPU that has not answered since the agent started is not one that is gone: it is sick, as it
would be without a restart, and no lease on it ends by that. What the driver says is gone, or does
not count any more, is.

Does not look.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from leased.hardware.calls import Surveyed
from leased.hardware.gpu.calls import Listed
from leased.hardware.gpu.health import judge_fault
from leased.hardware.gpu.survey import PREFIX
from leased.terms.resource import Health, Resource, ResourceKind


class Remembered:
    """What stands in for what has not been seen yet."""

    def __init__(self) -> None:
        self._sealed: tuple[Resource, ...] = ()

    def take(self, sealed: Iterable[Resource]) -> None:
        """What was sealed last, of any kind."""
        self._sealed = tuple(one for one in sealed if one.kind is ResourceKind.GPU)

    def stand_in(self, why: str) -> Surveyed | None:
        """For a survey that failed; None where there was nothing."""
        if not self._sealed:
            return None
        return Surveyed(tuple(_sick(one, why) for one in self._sealed), (), (f"gpu: {why}",))

    def complete(self, seen: Surveyed, strangers: Sequence[Listed]) -> Surveyed:
        """With those that the driver counts, and that did not answer it yet."""
        why = {
            fault.uuid: fault.fault
            for fault in strangers
            if judge_fault(fault.errno, fault.fault).health is not Health.GONE
        }
        there = {one.resource_id for one in seen.resources}
        self._sealed = tuple(
            one for one in self._sealed if one.resource_id not in there and _gpu_of(one) in why
        )
        silent = tuple(_sick(one, why[_gpu_of(one)]) for one in self._sealed)
        return msgspec.structs.replace(seen, resources=(*seen.resources, *silent))


def _gpu_of(resource: Resource) -> str:
    """The UUID of the GPU that it is, or is a part of."""
    return dict(resource.attributes).get("gpu", resource.resource_id.removeprefix(PREFIX))


def _sick(resource: Resource, why: str) -> Resource:
    limits = (why, *(one for one in resource.limits if one != why))
    return msgspec.structs.replace(resource, health=Health.SICK, limits=limits)
