# SPDX-License-Identifier: Apache-2.0
"""The node's signing key as a file: made once, readable by its owner only.

Rule: the key is durable before anything signed by it exists. A key that others may read is refused,
not repaired.

Does not rotate keys and does not sign (`chain.signing`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from leased.chain.signing import Signer, parse_pem
from leased.durable.files import Disk, write_whole
from leased.terms.errors import StateError

KEY_FILE: Final = "node.key"


def create_key(disk: Disk, entropy: Callable[[], bytes]) -> Signer:
    """Make the key file and return its signer."""
    signer = Signer(entropy() + entropy())
    write_whole(disk, KEY_FILE, signer.pem())
    return signer


def load_key(disk: Disk) -> Signer:
    """Return the signer of the key file. Raises StateError saying what to do."""
    path = disk.directory / KEY_FILE
    try:
        pem = disk.read(KEY_FILE)
    except FileNotFoundError:
        raise StateError(
            f"{path}: the signing key of this log is missing; restore it from a backup (a log "
            "whose key is lost cannot go on: move the directory away to begin a new one)"
        ) from None
    if disk.mode(KEY_FILE) & 0o077:
        raise StateError(
            f"{path}: others may read the signing key (mode {disk.mode(KEY_FILE):o}); run "
            f"`chmod 600 {path}`"
        )
    try:
        return parse_pem(pem)
    except ValueError as error:
        raise StateError(
            f"{path}: not an unencrypted Ed25519 key in PKCS#8 PEM ({error})"
        ) from error
