# SPDX-License-Identifier: Apache-2.0
"""Which limit a refusal asks for more of: that of its kind, and where the record is of a release
that did not say, those that its number fits."""

from __future__ import annotations

import pytest

from leased.collector.governance.divider import Divider, Plan
from leased.collector.governance.policies import Saying
from leased.collector.governance.quotas import Quota
from leased.collector.governance.shares import Given, Shares
from leased.collector.node_view import NodeView
from leased.terms import event as events
from leased.terms.identity import CommandId, EventId, TenantId
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind
from tests.doubles.economics_history import History, boot
from tests.doubles.fleet_archive import gpus
from tests.doubles.fleets import fleet_of

HOUR_NS = 3_600 * NS_PER_S
YEARS_NS = 10 * 365 * 24 * HOUR_NS
GPUS = gpus(8)
LIMITS = {("acme", "gpus"): 8000, ("acme", "cpu_cores"): 8000}


class Anything:
    """Shares in which any limit may have had any number."""

    def between(self, node: str, tenant: str, key: str) -> tuple[int, int]:
        del node, tenant, key
        return 0, 1 << 40


def wanted(*kinds: ResourceKind | None) -> set[str]:
    """The keys that are wanted more of on a node that refused one request of each."""
    view = NodeView("log")
    view._totals = {ResourceKind.GPU: 64_000, ResourceKind.CPU: 64_000}
    for sequence, kind in enumerate(kinds):
        head = (EventId(bytes(16)), TenantId("acme"), 0, CommandId(bytes(16)))
        reason = int(RefusalReason.TENANT_CAPACITY)
        refused = events.Refused(*head, reason, 4000, 4000, 1000, kind)
        view.apply(sequence, refused, Moment(boot(1), sequence, NS_PER_S))
    divider = Divider(Anything(), lambda: None, NS_PER_S)  # type: ignore[arg-type]
    divider._plan = Plan({}, LIMITS, None)
    return {
        key
        for (tenant, reason, kind), want in view.wants.items()
        for key in divider._wanted(view, tenant, (reason, kind), want)
    }


def test_a_refusal_asks_for_its_kind_and_an_old_one_for_what_it_may_have_been() -> None:
    assert wanted(ResourceKind.GPU) == {"gpus"}
    assert wanted(ResourceKind.CPU) == {"cpu_cores"}
    assert wanted(ResourceKind.GPU, ResourceKind.CPU) == {"gpus", "cpu_cores"}
    assert wanted(ResourceKind.MEM) == set()
    assert wanted(None) == {"gpus", "cpu_cores"}


@pytest.mark.parametrize(("ahead_ns", "back_ns"), [(0, 0), (YEARS_NS, 0), (YEARS_NS, YEARS_NS)])
def test_who_asked_in_vain_an_hour_ago_has_given_up_whatever_the_clock_says(
    ahead_ns: int, back_ns: int
) -> None:
    """A node that was ten years ahead kept what was asked of it once from all others until then."""
    now_ns = 100 * HOUR_NS
    asked = History(wall_offset_ns=now_ns + ahead_ns)
    asked.start()
    asked.inventory(GPUS)
    head = (EventId(bytes(16)), TenantId("acme"), 0, CommandId(bytes(16)))
    reason = int(RefusalReason.TENANT_CAPACITY)
    asked.seal(events.Refused(*head, reason, 1000, 0, 8000, ResourceKind.GPU))
    other = History(wall_offset_ns=now_ns)
    other.start()
    other.inventory(GPUS)

    def parts(later_ns: int) -> list[int]:
        """Of eight GPUs."""
        fleet = fleet_of({"asked": asked, "other": other})
        shares = Shares(
            Given(node, number, b"", 10**8, 1, 1, {}, {"acme": {"gpus": 1000}})
            for number, node in enumerate(("asked", "other"))
        )
        divider = Divider(shares, lambda: fleet, HOUR_NS)
        plan = Plan({"acme": Saying(Quota("acme"))}, {("acme", "gpus"): 8000}, None)
        found = divider.step(plan, now_ns + later_ns, ["asked", "other"])
        return [one.parts["acme"].shares["gpus"] for one in found]

    assert parts(0) == [6000, 2000]
    asked.boot_ns = other.boot_ns = HOUR_NS
    asked.step_clock(-back_ns)
    other.touch()
    assert parts(HOUR_NS) == [3000, 3000]
