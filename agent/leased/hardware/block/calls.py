# SPDX-License-Identifier: Apache-2.0
"""What is said between the block backend and its workers.

Rule: a namespace is named by its identity, a mapping by its uuid; names and numbers of the moment
are answers, never questions.

Does not encode (`worker`).
"""

from __future__ import annotations

import msgspec

from leased.hardware.answers import Nothing as Nothing
from leased.hardware.answers import User as User
from leased.hardware.answers import Users as Users
from leased.hardware.block.drives import Drive, Erase, Layout
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.users import Use
from leased.hardware.block.verbs import Number
from leased.terms.teardown import StepReport

NOT_BEGUN = "block_ready"
"""A `Ready` that failed before anything was written: the namespace may be somebody's."""


class Look(msgspec.Struct, frozen=True, array_like=True):
    """Say which namespaces there are, and what is on top of them."""


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """Every namespace of the host, and every use of one. `mapped` are our mappings, cut or not,
    `lost` those of them whose device has gone."""

    namespaces: tuple[Namespace, ...]
    uses: tuple[Use, ...]
    mapped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Examine(msgspec.Struct, frozen=True, array_like=True):
    """Ask a namespace's drive what it can. `contents`: look whether the namespace is blank."""

    identity: str
    contents: bool


class Examined(msgspec.Struct, frozen=True, array_like=True):
    """What a drive says of itself and of one namespace. `others` are the further namespaces that
    it has, attached or not; `strangers` the controllers, not of this host, that reach this one;
    `sick` what SMART warns of; `busy`: somebody has the namespace exclusively."""

    drive: Drive
    layout: Layout
    others: tuple[int, ...] = ()
    strangers: tuple[int, ...] = ()
    sick: str = ""
    busy: bool = False
    contents: str = ""


class Arrange(msgspec.Struct, frozen=True, array_like=True):
    """Namespaces that are to be there: `attach` these, as (NQN, nsid), where they are detached;
    `make` what is missing to so many of one size, as (NQN, count, bytes), but not now if it is
    among `later`."""

    attach: tuple[tuple[str, int], ...]
    make: tuple[tuple[str, int, int], ...]
    later: tuple[tuple[str, int, int], ...] = ()


class Arranged(msgspec.Struct, frozen=True, array_like=True):
    """Those that were made or attached now, and why others were not; what of `make` was tried, and
    "" or why what was made had to be taken back: that is not among the troubles."""

    done: tuple[tuple[str, int], ...]
    troubles: tuple[str, ...]
    tried: tuple[tuple[tuple[str, int, int], str], ...] = ()


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """Make a lease's mapping of one namespace, for `uid` to open. `blank`: only if nobody has put
    anything on the namespace."""

    uuid: str
    name: str
    identity: str
    size_bytes: int
    raw: bool
    cipher: str
    key_bits: int
    uid: int
    seed: bytes
    canaries: int
    blank: bool


class Readied(msgspec.Struct, frozen=True, array_like=True):
    """The mapping's device number; where the namespace was found, and what was measured."""

    number: Number
    nsid: int
    diskseq: int
    checked: int


class Clean(msgspec.Struct, frozen=True, array_like=True):
    """End a mapping, if it has not ended yet, and erase the namespace: `ways` are what may be used
    for that besides the key, in the order of preference."""

    uuid: str
    name: str
    identity: str
    size_bytes: int
    raw: bool
    ways: tuple[Erase, ...]
    detach_stuck: bool
    seed: bytes
    canaries: int
    settle_ns: int
    erase_ns: int


class Clear(msgspec.Struct, frozen=True, array_like=True):
    """Erase what is on a namespace before its first lease, if it may be made ready."""

    ready: Ready
    clean: Clean


class Cleaned(msgspec.Struct, frozen=True, array_like=True):
    """What was done. Not `clean`: one of the steps says why."""

    clean: bool
    erased_bytes: int
    way: str
    steps: tuple[StepReport, ...]


class Prove(msgspec.Struct, frozen=True, array_like=True):
    """Ask again, in another process, whether nothing of a lease is left on the namespace.
    `zeroed`: the looked-at blocks must be zeroes; `untouched`: nobody had it and nothing was
    written, so what is on it is not looked at."""

    uuid: str
    identity: str
    size_bytes: int
    zeroed: bool
    untouched: bool
    seed: bytes
    canaries: int
    settle_ns: int


class Proven(msgspec.Struct, frozen=True, array_like=True):
    """Whether it is clean, and what each question came to."""

    clean: bool
    steps: tuple[StepReport, ...]


class Undo(msgspec.Struct, frozen=True, array_like=True):
    """Take a mapping away that nobody ever had."""

    uuid: str
    name: str


class Mapped(msgspec.Struct, frozen=True, array_like=True):
    """Every mapping of ours that is there, by uuid."""

    uuids: tuple[str, ...]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """Who uses a namespace, or a mapping of it?"""

    identity: str
    exempt: tuple[tuple[int, int], ...]
    budget_ns: int
