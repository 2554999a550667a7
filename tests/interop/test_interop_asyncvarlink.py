# SPDX-License-Identifier: Apache-2.0
"""PyPI's `asyncvarlink`, a typed asyncio client with descriptor passing, drives the agent."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar

import asyncvarlink
import pytest
from asyncvarlink import serviceerrors

T = TypeVar("T")
NOBODY = "00" * 16
MEM = [{"kind": "mem", "capacity": 4096}]


class RenewReply(TypedDict):
    """Annotations must be types here, not text, or asyncvarlink cannot read them."""

    lease_id: str
    generation: int
    deadline_boottime_ns: int
    state: str


class LeaseInterface(asyncvarlink.VarlinkInterface, name="io.leased.Lease"):
    """A part of the interface as a stranger would write it down."""

    @asyncvarlink.varlinkmethod
    async def Renew(self, *, lease_id: str, ttl_ns: int | None = None) -> RenewReply: ...


def with_protocol(
    address: str, work: Callable[[asyncvarlink.VarlinkClientProtocol], Awaitable[T]]
) -> T:
    """Run `work` over a connection of its own."""

    async def go() -> T:
        transport, protocol = await asyncvarlink.connect_unix_varlink(
            asyncvarlink.VarlinkClientProtocol, address.removeprefix("unix:")
        )
        try:
            return await work(protocol)
        finally:
            transport.close()

    return asyncio.run(go())


def call(address: str, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """One plain call; an error reply is raised."""

    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> dict[str, Any]:
        asked = asyncvarlink.VarlinkMethodCall(method, parameters or {})
        result = await protocol.call(asked)
        assert result is not None
        reply, _ = result
        if reply.error is not None:
            raise asyncvarlink.GenericVarlinkErrorReply(reply.error, reply.parameters)
        return dict(reply.parameters)

    return with_protocol(address, work)


def test_the_service_describes_itself(varlink_address: str) -> None:
    info = call(varlink_address, "org.varlink.service.GetInfo")
    assert info["product"] == "leased"
    for name in info["interfaces"]:
        asked = {"interface": name}
        text = call(varlink_address, "org.varlink.service.GetInterfaceDescription", asked)
        assert f"\ninterface {name}\n" in text["description"]


def test_a_typed_proxy_renews(varlink_address: str) -> None:
    granted = call(varlink_address, "io.leased.Lease.Acquire", {"resources": MEM, "bind": "cgroup"})
    lease_id = granted["lease"]["lease_id"]

    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> None:
        proxy = protocol.make_proxy(LeaseInterface)
        renewed = await proxy.Renew(lease_id=lease_id, ttl_ns=10**9)
        assert renewed["lease_id"] == lease_id
        again = await proxy.Renew(lease_id=lease_id)
        assert again["generation"] > renewed["generation"]

    with_protocol(varlink_address, work)


def test_descriptors_arrive_with_their_reply(varlink_address: str) -> None:
    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asked = asyncvarlink.VarlinkMethodCall("io.leased.Lease.Acquire", {"resources": MEM})
        result = await protocol.call(asked, replyfdsdone=done)
        assert result is not None
        reply, fds = result
        assert reply.error is None
        assert fds is not None
        assert os.fstat(fds[reply.parameters["fds"][0]["index"]].fileno()).st_size == 4096
        done.set_result(None)
        await asyncio.sleep(0)  # lets the library close what was not taken

    with_protocol(varlink_address, work)


def test_pipelined_calls_are_answered_in_order(varlink_address: str) -> None:
    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> None:
        asked = [
            asyncvarlink.VarlinkMethodCall("io.leased.Lease.Describe", {"lease_id": f"{n:032x}"})
            for n in range(0xF00, 0xF0A)
        ]
        results = await asyncio.gather(*(protocol.call(each) for each in asked))
        answered = [result[0].parameters["lease_id"] for result in results if result is not None]
        assert answered == [each.parameters["lease_id"] for each in asked]

    with_protocol(varlink_address, work)


def test_a_list_with_more(varlink_address: str) -> None:
    call(varlink_address, "io.leased.Lease.Acquire", {"resources": MEM})

    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> int:
        asked = asyncvarlink.VarlinkMethodCall("io.leased.Lease.List", {}, more=True)
        count = 0
        async for reply, _ in protocol.call_more(asked):
            assert reply.error is None
            count += len(reply.parameters["leases"])
        return count

    assert with_protocol(varlink_address, work) >= 1


def test_errors_arrive_typed(varlink_address: str) -> None:
    for method, parameters, name in (
        ("io.leased.Lease.Describe", {"lease_id": NOBODY}, "io.leased.Lease.NoSuchLease"),
        ("io.leased.Lease.Describe", {}, "org.varlink.service.InvalidParameter"),
        ("io.leased.Lease.Nothing", {}, "org.varlink.service.MethodNotFound"),
        ("com.example.Nothing", {}, "org.varlink.service.InterfaceNotFound"),
        ("io.leased.Lease.Watch", {}, "org.varlink.service.ExpectedMore"),
        (
            "io.leased.Lease.Acquire",
            {"resources": [{"kind": "mem", "capacity": 1 << 60}]},
            "io.leased.Lease.Refused",
        ),
    ):
        with pytest.raises(asyncvarlink.GenericVarlinkErrorReply) as caught:
            call(varlink_address, method, parameters)
        assert caught.value.name == name


def test_the_proxy_raises_the_standard_errors(varlink_address: str) -> None:
    async def work(protocol: asyncvarlink.VarlinkClientProtocol) -> None:
        proxy = protocol.make_proxy(LeaseInterface)
        with pytest.raises(asyncvarlink.VarlinkErrorReply) as caught:
            await proxy.Renew(lease_id="not an id")
        assert caught.value.name == serviceerrors.InvalidParameter.name

    with_protocol(varlink_address, work)
