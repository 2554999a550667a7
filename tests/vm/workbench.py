# SPDX-License-Identifier: Apache-2.0
"""Workbenches: machines that stay up and take orders (`tests/vm/shell`).

An instance is a folder in the cache: its disks, its sockets, its console, and the pid of its QEMU.

Rule: nothing of an instance is left when it is stopped; a name is one machine at a time.

Does not make images (`tests/vm/images.sh`), and tests nothing.
"""

from __future__ import annotations

import argparse
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
import sys
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine

PORTS = 4
"""So many orders at the same time."""

BOOT_SECONDS_MAX = 300


def instances() -> Path:
    """Where they lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LEASED_VM_CACHE") or Path(cache) / "leased-vm") / "instances"


class Instance:
    """One machine, by its name."""

    def __init__(self, name: str) -> None:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise SystemExit(f"tests/vm/shell: {name!r} is no name for a machine")
        self.name = name
        self.folder = instances() / name

    def pid(self) -> int:
        """QEMU's, 0 if it does not run."""
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(self.folder) in words else 0

    def start(self, options: argparse.Namespace, tree: Path) -> None:
        """Boot it and wait until it takes orders."""
        if self.pid():
            raise SystemExit(f"tests/vm/shell: {self.name} runs already")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        disk = self.folder / "root"
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", options.image, "-F", "raw", disk]
        subprocess.run(made, check=True)
        machine.make_disks(self.folder)
        words = ["nice", "-n", "10", "qemu-system-x86_64", *machine.arguments(self.folder, disk)]
        words += ["-kernel", options.kernel, "-initrd", options.initrd, "-no-reboot"]
        words += ["-append", machine.command_line(*options.append), *self.devices(tree)]
        words += ["-daemonize", "-pidfile", str(self.folder / "pid")]
        began = time.monotonic()
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        while time.monotonic() < began + BOOT_SECONDS_MAX:
            if not self.pid():
                break
            if self.order(["true"], quiet=True, seconds_max=5) == 0:
                seconds = time.monotonic() - began
                print(f"{self.name}: up after {seconds:.0f} s, {tree} inside", file=sys.stderr)
                return
            time.sleep(0.2)
        said = self.console()[-3000:]
        self.stop()
        raise SystemExit(f"{said}\ntests/vm/shell: {self.name} did not come up")

    def devices(self, tree: Path) -> list[str]:
        """The tree, the ports, the console."""
        words = ["-fsdev", f"local,id=tree,path={tree},security_model=passthrough,multidevs=remap"]
        words += ["-device", "virtio-9p-pci,fsdev=tree,mount_tag=tree,bus=pcie.0"]
        words += ["-fw_cfg", f"name=opt/leased/tree,string={tree}"]
        for number in range(PORTS):
            path = self.folder / f"orders.{number}"
            words += ["-chardev", f"socket,id=orders{number},path={path},server=on,wait=off"]
            port = f"virtserialport,bus=serial.0,chardev=orders{number}"
            words += ["-device", f"{port},name=org.leased.orders.{number}"]
        console = f"file,id=console,path={self.folder / 'console'}"
        words += ["-chardev", console, "-serial", "chardev:console"]
        return [*words, "-monitor", f"unix:{self.folder / 'monitor'},server=on,wait=off"]

    def stop(self) -> None:
        """End it at once; its disks go with it."""
        pid = self.pid()
        if pid:
            handle = os.pidfd_open(pid)
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], 30)
            os.close(handle)
        shutil.rmtree(self.folder, ignore_errors=True)

    def console(self) -> str:
        """What its kernel and its systemd said."""
        path = self.folder / "console"
        return path.read_text("utf-8", "replace") if path.exists() else ""

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

    def order(
        self,
        argv: list[str],
        *,
        cwd: str = "/",
        quiet: bool = False,
        terminal: bool = False,
        seconds_max: float = 0,
        env: dict[str, str] | None = None,
    ) -> int:
        """Run a command inside; its status (124: over its time)."""
        mark = secrets.token_hex(8)
        said: dict[str, Any] = {"id": mark, "argv": argv, "cwd": cwd, "env": env or {}}
        if terminal:
            size = os.get_terminal_size(0)
            said["terminal"] = [size.lines, size.columns]
            said["env"]["TERM"] = os.environ.get("TERM", "dumb")
        ends = time.monotonic() + seconds_max if seconds_max else None
        with self.port() as port:
            port.sendall(json.dumps(said).encode() + b"\n")
            with raw(terminal):
                for line in answers(port, terminal, ends):
                    if line.get("id") != mark:
                        continue
                    if "status" in line:
                        return int(line["status"])
                    for name, fd in (("out", 1), ("err", 2)):
                        if name in line and not quiet:
                            write(fd, base64.b64decode(line[name]))
        return 124


