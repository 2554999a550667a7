# SPDX-License-Identifier: Apache-2.0
"""Epoch seals: when they are made, what they say, and everything that does not hold."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from leased.chain.canonical import decode
from leased.chain.epochs import (
    EPOCHS_AHEAD_MAX,
    LIFE_NS,
    REBOOT_EPOCHS_MAX,
    EpochKey,
    Ratchet,
    first_epoch,
    latest_epoch,
    message,
    next_epoch,
)
from leased.chain.head import GENESIS
from leased.chain.record import hash_prefix, parse_frame
from leased.chain.sealer import Sealer
from leased.chain.tree import EMPTY
from leased.chain.verdict import BAD_SEAL
from leased.chain.verifier import Verifier, verify
from leased.terms.errors import ChainError
from leased.terms.event import EpochSealed, Event, NodeStarted
from leased.terms.identity import BootId
from leased.terms.moment import NS_PER_S, Moment
from tests.doubles.logs import CountedEntropy, renewal, started

LOG = b"l" * 16
MINUTE = 60 * NS_PER_S
KEY = EpochKey(0, b"k" * 32)
BOOT, OTHER_BOOT = started().boot_id, BootId(b"\x0b" * 16)
WALL = 1_790_000_000 * NS_PER_S


def at(seconds: float, boot_id: BootId = BOOT, *, wall_s: float | None = None) -> Moment:
    wall = seconds if wall_s is None else wall_s
    return Moment(boot_id, int(seconds * NS_PER_S), WALL + int(wall * NS_PER_S))


class Chain:
    """A sealed chain in the making."""

    def __init__(self, ratchet: Ratchet | None = None) -> None:
        self.ratchet = ratchet or Ratchet(LOG, first_epoch(at(10), MINUTE), KEY, MINUTE)
        self.sealer = Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy(), ratchet=self.ratchet)
        self.frames: list[bytes] = []
        self.number = 0

    def add(self, moment: Moment, count: int = 1, first: Event | None = None) -> Chain:
        items: list[tuple[Event, Moment]] = [] if first is None else [(first, moment)]
        for _ in range(count):
            self.number += 1
            items.append((renewal(self.number), moment))
        batch = self.sealer.seal(items, moment=moment)
        assert len(batch.hashes) == len(batch.sequences) == len(items)
        self.frames.append(batch.frames)
        return self

    def verified(self, key: EpochKey | None = KEY, frames: Sequence[bytes] | None = None):
        verifier = Verifier(LOG, epoch_ns=MINUTE, seal_key=key)
        return verify(self.frames if frames is None else frames, verifier)

    def seals(self) -> list[EpochSealed]:
        found, data, offset = [], b"".join(self.frames), 0
        while offset < len(data):
            record = parse_frame(data, offset, hash_prefix(LOG))
            offset += record.frame_bytes
            event = decode(record.kind, record.schema, record.body)
            if isinstance(event, EpochSealed):
                found.append(event)
        return found


def three_epochs() -> Chain:
    return Chain().add(at(10), 2, started()).add(at(65)).add(at(71), 3).add(at(140), 0).add(at(150))


def test_an_epoch_is_sealed_at_the_head_of_the_first_batch_after_it() -> None:
    chain = three_epochs()
    first, second = chain.seals()
    assert (first.epoch, first.first_seq, first.size) == (0, 0, 4)
    assert (first.begin_ns, first.end_ns) == (10 * NS_PER_S, 70 * NS_PER_S)
    assert (second.epoch, second.first_seq, second.size) == (1, 4, 8)
    assert (second.begin_ns, second.end_ns, second.skipped) == (70 * NS_PER_S, 130 * NS_PER_S, 0)
    found = chain.verified()
    assert (found.seals, found.seals_proven, found.clock_breaks) == (2, 2, 0)


def test_an_empty_epoch_is_sealed_too() -> None:
    chain = Chain().add(at(10), 1, started()).add(at(70), 0).add(at(130), 0).add(at(190), 0)
    assert [seal.epoch for seal in chain.seals()] == [0, 1, 2]
    assert chain.verified().seals_proven == 3


def test_nobody_ran_for_a_while_is_one_seal() -> None:
    chain = Chain().add(at(10), 1, started()).add(at(10 + 5 * 60 + 1)).add(at(10 + 6 * 60))
    first, second = chain.seals()
    assert (first.epoch, first.skipped, second.epoch, second.skipped) == (0, 4, 5, 0)
    assert chain.ratchet.key == KEY.evolved(6)
    assert chain.verified().seals_proven == 2


def test_keys_go_one_way_and_stay_out_of_sight() -> None:
    assert KEY.evolved(3) == KEY.evolved(1).evolved(2)
    assert KEY.evolved(1).key not in (KEY.key, KEY.evolved(2).key)
    assert KEY.key.hex() not in repr(KEY) and repr(KEY.key) not in repr(KEY)


def test_whoever_was_enrolled_later_proves_from_there_on() -> None:
    chain = three_epochs()
    found = chain.verified(KEY.evolved(1))
    assert (found.seals, found.seals_proven) == (2, 1)
    assert chain.verified(None).seals_proven == 0


@pytest.mark.parametrize("key", [EpochKey(0, b"x" * 32), EpochKey(1, b"k" * 32)])
def test_a_seal_by_another_key_does_not_hold(key: EpochKey) -> None:
    with pytest.raises(ChainError, match="not made with the key of epoch") as refused:
        three_epochs().verified(key)
    assert refused.value.verdict == BAD_SEAL


@pytest.mark.parametrize("field", [f for f in EpochSealed.__struct_fields__ if f != "event_id"])
def test_the_mac_covers_every_field(field: str) -> None:
    [seal, _] = three_epochs().seals()
    value = getattr(seal, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    edited = msgspec.structs.replace(seal, **{field: other})
    changed = message(LOG, edited) != message(LOG, seal)
    assert changed or edited.tag != seal.tag


# ---- what does not hold, whoever looks --------------------------------------------------------


def rewritten(chain: Chain, **edits: int) -> list[bytes]:
    """The chain sealed anew by somebody who has the node but no key of an earlier epoch, with the
    first seal edited."""

    class Edited(Ratchet):
        def seal(self, event_id: bytes, size: int, root: bytes, moment: Moment) -> EpochSealed:
            made = super().seal(event_id, size, root, moment)
            if made.epoch:
                return made
            shifted = {name: getattr(made, name) + step for name, step in edits.items()}
            return msgspec.structs.replace(made, **shifted)

    forged = Chain(Edited(LOG, first_epoch(at(10), MINUTE), KEY, MINUTE))
    forged.add(at(10), 2, started()).add(at(65)).add(at(71), 3).add(at(140), 0).add(at(150))
    return forged.frames


@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ({"epoch": 1}, "epoch 1 is sealed where epoch 0 belongs"),
        ({"skipped": 1}, "it covers 60000000000 ns and not 120000000000"),
        ({"size": -1}, "stands at record 4"),
        ({"first_seq": 1}, "it begins at record 1"),
        ({"end_ns": 5}, "it covers|it begins"),
    ],
)
def test_what_a_seal_must_say(edits: dict[str, int], why: str) -> None:
    chain = Chain()
    with pytest.raises(ChainError, match=why) as refused:
        chain.verified(None, rewritten(chain, **edits))
    assert refused.value.verdict == BAD_SEAL


def test_a_log_that_goes_on_without_seals_does_not_hold() -> None:
    unsealed = Sealer(LOG, GENESIS, EMPTY, 2, entropy=CountedEntropy())
    frames = [unsealed.seal([(started(), at(10)), (renewal(1), at(11))]).frames]
    frames.append(unsealed.seal([(renewal(2), at(69))]).frames)
    assert Chain().verified(None, frames).seals == 0
    frames.append(unsealed.seal([(renewal(3), at(70))]).frames)
    with pytest.raises(ChainError, match="outside the epoch") as refused:
        Chain().verified(None, frames)
    assert (refused.value.verdict, refused.value.sequence) == (BAD_SEAL, 3)


def test_a_record_dated_back_into_a_sealed_epoch_does_not_hold() -> None:
    chain = three_epochs().add(at(69))
    with pytest.raises(ChainError, match="outside the epoch"):
        chain.verified()


@pytest.mark.parametrize("apart", [False, True])
def test_nothing_stands_before_the_end_that_its_seal_claims(apart: bool) -> None:
    """Whoever has no key finds this, too: a seal made early, for an epoch that is not over."""

    class Early(Ratchet):
        def seal(self, event_id: bytes, size: int, root: bytes, moment: Moment) -> EpochSealed:
            made = super().seal(event_id, size, root, moment)
            return msgspec.structs.replace(made, skipped=1, end_ns=made.end_ns + MINUTE)

    chain = Chain(Early(LOG, first_epoch(at(10), MINUTE), KEY, MINUTE)).add(at(10), 2, started())
    if apart:
        chain.add(at(71), 0)
        # Between the seal and what follows another verifier takes over, as a collector's does.
        verifier, later = (Verifier(LOG, epoch_ns=MINUTE) for _ in range(2))
        verifier.feed(b"".join(chain.frames))
        later.resume(verifier.carried())
        rest = chain.add(at(72)).frames[-1:]
    else:
        later, rest = Verifier(LOG, epoch_ns=MINUTE), chain.add(at(71)).frames
    with pytest.raises(ChainError, match="outside the epoch that is open there") as refused:
        verify(rest, later)
    assert (refused.value.verdict, refused.value.sequence) == (BAD_SEAL, 4)


def test_a_verifier_may_start_anywhere() -> None:
    chain = three_epochs()
    verifier = Verifier(LOG)
    verifier.feed(chain.frames[0])
    half = verifier.verified()
    later = Verifier(LOG, half.head, half.frontier, batch=half.batch, epoch_ns=MINUTE, seal_key=KEY)
    assert verify(chain.frames[1:], later).seals_proven == 2


# ---- over a reboot -----------------------------------------------------------------------------


def reboot(chain: Chain, moment: Moment) -> Chain:
    """What opening the log after a reboot does."""
    seals = chain.seals()
    opened = next_epoch(seals[-1], MINUTE) if seals else chain.ratchet.open
    chain.ratchet = Ratchet(LOG, opened, chain.ratchet.key, MINUTE)
    chain.sealer.ratchet = chain.ratchet
    restarted = NodeStarted(started().event_id, moment.boot_id, b"\x40" * 16, 2, "0", "ext4", "")
    return chain.add(moment, 1, restarted)


def test_an_epoch_goes_on_over_a_quick_reboot() -> None:
    chain = Chain().add(at(10), 1, started()).add(at(71))
    reboot(chain, at(3, OTHER_BOOT, wall_s=90))
    chain.add(at(42, OTHER_BOOT, wall_s=129)).add(at(43, OTHER_BOOT, wall_s=130))
    assert [(seal.epoch, seal.skipped) for seal in chain.seals()] == [(0, 0), (1, 0)]
    assert chain.seals()[1].end_ns == 43 * NS_PER_S
    assert chain.verified().seals_proven == 2


def test_an_epoch_that_ended_while_nobody_ran_is_sealed_before_the_next_start() -> None:
    chain = Chain().add(at(10), 1, started()).add(at(71))
    reboot(chain, at(3, OTHER_BOOT, wall_s=70 + 200))
    chain.add(at(3 + 41, OTHER_BOOT, wall_s=70 + 241))
    second, third = chain.seals()[1:]
    assert (second.epoch, second.skipped, second.boot_id) == (1, 2, BOOT)
    assert (third.epoch, third.begin_ns) == (4, 3 * NS_PER_S)
    assert chain.verified().seals_proven == 3


def test_a_wall_clock_that_went_back_stretches_an_epoch_and_skips_none() -> None:
    chain = Chain().add(at(10), 1, started()).add(at(71))
    reboot(chain, at(3, OTHER_BOOT, wall_s=-1_000_000))
    chain.add(at(63, OTHER_BOOT, wall_s=-999_940))
    assert [(seal.epoch, seal.skipped) for seal in chain.seals()] == [(0, 0), (1, 0)]
    assert chain.verified().seals_proven == 2


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize(
    ("edits", "why"),
    [
        ({"begin_ns": 1 << 63}, "no room"),
        ({"end_ns": (1 << 64) - 1}, "no room"),
        ({"end_wall_ns": 1 << 63}, "no room"),
        ({"skipped": 1 << 63}, "no log lasts so long"),
        ({"skipped": LIFE_NS // MINUTE}, "no log lasts so long"),
        ({"skipped": -1}, "counted from 0"),
    ],
)
def test_numbers_that_no_clock_says_are_refused_and_not_reckoned_with(
    edits: dict[str, int], why: str, key: EpochKey | None
) -> None:
    """After a reboot the length of an epoch says nothing: these come so far."""

    class Edited(Ratchet):
        def seal(self, event_id: bytes, size: int, root: bytes, moment: Moment) -> EpochSealed:
            made = super().seal(event_id, size, root, moment)
            return msgspec.structs.replace(made, **edits) if made.epoch else made

    chain = Chain(Edited(LOG, first_epoch(at(10), MINUTE), KEY, MINUTE)).add(at(10), 1, started())
    chain.add(at(71))
    restarted = NodeStarted(started().event_id, OTHER_BOOT, b"\x40" * 16, 2, "0", "ext4", "")
    chain.add(at(3, OTHER_BOOT, wall_s=90), 1, restarted).add(at(44, OTHER_BOOT, wall_s=131))
    with pytest.raises(ChainError, match=why) as refused:
        chain.verified(key)
    assert refused.value.verdict == BAD_SEAL


def test_a_wall_clock_decades_ahead_leaves_epochs_to_go_on_with() -> None:
    long_ns, ahead_s = NS_PER_S << 20, 5 * 366 * 86400
    ahead = Ratchet(LOG, first_epoch(at(10), long_ns), KEY, long_ns)
    epochs, last = LIFE_NS // long_ns, 0
    for number in range(8):
        last = (ahead.open or first_epoch(at(10), long_ns)).epoch
        boot = BootId(number.to_bytes(16, "big"))
        sealed = ahead.seal(bytes(16), 0, bytes(32), at(3, boot, wall_s=ahead_s * (number + 1)))
        assert ahead.open is not None
        assert last + sealed.skipped + 1 == ahead.open.epoch < epochs
        assert not ahead.due(at(4, boot, wall_s=ahead_s * (number + 1) + 1))


def test_over_a_reboot_few_epochs_end_and_every_reader_follows() -> None:
    """How long it was off only the wall clock says, which may say anything."""
    chain = Chain().add(at(10), 1, started())
    reboot(chain, at(3, OTHER_BOOT, wall_s=10 * 366 * 86400))
    chain.add(at(64, OTHER_BOOT, wall_s=10 * 366 * 86400 + 61))
    first, second = chain.seals()
    assert first.skipped == REBOOT_EPOCHS_MAX - 1 and second.epoch == REBOOT_EPOCHS_MAX
    assert second.begin_wall_ns > WALL + 10 * 365 * 86400 * NS_PER_S, "labels are of the wall clock"
    now_ns = WALL + 120 * NS_PER_S
    verifier = Verifier(
        LOG,
        epoch_ns=MINUTE,
        seal_key=KEY,
        latest_epoch=latest_epoch(0, WALL, now_ns, MINUTE),
    )
    assert verify(chain.frames, verifier).seals_proven == 2


def test_epochs_that_cannot_have_ended_are_not_reckoned_with() -> None:
    """Whoever has the node may seal a skip of as many as a log can have: the keys of all would be
    reckoned for nothing."""

    class Skipping(Ratchet):
        def seal(self, event_id: bytes, size: int, root: bytes, moment: Moment) -> EpochSealed:
            made = super().seal(event_id, size, root, moment)
            return msgspec.structs.replace(made, skipped=skipped) if made.epoch else made

    class Counted(EpochKey, frozen=True):
        def evolved(self, epochs: int) -> EpochKey:
            steps.append(epochs)
            return Counted(self.epoch + epochs, super().evolved(epochs).key)

    day_ns = 86400 * NS_PER_S
    latest = latest_epoch(0, WALL, WALL + day_ns, MINUTE)
    assert latest == 1440 + EPOCHS_AHEAD_MAX
    wild = LIFE_NS // MINUTE - 3
    for skipped, refused in ((latest - 1, True), (latest - 2, False), (wild, True)):  # noqa: B007
        steps: list[int] = []
        key = Counted(0, KEY.key)
        chain = Chain(Skipping(LOG, first_epoch(at(10), MINUTE), KEY, MINUTE))
        chain.add(at(10), 1, started()).add(at(71))
        restarted = NodeStarted(started().event_id, OTHER_BOOT, b"\x40" * 16, 2, "0", "ext4", "")
        chain.add(at(3, OTHER_BOOT, wall_s=90), 1, restarted).add(at(44, OTHER_BOOT, wall_s=131))
        verifier = Verifier(LOG, epoch_ns=MINUTE, seal_key=key, latest_epoch=latest)
        with pytest.raises(ChainError) as error:
            verify(chain.frames, verifier)
        assert error.value.verdict == BAD_SEAL, "its MAC is of another skip"
        assert ("by the reader's clock" in str(error.value)) is refused
        assert sum(steps) <= 1, "no key beyond that of the seal that says so"
