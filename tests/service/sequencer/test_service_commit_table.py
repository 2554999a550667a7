# SPDX-License-Identifier: Apache-2.0
"""The commit step and its faults: every write and every barrier of a commit, failed without effect
and failed although it had one.

Rule (P1): the process ends, nobody was answered, and the next run decides by what is on disk: the
batch is rolled forward whole or is not there at all. Either way a retry with the same command id
leads to exactly one lease.
"""

from __future__ import annotations

import errno

import pytest
import trio

from leased.terms.event import Allocated
from leased.terms.reply import Granted
from tests.doubles.disk import MemoryDisk
from tests.doubles.serving import Box, Host

STEPS = (("write", "segment"), ("sync", "segment"), ("write", "anchor"), ("sync", "anchor"))
"""The four calls of a commit: `journal.append` is the first two, `anchor.replace` the others."""


class Struck:
    """A disk that fails once, at one call of a commit, with or without its effect."""

    def __init__(self, step: tuple[str, str], *, applied: bool) -> None:
        self._verb, self._what = step
        self._applied = applied
        self.armed = False
        self.struck = 0

    def __call__(self, verb: str, name: str) -> tuple[bool, OSError] | None:
        what = "anchor" if "anchor" in name else "segment"
        if not self.armed or (verb, what) != (self._verb, self._what):
            return None
        self.armed = False
        self.struck += 1
        return self._applied, OSError(errno.EIO, "the disk says no", name)


async def _die_committing(host: Host, struck: Struck, box: Box) -> None:
    """An agent that is asked for a lease while its disk fails: it ends, and says nothing."""
    request = host.acquire(3)
    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        async with host.agent() as agent:
            struck.armed = True
            agent.sequencer.submit(request, box)
            await trio.sleep(10)
    assert struck.struck == 1, "the commit did not come as far as this step"
    assert not box.replies, "somebody was answered by an agent that could not commit"
    assert host.devices.calls.count(("prepare", ())) == 0
    assert not host.reaper.slots, "the reaper was armed with what is not durable"


@pytest.mark.parametrize("applied", [False, True], ids=["not persisted", "persisted"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step))
@pytest.mark.autojump
async def test_the_process_ends_and_recovery_decides(
    step: tuple[str, str], applied: bool
) -> None:
    struck = Struck(step, applied=applied)
    async with Host().standing() as host:
        host.disk.fault = struck
        box = Box()
        await _die_committing(host, struck, box)
        request = host.acquire(3)
        command_id = request.command_id.__class__(b"\xc0" + (1).to_bytes(15, "big"))
        retry = host.acquire(3, command_id=command_id)
        async with host.agent() as agent:
            reply = await agent.ask(retry)
            if isinstance(reply, Granted):
                assert agent.at(reply.lease.lease_id).command_id == command_id
            again = await agent.ask(host.acquire(3, command_id=command_id))
            assert type(again) is type(reply)
            if isinstance(reply, Granted) and isinstance(again, Granted):
                assert again.lease.lease_id == reply.lease.lease_id and again.attached
            await trio.sleep(5)
    grants = [event for _, event, _ in host.chain() if isinstance(event, Allocated)]
    assert len(grants) == 1, "the same command got two leases, or none"
    rolled_forward = host.sealed().index("Allocated") < host.sealed().index("NodeStarted", 1)
    # A write that reached the file is found by the next run of a process that merely died; one
    # that never happened is not.
    assert rolled_forward == (step != ("write", "segment") or applied)


@pytest.mark.autojump
async def test_a_failed_commit_is_never_tried_again() -> None:
    """One barrier that failed is the last call that the disk gets from this process."""
    struck = Struck(("sync", "segment"), applied=False)
    async with Host().standing() as host:
        host.disk.fault = struck
        await _die_committing(host, struck, Box())
        verbs = [op[0] for op in host.disk.ops]
        # The write that went before it is the last thing that was done to the directory, and the
        # disk has lost it.
        assert verbs[-2:] == ["write", "lost"]


async def test_a_disk_is_what_the_host_keeps() -> None:
    """The table above would prove nothing if a restart did not find the same directory."""
    assert isinstance(Host().disk, MemoryDisk)
