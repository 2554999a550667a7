# SPDX-License-Identifier: Apache-2.0
"""Erasing as the operator says: a way that the drive does not know is refused, another is taken.

Comes before the other modules of namespaces: the agent is first started so (`suite`).
"""

from __future__ import annotations

import hashlib

import drives
import host
from drives import A2, Tenant, ask

MARKER = hashlib.shake_256(b"what is to be overwritten").digest(drives.BLOCK_BYTES)


def test_a_way_to_erase_that_the_drive_does_not_know_is_refused_and_another_is_taken() -> None:
    drives.configure(**drives.UNUSUAL)
    drives.settled()
    found = drives.offered()
    assert f"block:raw:{A2}" not in found
    assert "not raw: its drive cannot do sanitize-block to it alone" in drives.note_of(A2)
    assert found[f"block:{A2}"]["attributes"]["erase"] == "key+zero"
    raw = drives.device(A2)
    size_bytes = drives.size(raw)
    tenant = Tenant(*ask(A2), act=f"os.pwrite(fds[0], {MARKER!r}, {size_bytes // 3})").ready()
    assert tenant.end()["state"] == "reclaimed"
    said = host.journal(f"LEASE_ID={tenant.lease_id}", "LEASE_EVENT=Scrubbed")[-1]["MESSAGE"]
    assert f"scrubbed: {size_bytes} bytes" in said
    step, zeroes = 4 << 20, bytes(4 << 20)
    for at in range(0, size_bytes, step):
        assert drives.read_past_caches(raw, at, step) == zeroes, "all of it is zero"
    drives.settled()
    assert not drives.mappings()
