# SPDX-License-Identifier: Apache-2.0
"""A bus of device-dax ranges as files, with somebody behind them who does what the kernel does:
a region that is bound to its driver has a range, one that is unbound has none, and a new range has
a driver only where the kernel probes, or by its name. What hangs between a CXL region and its range
(`dax_region0`) has a driver that lets nobody bind or unbind (`suppress_bind_attrs` in
drivers/dax/cxl.c, since there is one).

Rule: files are those of `sysfs_trees`; what is written to `bind`, `unbind` and `new_id` goes
through pipes, and is acted upon as a kernel would: what is taken is gone before anything is given.

Does not have memory: nothing can be overwritten here.
"""

from __future__ import annotations

import os
import select
import shutil
import threading
from pathlib import Path

from tests.doubles.sysfs_trees import dax, write

REGION = "sys/devices/platform/ACPI0017:00/root0/decoder0.0/region0"
BETWEEN = f"{REGION}/dax_region0"
KEEPER = "sys/bus/cxl/drivers/cxl_region"
_KEEPER_BETWEEN = "sys/bus/cxl/drivers/cxl_dax_region"
BUS = "sys/bus/dax"
UUID = "279c6134-f4e4-4011-a5c8-e2a2d0dbb82b"
SIZE_BYTES = 64 << 30
_FILES = {"size": str(SIZE_BYTES), "align": "2097152", "target_node": "2", "resource": "0x1000"}


class DaxBus:
    """One CXL region. Use within `with`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[str] = []
        self.refuses = False
        self._ids: set[str] = set()
        write(root, {f"{REGION}/uuid": UUID, f"{REGION}/commit": "1"})
        write(root, {f"{BUS}/drivers_probe": "", f"{BUS}/drivers_autoprobe": "1"})
        folders = (KEEPER, _KEEPER_BETWEEN, f"{BUS}/drivers/device_dax")
        for folder in (*folders, "sys/bus/cxl/devices", "dev"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "sys/bus/cxl/devices/region0").symlink_to(root / REGION)
        self._pipes: dict[int, str] = {}
        for path in (f"{KEEPER}/unbind", f"{KEEPER}/bind", f"{BUS}/drivers/device_dax/new_id"):
            os.mkfifo(root / path)
            self._pipes[os.open(root / path, os.O_RDWR | os.O_NONBLOCK)] = path
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DaxBus:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stopped)
        self._thread.join(10)
        for fd in (*self._pipes, self._stop):
            os.close(fd)

    # -- what the kernel does ----------------------------------------------------------------------

    def bind(self) -> None:
        """The region has its driver, and there is a range."""
        if self.refuses:
            return
        (self.root / REGION / "driver").symlink_to(self.root / KEEPER)
        write(self.root, {f"{BETWEEN}/modalias": ""})
        (self.root / BETWEEN / "driver").symlink_to(self.root / _KEEPER_BETWEEN)
        probes = (self.root / BUS / "drivers_autoprobe").read_text().strip() == "1"
        driver = "device_dax" if "dax0.0" in self._ids else "kmem" if probes else ""
        dax(self.root, "dax0.0", BETWEEN, _FILES, driver)
        (self.root / "dev/dax0.0").touch()

    def unbind(self) -> None:
        """It has none, and there is none."""
        for path in (f"{REGION}/driver", f"{BUS}/devices/dax0.0", "dev/dax0.0"):
            (self.root / path).unlink(missing_ok=True)
        shutil.rmtree(self.root / BETWEEN, ignore_errors=True)

    def attach(self, name: str) -> None:
        """Ranges of that name are devices."""
        self._ids.add(name)
        place = self.root / BETWEEN / name
        if place.exists() and not (place / "driver").exists():
            (place / "driver").symlink_to(self.root / BUS / "drivers/device_dax")

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([*self._pipes, self._stop], [], [])
            if self._stop in ready:
                return
            for fd, path in self._pipes.items():
                if fd in ready:
                    text = os.read(fd, 4096).decode("ascii")
                    self.told.append(f"{text} > {path}")
                    self._act(os.path.basename(path), text)

    def _act(self, verb: str, text: str) -> None:
        if verb == "unbind":
            self.unbind()
        elif verb == "bind":
            self.bind()
        else:
            self.attach(text)
