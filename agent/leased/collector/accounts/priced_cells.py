# SPDX-License-Identifier: Apache-2.0
"""The cells of a window, in as few as there are prices in force: what is billed, and what is
shown.

Rule: no cell lies across a version of what it is priced by, so every sum is of one price.

Does not price (`economics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leased.collector.accounts.periods import Window
from leased.collector.metering.sources import Source
from leased.economics.contracts import Terms
from leased.economics.meter import UsageKey


def billed_cells(
    source: Source, tenant: str, window: tuple[int, int], terms: Terms
) -> dict[UsageKey, int]:
    """What a bill is made of: hour by hour where a plan has overage, else in as few cells as there
    are prices in force. Either way the same bill."""
    contracts = terms.contracts_of(tenant, window)
    if any(contract.plan is not None for contract, _, _ in contracts):
        return source.cells(window, tenant)
    borders = [card.since_ns for card in terms.cards]
    borders.extend(start_ns for _, start_ns, _ in contracts)
    found: dict[UsageKey, int] = {}
    for part in cut(window, borders):
        found.update(source.sums(part, tenant))
    return found


def priced_sums(
    source: Source, window: Window, terms: Terms, *, tags: bool = False
) -> Iterator[tuple[UsageKey, int]]:
    """What was held in `window`, in as few cells as there are versions of the card, and of what
    capacity costs."""
    for part in cut(window.pair, [one.since_ns for one in (*terms.cards, *terms.costs)]):
        yield from source.sums(part, tags=tags).items()


def cut(window: tuple[int, int], borders: Iterable[int]) -> list[tuple[int, int]]:
    """`window` in parts, at each border that is in it."""
    cuts = sorted({window[0], *(at for at in borders if window[0] < at < window[1])})
    return list(zip(cuts, [*cuts[1:], window[1]], strict=True))
