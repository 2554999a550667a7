# SPDX-License-Identifier: Apache-2.0
"""CPU leases, where cgroup v2 has `cpu` and `cpuset`; elsewhere the absence and its reason."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from leased.hardware.devices import Devices
from leased.ports import Prepared
from leased.terms.resource import ResourceKind
from leased.terms.teardown import ProofReport
from tests.doubles.host import real_devices
from tests.doubles.leases import core, lease
from tests.doubles.tenant import tenant


@pytest.fixture
async def devices() -> AsyncIterator[Devices]:
    with real_devices(cpu_cores="0") as real:
        yield real


async def test_cores_are_offered_or_missing_with_the_way_to_get_them(devices: Devices) -> None:
    inventory = await devices.inventory()
    cores = [r for r in inventory.resources if r.kind is ResourceKind.CPU]
    absent = [a.why for a in inventory.absences if a.kind is ResourceKind.CPU]
    if cores:
        assert [(r.resource_id, r.capacity, r.granule) for r in cores] == [("cpu:0", 1000, 1)]
        assert absent == []
    else:
        [why] = absent
        assert "cpuset" in why and ("cgroup" in why)


@pytest.mark.needs_v2_cpu
async def test_a_share_is_written_into_the_leaf_and_holds_its_process(devices: Devices) -> None:
    one = lease(core(0, 250))
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared) and made.fds == () and made.cgroup
    assert _read(made.cgroup, "cpu.max") == "25000 100000"
    assert _read(made.cgroup, "cpuset.cpus") == "0"
    with tenant("seal", [os.memfd_create("its own")]) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        assert os.sched_getaffinity(holder.pid) == {0}
        holder.cut()
    [scrub] = await devices.scrub_many([(one, ())])
    [proof] = await devices.prove_many([(one, ())])
    assert isinstance(proof, ProofReport) and proof.unproven == (), (scrub, proof)
    assert not os.path.exists(made.cgroup)


@pytest.mark.needs_v2_cpu
async def test_somebody_left_on_the_core_proves_nothing(devices: Devices) -> None:
    one = lease(core(0, 1000))
    [made] = await devices.prepare_many([one])
    assert isinstance(made, Prepared)
    with tenant("seal", [os.memfd_create("its own")]) as holder:
        await devices.join(one, holder.pid, holder.pidfd)
        [proof] = await devices.prove_many([(one, ())])
        assert isinstance(proof, ProofReport)
        assert proof.unproven == one.subject.allotments
        holder.cut()
        [proof] = await devices.prove_many([(one, ())])
        assert isinstance(proof, ProofReport) and proof.unproven == ()


def _read(leaf: str, name: str) -> str:
    with open(f"{leaf}/{name}", encoding="ascii") as file:
        return file.read().strip()
