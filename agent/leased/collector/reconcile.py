# SPDX-License-Identifier: Apache-2.0
"""Reconcile: what an answer of a node, or its silence, says about its log.

Rule: a verdict is one of a closed set. The sticky ones say that something happened that nothing
honest explains: from then on nothing of the log is pulled, cosigned or pruned until an operator has
resolved it, by a signed note. An answer that cannot be read, a refusal for load, a node that is
away say nothing about the log: they are waited out.

Does not ask nodes (`puller`) and does not keep verdicts (`archive`).
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from leased.chain.evidence import Cosigned
from leased.chain.verdict import (
    BAD_BODY,
    BAD_NOTE,
    BAD_ORDER,
    BAD_PAGE,
    BAD_ROOT,
    BAD_SEAL,
    BAD_SIGNATURE,
    CORRUPT_RECORD,
)
from leased.collector.ingest import State, judge_note
from leased.terms.errors import ChainError
from leased.terms.moment import NS_PER_S


class Verdict(enum.StrEnum):
    """What the collector thinks of a log."""

    OK = "OK"
    BEHIND = "BEHIND"
    STALE = "STALE"
    ROLLBACK = "ROLLBACK"
    FORK = "FORK"
    GAP = "GAP"
    BAD_RECORD = "BAD_RECORD"
    BAD_SEAL = "BAD_SEAL"
    BAD_SIG = "BAD_SIG"
    BAD_ROOT = "BAD_ROOT"
    NEW_LOG = "NEW_LOG"

    @property
    def sticky(self) -> bool:
        """Whether it stays until an operator resolves it."""
        return self not in (Verdict.OK, Verdict.BEHIND, Verdict.STALE)


STALE_GRACE_S: Final = 30
STALE_UNSEALED_S: Final = 120
"""For a log without epochs: as long as two epochs of the usual length."""

_OF_CHAIN: Final[dict[str, Verdict]] = {
    CORRUPT_RECORD: Verdict.BAD_RECORD,
    BAD_BODY: Verdict.BAD_RECORD,
    BAD_ORDER: Verdict.BAD_RECORD,
    BAD_SEAL: Verdict.BAD_SEAL,
    BAD_SIGNATURE: Verdict.BAD_SIG,
    BAD_NOTE: Verdict.BAD_SIG,
    BAD_ROOT: Verdict.BAD_ROOT,
}


class Finding(msgspec.Struct, frozen=True):
    """A verdict and why, for people. `note` is the node's own words, where they are evidence;
    `cosigned` what another collector has cosigned, and `root_here` the root of as many records as
    they are held here."""

    verdict: Verdict
    why: str
    note: str = ""
    cosigned: Cosigned | None = None
    root_here: bytes = b""


class Problem(msgspec.Struct, frozen=True):
    """An answer that is no page (PULL.md section 3)."""

    status: int
    word: str = ""
    detail: str = ""
    size: int | None = None
    hash: str = ""
    min_seq: int | None = None
    checkpoint: str = ""
    verdict: str = ""


def judge_refusal(state: State, error: ChainError) -> Finding | None:
    """What a page that does not hold means. None: it was damaged on the way, ask again. The page is
    kept, and the note in it is the evidence (`case`)."""
    if error.verdict == BAD_PAGE:
        return None
    verdict = _OF_CHAIN.get(error.verdict, Verdict.BAD_RECORD)
    if verdict is Verdict.BAD_ROOT and error.sequence == state.head.size and not state.lagging:
        return Finding(Verdict.FORK, f"two signed trees of {state.head.size} records")
    return Finding(verdict, str(error))


def judge_problem(state: State, problem: Problem) -> Finding | None:
    """What an answer that is no page means. None: nothing about the log; ask again later."""
    size = state.head.size
    if problem.status == 409:
        why = f"the node has another record {size - 1} than the one it gave us"
        return Finding(Verdict.FORK, why, _evidence(state, problem))
    if problem.status == 416:
        why = f"the node has {problem.size} records, and gave us {size}"
        return Finding(Verdict.ROLLBACK, why, _evidence(state, problem))
    if problem.status == 410:
        first = problem.min_seq if problem.min_seq is not None else -1
        if first > size:
            why = f"records {size} to {first - 1} were pruned before we had them; bring them from"
            why += " a copy (`leased-collector import`), and then resolve this"
            return Finding(Verdict.GAP, why, _evidence(state, problem))
    if problem.status == 404:
        return Finding(Verdict.NEW_LOG, "the node does not serve the log that was enrolled")
    return None


def judge_silence(state: State, contact_ns: int, now_ns: int) -> Finding | None:
    """Whether a log was not heard of for more than two epochs, or sealed none of them though its
    node answers: then somebody has stopped it. Wall clocks of the collector."""
    epoch_s = state.pinned.epoch_ns // NS_PER_S
    limit_s = (2 * epoch_s if epoch_s else STALE_UNSEALED_S) + STALE_GRACE_S
    silent_s, unsealed_s = ((now_ns - at_ns) // NS_PER_S for at_ns in (contact_ns, state.sealed_ns))
    if contact_ns and silent_s > limit_s:
        return Finding(Verdict.STALE, f"not heard of for {silent_s} s; {limit_s} s are usual")
    if contact_ns and epoch_s and state.sealed_ns and unsealed_s > limit_s:
        why = f"it answers, and has sealed no epoch for {unsealed_s} s; {limit_s} s are usual"
        return Finding(Verdict.STALE, why)
    return None


def _evidence(state: State, problem: Problem) -> str:
    """The note of a problem, if it is the node's."""
    try:
        judge_note(state, problem.checkpoint)
    except ChainError as error:
        # Two roots of one size are what evidence looks like.
        return problem.checkpoint if error.verdict == BAD_ROOT else ""
    return problem.checkpoint
