# SPDX-License-Identifier: Apache-2.0
"""The collector's settings: the shipped file is the defaults, and what is wrong is named."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from leased.collector import retention_rule
from leased.collector.api import settings
from leased.collector.api.pace import Pace
from leased.collector.main import main
from leased.collector.metering import engines
from leased.collector.planning import reserving, scheduled_scaling, spot, thresholds
from leased.collector.webhooks import choosing
from leased.ctl.console import Console
from leased.terms.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "leased-collector.toml"
S = 1_000_000_000
SCHEDULE = '[scheduled_scaling]\nschedules = [{ name = "a", cron = "0 8 * *"'
OWN = ("HTTP", "ACCESS", "GOVERNANCE", "TELEMETRY")


def test_the_shipped_file_spells_out_every_default() -> None:
    text = SHIPPED.read_text()
    assert settings.parse(text) == settings.Settings() == settings.parse("")
    ours = [getattr(settings, f"_{name}_KEYS") for name in OWN]
    planned = (spot.KEYS, scheduled_scaling.KEYS, reserving.KEYS, thresholds.KEYS, choosing.KEYS)
    for keys in (*ours, *planned, engines.KEYS, retention_rule._KEYS):
        missing = [key for key in keys if f"\n{key} = " not in text]
        assert not missing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[http]\nlissten = []", 'did you mean "listen"'),
        ("[http]\nlisten = []", "it would listen nowhere"),
        ('[http]\nlisten = ["8080"]', "an address and a port"),
        ('[http]\ntls_listen = ["0.0.0.0:8443"]', "http.certificate"),
        ("[http]\nconnections_max = 0", "must be above zero"),
        ('[access]\nloopback = "yes"', "one of none, read, write"),
        ('[governance]\npolicy_valid = "1s"', "at least 60s"),
        ('[governance]\nfleet = "a b"', "a name"),
        ("[governance]\nfleet = 1", "a string"),
        ("[telemetry]\nrows_max = 0", "telemetry.rows_max"),
        ('[store]\nengine = "sqlite"', "one of duckdb, spark"),
        ('[store]\nengine = "spark"', "store.spark_url"),
        ('[store]\nspark_url = "sc://x:1/;token=y"', "spark_token_file keeps it apart"),
        ('[store]\nspark_timeout = "1ms"', "at least 1s"),
        ('[reservations]\nprice = "101%"', "reservations.price"),
        ('[spot_optimization]\nprice = "101%"', "spot_optimization.price"),
        ('[spot_optimization]\ninterrupted_every = "1s"', "at least 60s"),
        ('[spot_optimization]\neligible = ["standard", "standard"]', "each priority once"),
        ('[scheduled_scaling]\nschedules = [{ name = "a", cron = "* * * * *" }]', "min_replicas"),
        (f"{SCHEDULE}, min_replicas = -1 }}]", "min_replicas = -1: a whole number"),
        (f"{SCHEDULE}, min_replicas = 1 }}]", "schedules.a: schedule"),
        ("x = [", "Invalid value"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        settings.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        '[[tokens]]\nname = "a"\nsha256 = "00"\nscopes = ["read"]',
        f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["all"]',
        f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"',
        f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = []\n' * 2,
        "[token]",
    ],
)
def test_tokens_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        settings.parse_tokens(text)


def test_a_token_is_listed_once_and_can_be_named() -> None:
    def row(name: str, digit: str) -> str:
        digest = digit * 64
        return f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = ["read"]\n'

    assert len(settings.parse_tokens(row("Bürö 1", "a") + row("b", "b"))) == 2
    for second in (row("a", "b"), row("b", "a")):
        with pytest.raises(ConfigError, match="listed twice"):
            settings.parse_tokens(row("a", "a") + second)
    for name in ("", "x" * 101, "a\\nb", "\\u202e", "\\u0085"):
        with pytest.raises(ConfigError, match="that can be seen"):
            settings.parse_tokens(row(name, "a"))


def test_a_token_that_could_not_be_listed_is_not_shown() -> None:
    out, err = io.StringIO(), io.StringIO()
    assert main(["token", 'a"b', "--tenant", "acme"], Console(out, err)) == 0
    [row] = settings.parse_tokens(err.getvalue().partition("SIGHUP:\n")[2])
    assert (row.name, row.tenants) == ('a"b', frozenset({"acme"}))
    for words in ([""], ["a\nb"], ["a", "--tenant", "<script>"]):
        out, err = io.StringIO(), io.StringIO()
        assert main(["token", *words], Console(out, err)) == 65
        assert out.getvalue() == "" and "sha256" not in err.getvalue(), err.getvalue()


def test_tokens_that_others_may_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text("")
    path.chmod(0o666)
    found = settings.parse('[access]\ntokens_file = "tokens.toml"')
    with pytest.raises(ConfigError, match="chmod go-w"):
        settings.load_tokens(found, tmp_path)
    path.chmod(0o640)
    assert settings.load_tokens(found, tmp_path) == ()


def test_pace_lets_through_what_it_says_and_forgets_who_is_gone() -> None:
    pace = Pace(per_s=10, burst=5)
    assert [pace.take("a", 0) for _ in range(6)] == [0] * 5 + [S // 10]
    assert pace.take("b", 0) == 0
    assert pace.take("a", S // 10) == 0 and pace.take("a", S // 10) > 0
    through = sum(pace.take("a", S + at * S // 1000) == 0 for at in range(1000))
    assert 5 + 9 <= through <= 5 + 10
    for number in range(30_000):
        pace.take(f"caller {number}", 10 * S + number * S)
    assert len(pace._full_at) <= 10_001


def test_pace_holds_nobody_back_for_a_clock_that_was_set_back() -> None:
    pace = Pace(per_s=10, burst=5)
    assert [pace.take("a", 3_600 * S) for _ in range(6)] == [0] * 5 + [S // 10]
    assert [pace.take("a", 0) for _ in range(6)] == [0] * 5 + [S // 10]
    for number in range(10_001):
        pace.take(f"caller {number}", 7_200 * S)
    assert pace.take("somebody else", 60 * S) == 0
