# SPDX-License-Identifier: Apache-2.0
"""Throttle: tenants that ask for leases faster than they may, and those a limit slows down.

Rule: whoever asks too fast is told when to ask again, and what it asked for is not looked at; so a
storm of requests costs the node next to nothing. One of its refusals in half a minute is sealed, so
that it is on record, and the fleet's to know, who is held back. What is remembered is bounded, and
not sealed: a restart forgives.

Does not count (`pace`) and does not judge (`admission`).
"""

from __future__ import annotations

from leased.lessor.admission import Admission
from leased.lessor.pace import Pace
from leased.terms.command import Acquire
from leased.terms.identity import TenantId
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Refusal, RefusalReason

THROTTLE_NS = NS_PER_S
"""How long a throttled tenant's next requests are refused without being looked at."""

TOLD_NS = 30 * NS_PER_S
"""How often it is put on record that a tenant is held back. The collector believes it for longer
(`collector.api.views.THROTTLED_NS`), so it does not come and go."""

KEPT_MAX = 4096


class Throttle:
    """Who has to slow down, under the policy of `admission`."""

    __slots__ = ("_admission", "_pace", "_told", "_until")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._pace = Pace()
        self._until: dict[TenantId, int] = {}
        self._told: dict[TenantId, int] = {}

    def refusal(self, acquire: Acquire, now_ns: int) -> Refusal | None:
        """The refusal of a tenant that asks faster than it may."""
        tenant = acquire.caller.tenant
        limits = self._admission.book.limits(tenant)
        until_ns = self._until.get(tenant) if self._until else None
        if until_ns is not None:
            if now_ns < until_ns:
                return Refusal(RefusalReason.THROTTLED, "requests", 0, 0, 1, until_ns, limits.name)
            del self._until[tenant]
        for one in limits.chain():
            rate = one.submit_rate
            if rate is not None:
                retry_ns = self._pace.take(one.holder, rate, now_ns)
                if retry_ns is not None:
                    rule = f"{one.name}.submit_rate"
                    reason = RefusalReason.SUBMIT_RATE
                    return Refusal(reason, "requests", rate.count, rate.count, 1, retry_ns, rule)
        return None

    def is_news(self, tenant: TenantId, now_ns: int) -> bool:
        """Whether this refusal of a tenant is to be sealed; the next ones are not, for a while."""
        if now_ns < self._told.get(tenant, now_ns):
            return False
        if len(self._told) >= KEPT_MAX:
            self._told = {one: at_ns for one, at_ns in self._told.items() if at_ns > now_ns}
        self._told[tenant] = now_ns + TOLD_NS
        return True

    def slow(self, tenant: TenantId, now_ns: int) -> None:
        """Refuse what a tenant asks for from now on, for a while."""
        if len(self._until) >= KEPT_MAX:
            self._until = {
                tenant: until_ns for tenant, until_ns in self._until.items() if until_ns > now_ns
            }
        self._until[tenant] = now_ns + THROTTLE_NS
