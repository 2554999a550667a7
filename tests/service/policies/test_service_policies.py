# SPDX-License-Identifier: Apache-2.0
"""Which policy is in force: over restarts, over reloads, and when the disk says no."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio

from leased.chain.note import NoteKey
from leased.durable.shelf import Shelf
from leased.economics.rates import DEFAULT_CARD, Rate, RateCard
from leased.lessor.lessor import Lessor
from leased.service.config import Config
from leased.service.policy.policies import NO_RATE_HASH, Policies
from leased.service.policy.uplink import make_uplink
from leased.service.unbroken import Unbroken
from leased.service.uplink import Collector
from leased.terms import command as commands
from leased.terms.command import Command, SetPolicy, TryPolicy
from leased.terms.errors import ConfigError, InvalidParameter, StateError
from leased.terms.identity import CommandId, TenantId
from leased.terms.lease import Level
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Allocation, Policy, Strategy, TenantLimits, digest
from leased.terms.policy_text import read_policy
from leased.terms.reply import InForce, Refusal, Reply, Unfit
from leased.terms.resource import ResourceKind
from tests.doubles.clock import FakeClock
from tests.doubles.desk import ACME, OPERATOR, Desk

DEARER = RateCard(tuple(Rate(rate.kind, 2 * rate.nano) for rate in DEFAULT_CARD.rates))
CONFIGURED = Policy(leases_max=100)
HANDED_IN = Policy(leases_max=7, tenants=(("acme", TenantLimits(level_max=Level.HIGH)),))


async def turns(count: int) -> None:
    """Let others have theirs."""
    for _ in range(count):
        await trio.lowlevel.checkpoint()


class Site:
    """A state directory and what runs over it: `boot` begins another life of the agent."""

    def __init__(self, directory: Path) -> None:
        self.shelf = Shelf(directory)
        self.clock = FakeClock()
        self.config = Config(policy=CONFIGURED)
        self.said: list[str] = []
        self.changes = 0
        self.desk = Desk()
        self.boot()

    def boot(self) -> None:
        """Start, or start again, as `service.agent` does."""
        self.policies = Policies(
            shelf=self.shelf,
            clock=self.clock,
            config=lambda: self.config,
            ask=self._ask,
            in_force=lambda: self.desk.table.policy_hash,
            document=lambda: self.desk.lessor.policy,
            unbroken=Unbroken().scope,
            changed=self._changed,
            say=self.said.append,
        )
        desk = self.desk
        desk.lessor = Lessor(desk.ids, self.config.policy)
        for event, moment in desk.history:
            desk.lessor.replay(event, moment)
        policy = self.policies.resumed(desk.table.policy_hash)
        desk.propose(
            commands.Start(
                desk.command_id(),
                node_id=b"n" * 16,
                version="0",
                filesystem="ext4",
                durability="full",
                inventory=desk.inventory,
                policy=policy,
                policy_hash=digest(policy),
                rate_hash=self.config.rates.digest(),
                known_to_reaper=frozenset(desk.table.leases),
            )
        )

    async def _ask(self, command: Command) -> Reply:
        if command.command_id == bytes(16):
            command = msgspec.structs.replace(command, command_id=self.desk.command_id())
        await turns(10)  # of others, as with the sequencer's channel
        reply = self.desk.say(command)
        assert reply is not None
        await turns(10)
        return reply

    async def reload(self, read: Callable[[], Config]) -> None:
        """As the agent does."""

        def adopt(fresh: Config) -> None:
            self.config = fresh

        await self.policies.reconfigure(read, adopt, OPERATOR)

    def _changed(self) -> None:
        self.changes += 1

    async def hand_in(self, policy: Policy, rate_hash: bytes = NO_RATE_HASH) -> Reply:
        """SetPolicy, as an operator says it."""
        command_id = CommandId(self.desk.command_id())
        order = SetPolicy(command_id, OPERATOR, policy, digest(policy), rate_hash)
        return await self.policies.set(order)

    @property
    def in_force(self) -> Policy:
        """What requests are judged by."""
        return msgspec.structs.replace(self.desk.lessor.policy, generation=0)

    def kept(self) -> list[str]:
        """The documents on the shelf."""
        return sorted(path.name for path in self.shelf._directory.glob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "policies")


async def test_what_was_handed_in_is_in_force_after_a_restart_and_one_generation_on(
    site: Site,
) -> None:
    assert site.in_force == CONFIGURED
    generation = site.desk.table.policy_generation
    assert isinstance(await site.hand_in(HANDED_IN), InForce)
    assert site.in_force == HANDED_IN and site.changes == 1
    for _ in range(2):
        events = len(site.desk.history)
        site.boot()
        assert site.in_force == HANDED_IN
        assert site.desk.table.policy_generation == generation + 1
        assert not any("Policy" in type(e).__name__ for e, _ in site.desk.history[events:])
    assert site.kept() == [f"{digest(HANDED_IN).hex()}.json"]


async def test_the_decisions_after_a_restart_are_those_of_the_document(site: Site) -> None:
    await site.hand_in(Policy(leases_max=1))
    site.boot()
    site.desk.lease()
    assert site.desk.refused().rule == "leases_max"


@pytest.mark.parametrize("damage", ["gone", "cut", "another", "not json"])
async def test_a_document_that_cannot_be_read_again_gives_way_to_the_configured_one(
    site: Site, damage: str
) -> None:
    await site.hand_in(HANDED_IN)
    [name] = site.kept()
    path = site.shelf._directory / name
    if damage == "gone":
        path.unlink()
    else:
        text = path.read_bytes()
        path.write_bytes({"cut": text[:-5], "another": b"{}", "not json": b"\xff"}[damage])
    site.boot()
    assert site.in_force == CONFIGURED
    assert site.desk.table.policy_hash == digest(CONFIGURED)
    assert damage == "gone" or "cannot be read" in site.said[0]


async def test_a_document_that_expired_while_the_agent_was_away_gives_way(site: Site) -> None:
    expires_ns = site.clock.now().wall_ns + 60 * NS_PER_S
    await site.hand_in(msgspec.structs.replace(HANDED_IN, expires_wall_ns=expires_ns))
    site.clock.step(61 * NS_PER_S)
    site.boot()
    assert site.in_force == CONFIGURED and "expired" in site.said[0]


async def test_one_that_has_expired_is_not_taken(site: Site) -> None:
    late = msgspec.structs.replace(HANDED_IN, expires_wall_ns=site.clock.now().wall_ns)
    with pytest.raises(ConfigError, match=r"policy\.expires_at = 2.*: it has expired already"):
        await site.hand_in(late)
    with pytest.raises(ConfigError, match="expired"):  # a check says what applying it would
        await site.policies.attempt(TryPolicy(site.desk.command_id(), OPERATOR, late))
    assert site.in_force == CONFIGURED


async def test_a_document_that_is_refused_leaves_everything_as_it_was(site: Site) -> None:
    await site.hand_in(msgspec.structs.replace(HANDED_IN, generation=5))
    stale = await site.hand_in(msgspec.structs.replace(CONFIGURED, leases_max=3, generation=5))
    assert isinstance(stale, Refusal)
    over = {
        "tenants": {"a": {}},
        "allocation": {"mem": {"strategy": "reservation", "reservations": {"a": "1TiB"}}},
    }
    unfit = await site.hand_in(read_policy(over))
    assert isinstance(unfit, Unfit) and "over-committed" in unfit.why
    nowhere = read_policy({"timezone": "Mars/Olympus"})
    with pytest.raises(ConfigError, match="no such time zone"):
        await site.hand_in(nowhere)
    with pytest.raises(InvalidParameter, match="rate_hash"):
        await site.hand_in(CONFIGURED, rate_hash=b"x" * 32)
    assert site.in_force == HANDED_IN and site.kept() == [f"{digest(HANDED_IN).hex()}.json"]
    site.boot()
    assert site.in_force == HANDED_IN


async def test_a_disk_that_is_full_refuses_the_document(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site.shelf = Shelf(tmp_path / "file" / "below")
    site.boot()
    with pytest.raises(StateError, match="cannot be kept"):
        await site.hand_in(HANDED_IN)
    assert site.in_force == CONFIGURED


async def test_a_reload_changes_the_floor_and_not_what_was_handed_in(site: Site) -> None:
    fresh = Config(policy=Policy(leases_max=55))
    await site.reload(lambda: fresh)
    assert site.in_force == fresh.policy
    await site.hand_in(HANDED_IN)
    again = Config(policy=Policy(leases_max=56))
    await site.reload(lambda: again)
    assert site.in_force == HANDED_IN
    site.desk.say(msgspec.structs.replace(site.policies.floor(OPERATOR), command_id=b"f" * 16))
    assert site.in_force == again.policy
    site.boot()
    assert site.in_force == again.policy


async def test_of_two_reloads_at_once_the_later_counts(site: Site) -> None:
    """Also if the first is slow to read what is no longer there."""
    older, newer = (Config(policy=Policy(leases_max=most)) for most in (55, 56))
    reading, go_on = threading.Event(), threading.Event()

    def read_slowly() -> Config:
        reading.set()
        go_on.wait()
        return older

    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.reload, read_slowly)
        await trio.to_thread.run_sync(reading.wait)
        nursery.start_soon(site.reload, lambda: newer)
        await turns(100)
        go_on.set()
    assert site.config is newer and site.in_force == newer.policy


async def test_what_is_handed_in_during_a_reload_is_in_force_behind_it(site: Site) -> None:
    """With its rates, and over a restart."""
    fresh = Config(policy=Policy(leases_max=55), rates=DEARER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.reload, lambda: fresh)
        await turns(2)
        nursery.start_soon(site.hand_in, HANDED_IN)
    assert site.in_force == HANDED_IN
    assert site.desk.table.rate_hash == DEARER.digest()
    site.boot()
    assert site.in_force == HANDED_IN


async def test_a_reload_with_other_rates_does_not_end_the_uplink(site: Site) -> None:
    """It had named the rates of before, and an error that it does not expect ends the agent."""
    key = NoteKey("fleet.example", bytes(range(32))).text()
    agent: Any = SimpleNamespace(
        config=Config(collector=Collector("https://collector.example", policy_key=key)),
        node=b"n" * 16,
        clock=site.clock,
        policies=site.policies,
        sequencer=SimpleNamespace(lessor=site.desk.lessor),
        say=site.said.append,
        _operator=lambda: OPERATOR,
    )
    uplink = make_uplink(agent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.reload, lambda: Config(policy=CONFIGURED, rates=DEARER))
        await turns(2)
        nursery.start_soon(uplink._put, HANDED_IN)
    assert site.in_force == HANDED_IN
    assert site.desk.table.rate_hash == DEARER.digest()


@pytest.mark.parametrize("passed", [0, 2, 5, 10, 15, 20])
async def test_a_reload_during_what_is_handed_in_leaves_it_in_force(
    passed: int, site: Site
) -> None:
    await site.hand_in(Policy(leases_max=3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.reload, lambda: Config(policy=Policy(leases_max=55)))
        await turns(passed)
        nursery.start_soon(site.hand_in, HANDED_IN)
    assert site.in_force == HANDED_IN
    site.boot()
    assert site.in_force == HANDED_IN


async def test_who_hangs_up_during_a_reload_leaves_none_half_done(site: Site) -> None:
    fresh = Config(policy=Policy(leases_max=55), rates=DEARER)
    outcomes = set()
    for passed in (0, *range(2, 40, 3)):
        read = threading.Event()

        def reading(read: threading.Event = read) -> Config:
            read.set()
            return fresh

        async with trio.open_nursery() as nursery:
            nursery.start_soon(site.reload, reading)
            if passed:
                await trio.to_thread.run_sync(read.wait)
                await turns(passed)
            nursery.cancel_scope.cancel()
        done = site.config is fresh
        outcomes.add(done)
        assert site.in_force == (fresh.policy if done else CONFIGURED)
        await site.reload(lambda: Config(policy=CONFIGURED))
    assert outcomes == {True, False}


async def test_a_configuration_that_does_not_fit_changes_nothing(site: Site) -> None:
    before = site.config
    much = ((TenantId("acme"), 1 << 60),)
    reserve = Allocation(ResourceKind.MEM, strategy=Strategy.RESERVATION, reservations=much)
    with pytest.raises(ConfigError, match="acme|reserv"):
        await site.reload(lambda: Config(policy=Policy(allocations=(reserve,)), rates=DEARER))
    assert site.config is before and site.in_force == CONFIGURED
    assert site.desk.table.rate_hash == before.rates.digest()


async def test_nobody_but_an_operator_puts_a_policy_in_force(site: Site) -> None:
    order = SetPolicy(
        CommandId(b"x" * 16), ACME, HANDED_IN, digest(HANDED_IN), site.config.rates.digest()
    )
    await site.policies.set(order)
    assert site.in_force == CONFIGURED and site.kept() == []
