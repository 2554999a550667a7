# SPDX-License-Identifier: Apache-2.0
"""What a drive can do that QEMU's cannot, by our own commands: the verbs in C on one side of
ioctl, on the other a drive that argues back (`tests/mocks/nvme/drive.c`).

Each test is a script in a process of its own, because what answers ioctl has to be loaded first.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leased.hardware.block.calls import Arranged
from leased.hardware.block.config import BlockConfig
from leased.hardware.block.wanted import LOOKS_MAX, Wanted

MOCK = Path(__file__).resolve().parents[2] / "mocks/nvme/drive.c"
AGENT = Path(__file__).resolve().parents[3] / "agent"
HEAD, NAMESPACE = struct.Struct("<8sIIQIIIIIIII"), struct.Struct("<QQII")
MARK = 0xA5A5
SANICAP = {"crypto": 1, "block": 2, "overwrite": 4}

BEGIN = """
import contextlib, errno, json, os, sys
from types import SimpleNamespace
from leased.hardware.block import drives, erasing, verbs
from leased.hardware.block.drives import Erase
from leased.hardware.block.examining import examine_drive
from leased.terms.errors import DeviceError
fd = os.open(sys.argv[1], os.O_RDWR)
erasing.controller_of = lambda namespace: contextlib.nullcontext(fd)
erasing._SANITIZE_LOOK_S = 0
drive = examine_drive(fd)
call = SimpleNamespace(erase_ns=10**11)
def carry_out(way, nsid):
    erasing._carry_out(way, -1, call, SimpleNamespace(nsid=nsid))
