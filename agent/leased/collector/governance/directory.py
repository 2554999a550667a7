# SPDX-License-Identifier: Apache-2.0
"""The directory of governance: the register, and the key that policies are signed with.

Rule: one process has it open; the key is durable before anything signed by it exists, and a key
that others may read is refused, not repaired.

Does not sign.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from leased.chain.signing import Signer, parse_pem
from leased.collector.governance.register import Register
from leased.durable.files import DirectoryDisk, make_durably, write_whole
from leased.durable.reading import read_file
from leased.terms.errors import StateError

DIRECTORY: Final = "governance"
KEY_FILE: Final = "policy.key"
KEY_NAME: Final = "{fleet}/policy"
"""What nodes know the key by."""


class GovernanceDirectory:
    """The open directory below the collector's state directory."""

    def __init__(self, state: Path, entropy: Callable[[], bytes]) -> None:
        """Lock, make what is missing. Raises StateError."""
        self.directory = state / DIRECTORY
        try:
            state.mkdir(mode=0o700, exist_ok=True)
            make_durably(state, DIRECTORY)
            self._disk = DirectoryDisk(self.directory)
        except OSError as error:
            raise StateError(f"{self.directory}: {error}; make its parent, owned by you") from error
        try:
            if not self._disk.lock():
                raise StateError(f"{self.directory}: another collector serves it; stop that first")
            self.signer = load_signer(self.directory) or self._make_signer(entropy)
            # Two connections: who reads does not see what is being written.
            self.register = Register(self.directory)
            self.writer = Register(self.directory)
        except BaseException:
            self._disk.close()
            raise

    def _make_signer(self, entropy: Callable[[], bytes]) -> Signer:
        signer = Signer(entropy() + entropy())
        write_whole(self._disk, KEY_FILE, signer.pem())
        return signer

    def close(self) -> None:
        """Close everything and let go of the lock. Idempotent."""
        self.writer.close()
        self.register.close()
        self._disk.close()


def load_signer(directory: Path) -> Signer | None:
    """The key in `directory`; None: there is none yet. Raises StateError."""
    path = directory / KEY_FILE
    try:
        mode = path.stat().st_mode & 0o777
        pem = read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise StateError(f"{path}: others may read it (mode {mode:o}); run `chmod 600 {path}`")
    try:
        return parse_pem(pem)
    except ValueError as error:
        raise StateError(f"{path}: not an unencrypted Ed25519 key ({error})") from error
