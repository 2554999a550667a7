# SPDX-License-Identifier: Apache-2.0
"""Everything that a host's root can do to the log: found by the log itself, by what was enrolled,
or by the collector's memory; and what shows it is the least that does (T8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.chain.note import COSIGNATURE_V1, NoteKey
from leased.chain.signing import Signer
from tests.adversary import ours
from tests.adversary.attacks import ATTACKS, MISSED, Attack
from tests.adversary.verdicts import record
from tests.vectors import verify_independent as independent

LEVELS = ("log", "key", "head")


def test_an_untouched_log_holds(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    assert [ours.judge(victim, level) for level in LEVELS] == ["ok"] * 3
    ours.rewrite(victim, [record for record, _ in victim.records()])
    assert [ours.judge(victim, level) for level in LEVELS] == ["ok"] * 3, "root's tools are exact"


WEST, EAST = Signer(b"w" * 32), Signer(b"e" * 32)


def policy(victim: ours.Victim, quorum: str = "west") -> Path:
    """What an auditor knows of the collectors."""
    keys = {
        name: NoteKey(f"{name}.example/collector", signer.public_key, COSIGNATURE_V1)
        for name, signer in (("west", WEST), ("east", EAST))
    }
    lines = [f"witness {name} {key.text()}" for name, key in keys.items()]
    lines += ["group two all west east" if quorum == "two" else "# one is enough"]
    path = victim.folder / f"{quorum}.policy"
    path.write_text("\n".join([*lines, f"quorum {quorum}", ""]))
    return path


def test_a_log_that_was_pruned_by_the_rules_holds_by_the_collectors_keys(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    begins = ours.drop(victim, WEST, "west.example/collector")
    assert begins > 100
    one, two = policy(victim), policy(victim, "two")
    assert ours.judge(victim, "log") == "UNPROVEN", "whoever has the node can write of any key"
    assert ours.judge(victim, "log", one) == "ok"
    assert ours.judge(victim, "head") == "ok", "a remembered head vouches for all before it"
    assert ours.judge(victim, "log", two) == "BELOW_QUORUM"
    checks = {"countersigned": True, "leases": True}
    read = independent.read_policy(one.read_bytes())
    assert independent.verify(victim.directory, **checks, policy=read)
    with pytest.raises(independent.Broken, match="quorum"):
        read = independent.read_policy(two.read_bytes())
        independent.verify(victim.directory, **checks, policy=read)


def test_less_was_cosigned_than_is_gone(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    ours.drop(victim, WEST, "west.example/collector", late=True)
    assert ours.judge(victim, "log") == "GAP" == ours.judge(victim, "log", policy(victim))


def test_a_countersignature_of_another_key_counts_for_nothing(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    ours.drop(victim, EAST, "east.example/collector")
    assert ours.judge(victim, "log", policy(victim)) == "BELOW_QUORUM"


def test_a_forged_countersignature_of_a_known_key_is_named(tmp_path: Path) -> None:
    victim = ours.Victim(tmp_path)
    ours.drop(victim, WEST, "west.example/collector", forged=True)
    assert ours.judge(victim, "log", policy(victim)) == "BAD_SIGNATURE"


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
