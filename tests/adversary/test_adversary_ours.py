# SPDX-License-Identifier: Apache-2.0
"""Everything that a host's root can do to the log: found by the log itself, by what was enrolled,
or by the collector's memory; and what shows it is the least that does (T8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adversary import ours
from tests.adversary.attacks import ATTACKS, MISSED, Attack
from tests.adversary.verdicts import record

LEVELS = ("log", "key", "head")


def test_an_untouched_log_holds(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    assert [ours.judge(victim, level) for level in LEVELS] == ["ok"] * 3
    ours.rewrite(victim, [record for record, _ in victim.records()])
    assert [ours.judge(victim, level) for level in LEVELS] == ["ok"] * 3, "root's tools are exact"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_what_ours_says(tmp_path: Path, attack: Attack) -> None:
    victim = ours.Victim(tmp_path)
    getattr(ours, attack.name)(victim)
    if attack.verdict == MISSED:
        assert ours.judge(victim, "head") == "ok", "the stated limit: see FORMAT.md section 10"
    else:
        assert ours.judge(victim, attack.found) == attack.verdict
        below = LEVELS.index(attack.found)
        assert below == 0 or ours.judge(victim, LEVELS[below - 1]) == "ok", "less shows it too"
    record(attack.name, "ours", attack.verdict)
