# SPDX-License-Identifier: Apache-2.0
"""Placement: where a request would go best, scored over fit, locality, fragmentation, pressure and
heat.

Rule: every term is in per mille, higher is better; a node on which the request does not fit has no
score. Spread wants the emptiest node, bin packing the fullest that still has room. Heat takes up to
half of the score away (`heat.WEIGHT_PM`); where nothing is measured it takes nothing. What a
workload does not live by has to fit, and says nothing else of a node: a workload that lives by GPUs
goes where there are GPUs, whatever the network. Ties go to the smaller node id.

Does not place anything: a node's own admission decides.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from leased.economics.heat import steered
from leased.economics.sensitivity import Sensitivity
from leased.terms.quantity import WHOLE_PM


class Strategy(enum.StrEnum):
    """What is wanted."""

    SPREAD = "spread"
    BINPACK = "binpack"


class Weights(msgspec.Struct, frozen=True):
    """In hundredths; they add up to 100."""

    pressure: int
    fit: int
    locality: int
    fragmentation: int


WEIGHTS: Final = {
    Strategy.SPREAD: Weights(pressure=50, fit=20, locality=20, fragmentation=10),
    Strategy.BINPACK: Weights(pressure=10, fit=20, locality=20, fragmentation=50),
}
"""The source document's."""


class Site(msgspec.Struct, frozen=True):
    """One node: what it has and what is used of it, in raw units by kind. `near_pm`: how near it is
    to what the workload wants to be near to; `heat_pm`: how hot it runs."""

    node_id: str
    total: Mapping[str, int]
    used: Mapping[str, int]
    near_pm: int = 0
    heat_pm: int = 0


class Score(msgspec.Struct, frozen=True):
    """A node and how good it is, with what that is made of."""

    node_id: str
    score_pm: int
    fit_pm: int
    pressure_pm: int
    locality_pm: int
    fragmentation_pm: int
    heat_pm: int


def binding(asked: Mapping[str, int], levels: Mapping[str, Sensitivity]) -> tuple[str, ...]:
    """What of a request its workload lives by most; all of it where nothing is known of that."""
    order = list(Sensitivity)
    ranks = {kind: order.index(levels.get(kind, Sensitivity.UNUSED)) for kind in sorted(asked)}
    return tuple(kind for kind, at in ranks.items() if at == min(ranks.values()))


def score(
    site: Site,
    asked: Mapping[str, int],
    strategy: Strategy,
    lives_by: Collection[str] = (),
) -> Score | None:
    """The score of a node for a request; None if it does not fit. `lives_by`: kinds that alone say
    how good a node is (none named: all)."""
    left: list[int] = []
    before: list[int] = []
    after: list[int] = []
    for kind, amount in sorted(asked.items()):
        total, used = site.total.get(kind, 0), site.used.get(kind, 0)
        if amount <= 0:
            continue
        if used + amount > total:
            return None
        if lives_by and kind not in lives_by:
            continue
        left.append((total - used - amount) * WHOLE_PM // total)
        before.append(used * WHOLE_PM // total)
        after.append((used + amount) * WHOLE_PM // total)
    if not left:
        return None
    fit = min(left)
    pressure = WHOLE_PM - max(before)
    packed = sum(after) // len(after)
    fragmentation = packed if strategy is Strategy.BINPACK else WHOLE_PM - packed
    weights = WEIGHTS[strategy]
    whole = (
        weights.fit * fit
        + weights.pressure * pressure
        + weights.locality * site.near_pm
        + weights.fragmentation * fragmentation
    )
    total_pm = steered(whole, site.heat_pm) // 100
    parts = (fit, pressure, site.near_pm, fragmentation, site.heat_pm)
    return Score(site.node_id, total_pm, *parts)


def rank(
    sites: Iterable[Site],
    asked: Mapping[str, int],
    strategy: Strategy,
    lives_by: Collection[str] = (),
) -> list[Score]:
    """The nodes on which it fits, best first."""
    found = [one for site in sites if (one := score(site, asked, strategy, lives_by)) is not None]
    return sorted(found, key=lambda one: (-one.score_pm, one.node_id))
