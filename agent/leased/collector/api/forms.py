# SPDX-License-Identifier: Apache-2.0
"""Forms: the requests about quotas, as they are sent.

Rule: frozen structs that forbid what they do not name; what a schema can say about a value stands
here and nowhere else, and the OpenAPI document is made of it.

Does not judge what values mean together (`quotas`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from leased.collector.api.problems import Problem
from leased.collector.governance.dimensions import BY_KEY, RAW_MAX, Form, parse
from leased.collector.governance.quotas import Per
from leased.terms.policy import Mode, WhenOver

AMOUNT_MAX: Final = 1_000_000_000
COUNT_MAX: Final = 2**53 - 1
# `$` stands before a last newline too, here and not in JavaScript: `(?!\n)` says that none follows.
_DURATION: Final = r"^[0-9]{1,9}(ms|s|m|min|h|d)$(?!\n)"
_RATE: Final = r"^[0-9]{1,9}/(s|min|h)$(?!\n)"
_SHARE: Final = r"^[0-9]{1,5}(\.[0-9])?%$(?!\n)"
_INSTANT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}"
_TENANT: Final = r"^[A-Za-z0-9_.-]{1,64}$(?!\n)"
_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$(?!\n)"
_ID: Final = r"^[0-9a-f]{32}$(?!\n)"
_CURSOR: Final = r"^[A-Za-z0-9_-]+={0,2}$(?!\n)"
PERIOD: Final = r"^[1-9][0-9]{0,4}[hdw]$(?!\n)"
MONTH: Final = r"^[0-9]{4}-(0[1-9]|1[0-2])$(?!\n)"
DAY: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt][0-9:.]+([Zz]|[+-][0-9]{2}:[0-9]{2}))?$(?!\n)"
HORIZON: Final = r"^[1-9][0-9]{0,2}[dw]$(?!\n)"
NODES: Final = r"^[0-9a-f]{32}(,[0-9a-f]{32}){0,63}$(?!\n)"
TARGETS: Final = r"^[1-9][0-9]{0,9}(,[1-9][0-9]{0,9}){0,9}$(?!\n)"
PERCENTS: Final = r"^(100|[1-9]?[0-9])(,(100|[1-9]?[0-9])){0,19}$(?!\n)"
MESSAGE: Final = r"^msg_[0-9a-f]{32}$(?!\n)"
MEANT: Final = {
    _DURATION: 'a whole number with its unit (ms, s, min, h, d), such as "90s" or "10h"',
    _RATE: 'a whole number per s, min or h, such as "100/s"',
    _SHARE: 'a share with its sign, such as "20%"',
    _INSTANT: 'an instant with its offset from UTC, such as "2026-04-01T00:00:00Z"',
    _TENANT: "1 to 64 of A-Z a-z 0-9 _ . -, as nodes call their tenants",
    _LINE: "one line of text, without control characters",
    _ID: "32 hex digits, as the lists show it",
    _CURSOR: "next_cursor of the page before, as it was given",
    PERIOD: 'a whole number of hours, days or weeks, such as "24h", "30d" or "4w"',
    MONTH: 'a year and a month, such as "2026-01"',
    DAY: 'a date such as "2026-01-31", or an instant such as "2026-01-31T12:00:00Z"',
    HORIZON: 'a whole number of days or weeks, such as "90d"',
    NODES: "1 to 64 ids of nodes, 32 hex digits each, commas in between",
    TARGETS: '1 to 10 whole numbers of milliseconds, commas in between, such as "50,100"',
    PERCENTS: '1 to 20 whole numbers from 0 to 100, commas in between, such as "50,70"',
    MESSAGE: '"msg_" and 32 hex digits, as the deliveries show it',
}
"""What a pattern asks for, in words. Whoever sends something else is told these."""
_NUMBER: Final = {"type": ["number", "null"], "minimum": 0, "maximum": AMOUNT_MAX}

Amount = Annotated[
    Any, Meta(extra_json_schema=_NUMBER, description="null: no limit of the tenant's own")
]
"""Checked by `given`: a number that is to stay exact, or null."""
_WHOLE: Final = {"type": ["integer", "null"], "minimum": 0, "maximum": COUNT_MAX}
Count = Annotated[Any, Meta(extra_json_schema=_WHOLE)]
"""Checked by `given`: 5.0 is an integer in a JSON schema."""
Duration = Annotated[str, Meta(pattern=_DURATION)]
Rate = Annotated[str, Meta(pattern=_RATE)]
Share = Annotated[str, Meta(pattern=_SHARE)]
Instant = Annotated[
    str,
    Meta(
        pattern=_INSTANT,
        max_length=40,
        extra_json_schema={"format": "date-time"},
    ),
]
Reason = Annotated[str, Meta(min_length=1, max_length=500, pattern=_LINE)]
Tenant = Annotated[str, Meta(pattern=_TENANT)]
Id = Annotated[str, Meta(pattern=_ID)]
Limit = Annotated[int, Meta(ge=1, le=1000, description="how many at most")]
Cursor = Annotated[
    str,
    Meta(
        pattern=_CURSOR,
        max_length=256,
        description="next_cursor of the page before",
    ),
]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits by their names; what is absent stays as it is, null is no limit."""

    cpu_cores: Amount = UNSET
    memory_gb: Amount = UNSET
    gpus: Amount = UNSET
    state_size_gb: Amount = UNSET
    network_gbps: Amount = UNSET
    max_concurrent_tasks: Count = UNSET
    max_leases: Count = UNSET
    max_queue_depth: Count = UNSET
    max_task_duration: Duration | None | UnsetType = UNSET
    submit_rate: Rate | None | UnsetType = UNSET
    api_rate: Rate | None | UnsetType = UNSET
    log_retention_days: Count = UNSET


class TermsForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the limits on capacity mean. `overage_*` go with soft, `burst_*` with burst. `per`: of
    all nodes together (amounts and numbers of leases), or of each."""

    mode: Mode = Mode.HARD
    overage_allowed: Share | None = None
    overage_duration: Duration | None = None
    burst_allowed: Share | None = None
    burst_duration: Duration | None = None
    reject_behavior: WhenOver | None = None
    lend: bool = True
    per: Per = Per.FLEET


class QuotaPatch(Limits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A change of a tenant's quota. With `expires_at` it ends by itself, and the base counts again;
    `grace_period` is how long what lies above a lowered limit may still be renewed."""

    reason: Reason
    expires_at: Instant | None = None
    grace_period: Duration | None = None
    policy: TermsForm | UnsetType = UNSET


class ScheduleForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Other limits for `duration` from every instant that the cron line `schedule` names."""

    tenant: Tenant
    schedule: Annotated[str, Meta(min_length=9, max_length=128)]
    duration: Duration
    quotas: Limits
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    reason: Annotated[str, Meta(max_length=500, pattern=_LINE)] = ""


class TenantPath(msgspec.Struct, frozen=True):
    """Which tenant."""

    tenant: Tenant


class IdPath(msgspec.Struct, frozen=True):
    """Which schedule."""

    id: Id


class OverridePath(msgspec.Struct, frozen=True):
    """Which override of which tenant."""

    tenant: Tenant
    id: Id


class NodePath(msgspec.Struct, frozen=True):
    """Which node."""

    node: Annotated[str, Meta(pattern=_ID, description="a node's id")]


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page."""

    limit: Limit = 100
    cursor: Cursor | None = None


class TenantPageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page, of one tenant or of all."""

    limit: Limit = 100
    cursor: Cursor | None = None
    tenant: Tenant | None = None


class WaitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long to wait for another than `If-None-Match` names."""

    wait: Annotated[int, Meta(ge=0, le=300, description="seconds")] = 0


def given(limits: Limits) -> dict[str, int | None]:
    """What of `limits` was sent, as integers. Raises Problem."""
    found: dict[str, int | None] = {}
    for key, dimension in BY_KEY.items():
        value = getattr(limits, key)
        if value is UNSET:
            continue
        if value is None:
            found[key] = None
            continue
        if dimension.form is Form.AMOUNT and not _is_number(value, AMOUNT_MAX):
            raise Problem(400, f"A number from 0 to {AMOUNT_MAX}, or null.", parameter=key)
        if dimension.form is Form.COUNT:
            if not _is_number(value, COUNT_MAX) or value != int(value):
                raise Problem(400, f"An integer from 0 to {COUNT_MAX}, or null.", parameter=key)
            value = int(value)
        try:
            found[key] = parse(dimension, value)
        except ValueError as error:
            raise Problem(422, f"{error}.", parameter=key) from None
    return found


def _is_number(value: object, most: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return False
    return 0 <= value <= most


def fields(found: Mapping[str, int | None]) -> dict[str, int]:
    """`found`, if nothing in it is null. Raises Problem."""
    kept: dict[str, int] = {}
    for key, raw in found.items():
        if raw is None:
            raise Problem(422, "What ends by itself cannot take a limit away.", parameter=key)
        kept[key] = raw
    return kept


assert AMOUNT_MAX * 2**30 <= RAW_MAX
