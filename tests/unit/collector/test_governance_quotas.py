# SPDX-License-Identifier: Apache-2.0
"""Governance, rule by rule: dimensions, windows over changes of the clocks, what is in force, what
nodes are handed.
"""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.chain.note import NoteKey
from leased.chain.policy_note import Grant, offer, open_policy, parse_key, sign
from leased.chain.signing import Signer
from leased.collector.governance import windows
from leased.collector.governance.dimensions import BY_KEY, DIMENSIONS, Form, parse, show
from leased.collector.governance.divider import openings_at
from leased.collector.governance.policies import compile_policy, sayings, shown_limits
from leased.collector.governance.quotas import (
    Opening,
    Override,
    Quota,
    Schedule,
    Source,
    effective,
)
from leased.service.policy.windows import check_windows, open_windows
from leased.terms.errors import ChainError, ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Level
from leased.terms.policy import CapacityLimit, Policy, TenantLimits, digest
from leased.terms.policy_turn import turned
from leased.terms.quantity import parse_instant
from leased.terms.resource import ResourceKind

S = 1_000_000_000
HOST = "0" * 32
NOW = parse_instant("2026-03-01T12:00:00Z")
KEYS = ("cpu_cores", "gpus", "max_leases")


# ---- dimensions ----------------------------------------------------------------------------------


@given(st.sampled_from(DIMENSIONS), st.integers(1, 10**9))
def test_a_limit_comes_back_as_it_was_written(dimension, number) -> None:
    if dimension.form is Form.AMOUNT:
        written = Decimal(number).scaleb(-3)
    elif dimension.form is Form.COUNT:
        written = number
    elif dimension.form is Form.DURATION:
        written = f"{number}s"
    else:
        written = f"{number % 10**6 + 1}/s"
    raw = parse(dimension, written)
    assert parse(dimension, show(dimension, raw)) == raw
    if dimension.form in (Form.AMOUNT, Form.COUNT):
        assert show(dimension, raw) == written


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpu_cores", True),
        ("cpu_cores", "4"),
        ("cpu_cores", Decimal("NaN")),
        ("cpu_cores", Decimal("0.0001")),
        ("memory_gb", 2**60),
        ("max_leases", -1),
        ("max_leases", Decimal("1.5")),
        ("max_task_duration", "0s"),
        ("max_task_duration", 60),
        ("submit_rate", "0/s"),
        ("submit_rate", "fast"),
    ],
)
def test_what_is_no_such_limit_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match="."):
        parse(BY_KEY[key], value)


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "last", "following"),
    [
        # New York springs forward on 8 March 2026 at 02:00: eight in the morning comes an hour
        # earlier in UTC from then on.
        ("2026-03-06T14:00:00Z", "2026-03-06T13:00:00Z", "2026-03-09T12:00:00Z"),
        ("2026-03-06T13:00:00Z", "2026-03-06T13:00:00Z", "2026-03-09T12:00:00Z"),
        ("2026-03-06T12:59:59Z", "2026-03-05T13:00:00Z", "2026-03-06T13:00:00Z"),
        # And falls back on 1 November.
        ("2026-10-31T20:00:00Z", "2026-10-30T12:00:00Z", "2026-11-02T13:00:00Z"),
    ],
)
def test_windows_open_on_the_clock_of_their_zone(now: str, last: str, following: str) -> None:
    line = ("0 8 * * 1-5", "America/New_York", parse_instant(now))
    assert windows.last_opening_ns(*line) == parse_instant(last)
    assert windows.next_opening_ns(*line) == parse_instant(following)


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "../etc/passwd", "Mars/Olympus", ""])
def test_a_zone_that_is_another_one_on_each_host_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="timezone: "):
        windows.check("0 8 * * *", zone)


@pytest.mark.parametrize("cron", ["0 8 30 2 *", "* * * *", "* * * * * *", "61 * * * *", ""])
def test_what_never_opens_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="schedule: "):
        windows.check(cron, "UTC")


# ---- what is in force ----------------------------------------------------------------------------

