# SPDX-License-Identifier: Apache-2.0
"""The copy in the journal against a socket that stands for journald: fields, bounds, and nothing
that waits.
"""

from __future__ import annotations

import array
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from leased.service.batch import Told
from leased.service.config import JournaldCopy
from leased.service.telling import narration
from leased.service.telling.journald import BACKLOG_MAX, Journald, encode
from leased.terms import event
from leased.terms.identity import BootId, CommandId, EventId, LeaseId, TenantId
from leased.terms.lease import Priority, RevocationReason, Subject, Trust
from leased.terms.moment import NS_PER_S, Moment
from leased.terms.resource import Allotment, Inventory, ResourceKind, TierKind

pytestmark = pytest.mark.autojump

CATALOG = Path(__file__).resolve().parents[3] / "systemd" / "leased.catalog"
MEMORY = Allotment("mem:node0:4096", ResourceKind.MEM, TierKind.DRAM, 1 << 28)
LEASE = LeaseId(b"\xab" * 16)
SUBJECT = Subject(
    tenant=TenantId("research"),
    uid=1000,
    gid=1000,
    cgroup="ab" * 16,
    workload="train\nPRIORITY=0",
    tag=None,
    priority=Priority.STANDARD,
    trust=Trust.CONFINED,
    allotments=(MEMORY,),
    rate_hash=bytes(32),
)
VALUES: dict[str, object] = {
    "event_id": EventId(bytes(16)),
    "lease_id": LEASE,
    "subject": SUBJECT,
    "generation": 2,
    "effective_ns": 5,
    "allotment": MEMORY,
    "fenced": (MEMORY,),
    "inventory": Inventory((), (), ()),
    "tenant": TenantId("research"),
    "preemptor_tenant": TenantId("vip"),
    "reason": 0,
    "step": 0,
    "ttl_ns": 60 * NS_PER_S,
    "held_capacity_ns": (1,),
}


def example(kind: type[event.Event]) -> event.Event:
    """An event of `kind` with plausible values, made from its annotations."""
    values = dict(VALUES)
    for field in msgspec.structs.fields(kind):
        if field.name in values:
            continue
        guess: object = b"\xcd" * 32
        text = str(field.type)
        if "int" in text or "bool" in text:
            guess = 1
        elif "str" in text:
            guess = "text"
        values[field.name] = guess
    if kind in (event.Revoked, event.DrainNotified):
        values["reason"] = RevocationReason.OPERATOR_REVOKE
    names = [field.name for field in msgspec.structs.fields(kind)]
    return kind(**{name: values[name] for name in names})  # type: ignore[arg-type]


def told(*events: event.Event) -> Told:
    moment = Moment(BootId(bytes(16)), 1, 2)
    return Told(moment, events, range(40, 40 + len(events)), (b"\xee" * 32,) * len(events))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        listener.setblocking(False)
        yield listener


class Ticks:
    """A clock that moves only by hand."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def copier(journal: socket.socket, ticks: Ticks | None = None, **bounds: object) -> Journald:
    copy = JournaldCopy(**bounds)  # type: ignore[arg-type]
    return Journald(copy, monotonic_ns=ticks or Ticks(), address=journal.getsockname())


def entries(journal: socket.socket) -> list[dict[str, bytes]]:
    """What has arrived, decoded by the protocol's own rules."""
    found = []
    while True:
        try:
            raw, ancillary, _, _ = journal.recvmsg(1 << 18, socket.CMSG_SPACE(4))
        except BlockingIOError:
            return found
        if ancillary:
            (fd,) = array.array("i", ancillary[0][2])
            with open(fd, "rb") as file:
                file.seek(0)
                raw = file.read()
        found.append(decode(raw))


def decode(raw: bytes) -> dict[str, bytes]:
    fields = {}
    while raw:
        line, _, rest = raw.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if equals:
            raw = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, raw = rest[8 : 8 + size], rest[8 + size :]
            assert raw[:1] == b"\n"
            raw = raw[1:]
        fields[key.decode("ascii")] = value
    return fields


@pytest.mark.parametrize("kind", event.KIND, ids=lambda kind: kind.__name__)
def test_every_kind_has_its_sentence_and_its_fields(kind: type[event.Event]) -> None:
    fields = narration.narrate(example(kind), 40, b"\xee" * 32)
    assert fields["LEASE_EVENT"] == kind.__name__
    assert fields["LEASE_SEQ"] == "40"
    assert fields["LEASE_HASH"] == "ee" * 32
    assert re.fullmatch("[0-9a-f]{32}", str(fields["MESSAGE_ID"]))
    assert fields["PRIORITY"] in list("34567")
    assert fields["MESSAGE"]
    assert "\n" not in fields["MESSAGE"]
    if issubclass(kind, event.LeaseEvent):
        assert fields["LEASE_ID"] == LEASE.hex()
        assert fields["LEASE_TENANT"] == "research"
        assert fields["LEASE_RESOURCES"] == "mem:node0:4096=268435456"
        assert str(fields["MESSAGE"]).startswith("lease abababab ")


def test_message_ids_are_unique_and_each_is_in_the_catalog() -> None:
    ids = [
        *narration.MESSAGE_ID.values(),
        narration.DROPPED_MESSAGE_ID,
        narration.REPORT_MESSAGE_ID,
    ]
    assert len(set(ids)) == len(ids)
    assert set(narration.MESSAGE_ID) == set(event.KIND)
    listed = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(ids)


def test_a_lease_is_copied_with_its_fields(journal: socket.socket) -> None:
    out = copier(journal)
    out.tell(told(example(event.Allocated), example(event.Expired)))
    out.flush(10)
    allocated, expired = entries(journal)
    assert allocated["SYSLOG_IDENTIFIER"] == b"leased"
    assert allocated["MESSAGE"].endswith(b"granted to research for 1min: mem:node0:4096=268435456")
    assert allocated["LEASE_SEQ"] == b"40"
    assert expired["LEASE_SEQ"] == b"41"
    assert expired["LEASE_EVENT"] == b"Expired"
    out.close()


