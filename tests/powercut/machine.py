# SPDX-License-Identifier: Apache-2.0
"""A machine's disk for a test: a recorder under a loop device, or an image under one, with a real
file system on it.

Rule: what was mounted is unmounted and what was attached is detached when a `with` ends, also after
a failure; and nothing is waited for without a deadline: a recorder that does not end is killed,
which fails whatever still waits for its disk.

Does not judge what is on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.doubles.host import not_proven

MIB = 1 << 20
DEADLINE_S = 30.0


class Layout(NamedTuple):
    """A file system as it is made and mounted."""

    name: str
    size: int
    make: tuple[str, ...]
    options: str = "noatime"
    no_cow: bool = False


EXT4 = ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0")
LAYOUTS = (
    Layout("ext4", 48 * MIB, EXT4),
    Layout("ext4-commit1", 48 * MIB, EXT4, "noatime,commit=1"),
    Layout("ext4-writeback", 48 * MIB, EXT4, "noatime,data=writeback"),
    Layout("xfs", 304 * MIB, ("mkfs.xfs", "-q", "-f")),
    Layout("btrfs", 128 * MIB, ("mkfs.btrfs", "-q", "-f"), no_cow=True),
)


def must_have(*layouts: Layout) -> None:
    """Skip, and say what is not shown, where a part is missing."""
    what = "what a power cut leaves on a real file system"
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop0"):
        not_proven(what, "root, FUSE and loop devices are needed")
    try:
        import pyfuse3  # noqa: F401
    except ImportError:
        not_proven(what, "pyfuse3 is not installed")
    for layout in layouts:
        if shutil.which(layout.make[0]) is None:
            not_proven(what, f"{layout.make[0]} is not installed")


def run(*words: str) -> str:
    """A command that must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def attached(file: Path) -> Iterator[str]:
    """A loop device over a file."""
    device = run("losetup", "--find", "--show", str(file))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str, point: Path, options: str) -> Iterator[Path]:
    """A file system, mounted. Raises OSError if it cannot be."""
    point.mkdir(exist_ok=True)
    run("mount", "-o", options, device, str(point))
    try:
        yield point
    finally:
        again_and_again("umount", str(point))


def made(layout: Layout, folder: Path) -> Path:
    """An image with a fresh file system and the log's (empty) directory."""
    image = folder / f"{layout.name}.made"
    with image.open("wb") as file:
        file.truncate(layout.size)
    run(*layout.make, str(image))
    with attached(image) as device, mounted(device, folder / "made", layout.options) as point:
        (point / "audit").mkdir(0o700)
        if layout.no_cow:
            run("chattr", "+C", str(point / "audit"))
    return image


class Recording(NamedTuple):
    """A mounted file system whose disk is being recorded; `fuse` has the disk itself."""

    fuse: Path
    point: Path
    marks: Path
    control: Path
    file: Path
    device: str


@contextlib.contextmanager
def recorded(layout: Layout, folder: Path, image: Path) -> Iterator[Recording]:
    """The file system of `image` on a recorder."""
    fuse, recording = folder / "fuse", folder / "recording"
    fuse.mkdir()
    words = [str(fuse), str(layout.size), str(recording), str(image)]
    command = [sys.executable, "-m", "tests.powercut.recorder", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            _until(lambda: process.poll() is not None or (fuse / "disk").exists(), "no recorder")
            with attached(fuse / "disk") as device:
                point = folder / "recorded"
                with mounted(device, point, layout.options):
                    yield Recording(fuse, point, fuse / "mark", fuse / "control", recording, device)
            again_and_again("umount", str(fuse))
            process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(DEADLINE_S)
                run("umount", "--lazy", str(fuse))


def again_and_again(*words: str) -> None:
    """A command that is refused for as long as the kernel is still busy with what was ended."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            run(*words)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            os.sched_yield()


def _until(done: object, what: str) -> None:
    assert callable(done)
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        os.sched_yield()


def environment(**more: str) -> dict[str, str]:
    """What a program of the tree runs with."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **more}


def committing(directory: Path, marks: Path, seed: int, **more: str) -> subprocess.Popen[str]:
    """The real writer, committing for ever, each acknowledgement a mark of the recording."""
    command: Sequence[str] = [
        *more.pop("before", "").split(),
        sys.executable,
        "-m",
        "tests.crash.committing",
        str(directory),
        str(seed),
    ]
    with marks.open("wb") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.PIPE,
            env=environment(**more),
            text=True,
            start_new_session=True,
        )


def end(writer: subprocess.Popen[str]) -> str:
    """Kill the writer, and whoever it runs under: a tracer that is killed alone lets go of it. What
    it said."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(writer.pid, signal.SIGKILL)
    return writer.communicate(timeout=DEADLINE_S)[1]
