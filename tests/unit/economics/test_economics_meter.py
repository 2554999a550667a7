# SPDX-License-Identifier: Apache-2.0
"""The meter: buckets, keys, and what is provisional."""

from __future__ import annotations

from leased.economics.meter import Meter, UsageKey
from leased.economics.pools import Pool
from leased.terms.lease import AccountingTag, Priority
from leased.terms.resource import ResourceKind, TierKind
from tests.doubles.economics_history import History, memory, subject


def key(pool: Pool, bucket: int = 0, tag: AccountingTag | None = None) -> UsageKey:
    """The key of acme's DRAM."""
    return UsageKey(pool, "acme", ResourceKind.MEM, TierKind.DRAM, Priority.STANDARD, tag, bucket)


def test_usage_is_pro_rated_at_bucket_edges() -> None:
    history = History(wall_offset_ns=0)
    history.boot_ns = 90
    history.allocate(1, subject(memory(10)), deadline_ns=1_000)
    history.boot_ns = 310
    history.end(1)
    meter = Meter(bucket_ns=100)
    for record in history.records:
        meter.observe(*record)
    assert meter.closed().usage == {
        key(Pool.TENANT, 0): 100,
        key(Pool.TENANT, 1): 1_000,
        key(Pool.TENANT, 2): 1_000,
        key(Pool.TENANT, 3): 100,
    }


def test_what_is_open_is_added_on_top_and_never_stored() -> None:
    tag = AccountingTag("cc-1")
    history = History()
    history.allocate(1, subject(memory(10), tag=tag), deadline_ns=1_000)
    history.boot_ns = 30
    history.touch()
    meter = Meter()
    for record in history.records:
        meter.observe(*record)
    assert meter.closed().usage == {}
    assert meter.totals().usage == {key(Pool.TENANT, tag=tag): 300}
    assert meter.totals().usage == {key(Pool.TENANT, tag=tag): 300}


def test_each_pool_is_counted_apart_and_idle_is_what_is_left() -> None:
    history = History()
    history.inventory(memory(100))
    history.allocate(1, subject(memory(10)), deadline_ns=1_000)
    history.boot_ns = 10
    history.end(1)
    history.boot_ns = 15
    history.fence(1, memory(4))
    history.boot_ns = 20
    history.touch()
    meter = Meter()
    for record in history.records:
        meter.observe(*record)
    totals = meter.totals().resources["mem:node0:4096"]
    assert (totals.tenant, totals.teardown, totals.fenced) == (100, 50, 20)
    assert (totals.provisioned, totals.idle) == (2_000, 1_830)
