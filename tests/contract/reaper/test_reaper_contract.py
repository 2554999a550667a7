# SPDX-License-Identifier: Apache-2.0
"""Every promise of the Reaper port, on the fake and on the real reaper over the real link."""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest
import trio

from leased.hardware.clock import BootClock
from leased.ports import Arming, Clock, Reaper
from leased.service.reaper.link import ReaperLink
from leased.terms.errors import DeviceError
from leased.terms.identity import LeaseId
from leased.terms.lease import Lease
from leased.terms.moment import NS_PER_MS
from leased.terms.teardown import CutReport
from tests.doubles.reaper import FakeReaper
from tests.doubles.reaper_host import ReaperHost, lease_of, usable

SOON_MS, LATER_MS = 60, 60_000
ALL = ("fake", "real")


class Subject(NamedTuple):
    """A reaper to be tested, and its clock."""

    reaper: Reaper
    clock: Clock


@contextlib.asynccontextmanager
async def _subject(kind: str) -> AsyncIterator[Subject]:
    clock = BootClock()
    async with trio.open_nursery() as nursery:
        if kind == "fake":
            fake = FakeReaper(clock)
            await nursery.start(fake.run)
            yield Subject(fake, clock)
        else:
            if not usable():
                pytest.skip("needs root and a cgroup2")
            with ReaperHost() as host:
                link = ReaperLink(host.socket_path)
                await nursery.start(link.run)
                yield Subject(link, clock)
        nursery.cancel_scope.cancel()


async def _arm(reaper: Reaper, lease: Lease) -> DeviceError | None:
    [outcome] = await reaper.arm_many([Arming(lease)])
    return outcome


async def _revoke(reaper: Reaper, lease_id: LeaseId) -> CutReport:
    [report] = await reaper.revoke_many([lease_id])
    assert isinstance(report, CutReport)
    return report


def _moved(lease: Lease, *, generation: int, by_ms: int) -> Lease:
    deadline = lease.deadline_ns + by_ms * NS_PER_MS
    return msgspec.structs.replace(lease, generation=generation, deadline_ns=deadline)


@pytest.mark.parametrize("kind", ALL)
async def test_a_lease_is_cut_at_its_deadline_by_the_reaper_itself(kind: str) -> None:
    async with _subject(kind) as (reaper, clock):
        lease = lease_of(ttl_ms=SOON_MS)
        assert await _arm(reaper, lease) is None
        await clock.sleep_until(lease.deadline_ns)
        report = await _revoke(reaper, lease.lease_id)
        assert report.lease_id == lease.lease_id
        assert report.by_reaper and report.clean
        assert report.cut_ns >= lease.deadline_ns


@pytest.mark.parametrize("kind", ALL)
async def test_a_renewal_moves_the_deadline(kind: str) -> None:
    async with _subject(kind) as (reaper, clock):
        lease = lease_of(ttl_ms=SOON_MS)
        await _arm(reaper, lease)
        later = lease.deadline_ns + SOON_MS * NS_PER_MS
        assert await reaper.renew_many([(lease.lease_id, 2, later)]) == [True]
        await clock.sleep_until(later)
        assert (await _revoke(reaper, lease.lease_id)).cut_ns >= later


@pytest.mark.parametrize("kind", ALL)
async def test_a_late_renewal_loses(kind: str) -> None:
    async with _subject(kind) as (reaper, clock):
        lease = lease_of(ttl_ms=SOON_MS)
        await _arm(reaper, lease)
        await clock.sleep_until(lease.deadline_ns)
        far = lease.deadline_ns + LATER_MS * NS_PER_MS
        assert await reaper.renew_many([(lease.lease_id, 2, far)]) == [False]
        assert (await _revoke(reaper, lease.lease_id)).by_reaper


@pytest.mark.parametrize("kind", ALL)
async def test_an_older_generation_changes_and_arms_nothing(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS, generation=7)
        await _arm(reaper, lease)
        older = (lease.lease_id, 6, lease.deadline_ns + 1)
        same = (lease.lease_id, 7, lease.deadline_ns + 1)
        newer = (lease.lease_id, 8, lease.deadline_ns + 1)
        assert await reaper.renew_many([older, same, newer]) == [True, False, True]
        assert await reaper.renew_many([older, newer]) == [True, True], "overtaken, and not late"
        refused = await _arm(reaper, lease)
        assert refused is not None and refused.errno == errno.ESTALE


