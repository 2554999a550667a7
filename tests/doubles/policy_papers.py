# SPDX-License-Identifier: Apache-2.0
"""Papers for the policy notebook: the usual ones, how others are drawn, and what requests ask for;
and each paper as the document that says the same.

Rule: whatever is drawn is a policy that can be in force on the notebook's pool.

Does not judge anything (`policy_notebook`).
"""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st

from leased.terms.identity import TenantId
from leased.terms.lease import Level
from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Allocation,
    Borrowing,
    CapacityLimit,
    Group,
    LimitSet,
    Mode,
    Policy,
    Preemption,
    Schedule,
    Strategy,
    TenantLimits,
)
from leased.terms.resource import ResourceKind
from tests.doubles.desk import PAGE
from tests.doubles.policy_notebook import Paper

NAMES = ("ann", "bob", "cat", "dan", "eve")
BASE = Paper(
    hard={"ann": 10, "bob": 8},
    soft={"cat": (6, 7, 20)},
    burst={"dan": (4, 8, 15)},
    other=5,
    leases={"ann": 4, "cat": 4, "dan": 4, "eve": 3},
    concurrent={"bob": 2, "eve": 3},
    group=(("ann", "bob"), 14, 5),
    night=(("ann", 12),),
)
PAPERS = (
    BASE,
    BASE._replace(group=None, borrow_pm=500, hard={"ann": 8, "bob": 6}),
    BASE._replace(hard={"ann": 4, "bob": 3}, soft={"cat": (3, 4, 20)}, group=None),
    BASE._replace(group=None, share_pm=300, preempts=False, night=()),
    BASE._replace(group=None, reserved=(("ann", 8), ("bob", 4)), night=()),
)
"""As it is; lending; lowered; divided by weights, with a ceiling; with reservations."""

sizes = st.integers(1, 14)
limits = st.fixed_dictionaries({"ann": sizes, "bob": sizes})
bearing = st.tuples(st.integers(1, 8), st.integers(1, 4), st.sampled_from([5, 20, 60])).map(
    lambda drawn: (drawn[0], drawn[0] + drawn[1], drawn[2])
)
"""A limit, a ceiling above it, and for how long, in seconds."""

plain = st.builds(
    BASE._replace,
    hard=limits,
    soft=st.fixed_dictionaries({"cat": bearing}),
    burst=st.fixed_dictionaries({"dan": bearing}),
    other=sizes,
    group=st.none() | st.tuples(st.just(("ann", "bob")), st.integers(4, 20), st.integers(1, 8)),
    night=st.just(()) | sizes.map(lambda pages: (("ann", pages),)),
    cut_grace_s=st.sampled_from([0, 5, 30]),
    runtime_s=st.sampled_from([0, 10, 60]),
    preempts=st.booleans() | st.just(True),
)
ungrouped = plain.map(lambda paper: paper._replace(group=None))
lending = st.builds(
    lambda paper, much, grace_s: paper._replace(borrow_pm=much, reclaim_grace_s=grace_s),
    ungrouped,
    st.sampled_from([100, 500, 1000]),
    st.sampled_from([1, 10, 60]),
)
dividing = st.builds(
    lambda paper, most: paper._replace(share_pm=most, night=()),
    ungrouped,
    st.sampled_from([100, 300, 500]),
)
reserving = st.builds(
    lambda paper, ann, bob: paper._replace(reserved=(("ann", ann), ("bob", bob)), night=()),
    ungrouped,
    st.integers(1, 12),
    st.integers(1, 12),
)

pick = st.integers(0, 10**6)
who = st.sampled_from(NAMES)
levels = st.sampled_from(list(Level))
seconds = st.sampled_from([1, 3, 5, 10, 15, 25])
requests = st.tuples(
    who,
    st.integers(1, 5) | st.integers(1, 13),
    levels,
    st.sampled_from([10, 30, 90, 300]),
    st.sampled_from([0, 20, 200]),
    st.sampled_from([3, 30, 100]),
)
"""Who asks for how many pages, at which level, for how long, and how long they wait and take to
leave, in seconds.
"""
crowds = st.lists(requests, min_size=3, max_size=8)


def written(paper: Paper) -> Policy:
    """The paper as a document."""

    def limits(name: str, capacity: CapacityLimit) -> TenantLimits:
        night = tuple(
            Schedule("night", "0 0 * * *", 3600 * NS_PER_S, LimitSet(capacities=(_mem(pages),)))
            for whose, pages in paper.night
            if whose == name
        )
        return TenantLimits(
            leases_max=paper.leases.get(name),
            concurrent_max=paper.concurrent.get(name),
            capacities=(capacity,),
            level_max=Level.CRITICAL,
            grace_ns_cut=paper.cut_grace_s * NS_PER_S,
            group="crew" if paper.group is not None and name in paper.group[0] else None,
            schedules=night,
        )

    rows = {name: _mem(pages) for name, pages in paper.hard.items()}
    for name, (limit, ceiling, borne_s) in paper.soft.items():
        rows[name] = msgspec.structs.replace(
            _mem(limit),
            mode=Mode.SOFT,
            overage_pm=-(-1000 * (ceiling - limit) // limit),
            overage_ns=borne_s * NS_PER_S,
        )
    for name, (limit, ceiling, burst_s) in paper.burst.items():
        rows[name] = msgspec.structs.replace(
            _mem(limit),
            mode=Mode.BURST,
            burst_capacity=ceiling * PAGE,
            burst_ns=burst_s * NS_PER_S,
        )
    groups = ()
    if paper.group is not None:
        _, pages, leases = paper.group
        groups = (("crew", Group(together=LimitSet(leases, capacities=(_mem(pages),)))),)
    return Policy(
        borrowing=Borrowing(
            enabled=bool(paper.borrow_pm),
            limit_pm=paper.borrow_pm or 500,
            grace_ns=paper.reclaim_grace_s * NS_PER_S,
        ),
        preemption=Preemption(
            enabled=paper.preempts, runtime_ns_min_standard=paper.runtime_s * NS_PER_S
        ),
        allocations=allocated(paper),
        groups=groups,
        tenant_default=TenantLimits(
            leases_max=paper.leases["eve"],
            concurrent_max=paper.concurrent["eve"],
            capacities=(_mem(paper.other),),
            level_max=Level.CRITICAL,
            grace_ns_cut=paper.cut_grace_s * NS_PER_S,
        ),
        tenants=tuple((TenantId(name), limits(name, row)) for name, row in rows.items()),
    )


def allocated(paper: Paper) -> tuple[Allocation, ...]:
    """How the paper divides the pool."""
    allocations = []
    if paper.share_pm:
        fair = Strategy.FAIR_SHARE
        allocations.append(
            Allocation(ResourceKind.MEM, strategy=fair, min_share_pm=0, max_share_pm=paper.share_pm)
        )
    if paper.reserved:
        reserved = tuple((TenantId(name), pages * PAGE) for name, pages in paper.reserved)
        allocations.append(
            Allocation(
                ResourceKind.MEM,
                strategy=Strategy.RESERVATION,
                reservations=reserved,
                borrow_idle=False,
            )
        )
    return tuple(allocations)


def _mem(pages: int) -> CapacityLimit:
    return CapacityLimit(ResourceKind.MEM, pages * PAGE)