limits = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 9), min_size=1)
ends = st.integers(1, 5).map(lambda hours: NOW + hours * 3600 * S)


ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"),
    *("Asia/Kathmandu", "America/Havana", "Pacific/Apia"),
)
CRONS = (
    *("30 1 * * *", "30 2 * * *", "0 8 * * 1-5", "45 1,2 * * *", "0 0 * * *", "*/20 * * * *"),
    *("15 2 * * 0", "0 0 1 * *"),
)
# Clocks change in these weeks: forward in March and April, back in October and November.
instants = st.builds(
    lambda day, second: parse_instant(f"{day}T00:00:00Z") + second * S,
    st.sampled_from(("2026-03-07", "2026-03-28", "2026-10-24", "2026-10-31", "2026-04-04")),
    st.integers(0, 3 * 86_400),
)
schedules = st.lists(
    st.builds(
        lambda cron, zone, minutes, what, number: Schedule(
            f"{number:032x}", "acme", cron, zone, minutes * 60 * S, what, number, "a"
        ),
        *(st.sampled_from(CRONS), st.sampled_from(ZONES), st.integers(1, 3_000)),
        *(limits, st.integers(0, 999)),
    ),
    max_size=4,
    unique_by=lambda one: one.id,
)


@given(schedules, st.lists(st.tuples(limits, ends), max_size=3), limits, instants)
def test_a_node_has_in_force_what_the_api_says(found, overrides, base, at) -> None:
    """The policy that was compiled now, as a node turns it later with the windows that it opens by
    itself, is what is in force then: with nobody to ask, and over changes of the clocks."""
    made = [
        Override(f"{number:032x}", "acme", what, "why", number, end_ns, "a")
        for number, (what, end_ns) in enumerate(overrides)
    ]
    quota = Quota("acme", base)
    said = sayings([quota], made, found, NOW - 40 * 86_400 * S)
    policy = check_windows(compile_policy(Policy(), said))
    opened = open_windows(policy, at)
    node = dict(turned(policy, wall_ns=at, windows=opened, host=HOST).tenants)[TenantId("acme")]
    wanted = effective({}, quota, made, openings_at(found, at), at)
    assert shown_limits(node) == {key: one.raw for key, one in wanted.items()}


@given(st.sampled_from(CRONS), st.sampled_from(ZONES), instants)
def test_the_api_and_the_nodes_name_the_same_instants(cron: str, zone: str, at: int) -> None:
    nightly = Schedule("0" * 32, "acme", cron, zone, S, {"gpus": 1}, 0, "a")
    policy = compile_policy(Policy(), sayings((), (), [nightly], NOW))
    following = windows.next_opening_ns(cron, zone, at)
    last = windows.last_opening_ns(cron, zone, at)
    assert following is not None and last is not None and last <= at < following
    for instant in (last, following):
        assert open_windows(policy, instant) and not open_windows(policy, instant - 1)
    assert not open_windows(policy, last + S)
    # Nothing opens between the two.
    assert windows.next_opening_ns(cron, zone, last) == following


def test_sources_and_ends_are_told() -> None:
    schedule = Schedule("0" * 32, "acme", "* * * * *", "UTC", S, {"gpus": 5}, 0, "a")
    override = Override("1" * 32, "acme", {"cpu_cores": 7}, "why", 0, NOW + S, "a")
    found = effective(
        {"max_leases": 1}, Quota("acme", {"gpus": 1}), [override], [Opening(schedule, NOW + 9)], NOW
    )
    assert {key: one.source for key, one in found.items()} == {
        "max_leases": Source.DEFAULT,
        "gpus": Source.SCHEDULE,
        "cpu_cores": Source.OVERRIDE,
    }
    assert found["gpus"].until_ns == NOW + 9


