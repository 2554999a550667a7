# SPDX-License-Identifier: Apache-2.0
"""Whose an object is: by the contexts seen at the grant, whoever holds them by the proof."""

from __future__ import annotations

from leased.hardware.rdma.carrying import objects_on
from leased.hardware.rdma.ledger import Ledger, belonging, orphans
from leased.hardware.rdma.nldev import Link, Object
from leased.terms.identity import LeaseId

A, B, C = (LeaseId(bytes([number]) * 16) for number in (1, 2, 3))
MINE, THEIRS, KERNELS = 10, 11, -1


def objects_of(context: int, pid: int, *, first: int = 0) -> list[Object]:
    """A context with a domain, a region, a queue pair, completions and receives."""
    domain = first + context * 10
    return [
        Object("context", context, pid, "", context, -1, 0),
        Object("domain", domain, pid, "", context, domain, 0),
        Object("region", domain + 1, pid, "", -1, domain, 4096),
        Object("queue", domain + 2, pid, "", -1, domain, 0),
        Object("completions", domain + 3, pid, "", context, -1, 0),
        Object("receives", domain + 4, pid, "", -1, domain, 0),
    ]


KERNEL = [
    Object("domain", 0, 0, "ib_core", -1, 0, 0),
    Object("queue", 1, 0, "ib_core", -1, -1, 0),
    Object("completions", 0, 0, "ib_core", -1, -1, 0),
]


def test_everything_hangs_on_a_context() -> None:
    everything = [*KERNEL, *objects_of(MINE, 5), *objects_of(THEIRS, 6)]
    assert len(belonging(everything, [MINE])) == 6
    assert belonging(everything, [MINE]).isdisjoint(belonging(everything, [THEIRS]))
    assert not belonging(everything, [99])
    assert not orphans(everything), "the kernel's own are nobody's orphans"


def test_what_somebody_else_holds_or_makes_is_still_the_leases() -> None:
    """The owner is dead (no pid); somebody holds its descriptor and has registered more."""
    ledger = Ledger()
    ledger.claim(A, [MINE])
    left = [*KERNEL, *objects_of(MINE, 0), Object("region", 77, 4242, "", -1, MINE * 10, 4096)]
    assert len(ledger.left(A, left)) == 7
    assert ("region", 77) in ledger.left(A, left)
    assert not ledger.left(A, [*KERNEL, *objects_of(THEIRS, 0)])


def test_anothers_orphans_are_not_blamed_on_a_lease_that_was_seen() -> None:
    """Some program of this host passed a descriptor on and ended: none of ours."""
    ledger = Ledger()
    ledger.claim(A, [MINE])
    assert not ledger.left(A, [*KERNEL, *objects_of(99, 0)])


def test_a_lease_that_nobody_saw_answers_for_orphans_that_nobody_else_answers_for() -> None:
    ledger = Ledger()
    ledger.claim(B, [THEIRS])
    everything = [*KERNEL, *objects_of(MINE, 0), *objects_of(THEIRS, 0), *objects_of(12, 77)]
    assert ledger.left(A, everything) == belonging(everything, [MINE])


def test_what_was_there_before_any_lease_is_nobodys() -> None:
    ledger = Ledger()
    ledger.settle([*KERNEL, *objects_of(99, 0)])
    everything = [*KERNEL, *objects_of(99, 0), *objects_of(MINE, 0)]
    assert ledger.left(A, everything) == belonging(everything, [MINE])


def test_what_is_left_is_blamed_once() -> None:
    ledger = Ledger()
    everything = [*KERNEL, *objects_of(MINE, 0)]
    left = ledger.left(A, everything)
    assert left
    ledger.forget(A, left)
    assert not ledger.left(B, everything)
    ledger.claim(C, [MINE])
    assert ledger.left(C, everything), "a context seen at the grant is never somebody else's"


def test_what_is_left_is_left_however_often_it_is_asked() -> None:
    """A proof that failed and is tried again, with the contexts seen and without."""
    everything = [*KERNEL, *objects_of(MINE, 0)]
    for claimed in (True, False):
        ledger = Ledger()
        if claimed:
            ledger.claim(A, [MINE])
        left = ledger.left(A, everything)
        for _ in range(2):
            assert ledger.left(A, everything) == left
            ledger.forget(A, left)
        assert not ledger.left(A, KERNEL), "until it is gone"
        ledger.forget(A, frozenset())
        assert not ledger.left(A, everything)


class Kernel:
    """Lists the same objects, whichever device it is asked of."""

    def objects(self, index: int) -> list[Object]:
        return [*KERNEL, *objects_of(MINE, 5)]


def test_what_a_device_that_was_reset_gives_again_is_not_what_it_gave_before() -> None:
    """A lease that lost its contexts with the reset answered for those of the lease after it, and
    was fenced."""

    def listed(device: int) -> tuple[Object, ...]:
        link = Link(device, "mlx5_0", "1", "", "ib", 1)
        return objects_on(Kernel(), link)  # type: ignore[arg-type]

    def contexts(objects: tuple[Object, ...]) -> list[int]:
        return [one.number for one in objects if one.kind == "context"]

    ledger = Ledger()
    before, after = listed(3), listed(4)
    ledger.claim(A, contexts(before))
    ledger.claim(B, contexts(after))
    assert len(ledger.left(A, before)) == len(ledger.left(B, after)) == 6
    assert not ledger.left(A, after) and not ledger.left(B, before)
    assert not orphans(after)
