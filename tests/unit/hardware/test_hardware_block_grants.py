# SPDX-License-Identifier: Apache-2.0
"""Grants of namespaces that fail: what was not begun is not ours to erase. And what an earlier run
of the agent has left: mappings of nobody's, namespaces that a fence keeps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from leased.hardware.backend import Queues
from leased.hardware.block import calls, mapping, verbs
from leased.hardware.block.backend import BlockBackend
from leased.hardware.block.config import BlockConfig, Offer
from leased.hardware.block.drives import Drive, Layout
from leased.hardware.block.mapping import KEPT_MAX, refuse_hoarder
from leased.hardware.block.names import mapping_uuid, name_of
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.survey import ERASED, UNMAPPED, WAS_AWAY
from leased.hardware.block.users import Use
from leased.hardware.config import HardwareConfig
from leased.terms.errors import DeviceError
from leased.terms.lease import Lease, LeaseState, RevocationReason
from leased.terms.resource import Allotment, Health, ResourceKind
from tests.doubles.leases import lease as make_lease
from tests.doubles.nvme_trees import seen

FIRST, SECOND = "5254000000a10001", "5254000000a10002"
ONE = Allotment(f"block:{FIRST}", ResourceKind.BLOCK, None, 1 << 20)
OTHER = Allotment(f"block:{SECOND}", ResourceKind.BLOCK, None, 1 << 20)
BLANK = calls.Examined(Drive(()), Layout(1 << 21, 512, 0, 0, False))
FILLED = msgspec.structs.replace(BLANK, contents="an ext4 file system")
UNUSED = HardwareConfig(block=BlockConfig(offer=Offer.UNUSED))


class Crew:
    """Answers as workers do that find everything in order, but for what `failing` says."""

    def __init__(self) -> None:
        self.failing: dict[str, DeviceError] = {}
        self.asked: list[tuple[str, Any]] = []
        self.workers: list[str] = []
        self.dismissed: list[str] = []
        self.mapped: tuple[str, ...] = ()
        self.seen = calls.Seen((), ())
        self.exclusive = False
        self.drive = Drive(())
        self.sick = ""
        self.hangs = "", ""
        self.stuck: set[str] = set()
        self.ready: list[str] = []
        self.after_looking: Callable[[], Awaitable[object]] | None = None

    async def task(
        self, worker: str, backend: str, verb: str, argument: Any, returns: type, **_: Any
    ) -> Any:
        assert backend == "block" and worker
        self.asked.append((verb, argument))
        self.workers.append(worker)
        identity = getattr(argument, "identity", "")
        if verb in self.failing:
            raise self.failing.pop(verb)
        if worker in self.failing:
            raise self.failing[worker]
        if self.hangs[0] and verb in ("clean", "prove"):
            await trio.sleep(0.6)
        if (verb, identity) == self.hangs:
            raise DeviceError("worker_answer", errno.ETIMEDOUT)
        if verb == "ready" and identity in self.failing:
            raise self.failing[identity]
        if verb == "look" and self.after_looking is not None:
            await self.after_looking()
        if verb == "ready":
            self.exclusive = True
        examined = FILLED if getattr(argument, "contents", False) else BLANK
        if self.exclusive:
            examined = msgspec.structs.replace(BLANK, busy=True)
        answers: dict[type, msgspec.Struct] = {
            calls.Readied: calls.Readied((253, 0), 1, 1, 64),
            calls.Cleaned: calls.Cleaned(True, 4096, "", ()),
            calls.Proven: calls.Proven(True, ()),
            calls.Nothing: calls.Nothing(),
            calls.Mapped: calls.Mapped(self.mapped),
            calls.Seen: self.seen,
            calls.Examined: msgspec.structs.replace(
                examined, drive=self.drive, sick=self.sick
            ),
            calls.Arranged: calls.Arranged((), ()),
        }
        return answers[returns]

    async def task_again(self, *asked: Any, **more: Any) -> Any:
        assert asked[2] in ("clean", "prove"), "nothing else may be repeated"
        return await self.task(*asked, **more)

    def defer(self, name: str) -> None:
        assert name.startswith(("block survey", "block examining ", "block arranging "))

    async def stand_ready(self, name: str, backend: str) -> None:
        """It is there."""
        assert backend == "block"
        self.ready.append(name)

    def is_stuck(self, name: str) -> bool:
        """Whether one of that name hangs, killed as it is."""
        return name in self.stuck

    def dismiss(self, name: str) -> None:
        """A worker that is not needed any more."""
        self.dismissed.append(name)

    def sent(self, verb: str) -> list[str]:
        """The identities (of mappings: names) that a verb was asked for."""
        return [getattr(one, "identity", "") for asked, one in self.asked if asked == verb]


async def end(backend: BlockBackend, lease: Lease, *, late: bool = False) -> None:
    """The teardown of a grant that failed, or (`late`) whose time was over before it was made."""
    reason = None if late else RevocationReason.GRANT_FAILED
    ended = msgspec.structs.replace(lease, reason=reason, activated=False)
    await backend.scrub(ended, [ONE, OTHER])
    await backend.prove(ended, [ONE, OTHER])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("verb", "erased"), [(calls.NOT_BEGUN, False), ("worker_answer", False), ("dm_crypt", True)]
)
async def test_only_what_was_begun_is_erased(verb: str, erased: bool, late: bool) -> None:
    crew = Crew()
    crew.failing[SECOND] = DeviceError(verb, errno.EBUSY)
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    lease = make_lease(ONE, OTHER)
    with pytest.raises(DeviceError):
        await backend.prepare(lease, [ONE, OTHER], "", ())
    crew.asked.clear()
    await end(backend, lease, late=late)
    assert sorted(crew.sent("clean")) == [FIRST, *([SECOND] if erased else [])]
    assert len(crew.sent("undo")) == (0 if erased else 1), "its mapping is looked for all the same"
    untouched = {one.identity: one.untouched for asked, one in crew.asked if asked == "prove"}
    assert untouched == {FIRST: False, SECOND: not erased}


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "a block does not read"), DeviceError("users", errno.EBUSY)]
)
def test_what_could_not_even_be_looked_at_was_not_begun(error: OSError | DeviceError) -> None:
    """Somebody's data may be there, and a drive that does not read it: nothing was written."""

    def admit(_: calls.Ready) -> Namespace:
        raise error

    asked = calls.Ready("uuid", "name", FIRST, 1 << 20, False, "c", 512, 0, b"", 64, True)
    with pytest.raises(DeviceError) as told:
        mapping.ready(asked, admit)
    assert (told.value.verb, told.value.errno) == (calls.NOT_BEGUN, error.errno)


