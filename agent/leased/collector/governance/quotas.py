# SPDX-License-Identifier: Apache-2.0
"""Quotas: what a tenant may have, what changes that for a while, and what is in force of it.

Rule: per dimension, a change that has not expired goes before an open window of a schedule, and
that before the base; of several open windows the largest limit counts, of several changes the one
made last. What an expired change leaves behind is the base as it is then, not as it was.

Does not know the time (it is handed in) and keeps nothing (`register`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from leased.collector.governance.dimensions import DIVISIBLE
from leased.terms.policy import Mode, WhenOver

RESERVED: Final = "scheduled"
"""No tenant: the path of schedules has it."""


class Per(enum.StrEnum):
    """Of what limits are limits: of all nodes together, or of each."""

    FLEET = "fleet"
    NODE = "node"


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the limits on capacity mean: `mode`, and how far and how long above them; None: as the
    fleet's policy says. `per` is for what can be divided (`dimensions.DIVISIBLE`)."""

    mode: Mode = Mode.HARD
    overage_pm: int | None = None
    overage_ns: int | None = None
    burst_pm: int | None = None
    burst_ns: int | None = None
    when_over: WhenOver | None = None
    lend: bool = True
    per: Per = Per.FLEET


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """The base of one tenant. `grace_ns` is how long what lies above a lowered limit may still be
    renewed, `grace_until_ns` when that of the last decrease ends."""

    tenant: str
    limits: dict[str, int] = {}
    terms: Terms = Terms()
    grace_ns: int | None = None
    grace_until_ns: int | None = None
    revision: int = 0


class Override(msgspec.Struct, frozen=True, omit_defaults=True):
    """Other limits until an instant, and why."""

    id: str
    tenant: str
    limits: dict[str, int]
    reason: str
    created_ns: int
    expires_ns: int
    actor: str


class Schedule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Other limits for `duration_ns` from each instant that `cron` names in `timezone`."""

    id: str
    tenant: str
    cron: str
    timezone: str
    duration_ns: int
    limits: dict[str, int]
    created_ns: int
    actor: str
    reason: str = ""


class Opening(msgspec.Struct, frozen=True):
    """A window of a schedule that is open until `ends_ns`."""

    schedule: Schedule
    ends_ns: int


class Source(enum.StrEnum):
    """Whose word a limit is."""

    DEFAULT = "default"
    BASE = "base"
    SCHEDULE = "schedule"
    OVERRIDE = "override"


class Limit(msgspec.Struct, frozen=True):
    """A limit in force, until when if that is known, and of what; whether others may borrow what is
    idle of it."""

    raw: int
    source: Source
    until_ns: int | None = None
    per: Per = Per.NODE
    lends: bool = False


def effective(
    defaults: Mapping[str, int],
    quota: Quota,
    overrides: Sequence[Override],
    openings: Sequence[Opening],
    now_ns: int,
    lending: frozenset[str] = frozenset(),
) -> dict[str, Limit]:
    """The limits in force at `now_ns`. `defaults` are each node's; `lending` which of them lend."""
    per = dict.fromkeys(DIVISIBLE, quota.terms.per)
    lends = quota.terms.lend and quota.terms.mode is Mode.HARD

    def said(key: str, raw: int, source: Source, until_ns: int | None = None) -> Limit:
        return Limit(raw, source, until_ns, per.get(key, Per.NODE), lends)

    found = {
        key: Limit(raw, Source.DEFAULT, lends=key in lending) for key, raw in defaults.items()
    }
    found |= {key: said(key, raw, Source.BASE) for key, raw in quota.limits.items()}
    opened: dict[str, Limit] = {}
    for opening in sorted(openings, key=lambda one: (one.schedule.created_ns, one.schedule.id)):
        for key, raw in opening.schedule.limits.items():
            if key not in opened or raw > opened[key].raw:
                opened[key] = said(key, raw, Source.SCHEDULE, opening.ends_ns)
    found |= opened
    for override in overrides:
        if override.expires_ns > now_ns:
            for key, raw in override.limits.items():
                found[key] = said(key, raw, Source.OVERRIDE, override.expires_ns)
    return found
