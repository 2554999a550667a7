# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware.dax]`, with every default spelled out.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import msgspec


class DaxConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware.dax]` table. `offer` False: nothing of this kind is leased, or looked at; it
    is the operator's word that tenants may be given what `dax.survey.PIN_LIMIT` says. `persistent`:
    lease persistent memory, too; what is on it is overwritten before its first lease.
    """

    offer: bool = False
    persistent: bool = False

    rebind_budget_ns: int = 10_000_000_000
    """Taking a region from its driver and giving it back takes 0.1 s of its own; a kernel that
    waits for pinned pages meanwhile is not waited for longer."""

    scan_budget_ns: int = 5_000_000_000
    """One way through /proc on a host with ten thousand processes takes half a second."""
