# SPDX-License-Identifier: Apache-2.0
"""Holding a lease against a small agent, on a clock that jumps: renewals, surrender, notices, loss,
release.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from leased.client import CallTimeout, LeaseLost, Refused, Session, acquire
from leased.client.holding import Holding
from leased.client.notice import surrender_margin_ns
from leased.terms.errors import EX_LEASE_LOST
from leased.terms.lease import Ending, LeaseState, RevocationReason
from leased.terms.reply import Refusal, RefusalReason
from leased.wire import objects, parameters
from tests.doubles.varlink_server import SmallAgent

pytestmark = pytest.mark.autojump

S = 10**9


def trio_ns() -> int:
    return round(trio.current_time() * 1e9)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "io.leased")


@pytest.fixture
async def agent(path: str, nursery: trio.Nursery) -> AsyncIterator[SmallAgent]:
    small = SmallAgent(trio_ns)
    await nursery.start(small.serve, path)
    yield small


@pytest.fixture
async def session(agent: SmallAgent, path: str) -> AsyncIterator[Session]:
    del agent
    opened = Session(path, clock_ns=trio_ns, chance=lambda: 0.0, is_named=True)
    yield opened
    opened.close()


def the_lease(agent: SmallAgent) -> Any:
    (lease,) = agent.leases.values()
    return lease


@pytest.mark.parametrize(
    ("ttl_s", "margin_s"),
    [(1, 0.25), (4, 1), (8, 2), (20, 2), (60, 6), (3600, 360)],
)
def test_the_margin_is_two_seconds_or_a_tenth_but_never_more_than_a_quarter(
    ttl_s: int, margin_s: float
) -> None:
    assert surrender_margin_ns(ttl_s * S) == round(margin_s * S)


async def test_a_lease_is_renewed_at_a_third_and_released_at_the_end(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=60) as held:
        async with held.scope():
            await trio.sleep(190)
        assert held.generation == 10
        assert [seen.call.parameters.lease_id for seen in agent.calls(parameters.Renew)] == [
            held.lease_id
        ] * 9
        assert held.deadline_ns == 180 * S + 60 * S
    assert the_lease(agent).ended is Ending.RELEASED
    assert len(agent.calls(parameters.Release)) == 1


async def test_renewals_come_early_by_chance_never_late(path: str, agent: SmallAgent) -> None:
    for chance, first_s in ((0.0, 20.0), (0.5, 18.0), (1.0, 16.0)):
        with_chance = Session(path, clock_ns=trio_ns, chance=lambda c=chance: c, is_named=True)
        began = trio_ns()
        async with acquire(with_chance, mem=4096, ttl=60) as held:
            await trio.sleep(21)
            assert held.deadline_ns == began + round(first_s * S) + 60 * S


async def test_leased_memory_is_shared_with_the_descriptor(
    session: Session, agent: SmallAgent
) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    async with acquire(session, mem=8192, gpu=1, ttl=60) as held:
        memory = held.mem()
        memory[:5] = b"hello"
        assert len(memory) == 8192
        assert os.pread(held.fd("memory", "mem:node0:4096"), 5, 0) == b"hello"
        assert held.devices() == ["GPU-1"]
        with pytest.raises(KeyError):
            held.fd("block")
    memory.close()
    session.close()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("ttl_s", "surrender_s"), [(60, 54), (4, 3), (1, 0.75)])
async def test_with_a_hung_agent_the_scope_closes_before_the_deadline(
    session: Session, agent: SmallAgent, ttl_s: int, surrender_s: float
) -> None:
    agent.hang.append(parameters.Renew)
    with pytest.raises(LeaseLost, match="not renewed in time") as caught:
        async with acquire(session, mem=4096, ttl=ttl_s) as held, held.scope():
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(surrender_s, abs=0.01)
    assert caught.value.exit_status == EX_LEASE_LOST
    assert agent.calls(parameters.Release) == []


async def test_a_renewal_whose_reply_is_lost_is_not_a_loss(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=60) as held, held.scope():
        agent.drop_reply.append(parameters.Renew)
        await trio.sleep(30)
    assert not held.lost.is_set()


async def test_an_agent_that_is_busy_for_a_while_is_asked_again(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=60) as held, held.scope():
        agent.refuse[parameters.Renew] = Refusal(RefusalReason.BUSY)
        await trio.sleep(45)
        assert len(agent.calls(parameters.Renew)) > 5
        agent.refuse.clear()
        await trio.sleep(30)
    assert held.generation > 1
    assert not held.lost.is_set()


async def test_a_late_renewal_is_a_loss_at_once(session: Session, agent: SmallAgent) -> None:
    agent.refuse[parameters.Renew] = Refusal(RefusalReason.DEADLINE_PASSED)
    with pytest.raises(LeaseLost, match="deadline passed"):
        async with acquire(session, mem=4096, ttl=60) as held, held.scope():
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(20, abs=0.01)


async def test_a_lease_the_agent_does_not_know_is_lost_with_and_without_a_watch(
    session: Session, agent: SmallAgent
) -> None:
    for watch in (False, True):
        with pytest.raises(LeaseLost, match="does not know it"):
            async with acquire(session, mem=4096, ttl=60, watch=watch) as held, held.scope():
                del agent.leases[bytes.fromhex(held.lease_id)]
                await trio.sleep_forever()


async def test_a_notice_is_an_event_and_brings_the_end_nearer(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=600) as held:
        await trio.sleep(1)
        lease = msgspec.structs.replace(
            the_lease(agent),
            state=LeaseState.DRAINING,
            drain_deadline_ns=31 * S,
            reason=RevocationReason.MAINTENANCE,
        )
        agent.change(lease, objects.Notice(held.lease_id, "maintenance", 31 * S, 30))
        notice = await held.notice.wait()
        assert (notice.reason, notice.deadline_boottime_ns) == ("maintenance", 31 * S)
        assert held.deadline_ns == 31 * S
        with pytest.raises(LeaseLost, match="grace is over"):
            async with held.scope():
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(28, abs=0.01)
    assert agent.calls(parameters.Renew) == []


async def test_a_notice_that_was_put_off_moves_the_surrender(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=60) as held:
        await trio.sleep(1)
        told = msgspec.structs.replace(
            the_lease(agent), state=LeaseState.DRAINING, drain_deadline_ns=31 * S, generation=1
        )
        agent.change(told, objects.Notice(held.lease_id, "priority_preemption", 31 * S, 30))
        await held.notice.wait()
        with pytest.raises(LeaseLost, match="grace is over"):
            async with held.scope():
                await held.extend(100 * S)
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(95, abs=0.01), "the margin of a TTL of 60 s"
        assert held.deadline_ns == 101 * S
    assert len(agent.calls(parameters.Extend)) == 1


async def test_draining_without_a_notice_object_is_a_notice_too(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=600) as held:
        await trio.sleep(1)
        agent.change(
            msgspec.structs.replace(
                the_lease(agent), state=LeaseState.DRAINING, drain_deadline_ns=31 * S
            )
        )
        assert (await held.notice.wait()).seconds_left == 30
        await held.done()
    assert len(agent.calls(parameters.Done)) == 1
    assert agent.calls(parameters.Release) == []


async def test_a_notice_comes_by_the_notify_descriptor(
    session: Session, agent: SmallAgent
) -> None:
    agent.notify_fds = True
    async with acquire(session, mem=4096, ttl=600, watch=True) as held:
        line = msgspec.json.encode(objects.Notice(held.lease_id, "quota_cut", 99 * S, 9))
        os.write(agent.notify_fd, b'{"of":"a newer agent"}\n' + line[:10])
        await trio.testing.wait_all_tasks_blocked()
        assert not held.notice.is_set()
        os.write(agent.notify_fd, line[10:] + b"\n")
        assert (await held.notice.wait()).reason == "quota_cut"
        os.close(agent.notify_fd)


async def test_a_revoked_lease_is_lost_with_its_reason(
    session: Session, agent: SmallAgent
) -> None:
    with pytest.raises(LeaseLost, match="revoked: priority_preemption"):
        async with acquire(session, mem=4096, ttl=60) as held, held.scope():
            await trio.sleep(5)
            agent.change(
                msgspec.structs.replace(
                    the_lease(agent),
                    state=LeaseState.REVOKING,
                    ended=Ending.REVOKED,
                    reason=RevocationReason.PRIORITY_PREEMPTION,
                )
            )
            await trio.sleep_forever()
    assert trio.current_time() == pytest.approx(5, abs=0.01)


async def test_a_loss_that_nobody_looked_at_is_told_at_the_end(
    session: Session, agent: SmallAgent
) -> None:
    agent.hang.append(parameters.Renew)
    finished = False
    with pytest.raises(LeaseLost):
        async with acquire(session, mem=4096, ttl=4):
            await trio.sleep(10)
            finished = True
    assert finished


async def test_a_loss_that_was_told_is_told_once(session: Session, agent: SmallAgent) -> None:
    agent.hang.append(parameters.Renew)
    async with acquire(session, mem=4096, ttl=4) as held:
        with pytest.raises(LeaseLost):
            async with held.scope():
                await trio.sleep_forever()
        with pytest.raises(LeaseLost):
            async with held.scope():
                raise AssertionError("a scope of a lost lease must not open")


async def test_a_refusal_opens_no_block(session: Session, agent: SmallAgent) -> None:
    with pytest.raises(Refused):
        async with acquire(session, mem="2GiB", ttl=60):
            raise AssertionError("there is no lease to work under")
    assert agent.leases == {}


async def test_an_exception_of_the_block_comes_out_as_it_is_after_the_release(
    session: Session, agent: SmallAgent
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with acquire(session, mem=4096, ttl=60) as held, held.scope():
            raise ZeroDivisionError
    assert the_lease(agent).ended is Ending.RELEASED


async def test_a_cancelled_block_releases_too(session: Session, agent: SmallAgent) -> None:
    with trio.move_on_after(7) as scope:
        async with acquire(session, mem=4096, ttl=60) as held, held.scope():
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert the_lease(agent).ended is Ending.RELEASED


async def left_while_nobody_takes_it(session: Session, agent: SmallAgent) -> Holding:
    agent.hang.append(parameters.Release)
    async with acquire(session, mem=4096, ttl=60) as held:
        pass
    return held


async def test_a_release_that_hangs_does_not(session: Session, agent: SmallAgent) -> None:
    await left_while_nobody_takes_it(session, agent)
    assert trio.current_time() == 5


async def test_what_no_agent_took_back_is_given_back_when_one_is_there(
    session: Session, agent: SmallAgent
) -> None:
    """Whoever is bound to it was killed at the deadline, long after the end of the block."""
    held = await left_while_nobody_takes_it(session, agent)
    assert held.owed is not None and the_lease(agent).ended is None
    agent.hang.clear()
    await held.owed.wait()
    assert the_lease(agent).ended is Ending.RELEASED
    assert trio_ns() < held.deadline_ns


async def test_what_no_agent_takes_back_ends_with_its_deadline(
    session: Session, agent: SmallAgent
) -> None:
    held = await left_while_nobody_takes_it(session, agent)
    assert held.owed is not None
    await held.owed.wait()
    assert held.deadline_ns <= trio_ns() < held.deadline_ns + 11 * S


@pytest.mark.parametrize("patience_s", [3, 30], ids=["cancelled", "not answered in time"])
async def test_what_was_granted_to_who_gave_up_is_given_back(
    session: Session, agent: SmallAgent, patience_s: float
) -> None:
    """Much memory takes longer to prepare than the caller's patience."""
    agent.keep_reply.append(parameters.Acquire)
    with trio.move_on_after(patience_s), suppress(CallTimeout):
        async with acquire(session, mem=4096, ttl=3600):
            raise AssertionError("nobody was told of a lease")
    assert the_lease(agent).ended is Ending.RELEASED
    assert trio.current_time() in (3, 10)


