# SPDX-License-Identifier: Apache-2.0
"""Policies: which document is in force over restarts, and how another one takes its place.

Rule: a document that is handed in is on the shelf before `PolicyChanged` names its hash, and the
record is what counts: at a start the document that the log names last is in force again, unless it
has expired, cannot be read, or was the configured one. Then the configured policy holds, which is
the floor below every other. A document that is refused leaves everything as it was.

Does not judge what a policy means for requests (`lessor`) and does not watch the time (`calendar`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from leased.durable.shelf import Shelf
from leased.ports import Clock
from leased.service.config import Config
from leased.service.evidence import NO_COMMAND
from leased.service.policy.calendar import CalendarWatch, calendar_at, prices_of
from leased.service.policy.windows import check_windows
from leased.terms import policy as policies
from leased.terms.command import Caller, Command, SetPolicy, TryPolicy
from leased.terms.errors import ConfigError, InvalidParameter, StateError
from leased.terms.policy import Policy, digest
from leased.terms.quantity import print_instant
from leased.terms.reply import InForce, Reply, Unfit

if TYPE_CHECKING:
    from leased.service.agent import Agent

NO_RATE_HASH: Final = bytes(32)
"""A SetPolicy that does not say which rate card it goes with."""


class Policies:
    """The documents of one agent. `config` is the configuration in force, `ask` puts a command
    through the sequencer, `in_force` is the hash of the policy in force and `document` that policy,
    `unbroken` is a scope in which nobody is cancelled as long as the sequencer answers, and
    `changed` is called when another document is in force. Changes are made one after the other.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        clock: Clock,
        config: Callable[[], Config],
        ask: Callable[[Command], Awaitable[Reply]],
        in_force: Callable[[], bytes],
        document: Callable[[], Policy],
        unbroken: Callable[[], AbstractContextManager[None]],
        changed: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._shelf = shelf
        self._clock = clock
        self._config = config
        self._ask = ask
        self._in_force = in_force
        self._document = document
        self._unbroken = unbroken
        self._changed = changed
        self._say = say
        self._turns = trio.Lock()

    # ---- at a start ------------------------------------------------------------------------------

    def resumed(self, policy_hash: bytes) -> Policy:
        """The policy to begin with, where the log names `policy_hash` last. Blocks."""
        configured = floor_of(self._config())
        if policy_hash in (bytes(32), digest(configured)):
            return configured
        try:
            document = self._shelf.get(policy_hash.hex())
            if document is None:
                return configured  # it was that of a configuration that has changed since
            policy = policies.decode(document)
            if digest(policy) != policy_hash:
                raise ConfigError("it is not the document that the log names")
            check_windows(policy)
        except (OSError, ConfigError) as error:
            self._say(
                f"policy {policy_hash.hex()[:16]} is in force by the log and cannot be read"
                f" ({error}): the configured one is"
            )
            return configured
        expires_ns = policy.expires_wall_ns
        if expires_ns is not None and expires_ns <= self._clock.now().wall_ns:
            self._say(
                f"policy {policy_hash.hex()[:16]} has expired: the configured one is in force"
            )
            return configured
        return policy

    # ---- while it runs ---------------------------------------------------------------------------

    def floor(self, caller: Caller) -> SetPolicy:
        """The command that puts the configured policy in force."""
        return self._command(floor_of(self._config()), self._config(), caller)

    async def set(self, asked: SetPolicy) -> Reply:
        """Put a document in force, durably. Raises ConfigError, InvalidParameter or
        StateError; then nothing has changed."""
        async with self._turns:
            config = self._config()
            if asked.rate_hash not in (NO_RATE_HASH, config.rates.digest()):
                card = config.rates.digest().hex()
                raise InvalidParameter("rate_hash", f"the rate card of this host is {card}")
            self._check_times(asked.policy)
            command = msgspec.structs.replace(
                self._command(asked.policy, config, asked.caller), command_id=asked.command_id
            )
            # Whoever asked may hang up meanwhile: what has begun is brought to its end.
            with self._unbroken():
                reply = await self._change(command, policies.canonical(asked.policy))
        return reply

    async def _change(self, command: SetPolicy, document: bytes) -> Reply:
        try:
            name = command.policy_hash.hex()
            await trio.to_thread.run_sync(self._shelf.put, name, document)
        except OSError as error:
            raise StateError(f"the policy cannot be kept: {error.strerror}") from error
        reply = await self._ask(command)
        await self._tidy()
        if isinstance(reply, InForce):
            self._changed()
        return reply

    async def put_back(self, caller: Caller) -> Reply:
        """Put the configured policy in force."""
        async with self._turns:
            with self._unbroken():
                reply = await self._ask(self.floor(caller))
                await self._tidy()
                self._changed()
        return reply

    async def attempt(self, asked: TryPolicy) -> Reply:
        """What a document would mean here. Raises ConfigError if it cannot be meant."""
        self._check_times(asked.policy)
        calendar = calendar_at(asked.policy, self._clock.now())
        return await self._ask(msgspec.structs.replace(asked, calendar=calendar))

    def _check_times(self, policy: Policy) -> None:
        """Raises ConfigError if its windows cannot be computed here, or it has ended by now."""
        check_windows(policy)
        ends_ns = policy.expires_wall_ns
        if ends_ns is not None and ends_ns <= self._clock.now().wall_ns:
            ended = print_instant(ends_ns)
            raise ConfigError(f"policy.expires_at = {ended}: it has expired already")

    def is_configured(self, policy_hash: bytes) -> bool:
        """Whether that is the policy of the configuration."""
        return policy_hash == digest(floor_of(self._config()))

    async def reconfigure(
        self, read: Callable[[], Config], adopt: Callable[[Config], None], caller: Caller
    ) -> None:
        """Put the configuration that `read` finds (it may block) in force: its policy, unless a
        document that was handed in is, and its rates; the rest is `adopt`'s. Raises what `read`
        does, and ConfigError; then nothing has changed.
        """
        async with self._turns:
            fresh = await trio.to_thread.run_sync(read)
            policy = floor_of(fresh)
            if not self.is_configured(self._in_force()):
                policy = msgspec.structs.replace(self._document(), generation=0)
            with self._unbroken():
                reply = await self._ask(self._command(policy, fresh, caller))
                if isinstance(reply, Unfit):
                    raise ConfigError(reply.why)
                adopt(fresh)
                self._changed()

    def _command(self, policy: Policy, config: Config, caller: Caller) -> SetPolicy:
        return SetPolicy(
            NO_COMMAND,
            caller,
            policy,
            digest(policy),
            config.rates.digest(),
            prices_of(config.rates),
            calendar_at(policy, self._clock.now()),
        )

    async def _tidy(self) -> None:
        """Nothing stays on the shelf but what is in force. A disk that fails keeps too much."""
        try:
            await trio.to_thread.run_sync(self._shelf.keep, [self._in_force().hex()])
        except OSError as error:
            self._say(f"policies that are not in force any more were not removed: {error}")


def floor_of(config: Config) -> Policy:
    """The configured policy: whatever it says its generation is, the agent counts."""
    return msgspec.structs.replace(config.policy, generation=0)


def make_policies(agent: Agent) -> tuple[Policies, CalendarWatch]:
    """The policies of an agent, and who watches the time for them."""
    lessor, clock = agent.sequencer.lessor, agent.clock
    kept = Policies(
        shelf=Shelf(agent.config.paths.policies_dir),
        clock=clock,
        config=lambda: agent.config,
        ask=agent.sequencer.ask_own,
        in_force=lambda: lessor.table.policy_hash,
        document=lambda: lessor.policy,
        unbroken=agent.sequencer.unbroken.scope,
        changed=lambda: agent.calendar.look(),
        say=agent.journald.say,
    )
    calendar = CalendarWatch(
        clock=clock,
        submit=agent.sequencer.submit_own,
        policy=lambda: lessor.policy,
        floor=lambda: kept.floor(agent._operator()),
        prices=lambda: prices_of(agent.config.rates),
    )
    return kept, calendar
