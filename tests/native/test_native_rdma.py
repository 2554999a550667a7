# SPDX-License-Identifier: Apache-2.0
"""leased-rdma: what it says the library and the kernel lay out, and its whole life under sanitizers
on a library without hardware.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import select
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.hardware import leaves, verbs
from leased.hardware.rdma import nldev, owner, protocol
from leased.hardware.rdma.protocol import MAY_READ, MAY_WRITE, Connection, Peer
from leased.terms.errors import DeviceError
from tests.doubles.host import not_proven
from tests.doubles.mock_verbs import BUDGET_NS, WHERE, Stage, build, run, stage_in, usable

NATIVE = Path(__file__).resolve().parents[2] / "native"
SIZES = (1 << 20, 4096)
CAP_SYS_RESOURCE = 24
PEER = Peer(bytes(15) + b"\x07", 0, 99, 4711, 0, MAY_READ | MAY_WRITE)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("rdma"))


@pytest.fixture
def stage(program: Path, tmp_path: Path) -> Iterator[Stage]:
    if not usable():
        not_proven("anything of an RDMA owner", "needs root and a writable cgroup2")
    made = stage_in(program, tmp_path)
    yield made
    made.close()


@pytest.fixture
def memfds() -> Iterator[list[int]]:
    fds = [verbs.create_memory("rdma", size_bytes=size) for size in SIZES]
    yield fds
    for fd in fds:
        os.close(fd)


# ---- layouts -------------------------------------------------------------------------------------


def test_the_library_lays_out_what_we_say_it_does(tmp_path: Path) -> None:
    """Against the real header, where it is installed."""
    seen = subprocess.run(
        ["cc", "-E", "-xc", "-"],
        input="#include <infiniband/verbs.h>\n",
        text=True,
        capture_output=True,
    )
    if seen.returncode:
        not_proven("that native/rdma/abi.h is libibverbs's ABI", "libibverbs-dev is not installed")
    source = NATIVE / "test/rdma/abi.c"
    subprocess.run(["cc", "-std=gnu11", "-c", source, "-o", tmp_path / "abi.o"], check=True)


def test_the_kernels_numbers_are_the_kernels(tmp_path: Path) -> None:
    """Against <rdma/rdma_netlink.h>, which every build host has."""
    names = {
        "RDMA_NL_NLDEV": nldev.CLIENT_NLDEV,
        **{f"RDMA_NLDEV_CMD_{name}": getattr(nldev, name) for name in _COMMANDS},
        **{f"RDMA_NLDEV_ATTR_{name}": getattr(nldev, name) for name in _ATTRIBUTES},
    }
    for kind, table in _TABLES.items():
        names[f"RDMA_NLDEV_ATTR_{table}"] = nldev.KINDS[kind].table
        names[f"RDMA_NLDEV_ATTR_{table}_ENTRY"] = nldev.KINDS[kind].entry
    checks = "".join(
        f'_Static_assert({name} == {value}, "{name}");\n' for name, value in names.items()
    )
    source = tmp_path / "numbers.c"
    source.write_text(f"#include <rdma/rdma_netlink.h>\n{checks}")
    subprocess.run(["cc", "-c", source, "-o", tmp_path / "numbers.o"], check=True)


_COMMANDS = (
    *("GET", "PORT_GET", "GET_CHARDEV", "RES_QP_GET", "RES_CQ_GET", "RES_MR_GET", "RES_PD_GET"),
    *("RES_CTX_GET", "RES_SRQ_GET"),
)
_ATTRIBUTES = (
    *("DEV_INDEX", "DEV_NAME", "PORT_INDEX", "FW_VERSION", "NODE_GUID", "PORT_STATE"),
    *("PORT_PHYS_STATE", "NDEV_NAME", "DEV_PROTOCOL", "CHARDEV_TYPE", "CHARDEV"),
    *("UVERBS_DRIVER_ID", "RES_PID", "RES_KERN_NAME", "RES_MRLEN", "RES_LQPN", "RES_PDN"),
    *("RES_CQN", "RES_MRN", "RES_CTXN", "RES_SRQN"),
)
_TABLES = {
    "context": "RES_CTX",
    "domain": "RES_PD",
    "region": "RES_MR",
    "queue": "RES_QP",
    "completions": "RES_CQ",
    "receives": "RES_SRQ",
}


def test_both_languages_lay_the_packets_out_alike() -> None:
    text = (NATIVE / "rdma_protocol.h").read_text("utf-8")
    numbers = dict(
        re.findall(r"^\s*(?:#define )?LEASED_RDMA_(\w+)\s*=?\s*(?:UINT32_C\()?(\w+)", text, re.M)
    )
    for name, value in numbers.items():
        ours = getattr(protocol, name.removeprefix("STEP_"), None)
        if ours is not None:
            assert ours == int(value.rstrip("u"), 0), name
    sizes = {
        "header": protocol.HEADER.size,
        "open": protocol.OPEN_BODY.size,
        "connect": protocol.CONNECT_BODY.size,
        "connected": protocol.CONNECTED.size,
        "closed": protocol.CLOSED_BYTES,
        "reach": protocol.REACHED.size,
        "read": protocol.READ_BODY.size,
        "done": protocol.DONE.size,
    }
    for name, size in sizes.items():
        assert f"sizeof(struct leased_rdma_{name}) == {size}," in text, name
    assert protocol.STATE_BYTES == 48 + 16 * 16 + 64 * 32


# ---- by hand -------------------------------------------------------------------------------------


def test_it_says_what_is_missing(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(program.parent))
    assert owner.look(str(program), "mock0", budget_ns=BUDGET_NS)["windows_2b"] == "1"
    with pytest.raises(DeviceError) as caught:
        owner.look(str(program), "mlx5_0", budget_ns=BUDGET_NS)
    assert (caught.value.errno, caught.value.detail) == (errno.ENODEV, "open the device")
    old = tmp_path / "libibverbs.so.1"
    subprocess.run(["cc", "-shared", "-xc", "/dev/null", "-o", old], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(DeviceError) as caught:
        owner.look(str(program), "mock0", budget_ns=BUDGET_NS)
    assert (caught.value.errno, caught.value.detail) == (errno.ENOSYS, "ibv_get_device_list")


@pytest.mark.parametrize(
    "arguments", [(), ("own",), ("own", "a", "b", "c", "d"), ("probe", "-1"), ("look",), ("what",)]
)
def test_what_it_does_not_understand_it_does_not_do(
    program: Path, arguments: tuple[str, ...]
) -> None:
    assert run(program, *arguments).returncode == 64
    assert "usage:" in run(program, "--help").stdout


# ---- an owner's life -----------------------------------------------------------------------------


def opened(
    door: owner.Door, fds: list[int], *, windows: bool = True, peers_max: int = 2
) -> protocol.State:
    """Let it register the memory."""
    body = protocol.encode_open(WHERE, peers_max=peers_max, windows=windows, sizes=SIZES)
    return protocol.decode_state(door.ask(protocol.OPEN, body, fds=fds, budget_ns=BUDGET_NS))


def connected(door: owner.Door, peer: Peer = PEER) -> Connection:
    """Connect a peer."""
    answer = door.ask(protocol.CONNECT, protocol.encode_peer(peer), budget_ns=BUDGET_NS)
    return protocol.decode_connection(answer, len(SIZES))


def closed(door: owner.Door) -> dict[int, protocol.EndStep]:
    """Let it end; the steps by kind."""
    steps = protocol.decode_closed(door.ask(protocol.CLOSE, budget_ns=BUDGET_NS))
    return {step.step: step for step in steps}


def state(door: owner.Door) -> protocol.State:
    """The owner as it is."""
    return protocol.decode_state(door.ask(protocol.STATE, budget_ns=BUDGET_NS))


def refused(door: owner.Door, kind: int, body: bytes = b"", fds: list[int] | None = None) -> int:
    """The errno of what it does not do."""
    with pytest.raises(DeviceError) as caught:
        door.ask(kind, body, fds=fds or [], budget_ns=BUDGET_NS)
    return caught.value.errno


def test_the_life_of_an_owner(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch) as door:
        assert refused(door, protocol.CONNECT, protocol.encode_peer(PEER)) == errno.ENOTCONN
        told = opened(door, memfds)
        assert told.windows and told.regions == ((0, SIZES[0]), (0, SIZES[1]))
        assert stage.members == [told.pid], "it is in the lease's cgroup"
        one, two = connected(door), connected(door)
        assert len({*one.rkeys, *two.rkeys}) == 4, "each peer has windows of its own"
        assert [peer.qp_number for peer in state(door).peers] == [one.qp_number, two.qp_number]
        assert refused(door, protocol.CONNECT, protocol.encode_peer(PEER)) == errno.EUSERS
        gone = protocol.DISCONNECT_BODY.pack(one.qp_number, 0)
        door.ask(protocol.DISCONNECT, gone, budget_ns=BUDGET_NS)
        assert refused(door, protocol.DISCONNECT, gone) == errno.ENOENT
        three = connected(door)
        assert three.qp_number not in (one.qp_number, two.qp_number)
        steps = closed(door)
    assert all(step.errno == 0 for step in steps.values())
    assert steps[protocol.WINDOWS].measured == 4
    assert steps[protocol.QUEUES].measured == 2
    assert steps[protocol.REGIONS].measured == sum(SIZES)
    assert protocol.DEVICE in steps
    owner.end_owner(stage.room, BUDGET_NS)
    assert not stage.members


def test_without_windows_there_is_one_key_per_region(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch, MOCK_VERBS_WINDOWS="0") as door:
        assert not opened(door, memfds).windows
        assert connected(door).rkeys == connected(door).rkeys
        assert protocol.WINDOWS not in closed(door)


def test_whoever_may_trace_it_finds_it_again(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who started it is gone; answers that nobody took are nobody's confusion."""
    with stage.start(monkeypatch) as door:
        opened(door, memfds)
        door._sock.send(protocol.encode(protocol.STATE, 1))
        door._sock.send(protocol.encode(protocol.STATE, 2))
    with owner.door_of(stage.room) as again:
        assert connected(again).qp_number
    with owner.door_of(stage.room) as third:
        assert len(state(third).peers) == 1
        closed(third)
    owner.end_owner(stage.room, BUDGET_NS)
    with pytest.raises(DeviceError) as caught, owner.door_of(stage.room):
        pass
    assert caught.value.errno == errno.ESRCH


