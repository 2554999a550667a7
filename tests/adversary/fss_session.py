# SPDX-License-Identifier: Apache-2.0
"""One life of a journald: `unshare -m python3 fss_session.py ROOT SEAL FIRST COUNT EPOCHS` writes
COUNT events in each of EPOCHS epochs of a second, numbered from FIRST, to ROOT/log/journal.

Run in a mount namespace of its own: /run, /var/log, /etc/systemd and the machine id are then those
of ROOT, and the host's journald is not touched. Imports nothing of the project.

Does not judge (`fss`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

DEADLINE_S = 20.0
CONFIGURATION = """[Journal]
Storage=persistent
Seal={seal}
ReadKMsg=no
Audit=no
Compress=no
RateLimitIntervalSec=0
ForwardToSyslog=no
"""


def mount(*words: str) -> None:
    """mount(8), or the end."""
    subprocess.run(["mount", *words], check=True, capture_output=True)


def enter(root: Path, seal: str) -> None:
    """Put ROOT where journald looks."""
    mount("--make-rprivate", "/")
    etc = root / "systemd"
    if not etc.exists():
        shutil.copytree("/etc/systemd", etc, symlinks=True)
    (etc / "journald.conf").write_text(CONFIGURATION.format(seal=seal), "utf-8")
    mount("--bind", str(root / "machine-id"), "/etc/machine-id")
    mount("--bind", str(etc), "/etc/systemd")
    mount("--bind", str(root / "log"), "/var/log")
    mount("-t", "tmpfs", "none", "/run")
    for path in ("/run/systemd/journal", "/run/log"):
        os.makedirs(path)
    Path("/run/systemd/journal/flushed").touch()


def until(done: object, what: str) -> None:
    """Ask again and again until it is so. Raises TimeoutError."""
    assert callable(done)
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        os.sched_yield()


def stored(text: str) -> bool:
    """Whether journald has written the event."""
    found = subprocess.run(
        ["journalctl", "--no-pager", "-o", "cat", "-n", "20"], capture_output=True, check=False
    )
    return text in found.stdout.decode("utf-8", "replace").splitlines()


def main() -> None:
    root, seal = Path(sys.argv[1]), sys.argv[2]
    first, count, epochs = map(int, sys.argv[3:6])
    enter(root, seal)
    if seal == "keys":
        made = subprocess.run(
            ["journalctl", "--setup-keys", "--interval=1s", "--force"],
            capture_output=True,
            check=True,
        )
        (root / "verification-key").write_bytes(made.stdout.strip())
        return
    journald = subprocess.Popen(["/lib/systemd/systemd-journald"], stderr=subprocess.DEVNULL)
    try:
        address = "/run/systemd/journal/socket"
        until(lambda: os.path.exists(address), "journald did not open its socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(address)
            for epoch in range(epochs):
                last = ""
                for number in range(count):
                    last = f"event {first + 10 * epoch + number:06d}"
                    client.send(f"MESSAGE={last}\nPRIORITY=5\n".encode())
                until(lambda last=last: stored(last), "journald did not store an event")
                turn = int(time.time()) + 1
                until(lambda turn=turn: epochs == 1 or time.time() >= turn, "the clock stands")
    finally:
        journald.terminate()
        journald.wait(DEADLINE_S)


if __name__ == "__main__":
    main()
