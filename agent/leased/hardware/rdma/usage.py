# SPDX-License-Identifier: Apache-2.0
"""Who uses an RDMA device: by the objects that the kernel lists, and by who has its node open.

Rule: the first tells of a process that made objects, the second also of one that was handed the
descriptor they live by. The kernel's own core is everywhere and is left out; what else of it uses
the device is named.

Does not judge who may. Runs in workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from leased.hardware import openers
from leased.hardware.openers import Sought
from leased.hardware.rdma import calls
from leased.hardware.rdma.devices import find_link
from leased.hardware.rdma.nldev import Nldev, Object

_CORE: Final = "ib_core"


def users(asked: calls.Usage, fds: Sequence[int]) -> calls.Users:
    """Everybody who uses the device. Raises DeviceError."""
    with Nldev() as nldev:
        link = find_link(nldev, asked.guid)
        if link is None:
            return calls.Users(())
        rows = nldev.objects(link.number)
        _, number = nldev.verbs_device(link.number)
    exempt = dict(asked.exempt)
    sought = Sought(((os.major(number), os.minor(number)),))
    deadline_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + asked.budget_ns
    found = [
        calls.User(one.pid, one.uid, one.name, one.via)
        for one in openers.scan(sought, exempt=exempt, deadline_ns=deadline_ns)
    ]
    found += [one for one in _makers(rows) if one.pid not in exempt]
    return calls.Users(tuple(dict.fromkeys(found)))


def _makers(rows: Iterable[Object]) -> Iterator[calls.User]:
    for row in rows:
        if row.kernel and row.kernel != _CORE:
            yield calls.User(0, 0, row.kernel, "driver")
        elif row.pid:
            yield from _described(row.pid)


def _described(pid: int) -> Iterator[calls.User]:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            yield calls.User(pid, uid, comm.read().rstrip("\n"), "driver")
    except OSError:
        return  # it has exited meanwhile