async def test_what_is_being_made_ready_is_waited_for(session: Session, agent: SmallAgent) -> None:
    """Much memory takes longer than one call may; who says so is no agent that hangs."""
    agent.keep_reply.append(parameters.Acquire)

    async def prepare() -> None:
        await trio.sleep(1)
        agent.leases[the_lease(agent).lease_id] = msgspec.structs.replace(
            the_lease(agent), state=LeaseState.GRANTED
        )
        await trio.sleep(24)
        agent.keep_reply.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prepare)
        async with acquire(session, mem=4096, ttl=3600) as held:
            assert trio.current_time() == 30 and len(held.mem()) == 4096
    assert len(agent.calls(parameters.Acquire)) == 4


async def test_what_was_not_ready_by_its_deadline_is_over_and_the_agent_there(
    session: Session, agent: SmallAgent
) -> None:
    """It was told as an agent that does not answer, after a minute of its answers."""
    agent.keep_reply.append(parameters.Acquire)

    async def prepare() -> None:
        await trio.sleep(1)
        at, change = the_lease(agent).lease_id, msgspec.structs.replace
        agent.leases[at] = change(the_lease(agent), state=LeaseState.GRANTED)
        await trio.sleep(24)
        over = {"state": LeaseState.REVOKING, "ended": Ending.EXPIRED}
        agent.leases[at] = change(the_lease(agent), **over)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prepare)
        with pytest.raises(LeaseLost, match="expired before it was ready: ask for more time"):
            async with acquire(session, mem=4096, ttl=25):
                raise AssertionError("nobody was told of a lease")
    assert agent.calls(parameters.Release) == []


