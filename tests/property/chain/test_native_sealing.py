# SPDX-License-Identifier: Apache-2.0
"""What is sealed natively has the bytes of what is sealed in Python, record by record."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from leased.chain.canonical import SCHEMA
from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.terms.moment import Moment
from tests.doubles.logs import BOOT, CountedEntropy

moments = st.builds(Moment, st.just(BOOT), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
schemas = st.sampled_from((SCHEMA, SCHEMA, SCHEMA, SCHEMA, 2))
bodies = st.lists(
    st.tuples(st.integers(0, 2**16 - 1), st.binary(max_size=300), schemas), min_size=1
)


def _sealer() -> Sealer:
    return Sealer(b"l" * 16, GENESIS, EMPTY, 2, entropy=CountedEntropy())


@given(st.lists(st.tuples(bodies, moments, st.booleans()), min_size=1, max_size=4))
def test_both_ways_write_the_same_bytes(batches) -> None:
    native, plain = _sealer(), _sealer()
    for batch, moment, ends in batches:
        records = [(kind, body, moment, schema) for kind, body, schema in batch]
        quick, quick_hashes = native._seal_many(records, ends=ends)
        slow, slow_hashes = plain._seal_each(records, ends=ends)
        assert b"".join(quick) == b"".join(slow)
        assert quick_hashes == slow_hashes
        assert native.head == plain.head


@given(moments, moments)
def test_records_of_several_moments_keep_their_own(one, other) -> None:
    records = [(1, b"a", one, 1), (2, b"b", other, 1), (3, b"c", one, 1)]
    made = [seal(records, ends=True) for seal in (_sealer()._seal_many, _sealer()._seal_each)]
    assert b"".join(made[0][0]) == b"".join(made[1][0])
