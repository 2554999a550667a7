# SPDX-License-Identifier: Apache-2.0
"""Pages in memory have so many rooms: who fills his slowly keeps nobody waiting for long."""

from __future__ import annotations

import pytest
import trio

from leased.collector.running import ROOM_S, Rooms


async def read(rooms: Rooms, takes_s: float) -> bool:
    """Take a room and read for so long; whether it came to the end of that."""
    reading, held = trio.CancelScope(), False
    try:
        with reading:
            await rooms.take(reading)
            held = True
            await trio.sleep(takes_s)
            rooms.read(reading)
        return not reading.cancelled_caught
    finally:
        if held:
            rooms.leave(reading)


@pytest.mark.autojump
async def test_who_reads_for_long_gives_his_room_up_to_who_waits() -> None:
    rooms, done = Rooms(2), dict[str, tuple[bool, float]]()
    begun = trio.current_time()

    async def go(name: str, takes_s: float) -> None:
        whole = await read(rooms, takes_s)
        done[name] = whole, trio.current_time() - begun

    async with trio.open_nursery() as nursery:
        for name, takes_s in (("drips", 900), ("drops", 901), ("quick", 1), ("next", 1)):
            nursery.start_soon(go, name, takes_s)
            await trio.sleep(0.001)
    assert not done["drips"][0] and not done["drops"][0]
    assert done["quick"] == (True, pytest.approx(ROOM_S + 1, abs=0.1))
    assert done["next"] == (True, pytest.approx(ROOM_S + 1, abs=0.1))
    # Whoever keeps nobody waiting has all the time that the question has.
    assert await read(rooms, 900)


@pytest.mark.autojump
async def test_who_has_read_is_not_disturbed() -> None:
    rooms = Rooms(1)
    kept, waits = trio.CancelScope(), trio.CancelScope()
    with kept:
        await rooms.take(kept)
        rooms.read(kept)
        with trio.move_on_after(ROOM_S * 9), waits:
            await rooms.take(waits)
    assert not kept.cancelled_caught
    rooms.leave(kept)
    await rooms.take(waits)
