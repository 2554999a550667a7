# SPDX-License-Identifier: Apache-2.0
"""Entropy: the agent's one source of randomness, from the kernel, in bulk.

Rule: 16 bytes at a time, never the same twice; ids, and with them inclusion proofs, rest on it.

Does not know what the bytes become.
"""

from __future__ import annotations

import os

ENTROPY_BYTES = 4096
ID_BYTES = 16


class EntropyPool:
    """Random ids in bulk: one system call serves 256 of them."""

    def __init__(self) -> None:
        self._ids: list[bytes] = []

    def __call__(self) -> bytes:
        """16 uniformly random bytes."""
        if not self._ids:
            drawn = os.urandom(ENTROPY_BYTES)
            self._ids = [drawn[at : at + ID_BYTES] for at in range(0, ENTROPY_BYTES, ID_BYTES)]
        return self._ids.pop()
