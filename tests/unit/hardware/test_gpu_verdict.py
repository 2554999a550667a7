# SPDX-License-Identifier: Apache-2.0
"""The verdict on a GPU: clean only if every item says so, and each that does not says which."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from leased.hardware.gpu.calls import Witnessed
from leased.hardware.gpu.facts import Condition, Question
from leased.hardware.gpu.verdict import is_clean, judge_release, judge_witness
from leased.terms.teardown import StepReport, TeardownStep
from tests.doubles.gpu import IDLE, opener, released, sight, witnessed

USED_MAX = IDLE.used_bytes + (16 << 20)


def witness(seen: Witnessed | None = None, **changes: Any) -> tuple[StepReport, ...]:
    told = {
        "used_max_bytes": USED_MAX,
        "not_before_ns": 0,
        "xids": (),
        "heard_all": True,
        "lacking": (),
        "closed_mode": 2,
        **changes,
    }
    return judge_witness(seen or witnessed(), **told)


def failed(steps: tuple[StepReport, ...]) -> list[tuple[TeardownStep, int, int]]:
    return [(step.step, step.errno, step.measured) for step in steps if step.errno]


def test_clean_is_every_item_and_none_is_not_clean() -> None:
    steps = witness()
    assert is_clean(steps)
    assert {step.step for step in steps} == {
        TeardownStep.ESCAPEE_SCAN,
        TeardownStep.WITNESS,
        TeardownStep.RELEASE,
        TeardownStep.HEALTH,
        TeardownStep.GUARD,
    }
    assert not is_clean(())


MORE = msgspec.structs.replace(IDLE, used_bytes=USED_MAX + 1)
SIGHTS = [
    ({"openers": (opener(), opener(pid=78))}, TeardownStep.ESCAPEE_SCAN, errno.EBUSY, 2),
    ({"openers": (opener(), opener(node=(226, 1)))}, TeardownStep.ESCAPEE_SCAN, errno.EBUSY, 1),
    ({"processes": ((5,), (), (5, 6))}, TeardownStep.WITNESS, errno.EBUSY, 2),
    ({"processes": ((5,), (), ()), "ghosts": (5,)}, TeardownStep.WITNESS, errno.ESRCH, 1),
    ({"usage": MORE}, TeardownStep.RELEASE, errno.EBUSY, 1),
]


@pytest.mark.parametrize(("seen", "step", "number", "measured"), SIGHTS)
def test_what_a_look_finds_has_a_name(
    seen: dict[str, Any], step: TeardownStep, number: int, measured: int
) -> None:
    expected = [(step, number, measured)]
    assert failed(judge_release(released(sight=sight(**seen)), USED_MAX)) == expected
    assert failed(witness(witnessed(sight=sight(**seen)))) == expected


def test_used_memory_up_to_the_slack_is_the_drivers() -> None:
    usage = msgspec.structs.replace(IDLE, used_bytes=USED_MAX)
    assert is_clean(judge_release(released(sight=sight(usage=usage)), USED_MAX))


def test_how_many_were_ended_is_told_where_nobody_is_left() -> None:
    [scan, *_] = judge_release(released(killed=3), USED_MAX)
    assert (scan.errno, scan.measured) == (0, 3)


def test_a_look_too_soon_after_the_release_is_not_enough() -> None:
    seen = witnessed(sight=sight(seen_ns=500))
    assert is_clean(witness(seen, not_before_ns=500))
    assert failed(witness(seen, not_before_ns=507)) == [(TeardownStep.WITNESS, errno.ENODATA, 7)]


@pytest.mark.parametrize(
    ("changes", "number", "measured"),
    [
        ({"condition": Condition(4, False, False)}, errno.ENOTRECOVERABLE, 4),
        ({"condition": Condition(0, True, False)}, errno.EUCLEAN, 0),
        ({"condition": Condition(0, False, True)}, errno.EUCLEAN, 0),
        ({"condition": Condition(0, None, None, True)}, errno.EUCLEAN, 0),
        ({"condition": Condition(0)}, errno.ENODATA, 0),
        ({"condition": Condition(None, False, False)}, errno.ENODATA, 0),
    ],
)
def test_a_gpu_that_is_not_fit_is_not_clean(
    changes: dict[str, Any], number: int, measured: int
) -> None:
    assert failed(witness(witnessed(**changes))) == [(TeardownStep.HEALTH, number, measured)]


def test_xids_of_the_kill_are_nothing_and_others_are_named() -> None:
    assert is_clean(witness(xids=(13, 31, 43, 45)))
    assert failed(witness(xids=(43, 95))) == [(TeardownStep.HEALTH, errno.EIO, 95)]
    assert failed(witness(xids=(79,))) == [(TeardownStep.HEALTH, errno.EIO, 79)]


def test_what_the_inventory_said_is_missing_is_not_asked_again_but_then_we_must_have_heard() -> (
    None
):
    silent = witnessed(condition=Condition(None, None, None, None))
    lacking = (Question.RECOVERY.value, Question.REPAIRS.value)
    assert is_clean(witness(silent, lacking=lacking))
    assert failed(witness(silent, lacking=lacking, heard_all=False)) == [
        (TeardownStep.HEALTH, errno.ENODATA, 0)
    ]
    # Where the driver keeps the level itself, a gap in listening is none in knowing.
    assert is_clean(witness(heard_all=False))


def test_a_gpu_that_stayed_open_is_not_clean() -> None:
    for mode in (0, 3, None):
        steps = failed(witness(witnessed(mode=mode)))
        assert [(step, number) for step, number, _ in steps] == [(TeardownStep.GUARD, errno.EACCES)]
    assert is_clean(witness(witnessed(mode=None), closed_mode=None))
