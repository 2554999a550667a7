# SPDX-License-Identifier: Apache-2.0
"""Whose quota it is that others have borrowed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leased.collector.api.views import Views
from leased.collector.fleet import Fleet
from leased.collector.governance.lending import lent
from leased.collector.governance.policies import default_lending
from leased.collector.governance.quotas import Limit, Per, Quota, Source, Terms, effective
from leased.collector.node_view import NodeView
from leased.terms.event import Admitted
from leased.terms.identity import TenantId
from leased.terms.policy import CapacityLimit, Mode, Policy, TenantLimits
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.economics_history import History, subject

CPU = ResourceKind.CPU
AMOUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1 << 60), max_size=6)


@given(AMOUNTS, AMOUNTS)
def test_nobody_lends_more_than_is_idle_and_no_loan_is_told_twice(
    borrowed: dict[str, int], idle: dict[str, int]
) -> None:
    found = lent(borrowed, idle)
    assert all(0 < amount <= idle[tenant] for tenant, amount in found.items())
    assert sum(found.values()) <= sum(borrowed.values())
    if not borrowed.keys() & idle.keys():
        assert sum(found.values()) == min(sum(borrowed.values()), sum(idle.values()))


def test_by_what_is_idle_and_never_to_itself() -> None:
    assert lent({"b": 6}, {"x": 20, "y": 10}) == {"x": 4, "y": 2}
    assert lent({"b": 6}, {"b": 100, "y": 10}) == {"y": 6}
    assert lent({"b": 6}, {"b": 100}) == {}


def a_fleet() -> Fleet:
    """Ten cores on each of two hosts; beta has eight on the first, of which three are borrowed."""
    fleet = Fleet()
    for number, count in enumerate((8, 0)):
        history = History()
        history.start()
        history.inventory(Allotment("cpu:0", CPU, None, 10_000))
        if count:
            whose = subject(Allotment("cpu:0", CPU, None, count * 1000), tenant="beta")
            history.allocate(1, whose, 10**12)
            terms = (0, 0, 0, ((CPU, 3_000),))
            history.seal(Admitted(*history._lease(1, history.boot_ns), *terms))
        log_id = f"{number:032x}"
        view = fleet.logs[log_id] = NodeView(log_id)
        view.node = view.name = f"host-{number}"
        for record in history.records:
            view.apply(*record)
    return fleet


def test_who_lends_sees_what_others_have_of_its_own() -> None:
    fleet = a_fleet()
    rows = {
        "acme": Limit(4_000, Source.BASE, per=Per.FLEET, lends=True),
        "idle": Limit(1_000, Source.BASE, per=Per.NODE, lends=True),
        "mean": Limit(90_000, Source.BASE, per=Per.FLEET),
        "beta": Limit(5_000, Source.BASE, per=Per.FLEET, lends=True),
    }
    views = Views(
        lambda: fleet,
        lambda tenant, now: {"cpu_cores": rows[tenant]} if tenant in rows else {},
        lambda: sorted(rows),
        Policy,
    )
    told = {tenant: views.usage_of(tenant, 0).lent for tenant in rows}
    # Idle are four of acme's and one of idle's on each of two hosts.
    assert told == {"acme": {"cpu_cores": 2}, "idle": {"cpu_cores": 1}, "mean": {}, "beta": {}}
    assert views.usage_of("beta", 0).borrowed == {"cpu_cores": 3}


def test_a_hard_quota_lends_unless_it_says_otherwise() -> None:
    def lends(**terms: object) -> bool:
        quota = Quota("acme", {"cpu_cores": 1}, Terms(**terms))
        return effective({}, quota, (), (), 0)["cpu_cores"].lends

    assert lends() and not lends(lend=False) and not lends(mode=Mode.SOFT)
    named = TenantLimits(capacities=(CapacityLimit(CPU, 5), CapacityLimit(0, 5, lend=False)))
    ground = Policy(tenants=((TenantId("acme"), named),))
    assert default_lending(ground, "acme") == {"cpu_cores"}
    assert default_lending(ground, "beta") == frozenset()
    found = effective({"cpu_cores": 5}, Quota("acme"), (), (), 0, frozenset(("cpu_cores",)))
    assert found["cpu_cores"].lends
