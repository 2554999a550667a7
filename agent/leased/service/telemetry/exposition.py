# SPDX-License-Identifier: Apache-2.0
"""The exposition: samples of telemetry as families of Prometheus.

Rule: names and units follow the mapping that OpenTelemetry defines for Prometheus, so that a series
is called the same whichever way it came. A sample that has gone stale is left out: Prometheus ends
the series by itself. Families and samples are in order, so the same samples are the same bytes.

Pure. Does not serve anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from leased.terms.exposition import Labels, family
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


def expose(samples: Iterable[Sample]) -> Iterator[str]:
    """The lines of an answer to a scrape: these samples, which are all fresh."""
    families: dict[str, list[tuple[Labels, str]]] = {}
    for sample in samples:
        one = (_labels(sample), _value(sample.value, SERIES[sample.name]))
        families.setdefault(sample.name, []).append(one)
    for name in sorted(families):
        series = SERIES[name]
        kind = "counter" if series.counter else "gauge"
        yield from family(family_of(series), kind, series.says, families[name])


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


def _labels(sample: Sample) -> Labels:
    pairs = [(key.replace(".", "_"), value) for key, value in sample.attributes]
    if sample.resource_id:
        pairs.append(("resource", sample.resource_id))
    if sample.lease_id is not None:
        pairs.append(("lease", sample.lease_id.hex()))
        pairs.append(("tenant", sample.tenant))
    return tuple(pairs)


def _value(value: int, series: Series) -> str:
    """In the exported unit, exactly: the integer is cut at its decimal point."""
    if series.per == 1:
        return str(value)
    whole, rest = divmod(abs(value), series.per)
    digits = len(str(series.per)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0")
    return f"{'-' if value < 0 else ''}{whole}{'.' if fraction else ''}{fraction}"
