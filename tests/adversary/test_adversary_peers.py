# SPDX-License-Identifier: Apache-2.0
"""The same manipulations on the two sealed logs that a Debian 12 has, run from their packages (T8).

A peer that finds more, or less, than the table says fails its row: the table is what was seen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.adversary import fss, slog
from tests.adversary.attacks import ATTACKS, MISSED, NONE
from tests.adversary.verdicts import record
from tests.doubles.host import not_proven

Make = Callable[[Path], fss.Journal | slog.SecureLog]


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> fss.Journal:
    if os.geteuid() != 0 or not fss.JOURNALD.exists() or not shutil.which("unshare"):
        not_proven("what journald's FSS finds", "root, unshare and systemd-journald are needed")
    return fss.Journal(tmp_path_factory.mktemp("fss") / "base").begin()


@pytest.fixture(scope="module")
def secure_log(tmp_path_factory: pytest.TempPathFactory) -> slog.SecureLog:
    if missing := slog.missing():
        not_proven("what syslog-ng's secure logging finds", f"no {', '.join(missing)} here")
    return slog.SecureLog(tmp_path_factory.mktemp("slog") / "base").begin()


def test_journald_takes_an_untouched_journal(journal: fss.Journal, tmp_path: Path) -> None:
    assert journal.judge() == MISSED
    other = journal.copied(tmp_path / "other")
    key = (journal.root / "verification-key").read_text("utf-8")
    swapped = ("1" if key[0] == "0" else "0") + key[1:]
    (other.root / "verification-key").write_text(swapped, "utf-8")
    assert other.judge() != MISSED, "with another key nothing holds: sealing is on"


def test_slog_takes_an_untouched_log(secure_log: slog.SecureLog) -> None:
    assert secure_log.judge() == MISSED


@pytest.mark.parametrize("name", [attack.name for attack in ATTACKS if attack.fss != NONE])
def test_what_journald_says(journal: fss.Journal, tmp_path: Path, name: str) -> None:
    _play("fss", fss, journal.copied(tmp_path / "victim"), name)


@pytest.mark.parametrize("name", [attack.name for attack in ATTACKS if attack.slog != NONE])
def test_what_slog_says(secure_log: slog.SecureLog, tmp_path: Path, name: str) -> None:
    _play("slog", slog, secure_log.copied(tmp_path / "victim"), name)


def _play(system: str, module: ModuleType, victim: fss.Journal | slog.SecureLog, name: str) -> None:
    """Attack, judge, compare with the table."""
    getattr(module, name)(victim)
    said = victim.judge()
    [expected] = [getattr(attack, system) for attack in ATTACKS if attack.name == name]
    assert said == expected
    record(name, system, said)
