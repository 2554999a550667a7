# SPDX-License-Identifier: Apache-2.0
"""What operators say and ask about policies: SetPolicy.

Rule: a document is read, checked and kept before the sequencer hears of it; a refusal names key,
value and reason and changes nothing.

Does not decide (`lessor`) and does not keep (`policies`).
"""

from __future__ import annotations

from leased.ports import Clock, Entropy
from leased.service.connection import Connection
from leased.service.policies import Policies
from leased.terms.command import SetPolicy
from leased.terms.errors import PermissionDenied
from leased.wire import parameters
from leased.wire.calls import encode_reply, to_command
from leased.wire.conversation import Call


class PolicyCalls:
    """The tasks behind the calls about policies."""

    def __init__(self, policies: Policies, clock: Clock, entropy: Entropy) -> None:
        self._policies = policies
        self._clock = clock
        self._entropy = entropy

    async def set_policy(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.SetPolicy"""
        asked = call.parameters
        assert isinstance(asked, parameters.SetPolicy)
        require_operator(connection)
        command = to_command(call, connection.caller, self._entropy)
        assert isinstance(command, SetPolicy)
        reply = await self._policies.set(command)
        connection.answer(call, encode_reply(call, reply, self._clock.now()))


def require_operator(connection: Connection) -> None:
    """Raises PermissionDenied."""
    if not connection.caller.operator:
        raise PermissionDenied("policies are for operators: use the admin socket")
