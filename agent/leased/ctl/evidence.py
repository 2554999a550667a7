# SPDX-License-Identifier: Apache-2.0
"""Judges' verbs: evidence verify.

Rule: offline, with public keys alone; what is proven and what is somebody's word are printed apart.
A bundle in which something does not hold is no evidence and ends with 65.

Does not gather evidence (the collector does).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from leased.chain.evidence import Bundle, Weighed, collector_key, weigh
from leased.chain.note import parse_key
from leased.chain.quorum import WitnessPolicy
from leased.chain.verdict import BAD_PROOF, NEW_LOG
from leased.ctl.console import Console, timestamp
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.witnesses import add_policy, read_policy
from leased.durable.reading import read_file
from leased.terms.errors import ChainError, InvalidParameter
from leased.terms.reading import UNREADABLE

BUNDLE_BYTES_MAX = 64 << 20


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    parent = verb(
        verbs,
        "evidence",
        "judge what a collector holds against a node",
        "leasectl evidence verify case.json",
        json=False,
    )
    below = parent.add_subparsers(dest="evidence_verb", metavar="VERB", required=True)
    one = verb(
        below,
        "verify",
        "check a bundle, offline",
        "leasectl evidence verify --key fleet/alpha/1a2b3c4d+9f...+AX... case.json",
    )
    one.add_argument("bundle", type=Path, help="the file, from the collector's evidence directory")
    one.add_argument("--key", metavar="VKEY", help="the node's key as you know it (enrolment)")
    one.add_argument(
        "--collector",
        metavar="VKEY",
        action="append",
        default=[],
        help="a collector's key (leased-collector cosigner); may be repeated",
    )
    add_policy(one)
    one.set_defaults(act=verify)


class Judgement(msgspec.Struct, frozen=True):
    """What a bundle comes to by the keys that its reader has."""

    bundle: Bundle
    found: Weighed
    key_given: bool
    collectors_given: bool
    policy: WitnessPolicy | None
    quorum: bool | None


def verify(options: argparse.Namespace, console: Console) -> int:
    """Judge a bundle."""
    judged = _judge(options, *_read(options.bundle))
    if options.json:
        bundle = judged.bundle
        console.document(
            {
                "verdict": bundle.verdict,
                "node": bundle.name,
                "log_id": bundle.log_id,
                "origin": bundle.origin,
                "found_ns": bundle.found_ns,
                "proven": judged.found.proven,
                "told": judged.found.told,
                "key_given": judged.key_given,
                "quorum": judged.quorum,
            }
        )
    else:
        _tell(judged, console)
    return 0


def _read(file: Path) -> tuple[Bundle, bytes]:
    """A bundle, and what of it is signed."""
    try:
        raw = read_file(file, most=BUNDLE_BYTES_MAX, pipe=True)
    except OSError as error:
        raise InvalidParameter("bundle", f"{file}: {error.strerror}") from error
    try:
        bundle = msgspec.json.decode(raw, type=Bundle)
        return bundle, msgspec.json.encode(msgspec.structs.replace(bundle, signature=""))
    except UNREADABLE as error:
        raise ChainError(BAD_PROOF, str(error), file=str(file)) from error


def _judge(options: argparse.Namespace, bundle: Bundle, encoded: bytes) -> Judgement:
    policy = None if options.policy is None else read_policy(options.policy)
    logs = () if policy is None else policy.logs
    # Of a node whose key was rotated a policy may have an earlier one, which leads to this.
    named = next((log.text() for log in logs if log.name == bundle.origin), bundle.vkey)
    node = parse_key(options.key or named)
    if logs and node not in logs:
        raise ChainError(NEW_LOG, f"the policy is of other logs than {node.text()}")
    given = [parse_key(text) for text in options.collector]
    given += policy.witnesses.values() if policy is not None else ()
    try:
        found = weigh(bundle, encoded, node, [collector_key(key) for key in given])
    except ValueError as error:  # hex or base64 that is none
        raise ChainError(BAD_PROOF, str(error), file=str(options.bundle)) from error
    return Judgement(
        bundle,
        found,
        key_given=bool(options.key or logs),
        collectors_given=bool(given),
        policy=policy,
        quorum=None if policy is None else _quorum(policy, found.collectors),
    )


def _tell(judged: Judgement, console: Console) -> None:
    bundle, policy = judged.bundle, judged.policy
    console.say(f"{bundle.name}: {bundle.verdict}, found {timestamp(bundle.found_ns)}")
    found = judged.found
    for heading, lines in (("proven", found.proven), ("the collector's word", found.told)):
        console.say(f"{heading}:")
        for line in lines or ("nothing",):
            console.say(f"  {line}")
    if policy is not None:
        much = "reached" if judged.quorum else "not reached: this is the word of some of them"
        console.say(f"quorum ({policy.told()}): {much}")
    if not judged.key_given:
        console.note("the node's key is the one that the bundle says: give --key")
    if not judged.collectors_given and (bundle.signature or bundle.cosigned is not None):
        console.note(
            "what collectors have signed is judged by --collector, with what `leased-collector "
            "cosigner` prints there"
        )


def _quorum(policy: WitnessPolicy, names: Sequence[str]) -> bool:
    """Whether those who have signed are the policy's quorum."""
    said = {name: 1 for name, key in policy.witnesses.items() if key.name in names}
    return bool(policy.reached(said, 1))