def test_it_holds_no_power_and_tells_nobody(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch, pinned_bytes=12345) as door:
        pid = opened(door, memfds).pid
    status = Path(f"/proc/{pid}/status").read_text()
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert re.search(rf"^{name}:\t0+$", status, re.M), name
    assert "NoNewPrivs:\t1" in status
    ours = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.M)
    may_raise = ours is not None and int(ours[1], 16) >> CAP_SYS_RESOURCE & 1
    limits = Path(f"/proc/{pid}/limits").read_text()
    most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    wanted = 12345 + (64 << 20)
    pinned = wanted if may_raise or most == resource.RLIM_INFINITY else min(wanted, most)
    assert re.search(rf"Max locked memory +{pinned} +{pinned} ", limits)
    if may_raise:
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "-1000\n"
    fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [name for name in fds if "memfd" in name], "the mapping is enough"
    stranger = subprocess.run(
        ["cat", f"/proc/{pid}/maps"], user=65534, group=65534, extra_groups=[], capture_output=True
    )
    assert stranger.returncode != 0


def test_it_ends_with_its_device_also_where_nothing_was_said(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ask again and again, at the tenant's cost, about what is always ready."""
    with stage.start(monkeypatch, MOCK_VERBS_FAULT="async_fd=19") as door:
        pidfd = os.pidfd_open(opened(door, memfds).pid)
        try:
            ended, _, _ = select.select([pidfd], [], [], BUDGET_NS / 1e9)
            assert ended, "its device is gone"
        finally:
            os.close(pidfd)


def test_it_dies_with_the_leaf(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever kills the lease's cgroup kills it, wherever it was started from."""
    with stage.start(monkeypatch) as door:
        opened(door, memfds)
        leaf = os.open(stage.leaf, os.O_RDONLY | os.O_DIRECTORY)
        verbs.kill_cgroup(leaf, timeout_ms=5000)
        os.close(leaf)
        assert refused(door, protocol.STATE) in (errno.EPIPE, errno.ECONNRESET)
    assert not stage.members


# ---- what fails ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("get_device_list=38", "list the devices"),
        ("open_device=13", "open the device"),
        ("query_device=5", "read what the device can"),
        ("query_port=5", "read the port"),
        ("alloc_pd=11", "make a protection domain"),
        ("create_cq=12", "make a completion queue"),
        ("reg_mr=12", "register the memory"),
    ],
)
def test_what_cannot_be_opened_is_taken_back_and_named(
    fault: str, what: str, stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch, MOCK_VERBS_FAULT=fault) as door:
        with pytest.raises(DeviceError) as caught:
            opened(door, memfds)
        assert (caught.value.errno, caught.value.detail) == (int(fault.partition("=")[2]), what)
        assert refused(door, protocol.CONNECT, protocol.encode_peer(PEER)) == errno.ENOTCONN
        assert closed(door) == {}, "nothing was left to end"


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("create_qp=12", "make a queue pair"),
        ("modify_qp=110", "find the peer"),
        ("alloc_mw=12", "make a memory window"),
        ("bind_mw=22", "post a request"),
        ("bind_mw=status", "bind a memory window"),
    ],
)
def test_a_peer_that_cannot_be_connected_takes_no_place(
    fault: str, what: str, stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch, MOCK_VERBS_FAULT=fault) as door:
        opened(door, memfds, peers_max=1)
        for _ in range(3):
            with pytest.raises(DeviceError) as caught:
                connected(door)
            assert caught.value.detail == what
        assert not state(door).peers
        assert all(step.errno == 0 for step in closed(door).values())


