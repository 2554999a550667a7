# SPDX-License-Identifier: Apache-2.0
"""billing.toml: what ships is what is built in, every example in it can be meant, nonsense is
refused by key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leased.collector.accounts.terms_file import load_terms, load_terms_for
from leased.economics.contracts import Model, Terms
from leased.terms.errors import ConfigError
from leased.terms.resource import ResourceKind

SHIPPED = Path("configs/billing.toml")


def test_what_ships_is_what_is_built_in():
    assert load_terms(SHIPPED) == Terms()


def test_prices_are_those_that_the_configuration_names(tmp_path: Path):
    config = tmp_path / "leased-collector.toml"
    config.write_text("")
    assert load_terms_for(config) == Terms()  # without a file the built-in ones
    (tmp_path / "billing.toml").write_text('[rates]\ngpu = "0.02"')
    assert load_terms_for(config).cards[0].card.rates[0].nano == 20_000_000
    (tmp_path / "other.toml").write_text('[rates]\ngpu = "0.03"')
    config.write_text('[governance]\nterms_file = "other.toml"')
    assert load_terms_for(config).cards[0].card.rates[0].nano == 30_000_000


def test_who_names_a_file_that_is_not_there_gets_no_list_prices(tmp_path: Path):
    config = tmp_path / "leased-collector.toml"
    for named in (lambda: load_terms(tmp_path / "a.toml"), lambda: load_terms_for(config)):
        with pytest.raises(ConfigError, match="toml: "):
            named()
    config.write_text('[governance]\nterms_file = "a.toml"')
    with pytest.raises(ConfigError, match=re.escape("a.toml: ")):
        load_terms_for(config)


def test_a_later_version_of_the_card_keeps_what_it_does_not_name(tmp_path: Path):
    (tmp_path / "billing.toml").write_text(
        '[rates]\ncurrency = "USD"\ndecimals = 2\ncpu = "0.5"\n'
        "[rates.multipliers_pm]\nguaranteed = 1500\n"
        '[[cards]]\nsince = "2026-02-01"\ngpu = "3"\n[infrastructure]\nmem = "7"'
    )
    terms = load_terms(tmp_path / "billing.toml")
    first, later = (version.card for version in terms.cards)
    assert (later.currency, later.decimals) == ("USD", 2)
    assert later.multipliers_pm == first.multipliers_pm != ()
    nano = {kind: [r.nano for r in later.rates if r.kind is kind] for kind in ResourceKind}
    assert nano[ResourceKind.CPU] == [500_000_000] and nano[ResourceKind.GPU] == [3_000_000_000]
    costs = {rate.kind: rate.nano for rate in terms.infrastructure.rates}
    assert terms.infrastructure.currency == "USD" and costs[ResourceKind.CPU] == 500_000_000


def test_every_example_of_the_shipped_file_can_be_meant(tmp_path: Path):
    text = SHIPPED.read_text()
    examples = "\n".join(
        line.removeprefix("#").strip()
        if re.match(r"#\s*(\[|\]|\{|[a-z_-]+ = )", line)
        else ("" if line.startswith("#") else line)
        for line in text.splitlines()
    )
    (tmp_path / "billing.toml").write_text(examples)
    terms = load_terms(tmp_path / "billing.toml")
    assert [contract.model for contract in terms.contracts] == [
        Model.RESERVED,
        Model.USAGE_BASED,
        Model.TIERED,
    ]
    assert len(terms.cards) == 2 and terms.plans[0].cpu_milli == 50_000
    assert terms.cards[0].card.multipliers_pm and terms.infrastructure.currency == "USD"
    assert [tier.low for tier in terms.contracts[2].tiers] == [0, 1_000_000, 10_000_000]
    assert terms.credits[0].nano == 100 * 10**9
    assert terms.time_zones == (("tenant-acme", "America/New_York"),)


PLAN = """
[plans.s]
cpu_cores = 1
memory_gb = 1
monthly_price = "1"
[[contracts]]
tenant = "t"
model = "reserved"
plan = "s"
"""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rates = 1", "rates"),
        ("[rates]\ngpu = 0.01", "rates.gpu"),
        ("colour = 1", "colour"),
        ('[[cards]]\ngpu = "1"', "cards[0].since"),
        ('[[cards]]\nsince = "2026-01-01T00:30:00Z"', "billing.toml: cards[0].since"),
        ('[[cards]]\nsince = "2026-01-01"\ncurrency = "EUR"', "billing.toml: cards[0]: one curr"),
        ('[[cards]]\nsince = "2026-01-01"\ndecimals = 99', "billing.toml: cards[0].decimals"),
        ('[plans.s]\ncpu_cores = 1\nmemory_gb = 1\nmonthly_price = "1e9"', "plans.s.monthly_price"),
        ('[plans.s]\ncpu_cores = -1\nmemory_gb = 1\nmonthly_price = "1"', "plans.s"),
        ('[[contracts]]\ntenant = "t"\nmodel = "barter"', "model"),
        ('[[contracts]]\ntenant = "Ünì"\nmodel = "rate_card"', "contracts[0]"),
        ('[[contracts]]\ntenant = "t"\nmodel = "tiered"\ntiers = [{ tasks_from = 3, rate_per_task '
         '= "1" }]', "contracts[0].tiers"),
        ('[[contracts]]\ntenant = "t"\nmodel = "rate_card"\nrest = "x"', "contracts[0].rest"),
        ('[[contracts]]\ntenant = "t"\nmodel = "usage_based"\nnetwork_gb = "0.02"',
         "contracts[0].network_gb: no record counts bytes"),
        (f'{PLAN}cpu_core_hour = "0.04"', "contracts[0].cpu_core_hour: the plan"),
        (f'{PLAN}memory_gb_hour = "0"', "contracts[0].memory_gb_hour: the plan"),
        ('[[contracts]]\ntenant = "t"\nmodel = "tiered"\ntask_execution = "1"\ntiers = [{ '
         'tasks_from = 0, rate_per_task = "2" }]', "contracts[0].task_execution: the tiers"),
        ('[[credits]]\ntenant = "t"\nmonth = "never"\namount = "1"\nreason = ""', "month"),
        ('[time_zones]\nt = "Mars/Olympus"', "time_zones.t"),
        ('[time_zones]\nt = "Asia/Kolkata"', "time_zones.t: months of Asia/Kolkata"),
        ('[time_zones]\nt = "Australia/Lord_Howe"', "time_zones.t: months of"),
        (f"[rates.multipliers_pm]\nstandard = 0x{'f' * 5_000}", "rates.multipliers: at most"),
        (f'[plans.s]\ncpu_cores = 0x{"f" * 5_000}\nmemory_gb = 1\nmonthly_price = "1"', "plans.s"),
        ('[[contracts]]\ntenant = "t"\nmodel = "tiered"\ntiers = [{ tasks_from = 0, rate_per_task '
         f'= "1" }}, {{ tasks_from = 0x{"f" * 5_000}, rate_per_task = "1" }}]',
         "contracts[0].tiers"),
        ("[rates", "billing.toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_its_key(tmp_path: Path, text: str, key: str):
    (tmp_path / "billing.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(key)):
        load_terms(tmp_path / "billing.toml")
