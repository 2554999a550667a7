# SPDX-License-Identifier: Apache-2.0
"""Which device nodes reach a GPU, from the driver's own lists, and which of them a lease opens."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from leased.hardware.gpu.calls import Guests
from leased.hardware.gpu.detaching import nodes_of_driver
from leased.hardware.gpu.facts import target_of
from leased.hardware.gpu.nodes import (
    Majors,
    Nodes,
    by_number,
    driver_majors,
    drm_nodes,
    find_nodes,
    make_capabilities,
    parse_capabilities,
    parse_majors,
)
from leased.hardware.gpu.sights import WORKER_COMM, is_guest, is_worker
from leased.hardware.verbs import ACCESS_READ, ACCESS_WRITE, DEVICE_CHAR
from leased.hardware.worker import COMM
from leased.terms.errors import DeviceError
from tests.doubles.gpu import gpu, instance, opener

RW = ACCESS_READ | ACCESS_WRITE
NOW = """Character devices:
  1 mem
195 nvidia
195 nvidiactl
195 nvidia-modeset
234 nvidia-nvswitch
235 nvidia-caps-imex-channels
236 nvidia-caps
508 nvidia-uvm

Block devices:
195 nvidia-uvm
  7 loop
"""
MINORS = """config 1
monitor 2
gpu3/gi7/access 66
gpu3/gi7/ci0/access 67
gpu3/gi70/access 99
"""


def test_majors_come_from_the_character_devices_and_older_names_count() -> None:
    assert parse_majors(NOW) == Majors(195, 508, 236)
    assert parse_majors("Character devices:\n195 nvidia-frontend\n") == Majors(195)
    assert parse_majors("Character devices:\n  1 mem\n") == Majors()


def test_whoever_has_anything_of_the_driver_keeps_it_loaded(tmp_path: Path) -> None:
    """A fabric manager has a switch's node, a display server a GPU's display: neither was seen."""
    assert driver_majors(NOW) == {
        "nvidia": 195,
        "nvidiactl": 195,
        "nvidia-modeset": 195,
        "nvidia-nvswitch": 234,
        "nvidia-caps-imex-channels": 235,
        "nvidia-caps": 236,
        "nvidia-uvm": 508,
    }
    card = tmp_path / "sys/bus/pci/devices/0000:1b:00.0/drm/card1/dev"
    for path, text in ((tmp_path / "proc/devices", NOW), (card, "226:1\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "sys/bus/pci/drivers/nvidia/0000:1b:00.0").mkdir(parents=True)
    found = set(nodes_of_driver(tmp_path))
    assert {(195, 0), (195, 254), (234, 255), (235, 2047), (508, 0), (226, 1)} <= found
    assert (7, 0) not in found and (1, 3) not in found


def test_capabilities_are_found_by_their_whole_name() -> None:
    found = parse_capabilities(MINORS)
    assert found["gpu3/gi7/access"] == 66 and found["gpu3/gi70/access"] == 99
    assert parse_capabilities("gpu0/gi1/access\nnonsense\n") == {}


def test_a_whole_gpu_opens_its_own_node_and_the_two_shared_ones(tmp_path: Path) -> None:
    root = host(tmp_path, {})
    nodes = by_number(target_of(gpu(0)), root)
    assert nodes.rules() == (
        (DEVICE_CHAR, RW, 195, 3),
        (DEVICE_CHAR, RW, 195, 255),
        (DEVICE_CHAR, RW, 508, 0),
    )
    # Nobody may have the GPU's own node when it is free; the shared ones everybody has.
    assert nodes.sought(target_of(gpu(0))).nodes == ((195, 3),)


def test_a_mig_device_opens_its_two_capabilities_to_read_and_no_others(tmp_path: Path) -> None:
    root = host(tmp_path, {})
    one = target_of(gpu(0), instance(0))
    nodes = by_number(one, root)
    assert nodes.rules()[3:] == (
        (DEVICE_CHAR, ACCESS_READ, 236, 66),
        (DEVICE_CHAR, ACCESS_READ, 236, 67),
    )
    assert nodes.sought(one).nodes == ((195, 3), (236, 66), (236, 67))
    assert nodes.sought(one).names == ("nvidia3", "nvidia-cap66", "nvidia-cap67")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (NOW.replace("508 nvidia-uvm\n", "").replace("195 nvidia-uvm\n", ""), "nvidia-uvm"),
        ("Character devices:\n  1 mem\n", "not loaded"),
        (NOW.replace("236 nvidia-caps\n", ""), "nvidia-caps"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, why: str) -> None:
    root = host(tmp_path, {"proc/devices": text})
    with pytest.raises(DeviceError, match=why):
        by_number(target_of(gpu(0), instance(0)), root)


def test_an_instance_that_is_gone_has_no_capability(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="gpu3/gi8/access"):
        by_number(target_of(gpu(0), instance(1)), host(tmp_path, {}))


def test_stand_ins_are_what_stat_says_they_are(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name, real in (("nvidia3", "full"), ("nvidiactl", "zero"), ("nvidia-uvm", "null")):
        (tmp_path / "dev" / name).symlink_to(f"/dev/{real}")
    nodes = find_nodes(target_of(gpu(0)), tmp_path)
    assert nodes.gpu == (1, 7) and nodes.shared == ((1, 5), (1, 3))
    (tmp_path / "dev/nvidia3").unlink()
    (tmp_path / "dev/nvidia3").write_text("a file")
    with pytest.raises(DeviceError, match="no character device"):
        find_nodes(target_of(gpu(0)), tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="not proven: nodes of capabilities (not root)")
def test_a_capability_that_nobody_has_wanted_yet_is_made(tmp_path: Path) -> None:
    """By another driver's number there, it is made anew; of ours, it stays as it is."""
    folder = tmp_path / "nvidia-caps"
    nodes = Nodes((195, 0), (), ((1, 3), (1, 5)), ())
    make_capabilities(nodes, folder)
    made = {path.name: path.stat() for path in folder.iterdir()}
    assert {name: one.st_rdev for name, one in made.items()} == {
        "nvidia-cap3": os.makedev(1, 3),
        "nvidia-cap5": os.makedev(1, 5),
    }
    assert {stat.S_IMODE(one.st_mode) for one in made.values()} == {0o444}
    (folder / "nvidia-cap5").unlink()
    os.mknod(folder / "nvidia-cap5", stat.S_IFCHR, os.makedev(1, 7))
    make_capabilities(nodes, folder)
    assert (folder / "nvidia-cap5").stat().st_rdev == os.makedev(1, 5)
    assert (folder / "nvidia-cap3").stat().st_ino == made["nvidia-cap3"].st_ino
    with pytest.raises(DeviceError, match="nvidia-cap3 is not there and cannot be made"):
        make_capabilities(nodes, tmp_path / "nowhere/nvidia-caps")


