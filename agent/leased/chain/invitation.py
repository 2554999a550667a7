# SPDX-License-Identifier: Apache-2.0
"""What a node and a collector say to each other when the node comes with an invite: the invite's
text, and what the node signs.

Rule: an invite names the CA by the hash of its certificate, so that whoever answers is judged
before the secret is sent. What is signed names the invite, so that no request serves twice.

Does not keep invites (`collector.invites`) and sends nothing.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec

PREFIX: Final = "leased-invite"
"""So that scanners for secrets find one that was committed somewhere."""

ID_CHARS: Final = 16
HASH_CHARS: Final = 64


class Invitation(msgspec.Struct, frozen=True):
    """An invite as it is handed over. `ca_sha256` is the SHA-256 of the CA's certificate (DER)."""

    id: str
    secret: str
    ca_sha256: str

    def __repr__(self) -> str:
        return f"Invitation({self.id!r})"

    def text(self) -> str:
        """As it is handed over."""
        return f"{PREFIX}_{self.id}_{self.secret}_{self.ca_sha256}"


def parse_invitation(text: str) -> Invitation | None:
    """The invite that a text is; None: it is none."""
    prefix, _, rest = text.strip().partition("_")
    words = rest.split("_")
    sound = prefix == PREFIX and [len(word) for word in words] == [ID_CHARS, 64, HASH_CHARS]
    return Invitation(*words) if sound else None


def request_message(enrolment: str, request: str, invite_id: str) -> bytes:
    """What a node signs with its log's key: this enrolment and this certificate request, for this
    invite."""
    digests = [sha256(text.encode()).hexdigest() for text in (enrolment, request)]
    return "\n".join(["leased enrolment request v1", *digests, invite_id, ""]).encode()
