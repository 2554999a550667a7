# SPDX-License-Identifier: Apache-2.0
"""Every kind of event can be shown, on a line and as JSON, and nothing is left out."""

from __future__ import annotations

import json

import msgspec
import pytest

from leased.chain.canonical import Unknown
from leased.ctl.events import event_document, event_line
from leased.service.telling.narration import narrate
from leased.terms.event import Event, Fenced
from leased.terms.teardown import TeardownStep, tell_failed
from tests.doubles.logs import events_of_every_kind, moment_at


@pytest.mark.parametrize("event", events_of_every_kind(), ids=lambda event: type(event).__name__)
def test_every_kind_is_shown(event: Event) -> None:
    found = event_document(7, event, moment_at(0))
    assert found["kind"] == type(event).__name__
    renamed = {"version": "agent_version"}  # "version" is the document's own
    assert {renamed.get(field, field) for field in event.__struct_fields__} <= set(found)
    assert "version" not in found
    json.dumps(found)
    line = event_line(7, event, moment_at(0))
    assert line.startswith("       7  2026-") and type(event).__name__ in line and "\n" not in line


def test_a_kind_of_a_newer_release_is_shown_as_it_is() -> None:
    found = event_document(1, Unknown(99, 2, b"\x01\x02"), moment_at(0))
    assert (found["kind"], found["number"], found["body"]) == ("kind 99", 99, "0102")
    assert "2 bytes, schema 2" in event_line(1, Unknown(99, 2, b"\x01\x02"), moment_at(0))


def test_what_failed_of_a_teardown_is_told_in_words() -> None:
    """An admin read "guard errno 13"."""
    [fenced] = [one for one in events_of_every_kind() if isinstance(one, Fenced)]
    changed = msgspec.structs.replace(fenced, step=TeardownStep.GUARD, errno=13)
    said = "not proven clean: guard (closing it while nobody leases it): Permission denied"
    assert f"{said} (errno 13)" in event_line(7, changed, moment_at(0))
    assert f"{said} (errno 13)" in str(narrate(changed, 7, bytes(32))["MESSAGE"])


def test_every_step_says_what_it_does() -> None:
    for step in TeardownStep:
        assert tell_failed(step.name.lower(), 5, "said").startswith(f"{step.name.lower()} (")
    assert tell_failed("of a newer release", 0, "") == "of a newer release: no reason was given"
