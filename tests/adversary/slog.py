# SPDX-License-Identifier: Apache-2.0
"""syslog-ng's secure logging (slog) under the same attacks: Debian's slogkey, slogencrypt and
slogverify, judged with the host key that the log began with and the MAC file that lies beside it.

The attacker has what slog assumes of one: root, the host key as it is today, the MAC, and older
copies of all three.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.adversary.attacks import FOUND, MISSED

UNPACKED = Path(__file__).resolve().parents[2] / ".venv" / "peers"
"""Where `tests/run` unpacks syslog-ng: installed it would replace the host's log daemon."""
PROGRAMS = ("slogkey", "slogencrypt", "slogverify")
ERRORS = ("ERROR", "WARNING", "mismatch", "not match", "Unable", "duplicate", "missing", "corrupt")


def environment() -> dict[str, str]:
    """What the programs run with."""
    libraries = [UNPACKED / "usr/lib/syslog-ng"]
    for place in ("usr/lib", "lib"):
        libraries += (UNPACKED / place).glob("*-linux-gnu")
    path = f"{UNPACKED}/usr/bin:{os.environ.get('PATH', '')}"
    return {"PATH": path, "LD_LIBRARY_PATH": ":".join(map(str, libraries)), "LC_ALL": "C.UTF-8"}


def missing() -> list[str]:
    """Those of the programs that are not to be had here."""
    path = environment()["PATH"]
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class SecureLog:
    """One log: `log` (lines), `mac`, `key` (today's), and `first.key`, which the auditor keeps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "log"

    def begin(self) -> SecureLog:
        """A key, ten events, a copy, ten events more."""
        self.root.mkdir()
        self._run("slogkey", "-m", "master.key")
        self._run("slogkey", "-d", "master.key", "a-host", "0001", "first.key")
        shutil.copyfile(self.root / "first.key", self.root / "key")
        (self.root / "mac").touch()
        self.go_on(range(10))
        for name in ("log", "mac", "key"):
            shutil.copyfile(self.root / name, self.root / f"{name}.before")
        self.go_on(range(10, 20))
        return self

    def copied(self, root: Path) -> SecureLog:
        """The same again elsewhere, to be attacked."""
        shutil.copytree(self.root, root)
        return SecureLog(root)

    def go_on(self, numbers: range) -> None:
        """More events, with the key of today."""
        events = self.root / "events"
        events.write_text("".join(f"event no. {number:06d}\n" for number in numbers), "utf-8")
        words = ["-k", "key", "-m", "mac", "key.new", "mac.new", "events", "more"]
        # The first time there is no MAC to go on from: slogencrypt says so, and goes on.
        self._run("slogencrypt", *words, check=False)
        with self.log.open("ab") as log:
            log.write((self.root / "more").read_bytes())
        (self.root / "key.new").replace(self.root / "key")
        (self.root / "mac.new").replace(self.root / "mac")

    def lines(self) -> list[str]:
        """The lines of the log."""
        return self.log.read_text("ascii").splitlines(keepends=True)

    def put(self, lines: list[str]) -> None:
        """Other lines in place of them."""
        self.log.write_text("".join(lines), "ascii")

    def put_back(self, *names: str) -> None:
        """Files as they were after the first ten events."""
        for name in names:
            shutil.copyfile(self.root / f"{name}.before", self.root / name)

    def judge(self) -> str:
        """What `slogverify` says."""
        words = ["-k", "first.key", "-m", "mac", "log", "plain"]
        done = self._run("slogverify", *words, check=False)
        said = done.stdout + done.stderr
        wrong = done.returncode or any(word in said for word in ERRORS)
        assert wrong or "All entries recovered successfully" in said, said
        return FOUND if wrong else MISSED

    def _run(
        self, program: str, *words: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        with_path = environment()
        found = shutil.which(program, path=with_path["PATH"])
        assert found is not None
        return subprocess.run(
            [found, *words],
            env=with_path,
            cwd=self.root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=check,
        )


def _change(line: str, at: int) -> str:
    """Another base64 character in its place."""
    return line[:at] + ("B" if line[at] == "A" else "A") + line[at + 1 :]


def body_bit(log: SecureLog) -> None:
    lines = log.lines()
    log.put([*lines[:5], _change(lines[5], 40), *lines[6:]])


def header_bit(log: SecureLog) -> None:
    """The counter before the colon."""
    lines = log.lines()
    log.put([*lines[:5], _change(lines[5], 3), *lines[6:]])


def deleted(log: SecureLog) -> None:
    lines = log.lines()
    log.put(lines[:5] + lines[6:])


def swapped(log: SecureLog) -> None:
    lines = log.lines()
    log.put([*lines[:5], lines[6], lines[5], *lines[7:]])


def duplicated(log: SecureLog) -> None:
    lines = log.lines()
    log.put(lines[:6] + lines[5:])


def spliced(log: SecureLog) -> None:
    """A line of another host's log, with the counter of the one it replaces."""
    other = SecureLog(log.root / "other").begin()
    lines = log.lines()
    log.put([*lines[:5], other.lines()[5], *lines[6:]])


def cut(log: SecureLog) -> None:
    log.put(log.lines()[:-1])


def cut_anchored(log: SecureLog) -> None:
    """The MAC is over what was cut too, and nobody can take that out of it: root runs it on from
    the key of today."""
    log.put(log.lines()[:-1])
    log.go_on(range(19, 20))


def old_anchor(log: SecureLog) -> None:
    log.put_back("mac")


def old_segment(log: SecureLog) -> None:
    log.put_back("log")


def restored(log: SecureLog) -> None:
    log.put_back("log", "mac", "key")


def continued(log: SecureLog) -> None:
    log.put_back("log", "mac", "key")
    log.go_on(range(500, 520))


def recomputed(log: SecureLog) -> None:
    """A whole new log from another master key."""
    other = SecureLog(log.root / "other").begin()
    for name in ("log", "mac"):
        shutil.copyfile(other.root / name, log.root / name)


def resealed(log: SecureLog) -> None:
    """Other events from the first on, with the key and the MAC of today."""
    log.put([])
    log.go_on(range(900, 920))


fresh = resealed


def open_epoch(log: SecureLog) -> None:
    """The newest line again, with the key of today (a key of slog is for one line)."""
    log.put(log.lines()[:-1])
    log.go_on(range(900, 901))


def unsealed(log: SecureLog) -> None:
    """Plain lines."""
    log.put([f"event no. {number:06d}\n" for number in range(20)])


def cloned(log: SecureLog) -> None:
    """Two hosts go on from one copy; each is judged."""
    other = log.copied(log.root.with_name("clone"))
    log.go_on(range(600, 610))
    other.go_on(range(700, 710))
    assert other.judge() == MISSED


def re_encoded(log: SecureLog) -> None:
    """The unused bits of the last base64 character."""
    lines = log.lines()
    line = lines[5].rstrip("\n")
    assert line.endswith("=") and not line.endswith("==")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = alphabet[alphabet.index(line[-2]) ^ 1]
    log.put([*lines[:5], line[:-2] + other + "=\n", *lines[6:]])


def emptied(log: SecureLog) -> None:
    log.log.unlink()
