# SPDX-License-Identifier: Apache-2.0
"""Verdicts: the closed set of names that a ChainError of this program carries.

Rule: a name is never reused for another finding; tools and alarms match on it.

Does not judge anything: `verifier`, `recovery` and the modules of the format do.
"""

from __future__ import annotations

from typing import Final

CORRUPT_ID: Final = "CORRUPT_ID"
CORRUPT_ANCHOR: Final = "CORRUPT_ANCHOR"
CORRUPT_SEGMENT: Final = "CORRUPT_SEGMENT"
CORRUPT_RECORD: Final = "CORRUPT_RECORD"
CORRUPT_HEAD: Final = "CORRUPT_HEAD"
ANCHOR_ROLLED_BACK: Final = "ANCHOR_ROLLED_BACK"
ROLLED_BACK: Final = "ROLLED_BACK"
COUNTER_LOST: Final = "COUNTER_LOST"
BAD_BODY: Final = "BAD_BODY"
BAD_ROOT: Final = "BAD_ROOT"
BAD_SIGNATURE: Final = "BAD_SIGNATURE"
BAD_NOTE: Final = "BAD_NOTE"
BAD_SEAL: Final = "BAD_SEAL"
SEAL_KEY: Final = "SEAL_KEY"
BAD_ORDER: Final = "BAD_ORDER"
BAD_PAGE: Final = "BAD_PAGE"
BAD_PROOF: Final = "BAD_PROOF"
NEW_LOG: Final = "NEW_LOG"
GAP: Final = "GAP"
UNPROVEN: Final = "UNPROVEN"
BAD_POLICY: Final = "BAD_POLICY"
BELOW_QUORUM: Final = "BELOW_QUORUM"
