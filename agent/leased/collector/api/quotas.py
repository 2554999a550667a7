# SPDX-License-Identifier: Apache-2.0
"""Quotas over HTTP: list, show, change, schedule.

Rule: a change is judged against what is in force at that moment, must compile into a policy that
nodes would take, and is sealed in the same transaction. What is shown under an entity tag is made
from the register alone, so that two readers of the same state have the same tag.

Does not speak HTTP (`application`) and does not hand policies out (`issuer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from leased.collector.api import forms
from leased.collector.api.meanings import read_duration, read_instant, read_terms
from leased.collector.api.problems import Problem
from leased.collector.api.quota_answers import (
    ChangeSeen,
    ChangesSeen,
    OverrideSeen,
    QuotaRow,
    QuotaSeen,
    QuotasSeen,
    ScheduleSeen,
    SchedulesSeen,
    number_before,
    page,
    quantities,
    terms_seen,
)
from leased.collector.api.routes import Answer, Call
from leased.collector.governance import windows
from leased.collector.governance.divider import openings_at
from leased.collector.governance.policies import (
    compile_policy,
    default_lending,
    default_limits,
    sayings,
)
from leased.collector.governance.quotas import (
    RESERVED,
    Limit,
    Override,
    Quota,
    Schedule,
    effective,
)
from leased.collector.governance.register import Register, Sealed
from leased.ports import Entropy
from leased.terms.policy import Policy
from leased.terms.quantity import print_instant

_ENCODER = msgspec.json.Encoder(decimal_format="number")
SCHEDULES_PER_TENANT_MAX = 64
OVERRIDES_PER_TENANT_MAX = 256
TOP = "/v1/governance/quotas"


class Quotas:
    """The handlers. `known` are tenants that the fleet's records name."""

    def __init__(
        self,
        *,
        register: Register,
        writer: Register,
        ground: Callable[[], Policy],
        known: Callable[[], Sequence[str]],
        entropy: Entropy,
        tell: Callable[[Sealed], object],
        newest_ns: Callable[[], int],
    ) -> None:
        """`tell` is told of every change, in its transaction; `newest_ns` is when the newest record
        of any node was sealed: what is over is not forgotten by a clock that is ahead of that."""
        self._register, self._writer, self._ground = register, writer, ground
        self._tell, self._newest_ns = tell, newest_ns
        self._known, self._entropy = known, entropy

    # -- reading -----------------------------------------------------------------------------------

    def tenants(self) -> list[str]:
        """Everybody that has a quota, a row in the operator's document, or ever had a lease."""
        named = (tenant for tenant, _ in self._ground().tenants)
        return sorted({*self._register.tenants(), *self._known(), *named})

    def limits(
        self, tenant: str, now_ns: int, register: Register | None = None
    ) -> dict[str, Limit]:
        """What is in force for a tenant."""
        source = register or self._register
        return effective(
            default_limits(self._ground(), tenant),
            source.quota(tenant) or Quota(tenant),
            source.overrides(tenant),
            openings_at(source.schedules(tenant), now_ns),
            now_ns,
            default_lending(self._ground(), tenant),
        )

    def list(self, call: Call) -> Answer:
        """Every tenant that the caller may see."""
        seen = [tenant for tenant in self.tenants() if call.caller.sees(tenant)]
        shown, cursor = page(seen, call.query.limit, call.query.cursor, lambda tenant: tenant)
        rows = [self._row(tenant, call.now_ns) for tenant in shown]
        return Answer(QuotasSeen(rows, print_instant(call.now_ns), cursor))

    def _row(self, tenant: str, now_ns: int) -> QuotaRow:
        quota = self._register.quota(tenant) or Quota(tenant)
        limits = {key: one.raw for key, one in self.limits(tenant, now_ns).items()}
        return QuotaRow(tenant, quantities(limits), terms_seen(quota.terms), quota.revision)

    def show(self, call: Call) -> Answer:
        """One tenant."""
        tenant = call.path.tenant
        call.caller.require_tenant(tenant)
        if tenant not in self.tenants():
            raise unknown(tenant)
        seen = self._document(self._register, tenant, call.now_ns)
        return Answer(seen, tag=tag_of(seen))

    def _document(self, register: Register, tenant: str, now_ns: int) -> QuotaSeen:
        quota = register.quota(tenant) or Quota(tenant)
        limits, grace_ns = self.limits(tenant, now_ns, register), quota.grace_until_ns
        return QuotaSeen(
            tenant=tenant,
            quotas=quantities({key: one.raw for key, one in limits.items()}),
            policy=terms_seen(quota.terms),
            base=quantities(quota.limits),
            sources={key: one.source for key, one in limits.items()},
            per={key: one.per for key, one in limits.items()},
            overrides=[
                OverrideSeen.of(one)
                for one in register.overrides(tenant)
                if one.expires_ns > now_ns
            ],
            scheduled=[ScheduleSeen.of(one, now_ns) for one in register.schedules(tenant)],
            revision=quota.revision,
            grace_until=None if grace_ns is None else print_instant(grace_ns),
        )

    # -- changing ----------------------------------------------------------------------------------

    def patch(self, call: Call) -> Answer:
        """Change the base, or lay an override over it."""
        tenant, form, now_ns = call.path.tenant, call.body, call.now_ns
        call.caller.require_tenant(tenant)
        before = self._document(self._writer, tenant, now_ns)
        call.require_match(tag_of(before), is_there=tenant in self.tenants())
        found = forms.given(form)
        if not found and form.policy is msgspec.UNSET:
            raise Problem(422, "Name at least one limit, or a policy.")
        if form.expires_at is not None and form.policy is not msgspec.UNSET:
            detail = "Limits end by themselves, what they mean does not: send the policy by itself."
            raise Problem(422, detail, parameter="policy")
        change_id = self._entropy().hex()
        was = self.limits(tenant, now_ns, self._writer)
        grace_ns = read_duration(form.grace_period, "grace_period") or 0
        quota = self._writer.quota(tenant) or Quota(tenant)
        expires_ns = None
        if form.expires_at is not None:
            expires_ns = read_instant(form.expires_at, "expires_at")
        in_force = expires_ns is None or expires_ns > now_ns
        lowered = in_force and _lowers(was, found)
        quota = msgspec.structs.replace(
            quota,
            terms=quota.terms if form.policy is msgspec.UNSET else read_terms(form.policy),
            grace_ns=grace_ns if lowered else quota.grace_ns,
            grace_until_ns=now_ns + grace_ns if lowered else quota.grace_until_ns,
            revision=quota.revision + 1,
        )
        left: msgspec.Struct
        if expires_ns is not None:
            left = self._override(call, change_id, forms.fields(found), expires_ns)
        else:
            quota = left = msgspec.structs.replace(quota, limits=_laid_over(quota.limits, found))
        self._writer.put_quota(quota)
        action = "quota.override" if expires_ns is not None else "quota.change"
        self._seal(call, change_id, action, tenant, form.reason, left)
        self._must_compile(now_ns)
        seen = msgspec.structs.replace(
            self._document(self._writer, tenant, now_ns),
            change_id=change_id,
            effective_at=print_instant(now_ns),
        )
        if expires_ns is not None:
            # What counts when this ends, schedules apart: by then the base may be another.
            below = {**default_limits(self._ground(), tenant), **quota.limits}
            passed = "It has ended already: this is on record, and was never in force."
            seen = msgspec.structs.replace(
                seen,
                expires_at=print_instant(expires_ns),
                reverts_to=quantities({k: raw for k, raw in below.items() if k in found}),
                note=passed if expires_ns <= now_ns else None,
            )
        return Answer(seen, tag=tag_of(seen))

    def _override(
        self, call: Call, change_id: str, limits: dict[str, int], expires_ns: int
    ) -> Override:
        tenant = call.path.tenant
        if len(self._writer.overrides(tenant)) >= OVERRIDES_PER_TENANT_MAX:
            raise Problem(409, f"{tenant} has {OVERRIDES_PER_TENANT_MAX} overrides already.")
        override = Override(
            id=change_id,
            tenant=tenant,
            limits=limits,
            reason=call.body.reason,
            created_ns=call.now_ns,
            expires_ns=expires_ns,
            actor=call.caller.name,
        )
        self._writer.add_override(override)
        return override

    def drop_override(self, call: Call) -> Answer:
        """End an override before its time."""
        tenant, id = call.path.tenant, call.path.id
        call.caller.require_tenant(tenant)
        if not any(one.id == id for one in self._writer.overrides(tenant)):
            raise Problem(404, f"{tenant} has no override {id}.", parameter="id")
        self._writer.remove("overrides", id)
        self._seal(call, self._entropy().hex(), "quota.override.end", tenant, f"ended {id}", None)
        return Answer(status=204)

    # -- schedules ---------------------------------------------------------------------------------

    def schedules(self, call: Call) -> Answer:
        """Every schedule of the tenants that the caller may see."""
        seen = [one for one in self._register.schedules() if call.caller.sees(one.tenant)]
        shown, cursor = page(
            sorted(seen, key=lambda one: one.id),
            call.query.limit,
            call.query.cursor,
            lambda one: one.id,
        )
        rows = [ScheduleSeen.of(one, call.now_ns) for one in shown]
        return Answer(SchedulesSeen(rows, print_instant(call.now_ns), cursor))

    def schedule(self, call: Call) -> Answer:
        """One schedule."""
        return Answer(ScheduleSeen.of(self._find(self._register, call), call.now_ns))

    def _find(self, register: Register, call: Call) -> Schedule:
        for one in register.schedules():
            if one.id == call.path.id and call.caller.sees(one.tenant):
                return one
        raise Problem(404, f"There is no schedule {call.path.id}.", parameter="id")

    def add_schedule(self, call: Call) -> Answer:
        """Take a schedule in."""
        form = call.body
        call.caller.require_tenant(form.tenant)
        if form.tenant == RESERVED:
            detail = (
                "No tenant of a quota is called that: it is the path of schedules. Name another."
            )
            raise Problem(422, detail, parameter="tenant")
        try:
            windows.check(form.schedule, form.timezone)
        except ValueError as error:
            where, _, why = str(error).partition(": ")
            raise Problem(422, why + ".", parameter=where) from None
        limits = forms.fields(forms.given(form.quotas))
        duration_ns = read_duration(form.duration, "duration") or 0
        if not limits or duration_ns <= 0:
            raise Problem(422, "Name at least one limit, and a duration above zero.")
        if len(self._writer.schedules(form.tenant)) >= SCHEDULES_PER_TENANT_MAX:
            raise Problem(409, f"{form.tenant} has {SCHEDULES_PER_TENANT_MAX} schedules already.")
        schedule = Schedule(
            id=self._entropy().hex(),
            tenant=form.tenant,
            cron=form.schedule,
            timezone=form.timezone,
            duration_ns=duration_ns,
            limits=limits,
            created_ns=call.now_ns,
            actor=call.caller.name,
            reason=form.reason,
        )
        self._writer.add_schedule(schedule)
        self._seal(call, schedule.id, "schedule.add", form.tenant, form.reason, schedule)
        self._must_compile(call.now_ns)
        location = {"Location": f"/v1/governance/quotas/scheduled/{schedule.id}"}
        return Answer(ScheduleSeen.of(schedule, call.now_ns), status=201, headers=location)

    def drop_schedule(self, call: Call) -> Answer:
        """Take a schedule away; its window, if one is open, closes."""
        schedule = self._find(self._writer, call)
        self._writer.remove("schedules", schedule.id)
        reason = f"ended {schedule.id}"
        self._seal(call, self._entropy().hex(), "schedule.end", schedule.tenant, reason, None)
        return Answer(status=204)

    def changes(self, call: Call) -> Answer:
        """The sealed changes, the newest first."""
        tenant = call.query.tenant
        if tenant is None:
            call.caller.require_all()
        else:
            call.caller.require_tenant(tenant)
        before = number_before(call.query.cursor)
        found = self._register.changes(before=before, count=call.query.limit, tenant=tenant)
        full = len(found) == call.query.limit and found[-1].change.sequence > 0
        following = str(found[-1].change.sequence) if full else None
        count, head = self._register.head()
        rows = [ChangeSeen.of(one) for one in found]
        return Answer(ChangesSeen(rows, count, head.hex(), print_instant(call.now_ns), following))

    # -- inside ------------------------------------------------------------------------------------

    def _seal(
        self,
        call: Call,
        id: str,
        action: str,
        tenant: str,
        reason: str,
        left: msgspec.Struct | None,
    ) -> None:
        self._writer.sweep(min(call.now_ns, self._newest_ns()))
        self._tell(
            self._writer.record(
                id=id,
                wall_ns=call.now_ns,
                actor=call.caller.name,
                action=action,
                tenant=tenant,
                reason=reason,
                left=left,
            )
        )

    def _must_compile(self, now_ns: int) -> None:
        """Raises ConfigError if nodes would not take what would come of this."""
        writer = self._writer
        said = sayings(writer.quotas(), writer.overrides(), writer.schedules(), now_ns)
        compile_policy(self._ground(), said)


def unknown(tenant: str) -> Problem:
    """Nobody has heard of a tenant."""
    detail = (
        f"Nothing was ever said about {tenant}: PATCH its quota, or see {TOP} for who there is."
    )
    return Problem(404, detail, parameter="tenant")


def tag_of(seen: QuotaSeen) -> str:
    """The entity tag of what is in force: the same before a change's answer as after it."""
    plain = msgspec.structs.replace(
        seen,
        change_id=None,
        effective_at=None,
        expires_at=None,
        reverts_to=None,
        note=None,
        scheduled=[msgspec.structs.replace(one, next_start=None) for one in seen.scheduled],
    )
    return f'"{hashlib.sha256(_ENCODER.encode(plain)).hexdigest()[:32]}"'


def _lowers(was: dict[str, Limit], found: dict[str, int | None]) -> bool:
    """Whether a change takes something away; a limit where there was none does."""
    return any(
        raw is not None and (key not in was or raw < was[key].raw) for key, raw in found.items()
    )


def _laid_over(limits: dict[str, int], found: dict[str, int | None]) -> dict[str, int]:
    merged = {**limits, **found}
    return {key: raw for key, raw in merged.items() if raw is not None}
