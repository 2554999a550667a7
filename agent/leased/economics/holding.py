# SPDX-License-Identifier: Apache-2.0
"""A holding: one lease, one operator's fence or one provisioned resource, while it lasts.

Rule: mutable on purpose, and private to the fold (`intervals`); what leaves the fold are frozen
intervals.

Does not decide when it ends.
"""

from __future__ import annotations

from leased.economics.pools import Pool
from leased.terms.identity import LeaseId
from leased.terms.lease import Subject
from leased.terms.resource import Allotment


class Holding:
    """What is in `pool` now, since `start_ns`. `held` is the tenant's capacity x ns so far, per
    allotment.
    """

    __slots__ = (
        "allotments",
        "deadline_ns",
        "deadline_seq",
        "granted_by",
        "held",
        "lease_id",
        "opened_by",
        "pool",
        "start_ns",
        "subject",
    )

    def __init__(
        self,
        pool: Pool,
        allotments: tuple[Allotment, ...],
        *,
        start_ns: int,
        opened_by: int,
        subject: Subject | None = None,
        lease_id: LeaseId | None = None,
        deadline_ns: int = 0,
    ) -> None:
        self.pool = pool
        self.allotments = allotments
        self.start_ns = start_ns
        self.opened_by = opened_by
        self.subject = subject
        self.lease_id = lease_id
        self.deadline_ns = deadline_ns
        self.deadline_seq = opened_by
        self.granted_by = opened_by
        self.held: list[int] = [0] * len(allotments)
