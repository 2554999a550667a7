# SPDX-License-Identifier: Apache-2.0
"""The tenant's library: ask the agent of this host for hardware, hold it, give it back. Trio first,
`plain` for scripts.

    async with client.acquire(mem="4GiB", ttl=60) as held:
        async with held.scope():
            await train(held.mem(), held.notice)

Rule: a lease held through this library is given up by us before the agent takes it: the scope
closes early, the loss is a typed exception as every other is (LeasedError), and nothing waits for
ever. Does not decide anything the agent decides.
"""

from leased.client import plain
from leased.client.acquisition import acquire
from leased.client.faults import AgentUnavailable, CallTimeout, LeaseLost, Refused, RemoteError
from leased.client.holding import Holding
from leased.client.peers import PeerEnd, connect_peer, disconnect_peer
from leased.client.session import ADMIN_SOCKET, SOCKET, Session, connect
from leased.client.wants import want
from leased.terms.errors import InvalidParameter, LeasedError, NoSuchLease, PermissionDenied
from leased.wire import objects

__all__ = [
    "ADMIN_SOCKET",
    "SOCKET",
    "AgentUnavailable",
    "CallTimeout",
    "Holding",
    "InvalidParameter",
    "LeaseLost",
    "LeasedError",
    "NoSuchLease",
    "PeerEnd",
    "PermissionDenied",
    "Refused",
    "RemoteError",
    "Session",
    "acquire",
    "connect",
    "connect_peer",
    "disconnect_peer",
    "objects",
    "plain",
    "want",
]