def test_display_nodes_of_the_same_gpu_are_looked_for_too(tmp_path: Path) -> None:
    drm = "sys/bus/pci/devices/0000:10:00.0/drm"
    root = host(tmp_path, {f"{drm}/card1/dev": "226:1\n", f"{drm}/renderD129/dev": "226:129\n"})
    (root / drm / "card1-DP-1").mkdir()
    assert drm_nodes("0000:10:00.0", root) == ((226, 1), (226, 129))
    assert drm_nodes("0000:11:00.0", root) == ()
    target = target_of(gpu(0, other_nodes=((226, 1),)))
    assert (226, 1) in by_number(target, root).sought(target).nodes
    assert not any(rule.major == 226 for rule in by_number(target, root).rules())


def test_workers_know_each_other_by_their_parent() -> None:
    assert is_worker(opener(parent=42, name=WORKER_COMM), 42)
    assert not is_worker(opener(parent=43, name=WORKER_COMM), 42)
    assert not is_worker(opener(parent=42), 42)
    assert WORKER_COMM == COMM


def test_guests_are_the_hosts_own_daemons_and_neighbours_on_the_same_gpu(tmp_path: Path) -> None:
    nodes = by_number(target_of(gpu(0), instance(0)), host(tmp_path, {}))
    guests = Guests((), ("nv-hostengine",), ("/leased/aa",))
    assert is_guest(opener(uid=0, name="nv-hostengine"), nodes, guests)
    assert not is_guest(opener(uid=1000, name="nv-hostengine"), nodes, guests)
    assert not is_guest(opener(uid=0, name=WORKER_COMM), nodes, guests)
    theirs = Guests((), ("nvidia-persiste@nobody", "nvidia-persiste@nvpd-of-nowhere"))
    daemon = pwd.getpwnam("nobody").pw_uid
    assert is_guest(opener(uid=daemon, name="nvidia-persiste"), nodes, theirs)
    assert not is_guest(opener(uid=daemon + 1, name="nvidia-persiste"), nodes, theirs)
    assert not is_guest(opener(uid=0, name="nvidia-persiste"), nodes, theirs)
    assert is_guest(opener(cgroup="/leased/aa"), nodes, guests)
    assert is_guest(opener(cgroup="/leased/aa/own"), nodes, guests)
    assert not is_guest(opener(cgroup="/leased/aab"), nodes, guests)
    # A neighbour has the GPU's node by right, never somebody else's capability.
    assert not is_guest(opener(cgroup="/leased/aa", node=(236, 66)), nodes, guests)


# ---- a host made of files ------------------------------------------------------------------------


def host(root: Path, files: dict[str, str]) -> Path:
    for path, text in {
        "proc/devices": NOW,
        "proc/driver/nvidia-caps/mig-minors": MINORS,
        **files,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root
