# SPDX-License-Identifier: Apache-2.0
"""Lending: whose quota it is that others have borrowed.

Rule: records say how much a lease borrows, and not of whom, because nodes lend what is idle of all
together. It is told as each lender's part by what is idle of its own quota: nobody lends more than
that, nobody lends to itself, and all that was borrowed is somebody's as long as so much is idle.
Where owners have taken theirs back, what borrowers have not given up yet is nobody's.

Does not decide who may borrow: nodes do.
"""

from __future__ import annotations

from collections.abc import Mapping

from leased.economics.amounts import split


def lent(borrowed: Mapping[str, int], idle: Mapping[str, int]) -> dict[str, int]:
    """What each has lent of one kind, by tenant, in its raw unit. `borrowed`: what each has of
    others; `idle`: of each that lends, what it may have and has not."""
    room = dict(sorted(idle.items()))
    out = dict.fromkeys(room, 0)
    for borrower, amount in sorted(borrowed.items()):
        lenders = [tenant for tenant in room if tenant != borrower and room[tenant] > 0]
        most = sum(room[tenant] for tenant in lenders)
        parts = split(min(amount, most), [room[tenant] for tenant in lenders])
        for tenant, part in zip(lenders, parts, strict=True):
            room[tenant] -= part
            out[tenant] += part
    return {tenant: amount for tenant, amount in out.items() if amount}
