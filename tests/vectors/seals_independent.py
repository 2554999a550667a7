# SPDX-License-Identifier: Apache-2.0
"""Epoch seals for the second verifier: what FORMAT.md section 6a says, and nothing of `leased`."""

from __future__ import annotations

import hmac

from tests.vectors.c2sp_independent import need


class Seals:
    """FORMAT.md section 6a."""

    def __init__(
        self, log_id: bytes, epoch_ns: int, key: bytes | None, latest: int | None, genesis: bool
    ) -> None:
        self.log_id, self.epoch_ns, self.key, self.key_epoch = log_id, epoch_ns, key, 0
        self.latest = latest
        self.next, self.first = (0, 0) if genesis else (None, None)
        self.boot, self.from_ns, self.until_ns = None, 0, None
        self.same_boot, self.last_end = genesis, None
        self.count = 0

    def start(self, boot: bytes, boot_ns: int) -> None:
        if boot != self.boot:
            self.same_boot = self.boot is None and self.same_boot
            self.boot, self.from_ns, self.until_ns = boot, 0, boot_ns + self.epoch_ns

    def record(self, boot_ns: int, where: str) -> None:
        inside = self.from_ns <= boot_ns and (self.until_ns is None or boot_ns < self.until_ns)
        need(inside, f"{where}: outside the epoch that is open")

    def seal(self, value: list, size: int, where: str) -> None:
        _, epoch, skipped, boot, begin, end, wall0, wall1, first, sealed, root, tag = value
        need(self.next is None or epoch == self.next, f"{where}: epoch {epoch}")
        need(self.boot is None or boot == self.boot, f"{where}: boot of the seal")
        need(sealed == size, f"{where}: size of the seal")
        need(min(epoch, skipped) >= 0, f"{where}: epochs below 0")
        need((epoch + skipped + 1) * self.epoch_ns <= 2**60, f"{where}: more epochs than a log has")
        need(self.latest is None or epoch + skipped < self.latest, f"{where}: ends after today")
        need(all(-(2**63) <= n < 2**63 for n in (begin, end, wall0, wall1)), f"{where}: 64 bits")
        need(self.first is None or first == self.first, f"{where}: first record of the epoch")
        if self.same_boot:
            need(end - begin == (skipped + 1) * self.epoch_ns, f"{where}: length of the epoch")
            need(self.last_end is None or begin == self.last_end, f"{where}: begin of the epoch")
        if self.key is not None:
            while self.key_epoch < epoch:
                self.key = hmac.digest(self.key, b"evolve", "sha256")
                self.key_epoch += 1
            fields = b"".join(
                part.to_bytes(8, "big", signed=signed)
                for part, signed in ((epoch, False), (skipped, False))
            )
            fields += boot + b"".join(n.to_bytes(8, "big", signed=True) for n in (begin, end))
            fields += b"".join(n.to_bytes(8, "big", signed=True) for n in (wall0, wall1))
            fields += b"".join(n.to_bytes(8, "big") for n in (first, sealed)) + root
            message = b"leased epoch seal v1\n" + self.log_id + fields
            made = hmac.digest(hmac.digest(self.key, b"tag", "sha256"), message, "sha256")
            need(made == tag, f"{where}: not made with the key of epoch {epoch}")
        self.next, self.first, self.last_end = epoch + skipped + 1, size, end
        self.boot, self.same_boot = boot, True
        self.from_ns, self.until_ns = end, end + self.epoch_ns
        self.count += 1
