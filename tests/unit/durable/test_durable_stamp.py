# SPDX-License-Identifier: Apache-2.0
"""The stamp that says when a TPM's counter was advanced last: whatever lies there, the counter is
advanced, or it is said why not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from leased.durable.tpm import CounterConfig, TpmCounter
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S, Moment
from tests.doubles.logs import BOOT

NOW = Moment(BOOT, 1_000 * NS_PER_S, 0)
TPM2 = """#!/bin/sh
value="$(dirname "$0")/value"
case "$1" in
nvreadpublic) printf 'attributes:\\n  value: 0x12\\n' ;;
nvincrement) echo $(($(cat "$value" 2>/dev/null || echo 0) + 1)) > "$value" ;;
nvread)
    if [ ! -e "$value" ]; then echo 'ERROR: (0x14a)' >&2; exit 1; fi
    printf "\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\$(printf %o "$(cat "$value")")" ;;
esac
"""


@pytest.fixture
def counter(tmp_path: Path) -> TpmCounter:
    """Asked by a program that counts in a file."""
    program = tmp_path / "tpm2"
    program.write_text(TPM2)
    program.chmod(0o755)
    settings = CounterConfig(index="0x01800a11", program=str(program))
    return TpmCounter(settings, (tmp_path / "run" / "stamp", lambda: NOW))


def stamp(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir(exist_ok=True)
    return tmp_path / "run" / "stamp"


def test_it_is_remembered_when_it_was(counter: TpmCounter) -> None:
    assert counter.rested() and counter.advance() == 1
    assert not counter.rested() and counter.advance() == 2


@pytest.mark.parametrize(
    "said",
    [
        f"{BOOT.hex()} {NOW.boot_ns + 1}",
        f"{BOOT.hex()} {'9' * 5000}",
        f"{BOOT.hex()} 99999999999999999999999999",
        "",
        "\udcff",
        f"{BOOT.hex()} 1 2",
    ],
)
def test_a_stamp_that_nobody_wrote_holds_up_no_advance(
    counter: TpmCounter, tmp_path: Path, said: str
) -> None:
    stamp(tmp_path).write_text(said, errors="surrogateescape")
    assert counter.rested(), "it was not advanced at a time to come"
    assert counter.advance() == 1 and not counter.rested()


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/full"), lambda path: path.touch(0o000)]
)
def test_what_is_no_stamp_is_replaced_and_not_waited_for(
    counter: TpmCounter, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(stamp(tmp_path))
    assert counter.rested() and counter.advance() == 1 and not counter.rested()


def test_one_that_cannot_be_written_is_told_and_the_counter_stays(
    counter: TpmCounter, tmp_path: Path
) -> None:
    stamp(tmp_path).mkdir()
    for _ in range(2):
        with pytest.raises(StateError, match="run/stamp.*cannot be written"):
            counter.advance()
    assert counter.read() is None
    stamp(tmp_path).rmdir()
    assert counter.advance() == 1
