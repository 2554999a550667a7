# SPDX-License-Identifier: Apache-2.0
"""Refusals for people: the token, the numbers, and the next step.

Rule: every reason of the closed set has its step and its exit status (a test walks the set);
numbers are shown in the unit that they are in, never rounded to something else.

Does not decide whether to try again.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from leased.client import Refused
from leased.client.amounts import amount
from leased.ctl.console import Console, length
from leased.ctl.render import one_line
from leased.terms.errors import (
    EX_DATAERR,
    EX_LEASE_LOST,
    EX_NOPERM,
    EX_OSERR,
    EX_SOFTWARE,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    LeasedError,
)
from leased.terms.lease import Level
from leased.terms.moment import NS_PER_S
from leased.wire import objects

ADVICE: Final[dict[str, tuple[int, str]]] = {
    "busy": (EX_TEMPFAIL, "the agent has more to do than it can take: try again in a second"),
    "no_capacity": (EX_TEMPFAIL, "ask for less, or wait: see `leasectl devices`"),
    "no_such_resource": (EX_DATAERR, "see `leasectl devices` for what this host has, and why not"),
    "tenant_leases": (EX_TEMPFAIL, "release one of yours (`leasectl ls`) or wait"),
    "tenant_capacity": (
        EX_TEMPFAIL,
        "release some of yours (`leasectl ls`), ask for less, or wait",
    ),
    "node_leases": (EX_TEMPFAIL, "the host holds as many leases as it may: wait"),
    "queue_full": (EX_TEMPFAIL, "nobody more may wait: try again later"),
    "wait_expired": (EX_TEMPFAIL, "wait longer, or ask for less"),
    "ttl_too_short": (EX_DATAERR, "ask for a longer --ttl"),
    "ttl_too_long": (EX_DATAERR, "ask for a shorter --ttl and renew, or for another --priority"),
    "capacity_granule": (EX_DATAERR, "ask for a multiple of what it is granted in"),
    "cordoned": (EX_TEMPFAIL, "an operator stopped grants on it: wait for `leasectl admin resume`"),
    "unhealthy": (EX_TEMPFAIL, "the device is sick; it comes back by itself when its probe passes"),
    "deadline_passed": (EX_LEASE_LOST, "the lease is over: acquire another"),
    "not_renewable": (EX_LEASE_LOST, "the lease is ending: acquire another"),
    "still_held": (EX_TEMPFAIL, "somebody still uses it: see `leasectl holders`"),
    "not_fenced": (EX_DATAERR, "nothing of it is fenced: see `leasectl devices`"),
    "draining": (EX_LEASE_LOST, "the holder was told to leave; a renewal no longer helps"),
    "device_failed": (EX_OSERR, "the hardware did not do its part: see `leasectl doctor`"),
    "audit_unavailable": (
        EX_UNAVAILABLE,
        "the log cannot be written, so nothing is granted; `leasectl admin status` says why",
    ),
    "level": (EX_NOPERM, "ask at a lower level, or have the policy allow you this one"),
    "duration": (EX_LEASE_LOST, "the lease is as old as it may become: acquire another"),
    "budget": (
        EX_TEMPFAIL,
        "the budget of the period is used up: ask for less, or wait for the next",
    ),
    "submit_rate": (EX_TEMPFAIL, "ask less often"),
    "api_rate": (EX_TEMPFAIL, "call less often"),
    "throttled": (EX_TEMPFAIL, "wait a second, and release something: you are above a limit"),
    "burst_ended": (EX_LEASE_LOST, "the burst is over: the lease runs to its deadline"),
    "share": (EX_TEMPFAIL, "nobody may have more of it at once: release some of yours"),
    "reserved": (EX_TEMPFAIL, "what is left is reserved for others: wait, or ask for less"),
    "backfill_ended": (EX_LEASE_LOST, "others wait for it: the lease runs to its deadline"),
    "stale_policy": (EX_DATAERR, "a document of a later generation is in force"),
    "not_preempted": (
        EX_DATAERR,
        "that lease was not taken from you, or was of a lower priority or smaller, or you asked for"
        " it again",
    ),
    "not_notified": (EX_DATAERR, "it was not told to leave: `leasectl renew` moves its deadline"),
    "notice_limit": (EX_TEMPFAIL, "nobody gets more: save what fits, or ask for less"),
    "notice_final": (EX_LEASE_LOST, "this notice is not put off: save what you can"),
    "command_id_used": (
        EX_DATAERR,
        "another request was made under this command id: every new request takes a new one",
    ),
    "stopping": (EX_UNAVAILABLE, "the agent is going down: try again when it is back"),
}
_AT_AN_INSTANT: Final = ("deadline_passed", "draining", "not_renewable", "not_notified")
"""Reasons whose numbers are instants of the boot clock, which say nothing to people."""

_UNANSWERED: Final = {
    errno.EPIPE: "who was to do it was killed, as the kernel does when memory is short: try again",
    errno.EAGAIN: "nobody could be started to do it: the host or the unit has too many processes",
    errno.ETIMEDOUT: "the driver does not answer in time: see `leasectl health`",
}
"""What it means that no worker did what it was asked, by errno."""

_KEPT: Final = (
    "you keep as many block devices of leases that are over open as anybody may: end who has them"
    " open (`lsof /dev/dm-*`), or have it close them"
)
_BOUNDS: Final = ("duration", "burst_ended", "backfill_ended")
"""Reasons of a renewal whose limit and usage are such instants, too; of a request they are not."""

QUEUE: Final = "queue"
"""The rule where others who wait come first."""

SECONDS_OF: Final = {
    "gpu_seconds": "GPU s",
    "cpu_seconds": "core s",
    "mem_seconds": "GiB s",
    "block_seconds": "GiB s",
    "net_seconds": "Gbit/s s",
}
"""What capacity-seconds of budgets are counted in."""
RATES: Final = ("requests/", "calls/")
"""What a rate counts, before what it counts it in."""
NANO: Final = 10**9

_GRANULE_STEP: Final = "it is granted in multiples of {}"


def refusal_status(refusal: objects.Refusal) -> int:
    """The exit status that a refusal ends with."""
    return _advice(refusal)[0]


def _renewed_no_more(refusal: objects.Refusal) -> bool:
    return refusal.reason in _BOUNDS and refusal.usage > 0


def _advice(refusal: objects.Refusal) -> tuple[int, str]:
    """The exit status and the next step: one of a kind but for what never fits, whoever leaves."""
    alone = refusal.requested > refusal.limit and refusal.retry_at_boottime_ns is None
    if refusal.reason == "duration" and not _renewed_no_more(refusal):
        return EX_DATAERR, "ask for a shorter time"
    if refusal.rule == QUEUE and refusal.reason != "wait_expired":
        return EX_TEMPFAIL, "stand behind them with --wait"
    if refusal.reason == "tenant_capacity" and refusal.limit and alone:
        return EX_TEMPFAIL, "ask for less, or have the policy allow you more"
    if refusal.reason == "no_capacity" and refusal.limit and alone:
        return EX_TEMPFAIL, "ask for less: see `leasectl devices`"
    status, step = ADVICE.get(refusal.reason, (EX_TEMPFAIL, ""))
    if refusal.what == "worker_answer":
        return status, _UNANSWERED.get(refusal.usage, step)
    if (refusal.what, refusal.usage) == ("block_ready", errno.EUSERS):
        return EX_TEMPFAIL, _KEPT
    return status, step


def refusal_text(refusal: objects.Refusal, console: Console, *, waits: bool = False) -> str:
    """One line: token, numbers, when the same request could succeed, and the next step, of which
    there is none for who `waits`.
    """
    parts = [refusal.reason]
    numbers = _numbers(refusal)
    if numbers:
        parts.append(numbers)
    _, step = _advice(refusal)
    if refusal.reason == "capacity_granule" and refusal.what:
        step = _GRANULE_STEP.format(quantity(refusal.what, refusal.limit))
    text = ": ".join(parts)
    if refusal.rule and refusal.rule != QUEUE:
        text += f" ({refusal.rule})"
    if refusal.rule == QUEUE:
        step = "others who wait for it come first" + (f": {step}" if step else "")
    elif refusal.retry_at_boottime_ns is not None:
        text += f"; could succeed {console.time_of_boot(refusal.retry_at_boottime_ns)}"
        left_ns = refusal.retry_at_boottime_ns - console.boot_ns()
        queues = refusal.reason != "queue_full"
        if left_ns > 0 and queues and refusal_status(refusal) == EX_TEMPFAIL:
            seconds = -(-left_ns // NS_PER_S)
            step = f"try --wait {seconds + 5}s" + (f"; or {step}" if step else "")
    return text + (f"; {step}" if step and not waits else "")


def quantity(what: str, number: int) -> str:
    """A number in the unit of `what`: a kind, a resource, "ns", or something that is counted."""
    if what == "ns":
        return length(number)
    if what == "level" and number in set(Level):
        return Level(number).name.lower()
    if what in SECONDS_OF:
        return f"{number} {SECONDS_OF[what]}"
    if what == "cost_nano":
        return f"{number // NANO}.{number % NANO:09}".rstrip("0").removesuffix(".")
    if what.startswith(RATES):
        return f"{number}/{what.partition('/')[2]}"
    kind = what.split(":")[0]
    if kind in ("mem", "block", "cpu", "gpu", "net"):
        return amount(kind, number)
    return str(number)


def _numbers(refusal: objects.Refusal) -> str:
    what = refusal.what
    if refusal.reason in (*_AT_AN_INSTANT, "not_preempted") or _renewed_no_more(refusal):
        return ""
    if refusal.reason == "capacity_granule" and what:
        return f"{what}: asked {quantity(what, refusal.requested)}"
    named = {"ns": "time", "cost_nano": "cost"}.get(what, what)
    parts: list[str] = []
    if refusal.requested:
        parts.append(f"asked {quantity(what, refusal.requested)}")
    if refusal.rule == QUEUE:
        pass  # all of it counts as spoken for
    elif refusal.limit and refusal.usage:
        used, limit = quantity(what, refusal.usage), quantity(what, refusal.limit)
        parts.append(f"{used} of {limit} in use")
    elif refusal.limit:
        parts.append(f"the limit is {quantity(what, refusal.limit)}")
    elif refusal.usage and refusal.reason == "device_failed":
        parts.append(f"{os.strerror(refusal.usage)} (errno {refusal.usage})")
    return ": ".join(filter(None, (named if named != refusal.reason else "", ", ".join(parts))))


def tell(error: LeasedError, console: Console) -> int:
    """Say what went wrong; returns the exit status."""
    if isinstance(error, Refused):
        console.note(refusal_text(error.refusal, console))
        return refusal_status(error.refusal)
    text = one_line(str(error))
    console.note(text if text else type(error).__name__)
    return error.exit_status or EX_SOFTWARE
