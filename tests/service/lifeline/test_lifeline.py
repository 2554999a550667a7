# SPDX-License-Identifier: Apache-2.0
"""The lifeline against a socket that stands for systemd: what is said, what is passed, what feeds
the watchdog.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import leased
from leased.service.lifeline import ADMIN_SOCKET, USER_SOCKET, Lifeline, take_listen_fds
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

pytestmark = pytest.mark.autojump

UNITS = Path(__file__).resolve().parents[3] / "systemd"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(5)
    yield listener
    listener.close()


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def test_every_word_reaches_the_manager(manager: socket.socket) -> None:
    lifeline = Lifeline.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    assert lifeline.connected
    lifeline.ready("3 leases")
    assert heard(manager) == ["READY=1", "STATUS=3 leases"]
    lifeline.extend(2 * NS_PER_S, "verified 5 records")
    assert heard(manager) == ["EXTEND_TIMEOUT_USEC=2000000", "STATUS=verified 5 records"]
    lifeline.stopping("bye\nREADY=1")
    assert heard(manager) == ["STOPPING=1", "STATUS=bye READY=1"], (
        "a status cannot smuggle a line in"
    )
    lifeline.close()
    lifeline.status("nobody hears")
    lifeline.close()


def test_an_abstract_address_is_understood() -> None:
    name = f"leased-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        with Lifeline(f"@{name}", None) as lifeline:
            lifeline.feed()
        assert listener.recv(100, socket.MSG_DONTWAIT) == b"WATCHDOG=1"


def test_nobody_there_is_no_error(tmp_path: Path) -> None:
    for address in (None, str(tmp_path / "absent")):
        with Lifeline(address, None) as lifeline:
            lifeline.ready("alone")
    assert not Lifeline.from_environment({}).connected


def test_a_full_manager_does_not_block(manager: socket.socket) -> None:
    with Lifeline(manager.getsockname(), None) as lifeline:
        for _ in range(10_000):
            lifeline.feed()


@pytest.mark.parametrize(
    ("environment", "watchdog_ns"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30 * NS_PER_S),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30 * NS_PER_S),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({}, None),
    ],
)
def test_only_our_own_watchdog_counts(environment: dict[str, str], watchdog_ns: int | None) -> None:
    assert Lifeline.from_environment(environment).watchdog_ns == watchdog_ns


async def test_the_watchdog_is_fed_only_by_a_heartbeat_that_came_back(
    manager: socket.socket,
) -> None:
    lifeline = Lifeline(manager.getsockname(), 30 * NS_PER_S)
    stuck_after = 3
    begun_at: list[float] = []

    async def beat() -> None:
        begun_at.append(trio.current_time())
        if len(begun_at) > stuck_after:
            await trio.sleep_forever()

    with lifeline, trio.move_on_after(300):
        await lifeline.run(beat, interval_ns=60 * NS_PER_S)
    fed = 0
    manager.setblocking(False)
    while True:
        try:
            assert manager.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            break
        fed += 1
    assert fed == stuck_after, "a heartbeat that did not come back feeds nothing"
    gaps = {after - before for before, after in zip(begun_at, begun_at[1:], strict=False)}
    assert gaps == {10.0}, "three times per watchdog interval, though 60 s were asked for"


def in_child(environment: dict[str, str]) -> bytes:
    """What take_listen_fds says in a process that has descriptors 3 to 5."""
    script = (
        "import os, fcntl, sys\n"
        "from leased.service.lifeline import take_listen_fds\n"
        "env = dict(os.environ)\n"
        "if env['LISTEN_PID'] == 'self': env['LISTEN_PID'] = str(os.getpid())\n"
        "found = take_listen_fds(env)\n"
        "flags = [fcntl.fcntl(fd, fcntl.F_GETFD) for fds in found.values() for fd in fds]\n"
        "left = [name for name in env if name.startswith('LISTEN')]\n"
        "print(found, flags, left)\n"
    )
    source_root = str(Path(leased.__file__).parents[1])
    shell = 'exec 3</dev/null 4</dev/null 5</dev/null; exec "$0" -c "$1"'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable, script],
        env={"PYTHONPATH": source_root, **environment},
        capture_output=True,
        check=True,
    )
    return done.stdout.strip()


def test_descriptors_come_by_name() -> None:
    said = in_child(
        {"LISTEN_PID": "self", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "varlink-admin:varlink:varlink"}
    )
    assert said == b"{'varlink-admin': [3], 'varlink': [4, 5]} [1, 1, 1] []"


def test_descriptors_for_another_process_are_not_ours() -> None:
    assert in_child({"LISTEN_PID": "1", "LISTEN_FDS": "3"}) == b"{} [] []"


def test_contradicting_variables_are_refused() -> None:
    pid = str(os.getpid())
    with pytest.raises(StateError, match="has 1 names"):
        take_listen_fds({"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"})
    with pytest.raises(StateError, match="not a number"):
        take_listen_fds({"LISTEN_PID": pid, "LISTEN_FDS": "x"})


def test_the_names_are_those_of_the_socket_units() -> None:
    user = (UNITS / "leased.socket").read_text()
    admin = (UNITS / "leased-admin.socket").read_text()
    assert f"FileDescriptorName={USER_SOCKET}\n" in user
    assert f"FileDescriptorName={ADMIN_SOCKET}\n" in admin
