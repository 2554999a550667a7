# SPDX-License-Identifier: Apache-2.0
"""A real drive's admin commands, as the emulated machine's drives answer them: namespaces that are
attached and detached, erased and zeroed; and what such a drive cannot do, refused by it and told.

Not proven here: Sanitize, cryptographic erase, and making namespaces, which QEMU's drives refuse.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from leased.hardware.block import calls, drives, erasing, mapping, verbs
from leased.hardware.block.arranging import arrange
from leased.hardware.block.calls import Arrange, Clean
from leased.hardware.block.contents import read_each, write_each
from leased.hardware.block.drives import Erase
from leased.hardware.block.examining import examine_drive
from leased.hardware.block.namespaces import Namespace, find_namespace, list_namespaces
from leased.hardware.block.opening import controller_of, opened
from leased.terms.errors import DeviceError
from leased.terms.teardown import TeardownStep
from tests.doubles.host import not_proven

pytestmark = pytest.mark.vm

BESIDE, OURS = "5254000000a10001", "5f6c1fd60cf24a59bd3451bd59a1a003"
"""Of one drive; ours is detached, and is the third."""

NSID = 3
MARKER = b"\xa5" * 4096
HANGS_S, MS = 120, 1_000_000


def eventually(holds: Callable[[], object]) -> object:
    """The kernel tells nobody here when a namespace came or went."""
    end = time.monotonic() + HANGS_S
    while not (found := holds()):
        assert time.monotonic() < end
        select.select([], [], [], 0.02)
    return found


@pytest.fixture
def beside() -> Namespace:
    """Its neighbour, which is always there."""
    found = find_namespace(BESIDE)
    if found is None:
        not_proven("what an NVMe drive answers", "needs the machine of tests/vm")
    assert found is not None
    return found


@pytest.fixture
def ours(beside: Namespace) -> Iterator[Namespace]:
    """Attached for the test, and detached after it."""
    done = arrange(Arrange(((beside.nqn, NSID), ("nqn.of.nobody", 1)), ()))
    assert done.done == ((beside.nqn, NSID),)
    [trouble] = done.troubles
    assert trouble.startswith("nqn.of.nobody/1 ") and "no drive of that NQN" in trouble
    found = eventually(lambda: find_namespace(OURS))
    assert isinstance(found, Namespace)
    yield found
    left = find_namespace(OURS)
    if left is not None:
        with controller_of(left) as controller:
            erasing.detach(controller, left)
    eventually(lambda: find_namespace(OURS) is None)


def clean(
    one: Namespace,
    *ways: Erase,
    uuid: str = "LEASED-" + "0" * 32 + "-0",
    detach_stuck: bool = False,
) -> Clean:
    return Clean(
        uuid=uuid,
        name="lease-" + "0" * 32 + "-0",
        identity=one.identity,
        size_bytes=one.size_bytes,
        raw=True,
        ways=ways,
        detach_stuck=detach_stuck,
        seed=b"seed",
        canaries=8,
        settle_ns=HANGS_S * 1000 * MS,
        erase_ns=HANGS_S * 1000 * MS,
    )


def mark(one: Namespace) -> None:
    """Leave something on it."""
    with opened(one, os.O_RDWR | os.O_DIRECT) as fd:
        write_each(fd, [(1 << 20, MARKER)], len(MARKER))


def marked(one: Namespace) -> bool:
    with opened(one, os.O_RDONLY | os.O_DIRECT) as fd:
        [(_, found)] = read_each(fd, [1 << 20], len(MARKER))
        return found == MARKER


def test_what_is_attached_is_not_attached_again(ours: Namespace) -> None:
    assert ours.nsid == NSID
    assert arrange(Arrange(((ours.nqn, NSID),), ())).done == ()
    assert arrange(Arrange(((ours.nqn, 77),), ())).done == (), "the drive has none of that number"


@pytest.mark.parametrize("way", [Erase.FORMAT, Erase.ZERO])
def test_a_namespace_is_erased_and_its_neighbour_is_not(
    way: Erase, ours: Namespace, beside: Namespace
) -> None:
    for one in (ours, beside):
        mark(one)
    done = erasing.clean(clean(ours, way))
    assert done.clean and done.way == way.value, done
    assert not marked(ours) and marked(beside)
    assert erasing.clean(clean(beside, Erase.ZERO)).clean


def test_a_namespace_whose_mapping_cannot_be_cut_is_taken_from_the_host(ours: Namespace) -> None:
    """The mapping has a uuid that device-mapper cannot be asked for."""
    mark(ours)
    unnamed = "LEASED-" + "0" * 200
    kept = erasing.clean(clean(ours, Erase.ZERO, uuid=unnamed))
    [step] = kept.steps
    assert step.step is TeardownStep.OBJECT_REVOKE and step.errno
    assert not kept.clean and find_namespace(OURS) is not None, "only where it is configured"
    with opened(ours, os.O_RDONLY | os.O_DIRECT) as fd:
        done = erasing.clean(clean(ours, Erase.ZERO, uuid=unnamed, detach_stuck=True))
        cut, detached = done.steps
        assert cut.errno == step.errno
        assert (detached.step, detached.errno) == (TeardownStep.RELEASE, 0)
        assert not done.clean, "nothing was erased"
        eventually(lambda: find_namespace(OURS) is None)
        with pytest.raises((OSError, DeviceError)):
            list(read_each(fd, [1 << 20], len(MARKER)))


@pytest.mark.parametrize("raw", [True, False])
def test_whose_number_is_anothers_by_now_is_not_mapped(
    raw: bool, ours: Namespace, beside: Namespace
) -> None:
    """Detached after it was looked at, and its number given to the next that came: the lease had
    that one's data, and no canary told."""
    uuid, name = "LEASED-" + "0" * 32 + "-0", "lease-" + "0" * 32 + "-0"
    asked = calls.Ready(
        uuid, name, OURS, ours.size_bytes, raw, "aes-xts-plain64", 512, 0, b"seed", 8, False
    )
    mark(beside)
    stale = msgspec.structs.replace(ours, number=beside.number)
    try:
        with pytest.raises(DeviceError) as caught:
            mapping.ready(asked, lambda _: stale)
        assert (caught.value.verb, caught.value.errno) == (calls.NOT_BEGUN, errno.ENODEV)
        assert uuid not in mapping.list_ours(calls.Nothing()).uuids and marked(beside)
        assert mapping.ready(asked).number, "looked at again it is ours"
    finally:
        mapping.undo(calls.Undo(uuid, name))
    assert erasing.clean(clean(beside, Erase.ZERO)).clean