@contextlib.contextmanager
def raw(terminal: bool) -> Iterator[None]:
    """Our own terminal passes every key on."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def answers(port: socket.socket, terminal: bool, ends: float | None) -> Iterator[dict[str, Any]]:
    """Lines from the guest until it goes or the time is over; keys to the guest."""
    rest = b""
    inputs = [port, 0] if terminal else [port]
    while True:
        left = max(0.0, ends - time.monotonic()) if ends else None
        ready, _, _ = select.select(inputs, [], [], left)
        if not ready:
            return
        if 0 in ready:
            typed = base64.b64encode(os.read(0, 4096)).decode()
            port.sendall(json.dumps({"in": typed}).encode() + b"\n")
        if port in ready:
            data = port.recv(1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                with contextlib.suppress(ValueError):
                    yield dict(json.loads(line))


def write(fd: int, data: bytes) -> None:
    """All of it, in order with what Python itself printed."""
    while data:
        data = data[os.write(fd, data) :]


def listed() -> None:
    """Which there are."""
    for folder in sorted(instances().glob("*")):
        pid = Instance(folder.name).pid()
        print(f"{folder.name}\t{f'pid {pid}' if pid else 'does not run'}")


def parsed() -> argparse.Namespace:
    """What was asked."""
    words, command = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    parser = argparse.ArgumentParser(prog="tests/vm/shell", usage=argparse.SUPPRESS)
    for name in ("start", "exec", "stop", "console"):
        parser.add_argument(f"--{name}", metavar="NAME")
    for name in ("image", "kernel", "initrd", "default-tree", "tree", "cwd"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--append", action="append", default=[])
    parser.add_argument("--timeout", type=float, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tty", action="store_true")
    options = parser.parse_args(words)
    options.command = command
    return options


def main() -> int:
    """One of the uses; the exit status."""
    options = parsed()
    if options.list:
        listed()
        return 0
    if options.stop:
        Instance(options.stop).stop()
        return 0
    if options.console:
        print(Instance(options.console).console(), end="")
        return 0
    if options.exec:
        instance = Instance(options.exec)
        if not instance.pid():
            raise SystemExit(f"tests/vm/shell: {instance.name} does not run (--start it)")
        cwd = options.cwd or os.fspath((instance.folder / "tree").readlink())
        return ordered(instance, options, cwd)
    tree = Path(options.tree or options.default_tree).resolve()
    instance = Instance(options.start or f"once-{os.getpid()}")
    try:
        instance.start(options, tree)
        (instance.folder / "tree").symlink_to(tree)
        if options.start and not options.command:
            return 0
        return ordered(instance, options, options.cwd or str(tree))
    finally:
        if not options.start:
            instance.stop()


def ordered(instance: Instance, options: argparse.Namespace, cwd: str) -> int:
    """Run the command that was asked for."""
    if not options.command:
        raise SystemExit("tests/vm/shell: which command? (-- COMMAND...)")
    return instance.order(
        options.command, cwd=cwd, terminal=options.tty, seconds_max=options.timeout
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
