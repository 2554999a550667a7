# SPDX-License-Identifier: Apache-2.0
"""The rows of the route table about the fleet.

Does nothing (`views`).
"""

from __future__ import annotations

import msgspec

from leased.collector.api import forms
from leased.collector.api.fleet_answers import (
    AllocationsSeen,
    ComplianceSeen,
    EventsSeen,
    LeasesSeen,
    NodesSeen,
    UsageSeen,
)
from leased.collector.api.routes import Route
from leased.collector.api.views import Views


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many."""

    limit: forms.Limit = 100


def routes(views: Views) -> list[Route]:
    """The rows of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/usage/{tenant}",
            views.usage,
            "What a tenant has of what it may have",
            UsageSeen,
            takes_path=forms.TenantPath,
            problems=(404, 503),
        ),
        Route(
            "GET",
            "/v1/governance/allocations",
            views.allocations,
            "How what there is is divided",
            AllocationsSeen,
        ),
        Route(
            "GET",
            "/v1/governance/compliance",
            views.compliance,
            "Requests within quota, in the last day",
            ComplianceSeen,
        ),
        Route("GET", "/v1/nodes", views.nodes, "Nodes and their logs", NodesSeen, about="nodes"),
        Route(
            "GET",
            "/v1/leases",
            views.leases,
            "Leases that are not proven clean",
            LeasesSeen,
            takes_query=forms.TenantPageQuery,
            problems=(404,),
            about="nodes",
        ),
        Route(
            "GET",
            "/v1/events",
            views.events,
            "The last records about leases",
            EventsSeen,
            takes_query=EventsQuery,
            about="nodes",
        ),
    ]
