# SPDX-License-Identifier: Apache-2.0
"""Takes orders from the host: a command in, its output and status out, over virtio ports.

An order is one JSON line with an `id`, which every line of the answer bears: after a host that went
away in the middle, what is still in the port belongs to nobody. Output goes as base64. An order
whose host goes away is ended, with its process group.

Rule: the shared tree may be changed by the host between two orders, and by the guest in one; so
what is cached of it is forgotten before an order, and what the guest wrote is on the host after it.

Does not restrict anything: the host is the guest's root.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

PORTS = Path("/dev/virtio-ports")
TREE_NAMED = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/leased/tree/raw")
CHUNK = 1 << 15
LOOKS_MS = 250
"""How often a command is looked at that may have ended while its output is held open."""
GRACE_S = 5.0
LOOKS_S = (0.02, 0.64)
"""How soon a port without a host is looked at again: soon at first, later twice as late each time.
Looking costs an emulated processor something, and most ports never have a host."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}

running = 0
counting = threading.Lock()


class Gone(Exception):
    """The host let go of the port."""


class Port:
    """One port: lines in, lines out."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._look_s = LOOKS_S[0]
        self._read = b""
        self._lines: deque[dict[str, Any]] = deque()

    def line(self) -> dict[str, Any]:
        """The next line; waits for it."""
        while not self._lines:
            self.more(wait=True)
        return self._lines.popleft()

    def come(self) -> list[dict[str, Any]]:
        """Lines that have come meanwhile. Raises Gone, also if there is another host already."""
        self.more(wait=False)
        if any("argv" in line for line in self._lines):
            raise Gone
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def more(self, *, wait: bool) -> None:
        """Take what has come. Raises Gone if nobody is at the other end and we do not wait."""
        ready = select.poll()
        ready.register(self.fd, select.POLLIN)
        for _, events in ready.poll(-1 if wait else 0):
            data = b""
            if events & select.POLLIN:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.fd, CHUNK)
            if data:
                self._look_s = LOOKS_S[0]
                *whole, self._read = (self._read + data).split(b"\n")
                for line in whole:
                    with contextlib.suppress(ValueError):
                        self._lines.append(dict(json.loads(line)))
            elif events & select.POLLHUP:
                self._read = b""
                if not wait:
                    raise Gone
                # The kernel has no event for "somebody came": look again.
                time.sleep(self._look_s)
                self._look_s = min(2 * self._look_s, LOOKS_S[1])

    def tell(self, **said: Any) -> None:
        """One line. Raises Gone."""
        data = memoryview(json.dumps(said).encode() + b"\n")
        ready = select.poll()
        ready.register(self.fd, select.POLLOUT)
        while data:
            for _, events in ready.poll():
                if events & select.POLLHUP:
                    raise Gone
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(self.fd, data) :]


def obey(port: Port, order: dict[str, Any]) -> None:
    """Run one order to its end."""
    mark = order["id"]
    environment = ENVIRONMENT | order.get("env", {})
    terminal = order.get("terminal")
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", *terminal, 0, 0))
    wrong, theirs_wrong = (-1, theirs) if terminal else os.pipe()
    try:
        process = subprocess.Popen(
            order["argv"],
            cwd=order.get("cwd", "/"),
            env=environment,
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs_wrong,
            start_new_session=True,
            preexec_fn=own_terminal if terminal else None,
        )
    except OSError as error:
        port.tell(id=mark, err=encoded(f"{order['argv'][0]}: {error.strerror}\n".encode()))
        port.tell(id=mark, status=127)
        for fd in (ours, wrong):
            if fd >= 0:
                os.close(fd)
        return
    finally:
        for fd in {theirs, theirs_wrong}:
            os.close(fd)
    try:
        carry(port, mark, process, ours, wrong)
        status = process.wait()
        port.tell(id=mark, status=status if status >= 0 else 128 - status)
    except Gone:
        end(process)
        raise
    finally:
        for fd in (ours, wrong):
            if fd >= 0:
                os.close(fd)


def own_terminal() -> None:
    """In the child: make the pseudo-terminal its controlling one."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def carry(port: Port, mark: str, process: subprocess.Popen[bytes], out: int, err: int) -> None:
    """Move output to the host, and the host's keys to the command, until the command has ended.

    Not until its output has: what it left in the background may keep that open for ever.
    """
    ready = select.poll()
    names = {out: "out", err: "err"} if err >= 0 else {out: "out"}
    for fd in (*names, port.fd):
        ready.register(fd, select.POLLIN)
    ended = False
    while names:
        events = ready.poll(0 if ended else LOOKS_MS)
        if ended and not any(fd in names for fd, _ in events):
            return
        ended = ended or process.poll() is not None
        for fd, _ in events:
            if fd == port.fd:
                for line in port.come():
                    os.write(out, base64.b64decode(line["in"]))
                continue
            try:
                data = os.read(fd, CHUNK)
            except OSError:
                data = b""
            if data:
                port.tell(id=mark, **{names[fd]: encoded(data)})
            else:
                ready.unregister(fd)
                del names[fd]
    while process.poll() is None:
        port.come()
        time.sleep(0.02)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def end(process: subprocess.Popen[bytes]) -> None:
    """The whole process group, kindly at first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def mount_tree() -> Path | None:
    """The host's directory, at the place it has there."""
    if not TREE_NAMED.exists():
        return None
    tree = Path(TREE_NAMED.read_text().strip())
    tree.mkdir(parents=True, exist_ok=True)
    options = "trans=virtio,version=9p2000.L,cache=loose,msize=524288"
    subprocess.run(["mount", "-t", "9p", "-o", options, "tree", tree], check=True)
    return tree


def forget() -> None:
    """Drop what is cached of the tree, unless another order works with it."""
    if running == 1:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def keep(tree: Path | None) -> None:
    """See to it that the host has what was written to the tree."""
    if tree:
        fd = os.open(tree, os.O_RDONLY)
        ctypes.CDLL(None).syncfs(fd)
        os.close(fd)


def serve(path: Path, tree: Path | None) -> None:
    """Orders of one port, one after the other, for ever."""
    global running
    port = Port(path)
    while True:
        order = port.line()
        if "argv" not in order:
            continue
        with counting:
            running += 1
            forget()
        try:
            obey(port, order)
        except Gone:
            pass
        finally:
            with counting:
                running -= 1
            keep(tree)


def main() -> None:
    """A thread for each port."""
    subprocess.run(["modprobe", "-a", "qemu_fw_cfg", "9pnet_virtio", "9p"], check=True)
    tree = mount_tree()
    paths = sorted(PORTS.glob("org.leased.orders.*"))
    threads = [threading.Thread(target=serve, args=(path, tree)) for path in paths]
    for thread in threads:
        thread.start()
    print(f"taking orders at {len(paths)} ports", flush=True)


main()
