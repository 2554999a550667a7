# SPDX-License-Identifier: Apache-2.0
"""What an auditor is given of a log without the log: audit prove, audit check-proof, audit
enrolment.

Rule: a proof is judged by keys that the reader has from elsewhere, never by what it says of itself.
The secret of the seals is printed only when it is asked for by name.

Does not follow a log (`leased-collector` does).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from leased.chain.note import NoteKey, parse_checkpoint, parse_key
from leased.chain.proof import Proof, check_proof
from leased.chain.quorum import WitnessPolicy
from leased.chain.verdict import BAD_PROOF
from leased.client import Session
from leased.ctl import receipts, render
from leased.ctl.agent import find_lease, online
from leased.ctl.console import Console
from leased.ctl.enrolled import FORMAT
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.witnesses import add_policy, check_quorum, read_policy
from leased.durable.files import DirectoryDisk
from leased.durable.reader import ReadLog, read_log
from leased.durable.sealkey import load_seal_key
from leased.terms.errors import ChainError, InvalidParameter, NoSuchLease, StateError
from leased.terms.event import NodeStarted
from leased.terms.identity import ID_BYTES
from leased.terms.reading import UNREADABLE
from leased.wire import parameters, replies

SEQUENCE_DIGITS_MAX: Final = 16


def register(below: Verbs, directory: Path) -> None:
    """Add the verbs to those of `audit`."""
    one = verb(
        below,
        "prove",
        "prove that a record is in the log, without showing another",
        "leasectl audit prove --receipt receipt.json > proof.json",
        json=False,
    )
    one.add_argument(
        "what", nargs="?", help="a lease (its id or the beginning): its grant; or a sequence"
    )
    one.add_argument(
        "--receipt", metavar="FILE", help=f"the grant of this receipt: {receipts.WRITTEN_BY}"
    )
    one.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="in the log as it was at N records, with the cosignatures of just that tree (default:"
        " the newest that the quorum has cosigned, else all there is)",
    )
    one.set_defaults(act=online(prove))
    one = verb(
        below,
        "check-proof",
        "judge a proof, without a log or an agent",
        "leasectl audit check-proof proof.json --receipt receipt.json"
        " --key 'lease-log.local/...+5a1c0f3e+AV...'",
    )
    one.add_argument("file", help='the proof ("-": standard input)')
    one.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="VKEY",
        help="a verifier key that you trust: the node's, or a collector's (may be repeated)",
    )
    add_policy(one)
    one.add_argument("--record", metavar="HEX", help="the record hash that your grant came with")
    one.add_argument(
        "--log-id", metavar="HEX", help="the log's id, whole: what is signed has 8 digits of it"
    )
    one.add_argument(
        "--receipt", metavar="FILE", help=f"the same as it came: {receipts.WRITTEN_BY}"
    )
    one.set_defaults(act=check)
    one = verb(
        below,
        "enrolment",
        "print what a collector has to know of this log",
        "leasectl audit enrolment --with-seal-key > node-17.json",
        json=False,
    )
    one.add_argument("--log", type=Path, default=directory, metavar="DIR", help="of this log")
    one.add_argument(
        "--with-seal-key",
        action="store_true",
        help="and the key of the open epoch: a secret, for the collector alone",
    )
    one.set_defaults(act=enrolment)


# ---- proofs --------------------------------------------------------------------------------------


async def prove(options: argparse.Namespace, console: Console, session: Session) -> int:
    """Print a proof."""
    if (options.what is None) == (options.receipt is None):
        raise InvalidParameter("what", "name a lease or a sequence, or a --receipt")
    receipt = None if options.receipt is None else receipts.read_receipt(options.receipt)
    if receipt is not None:
        sequence = receipt.sequence
    else:
        sequence = await _sequence(session, options.what)
    asked = parameters.AuditProve(sequence=sequence, size=options.size)
    told = await session.ask(asked, replies.ProveReply)
    if receipt is not None:
        receipts.match(receipt, told.log_id, told.sequence, told.record_hash)
    console.say(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    return 0


async def _sequence(session: Session, text: str) -> int:
    """Of the record that is meant: a sequence, or a lease that it granted. So many digits as are
    shown of a lease are one, if one begins so."""
    number = text.isascii() and text.isdecimal() and len(text) < SEQUENCE_DIGITS_MAX
    if number and len(text) < render.ID_CHARS:
        return int(text)
    try:
        lease_id = await find_lease(session, text)
    except NoSuchLease:
        if number:
            return int(text)
        raise
    granted = (await session.describe(lease_id)).runtime.granted_sequence
    if granted is None:
        raise InvalidParameter("what", f"which record granted {lease_id} is not known any more")
    return granted


class Judgement(msgspec.Struct, frozen=True):
    """What a proof comes to by the keys that its reader has."""

    proof: Proof
    size: int
    signers: list[str]
    policy: WitnessPolicy | None
    quorum: tuple[str, ...] | None


def check(options: argparse.Namespace, console: Console) -> int:
    """Judge a proof."""
    judged = _judge(options)
    proof, policy, quorum = judged.proof, judged.policy, judged.quorum
    if options.json:
        # What is signed ends in 8 digits of it: the others are known to whoever brought them along.
        is_known = options.log_id is not None or options.receipt is not None
        told: dict[str, object] = {
            "verdict": "ok",
            "log_id": proof.log_id if is_known else None,
            "origin": proof.origin,
            "sequence": proof.sequence,
            "record_hash": proof.record_hash,
            "size": judged.size,
            "signed_by": judged.signers,
        }
        if policy is not None:
            told |= {"quorum": policy.told(), "cosigned_by": quorum}
        console.document(told)
    else:
        among = f"the first {judged.size} of {proof.origin}"
        console.say(f"ok: record {proof.sequence} is among {among}")
        pairs = [("record", proof.record_hash), ("signed by", ", ".join(judged.signers))]
        if policy is not None and quorum is not None:
            pairs.append(("quorum", f"{policy.told()}: {', '.join(quorum) or 'nobody'}"))
        console.say(*render.fields(pairs))
    return 0


def _judge(options: argparse.Namespace) -> Judgement:
    proof = _read_proof(options.file)
    policy = None if options.policy is None else read_policy(options.policy)
    keys = [_key(text) for text in options.key]
    if policy is not None:
        keys += [*policy.logs, *policy.witnesses.values()]
    if not keys:
        raise InvalidParameter("key", "say whom you trust: --key VKEY, or --policy FILE")
    note = check_proof(proof, keys)
    if len(proof.log_id) != 2 * ID_BYTES or proof.origin.rpartition("/")[2] != proof.log_id[:8]:
        why = f"it says log {proof.log_id[:40]}, and what was signed is {proof.origin}"
        raise ChainError(BAD_PROOF, why, sequence=proof.sequence)
    if options.log_id is not None and options.log_id.lower() != proof.log_id:
        why = f"it is of log {proof.log_id}, not of the one that was asked about"
        raise ChainError(BAD_PROOF, why, sequence=proof.sequence)
    quorum = None if policy is None else check_quorum(policy, proof)
    if options.record is not None and options.record.lower() != proof.record_hash:
        why = f"it proves {proof.record_hash}, which is not the record that was asked about"
        raise ChainError(BAD_PROOF, why, sequence=proof.sequence)
    if options.receipt is not None:
        receipt = receipts.read_receipt(options.receipt)
        receipts.match(receipt, proof.log_id, proof.sequence, proof.record_hash)
    signers = [line.name for line in note.signatures]
    return Judgement(proof, parse_checkpoint(note.text).size, signers, policy, quorum)


def _read_proof(file: str) -> Proof:
    """The proof in a file. Raises ChainError (BAD_PROOF), InvalidParameter."""
    try:
        return msgspec.json.decode(receipts.read_file(file), type=Proof)
    except UNREADABLE as error:
        raise ChainError(BAD_PROOF, f"{file} is no proof: {error}") from error


def _key(text: str) -> NoteKey:
    try:
        return parse_key(text)
    except ChainError as error:
        raise InvalidParameter("key", error.why) from error


# ---- enrolment -----------------------------------------------------------------------------------


def enrolment(options: argparse.Namespace, console: Console) -> int:
    """Print what is to be given to a collector, out of band."""
    seal_key = options.with_seal_key
    document = enrolment_document(options.log, console.wall_ns(), with_seal_key=seal_key)
    if options.with_seal_key:
        console.note("the seal key is a secret: hand it to the collector and keep no copy")
    console.say(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    return 0


def enrolment_document(log: Path, now_ns: int, *, with_seal_key: bool) -> dict[str, Any]:
    """What a collector has to know of a log. Raises ChainError, StateError."""
    with closing(read_log(log, bodies=False)) as opened:
        document = {**_enrolment(opened), "printed_ns": now_ns}
    return {**document, **_seal_key(log, opened)} if with_seal_key else document


def _enrolment(opened: ReadLog) -> dict[str, Any]:
    identity, verified = opened.facts.identity, opened.facts.verified
    node_id = next((e.node_id for _, e, _ in opened.events() if isinstance(e, NodeStarted)), None)
    if node_id is None:
        raise StateError("the log is empty: start the agent once")
    key = verified.public_key or identity.public_key
    return {
        "format": FORMAT,
        "node_id": node_id.hex(),
        "log_id": identity.log_id.hex(),
        "origin": identity.origin,
        "vkey": NoteKey(identity.origin, key).text(),
        "epoch_ns": identity.epoch_ns,
        "first_public_key": identity.public_key.hex(),
        "size": verified.head.size,
        "head": verified.head.hash.hex(),
        "seal_epoch": None,
        "seal_key": None,
    }


def _seal_key(directory: Path, opened: ReadLog) -> dict[str, Any]:
    """The key of the open epoch. Raises ChainError, StateError."""
    if not opened.facts.identity.epoch_ns:
        raise StateError("this log was made without seals: there is no key")
    with closing(DirectoryDisk(directory)) as disk:
        key = load_seal_key(disk, opened.log_id)
    return {"seal_epoch": key.epoch, "seal_key": key.key.hex()}
