# SPDX-License-Identifier: Apache-2.0
"""The running agent on a page cache that forgets what was not synced (T7): whichever call on its
state directory is the last, fails, or is short, what its client was told is in the chain once the
power is back.

One state directory goes through all of it. `LEASED_LOSSY_STARTS` is the number of starts, each with
a fault drawn by chance (the long form is 300); `LEASED_CRASH_SEED` draws others.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from tests.doubles.host_agent import HostAgent
from tests.doubles.ledger import Ledger
from tests.doubles.story import judge, tell
from tests.lossy.mounted import Mounted, forgetful

pytestmark = pytest.mark.root

STARTS = int(os.environ.get("LEASED_LOSSY_STARTS", "12"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
FILLS = 3
FAULTS = (
    ("any", "power"),
    ("fsync", "EIO"),
    ("fsync", "power"),
    ("write", "EIO"),
    ("write", "ENOSPC"),
    ("write", "short"),
)
SETTINGS = '[log]\ndurability = "best-effort"\nepoch = "1s"\n'
EX_SOFTWARE, EX_CONFIG = 70, 78


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    folder = tmp_path_factory.mktemp("agent")
    with forgetful(folder) as mounted:
        yield mounted


@pytest.fixture
def agent(disk: Mounted) -> Iterator[HostAgent]:
    with HostAgent(state=disk.point / "state", more=SETTINGS) as one:
        one.start_reaper()
        yield one


def calls_of_a_day(disk: Mounted, agent: HostAgent, ledger: Ledger) -> Counter[str]:
    """How many calls a start and what a client has it do take."""
    before = disk.order("count")
    agent.start()
    for _ in range(FILLS):
        assert ledger.fill(agent)
    agent.stop()
    after = disk.order("count")
    counted = Counter({call: after[call] - before.get(call, 0) for call in after})
    counted["any"] = sum(counted.values()) - counted["read"]
    return counted


def test_what_a_client_was_told_outlives_every_fault(disk: Mounted, agent: HostAgent) -> None:
    random, ledger = Random(SEED), Ledger()
    agent.start()
    agent.stop()
    counts = calls_of_a_day(disk, agent, ledger)
    ends: Counter[str] = Counter()
    for number in range(STARTS):
        call, fault = FAULTS[number % len(FAULTS)]
        when, seed = random.randint(1, counts[call] // 2), random.getrandbits(32)
        said = len(agent.log())
        disk.order("fail", call, when, fault)
        agent.launch()
        whole = agent.ready() and all(ledger.fill(agent) for _ in range(FILLS))
        if whole:
            agent.kill()
        else:
            status = agent.wait()
            assert status in (EX_SOFTWARE, EX_CONFIG), (status, agent.log()[said:])
            assert re.search(r"(?m)^<2>leased: .*(rror|\[Errno \d+\])", agent.log()[said:]), (
                "it did not say why, at CRIT"
            )
        ends[f"{fault}: {'went on' if whole else 'ended'}"] += 1
        disk.order("boot", seed)
        ledger.assert_kept(tell(agent))
    agent.start()
    assert ledger.fill(agent)
    ledger.assert_kept(judge(agent))
    print(f"seed {SEED}: {dict(ends)}, {len(ledger.granted)} grants, {counts}")
    assert sum(ends.values()) == STARTS and "Traceback" not in agent.log()
    assert sum(count for end, count in ends.items() if end.endswith("ended")) >= STARTS // 3


def test_a_full_disk_stops_nobody_who_has_a_lease(disk: Mounted, agent: HostAgent) -> None:
    """What is sealed has its place beforehand; what needs a new block (a published note, the next
    spare) waits for one."""
    ledger = Ledger()
    agent.start()
    lease_id = agent.acquire(bind="deadline")["lease_id"]
    disk.order("full")
    for _ in range(FILLS):
        assert ledger.fill(agent), agent.log()[-3000:]
    agent.call("Lease.Release", lease_id=lease_id)
    assert agent.wait_for(lease_id)["runtime"]["state"] == "reclaimed"
    disk.order("well")
    assert ledger.fill(agent)
    agent.kill()
    disk.order("boot", SEED)
    agent.start()
    ledger.assert_kept(judge(agent))


def test_a_disk_that_lies_is_reported(disk: Mounted, agent: HostAgent) -> None:
    """The control: acknowledged upon barriers that do nothing, grants are gone with the power."""
    ledger = Ledger()
    agent.start()
    disk.order("lie")
    for _ in range(FILLS):
        assert ledger.fill(agent)
    agent.kill()
    disk.order("boot", 1)
    with pytest.raises(Exception):  # noqa: B017
        ledger.assert_kept(tell(agent))
