# SPDX-License-Identifier: Apache-2.0
"""Which namespaces are leased: none by surprise, and each that is not says why."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from leased.hardware.block.calls import Examined, Seen
from leased.hardware.block.config import BlockConfig, Offer
from leased.hardware.block.contents import name_contents
from leased.hardware.block.drives import Drive, Erase, Layout
from leased.hardware.block.namespaces import (
    Controller,
    Namespace,
    find_namespace,
    is_still,
    list_controllers,
    list_namespaces,
)
from leased.hardware.block.survey import candidates, survey, why_silent
from leased.hardware.block.users import Use, find_ours, find_uses
from leased.terms.errors import DeviceError
from leased.terms.resource import Evidence, Health, Resource
from tests.doubles import nvme_trees
from tests.doubles.host import not_proven
from tests.doubles.nvme_trees import partition, qemu, seen, write

LISTED = BlockConfig(namespaces=("aa01",))
UNUSED = BlockConfig(offer=Offer.UNUSED)
DRIVE = Drive(((Erase.FORMAT, False), (Erase.SANITIZE_BLOCK, True), (Erase.ZERO, False)))
FACTS = Examined(DRIVE, Layout(1 << 21, 512, 0, 0, False))


def _offered(one: Namespace, config: BlockConfig, *uses: Use) -> tuple[bool, str]:
    offered, notes = candidates(Seen((one,), uses), config, {})
    return one.identity in offered, " ".join(notes)


def _surveyed(
    config: BlockConfig = LISTED, facts: Examined | str = FACTS, **changed: object
) -> tuple[dict[str, Resource], str]:
    one = seen(**changed)
    found = survey({one.identity: one}, {one.identity: facts}, config, ())
    return {resource.resource_id: resource for resource in found.resources}, " ".join(found.notes)


# ---- the policy --------------------------------------------------------------------------------


def test_as_shipped_no_disk_is_offered() -> None:
    is_offered, why = _offered(seen(), BlockConfig())
    assert not is_offered and "name it in hardware.block.namespaces" in why


@pytest.mark.parametrize("named", ["aa01", "block:aa01", "AA01", "aa-01"])
def test_what_is_named_by_its_identity_is_offered(named: str) -> None:
    assert _offered(seen(), BlockConfig(namespaces=(named,)))[0]


@pytest.mark.parametrize("config", [LISTED, UNUSED])
@pytest.mark.parametrize(
    ("changed", "uses", "why"),
    [
        ({"identity": ""}, (), "no identity"),
        ({"read_only": True}, (), "read-only"),
        ({"lba_bytes": 8192}, (), "8192 bytes"),
        ({"controllers": (Controller("nvme0", 0, "tcp", 0, "live"),)}, (), "over tcp"),
        ({}, (Use((259, 1), "mounted at / (ext4)"),), "mounted at /"),
        ({}, (Use((259, 1), "swap"),), "swap"),
        ({}, (Use((259, 1), "in the array md0"),), "md0"),
        ({}, (Use((259, 1), "behind loop3"),), "loop3"),
        ({"parts": (("nvme0n1p1", (259, 2)),)}, (Use((259, 2), "mounted at /srv (xfs)"),), "/srv"),
    ],
)
def test_what_is_used_or_unfit_is_refused_under_every_policy(
    config: BlockConfig, changed: dict[str, object], uses: tuple[Use, ...], why: str
) -> None:
    is_offered, said = _offered(seen(**changed), config, *uses)
    assert not is_offered and why in said


def test_two_that_call_themselves_the_same_are_both_refused() -> None:
    twins = (seen(), seen(name="nvme1n1", number=(259, 7)))
    offered, notes = candidates(Seen(twins, ()), LISTED, {})
    assert not offered and all("2 namespaces" in note for note in notes)


def test_partitions_are_somebodys_unless_the_operator_says_otherwise() -> None:
    parted = seen(parts=(("nvme0n1p1", (259, 2)),))
    assert not _offered(parted, UNUSED)[0] and _offered(parted, LISTED)[0]


def test_a_namespace_under_a_lease_of_ours_stays_whatever_the_policy_says_now() -> None:
    ours = Use((259, 1), "under the mapping", "LEASED-" + "00" * 16 + "-0")
    assert _offered(seen(), BlockConfig(), ours)[0]
    assert _offered(seen(parts=(("nvme0n1p1", (259, 2)),)), UNUSED, ours)[0]


# ---- what drives say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "changed", "why"),
    [
        (LISTED, {"busy": True}, "exclusively"),
        (LISTED, {"strangers": (3,)}, "not this host's are attached to it: 3"),
        (LISTED, {"layout": Layout(1, 512, 8, 0, False)}, "8 bytes of metadata"),
        (UNUSED, {"contents": "an XFS file system"}, "not blank: an XFS file system"),
    ],
)
def test_what_the_drive_says_against_it(
    config: BlockConfig, changed: dict[str, object], why: str
) -> None:
    resources, notes = _surveyed(config, msgspec.structs.replace(FACTS, **changed))
    assert not resources and why in notes


def test_a_named_namespace_may_hold_something_it_is_overwritten() -> None:
    assert _surveyed(LISTED, msgspec.structs.replace(FACTS, contents="swap space"))[0]


def test_a_drive_that_does_not_answer_is_told_in_its_words() -> None:
    resources, notes = _surveyed(facts="its drive does not answer: errno 110")
    assert not resources and "errno 110" in notes


def test_encrypted_by_the_key_alone_and_raw_only_where_it_is_said() -> None:
    resources, _ = _surveyed()
    assert list(resources) == ["block:aa01"]
    assert dict(resources["block:aa01"].attributes)["erase"] == "key"
    both, _ = _surveyed(msgspec.structs.replace(LISTED, raw=True))
    assert list(both) == ["block:aa01", "block:raw:aa01"]
    assert dict(both["block:raw:aa01"].attributes)["erase"] == "format"


def test_a_class_whose_erasing_the_drive_cannot_do_is_not_offered() -> None:
    wants = msgspec.structs.replace(LISTED, crypt_erase=(Erase.SANITIZE_BLOCK,))
    assert _surveyed(wants)[0]
    resources, notes = _surveyed(wants, msgspec.structs.replace(FACTS, others=(2,)))
    assert not resources and "sanitize-block" in notes


def test_evidence_health_and_place_are_told() -> None:
    [emulated] = _surveyed(model="QEMU NVMe Ctrl")[0].values()
    [real] = _surveyed()[0].values()
    assert (emulated.evidence, real.evidence) == (Evidence.EMULATED, Evidence.NOT_RUN)
    assert (real.health, real.node, real.capacity) == (Health.OK, 0, 1 << 30)
    dead = Controller("nvme0", 0, "pcie", 0, "resetting")
    assert next(iter(_surveyed(controllers=(dead,))[0].values())).health is Health.SICK
    sick = msgspec.structs.replace(FACTS, sick="media is read-only")
    assert next(iter(_surveyed(facts=sick)[0].values())).health is Health.SICK


# ---- sysfs -------------------------------------------------------------------------------------


def test_heads_are_listed_and_paths_are_not(tmp_path: Path) -> None:
    qemu(tmp_path)
    found = list_namespaces(tmp_path)
    assert [(one.name, one.identity, one.size_bytes >> 20, one.lba_bytes) for one in found] == [
        ("nvme0n1", "5254000000a10001", 128, 512),
        ("nvme0n2", "5254000000a10002", 96, 4096),
        ("nvme2n2", "nvme.1b36-6c65617365642d62-51454d55204e564d65204374726c-00000002", 64, 512),
    ]
    assert [one.name for one in found[0].controllers] == ["nvme0", "nvme1"]
    assert (found[0].model, found[0].serial, found[0].node) == ("QEMU NVMe Ctrl", "leased-a", -1)
    assert [one.cntlid for one in list_controllers(found[0].nqn, tmp_path)] == [0, 1]


def test_a_namespace_is_followed_by_identity_and_a_swapped_one_is_noticed(tmp_path: Path) -> None:
    nvme_trees.subsystem(tmp_path, 0, nqn="nqn.a")
    nvme_trees.namespace(tmp_path, 0, 3, number=(259, 9), eui="aa", diskseq="41")
    found = find_namespace("aa", tmp_path)
    assert found is not None and found.name == "nvme0n3" and is_still(found, (259, 9), tmp_path)
    assert find_namespace("bb", tmp_path) is None
    write(tmp_path, {"sys/block/nvme0n3/diskseq": "42"})
    assert not is_still(found, (259, 9), tmp_path)
    assert not is_still(found, (259, 10), tmp_path)


def test_what_goes_away_while_it_is_looked_at_is_not_there(tmp_path: Path) -> None:
    """It was fenced as one that has another size: a stale file handle."""
    nvme_trees.subsystem(tmp_path, 0, nqn="nqn.a")
    place = nvme_trees.namespace(tmp_path, 0, 3, number=(259, 9), eui="aa")
    assert find_namespace("aa", tmp_path) is not None
    (tmp_path / "sys/block" / place / "size").unlink()
    assert find_namespace("aa", tmp_path) is None


def test_one_of_two_that_are_alike_is_nobody(tmp_path: Path) -> None:
    nvme_trees.subsystem(tmp_path, 0, nqn="nqn.a")
    nvme_trees.namespace(tmp_path, 0, 1, number=(259, 1), eui="aa")
    nvme_trees.namespace(tmp_path, 0, 2, number=(259, 2), eui="aa")
    assert find_namespace("aa", tmp_path) is None


# ---- users -------------------------------------------------------------------------------------


def test_everything_on_top_is_found_by_number(tmp_path: Path) -> None:
    nvme_trees.subsystem(tmp_path, 0, nqn="nqn.a")
    disk = nvme_trees.namespace(tmp_path, 0, 1, number=(259, 1), eui="aa")
    partition(tmp_path, disk, 1, (259, 2))
    other = nvme_trees.namespace(tmp_path, 0, 2, number=(259, 3), eui="bb")
    uuid = "LEASED-" + "0f" * 16 + "-0"
    write(
        tmp_path,
        {
            "proc/7/mountinfo": "20 1 259:2 / /srv/a\\040b rw - xfs /dev/nvme0n1p1 rw",
            "proc/9/mountinfo": "21 1 259:3 / / rw - ext4 /dev/root rw",
            "proc/9/comm": "in a mount namespace of its own",
            "proc/swaps": "Filename Type Size Used Priority",
            f"sys/block/{other}/holders/dm-4": "",
            f"sys/block/{other}/holders/md0": "",
            "sys/block/dm-4/dm/uuid": uuid,
            "sys/block/dm-4/dm/name": "lease-0f",
            "sys/block/md0/md/level": "raid1",
        },
    )
    numbers = [number for one in list_namespaces(tmp_path) for number in one.numbers]
    assert find_uses(numbers, tmp_path) == (
        Use((259, 2), "mounted at /srv/a b (xfs)"),
        Use((259, 3), "mounted at / (ext4)"),
        Use((259, 3), "under the mapping lease-0f (LEASED)", uuid),
        Use((259, 3), "in the array md0"),
    )
    assert find_uses([(8, 0)], tmp_path) == ()


def test_what_the_agent_lacks_is_named_where_a_drive_says_nothing() -> None:
    """A unit without it said errno 13, and that the drive does not answer."""
    for verb, number, said in (
        ("nvme_identify", errno.EACCES, "without CAP_SYS_ADMIN: nvme_identify"),
        ("nvme_open", errno.EPERM, "without DeviceAllow= of its unit: nvme_open"),
        ("worker_answer", errno.ETIMEDOUT, "its drive does not answer: worker_answer"),
    ):
        assert said in why_silent(DeviceError(verb, number))


def test_a_mapping_whose_device_has_gone_is_lost(tmp_path: Path) -> None:
    """The kernel keeps the link to what is not there any more, as long as the mapping has it."""
    uuids = {name: f"LEASED-{digit * 32}-0" for name, digit in (("dm-1", "1"), ("dm-2", "2"))}
    uuids |= {"dm-3": f"LEASED-{'3' * 32}-0", "dm-4": "CRYPT-LUKS2-x"}
    write(tmp_path, {f"sys/block/{name}/dm/uuid": uuid for name, uuid in uuids.items()})
    write(tmp_path, {"sys/block/nvme0n1/dev": "259:1", "sys/block/dm-3/slaves/.none": ""})
    for name, lower in (("dm-1", "nvme0n1"), ("dm-2", "nvme0n2"), ("dm-4", "nvme0n2")):
        (tmp_path / f"sys/block/{name}/slaves").mkdir()
        (tmp_path / f"sys/block/{name}/slaves/{lower}").symlink_to(f"../../{lower}")
    ours = (uuids["dm-1"], uuids["dm-2"], uuids["dm-3"])
    assert find_ours(tmp_path) == (ours, (uuids["dm-2"],))


def test_who_mounts_without_end_keeps_nobody_from_looking(tmp_path: Path) -> None:
    """Any user may, in user namespaces of his own: 20 000 mounts took 4 s to read, and two
    namespaces of them had every lease of a namespace fenced at its end."""
    write(
        tmp_path,
        {
            "proc/1/mountinfo": "20 1 259:2 / /srv rw - xfs /dev/nvme0n1p1 rw\n",
            "proc/9/mountinfo": "21 1 259:3 / / rw - ext4 /dev/root rw\n",
            "proc/swaps": "Filename Type Size Used Priority",
            "sys/block/nvme0n1/holders/dm-4": "",
            "sys/block/dm-4/dm/uuid": "LVM-0",
        },
    )
    place = tmp_path / "sys/dev/block/259:1"
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "sys/block/nvme0n1")
    endless = tmp_path / "proc/7/mountinfo"
    endless.parent.mkdir()
    endless.symlink_to("/dev/zero")
    numbers = [(259, 1), (259, 2), (259, 3)]
    assert find_uses(numbers, tmp_path, mounts_ns=50_000_000) == (
        Use((259, 2), "mounted at /srv (xfs)"),
        Use((259, 1), "under the mapping dm-4 (LVM)"),
    )


def test_what_a_mount_calls_its_source_is_believed_of_no_kind_that_anybody_mounts(
    tmp_path: Path,
) -> None:
    """In a user namespace of one's own: each namespace of the host was in use, and a lease of it
    was fenced. A name of odd bytes ended the worker, and one with a line break hid the mount."""
    real = next((one for one in Path("/dev").iterdir() if one.is_block_device()), None)
    if real is None:
        not_proven("what a mount's source is worth", "there is no block device")
    node = tmp_path / "dev/loop"
    node.parent.mkdir()
    node.symlink_to(real)
    status = real.stat()
    number = (os.major(status.st_rdev), os.minor(status.st_rdev))
    lines = [
        "20 1 0:40 / /mnt rw - tmpfs /dev/loop rw",
        "21 1 0:41 / /mnt/\udcff rw - fuse.any /dev/loop rw",
    ]
    path = tmp_path / "proc/7/mountinfo"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines), "utf-8", "surrogateescape")
    assert find_uses([number], tmp_path) == ()
    lines += [
        "22 1 0:42 / /srv rw - btrfs /dev/loop rw",
        f"23 1 {number[0]}:{number[1]} / /m\r\udcff rw - xfs x rw",
    ]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    uses = find_uses([number], tmp_path)
    assert [one.what for one in uses] == ["mounted at /srv (btrfs)", "mounted at /m\r\ufffd (xfs)"]
    assert msgspec.msgpack.encode(uses)


@pytest.mark.parametrize(
    ("at", "magic", "name"),
    [
        (512, b"EFI PART", "a GPT partition table"),
        (0, b"LUKS\xba\xbe\0\2", "a LUKS volume"),
        (1080, b"\x53\xef", "an ext file system"),
        (0x10040, b"_BHRfS_M", "a Btrfs file system"),
        (4086, b"SWAPSPACE2", "swap space"),
        (77, b"x", "data of some kind"),
    ],
)
def test_contents_are_named_and_only_zeroes_are_nothing(at: int, magic: bytes, name: str) -> None:
    data = bytearray(256 << 10)
    assert name_contents(bytes(data)) == ""
    data[at : at + len(magic)] = magic
    assert name_contents(bytes(data)) == name
