# SPDX-License-Identifier: Apache-2.0
"""Who this node is: an id that stays the same over reboots and says nothing about the machine.

Rule: the node id is derived from the machine id with a key of our own (as machine-id(5) asks), so
neither can be computed from the other's appearance in a log. Nothing is made up: a host without a
machine id cannot start.

Does not name boots (`clock`) or logs (`durable`).
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from leased.terms.errors import StateError
from leased.terms.identity import ID_BYTES, NodeId

_OURS = b"io.leased node id, version 1"
_PLACES = ("etc/machine-id", "var/lib/dbus/machine-id")


def read_machine_id(root: Path = Path("/")) -> bytes:
    """The 16 bytes of /etc/machine-id. Raises StateError."""
    for place in _PLACES:
        try:
            text = (root / place).read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            continue
        if len(text) == 2 * ID_BYTES and text.strip("0"):
            try:
                return bytes.fromhex(text)
            except ValueError:
                continue
    raise StateError(
        "this host has no machine id: run systemd-machine-id-setup, or write 32 hex digits to"
        " /etc/machine-id"
    )


def node_id(machine_id: bytes) -> NodeId:
    """The node id of this machine: 16 bytes shaped as a random (version 4) UUID."""
    digest = bytearray(hmac.digest(machine_id, _OURS, hashlib.sha256)[:ID_BYTES])
    digest[6] = (digest[6] & 0x0F) | 0x40
    digest[8] = (digest[8] & 0x3F) | 0x80
    return NodeId(bytes(digest))
