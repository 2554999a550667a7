# SPDX-License-Identifier: Apache-2.0
"""What is brought to its end once it has begun, even if whoever asked for it hangs up.

Rule: nobody is cancelled within `scope` while the task whose answer is waited for there (the
sequencer) runs. After `end` cancelling works again: the answer will not come any more, and the
process could not end otherwise.

Does not wait for anything itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio


class Unbroken:
    """Scopes that end with one task."""

    __slots__ = ("_ended", "_scopes")

    def __init__(self) -> None:
        self._ended = False
        self._scopes: dict[trio.CancelScope, None] = {}

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it nobody is cancelled before `end`."""
        with trio.CancelScope(shield=not self._ended) as shielded:
            self._scopes[shielded] = None
            try:
                yield
            finally:
                del self._scopes[shielded]

    def end(self) -> None:
        """There will be no more answers."""
        self._ended = True
        for shielded in self._scopes:
            shielded.shield = False
