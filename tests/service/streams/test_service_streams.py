# SPDX-License-Identifier: Apache-2.0
"""Watch and Wait over real sockets: what each watcher sees, when it ends, and that a slow one is
cut off with a gap and never fed a hole.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import trio
import trio.testing

from leased.service.batch import Told
from leased.service.config import Sockets
from leased.terms.command import Caller, Drain, ListLeases, Renew
from leased.terms.event import Activated, Event, HealthChanged
from leased.terms.identity import EventId, TenantId
from leased.terms.lease import LeaseState
from leased.terms.moment import NS_PER_S
from tests.doubles.calling import House, Visitor, memory, open_house
from tests.doubles.desk import OPERATOR

MINE = {"bind": "deadline"}
ROOT = Caller(0, 0, 4242, TenantId("root"))


async def acquired(visitor: Visitor, pages: int = 1, **how: object) -> str:
    """The id of a fresh lease."""
    reply = await visitor.call("Lease.Acquire", resources=memory(pages), **{**MINE, **how})
    found: str = reply["lease"]["lease_id"]
    return found


async def watch(house: House, method: str = "Lease.Watch", **how: object) -> tuple[Visitor, dict]:
    """A watcher and the first it is shown."""
    uid = how.pop("uid", None)
    operator = how.pop("operator", False)
    visitor = house.visit(uid=uid, operator=operator)
    await visitor.ask(method, more=True, **how)
    first = await visitor.answer()
    return visitor, first


def states(answer: dict) -> list[str]:
    """The states of the leases in an answer."""
    return [lease["runtime"]["state"] for lease in answer["parameters"]["leases"]]


# ---- leases --------------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_a_watcher_sees_every_step_of_its_lease_and_then_the_end(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        lease = await acquired(me)
        await trio.sleep(1)
        watcher, first = await watch(house, lease_id=lease)
        assert states(first) == ["active"] and first["continues"]
        await me.call("Lease.Release", lease_id=lease)
        seen = []
        while True:
            answer = await watcher.answer()
            seen += states(answer)
            assert not answer["parameters"]["gap"]
            if not answer.get("continues"):
                break
        assert seen == ["revoking", "scrubbing", "verifying", "reclaimed"]
        await watcher.call("Lease.List")


class Attending(trio.abc.Instrument):
    """How often whoever served a stream before had its turn."""

    def __init__(self) -> None:
        self.count = 0
        self._fresh: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """A call that is not of those."""
        self._fresh.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """One task's turn."""
        self.count += task.name.endswith("_attend") and task not in self._fresh


@pytest.mark.autojump
async def test_who_has_nothing_to_see_of_a_change_is_not_woken_for_it(tmp_path: Path) -> None:
    """One tenant's watchers made everybody's grants slower: each was woken for each of them."""
    async with open_house(tmp_path) as house:
        me, other = house.visit(uid=2000), house.visit(uid=1000)
        mine, theirs = await acquired(me), await acquired(other)
        await watch(house, uid=1000)
        await watch(house, uid=1000, lease_id=theirs)
        waits = house.visit(uid=1000)
        await waits.ask("Lease.Wait", lease_id=theirs)
        await trio.sleep(1)
        turns = Attending()
        trio.lowlevel.add_instrument(turns)
        await acquired(me)
        await me.call("Lease.Release", lease_id=mine)
        await trio.sleep(1)
        assert turns.count == 0
        await other.call("Lease.Release", lease_id=theirs)
        assert (await waits.answer())["parameters"]["lease"]["lease_id"] == theirs
        assert turns.count > 0
        trio.lowlevel.remove_instrument(turns)