def test_who_keeps_64_dead_mappings_open_gets_no_other(beside: Namespace) -> None:
    """As a tenant comes by them: lease after lease, each given back with its descriptor kept."""

    def asked(number: int, uid: int = 1000) -> calls.Ready:
        name = f"{number:032x}-0"
        size_bytes, cipher = beside.size_bytes, "aes-xts-plain64"
        names = (f"LEASED-{name}", f"lease-{name}", beside.identity)
        return calls.Ready(*names, size_bytes, True, cipher, 512, uid, b"seed", 8, False)

    def ready_and_over(number: int, uid: int = 1000) -> int:
        one = asked(number, uid)
        node = f"/dev/dm-{mapping.ready(one, lambda _: beside).number[1]}"
        kept = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        mapping.undo(calls.Undo(one.uuid, one.name))
        return kept

    def ours() -> int:
        return len(mapping.list_ours(calls.Nothing()).uuids)

    kept: list[int] = []
    try:
        for number in range(mapping.KEPT_MAX):
            kept.append(ready_and_over(number))
        assert ours() == mapping.KEPT_MAX
        with pytest.raises(DeviceError, match="uid 1000 keeps 64 .*: close some first") as caught:
            mapping.ready(asked(mapping.KEPT_MAX), lambda _: beside)
        assert (caught.value.verb, caught.value.errno) == (calls.NOT_BEGUN, errno.EUSERS)
        os.close(ready_and_over(mapping.KEPT_MAX, uid=1001))
        os.close(kept.pop())
        eventually(lambda: ours() < mapping.KEPT_MAX)
        kept.append(ready_and_over(mapping.KEPT_MAX + 1))
    finally:
        for fd in kept:
            os.close(fd)
    eventually(lambda: not ours())


def test_what_the_drive_cannot_do_is_its_own_word(beside: Namespace) -> None:
    """It advertises managing namespaces; only the log of the commands' effects tells."""
    with controller_of(beside) as controller:
        can = [way for way, _ in examine_drive(controller).erases]
        assert Erase.FORMAT in can and Erase.ZERO in can
        assert not {Erase.SANITIZE_BLOCK, Erase.SANITIZE_CRYPTO, Erase.CRYPTO} & set(can)
        before = {one.identity for one in list_namespaces()}
        block = drives.SANITIZE_ACTIONS[Erase.SANITIZE_BLOCK]
        refused: dict[str, Callable[[], object]] = {
            "make": lambda: verbs.create_namespace(
                controller, blocks=8, lbaf=0, shared=True, timeout_ms=60_000
            ),
            "delete": lambda: verbs.delete_namespace(controller, nsid=77, timeout_ms=60_000),
            "sanitize": lambda: verbs.begin_sanitize(controller, action=block, timeout_ms=60_000),
        }
        for what, ask in refused.items():
            with pytest.raises(DeviceError) as said:
                ask()
            assert said.value.errno == errno.EREMOTEIO, what
            assert "invalid command opcode" in said.value.detail, what
        assert {one.identity for one in list_namespaces()} == before
    done = arrange(Arrange((), ((beside.nqn, 2, 1 << 20),)))
    assert done.done == () and "the drive cannot" in done.troubles[0], "nor was it asked"
