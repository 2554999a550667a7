# SPDX-License-Identifier: Apache-2.0
"""Spans: which time a line of a bill is of, and which contract it is by.

Rule: a line of a contract is of its part of the month; one of the rate card of the hours in it that
its version prices. What is no charge of the month's own (a correction) has no span. Bills from
before lines had spans are told them where there is one contract, or none, in the month; where there
are two nothing is guessed.

Does not choose contracts (`contracts`).
"""

from __future__ import annotations

import msgspec

from leased.economics.contracts import Contract, Terms


class Span(msgspec.Struct, frozen=True):
    """[from_ns, to_ns) by the contract of that number in the terms; None: by no contract."""

    from_ns: int
    to_ns: int
    contract: int | None = None

    def of_card(self, number: int | None, terms: Terms) -> Span:
        """That part of it which version `number` of the rate card prices; all of it if None."""
        if number is None:
            return self
        starts = [version.since_ns for version in terms.cards]
        from_ns = max(self.from_ns, starts[number]) if number else self.from_ns
        to_ns = min([self.to_ns, *starts[number + 1 : number + 2]])
        return Span(from_ns, to_ns, self.contract)


def spans_of(tenant: str, window: tuple[int, int], terms: Terms) -> list[tuple[Contract, Span]]:
    """The contracts of `tenant` in `window`, in order, the gaps between them by none."""
    listed = terms.contracts
    return [
        (one, Span(start_ns, end_ns, listed.index(one) if one in listed else None))
        for one, start_ns, end_ns in terms.contracts_of(tenant, window)
    ]
