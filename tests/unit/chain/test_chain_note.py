# SPDX-License-Identifier: Apache-2.0
"""Signed notes: what is read, what is ignored, what is refused."""

from __future__ import annotations

import pytest

from leased.chain.note import (
    COSIGNATURE_V1,
    Checkpoint,
    NoteKey,
    cosignature_message,
    log_origin,
    open_note,
    parse_checkpoint,
    parse_note,
    write_note,
)
from leased.chain.signing import Signer, parse_pem
from leased.terms.errors import ChainError

SIGNER, WITNESS = Signer(b"s" * 32), Signer(b"w" * 32)
KEY = NoteKey("example.org/log", SIGNER.public_key)
COKEY = NoteKey("witness.example", WITNESS.public_key, COSIGNATURE_V1)
TEXT = Checkpoint("example.org/log", 42, b"\x07" * 32).text()


def _note() -> str:
    time = (1_790_000_000).to_bytes(8, "big")
    cosigned = time + WITNESS.sign(cosignature_message(TEXT, 1_790_000_000))
    return write_note(TEXT, [(KEY, SIGNER.sign(TEXT.encode())), (COKEY, cosigned)])


def test_a_note_is_opened_by_the_keys_known() -> None:
    assert len(open_note(_note(), [KEY]).signatures) == 1
    assert len(open_note(_note(), [KEY, COKEY]).signatures) == 2
    assert parse_checkpoint(open_note(_note(), [COKEY]).text) == Checkpoint(
        "example.org/log", 42, b"\x07" * 32
    )


def test_unknown_signatures_alone_are_not_enough() -> None:
    with pytest.raises(ChainError, match="no signature by a known key"):
        open_note(_note(), [NoteKey("example.org/log", WITNESS.public_key)])


def test_a_known_key_with_a_bad_signature_refuses_the_note() -> None:
    for changed in (_note().replace("\n42\n", "\n43\n"), write_note(TEXT, [(KEY, bytes(64))])):
        with pytest.raises(ChainError, match="BAD_SIGNATURE"):
            open_note(changed, [KEY])
    backdated = write_note(TEXT, [(COKEY, bytes(8) + WITNESS.sign(cosignature_message(TEXT, 1)))])
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        open_note(backdated, [COKEY])


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "text only\n",
        _note().replace("\n42\n", "\n42\0\n"),
        _note().replace("\n42\n", "\n42\n\x1b[2J"),
        _note() + "\u2014 other\0 AAAAAAAA\n",
        "text\n\n",
        "text\n\nno dash\n",
        "text\n\n\u2014 name\n",
        "text\n\n\u2014 n a AAAAAAA=\n",
        "text\n\n\u2014 name AAAA\n",
        "text\n\n\u2014 name !!!!\n",
        "text\r\n\n\u2014 name AAAAAAAAAA==\n",
        "text\n\n\u2014 name AAAAAAAAAAB=\n",
        "t\n\n" + "x" * 70_000,
    ],
)
def test_what_is_not_a_note_is_refused(raw: str) -> None:
    with pytest.raises(ChainError, match="BAD_NOTE"):
        parse_note(raw)


@pytest.mark.parametrize(
    "text",
    ["", "o\n1\n", "o\n01\nAAAA\n", "o\n-1\nAAAA\n", "\n1\nAAAA\n", "o\n1\nAAAA\n", "o\n1\nxx"],
)
def test_what_is_not_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(ChainError, match="BAD_NOTE"):
        parse_checkpoint(text)


def test_the_origin_names_the_log() -> None:
    assert log_origin("lease-log.fleet/node", bytes(range(16))) == "lease-log.fleet/node/00010203"


def test_a_key_survives_its_file() -> None:
    assert parse_pem(SIGNER.pem()).public_key == SIGNER.public_key
    for pem in (b"", b"not a key", SIGNER.pem()[:60], SIGNER.pem().replace(b"M", b"N", 1)):
        with pytest.raises(ValueError):
            parse_pem(pem)


@pytest.mark.parametrize("digits", [20, 5_000, 60_000])
def test_a_size_that_no_log_has_is_refused(digits: int) -> None:
    with pytest.raises(ChainError, match="BAD_NOTE"):
        parse_checkpoint(TEXT.replace("\n42\n", "\n" + "9" * digits + "\n"))
