# SPDX-License-Identifier: Apache-2.0
"""The VM's three boots, seen from the host: start QEMU, read what the guest tells, pull the plug,
count.

Rule: a phase that did not say that it ended is a failure, however many of its tests passed. Each
boot writes to an overlay of its own above the disk before it, so the power cut loses what QEMU had
not been asked to flush: with the copy-on-write format, data whose place was not flushed is gone, as
it is with a disk's own cache.

Does not build the image (`tests/vm/run`) and does not judge the agent (`tests/vm/guest`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BOOT_SECONDS_MAX = 480
STORM_GRANTS = 120
"""Acknowledged grants before the plug is pulled: under emulation a few seconds of full load."""

MEMORY = (1024, 512)
"""MiB of NUMA node 0 (with both processors) and node 1 (memory only, slower by HMAT)."""

LATENCY_NS = (90, 350)
BANDWIDTH_MIBPS = (51_200, 20_480)


class Tally:
    """What was found so far, printed as it comes."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0

    def count(self, outcome: str, name: str, *, seconds: float = 0.0, why: str = "") -> None:
        """One test's end."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        mark = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[outcome]
        print(f"  {mark} {name} ({seconds:.1f} s)", flush=True)
        if why:
            print("".join(f"       {line}\n" for line in why.splitlines()), end="", flush=True)


class Boot:
    """One run of QEMU."""

    def __init__(self, options: argparse.Namespace, folder: Path, phase: str, disk: Path) -> None:
        self.phase = phase
        self.folder = folder
        self.results = folder / f"{phase}.results"
        self.console = folder / f"{phase}.console"
        self.results.touch()
        self.began = time.monotonic()
        arguments = machine_arguments() + [
            *("-kernel", options.kernel, "-initrd", options.initrd),
            *("-append", command_line(phase)),
            *("-drive", f"if=none,id=root,file={disk},format=qcow2,cache=writeback,discard=ignore"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-chardev", f"file,id=results,path={self.results}"),
            *("-device", "virtserialport,chardev=results,name=org.leased.results"),
            *("-chardev", f"file,id=journal,path={folder / phase}.journal"),
            *("-device", "virtserialport,chardev=journal,name=org.leased.journal"),
            *("-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"),
            *("-monitor", f"unix:{folder / phase}.monitor,server=on,wait=off"),
        ]
        for name in ("acked", "match"):
            if (folder / name).exists():
                arguments += ["-fw_cfg", f"name=opt/leased/{name},file={folder / name}"]
        self.process = subprocess.Popen(
            ["nice", "-n", "10", "qemu-system-x86_64", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=(folder / f"{phase}.qemu").open("wb"),
            stderr=subprocess.STDOUT,
        )

    def lines(self, seconds_max: float) -> Iterator[dict[str, Any]]:
        """What the guest says, until QEMU ends or the time is over."""
        deadline = time.monotonic() + seconds_max
        with self.results.open("rb") as file:
            rest = b""
            while True:
                ended = self.process.poll() is not None
                chunk = file.read()
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                for line in whole.splitlines() if newline else ():
                    yield json.loads(line)
                if ended and not chunk:
                    return
                if time.monotonic() > deadline:
                    return
                if not chunk:
                    time.sleep(0.05)

    def interrogate(self) -> None:
        """Have a guest that makes no progress say on its console what every processor does and
        which tasks are blocked (the kernel's own keys)."""
        if self.process.poll() is not None:
            return
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(5)
            try:
                monitor.connect(str(self.folder / f"{self.phase}.monitor"))
                for command in ("info registers -a", *(f"sendkey alt-sysrq-{k}" for k in "lwm")):
                    monitor.sendall(f"{command}\n".encode())
                    time.sleep(3)
                said = monitor.recv(1 << 16)
            except OSError as error:
                said = str(error).encode()
        (self.folder / f"{self.phase}.registers").write_bytes(said)

    def pull_the_plug(self) -> None:
        """SIGKILL, if it still runs: nothing in QEMU gets to write anything more."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def console_end(self, lines: int = 25) -> str:
        """The last lines of the serial console."""
        text = self.console.read_text("utf-8", "replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def machine_arguments() -> list[str]:
    """The machine: two processors, two NUMA nodes with what HMAT says of them."""
    arguments = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    # One host thread for both processors: with two, QEMU 7.2 now and then goes on executing the
    # breakpoint by which the kernel changes its own code (measured: each 20th switch of cpu.max).
    arguments += ["-machine", "q35,hmat=on,graphics=off", "-accel", "tcg,thread=single"]
    arguments += ["-cpu", "max,la57=off", "-smp", "2", "-m", f"{sum(MEMORY)}M"]
    for node, size in enumerate(MEMORY):
        arguments += ["-object", f"memory-backend-ram,size={size}M,id=memory{node}"]
    arguments += ["-numa", "node,nodeid=0,memdev=memory0,cpus=0-1"]
    arguments += ["-numa", "node,nodeid=1,memdev=memory1,initiator=0"]
    for node in range(len(MEMORY)):
        to = f"hmat-lb,initiator=0,target={node},hierarchy=memory"
        arguments += ["-numa", f"{to},data-type=access-latency,latency={LATENCY_NS[node]}"]
        arguments += [
            "-numa",
            f"{to},data-type=access-bandwidth,bandwidth={BANDWIDTH_MIBPS[node]}M",
        ]
    return [*arguments, "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]


def command_line(phase: str) -> str:
    """The kernel's: huge pages on both nodes, every controller on v2."""
    return (
        "root=/dev/vda rw console=ttyS0 quiet panic=-1 hugepages=0:24,1:24 "
        "systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 sysrq_always_enabled=1 "
        f"leased.phase={phase}"
    )


def overlay(folder: Path, phase: str, below: Path, kind: str) -> Path:
    """A disk of its own for a boot, above the one before."""
    disk = folder / f"{phase}.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", kind, disk], check=True
    )
    return disk


