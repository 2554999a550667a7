# SPDX-License-Identifier: Apache-2.0
"""Receipts on the command line: which record of which log grants a lease, kept in a file and read
again.

Rule: a receipt is taken alone or in the document that it came in. A log that proves another record
where a receipt points is told as such, and is never a proof.

Does not prove anything (`proofs`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.verdict import BAD_PROOF
from leased.ctl import render
from leased.durable import reading
from leased.terms.errors import ChainError, InvalidParameter
from leased.terms.reading import UNREADABLE
from leased.wire import replies

FILE_BYTES_MAX: Final = 1 << 20
WRITTEN_BY: Final = "what --receipt wrote or alloc --json printed"


class Receipt(msgspec.Struct, frozen=True):
    """The record that grants a lease."""

    log_id: str
    sequence: int
    record_hash: str


def receipt_of(granted: replies.AcquireReply) -> dict[str, Any] | None:
    """The receipt that a grant came with. None: whoever attaches to a lease of an earlier run is
    not told, because the agent does not keep hashes."""
    if granted.record_hash is None:
        return None
    return {
        "log_id": granted.log_id,
        "sequence": granted.sequence,
        "record_hash": granted.record_hash,
    }


def grant_document(granted: replies.AcquireReply) -> dict[str, Any]:
    """What was granted, with its receipt."""
    told = {"lease": render.plain(granted.lease), "attached": granted.attached}
    return {**told, "receipt": receipt_of(granted)}


def add_keep(parser: argparse.ArgumentParser) -> None:
    """The option of whoever is granted a lease."""
    parser.add_argument(
        "--receipt",
        type=Path,
        metavar="FILE",
        help="write there which record of which log grants the lease (audit prove, check-proof)",
    )


def keep(path: Path | None, granted: replies.AcquireReply) -> None:
    """Write the receipt where the caller wants it, if anywhere. Raises OSError."""
    if path is not None:
        path.write_bytes(msgspec.json.encode(receipt_of(granted)) + b"\n")


def read_receipt(file: str) -> Receipt:
    """The receipt in a file. Raises InvalidParameter."""
    try:
        told = msgspec.json.decode(read_file(file))
        return msgspec.convert(told.get("receipt", told) if type(told) is dict else told, Receipt)
    except UNREADABLE as error:
        raise InvalidParameter("receipt", f"{file} is no receipt: {error}") from error


def match(receipt: Receipt, log_id: str, sequence: int, record_hash: str) -> None:
    """Raises ChainError (BAD_PROOF) if a proof is of another record than a receipt promises."""
    found, promised = (log_id, sequence, record_hash), msgspec.structs.astuple(receipt)
    if found != promised:
        of = "log {}, record {}, hash {}".format
        raise ChainError(
            BAD_PROOF,
            f"the receipt promises {of(*promised)}; proven is {of(*found)}: keep both, whoever"
            " signed the second has broken the first",
            sequence=sequence,
        )


def read_file(file: str) -> bytes:
    """A file, "-" for standard input. Raises InvalidParameter."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
        return reading.read_file(file, most=FILE_BYTES_MAX, pipe=True)
    except OSError as error:
        raise InvalidParameter("file", f"{file}: {error.strerror}") from error
