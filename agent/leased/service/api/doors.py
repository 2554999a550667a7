# SPDX-License-Identifier: Apache-2.0
"""The doors: the two listening sockets, handed over by systemd or made here.

Rule: the socket file never exists with a looser mode than configured: it is bound under a private
name and renamed. An old socket file is replaced only if nobody answers behind it, so a second agent
cannot take the first one's door.

Does not accept (`listener`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from leased.service.config import Config
from leased.service.lifeline import ADMIN_SOCKET, USER_SOCKET
from leased.terms.errors import StateError
from leased.wire.description import OPERATOR_INTERFACES, SERVICE, Service, describe_service

BACKLOG = 512
SO_PASSRIGHTS = 83
"""Python has no name for it."""

Door = tuple[socket.socket, Service, bool]


def open_doors(config: Config, handed: Mapping[str, Sequence[int]], version: str) -> list[Door]:
    """(socket, what it serves, for operators) of the users' and the operators' door. Raises
    StateError."""
    texts = _read_interfaces()
    users = describe_service(version, texts)
    operators = describe_service(version, texts, OPERATOR_INTERFACES)
    doors: list[Door] = []
    for name, path, mode, service, operator in (
        (USER_SOCKET, config.paths.user_socket, config.sockets.user_mode, users, False),
        (ADMIN_SOCKET, config.paths.admin_socket, config.sockets.admin_mode, operators, True),
    ):
        fds = handed.get(name, ())
        sockets = [socket.socket(fileno=fd) for fd in fds] if fds else [_bind(path, mode)]
        if not operator:
            for sock in sockets:
                refuse_descriptors(sock)
        doors.extend((sock, service, operator) for sock in sockets)
    return doors


def refuse_descriptors(door: socket.socket) -> None:
    """Whoever sends one to a connection made from now on is refused by the kernel (Linux 6.16);
    else it would be there to close, if only at this process's end."""
    with contextlib.suppress(OSError):  # an older one
        door.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)


def _bind(path: Path, mode: int) -> socket.socket:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_vacant(path)
    private = path.with_name(f".{path.name}.{os.getpid()}")
    private.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            sock.bind(str(private))
        finally:
            os.umask(before)
        private.chmod(mode)
        sock.listen(BACKLOG)
        private.rename(path)
    except OSError as error:
        sock.close()
        raise StateError(f"{path}: {_why(error)}") from error
    return sock


def _why(error: OSError) -> str:
    if error.strerror is None:  # what Python says by itself, before it asks the kernel
        return f"{error}: [paths] runtime_dir must be shorter"
    return f"{error.strerror}; is the runtime directory writable?"


def _check_vacant(path: Path) -> None:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return
            raise StateError(f"{path}: {_why(error)}") from error
    raise StateError(
        f"{path}: another agent answers here; stop it, or give this one its own runtime_dir"
    )


def _read_interfaces() -> dict[str, str]:
    """The IDL of every interface, as it was shipped."""
    folder = resources.files("leased.wire") / "idl"
    return {
        name: (folder / f"{name}.varlink").read_text(encoding="utf-8")
        for name in (SERVICE, *OPERATOR_INTERFACES)
    }
