# SPDX-License-Identifier: Apache-2.0
"""Burden: what a collector keeps in memory of one log, in bytes, by estimate.

Rule: a node says what leases, tenants and resources there are, and may say of as many as it likes:
whose records name so much that others' would find no room is set aside. The bound is far above what
an honest node needs: 16 000 leases and 30 000 tenants are a third of it.

Does not set aside (`node_view`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from leased.collector.planning.compliance import Compliance
from leased.terms.lease import Subject

BYTES_MAX: Final = 256 << 20

LOOK_RECORDS: Final = 4096
"""A look goes over all that there is. Between two the largest of records say 256 MiB more."""

# «measured» with a million records of each, names of 40 characters.
_LEASE: Final = 1000
_NAME: Final = 250
_ALLOTMENT: Final = 200


class Tables(Protocol):
    """What of a view grows with what its records name."""

    @property
    def subjects(self) -> Iterable[Subject]:
        """Of each lease that there is or lately was."""
        ...

    @property
    def names(self) -> Iterable[str]:
        """Everything else that is kept by a name, once for each table that it is in."""
        ...

    compliance: Compliance


def burden(view: Tables) -> int:
    """How much it is."""
    leases = sum(_LEASE + _length(one) for one in view.subjects)
    names = sum(_NAME + len(name) for name in view.names)
    return leases + names + _NAME * view.compliance.size


def _length(subject: Subject) -> int:
    tag = subject.tag
    words = [subject.tenant, subject.workload or "", subject.cgroup]
    if tag is not None:
        words += [tag.cost_center, tag.project, tag.request_class, tag.budget_group]
    held = subject.allotments
    return sum(map(len, words)) + sum(_ALLOTMENT + len(one.resource_id) for one in held)
