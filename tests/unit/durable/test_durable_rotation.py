# SPDX-License-Identifier: Apache-2.0
"""A key that is replaced, with a crash at every step: the log says which key counts."""

from __future__ import annotations

import pytest

from leased.chain.signing import Signer, rotation_message
from leased.durable.keyfile import KEY_FILE, NEXT_KEY_FILE
from leased.durable.log import OpenedLog
from leased.durable.reader import read_log
from leased.terms import event as e
from leased.terms.errors import StateError
from leased.terms.identity import EventId
from tests.doubles.disk import MemoryDisk
from tests.doubles.logs import moment_at, open_on, renewal, started

NEW = Signer(b"n" * 32)


def _rotation(opened: OpenedLog) -> e.KeyRotated:
    old = opened.signer
    message = rotation_message(opened.log_id, old.public_key, NEW.public_key)
    event = EventId(b"\x77" * 16)
    return e.KeyRotated(event, NEW.public_key, old.sign(message), NEW.sign(message))


def _rotate(disk: MemoryDisk, *, steps: int) -> bytes:
    """Stage, seal, adopt: the first `steps` of these. Returns the old key."""
    opened = open_on(disk)
    old = opened.signer.public_key
    sealer = opened.sealer()
    first = sealer.seal([(started(), moment_at(0))], sign=True)
    opened.journal.commit_blocking(first.frames, first.count, first.head, moment_at(0))
    if steps >= 1:
        opened.stage_key(NEW)
    if steps >= 2:
        sealer.successor = NEW
        batch = sealer.seal([(_rotation(opened), moment_at(1))], sign=True)
        opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(1))
    if steps >= 3:
        opened.adopt_key()
    opened.close()
    return old


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_after_any_step_the_log_opens_with_the_key_that_counts(steps: int) -> None:
    disk = MemoryDisk()
    old = _rotate(disk, steps=steps)
    after = MemoryDisk({name: disk.read(name) for name in disk.names()})
    opened = open_on(after)
    assert opened.signer.public_key == (NEW.public_key if steps >= 2 else old)
    assert NEXT_KEY_FILE not in after.names()
    sealer = opened.sealer()
    batch = sealer.seal([(renewal(1), moment_at(2))], sign=True)
    opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(2))
    opened.close()
    found = read_log(after.directory, disk=after)
    assert found.facts.verified.signed_size == found.head.size - 1
    assert found.facts.verified.public_key == opened.signer.public_key


def test_a_key_of_neither_kind_is_refused_and_nothing_is_touched() -> None:
    disk = MemoryDisk()
    _rotate(disk, steps=2)
    files = {name: disk.read(name) for name in disk.names()}
    files[NEXT_KEY_FILE] = Signer(b"x" * 32).pem()
    after = MemoryDisk(files)
    with pytest.raises(StateError, match="not the key of this log"):
        open_on(after)
    assert {name: after.read(name) for name in after.names()} == files
    assert KEY_FILE in files
