# SPDX-License-Identifier: Apache-2.0
"""What all pullers need and cannot reach is told once, however many of them try."""

from __future__ import annotations

from leased.collector.running import Outage


def test_it_is_told_when_that_changes() -> None:
    told: list[tuple[str, str]] = []
    archive = Outage("archive", lambda name, why: told.append((name, why)))
    archive.end()
    assert told == []
    for why in ("the server closed the connection", "connection refused", "connection refused"):
        archive.begin(why)
    assert told == [("archive", "the server closed the connection")]
    archive.end()
    archive.end()
    assert told[1:] == [("archive", "can be reached again")]
    archive.begin("connection refused")
    assert len(told) == 3
