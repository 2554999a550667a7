# SPDX-License-Identifier: Apache-2.0
"""Who waits on this node for more of a limit, told with each question for a policy.

Rule: only what waits for a limit of its tenant is told, added up by tenant and kind, and never more
of it than fits a header. It is a wish: what a node may have is decided by what was handed out and
what verified records say.

Does not ask (`uplink`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from leased.lessor.queue import Waiting
from leased.lessor.quota import wanted_by
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind

HEADER: Final = "Leased-Waiting"
ROWS_MAX: Final = 32
LEASES: Final = "leases"
_LIMITS: Final = (RefusalReason.TENANT_CAPACITY, RefusalReason.TENANT_LEASES)


def waiting_text(queue: Iterable[Waiting]) -> str:
    """Rows of [tenant, kind or "leases", amount in its raw unit], as JSON; "" if nobody waits."""
    wanted: dict[tuple[str, str], int] = {}
    for waiting in queue:
        if waiting.reason not in _LIMITS:
            continue
        tenant = str(waiting.acquire.caller.tenant)
        more = [(LEASES, 1)]
        if waiting.reason is RefusalReason.TENANT_CAPACITY:
            charge = wanted_by(waiting.acquire)
            more = [
                (ResourceKind(kind).name.lower(), capacity) for (kind, _, _), capacity in charge
            ]
        for what, amount in more:
            wanted[tenant, what] = wanted.get((tenant, what), 0) + amount
    rows = [(*whose, amount) for whose, amount in sorted(wanted.items())[:ROWS_MAX]]
    return json.dumps(rows, separators=(",", ":")) if rows else ""
