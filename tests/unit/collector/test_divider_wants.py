# SPDX-License-Identifier: Apache-2.0
"""Which limit a refusal asks for more of: that of its kind, and where the record is of a release
that did not say, those that its number fits."""

from __future__ import annotations

from leased.collector.governance.divider import Divider, Plan
from leased.collector.node_view import NodeView
from leased.terms import event as events
from leased.terms.identity import CommandId, EventId, TenantId
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind
from tests.doubles.economics_history import boot

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
