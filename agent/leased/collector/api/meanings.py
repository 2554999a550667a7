# SPDX-License-Identifier: Apache-2.0
"""Meanings: what the values of a form about quotas stand for, once their shape is right.

Rule: what cannot be meant is a problem that names the parameter and what would be right; nothing is
clamped.

Does not know what is in force (`quotas`).
"""

from __future__ import annotations

from typing import Final

from leased.collector.api import forms
from leased.collector.api.problems import Problem
from leased.collector.governance.quotas import Terms
from leased.terms.moment import DAY_NS
from leased.terms.policy import Mode
from leased.terms.quantity import parse_duration, parse_instant, parse_share

INSTANT_NS_MAX: Final = 2**63 - 1
LENGTH_NS_MAX: Final = 366 * DAY_NS
"""Of anything that is open, borne or allowed for a while."""


def read_terms(form: forms.TermsForm) -> Terms:
    """What a form says about the meaning of limits. Raises Problem."""
    soft = form.overage_allowed is not None or form.overage_duration is not None
    burst = form.burst_allowed is not None or form.burst_duration is not None
    if soft and form.mode is not Mode.SOFT:
        raise Problem(422, 'overage_* goes with mode "soft".', parameter="policy.mode")
    if burst != (form.mode is Mode.BURST):
        raise Problem(
            422, 'burst_allowed and burst_duration go with mode "burst".', parameter="policy.mode"
        )
    if burst and (form.burst_allowed is None or form.burst_duration is None):
        raise Problem(422, "A burst needs both how far and how long.", parameter="policy")
    return Terms(
        mode=form.mode,
        overage_pm=None if form.overage_allowed is None else parse_share(form.overage_allowed),
        overage_ns=read_duration(form.overage_duration, "policy.overage_duration"),
        burst_pm=None if form.burst_allowed is None else parse_share(form.burst_allowed),
        burst_ns=read_duration(form.burst_duration, "policy.burst_duration"),
        when_over=form.reject_behavior,
        lend=form.lend,
        per=form.per,
    )


def read_duration(text: str | None, parameter: str) -> int | None:
    """A length of time in ns. Raises Problem."""
    if text is None:
        return None
    found = parse_duration(text)
    if found > LENGTH_NS_MAX:
        raise Problem(422, "At most a year: 366d.", parameter=parameter)
    return found


def read_instant(text: str, parameter: str) -> int:
    """An instant in ns since 1970. Raises Problem."""
    try:
        found = parse_instant(text)
    except ValueError as error:
        raise Problem(422, f"{error}.", parameter=parameter) from None
    if found > INSTANT_NS_MAX:
        raise Problem(422, "That is after the year 2262.", parameter=parameter)
    return found
