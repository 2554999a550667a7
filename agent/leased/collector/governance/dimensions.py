# SPDX-License-Identifier: Apache-2.0
"""Dimensions: the names by which the API counts quota, and what each is in a node's policy.

Rule: a limit is one integer inside (raw units of its kind, a count, ns, or a number per hour) and a
number or text with its unit outside; the way out and back is exact, or refused. GB is 2^30 bytes
here, as everywhere in the program.

Does not know tenants (`quotas`).
"""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any, Final

import msgspec

from leased.terms.moment import HOUR_NS
from leased.terms.quantity import parse_duration, parse_rate, print_duration
from leased.terms.resource import UNIT, ResourceKind

RAW_MAX: Final = 2**63 - 1


class Form(enum.Enum):
    """How a dimension is written."""

    AMOUNT = "number"
    COUNT = "integer"
    DURATION = "duration"
    RATE = "rate"


class Dimension(msgspec.Struct, frozen=True):
    """One way to count. `kind` is what of a node it holds back, `field` the plain limit of a
    `policy.LimitSet`; neither: the collector's own."""

    key: str
    form: Form
    meaning: str
    kind: ResourceKind | None = None
    field: str = ""

    @property
    def scale(self) -> int:
        """Raw units in one of what people count."""
        return 1 if self.kind is None else UNIT[self.kind]


DIMENSIONS: Final = (
    Dimension("cpu_cores", Form.AMOUNT, "cores held at once", ResourceKind.CPU),
    Dimension("memory_gb", Form.AMOUNT, "GiB of memory held at once", ResourceKind.MEM),
    Dimension("gpus", Form.AMOUNT, "GPUs held at once", ResourceKind.GPU),
    Dimension(
        "state_size_gb", Form.AMOUNT, "GiB of block storage held at once", ResourceKind.BLOCK
    ),
    Dimension("network_gbps", Form.AMOUNT, "Gbit/s held at once", ResourceKind.NET),
    Dimension("max_concurrent_tasks", Form.COUNT, "leases in use at once", field="concurrent_max"),
    Dimension(
        "max_leases", Form.COUNT, "leases, counted until they are proven clean", field="leases_max"
    ),
    Dimension("max_queue_depth", Form.COUNT, "requests that wait", field="waiting_max"),
    Dimension(
        "max_task_duration",
        Form.DURATION,
        "how old a lease may become by renewals",
        field="duration_ns_max",
    ),
    Dimension("submit_rate", Form.RATE, "requests for leases", field="submit_rate"),
    Dimension("api_rate", Form.RATE, "calls of any kind", field="api_rate"),
    Dimension("log_retention_days", Form.COUNT, "days for which records are kept at least"),
)
BY_KEY: Final = {dimension.key: dimension for dimension in DIMENSIONS}
_QUANTUM: Final = {
    ResourceKind.CPU: 100,
    ResourceKind.MEM: 64 << 20,
    ResourceKind.GPU: UNIT[ResourceKind.GPU],
    ResourceKind.BLOCK: UNIT[ResourceKind.BLOCK],
    ResourceKind.NET: 10**6,
}
DIVISIBLE: Final = {
    one.key: 1 if one.kind is None else _QUANTUM[one.kind]
    for one in DIMENSIONS
    if one.kind is not None or one.key in ("max_concurrent_tasks", "max_leases")
}
"""What may be a limit of the whole fleet, and the least that a node is given of it. Rates, lengths
of queues and ages are each node's: they cannot be handed from one to another."""
BY_KIND: Final = {one.kind: one for one in DIMENSIONS if one.kind is not None}


def parse(dimension: Dimension, value: Any) -> int:
    """What `value` means, as an integer. Raises ValueError."""
    if dimension.form is Form.AMOUNT:
        return _parse_amount(dimension, value)
    if dimension.form is Form.COUNT:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= RAW_MAX:
            raise ValueError(f"a whole number from 0 to {RAW_MAX}")
        return value
    if not isinstance(value, str):
        example = '"3600s"' if dimension.form is Form.DURATION else '"100/s"'
        raise ValueError(f"text such as {example}")
    if dimension.form is Form.DURATION:
        found = parse_duration(value)
        if not 0 < found <= RAW_MAX:
            raise ValueError("a duration above zero, of at most 292 years")
        return found
    count, per_ns = parse_rate(value)
    return count * (HOUR_NS // per_ns)


def _parse_amount(dimension: Dimension, value: Any) -> int:
    allowed = f"a number from 0 to {RAW_MAX // dimension.scale} with at most three decimals"
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(allowed)
    if isinstance(value, Decimal) and not value.is_finite():
        raise ValueError(allowed)
    if not 0 <= value <= RAW_MAX // dimension.scale:
        raise ValueError(allowed)
    thousandths = value * 1000
    if thousandths != int(thousandths):
        raise ValueError(allowed)
    # A thousandth of a GiB is no whole number of bytes: rounded down, never above what was said.
    return int(thousandths) * dimension.scale // 1000


def show(dimension: Dimension, raw: int) -> int | Decimal | str:
    """`raw` as it is written."""
    if dimension.form is Form.AMOUNT:
        whole, rest = divmod(raw, dimension.scale)
        if not rest:
            return whole
        thousandths = -(-rest * 1000 // dimension.scale)
        return whole + Decimal(thousandths).scaleb(-3).normalize()
    if dimension.form is Form.DURATION:
        return print_duration(raw)
    if dimension.form is Form.RATE:
        for unit, per_hour in (("s", 3_600), ("min", 60)):
            if raw % per_hour == 0:
                return f"{raw // per_hour}/{unit}"
        return f"{raw}/h"
    return raw
