# SPDX-License-Identifier: Apache-2.0
"""The node's signing key as a file: made once, readable by its owner only.

Rule: the key is durable before anything signed by it exists. A key that others may read is refused,
not repaired.

A key that follows lies beside it until the record that says so is anchored: then it takes its
place. Which of the two counts, the log says, so a crash in between loses neither.

Does not sign (`chain.signing`) and seals no rotation (`service.log.rotation`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from leased.chain.signing import Signer, parse_pem
from leased.durable.files import Disk, write_whole
from leased.terms.errors import StateError

KEY_FILE: Final = "node.key"
NEXT_KEY_FILE: Final = "node.key.next"


def create_key(disk: Disk, entropy: Callable[[], bytes]) -> Signer:
    """Make the key file and return its signer."""
    signer = Signer(entropy() + entropy())
    write_whole(disk, KEY_FILE, signer.pem())
    return signer


def stage_key(disk: Disk, signer: Signer) -> None:
    """Put the key that is to follow beside the one in force; durable on return. Raises OSError."""
    write_whole(disk, NEXT_KEY_FILE, signer.pem())


def adopt_key(disk: Disk) -> None:
    """The staged key takes the place of the one before, which is gone. Raises OSError."""
    disk.rename(NEXT_KEY_FILE, KEY_FILE)
    disk.sync_names()


def settle_key(disk: Disk, public_key: bytes) -> None:
    """After a crash: adopt the staged key if it is the one that the log goes on with, else forget
    it. Raises StateError, OSError."""
    if NEXT_KEY_FILE not in disk.names():
        return
    if load_key(disk).public_key == public_key:
        disk.unlink(NEXT_KEY_FILE)
        disk.sync_names()
    elif load_key(disk, NEXT_KEY_FILE).public_key == public_key:
        adopt_key(disk)


def load_key(disk: Disk, name: str = KEY_FILE) -> Signer:
    """Return the signer of the key file. Raises StateError saying what to do."""
    path = disk.directory / name
    try:
        pem = disk.read(name)
    except FileNotFoundError:
        raise StateError(
            f"{path}: the signing key of this log is missing; restore it from a backup (a log "
            "whose key is lost cannot go on: move the directory away to begin a new one)"
        ) from None
    if disk.mode(name) & 0o077:
        raise StateError(
            f"{path}: others may read the signing key (mode {disk.mode(name):o}); run "
            f"`chmod 600 {path}`"
        )
    try:
        return parse_pem(pem)
    except ValueError as error:
        raise StateError(
            f"{path}: not an unencrypted Ed25519 key in PKCS#8 PEM ({error})"
        ) from error