@pytest.mark.autojump
async def test_watching_a_lease_that_is_over_ends_at_once(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        lease = await acquired(me)
        await me.call("Lease.Release", lease_id=lease)
        await me.call("Lease.Wait", lease_id=lease)
        await trio.sleep(1)
        _, first = await watch(house, lease_id=lease)
        assert states(first) == ["reclaimed"]
        assert not first.get("continues"), "nothing more will ever come"


@pytest.mark.autojump
async def test_a_watcher_of_all_sees_its_tenants_and_an_operator_everybodys(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        mine, theirs = house.visit(uid=1000), house.visit(uid=2000)
        watcher, first = await watch(house, uid=1000)
        boss, _ = await watch(house, operator=True)
        assert states(first) == []
        own = await acquired(mine)
        assert states(await watcher.answer()) == ["granted"]
        assert states(await watcher.answer()) == ["active"]
        other = await acquired(theirs)
        with trio.move_on_after(30) as waited:
            await watcher.answer()
        assert waited.cancelled_caught, "another tenant's lease was shown"
        ids = []
        for _ in range(4):
            ids += [one["lease_id"] for one in (await boss.answer())["parameters"]["leases"]]
        assert ids == [own, own, other, other]


@pytest.mark.autojump
async def test_a_watcher_sees_what_a_list_would_show(tmp_path: Path) -> None:
    """Two uids of one tenant see each other's leases, in a list and in a watch alike."""
    async with open_house(tmp_path) as house:
        mine, colleague = house.visit(uid=1000), house.visit(uid=1001)
        lease = await acquired(mine)
        await trio.sleep(1)
        assert len((await colleague.call("Lease.List"))["leases"]) == 1
        watcher, first = await watch(house, uid=1001, lease_id=lease)
        assert states(first) == ["active"]
        await mine.call("Lease.Release", lease_id=lease)
        with trio.fail_after(60):
            assert states(await watcher.answer()) == ["revoking"]


@pytest.mark.autojump
async def test_a_notice_comes_with_the_drain(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        lease = await acquired(house.visit(), ttl_ns=600 * 10**9, grace_ns=60 * 10**9)
        await trio.sleep(1)
        watcher, _ = await watch(house, lease_id=lease)
        await house.agent.ask(Drain(house.host.command_id(), OPERATOR, "", 60 * NS_PER_S))
        told = (await watcher.answer())["parameters"]
        assert states({"parameters": told}) == ["draining"]
        assert told["notice"]["reason"] == "operator_drain"


@pytest.mark.autojump
async def test_every_lease_that_is_drained_at_once_has_its_notice(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        ids = {await acquired(me, ttl_ns=600 * 10**9, grace_ns=60 * 10**9) for _ in range(3)}
        await trio.sleep(1)
        watcher, _ = await watch(house)
        await house.agent.ask(Drain(house.host.command_id(), OPERATOR, "", 60 * NS_PER_S))
        told = [(await watcher.answer())["parameters"]["notice"]["lease_id"] for _ in range(3)]
        assert set(told) == ids


@pytest.mark.autojump
async def test_the_first_answer_names_the_record_it_shows(tmp_path: Path) -> None:
    """A change that comes after it has a later sequence, however late the answer was written."""
    async with open_house(tmp_path) as house:
        agent = house.agent
        lease = await agent.lease(1, caller=ROOT)
        await trio.sleep(1)
        before = agent.feed.sequence
        watcher = house.visit()
        agent.journal.gate.shut()
        agent.submit(ListLeases(house.host.command_id(), ROOT))
        await watcher.ask("Lease.Watch", more=True, lease_id=lease.lease_id.hex())
        await trio.testing.wait_all_tasks_blocked()
        agent.journal.gate.open()
        first = (await watcher.answer())["parameters"]
        assert first["leases"][0]["runtime"]["generation"] == 0
        assert first["sequence"] == before


@pytest.mark.parametrize("method", ["Lease.Watch", "Device.Watch"])
@pytest.mark.autojump
async def test_a_watch_that_is_refused_is_over(method: str, tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.agent.sequencer.refuse_new()
        watcher, first = await watch(house, method)
        assert first["error"].endswith("Refused") and not first.get("continues")
        await watcher.ask("Audit.Head")
        with trio.fail_after(10):
            assert "error" not in await watcher.answer(), "the stream goes on after its refusal"


@pytest.mark.autojump
async def test_a_stop_ends_every_stream_and_no_agent(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        lease = await acquired(house.visit())
        watchers = [
            (await watch(house))[0],
            (await watch(house, lease_id=lease))[0],
            (await watch(house, "Device.Watch"))[0],
            house.visit(),
        ]
        await watchers[3].ask("Lease.Wait", lease_id=lease)
        await trio.sleep(1)
        await house.agent.stop()
        await trio.sleep(1)
        for watcher in watchers:
            with trio.fail_after(10):
                while "parameters" in (answer := await _next(watcher)):
                    pass
                assert not answer
        assert house.agent.at(bytes.fromhex(lease)).state is LeaseState.ACTIVE


async def _next(watcher: Visitor) -> dict:
    """The next answer; {} at the end of the connection."""
    try:
        return await watcher.answer()
    except (EOFError, ConnectionError):
        return {}


# ---- too slow ------------------------------------------------------------------------------------


def flood(house: House, count: int) -> None:
    """So many batches, all at once, of a device and of each lease."""
    agent = house.agent
    for number in range(count):
        event_id = EventId(number.to_bytes(16, "big"))
        events: list[Event] = [HealthChanged(event_id, "mem:node0:4096", 1, 0)]
        for lease in agent.lessor.table.leases.values():
            events.append(Activated(event_id, lease.lease_id, lease.subject, 1, 0, bytes(32)))
        last = 10_000 + number
        told = Told(
            house.host.clock.now(), tuple(events), [last] * len(events), (bytes(32),) * len(events)
        )
        agent.feed.tell(told)


@pytest.mark.autojump
async def test_who_watches_resources_is_told_of_all_changes_at_once_and_of_the_last(
    tmp_path: Path,
) -> None:
    """Hundreds of watchers were told of each change by a list of all, before the next grant."""
    async with open_house(tmp_path) as house:
        watcher, _ = await watch(house, "Device.Watch")
        for _ in range(3):
            began_s = trio.current_time()
            flood(house, 1100)
            answer = await watcher.answer()
            assert answer["continues"] and not answer["parameters"]["gap"]
            assert answer["parameters"]["sequence"] == house.agent.feed.sequence
            assert trio.current_time() - began_s < 0.2
            with trio.move_on_after(60) as quiet:
                await watcher.answer()
            assert quiet.cancelled_caught, "told twice of what was shown"
            flood(house, 1)
            await watcher.answer()
            began_s = trio.current_time()
            flood(house, 1)
            await watcher.answer()
            assert 0.05 < trio.current_time() - began_s < 0.2, "not sooner than it is worth"


@pytest.mark.autojump
async def test_a_watcher_that_is_too_slow_is_told_of_the_gap_and_is_done(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        await acquired(house.visit())
        await trio.sleep(1)
        watcher, _ = await watch(house, "Lease.Watch")
        flood(house, 1100)
        answer = await watcher.answer()
        with trio.fail_after(60):
            while answer.get("continues"):
                assert not answer["parameters"]["gap"]
                answer = await watcher.answer()
        assert answer["parameters"]["gap"]


@pytest.mark.autojump
async def test_a_watcher_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    limits = Sockets(write_timeout_ns=10 * NS_PER_S)
    async with open_house(tmp_path, limits=limits) as house:
        for _ in range(100):
            await house.agent.lease(1, caller=ROOT, ttl_s=3600)
        deaf = house.visit()
        await deaf.ask("Device.Watch", more=True)
        await trio.sleep(1)
        leases = tuple(house.agent.lessor.table.leases)
        for _ in range(20):
            for lease_id in leases:
                house.agent.submit(Renew(house.host.command_id(), ROOT, lease_id))
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert house.agent.listener is not None
        assert house.agent.listener.connections == 1
        await house.visit().call("Lease.List")


@pytest.mark.autojump
async def test_a_wait_survives_a_gap(tmp_path: Path) -> None:
    """Whoever waits for one thing asks again, and goes on waiting."""
    async with open_house(tmp_path) as house:
        lease = await acquired(house.visit(), ttl_ns=60 * 10**9)
        waiter = house.visit()
        await waiter.ask("Lease.Wait", lease_id=lease)
        await trio.sleep(1)
        flood(house, 1100)
        await trio.sleep(1)
        await house.visit().call("Lease.Release", lease_id=lease)
        with trio.fail_after(60):
            assert states_of(await waiter.answer()) == "reclaimed"


def states_of(answer: dict) -> str:
    """The state of the one lease in an answer."""
    found: str = answer["parameters"]["lease"]["runtime"]["state"]
    return found


# ---- waiting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "state"), [("active", "active"), ("ended", "scrubbing"), ("closed", "reclaimed")]
)
@pytest.mark.autojump
async def test_wait_answers_when_it_has_come_so_far(
    until: str, state: str, tmp_path: Path
) -> None:
    async with open_house(tmp_path) as house:
        lease = await acquired(house.visit(), ttl_ns=5 * 10**9)
        reply = await house.visit().call("Lease.Wait", lease_id=lease, until=until)
        assert reply["lease"]["runtime"]["state"] == state


@pytest.mark.autojump
async def test_wait_gives_up_after_its_time(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        lease = await acquired(me, ttl_ns=600 * 10**9)
        began = trio.current_time()
        name, why = await me.refused("Lease.Wait", lease_id=lease, timeout_ns=3 * 10**9)
        assert (name, why["reason"]) == ("Refused", "wait_expired")
        assert 3 <= trio.current_time() - began < 3.1
        name, _ = await me.refused("Lease.Wait", lease_id=lease, timeout_ns=0)
        assert name == "Refused"


@pytest.mark.autojump
async def test_a_wait_ends_with_its_connection(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        lease = await acquired(house.visit(), ttl_ns=600 * 10**9)
        waiter = house.visit()
        await waiter.ask("Lease.Wait", lease_id=lease)
        await trio.sleep(1)
        tasks = trio.lowlevel.current_statistics().tasks_living
        waiter.close()
        await trio.sleep(1)
        assert trio.lowlevel.current_statistics().tasks_living == tasks - 1


# ---- the chain, the samples ----------------------------------------------------------------------


async def test_an_operator_reads_and_follows_the_chain(tmp_path: Path) -> None:
    """In real time: pages are read in a thread."""
    async with open_house(tmp_path) as house:
        boss, first = await watch(house, "Audit.Watch", operator=True, from_sequence=0)
        frames = base64.b64decode(first["parameters"]["frames"])
        at = first["parameters"]["next_sequence"]
        await acquired(house.visit())
        with trio.fail_after(10):
            while at < house.agent.sealer.head.size or at < 4:
                answer = (await boss.answer())["parameters"]
                assert answer["from_sequence"] == at
                frames += base64.b64decode(answer["frames"])
                at = answer["next_sequence"]
        assert frames == b"".join(house.agent.journal.frames(0))
        page = await house.visit(operator=True).call("Audit.Read", from_sequence=1, records_max=1)
        assert page["next_sequence"] == 2
        name, _ = await house.visit(operator=True).refused("Audit.Read", from_sequence=10**6)
        assert name == "CallerError"


@pytest.mark.autojump
async def test_samples_come_at_their_interval_and_no_faster_than_sensible(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        await house.agent.telemetry.sample()
        watcher, first = await watch(house, "Telemetry.Watch", interval_ns=2 * NS_PER_S)
        began = trio.current_time()
        for _ in range(3):
            await watcher.answer()
        assert trio.current_time() - began == pytest.approx(6, abs=0.1)
        assert first["continues"]
        greedy, _ = await watch(house, "Telemetry.Watch", interval_ns=1)
        count, began = 0, trio.current_time()
        while trio.current_time() - began < 1:
            await greedy.answer()
            count += 1
            assert count < 20, "one tenant keeps the agent busy with samples"


@pytest.mark.autojump
async def test_a_stream_behind_a_call_that_takes_its_time_piles_nothing_up(
    tmp_path: Path,
) -> None:
    """It is asked in one go with a Wait, whose answer has to leave first."""
    async with open_house(tmp_path) as house:
        await house.agent.telemetry.sample()
        me = house.visit()
        lease = await acquired(me, ttl_ns=600 * 10**9)
        await me.ask("Lease.Wait", lease_id=lease)
        await me.ask("Telemetry.Watch", more=True, interval_ns=NS_PER_S)
        await trio.sleep(60)
        await house.visit().call("Lease.Release", lease_id=lease)
        assert (await me.answer())["parameters"]["lease"]["lease_id"] == lease
        began = trio.current_time()
        for _ in range(5):
            assert (await me.answer())["continues"]
        assert trio.current_time() - began == pytest.approx(4, abs=1.1)
