# SPDX-License-Identifier: Apache-2.0
"""The Counter port: on the one in memory, and on a counter of a TPM (swtpm, by tpm2-tools)."""

from __future__ import annotations

import msgspec
import pytest

from leased.durable.tpm import CounterConfig, TpmCounter
from leased.ports import Counter
from leased.terms.errors import StateError
from leased.terms.moment import NS_PER_S, Moment
from tests.doubles.counter import INDEX, MemoryCounter, Tpm
from tests.doubles.logs import BOOT


class Real:
    """A TPM with a counter, and the clock of whoever asks it."""

    def __init__(self, tmp_path) -> None:
        self.tpm = Tpm(tmp_path / "tpm")
        self.boot_ns = 1_000 * NS_PER_S
        self.boot_id = BOOT
        self.stamp = tmp_path / "stamp"
        self.settings = CounterConfig(index=INDEX, tcti=self.tpm.tcti)

    def counter(self, **settings: object) -> TpmCounter:
        pace = (self.stamp, lambda: Moment(self.boot_id, self.boot_ns, 0))
        return TpmCounter(msgspec.structs.replace(self.settings, **settings), pace)


@pytest.fixture
def real(tmp_path):
    made = Real(tmp_path)
    with made.tpm:
        yield made


@pytest.fixture(params=["memory", "tpm"])
def counter(request: pytest.FixtureRequest) -> Counter:
    if request.param == "memory":
        return MemoryCounter()
    made = request.getfixturevalue("real")
    made.tpm.define()
    return made.counter()


def test_it_counts_by_one_and_keeps_what_it_counted(counter: Counter) -> None:
    assert counter.read() is None
    first = counter.advance()
    assert first >= 1
    assert counter.read() == first
    assert [counter.advance() for _ in range(3)] == [first + 1, first + 2, first + 3]
    assert counter.read() == first + 3
    assert "counter" in str(counter)


# ---- what only a TPM can do (T12) ----------------------------------------------------------------


def test_it_never_goes_back(real: Real) -> None:
    real.tpm.define()
    counter = real.counter()
    assert counter.advance() + 1 == counter.advance()
    before = counter.read()
    assert before is not None
    real.tpm.stop()
    real.tpm.start()
    assert counter.read() == before
    real.tpm.undefine()
    real.tpm.define()
    assert counter.read() is None
    assert counter.advance() > before


def test_an_index_that_there_is_not_is_told_with_the_remedy(real: Real) -> None:
    with pytest.raises(StateError, match="tpm2 nvdefine 0x01800a11") as refused:
        real.counter().read()
    remedy = refused.value.args[0].split("`")[1].removeprefix("tpm2 ").split()
    real.tpm.ask(*(word.strip("'") for word in remedy))
    assert real.counter().read() is None


@pytest.mark.parametrize("attributes", ["authread|authwrite", "nt=bits|authread|authwrite"])
def test_what_can_be_written_is_no_counter(real: Real, attributes: str) -> None:
    real.tpm.define(attributes)
    with pytest.raises(StateError, match="no counter"):
        real.counter().read()


def test_a_tpm_that_is_gone_is_told(real: Real) -> None:
    real.tpm.define()
    real.tpm.stop()
    for ask in (real.counter().read, real.counter().advance):
        with pytest.raises(StateError, match="tcti|TCTI"):
            ask()


def test_tools_that_are_missing_are_told(real: Real) -> None:
    with pytest.raises(StateError, match="install tpm2-tools"):
        real.counter(program="/no/such/tpm2").read()


def test_a_tpm_that_hangs_is_left_behind(real: Real, tmp_path) -> None:
    hangs = tmp_path / "tpm2"
    hangs.write_text("#!/bin/sh\nexec sleep 600\n")
    hangs.chmod(0o755)
    with pytest.raises(StateError, match=r"did not end within log\.counter\.budget"):
        real.counter(program=str(hangs), budget_ns=NS_PER_S // 100).read()


def test_it_is_not_worn_out(real: Real) -> None:
    real.tpm.define()
    counter = real.counter()
    assert counter.rested()
    counter.advance()
    assert not counter.rested()
    real.boot_ns += real.settings.apart_ns - 1
    assert not real.counter().rested(), "over a restart neither"
    real.boot_ns += 1
    assert counter.rested()
    counter.advance()
    real.boot_id = type(BOOT)(bytes(16))
    assert counter.rested(), "another boot has another clock"
    real.stamp.write_text("nonsense")
    assert counter.rested()
