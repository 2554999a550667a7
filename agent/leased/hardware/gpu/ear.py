# SPDX-License-Identifier: Apache-2.0
"""The ear: hears of the driver's errors as they happen, and remembers the last of them.

Rule: one worker waits in the driver, and nobody waits for it; when it is lost it is started again,
later each time. What was not heard is known not to have been heard: a proof asks `heard_since`, and
gets no for every gap. A storm costs bounded memory and one look.

Does not judge (`xids`) and does not look at the GPUs: it says that somebody should.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

import trio

from leased.hardware.crew import Crew
from leased.hardware.gpu.calls import Heard, Listed, Listen
from leased.hardware.gpu.xids import Meaning, meaning_of
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError

WORKER: Final = "gpu ear"
WAIT_MS: Final = 10_000
KEPT: Final = 1024
PAUSE_S_MAX: Final = 60

Tell = Callable[[str, int], None]
"""Takes (PCI address, XID or 0) of an event after which a GPU is to be looked at."""


class Ear:
    """Listens to all GPUs at once."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._gpus: tuple[Listed, ...] = ()
        self._changed = trio.Event()
        self.attaching_ns: Callable[[], int] = lambda: 0
        """How much longer the first answer may take."""
        self._since_ns: int | None = None
        self._deaf: tuple[str, ...] = ()
        self._heard: dict[tuple[str, int], int] = {}
        self._dropped: dict[str, int] = {}

    def hear(self, gpus: Sequence[Listed]) -> None:
        """These are the GPUs from here on."""
        fresh = tuple(one for one in gpus if not one.errno)
        if fresh != self._gpus:
            self._gpus = fresh
            self._changed.set()

    def stop(self) -> None:
        """Listen to nothing from here on, and have nothing of the driver open."""
        self.hear(())
        self._crew.dismiss(WORKER)

    @property
    def hears(self) -> bool:
        """Whether it does now: it keeps all GPUs attached."""
        return self._since_ns is not None

    def heard_since(self, gpu: Listed, since_ns: int) -> bool:
        """Whether every error of the GPU from then until now would have been heard."""
        return (
            self._since_ns is not None
            and self._since_ns <= since_ns
            and gpu in self._gpus
            and gpu.uuid not in self._deaf
            and self._dropped.get(gpu.pci, -1) < since_ns
        )

    def xids(self, pci: str, since_ns: int) -> tuple[int, ...]:
        """The XIDs of a GPU since then, each once, by when it was heard last."""
        return tuple(
            xid for (at, xid), at_ns in self._heard.items() if at == pci and at_ns >= since_ns
        )

    async def run(self, tell: Tell) -> None:
        """Listen until cancelled."""
        pause_s = 1
        while True:
            self._changed = trio.Event()
            if not self._gpus:
                await self._changed.wait()
                continue
            began_s = trio.current_time()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_at, self._changed, nursery.cancel_scope)
                    await self._listen(tell)
            except* DeviceError:
                if trio.current_time() - began_s > PAUSE_S_MAX:
                    pause_s = 1
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
            finally:
                self._since_ns = None
                self._crew.dismiss(WORKER)

    async def _listen(self, tell: Tell) -> None:
        """Until cancelled. Raises DeviceError when the worker is lost."""
        gpus = self._gpus
        registered = await self._ask(gpus, 0, self.attaching_ns())
        self._deaf, self._since_ns = registered.deaf, now_ns()
        while True:
            heard = await self._ask(gpus, WAIT_MS)
            for pci, _, xid in heard.events:
                if xid:
                    self._keep(pci, xid)
                if not xid or meaning_of(xid) is not Meaning.APPLICATION:
                    tell(pci, xid)

    def _keep(self, pci: str, xid: int) -> None:
        """Of each XID of a GPU the last: a tenant that makes one of its own as often as it can
        pushes no other out."""
        self._heard.pop((pci, xid), None)
        self._heard[pci, xid] = now_ns()
        if len(self._heard) > KEPT:
            oldest = next(iter(self._heard))
            self._dropped[oldest[0]] = self._heard.pop(oldest)

    async def _ask(self, gpus: tuple[Listed, ...], wait_ms: int, extra_ns: int = 0) -> Heard:
        if self._crew.is_stuck(WORKER):
            raise DeviceError("gpu_listen", errno.ETIMEDOUT, "the last listener still hangs")
        call = Listen(gpus, wait_ms)
        extra_ns += wait_ms * 1_000_000
        return await self._crew.task(WORKER, "gpu", "listen", call, Heard, extra_ns=extra_ns)


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
