# SPDX-License-Identifier: Apache-2.0
"""The table of hostile holders: it says what was run, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import verdicts
from tests.hostile.verdicts import CASES, KINDS, RESULTS, Verdict

CLEAN = Verdict("swap", "block", "vm", "clean", cut_ms=1.25, proven_ms=400.0, evidence="test_swap")


def test_what_is_in_the_evidence_is_what_was_run() -> None:
    found = verdicts.read(RESULTS.read_text("utf-8").splitlines())
    text = verdicts.EVIDENCE.read_text("utf-8")
    assert verdicts.put(text, verdicts.table(found)) == text, "python tests/hostile/verdicts.py"
    assert [one for one in found if not one.evidence] == [], "a verdict names its test"


def test_every_kind_of_a_case_is_one() -> None:
    assert {kind for _, kinds in CASES.values() for kind in kinds} <= set(KINDS)


def test_a_case_that_was_not_run_says_so() -> None:
    lines = verdicts.table([CLEAN]).splitlines()
    assert lines.count("| swaps on it | block | clean | 1.2 ms | 400 ms | vm |") == 1
    pairs = sum(len(kinds) for _, kinds in CASES.values())
    assert sum("not run" in line for line in lines) == pairs - 1


def test_of_two_runs_the_worse_one_counts() -> None:
    slow = CLEAN._replace(cut_ms=9.0)
    fenced = CLEAN._replace(verdict="fenced", reason="proof", cut_ms=0.1)
    assert verdicts.merged([CLEAN, slow]) == verdicts.merged([slow, CLEAN]) == [slow]
    assert verdicts.merged([slow, fenced, CLEAN]) == [fenced]


@pytest.mark.parametrize(
    "wrong",
    [
        {"case": "nonsense"},
        {"kind": "gpu"},
        {"where": "here"},
        {"verdict": "fine"},
        {"verdict": "fenced"},
        {"reason": "proof"},
    ],
)
def test_what_is_no_verdict_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="verdict|fence"):
        verdicts.record(CLEAN._replace(**wrong))


def test_a_verdict_is_written_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEASED_VERDICTS", raising=False)
    verdicts.record(CLEAN)
    monkeypatch.setenv("LEASED_VERDICTS", str(tmp_path / "found"))
    verdicts.record(CLEAN)
    verdicts.record(CLEAN)
    assert verdicts.read((tmp_path / "found").read_text().splitlines()) == [CLEAN, CLEAN]


def test_a_document_without_the_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="hostile:begin"):
        verdicts.put("nothing", "table")