def run_phase(boot: Boot, tally: Tally) -> bool:
    """Read a phase to its end; True if it ended by itself."""
    ended = False
    try:
        for line in boot.lines(BOOT_SECONDS_MAX):
            ended = take(line, boot, tally) or ended
        if not ended:
            boot.interrogate()
    finally:
        boot.pull_the_plug()
    if not ended:
        tally.count("failed", f"phase {boot.phase}: did not end", why=boot.console_end())
    print(f"  phase {boot.phase}: {time.monotonic() - boot.began:.0f} s", flush=True)
    return ended


def take(line: dict[str, Any], boot: Boot, tally: Tally) -> bool:
    """Count one line; True if it says that the phase's tests have ended."""
    if line["event"] == "test":
        name = f"{boot.phase}: {line['name']}"
        tally.count(line["outcome"], name, seconds=line["seconds"], why=line["why"])
    elif line["event"] == "note":
        print(f"       {line['text']}", flush=True)
    return bool(line["event"] == "ended")


def run_storm(boot: Boot, tally: Tally) -> list[dict[str, Any]]:
    """Read a phase to its grant storm and cut the power in the middle of it. Returns what was
    acknowledged.
    """
    acked: list[dict[str, Any]] = []
    ended = False
    try:
        for line in boot.lines(BOOT_SECONDS_MAX):
            ended = take(line, boot, tally) or ended
            if line["event"] == "acked":
                acked.append(line)
                if len(acked) >= STORM_GRANTS:
                    break
        else:
            boot.interrogate()
    finally:
        boot.pull_the_plug()
    name = f"{boot.phase}: power cut in the middle of a grant storm"
    if ended and len(acked) >= STORM_GRANTS:
        tally.count("passed", name, seconds=time.monotonic() - boot.began)
    else:
        tally.count(
            "failed", name, why=f"{len(acked)} grants were acknowledged\n{boot.console_end()}"
        )
    return acked


def run_all(options: argparse.Namespace, folder: Path) -> Tally:
    """The three boots."""
    tally = Tally()
    if options.match:
        (folder / "match").write_text(options.match)
    disk = overlay(folder, "first", Path(options.image), "raw")
    if not run_phase(Boot(options, folder, "first", disk), tally):
        return tally
    disk = overlay(folder, "second", disk, "qcow2")
    acked = run_storm(Boot(options, folder, "second", disk), tally)
    (folder / "acked").write_text(json.dumps(acked))
    disk = overlay(folder, "third", disk, "qcow2")
    run_phase(Boot(options, folder, "third", disk), tally)
    return tally


def main() -> int:
    """Run, say, count; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("image", "kernel", "initrd"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--results")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("-k", dest="match", default="")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="leased-vm-"))
    try:
        tally = run_all(options, folder)
    finally:
        if options.results:
            Path(options.results).mkdir(parents=True, exist_ok=True)
            for kind in ("*.console", "*.results", "*.journal", "*.qemu", "*.registers", "acked"):
                for path in folder.glob(kind):
                    shutil.copy(path, options.results)
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C.UTF-8")
    sys.exit(main())
