# SPDX-License-Identifier: Apache-2.0
"""Grants of namespaces that fail: what was not begun is not ours to erase."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from leased.hardware.block import calls
from leased.hardware.block.backend import BlockBackend
from leased.hardware.config import HardwareConfig
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease, RevocationReason
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.leases import lease as make_lease

FIRST, SECOND = "5254000000a10001", "5254000000a10002"
ONE = Allotment(f"block:{FIRST}", ResourceKind.BLOCK, None, 1 << 20)
OTHER = Allotment(f"block:{SECOND}", ResourceKind.BLOCK, None, 1 << 20)


class Crew:
    """Answers as workers do that find everything in order, but for what `failing` says."""

    exempted: tuple[tuple[int, int], ...] = ()

    def __init__(self) -> None:
        self.failing: dict[str, DeviceError] = {}
        self.asked: list[tuple[str, Any]] = []

    async def task(
        self, worker: str, backend: str, verb: str, argument: Any, returns: type, **_: Any
    ) -> Any:
        assert backend == "block" and worker
        self.asked.append((verb, argument))
        identity = getattr(argument, "identity", "")
        if verb == "ready" and identity in self.failing:
            raise self.failing[identity]
        answers: dict[type, msgspec.Struct] = {
            calls.Readied: calls.Readied((253, 0), 1, 1, 64),
            calls.Cleaned: calls.Cleaned(True, 4096, "", ()),
            calls.Proven: calls.Proven(True, ()),
            calls.Nothing: calls.Nothing(),
        }
        return answers[returns]

    async def task_again(self, *asked: Any, **more: Any) -> Any:
        assert asked[2] in ("clean", "prove"), "nothing else may be repeated"
        return await self.task(*asked, **more)

    def dismiss(self, name: str) -> None:
        """A worker that is not needed any more."""

    def sent(self, verb: str) -> list[str]:
        """The identities (of mappings: names) that a verb was asked for."""
        return [getattr(one, "identity", "") for asked, one in self.asked if asked == verb]


async def end(backend: BlockBackend, lease: Lease) -> None:
    """The teardown of a grant that failed."""
    ended = msgspec.structs.replace(lease, reason=RevocationReason.GRANT_FAILED)
    await backend.scrub(ended, [ONE, OTHER])
    await backend.prove(ended, [ONE, OTHER])


@pytest.mark.parametrize(
    ("verb", "erased"), [(calls.NOT_BEGUN, False), ("worker_answer", False), ("dm_crypt", True)]
)
async def test_only_what_was_begun_is_erased(verb: str, erased: bool) -> None:
    crew = Crew()
    crew.failing[SECOND] = DeviceError(verb, errno.EBUSY)
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    lease = make_lease(ONE, OTHER)
    with pytest.raises(DeviceError):
        await backend.prepare(lease, [ONE, OTHER], "", ())
    crew.asked.clear()
    await end(backend, lease)
    assert crew.sent("clean") == [FIRST, *([SECOND] if erased else [])]
    assert len(crew.sent("undo")) == (0 if erased else 1), "its mapping is looked for all the same"
    untouched = [one.untouched for asked, one in crew.asked if asked == "prove"]
    assert untouched == [False, not erased]


async def test_an_agent_that_does_not_remember_erases_nothing_of_a_failed_grant() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    await end(backend, make_lease(ONE, OTHER))
    assert crew.sent("clean") == []


async def test_whatever_was_granted_is_erased_by_whoever_finds_it() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    lease = make_lease(ONE)
    await backend.scrub(lease, [ONE])
    await backend.prove(lease, [ONE])
    assert crew.sent("clean") == [FIRST]
    assert [one.untouched for asked, one in crew.asked if asked == "prove"] == [False]
