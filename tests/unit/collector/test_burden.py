# SPDX-License-Identifier: Apache-2.0
"""A node whose records name ever new tenants, leases and resources is set aside before it has the
collector's memory; an honest one, however large, is not."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import msgspec
import pytest

from leased.collector.api.fleet_rows import node_row
from leased.collector.burden import BYTES_MAX, LOOK_RECORDS, burden
from leased.collector.fleet import Fleet
from leased.collector.node_view import NodeView
from leased.terms import event as e
from leased.terms.identity import CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import AccountingTag, OverageCause
from leased.terms.moment import HOUR_NS, Moment
from leased.terms.reply import RefusalReason
from leased.terms.resource import Allotment, ResourceKind
from tests.doubles.logs import allocation, started

NOW_NS = 10**18
LIMIT, CPU, SOFT = int(RefusalReason.TENANT_CAPACITY), ResourceKind.CPU, int(OverageCause.SOFT)


def at(number: int) -> Moment:
    return Moment(started().boot_id, number, NOW_NS + number)


def refusal(number: int, name: str) -> e.Event:
    tenant, command = TenantId(name), CommandId(bytes(16))
    return e.Refused(EventId(bytes(16)), tenant, 1, command, LIMIT, 1, 1, 1, CPU)


def grant(number: int, name: str) -> e.Event:
    one = allocation(0)
    tag = AccountingTag(name, name, name, name)
    subject = msgspec.structs.replace(one.subject, tenant=TenantId(name[:64]), tag=tag)
    lease_id = LeaseId(sha256(b"%d" % number).digest()[:16])
    return msgspec.structs.replace(one, lease_id=lease_id, subject=subject)


def overage(number: int, name: str) -> e.Event:
    return e.OverageBegan(EventId(bytes(16)), name, "cpu", SOFT, 1, 1, 1)


def overage_of_a_rule(number: int, name: str) -> e.Event:
    return e.OverageBegan(EventId(bytes(16)), f"{number}", name, SOFT, 1, 1, 1)


def fencing(number: int, name: str) -> e.Event:
    cut = Allotment(name, ResourceKind.MEM, None, 1)
    return e.ResourceFenced(EventId(bytes(16)), cut, True, 0)


def cordon(number: int, name: str) -> e.Event:
    return e.CordonChanged(EventId(bytes(16)), name, True, 0)


def fed(make: Callable[[int, str], e.Event], count: int, length: int) -> NodeView:
    view = NodeView("00" * 16)
    view.node, view.name = "a1" * 16, "host-a"
    view.apply(0, started(), at(0))
    for number in range(1, count):
        view.apply(number, make(number, f"{number:0{length}}"), at(number))
    return view


@pytest.mark.parametrize(("make", "length"), [(refusal, 25_000), (grant, 16_500)])
def test_who_names_without_end_is_set_aside(
    make: Callable[[int, str], e.Event], length: int
) -> None:
    """A million leases took 2.1 GiB of the server that everybody asks."""
    view = fed(make, LOOK_RECORDS + 9, length)
    # Seen at the next look, and only then: whoever reads the log again finds the same.
    seen_at = LOOK_RECORDS - 1
    assert view.aside == f"what records 0 to {seen_at} name takes more than 256 MiB of memory"
    assert burden(view) == 0 and view.next_seq == view.applied == LOOK_RECORDS + 9
    view.apply(LOOK_RECORDS + 9, refusal(1, "acme"), at(LOOK_RECORDS + 9))
    fleet = Fleet()
    fleet.logs = {view.log_id: view, "11": fed(grant, 9, 20)}
    assert len(list(fleet.leases())) == 8 and "acme" not in fleet.tenants()
    seen = node_row([], view, NOW_NS)
    assert (seen.state, seen.why, seen.leases, seen.held) == ("set_aside", view.aside, 0, {})


@pytest.mark.parametrize("make", [refusal, grant, overage, overage_of_a_rule, cordon, fencing])
def test_everything_that_is_kept_by_a_name_counts(make: Callable[[int, str], e.Event]) -> None:
    some, more = (burden(fed(make, count, 1000)) for count in (101, 201))
    assert more - some > 100 * 1000


def test_what_a_lease_borrowed_and_what_is_fenced_of_it_counts() -> None:
    view = fed(grant, 2, 20)
    before, [lease] = burden(view), view.leases.values()
    lease.borrowed = ((CPU, 1),) * 10_000
    lease.fenced = (Allotment("x" * 1000, CPU, None, 1),) * 100
    assert burden(view) - before > 10_000 * 100 + 100 * 1000


def test_who_has_ten_thousand_things_in_a_record_is_looked_at_sooner() -> None:
    """A record of 64 KiB is two megabytes of them in memory."""
    view, one = fed(grant, 1, 20), grant(1, "acme")
    held = (Allotment("x" * 200, CPU, None, 1),) * 10_000
    subject = msgspec.structs.replace(one.subject, allotments=held)
    for number in range(1, 99):
        lease_id = LeaseId(sha256(b"%d" % number).digest()[:16])
        big = msgspec.structs.replace(one, lease_id=lease_id, subject=subject)
        view.apply(number, big, at(number))
    assert view.aside and not view.leases


def test_of_each_hour_its_tenants_count() -> None:
    some, more = fed(refusal, 2, 1000), fed(refusal, 2, 1000)
    more.apply(2, refusal(1, f"{1:01000}"), Moment(started().boot_id, 9, NOW_NS + HOUR_NS))
    assert burden(more) - burden(some) > 1000


def test_an_honest_node_is_far_below() -> None:
    """With all the leases that a node has by default, and labels as long as may be."""
    leases, tenants = fed(grant, LOOK_RECORDS, 128), fed(refusal, LOOK_RECORDS, 64)
    assert 4 * burden(leases) + 8 * burden(tenants) < BYTES_MAX / 2
    assert not leases.aside and not tenants.aside