async def test_an_agent_that_does_not_remember_erases_nothing_of_a_failed_grant() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    await end(backend, make_lease(ONE, OTHER))
    assert crew.sent("clean") == []


async def test_whatever_was_granted_is_erased_by_whoever_finds_it() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    lease = make_lease(ONE)
    await backend.scrub(lease, [ONE])
    await backend.prove(lease, [ONE])
    assert crew.sent("clean") == [FIRST]
    assert [one.untouched for asked, one in crew.asked if asked == "prove"] == [False]


async def test_who_erases_a_namespace_does_nothing_else_and_ends_with_it() -> None:
    raw = Allotment(f"block:raw:{FIRST}", ResourceKind.BLOCK, None, 1 << 20)
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    block = BlockConfig(namespaces=(FIRST,), raw=True)
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]
    await backend.survey()
    crew.dismissed.clear()
    await backend.scrub(make_lease(ONE), [ONE])
    assert crew.dismissed == [], "the key alone is forgotten by anybody"
    crew.failing["clean"] = DeviceError("worker_answer", errno.ETIMEDOUT)
    held = make_lease(raw)
    for unproven in ({raw: 1 << 20}, {}):
        await backend.scrub(held, [raw])
        assert crew.dismissed.pop() == crew.workers[-1] == f"block erase {FIRST}"
        assert (await backend.prove(held, [raw])).unproven == unproven


RAW = Allotment(f"block:raw:{FIRST}", ResourceKind.BLOCK, None, 1 << 20)


def raw_backend(crew: Crew) -> BlockBackend:
    """Of a drive that can write zeroes, whose namespace may be had as it is."""
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    crew.drive = Drive()
    block = BlockConfig(namespaces=(FIRST,), raw=True)
    return BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]


