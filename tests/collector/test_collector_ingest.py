# SPDX-License-Identifier: Apache-2.0
"""Ingest and reconcile: pages that hold are taken from wherever the log stands; each thing that can
be wrong with one has its verdict, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from leased.chain.epochs import EPOCHS_AHEAD_MAX, EpochKey
from leased.chain.head import Head
from leased.chain.signing import Signer
from leased.collector import ingest as i
from leased.collector import reconcile as r
from leased.terms import event as e
from leased.terms.errors import ChainError
from leased.terms.moment import Moment
from tests.doubles.logs import BOOT, allocation, lease_life, moment_at, renewal
from tests.doubles.nodes import EPOCH_NS, PulledNode


def node(batches: int = 4, **options) -> PulledNode:
    """A node that has granted and ended some leases."""
    made = PulledNode(**options)
    made.start()
    for number in range(batches):
        live(made, number)
    return made


def live(on: PulledNode, number: int) -> None:
    """One lease's beginning on a node."""
    granted = allocation(number)
    same = (granted.lease_id, granted.subject, 1, number)
    event = e.EventId(bytes(15) + bytes([number]))
    on.seal([granted, e.Activated(event, *same, bytes(32)), e.Released(event, *same)])


def take(state: i.State, answer: bytes | r.Problem) -> i.Taken:
    assert isinstance(answer, bytes), answer
    return i.take_page(i.decode_state(i.encode_state(state)), answer, 1)


def pull(on: PulledNode, state: i.State, **options) -> i.State:
    """Pull to the end."""
    while True:
        taken = take(state, on.page(state.head.size, state.head.hash, **options))
        state = taken.state
        if taken.fresh:
            return state


@pytest.mark.parametrize("epoch_ns", [0, EPOCH_NS])
@pytest.mark.parametrize("bytes_max", [1, 2_000, 4 << 20])
def test_pages_of_any_size_lead_to_the_same_place(epoch_ns: int, bytes_max: int) -> None:
    on = node(epoch_ns=epoch_ns)
    for minute in range(4):
        at = Moment(BOOT, 10**10 + minute * EPOCH_NS, 10**18 + minute * EPOCH_NS)
        on.seal([e.NodeStopped(e.EventId(bytes(16)), 0)], at)
    state = pull(on, i.State(on.pinned()), bytes_max=bytes_max)
    assert state == pull(on, i.State(on.pinned()))
    assert state.head.size == on.size and state.head.hash == on.hashes[-1]
    assert state.root == on.tree(on.size).root()
    assert len(state.leases) == 4 and state.loud and state.boot_id == BOOT
    if epoch_ns:
        assert state.verifier.epochs.proven == state.verifier.epochs.sealed == 3


def test_a_node_with_more_leases_than_any_has_is_judged() -> None:
    """What is carried of each was stored with every page, however many there were."""
    on = node()
    state = pull(on, i.State(on.pinned()))
    there = {number.to_bytes(16, "big"): 1 for number in range(i.LEASES_MAX - len(state.leases))}
    state = msgspec.structs.replace(state, leases=state.leases | there)
    page = on.page(state.head.size, state.head.hash)
    assert isinstance(page, bytes) and i.take_page(state, page, 1).state.leases == state.leases
    live(on, 77)
    page = on.page(state.head.size, state.head.hash)
    assert isinstance(page, bytes)
    with pytest.raises(ChainError) as refused:
        i.take_page(state, page, 1)
    finding = r.judge_refusal(state, refused.value)
    assert finding is not None and finding.verdict is r.Verdict.BAD_RECORD
    assert "262145 leases at a time: more than 262144 no node has" in finding.why


def test_an_empty_page_is_a_sign_of_life() -> None:
    on = node()
    state = pull(on, i.State(on.pinned()))
    taken = take(state, on.page(on.size, on.hashes[-1]))
    assert taken.fresh and not taken.frames and taken.state == state and taken.note == on.note()


