# SPDX-License-Identifier: Apache-2.0
"""The compiled load generator from Python: build it, run it, read its figures.

Rule: figures are passed on as they were printed; nothing is averaged here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("load.c")
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")
Figures = dict[str, Any]


def compile_load(into: Path) -> Path:
    """Compile load.c into the directory `into` and return the program's path."""
    program = into / "load"
    subprocess.run(["cc", *FLAGS, "-o", program, SOURCE], check=True)
    return program


def run_load(program: Path, *, mode: str, socket: Path, **options: object) -> Figures:
    """Run one mode to its end; `options` are its long options with `_` for `-`, True for a bare
    one.
    """
    done = subprocess.run(
        [program, "--mode", mode, "--socket", socket, *arguments(options)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"bench: {mode} failed: {done.stderr.strip()}")
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def arguments(options: dict[str, object]) -> list[str]:
    """Long options of the load generator."""
    words: list[str] = []
    for name, value in options.items():
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def fdatasync_p50_ns(program: Path, directory: Path) -> int:
    """The disk as it is this minute: median of overwriting 512 bytes and fdatasync."""
    figures = run_load(program, mode="fdatasync", socket=directory, seconds=1.0, bytes=512)
    return int(figures["latency"]["p50_ns"])
