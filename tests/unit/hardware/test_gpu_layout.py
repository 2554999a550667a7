# SPDX-License-Identifier: Apache-2.0
"""Where an instance is made: a place that the driver does not offer is said, and by what name."""

from __future__ import annotations

import errno

import pytest

from leased.hardware.gpu.facts import Place
from leased.hardware.gpu.layout import span_at
from leased.terms.errors import DeviceError


def test_a_place_takes_what_the_driver_says() -> None:
    assert span_at([(0, 2), (4, 1)], Place("1g.10gb", 4)) == 1


@pytest.mark.parametrize(("places", "offers"), [([(0, 2), (2, 2)], "offers 0, 2"), ([], "none")])
def test_a_place_that_is_not_offered_is_a_refusal(
    places: list[tuple[int, int]], offers: str
) -> None:
    """It was an exception that named nothing: another driver than the layout was written for."""
    with pytest.raises(DeviceError, match=offers) as told:
        span_at(places, Place("1g.10gb", 4))
    assert told.value.errno == errno.ENOENT and "1g.10gb@4" in told.value.detail
