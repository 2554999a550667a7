# SPDX-License-Identifier: Apache-2.0
"""History: since when there is a fleet whose use can be reckoned.

Rule: it begins with the first record, unless there was nothing for a month or two after that, held
or not: what was before is no fleet of today. A host that has no clock while it is off seals its
first records in 1970, or when its system was made.

Does not say how a fleet was used.
"""

from __future__ import annotations

from typing import Final

from leased.collector.accounts.accounts import Accounts
from leased.collector.accounts.periods import Window
from leased.terms.moment import DAY_NS, HOUR_NS

NOTHING_NS: Final = 28 * DAY_NS


def begun_ns(accounts: Accounts) -> int:
    """Its first instant, or the hour of that. Raises NoData."""
    return accounts.once("begun", _begun_ns)


def since_begun(accounts: Accounts, window: Window) -> Window:
    """What of `window` there was a fleet in, by whole hours. Raises NoData."""
    begin_ns = begun_ns(accounts) // HOUR_NS * HOUR_NS
    return Window(min(max(window.from_ns, begin_ns), window.to_ns), window.to_ns)


def _begun_ns(accounts: Accounts) -> int:
    source = accounts.source
    first_ns, end_ns = source.first_ns(), (accounts.now_ns() // DAY_NS + 1) * DAY_NS
    known_ns = None
    while first_ns < end_ns:
        begin_ns = max(first_ns // DAY_NS * DAY_NS, end_ns - NOTHING_NS)
        if source.sums((begin_ns, end_ns)):
            known_ns = begin_ns
        elif known_ns is not None:
            for step_ns in (DAY_NS, HOUR_NS):
                while not source.sums((known_ns, known_ns + step_ns)):
                    known_ns += step_ns
            return known_ns
        end_ns = begin_ns
    return first_ns
