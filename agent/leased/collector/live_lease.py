# SPDX-License-Identifier: Apache-2.0
"""A lease of a node, from its grant until it is proven clean, as the node's records say.

Rule: it counts against its tenant until it is proven clean or fenced, as it does on the node. What
is fenced is the operator's, and is what could not be proven clean: the rest of the lease is free.

Does not read records (`fleet`).
"""

from __future__ import annotations

from typing import Final

import msgspec

from leased.terms.lease import Subject
from leased.terms.resource import Allotment, ResourceKind

HELD: Final = ("granted", "active", "draining")


class LiveLease(msgspec.Struct):
    """`deadline_ns` and `granted_ns` are on its node's boot clock; `sequence` is that of the record
    that granted it, `last` that of its last record."""

    lease_id: str
    subject: Subject
    state: str
    granted_wall_ns: int
    deadline_ns: int
    generation: int
    sequence: int
    last: int
    granted_ns: int = 0
    ended: str = ""
    fenced: tuple[Allotment, ...] = ()
    borrowed: tuple[tuple[ResourceKind, int], ...] = ()

    @property
    def is_held(self) -> bool:
        """Whether its holder has access."""
        return self.state in HELD

    @property
    def counts(self) -> bool:
        """Whether it counts against its tenant's quota."""
        return not self.fenced

    @property
    def kept(self) -> tuple[Allotment, ...]:
        """What nobody else can have because of it."""
        return self.fenced or self.subject.allotments
