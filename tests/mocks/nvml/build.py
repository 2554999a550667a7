# SPDX-License-Identifier: Apache-2.0
"""Compiles the two mock libraries, once for each state of their sources.

Rule: the result lies in `build/<digest of sources and flags>`, made whole under another name and
then renamed, so that tests that run beside each other may all ask for it.

Does not install anything: a machine gets a copy (`control.py`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
_MACHINE = ("machine.c", "clients.c", "memory.c", "instances.c", "faults.c")
SOURCES = {
    "libnvidia-ml.so.1": (
        *_MACHINE,
        "fields.c",
        "command.c",
        *sorted(path.name for path in HERE.glob("nvml_*.c")),
    ),
    "libcuda.so.1": (*_MACHINE, *sorted(path.name for path in HERE.glob("cuda_*.c"))),
}
_FLAGS = ["-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden"]
_WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]


def build(flags: tuple[str, ...] = ()) -> Path:
    """The directory with both libraries; `flags` for a build of another kind (sanitizers)."""
    command = [os.environ.get("CC", "cc"), *_FLAGS, *_WARNINGS, *flags]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in sorted(HERE.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    done = BUILD / digest.hexdigest()[:16]
    if done.is_dir():
        return done
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD, prefix=".making-") as folder:
        made = Path(folder) / "libraries"
        made.mkdir()
        for name, sources in SOURCES.items():
            words = [*command, f"-Wl,-soname,{name}", "-o", str(made / name), *sources, "-ldl"]
            subprocess.run(words, cwd=HERE, check=True)
        try:
            made.rename(done)
        except OSError:
            if not done.is_dir():
                raise
    return done


if __name__ == "__main__":
    print(build())
