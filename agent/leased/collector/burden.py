# SPDX-License-Identifier: Apache-2.0
"""Burden: what a collector keeps in memory of one log, in bytes, by estimate.

Rule: a node says what leases, tenants and resources there are, and may say of as many as it likes:
whose records name so much that others' would find no room is set aside. The bound is far above what
an honest node needs: 16 000 leases and 30 000 tenants are a third of it.

Does not set aside (`node_view`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Final, Protocol

from leased.chain.canonical import Unknown
from leased.collector.live_lease import LiveLease
from leased.terms.event import Admitted, Event, Fenced, LeaseEvent
from leased.terms.lease import Subject

BYTES_MAX: Final = 256 << 20

LOOK_RECORDS: Final = 4096
"""A look goes over all that there is. Between two the longest of names are 256 MiB more."""

# «measured» with a million records of each, names of 40 characters.
_LEASE: Final = 1000
_NAME: Final = 250
_ALLOTMENT: Final = 200
_PAIR: Final = 120

_USUAL: Final = 16
"""So many things in one record are none too many."""


class Tables(Protocol):
    """What of a view grows with what its records name."""

    leases: dict[str, LiveLease]
    ended: dict[str, Subject]

    @property
    def names(self) -> Iterable[str]:
        """Everything else that is kept by a name, once for each table that it is in."""
        ...


def burden(view: Tables) -> int:
    """How much it is."""
    leases = sum(_LEASE + _length(one.subject) + _more(one) for one in view.leases.values())
    ended = sum(_LEASE + _length(one) for one in view.ended.values())
    return leases + ended + sum(_NAME + len(name) for name in view.names)


def weight(event: Event | Unknown) -> int:
    """As how many records one counts until the next look: it may hold ten thousand of something."""
    if not isinstance(event, LeaseEvent):
        return 1
    more: Sized = ()
    if isinstance(event, Admitted):
        more = event.borrowed
    elif isinstance(event, Fenced):
        more = event.fenced
    return 1 + (len(event.subject.allotments) + len(more)) // _USUAL


def _more(lease: LiveLease) -> int:
    fenced = sum(_ALLOTMENT + len(one.resource_id) for one in lease.fenced)
    return fenced + _PAIR * len(lease.borrowed)


def _length(subject: Subject) -> int:
    tag = subject.tag
    words = [subject.tenant, subject.workload or "", subject.cgroup]
    if tag is not None:
        words += [tag.cost_center, tag.project, tag.request_class, tag.budget_group]
    held = subject.allotments
    return sum(map(len, words)) + sum(_ALLOTMENT + len(one.resource_id) for one in held)
