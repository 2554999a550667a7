# SPDX-License-Identifier: Apache-2.0
"""The ways out of this host, as the configuration says: the stream to a receiver, and the files
that dcgm-exporter reads.

Rule: what is not configured costs nothing, not even the memory of its libraries. No outlet ever
holds up a round of sampling, nor another outlet.

Does not serve `/metrics` (the node's listener does, with `exposition`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio

from leased.ports import Clock, Entropy
from leased.service.telemetry.buffer import Buffer
from leased.service.telemetry.jobs import JobFiles, jobs_of
from leased.service.telemetry.sampling import Telemetry
from leased.service.telemetry.streaming import Streaming
from leased.terms.lease import Lease
from leased.terms.sample import Sample


class Outlets:
    """Runs until cancelled, whatever there is of it."""

    def __init__(
        self,
        *,
        settings: Streaming,
        telemetry: Telemetry,
        clock: Clock,
        entropy: Entropy,
        node_id: bytes,
        version: str,
        say: Callable[[str], None],
        gpu_indices: Callable[[], Mapping[str, int]],
        live_leases: Callable[[], Iterable[Lease]],
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._clock, self._entropy, self._say = clock, entropy, say
        self._node_id, self._version = node_id, version
        self._gpu_indices, self._live_leases = gpu_indices, live_leases

    async def run(self) -> None:
        """Carry out every round until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._settings.on:
                self._stream(nursery)
            if self._settings.job_mapping_dir:
                nursery.start_soon(self._map_jobs)
            await trio.sleep_forever()

    def _stream(self, nursery: trio.Nursery) -> None:
        # Here and not above: the protocol's messages and TLS take 12 MB, for whoever wants them.
        from leased.service.telemetry.otlp import Origin
        from leased.service.telemetry.sender import Sender
        from leased.service.telemetry.stream import Stream

        settings, telemetry = self._settings, self._telemetry
        buffer = Buffer(settings.buffer_bytes_max)
        origin = Origin(self._node_id.hex(), socket.gethostname(), self._version, settings.tenants)
        stream = Stream(
            origin=origin,
            buffer=buffer,
            clock=self._clock,
            is_fresh=telemetry.is_fresh,
            count=telemetry.count,
        )
        sender = Sender(
            settings=settings,
            buffer=buffer,
            clock=self._clock,
            entropy=self._entropy,
            version=self._version,
            count=telemetry.count,
            say=self._say,
        )
        telemetry.told.append(stream.tell)
        nursery.start_soon(stream.run)
        nursery.start_soon(sender.run)

    async def _map_jobs(self) -> None:
        files = JobFiles(self._settings.job_mapping_dir, self._say)
        over = trio.Event()

        def tell(_: Sequence[Sample]) -> None:
            over.set()

        self._telemetry.told.append(tell)
        while True:
            await files.fill(jobs_of(self._gpu_indices(), self._live_leases()))
            await over.wait()
            over = trio.Event()
