# SPDX-License-Identifier: Apache-2.0
"""The stream: rounds of samples become requests in the buffer.

Rule: a round is packed in pieces, with a scheduling point after each, so that the largest host's
round delays nobody. While one round is packed the next may wait; a third replaces the one that
waits, whose points count as dropped. A series that brought nothing for as long as it takes to be
stale, or whose lease has ended, is ended in the stream, once.

Does not send (`sender`) and does not sample (`sampling`).
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from typing import Final

import trio

from leased.ports import Clock
from leased.service.telemetry.buffer import Batch, Buffer
from leased.service.telemetry.otlp import Origin, encode
from leased.terms.sample import Sample

POINTS_MAX: Final = 1000
"""Of one request: some 150 kB of messages, packed in about 10 ms."""

COMPRESSION: Final = 1
"""The fastest: attributes repeat so much that more effort gains little."""


class Stream:
    """`tell` it each round; `run` packs them."""

    def __init__(
        self,
        *,
        origin: Origin,
        buffer: Buffer,
        clock: Clock,
        is_fresh: Callable[[Sample, int], bool],
        count: Callable[[str, int], None],
    ) -> None:
        self._origin = origin
        self._buffer = buffer
        self._clock = clock
        self._is_fresh = is_fresh
        self._count = count
        self._known: dict[object, Sample] = {}
        self._round: Sequence[Sample] | None = None
        self._told = trio.Event()

    def tell(self, samples: Sequence[Sample]) -> None:
        """A round is over. Never waits."""
        if self._round is not None:
            self._count("dropped", len(self._round))
        self._round = samples
        self._told.set()

    async def run(self) -> None:
        """Pack until cancelled."""
        while True:
            await self._told.wait()
            self._told = trio.Event()
            samples, self._round = self._round or (), None
            await self._pack(samples)

    async def _pack(self, samples: Sequence[Sample]) -> None:
        ended = self._end(samples)
        for at in range(0, max(len(samples), len(ended)), POINTS_MAX):
            piece = samples[at : at + POINTS_MAX]
            gone = ended[at : at + POINTS_MAX]
            message = encode(self._origin, piece, self._clock.now(), gone)
            body = gzip.compress(message, COMPRESSION, mtime=0)
            dropped = self._buffer.put(Batch(len(piece) + len(gone), body))
            if dropped:
                self._count("dropped", dropped)
            await trio.lowlevel.checkpoint()

    def _end(self, samples: Sequence[Sample]) -> list[Sample]:
        """The series that end with this round."""
        now_ns = self._clock.now().boot_ns
        self._known.update((one.key, one) for one in samples)
        ended = [one for one in self._known.values() if not self._is_fresh(one, now_ns)]
        for one in ended:
            del self._known[one.key]
        return ended
