# SPDX-License-Identifier: Apache-2.0
"""GPUs in values, and a crew for them that argues back: it answers each verb as the test says, and
fails the test when a worker is asked twice at once, or left running after what it was asked.

Rule: an answer is a value, an error to raise, or a function of (worker's name, argument) to either.

Does not imitate a driver: the mock in `tests/mocks` does that.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from leased.hardware.gpu.calls import Listed, Released, Scrubbed, Sight, Witnessed
from leased.hardware.gpu.facts import Condition, Gpu, Instance, Usage
from leased.hardware.openers import Opener
from leased.terms.errors import DeviceError
from leased.terms.moment import NS_PER_S
from leased.terms.teardown import StepReport, TeardownStep

GIB = 1 << 30
IDLE = Usage(80 * GIB, GIB, 4 << 20)
WELL = Condition(0, False, False, None)


def gpu(number: int = 0, **changes: Any) -> Gpu:
    """An H100 that is well and idle."""
    plain = Gpu(
        uuid=f"GPU-{number:08x}-0000-4000-8000-000000000000",
        pci=f"0000:{0x10 + number:02x}:00.0",
        minor=number + 3,
        name="NVIDIA H100 80GB HBM3",
        driver="570.86.15",
        memory=IDLE,
        node=0,
        compute_mode=2,
        persistent=True,
        condition=WELL,
    )
    return msgspec.structs.replace(plain, **changes)


def instance(number: int = 0, slices: int = 1, **changes: Any) -> Instance:
    """A MIG device."""
    plain = Instance(
        uuid=f"MIG-{number:08x}-0000-5000-8000-000000000000",
        gpu_instance=number + 7,
        compute_instance=0,
        profile=f"{slices}g.{10 * slices}gb",
        slices=slices,
        memory_bytes=10 * slices * GIB,
    )
    return msgspec.structs.replace(plain, **changes)


def listed(one: Gpu) -> Listed:
    """As the driver counts it."""
    return Listed(one.pci, one.uuid)


def sight(**changes: Any) -> Sight:
    """Nobody there."""
    return msgspec.structs.replace(Sight(((), (), ()), (), (), IDLE, 0), **changes)


def opener(pid: int = 77, uid: int = 1000, **changes: Any) -> Opener:
    """Somebody there."""
    return msgspec.structs.replace(Opener(pid, 1, (195, 3), "fd", uid, "python"), **changes)


def released(**changes: Any) -> Released:
    """The driver let go at once."""
    return msgspec.structs.replace(Released(sight(), 0, 1, 2), **changes)


def scrubbed(**changes: Any) -> Scrubbed:
    """All of it, and clean."""
    steps = tuple(
        StepReport(step, 0, 1, 2, 79 * GIB if step is TeardownStep.SCRUB else 0)
        for step in (TeardownStep.COUNTERS, TeardownStep.SCRUB, TeardownStep.READ_BACK)
    )
    return msgspec.structs.replace(Scrubbed(79 * GIB, 0, 0, steps), **changes)


def witnessed(**changes: Any) -> Witnessed:
    """Clean, well and closed, a second after the release."""
    late = sight(seen_ns=NS_PER_S)
    return msgspec.structs.replace(Witnessed(late, WELL, 2, 1, 2), **changes)


def hung(verb: str = "worker_answer") -> DeviceError:
    """What a crew says of a worker that did not answer."""
    return DeviceError(verb, errno.ETIMEDOUT, "worker did not answer in 5000 ms")


def killed() -> DeviceError:
    """What a crew says of a worker that was killed."""
    return DeviceError("worker_answer", errno.EPIPE, "worker ended")


Answer = Any | DeviceError | Callable[[str, Any], Any]


class GpuCrew:
    """`hardware.crew.Crew` as far as GPUs need it."""

    def __init__(self, **answers: Answer) -> None:
        self.answers: dict[str, Answer] = answers
        self.asked: list[tuple[str, str, Any]] = []
        self.stuck: set[str] = set()
        self.running: set[str] = set()
        self.started: list[str] = []
        self._busy: set[str] = set()

    def verbs(self) -> list[str]:
        """What was asked, in order."""
        return [verb for _, verb, _ in self.asked]

    async def stand_ready(self, name: str, backend: str) -> None:
        """It is there."""
        assert backend == "gpu"
        assert name not in self._busy, f"{name} is started while somebody waits for it"
        await trio.lowlevel.checkpoint()
        self._run(name)

    async def task(
        self,
        name: str,
        backend: str,
        verb: str,
        argument: msgspec.Struct,
        returns: type,
        *,
        fds: tuple[int, ...] = (),
        extra_ns: int = 0,
    ) -> Any:
        """Answer as told."""
        assert backend == "gpu"
        assert name not in self._busy, f"{name} was asked twice at once"
        self._busy.add(name)
        self._run(name)
        try:
            await trio.lowlevel.checkpoint()
            self.asked.append((name, verb, argument))
            answer = self.answers[verb]
            if callable(answer) and not isinstance(answer, type):
                answer = answer(name, argument)
            if isinstance(answer, trio.Event):
                await answer.wait()
                answer = hung()
            if isinstance(answer, DeviceError):
                raise answer
            assert isinstance(answer, returns), (verb, answer)
            return answer
        finally:
            self._busy.discard(name)

    def _run(self, name: str) -> None:
        if name not in self.running:
            self.started.append(name)
        self.running.add(name)

    async def see_off(self, name: str) -> None:
        """Whoever was killed has ended."""
        assert name not in self._busy, f"{name} is seen off while somebody waits for it"
        await trio.lowlevel.checkpoint()

    def dismiss(self, name: str) -> None:
        """It is gone."""
        assert name not in self._busy, f"{name} was ended while somebody waits for it"
        self.running.discard(name)

    def is_stuck(self, name: str) -> bool:
        """As told."""
        return name in self.stuck

    def ours(self) -> tuple[tuple[int, int], ...]:
        """The agent itself."""
        return ((1, 1),)