def test_a_key_rotation_is_followed_and_its_notes_wait_for_it() -> None:
    on = node(2)
    early = on.size
    on.rotate(Signer(b"\x77" * 32))
    live(on, 9)
    state = i.State(on.pinned())
    # The page of old records, with a note by the key that is in force now.
    page = b"".join(on.frames[:early]) + on.trailer(early, note=on.note(early))
    taken = take(state, page)
    assert taken.state.lagging and taken.note == "" and not taken.fresh
    done = pull(on, taken.state)
    assert not done.lagging and done.public_key == Signer(b"\x77" * 32).public_key


def turned() -> PulledNode:
    """A node with its third key, whose log begins between the last two by now."""
    on = node(2)
    on.rotate(Signer(b"\x77" * 32))
    live(on, 9)
    begins = on.size
    live(on, 19)
    on.rotate(Signer(b"\x78" * 32))
    live(on, 29)
    on.prune(begins)
    return on


def forgetful(state: i.State) -> i.State:
    """What an earlier release carried."""
    known = state.verifier and i.msgspec.structs.replace(state.verifier, keys=None)
    return i.decode_state(i.encode_state(i.msgspec.structs.replace(state, verifier=known)))


@pytest.mark.parametrize("away", [0, 1, 2, 3])
@pytest.mark.parametrize("carried", [lambda state: state, forgetful])
def test_what_a_pruning_says_anew_of_the_keys_is_what_they_were(
    away: int, carried: Callable[[i.State], i.State]
) -> None:
    """Wherever the collector stood when it went away: at the beginning, and after each change."""
    on = turned()
    sizes = [0, *(at + 1 for at, _ in on.changes), on.size - 2]
    state = i.State(on.pinned())
    on.min_seq = 0
    page = b"".join(on.frames[: sizes[away]]) + on.trailer(sizes[away])
    state = carried(take(state, page).state if away else state)
    done = pull(on, state)
    assert done.head.size == on.size and done.public_key == Signer(b"\x78" * 32).public_key
    on.prune(on.size)
    done = pull(on, carried(done))
    live(on, 39)
    # Another time, and not all of it: of an older key.
    on.prune(on.size, tuple(change for _, change in on.changes)[:1])
    on.min_seq = 0
    with pytest.raises(ChainError) as refused:
        pull(on, done)
    finding = r.judge_refusal(done, refused.value)
    assert finding is not None and finding.verdict == "BAD_SIG"


def test_a_countersignature_alone_is_nothing_to_acknowledge() -> None:
    on = node()
    state = pull(on, i.State(on.pinned()))
    quiet = i.msgspec.structs.replace(state, loud=False)
    acked = (on.size, state.root, 7, 1_790_000_000, bytes(64))
    on.seal([e.HeadCountersigned(e.EventId(bytes(16)), *acked)], sign=True)
    assert not pull(on, quiet).loud
    live(on, 200)
    assert pull(on, quiet).loud


def flip(page: bytes, at: int) -> bytes:
    return page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]


def wrong_order(on: PulledNode) -> bytes:
    on.seal([renewal(3)])
    return on.page(0)


def unsigned(on: PulledNode) -> bytes:
    stranger = Signer(b"\x66" * 32)
    return b"".join(on.frames) + on.trailer(on.size, note=on.note(signer=stranger))


def other_root(on: PulledNode) -> bytes:
    twin = node(3)
    twin.seal([e.NodeStopped(e.EventId(bytes(16)), n) for n in range(on.size - twin.size - 1)])
    assert twin.size == on.size
    return b"".join(on.frames) + on.trailer(on.size, note=twin.note())


def other_size(on: PulledNode) -> bytes:
    return b"".join(on.frames) + on.trailer(on.size, note=on.note(on.size - 1))


def within_a_batch(on: PulledNode) -> bytes:
    return b"".join(on.frames[:-1]) + on.trailer(on.size - 1)


def clock_back(on: PulledNode) -> bytes:
    on.seal([e.NodeStopped(e.EventId(bytes(16)), 0)], moment_at(0))
    return on.page(0)


def swapped(on: PulledNode) -> bytes:
    frames = [*on.frames[:3], on.frames[4], on.frames[3], *on.frames[5:]]
    return b"".join(frames) + on.trailer(on.size)