def test_the_operators_document_is_the_ground() -> None:
    """What the API does not name stays: level, tiers, groups; a tenant without a row begins with
    the default's."""
    ground = Policy(
        tenant_default=TenantLimits(level_max=Level.LOW, waiting_max=3),
        tenants=(
            (
                TenantId("acme"),
                TenantLimits(
                    level_max=Level.CRITICAL, capacities=(CapacityLimit(ResourceKind.GPU, 2000),)
                ),
            ),
        ),
    )
    said = [Quota("acme", {"cpu_cores": 1000}), Quota("beta", {"gpus": 3000})]
    tenants = dict(compile_policy(ground, sayings(said, (), (), NOW)).tenants)
    assert tenants[TenantId("acme")].level_max is Level.CRITICAL
    assert shown_limits(tenants[TenantId("acme")]) == {"gpus": 2000, "cpu_cores": 1000}
    assert tenants[TenantId("beta")].level_max is Level.LOW
    assert tenants[TenantId("beta")].waiting_max == 3


def test_what_the_document_says_for_single_hosts_stays() -> None:
    """What the API says about cores leaves the rows about GPUs, host by host."""
    rows = (
        CapacityLimit(ResourceKind.GPU, 8000, hosts=("a" * 32,)),
        CapacityLimit(ResourceKind.GPU, 1000),
        CapacityLimit(ResourceKind.CPU, 4000, hosts=("a" * 32,)),
        CapacityLimit(ResourceKind.CPU, 2000),
    )
    ground = Policy(tenants=((TenantId("acme"), TenantLimits(capacities=rows)),))
    made = compile_policy(ground, sayings([Quota("acme", {"cpu_cores": 1000})], (), (), NOW))
    assert dict(made.tenants)[TenantId("acme")].capacities == (
        *rows[:2],
        CapacityLimit(ResourceKind.CPU, 1000),
    )
    for host, gpus in (("a" * 32, 8000), ("b" * 32, 1000)):
        node = dict(turned(made, wall_ns=NOW, windows=(), host=host).tenants)[TenantId("acme")]
        found = {limit.kind: limit.capacity for limit in node.capacities}
        assert found == {ResourceKind.GPU: gpus, ResourceKind.CPU: 1000}


# ---- what nodes believe --------------------------------------------------------------------------

SIGNER = Signer(bytes(31) + b"\1")
KEY = NoteKey("fleet/policy", SIGNER.public_key)


def grant_of(policy: Policy, fleet: str = "fleet") -> Grant:
    return Grant(fleet, 7, NOW, NOW + S, 3, bytes(32), digest(policy))


def test_a_policy_is_believed_by_its_signature_alone() -> None:
    policy = Policy(waiting_max=7)
    note = sign(grant_of(policy), SIGNER, "fleet/policy")
    grant, opened = open_policy(note, offer(policy), KEY, "fleet")
    assert (grant.changes, opened.generation, opened.expires_wall_ns) == (3, 7, NOW + S)
    assert opened.waiting_max == 7 and parse_key(KEY.text()) == KEY
    lies = [
        (note, offer(Policy(waiting_max=8)), KEY, "fleet"),
        (note.replace("\n7\n", "\n8\n"), offer(policy), KEY, "fleet"),
        (note, offer(policy), KEY, "another"),
        (note, offer(policy), NoteKey("fleet/policy", Signer(bytes(32)).public_key), "fleet"),
        (sign(grant_of(policy), Signer(bytes(32)), "fleet/policy"), offer(policy), KEY, "fleet"),
    ]
    for lie in lies:
        with pytest.raises(ChainError):
            open_policy(*lie)


@given(st.data())
def test_no_altered_note_is_believed(data) -> None:
    policy = Policy(waiting_max=7)
    raw = sign(grant_of(policy), SIGNER, "fleet/policy").encode()
    at = data.draw(st.integers(0, len(raw) - 1))
    flipped = raw[:at] + bytes([raw[at] ^ (1 << data.draw(st.integers(0, 7)))]) + raw[at + 1 :]
    with pytest.raises((ChainError, UnicodeDecodeError)):
        open_policy(flipped.decode(), offer(policy), KEY, "fleet")


@pytest.mark.parametrize("text", ["", "a+b+c", KEY.text()[:-4], "x" + KEY.text()])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="verifier key"):
        parse_key(text)
