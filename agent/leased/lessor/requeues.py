# SPDX-License-Identifier: Apache-2.0
"""Requeues: whose lease was taken for another may ask for it again at the head of its level, once.

Rule: it asks for no more than that lease had, at no higher level. What was taken is made good by
one grant, and remembered for as long as the lease is known.

Does not order the queue (`queue`).
"""

from __future__ import annotations

from leased.lessor.queue import WaitQueue, level_of
from leased.lessor.repeated import asks_for_more
from leased.lessor.table import LeaseTable
from leased.terms.command import Acquire
from leased.terms.identity import LeaseId
from leased.terms.lease import RevocationReason
from leased.terms.reply import Refusal, RefusalReason

_PUT_OUT = (RevocationReason.PRIORITY_PREEMPTION, RevocationReason.QUOTA_RECLAIM)


class Requeues:
    """What was taken, and was it made good."""

    __slots__ = ("_made_good", "_queue", "_table")

    def __init__(self, table: LeaseTable, queue: WaitQueue) -> None:
        self._table = table
        self._queue = queue
        self._made_good: dict[LeaseId, None] = {}

    def judge(self, acquire: Acquire) -> bool | Refusal:
        """Whether the request goes to the head of its level: its tenant lost that lease to another,
        and asks for no more than it had, at no higher level, for the first time.
        """
        lease_id = acquire.requeue_of
        assert lease_id is not None
        lease = self._table.find(lease_id)
        preempted = (
            lease is not None
            and lease.subject.tenant == acquire.caller.tenant
            and lease.reason in _PUT_OUT
            and self._table.level(lease) >= level_of(acquire)
            and not asks_for_more(acquire, lease)
        )
        if preempted and lease_id not in self._made_good and not any(
            one.acquire.requeue_of == lease_id for one in self._queue
        ):
            return True
        return Refusal(RefusalReason.NOT_PREEMPTED, "requeue_of", requested=1)

    def make_good(self, lease_id: LeaseId) -> None:
        """What was taken is granted again."""
        for gone in [one for one in self._made_good if self._table.find(one) is None]:
            del self._made_good[gone]
        self._made_good[lease_id] = None