async def test_who_gives_up_does_not_wait_for_an_agent_that_hangs(
    session: Session, agent: SmallAgent
) -> None:
    agent.hang += [parameters.Acquire, parameters.List]
    with trio.move_on_after(3) as scope:
        async with acquire(session, mem=4096, ttl=3600):
            raise AssertionError("there is no lease")
    assert scope.cancelled_caught and trio.current_time() == 4


@pytest.mark.parametrize("method", [parameters.Release, parameters.Done])
async def test_what_was_broken_off_giving_back_is_given_back_at_the_end(
    session: Session, agent: SmallAgent, method: type
) -> None:
    agent.hang.append(method)
    async with acquire(session, mem=4096, ttl=600) as held:
        with trio.move_on_after(1) as scope:
            await (held.release() if method is parameters.Release else held.done())
        assert scope.cancelled_caught
        agent.hang.clear()
    assert the_lease(agent).ended is Ending.RELEASED
    assert trio.current_time() < 10


async def test_a_lease_released_early_stays_quiet(session: Session, agent: SmallAgent) -> None:
    async with acquire(session, mem=4096, ttl=60) as held:
        await held.release()
        await trio.sleep(300)
    assert agent.calls(parameters.Renew) == []
    assert len(agent.calls(parameters.Release)) == 1


