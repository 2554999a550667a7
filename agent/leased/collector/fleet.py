# SPDX-License-Identifier: Apache-2.0
"""The fleet as its verified records say: nodes, what they have, who holds what, and until when.

Rule: a function of the records alone, kept up to date by reading only what is new.

It grows in one thread while others look: who looks goes over a copy of what grows (`list` of a
table is made in one step), and may see a record of one node before an older one of another.

Does not price (`accounts`), does not verify (`ingest` has), and knows no tenant that never had a
lease or was refused one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from leased.collector.archive.archive import ArchiveReader
from leased.collector.archive.manifest import LogEntry
from leased.collector.live_lease import LiveLease
from leased.collector.node_view import NodeView, summed
from leased.collector.standing import Amounts, Standing
from leased.terms.lease import Subject

LOGS_AT_ONCE: Final = 4
"""So many parts of what is read in one go are of a log each, at most."""


class Fleet:
    """Every node, as far as its log has been read. `changes` counts what was taken in; who is
    `retired` will not be heard of again: what it was is known, and it has and holds nothing."""

    def __init__(self) -> None:
        self.logs: dict[str, NodeView] = {}
        self.entries: dict[str, LogEntry] = {}
        self.changes = 0
        self.retired: frozenset[str] = frozenset()
        self.replaced: frozenset[str] = frozenset()
        """Logs that nobody follows any more, for their nodes have others."""
        self._last = ""
        self._stood: tuple[object, Standing] = (None, Standing((), frozenset()))

    def follow(self, archive: ArchiveReader, records_max: int) -> bool:
        """Read at most so many records that are new; whether there are more."""
        left = records_max
        self.replaced = archive.manifest.replaced()
        entries = archive.logs()
        for entry in entries:  # all of them before any is read: what is not is behind
            known = self.entries.get(entry.log_id)
            self.entries[entry.log_id] = entry
            view = self.logs.setdefault(entry.log_id, NodeView(entry.log_id))
            view.node, view.name = entry.node, entry.name
            if known is None or _said(known) != _said(entry):
                self.changes += 1  # once it is so: who asks meanwhile asks again
        behind = sorted(one.log_id for one in entries if self._left_of(one.log_id))
        share, more = max(1, records_max // LOGS_AT_ONCE), False
        # From the one after who was last: whoever writes without end has a turn, and not all.
        for log_id in (*(one for one in behind if one > self._last), *behind):
            self._last, wanted = log_id, min(left, share, self._left_of(log_id))
            read = self._read(archive, log_id, wanted)
            more = more or (0 < read == wanted and self._left_of(log_id) > 0)
            left -= read
            if left <= 0:
                return True
        return more

    def _read(self, archive: ArchiveReader, log_id: str, wanted: int) -> int:
        """Take in so many records of a log; how many there were."""
        view, read = self.logs[log_id], 0
        events = archive.events(log_id, view.next_seq, boot_id=view.boot_id)
        for sequence, event, moment in islice(events, wanted):
            view.apply(sequence, event, moment)
            read += 1
        return read

    def _left_of(self, log_id: str) -> int:
        return max(0, self.entries[log_id].head.size - self.logs[log_id].next_seq)

    def standing(self) -> Standing:
        """How it stands now."""
        logs = list(self.logs.values())
        # Read first: what is taken in meanwhile makes what was made of its middle old.
        state = (self.changes, len(logs), sum(view.applied for view in logs), self.retired)
        known, standing = self._stood
        if known != state:
            standing = Standing(logs, self.retired)
            self._stood = (state, standing)
        return standing

    def nodes(self) -> Sequence[NodeView]:
        """Each node that is there, by its last log, by name."""
        return self.standing().nodes

    def known(self) -> Sequence[NodeView]:
        """The same, and those that are not there any more."""
        return self.standing().known

    def tenants(self) -> Sequence[str]:
        """Everybody who had a lease or was refused one, sorted."""
        return self.standing().tenants

    def leases(self, tenant: str | None = None) -> Iterable[tuple[NodeView, LiveLease]]:
        """Every lease that is not proven clean."""
        leases = self.standing().leases
        if tenant is None:
            return leases
        return [(view, one) for view, one in leases if one.subject.tenant == tenant]

    def subjects(self) -> dict[str, Subject]:
        """Whose each lease is, or was lately, on all nodes."""
        found: dict[str, Subject] = {}
        for view in list(self.logs.values()):
            found.update(list(view.ended.items()))
            found.update((one.lease_id, one.subject) for one in list(view.leases.values()))
        return found

    def held(self, tenant: str | None = None) -> Amounts:
        """What is held of each kind, on all nodes."""
        return summed(view.held(tenant) for view in self.nodes())

    def unmet(self, since_ns: int, now_ns: int) -> dict[str, Amounts]:
        """The largest of what each asked for in vain since then, for want of room, and has not
        been given afterwards: who asks one node after the other wants it once."""
        found: dict[str, Amounts] = {}
        for tenant, kind, want in self.standing().wanted(since_ns, now_ns):
            mine = found.setdefault(tenant, {})
            mine[kind] = max(want.requested, mine.get(kind, 0))
        return found


def _said(entry: LogEntry) -> tuple[object, ...]:
    return entry.head, entry.verdict, entry.node, entry.name
