# SPDX-License-Identifier: Apache-2.0
"""Quantities: exact or refused, and printed so that they read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leased.terms.quantity import parse_duration, parse_size, print_duration, print_size


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("60s", 60_000_000_000),
        ("60 s", 60_000_000_000),
        ("100ms", 100_000_000),
        ("1.5s", 1_500_000_000),
        ("0.000001ms", 1),
        ("2h", 7_200_000_000_000),
        ("15min", 900_000_000_000),
        ("1d", 86_400_000_000_000),
        ("0s", 0),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize("text", ["", "60", "s", "1.s", "-1s", "1e3s", "1 s ", "0.5ns", "1S", "١s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1GB", "1MB", "1k", "16", "0.5B", "1.5.5MiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(0, 10**18))
def test_a_duration_reads_back(ns: int) -> None:
    assert parse_duration(print_duration(ns)) == ns


@given(st.integers(0, 10**15 - 1))
def test_a_size_reads_back(size_bytes: int) -> None:
    assert parse_size(print_size(size_bytes)) == size_bytes
