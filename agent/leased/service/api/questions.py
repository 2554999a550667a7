# SPDX-License-Identifier: Apache-2.0
"""Questions: calls that are answered once, from elsewhere than the table (alone): the disk, the
drivers' workers, the agent itself.

Rule: they change nothing (Reload and RotateKey aside, which hand theirs to the sequencer),
and what tells of other tenants is for operators only.

Does not stream (`streams`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from leased.chain.note import NoteKey
from leased.chain.proof import Proof
from leased.lessor.lessor import Lessor
from leased.lessor.questions import visible
from leased.ports import Clock, Holder
from leased.ports import Holders as HolderScan
from leased.service.api.connection import Connection
from leased.service.api.streams import Streams, require_operator
from leased.service.log.reader import ChainReader
from leased.terms.command import Why
from leased.terms.errors import CallerError, StateError
from leased.terms.identity import CommandId
from leased.terms.reply import Explained, Missing
from leased.wire import objects, parameters, replies
from leased.wire.answers import encode_reply
from leased.wire.conversation import Call


class Questions:
    """The tasks behind Why, Head, Read, Prove, Verify, Holders, Telemetry.Read, Status, RotateKey
    and Reload."""

    def __init__(
        self,
        *,
        chain: ChainReader,
        streams: Streams,
        lessor: Lessor,
        holders: HolderScan,
        resource_ids: Callable[[], Sequence[str]],
        clock: Clock,
        head: Callable[[], replies.HeadReply],
        prove: Callable[[int, int | None], Awaitable[Proof]],
        status: Callable[[], replies.StatusReply],
        reload_config: Callable[[], Awaitable[None]],
        rotate_key: Callable[[], Awaitable[tuple[NoteKey, NoteKey]]],
    ) -> None:
        self._chain = chain
        self._streams = streams
        self._lessor = lessor
        self._holders = holders
        self._resource_ids = resource_ids
        self._clock = clock
        self._head = head
        self._prove = prove
        self._status = status
        self._reload_config = reload_config
        self._rotate_key = rotate_key

    async def explain(self, connection: Connection, call: Call) -> None:
        """io.leased.Lease.Why: of a request that only the log knows to have been refused, the log
        is asked, once, whether it was granted later; what it has forgotten nobody knows."""
        command = self._streams.command_of(connection, call)
        assert isinstance(command, Why)
        reply = await self._streams.ask(command)
        request, known = CommandId(command.lease_id), self._lessor.questions
        if isinstance(reply, Explained) and reply.refusal is not None and reply.position is None:
            since = known.recalled(request)
            if since is not None:
                if await self._chain.grants(request, since) is False:
                    known.confirm(request)
                else:
                    known.forget(request)
                    reply = Missing(command.lease_id)
        connection.answer(call, encode_reply(call, reply, self._clock.now()))

    async def tell_head(self, connection: Connection, call: Call) -> None:
        """io.leased.Audit.Head: a hash tells nothing of anyone, so everybody may ask."""
        connection.answer(call, replies.encode(self._head()))

    async def prove(self, connection: Connection, call: Call) -> None:
        """io.leased.Audit.Prove: hashes again; everybody may ask, one at a time."""
        asked = call.parameters
        assert isinstance(asked, parameters.AuditProve)
        proof = await self._prove(asked.sequence, asked.size)
        fields = {**msgspec.structs.asdict(proof), "path": list(proof.path)}
        reply = replies.ProveReply(**fields)
        connection.answer(call, replies.encode(reply))

    async def read_chain(self, connection: Connection, call: Call) -> None:
        """io.leased.Audit.Read"""
        asked = call.parameters
        assert isinstance(asked, parameters.AuditRead)
        require_operator(connection)
        page = await self._chain.read(
            asked.from_sequence, records_max=asked.records_max, bytes_max=asked.bytes_max
        )
        reply = replies.ReadReply(page.from_sequence, page.next_sequence, page.frames)
        connection.answer(call, replies.encode(reply))

    async def verify_chain(self, connection: Connection, call: Call) -> None:
        """io.leased.Audit.Verify"""
        require_operator(connection)
        try:
            verdict = json.loads(await self._chain.verify())
        except (ValueError, trio.TooSlowError) as error:
            raise StateError("leasectl verify gave no verdict; run it by hand") from error
        shown = {
            key: verdict[key] for key in replies.VerifyReply.__struct_fields__ if key in verdict
        }
        connection.answer(call, replies.encode(replies.VerifyReply(**{"why": ""} | shown)))

    async def find_holders(self, connection: Connection, call: Call) -> None:
        """io.leased.Device.Holders: who is no operator is shown its own processes, and which of
        them is of which lease of its own."""
        asked = call.parameters
        assert isinstance(asked, parameters.Holders)
        known = self._resource_ids()
        if asked.resource_id is not None and asked.resource_id not in known:
            raise CallerError(
                f"no resource is called {asked.resource_id}; see io.leased.Device.List"
            )
        wanted = known if asked.resource_id is None else (asked.resource_id,)
        found = await self._holders.scan(wanted)
        caller, leases = connection.caller, self._lessor.table.leases
        portrayed = []
        for holder in found:
            lease = None if holder.lease_id is None else leases.get(holder.lease_id)
            if caller.operator or holder.uid == caller.uid:
                told = caller.operator or visible(lease, caller)
                portrayed.append(portray_holder(holder, with_lease=told))
        connection.answer(call, replies.encode(replies.HoldersReply(portrayed)))

    async def tell_samples(self, connection: Connection, call: Call) -> None:
        """io.leased.Telemetry.Read"""
        asked = call.parameters
        assert isinstance(asked, parameters.TelemetryRead)
        samples = self._streams.portray_samples(connection, asked.resource_id, asked.lease_id)
        connection.answer(call, replies.encode(replies.TelemetryReply(samples)))

    async def tell_status(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.Status"""
        connection.answer(call, replies.encode(self._status()))

    async def rotate_key(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.RotateKey"""
        old, new = await self._rotate_key()
        connection.answer(call, replies.encode(replies.RotateKeyReply(old.text(), new.text())))

    async def reload(self, connection: Connection, call: Call) -> None:
        """io.leased.Admin.Reload"""
        await self._reload_config()
        connection.answer(call, replies.encode(replies.EmptyReply()))


def portray_holder(holder: Holder, *, with_lease: bool = True) -> objects.Holder:
    """As the wire has it; which lease it is of, operators are told, and whose that is."""
    return objects.Holder(
        pid=holder.pid,
        uid=holder.uid,
        name=holder.name,
        via=holder.via,
        resource_id=holder.resource_id,
        lease_id=holder.lease_id.hex() if with_lease and holder.lease_id else None,
    )
