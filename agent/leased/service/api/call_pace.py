# SPDX-License-Identifier: Apache-2.0
"""How often a tenant may call, whatever it calls.

Rule: whoever calls more often than `api_rate` says is told until when, and the call is not looked
at. What gives something back (Release, Done) is never refused, nor is what operators ask through
their own socket. A connection is not closed for it: the limits on bytes and connections are there
for that.

Does not limit requests for leases as such (`submit_rate`: the lessor does), and what is counted is
not sealed: a restart forgives. Who is held back is on record by `dispatch`, now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from leased.lessor.pace import Pace
from leased.lessor.quota import Limits, TenantBook
from leased.terms.command import Caller
from leased.terms.reply import Refusal, RefusalReason
from leased.wire import parameters

GIVING_BACK: Final = frozenset({parameters.Release, parameters.Done})


class CallPace:
    """Counts the calls of every tenant. `boot_ns` reads the clock: only for a call that counts."""

    def __init__(self, boot_ns: Callable[[], int]) -> None:
        self._boot_ns = boot_ns
        self._pace = Pace()

    def refusal(self, book: TenantBook, caller: Caller, asked: type) -> Refusal | None:
        """Why `caller` has to wait with this call by the limits of `book`; None: it was counted."""
        if caller.operator or asked in GIVING_BACK:
            return None
        one: Limits | None = book.limits(caller.tenant)
        while one is not None:  # its own, then those that it shares
            rate = one.api_rate
            if rate is not None:
                retry_ns = self._pace.take(one.holder, rate, self._boot_ns())
                if retry_ns is not None:
                    rule = f"{one.name}.api_rate"
                    reason = RefusalReason.API_RATE
                    return Refusal(reason, "calls", rate.count, rate.count, 1, retry_ns, rule)
            one = one.group
        return None
