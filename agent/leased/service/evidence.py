# SPDX-License-Identifier: Apache-2.0
"""Evidence: the SHA-256 of what a step measured, sealed in place of the measurements themselves.

Rule: the hash covers the MessagePack bytes of the report, and the report goes to the journal daemon
in full, so an auditor who has the log line can check it against the chain.
"""

from __future__ import annotations

import hashlib

import msgspec

from leased.terms.identity import CommandId
from leased.terms.teardown import CutReport, ProofReport, ScrubReport

NO_COMMAND = CommandId(bytes(16))
"""The command id of the agent's own reports: nobody retries them, so they need no identity."""

_ENCODER = msgspec.msgpack.Encoder()


Report = CutReport | ScrubReport | ProofReport


def encode_report(report: Report) -> bytes:
    """The bytes that the hash covers."""
    return _ENCODER.encode(report)


def hash_report(report: Report) -> bytes:
    """The 32 bytes that stand for `report` in the chain."""
    return hashlib.sha256(_ENCODER.encode(report)).digest()
