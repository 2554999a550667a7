# SPDX-License-Identifier: Apache-2.0
"""The clock of the collector's own host is set: nobody else is blamed for it, and nothing waits for
a time that is not to come."""

from __future__ import annotations

import re
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from leased.chain.certificate import Role
from leased.chain.epochs import EPOCHS_AHEAD_MAX
from leased.collector import ingest as i
from leased.collector.archive.archive import Archive, ArchiveReader
from leased.collector.archive.storing import Storer
from leased.collector.own_clock import Skews
from leased.collector.own_door import HostClock, OwnDoor, read_listening
from leased.collector.pulling import clock
from leased.collector.witness import open_witness, os_entropy
from leased.terms.errors import ChainError
from leased.terms.moment import Moment
from tests.collector.test_collector_ingest import live
from tests.collector.test_collector_pull import SECOND, Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import BOOT
from tests.doubles.node_server import NodeServer, serving
from tests.doubles.nodes import EPOCH_NS, PulledNode

DAY_NS = 24 * 60 * EPOCH_NS
PRINTED_NS = 20_000 * DAY_NS


def sealing(on: PulledNode, epochs: int) -> None:
    """So many epochs end, as one seal."""
    begun = on.ratchet.end_ns - EPOCH_NS
    on.seal([], Moment(BOOT, begun + epochs * EPOCH_NS, 10**18))


def followed(on: PulledNode) -> i.State:
    return i.State(msgspec.structs.replace(on.pinned(), printed_ns=PRINTED_NS))


def heard(on: PulledNode, state: i.State, now_ns: int) -> i.State:
    taken = i.take_page(state, on.page(state.head.size, state.head.hash), now_ns)
    return i.noted(state, taken.state, now_ns)


def test_a_clock_that_was_set_back_makes_no_honest_seal_a_bad_one() -> None:
    """By it no such epoch can be open yet, and a BAD_SEAL stays until an operator resolves it."""
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS)
    for day in range(1, 61):
        sealing(on, 24 * 60)
        state = heard(on, state, PRINTED_NS + day * DAY_NS)
    # Back to the day of its enrolment, to before it, and to 1970.
    for now_ns in (PRINTED_NS + DAY_NS, PRINTED_NS - DAY_NS, DAY_NS):
        sealing(on, 2)
        state = heard(on, state, now_ns)
        sealing(on, 2)
        state = heard(on, state, now_ns + 2 * EPOCH_NS)


def test_a_log_that_was_enrolled_while_the_clock_was_ahead_is_followed_on() -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS + DAY_NS)
    for day in range(60):
        sealing(on, 24 * 60)
        state = heard(on, state, PRINTED_NS - 30 * DAY_NS + day * DAY_NS)


def test_a_clock_that_was_set_back_lets_nobody_seal_all_epochs_at_once() -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS + DAY_NS)
    sealing(on, EPOCHS_AHEAD_MAX + 2)
    with pytest.raises(ChainError, match="by the reader's clock"):
        heard(on, state, PRINTED_NS)


# ---- while it runs -------------------------------------------------------------------------------


class SetClock:
    """Both clocks of this host, the wall clock set by so much."""

    def __init__(self) -> None:
        self._now, self.by_ns = clock(), 0

    def __call__(self) -> Moment:
        at = self._now()
        return msgspec.structs.replace(at, wall_ns=at.wall_ns + self.by_ns)


YEAR_NS = 365 * DAY_NS


@pytest.mark.parametrize("by_ns", [YEAR_NS, -3600 * SECOND, -YEAR_NS])
async def test_a_clock_that_is_set_is_nobodys_silence_and_keeps_nothing_from_being_cosigned(
    tmp_path: Path, pki: FleetPki, by_ns: int
) -> None:
    west, own = Collector(tmp_path, pki), SetClock()
    west.config = msgspec.structs.replace(west.config, wait_ns=200 * 10**6)
    servers = [NodeServer(PulledNode(number, epoch_ns=EPOCH_NS)) for number in range(1, 5)]
    for server in servers:
        server.node.clock = lambda: own().wall_ns - own.by_ns
        server.node.start()
    async with serving(pki, *servers), trio.open_nursery() as nursery:
        for number, server in enumerate(servers):
            west.enrol(server, f"node-{number}")
        nursery.start_soon(partial(west.pull, once=False, now=own))
        with trio.fail_after(25):
            while not all(server.acked for server in servers):
                await trio.sleep(0)
            own.by_ns = by_ns
            asked = [len(server.requests) for server in servers]
            while any(
                len(server.requests) < count + 3
                for server, count in zip(servers, asked, strict=True)
            ):
                await trio.sleep(0)
            for server in servers:
                live(server.node, 9)
            while not all(len(server.acked) > 1 for server in servers):
                await trio.sleep(0)
            while not any("this host's clock was set" in told for told in west.told):
                await trio.sleep(0)
        reader = ArchiveReader(west.state)
        assert {entry.verdict for entry in reader.logs()} <= {"OK", "BEHIND"}
        now_ns = own().wall_ns
        ages = [entry.age_ns(now_ns) for entry in reader.logs()]
        reader.close()
        assert all(age is not None and age < 60 * SECOND for age in ages)
        nursery.cancel_scope.cancel()
    told = "\n".join(west.told)
    assert "STALE" not in told
    way = "forward" if by_ns > 0 else "back"
    assert re.search(rf"this host's clock was set \d+ s {way}", told), told


def test_whose_clock_is_off_is_what_most_say() -> None:
    told: list[str] = []
    skews = Skews(lambda name, text: told.append(f"{name}: {text}"))
    for number in range(5):
        skews.note(f"n{number}", 0)
    skews.note("n0", 3600 * SECOND)
    skews.note("n0", 3601 * SECOND)
    assert [one.partition(",")[0] for one in told] == [
        "n0: its clock is 3600 s ahead of this host's: what it seals is dated so"
    ]
    told.clear()
    for number in range(5):
        skews.note(f"n{number}", 3600 * SECOND)
    # Two were told before most had said so.
    assert [one.split(":")[0] for one in told] == ["n1", "clock"]
    assert "this host's clock is 3600 s behind that of 3 of 5 nodes" in told[-1]
    told.clear()
    for number in range(5):
        skews.note(f"n{number}", 0)
    assert [one.split(":")[0] for one in told] == ["n0", "n1", "clock"]
    assert all("agree" in one for one in told)


async def test_a_renewal_that_the_clock_refused_is_taken_when_that_is_right(
    tmp_path: Path, pki: FleetPki
) -> None:
    """It was looked at once; the one of before ended, and no collector could connect."""
    west, own = Collector(tmp_path, pki), SetClock()
    files = (west.config.certificate, west.config.key, west.config.ca)
    listening = read_listening({"address": "127.0.0.1", "port": 0}, files)
    with (
        closing(Archive(west.state)) as archive,
        closing(open_witness(west.state, "west", now=own, entropy=os_entropy)) as witness,
    ):
        door = OwnDoor(witness, Storer(archive, print), listening, HostClock(own), "west")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(door.run)
            await trio.testing.wait_all_tasks_blocked()
            assert door.look_again() == ""
            own.by_ns = -60 * DAY_NS
            pki.issue(Role.COLLECTOR, "west")
            told = door.look_again()
            assert "is not valid before" in told and told.endswith("those of before stay in force")
            assert door.look_again() == "", "once"
            own.by_ns = 0
            assert door.look_again() == "certificate, key and CA were read anew"
            assert door.look_again() == ""
            nursery.cancel_scope.cancel()
