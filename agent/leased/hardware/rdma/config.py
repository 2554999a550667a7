# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware.rdma]`, with every default spelled out.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import enum

import msgspec

PEERS_MAX = 63
"""What one owner has places for, and one for the prober (native/rdma_protocol.h)."""


class Windows(enum.StrEnum):
    """Whether each remote peer gets memory windows of its own (type 2B): its keys then work on its
    own connection only."""

    AUTO = "auto"
    NEVER = "never"


class RdmaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware.rdma]` table. `offer` False: nothing of this kind is leased, or looked at.
    `devices` names those that are offered, by node GUID or by name; () is all of them. `program`
    names leased-rdma, if it is not the one that came with the agent."""

    offer: bool = True
    devices: tuple[str, ...] = ()
    windows: Windows = Windows.AUTO
    program: str = ""

    peers_max: int = 8
    """Remote peers of one lease at once. Each is a queue pair, which a device has thousands of."""

    gid_index: int = -1
    """Of the device's addresses, which peers connect to; -1 is the best routable one."""

    prober: str = ""
    """A device (node GUID or name) that reads each lease's memory over the fabric, at the grant and
    again after the cut; "" is none."""

    withdraw_budget_ns: int = 250_000_000
    """An owner ends its objects in a few ms; one that does not is killed with them."""