async def verbs_of_a_lease(backend: BlockBackend, crew: Crew) -> list[str]:
    """What workers are asked from the grant to the proof."""
    crew.asked.clear()
    lease = msgspec.structs.replace(make_lease(RAW), activated=True)
    await backend.prepare(lease, [RAW], "", ())
    crew.exclusive = False
    await backend.scrub(lease, [RAW])
    assert not (await backend.prove(lease, [RAW])).unproven
    return [verb for verb, _ in crew.asked]


async def test_what_this_log_does_not_know_to_be_erased_is_erased_before_anybody_has_it() -> None:
    """The log was replaced while a tenant had the namespace as it is (or the host was installed
    anew): the next tenant read what was there."""
    crew = Crew()
    backend = raw_backend(crew)
    assert await verbs_of_a_lease(backend, crew) == ["clear", "prove", "ready", "clean", "prove"]
    proven = [one for asked, one in crew.asked if asked == "prove"]
    assert not any(one.untouched for one in proven)
    assert await verbs_of_a_lease(backend, crew) == ["ready", "clean", "prove"], "it is known"
    sealed = (await backend.survey()).resources
    assert [one.resource_id for one in sealed if ERASED in one.attributes] == [RAW.resource_id]
    again = raw_backend(crew)
    again.remember(sealed)
    assert await verbs_of_a_lease(again, crew) == ["ready", "clean", "prove"], "by the next run"
    again.remember([])
    assert "clear" in await verbs_of_a_lease(again, crew), "another log"


@pytest.mark.autojump
async def test_an_end_that_was_broken_off_has_erased_nothing() -> None:
    """It overran its published bound, or the agent was killed; an operator lifted the fence. The
    namespace was said to be erased, as before that lease, and the next tenant read it."""
    crew = Crew()
    backend = raw_backend(crew)
    await verbs_of_a_lease(backend, crew)
    sealed = (await backend.survey()).resources
    fenced = msgspec.structs.replace(make_lease(RAW), activated=True)
    await backend.prepare(fenced, [RAW], "", ())
    crew.exclusive, crew.hangs = False, ("clean", "nobody")
    with trio.move_on_after(0.1):
        await backend.scrub(fenced, [RAW])
    crew.hangs = "", ""
    assert "clear" in await verbs_of_a_lease(backend, crew)
    again = raw_backend(crew)
    again.remember(sealed)
    again.recall([fenced])
    assert "clear" in await verbs_of_a_lease(again, crew)
    encrypted = msgspec.structs.replace(make_lease(ONE), activated=True)
    await again.prepare(encrypted, [ONE], "", ())
    again.recall([encrypted])
    await again.scrub(encrypted, [ONE])
    assert not (await again.prove(encrypted, [ONE])).unproven
    assert "clear" not in await verbs_of_a_lease(again, crew), "what it left is noise"


@pytest.mark.parametrize(
    ("failing", "erased"), [(calls.NOT_BEGUN, 0), ("worker_answer", 0), ("nvme_format", 1)]
)
async def test_what_could_not_be_erased_is_granted_to_nobody(failing: str, erased: int) -> None:
    crew = Crew()
    backend = raw_backend(crew)
    crew.failing["clear"] = DeviceError(failing, errno.EBUSY)
    lease = make_lease(RAW)
    with pytest.raises(DeviceError):
        await backend.prepare(lease, [RAW], "", ())
    assert crew.sent("ready") == []
    ended = msgspec.structs.replace(lease, reason=RevocationReason.GRANT_FAILED, activated=False)
    await backend.scrub(ended, [RAW])
    assert not (await backend.prove(ended, [RAW])).unproven
    assert len(crew.sent("clean")) == erased, "what was not begun may be somebody's"
    assert ("clear" in await verbs_of_a_lease(backend, crew)) is not bool(erased)


