# SPDX-License-Identifier: Apache-2.0
"""What the backend says to its workers and what they answer: arguments and results of the verbs.

Rule: plain values; every argument says all that the verb needs, because the worker that gets it may
have been started a moment ago.

Does not carry anything out (`carrying`).
"""

from __future__ import annotations

import msgspec

from leased.hardware.answers import Nothing as Nothing
from leased.hardware.answers import Present as Present
from leased.hardware.gpu.facts import Condition, Gpu, Instance, Target, Usage
from leased.hardware.openers import Opener
from leased.terms.teardown import StepReport

Exempt = tuple[tuple[int, int], ...]
"""Our own processes, as (pid, start time)."""


class Where(msgspec.Struct, frozen=True, array_like=True):
    """Where the driver's files are ("/", or a stand-in's), for verbs that need nothing else."""

    root: str


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """A GPU that the driver counts. `fault` is why it cannot be asked more, if it cannot."""

    pci: str
    uuid: str = ""
    errno: int = 0
    fault: str = ""


class Listing(msgspec.Struct, frozen=True, array_like=True):
    """Every GPU of the driver; `real` if the kernel has a driver of NVIDIA's behind it."""

    driver: str
    real: bool
    gpus: tuple[Listed, ...]


class Examine(msgspec.Struct, frozen=True, array_like=True):
    """Describe these GPUs."""

    root: str
    driver: str
    gpus: tuple[Listed, ...]


class Examined(msgspec.Struct, frozen=True, array_like=True):
    """Those that answered, and what befell the others."""

    gpus: tuple[Gpu, ...]
    faults: tuple[Listed, ...]


class Gauge(msgspec.Struct, frozen=True, array_like=True):
    """See what one GPU does. `subject` is what the answer calls it, `instances` are (the same of an
    instance, its number); `sliced`: the GPU has MIG on, so it is not busy as a whole."""

    subject: str
    pci: str
    uuid: str
    sliced: bool
    instances: tuple[tuple[str, int], ...] = ()


class Guests(msgspec.Struct, frozen=True, array_like=True):
    """Who may have a GPU's nodes open although no lease of it is theirs: our own processes, those
    of these names (root's, or with "@" another user's), and whoever is in one of these leaves
    (other MIG devices' leases)."""

    exempt: Exempt
    names: tuple[str, ...]
    leaves: tuple[str, ...] = ()


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """Open a target for the lease whose leaf is made: nobody else may be there, and no more memory
    in use than `used_max_bytes`, by two looks `apart_ns` apart. `leaf` is that of work which is
    adopted, and may be there."""

    root: str
    target: Target
    guests: Guests
    sets_mode: bool
    scan_budget_ns: int
    used_max_bytes: int
    apart_ns: int
    leaf: str = ""


class Readied(msgspec.Struct, frozen=True, array_like=True):
    """The device rules of the leaf (as numbers) and the memory in use before anybody was let in."""

    rules: tuple[tuple[int, int, int, int], ...]
    usage: Usage


class Guard(msgspec.Struct, frozen=True, array_like=True):
    """Say who may make a context on a whole GPU."""

    target: Target
    mode: int


class Guarded(msgspec.Struct, frozen=True, array_like=True):
    """What the driver said before, and says now."""

    before: int
    after: int


class Release(msgspec.Struct, frozen=True, array_like=True):
    """Wait until the driver has let go of everything of a lease, ending stragglers if told to."""

    root: str
    target: Target
    guests: Guests
    used_max_bytes: int
    budget_ns: int
    scan_budget_ns: int
    kill: bool
    kill_budget_ns: int


class Sight(msgspec.Struct, frozen=True, array_like=True):
    """One look at a target from outside: who has a context (three lists), which of those pids are
    no processes, who has its nodes, how much memory is used."""

    processes: tuple[tuple[int, ...], ...]
    ghosts: tuple[int, ...]
    openers: tuple[Opener, ...]
    usage: Usage
    seen_ns: int


class Released(msgspec.Struct, frozen=True, array_like=True):
    """The last look, how many strangers were killed, and how long it took."""

    sight: Sight
    killed: int
    began_ns: int
    ended_ns: int


class Scrub(msgspec.Struct, frozen=True, array_like=True):
    """Take the whole target and overwrite it. `writes` False: only take it, as proof that nobody
    else has any of it. `expected_bytes` is what must be had at the least. `lingers`: what was taken
    is left to the end of the process, for a witness who waits until nobody is there."""

    target: Target
    expected_bytes: int
    writes: bool
    sets_mode: bool
    lingers: bool = False


class Scrubbed(msgspec.Struct, frozen=True, array_like=True):
    """What was taken and overwritten, what was not zero before and after, and the steps."""

    taken_bytes: int
    found_bytes: int
    residue_bytes: int
    steps: tuple[StepReport, ...]


class Witness(msgspec.Struct, frozen=True, array_like=True):
    """Look at a target that should be clean: when it is, or the budget is over, and not before
    `not_before_ns`. `asks_mode`: also who may make a context on it."""

    root: str
    target: Target
    guests: Guests
    used_max_bytes: int
    budget_ns: int
    not_before_ns: int
    scan_budget_ns: int
    asks_mode: bool


class Witnessed(msgspec.Struct, frozen=True, array_like=True):
    """The last look, the GPU's condition, and who may make a context on it."""

    sight: Sight
    condition: Condition
    mode: int | None
    began_ns: int
    ended_ns: int


class Listen(msgspec.Struct, frozen=True, array_like=True):
    """Wait for the driver's events of these GPUs."""

    gpus: tuple[Listed, ...]
    wait_ms: int


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """Events as (PCI address, event type, XID or 0); `deaf` are GPUs without events, and why."""

    events: tuple[tuple[str, int, int], ...]
    deaf: tuple[str, ...] = ()


class Make(msgspec.Struct, frozen=True, array_like=True):
    """Make the instance of a target with a place; what is there already goes within the budget."""

    target: Target
    budget_ns: int


class Made(msgspec.Struct, frozen=True, array_like=True):
    """The MIG device that was made."""

    instance: Instance


class Remove(msgspec.Struct, frozen=True, array_like=True):
    """Destroy the instance at a target's place, or (`absent`) say whether one is there. `halves`:
    one that no MIG device is of, and no other."""

    target: Target
    budget_ns: int = 0
    halves: bool = False


class Absent(msgspec.Struct, frozen=True, array_like=True):
    """How many instances are at the place, how many more of its profile the GPU has room for, and
    its condition."""

    left: int
    room: int
    condition: Condition
    began_ns: int
    ended_ns: int


class Who(msgspec.Struct, frozen=True, array_like=True):
    """Who has a target's nodes open."""

    root: str
    target: Target
    exempt: Exempt
    scan_budget_ns: int


class Anybody(msgspec.Struct, frozen=True, array_like=True):
    """Look for everybody who has any node of the driver open."""

    root: str
    scan_budget_ns: int


class Bus(msgspec.Struct, frozen=True, array_like=True):
    """PCI addresses of NVIDIA's GPUs, whether or not a driver has them."""

    addresses: tuple[str, ...]


class Pipe(msgspec.Struct, frozen=True, array_like=True):
    """A lease's own directory for an MPS server."""

    path: str
