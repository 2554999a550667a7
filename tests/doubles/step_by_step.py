# SPDX-License-Identifier: Apache-2.0
"""The verifier without its strides: every record is judged by the rules, one by one. The oracle of
what C takes for plain, and what it may never say otherwise.
"""

from __future__ import annotations

from typing import Any

from leased.chain.bodies import check_bodies, check_body
from leased.chain.findings import Walk
from leased.chain.grammar import Grammar
from leased.chain.verifier import Verifier
from leased.terms.errors import ChainError


class StepByStep(Verifier):
    """Nothing is plain."""

    def _stride(self, strider: object, offset: int, walk: Walk) -> int:
        return offset


def follow_each(grammar: Grammar, walk: Walk) -> None:
    """`Grammar.follow`, one record after the other."""
    for index in range(len(walk.offsets)):
        grammar.follow_one(walk, index)


def check_each_body(walk: Walk) -> None:
    """`check_bodies`, by decoding all of them."""
    for index in range(len(walk.offsets)):
        check_body(walk, index)


def both_say(data: bytes, start: int, stop: int, *arguments: Any, **options: Any) -> Any:
    """What both verifiers find of `data[start:stop]`: asserts that it is the same, to the word, and
    returns it. The arguments are those of `Verifier`."""
    quick = _said(Verifier(*arguments, **options), check_bodies, data, start, stop)
    at_once = Verifier(*arguments, **options, bodies=True)
    assert quick == _said(at_once, check_bodies, data, start, stop)
    slow = _said(StepByStep(*arguments, **options), check_each_body, data, start, stop)
    assert quick == slow
    return quick


def _said(verifier: Verifier, bodies: Any, data: bytes, start: int, stop: int) -> Any:
    refused = None
    try:
        walk = verifier.feed(data, start=start, stop=stop)
    except ChainError as error:
        return _named(error)
    try:
        bodies(walk)
    except ChainError as error:
        refused = _named(error)
    found = verifier.verified()
    stands = verifier.carried() if found.whole else None
    return found, stands, (list(walk.offsets), list(walk.kinds), bytes(walk.digests)), refused


def _named(error: ChainError) -> tuple[str, int, int, str]:
    return error.verdict, error.sequence, error.offset, error.why
