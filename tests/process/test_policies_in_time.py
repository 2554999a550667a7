# SPDX-License-Identifier: Apache-2.0
"""What a policy promises over time, on the real agent: windows over changes of the clock, changes
and policies that end, bursts, what is lowered, what is lent.

Rule: the agent's wall clock is the host's and a number that a test may change (a preloaded shim);
deadlines and graces run on the boot clock, which nobody touches, so they are short here. Every
state is asked for through the sockets.
"""

from __future__ import annotations

import json
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.host_agent import NOBODY, NS_PER_S, PATIENCE_S, HostAgent, mem
from tests.doubles.story import judge
from tests.doubles.wire_peer import Remote
from tests.process.test_unprivileged import as_nobody

pytestmark = pytest.mark.root

ME, OTHER = "uid-0", f"uid-{NOBODY}"
MIB, PAGE = 1 << 20, 4096
FEW_PM = 4
"""The share of the host's memory that there is to lease: little, so that it can be scarce."""
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static volatile long *shift_s;
int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	int status = real(clock, now);
	if (status == 0 && clock == CLOCK_REALTIME && shift_s)
		now->tv_sec += *shift_s;
	return status;
}
__attribute__((constructor)) static void begin(void)
{
	int fd = open(getenv("WALL_SHIFT"), O_RDONLY | O_CLOEXEC);
	void *at = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
	if (at != MAP_FAILED)
		shift_s = at;
}
"""


class Timed:
    """An agent whose wall clock can be set: forward only, as a log wants it."""

    def __init__(self, agent: HostAgent, shim: Path, shift: Path) -> None:
        self.agent, self._shift = agent, shift
        self._shimmed = {"LD_PRELOAD": str(shim), "WALL_SHIFT": str(shift)}

    def start(self) -> None:
        """Have it run."""
        self.agent.start(environment=self._shimmed)

    def away_until(self, instant: str) -> None:
        """It is killed, and is back when it is that late."""
        self.agent.kill()
        self.set_clock(instant)
        self.start()

    def now(self) -> datetime:
        """Its wall clock."""
        (shift_s,) = struct.unpack("q", self._shift.read_bytes())
        return datetime.fromtimestamp(time.time() + shift_s, UTC)

    def set_clock(self, instant: str) -> None:
        """Set it."""
        gap = datetime.fromisoformat(instant).replace(tzinfo=UTC) - self.now()
        assert gap.total_seconds() > 0
        (shift_s,) = struct.unpack("q", self._shift.read_bytes())
        with self._shift.open("r+b") as file:
            file.write(struct.pack("q", shift_s + round(gap.total_seconds())))

    def put(self, **document: Any) -> None:
        """Another policy."""
        self.agent.call("Admin.SetPolicy", admin=True, document=json.dumps(document))

    def take(self, size_mib: int = 1, *, size_bytes: int = 0, **more: Any) -> dict[str, Any]:
        """A lease, or a refusal."""
        try:
            return self.agent.acquire(size_bytes or size_mib * MIB, 600_000, **more)
        except Remote as refused:
            return refused.parameters

    def renew(self, lease: dict[str, Any]) -> str:
        """What becomes of a renewal."""
        try:
            self.agent.call("Lease.Renew", lease_id=lease["lease_id"])
        except Remote as refused:
            return str(refused.parameters["reason"])
        return "renewed"

    def state(self, lease: dict[str, Any]) -> str:
        """The state of a lease."""
        return str(self.agent.describe(lease["lease_id"])["runtime"]["state"])

    def allowance(self, rule: str) -> dict[str, Any]:
        """A row of `quota show`."""
        rows: Any = self.agent.call("Lease.Quotas")["allowances"]
        return next(row for row in rows if row["rule"] == rule)

    def events(self, kind: str) -> str:
        """The records of a kind, as `leasectl audit` prints them."""
        log = str(self.agent.audit)
        return self.agent.leasectl("audit", "log", "--log", log, "--kind", kind).stdout

    def until(self, what: Callable[[], bool]) -> datetime:
        """Ask until it is so; the wall clock then."""
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < end, self.agent.log()[-3000:]
        return self.now()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    directory = tmp_path_factory.mktemp("wall")
    source, shim, shift = (directory / name for name in ("wall.c", "wall.so", "shift"))
    source.write_text(SHIM)
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", shim, source, "-ldl"]
    subprocess.run(command, check=True)
    shift.write_bytes(struct.pack("q", 0))
    timed = Timed(HostAgent(hardware=f"normal_share_pm = {FEW_PM}"), shim, shift)
    timed.set_clock("2027-03-28 00:00:00")
    with timed.agent as agent:
        timed.start()
        yield timed
        judge(agent)


@pytest.fixture
def timed(shared: Timed) -> Iterator[Timed]:
    """Afterwards nobody has anything, and the configured policy holds."""
    yield shared
    listed: Any = shared.agent.call("Lease.List", admin=True)["leases"]
    for lease in listed:
        shared.agent.call("Admin.Revoke", admin=True, lease_id=lease["lease_id"], grace_ns=0)
    for lease in listed:
        shared.agent.wait_for(lease["lease_id"])
    shared.agent.call("Admin.SetPolicy", admin=True)


def test_a_window_follows_its_zone_over_changes_of_the_clock(timed: Timed) -> None:
    def night(cron: str) -> None:
        window = {"cron": cron, "timezone": "Europe/Berlin", "duration": "2s", "leases_max": 9}
        timed.put(tenants={ME: {"leases_max": 0, "schedules": {"night": window}}})

    def may() -> bool:
        return bool(timed.agent.call("Lease.Plan", resources=[mem(PAGE)])["grantable"])

    timed.set_clock("2027-03-28 00:59:59")  # 01:59:59 there, and a second later it is 03:00
    night("30 2 * * *")
    assert timed.until(may) >= datetime(2027, 3, 28, 1, tzinfo=UTC), "when the clock goes on"
    assert "lease_id" in timed.take()
    timed.until(lambda: not may())
    timed.set_clock("2027-10-30 23:59:59")  # 01:59:59 there
    night("0 2 * * *")
    assert timed.until(may) >= datetime(2027, 10, 31, 0, tzinfo=UTC)
    timed.set_clock("2027-10-31 01:00:00")  # 02:00:00 for the second time
    night("00 2 * * *")
    shown: Any = timed.agent.call("Admin.GetPolicy", admin=True)
    assert shown["windows"] == [] and not may(), "an instant that comes twice counts once"
    assert "uid-0/night" in timed.events("PolicyTurned")


def test_a_lowered_quota_is_marked_borne_not_renewed_and_taken_back_in_order(timed: Timed) -> None:
    timed.put(tenants={ME: {"mem": "24MiB"}})
    low = timed.take(8, level="low")
    old, new = timed.take(8), timed.take(8)
    timed.put(borrowing={"grace": "1s"}, tenants={ME: {"mem": "8MiB", "cut_grace": "1s"}})
    row = timed.allowance(f"tenants.{ME}.mem")
    assert row["leaving"] == 2 and row["until_boottime_ns"]
    assert timed.take()["rule"] == f"tenants.{ME}.mem"
    assert [timed.renew(one) for one in (low, old, new)] == ["renewed"] * 3
    timed.until(lambda: timed.state(new) != "active")
    assert (timed.state(low), timed.state(old)) == ("draining", "active")
    assert [timed.renew(one) for one in (low, old, new)] == ["draining", "renewed", "draining"]
    for gone in (low, new):
        closed = timed.agent.wait_for(gone["lease_id"])
        assert closed["runtime"]["reason"] == "quota_cut"
    assert timed.state(old) == "active"
    assert timed.allowance(f"tenants.{ME}.mem")["leaving"] == 0
    assert "has 25165824 of mem, limit 8388608" in timed.events("OverageBegan")
    assert "is within mem" in timed.events("OverageEnded")


def test_an_owner_comes_first_and_borrowers_leave_in_order(timed: Timed) -> None:
    devices: Any = timed.agent.call("Device.List")["resources"]
    (capacity,) = (one["capacity"] for one in devices if one["kind"] == "mem")
    part = capacity // 24 // PAGE * PAGE

    def quotas(grace: str | None = None) -> None:
        lends = {"enabled": True} if grace is None else {"enabled": True, "grace": grace}
        mine = {"mem": f"{16 * part // 1024}KiB", "level_max": "high"}
        others = {"mem": f"{8 * part // 1024}KiB"}
        timed.put(borrowing=lends, tenants={ME: mine, OTHER: others})

    def owner_asks() -> str:
        asked = {"resources": [mem(4 * part)], "ttl_ns": 600 * NS_PER_S, "bind": "cgroup"}
        (answer,) = as_nobody(timed.agent, ("Lease.Acquire", {**asked, "wait_ns": 20 * NS_PER_S}))
        return str(answer["parameters"]["lease"]["lease_id"])

    quotas()
    own = timed.take(size_bytes=16 * part, level="high")
    high = timed.take(size_bytes=4 * part, level="high")
    low = timed.take(size_bytes=4 * part, level="low")
    assert timed.take(size_bytes=PAGE)["reason"] == "tenant_capacity", "half of one's own"
    row = timed.allowance(f"tenants.{ME}.mem")
    assert row["usage"] > row["limit"], row
    assert (row["leaving"], row.get("until_boottime_ns")) == (0, None), "lent is not too much"
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(owner_asks)
        timed.until(lambda: timed.state(low) == "draining")
        assert (timed.state(high), timed.state(own)) == ("active", "active")
        why: Any = timed.agent.call("Lease.Why", lease_id=low["lease_id"])
        runtime = why["lease"]["runtime"]
        given_ns = runtime["drain_deadline_boottime_ns"] - why["told_boottime_ns"]
        assert (runtime["reason"], given_ns) == ("quota_reclaim", 300 * NS_PER_S)
        timed.agent.call("Lease.Done", lease_id=low["lease_id"])
        assert asked.result()
        quotas("1s")
        asked = threads.submit(owner_asks)
        assert timed.agent.wait_for(high["lease_id"])["runtime"]["reason"] == "quota_reclaim"
        assert asked.result() and timed.state(own) == "active"


def test_a_change_ends_at_its_instant(timed: Timed) -> None:
    ends = "2027-11-01T00:00:00Z"
    timed.set_clock("2027-10-31 23:59:58")
    change = {"expires_at": ends, "reason": "Quarterly capacity increase", "leases_max": 2}
    timed.put(tenants={ME: {"leases_max": 1, "changes": [change]}})
    assert "lease_id" in timed.take() and "lease_id" in timed.take()
    assert timed.take()["limit"] == 2
    said = timed.agent.leasectl("policy", "show").stdout
    assert "reason = Quarterly capacity increase" in said and ends in said
    at = timed.until(lambda: timed.take()["limit"] == 1)
    assert datetime(2027, 11, 1, tzinfo=UTC) <= at


def test_a_burst_ends_by_itself(timed: Timed) -> None:
    burst = {"limit": "8MiB", "mode": "burst", "burst": "16MiB", "burst_ttl": "1s"}
    timed.put(tenants={ME: {"mem": burst}})
    own, above = timed.take(8), timed.take(8)
    assert timed.take()["reason"] == "tenant_capacity"
    assert (timed.renew(own), timed.renew(above)) == ("renewed", "burst_ended")
    timed.agent.wait_for(above["lease_id"])
    assert "expired" in timed.agent.leasectl("why", above["lease_id"]).stdout
    assert timed.renew(own) == "renewed"


def test_a_policy_that_ends_leaves_the_configured_one(timed: Timed) -> None:
    before: Any = timed.agent.call("Admin.GetPolicy", admin=True)
    timed.set_clock("2027-11-02 11:59:59")
    timed.put(expires_at="2027-11-02T12:00:00Z", tenants={ME: {"leases_max": 0}})
    assert timed.take()["rule"] == f"tenants.{ME}.leases_max"
    at = timed.until(lambda: "lease_id" in timed.take())
    assert at >= datetime(2027, 11, 2, 12, tzinfo=UTC)
    after: Any = timed.agent.call("Admin.GetPolicy", admin=True)
    assert after["policy_hash"] == before["policy_hash"] and after["configured"]


def test_what_was_due_while_the_agent_was_away_holds_when_it_is_back(timed: Timed) -> None:
    """The window begins at an instant that its zone leaves out, ends, and its policy after it."""

    def configured() -> bool:
        return bool(timed.agent.call("Admin.GetPolicy", admin=True)["configured"])

    timed.set_clock("2028-03-25 12:00:00")
    night = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "duration": "1h", "leases_max": 9}
    mine = {"leases_max": 0, "schedules": {"night": night}}
    timed.put(expires_at="2028-03-26T03:00:00Z", tenants={ME: mine})
    assert timed.take()["rule"] == f"tenants.{ME}.leases_max"
    timed.away_until("2028-03-26 00:59:00")  # 01:59 there: what follows is 03:00
    assert timed.take()["rule"] == f"tenants.{ME}.leases_max", "what was handed in is kept"
    timed.away_until("2028-03-26 01:30:00")
    assert "lease_id" in timed.take(), "it began half an hour ago"
    timed.away_until("2028-03-26 02:00:01")
    assert timed.take()["rule"] == f"tenants.{ME}.leases_max", "it is over"
    assert not configured()
    timed.away_until("2028-03-26 03:00:01")
    assert "lease_id" in timed.take() and configured(), "the policy, too"