@pytest.mark.parametrize("kind", ALL)
async def test_a_renewal_may_be_repeated(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        await _arm(reaper, lease)
        move = (lease.lease_id, 2, lease.deadline_ns + 1)
        assert await reaper.renew_many([move]) == [True]
        assert await reaper.renew_many([move]) == [True]


@pytest.mark.parametrize("kind", ALL)
async def test_arming_again_is_allowed_and_moves_with_a_newer_generation(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        assert await _arm(reaper, lease) is None
        assert await _arm(reaper, lease) is None
        assert await _arm(reaper, _moved(lease, generation=2, by_ms=5)) is None
        other = await _arm(reaper, _moved(lease, generation=2, by_ms=6))
        assert other is not None and other.errno == errno.EINVAL


@pytest.mark.parametrize("kind", ALL)
async def test_a_lease_that_is_cut_is_not_armed_again(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        await _arm(reaper, lease)
        report = await _revoke(reaper, lease.lease_id)
        assert report.clean and not report.by_reaper
        refused = await _arm(reaper, _moved(lease, generation=2, by_ms=5))
        assert refused is not None and refused.errno == errno.ETIME


@pytest.mark.parametrize("kind", ALL)
async def test_a_report_is_kept_until_the_lease_is_disarmed(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        await _arm(reaper, lease)
        first = await _revoke(reaper, lease.lease_id)
        assert await _revoke(reaper, lease.lease_id) == first
        await reaper.disarm_many([lease.lease_id])
        await reaper.disarm_many([lease.lease_id])


@pytest.mark.parametrize("kind", ALL)
async def test_what_was_never_armed_has_nothing_to_cut(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease_id = LeaseId(secrets.token_bytes(16))
        report = await _revoke(reaper, lease_id)
        assert report.clean and report.steps == () and not report.by_reaper
        assert await reaper.renew_many([(lease_id, 1, 1)]) == [False]


@pytest.mark.parametrize("kind", ALL)
async def test_no_deadline_lies_beyond_the_horizon(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        far = lease_of(ttl_ms=32 * 86_400_000)
        refused = await _arm(reaper, far)
        assert refused is not None and refused.errno == errno.ERANGE
        near = lease_of(ttl_ms=LATER_MS)
        await _arm(reaper, near)
        assert await reaper.renew_many([(near.lease_id, 2, far.deadline_ns)]) == [False]


@pytest.mark.parametrize("kind", ALL)
async def test_each_answer_stands_in_the_place_of_its_lease(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        leases = [lease_of(ttl_ms=LATER_MS) for _ in range(150)]
        leases[70] = lease_of(ttl_ms=32 * 86_400_000)
        outcomes = await reaper.arm_many([Arming(lease) for lease in leases])
        assert [at for at, outcome in enumerate(outcomes) if outcome is not None] == [70]
        moves = [(lease.lease_id, 2, leases[0].deadline_ns + 1) for lease in leases]
        assert [at for at, won in enumerate(await reaper.renew_many(moves)) if not won] == [70]
        reports = await reaper.revoke_many([lease.lease_id for lease in leases])
        assert [report.lease_id for report in reports if isinstance(report, CutReport)] == [
            lease.lease_id for lease in leases
        ]


@pytest.mark.parametrize("kind", ALL)
async def test_two_may_wait_for_the_same_report(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        await _arm(reaper, lease)
        reports: list[CutReport] = []

        async def ask() -> None:
            reports.append(await _revoke(reaper, lease.lease_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert reports[0] == reports[1]


@pytest.mark.parametrize("kind", ALL)
async def test_a_lease_disarmed_before_its_cut_is_cut_and_then_forgotten(kind: str) -> None:
    async with _subject(kind) as (reaper, _):
        lease = lease_of(ttl_ms=LATER_MS)
        assert await _arm(reaper, lease) is None
        await reaper.disarm_many([lease.lease_id])
        later_ns = lease.deadline_ns + NS_PER_MS
        assert await reaper.renew_many([(lease.lease_id, 2, later_ns)]) == [False]
        assert (await _revoke(reaper, lease.lease_id)).clean
