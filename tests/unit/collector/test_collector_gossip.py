# SPDX-License-Identifier: Apache-2.0
"""What another collector has cosigned, beside what is held here."""

from __future__ import annotations

import pytest

from leased.chain.tree import EMPTY
from leased.collector.gossip import PeerHead, heads_in, judge_heads
from leased.collector.reconcile import Verdict
from leased.terms import event as e
from tests.doubles.nodes import PulledNode

HASHES = [bytes([number]) * 32 for number in range(9)]


def root_at(size: int) -> bytes:
    return EMPTY.extended(HASHES[:size]).root()


def head(size: int, root: bytes | None = None) -> PeerHead:
    root = root_at(size) if root is None else root
    return PeerHead("east", 4, b"l" * 16, "o/n", size, root, 7, bytes(64))


@pytest.mark.parametrize(
    ("heads", "ends_at", "verdict"),
    [
        ([head(3), head(5)], None, None),
        ([head(3), head(5, bytes(32))], None, Verdict.FORK),
        ([head(0)], None, None),
        ([head(6, bytes(32))], None, None),  # not held yet: it says nothing
        ([head(6, bytes(32))], 5, Verdict.ROLLBACK),
        ([head(5)], 5, None),
        ([], 5, None),
    ],
)
def test_what_speaks_against_a_log(
    heads: list[PeerHead], ends_at: int | None, verdict: Verdict | None
) -> None:
    found = judge_heads(heads, 5, root_at, ends_at=ends_at)
    assert (None if found is None else found[0].verdict) == verdict
    assert found is None or found[1] in heads and "east" in found[0].why


def test_heads_are_read_from_the_other_collectors_own_log() -> None:
    log = PulledNode(3)
    log.start()
    fields = (b"l" * 16, "o/n", 5, b"r" * 32, 7, b"s" * 64)
    log.seal([e.HeadCosigned(e.EventId(log.entropy()), *fields)], sign=True)
    log.seal(
        [e.VerdictReached(e.EventId(log.entropy()), b"l" * 16, "o/n", "FORK", 5, *2 * (bytes(32),))]
    )
    found = heads_in(b"".join(log.frames), "east", log.log_id)
    assert found == [PeerHead("east", found[0].sequence, *fields)]
