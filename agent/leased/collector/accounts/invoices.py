# SPDX-License-Identifier: Apache-2.0
"""Issued bills: their canonical bytes, kept for ever; and what later records say of them.

Rule: a bill is issued once, when every node's records have passed the end of its month, and is
never changed after that: what comes later is a correction in the next one, computed at the prices
of the bill that it corrects. The hours that it was made of are kept with it (`kept_hours`). Unlike
the store they cannot be made again from the raw segments, because prices are an input: back them
up.

Does not send bills to anybody.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from leased.collector.accounts import kept_hours
from leased.collector.accounts.kept_costs import KeptCosts
from leased.collector.archive.floor import Kept
from leased.durable.files import DirectoryDisk, make_durably, write_whole
from leased.economics.bill_text import parse_bill
from leased.economics.billing import Bill
from leased.economics.meter import UsageKey
from leased.terms.errors import EX_TEMPFAIL, CallerError, StateError
from leased.terms.quantity import print_instant

INVOICES: Final = "invoices"
HOURS: Final = ".hours"
_NOBODY: Final[Mapping[str, int]] = {}
_MONTH: Final = re.compile(r"[0-9]{4}-[0-9]{2}\.json\Z")


class NotSettled(CallerError):
    """Some node's records do not reach the end of the month yet: wait for it, or list it in
    retired_nodes."""

    wire = "io.leased.Collector.NotSettled"
    exit_status = EX_TEMPFAIL


class Invoices:
    """The issued bills below one state directory: `invoices/tenant=<tenant>/<month>.json`, their
    hours beside them in `<month>.hours`; and what capacity cost in their months (`kept_costs`)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / INVOICES
        self.costs = KeptCosts(self.directory)
        self._kept = Kept(directory)

    def begin_ns(self) -> int:
        """Before when no hours are left: a bill that they were in is what they came to, for
        good."""
        return self._kept.floor().begin_ns

    def issued(self, tenant: str, month: str) -> Bill | None:
        """The bill of a month, if it was issued. Raises StateError."""
        path = self._path(tenant, month)
        return self._read(path) if path.exists() else None

    def tenants(self) -> list[str]:
        """Whoever was billed, sorted."""
        found = self.directory.glob("tenant=*")
        return sorted(path.name.removeprefix("tenant=") for path in found)

    def hours(self, bill: Bill) -> dict[UsageKey, int] | None:
        """What an issued bill was made of; None: it was issued by a release that kept none. Raises
        StateError."""
        path = self._path(bill.tenant, bill.period).with_suffix(HOURS)
        try:
            return kept_hours.read(path.read_bytes(), bill)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{path}: {error}; restore it from a backup") from error

    def of_tenant(self, tenant: str) -> list[Bill]:
        """Every issued bill of a tenant, oldest first. Raises StateError."""
        directory = self._path(tenant, "").parent
        if not directory.is_dir():
            return []
        names = sorted(path.name for path in directory.iterdir() if _MONTH.match(path.name))
        return [self._read(directory / name) for name in names]

    def mark(self, tenant: str) -> tuple[str, ...]:
        """Which months of a tenant are issued: what is, is never changed."""
        directory = self._path(tenant, "").parent
        return tuple(sorted(os.listdir(directory))) if directory.is_dir() else ()

    def settled(self, bill: Bill, ends: Mapping[str, int] = _NOBODY) -> Bill:
        """`bill`, if it can be issued; `ends`: when the last record of each node that is waited for
        was. Raises NotSettled."""
        if bill.final:
            return bill
        late = sorted((at_ns, node) for node, at_ns in ends.items() if at_ns < int(bill.to_ns))
        why = "it is not over"
        if late:
            at_ns, node = late[0]
            others = f" (and those of {len(late) - 1} more)" if len(late) > 1 else ""
            why = (
                f"the records of node {node} end at {print_instant(at_ns)}{others}, before the"
                " month does: wait for them, or list it in retired_nodes"
            )
        raise NotSettled(f"{bill.period}: {why}; the bill of {bill.tenant} is a draft")

    def issue(self, bill: Bill, hours: bytes) -> None:
        """Keep a bill and the hours that it was made of, durably. The same again changes nothing.
        Raises NotSettled, StateError."""
        self.settled(bill)
        path = self._path(bill.tenant, bill.period)
        make_durably(self.directory.parent, self.directory.name)
        make_durably(self.directory, path.parent.name)
        with closing(DirectoryDisk(path.parent)) as disk:
            if not disk.lock():
                raise StateError(f"{path.parent}: another process is issuing bills")
            if path.exists():
                if path.read_bytes() != bill.canonical():
                    raise StateError(f"{path}: was issued otherwise; correct it in the next bill")
                return
            # Of a crash in between these are left, and are written again: no bill names them.
            write_whole(disk, path.with_suffix(HOURS).name, hours)
            write_whole(disk, path.name, bill.canonical())

    def _read(self, path: Path) -> Bill:
        try:
            raw = path.read_bytes()
            bill = parse_bill(raw)
        except (OSError, ValueError) as error:
            raise StateError(f"{path}: {error}; restore it from a backup") from error
        if bill.canonical() != raw:
            raise StateError(f"{path}: its bytes are not canonical; restore it from a backup")
        return bill

    def _path(self, tenant: str, month: str) -> Path:
        return self.directory / f"tenant={tenant}" / f"{month}.json"