def test_a_newline_in_a_value_is_no_second_field(journal: socket.socket) -> None:
    out = copier(journal)
    out.tell(told(example(event.Allocated)))
    out.flush(1)
    (entry,) = entries(journal)
    assert entry["LEASE_WORKLOAD"] == b"train\nPRIORITY=0"
    assert entry["PRIORITY"] == b"6"
    out.close()


def test_renewals_and_housekeeping_stay_in_the_chain(journal: socket.socket) -> None:
    quiet = (example(event.Renewed), example(event.CheckpointSigned), example(event.SegmentEnd))
    out = copier(journal)
    out.tell(told(*quiet))
    out.flush(10)
    assert entries(journal) == []
    out.close()
    out = copier(journal, renewals=True)
    out.tell(told(*quiet))
    out.flush(10)
    assert [entry["LEASE_EVENT"] for entry in entries(journal)] == [b"Renewed"]
    out.close()


def test_what_is_only_said_anew_is_no_news(journal: socket.socket) -> None:
    out = copier(journal)
    anew = (event.NodeStarted, event.InventoryChanged, event.PeriodBegan, event.Pruned)
    news = example(event.PolicyChanged)
    out.tell(told(example(event.Released), news, *map(example, anew), news))
    out.flush(10)
    names = [entry["LEASE_EVENT"] for entry in entries(journal)]
    assert names == [b"Released", b"PolicyChanged", b"Pruned", b"PolicyChanged"]
    out.close()


def test_no_copy_where_none_is_wanted(journal: socket.socket) -> None:
    out = copier(journal, copied=False)
    out.tell(told(example(event.Allocated)))
    out.flush(10)
    assert entries(journal) == []
    out.close()


def test_a_storm_is_bounded_and_counted(journal: socket.socket) -> None:
    ticks = Ticks()
    out = copier(journal, ticks, events_per_s_max=10, burst_events_max=5)
    out.tell(told(*[example(event.Released)] * 8))
    assert out.dropped == 3
    ticks.now_ns += NS_PER_S // 5
    out.tell(told(*[example(event.Released)] * 3))
    assert out.dropped == 4, "a fifth of a second earned two"
    ticks.now_ns += 100 * NS_PER_S
    out.tell(told(*[example(event.Released)] * 8))
    assert out.dropped == 7, "a quiet time earns no more than a burst"
    out.close()


async def test_what_was_dropped_is_said(journal: socket.socket) -> None:
    out = copier(journal, burst_events_max=1, events_per_s_max=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.run)
        out.tell(told(*[example(event.Released)] * 9))
        await trio.sleep(5)
        first, second = entries(journal)
        assert first["LEASE_EVENT"] == b"Released"
        assert second["LEASE_DROPPED"] == b"8"
        assert second["MESSAGE_ID"].decode() == narration.DROPPED_MESSAGE_ID
        assert out.dropped == 0
        out.say("last words", priority=narration.ERROR, LEASE_STEP="stop")
        nursery.cancel_scope.cancel()
    (last,) = entries(journal)
    assert (last["MESSAGE"], last["PRIORITY"], last["LEASE_STEP"]) == (b"last words", b"3", b"stop")
    out.close()


def test_a_journal_that_does_not_read_blocks_nobody(journal: socket.socket) -> None:
    out = copier(journal, burst_events_max=5_000)
    out.tell(told(*[example(event.Released)] * 5_000))
    out.flush(5_000)
    written = len(entries(journal))
    assert 0 < written < 5_000
    assert out.dropped == 5_000 - written
    out.close()


def test_the_backlog_is_bounded(journal: socket.socket) -> None:
    out = copier(journal)
    for _ in range(BACKLOG_MAX + 7):
        out.say("line")
    assert out.dropped == 7
    out.close()


def test_a_large_report_goes_by_descriptor(journal: socket.socket) -> None:
    out = copier(journal)
    report = os.urandom(1 << 20)
    out.add(narration.narrate_report(LEASE, "scrub", report, b"\x01" * 32))
    out.flush(1)
    (entry,) = entries(journal)
    assert entry["LEASE_REPORT"] == report
    assert entry["LEASE_EVIDENCE"] == b"01" * 32
    assert out.dropped == 0
    out.close()


def test_without_a_journal_the_sentences_go_to_standard_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    out = Journald(
        JournaldCopy(),
        monotonic_ns=Ticks(),
        address=str(tmp_path / "absent"),
        stderr_fd=write,
    )
    out.tell(told(example(event.Expired)))
    out.flush(1)
    assert os.read(read, 4096) == b"leased: lease abababab expired\n"
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    out.say("to a pipe that nobody reads")
    out.flush(1)
    assert out.dropped == 1
    out.close()
    os.close(read)
    os.close(write)


def test_the_encoding_of_the_protocol() -> None:
    assert encode({"A": "b", "C": "d\ne", "F": b"\x00\n"}) == (
        b"A=b\nC\n\x03\x00\x00\x00\x00\x00\x00\x00d\ne\nF\n\x02\x00\x00\x00\x00\x00\x00\x00\x00\n\n"
    )


def test_ids_of_commands_do_not_reach_the_journal() -> None:
    """A command id is what lets a client attach to an answer; it is nobody else's business."""
    kind = msgspec.structs.replace(example(event.Allocated), command_id=CommandId(b"\x77" * 16))
    assert "77" * 16 not in "".join(map(str, narration.narrate(kind, 1, bytes(32)).values()))
