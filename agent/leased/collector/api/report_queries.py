# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the accounts over HTTP: one struct for each route, its fields the
parameters.

Rule: a parameter says what it may be; what a date or a period means is the accounts' (`periods`).

Does not answer (`reports`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from leased.collector.accounts.cost_shares import GroupBy
from leased.collector.api.forms import DAY, HORIZON, MONTH, PERIOD, TARGETS, Tenant
from leased.economics.attribution import Basis, Spread

Period = Annotated[
    str,
    Meta(
        pattern=PERIOD,
        description='such as "24h", "30d" or "4w", back from the last full hour of the records',
    ),
]
Month = Annotated[str, Meta(pattern=MONTH, description='such as "2026-01"')]
Day = Annotated[
    str,
    Meta(
        pattern=DAY,
        max_length=40,
        description="a date, or an instant on a full hour",
    ),
]


class TimeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which time: a `period`, or from `start` to `end`, a date as an end being the whole of it."""

    period: Period | None = None
    start: Day | None = None
    end: Day | None = None


class CostsQuery(TimeQuery, frozen=True, kw_only=True):
    """Of 30d, if no time is said; `top` tenants, and groups, by name, the others in OTHER."""

    top: Annotated[int, Meta(ge=1, le=1000)] = 10
    basis: Basis = Basis.RATE_CARD
    group_by: GroupBy | None = None


class SummaryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose bill of which month."""

    tenant: Tenant
    month: Month


class UsageQuery(TimeQuery, frozen=True, kw_only=True):
    """Whose usage."""

    tenant: Tenant
    granularity: Annotated[
        str,
        Meta(
            pattern=r"^(hour|day|lease|total)$(?!\n)",
            description="lease: each lease by itself, with the records that it follows from,"
            " folded anew from the sealed chains. That takes as long as they are.",
        ),
    ] = "hour"
    format: Annotated[str, Meta(pattern=r"^(json|csv|focus-1\.2|focus-1\.4)$(?!\n)")] | None = None


class ChargebackQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which month, and what happens to shared cost."""

    month: Month
    spread: Spread = Spread.NONE


class ForecastQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far, and of what."""

    horizon: Annotated[str, Meta(pattern=HORIZON)] = "90d"
    kind: Annotated[str, Meta(pattern=r"^(cpu|gpu|mem|block|net)$(?!\n)")] = "cpu"


class HistoryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back, and of what."""

    period: Period = "24h"
    kind: Annotated[str, Meta(pattern=r"^(cpu|gpu|mem|block|net)$(?!\n)")] = "cpu"


class PeriodQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back."""

    period: Period = "90d"


class LatencyQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the leases of which time, and for which targets."""

    period: Period = "30d"
    targets: (
        Annotated[
            str,
            Meta(pattern=TARGETS, description="ms, by commas"),
        ]
        | None
    ) = None


class RightSizingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far back, and by which percentile of use."""

    period: Annotated[
        str, Meta(pattern=PERIOD, description='such as "24h", "30d" or "4w", back from now')
    ] = "7d"
    percentile: Annotated[int, Meta(ge=50, le=100)] = 95
