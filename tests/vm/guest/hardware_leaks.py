# SPDX-License-Identifier: Apache-2.0
"""Random ways to get a lease of each kind, or not to, several at the same time: afterwards the
machine has what it had.

Four minutes at least, three of them for having every kind there: `LEASED_CYCLES=42` says how many
are tried, 1000 is the long form, and `LEASED_CYCLES_SEED` draws others.
A fence is a failure: nothing in these cycles leaves anything unclean.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import drives
import footprint
import host
import pytest
from drives import A1, A2, A3, B1, B2
from host import ADMIN, LIVES_S, MIB, Connection, Failed, call, eventually, memory

CYCLES = int(os.environ.get("LEASED_CYCLES", "0"))
SEED = int(os.environ.get("LEASED_CYCLES_SEED", "20261126"))
AT_ONCE = 3
STEADY_S = 15
HUGE = f":{2 * MIB}"
DEVICES = str(Path(__file__).with_name("every-kind"))
DROPIN = Path(__file__).resolve().parents[3] / "systemd/dropins/leased.service.d/device-dax.conf"
PLACE = Path("/etc/systemd/system/leased.service.d/device-dax.conf")
Ask = dict[str, Any]

KINDS: dict[str, Callable[[Random], Ask]] = {
    "memory": lambda chance: memory(4096 * chance.randint(1, 64), node=chance.randint(0, 1)),
    "huge pages": lambda chance: memory(2 * MIB * chance.randint(1, 8), node=2, page_size=2 * MIB),
    "budget": lambda chance: {**memory(MIB * chance.randint(4, 16), node=0), "shape": "budget"},
    "cpu": lambda chance: {"kind": "cpu", "capacity": 100 * chance.randint(1, 5)},
    "block": lambda chance: drives.ask(chance.choice((A1, A2, B1)), raw=chance.random() < 0.2)[0],
    "rdma": lambda chance: _of("mem:rdma-", 4096 * chance.randint(1, 256)),
    "dax": lambda _: _of("mem:dax-"),
}
"""What is asked for. B2 is in use by somebody who asked nobody, so that grants fail halfway."""


def _of(prefix: str, capacity: int = 0) -> Ask:
    """An ask for a resource that is offered, or for the whole of it."""
    named = {one["resource_id"]: one["capacity"] for one in call("Device.List")["resources"]}
    found = next(one for one in named if one.startswith(prefix) and not one.endswith(HUGE))
    return {"kind": "mem", "capacity": capacity or named[found], "resource_id": found}


@pytest.fixture(scope="module", autouse=True)
def _offered() -> Iterator[None]:
    """Namespaces, a device-dax range and soft-RoCE devices, while this module runs."""
    named = json.dumps([*drives.FREE, A3])
    drives.configure(offer='"listed"', namespaces=named, raw="true")
    host.run(DEVICES, "up")
    host.run("install", "-D", "-m", "0644", str(DROPIN), str(PLACE))
    host.run("systemctl", "daemon-reload")
    drives.configure("hardware.dax", offer="true", persistent="true")
    for prefix in ("mem:rdma-", "mem:dax-"):
        eventually(f"{prefix} is offered", lambda prefix=prefix: prefix in str(_named()))
    drives.settled()
    try:
        yield
    finally:
        PLACE.unlink()
        host.run("systemctl", "daemon-reload")
        drives.configure("hardware.dax", offer="false", persistent="false")
        host.run(DEVICES, "down")


def _named() -> list[str]:
    return [one["resource_id"] for one in call("Device.List")["resources"]]


# ---- ways ----------------------------------------------------------------------------------------


def released(ask: Ask) -> None:
    with _connected() as connection:
        lease_id = _acquire(connection, ask)
        connection.call("Lease.Release", lease_id=lease_id)


def revoked(ask: Ask) -> None:
    with _connected() as connection:
        call("Admin.Revoke", ADMIN, lease_id=_acquire(connection, ask))


def expired(ask: Ask) -> None:
    with _connected() as connection:
        host.end_in(_acquire(connection, ask), 1)


def twice(ask: Ask) -> None:
    """A retry under the same id, over another connection."""
    command_id = os.urandom(16).hex()
    with _connected() as one, _connected() as other:
        first = _acquire(one, ask, command_id=command_id)
        assert _acquire(other, ask, command_id=command_id) == first
        one.call("Lease.Release", lease_id=first)


def refused(ask: Ask) -> None:
    """All or nothing: behind what there is, what no host has."""
    with _connected() as connection:
        _acquire(connection, ask, memory(1 << 60, node=0))
    raise AssertionError("granted what there is not")


def halfway(ask: Ask) -> None:
    """Granted, and then it cannot be had: what was made ready of it is taken back."""
    with _connected() as connection:
        _acquire(connection, ask, *drives.ask(B2))
    raise AssertionError("granted what somebody has")


def hung_up(ask: Ask) -> None:
    """Gone before the answer is there; the deadline ends it."""
    with _connected() as connection:
        asked = {"resources": [ask], "ttl_ns": host.S, "bind": "deadline"}
        connection.tell("Lease.Acquire", **asked)


WAYS = (released, revoked, expired, twice, refused, halfway, hung_up)


@contextlib.contextmanager
def _connected() -> Iterator[Connection]:
    connection = Connection()
    try:
        yield connection
    finally:
        connection.close()


def _acquire(connection: Connection, *asks: Ask, **more: Any) -> str:
    granted = connection.acquire(*asks, bind="cgroup", ttl_s=LIVES_S, **more)
    connection.close_fds()
    return str(granted["lease"]["lease_id"])


# ---- cycles --------------------------------------------------------------------------------------


class Cycles:
    """So many, by several at the same time; what each came to."""

    def __init__(self, chance: Random, count: int) -> None:
        kinds = itertools.cycle(KINDS)
        self._drawn = iter([(next(kinds), chance.choice(WAYS), chance) for _ in range(count)])
        self._turn = threading.Lock()
        self.came_to: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self._go_on) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _go_on(self) -> None:
        while True:
            with self._turn:
                drawn = next(self._drawn, None)
                if drawn is None or self.wrong:
                    return
                kind, way, chance = drawn
                ask = KINDS[kind](chance)
            try:
                way(ask)
                outcome = "granted"
            except Failed as error:
                # Others of these may have what was asked for.
                outcome = "refused" if error.name == "io.leased.Lease.Refused" else ""
                if not outcome:
                    self.wrong.append(f"{way.__name__} of {kind}: {error}")
            except (AssertionError, OSError) as error:
                outcome = ""
                self.wrong.append(f"{way.__name__} of {kind}: {error!r}")
            with self._turn:
                self.came_to[kind, outcome] += 1


def all_ended() -> bool:
    """Nothing is leased, and nothing was fenced."""
    status = call("Admin.Status", ADMIN)["leases"]
    assert status["fenced"] == 0, call("Lease.List", ADMIN, closed=True)
    return not call("Lease.List", ADMIN)["leases"]


@pytest.mark.skipif(not CYCLES, reason="not proven: no kind leaks (LEASED_CYCLES is not set)")
def test_nothing_is_left_of_leases_that_were_had_or_were_not() -> None:
    print(f"LEASED_CYCLES_SEED={SEED} LEASED_CYCLES={CYCLES}")
    chance = Random(SEED)
    fd = os.open(drives.device(B2), os.O_RDWR | os.O_EXCL)
    try:
        for kind, ask in KINDS.items():  # what is made once is made
            released(ask(chance))
            with pytest.raises(Failed, match=r"Lease\.Refused"):
                halfway(ask(chance))
            eventually(f"{kind}: it has ended", all_ended)
        before = footprint.steady(STEADY_S)
        cycles = Cycles(chance, CYCLES)
        cycles.run()
        assert not cycles.wrong, cycles.wrong
        eventually("all have ended", all_ended)
        footprint.is_again(before)
    finally:
        os.close(fd)
    told = {" ".join(key): count for key, count in sorted(cycles.came_to.items())}
    print(told)
    assert sum(cycles.came_to.values()) == CYCLES
    assert all(cycles.came_to[kind, "granted"] for kind in KINDS), told
    assert host.leasectl("verify").startswith("ok: ")
