# SPDX-License-Identifier: Apache-2.0
"""Bundles as a hostile collector makes them: judged in words, whatever their numbers say."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.chain.evidence import Rotation, node_keys
from leased.chain.note import NoteKey
from leased.chain.signing import Signer, rotation_message
from leased.ctl.console import Console
from leased.ctl.main import main
from leased.terms.errors import EX_DATAERR
from tests.collector.test_collector_ingest import flip, node

ON = node()
BUNDLE: dict[str, Any] = {
    "format": "leased-evidence/1",
    "verdict": "BAD_RECORD",
    "why": "a record",
    "name": "alpha",
    "node_id": "ab",
    "log_id": ON.log_id.hex(),
    "origin": ON.origin,
    "vkey": NoteKey(ON.origin, ON.signer.public_key).text(),
    "epoch_ns": 0,
    "found_ns": 10**18,
    "status": 200,
    "size": 0,
    "head": "00" * 32,
    "note": ON.note(),
    "start": {"size": 0, "head": "00" * 32, "peaks": [], "batch": 0},
    "page": base64.b64encode(flip(ON.page(0), 200)).decode(),
}


def judged(case: Path, raw: bytes) -> tuple[int, str]:
    case.write_bytes(raw)
    console = Console(io.StringIO(), io.StringIO(), terminal=False)
    status = main(["evidence", "verify", "--key", BUNDLE["vkey"], str(case)], console)
    assert isinstance(console.err, io.StringIO)
    return status, console.err.getvalue()


@pytest.mark.parametrize("found_ns", [-1, 1 << 64, 10**30])
def test_a_case_of_no_time_is_none(tmp_path: Path, found_ns: int) -> None:
    raw = msgspec.json.encode(BUNDLE)
    assert judged(tmp_path / "case.json", raw) == (0, "")
    raw = raw.replace(b":%d," % 10**18, b":%d," % found_ns)
    status, said = judged(tmp_path / "case.json", raw)
    assert status == EX_DATAERR and "no time that there is" in said


def test_keys_are_followed_whatever_the_order_of_their_rotations() -> None:
    """Each once: a bundle of many that were put in the worst order took hours."""
    signers = [Signer(bytes([number]) * 32) for number in range(60)]
    rotations = []
    for old, new in zip(signers, signers[1:], strict=False):
        message = rotation_message(ON.log_id, old.public_key, new.public_key)
        keys = old.public_key.hex(), new.public_key.hex()
        rotations.append(Rotation(*keys, old.sign(message).hex(), new.sign(message).hex()))
    middle = NoteKey("o/n", signers[30].public_key)
    for order in (rotations, rotations[::-1], rotations * 2):
        found = node_keys(ON.log_id.hex(), middle, order)
        assert {key.public_key for key in found} == {one.public_key for one in signers}
        assert len(found) == len(signers) and found[0] == middle
