# SPDX-License-Identifier: Apache-2.0
"""What an operator may say in `[hardware.block]`, with every default spelled out.

Does not read a file: `service.config_file` does.
"""

from __future__ import annotations

import enum

import msgspec

from leased.hardware.block.drives import Erase

KEY_BITS = (128, 192, 256, 384, 512)
CANARIES_MAX = 65536
MADE_MAX = 1024
"""Namespaces of one size, so that a slip of the finger is no thousands of them."""

ERASE_NS_MAX = 49 * 24 * 3600 * 1_000_000_000
"""A command is given its time in milliseconds, of 32 bits."""


class Offer(enum.StrEnum):
    """Which namespaces may be leased. Whatever is mounted, in an array, swap or otherwise in use is
    never among them."""

    NONE = "none"
    LISTED = "listed"
    UNUSED = "unused"


class BlockConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[hardware.block]` table.

    `namespaces` are the identities that may be leased (and are overwritten) where `offer` is
    `listed`; with `unused` every local one is that is blank and that nobody uses. `attach` names
    namespaces that are to be attached when they are found detached, as (subsystem NQN, nsid); and
    `make` how many of one size a drive is to have, as (subsystem NQN, count, bytes).
    `crypt_erase` and `raw_erase` are what is done besides forgetting a key, in the order of
    preference: the first that the drive can. `raw`: the same namespaces may be had unencrypted.
    """

    offer: Offer = Offer.LISTED
    namespaces: tuple[str, ...] = ()
    attach: tuple[tuple[str, int], ...] = ()
    make: tuple[tuple[str, int, int], ...] = ()
    raw: bool = False
    cipher: str = "aes-xts-plain64"
    key_bits: int = 512
    crypt_erase: tuple[Erase, ...] = ()
    raw_erase: tuple[Erase, ...] = (Erase.CRYPTO, Erase.FORMAT, Erase.ZERO)

    detach_stuck: bool = False
    """Whether a namespace whose mapping will not let go is detached from the host."""

    canaries: int = 64
    """Blocks that are looked at again, spread over the namespace."""

    erase_budget_ns: int = 600_000_000_000
    """A drive that formats or sanitizes itself answers within this, or is fenced."""

    zero_bytes_per_s: int = 128 << 20
    """Slowest zeroing that still counts as progress."""

    settle_budget_ns: int = 2_000_000_000
    """udev looks into every device that changes: this long it is waited for."""

    @property
    def by_contents(self) -> bool:
        """Whether what is on a disk decides whether it is offered."""
        return self.offer is Offer.UNUSED