@pytest.mark.parametrize(
    ("spoil", "verdict"),
    [
        (lambda on: flip(on.page(0), 90), "BAD_RECORD"),
        (lambda on: flip(on.page(0), 20), "BAD_RECORD"),
        (lambda on: on.frames[1] + b"".join(on.frames[2:]) + on.trailer(on.size), "BAD_RECORD"),
        (swapped, "BAD_RECORD"),
        (within_a_batch, "BAD_RECORD"),
        (wrong_order, "BAD_RECORD"),
        (clock_back, "BAD_RECORD"),
        (unsigned, "BAD_SIG"),
        (other_size, "BAD_SIG"),
        (other_root, "BAD_ROOT"),
        (lambda on: flip(on.page(0), -40), None),
        (lambda on: on.page(0)[:-8], None),
        (lambda on: b"".join(on.frames) + on.trailer(on.size, next_seq=3), None),
        (lambda on: b"", None),
    ],
)
def test_what_is_wrong_with_a_page_has_its_verdict(
    spoil: Callable[[PulledNode], bytes], verdict: str | None
) -> None:
    on = node()
    state = i.State(on.pinned())
    with pytest.raises(ChainError) as found:
        take(state, spoil(on))
    finding = r.judge_refusal(state, found.value)
    assert (finding and finding.verdict) == verdict
    assert finding is None or finding.verdict.sticky


def test_a_seal_by_another_key_is_bad_seal() -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.ratchet._key = EpochKey(0, b"\x99" * 32)
    on.start()
    on.seal([renewal(1)], Moment(BOOT, 10**9 + EPOCH_NS, 10**18))
    with pytest.raises(ChainError) as found:
        take(i.State(on.pinned()), on.page(0))
    assert r.judge_refusal(i.State(on.pinned()), found.value).verdict == "BAD_SEAL"
    # Without the key only order and cover can be judged, and those hold; the grammar does not.
    with pytest.raises(ChainError) as found:
        take(i.State(on.pinned(seal_key=False)), on.page(0))
    assert found.value.verdict == "BAD_ORDER"


def test_more_epochs_than_can_have_passed_since_the_enrolment_are_bad_seal() -> None:
    on, epochs, since_ns = PulledNode(epoch_ns=EPOCH_NS), EPOCHS_AHEAD_MAX + 1000, 10**18
    on.start()
    on.seal([lease_life(1)[0]], Moment(BOOT, 10**9 + epochs * EPOCH_NS, 10**18))
    state = i.State(msgspec.structs.replace(on.pinned(), printed_ns=since_ns))
    with pytest.raises(ChainError, match="by the reader's clock") as found:
        i.take_page(state, on.page(0), since_ns + 990 * EPOCH_NS)
    assert r.judge_refusal(state, found.value).verdict == "BAD_SEAL"
    later = i.take_page(state, on.page(0), since_ns + 1010 * EPOCH_NS)
    unknown = i.take_page(i.State(on.pinned()), on.page(0), since_ns)
    assert later.after == unknown.after == Head(on.size, later.after.hash)


def test_a_clock_that_was_ahead_at_the_enrolment_makes_no_sound_log_bad() -> None:
    """What it said then is later than now: it is counted from when that is found out."""
    year_ns, now_ns = 365 * 24 * 3600 * 10**9, 10**18
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = i.State(msgspec.structs.replace(on.pinned(), printed_ns=now_ns + year_ns))
    for day in range(0, 420, 20):
        passed_ns = 24 * 3600 * 10**9 * day
        on.seal([lease_life(day)[0]], Moment(BOOT, 10**9 + passed_ns, now_ns + passed_ns))
        page = on.page(state.head.size, state.head.hash)
        state = i.take_page(i.decode_state(i.encode_state(state)), page, now_ns + passed_ns).state
    assert state.verifier is not None and state.verifier.epochs.sealed == 20
    ahead = Moment(BOOT, 10**9 + passed_ns + year_ns, now_ns + passed_ns + year_ns)
    on.seal([], ahead)
    page = on.page(state.head.size, state.head.hash)
    with pytest.raises(ChainError, match="by the reader's clock"):
        i.take_page(state, page, now_ns + passed_ns)
    assert i.take_page(state, page, ahead.wall_ns).state.verifier.epochs.sealed == 21


