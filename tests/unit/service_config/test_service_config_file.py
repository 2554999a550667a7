# SPDX-License-Identifier: Apache-2.0
"""The configuration file: it means its defaults, and what it cannot mean is refused by name."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

from leased.durable import tpm
from leased.hardware import keys as hardware_keys
from leased.service import config_file
from leased.service.config import Config, TenantMapping, budgets, check
from leased.terms.errors import ConfigError
from leased.terms.identity import TenantId
from leased.terms.lease import Priority
from leased.terms.moment import NS_PER_MS, NS_PER_S
from leased.terms.policy import CapacityLimit
from leased.terms.resource import ResourceKind, TierKind

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "leased.toml"


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config_file.parse(text, "leased.toml")
    return str(caught.value)


def test_what_is_wrong_is_told_with_its_level_but_to_a_person(tmp_path: Path) -> None:
    """systemd reads the level from what is no terminal."""
    words = [sys.executable, "-m", "leased.service.daemon", "--check", "--config", "/none.toml"]
    ours, theirs = pty.openpty()
    with open(tmp_path / "log", "wb") as log:
        assert [subprocess.call(words, stderr=where) for where in (log, theirs)] == [78, 78]
    assert (tmp_path / "log").read_bytes().startswith(b"<3>leased: /none.toml")
    assert os.read(ours, 4096).startswith(b"leased: /none.toml")
    os.close(ours), os.close(theirs)


def test_the_shipped_file_is_the_built_in_defaults() -> None:
    assert config_file.load(SHIPPED) == Config()


def test_an_empty_file_is_the_built_in_defaults() -> None:
    assert config_file.parse("", "leased.toml") == check(Config())


def test_the_shipped_file_spells_out_every_key() -> None:
    """What is not in the file would be a default without a reason."""
    text = SHIPPED.read_text("utf-8")
    tables = [
        (name, keys)
        for module in (config_file, hardware_keys, tpm)
        for name, keys in vars(module).items()
        if name.endswith("KEYS")
    ]
    assert len(tables) >= 14
    for name, keys in tables:
        for key in keys:
            begins = key if name == "_TENANT_KEYS" else f"\n{key} = "
            below = any(f"\n[{above}.{key}]\n" in text for above in ("hardware", "log"))
            assert begins in text or below, f"{key} of {name} is not in {SHIPPED.name}"


def test_the_manual_names_every_section() -> None:
    manual = (SHIPPED.parents[1] / "packaging/man/leased.toml.5").read_text("utf-8")
    below = ("hardware.gpu", "hardware.block", "hardware.rdma", "hardware.dax", "log.counter")
    missing = [name for name in (*config_file._SECTIONS, *below) if name not in manual]
    assert missing == []


def test_every_field_can_be_configured() -> None:
    """A field that no key sets is a constant in disguise."""
    config = Config()
    tables = {
        "paths": config_file._PATH_KEYS,
        "sockets": config_file._SOCKET_KEYS,
        "sequencing": config_file._SEQUENCING_KEYS,
        "timing": config_file._TIMING_KEYS,
        "hardware": hardware_keys.KEYS,
        "log": config_file._LOG_KEYS,
        "log.counter": tpm.KEYS,
        "journald": config_file._JOURNALD_KEYS,
    }
    for section, keys in tables.items():
        fields = set(attrgetter(section)(config).__struct_fields__)
        assert {field for field, _ in keys.values()} == fields, section


@pytest.mark.parametrize(
    ("text", "named", "why"),
    [
        ('[log.counter]\nindex = "0x81000001"', "log.counter.index", "an NV index such as"),
        ('[log.counter]\naccept = "yes"', "log.counter.accept", "what a refusal said"),
        ('[log.counter]\napart = "2h"', "log.counter.apart", "above log.counter.period"),
        ('[policy]\nttl_mn = "3s"', "policy.ttl_mn", 'did you mean "ttl_min"'),
        ("[policy]\ngeneration = 9223372036854775808", "generation = 922", "at most 9223372"),
        ("[sockets]\nconnections_max = 99999999999999999999", "connections_max", "at most"),
        ('[paths]\nstate_dir = "/a\\u0000b"', "paths.state_dir", "without NUL"),
        ('policy_file = "a\\u0000b"', "policy_file", "without NUL"),
        ('[collector]\nurl = "https://["', "collector.url", "https://HOST:PORT"),
        ("a = " + "9" * 5000, "digits", "limit"),
        ("a = " + "[" * 100_000, "", "recursion"),
        ("[nonsense]\n", "nonsense", "unknown key"),
        (f'[paths]\nruntime_dir = "/{"x" * 82}"', "paths.runtime_dir", "too long"),
        ("[timing]\ntick = 3", "timing.tick = 3", "with its unit"),
        ('[timing]\ntick = "3"', "timing.tick = '3'", "with its unit"),
        ('[timing]\ntick = "3 weeks"', "timing.tick = '3 weeks'", '"weeks" is not a unit'),
        ('[timing]\ntick = "0s"', "timing.tick", "above zero"),
        ('[timing]\ntick = "-1s"', "timing.tick = '-1s'", "with its unit"),
        ('[hardware]\nbulk_size = "1GB"', "hardware.bulk_size = '1GB'", '"GB" is not a unit'),
        ("[sequencing]\nbatch_commands_max = 0", "sequencing.batch_commands_max", "above zero"),
        ('[sockets]\nmessage_max = "0B"', "sockets.message_max", "above zero"),
        ("[sockets]\ncalls_queued_max = 0", "sockets.calls_queued_max", "above zero"),
        ('[hardware]\ntouch_rate = "0B"', "hardware.touch_rate", "above zero"),
        ('[hardware.gpu]\nscrub_rate = "0B"', "hardware.gpu.scrub_rate", "above zero"),
        ('[hardware.block]\nzero_rate = "0B"', "hardware.block.zero_rate", "above zero"),
        ('[hardware.block]\nerase_budget = "0s"', "hardware.block.erase_budget", "above zero"),
        ('[hardware.block]\nerase_budget = "50d"', "hardware.block.erase_budget", "above 49d"),
        *(
            (f'[hardware.block]\nmake = ["{wrong}"]', "hardware.block.make", "<count>x<size>")
            for wrong in ("", "x", "nqn/0x1GiB", "nqn/-1x1GiB", "nqn/1025x1GiB", "/2x1GiB", "nqn/2")
        ),
        ('[hardware.block]\nmake = ["nqn/2x0B"]', "hardware.block.make", "a size above 0"),
        ('[hardware.block]\nmake = ["nqn/2x1GB"]', "hardware.block.make", '"GB" is not a unit'),
        ('[hardware.block]\nattach = ["nqn/0"]', "hardware.block.attach", "<nsid>"),
        ('[hardware.dax]\nrebind_budget = "0s"', "hardware.dax.rebind_budget", "above zero"),
        ("[hardware]\nhugepages = 1", "hardware.hugepages = 1", "true or false"),
        ("[hardware]\nnormal_share_pm = 1001", "hardware.normal_share_pm", "0 to 1000"),
        ("[hardware]\nnormal_share_pm = true", "hardware.normal_share_pm = True", "whole number"),
        ('[hardware]\nescapees = "hug"', "hardware.escapees = 'hug'", "one of kill, fence"),
        ('[hardware]\ntiers = { cpu1 = "cxl" }', "hardware.tiers", "not a NUMA node"),
        ('[hardware]\ncgroup_root = "/x"', "hardware.cgroup_root", "without a leading /"),
        ('[hardware]\ncgroup_root = "a/../.."', "hardware.cgroup_root", ".."),
        ("[rates]\ngpu = 0.01", "rates.gpu = 0.01", "money is never a float"),
        ('[rates]\ngpu = "1e3"', "rates.gpu", "decimal string"),
        ('[rates]\ntpu = "1"', "rates.tpu", "not a kind"),
        ('[policy]\nttl_default = "500ms"', "policy.ttl_default", "below policy.ttl_min"),
        ("[policy]\nleases_max = 0", "policy.leases_max", "at least 1"),
        ("[policy]\nleases_max = -1", "policy.leases_max = -1", "not negative"),
        ("[policy.tenants.a]\nmem = 5", "policy.tenants.a.mem = 5", "with its unit"),
        ('[policy.tenants."a b"]\nmem = "5GiB"', "tenant", "1 to 64 of"),
        ("[[tenants]]\nuids = [1]", "tenants", "needs a name"),
        ('[[tenants]]\nname = "a"\nuids = ["9-1"]', "tenants.uids", "a range"),
        ('[[tenants]]\nname = "a"\nuids = [4294967295]', "tenants.uids", "a range"),
        ('unmapped = "the {uid}"', "unmapped = 'the {uid}'", "1 to 64 of"),
        ('[paths]\nstate_dir = "state"', "paths.state_dir", "absolute"),
        ('[sockets]\nuser_mode = "666"', "sockets.user_mode = '666'", "octal"),
        ("[sockets]\nconnections_max = 10", "sockets.connections_per_uid_max", "above"),
        ('[sockets]\nunfinished_max = "1MiB"', "sockets.unfinished_max", "below twice"),
        ("[sequencing]\ncommands_max = 10", "sequencing.batch_commands_max", "above"),
        ("key = ", "", "Invalid value"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(text: str, named: str, why: str) -> None:
    said = refused(text)
    assert said.startswith("leased.toml: ")
    assert named in said
    assert why in said


def test_an_impossible_ttl_floor_is_refused_with_its_sum() -> None:
    said = refused('[policy]\nttl_min = "200ms"')
    assert "policy.ttl_min: a lease of the shortest TTL would end" in said
    assert "timing.tick 100ms + timing.commit 100ms" in said
    assert "= 400ms, policy.ttl_min 200ms" in said


def test_a_short_floor_is_possible_where_the_steps_are_short() -> None:
    config = config_file.parse(
        '[policy]\nttl_min = "100ms"\n[timing]\ntick = "10ms"\ncommit = "20ms"\narm = "10ms"', "f"
    )
    assert config.policy.ttl_ns_min == 100 * NS_PER_MS
    assert [budget.sum_ns for budget in budgets(config)][0] == 70 * NS_PER_MS


def test_a_backstop_before_the_agents_turn_is_refused_with_its_sum() -> None:
    said = refused('[timing]\nbackstop = "200ms"')
    assert "timing.backstop: the reaper's backstop would scrub" in said
    assert "= 250ms, timing.backstop 200ms" in said


def test_a_reclaim_bound_below_its_steps_is_refused_with_its_sum() -> None:
    said = refused('[timing]\nreclaim_max = "10s"')
    assert "timing.backstop 2s + cut of mem 5s + scrub of mem 25s" in said
    assert "= 39200ms, timing.reclaim_max 10s" in said


def test_values_are_read_in_their_units() -> None:
    config = config_file.parse(
        """
        unmapped = ""
        [paths]
        runtime_dir = "/run/elsewhere"
        [hardware]
        tiers = { node1 = "cxl", node0 = "hbm" }
        [policy]
        ttl_default = "1.5min"
        [policy.tenants.research]
        leases_max = 3
        mem = "64GiB"
        cpu = 16
        [rates]
        "mem.hbm" = "0.004"
        gpu = "0.02"
        [rates.multipliers_pm]
        scavenger = 300
        [[tenants]]
        name = "research"
        uids = [1000, "2000-2999"]
        """,
        "f",
    )
    assert config.paths.user_socket == Path("/run/elsewhere/io.leased")
    assert config.hardware.tiers == ((1, TierKind.CXL), (0, TierKind.HBM))
    assert config.policy.ttl_ns_default == 90 * NS_PER_S
    (tenant, limits), *_ = config.policy.tenants
    assert (tenant, limits.leases_max) == ("research", 3)
    assert limits.capacities == (
        CapacityLimit(ResourceKind.MEM, 64 << 30),
        CapacityLimit(ResourceKind.CPU, 16000),
    )
    nano = config.rates.rate(ResourceKind.MEM, TierKind.HBM, Priority.STANDARD).nano
    assert nano == 4_000_000
    assert config.rates.rate(ResourceKind.GPU, None, Priority.STANDARD).nano == 20_000_000
    assert config.rates.rate(ResourceKind.CPU, None, Priority.STANDARD).nano == 2_000_000
    assert config.rates.multiplier_pm(Priority.SCAVENGER) == 300
    assert config.tenant_of(2500, ()) == "research"
    assert config.tenant_of(3000, ()) is None


def test_a_uid_goes_before_a_group_and_the_first_entry_counts() -> None:
    config = Config(
        tenants=(
            TenantMapping(TenantId("by-group"), gids=((7, 7),)),
            TenantMapping(TenantId("by-uid"), uids=((1000, 1000),)),
            TenantMapping(TenantId("late"), uids=((0, 5000),)),
        )
    )
    assert config.tenant_of(1000, (7,)) == "by-uid"
    assert config.tenant_of(1001, (7,)) == "late"
    assert config.tenant_of(9000, (1, 7)) == "by-group"
    assert config.tenant_of(9000, (1,)) == "uid-9000"


def test_a_file_that_cannot_be_read_names_itself(tmp_path: Path) -> None:
    absent = tmp_path / "leased.toml"
    with pytest.raises(ConfigError, match=f"{absent}: No such file"):
        config_file.load(absent)
    absent.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        config_file.load(absent)


def test_a_policy_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    main, policy = tmp_path / "leased.toml", tmp_path / "policy.toml"
    main.write_text('policy_file = "policy.toml"\n')
    policy.write_text('ttl_default = "90s"\n[tenants.acme]\ngpu = 4\n')
    read = config_file.load(main)
    assert read.policy.ttl_ns_default == 90 * NS_PER_S
    assert read.policy.tenants[0][1].capacities == (CapacityLimit(ResourceKind.GPU, 4000),)


@pytest.mark.parametrize(
    ("main", "policy", "named"),
    [
        ('policy_file = "none.toml"', "", "none.toml: No such file"),
        (
            'policy_file = "policy.toml"',
            "[tenants.acme]\ngpu = -1",
            "policy.toml: tenants.acme.gpu",
        ),
        (
            'policy_file = "policy.toml"',
            'ttl_min = "100ms"',
            "policy.toml: policy.ttl_min: a lease",
        ),
        ('policy_file = "policy.toml"\n[policy]\nttl_min = "2s"', "", "one of them counts"),
    ],
)
def test_a_policy_file_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, main: str, policy: str, named: str
) -> None:
    (tmp_path / "leased.toml").write_text(main)
    (tmp_path / "policy.toml").write_text(policy)
    with pytest.raises(ConfigError, match=re.escape(named)):
        config_file.load(tmp_path / "leased.toml")
