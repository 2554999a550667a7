# SPDX-License-Identifier: Apache-2.0
"""Clocks that were ahead: logs whose last record is of a time to come.

Rule: labels of time never go back, so what is leased on such a node is of then, and on no bill
until then, long after its clock was set right. It tells nobody else what time it is. Where most
logs are so, it is the clock of whoever asks that is behind, and none is.

Does not read a clock: what it says is handed in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from leased.economics.hourly import NodeSpan
from leased.terms.moment import HOUR_NS
from leased.terms.quantity import print_instant

AHEAD_NS: Final = HOUR_NS
"""Of a clock that is kept, and of who has no other: usage is by the hour."""


def ahead(nodes: Sequence[NodeSpan], clock_ns: int | None) -> list[NodeSpan]:
    """Those of `nodes` that are, by a clock; None: there is none."""
    if clock_ns is None:
        return []
    found = [node for node in nodes if node.watermark_ns > clock_ns + AHEAD_NS]
    return found if 2 * len(found) <= len(nodes) else []


def last_ns(watermarks: Collection[int], clock_ns: int) -> int:
    """The latest instant of which records are believed, by a clock and the last record of each
    log."""
    found = [one for one in watermarks if one > clock_ns + AHEAD_NS]
    return max(found) if 2 * len(found) > len(watermarks) else clock_ns + AHEAD_NS


def notice(node: NodeSpan) -> str:
    """What to tell of one."""
    return (
        f"node {node.node_id} labels what it seals {print_instant(node.watermark_ns)}: its clock"
        " was ahead, and what is leased there is on no bill before then; a new log ends that"
        " (`leased-collector enrol --replace`)"
    )
