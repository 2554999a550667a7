# SPDX-License-Identifier: Apache-2.0
"""Refusals: token, numbers, next step, exit status."""

from __future__ import annotations

import errno
import io
from datetime import UTC

from leased.ctl.console import Console
from leased.ctl.refusals import ADVICE, refusal_status, refusal_text
from leased.terms.reply import RefusalReason
from leased.wire.objects import Refusal

SECOND = 10**9
CONSOLE = Console(
    io.StringIO(),
    io.StringIO(),
    wall_ns=lambda: 1_700_049_600 * SECOND,
    boot_ns=lambda: 100 * SECOND,
    zone=UTC,
)


def test_every_reason_has_a_step_and_a_status() -> None:
    assert {reason.name.lower() for reason in RefusalReason} == set(ADVICE)


def test_no_capacity_says_how_much_and_when() -> None:
    refusal = Refusal("no_capacity", "mem", 4 << 30, 3 << 30, 2 << 30, 760 * SECOND, 660)
    assert refusal_text(refusal, CONSOLE) == (
        "no_capacity: mem: asked 2GiB, 3GiB of 4GiB in use; could succeed in 11 min (12:11:00);"
        " try --wait 665s; or ask for less, or wait: see `leasectl devices`"
    )
    assert refusal_status(refusal) == 75


def test_a_limit_that_waiting_does_not_change() -> None:
    refusal = Refusal("ttl_too_long", "ns", 14_400 * SECOND, 0, 20_000 * SECOND)
    assert refusal_text(refusal, CONSOLE) == (
        "ttl_too_long: time: asked 5 h 33 min, the limit is 4 h;"
        " ask for a shorter --ttl and renew, or for another --priority"
    )
    assert refusal_status(refusal) == 65


def test_a_granule_is_named() -> None:
    refusal = Refusal("capacity_granule", "mem:node0:2097152", 2 << 20, 0, 4096)
    assert refusal_text(refusal, CONSOLE) == (
        "capacity_granule: mem:node0:2097152: asked 4KiB; it is granted in multiples of 2MiB"
    )


def test_who_keeps_what_is_over_is_told_to_close_it() -> None:
    refusal = Refusal("device_failed", "block_ready", 0, errno.EUSERS, 1)
    said = refusal_text(refusal, CONSOLE)
    assert said.startswith("device_failed: block_ready: asked 1, Too many users (errno 87); ")
    assert "of leases that are over open" in said and "close them" in said
    assert refusal_status(refusal) == 75, "it may be tried again then"


def test_counted_things_are_not_given_units() -> None:
    refusal = Refusal("tenant_leases", "leases", 8, 8, 1)
    assert "leases: asked 1, 8 of 8 in use" in refusal_text(refusal, CONSOLE)


def test_numbers_of_a_record_that_does_not_say_of_what_are_given_without() -> None:
    refusal = Refusal("no_capacity", "", 16384, 12288, 8192)
    said = refusal_text(refusal, CONSOLE)
    assert said.startswith("no_capacity: asked 8192, 12288 of 16384 in use; ")


def test_a_reason_of_a_newer_agent_is_shown_as_it_is() -> None:
    refusal = Refusal("moon_phase", "", 0, 0, 0)
    assert refusal_text(refusal, CONSOLE) == "moon_phase"
    assert refusal_status(refusal) == 75


def test_what_never_fits_is_not_told_to_wait() -> None:
    refusal = Refusal("tenant_capacity", "mem", 4 << 30, 0, 5 << 30, rule="tenants.a.mem")
    assert refusal_text(refusal, CONSOLE) == (
        "tenant_capacity: mem: asked 5GiB, the limit is 4GiB (tenants.a.mem);"
        " ask for less, or have the policy allow you more"
    )
    host = Refusal("no_capacity", "mem", 8 << 30, 0, 16 << 30)
    assert refusal_text(host, CONSOLE) == (
        "no_capacity: mem: asked 16GiB, the limit is 8GiB; ask for less: see `leasectl devices`"
    )


def test_who_waits_is_not_told_to_wait() -> None:
    refusal = Refusal("no_capacity", "mem", 4 << 30, 3 << 30, 2 << 30, 760 * SECOND, 660)
    said = refusal_text(refusal, CONSOLE, waits=True)
    assert said.endswith("3GiB of 4GiB in use; could succeed in 11 min (12:11:00)")


def test_a_request_for_too_long_has_lost_nothing_and_a_renewal_has_no_numbers_of_clocks() -> None:
    asked = Refusal("duration", "ns", 120 * SECOND, 0, 300 * SECOND)
    said = refusal_text(asked, CONSOLE)
    assert said == "duration: time: asked 5 min, the limit is 2 min; ask for a shorter time"
    assert refusal_status(asked) == 65
    renewed = Refusal("duration", "ns", 50_000 * SECOND, 50_000 * SECOND, 60 * SECOND)
    assert refusal_text(renewed, CONSOLE).startswith("duration; the lease is as old as")
    assert refusal_status(renewed) == 79


def test_who_stands_behind_others_is_told_so_and_not_that_it_could_succeed_now() -> None:
    behind = Refusal("no_capacity", "mem", 4 << 30, 4 << 30, 1 << 30, 100 * SECOND, 0, "queue")
    assert refusal_text(behind, CONSOLE) == (
        "no_capacity: mem: asked 1GiB; others who wait for it come first: "
        "stand behind them with --wait"
    )
    late = Refusal("wait_expired", "waiting", 0, 0, 1, 100 * SECOND, 0, "queue")
    assert refusal_text(late, CONSOLE).endswith("come first: wait longer, or ask for less")


def test_a_full_queue_is_not_to_be_waited_in_and_levels_have_names() -> None:
    full = Refusal("queue_full", "waiting", 1, 1, 1, 110 * SECOND, 10, "tenants.a.waiting_max")
    assert "--wait" not in refusal_text(full, CONSOLE)
    high = Refusal("level", "level", 5, 0, 10, rule="tenant_default.level_max")
    assert refusal_text(high, CONSOLE).startswith("level: asked critical, the limit is normal (ten")


def test_why_no_worker_did_it() -> None:
    def said(number: int) -> str:
        return refusal_text(Refusal("device_failed", "worker_answer", 0, number, 0), CONSOLE)

    assert said(errno.EPIPE) == (
        "device_failed: worker_answer: Broken pipe (errno 32); who was to do it was killed,"
        " as the kernel does when memory is short: try again"
    )
    assert "too many processes" in said(errno.EAGAIN)
    assert "does not answer in time" in said(errno.ETIMEDOUT)
    assert said(errno.EBADF).endswith("see `leasectl doctor`")
