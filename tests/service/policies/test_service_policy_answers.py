# SPDX-License-Identifier: Apache-2.0
"""What a collector answers to a node that asks for its policy: what is no answer is a failed
exchange, and never the end of the agent."""

from __future__ import annotations

import pytest

from leased.service.policy.exchange import ExchangeFailed, _read_offer


@pytest.mark.parametrize("status", [200, 409])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b'{"note":',
        b'{"note":"a"}',
        b'{"detail":"\xed\xa0\x80"}',
        b'{"detail":"\\ud800"}',
        b'{"x":' + b"[" * 100_000,
    ],
    ids=["nothing", "list", "number", "cut", "half", "no text", "half a letter", "deep"],
)
def test_an_answer_that_is_none_is_a_failed_exchange(status: int, body: bytes) -> None:
    with pytest.raises(ExchangeFailed, match="an answer that is no answer"):
        _read_offer(status, body)
