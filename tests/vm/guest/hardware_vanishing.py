# SPDX-License-Identifier: Apache-2.0
"""Hardware that goes, shrinks or comes back while it is leased, at each step of a lease: the lease
ends for the right reason, nothing is given to anybody that was not proven clean, and what is back
is offered again without a restart.

Not shown here: memory that is taken offline, which this machine's kernel refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drives
import host
import pytest
from drives import A2, A3, B1, Tenant, ask
from host import ADMIN, LIVES_S, MIB, Connection, Failed, call, eventually, memory
from victims import agent, comes_to, reaper, stopped, workers

MARKER = hashlib.shake_256(b"what is on a namespace that goes").digest(drives.BLOCK_BYTES)
WRITE = f"os.pwrite(fds[0], {MARKER!r}, 1 << 20); os.fsync(fds[0])"
CORE = Path("/sys/devices/system/cpu/cpu1/online")
POOL = host.NODES / "node2/hugepages/hugepages-2048kB/nr_hugepages"
BUDGET = "mem:budget:node1:4096"
PAGES = f"mem:node2:{2 * MIB}"
SOON_S = 40
"""Before the look of each minute, and under emulation."""

DEVICES = str(Path(__file__).with_name("every-kind"))
DROPIN = Path(__file__).resolve().parents[3] / "systemd/dropins/leased.service.d/device-dax.conf"
PLACE = Path("/etc/systemd/system/leased.service.d/device-dax.conf")


@pytest.fixture(scope="module", autouse=True)
def _offered() -> Iterator[None]:
    drives.configure(**drives.USUAL)
    drives.settled()
    yield
    assert host.leasectl("verify").startswith("ok: ")


@pytest.fixture(autouse=True)
def _nothing_left(_offered: None) -> Iterator[None]:
    yield
    for lease in call("Lease.List", ADMIN)["leases"]:  # of a test that failed
        call("Admin.Revoke", ADMIN, lease_id=lease["lease_id"])
    drives.look()
    drives.settled()
    assert not drives.mappings()


@pytest.fixture
def connection() -> Iterator[Connection]:
    opened = Connection()
    yield opened
    opened.close()


def lease(connection: Connection, ask: dict[str, Any]) -> str:
    """A lease of nobody in particular; its id."""
    granted = connection.acquire(ask, bind="cgroup", ttl_s=LIVES_S)
    connection.close_fds()
    return str(granted["lease"]["lease_id"])


def ended_by_its_device(lease_id: str) -> None:
    ended = host.closed(lease_id)
    assert (ended["state"], ended["reason"]) == ("reclaimed", "device_unhealthy"), ended


# ---- namespaces ----------------------------------------------------------------------------------


def pull() -> None:
    """Take the drive out of B1, without asking anybody."""
    [drive] = drives.controllers("b")
    (drive / "device/remove").write_text("1")


def put_back() -> None:
    Path("/sys/bus/pci/rescan").write_text("1")
    eventually("it is back", lambda: drives.sysfs(B1) is not None)


@contextlib.contextmanager
def obstructed(leaf: Path) -> Iterator[None]:
    """While this lasts the leaf cannot be removed, so the proof waits."""
    rooms = [leaf / f"room{number}" for number in range(65)]
    for room in rooms:
        room.mkdir()
    yield
    for room in rooms:
        with contextlib.suppress(FileNotFoundError):
            room.rmdir()


@pytest.mark.parametrize(
    ("state", "raw"), [("revoking", False), ("scrubbing", True), ("verifying", False)]
)
def test_a_drive_is_pulled_in_the_middle_of_a_teardown(state: str, raw: bool) -> None:
    tenant = Tenant(*ask(B1, raw=raw), act=WRITE).ready()
    held = {
        "revoking": lambda: stopped(reaper()),
        "scrubbing": lambda: stopped(*workers()),
        "verifying": lambda: obstructed(host.leaf(tenant.lease_id)),
    }[state]
    with held():
        tenant.revoke()
        comes_to(tenant.lease_id, state)
        pull()
    ended = tenant.ended()
    assert (ended["state"], ended["reason"]) == ("fenced", "operator_revoke")
    assert "No such device" in host.leasectl("--admin", "why", tenant.lease_id)
    with pytest.raises(Failed):
        Connection().acquire(*ask(B1))
    put_back()
    host.journal(f"LEASE_ID={tenant.lease_id}", "LEASE_EVENT=Unfenced")
    assert drives.search(drives.device(B1), MARKER) == 0


def test_a_drive_that_was_away_for_a_moment_ends_its_lease() -> None:
    """What the lease has answers EIO, though the namespace is there whenever anybody looks."""
    tenant = Tenant(*ask(B1), act=WRITE).ready()
    with stopped(agent(), *workers()):
        pull()
        put_back()
    with pytest.raises(OSError, match="Input/output"):
        drives.read_past_caches(tenant.paths[0], 0, drives.BLOCK_BYTES)
    ended = tenant.ended()
    assert (ended["state"], ended["reason"]) == ("reclaimed", "device_unhealthy")
    eventually("it is offered", lambda: f"block:{B1}" in drives.offered(), SOON_S)
    assert drives.search(drives.device(B1), MARKER) == 0


@pytest.mark.parametrize("is_back", [False, True])
def test_a_drive_that_is_pulled_between_grant_and_join(
    is_back: bool, connection: Connection
) -> None:
    """Whoever joins has nothing of what is there by then, and the lease ends by it."""
    granted = connection.acquire(*ask(B1), bind="cgroup", ttl_s=LIVES_S)
    lease_id, [path] = granted["lease"]["lease_id"], [one["value"] for one in granted["access"]]
    connection.close_fds()
    with stopped(*workers()):  # nobody looks before somebody has joined
        pull()
        if is_back:
            put_back()
        words = ["leasectl", "exec", lease_id, "--", "dd", f"if={path}", "count=1", "iflag=direct"]
        inside = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if not is_back:
            put_back()
    out, said = inside.communicate(timeout=host.HANGS_S)
    assert inside.returncode != 0 and not out, said
    ended_by_its_device(lease_id)
    eventually("it is offered", lambda: f"block:{B1}" in drives.offered(), SOON_S)


def test_a_mapping_that_an_operator_removes_ends_its_lease(connection: Connection) -> None:
    lease_id = lease(connection, *ask(B1))
    host.run("dmsetup", "remove", f"lease-{lease_id}-0")
    drives.look()
    ended_by_its_device(lease_id)
    eventually("it is offered", lambda: f"block:{B1}" in drives.offered(), SOON_S)


@pytest.mark.parametrize("action", ["add", "change"])
def test_who_has_a_namespace_finds_it_after_any_event_of_udev(action: str) -> None:
    """An upgrade of udev's asks for all of them anew."""
    tenant = Tenant(*ask(B1), act=WRITE).ready()
    [path] = tenant.paths
    host.run("udevadm", "trigger", f"--action={action}", "--subsystem-match=block")
    host.run("udevadm", "settle")
    node = os.stat(path)
    assert (pwd.getpwuid(node.st_uid).pw_name, node.st_mode & 0o777) == ("alice", 0o600)
    assert drives.read_past_caches(path, 1 << 20, drives.BLOCK_BYTES) == MARKER
    tenant.revoke()
    assert tenant.ended()["state"] == "reclaimed"
    assert not os.path.lexists(path)


