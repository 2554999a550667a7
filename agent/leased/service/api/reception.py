# SPDX-License-Identifier: Apache-2.0
"""Reception: the parts that answer callers, put together.

Rule: each is handed what it needs of the agent and nothing else of it.

Does not answer anything itself (`dispatch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leased.service.adoption import Adoption
from leased.service.api.dispatch import Dispatcher
from leased.service.api.handover import Handover
from leased.service.api.questions import Questions
from leased.service.api.streams import Streams
from leased.service.log.rotation import Rotation
from leased.service.occupancy import Occupancy
from leased.service.peering import Peering
from leased.service.policy.calls import PolicyCalls
from leased.service.walls import Walls

if TYPE_CHECKING:
    from leased.service.agent import Agent


def make_dispatcher(agent: Agent) -> Dispatcher:
    """Everything between a call and its answer."""
    table = agent.sequencer.lessor.table
    streams = Streams(
        sequencer=agent.sequencer,
        feed=agent.feed,
        telemetry=agent.telemetry,
        chain=agent.chain,
        clock=agent.clock,
        entropy=agent.entropy,
    )
    occupancy = Occupancy(
        custodian=agent.custodian,
        live_leases=lambda: tuple(table.leases.values()),
        devices=agent.devices.census,
    )
    questions = _make_questions(agent, streams, occupancy)
    walls = Walls(
        leaves=agent.devices,
        reaper=agent.reaper,
        custodian=agent.custodian,
        holders=agent.holders,
        notifier=agent.notifier,
        user_socket=agent.config.paths.user_socket,
        find=table.find,
        ask=agent.sequencer.ask_own,
        clock=agent.clock,
    )
    return Dispatcher(
        sequencer=agent.sequencer,
        walls=walls,
        streams=streams,
        questions=questions,
        peering=Peering(
            remote=agent.devices.remote,
            ask=streams.ask,
            clock=agent.clock,
            entropy=agent.entropy,
        ),
        clock=agent.clock,
        entropy=agent.entropy,
        ttl_ns_default=lambda: agent.sequencer.lessor.policy.ttl_ns_default,
        handover=Handover(
            custodian=agent.custodian,
            handout=agent.devices.handout,
            access=agent.devices.access,
            find=table.find,
        ),
        detachment=agent.detachment,
        policy_calls=PolicyCalls(
            agent.policies, agent.sequencer.lessor, clock=agent.clock, entropy=agent.entropy
        ),
        adoption=Adoption(
            ask=streams.ask,
            ask_own=agent.sequencer.ask_own,
            adoptions=agent.devices.adoptions,
            walls=walls,
            entropy=agent.entropy,
            tenant_of=agent.tenant_of,
            ttl_ns_default=lambda: agent.sequencer.lessor.policy.ttl_ns_default,
        ),
    )


def _make_questions(agent: Agent, streams: Streams, occupancy: Occupancy) -> Questions:
    """What is answered from elsewhere than the table."""
    table = agent.sequencer.lessor.table
    rotation = Rotation(
        opened=agent.opened,
        sealer=agent.sealer,
        submit=agent.sequencer.submit_own,
        entropy=agent.entropy,
        unbroken=agent.sequencer.unbroken.scope,
    )
    return Questions(
        chain=agent.chain,
        streams=streams,
        lessor=agent.sequencer.lessor,
        holders=occupancy,
        resource_ids=lambda: tuple(table.pools.by_id),
        clock=agent.clock,
        head=agent.vitals.head,
        prove=agent.fleet.prove,
        status=agent.vitals.status,
        reload_config=agent.reload,
        rotate_key=rotation.rotate,
    )
