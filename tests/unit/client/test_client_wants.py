# SPDX-License-Identifier: Apache-2.0
"""Wants: quantities as people write them become exact asks, or are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leased.client import Refused, want
from leased.terms.errors import InvalidParameter
from leased.wire import objects


def describe_want(**asked: object) -> list[tuple[str, int]]:
    return [(ask.kind, ask.capacity) for ask in want(**asked)]  # type: ignore[arg-type]


def test_wants_are_exact() -> None:
    assert describe_want(gpu=2, cpu="500m", mem="1.5GiB") == [
        ("gpu", 2000),
        ("cpu", 500),
        ("mem", 3 << 29),
    ]
    assert describe_want(cpu="1.25", block="2T") == [("cpu", 1250), ("block", 2 << 40)]
    assert describe_want(cpu=1.25, mem=4096.0) == [("cpu", 1250), ("mem", 4096)]
    assert want(mem="4KiB", tier="cxl", node=1, page_size="2MiB") == [
        objects.Ask("mem", 4096, tier="cxl", node=1, page_size=2 << 20)
    ]
    assert want(cpu=2, exclusive=True)[0].exclusive is True
    assert want(gpu=2, mig="1g.10gb") == [
        objects.Ask("gpu", 1, count=2, attributes={"mig": "1g.10gb"})
    ]
    assert want(block="1T", raw=True) == [objects.Ask("block", 1 << 40, shape="raw")]


@pytest.mark.parametrize(
    "asked",
    [
        *({}, {"mem": "lots"}, {"mem": 1.5}, {"cpu": float("nan")}, {"mem": "0.3KiB"}),
        *({"cpu": "1.2345"}, {"mem": 1, "tier": "tape"}),
    ],
)
def test_wants_that_cannot_be_meant_are_refused(asked: dict[str, object]) -> None:
    make: Callable[..., object] = want
    with pytest.raises(InvalidParameter):
        make(**asked)


@pytest.mark.parametrize(
    ("what", "asked", "usage", "limit", "text"),
    [
        ("mem", 9 << 40, 1 << 28, 6 << 30, "mem: asked 9TiB, 256MiB of 6GiB in use"),
        ("gpu", 1000, 0, 0, "gpu: asked 1"),
        ("cpu", 1500, 500, 2000, "cpu: asked 1500m, 500m of 2 in use"),
        ("ns", 1_000_000, 0, 1_500_000_000, "ns: asked 1 ms, the limit is 1.5 s"),
        ("leases", 1, 8, 8, "leases: asked 1, 8 of 8 in use"),
    ],
)
def test_a_refusal_says_its_numbers_in_their_units(
    what: str, asked: int, usage: int, limit: int, text: str
) -> None:
    said = Refused(objects.Refusal("no_capacity", what, limit, usage, asked))
    assert str(said) == f"no_capacity: {text}; waiting does not help"
