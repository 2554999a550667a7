# SPDX-License-Identifier: Apache-2.0
"""What is certainly spare of a budget never says yes where the budgets themselves say no.

Rule: two ledgers are told the same; one forgets before each question what was spare, so that every
budget of it is looked at.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leased.lessor.budget import Prices, budget_overrun
from leased.lessor.ledger import Ledger, Meter, keyed, rows_of
from leased.lessor.quota import TenantBook
from leased.terms import event as events
from leased.terms.identity import BootId, CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, Priority, Subject, Trust
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Budget, Group, LimitSet, Period, Policy, Price, TenantLimits
from leased.terms.resource import UNIT, Allotment, ResourceKind, TierKind

T, MATE = TenantId("t"), TenantId("mate")
MEM, CPU = ResourceKind.MEM, ResourceKind.CPU

budgets = st.lists(
    st.one_of(
        st.builds(
            Budget,
            st.sampled_from(Period),
            st.sampled_from((MEM, CPU)),
            st.sampled_from((None, TierKind.DRAM)),
            st.integers(1, 30),
        ),
        st.builds(Budget, st.sampled_from(Period), cost_nano=st.integers(1, 5)),
    ),
    min_size=1,
    max_size=2,
).map(tuple)
prices = st.lists(
    st.sampled_from(
        [
            Price(kind, -1, int(Priority.STANDARD), one * UNIT[kind] * NS_PER_S * 100_000)
            for kind in (MEM, CPU)
            for one in (0, 1, 5)
        ]
    ),
    max_size=2,
)
"""A tenth or half of 10^-9 of the currency for each ns of a unit's smallest part."""

steps = st.lists(
    st.tuples(
        st.sampled_from(("ask", "ask", "ask", "end", "period", "closed")),
        st.sampled_from((T, MATE)),
        st.sampled_from(((MEM, TierKind.DRAM), (CPU, None))),
        st.integers(1, 4),
        st.integers(1, 9),
    ),
    min_size=8,
    max_size=30,
)


def _lease(tenant: TenantId, what: tuple[ResourceKind, TierKind | None], capacity: int) -> Lease:
    allotment = Allotment("x", what[0], what[1], capacity)
    whose = (tenant, 1, 1, "", None, None, Priority.STANDARD, Trust.CONFINED)
    subject = Subject(*whose, (allotment,), b"")
    ids = LeaseId(b"l" * 16), CommandId(b"c" * 16)
    return Lease(*ids, subject, LeaseState.ACTIVE, BootId(b"b" * 16), 0, 0, 1, 0, 0, 0, 0)


def _twins() -> tuple[Ledger, Ledger]:
    quick, slow = Ledger(), Ledger()
    for ledger in (quick, slow):
        for tenant in (T, MATE):
            ledger.set(_metered(tenant, Meter()))
    return quick, slow


def _metered(tenant: TenantId, meter: Meter) -> events.Metered:
    return events.Metered(EventId(b"e" * 16), tenant, rows_of(meter))


@given(budgets, st.one_of(st.just(()), budgets), prices, steps)
def test_what_is_spare_is_never_more_than_what_is_left(own, shared, costs, history):
    policy = Policy(
        tenant_default=LimitSet(budgets=own),
        groups=(("g", Group(together=LimitSet(budgets=shared))),),
        tenants=tuple((one, TenantLimits(group="g")) for one in (T, MATE)),
    )
    book, by = TenantBook(policy), Prices(costs)
    quick, slow = twins = _twins()
    live: list[tuple[Lease, int]] = []
    for now, (what, tenant, kind, capacity, ns) in enumerate(history, 10):
        lease = _lease(tenant, kind, capacity)
        more = {key: size * ns for key, size in keyed(lease.subject)}
        slow.meter(tenant).spare_by = (None, None)
        limits = book.limits(tenant)
        said, looked = [budget_overrun(limits, book.group_of, one, by, more) for one in twins]
        assert said == looked
        live = [(one, until) for one, until in live if until > now]
        began = events.PeriodBegan(EventId(b"e" * 16), Period.DAY.value, now, now)
        ended = live.pop() if what == "end" and live else None
        for ledger in twins:
            if what == "ask" and said is None:
                ledger.change(lease, now, now + ns)
            elif ended is not None:
                ledger.change(*ended, max(now, ended[1] - ns))
            elif what == "closed":
                ledger.set(_metered(tenant, ledger.meter(tenant)))
            elif what == "period":
                ledger.begin(began, live)
        if what == "ask" and said is None:
            live.append((lease, now + ns))
    for tenant in (T, MATE):
        assert rows_of(quick.meter(tenant)) == rows_of(slow.meter(tenant))
