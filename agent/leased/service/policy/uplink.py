# SPDX-License-Identifier: Apache-2.0
"""The policy uplink: keeps the node's policy that of its collector.

Rule: a policy is put in force if the configured key has signed it for this fleet or this node of
it, if it has not ended, and through the sequencer like any other (so it is sealed, and an older one
is refused). Who waits here for more of a limit is told with each question, and by another one as
soon as it changes. With the collector gone the last one holds until its end, then the configured
one. What is refused is said once, not at every try.

Does not speak HTTP (`exchange`) and does not keep policies (`policies` does).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import trio

from leased.chain.policy_note import open_policy, parse_key
from leased.ports import Clock
from leased.service.evidence import NO_COMMAND
from leased.service.policy.exchange import ExchangeFailed, Offer, PolicyExchange
from leased.service.policy.policies import NO_RATE_HASH
from leased.service.policy.waiting import waiting_text
from leased.service.uplink import Collector
from leased.terms.command import SetPolicy
from leased.terms.errors import ChainError, ConfigError, StateError
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, digest
from leased.terms.reply import InForce, Refusal, RefusalReason, Unfit

if TYPE_CHECKING:
    from leased.service.agent import Agent

PAUSE_NS: Final = NS_PER_S
"""After a failure, doubled at each one that follows."""

LOOK_NS: Final = NS_PER_S
"""How often is looked whether others wait than was told."""


class Exchange(Protocol):
    """Asks the collector."""

    async def ask(self, generation: int | None, waiting: str) -> Offer | None: ...


class PolicyUplink:
    """The task. `put` puts a policy in force and returns what the lessor answered; `in_force` is
    the generation and the hash of what is, `waiting` who waits for more. `node` is this node's id
    in hex."""

    def __init__(
        self,
        collector: Collector,
        *,
        node: str,
        exchange: Exchange,
        clock: Clock,
        put: Callable[[Policy], Awaitable[object]],
        in_force: Callable[[], tuple[int, bytes]],
        waiting: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._collector, self._exchange, self._clock = collector, exchange, clock
        self._put, self._in_force, self._say = put, in_force, say
        self._waiting, self._told = waiting, ""
        self._question = trio.CancelScope()
        self._node = node
        self._key = parse_key(collector.policy_key)
        self._generation: int | None = None
        self._said = ""

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            await self._follow()

    async def _watch(self) -> None:
        """End a question that tells of others than wait now: the next one tells."""
        while True:
            await self._clock.sleep_until(self._clock.now().boot_ns + LOOK_NS)
            if self._waiting() != self._told:
                self._question.cancel()

    async def _follow(self) -> None:
        pause_ns = PAUSE_NS
        while True:
            offer: Offer | None = None
            try:
                self._told = self._waiting()
                with trio.CancelScope() as self._question:
                    offer = await self._exchange.ask(self._generation, self._told)
                if offer is not None:
                    await self._take(offer)
                self._tell_once("")
                pause_ns = PAUSE_NS
            except (ExchangeFailed, ChainError, ConfigError, StateError) as error:
                self._tell_once(f"no policy from {self._collector.url}: {error}")
                await self._clock.sleep_until(self._clock.now().boot_ns + pause_ns)
                pause_ns = min(2 * pause_ns, self._collector.retry_ns)

    async def _take(self, offer: Offer) -> None:
        """Put it in force. Raises ChainError, ConfigError."""
        grant, policy = open_policy(
            offer.note, offer.policy, self._key, self._collector.fleet, self._node
        )
        if grant.expires_ns <= self._clock.now().wall_ns:
            raise ConfigError(f"generation {grant.generation} has ended; are the clocks right?")
        if self._in_force() == (grant.generation, digest(policy)):
            self._generation = grant.generation
            return
        answer = await self._put(policy)
        if isinstance(answer, Unfit):
            raise ConfigError(f"generation {grant.generation} does not fit this host: {answer.why}")
        if isinstance(answer, Refusal):
            if answer.reason is not RefusalReason.STALE_POLICY:
                raise ConfigError(f"generation {grant.generation} was refused: {answer.reason}")
            # Asked for again, it would be refused again: wait for one that follows.
            self._say(
                f"the collector's policy of generation {grant.generation} is not newer than what"
                f" this node has ({answer.limit}); it waits for the next"
            )
        else:
            assert isinstance(answer, InForce)
        self._generation = grant.generation

    def _tell_once(self, what: str) -> None:
        if what and what != self._said:
            self._say(what)
        self._said = what


def make_uplink(agent: Agent) -> PolicyUplink:
    """The uplink of an agent whose configuration names a collector."""
    table = agent.sequencer.lessor.table

    async def put(policy: Policy) -> object:
        # No rate card is named: it would be compared with that of a reload under way.
        hashes = digest(policy), NO_RATE_HASH
        return await agent.policies.set(SetPolicy(NO_COMMAND, agent._operator(), policy, *hashes))

    return PolicyUplink(
        agent.config.collector,
        node=agent.node.hex(),
        exchange=PolicyExchange(agent.config.collector, agent.node.hex()),
        clock=agent.clock,
        put=put,
        in_force=lambda: (table.policy_generation, table.policy_hash),
        waiting=lambda: waiting_text(agent.sequencer.lessor.queue),
        say=agent.say,
    )
