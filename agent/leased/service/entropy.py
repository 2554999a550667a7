# SPDX-License-Identifier: Apache-2.0
"""Entropy: the agent's one source of randomness, from the kernel, in bulk.

Rule: 16 bytes at a time, never the same twice; ids, and with them inclusion proofs, rest on it.

Does not know what the bytes become.
"""

from __future__ import annotations

import os

ENTROPY_BYTES = 4096


class EntropyPool:
    """Random ids in bulk: one system call serves 256 of them."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self) -> bytes:
        """16 uniformly random bytes."""
        if self._at >= len(self._bytes):
            self._bytes, self._at = os.urandom(ENTROPY_BYTES), 0
        self._at += 16
        return self._bytes[self._at - 16 : self._at]
