# SPDX-License-Identifier: Apache-2.0
"""The machine itself: everything that the other modules of this phase stand on is there and works,
so that a failure of theirs is theirs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import host
import pytest

BLOCK = Path("/sys/block")


def read(path: str | Path) -> str:
    return Path(path).read_text().strip()


def test_the_namespaces_have_the_names_they_were_given() -> None:
    def wwids() -> set[str]:
        return {read(path) for path in BLOCK.glob("nvme*n*/wwid")}

    assert {
        "uuid.5f6c1fd6-0cf2-4a59-bd34-51bd59a1a001",
        "eui.5254000000a10002",
        "uuid.5f6c1fd6-0cf2-4a59-bd34-51bd59b1b001",
    } < wwids()
    assert [wwid for wwid in wwids() if wwid.startswith("nvme.1b36-")], "by serial number and nsid"
    sizes = {read(path.parent / "queue/logical_block_size") for path in BLOCK.glob("nvme*/wwid")}
    assert sizes == {"512", "4096"}


def test_a_subsystem_is_reached_through_two_controllers() -> None:
    subsystems = Path("/sys/class/nvme-subsystem").glob("nvme-subsys*")
    found = {read(one / "subsysnqn"): len(list(one.glob("nvme[0-9]"))) for one in subsystems}
    assert sorted(found.values()) == [1, 2], found


def test_a_namespace_can_be_attached_and_detached() -> None:
    drive = controller("a")
    try:
        host.run("nvme", "attach-ns", drive, "-n", "3", "-c", "0,1")
        wwid = "uuid.5f6c1fd6-0cf2-4a59-bd34-51bd59a1a003"
        host.eventually(
            "its device is there",
            lambda: wwid in [read(path) for path in BLOCK.glob("nvme*n*/wwid")],
        )
    finally:
        host.run("nvme", "detach-ns", drive, "-n", "3", "-c", "0,1")


def controller(subsystem: str) -> str:
    """The character device of a subsystem's first controller."""
    for one in sorted(Path("/sys/class/nvme").glob("nvme*")):
        if read(one / "subsysnqn").endswith(f"leased-{subsystem}"):
            return f"/dev/{one.name}"
    raise AssertionError(f"no controller of subsystem {subsystem}")


def head(wwid: str) -> str:
    """The block device of a namespace; its paths, which bear the same name, have none."""
    (found,) = [
        f"/dev/{path.parent.name}"
        for path in BLOCK.glob("nvme*n*/wwid")
        if read(path) == wwid and os.path.exists(f"/dev/{path.parent.name}")
    ]
    return found


def test_three_nodes_and_what_hmat_says_of_them() -> None:
    initiators = "access0/initiators/read_latency"
    assert [read(host.NODES / f"node{n}" / initiators) for n in range(3)] == ["90", "350", "60"]
    assert [host.huge_pages_free(node) for node in range(3)] == [24, 24, 24]


def test_a_cxl_device_is_there() -> None:
    assert int(read("/sys/bus/cxl/devices/mem0/pmem/size"), 16) == 256 << 20


def test_an_nvdimm_gives_a_devdax() -> None:
    (made,) = Path("/sys/bus/nd/devices").glob("namespace*.0")
    words = ["ndctl", "create-namespace", "--mode=devdax", f"--reconfig={made.name}", "--force"]
    namespace = json.loads(host.run(*words))
    try:
        device = namespace["daxregion"]["devices"][0]
        assert device["target_node"] == 1
        assert os.path.exists(f"/dev/{device['chardev']}")
    finally:
        host.run("ndctl", "destroy-namespace", "--force", namespace["dev"])


def test_dm_crypt_encrypts() -> None:
    host.run("modprobe", "dm-crypt")
    drive = head("uuid.5f6c1fd6-0cf2-4a59-bd34-51bd59b1b001")
    table = f"0 2048 crypt aes-xts-plain64 {'5a' * 64} 0 {drive} 0"
    host.run("dmsetup", "create", "leased-vm-trial", "--table", table)
    try:
        Path("/dev/mapper/leased-vm-trial").write_bytes(b"plain" * 100)
        host.run("sync")
        with open(drive, "rb") as raw:
            assert b"plain" not in raw.read(4096)
    finally:
        host.run("dmsetup", "remove", "--retry", "leased-vm-trial")


def test_every_controller_of_cgroup_v2() -> None:
    given = read("/sys/fs/cgroup/cgroup.controllers").split()
    assert {"cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma", "misc"} <= set(given)


@pytest.fixture
def soft_rdma() -> Iterator[None]:
    """Two soft-RoCE devices at the ends of a cable."""
    script = str(Path(__file__).with_name("soft-rdma"))
    host.run(script, "up")
    yield
    host.run(script, "down")


@pytest.mark.usefixtures("soft_rdma")
def test_rdma_between_two_devices() -> None:
    words = ["timeout", "60", "ibv_rc_pingpong", "-g", "1", "-n", "20", "-d"]

    def both_ways() -> bool:
        """A pair of its own each time: one end that has given up leaves the other waiting."""
        with subprocess.Popen([*words, "rxe1"], stdout=subprocess.DEVNULL) as listening:
            try:
                client = [*words, "rxe0", "10.9.0.2"]
                while listening.poll() is None:
                    if subprocess.run(client, capture_output=True).returncode == 0:
                        return listening.wait() == 0
            finally:
                listening.terminate()
        return False

    host.eventually("twenty messages there and back", both_ways)
