# SPDX-License-Identifier: Apache-2.0
"""What one asked is computed once, and nobody waits for what another asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from leased.collector.accounts.once import KEPT, Once


def test_the_same_is_computed_once_however_many_ask_at_a_time() -> None:
    once, begun, go = Once(), threading.Semaphore(0), threading.Event()
    made: list[object] = []

    def make() -> object:
        begun.release()
        assert go.wait(30)
        made.append(object())
        return made[-1]

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(once.of, "a", make) for _ in range(3)]
        assert begun.acquire(timeout=30)
        # What another key names does not wait for it.
        assert threads.submit(once.of, "b", lambda: 2).result(30) == 2
        go.set()
        assert {one.result(30) for one in asked} == set(made) and len(made) == 1


def test_an_error_is_no_answer_and_what_nobody_asks_for_goes() -> None:
    once, made = Once(), []
    with pytest.raises(ZeroDivisionError):
        once.of("a", lambda: 1 // 0)
    assert once.of("a", lambda: 7) == 7
    for number in range(KEPT):
        once.of(number, lambda: made.append(1))
    assert once.of("a", lambda: 8) == 8