def refused(act):
    try:
        act()
    except DeviceError as error:
        return [errno.errorcode[error.errno], error.detail]
    return None
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nvme") / "drive.so"
    words = ["cc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*words, "-o", made, MOCK, "-ldl"], check=True)
    return made


class Drive:
    """The drive's state, and scripts that talk to it."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library, self._file = library, file

    def made(
        self,
        *,
        sanicap: int = 7,
        fna: int = 4,
        looks: int = 3,
        fails: int = 0,
        not_ready: int = 0,
        refuses: int = 0,
        formats: int = 1,
        left: int = 500,
    ) -> Drive:
        """Two namespaces of 1000 blocks, each with data, the first attached; `left` blocks left."""
        head = HEAD.pack(
            *(b"A DRIVE.", sanicap, fna, left, looks, fails, 0, 0, not_ready, 0, refuses, formats)
        )
        there = [NAMESPACE.pack(1000, MARK, number == 0, 0) for number in range(2)]
        self._file.write_bytes(head + b"".join(there) + bytes(2 * NAMESPACE.size))
        return self

    def run(self, script: str) -> Any:
        """What the script says."""
        paths = [str(AGENT), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + script, self._file],
            env={
                **os.environ,
                "LD_PRELOAD": str(self._library),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def data(self) -> list[int]:
        """What is on the first two namespaces."""
        return [self._namespace(number)[1] for number in range(2)]

    @property
    def cached(self) -> int:
        """Whether the last of what was written would be lost with the power."""
        return int(HEAD.unpack_from(self._file.read_bytes())[-3])

    def _namespace(self, number: int) -> tuple[int, ...]:
        return NAMESPACE.unpack_from(self._file.read_bytes(), HEAD.size + number * NAMESPACE.size)


@pytest.fixture
def drive(library: Path, tmp_path: Path) -> Drive:
    return Drive(library, tmp_path / "state")


@pytest.mark.parametrize("name", SANICAP)
def test_a_sanitization_reaches_every_namespace_and_is_waited_for(drive: Drive, name: str) -> None:
    drive.made(sanicap=SANICAP[name])
    way = f"Erase.SANITIZE_{name.upper()}"
    told = drive.run(f"""
ways = [way.value for way, wide in drive.erases if wide]
chosen = [erasing.choose(({way},), drive, alone=alone) for alone in (True, False)]
carry_out({way}, 1)
print(json.dumps([ways, chosen]))
""")
    assert told == [[f"sanitize-{name}"], [f"sanitize-{name}", None]], "only where it is alone"
    assert MARK not in drive.data
    assert (drive.data == [0, 0]) is (name != "crypto"), "the old ciphertext under a new key"


def test_a_sanitization_that_fails_or_does_not_end_is_told(drive: Drive) -> None:
    drive.made(fails=1)
    said = "print(json.dumps(refused(lambda: carry_out(Erase.SANITIZE_BLOCK, 1))))"
    assert drive.run(said) == ["EIO", "the drive says failed"]
    assert drive.data == [MARK, MARK]
    drive.made(looks=1 << 30)
    assert drive.run("call.erase_ns = 10**8\n" + said) == ["ETIMEDOUT", "the drive is still at it"]
    meanwhile = drive.run("""
print(json.dumps([
    refused(lambda: verbs.format_namespace(fd, nsid=1, lbaf=0, ses=1, timeout_ms=1000)),
    refused(lambda: verbs.begin_sanitize(fd, action=2, timeout_ms=1000)),
]))
""")
    for name, detail in meanwhile:
        assert name == "EREMOTEIO" and "sanitize in progress" in detail


@pytest.mark.parametrize(("way", "other"), [("FORMAT", 0), ("CRYPTO", None)])
def test_a_format_reaches_its_namespace_alone_unless_the_drive_says_otherwise(
    drive: Drive, way: str, other: int | None
) -> None:
    script = f"""
chosen = erasing.choose((Erase.{way},), drive, alone=False)
carry_out(Erase.{way}, 1)
print(json.dumps(chosen))
"""
    assert drive.made().run(script) == way.lower()
    assert drive.data[0] != MARK and drive.data[1] == MARK
    assert other is None or drive.data[0] == other
    assert drive.made(fna=4 | 2).run(script) is None, "it would reach the neighbour"
    assert drive.data[1] != MARK, "as it did, asked all the same"


def test_a_drive_without_keys_of_its_own_is_not_asked_for_a_cryptographic_erase(
    drive: Drive,
) -> None:
    told = drive.made(fna=0).run("""
chosen = erasing.choose((Erase.CRYPTO, Erase.FORMAT), drive, alone=True)
ask = lambda: verbs.format_namespace(fd, nsid=1, lbaf=0, ses=2, timeout_ms=1000)
print(json.dumps([chosen, refused(ask)]))
""")
    assert told == ["format", ["EREMOTEIO", "NVMe status 0x4002: invalid field in command"]]
    assert drive.data == [MARK, MARK]


def test_a_namespace_is_made_attached_detached_and_deleted(drive: Drive) -> None:
    told = drive.made().run("""
T = {"timeout_ms": 1000}
make = lambda blocks: verbs.create_namespace(fd, blocks=blocks, lbaf=0, shared=True, **T)
def attach(nsid, *who, on=True):
    verbs.attach_namespace(fd, nsid=nsid, controllers=who, attach=on, **T)
def listed(cns):
    return drives.read_list(verbs.identify(fd, nsid=0, cns=cns, **T))
said = [drive.manages, drive.attaches, refused(lambda: make(501))]
nsid = make(500)
said += [nsid, listed(drives.ACTIVE_LIST), listed(drives.ALLOCATED_LIST)]
attach(nsid, 0, 1)
said += [listed(drives.ACTIVE_LIST), refused(lambda: attach(nsid, 1))]
said += [refused(lambda: attach(nsid, 7)), refused(lambda: attach(9, 0))]
attach(nsid, 0, 1, on=False)
said += [listed(drives.ACTIVE_LIST), refused(lambda: attach(nsid, 0, on=False))]
verbs.delete_namespace(fd, nsid=nsid, **T)
said += [refused(lambda: verbs.delete_namespace(fd, nsid=nsid, **T)), make(500)]
print(json.dumps(said))
""")
    why = [one[1].partition(": ")[2] if isinstance(one, list) and one[:1] == ["EREMOTEIO"] else one
           for one in told]  # fmt: skip
    assert why == [
        *(True, True, "namespace insufficient capacity"),
        *(3, [1], [1, 2, 3]),
        *([1, 3], "namespace already attached"),
        *("controller list invalid", "invalid namespace or format"),
        *([1], "namespace not attached"),
        *("invalid namespace or format", 3),
    ]
    assert drive.data == [MARK, MARK]


@pytest.mark.parametrize("way", ["ZERO", "FORMAT"])
def test_what_was_erased_is_erased_after_a_power_cut(drive: Drive, way: str) -> None:
    """Zeroes in a drive's own cache read back, and after a power cut what they were written over
    does: the namespace was proven clean by then, and somebody else's."""
    told = drive.made().run(f"""
erasing.exclusively = lambda namespace, settle_ns: contextlib.nullcontext(fd)
erasing.other_namespaces = lambda controller, namespace: ()
call = SimpleNamespace(ways=(Erase.{way},), raw=True, seed=b"", canaries=0, size_bytes=1 << 20,
    settle_ns=0, erase_ns=10**11)
print(json.dumps(erasing._erase(call, SimpleNamespace(nsid=1))))
""")
    assert told == [way.lower(), 1 << 20]
    assert not drive.cached


def test_a_list_that_a_drive_does_not_give_just_now_is_no_empty_one(drive: Drive) -> None:
    """Its second namespace is attached to nobody: without the list the first is alone on it, and
    would be erased by what reaches both."""
    script = """
from leased.hardware.block.examining import other_namespaces
ask = lambda: other_namespaces(fd, SimpleNamespace(nsid=1, nqn="nqn.of.nobody"))
print(json.dumps([refused(ask), ask()]))
"""
    why = "NVMe status 0x0082: namespace not ready (CNS 0x10)"
    assert drive.made(not_ready=1).run(script) == [["EREMOTEIO", why], [2]]


def test_a_namespace_is_taken_from_those_that_have_it(drive: Drive) -> None:
    """Of two controllers of this host one has it: asked to take it from both, a drive refuses, and
    what cannot be cut off from its users stayed."""
    told = drive.made().run("""
ways = tuple(SimpleNamespace(cntlid=number) for number in (0, 1))
one = SimpleNamespace(nsid=1, controllers=ways)
active = lambda: drives.read_list(verbs.identify(fd, nsid=0, cns=2, timeout_ms=1000))
print(json.dumps([active(), refused(lambda: erasing.detach(fd, one)), active()]))
""")
    assert told == [[1], None, []]


# ---- namespaces that an operator wants there -----------------------------------------------------

MANAGE, ATTACH, DELETE = 1, 2, 4
FILL = """
import time
from leased.hardware.block.arranging import fill
lists = lambda: [drives.read_list(verbs.identify(fd, nsid=0, cns=cns, timeout_ms=1000))
                 for cns in (drives.ACTIVE_LIST, drives.ALLOCATED_LIST)]
made = []
def ask(count, blocks, end_ns=1 << 63):
    return refused(lambda: made.extend(fill(fd, (0, 1), count, blocks * 512, end_ns, shared=True)))
"""


def test_what_is_missing_is_made_once(drive: Drive) -> None:
    told = drive.made().run(
        FILL + "print(json.dumps([ask(2, 250), made, lists(), ask(2, 250), made, ask(1, 1000)]))"
    )
    assert told == [None, [3, 4], [[1, 3, 4], [1, 2, 3, 4]], None, [3, 4], None]
    assert drive.data == [MARK, MARK]


def test_what_is_there_counts_attached_or_not(drive: Drive) -> None:
    """The second of the drive's own is attached to nobody, and as large as what is wanted."""
    told = drive.made(left=1000).run(FILL + "print(json.dumps([ask(3, 1000), made, lists()]))")
    assert told == [None, [3], [[1, 3], [1, 2, 3]]]


def test_a_drive_without_room_is_told_how_much_is_missing_and_nothing_is_made(
    drive: Drive,
) -> None:
    told = drive.made().run(FILL + "print(json.dumps([ask(3, 250), made, lists()]))")
    why = "3 are missing, and 256000 bytes are not allocated"
    assert told == [["ENOSPC", why], [], [[1], [1, 2]]]


def test_the_quickest_plain_format_is_taken_and_has_to_divide_the_size(drive: Drive) -> None:
    told = drive.made(formats=3).run(FILL + "print(json.dumps([ask(1, 401), ask(1, 400), made]))")
    assert told == [["EINVAL", "its blocks have 4096 bytes"], None, [3]]
    assert drive._namespace(2)[0] == 400


def test_a_slow_drive_makes_the_rest_at_the_next_look(drive: Drive) -> None:
    """A worker that is killed for being late leaves what it made attached to nobody."""
    told = drive.made().run(
        FILL
        + """
create = verbs.create_namespace
def slowly(*args, **more):
    time.monotonic_ns = lambda: 200
    return create(*args, **more)
time.monotonic_ns, verbs.create_namespace = lambda: 100, slowly
late = ask(2, 100, end_ns=150)
print(json.dumps([late, list(made), lists(), ask(2, 100), made]))
"""
    )
    why = "the drive is slow: 1 more at the next look"
    assert told == [["ETIMEDOUT", why], [3], [[1, 3], [1, 2, 3]], None, [3, 4]]


def test_a_drive_that_cannot_is_not_asked(drive: Drive) -> None:
    told = drive.made(refuses=MANAGE).run(FILL + "print(json.dumps([ask(1, 100), lists()]))")
    assert told == [["ENOTSUP", "the drive cannot"], [[1], [1, 2]]]


def test_what_cannot_be_attached_is_deleted_again(drive: Drive) -> None:
    script = FILL + "print(json.dumps([ask(2, 100), made, lists()]))"
    why, other = "namespace not ready", "invalid namespace or format"
    error, made, lists = drive.made(refuses=ATTACH).run(script)
    assert why in error[1] and other not in error[1]
    assert (made, lists) == ([], [[1], [1, 2]])
    (_, said), made, lists = drive.made(refuses=ATTACH | DELETE).run(script)
    assert "3 was made, is attached to nobody and could not be deleted" in said
    assert (made, lists) == ([], [[1], [1, 2, 3]])


def test_one_drives_trouble_keeps_nothing_else_from_being_done(drive: Drive) -> None:
    told = drive.made().run("""
from leased.hardware.block import arranging
from leased.hardware.block.calls import Arrange
arranging._ways = lambda nqn: [(fd, (0, 1))] if nqn != "nqn.of.nobody" else []
verbs.rescan_controller = lambda fd: None
call = Arrange((("nqn.a", 2), ("nqn.a", 9), ("nqn.of.nobody", 1)),
               (("nqn.a", 9, 512_000), ("nqn.of.nobody", 1, 512), ("nqn.b", 1, 51_200),
                ("nqn.c", 1, 512_000)))
done = arranging.arrange(call)
print(json.dumps([done.done, done.troubles]))
""")
    done, [full, absent, idle, wrong, unknown] = told
    assert done == [["nqn.b", 3], ["nqn.a", 2]]
    assert full.startswith("nqn.a: 9 namespaces of 512000 bytes: ")
    assert absent.startswith("nqn.of.nobody: ") and "no drive of that NQN answers" in absent
    assert idle.startswith("nqn.c/2 counts as made and is attached to nobody: name it in `attach`")
    assert wrong.startswith("nqn.a/9 could not be attached: ") and "no such namespace" in wrong
    assert unknown.startswith("nqn.of.nobody/1 could not be attached: ")
    assert "no drive of that NQN answers" in unknown


def test_what_is_to_wait_is_not_made_and_what_was_in_vain_is_told_apart(drive: Drive) -> None:
    [[[one, why]], troubles], [tried, later], creates = drive.made(refuses=ATTACH).run("""
from leased.hardware.block import arranging
from leased.hardware.block.calls import Arrange
arranging._ways = lambda nqn: [(fd, (0, 1))]
create, creates = verbs.create_namespace, []
verbs.create_namespace = lambda *args, **more: creates.append(1) or create(*args, **more)
want = (("nqn.a", 1, 51_200),)
done = [arranging.arrange(Arrange((), want, later)) for later in ((), want)]
print(json.dumps([*([one.tried, one.troubles] for one in done), len(creates)]))
""")
    assert one == ["nqn.a", 1, 51_200] and "namespace not ready" in why
    assert (troubles, tried, later, creates) == ([], [], [], 1)


def test_what_was_made_in_vain_is_made_again_ever_more_rarely() -> None:
    """An attach that always fails made and deleted a namespace at every look."""
    one = ("nqn.a", 1, 512)
    wanted = Wanted(BlockConfig(make=(one,), attach=(("nqn.b", 1),)))
    tries, told = [], set()
    for look in range(4 * LOOKS_MAX):
        asked = wanted.by_drive()
        assert asked["nqn.a"].make == (one,) and asked["nqn.b"].attach == (("nqn.b", 1),)
        if asked["nqn.a"].later:
            told |= set(wanted.learn([Arranged((), ())]))
        else:
            tries.append(look)
            told |= set(wanted.learn([Arranged((), (), ((one, "no"),))]))
    assert tries[:5] == [0, 2, 5, 10, 19] and len(tries) < 16
    assert tries[-1] - tries[-2] == LOOKS_MAX + 1
    assert told == {"no; tried again ever more rarely"}, "the same at every look"
    while wanted.by_drive()["nqn.a"].later:
        pass
    assert wanted.learn([]) == ["no; tried again ever more rarely"], "it gave no answer"
    assert wanted.learn([Arranged((), (), ((one, ""),))]) == []