def test_another_that_has_the_name_of_one_that_is_fenced_is_left_alone() -> None:
    [first, *_] = drives.controllers("a")
    path, there = f"/dev/{first.name}", drives.sysfs

    def have(identity: str, nsid: str, verb: str) -> None:
        host.run("nvme", verb, path, "-n", nsid, "-c", "0,1", check=False)
        wanted = verb == "attach-ns"
        eventually("its device", lambda: (there(identity) is not None) is wanted)

    for verb in ("detach-ns", "attach-ns"):  # so that it has the first name that is free
        have(A2, "2", verb)
    have(A3, "3", "attach-ns")
    eventually("they are offered", lambda: {f"block:{A2}", f"block:{A3}"} <= set(drives.offered()))
    with open(drives.device(A3), "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), MARKER, 1 << 20)
        os.fsync(file.fileno())
    have(A3, "3", "detach-ns")
    tenant = Tenant(*ask(A2, raw=True), act=WRITE).ready()
    name = drives.device(A2)
    have(A2, "2", "detach-ns")
    ended = tenant.ended()
    assert (ended["state"], ended["reason"]) == ("fenced", "device_unhealthy")
    have(A3, "3", "attach-ns")
    try:
        assert drives.device(A3) == name
        eventually("it is offered", lambda: f"block:{A3}" in drives.offered())
        assert host.describe(tenant.lease_id)["state"] == "fenced"
        have(A2, "2", "attach-ns")
        assert drives.device(A2) != name
        host.journal(f"LEASE_ID={tenant.lease_id}", "LEASE_EVENT=Unfenced")
        assert drives.search(drives.device(A2), MARKER) == 0
        assert drives.read_past_caches(name, 1 << 20, drives.BLOCK_BYTES) == MARKER
    finally:
        have(A2, "2", "attach-ns")
        have(A3, "3", "detach-ns")
    eventually("it is not offered", lambda: f"block:{A3}" not in drives.offered())


# ---- processors, pools ---------------------------------------------------------------------------


def test_a_core_that_goes_offline_ends_its_lease(connection: Connection) -> None:
    host.offered("cpu:1")
    lease_id = lease(connection, {"kind": "cpu", "capacity": 1000})
    CORE.write_text("0")
    try:
        ended_by_its_device(lease_id)
        eventually("it is not offered", lambda: "cpu:1" not in str(call("Device.List")))
    finally:
        CORE.write_text("1")
    host.offered("cpu:1")
    said = host.leasectl("run", "--cpu", "1", "--", "cat", "/proc/self/status")
    assert "Cpus_allowed_list:\t1\n" in said


@pytest.mark.parametrize("found_by", ["look", "grant"])
def test_a_core_that_is_taken_from_the_slice_is_nobodys(
    found_by: str, connection: Connection
) -> None:
    """The kernel takes `cpuset.cpus` all the same, and gives what is left: somebody else's core."""
    host.offered("cpu:1")
    asked = {"kind": "cpu", "capacity": 1000}
    lease_id = lease(connection, asked) if found_by == "look" else ""
    with slice_with("AllowedCPUs=0"):
        if found_by == "look":
            drives.look()
            ended_by_its_device(lease_id)
        else:
            with pytest.raises(Failed) as refused:
                lease(connection, asked)
            assert refused.value.parameters["what"] == "cgroup_confine"
            drives.look()
        eventually("it is not offered", lambda: "cpu:1" not in listed())
        assert "AllowedCPUs=" in str(call("Device.List"))
    drives.look()
    host.offered("cpu:1")


def test_a_node_that_is_taken_from_the_slice_has_no_budgets(connection: Connection) -> None:
    budget = {**memory(MIB, node=1), "shape": "budget"}
    lease_id = lease(connection, budget)
    with slice_with("AllowedMemoryNodes=0 2"):
        with pytest.raises(Failed) as refused:
            lease(connection, budget)
        assert refused.value.parameters["what"] == "cgroup_confine"
        drives.look()
        ended_by_its_device(lease_id)
        eventually("it is not offered", lambda: BUDGET not in listed())
    drives.look()
    host.offered(BUDGET)


def listed() -> set[str]:
    return {str(one["resource_id"]) for one in call("Device.List")["resources"]}


@contextlib.contextmanager
def slice_with(setting: str) -> Iterator[None]:
    """While this lasts an operator gives all leases no more than this. (Who sets it to nothing has
    systemd 252 leave the cgroup as it is.)"""
    name, _, _ = setting.partition("=")
    kind = "cpu" if name == "AllowedCPUs" else "node"
    every = Path(f"/sys/devices/system/{kind}/online").read_text().strip()
    host.run("systemctl", "set-property", "--runtime", "leased.slice", setting)
    try:
        yield
    finally:
        host.run("systemctl", "set-property", "--runtime", "leased.slice", f"{name}={every}")


@contextlib.contextmanager
def pool_of(pages: int) -> Iterator[None]:
    """While this lasts the pool of node 2 has so many pages, as its operator says."""
    before = POOL.read_text()
    POOL.write_text(str(pages))
    try:
        yield
    finally:
        POOL.write_text(before)
        eventually("all is as before", lambda: offered_pages() == int(before), SOON_S)


def offered_pages() -> int:
    use = [one["use"] for one in call("Device.List")["resources"] if one["resource_id"] == PAGES]
    return sum(one["free"] + one["leased"] + one["teardown"] for one in use) // (2 * MIB)


def test_a_pool_that_shrinks_and_grows_under_leases_fences_none(connection: Connection) -> None:
    ask = memory(8 * MIB, node=2, page_size=2 * MIB)
    one, other = lease(connection, ask), lease(connection, ask)
    with pool_of(6):
        assert int(POOL.read_text()) == 8, "what is leased is there until its end"
        connection.call("Lease.Release", lease_id=one)
        assert host.closed(one)["state"] == "reclaimed"
        with pytest.raises(Failed) as refused:  # whether somebody has looked or not
            lease(connection, memory(16 * MIB, node=2, page_size=2 * MIB))
        assert refused.value.parameters["reason"] == "no_capacity"
        connection.call("Lease.Release", lease_id=other)
        assert host.closed(other)["state"] == "reclaimed"
        eventually("so many are offered", lambda: offered_pages() == 6, SOON_S)
        POOL.write_text("30")
        eventually("so many are offered", lambda: offered_pages() == 30, SOON_S)
        all_of_it = lease(connection, memory(60 * MIB, node=2, page_size=2 * MIB))
        POOL.write_text("2")
        connection.call("Lease.Release", lease_id=all_of_it)
        assert host.closed(all_of_it)["state"] == "reclaimed"
    assert call("Admin.Status", ADMIN)["leases"]["fenced"] == 0


def test_a_pool_that_is_emptied_behind_its_lease_ends_it(connection: Connection) -> None:
    """The tenant has given its pages up for a moment, and there are none when they are overwritten
    at its end."""
    ask = memory(8 * MIB, node=2, page_size=2 * MIB)
    granted = connection.acquire(ask, bind="cgroup", ttl_s=LIVES_S)
    size, keep_size_and_punch = ctypes.c_long(8 * MIB), 3
    libc = ctypes.CDLL(None)
    assert libc.fallocate(connection.fds[0], keep_size_and_punch, ctypes.c_long(0), size) == 0
    connection.close_fds()
    with pool_of(0):
        ended_by_its_device(granted["lease"]["lease_id"])


# ---- ranges of device-dax ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dax(_offered: None) -> Iterator[None]:
    """A range is leased while the tests of this section run."""
    host.run(DEVICES, "up")
    host.run("install", "-D", "-m", "0644", str(DROPIN), str(PLACE))
    host.run("systemctl", "daemon-reload")
    drives.configure("hardware.dax", offer="true", persistent="true")
    try:
        eventually("it is offered", range_there)
        yield
    finally:
        PLACE.unlink()
        host.run("systemctl", "daemon-reload")
        drives.configure("hardware.dax", offer="false", persistent="false")
        host.run(DEVICES, "down")


def range_there() -> dict[str, Any] | None:
    """The range, where it is free and well."""
    for one in call("Device.List")["resources"]:
        if one["resource_id"].startswith("mem:dax-") and one["health"] == "ok":
            return one if one["use"]["free"] else None
    return None


@pytest.mark.usefixtures("dax")
@pytest.mark.parametrize("what", ["range", "region, for a moment"])
def test_a_range_that_is_taken_from_its_driver_ends_its_lease(
    what: str, connection: Connection
) -> None:
    drives.look()
    one = eventually("it is offered", range_there)
    ask = {"kind": "mem", "capacity": one["capacity"], "resource_id": one["resource_id"]}
    lease_id = lease(connection, ask)
    [place] = Path("/sys/bus/dax/devices").iterdir()
    region = place.resolve().parent
    keeper = (region / "driver").resolve()
    if what == "range":
        (place / "driver/unbind").write_text(place.name)
    else:
        with stopped(agent(), *workers()):
            for verb in ("unbind", "bind"):
                (keeper / verb).write_text(region.name)
    ended_by_its_device(lease_id)
    if what == "range":  # it was unbound, and is bound again by the teardown
        drives.look()
    eventually("it is offered", range_there, SOON_S)
