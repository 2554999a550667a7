# SPDX-License-Identifier: Apache-2.0
"""A mock GPU machine: made, started from, broken, and asked for the truth.

    with Machine.create(gpus=["H100", "H100"]) as machine:
        subprocess.run([...], env={**os.environ, **machine.environment()})
        machine.fault("nvmlDeviceGetUUID", "hang")

Rule: what a test asks here comes from the machine itself, never through NVML or CUDA, so that it
can judge both. Nothing is left behind by `destroy`: no node, no console, no file.

Does not load the libraries for use: a process that uses them is started with `environment()`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import os
import shutil
import sys
import tempfile
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

from tests.mocks.nvml import nodes
from tests.mocks.nvml.build import build
from tests.mocks.nvml.nodes import Unavailable

__all__ = ["Machine", "Process", "Unavailable"]

HERE = Path(__file__).resolve().parent
GPU_INSTANCES = 14
REPLY_BYTES = 1 << 16
_EVENT_XID = 8
_DEFAULTS = {
    "memory_node": -1,
    "numa_node": 0,
    "persistence": 1,
    "scrub_on_free": 1,
    "release_ms": 50,
    "release_busy_ms": 200,
    "clocks_event_reasons": 1,
}
_DRIVER = "580.126.09"


class Process(NamedTuple):
    """A client of a GPU, as the machine knows it."""

    pid: int
    used_bytes: int
    kind: int
    gpu_instance: int
    compute_instance: int


class CommandError(Exception):
    """The machine refused a command: its own words."""


class Machine:
    """One mock machine, below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._library: ctypes.CDLL | None = None

    @classmethod
    def create(
        cls,
        root: Path | None = None,
        *,
        gpus: Sequence[str] = ("H100",),
        mig: Mapping[int, bool] | None = None,
        compute_instances: int = 1,
        **fields: int,
    ) -> Self:
        """A machine with these GPUs. `mig` says which GPUs may have instances, and whether the mode
        is on; `fields` are set on every GPU.
        """
        if os.geteuid() != 0:
            raise Unavailable("stand-in nodes: mknod needs root")
        root = root or Path(tempfile.mkdtemp(prefix="leased-mock-gpu-"))
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        root.chmod(0o755)
        machine = cls(root)
        try:
            machine._build(gpus, dict(mig or {}), compute_instances, fields)
        except BaseException:
            machine.destroy()
            raise
        return machine

    def _build(
        self, gpus: Sequence[str], mig: dict[int, bool], cis: int, fields: dict[str, int]
    ) -> None:
        libraries = self.root / "lib"
        shutil.copytree(build(), libraries)
        (self.root / "fb").mkdir(mode=0o777)
        (self.root / "fb").chmod(0o777)
        error = self._load().leased_mock_create(os.fsencode(self.root))
        if error:
            raise OSError(-error, os.strerror(-error), str(self.root))
        self.command(f"system driver={_DRIVER} nvml=13.{_DRIVER} cuda=13000")
        caps_each = GPU_INSTANCES * (1 + cis)
        capable = [index for index in range(len(gpus)) if index in mig]
        wanted = len(capable) * caps_each + (2 if capable else 0) - 2 * len(gpus)
        consoles = nodes.reserve(self.root, len(gpus) + 1 + max(0, -(-wanted // 3)))
        (self.root / "consoles").write_text(" ".join(map(str, consoles)))
        nodes.wake(consoles)
        _Furniture(self.root, consoles, len(gpus)).place()
        pool = _cap_minors(consoles, len(gpus))
        for index, name in enumerate(gpus):
            self._add_gpu(index, name, consoles[index], {**fields, "mig_mode": mig.get(index, 0)})
        self._add_caps(capable, cis, pool, consoles)

    def _add_gpu(self, index: int, name: str, minor: int, fields: dict[str, int]) -> None:
        profile = tomllib.loads((HERE / "profiles" / f"{name}.toml").read_text())
        instances, links = profile.pop("mig", []), profile.pop("links")
        values = {
            "minor": minor,
            "pci_bus": 0x1A + 0x11 * index,
            "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.root}/{index}')}",
            "serial": f"16{minor:02}{index:09}",
            **_DEFAULTS,
            **profile,
            **fields,
            "mig_pending": int(fields["mig_mode"]),
        }
        self.set(index, **values)
        for row in instances:
            self.command(f"profile {index} {_words({**row, 'start': _listed(row['start'])})}")
        for link in range(links):
            self.command(f"link {index} {link} 1 -1")
        self.command(f"layout {index}")
        _place_gpu(self.root, index, minor, self.show(index))

    def _add_caps(self, capable: list[int], cis: int, pool: list[int], consoles: list[int]) -> None:
        lines, caps = [], self.root / "dev/nvidia-caps"
        free = iter(pool)
        names = ["config", "monitor"] if capable else []
        for index in capable:
            for gi, ci in itertools.product(range(GPU_INSTANCES), range(-1, cis)):
                part = "access" if ci < 0 else f"ci{ci}/access"
                minor = next(free)
                lines.append(f"gpu{consoles[index]}/gi{gi}/{part} {minor}\n")
                self.command(f"cap {index} {gi} {ci} {minor}")
                nodes.make(caps / f"nvidia-cap{minor}", nodes.VCS, minor)
        for name in names:
            minor = next(free)
            lines.insert(0, f"{name} {minor}\n")
            nodes.make(caps / f"nvidia-cap{minor}", nodes.VCS, minor)
        _write(self.root / "proc/driver/nvidia-caps/mig-minors", "".join(lines))

    def _load(self) -> ctypes.CDLL:
        if self._library is None:
            path = self.root / "lib/libnvidia-ml.so.1"
            self._library = ctypes.CDLL(str(path))
            self._library.leased_mock_create.argtypes = [ctypes.c_char_p]
            self._library.leased_mock_command.argtypes = [
                ctypes.c_char_p,
                ctypes.c_char_p,
                ctypes.c_size_t,
            ]
        return self._library

    def command(self, line: str) -> str:
        """One line to the machine (`command.c` has them all); its answer."""
        reply = ctypes.create_string_buffer(REPLY_BYTES)
        result = self._load().leased_mock_command(line.encode(), reply, REPLY_BYTES)
        if result:
            raise CommandError(f"{line}: {reply.value.decode()}")
        return reply.value.decode()

    def environment(self) -> dict[str, str]:
        """What a process must be started with to find this machine's libraries."""
        before = os.environ.get("LD_LIBRARY_PATH", "")
        path = f"{self.root / 'lib'}:{before}".rstrip(":")
        return {"LD_LIBRARY_PATH": path, "LEASED_MOCK_ROOT": str(self.root)}

    def set(self, gpu: int, **fields: int | str) -> None:
        """Set fields of a GPU by name (`fields.c` has them all)."""
        self.command(f"gpu {gpu} {_words(fields)}")

    def show(self, gpu: int) -> dict[str, str]:
        """All fields of a GPU."""
        lines = self.command(f"show {gpu}").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def uuid(self, gpu: int) -> str:
        """The GPU's UUID."""
        return self.show(gpu)["uuid"]

    def node(self, gpu: int) -> Path:
        """The GPU's device node."""
        return self.root / f"dev/nvidia{self.show(gpu)['minor']}"

    def fault(
        self, call: str, kind: str, *, gpu: int = -1, after: int = 0, count: int = -1
    ) -> None:
        """`call` (or `*`) hangs ("hang"), waits ("delay:MS") or fails ("return:CODE"): the next
        `count` times (-1: always) once `after` calls went well. A CUDA call that fails with 0 says
        that it did what it did not do.
        """
        name, _, argument = kind.partition(":")
        self.command(f"fault {call} {name} {argument or 0} {gpu} {after} {count}")

    def clear(self) -> None:
        """No more faults; what hangs goes on."""
        self.command("clear")

    def ghost(self, gpu: int, pid: int, used_bytes: int = 0, kind: int = 1) -> None:
        """A process in NVML's list that nobody is behind."""
        self.command(f"ghost {gpu} {pid} {used_bytes} {kind}")

    def unghost(self, gpu: int) -> None:
        """The ghosts go."""
        self.command(f"unghost {gpu}")

    def leak(self, gpu: int, leaked_bytes: int) -> None:
        """Memory in use that no process has."""
        self.command(f"leak {gpu} {leaked_bytes}")

    def unleak(self, gpu: int) -> None:
        """The leaks go."""
        self.command(f"unleak {gpu}")

    def residue(self, gpu: int, offset: int, residue_bytes: int, value: int = 0xDEADBEEF) -> int:
        """Contents in memory that is free; how many bytes of the range were."""
        return int(self.command(f"residue {gpu} {offset} {residue_bytes} {value}"))

    def lose(self, gpu: int, *, says_so: bool = True) -> None:
        """The GPU falls off the bus, with XID 79: GPU_IS_LOST everywhere, or an "Unknown Error" for
        whoever asks for it anew."""
        self.command(f"lose {gpu} {1 if says_so else 2}")

    def find(self, gpu: int) -> None:
        """It is back."""
        self.set(gpu, lost=0)

    def recovery(self, gpu: int, action: int) -> None:
        """The driver asks for a recovery action (field 230), with XID 154 and the event."""
        self.command(f"recovery {gpu} {action}")

    def mig_in_use(self, gpu: int, times: int) -> None:
        """The next destructions of instances answer IN_USE."""
        self.set(gpu, mig_in_use=times)

    def xid(self, gpu: int, code: int, times: int = 1) -> None:
        """An XID, or a storm of them."""
        self.command(f"event {gpu} {_EVENT_XID} {code} {times}")

    def driver_unload(self) -> None:
        """The driver is taken out: nothing answers, settings are forgotten."""
        self.command("driver unload")

    def driver_load(self) -> None:
        """The driver is back, with every handle of before invalid."""
        self.command("driver load")

    def processes(self, gpu: int) -> list[Process]:
        """Who has contexts on a GPU."""
        lines = self.command(f"processes {gpu}").splitlines()
        return [Process(*map(int, line.split())) for line in lines]

    def used(self, gpu: int) -> int:
        """Bytes in use, without what the driver keeps."""
        return int(self.command(f"used {gpu}"))

    def dirty(self, gpu: int) -> int:
        """Bytes of free memory that are not zero."""
        return int(self.command(f"dirty {gpu}"))

    def destroy(self) -> None:
        """Take everything away again."""
        consoles = self.root / "consoles"
        numbers = [int(word) for word in consoles.read_text().split()] if consoles.exists() else []
        devices = self.root / "dev"
        if devices.is_symlink():
            shutil.rmtree(devices.resolve(), ignore_errors=True)
        shutil.rmtree(self.root, ignore_errors=True)
        if numbers:
            nodes.release(self.root, numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.destroy()


class _Furniture:
    """The files and nodes that a host with the driver has beside its GPUs."""

    def __init__(self, root: Path, consoles: list[int], gpus: int) -> None:
        self._root = root
        self._console = consoles[gpus]

    def place(self) -> None:
        """The nodes that all GPUs share, and the driver's files under proc."""
        self._place_dev()
        _write(
            self._root / "proc/devices",
            "Character devices:\n  1 mem\n  5 /dev/tty\n"
            f"  {nodes.VCS} nvidia\n  {nodes.VCS} nvidia-modeset\n  {nodes.VCS} nvidiactl\n"
            f"  {nodes.VCS} nvidia-caps\n  {nodes.TTY} nvidia-uvm\n\nBlock devices:\n",
        )
        driver = self._root / "proc/driver/nvidia"
        _write(
            driver / "version",
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {_DRIVER}  Release Build\n",
        )
        _write(driver / "params", 'ModifyDeviceFiles: 1\nRegistryDwords: ""\n')

    def _place_dev(self) -> None:
        dev = self._root / "dev"
        dev.mkdir()
        if not nodes.openable(dev):
            dev.rmdir()
            dev.symlink_to(tempfile.mkdtemp(prefix="leased-mock-gpu-", dir="/dev"))
            dev.resolve().chmod(0o755)
        console = self._console
        (dev / "nvidia-caps").mkdir()
        nodes.make(dev / "nvidiactl", nodes.VCS, 128 + console)
        nodes.make(dev / "nvidia-modeset", nodes.VCS, 64 + console)
        nodes.make(dev / "nvidia-uvm", nodes.TTY, console)
        nodes.make(dev / "nvidia-uvm-tools", nodes.VCS, console)


def _cap_minors(consoles: list[int], gpus: int) -> list[int]:
    """What is left of the consoles' nodes: of the GPUs' own, the two that are not the GPU."""
    of_gpus = [base + console for console in consoles[:gpus] for base in (64, 128)]
    return of_gpus + [base + it for it in consoles[gpus + 1 :] for base in (0, 64, 128)]


def _place_gpu(root: Path, index: int, minor: int, fields: dict[str, str]) -> None:
    nodes.make(root / f"dev/nvidia{minor}", nodes.VCS, minor)
    address = f"{0:04x}:{int(fields['pci_bus']):02x}:{int(fields['pci_device']):02x}.0"
    _write(
        root / f"proc/driver/nvidia/gpus/{address}/information",
        f"Model: \t\t {fields['name']}\nIRQ:   \t\t {64 + index}\nGPU UUID: \t {fields['uuid']}\n"
        f"Video BIOS: \t {fields['vbios']}\nBus Type: \t PCIe\nBus Location: \t {address}\n"
        f"Device Minor: \t {minor}\nGPU Excluded:\t No\n",
    )
    device = root / "sys/bus/pci/devices" / address
    _write(device / "vendor", "0x10de\n")
    _write(device / "class", "0x030200\n")
    _write(device / "device", f"0x{int(fields['pci_device_id']) >> 16:04x}\n")
    _write(device / "numa_node", f"{fields['numa_node']}\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _words(fields: Mapping[str, int | str]) -> str:
    return " ".join(
        f"{key}={quote(value, safe=',') if isinstance(value, str) else int(value)}"
        for key, value in fields.items()
    )


def main() -> int:
    """The same from a shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create")
    create.add_argument("root", type=Path)
    create.add_argument("--gpu", action="append", default=[])
    create.add_argument("--mig", action="append", type=int, default=[], help="index of a GPU")
    tell = verbs.add_parser("tell", help="one command, as command.c has them")
    tell.add_argument("root", type=Path)
    tell.add_argument("words", nargs=argparse.REMAINDER)
    destroy = verbs.add_parser("destroy")
    destroy.add_argument("root", type=Path)
    options = parser.parse_args()
    try:
        if options.verb == "create":
            mig = dict.fromkeys(options.mig, True)
            machine = Machine.create(options.root, gpus=options.gpu or ["H100"], mig=mig)
            for name, value in machine.environment().items():
                print(f"export {name}={value}")
        elif options.verb == "tell":
            print(Machine(options.root).command(" ".join(options.words)))
        else:
            Machine(options.root).destroy()
    except (CommandError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
