# SPDX-License-Identifier: Apache-2.0
"""The node's Ed25519 key: the one door to `cryptography`.

Rule: a signature is made over a text that names what it is (a checkpoint, a key rotation), never
over a bare hash.

Does not keep keys on disk (`durable.keyfile`) and makes none out of nothing: the seed is handed in.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_SIGN: Final = 1 << 255
_PRIME: Final = _SIGN - 19


class Signer:
    """One private key. `public_key` is its 32 raw bytes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the signature over `message`."""
        return self._key.sign(message)

    def pem(self) -> bytes:
        """The private key as PKCS#8 PEM, which openssl reads."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_pem(pem: bytes) -> Signer:
    """Return the signer of an unencrypted Ed25519 PKCS#8 PEM. Raises ValueError saying what is
    wrong."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (InternalError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error).partition(".")[0]) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return Signer(key.private_bytes_raw())


def verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` is by the holder of `public_key`."""
    if not _is_canonical(public_key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_canonical(public_key: bytes) -> bool:
    """Whether RFC 8032 calls it a key at all: OpenSSL takes other encodings of a point, too."""
    number = int.from_bytes(public_key, "little")
    sign, y = number >> 255, number & _SIGN - 1
    return y < _PRIME and not (sign and y in (1, _PRIME - 1))


def rotation_message(log_id: bytes, old_key: bytes, new_key: bytes) -> bytes:
    """What both keys sign when the node's key is replaced (`event.KeyRotated`)."""
    return b"leased key rotation v1\n" + log_id + old_key + new_key
