# SPDX-License-Identifier: Apache-2.0
"""The manipulations that a sealed log is put to, and what each of three systems has to say to them:
ours (`leasectl verify`), journald's Forward Secure Sealing, and syslog-ng's secure logging.

Rule: a row says what was expected of the releases that a Debian 12 has; a suite that sees anything
else fails, also where a peer has become better. `found` names what shows it in ours: the log alone
("log"), with what was enrolled ("key"), or with a head that the collector remembers ("head").

Does not attack anything (`ours`, `fss`, `slog`).
"""

from __future__ import annotations

from typing import NamedTuple

MISSED = "not found"
NONE = "–"
"""The manipulation means nothing there: the system has no such part."""


class Attack(NamedTuple):
    """One manipulation."""

    name: str
    what: str
    verdict: str
    """What `leasectl verify` calls it."""
    found: str
    fss: str
    """`found`, `not found` or –."""
    slog: str


FOUND = "found"

ATTACKS = (
    Attack("body_bit", "one bit of a record's body", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("header_bit", "one bit of a record's header", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("crc_bit", "one bit of a checksum only", "ok, 1 damaged", "log", NONE, NONE),
    Attack("deleted", "a record deleted", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("swapped", "two records swapped", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("duplicated", "a record inserted again", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("spliced", "a record of another log", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("cut", "the last record cut off, anchor kept", "CORRUPT_RECORD", "log", FOUND, FOUND),
    Attack("cut_anchored", "the tail cut off, anchor written anew", "FORK", "head", MISSED, FOUND),
    Attack("old_anchor", "an older anchor put back", "ANCHOR_ROLLED_BACK", "log", FOUND, FOUND),
    Attack("old_segment", "an older segment put back", "CORRUPT_RECORD", "log", MISSED, FOUND),
    Attack("restored", "everything put back as it was", "FORK", "head", MISSED, MISSED),
    Attack("continued", "everything put back, then gone on", "FORK", "head", MISSED, MISSED),
    Attack("recomputed", "recomputed without the keys", "BAD_SEAL", "key", FOUND, FOUND),
    Attack("resealed", "recomputed with today's key", "BAD_SEAL", "key", MISSED, FOUND),
    Attack("open_epoch", "the open epoch recomputed", MISSED, "", MISSED, FOUND),
    Attack("back_dated", "a record dated back into a sealed epoch", "BAD_SEAL", "log", FOUND, NONE),
    Attack("empty_epoch", "an empty epoch removed", "BAD_SEAL", "key", MISSED, NONE),
    Attack("second_seal", "a second seal in an epoch", "BAD_SEAL", "log", MISSED, NONE),
    Attack("unsealed", "replaced by one without seals", "BAD_SEAL", "key", MISSED, FOUND),
    Attack("fresh", "begun anew with the node's key", "NEW_LOG", "key", MISSED, FOUND),
    Attack("cloned", "the host cloned, both gone on", "FORK", "head", MISSED, MISSED),
    Attack("checkpoint", "a checkpoint of records not there", "BAD_ROOT", "log", NONE, NONE),
    Attack("re_encoded", "a record in another encoding", "BAD_BODY", "log", NONE, MISSED),
    Attack("dropped", "the beginning dropped, the anchor agreeing", "GAP", "log", NONE, NONE),
    Attack("dropped_told", "the same, told as pruned and cosigned", "UNPROVEN", "log", NONE, NONE),
    Attack("emptied", "everything deleted", "no log", "log", MISSED, FOUND),
)
