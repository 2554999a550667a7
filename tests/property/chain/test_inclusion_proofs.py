# SPDX-License-Identifier: Apache-2.0
"""Inclusion proofs: the laws of RFC 6962, and an implementation by others (pymerkle) as the judge
of ours."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from leased.chain.proof import inclusion_path, root_of_path, subtree_of
from leased.chain.tree import EMPTY

SIZES = st.integers(min_value=1, max_value=200)


def _leaf(number: int) -> bytes:
    return sha256(b"\x00" + b"%d" % number).digest()


def _path(sequence: int, size: int) -> list[bytes]:
    return inclusion_path(
        sequence, size, lambda start, stop: subtree_of([_leaf(n) for n in range(start, stop)])
    )


@given(size=SIZES, data=st.data())
def test_every_leaf_is_proven_and_no_other_in_its_place(size: int, data: st.DataObject) -> None:
    sequence = data.draw(st.integers(min_value=0, max_value=size - 1))
    root = EMPTY.extended([_leaf(n) for n in range(size)]).root()
    path = _path(sequence, size)
    assert root_of_path(sequence, size, _leaf(sequence), path) == root
    assert root_of_path(sequence, size, _leaf(size), path) != root
    other = data.draw(st.integers(min_value=0, max_value=size))
    if other != sequence:
        assert root_of_path(other, size, _leaf(sequence), path) != root


@given(size=SIZES, data=st.data())
def test_a_path_that_was_touched_leads_elsewhere(size: int, data: st.DataObject) -> None:
    sequence = data.draw(st.integers(min_value=0, max_value=size - 1))
    path = _path(sequence, size)
    root = root_of_path(sequence, size, _leaf(sequence), path)
    assert root_of_path(sequence, size, _leaf(sequence), [*path, bytes(32)]) is None
    if path:
        at = data.draw(st.integers(min_value=0, max_value=len(path) - 1))
        bit = data.draw(st.integers(min_value=0, max_value=255))
        flipped = (int.from_bytes(path[at], "big") ^ 1 << bit).to_bytes(32, "big")
        touched = [*path[:at], flipped, *path[at + 1 :]]
        assert root_of_path(sequence, size, _leaf(sequence), touched) != root
        assert root_of_path(sequence, size, _leaf(sequence), path[:-1]) != root


@given(size=SIZES, data=st.data())
def test_pymerkle_makes_the_same_proofs(size: int, data: st.DataObject) -> None:
    sequence = data.draw(st.integers(min_value=0, max_value=size - 1))
    tree = InmemoryTree(algorithm="sha256")
    for number in range(size):
        tree.append_entry(b"%d" % number)
    theirs = tree.prove_inclusion(sequence + 1, size).serialize()["path"]
    leaf, *path = [bytes.fromhex(text) for text in theirs]
    assert leaf == _leaf(sequence)
    assert path == _path(sequence, size)
    assert tree.get_root(size) == root_of_path(sequence, size, leaf, path)
