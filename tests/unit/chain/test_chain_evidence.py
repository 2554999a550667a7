# SPDX-License-Identifier: Apache-2.0
"""A bundle comes from whoever says that a node lied: nothing in it is believed, and nothing in it
ends the program that weighs it."""

from __future__ import annotations

import pytest

from leased.chain.evidence import FORMAT, Bundle, Start, weigh
from leased.chain.note import NoteKey
from leased.chain.signing import Signer
from leased.terms.errors import ChainError

NODE = NoteKey("lease-log.test/node", Signer(bytes(32)).public_key)
ZEROS = "00" * 32


@pytest.mark.parametrize(
    "start",
    [
        Start(3, ZEROS, (ZEROS,), 2),
        Start(1, ZEROS, (ZEROS, ZEROS), 2),
        Start(0, ZEROS, (ZEROS,), 2),
        Start(-1, ZEROS, (ZEROS,), 2),
        Start(1 << 64, ZEROS, (ZEROS,), 2),
        Start(1, "00", (ZEROS,), 2),
        Start(1, ZEROS, ("00",), 2),
        Start(1, "a hash", (ZEROS,), 2),
    ],
)
def test_a_page_begins_in_a_tree_that_there_can_be(start: Start) -> None:
    of = ("n", "00" * 16, "11" * 16, NODE.name, NODE.text(), 0, 0, 0, 0, ZEROS)
    bundle = Bundle(FORMAT, "CORRUPT_RECORD", "why", *of, start=start, page="AAAA")
    with pytest.raises(ChainError) as refused:
        weigh(bundle, b"", NODE)
    assert refused.value.verdict == "BAD_PROOF"
