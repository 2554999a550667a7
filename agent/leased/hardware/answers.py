# SPDX-License-Identifier: Apache-2.0
"""Answers: what workers of every backend say in the same words.

Rule: what only one backend says is in its own `calls`, which also names those of here that it uses.

Does not ask anything.
"""

from __future__ import annotations

import msgspec

from leased.hardware.openers import Opener
from leased.terms.teardown import StepReport


class Nothing(msgspec.Struct, frozen=True, array_like=True):
    """No argument, or no answer but that it was done."""


class Steps(msgspec.Struct, frozen=True, array_like=True):
    """What was done or seen, step by step."""

    steps: tuple[StepReport, ...]


class User(msgspec.Struct, frozen=True, array_like=True):
    """A process that uses a device. `via`: what shows it, such as fd, map, ring, or driver (whose
    own list names it). Pid 0 is the kernel itself, by name."""

    pid: int
    uid: int
    name: str
    via: str


class Users(msgspec.Struct, frozen=True, array_like=True):
    """Everybody who was found."""

    users: tuple[User, ...]


class Present(msgspec.Struct, frozen=True, array_like=True):
    """Everybody who has a device open, and the pids that its driver lists."""

    openers: tuple[Opener, ...]
    contexts: tuple[int, ...] = ()
