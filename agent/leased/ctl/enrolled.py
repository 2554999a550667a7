# SPDX-License-Identifier: Apache-2.0
"""What an auditor was given when the log was enrolled (`leasectl audit enrolment`, PULL.md section
5): which log it is, whose key signs it, and the key of its seals.

Rule: identity comes from this file and from nothing that the log says of itself.

Does not check a log (`durable.reader`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from leased.chain.epochs import KEY_BYTES, EpochKey, latest_epoch
from leased.durable.reader import Enrolled
from leased.durable.reading import read_file
from leased.terms.errors import InvalidParameter
from leased.terms.reading import UNREADABLE

FORMAT: Final = "leased-enrolment/1"
FILE_BYTES_MAX: Final = 64 * 1024


class _File(msgspec.Struct, frozen=True):
    """The fields of the file that matter to a verifier. A later release may add others."""

    format: str
    log_id: str
    first_public_key: str
    origin: str = ""
    epoch_ns: int = 0
    seal_epoch: int | None = None
    seal_key: str | None = None
    printed_ns: int | None = None


class Signer(msgspec.Struct, frozen=True):
    """Who signs a log, and seals it, as the auditor was told out of band."""

    log_id: bytes
    origin: str
    public_key: bytes
    epoch_ns: int
    seal_key: EpochKey | None
    latest_epoch: int | None


def read_signer(path: Path, now_ns: int) -> Signer:
    """What the file pins. Raises InvalidParameter."""
    try:
        told = msgspec.json.decode(
            read_file(path, most=FILE_BYTES_MAX, pipe=True), type=_File
        )
        log_id, public_key = bytes.fromhex(told.log_id), bytes.fromhex(told.first_public_key)
        seal = None if told.seal_key is None else bytes.fromhex(told.seal_key)
    except OSError as error:
        raise InvalidParameter("enrolment", f"{path}: {error.strerror}") from error
    except (*UNREADABLE, ValueError) as error:
        raise InvalidParameter("enrolment", f"{path}: {error}") from error
    sound = told.format == FORMAT and len(log_id) == 16 and len(public_key) == 32
    if not sound or (seal is not None and (len(seal) != KEY_BYTES or told.seal_epoch is None)):
        why = f"{path} is not what `leasectl audit enrolment` prints ({FORMAT})"
        raise InvalidParameter("enrolment", why)
    key = None if seal is None else EpochKey(told.seal_epoch or 0, seal)
    latest = _open_by(key, told.printed_ns, now_ns, told.epoch_ns)
    return Signer(log_id, told.origin, public_key, told.epoch_ns, key, latest)


def read_enrolled(path: Path, now_ns: int) -> Enrolled:
    """The same, as the reader of a log takes it. Raises InvalidParameter."""
    one = read_signer(path, now_ns)
    return Enrolled(one.log_id, one.public_key, one.seal_key, one.latest_epoch)


def _open_by(
    key: EpochKey | None, printed_ns: int | None, now_ns: int, epoch_ns: int
) -> int | None:
    """The last epoch that can be open by now, where the key was printed at `printed_ns`. None:
    there is nothing to say it by."""
    if key is None or printed_ns is None or epoch_ns <= 0 or printed_ns > now_ns:
        return None
    return latest_epoch(key.epoch, printed_ns, now_ns, epoch_ns)
