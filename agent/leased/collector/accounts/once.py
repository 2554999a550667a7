# SPDX-License-Identifier: Apache-2.0
"""Once: what was computed for one is told to the next who asks for the same.

Rule: safe from several threads, none of which waits for what it did not ask for; who asks for what
is being computed waits for that. What ended in an error is computed again. So many are kept, the
last ones asked for.

Does not know what stays true for how long: whoever has it throws it away.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

KEPT: Final = 256
_Answer = TypeVar("_Answer")


class _Told:
    """An answer, once it is there."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_there = False
        self.answer: Any = None


class Once:
    """Answers by whatever names them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: OrderedDict[Hashable, _Told] = OrderedDict()

    def of(self, key: Hashable, answer: Callable[[], _Answer]) -> _Answer:
        """What `answer` says, or said."""
        with self._lock:
            told = self._told.pop(key, None) or _Told()
            self._told[key] = told
            if len(self._told) > KEPT:
                self._told.popitem(last=False)
        with told.lock:
            if not told.is_there:
                told.answer = answer()
                told.is_there = True
        found: _Answer = told.answer
        return found
