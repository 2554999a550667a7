# SPDX-License-Identifier: Apache-2.0
"""A machine with GPUs: the mock, and (`-m gpu`, where there is one) the real one.

Rule: a test that takes `gpus` runs on both and changes no setting; one that takes `mock` breaks or
changes the machine and runs on the mock alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from leased.hardware.devices import Devices
from tests.doubles.gpu_host import gpu_devices, mock_machine
from tests.doubles.host import not_proven
from tests.hostile.cuda_process import Holder, holder
from tests.mocks.nvml.control import Machine, Unavailable

REPOSITORY = Path(__file__).resolve().parents[3]
ANSWER_BUDGET_S = 60


class Gpus:
    """Whatever GPUs there are, by the environment that a process needs to find them."""

    def __init__(self, environment: Mapping[str, str], machine: Machine | None = None) -> None:
        self.environment = {**environment, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'agent'}"}
        self.machine = machine

    def begin(
        self, question: str, *arguments: object, before: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """A question that goes on while the test does something."""
        words = ["-m", "tests.contract.gpu.questions", question, *map(str, arguments)]
        return subprocess.Popen(
            [*before, sys.executable, *words],
            env=self.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self, asking: subprocess.Popen[str]) -> Any:
        """Its answer."""
        out, _ = asking.communicate(timeout=ANSWER_BUDGET_S)
        assert asking.returncode == 0, out
        return json.loads(out.splitlines()[-1])

    def ask(self, question: str, *arguments: object) -> Any:
        """One question of `questions.py`, answered by NVML."""
        return self.end(self.begin(question, *arguments))

    def run(self, script: str, *, before: Sequence[str] = ()) -> str:
        """What a short program says."""
        words = [*before, sys.executable, "-c", script]
        done = subprocess.run(
            words, env=self.environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def hold(self, trick: str, argument: str = "", **how: Any) -> Any:
        """A holder of `cuda_holders`, for a block."""
        return holder(trick, argument, environment=self.environment, **how)

    def start(self, trick: str, argument: str = "", **how: Any) -> Holder:
        """The same, for who closes it."""
        return Holder(trick, argument, environment=self.environment, **how)


@pytest.fixture
def mock() -> Iterator[Gpus]:
    """Two mock H100; instances may be made on the first, whose mode is off."""
    try:
        with Machine.create(gpus=["H100", "H100"], mig={0: False}) as machine:
            yield Gpus({**os.environ, **machine.environment()}, machine)
    except Unavailable as error:
        not_proven("anything of GPUs, on the mock", str(error))


@pytest.fixture(params=["mock", pytest.param("real", marks=pytest.mark.gpu)])
def gpus(request: pytest.FixtureRequest) -> Iterator[Gpus]:
    """The mock, and the real thing."""
    if request.param == "mock":
        yield request.getfixturevalue("mock")
        return
    real = Gpus(os.environ)
    seen = real.ask("identity", 0)
    if "error" in seen:
        not_proven("that a real GPU behaves as the mock does", "no GPU here")
    yield real


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Two mock H100; some modules have one of their own."""
    with mock_machine(["H100", "H100"]) as one:
        yield one


@pytest.fixture
def devices(machine: Machine) -> Iterator[Devices]:
    with gpu_devices(machine) as real:
        yield real
