# SPDX-License-Identifier: Apache-2.0
"""Auditors' verbs: verify, audit head (`records` and `proofs` have the rest).

Rule: they read the sealed log itself, verify all of it first, and need no agent. What does not hold
is named by verdict, file, sequence and offset, and ends with 65; nothing after it is shown. What
holds and is not proven whole for want of a policy, or not sealed any more while an agent has it
open, ends with 66.

Does not repair (`open_log` at the agent's start does).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from leased.client import Session
from leased.ctl import acknowledged, enrolling, proofs, records, render
from leased.ctl.agent import await_answer, online
from leased.ctl.bill import add_bill, verify_bill
from leased.ctl.console import Console, timestamp
from leased.ctl.enrolled import read_enrolled
from leased.ctl.usage_text import Verbs, verb
from leased.ctl.witnesses import (
    Standing,
    Unproven,
    add_policy,
    configured_policy,
    judge,
    read_policy,
)
from leased.durable.reader import UNKNOWN, LogFacts, ReadLog, read_log
from leased.terms.errors import EX_DATAERR, EX_NOINPUT, ChainError, InvalidParameter
from leased.terms.moment import NS_PER_S
from leased.wire import parameters, replies

AUDIT_DIRECTORY = Path("/var/lib/leased/audit")
GRACE_NS = 30 * NS_PER_S
STALE = "STALE"
_HASH = re.compile("[0-9a-f]{64}")
_SIZE = re.compile("[0-9]{0,20}")


def register(verbs: Verbs) -> None:
    """Add the verbs of this module."""
    one = verb(
        verbs, "verify", "check the sealed log, all of it", "leasectl verify --log /backup/audit"
    )
    add_log(one)
    one.add_argument("--online", action="store_true", help="let the agent check its own instead")
    one.add_argument("--head", metavar="HEX", help="the head (hash) that the log must contain")
    add_bill(one)
    one.add_argument(
        "--enrolment",
        type=Path,
        action="append",
        metavar="FILE",
        help="what `leasectl audit enrolment` printed; for --bill one of each node, or a DIR",
    )
    add_policy(one)
    one.set_defaults(act=verify)
    parent = verb(
        verbs, "audit", "read the sealed log", "leasectl audit log --lease 7fa3", json=False
    )
    below = parent.add_subparsers(dest="audit_verb", metavar="VERB", required=True)
    one = verb(below, "head", "how far the log goes", "leasectl audit head")
    one.add_argument("--log", type=Path, metavar="DIR", help="of this log, without an agent")
    one.set_defaults(act=head)
    records.register(below, add_log)
    proofs.register(below, AUDIT_DIRECTORY)
    acknowledged.register(below)
    enrolling.register(below, AUDIT_DIRECTORY)


def add_log(parser: argparse.ArgumentParser) -> None:
    """Which log to read."""
    parser.add_argument(
        "--log",
        type=Path,
        default=AUDIT_DIRECTORY,
        metavar="DIR",
        help=f"the directory of the log (default: {AUDIT_DIRECTORY})",
    )


def verify(options: argparse.Namespace, console: Console) -> int:
    """Check a log, or a bill."""
    if options.bill is not None:
        return verify_bill(options, console)
    if options.online:
        return online(_verify_online, admin=True)(options, console)
    console.progress(f"verifying {options.log}")
    told = options.enrolment
    enrolled = read_enrolled(told[-1], console.wall_ns()) if told else UNKNOWN
    policy = None if options.policy is None else read_policy(options.policy)
    opened = read_log(options.log, leases=True, countersigned=True, enrolled=enrolled)
    try:
        found = None if options.head is None else _find_head(opened, options.head)
        standing = judge(policy, opened.facts, found, configured_policy(options.log))
        overdue_s = _overdue_s(opened.facts, console.wall_ns())
        _tell_facts(options, console, opened.facts, standing, overdue_s=overdue_s)
    except Unproven as error:
        _tell_facts(options, console, opened.facts, None, error)
        return error.exit_status
    finally:
        opened.close()
    if found is not None and not options.json:
        console.say(f"record {found} has the head that was asked for")
    return EX_NOINPUT if overdue_s else 0


def _overdue_s(facts: LogFacts, now_ns: int) -> int:
    """How long ago the last epoch was sealed of a log that an agent has open, if that is longer
    than it takes: then somebody has stopped it. 0: nothing is overdue."""
    verified, epoch_ns = facts.verified, facts.identity.epoch_ns
    silent_ns = now_ns - verified.sealed_wall_ns
    if not facts.live or not verified.seals or silent_ns <= 2 * epoch_ns + GRACE_NS:
        return 0
    return silent_ns // NS_PER_S


def _find_head(opened: ReadLog, text: str) -> int:
    """The sequence of the record whose hash is `text`, which may be as `audit head` prints it.
    Raises ChainError: the log is not the one you knew; Unproven: it may be of a record that was
    pruned; InvalidParameter.
    """
    shown = opened.facts.shown
    size, _, hexed = text.lower().rpartition(":")
    if not _HASH.fullmatch(hexed) or not _SIZE.fullmatch(size):
        raise InvalidParameter("head", f"{text[:80]}: 64 hex digits, as `audit head` prints them")
    size = size.lstrip("0") or size[:1]  # 007 is 7
    if shown.begins and shown.pruned is not None:
        gone = (str(shown.begins), shown.pruned.head.hex())
        if (size or gone[0], hexed) == gone:
            return shown.begins - 1
    for record in opened.records():
        if record.hash.hex() == hexed and size in ("", str(record.sequence + 1)):
            return record.sequence
    if shown.begins and int(size or 0) < shown.begins:
        raise Unproven(
            f"no record that is here has the hash {text}: it may be of one of records 0 to"
            f" {shown.begins - 1}, which were pruned",
            f"give a head of {shown.begins} records or more, as a collector has them",
            sequence=shown.begins,
        )
    raise ChainError("FORK_OR_ROLLBACK", f"no record of this log has the hash {text}")


def _tell_facts(
    options: argparse.Namespace,
    console: Console,
    facts: LogFacts,
    standing: Standing | None,
    unproven: Unproven | None = None,
    *,
    overdue_s: int = 0,
) -> None:
    verdict = STALE if overdue_s else "ok"
    if options.json:
        found = verdict if unproven is None else unproven.verdict
        console.document(
            {
                "verdict": found,
                **_facts_document(facts),
                **({} if standing is None else standing.document()),
                **({} if unproven is None else {"why": unproven.why}),
            }
        )
        return
    grade = verdict if unproven is None else "what is here holds"
    segments = render.counted(len(facts.segments), "segment")
    console.say(f"{grade}: {facts.verified.count} records in {segments} hold")
    console.say(*render.fields(_facts_pairs(facts, standing, unproven, overdue_s)))


def _facts_document(facts: LogFacts) -> dict[str, Any]:
    verified, shown = facts.verified, facts.shown
    return {
        "log_id": facts.identity.log_id.hex(),
        "origin": facts.identity.origin,
        "records": verified.count,
        "next_sequence": verified.head.size,
        "head": verified.head.hash.hex(),
        "signed_size": verified.signed_size,
        "public_key": facts.identity.public_key.hex(),
        "segments": len(facts.segments),
        "live": facts.live,
        "unanchored_records": facts.unanchored_records,
        "torn_bytes": facts.torn_bytes,
        "crc_damaged": verified.crc_damaged,
        "unknown_records": verified.unknown,
        "clock_breaks": verified.clock_breaks,
        "seals": verified.seals,
        "seals_proven": verified.seals_proven,
        "sealed_until": timestamp(verified.sealed_wall_ns) if verified.seals else None,
        "first_sequence": shown.begins,
        "countersigned": {f"{one.key_id:08x}": one.size for one in shown.newest},
    }


def _facts_pairs(
    facts: LogFacts, standing: Standing | None, unproven: Unproven | None, overdue_s: int
) -> list[tuple[str, str]]:
    """The same in words."""
    verified, shown, identity = facts.verified, facts.shown, facts.identity
    signer = identity.public_key.hex()
    pairs = [
        ("log", f"{identity.log_id.hex()} ({identity.origin})"),
        ("head", f"{verified.head.size}:{verified.head.hash.hex()}"),
        ("signed", f"the first {verified.signed_size} records, by {signer}"),
    ]
    if verified.seals:
        proven = f"{verified.seals_proven} of them proven by the key of the enrolment"
        pairs.append(("sealed", f"{verified.seals} epochs, {proven}"))
        pairs.append(("until", f"{timestamp(verified.sealed_wall_ns)[:19]}Z by the node's clock"))
    if overdue_s:
        why = f"an agent has it open, and has sealed no epoch for {overdue_s} s"
        pairs.append(("stale", f"{why}: it hangs, or somebody has stopped it"))
    if unproven is not None:
        pairs.append(("not proven", unproven.why.replace(f"; {unproven.advice}", "")))
        pairs.append(("to prove it", unproven.advice))
    elif shown.begins:
        pairs.append(("pruned", f"records 0 to {shown.begins - 1}, which were acknowledged"))
    pairs += _vouched(facts, standing)
    if facts.unanchored_records or facts.torn_bytes:
        beyond = f"{facts.unanchored_records} records, {facts.torn_bytes} torn bytes"
        pairs.append(("beyond", f"{beyond}: the next start keeps or cuts them"))
    if verified.unknown:
        pairs.append(("unknown", f"{verified.unknown} records of kinds that this release lacks"))
    if verified.crc_damaged:
        pairs.append(("damaged", f"{verified.crc_damaged} checksums, whose records still hold"))
    return pairs


def _vouched(facts: LogFacts, standing: Standing | None) -> list[tuple[str, str]]:
    """Who has cosigned how much, in words."""
    if standing is not None:
        by = ", ".join(f"{name} {size}" for name, size in standing.witnesses.items()) or "nobody"
        told = f"the first {standing.quorum_size} records, by {standing.quorum} ({by})"
        if standing.configured:
            told += ", as this node's own configuration has it; --policy takes your word instead"
        return [("quorum", told)]
    newest = facts.shown.newest
    said = ", ".join(f"{one.size} by key {one.key_id:08x}" for one in newest)
    return [("cosigned", f"{said}; --policy says whether that counts")] if newest else []


async def _verify_online(options: argparse.Namespace, console: Console, session: Session) -> int:
    await await_answer(session)
    told = await session.ask(parameters.AuditVerify(), replies.VerifyReply, timeout_s=float("inf"))
    if options.json:
        console.document(render.plain(told))
    elif told.verdict == "ok":
        console.say(f"ok: {told.records} records hold; head {told.head}")
    else:
        console.note(f"{told.verdict}: {told.why} (sequence {told.sequence}, file {told.file})")
    return 0 if told.verdict == "ok" else EX_DATAERR


def head(options: argparse.Namespace, console: Console) -> int:
    """Print the head."""
    if options.log is None:
        return online(_head_online)(options, console)
    opened = read_log(options.log, bodies=False, signatures=False)
    opened.close()
    found = {
        "log_id": opened.log_id.hex(),
        "next_sequence": opened.head.size,
        "head": opened.head.hash.hex(),
    }
    _tell_head(options, console, found)
    return 0


async def _head_online(options: argparse.Namespace, console: Console, session: Session) -> int:
    told = await session.ask(parameters.AuditHead(), replies.HeadReply)
    _tell_head(options, console, render.plain(told))
    return 0


def _tell_head(options: argparse.Namespace, console: Console, found: dict[str, Any]) -> None:
    console.answer(options.json, found, f"{found['next_sequence']}:{found['head']}")
