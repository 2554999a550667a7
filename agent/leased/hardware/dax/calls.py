# SPDX-License-Identifier: Apache-2.0
"""What is asked of a worker about device-dax ranges, and what it answers.

Rule: a range is named by its identity; which device that is now, the worker finds.

Does not do anything.
"""

from __future__ import annotations

import msgspec

from leased.hardware.answers import Nothing as Nothing
from leased.hardware.answers import Present as Present
from leased.hardware.answers import Steps as Steps
from leased.hardware.dax.ranges import Range
from leased.hardware.nodes import Node, Speed
from leased.terms.teardown import StepReport


class Look(msgspec.Struct, frozen=True, array_like=True):
    """List the ranges, and what the classification needs."""

    root: str


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """The ranges; the nodes; what HMAT says of the ranges' nodes (node, speed); regions that no
    driver has (`lost.read_lost`)."""

    ranges: tuple[Range, ...]
    nodes: tuple[Node, ...]
    speeds: tuple[tuple[int, Speed], ...]
    lost: tuple[Range, ...] = ()


class Search(msgspec.Struct, frozen=True, array_like=True):
    """Whom to look for: everybody but `exempt` (pid, start time), within `budget_ns`."""

    exempt: tuple[tuple[int, int], ...]
    budget_ns: int


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """Make a range ready for `uid` and `gid`. `clean`: it was proven clean when it was last given
    back, and nobody was let in since."""

    root: str
    identity: str
    search: Search
    uid: int
    gid: int
    clean: bool


class Readied(msgspec.Struct, frozen=True, array_like=True):
    """What the range is called now and was born as, its node by number, and what had to be
    overwritten before."""

    name: str
    birth: int
    major: int
    minor: int
    overwritten_bytes: int


class Release(msgspec.Struct, frozen=True, array_like=True):
    """Take a range back: end whoever has it (`kill`), take it from every descriptor, overwrite it,
    read it back. `known` is what is remembered of it, should it not be there."""

    root: str
    identity: str
    known: Range | None
    search: Search
    kill: bool
    kill_budget_ns: int


class Released(msgspec.Struct, frozen=True, array_like=True):
    """How far that came, and what the range is called now ("": it did not come back)."""

    name: str
    overwritten_bytes: int
    steps: tuple[StepReport, ...]


class Witness(msgspec.Struct, frozen=True, array_like=True):
    """Say whether a range is nobody's, whole and zero."""

    root: str
    identity: str
    search: Search
    size_bytes: int


class Close(msgspec.Struct, frozen=True, array_like=True):
    """Let nobody but root open a range."""

    root: str
    identity: str


class Mend(msgspec.Struct, frozen=True, array_like=True):
    """Give back what somebody was ended in the middle of: the region of this range, or of none only
    the host's switch for probing."""

    root: str
    broken: Range | None


class Who(msgspec.Struct, frozen=True, array_like=True):
    """Name who has a range open or mapped."""

    root: str
    identity: str
    search: Search
