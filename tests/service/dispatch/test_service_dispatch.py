# SPDX-License-Identifier: Apache-2.0
"""The dispatcher behind real sockets: what each caller may, what is handed out, and what a caller
who repeats himself, hangs up or lies gets.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from leased.ports import Access
from leased.terms.errors import CallerError, DeviceError
from leased.terms.event import Refused
from leased.terms.identity import LeaseId, TenantId
from leased.terms.lease import Lease, LeaseState, RevocationReason
from leased.terms.moment import NS_PER_S
from leased.terms.policy import Policy, Rate, TenantLimits
from leased.terms.reply import RefusalReason
from tests.doubles.calling import House, Visitor, memory, message, open_house
from tests.doubles.devices import Fault
from tests.doubles.serving import Host, descriptors

MINE = {"bind": "deadline"}
ID = "ab" * 16


def lease_id(reply: dict) -> LeaseId:
    """The id of the lease in a reply."""
    return LeaseId(bytes.fromhex(reply["lease"]["lease_id"]))


async def acquired(visitor: Visitor, pages: int = 1, **how: object) -> dict:
    """A granted lease."""
    return await visitor.call("Lease.Acquire", resources=memory(pages), **{**MINE, **how})


@pytest.mark.autojump
async def test_a_lease_comes_with_its_memory_and_its_receipt(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        reply = await acquired(me, 3)
        assert reply["lease"]["runtime"]["state"] == "active"
        assert [fd["purpose"] for fd in reply["fds"]] == ["memory"]
        assert os.fstat(me.fds[0]).st_size == 3 * 4096
        assert reply["sequence"] > 0 and len(reply["record_hash"]) == 64
        kept = house.agent.custodian.of(lease_id(reply)).fds
        assert os.fstat(kept[0]).st_ino == os.fstat(me.fds[0]).st_ino


_CONNECT = """
import socket, sys
socket.socket(fileno=int(sys.argv[1])).connect(sys.argv[2])
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.autojump
async def test_whoever_inherits_a_connection_is_not_who_connected(tmp_path: Path) -> None:
    """The number of who did may be somebody else's by now: a lease for it would end by that one's
    death, and its deadline would be his."""
    processes: list[subprocess.Popen[bytes]] = []

    def connect(sock: socket.socket, path: str) -> None:
        words = [sys.executable, "-S", "-c", _CONNECT, str(sock.fileno()), path]
        process = subprocess.Popen(
            words, pass_fds=[sock.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        processes.append(process)

    async with open_house(tmp_path) as house:
        heir = Visitor(house.directory / "user", connect=connect)
        [process] = processes
        reply = await acquired(heir, bind="process")
        assert house.agent.at(lease_id(reply)).pid == process.pid
        process.communicate()
        name, _ = await heir.refused("Lease.Acquire", resources=memory(), bind="process")
        assert name == "PermissionDenied"
        await acquired(heir)
        heir.close()


# ---- the same request again ----------------------------------------------------------------------


@pytest.mark.autojump
async def test_a_repeated_request_gets_the_same_lease_again(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        one = await acquired(house.visit(), command_id=ID)
        other = house.visit()
        again = await acquired(other, command_id=ID)
        assert again["attached"] and lease_id(again) == lease_id(one)
        assert len(other.fds) == 1


@pytest.mark.parametrize("when", ["revoking", "scrubbing", "verifying", "reclaimed", "fenced"])
@pytest.mark.autojump
async def test_a_repeated_request_for_a_lease_that_is_over_hands_nothing_out(
    when: str, tmp_path: Path
) -> None:
    """After the cut nobody gets in again, and the question does not bring the agent down."""
    async with open_house(tmp_path) as house:
        me, other = house.visit(), house.visit()
        lease = lease_id(await acquired(me, command_id=ID))
        gates = {
            "revoking": house.host.reaper.gates["revoke"],
            "scrubbing": house.host.devices.gates["scrub"],
            "verifying": house.host.devices.gates["prove"],
        }
        if when in gates:
            gates[when].shut()
        if when == "fenced":
            house.host.devices.pin(house.agent.at(lease), *house.agent.at(lease).subject.allotments)
        await me.call("Lease.Release", lease_id=lease.hex())
        await trio.sleep(5)
        assert house.agent.at(lease).state.name.lower() == when
        await other.ask("Lease.Acquire", resources=memory(), command_id=ID, **MINE)
        with trio.fail_after(5):
            answer = await other.answer()
        assert not other.fds, "access after the cut"
        assert "error" in answer or not answer["parameters"]["fds"]
        for gate in gates.values():
            gate.open()
        await house.visit().call("Lease.List")


@pytest.mark.autojump
async def test_a_failed_grant_is_a_typed_refusal(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        fault = Fault(DeviceError("mem_create", errno.ENOMEM))
        house.host.devices.fault = lambda verb, lease: fault if verb == "prepare" else None
        me = house.visit()
        name, why = await me.refused("Lease.Acquire", resources=memory(), **MINE)
        assert (name, why["reason"], why["usage"]) == ("Refused", "device_failed", errno.ENOMEM)
        assert not me.fds


# ---- what a holder must know ---------------------------------------------------------------------

KEY = Access("mem:node0:4096", "LEASE_RKEY", "0x5ec2e7")
TOLD = {"resource_id": KEY.resource_id, "name": KEY.name, "value": KEY.value}


@pytest.mark.autojump
async def test_what_a_holder_must_know_comes_with_the_grant_and_whenever_it_asks(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        house.host.devices.told[KEY.resource_id] = (KEY,)
        me = house.visit()
        granted = await acquired(me)
        lease = granted["lease"]["lease_id"]
        assert granted["access"] == [TOLD]
        assert (await me.call("Lease.Describe", lease_id=lease))["access"] == [TOLD]
        boss = house.visit(operator=True)
        assert (await boss.call("Lease.Describe", lease_id=lease))["access"] == [TOLD]
        assert not _asked(house), "it was learnt when the lease was prepared"
        await me.call("Lease.Release", lease_id=lease)
        assert (await me.call("Lease.Describe", lease_id=lease))["access"] == []


@pytest.mark.autojump
async def test_whoever_joins_gets_its_environment_and_its_descriptors(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.host.devices.told[KEY.resource_id] = (KEY, KEY)
        lease = lease_id(await acquired(house.visit(), 3)).hex()
        other = house.visit()
        joined = await other.call("Lease.Join", lease_id=lease)
        assert joined["environment"]["LEASE_ID"] == lease
        assert joined["environment"]["LEASE_RKEY"] == "0x5ec2e7,0x5ec2e7"
        assert joined["access"] == [TOLD, TOLD]
        assert [fd["purpose"] for fd in joined["fds"]] == ["memory"]
        assert os.fstat(other.fds[0]).st_size == 3 * 4096


@pytest.mark.autojump
async def test_a_restarted_agent_asks_once_how_a_lease_is_reached(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        house.host.devices.told[KEY.resource_id] = (KEY,)
        me = house.visit()
        lease = lease_id(await acquired(me, command_id=ID))
        for method, how in (
            ("Lease.Describe", {"lease_id": lease.hex()}),
            ("Lease.Acquire", {"resources": memory(), "command_id": ID, **MINE}),
            ("Lease.Join", {"lease_id": lease.hex()}),
        ):
            house.agent.custodian.of(lease).access = None  # as after a restart
            before = _asked(house)
            for _ in range(2):
                assert (await me.call(method, **how))["access"] == [TOLD]
            assert _asked(house) == before + 1


@pytest.mark.autojump
async def test_a_driver_that_does_not_say_is_a_typed_error_for_that_caller_alone(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        lease = lease_id(await acquired(me))
        house.agent.custodian.of(lease).access = None
        fault = Fault(DeviceError("dm_status", errno.ETIMEDOUT))
        house.host.devices.fault = lambda verb, lease: fault if verb == "access" else None
        name, why = await me.refused("Lease.Describe", lease_id=lease.hex())
        assert (name, why["verb"]) == ("DeviceError", "dm_status")
        house.host.devices.fault = lambda verb, lease: None
        assert (await me.call("Lease.Describe", lease_id=lease.hex()))["access"] == []


@pytest.mark.autojump
async def test_a_lease_that_ends_while_the_driver_is_asked_tells_nothing(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        house.host.devices.told[KEY.resource_id] = (KEY,)
        me = house.visit()
        lease = lease_id(await acquired(me, command_id=ID))
        house.agent.custodian.of(lease).access = None
        gate = house.host.devices.gates["access"]
        gate.shut()
        await me.ask("Lease.Acquire", resources=memory(), command_id=ID, **MINE)
        await gate.reached.wait()
        await house.visit().call("Lease.Release", lease_id=lease.hex())
        gate.open()
        had = len(me.fds)
        assert (await me.answer())["parameters"]["access"] == []
        assert len(me.fds) == had, "access after the end"


def _asked(house: House) -> int:
    return sum(verb == "access" for verb, _ in house.host.devices.calls)


# ---- who hangs up --------------------------------------------------------------------------------


async def _left_while_waiting(house: House, me: Visitor, requests: int, command_id: str) -> None:
    for _ in range(requests):
        await me.ask(
            "Lease.Acquire",
            resources=memory(),
            wait_ns=10**12,
            command_id=command_id,
            **MINE,
        )
    await trio.sleep(1)
    assert len(house.agent.lessor.queue) == 1
    me.close()
    await trio.sleep(1)
    assert len(house.agent.lessor.queue) == 0, "nobody is there to take it"


@pytest.mark.autojump
async def test_a_place_in_the_queue_is_given_up_with_its_connection(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        await acquired(house.visit(), 1024, ttl_ns=3600 * 10**9)
        await _left_while_waiting(house, house.visit(), 1, ID)


@pytest.mark.autojump
async def test_a_request_sent_twice_over_one_connection_is_given_up_with_it(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        await acquired(house.visit(), 1024, ttl_ns=3600 * 10**9)
        await _left_while_waiting(house, house.visit(), 2, ID)


@pytest.mark.autojump
async def test_who_hangs_up_while_the_lease_is_prepared_gets_no_descriptor_leaked(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        gate = house.host.devices.gates["prepare"]
        gate.shut()
        me = house.visit()
        await me.call("Lease.List")
        before = descriptors()
        await me.ask("Lease.Acquire", resources=memory(3), ttl_ns=10 * 10**9, **MINE)
        await gate.reached.wait()
        me.close()
        gate.open()
        await trio.sleep(1)
        [lease] = house.agent.lessor.table.leases.values()
        assert lease.state is LeaseState.ACTIVE
        await house.agent.until(lease.lease_id, LeaseState.RECLAIMED)
        await trio.sleep(5)
        # The two ends of its connection and the agent's pidfd of it are gone, and nothing came.
        assert descriptors() <= before - 2


@pytest.mark.autojump
async def test_calls_behind_one_whose_answer_ends_the_connection_are_not_begun(
    tmp_path: Path,
) -> None:
    """The peer is gone when the first answer is written; the calls that came with it go with it."""
    async with open_house(tmp_path) as house:
        await acquired(house.visit(), 1024, ttl_ns=3600 * 10**9)
        me = house.visit()
        bad = message("Lease.Renew", lease_id="zz")
        wait = message(
            "Lease.Acquire", resources=memory(), wait_ns=10**12, command_id=ID, bind="process"
        )
        await me.send(bad + bad + wait + wait)
        me.close()
        await trio.sleep(1)
        assert len(house.agent.lessor.queue) == 0
        assert len((await house.visit().call("Lease.List"))["leases"]) == 1


# ---- who may -------------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_another_tenant_finds_nothing_and_changes_nothing(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        mine, theirs = house.visit(uid=1000), house.visit(uid=2000)
        lease = (await acquired(mine))["lease"]["lease_id"]
        for method in ("Describe", "Renew", "Release", "Done", "Why", "Wait"):
            name, _ = await theirs.refused(f"Lease.{method}", lease_id=lease)
            assert name == "NoSuchLease", method
        assert (await theirs.call("Lease.List"))["leases"] == []
        await theirs.ask("Lease.Watch", more=True, lease_id=lease)
        assert (await theirs.answer())["error"].endswith("NoSuchLease")
        stranger = house.visit(uid=4242)
        assert (await stranger.answer())["error"].endswith("PermissionDenied")
        assert await stranger.ended()


@pytest.mark.autojump
async def test_the_users_door_serves_no_orders(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        for method in ("Revoke", "Drain", "Fence", "Unfence", "Adopt", "Reload", "Status"):
            name, _ = await me.refused(f"Admin.{method}", lease_id=ID)
            assert name == "InterfaceNotFound", method


@pytest.mark.autojump
async def test_the_chain_is_for_operators(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        for method, how in (
            ("Audit.Read", {"from_sequence": 0}),
            ("Audit.Verify", {}),
        ):
            name, _ = await me.refused(method, **how)
            assert name == "PermissionDenied", method
        await me.ask("Audit.Watch", more=True)
        assert (await me.answer())["error"].endswith("PermissionDenied")
        assert (await me.call("Audit.Head"))["next_sequence"] == 0, "a head tells of nobody"


# ---- walls ---------------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_nobody_joins_a_lease_that_ended_while_its_leaf_was_made(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        me = house.visit()
        lease = lease_id(await acquired(me))
        gate = house.host.devices.gates["leaf"]
        gate.shut()
        await me.ask("Lease.Join", lease_id=lease.hex())
        await gate.reached.wait()
        await house.visit().call("Lease.Release", lease_id=lease.hex())
        await house.agent.until(lease, LeaseState.RECLAIMED)
        await trio.sleep(1)
        gate.open()
        assert "error" in await me.answer()
        await trio.sleep(1)
        assert not house.host.reaper.slots, "armed again after it was closed"
        assert not house.host.devices.joined and not len(house.agent.custodian)


@pytest.mark.autojump
async def test_whoever_comes_in_after_the_cut_is_put_out(tmp_path: Path) -> None:
    """The reaper cut while the process was on its way into the leaf, and does not cut twice."""
    async with open_house(tmp_path) as house:
        lease = lease_id(await acquired(house.visit()))
        house.agent.holders.watch_leaf = lambda *_: None  # type: ignore[method-assign]
        sleeper = subprocess.Popen(["sleep", "600"])
        pidfd = os.pidfd_open(sleeper.pid)
        moved, devices = house.host.devices.join, house.host.devices

        async def late(one: Lease, pid: int, fd: int) -> str:
            await house.visit().call("Lease.Release", lease_id=lease.hex())
            return await moved(one, pid, fd)

        devices.join = late  # type: ignore[method-assign]
        walls = house.agent.dispatcher._walls
        with pytest.raises(CallerError, match="ended meanwhile"):
            await walls._enter(house.agent.at(lease), sleeper.pid, pidfd)
        assert sleeper.wait() == -signal.SIGKILL
        os.close(pidfd)


@pytest.mark.autojump
async def test_adopt_with_a_descriptor_that_is_no_pidfd_leaks_none(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        boss = house.visit(operator=True)
        lease = (await acquired(boss))["lease"]["lease_id"]
        with open("/dev/null", "rb") as null:
            await boss.ask("Admin.Adopt", lease_id=lease, fds=[null.fileno()])
            assert "error" in await boss.answer()
            house.dispose()
            before = descriptors()
            for _ in range(5):
                await boss.ask("Admin.Adopt", lease_id=lease, fds=[null.fileno()])
                assert "error" in await boss.answer()
            house.dispose()
            assert descriptors() <= before


# ---- holders -------------------------------------------------------------------------------------

_HOLD = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
peer.sendall(sys.argv[2].encode() + b"\\0")
answer = b""
while b"\\0" not in answer:
    answer += peer.recv(65536) or sys.exit("the agent has gone")
print(answer.decode().rstrip("\\0"), flush=True)
sys.stdin.read()
"""


async def test_a_lease_ends_with_the_process_it_is_bound_to(tmp_path: Path) -> None:
    """In real time: a real process, proven by the kernel, and really gone."""
    async with open_house(tmp_path) as house:
        call = message("Lease.Acquire", resources=memory(3), bind="process")[:-1].decode()
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _HOLD, str(tmp_path / "user"), call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        with trio.fail_after(30):
            reply = json.loads(await process.stdout.receive_some())["parameters"]
            lease = lease_id(reply)
            assert reply["lease"]["runtime"]["pid"] == process.pid
            await house.agent.until(lease, LeaseState.ACTIVE)
            assert house.host.reaper.slots[lease].pidfd is not None, "the reaper can cut it too"
            await process.stdin.aclose()
            await house.agent.until(lease, LeaseState.RECLAIMED)
        ended = house.agent.at(lease)
        assert ended.reason is RevocationReason.HOLDER_LOST
        assert ended.cut_ns is not None and ended.cut_ns < ended.deadline_ns
        await process.stdout.aclose()
        await process.wait()


# ---- what the disk or the judge does not give ----------------------------------------------------


async def test_a_judge_that_cannot_judge_is_an_answer_and_no_end_of_the_agent(
    tmp_path: Path,
) -> None:
    """There is no log in the directory: `leasectl verify` has nothing to say in JSON."""
    async with open_house(tmp_path) as house:
        boss = house.visit(operator=True)
        await boss.ask("Audit.Verify")
        with trio.fail_after(30):
            answer = await boss.answer()
        assert "error" in answer or answer["parameters"]["verdict"] != "ok"
        await boss.call("Lease.List")


async def test_a_log_that_cannot_be_read_is_an_answer_and_no_end_of_the_agent(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path) as house:
        boss = house.visit(operator=True)
        house.agent.journal.read_error = OSError(errno.EIO, "the disk says no")
        name, why = await boss.refused("Audit.Read", from_sequence=0)
        assert name == "DeviceError" and why["errno"] == errno.EIO
        house.agent.journal.read_error = None
        await boss.call("Audit.Read", from_sequence=0)


# ---- policies ------------------------------------------------------------------------------------


@pytest.mark.autojump
async def test_a_tenant_that_calls_too_often_is_told_until_when(tmp_path: Path) -> None:
    slow = TenantLimits(api_rate=Rate(4, NS_PER_S))
    policy = Policy(tenants=((TenantId("acme"), slow),))
    async with open_house(tmp_path, host=Host(policy=policy)) as house:
        me, other = house.visit(uid=1000), house.visit(uid=2000)
        lease = (await acquired(me))["lease"]["lease_id"]
        for _ in range(3):
            await me.call("Lease.List")
        for method in ("Renew", "Describe", "Wait"):
            name, told = await me.refused(f"Lease.{method}", lease_id=lease)
            assert (name, told["reason"]) == ("Refused", "api_rate"), method
            assert told["rule"] == "tenants.acme.api_rate" and told["seconds_until_retry"] == 1
        # That it is held back is on record, once in a while.
        await other.call("Lease.List")
        found = [event for _, event, _ in house.host.chain() if isinstance(event, Refused)]
        assert [one.reason for one in found] == [RefusalReason.API_RATE]
        await other.call("Lease.List")
        await trio.sleep(0.25)
        await me.call("Lease.Renew", lease_id=lease)
        assert (await me.refused("Lease.List"))[0] == "Refused"
        await me.call("Lease.Release", lease_id=lease)


@pytest.mark.autojump
async def test_a_policy_is_put_in_force_over_the_admin_socket(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        operator, me = house.visit(operator=True), house.visit(uid=1000)
        told = await operator.call("Admin.SetPolicy", document='{"leases_max": 1}')
        assert [path.stem for path in (tmp_path / "policies").iterdir()] == [told["policy_hash"]]
        await acquired(me)
        more = [{"kind": "mem", "capacity": 4096}]
        name, error = await me.refused("Lease.Acquire", resources=more)
        assert (name, error["rule"]) == ("Refused", "leases_max")
        name, why = await operator.refused("Admin.SetPolicy", document='{"leases_max": 0}')
        assert name == "ConfigError" and "policy.leases_max = 0" in why["why"]
        # What is given twice would hold by its last word: it is refused, as it is in a file.
        twice = '{"leases_max": 7, "tenants": {"acme": {"gpu": 1, "mem": "1GiB", "gpu": 8}}}'
        name, why = await operator.refused("Admin.SetPolicy", document=twice)
        assert (name, why["why"]) == ("ConfigError", "policy.tenants.acme.gpu: given twice")
        name, why = await operator.refused("Admin.CheckPolicy", document=twice)
        assert (name, why["why"]) == ("ConfigError", "policy.tenants.acme.gpu: given twice")
        name, error = await me.refused("Lease.Acquire", resources=more)
        assert (name, error["limit"]) == ("Refused", 1), "nothing of it is in force"
        assert [path.stem for path in (tmp_path / "policies").iterdir()] == [told["policy_hash"]]


@pytest.mark.autojump
async def test_time_that_jumps_waits_for_a_thread(tmp_path: Path) -> None:
    """A policy is written in a thread: however slow the disk is, no lease of the test ends."""
    async with open_house(tmp_path):
        before = trio.current_time()
        await trio.to_thread.run_sync(hashlib.pbkdf2_hmac, "sha256", b"", b"", 100_000)
        assert trio.current_time() == before
        await trio.sleep(60)
        assert trio.current_time() == before + 60