@pytest.mark.parametrize("verb", ["clean", "prove"])
@pytest.mark.autojump
async def test_a_drive_that_hangs_fences_its_own_namespace_alone(verb: str) -> None:
    """And the lease's other drives are erased and proven meanwhile: their bounds are running."""
    crew, lease = Crew(), make_lease(ONE, OTHER)
    crew.hangs = verb, FIRST
    config = HardwareConfig()
    backend = BlockBackend(crew, config)  # type: ignore[arg-type]
    with trio.fail_after(1.5):
        wiped = await backend.scrub(lease, [ONE, OTHER])
        verdict = await backend.prove(lease, [ONE, OTHER])
    assert verdict.unproven == {ONE: ONE.capacity}
    assert {step.errno for step in (*wiped.steps, *verdict.steps)} == {errno.ETIMEDOUT}
    assert SECOND in crew.sent("prove")
    crew.hangs = "", ""
    if verb == "clean":
        assert (await backend.prove(lease, [ONE, OTHER])).unproven == {ONE: ONE.capacity}, "still"
    await backend.scrub(lease, [ONE, OTHER])
    assert not (await backend.prove(lease, [ONE, OTHER])).unproven


async def test_whoever_tears_down_is_there_before_the_lease_ends() -> None:
    """The first lease of a drive waited half a second for two workers to start."""
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    lease = make_lease(ONE, OTHER)
    await backend.prepare(lease, [ONE, OTHER], "", ())
    ready, crew.workers = set(crew.ready), []
    await backend.scrub(lease, [ONE, OTHER])
    await backend.prove(lease, [ONE, OTHER])
    assert ready == set(crew.workers)


async def test_a_drive_keeps_its_worker_when_others_come_and_go() -> None:
    """Or a healthy one would wait in the line of one that hangs."""
    crew = Crew()
    spaces = [seen(identity=f"aa0{n}", nqn=f"nqn.{n}", number=(259, n)) for n in range(6)]
    block = BlockConfig(namespaces=tuple(one.identity for one in spaces))
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]

    async def worker_of(identity: str) -> str:
        allotment = Allotment(f"block:{identity}", ResourceKind.BLOCK, None, 1 << 20)
        await backend.scrub(make_lease(allotment), [allotment])
        return crew.workers[-1]

    crew.seen = calls.Seen((spaces[3], spaces[4]), ())
    await backend.survey()
    had = [await worker_of("aa03"), await worker_of("aa04")]
    assert len(set(had)) == 2
    for there in (spaces, spaces[4:], spaces[:3]):
        crew.seen = calls.Seen(tuple(there), ())
        await backend.survey()
        assert [await worker_of("aa03"), await worker_of("aa04")] == had
    assert len({await worker_of(one.identity) for one in spaces}) == 4, "no more than a few"


async def test_those_of_one_drive_and_of_one_worker_wait_in_one_line() -> None:
    crew = Crew()
    places = [("aa00", "0"), ("aa01", "0"), *((f"aa{n}", str(n)) for n in range(11, 15))]
    spaces = tuple(seen(identity=one, nqn=f"nqn.{drive}", number=(259, 0)) for one, drive in places)
    crew.seen = calls.Seen(spaces, ())
    block = BlockConfig(namespaces=tuple(one.identity for one in spaces))
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]
    await backend.survey()
    held = [Allotment(f"block:{one}", ResourceKind.BLOCK, None, 1 << 20) for one, _ in places]
    assert isinstance(backend, Queues)
    lines = [[one.resource_id[6:] for one in line] for line in backend.lines(held)]
    assert lines[0][:2] == ["aa00", "aa01"], "of one drive"
    assert len(lines) == 4, "five drives have four workers"


# ---- what an earlier run has left ----------------------------------------------------------------


async def test_a_sweep_that_failed_is_made_up_for_and_takes_no_lease_of_now() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    kept, now, stray = make_lease(ONE), make_lease(OTHER), make_lease(OTHER)
    crew.mapped = tuple(mapping_uuid(one.lease_id, 0) for one in (kept, now, stray))
    crew.failing["list"] = DeviceError("worker_answer", errno.ETIMEDOUT)
    await backend.adopt([kept])
    assert crew.sent("undo") == []
    await backend.prepare(now, [OTHER], "", ())
    for _ in range(2):
        await backend.survey()
        undone = [argument.uuid for verb, argument in crew.asked if verb == "undo"]
        assert undone == [mapping_uuid(stray.lease_id, 0)], "once, and nobody else's"
    assert len(crew.sent("list")) == 2


