# SPDX-License-Identifier: Apache-2.0
"""The policy document: what it says, what it refuses, and its one form."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leased.service.config_file import parse_policy
from leased.terms import policy_keys
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Level, Priority
from leased.terms.moment import NS_PER_S
from leased.terms.policy import (
    Allocation,
    Borrowing,
    Budget,
    CapacityLimit,
    Change,
    LimitSet,
    Mode,
    Period,
    Policy,
    Preemption,
    Rate,
    Schedule,
    Strategy,
    TenantLimits,
    WhenOver,
    canonical,
    decode,
    digest,
)
from leased.terms.policy_check import check
from leased.terms.policy_text import read_policy
from leased.terms.policy_writing import document_of, lines_of
from leased.terms.quantity import parse_instant
from leased.terms.resource import ResourceKind, TierKind

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "policy.toml"
CONFIGURATION = SHIPPED.with_name("leased.toml")
WHOLE = """
expires_at = 2026-12-31T00:00:00Z
when_over = "queue"
timezone = "Europe/Berlin"
[groups.research]
gpu = 16
concurrent_max = 40
[groups.research.each]
gpu = 8
[tenants.acme]
group = "research"
level_max = "critical"
duration_max = "8h"
submit_rate = "100/s"
cut_grace = "1h"
gpu = { limit = 4, mode = "burst", burst = 8, burst_ttl = "10m" }
"mem.hbm" = { limit = "16GiB", mode = "soft", overage = "50%", overage_for = "1h", lend = false }
"mem.cxl@2" = "1GiB"
[[tenants.acme.budgets]]
period = "day"
of = "mem.hbm"
capacity_seconds = 60
[[tenants.acme.budgets]]
period = "month"
cost = "9.5"
[[tenants.acme.changes]]
gpu = 12
reason = "quarter's end"
expires_at = "2026-04-01T02:00:00+02:00"
[tenants.acme.schedules.daytime]
cron = "0 8 * * 1-5"
timezone = "America/New_York"
duration = "10h"
cpu = 200
[tenants.beta]
[borrowing]
enabled = true
[allocation.gpu]
strategy = "fair_share"
weights = { acme = 2, beta = "1.5" }
[allocation.cpu]
strategy = "reservation"
reservations = { acme = 50 }
opportunistic = 200
"""


def test_the_shipped_document_is_the_built_in_default() -> None:
    assert parse_policy(SHIPPED.read_text("utf-8"), SHIPPED.name) == Policy()


def test_the_shipped_document_spells_out_every_key() -> None:
    text = SHIPPED.read_text("utf-8")
    tables = {name: keys for name, keys in vars(policy_keys).items() if name.endswith("_KEYS")}
    assert len(tables) == 10
    for name, keys in tables.items():
        for key in keys:
            assert f"{key} =" in text, f"{key} of {name} is not in {SHIPPED.name}"


def test_the_configuration_says_the_same_as_the_document() -> None:
    document = tomllib.loads(SHIPPED.read_text("utf-8"))
    for key, value in tomllib.loads(CONFIGURATION.read_text("utf-8"))["policy"].items():
        assert document[key] == value, key


def test_every_field_can_be_written() -> None:
    """A field that no key sets is a constant in disguise."""
    fixed = {
        Policy: (
            policy_keys.POLICY_KEYS,
            {"borrowing", "preemption", "allocations", "groups", "tenant_default", "tenants"},
        ),
        LimitSet: (policy_keys.LIMIT_KEYS, {"capacities", "budgets"}),
        Borrowing: (policy_keys.BORROWING_KEYS, set()),
        Preemption: (policy_keys.PREEMPTION_KEYS, set()),
        Change: (policy_keys.CHANGE_KEYS, {"limits"}),
        Schedule: (policy_keys.SCHEDULE_KEYS, {"name", "limits"}),
        Allocation: (
            policy_keys.ALLOCATION_KEYS,
            {"kind", "tier", "weights_pm", "reservations", "opportunistic"},
        ),
        CapacityLimit: (
            policy_keys.QUOTA_KEYS,
            {"kind", "tier", "node", "capacity", "burst_capacity"},
        ),
    }
    for struct, (keys, apart) in fixed.items():
        assert {field for field, _ in keys.values()} == set(struct.__struct_fields__) - apart


def test_a_document_means_what_it_says() -> None:
    policy = parse_policy(WHOLE, "policy.toml")
    acme = dict(policy.tenants)[TenantId("acme")]
    assert policy.expires_wall_ns == parse_instant("2026-12-31T00:00:00Z")
    assert policy.when_over is WhenOver.QUEUE
    assert acme.group == "research" and acme.level_max is Level.CRITICAL
    assert acme.submit_rate == Rate(100, NS_PER_S) and acme.grace_ns_cut == 3600 * NS_PER_S
    assert acme.capacities == (
        CapacityLimit(
            ResourceKind.GPU, 4000, mode=Mode.BURST, burst_capacity=8000, burst_ns=600 * NS_PER_S
        ),
        CapacityLimit(
            ResourceKind.MEM,
            16 << 30,
            TierKind.HBM,
            mode=Mode.SOFT,
            overage_pm=500,
            overage_ns=3600 * NS_PER_S,
            lend=False,
        ),
        CapacityLimit(ResourceKind.MEM, 1 << 30, TierKind.CXL, 2),
    )
    assert acme.budgets == (
        Budget(Period.DAY, ResourceKind.MEM, TierKind.HBM, 60 * NS_PER_S * (1 << 30)),
        Budget(Period.MONTH, cost_nano=9_500_000_000),
    )
    [change], [schedule] = acme.changes, acme.schedules
    assert change.expires_wall_ns == parse_instant("2026-04-01T00:00:00Z")
    assert change.limits == LimitSet(capacities=(CapacityLimit(ResourceKind.GPU, 12_000),))
    assert schedule == Schedule(
        "daytime",
        "0 8 * * 1-5",
        36_000 * NS_PER_S,
        LimitSet(capacities=(CapacityLimit(ResourceKind.CPU, 200_000),)),
        "America/New_York",
    )
    fair, reserved = policy.allocations
    assert fair.strategy is Strategy.FAIR_SHARE
    assert dict(fair.weights_pm) == {"acme": 2000, "beta": 1500}
    assert (reserved.reservations, reserved.opportunistic) == ((("acme", 50_000),), 200_000)


def test_json_says_the_same_as_toml() -> None:
    document = tomllib.loads(WHOLE.replace("2026-12-31T00:00:00Z", '"2026-12-31T00:00:00Z"'))
    assert read_policy(json.loads(json.dumps(document))) == parse_policy(WHOLE, "policy.toml")


@pytest.mark.parametrize(
    ("text", "named", "why"),
    [
        ("[tenants.a]\ngpu = 1.5", "tenants.a.gpu = 1.5", "a whole number (4)"),
        ("[tenants.a]\ngpu = -1", "tenants.a.gpu = -1", "a whole number (4)"),
        ("[tenants.a]\nmem = 64", "tenants.a.mem = 64", "a size with its unit"),
        ('[tenants.a]\nmem = "64GB"', "tenants.a.mem = '64GB'", '"GB" is not a unit'),
        ("[tenants.a]\ntape = 1", "tenants.a.tape", "unknown key"),
        ("[tenants.a]\nleases = 1", "tenants.a.leases", 'did you mean "leases_max"'),
        ('[tenants.a]\n"gpu.hbm" = 1', "tenants.a.gpu.hbm", "only mem has tiers"),
        ('[tenants.a]\n"mem.ram" = "1GiB"', "tenants.a.mem.ram", "counts nothing"),
        ("[tenants.a]\ngpu = { burst = 4 }", "tenants.a.gpu", "needs limit"),
        ('[tenants.a]\ngpu = {limit = 1, overage = "1%"}', "tenants.a.gpu.overage", "soft"),
        ("[tenants.a]\ngpu = {limit = 1, burst = 4}", "tenants.a.gpu.burst", "goes with mode"),
        (
            '[tenants.a]\ngpu = {limit = 4, mode = "burst", burst = 4, burst_ttl = "1m"}',
            "tenants.a.gpu.burst = 4000",
            "not above its limit",
        ),
        (
            '[tenants.a]\ngpu = {limit = 4, mode = "burst", burst = 8, burst_ttl = "1ms"}',
            "tenants.a.gpu.burst_ttl = 1ms",
            "below policy.ttl_min",
        ),
        (
            '[tenants.a]\nmem = {limit = "4GiB", mode = "burst", burst = "2GiB"}',
            "tenants.a.mem.burst = 2GiB",
            "not above its limit",
        ),
        (
            '[tenants.a]\ngpu = {limit = 4, mode = "soft", overage_for = "0s"}',
            "tenants.a.gpu.overage_for = 0",
            "above zero",
        ),
        ("[tenants.a]\ngpu = [1, 2]", "tenants.a.gpu", "listed twice"),
        ('[tenants.a]\ngpu = {limit = 1, hosts = ["x"]}', "tenants.a.gpu.hosts = x", "32 hex"),
        ('[tenants.a]\ngroup = "g"', "tenants.a.group = g", "no such group"),
        ('[tenants.a]\ncut_grace = "36501d"', "tenants.a.cut_grace = '36501d'", "at most 36500d"),
        ('[tenants.a]\n"mem@\u0663" = "1B"', "tenants.a.mem@\u0663", "counts nothing"),
        (f'[tenants.a]\n"mem@{"9" * 5000}" = "1B"', "tenants.a.mem@9", "counts nothing"),
        ('[tenants.a]\nduration_max = "1ms"', "tenants.a.duration_max = 1ms", "below"),
        ('[tenants.a]\nsubmit_rate = "0/s"', "tenants.a.submit_rate = '0/s'", "per time"),
        ('[tenants.a]\napi_rate = "9/day"', "tenants.a.api_rate = '9/day'", "per time"),
        ('[tenants.a]\nlevel_max = "urgent"', "tenants.a.level_max = 'urgent'", "one of"),
        ("[tenants.a]\nbudgets = [{}]", "tenants.a.budgets", "its period"),
        (
            '[tenants.a]\nbudgets = [{ period = "day", cost = 1.5 }]',
            "tenants.a.budgets.cost = 1.5",
            "a string",
        ),
        ('[tenants.a]\nbudgets = [{ period = "day" }]', "tenants.a.budgets[0]", "either"),
        (
            '[tenants.a]\nbudgets = [{ period = "day", cost = "0" }]',
            "tenants.a.budgets[0]",
            "above zero",
        ),
        ("[[tenants.a.changes]]\ngpu = 1", "tenants.a.changes", "needs expires_at"),
        (
            '[[tenants.a.changes]]\nexpires_at = "2026-01-01T00:00:00Z"\nreason = "x"',
            "tenants.a.changes[0]",
            "changes nothing",
        ),
        (
            '[[tenants.a.changes]]\ngpu = 1\nexpires_at = "2026-02-30T00:00:00Z"\nreason = "x"',
            "expires_at = '2026-02-30T00:00:00Z'",
            "no such instant",
        ),
        (
            '[[tenants.a.changes]]\ngpu = 1\nexpires_at = 2026-01-01T00:00:00\nreason = "x"',
            "expires_at",
            "with its offset",
        ),
        ('[tenants.a.schedules.w]\ncron = "* * * * *"\ngpu = 1', "schedules.w", "needs duration"),
        (
            '[tenants.a.schedules.w]\ncron = "* * * *"\nduration = "1h"\ngpu = 1',
            "tenants.a.schedules.w.cron = * * * *",
            "five fields",
        ),
        (
            '[tenants.a.schedules.w]\ncron = "* * * * *"\nduration = "0s"\ngpu = 1',
            "tenants.a.schedules.w.duration = 0",
            "a window of no length",
        ),
        (
            '[tenants.a.schedules.w]\ncron = "* * * * *"\nduration = "1h"',
            "tenants.a.schedules.w",
            "changes nothing",
        ),
        ('[allocation.gpu]\nwindow = "0s"', "allocation.gpu.window = 0", "above zero"),
        (
            '[allocation.gpu]\nmin_share = "60%"',
            "allocation.gpu.min_share = 60%",
            "above max_share = 50%",
        ),
        ('[allocation.gpu]\nmax_share = "101%"', "allocation.gpu.max_share = 101%", "at most 100%"),
        (
            '[allocation.gpu]\nwindow = "1h"\nhalf_life = "2h"',
            "allocation.gpu.half_life = 2h",
            "longer than the window",
        ),
        (
            "[tenants.a]\n[allocation.gpu.weights]\na = 0",
            "allocation.gpu.weights.a = 0",
            "above zero",
        ),
        ("[allocation.gpu.weights]\nb = 1", "allocation.gpu.weights.b = 1000", "no such tenant"),
        (
            '[allocation.gpu]\nstrategy = "reservation"\nreservations = { b = 1 }',
            "allocation.gpu.reservations.b = 1000",
            "no such tenant",
        ),
        ("[tenants.a]\n[allocation.gpu.reservations]\na = 1", "reservations", "goes with strategy"),
        ("[allocation.gpu]\n", "allocation.gpu", "an empty table"),
        ("[tenants.a]\n[allocation.gpu.weights]\na = 2", "allocation.gpu.weights", "goes with"),
        ("[allocation.tape]\n", "allocation.tape", "counts nothing"),
        ('[borrowing]\nlimit = "0%"', "borrowing.limit = 0%", "above 0%"),
        (
            '[preemption]\ncheckpoint_max_standard = "1h"',
            "preemption.checkpoint_max_standard = 1h",
            "above policy.grace_max",
        ),
        ('grace_preempt = "1h"', "grace_preempt = 1h", "above policy.grace_max"),
        ('ttl_max_scavenger = "500ms"', "ttl_max_scavenger = 500ms", "below policy.ttl_min"),
        ('ttl_max_guaranteed = "31d"', "ttl_max_guaranteed = 31d", "above 30d the reaper holds no"),
        ("version = 2", "version = 2", "knows version 1"),
        ('timezone = "the moon"', "timezone = the moon", "has a name"),
        ("[groups.g]\ngpu = {limit = 1, mode = 'soft'}", "groups.g.gpu.mode", "hard"),
        ('[groups.g]\nlevel_max = "high"', "groups.g.level_max", "not a sum"),
        ("leases_max = 0", "leases_max = 0", "at least 1"),
        ("tenants = 3", "tenants = 3", "a table"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_file_key_value_and_reason(
    text: str, named: str, why: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text, "policy.toml")
    said = str(caught.value)
    assert said.startswith("policy.toml: ")
    assert named in said and why in said, said


def test_two_groups_of_one_tenant_cannot_be_written_and_a_duplicate_is_refused() -> None:
    twice = Policy(tenants=((TenantId("a"), TenantLimits()), (TenantId("a"), TenantLimits())))
    with pytest.raises(ConfigError, match="policy.tenants.a: listed twice"):
        check(decode(canonical(twice)))


def test_what_is_written_reads_back_as_the_same_policy() -> None:
    policy = parse_policy(WHOLE, "whole.toml")
    document = document_of(policy)
    assert read_policy(document) == policy
    assert read_policy(json.loads(json.dumps(document))) == policy
    assert document_of(Policy()) == {}
    plain = Policy(allocations=(Allocation(ResourceKind.GPU),))
    assert read_policy(document_of(plain)) == plain, "what says no more than the default"
    lines = dict(lines_of(document))
    assert lines["tenants.acme.gpu.mode"] == "burst"
    assert lines["allocation.gpu.weights.beta"] == "1.5"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 10**6),
    st.sampled_from([None, TierKind.HBM, TierKind.CXL]),
    st.sampled_from([None, 0, 3]),
    st.sampled_from(list(Mode)),
    st.sampled_from(list(ResourceKind)),
    st.integers(0, 2000),
    st.integers(1, 10**15),
)
def test_every_limit_that_can_be_meant_is_written_as_it_was(
    capacity: int,
    tier: TierKind | None,
    node: int | None,
    mode: Mode,
    kind: ResourceKind,
    share_pm: int,
    ns: int,
) -> None:
    limit = CapacityLimit(
        kind,
        capacity,
        tier if kind is ResourceKind.MEM else None,
        node,
        mode,
        share_pm if mode is Mode.SOFT else None,
        ns if mode is Mode.SOFT else None,
        capacity + 1 if mode is Mode.BURST else 0,
        ns if mode is Mode.BURST else 0,
        lend=bool(share_pm % 2),
    )
    own = TenantLimits(
        capacities=(limit,),
        duration_ns_max=ns,
        submit_rate=Rate(capacity, NS_PER_S),
        budgets=(Budget(Period.WEEK, cost_nano=ns),),
    )
    policy = Policy(tenants=((TenantId("a"), own),), ttl_ns_max_guaranteed=10**15)
    try:
        check(policy)
    except ConfigError:
        return
    assert read_policy(document_of(policy)) == policy


def test_the_canonical_form_is_one_and_reads_back() -> None:
    policy = parse_policy(WHOLE, "policy.toml")
    assert decode(canonical(policy)) == policy
    assert canonical(Policy()) == b"{}"
    assert digest(policy) == digest(msgspec.structs.replace(policy, generation=9))
    assert digest(policy) != digest(msgspec.structs.replace(policy, asks_max=9))


def test_the_digest_of_a_policy_never_changes() -> None:
    """It is sealed: a release that names the same policy otherwise forks every node's story."""
    assert digest(Policy()).hex() == (
        "37d01749ae9c875b05f16e7380b15ab58c173a2399971a0e2711a822ae7b990c"
    )
    assert digest(parse_policy(WHOLE, "policy.toml")).hex() == (
        "c113dcff8f6e69b0903330931ad069e067b85bf1112903fddf56a9ae84b9a171"
    )


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"generation":1}', b'{ "asks_max":9}', b"{}\n"]
)
def test_what_is_not_the_canonical_form_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="canonical form"):
        decode(text)


def test_a_level_belongs_to_one_priority() -> None:
    assert [level.priority for level in Level] == [
        Priority.SCAVENGER,
        Priority.SCAVENGER,
        Priority.STANDARD,
        Priority.GUARANTEED,
        Priority.GUARANTEED,
    ]
    assert [int(level) for level in Level] == [1, 3, 5, 7, 10]


_keys = st.sampled_from(
    sorted(
        {key for name, keys in vars(policy_keys).items() if name.endswith("_KEYS") for key in keys}
        | {"gpu", "mem.hbm", "cpu@1", "limit", "burst", "tenants", "groups", "each", "a", "budgets"}
        | {"allocation", "changes", "schedules", "weights", "reservations", "tenant_default"}
    )
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=12,
)


# The keys are drawn from every key there is: slow to make on a busy host, and worth it.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_keys, json_values, max_size=5))
def test_any_document_is_read_or_refused_and_nothing_else(document: dict[str, Any]) -> None:
    try:
        policy = read_policy(document)
    except ConfigError:
        return
    assert decode(canonical(policy)) == msgspec.structs.replace(policy, generation=0)
