# SPDX-License-Identifier: Apache-2.0
"""The exposition for Prometheus: names, units, escaping, and what promtool says of it."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from leased.service.telemetry.exposition import expose, family_of
from leased.terms.identity import LeaseId
from leased.terms.sample import Sample
from leased.terms.series import SERIES
from tests.doubles.host import not_proven

LEASE = LeaseId(b"\xab" * 16)


def one_of_each() -> list[Sample]:
    """A sample of every series."""
    return [
        Sample(name, "gpu:GPU-1", 1, 5, tuple((key, "x") for key in series.attributes))
        for name, series in SERIES.items()
    ]


def test_a_sample_is_a_line_in_the_exported_unit() -> None:
    told = expose(
        [
            Sample("hw.power", "gpu:GPU-1", 321_050, 5, (("hw.type", "gpu"),)),
            Sample(
                "leased.lease.cpu.time",
                "",
                1_500_000_000,
                5,
                (("cpu.mode", "user"),),
                LEASE,
                1000,
                'a"b\\c',
            ),
            Sample(
                "hw.temperature",
                "block:a",
                -500,
                5,
                (("hw.type", "physical_disk"), ("hw.sensor_location", "1")),
            ),
            Sample("leased.gpu.throttled", "gpu:GPU-1", 0, 5, (("leased.reason", "power_cap"),)),
        ]
    )
    assert list(told) == [
        "# HELP hw_power_watts electrical power",
        "# TYPE hw_power_watts gauge",
        'hw_power_watts{hw_type="gpu",resource="gpu:GPU-1"} 321.05',
        "# HELP hw_temperature_celsius temperature",
        "# TYPE hw_temperature_celsius gauge",
        'hw_temperature_celsius{hw_type="physical_disk",hw_sensor_location="1",resource="block:a"}'
        " -0.5",
        "# HELP leased_gpu_throttled 1 while held back for that reason",
        "# TYPE leased_gpu_throttled gauge",
        'leased_gpu_throttled{leased_reason="power_cap",resource="gpu:GPU-1"} 0',
        "# HELP leased_lease_cpu_time_seconds_total processor time",
        "# TYPE leased_lease_cpu_time_seconds_total counter",
        f'leased_lease_cpu_time_seconds_total{{cpu_mode="user",lease="{LEASE.hex()}",'
        'tenant="a\\"b\\\\c"} 1.5',
    ]


def test_every_series_has_a_family_of_its_own() -> None:
    families = [family_of(series) for series in SERIES.values()]
    assert len(set(families)) == len(families)


def test_promtool_finds_nothing_wrong_with_it() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        not_proven("that promtool accepts the exposition", "promtool is not installed")
    text = "".join(f"{line}\n" for line in expose(one_of_each())).encode()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8), st.randoms())
def test_the_same_samples_are_the_same_bytes_and_no_digit_is_lost(
    values: list[int], random: object
) -> None:
    samples = [
        Sample("hw.energy", f"gpu:{at}", value, 5, (("hw.type", "gpu"),))
        for at, value in enumerate(values)
    ]
    told = list(expose(samples))
    shuffled = samples[:]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(expose(shuffled)) == told
    lines = [line for line in told if not line.startswith("#")]
    from decimal import Decimal

    assert sorted(int(Decimal(line.rpartition(" ")[2]) * 1000) for line in lines) == sorted(values)


def test_the_table_of_series_is_sound() -> None:
    for name, series in SERIES.items():
        assert name == series.name and series.says and series.per in (1, 1000, 10**6, 10**9)
        assert series.least < series.most
        assert name.startswith(("system.", "hw.", "process.", "leased."))


def test_the_document_is_current() -> None:
    top = Path(__file__).resolve().parents[3]
    made = runpy.run_path(str(top / "packaging" / "man" / "series"))
    page = (top / "agent/leased/service/telemetry/SERIES.md").read_text("utf-8")
    assert made["page"]() == page, "run packaging/man/series"
