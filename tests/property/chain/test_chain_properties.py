# SPDX-License-Identifier: Apache-2.0
"""Properties: the tree is RFC 6962's, any cut of a chain verifies alike, any edit is found, a
log follows a list."""

from __future__ import annotations

import itertools
import os

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leased.chain.canonical import decode, encode
from leased.chain.head import GENESIS
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier, verify
from leased.terms import event as e
from leased.terms.errors import ChainError
from tests.doubles.disk import CrashPoint, MemoryDisk
from tests.doubles.logs import CountedEntropy, moment_at, open_on, renewal, subject
from tests.vectors import verify_independent as independent

settings.register_profile("chain", derandomize=True, deadline=None)
CHAIN = settings(
    settings.get_profile("chain"), max_examples=int(os.environ.get("LEASED_EXAMPLES", "100"))
)
IDS = st.binary(min_size=16, max_size=16)
U64 = st.integers(0, 2**64 - 1)


@CHAIN
@given(st.lists(st.integers(0, 40), max_size=8))
def test_the_frontier_is_the_tree_of_rfc_6962(parts: list[int]) -> None:
    leaves, frontier = [], EMPTY
    for part in parts:
        more = [bytes([len(leaves) % 256, n]) * 16 for n in range(part)]
        leaves += more
        frontier = frontier.extended(more)
        assert frontier.root() == independent.tree_root(leaves)
        assert len(frontier.peaks) == frontier.size.bit_count()


@CHAIN
@given(
    IDS,
    IDS,
    U64,
    U64,
    st.lists(st.integers(0, 2**128 - 1), max_size=3),
    st.none() | st.integers(0, 1000),
)
def test_what_is_encoded_reads_back_and_by_the_second_reader_too(
    event, lease, generation, when, held, share
) -> None:
    reclaimed = e.Reclaimed(
        event,
        lease,
        subject(),
        generation,
        when,
        tuple(held),
        1,
        2,
        share,
        share,
        None,
        0,
        0,
        b"\x05" * 32,
    )
    body = encode(reclaimed)
    assert decode(26, 1, body) == reclaimed
    value, end = independent.take(body, 0)
    assert end == len(body) and independent.fits(value, independent.BODIES[26])
    assert [int.from_bytes(raw, "big") for raw in value[5]] == held


@CHAIN
@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_in_their_shortest_form(delta: int) -> None:
    value, _ = independent.take(encode(e.ClockStepped(b"\x01" * 16, delta)), 0)
    assert value == [b"\x01" * 16, delta]


@CHAIN
@given(st.binary(max_size=120), st.sampled_from(sorted(e.KIND.values())))
def test_no_bytes_are_read_that_would_not_be_written(body: bytes, kind: int) -> None:
    try:
        event = decode(kind, 1, body)
    except ChainError:
        return
    assert encode(event) == body


def _frames(sizes: list[int]) -> bytes:
    sealer = Sealer(b"l" * 16, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    return b"".join(
        sealer.seal([(renewal(n), moment_at(n)) for n in range(size)]).frames for size in sizes
    )


DATA = _frames([1, 3, 2, 4])


@CHAIN
@given(st.lists(st.integers(1, 9), max_size=6))
def test_a_chain_may_be_cut_anywhere_between_frames(cuts: list[int]) -> None:
    bounds, offset = [0], 0
    while offset < len(DATA):
        offset += int.from_bytes(DATA[offset : offset + 4], "little")
        bounds.append(offset)
    chosen = sorted({0, len(bounds) - 1, *cuts})
    chunks = [DATA[bounds[a] : bounds[b]] for a, b in itertools.pairwise(chosen)]
    assert verify(chunks, Verifier(b"l" * 16)) == verify([DATA], Verifier(b"l" * 16))


@CHAIN
@given(
    st.integers(0, len(DATA) - 1),
    st.integers(1, 255),
    st.sampled_from(["change", "drop", "double", "cut"]),
)
def test_any_edit_is_found(at: int, change: int, how: str) -> None:
    edited = {
        "change": DATA[:at] + bytes([DATA[at] ^ change]) + DATA[at + 1 :],
        "drop": DATA[:at] + DATA[at + change :],
        "double": DATA[:at] + DATA[max(0, at - change) :],
        "cut": DATA[:at],
    }[how]
    whole = verify([DATA], Verifier(b"l" * 16))
    try:
        found = verify([edited], Verifier(b"l" * 16))
    except ChainError as error:
        assert error.sequence >= 0 and error.offset >= 0
        return
    assert edited == DATA or found.crc_damaged or found.head.size < whole.head.size


class LogAgainstList(RuleBasedStateMachine):
    """A log on a disk in memory against a list of what was acknowledged: commit, restart, crash,
    lose a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryDisk()
        self.log = open_on(self.disk)
        self.sealer = self.log.sealer()
        self.acked: list[bytes] = []
        self.number = 0
        self.runs = 0

    @rule(size=st.integers(1, 12))
    def commit(self, size: int) -> None:
        batch = self.sealer.seal(
            [(renewal(self.number + n), moment_at(self.number)) for n in range(size)]
        )
        self.number += size
        self.log.journal.commit_blocking(
            batch.frames, batch.count, batch.head, moment_at(self.number)
        )
        self.acked = self._hashes()

    @rule()
    def restart(self) -> None:
        self._reopen(self.disk.contents())
        assert self.log.recovered is None

    @precondition(lambda self: self.acked)
    @rule(random=st.randoms(use_true_random=False), size=st.integers(1, 6), back=st.integers(0, 5))
    def crash(self, random, size: int, back: int) -> None:
        before = len(self.disk.ops)
        batch = self.sealer.seal(
            [(renewal(self.number + n), moment_at(self.number)) for n in range(size)]
        )
        self.log.journal.commit_blocking(
            batch.frames, batch.count, batch.head, moment_at(self.number)
        )
        self.number += size
        point = CrashPoint(self.disk, max(before, len(self.disk.ops) - back))
        states = list(point.states(granule=64, random=random, samples=2))
        self._reopen(random.choice(states))
        assert self._hashes()[: len(self.acked)] == self.acked
        self.acked = self._hashes()

    @rule(slot=st.integers(0, 1))
    def lose_a_slot(self, slot: int) -> None:
        files = self.disk.contents()
        anchor = bytearray(files["anchor"])
        anchor[4096 * slot : 4096 * slot + 4096] = bytes(4096)
        self._reopen({**files, "anchor": bytes(anchor)})

    @invariant()
    def nothing_acknowledged_is_missing(self) -> None:
        assert self._hashes() == self.acked and self.log.head.size <= len(self.acked)

    def _reopen(self, files: dict[str, bytes]) -> None:
        self.runs += 1
        self.disk = MemoryDisk(files)
        self.log = open_on(self.disk, entropy=CountedEntropy(b"run%d" % self.runs))
        self.sealer = self.log.sealer()

    def _hashes(self) -> list[bytes]:
        data, found, offset = b"".join(self.log.journal.frames(0)), [], 0
        while offset < len(data):
            offset += int.from_bytes(data[offset : offset + 4], "little")
            found.append(data[offset - 32 : offset])
        return found


TestLogAgainstList = LogAgainstList.TestCase
TestLogAgainstList.settings = settings(CHAIN, max_examples=30, stateful_step_count=20)
