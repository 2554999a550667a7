# SPDX-License-Identifier: Apache-2.0
"""The doors: made with their modes, never loosely, never somebody else's; or handed over."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.service.api.doors import Door, open_doors
from leased.service.config import Config, Paths, Sockets
from leased.service.lifeline import ADMIN_SOCKET, USER_SOCKET
from leased.terms.errors import StateError


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Paths of our own."""
    paths = Paths(state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")
    return Config(paths=paths, sockets=Sockets(user_mode=0o660, admin_mode=0o600))


@pytest.fixture
def opened(config: Config) -> Iterator[list[Door]]:
    """Both doors, made here."""
    doors = open_doors(config, {}, "0")
    yield doors
    close(doors)


def close(doors: list[Door]) -> None:
    """The process has ended."""
    for sock, _, _ in doors:
        sock.close()


def test_two_doors_with_their_modes_and_services(config: Config, opened: list[Door]) -> None:
    assert [operator for _, _, operator in opened] == [False, True]
    users, operators = (service for _, service, _ in opened)
    assert "io.leased.Admin" not in users.interfaces
    assert "io.leased.Admin" in operators.interfaces
    assert not any(name.startswith("io.leased.Admin.") for name in users.methods)
    for path, mode in ((config.paths.user_socket, 0o660), (config.paths.admin_socket, 0o600)):
        assert path.stat().st_mode & 0o777 == mode
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
    assert sorted(path.name for path in config.paths.runtime_dir.iterdir()) == [
        "io.leased",
        "io.leased.admin",
    ], "nothing with a private name is left"


def test_a_loose_umask_makes_no_loose_door(config: Config) -> None:
    before = os.umask(0)
    try:
        doors = open_doors(config, {}, "0")
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(before)
    assert config.paths.admin_socket.stat().st_mode & 0o777 == 0o600
    close(doors)


def test_the_file_of_a_dead_agent_is_replaced(config: Config, opened: list[Door]) -> None:
    close(opened)
    again = open_doors(config, {}, "0")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(config.paths.user_socket))
    close(again)


def test_the_door_of_a_living_agent_is_not_taken(config: Config, opened: list[Door]) -> None:
    inode = config.paths.user_socket.stat().st_ino
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StateError, match="another agent answers here"):
        open_doors(config, {}, "0")
    assert config.paths.user_socket.stat().st_ino == inode
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_in_the_way_is_named(config: Config) -> None:
    config.paths.runtime_dir.mkdir()
    config.paths.user_socket.mkdir()
    with pytest.raises(StateError, match="io.leased"):
        open_doors(config, {}, "0")


def test_a_directory_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    deep = Config(paths=Paths(state_dir=tmp_path / "state", runtime_dir=tmp_path / ("d" * 100)))
    with pytest.raises(StateError, match="too long: .*runtime_dir must be shorter"):
        open_doors(deep, {}, "0")


def test_doors_that_were_handed_over_are_used(config: Config, tmp_path: Path) -> None:
    handed: dict[str, list[int]] = {}
    for name in (USER_SOCKET, ADMIN_SOCKET):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / name))
        sock.listen(1)
        handed[name] = [sock.detach()]
    doors = open_doors(config, handed, "0")
    assert [sock.fileno() for sock, _, _ in doors] == [
        handed[USER_SOCKET][0],
        handed[ADMIN_SOCKET][0],
    ]
    assert [operator for _, _, operator in doors] == [False, True]
    assert not config.paths.runtime_dir.exists(), "nothing is made that was handed over"
    close(doors)
