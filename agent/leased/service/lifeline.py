# SPDX-License-Identifier: Apache-2.0
"""The lifeline: what the agent and systemd say to each other (sd_notify, the watchdog, the sockets
handed over).

Rule: the watchdog is fed only by a heartbeat that went through the sequencer and came back, so a
process that lives but no longer commits is replaced. Descriptors handed over are matched by name,
never by position. Everything here is a no-op where no systemd started us.

Does not decide when the agent is ready, and never blocks on systemd: what it does not take at once
is not said.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Final

import trio

from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S

LISTEN_FDS_START: Final = 3
USER_SOCKET: Final = "varlink"
ADMIN_SOCKET: Final = "varlink-admin"
"""FileDescriptorName= of leased.socket and leased-admin.socket."""

Beat = Callable[[], Awaitable[None]]
"""Sends a heartbeat through the sequencer and returns when it has come back."""


def take_listen_fds(environment: MutableMapping[str, str]) -> dict[str, list[int]]:
    """The descriptors systemd handed over, by name; the variables are removed, so that no child
    believes in them.

    Descriptors of one name keep their order. Raises StateError if the variables contradict each
    other.
    """
    count, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if not count or pid != str(os.getpid()):
        return {}
    if not count.isdecimal():
        raise StateError(f"LISTEN_FDS={count}: not a number; start the agent by its unit")
    found = names.split(":") if names else ["unknown"] * int(count)
    if len(found) != int(count):
        raise StateError(f"LISTEN_FDS={count}, but LISTEN_FDNAMES has {len(found)} names")
    handed: dict[str, list[int]] = {}
    for fd, name in enumerate(found, LISTEN_FDS_START):
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        handed.setdefault(name, []).append(fd)
    return handed


class Lifeline:
    """One datagram socket to whoever started us, or to nobody."""

    def __init__(self, address: str | None, watchdog_ns: int | None) -> None:
        self.watchdog_ns = watchdog_ns
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Lifeline:
        """By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. A watchdog meant for another process is
        not ours.
        """
        usec = environment.get("WATCHDOG_USEC", "")
        pid = environment.get("WATCHDOG_PID", "")
        meant = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(environment.get("NOTIFY_SOCKET"), int(usec) * 1_000 if meant else None)

    @property
    def connected(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The agent serves. A status is one line for `systemctl status`."""
        self._say("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """What the agent is doing."""
        self._say(f"STATUS={status}")

    def reloading(self, boot_monotonic_usec: int) -> None:
        """The configuration is being read again; `ready` ends it. The time is CLOCK_MONOTONIC, as
        systemd asks.
        """
        self._say("RELOADING=1", f"MONOTONIC_USEC={boot_monotonic_usec}")

    def stopping(self, status: str) -> None:
        """A clean stop has begun."""
        self._say("STOPPING=1", f"STATUS={status}")

    def extend(self, ns: int, status: str) -> None:
        """Start-up goes on and needs up to `ns` more; said again as long as it advances."""
        self._say(f"EXTEND_TIMEOUT_USEC={ns // 1_000}", f"STATUS={status}")

    def feed(self) -> None:
        """Alive, as proven by a heartbeat."""
        self._say("WATCHDOG=1")

    async def run(self, beat: Beat, interval_ns: int) -> None:
        """Send a heartbeat every `interval_ns`, or three times per watchdog interval if that is
        shorter.
        """
        if self.watchdog_ns is not None:
            interval_ns = min(interval_ns, self.watchdog_ns // 3)
        while True:
            await beat()
            if self.watchdog_ns is not None:
                self.feed()
            await trio.sleep(interval_ns / NS_PER_S)

    def close(self) -> None:
        """Say no more. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _say(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        payload = "\n".join(line.replace("\n", " ") for line in lines).encode()
        try:
            self._socket.sendto(
                payload, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address
            )
        except OSError:
            pass  # a full queue or a systemd that is being replaced; the next beat says it again
