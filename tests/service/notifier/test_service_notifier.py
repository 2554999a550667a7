# SPDX-License-Identifier: Apache-2.0
"""The notifier: a notice that is whole, for its holder alone, gone with the lease, and never in
anybody's way.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from leased.service.notifier import Notifier
from leased.terms.command import Drain
from leased.terms.effect import Forget, Notify
from leased.terms.lease import LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S
from tests.doubles.calling import memory, open_house
from tests.doubles.desk import OPERATOR
from tests.doubles.host import not_proven
from tests.doubles.leases import lease as some_lease

pytestmark = pytest.mark.autojump


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        not_proven("a notice that belongs to its holder", "only root can give files away")


def test_a_notice_is_whole_and_for_its_holder(tmp_path: Path) -> None:
    notifier = Notifier(tmp_path / "leases")
    lease = some_lease()
    notifier.start(
        Notify(lease, RevocationReason.OPERATOR_DRAIN, 70 * NS_PER_S), now_ns=40 * NS_PER_S
    )
    directory = notifier.path_of(lease.lease_id)
    [notice] = directory.iterdir()
    assert json.loads(notice.read_text("utf-8")) == {
        "lease_id": lease.lease_id.hex(),
        "reason": "operator_drain",
        "deadline_boottime_ns": 70 * NS_PER_S,
        "seconds_left": 30,
    }
    for path, mode in ((directory, 0o750), (notice, 0o640)):
        status = path.stat()
        assert status.st_mode & 0o777 == mode
        assert (status.st_uid, status.st_gid) == (0, lease.subject.gid)
    notifier.start(Notify(lease, RevocationReason.MAINTENANCE, 1), now_ns=40 * NS_PER_S)
    assert json.loads(notice.read_text("utf-8"))["seconds_left"] == 0
    notifier.start(Forget(lease.lease_id), now_ns=0)
    notifier.start(Forget(lease.lease_id), now_ns=0)
    assert not directory.exists()


def test_a_notice_that_cannot_be_written_is_lost_and_nothing_else(tmp_path: Path) -> None:
    """The sequencer starts it: an error of the runtime directory must not end the agent."""
    (tmp_path / "leases").write_text("in the way")
    notifier = Notifier(tmp_path / "leases")
    lease = some_lease()
    notifier.start(Notify(lease, RevocationReason.OPERATOR_DRAIN, 1), now_ns=0)
    notifier.start(Forget(lease.lease_id), now_ns=0)


async def test_a_drain_reaches_the_lease_directory_and_the_end_takes_it_away(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        reply = await me.call(
            "Lease.Acquire",
            resources=memory(),
            bind="deadline",
            ttl_ns=600 * NS_PER_S,
            grace_ns=30 * NS_PER_S,
        )
        lease_id = bytes.fromhex(reply["lease"]["lease_id"])
        joined = await me.call("Lease.Join", lease_id=lease_id.hex())
        directory = Path(joined["environment"]["LEASE_DIR"])
        assert directory.is_dir()
        await house.agent.ask(Drain(house.host.command_id(), OPERATOR, "", 30 * NS_PER_S))
        await trio.sleep(1)
        notice = json.loads((directory / "notice.json").read_text("utf-8"))
        assert notice["reason"] == "operator_drain" and notice["seconds_left"] == 30
        await house.agent.until(lease_id, LeaseState.RECLAIMED)
        await trio.sleep(1)
        assert not directory.exists()
