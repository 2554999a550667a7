# SPDX-License-Identifier: Apache-2.0
"""Judges' verbs: evidence verify.

Rule: offline, with public keys alone; what is proven and what is somebody's word are printed apart.
A bundle in which something does not hold is no evidence and ends with 65.

Does not gather evidence (the collector does).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from leased.chain.evidence import Bundle, collector_key, weigh
from leased.chain.note import parse_key
from leased.chain.verdict import BAD_PROOF
from leased.ctl.console import Console, timestamp
from leased.ctl.usage_text import Verbs, verb
from leased.terms.errors import ChainError, StateError

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
        "--collector", metavar="VKEY", help="the collector's key (leased-collector cosigner)"
    )
    one.set_defaults(act=verify)


def verify(options: argparse.Namespace, console: Console) -> int:
    """Judge a bundle."""
    try:
        raw = options.bundle.read_bytes()[: BUNDLE_BYTES_MAX + 1]
    except OSError as error:
        raise StateError(f"{options.bundle}: {error.strerror}") from error
    try:
        bundle = msgspec.json.decode(raw, type=Bundle)
        encoded = msgspec.json.encode(msgspec.structs.replace(bundle, signature=""))
    except msgspec.DecodeError as error:
        raise ChainError(BAD_PROOF, str(error), file=str(options.bundle)) from error
    node = parse_key(options.key or bundle.vkey)
    collectors = [collector_key(parse_key(options.collector))] if options.collector else []
    try:
        found = weigh(bundle, encoded, node, collectors)
    except ValueError as error:  # hex or base64 that is none
        raise ChainError(BAD_PROOF, str(error), file=str(options.bundle)) from error
    doubt = "" if options.key else "the node's key is the one that the bundle says: give --key"
    if options.json:
        console.document(
            {
                "verdict": bundle.verdict,
                "node": bundle.name,
                "log_id": bundle.log_id,
                "origin": bundle.origin,
                "found_ns": bundle.found_ns,
                "proven": found.proven,
                "told": found.told,
                "key_given": bool(options.key),
            }
        )
        return 0
    console.say(f"{bundle.name}: {bundle.verdict}, found {timestamp(bundle.found_ns)}")
    for heading, lines in (("proven", found.proven), ("the collector's word", found.told)):
        console.say(f"{heading}:")
        for line in lines or ("nothing",):
            console.say(f"  {line}")
    if doubt:
        console.note(doubt)
    return 0
