# SPDX-License-Identifier: Apache-2.0
"""Verbs that may wait for as long as it takes, of an agent that takes calls and answers none."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest

from leased.ctl.console import Console
from leased.ctl.main import main
from leased.wire.parameters import METHODS
from tests.doubles.canned_agent import LEASE_ID, Answer, CannedAgent

PATIENCE_S = 30


@pytest.mark.parametrize(
    "words",
    [
        ("watch",),
        ("watch", LEASE_ID),
        ("watch", "--devices"),
        ("wait", LEASE_ID),
        ("resume",),
        ("resume", "gpu"),
        ("verify", "--online"),
        ("call", "--more", "io.leased.Lease.Watch"),
    ],
    ids=" ".join,
)
def test_an_agent_that_hangs_is_told_of_in_time(tmp_path: Path, words: tuple[str, ...]) -> None:
    over, ended = threading.Event(), threading.Event()
    err, statuses = io.StringIO(), []

    def hang(_: Answer) -> Answer:
        over.wait(PATIENCE_S)
        return {}

    def ask() -> None:
        options = ("--socket", agent.path, "--timeout", "0.1")
        statuses.append(main((*options, *words), Console(io.StringIO(), err)))
        ended.set()

    with CannedAgent(tmp_path, dict.fromkeys(METHODS, hang)) as agent:
        threading.Thread(target=ask, daemon=True).start()
        in_time = ended.wait(PATIENCE_S / 3)
        over.set()
    assert in_time, "the agent hangs, and nobody says so"
    assert statuses == [69] and "did not answer in 0.1 s" in err.getvalue()
