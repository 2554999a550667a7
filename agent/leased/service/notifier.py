# SPDX-License-Identifier: Apache-2.0
"""The notifier: tells a holder that it should leave, in the lease directory.

Rule: `<runtime>/leases/<id>/notice.json` is written whole (rename), readable by the holder alone,
and gone with the lease. The same notice goes to every Watch of the lease; a signal to the leader is
the client's own affair, since only it knows which process leads.

Does not decide when or why, and losing a notice never delays the deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from leased.terms.effect import Effect, Forget, Notify
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_S


class Notifier:
    """Writes and removes lease directories below `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path_of(self, lease_id: bytes) -> Path:
        """The lease directory (LEASE_DIR)."""
        return self._directory / lease_id.hex()

    def open_directory(self, lease: Lease) -> Path:
        """Make the lease directory, owned by the holder's group and not writable by it.
        Idempotent."""
        path = self.path_of(lease.lease_id)
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        os.chown(path, 0, lease.subject.gid)
        return path

    def start(self, effect: Effect, now_ns: int) -> None:
        """Carry out Notify and Forget; other effects are not ours."""
        if isinstance(effect, Notify):
            # A full or missing runtime directory loses the notice; the Watch has it all the same.
            with contextlib.suppress(OSError):
                self._write(effect, now_ns)
        elif isinstance(effect, Forget):
            path = self.path_of(effect.lease_id)
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, notice: Notify, now_ns: int) -> None:
        path = self.open_directory(notice.lease)
        text = json.dumps(
            {
                "lease_id": notice.lease.lease_id.hex(),
                "reason": notice.reason.name.lower(),
                "deadline_boottime_ns": notice.deadline_ns,
                "seconds_left": max(0, notice.deadline_ns - now_ns) // NS_PER_S,
            }
        )
        fresh = path / "notice.json.new"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.chmod(0o640)
        os.chown(fresh, 0, notice.lease.subject.gid)
        fresh.rename(path / "notice.json")