async def test_a_renewal_by_hand_changes_the_length(
    session: Session, agent: SmallAgent
) -> None:
    async with acquire(session, mem=4096, ttl=60) as held:
        await held.renew(600 * S)
        assert held.surrender_ns == 540 * S
        await trio.sleep(100)
        assert not held.lost.is_set()


async def test_a_watch_that_breaks_is_begun_again(session: Session, agent: SmallAgent) -> None:
    async with acquire(session, mem=4096, ttl=600) as held:
        await trio.sleep(1)
        for watcher in tuple(agent._watchers):
            watcher.close()
        await trio.sleep(5)
        agent.change(
            msgspec.structs.replace(
                the_lease(agent), state=LeaseState.DRAINING, drain_deadline_ns=99 * S
            )
        )
        assert (await held.notice.wait()).deadline_boottime_ns == 99 * S


async def test_what_is_asked_for_arrives(session: Session, agent: SmallAgent) -> None:
    tag = objects.AccountingTag("cc-1")
    async with acquire(
        session,
        mem=4096,
        ttl=2.5,
        wait=30,
        grace=1,
        priority="scavenger",
        workload="w",
        tag=tag,
        bind="cgroup",
        command_id="ab" * 16,
    ):
        pass
    assert agent.calls(parameters.Acquire)[0].call.parameters == parameters.Acquire(
        [objects.Ask("mem", 4096)],
        5 * S // 2,
        "scavenger",
        30 * S,
        S,
        "w",
        tag,
        "cgroup",
        command_id="ab" * 16,
    )