def test_what_one_peer_waited_for_in_vain_is_not_taken_for_the_next_ones(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch, MOCK_VERBS_FAULT="bind_mw=late") as door:
        opened(door, memfds)
        with pytest.raises(DeviceError) as caught:
            connected(door)
        assert caught.value.errno == errno.ETIMEDOUT
        # The completion comes now, when that peer has none of what it was for.
        connected(door)
        assert len(state(door).peers) == 1
        assert all(step.errno == 0 for step in closed(door).values())


@pytest.mark.parametrize(
    ("fault", "step", "failed"),
    [
        ("local_inv=status", protocol.WINDOWS, 0),
        ("local_inv=110", protocol.WINDOWS, errno.ETIMEDOUT),
        ("dealloc_mw=16", protocol.WINDOWS, errno.EBUSY),
        ("dereg_mr=16", protocol.REGIONS, errno.EBUSY),
        ("dealloc_pd=16", protocol.DEVICE, errno.EBUSY),
    ],
)
def test_an_end_that_fails_is_told_and_hinders_no_other_step(
    fault: str,
    step: int,
    failed: int,
    stage: Stage,
    memfds: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stage.start(monkeypatch, MOCK_VERBS_FAULT=fault) as door:
        opened(door, memfds)
        connected(door)
        steps = closed(door)
    assert steps[step].errno == failed
    assert set(steps) == {protocol.WINDOWS, protocol.QUEUES, protocol.REGIONS, protocol.DEVICE}
    if fault.startswith("local_inv"):
        assert steps[step].measured == 0, "no completion said so"
        assert steps[protocol.REGIONS].errno == 0, "the windows were given up all the same"


def test_a_broken_connection_makes_room(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    with stage.start(monkeypatch, MOCK_VERBS_BROKEN=str(broken)) as door:
        opened(door, memfds, peers_max=1)
        first = connected(door)
        assert refused(door, protocol.CONNECT, protocol.encode_peer(PEER)) == errno.EUSERS
        broken.touch()
        assert connected(door).qp_number != first.qp_number
        closed(door)


@pytest.mark.parametrize(
    ("kind", "body", "fds", "number"),
    [
        (protocol.OPEN, b"", 0, errno.EINVAL),
        (protocol.OPEN, protocol.encode_open(WHERE, sizes=SIZES), 1, errno.EINVAL),
        (protocol.OPEN, protocol.encode_open(WHERE, sizes=()), 0, errno.EINVAL),
        (protocol.OPEN, protocol.encode_open(WHERE, peers_max=65, sizes=SIZES), 2, errno.EINVAL),
        (
            protocol.OPEN,
            protocol.encode_open(protocol.Where("mock0", 0, 0), sizes=SIZES),
            2,
            errno.EINVAL,
        ),
        (
            protocol.OPEN,
            protocol.encode_open(protocol.Where("mock0", 2, 0), sizes=SIZES),
            2,
            errno.EINVAL,
        ),
        (
            protocol.OPEN,
            protocol.encode_open(protocol.Where("other", 1, 0), sizes=SIZES),
            2,
            errno.ENODEV,
        ),
        (protocol.OPEN, protocol.encode_open(WHERE, sizes=(2 << 30, 4096)), 2, errno.EFBIG),
        (protocol.CONNECT, b"short", 0, errno.EINVAL),
        (protocol.READ, protocol.encode_read(0, 1, 1, 1), 0, errno.EINVAL),
        (99, b"", 0, errno.EINVAL),
    ],
)
def test_bad_requests_change_nothing(
    kind: int,
    body: bytes,
    fds: int,
    number: int,
    stage: Stage,
    memfds: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stage.start(monkeypatch) as door:
        state(door)
        before = len(os.listdir(f"/proc/{stage.members[0]}/fd"))
        assert refused(door, kind, body, memfds[:fds]) == number
        assert len(os.listdir(f"/proc/{stage.members[0]}/fd")) == before, "descriptors were kept"
        opened(door, memfds)
        again = protocol.encode_open(WHERE, sizes=SIZES)
        assert refused(door, protocol.OPEN, again, memfds) == errno.EALREADY
        closed(door)


def test_noise_on_its_socket_does_not_end_it(
    stage: Stage, memfds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.start(monkeypatch) as door:
        opened(door, memfds)
        for noise in (b"x", b"x" * 9000, protocol.HEADER.pack(protocol.MAGIC, 2, 4, 9, 0)):
            door._sock.send(noise)
            raw = door._sock.recv(9000)
            assert protocol.HEADER.unpack_from(raw)[4] in (errno.EBADMSG, errno.EPROTO)
        many = [memfds[0]] * 40
        socket.send_fds(door._sock, [protocol.encode(protocol.STATE, 7)], many)
        assert protocol.HEADER.unpack_from(door._sock.recv(9000))[4] == errno.EBADMSG
        assert len(state(door).regions) == 2


def test_a_room_that_is_gone_is_no_owner(stage: Stage) -> None:
    assert owner.members(f"{stage.room}-of-nobody") == []
    owner.end_owner(f"{stage.room}-of-nobody", BUDGET_NS)
    assert leaves.inside(stage.leaf) == f"{stage.leaf}/inside"
    assert leaves.owners(stage.leaf) == [stage.room]
    assert shutil.which("cc")
