# SPDX-License-Identifier: Apache-2.0
"""The table in tests/EVIDENCE.md is that of the last run of every manipulation on every system."""

from __future__ import annotations

import json

from tests.adversary.attacks import ATTACKS, MISSED, NONE
from tests.adversary.verdicts import EVIDENCE, RESULTS, SYSTEMS, put, table


def test_the_table_is_that_of_the_results_and_every_manipulation_was_run() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()]
    found = {(attack, system): verdict for attack, system, verdict in rows}
    wanted = {
        (attack.name, system): attack.verdict if system == "ours" else getattr(attack, system)
        for attack in ATTACKS
        for system in SYSTEMS
        if system == "ours" or getattr(attack, system) != NONE
    }
    assert found == wanted, "run with LEASED_ADVERSARY=FILE, then verdicts.py FILE"
    evidence = EVIDENCE.read_text("utf-8")
    assert evidence == put(evidence, table(found)), "run verdicts.py"


def test_ours_misses_the_open_epoch_and_nothing_else() -> None:
    assert [attack.name for attack in ATTACKS if attack.verdict == MISSED] == ["open_epoch"]
    assert len(ATTACKS) >= 24
