# SPDX-License-Identifier: Apache-2.0
"""What a log's collectors vouch for, by the reader's own word on who they are (`--policy`, C2SP
tlog-policy), or, on the node itself, by the collectors in its agent's configuration.

Rule: a log that lacks its beginning is not called whole on the word of whoever has the node. It
takes the policy's quorum over all that is gone, or a head that the reader remembers. Without
either, what holds is said, and that the rest is not proven, which is no finding against the log.

Does not read a log (`durable.reader`) and does not parse a policy (`chain.quorum`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.note import COSIGNATURE_V1, NoteKey, parse_key
from leased.chain.proof import Proof
from leased.chain.quorum import (
    POLICY_BYTES_MAX,
    WitnessPolicy,
    flat,
    judge_note,
    parse_policy,
    vouched,
)
from leased.chain.verdict import BELOW_QUORUM, GAP, NEW_LOG, UNPROVEN
from leased.ctl.findings import read_text
from leased.ctl.service_checks import CONFIG_FILE, STATE_DIRECTORY
from leased.durable.reader import LogFacts
from leased.durable.reading import read_file
from leased.terms.errors import EX_NOINPUT, ChainError, ConfigError, InvalidParameter
from leased.terms.reading import read_toml

ROOT: Final = Path("/")


class Unproven(ChainError):
    """All that is here holds. That what is not here was acknowledged takes a word that was not
    given; `advice` says which."""

    exit_status = EX_NOINPUT

    def __init__(self, why: str, advice: str, *, sequence: int) -> None:
        super().__init__(UNPROVEN, f"{why}; {advice}", sequence=sequence)
        self.advice = advice


class Standing(msgspec.Struct, frozen=True):
    """How far each witness of a policy vouches for a log, and how far the quorum does."""

    quorum: str
    quorum_size: int
    witnesses: dict[str, int]
    configured: bool = False
    """The policy is the node's own configuration, and so no more trusted than the node."""

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
        return parse_policy(read_file(path, most=POLICY_BYTES_MAX, pipe=True))
    except OSError as error:
        raise InvalidParameter("policy", f"{path}: {error.strerror}") from error
    except ChainError as error:
        raise InvalidParameter("policy", f"{path}: {error.why}") from error


def configured_policy(log: Path, root: Path = ROOT) -> WitnessPolicy | None:
    """Whom the agent of this host takes (`[listener]`), if `log` is the log that it writes. None:
    it is another log, or no collector is configured, or that cannot be read."""
    try:
        table = read_toml(read_text(root / CONFIG_FILE) or "")
        state = str(table.get("paths", {}).get("state_dir", f"/{STATE_DIRECTORY}")).lstrip("/")
        if (root / state / "audit").resolve() != log.resolve():
            return None
        keys, quorum = read_listener(table)
        if not keys or any(key.kind != COSIGNATURE_V1 for key in keys.values()):
            return None
        return flat(keys, quorum)
    except (ConfigError, ChainError, AttributeError, KeyError, TypeError, ValueError):
        return None  # `leasectl doctor` says what is wrong with it


def read_listener(table: dict[str, Any]) -> tuple[dict[str, NoteKey], int]:
    """The keys of an agent's collectors as its configuration has them, and how many of these must
    have a record. Raises what a document of another form leads to."""
    listener = table.get("listener", {})
    keys = {str(one["name"]): parse_key(one["key"]) for one in listener.get("collectors", ())}
    return keys, int(listener.get("quorum", 0))


def check_quorum(policy: WitnessPolicy, proof: Proof) -> tuple[str, ...]:
    """Who of the policy has cosigned the tree that a proof leads to. Raises ChainError
    (BELOW_QUORUM, BAD_SIGNATURE, BAD_NOTE, NEW_LOG)."""
    if policy.logs and all(one.name != proof.origin for one in policy.logs):
        raise ChainError(NEW_LOG, f"the policy is of other logs than {proof.origin}")
    return judge_note(policy, proof.checkpoint)[1]


def judge(
    policy: WitnessPolicy | None,
    facts: LogFacts,
    remembered: int | None,
    configured: WitnessPolicy | None = None,
) -> Standing | None:
    """What the quorum vouches for; `remembered` is the record whose head the reader knew, and
    `configured` counts for what is not here where the reader has named nobody. Raises Unproven,
    ChainError (BELOW_QUORUM, GAP, NEW_LOG, BAD_SIGNATURE)."""
    shown, standing = facts.shown, None
    if policy is not None:
        standing = _stand(policy, facts)
        wanted = 1 if remembered is None else remembered + 1
        if facts.head.size and standing.quorum_size < wanted:
            why = f"the quorum ({standing.quorum}) vouches for {standing.quorum_size} records"
            raise ChainError(BELOW_QUORUM, f"{why}, and {_wanted(remembered)}")
    if shown.begins and standing is None and remembered is None and configured is not None:
        standing = msgspec.structs.replace(_stand(configured, facts), configured=True)
    if not shown.begins or remembered is not None:
        return standing
    gone = f"records 0 to {shown.begins - 1} are not here"
    if standing is None:
        raise Unproven(
            f"{gone}: pruned, by this log's own word, once {_acknowledged(facts)} had them",
            "say whose word counts (--policy FILE), or what you remember (--head HEX)",
            sequence=shown.begins,
        )
    if standing.quorum_size < shown.begins:
        how = f"the quorum ({standing.quorum}) vouches for {standing.quorum_size} records"
        why = f"{gone}, and that they were acknowledged is not proven: {how}"
        raise ChainError(GAP, why, sequence=shown.begins)
    return standing


def _acknowledged(facts: LogFacts) -> str:
    """The keys whose countersignatures reach beyond what is gone."""
    far = [one for one in facts.shown.newest if one.size >= facts.shown.begins]
    return " and ".join(f"key {one.key_id:08x}" for one in far)


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
