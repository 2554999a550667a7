# SPDX-License-Identifier: Apache-2.0
"""The answers about quotas; how times and quantities are written, and the pages of a list, in any
answer.

Rule: numbers are numbers where the documented samples have them; instants are RFC 3339 in UTC;
names and nesting are those of the samples, and what is added is only added.

Does not compute (`quotas`).
"""

from __future__ import annotations

import binascii
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from leased.collector.api.problems import Problem
from leased.collector.governance import windows
from leased.collector.governance.dimensions import BY_KEY, show
from leased.collector.governance.divider import openings_at
from leased.collector.governance.quotas import Override, Per, Schedule, Source, Terms
from leased.collector.governance.register import Sealed
from leased.terms.policy import Mode, WhenOver
from leased.terms.quantity import print_duration, print_instant, print_share

T = TypeVar("T")
_QUANTITY = {"type": ["number", "string"]}
Quantities = dict[str, Annotated[Any, Meta(extra_json_schema=_QUANTITY)]]
"""Numbers, and text where there is a unit in it ("3600s", "100/s")."""


def quantities(limits: Mapping[str, int]) -> Quantities:
    """Limits as they are written, in the order of the documentation."""
    return {key: show(one, limits[key]) for key, one in BY_KEY.items() if key in limits}


def page(
    rows: Sequence[T], limit: int, cursor: str | None, key: Callable[[T], str]
) -> tuple[Sequence[T], str | None]:
    """The rows after the cursor, and the cursor of what follows. `rows` are sorted by `key`."""
    if cursor is not None:
        try:
            after = b64decode(cursor.encode(), b"-_", validate=True).decode()
        except (binascii.Error, UnicodeError, ValueError):
            raise Problem(422, "Not a cursor of these pages.", parameter="cursor") from None
        rows = [one for one in rows if key(one) > after]
    shown = rows[:limit]
    if len(rows) <= limit:
        return shown, None
    return shown, urlsafe_b64encode(key(shown[-1]).encode()).decode()


def number_before(cursor: str | None) -> int | None:
    """Where rows are numbered, the newest first: the number that this page begins below."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal()):
        raise Problem(422, "Not a cursor of these pages.", parameter="cursor")
    return int(cursor[:18])


class TermsSeen(msgspec.Struct, frozen=True):
    """What the limits on capacity mean; null: as the fleet's policy says."""

    mode: Mode
    overage_allowed: str | None = None
    overage_duration: str | None = None
    burst_allowed: str | None = None
    burst_duration: str | None = None
    reject_behavior: WhenOver | None = None
    lend: bool = True
    per: Per = Per.FLEET


def terms_seen(terms: Terms) -> TermsSeen:
    """As it is shown."""
    return TermsSeen(
        terms.mode,
        None if terms.overage_pm is None else print_share(terms.overage_pm),
        None if terms.overage_ns is None else print_duration(terms.overage_ns),
        None if terms.burst_pm is None else print_share(terms.burst_pm),
        None if terms.burst_ns is None else print_duration(terms.burst_ns),
        terms.when_over,
        terms.lend,
        terms.per,
    )


class OverrideSeen(msgspec.Struct, frozen=True):
    """Other limits until `expires_at`."""

    id: str
    quotas: Quantities
    reason: str
    created_at: str
    expires_at: str
    actor: str

    @classmethod
    def of(cls, one: Override) -> OverrideSeen:
        """As it is shown."""
        return cls(
            one.id,
            quantities(one.limits),
            one.reason,
            print_instant(one.created_ns),
            print_instant(one.expires_ns),
            one.actor,
        )


class ScheduleSeen(msgspec.Struct, frozen=True):
    """Other limits in windows; `open_until` of the one that is open."""

    id: str
    tenant: str
    schedule: str
    timezone: str
    duration: str
    quotas: Quantities
    reason: str
    created_at: str
    actor: str
    next_start: str | None = None
    next_end: str | None = None
    open_until: str | None = None

    @classmethod
    def of(cls, one: Schedule, now_ns: int) -> ScheduleSeen:
        """As it is shown at an instant."""
        opens_ns = windows.next_opening_ns(one.cron, one.timezone, now_ns)
        opened = openings_at([one], now_ns)
        return cls(
            id=one.id,
            tenant=one.tenant,
            schedule=one.cron,
            timezone=one.timezone,
            duration=print_duration(one.duration_ns),
            quotas=quantities(one.limits),
            reason=one.reason,
            created_at=print_instant(one.created_ns),
            actor=one.actor,
            next_start=None if opens_ns is None else print_instant(opens_ns),
            next_end=None if opens_ns is None else print_instant(opens_ns + one.duration_ns),
            open_until=print_instant(opened[0].ends_ns) if opened else None,
        )


class SchedulesSeen(msgspec.Struct, frozen=True):
    """A page of schedules."""

    scheduled: list[ScheduleSeen]
    as_of: str
    next_cursor: str | None = None


class QuotaRow(msgspec.Struct, frozen=True):
    """One tenant of the list: the limits in force."""

    tenant: str
    quotas: Quantities
    policy: TermsSeen
    revision: int


class QuotasSeen(msgspec.Struct, frozen=True):
    """A page of tenants."""

    quotas: list[QuotaRow]
    as_of: str
    next_cursor: str | None = None


class QuotaSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant: the limits in force (`quotas`, and by whose word: `sources`), the base below
    overrides and schedules, and of what each is a limit: of all nodes together or of each (`per`).
    The last five are in the answer to a change only."""

    tenant: str
    quotas: Quantities
    policy: TermsSeen
    base: Quantities
    sources: dict[str, Source]
    per: dict[str, Per]
    overrides: list[OverrideSeen]
    scheduled: list[ScheduleSeen]
    revision: int
    grace_until: str | None = None
    change_id: str | None = None
    effective_at: str | None = None
    expires_at: str | None = None
    reverts_to: Quantities | None = None
    note: str | None = None


class ChangeSeen(msgspec.Struct, frozen=True):
    """One sealed change; `hash` is over the hash before it and itself."""

    sequence: int
    id: str
    at: str
    actor: str
    action: str
    tenant: str
    reason: str
    hash: str
    document: msgspec.Raw

    @classmethod
    def of(cls, one: Sealed) -> ChangeSeen:
        """As it is shown."""
        change = one.change
        return cls(
            change.sequence,
            change.id,
            print_instant(change.wall_ns),
            change.actor,
            change.action,
            change.tenant,
            change.reason,
            one.hash.hex(),
            msgspec.Raw(change.document.encode() or b"null"),
        )


class ChangesSeen(msgspec.Struct, frozen=True):
    """A page of changes, the newest first; `count` and `head` are of all."""

    changes: list[ChangeSeen]
    count: int
    head: str
    as_of: str
    next_cursor: str | None = None
