# SPDX-License-Identifier: Apache-2.0
"""A GPU is who it is by its UUID: a driver that is loaded anew may give its node's number or its
address to another, and nobody looks between that and a grant or an end."""

from __future__ import annotations

import errno
import os

import pytest

from leased.hardware.devices import Devices
from leased.terms.errors import DeviceError
from tests.doubles.gpu_host import (
    Holder,
    cut,
    gpu_lease,
    grant,
    reclaim,
    start,
)
from tests.mocks.nvml.control import Machine

pytestmark = pytest.mark.quiet

GIB = 1 << 30


def reload_swapped(machine: Machine, *names: str) -> None:
    """The driver is loaded anew, and these of each GPU are the other's now."""
    first, second = machine.show(0), machine.show(1)
    machine.driver_unload()
    machine.set(0, **{name: int(second[name]) for name in names})
    machine.set(1, **{name: int(first[name]) for name in names})
    machine.driver_load()


@pytest.mark.parametrize("look", [False, True])
async def test_a_lease_opens_the_node_that_its_gpu_has_now(
    machine: Machine, devices: Devices, look: bool
) -> None:
    """By the number of the last look it was another GPU's, perhaps another tenant's."""
    await start(devices)
    reload_swapped(machine, "minor")
    if look:
        await devices.inventory()
    one = gpu_lease(machine, 0)
    made = await grant(devices, one)
    with Holder("hold", 2 * GIB, made=made) as holder:
        holder.ready()
        assert [process.pid for process in machine.processes(0)] == [holder.pid]
        assert holder.ask(str(machine.node(0))) == "opened"
        assert holder.ask(str(machine.node(1))) == os.strerror(errno.EPERM)
        cut(made)
    _, proof = await reclaim(devices, one)
    assert proof.unproven == () and machine.dirty(0) == 0


async def test_an_end_ends_whoever_has_the_node_that_its_gpu_has_now(
    machine: Machine, devices: Devices
) -> None:
    """By the number of the last look whoever has another GPU was killed, and its own overlooked."""
    await start(devices)
    one, other = gpu_lease(machine, 0), gpu_lease(machine, 1)
    made, also = await grant(devices, one), await grant(devices, other)
    reload_swapped(machine, "minor")
    with Holder("open", path=str(machine.node(1))) as stranger:
        stranger.ready()
        cut(made)
        _, proof = await reclaim(devices, one)
        assert proof.unproven == () and stranger.process.poll() is None
        cut(also)
        _, proof = await reclaim(devices, other)
        assert proof.unproven == () and stranger.gone()


async def test_another_gpu_at_the_address_is_not_granted_for_it(
    machine: Machine, devices: Devices
) -> None:
    await start(devices)
    reload_swapped(machine, "pci_bus")
    one = gpu_lease(machine, 0)
    [refused] = await devices.prepare_many([one])
    assert isinstance(refused, DeviceError) and refused.errno == errno.ENODEV
    await devices.inventory()
    again = gpu_lease(machine, 0)
    made = await grant(devices, again)
    with Holder("hold", 2 * GIB, made=made) as holder:
        holder.ready()
        assert [process.pid for process in machine.processes(0)] == [holder.pid]
        cut(made)
    _, proof = await reclaim(devices, again)
    assert proof.unproven == () and machine.dirty(0) == 0
