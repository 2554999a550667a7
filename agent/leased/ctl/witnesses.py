# SPDX-License-Identifier: Apache-2.0
"""What a log's collectors vouch for, by the reader's own word on who they are (`--policy`, C2SP
tlog-policy).

Rule: a log that lacks its beginning is not called whole on the word of whoever has the node. It
takes the policy's quorum over all that is gone, or a head that the reader remembers.

Does not read a log (`durable.reader`) and does not parse a policy (`chain.quorum`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from leased.chain.quorum import POLICY_BYTES_MAX, WitnessPolicy, parse_policy, vouched
from leased.chain.verdict import BELOW_QUORUM, GAP, NEW_LOG
from leased.durable.reader import LogFacts
from leased.terms.errors import ChainError, InvalidParameter


class Standing(msgspec.Struct, frozen=True):
    """How far each witness of a policy vouches for a log, and how far the quorum does."""

    quorum: str
    quorum_size: int
    witnesses: dict[str, int]

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "quorum": self.quorum,
            "quorum_size": self.quorum_size,
            "witnesses": self.witnesses,
        }


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Whose cosignatures count."""
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="who must have cosigned: a C2SP tlog-policy file (log, witness, group, quorum)",
    )


def read_policy(path: Path) -> WitnessPolicy:
    """The policy in a file. Raises InvalidParameter."""
    try:
        with path.open("rb") as file:
            return parse_policy(file.read(POLICY_BYTES_MAX + 1))
    except OSError as error:
        raise InvalidParameter("policy", f"{path}: {error.strerror}") from error
    except ChainError as error:
        raise InvalidParameter("policy", f"{path}: {error.why}") from error


def judge(policy: WitnessPolicy | None, facts: LogFacts, remembered: int | None) -> Standing | None:
    """What the quorum vouches for; `remembered` is the record whose head the reader knew. Raises
    ChainError (BELOW_QUORUM, GAP, NEW_LOG, BAD_SIGNATURE)."""
    shown, standing = facts.shown, None
    if policy is not None:
        standing = _stand(policy, facts)
        wanted = 1 if remembered is None else remembered + 1
        if facts.head.size and standing.quorum_size < wanted:
            why = f"the quorum ({standing.quorum}) vouches for {standing.quorum_size} records"
            raise ChainError(BELOW_QUORUM, f"{why}, and {_wanted(remembered)}")
    proven = standing is not None and standing.quorum_size >= shown.begins
    if shown.begins and not proven and remembered is None:
        how = "say with --policy whose word counts, or with --head what you remember"
        if standing is not None:
            how = f"the quorum vouches for {standing.quorum_size} records"
        why = f"records 0 to {shown.begins - 1} are not here, and that they were acknowledged is"
        raise ChainError(GAP, f"{why} not proven: {how}", sequence=shown.begins)
    return standing


def _wanted(remembered: int | None) -> str:
    return "one is the least" if remembered is None else f"the head asked for is of {remembered}"


def _stand(policy: WitnessPolicy, facts: LogFacts) -> Standing:
    identity = facts.identity
    keys = {identity.public_key, facts.verified.public_key}
    meant = [one for one in policy.logs if one.name == identity.origin and one.public_key in keys]
    if policy.logs and not meant:
        raise ChainError(NEW_LOG, f"the policy is of other logs than {identity.origin}")
    sizes = vouched(policy, identity.origin, facts.shown.newest)
    reached = policy.reached(sizes, facts.head.size)
    return Standing(policy.told(), reached, dict(sorted(sizes.items())))
