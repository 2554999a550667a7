# SPDX-License-Identifier: Apache-2.0
"""A door of the fleet that is shut: why, how often that is said, and that it opens by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from leased.chain.certificate import Role
from leased.service.fleet.config import Listening
from leased.service.fleet.fleet import AGAIN_S, Fleet
from leased.terms.command import Command
from leased.terms.moment import NS_PER_S
from leased.terms.reply import Done, Reply
from tests.doubles.clock import FakeClock
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import open_in

pytestmark = pytest.mark.autojump

NODE = b"\xab" * 16
YEAR_NS = 365 * 86_400 * NS_PER_S


async def _ask(_: Command) -> Reply:
    return Done()


async def test_a_door_that_a_wrong_clock_keeps_shut_opens_when_that_is_right(
    tmp_path: Path,
) -> None:
    pki = FleetPki(tmp_path / "pki")
    mine = pki.issue(Role.NODE, NODE.hex())
    clock = FakeClock()
    clock.step(time.time_ns() + YEAR_NS - clock.now().wall_ns)
    said: list[str] = []
    opened = open_in(tmp_path / "audit")
    fleet = Fleet(
        Listening(
            certificate=str(mine),
            key=str(mine.with_suffix(".key")),
            ca=str(pki.directory / "ca.pem"),
            address="127.0.0.1",
            port=0,
        ),
        opened=opened,
        ask=_ask,
        latest=lambda: opened.sealer().frontier,
        node_id=NODE,
        clock=clock,
        say=lambda line, **_: said.append(line),
        metrics=str,
        log_state=lambda: ("healthy", ""),
    )
    fleet.open({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.run)
        await trio.sleep(10 * AGAIN_S)
        assert fleet.listener is None
        [why] = said
        assert "past its end" in why
        clock.step(-YEAR_NS)
        await trio.sleep(2 * AGAIN_S)
        assert fleet.listener is not None and len(fleet.listener.ports) == 1
        assert "may connect" in said[1] and len(said) == 2
        nursery.cancel_scope.cancel()
    opened.close()