def test_every_flipped_bit_of_a_page_is_found() -> None:
    on = node(1)
    page = on.page(0)
    state = i.State(on.pinned())
    good = take(state, page)
    for at in range(len(page) * 8):
        spoilt = bytearray(page)
        spoilt[at // 8] ^= 1 << at % 8
        try:
            taken = i.take_page(state, bytes(spoilt), 1)
        except ChainError:
            continue
        # Only a checksum outside the hash may differ: counted, and the record holds.
        assert taken.state.head == good.state.head
        assert taken.state.verifier.crc_damaged == 1


def test_clones_and_restores_are_told_from_what_was_pulled() -> None:
    on = node()
    state = pull(on, i.State(on.pinned()))
    twin = on.clone()
    live(on, 50)
    live(twin, 51)
    ahead = pull(on, state)
    problem = twin.page(ahead.head.size, ahead.head.hash)
    assert r.judge_problem(ahead, problem).verdict == "FORK"
    # Same size, and not compared by the node: two signed trees of one size.
    with pytest.raises(ChainError) as found:
        take(ahead, twin.trailer(ahead.head.size, head=ahead.head.hash))
    assert r.judge_refusal(ahead, found.value).verdict == "FORK"
    on.cut(state.head.size)
    finding = r.judge_problem(ahead, on.page(ahead.head.size, ahead.head.hash))
    assert finding.verdict == "ROLLBACK" and finding.note == on.note()
    on.min_seq = on.size
    finding = r.judge_problem(i.State(on.pinned()), on.page(0, bytes(32)))
    assert finding.verdict == "GAP"


def test_what_says_nothing_about_the_log() -> None:
    state = i.State(node().pinned())
    for status in (400, 403, 408, 429, 500, 503):
        assert r.judge_problem(state, r.Problem(status)) is None
    assert r.judge_problem(state, r.Problem(404)).verdict == "NEW_LOG"


def test_silence_is_stale_after_two_epochs_and_grace() -> None:
    state = i.State(node(epoch_ns=EPOCH_NS).pinned())
    second = 10**9
    assert r.judge_silence(state, 0, 10**18) is None
    assert r.judge_silence(state, second, 151 * second) is None
    assert r.judge_silence(state, second, 152 * second).verdict == "STALE"


def test_what_was_sealed_while_our_clock_was_ahead_was_sealed_by_now() -> None:
    second = 10**9
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    first = i.State(on.pinned())
    ahead = i.noted(first, take(first, on.page(0)).state, 9_000 * second)
    heard = i.noted(ahead, take(ahead, on.trailer(on.size)).state, 100 * second)
    assert heard.sealed_ns == 100 * second
    again = i.noted(heard, take(heard, on.trailer(on.size)).state, 252 * second)
    assert r.judge_silence(again, 252 * second, 252 * second).verdict == "STALE"


def test_a_log_that_is_heard_of_and_seals_nothing_is_stale() -> None:
    """Whoever has the node keeps it answering, and stops the log."""
    second = 10**9
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    first = i.State(on.pinned())
    state = i.noted(first, take(first, on.page(0)).state, second)
    assert r.judge_silence(state, 151 * second, 151 * second) is None
    on.clock = lambda: 1
    heard = i.noted(state, take(state, on.trailer(on.size)).state, 152 * second)
    finding = r.judge_silence(heard, 152 * second, 152 * second)
    assert finding.verdict == "STALE" and "has sealed no epoch for 151 s" in finding.why
    on.seal([], Moment(BOOT, moment_at(0).boot_ns + EPOCH_NS, 10**18))
    sealed = i.noted(heard, take(heard, on.page(heard.head.size)).state, 152 * second)
    assert r.judge_silence(sealed, 152 * second, 152 * second) is None
