# SPDX-License-Identifier: Apache-2.0
"""journald's Forward Secure Sealing under the same attacks: Debian's journald in a mount namespace,
epochs of a second, judged by `journalctl --verify` with the verification key.

The attacker has what FSS assumes of one: root, the sealing key as it is today (the file `fss`), and
older copies. Where a part that an attack is about does not exist, the nearest is attacked (journald
has no anchor but the header of the file) and the row's comment says so.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.adversary.attacks import FOUND, MISSED

MACHINE = "0123456789abcdef0123456789abcdef"
SESSION = Path(__file__).with_name("fss_session.py")
JOURNALD = Path("/lib/systemd/systemd-journald")
INCOMPATIBLE_AT, COMPACT = 8, 1 << 36
"""In the word of both flags, of which the incompatible ones are the upper half."""
TAIL_OBJECT_AT, N_ENTRIES_AT, ENTRY_ARRAY_AT, HEADER_BYTES = 136, 152, 176, 240
ITEMS_AT = 24
_U64 = struct.Struct("<Q")
_ITEM = struct.Struct("<I")
"""A journal of this release is compact: what lists entries has 32 bits for each."""


class Journal:
    """One journald's directory, key and copies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "log" / "journal" / MACHINE

    def begin(self) -> Journal:
        """Keys, two epochs, a copy, two epochs more. Raises AssertionError if it is not compact."""
        self.directory.mkdir(parents=True)
        (self.root / "machine-id").write_text(MACHINE + "\n", "utf-8")
        self.live("keys")
        self.live(first=0, epochs=2)
        shutil.copytree(self.directory, self.root / "before")
        self.live(first=100, epochs=2)
        assert self.at(INCOMPATIBLE_AT) & COMPACT, "the surgery below knows compact journals"
        return self

    def copied(self, root: Path) -> Journal:
        """The same again elsewhere, to be attacked."""
        shutil.copytree(self.root, root, symlinks=True)
        return Journal(root)

    def live(self, seal: str = "yes", *, first: int = 500, count: int = 5, epochs: int = 1) -> None:
        """One life of the daemon."""
        words = [str(self.root), seal, str(first), str(count), str(epochs)]
        command = ["unshare", "-m", sys.executable, "-I", str(SESSION), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    @property
    def file(self) -> Path:
        """The journal that is being written."""
        return self.directory / "system.journal"

    def at(self, offset: int, form: struct.Struct = _U64) -> int:
        """A number in the file."""
        with self.file.open("rb") as file:
            file.seek(offset)
            return int(form.unpack(file.read(form.size))[0])

    def put(self, offset: int, data: bytes) -> None:
        """Overwrite bytes of the file."""
        with self.file.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def items(self) -> list[tuple[int, int]]:
        """The list of all entries, through its chain of arrays: (where the item is, the entry)."""
        array, found = self.at(ENTRY_ARRAY_AT), []
        while array:
            end = array + self.at(array + 8)
            found += [(at, self.at(at, _ITEM)) for at in range(array + ITEMS_AT, end, _ITEM.size)]
            array = self.at(array + 16)
        return [(at, entry) for at, entry in found if entry]

    def judge(self) -> str:
        """What `journalctl --verify` says."""
        key = (self.root / "verification-key").read_text("utf-8").strip()
        command = ["journalctl", "--verify", f"--verify-key={key}", "-D", str(self.directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        wrong = done.returncode or "FAIL" in said or "ignoring file" in said
        assert wrong or "PASS" in said or "No journal files" in said, said
        return FOUND if wrong else MISSED


def _flip(journal: Journal, at: int) -> None:
    journal.put(at, bytes([journal.file.read_bytes()[at] ^ 1]))


def body_bit(journal: Journal) -> None:
    _flip(journal, journal.file.read_bytes().index(b"MESSAGE=event 000003") + 19)


def header_bit(journal: Journal) -> None:
    """The wall clock of an entry."""
    _flip(journal, journal.items()[5][1] + 24)


def deleted(journal: Journal) -> None:
    """An entry is taken out of the list of entries, and counted out."""
    items = journal.items()
    entries = [entry for _, entry in items]
    for (at, _), entry in zip(items, [*entries[:5], *entries[6:], 0], strict=True):
        journal.put(at, _ITEM.pack(entry))
    journal.put(N_ENTRIES_AT, _U64.pack(len(items) - 1))


def swapped(journal: Journal) -> None:
    (at, first), (after, second) = journal.items()[5:7]
    journal.put(at, _ITEM.pack(second))
    journal.put(after, _ITEM.pack(first))


def duplicated(journal: Journal) -> None:
    (_, first), (after, _) = journal.items()[5:7]
    journal.put(after, _ITEM.pack(first))


def spliced(journal: Journal) -> None:
    """The payload of another journal's event."""
    journal.put(journal.file.read_bytes().index(b"MESSAGE=event 000003"), b"MESSAGE=other 000003")


def cut(journal: Journal) -> None:
    """The file ends before its last object; its header, the only anchor there is, stays."""
    with journal.file.open("r+b") as file:
        file.truncate(journal.at(TAIL_OBJECT_AT))


def cut_anchored(journal: Journal) -> None:
    """The file as it was, with the header of then."""
    shutil.copyfile(journal.root / "before" / "system.journal", journal.file)


def old_anchor(journal: Journal) -> None:
    """The header of an older copy over today's file."""
    journal.put(0, (journal.root / "before" / "system.journal").read_bytes()[:HEADER_BYTES])


old_segment = cut_anchored


def restored(journal: Journal) -> None:
    shutil.rmtree(journal.directory)
    shutil.copytree(journal.root / "before", journal.directory)


def continued(journal: Journal) -> None:
    """The file is put back, and journald goes on with the key of today."""
    cut_anchored(journal)
    journal.live()


def recomputed(journal: Journal) -> None:
    """A whole new journal, sealed from another key on."""
    key = (journal.root / "verification-key").read_bytes()
    for path in journal.directory.iterdir():
        path.unlink()
    journal.live("keys")
    journal.live()
    (journal.root / "verification-key").write_bytes(key)


def resealed(journal: Journal) -> None:
    """A journal with other events, sealed with the key of today: the sealed ones are gone."""
    journal.file.unlink()
    journal.live(first=900)


fresh = resealed
open_epoch = continued


def back_dated(journal: Journal) -> None:
    """An entry of the open epoch says that it was made before the first seal."""
    items = journal.items()
    early = journal.at(items[1][1] + 24)
    journal.put(items[-1][1] + 24, _U64.pack(early))


def empty_epoch(journal: Journal) -> None:
    """Nobody wrote for two epochs: there is no seal of them to remove."""
    import time

    turn = time.time() + 2.1
    while time.time() < turn:
        pass
    journal.live()


def second_seal(journal: Journal) -> None:
    """journald stopped and started within an epoch seals it twice."""
    for number in range(4):
        journal.live(first=900 + 10 * number, count=1)


def unsealed(journal: Journal) -> None:
    """A journal without seals, in place of the sealed one."""
    journal.file.unlink()
    journal.live("no")


def cloned(journal: Journal) -> None:
    """Two hosts go on from one copy; each is judged."""
    other = journal.copied(journal.root.with_name("clone"))
    journal.live(first=600)
    other.live(first=700)
    assert other.judge() == MISSED


def emptied(journal: Journal) -> None:
    for path in journal.directory.iterdir():
        path.unlink()
