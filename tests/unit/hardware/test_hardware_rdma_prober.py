# SPDX-License-Identifier: Apache-2.0
"""What a prober's last read says of a lease's memory: nothing, unless it left for the fabric."""

from __future__ import annotations

from typing import Any

import pytest

from leased.hardware.rdma import prober
from leased.hardware.rdma.calls import Probe, Probed

WENT_THROUGH, FLUSHED, REFUSED, NOBODY_ANSWERED = 0, 5, 10, 12


class Reader:
    """A prober whose read ends so."""

    address, rkey = 0, 1

    def __init__(self, status: int) -> None:
        self.status, self.ended = status, False

    def read(self, address: int, rkey: int) -> tuple[int, int]:
        return self.status, 1000

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("status", "probed"),
    [
        (WENT_THROUGH, Probed(True, WENT_THROUGH, 1000)),
        (REFUSED, Probed(True, REFUSED, 1000)),
        (NOBODY_ANSWERED, Probed(True, NOBODY_ANSWERED, 1000)),
        (FLUSHED, Probed(False)),
    ],
)
def test_a_read_that_never_left_proves_nothing(status: int, probed: Probed) -> None:
    """A connection that had broken before flushes what is asked of it: the memory was not tried,
    and the second proof was counted all the same."""
    one: Any = Reader(status)
    prober._probers["lease", "guid"] = one
    assert prober.probe(Probe("lease", "guid"), ()) == probed
    assert one.ended and prober._probers == {}
