# SPDX-License-Identifier: Apache-2.0
"""Workbenches: machines that stay up under a name and take orders (`tests/vm/shell`).

Rule: nothing of a workbench is left when it is stopped; a name is one machine at a time.

Does not make images (`tests/vm/images.sh`), and tests nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from instance import Image, Instance, Share


def benches() -> Path:
    """Where they lie."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LEASED_VM_CACHE") or Path(cache) / "leased-vm") / "instances"


def named(name: str) -> Instance:
    """The workbench of that name."""
    if not name.replace("-", "").replace("_", "").isalnum():
        refuse(f"{name!r} is no name for a machine")
    return Instance(benches() / name)


def refuse(why: str) -> NoReturn:
    """Say why not, and end."""
    raise SystemExit(f"tests/vm/shell: {why}")


def start(bench: Instance, options: argparse.Namespace) -> None:
    """Boot it, with the tree inside at the place that it has here."""
    if bench.pid():
        refuse(f"{bench.folder.name} runs already")
    bench.forget()
    tree = Path(options.tree or options.default_tree).resolve()
    image = Image(options.image, "raw", options.kernel, options.initrd)
    try:
        seconds = bench.start(image, Share(tree, tree), *options.append)
    except TimeoutError as error:
        said = bench.console()[-3000:]
        bench.forget()
        refuse(f"{error}\n{said}")
    (bench.folder / "tree").symlink_to(tree)
    print(f"{bench.folder.name}: up after {seconds:.0f} s, {tree} inside", file=sys.stderr)


def order(bench: Instance, options: argparse.Namespace) -> int:
    """Run the command that was asked for; its status."""
    if not bench.pid():
        refuse(f"{bench.folder.name} does not run (--start it)")
    if not options.command:
        refuse("which command? (-- COMMAND...)")
    cwd = options.cwd or os.fspath((bench.folder / "tree").readlink())
    env, size = {}, None
    if options.tty:
        env["TERM"] = os.environ.get("TERM", "dumb")
        size = (os.get_terminal_size(0).lines, os.get_terminal_size(0).columns)
    with raw(options.tty):
        return bench.order(
            options.command,
            seconds_max=options.timeout,
            out=lambda data: write(1, data),
            err=lambda data: write(2, data),
            cwd=cwd,
            env=env,
            terminal=size,
        )


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


def write(fd: int, data: bytes) -> None:
    """All of it."""
    while data:
        data = data[os.write(fd, data) :]


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
        for folder in sorted(benches().glob("*")):
            pid = Instance(folder).pid()
            print(f"{folder.name}\t{f'pid {pid}' if pid else 'does not run'}")
    elif options.stop:
        named(options.stop).forget()
    elif options.console:
        print(named(options.console).console(), end="")
    elif options.exec:
        return order(named(options.exec), options)
    elif options.start:
        start(named(options.start), options)
    else:
        bench = named(f"once-{os.getpid()}")
        try:
            start(bench, options)
            return order(bench, options)
        finally:
            bench.forget()
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
