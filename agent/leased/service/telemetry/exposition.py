# SPDX-License-Identifier: Apache-2.0
"""The exposition: samples as Prometheus reads them (text format 0.0.4).

Rule: names and units follow the mapping that OpenTelemetry defines for Prometheus, so that a series
is called the same whichever way it came. A sample that has gone stale is left out: Prometheus ends
the series by itself. Families and samples are in order, so the same samples are the same bytes.

Pure. Does not serve anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from leased.terms.sample import Sample
from leased.terms.series import SERIES, Series

_UNITS: Final = {
    "By": "bytes",
    "By/s": "bytes_per_second",
    "s": "seconds",
    "W": "watts",
    "J": "joules",
    "Cel": "celsius",
    "Hz": "hertz",
}


def expose(samples: Iterable[Sample]) -> bytes:
    """The body of an answer to a scrape: these samples, which are all fresh."""
    families: dict[str, list[str]] = {}
    for sample in samples:
        series = SERIES[sample.name]
        line = f"{family_of(series)}{_labels(sample)} {_value(sample.value, series)}"
        families.setdefault(sample.name, []).append(line)
    lines: list[str] = []
    for name in sorted(families):
        series = SERIES[name]
        family = family_of(series)
        lines.append(f"# HELP {family} {series.says}")
        lines.append(f"# TYPE {family} {'counter' if series.counter else 'gauge'}")
        lines.extend(sorted(families[name]))
    return "".join(f"{line}\n" for line in lines).encode()


def family_of(series: Series) -> str:
    """What a series is called there."""
    words = [series.name.replace(".", "_")]
    unit = _UNITS.get(series.exported, "")
    if series.exported == "1" and series.per > 1:
        unit = "ratio"
    if unit and not words[0].endswith(f"_{unit}"):
        words.append(unit)
    if series.counter:
        words.append("total")
    return "_".join(words)


def _labels(sample: Sample) -> str:
    pairs = [(key.replace(".", "_"), value) for key, value in sample.attributes]
    if sample.resource_id:
        pairs.append(("resource", sample.resource_id))
    if sample.lease_id is not None:
        pairs.append(("lease", sample.lease_id.hex()))
        pairs.append(("tenant", sample.tenant))
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: int, series: Series) -> str:
    """In the exported unit, exactly: the integer is cut at its decimal point."""
    if series.per == 1:
        return str(value)
    whole, rest = divmod(abs(value), series.per)
    digits = len(str(series.per)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0")
    return f"{'-' if value < 0 else ''}{whole}{'.' if fraction else ''}{fraction}"