async def test_a_stray_mapping_that_hangs_does_not_keep_the_others() -> None:
    crew = Crew()
    backend = BlockBackend(crew, HardwareConfig())  # type: ignore[arg-type]
    crew.mapped = tuple(mapping_uuid(make_lease(ONE).lease_id, 0) for _ in range(3))
    crew.failing["undo"] = DeviceError("worker_answer", errno.ETIMEDOUT)
    await backend.adopt([])
    assert len(crew.sent("undo")) == 3
    crew.failing["undo"] = DeviceError("worker_answer", errno.ETIMEDOUT)
    [told] = (await backend.survey()).notes
    name = name_of(crew.mapped[0])
    assert told == f"{name} is no lease's and was not ended (worker_answer: errno 110)"
    assert len(crew.sent("undo")) == 6, "once more, as one of them is still there"
    assert not (await backend.survey()).notes
    assert len(crew.sent("undo")) == 9
    await backend.survey()
    assert len(crew.sent("undo")) == 9


async def test_what_a_fenced_lease_left_keeps_its_namespace_in_the_inventory() -> None:
    """It is not blank, which under `unused` would make it somebody's data; it is the fence's."""
    fenced = make_lease(ONE)
    for recalled, offered in (((), set()), ((fenced,), {ONE.resource_id})):
        crew = Crew()
        crew.seen = calls.Seen((seen(identity=FIRST),), ())
        backend = BlockBackend(crew, UNUSED)  # type: ignore[arg-type]
        backend.recall(recalled)
        found = await backend.survey()
        assert {one.resource_id for one in found.resources} == offered, found.notes


async def test_a_drive_that_fails_is_sick_for_as_long_as_it_says_so() -> None:
    """It was asked when it was seen first, and never again: a medium that turned read-only was
    granted, and one that was well again was not."""
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    block = BlockConfig(namespaces=(FIRST,))
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]
    for crew.sick in ("", "media is read-only", ""):
        [one] = (await backend.survey()).resources
        assert one.health is (Health.SICK if crew.sick else Health.OK)
        assert (("sick", crew.sick) in one.attributes) is bool(crew.sick)


async def test_what_is_leased_while_a_survey_looks_at_it_stays_in_the_inventory() -> None:
    """The survey began when it was free, and asks who has it when the lease's own mapping does: a
    resource that vanished under its lease would have it revoked.
    """
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    backend = BlockBackend(crew, UNUSED)  # type: ignore[arg-type]
    crew.after_looking = lambda: backend.prepare(make_lease(ONE), [ONE], "", ())
    found = await backend.survey()
    assert {one.resource_id for one in found.resources} == {ONE.resource_id}, found.notes


async def test_what_was_away_for_a_moment_is_not_what_its_lease_has() -> None:
    """Its mapping answered EIO, and the lease went on to its deadline."""
    crew, lease = Crew(), make_lease(ONE, OTHER)
    one, other = seen(identity=FIRST), seen(identity=SECOND, number=(259, 9))
    uuids = tuple(mapping_uuid(lease.lease_id, number) for number in (0, 1))
    uses = (Use(one.number, "leased", uuids[0]),)
    crew.seen = calls.Seen((one, other), (*uses, Use(other.number, "leased", uuids[1])), uuids)
    backend = BlockBackend(crew, UNUSED)  # type: ignore[arg-type]
    await backend.prepare(lease, [ONE, OTHER], "", ())
    assert len((await backend.survey()).resources) == 2
    crew.seen = calls.Seen((one, other), uses, uuids, lost=(uuids[1],))
    found = await backend.survey()
    assert [it.resource_id for it in found.resources] == [ONE.resource_id]
    assert WAS_AWAY in found.notes[0]
    crew.seen = calls.Seen((one, other), (), uuids)  # cut
    assert len((await backend.survey()).resources) == 2


