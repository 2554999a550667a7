# SPDX-License-Identifier: Apache-2.0
"""An instance of the machine: a folder with its disks, sockets and console, its QEMU, and orders
given to it over a virtio port (`guest/orders.py` is at the other end).

Rule: what an instance is made of lies in its folder; who holds the folder holds the machine.

Does not make images (`images.sh`), and does not know what the orders are for.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import machine

PORTS = 4
"""So many orders at the same time."""

BOOT_SECONDS_MAX = 900
LATE = 124
"""The status of an order that ran over its time, as timeout(1) has it."""


class Image(NamedTuple):
    """What a machine starts from."""

    root: str
    root_kind: str
    kernel: str
    initrd: str


class Share(NamedTuple):
    """A directory of this host, and where it is inside."""

    here: Path
    there: Path
    writable: bool = True


class Instance:
    """One machine, by its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cpu_seconds = 0.0
        """What QEMU had used when it was last looked at."""

    def pid(self) -> int:
        """QEMU's, 0 if it does not run."""
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(self.folder / "console") in words else 0

    def start(self, image: Image, share: Share, *append: str) -> float:
        """Boot it and wait until it takes orders; the seconds that took. Raises TimeoutError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        disk = self.folder / "root"
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image.root]
        subprocess.run([*made, "-F", image.root_kind, disk], check=True)
        machine.make_disks(self.folder)
        words = ["qemu-system-x86_64", *machine.arguments(self.folder, disk)]
        words += ["-kernel", image.kernel, "-initrd", image.initrd, "-no-reboot"]
        words += ["-append", machine.command_line(*append), *self.devices(share)]
        words += ["-daemonize", "-pidfile", str(self.folder / "pid")]
        began = time.monotonic()
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        while self.pid() and time.monotonic() < began + BOOT_SECONDS_MAX:
            if self.order(["true"], seconds_max=20) == 0:
                return time.monotonic() - began
            time.sleep(0.2)
        raise TimeoutError("the machine did not come up")

    def devices(self, share: Share) -> list[str]:
        """The shared directory, the ports, the console."""
        words = [f"local,id=tree,path={share.here},security_model=passthrough,multidevs=remap"]
        if not share.writable:
            words[0] += ",readonly=on"
        words = ["-fsdev", *words, "-device", "virtio-9p-pci,fsdev=tree,mount_tag=tree,bus=pcie.0"]
        words += ["-fw_cfg", f"name=opt/leased/tree,string={share.there}"]
        for number in range(PORTS):
            path = self.folder / f"orders.{number}"
            words += ["-chardev", f"socket,id=orders{number},path={path},server=on,wait=off"]
            port = f"virtserialport,bus=serial.0,chardev=orders{number}"
            words += ["-device", f"{port},name=org.leased.orders.{number}"]
        console = f"file,id=console,path={self.folder / 'console'}"
        words += ["-chardev", console, "-serial", "chardev:console"]
        return [*words, "-monitor", f"unix:{self.folder / 'monitor'},server=on,wait=off"]

    def stop(self) -> None:
        """End it at once, as a power cut does."""
        pid = self.pid()
        if pid:
            self.look(pid)
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 30)
                os.close(handle)

    def look(self, pid: int) -> None:
        """Note how long QEMU has computed."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            self.cpu_seconds = ticks / os.sysconf("SC_CLK_TCK")

    def forget(self) -> None:
        """End it, and its disks with it."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ended(self, seconds_max: float) -> bool:
        """Wait until it has gone down by itself."""
        ends = time.monotonic() + seconds_max
        while (pid := self.pid()) and time.monotonic() < ends:
            self.look(pid)
            time.sleep(0.1)
        return not self.pid()

    def console(self) -> str:
        """What its kernel and its systemd said."""
        path = self.folder / "console"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def monitor(self, *commands: str) -> str:
        """Have QEMU's own monitor do something; what it said."""
        said = b""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(2)
            monitor.connect(str(self.folder / "monitor"))
            for command in commands:
                monitor.sendall(f"{command}\n".encode())
                with contextlib.suppress(TimeoutError):
                    while chunk := monitor.recv(1 << 16):
                        said += chunk
        return said.decode("utf-8", "replace")

    @contextlib.contextmanager
    def port(self) -> Iterator[socket.socket]:
        """One of the ports, for us alone."""
        while True:
            for number in range(PORTS):
                with (self.folder / f"orders.{number}.lock").open("w") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    with socket.socket(socket.AF_UNIX) as opened:
                        opened.connect(str(self.folder / f"orders.{number}"))
                        yield opened
                        return
            time.sleep(0.1)

    def order(self, argv: list[str], *, seconds_max: float = 0, **more: Any) -> int:
        """Run a command inside; its status. Output goes to `out(data)` and `err(data)`; `cwd`,
        `env` and `terminal` (lines, columns) as in `guest/orders.py`."""
        order = Order(argv, seconds_max=seconds_max, **more)
        with self.port() as port:
            port.sendall(json.dumps(order.said).encode() + b"\n")
            return order.carry(port)


def nowhere(_data: bytes) -> None:
    """For output that nobody wants."""


class Order:
    """A command for the inside, and the way of its output back."""

    def __init__(
        self,
        argv: list[str],
        *,
        seconds_max: float = 0,
        out: Callable[[bytes], object] = nowhere,
        err: Callable[[bytes], object] = nowhere,
        cwd: str = "/",
        env: dict[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
    ) -> None:
        self.mark = secrets.token_hex(8)
        self.said = {"id": self.mark, "argv": argv, "cwd": cwd, "env": env or {}}
        if terminal:
            self.said["terminal"] = terminal
        self._ends = time.monotonic() + seconds_max if seconds_max else None
        self._takers = (("out", out), ("err", err))
        self._inputs = [0] if terminal else []
        self._rest = b""

    def carry(self, port: socket.socket) -> int:
        """Until the command or its time has ended, or the machine has."""
        while True:
            left = max(0.0, self._ends - time.monotonic()) if self._ends else None
            ready, _, _ = select.select([port, *self._inputs], [], [], left)
            if not ready:
                return LATE
            if 0 in ready:
                typed = base64.b64encode(os.read(0, 4096)).decode()
                port.sendall(json.dumps({"in": typed}).encode() + b"\n")
            if port in ready:
                data = port.recv(1 << 16)
                if not data:
                    return LATE
                status = self.take(data)
                if status is not None:
                    return status

    def take(self, data: bytes) -> int | None:
        """Lines of the guest; the status, if it is among them."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            line: dict[str, Any] = {}
            with contextlib.suppress(ValueError):
                line = dict(json.loads(raw))
            if line.get("id") != self.mark:
                continue
            if "status" in line:
                return int(line["status"])
            for name, taker in self._takers:
                if name in line:
                    taker(base64.b64decode(line[name]))
        return None
