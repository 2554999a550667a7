# SPDX-License-Identifier: Apache-2.0
"""Reach: how far the fleet's records go, as every answer that follows from them says it.

Rule: an answer about a period waits for nobody, and names the nodes whose records end before it
does. An answer about now would name every node: no record is of this instant. Who has sealed within
two epochs is not behind there.

Does not know whose records they are (`accounts`, `api.views`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from leased.collector.accounts.answers import Reach
from leased.collector.fleet import Fleet
from leased.terms.moment import NS_PER_S
from leased.terms.quantity import print_instant

BEHIND_NS: Final = 120 * NS_PER_S
"""Two epochs, as they are unless configured (60 s): a node that is well seals one in each."""


def reach_of(watermarks: Mapping[str, int], until_ns: int, as_of_ns: int) -> Reach:
    """Of an answer about what was before `until_ns`. `watermarks`: of each node that is waited for,
    the time of its last record, Unix ns; 0: there is none yet."""
    behind = sorted(node for node, at_ns in watermarks.items() if at_ns < until_ns)
    oldest_ns = min((at_ns for at_ns in watermarks.values() if at_ns), default=0)
    told = (print_instant(as_of_ns), print_instant(oldest_ns))
    return Reach(*told, behind, bool(behind), len(behind))


def nameless(reach: Reach) -> Reach:
    """The same for who may see some tenants only: how many nodes are behind, and not which."""
    return msgspec.structs.replace(reach, nodes_behind=[])


def reach_now(watermarks: Mapping[str, int], as_of_ns: int) -> Reach:
    """Of an answer about now."""
    return reach_of(watermarks, as_of_ns - BEHIND_NS, as_of_ns)


def reach_of_fleet(fleet: Fleet, now_ns: int) -> Reach:
    """The same, by what was read of each node's last log. Who is retired is not waited for."""
    return reach_now(fleet.standing().watermarks, now_ns)