async def test_a_mapping_that_somebody_removes_ends_its_lease() -> None:
    """`dmsetup remove` by an operator: whoever had it had nothing, until the deadline."""
    for adopted in (False, True):
        crew, lease = Crew(), make_lease(ONE, OTHER)
        one, other = seen(identity=FIRST), seen(identity=SECOND, number=(259, 9))
        uuids = tuple(mapping_uuid(lease.lease_id, number) for number in (0, 1))
        uses = tuple(
            Use(it.number, "leased", uuid) for it, uuid in zip((one, other), uuids, strict=True)
        )
        crew.seen = calls.Seen((one, other), uses, uuids)
        backend = BlockBackend(crew, UNUSED)  # type: ignore[arg-type]
        if adopted:
            await backend.adopt([msgspec.structs.replace(lease, state=LeaseState.ACTIVE)])
        else:
            await backend.prepare(lease, [ONE, OTHER], "", ())
        assert len((await backend.survey()).resources) == 2
        crew.seen = calls.Seen((one, other), uses[:1], uuids[:1])
        found = await backend.survey()
        assert [it.resource_id for it in found.resources] == [ONE.resource_id]
        assert UNMAPPED in found.notes[0]
        await backend.scrub(lease, [ONE, OTHER])
        assert len((await backend.survey()).resources) == 2, "its end makes it clean"


async def test_somebody_else_who_has_it_keeps_it_out_for_only_as_long() -> None:
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    block = BlockConfig(namespaces=(FIRST,))
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]
    for crew.exclusive in (True, False):
        found = await backend.survey()
        assert bool(found.resources) is not crew.exclusive, found.notes


async def test_nobody_is_sent_after_a_look_that_still_hangs() -> None:
    """Each look at a hung drive left one more process in the kernel, until there was no room."""
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    backend = BlockBackend(crew, UNUSED)  # type: ignore[arg-type]
    assert (await backend.survey()).resources == (), "an ext4 file system is on it"
    asked = list(crew.workers)
    crew.stuck = {asked[-1]}
    await backend.survey()
    assert crew.workers[len(asked) :] == ["block survey"], "it is not asked"
    crew.stuck = {"block survey"}
    await backend.survey()
    assert len(crew.workers) == len(asked) + 1, "nor is the host"


async def test_a_drive_that_hangs_while_it_makes_or_attaches_keeps_nothing_else() -> None:
    """It took the whole survey along: no namespace of any drive was offered."""
    crew = Crew()
    crew.seen = calls.Seen((seen(identity=FIRST),), ())
    makes = (("nqn.hangs", 1, 1 << 20), ("nqn.well", 2, 1 << 20))
    block = BlockConfig(namespaces=(FIRST,), attach=(("nqn.hangs", 7),), make=makes)
    backend = BlockBackend(crew, HardwareConfig(block=block))  # type: ignore[arg-type]
    hung, well = "block arranging nqn.hangs", "block arranging nqn.well"
    crew.failing[hung] = DeviceError("worker_answer", errno.ETIMEDOUT)
    found = await backend.survey()
    assert {one.resource_id for one in found.resources} == {ONE.resource_id}
    assert [note for note in found.notes if "nqn.hangs" in note] and "nqn.well" not in found.notes
    asked = {worker: call for worker, (_, call) in zip(crew.workers, crew.asked, strict=True)}
    assert asked[hung] == calls.Arrange((("nqn.hangs", 7),), makes[:1])
    assert asked[well] == calls.Arrange((), makes[1:])
    assert {hung, well} <= set(crew.dismissed)
    crew.stuck, done = {hung}, len(crew.workers)
    await backend.survey()
    assert hung not in crew.workers[done:], "nobody is sent after it"


# ---- what is over and still open -----------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_who_keeps_many_dead_mappings_open_gets_no_other(tmp_path: Path) -> None:
    """Each costs the kernel a thread and memory that nobody is charged for; a tenant could make as
    many as it had time, one lease after the other, and keep their descriptors."""
    (tmp_path / "dev").mkdir()
    ours = [
        verbs.Mapping(f"lease-{minor}", (253, minor), 8, target, 1, False, False)
        for minor, target in enumerate(["error"] * KEPT_MAX + ["crypt", "error"])
    ]
    for one in ours[:-1]:  # the last has just gone
        node = tmp_path / f"dev/dm-{one.number[1]}"
        node.touch()
        os.chown(node, 1000, 0)
    with pytest.raises(DeviceError, match=f"uid 1000 keeps {KEPT_MAX} mappings") as raised:
        refuse_hoarder(1000, ours, tmp_path)
    assert (raised.value.verb, raised.value.errno) == (calls.NOT_BEGUN, errno.EUSERS)
    refuse_hoarder(1001, ours, tmp_path)
    refuse_hoarder(1000, ours[1:], tmp_path)
