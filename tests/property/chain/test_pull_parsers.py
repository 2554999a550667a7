# SPDX-License-Identifier: Apache-2.0
"""What comes from the network is taken apart or refused by name: pages, notes, keys, certificates'
names. Nothing else is ever raised."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from leased.chain.certificate import parse_identity, read_certificate
from leased.chain.note import COSIGNATURE_V1, NoteKey, open_note, parse_checkpoint, parse_key
from leased.chain.page import Trailer, measure, split_page, write_trailer
from leased.chain.proof import FORMAT, Proof, check_proof
from leased.chain.signing import Signer
from leased.terms.errors import CallerError, ChainError

LOG = bytes(range(16))
SIGNER = Signer(b"s" * 32)
KEYS = [NoteKey("log/1", SIGNER.public_key), NoteKey("west", SIGNER.public_key, COSIGNATURE_V1)]
FRAME = write_trailer(Trailer(7, b"\x07" * 32, "note"), LOG)

PIECES = st.sampled_from(
    ["log/1", "\n", "\n\n", "— ", "west ", "log/1 ", "7", "07", "-1", "9" * 30, "+", "=", "AAAA"]
    + [
        KEYS[0].text(),
        KEYS[1].text(),
        "A" * 43 + "=",
        "\r",
        "\x00",
        "\ud7ff",
        "spiffe://",
        "/node/",
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=6), max_size=16).map("".join)


@given(TEXTS)
def test_texts(text: str) -> None:
    for parse in (lambda t: open_note(t, KEYS), parse_checkpoint, parse_key):
        with contextlib.suppress(ChainError):
            parse(text)
    with contextlib.suppress(CallerError):
        parse_identity(text)
    proof = Proof(FORMAT, "", "log/1", "", 1, 7, text, (text,), text)
    with contextlib.suppress(ChainError):
        check_proof(proof, KEYS)


@given(st.binary(max_size=400), st.integers(0, len(FRAME)), st.integers(0, len(FRAME)))
def test_bytes(noise: bytes, begin: int, end: int) -> None:
    for data in (noise, FRAME[:begin] + noise + FRAME[end:], noise + FRAME, FRAME + noise):
        with contextlib.suppress(ChainError):
            split_page(data, LOG)
        for bytes_max in (None, 1, 1 << 20):
            with contextlib.suppress(ChainError):
                measure(data, 0, 5, bytes_max=bytes_max)
    with contextlib.suppress(CallerError):
        read_certificate(noise)
