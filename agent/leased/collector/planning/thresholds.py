# SPDX-License-Identifier: Apache-2.0
"""Thresholds of capacity: what of the cluster is nearly full, and when to grow or to shrink.

Rule: a threshold is passed above it, not at it. Growing is recommended up to the size at which the
fullest kind is at `scale_up`; shrinking to the middle between the two marks, so that neither asks
for the other, and one worker always stays. Within `cooldown` of a change of the workers nothing is
recommended: what the last one did has not been seen yet.

How many wait follows from telemetry, and is alerted of only: what they wait for (room, or more of a
limit) says whether more workers would help, and their number does not.

Does not scale anything, and alerts nobody: Prometheus' rules do, with the same marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final

import msgspec

from leased.collector.accounts import periods
from leased.collector.accounts.answers import Advice, CapacityAlert, cut
from leased.terms.errors import ConfigError
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import WHOLE_PM
from leased.terms.reading import Keys, duration, integer, section, share


class Thresholds(msgspec.Struct, frozen=True):
    """Marks in per mille of what there is, of the queue in requests; the length in ns."""

    cpu_warning_pm: int = 750
    cpu_critical_pm: int = 900
    memory_warning_pm: int = 800
    memory_critical_pm: int = 920
    queue_warning: int = 5_000
    queue_critical: int = 20_000
    scale_up_pm: int = 800
    scale_down_pm: int = 400
    cooldown_ns: int = 600 * NS_PER_S


def check_marks(marks: Thresholds) -> None:
    """Raises ConfigError for marks that cannot be meant."""
    for name in ("cpu", "memory"):
        low, high = getattr(marks, f"{name}_warning_pm"), getattr(marks, f"{name}_critical_pm")
        if not 0 < low < high <= WHOLE_PM:
            raise ConfigError(f"capacity.{name}_warning: above 0%, and below {name}_critical")
    if not 0 < marks.queue_warning < marks.queue_critical:
        raise ConfigError("capacity.queue_warning: above 0, and below queue_critical")
    if not 0 <= marks.scale_down_pm < marks.scale_up_pm <= WHOLE_PM:
        raise ConfigError("capacity.scale_down: below scale_up, which is 100% at most")


class Load(msgspec.Struct, frozen=True):
    """Of one kind: what there is, and what of it is not free, in its raw unit."""

    total: int
    used: int

    @property
    def share(self) -> Fraction:
        """Used of what there is."""
        return Fraction(self.used, self.total)


def alerts(
    loads: Mapping[str, Load], marks: Thresholds, queue_depth: int | None = None
) -> list[CapacityAlert]:
    """Which of "cpu", "memory" and the queue is above a mark: of each the highest that it is above.
    `queue_depth` None: it is not known."""
    found = []
    for name, load in loads.items():
        levels = {
            "critical": getattr(marks, f"{name}_critical_pm"),
            "warning": getattr(marks, f"{name}_warning_pm"),
        }
        for level, mark_pm in levels.items():
            if load.total and load.share * WHOLE_PM > mark_pm:
                above = Decimal(mark_pm).scaleb(-3)
                found.append(CapacityAlert(level, name, cut(load.share, 2), above))
                break
    for level, mark in (("critical", marks.queue_critical), ("warning", marks.queue_warning)):
        if queue_depth is not None and queue_depth > mark:
            found.append(CapacityAlert(level, "queue_depth", None, Decimal(mark)))
            break
    return found


def scaling(
    loads: Mapping[str, Load],
    workers: int,
    marks: Thresholds,
    *,
    changed_ns: int,
    now_ns: int,
    draining: int = 0,
) -> list[Advice]:
    """Whether to have more workers, or fewer (`add_workers` below zero), besides those that are
    `draining`. `changed_ns`: when a worker came or went last."""
    there = {name: load for name, load in loads.items() if load.total}
    if not there or not workers or now_ns - changed_ns < marks.cooldown_ns:
        return []
    today = periods.day(now_ns)
    name, fullest = max(there.items(), key=lambda one: one[1].share)
    said = f"{name} is {int(fullest.share * 100)} % allocated"
    said += " without what drains" if draining else ""
    if fullest.share * WHOLE_PM > marks.scale_up_pm:
        more = _workers(there, workers, marks.scale_up_pm) - workers
        mark = f"{marks.scale_up_pm / 10:g} %"
        return [Advice("scale_up", today, max(1, more), f"{said}, above {mark}")]
    if fullest.share * WHOLE_PM < marks.scale_down_pm:
        middle_pm = (marks.scale_up_pm + marks.scale_down_pm) // 2
        fewer = workers - max(1, _workers(there, workers, middle_pm))
        mark = f"{marks.scale_down_pm / 10:g} %"
        if fewer > 0:
            return [Advice("scale_down", today, -fewer, f"{said}, below {mark}")]
    return []


def _workers(loads: Mapping[str, Load], workers: int, mark_pm: int) -> int:
    """How many, as they are on average, are at `mark_pm` with what is used now."""
    each = [
        Fraction(load.used * workers * WHOLE_PM, load.total * mark_pm) for load in loads.values()
    ]
    return max(-(-one.numerator // one.denominator) for one in each)


KEYS: Final[Keys] = {
    "cpu_warning": ("cpu_warning_pm", share),
    "cpu_critical": ("cpu_critical_pm", share),
    "memory_warning": ("memory_warning_pm", share),
    "memory_critical": ("memory_critical_pm", share),
    "queue_warning": ("queue_warning", integer),
    "queue_critical": ("queue_critical", integer),
    "scale_up": ("scale_up_pm", share),
    "scale_down": ("scale_down_pm", share),
    "cooldown": ("cooldown_ns", duration),
}
SECTION: Final = ("capacity", section(Thresholds, KEYS, "capacity."))
