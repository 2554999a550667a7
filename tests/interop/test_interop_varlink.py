# SPDX-License-Identifier: Apache-2.0
"""PyPI's `varlink`, a blocking client that learns the interfaces from the service itself, drives
the agent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import varlink

# The library leaves the sockets of calls that failed to the garbage collector; that is not ours
# to fail on.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

OURS = ["io.leased.Lease", "io.leased.Device", "io.leased.Audit", "io.leased.Telemetry"]
NOBODY = "00" * 16
MEM = [{"kind": "mem", "capacity": 4096}]


@pytest.fixture
def client(varlink_address: str) -> Iterator[Any]:
    with varlink.Client(varlink_address) as opened:
        yield opened
    del opened
    gc.collect()  # here, where the warning is expected, and not in someone else's test


@pytest.fixture
def leases(client: Any) -> Iterator[Any]:
    with client.open("io.leased.Lease") as connection:
        yield connection


def test_the_service_tells_its_interfaces(client: Any) -> None:
    client.get_interfaces()
    assert client.info["product"] == "leased"
    assert client.info["interfaces"][0] == "org.varlink.service"
    assert set(OURS) <= set(client.info["interfaces"])


@pytest.mark.parametrize("name", [*OURS, "org.varlink.service"])
def test_each_interface_can_be_read_with_its_comments(client: Any, name: str) -> None:
    interface = client.get_interface(name)
    assert interface.name == name
    assert interface.doc.strip()
    assert interface.members


def test_an_interface_that_is_not_served(client: Any) -> None:
    with pytest.raises(varlink.InterfaceNotFound):
        client.get_interface("com.example.nothing")


def test_a_lease_from_acquire_to_release(leases: Any) -> None:
    granted = leases.Acquire(resources=MEM, ttl_ns=60 * 10**9, accounting_tag={"cost_center": "x"})
    lease_id = granted["lease"]["lease_id"]
    assert granted["lease"]["context"]["ttl_ns"] == 60 * 10**9
    assert granted["lease"]["context"]["accounting_tag"] == {"cost_center": "x"}
    assert granted["fds"][0]["purpose"] == "memory"
    assert leases.Describe(lease_id)["lease"]["runtime"]["state"] in ("granted", "active")
    renewed = leases.Renew(lease_id=lease_id, ttl_ns=120 * 10**9)
    deadline_ns = granted["lease"]["runtime"]["deadline_boottime_ns"]
    assert renewed["deadline_boottime_ns"] > deadline_ns
    assert renewed["generation"] > granted["lease"]["runtime"]["generation"]
    assert lease_id in [item["lease_id"] for item in leases.List()["leases"]]
    assert leases.Release(lease_id=lease_id)["lease"]["runtime"]["ended"] == "released"


def test_a_list_with_more_comes_to_an_end(leases: Any) -> None:
    leases.Acquire(resources=MEM)
    pages = list(leases.List(_more=True))
    assert sum(len(page["leases"]) for page in pages) >= 1


def test_a_watch_begins_with_the_state(leases: Any) -> None:
    lease_id = leases.Acquire(resources=MEM)["lease"]["lease_id"]
    changes = leases.Watch(lease_id=lease_id, _more=True)
    first = next(changes)
    assert [item["lease_id"] for item in first["leases"]] == [lease_id]
    changes.close()


def test_errors_arrive_typed(leases: Any) -> None:
    with pytest.raises(varlink.VarlinkError) as caught:
        leases.Describe(NOBODY)
    assert caught.value.error() == "io.leased.Lease.NoSuchLease"
    assert caught.value.parameters() == {"lease_id": NOBODY}
    with pytest.raises(varlink.VarlinkError) as caught:
        leases.Acquire(resources=[{"kind": "mem", "capacity": 1 << 60}])
    assert caught.value.error() == "io.leased.Lease.Refused"
    assert caught.value.parameters()["requested"] == 1 << 60
    with pytest.raises(varlink.InvalidParameter) as caught:
        leases.Describe("not an id")
    assert caught.value.parameters() == {"parameter": "lease_id"}
    with pytest.raises(varlink.VarlinkError) as caught:
        leases.Watch()
    assert caught.value.error() == "org.varlink.service.ExpectedMore"


def test_devices(client: Any) -> None:
    with client.open("io.leased.Device") as devices:
        listed = devices.List()
    assert "mem" in [resource["kind"] for resource in listed["resources"]]
    for resource in listed["resources"]:
        use = resource["use"]
        used = use["free"] + use["leased"] + use["teardown"] + use["fenced"]
        assert used == resource["capacity"]
