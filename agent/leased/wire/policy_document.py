# SPDX-License-Identifier: Apache-2.0
"""The policy document of a call: JSON text to a checked `Policy`, and back.

Rule: the language is that of the policy file (`terms.policy_text`), as a JSON object; what is
absent is the built-in default, what is unknown or given twice is refused, because a limit that is
not understood must not be dropped.

Does not put it in force.
"""

from __future__ import annotations

from typing import Any

import msgspec

from leased.terms.errors import InvalidParameter
from leased.terms.policy import Policy
from leased.terms.policy_text import read_policy
from leased.terms.policy_writing import document_of
from leased.terms.reading import read_json

_DECODER = msgspec.json.Decoder(dict[str, Any])
_ENCODER = msgspec.json.Encoder()


def decode_policy(document: str) -> Policy:
    """Return the policy that `document` says. Raises InvalidParameter (not such a document) or
    ConfigError (a key, its value and the reason).
    """
    try:
        _DECODER.decode(document)  # stricter than the one that sees every key: no NaN, an object
        read = read_json(document, "policy.")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidParameter("document", str(error)[:256]) from error
    return read_policy(read)


def encode_policy(policy: Policy) -> str:
    """The document that `decode_policy` reads as `policy`."""
    return _ENCODER.encode(document_of(policy)).decode()
