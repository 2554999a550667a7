# SPDX-License-Identifier: Apache-2.0
"""Vitals: what the agent says of itself: how far its chain goes, and how it is.

Rule: the head shown is the anchored one, and its signed note is over exactly the tree that ends
there. Nothing here changes anything.

Does not tell of tenants.
"""

from __future__ import annotations

from collections.abc import Callable

from leased import __version__
from leased.chain.note import Checkpoint, NoteKey, write_note
from leased.chain.tree import Frontier
from leased.durable.log import OpenedLog
from leased.lessor.lessor import Lessor
from leased.ports import Clock
from leased.service.log.room import state_of
from leased.terms.lease import LeaseState
from leased.wire import objects, replies


class Vitals:
    """Answers io.leased.Audit.Head and io.leased.Admin.Status."""

    def __init__(
        self,
        *,
        opened: OpenedLog,
        lessor: Lessor,
        clock: Clock,
        node_id: bytes,
        tree: Frontier,
        reaper_connected: Callable[[], bool],
        connections: Callable[[], int],
    ) -> None:
        self._opened = opened
        self._lessor = lessor
        self._clock = clock
        self._node_id = node_id
        self._reaper_connected = reaper_connected
        self._connections = connections
        self._started_ns = clock.now().boot_ns
        self.tree = tree

    def head(self) -> replies.HeadReply:
        """The anchored head, with the node's own signature over the tree that ends there."""
        tree, opened = self.tree, self._opened
        text = Checkpoint(opened.origin, tree.size, tree.root()).text()
        key = NoteKey(opened.origin, opened.signer.public_key)
        return replies.HeadReply(
            log_id=opened.log_id.hex(),
            next_sequence=tree.size,
            head=opened.journal.anchored.head.hex(),
            boot_id=self._clock.now().boot_id.hex(),
            checkpoint=write_note(text, [(key, opened.signer.sign(text.encode()))]),
        )

    def status(self) -> replies.StatusReply:
        """How the agent is."""
        table, now = self._lessor.table, self._clock.now()
        counts = {state.name.lower(): 0 for state in LeaseState}
        for lease in table.leases.values():
            counts[lease.state.name.lower()] += 1
        counts["reclaimed"] = len(table.closed)
        log_state, log_why = state_of(self._opened, table.live)
        return replies.StatusReply(
            version=__version__,
            node_id=self._node_id.hex(),
            boot_id=now.boot_id.hex(),
            epoch=table.epoch,
            started_boottime_ns=self._started_ns,
            now_boottime_ns=now.boot_ns,
            log_id=self._opened.log_id.hex(),
            next_sequence=self.tree.size,
            head=self._opened.journal.anchored.head.hex(),
            filesystem=self._opened.filesystem,
            durability=self._opened.durability,
            policy_generation=self._lessor.table.policy_generation,
            policy_hash=table.policy_hash.hex(),
            reaper_connected=self._reaper_connected(),
            draining="" in table.pools.cordoned,
            connections=self._connections(),
            leases=objects.LeaseCounts(**counts, waiting=len(self._lessor.queue)),
            log_state=log_state,
            log_why=log_why,
        )
