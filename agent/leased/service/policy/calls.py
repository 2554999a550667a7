# SPDX-License-Identifier: Apache-2.0
"""What operators say and ask about policies: SetPolicy, GetPolicy, CheckPolicy.

Rule: a document is read, checked and kept before the sequencer hears of it; a refusal names key,
value and reason and changes nothing. What is checked is checked against the table as it is when the
answer leaves.

Does not decide (`lessor`) and does not keep (`policies`).
"""

from __future__ import annotations

from leased.lessor.lessor import Lessor
from leased.ports import Clock, Entropy
from leased.service.api.connection import Connection
from leased.service.policy.policies import Policies
from leased.terms.command import SetPolicy, TryPolicy
from leased.terms.errors import PermissionDenied
from leased.terms.policy import Policy, digest
from leased.terms.policy_writing import document_of, lines_of
from leased.terms.reply import Allowed
from leased.wire import objects, parameters, replies
from leased.wire.answers import encode_reply
from leased.wire.calls import to_command
from leased.wire.conversation import Call
from leased.wire.policy_document import encode_policy
from leased.wire.portrayal import portray_allowance


class PolicyCalls:
    """The tasks behind the calls about policies."""

    def __init__(
        self, policies: Policies, lessor: Lessor, *, clock: Clock, entropy: Entropy
    ) -> None:
        self._policies = policies
        self._lessor = lessor
        self._clock = clock
        self._entropy = entropy

    async def set_policy(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.SetPolicy"""
        asked = call.parameters
        assert isinstance(asked, parameters.SetPolicy)
        require_operator(connection)
        if asked.document is None:
            reply = await self._policies.put_back(connection.caller)
        else:
            command = to_command(call, connection.caller, self._entropy)
            assert isinstance(command, SetPolicy)
            reply = await self._policies.set(command)
        connection.answer(call, encode_reply(call, reply, self._clock.now()))

    async def get_policy(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.GetPolicy"""
        require_operator(connection)
        policy, table = self._lessor.policy, self._lessor.table
        shown = replies.GetPolicyReply(
            document=encode_policy(policy),
            policy_hash=table.policy_hash.hex(),
            generation=table.policy_generation,
            configured=self._policies.is_configured(table.policy_hash),
            windows=list(self._lessor.admission.calendar.windows),
        )
        connection.answer(call, replies.encode(shown))

    async def check_policy(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.CheckPolicy"""
        require_operator(connection)
        command = to_command(call, connection.caller, self._entropy)
        assert isinstance(command, TryPolicy)
        before = self._lessor.policy
        reply = await self._policies.attempt(command)
        assert isinstance(reply, Allowed)
        shown = replies.CheckPolicyReply(
            policy_hash=digest(command.policy).hex(),
            changes=changes_between(before, command.policy),
            allowances=[portray_allowance(one) for one in reply.allowances],
            why=reply.why,
        )
        connection.answer(call, replies.encode(shown))


def changes_between(before: Policy, after: Policy) -> list[objects.Change]:
    """Every key that says something else, in the order of the documents."""
    old, new = (dict(lines_of(document_of(policy))) for policy in (before, after))
    return [
        objects.Change(key, old.get(key), new.get(key))
        for key in dict.fromkeys((*old, *new))
        if key != "generation" and old.get(key) != new.get(key)
    ]


def require_operator(connection: Connection) -> None:
    """Raises PermissionDenied."""
    if not connection.caller.operator:
        raise PermissionDenied("policies are for operators: use the admin socket")
