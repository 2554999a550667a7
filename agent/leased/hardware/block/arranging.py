# SPDX-License-Identifier: Apache-2.0
"""Arranging: namespaces that an operator wants there: made of what a drive has not allocated, and
attached to this host.

Rule: nothing that is there is changed. Namespaces of the wanted size that the drive already has
count, whoever made them, so that whoever asks twice gets no more; one that counts and is attached
to nobody is told. What was made here and could not be attached is deleted again; nothing else is
ever deleted. What fails is told and keeps nothing else from being done.

Does not offer anything: a namespace that was made is leased by the same rules as any other.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import suppress

from leased.hardware.block import drives, verbs
from leased.hardware.block.calls import Arrange, Arranged
from leased.hardware.block.examining import ask_identify, examine_drive
from leased.hardware.block.namespaces import LIVE, list_controllers, list_namespaces
from leased.hardware.block.opening import ADMIN_MS, controller
from leased.terms.errors import DeviceError

MAKING_NS = 10_000_000_000
"""After this no further one is begun: whoever is killed between making a namespace and attaching it
leaves one that counts and that nobody reaches."""

_IDLE = (
    "counts as made and is attached to nobody: name it in `attach` of [hardware.block], or delete"
    " it with nvme-cli"
)


class TakenBack(DeviceError):
    """What was made could not be attached."""


def arrange(call: Arrange) -> Arranged:
    """Make and attach what is wanted and is not there."""
    done: list[tuple[str, int]] = []
    troubles: list[str] = []
    tried: list[tuple[tuple[str, int, int], str]] = []
    end_ns = time.monotonic_ns() + MAKING_NS
    for nqn, count, size_bytes in call.make:
        one, what = (nqn, count, size_bytes), f"{nqn}: {count} namespaces of {size_bytes} bytes"
        if one in call.later:
            continue
        vain = ""
        try:
            done += [(nqn, nsid) for nsid in _make(*one, end_ns)]
        except TakenBack as error:
            vain = f"{what}: {error}"
        except DeviceError as error:
            troubles.append(f"{what}: {error}")
        tried.append((one, vain))
    troubles += _idle(call)
    there = {(one.nqn, one.nsid) for one in list_namespaces()}
    for nqn, nsid in call.attach:
        if (nqn, nsid) in there:
            continue
        try:
            _attach(nqn, nsid)
            done.append((nqn, nsid))
        except DeviceError as error:
            troubles.append(f"{nqn}/{nsid} could not be attached: {error}")
    return Arranged(tuple(done), tuple(troubles), tuple(tried))


def _attach(nqn: str, nsid: int) -> None:
    for fd, who in _ways(nqn):
        if nsid not in drives.read_list(ask_identify(fd, 0, drives.ALLOCATED_LIST)):
            raise DeviceError("nvme_find", errno.ENOENT, "the drive has no such namespace")
        if not examine_drive(fd).attaches:
            raise DeviceError("nvme_attach", errno.ENOTSUP, "the drive cannot")
        _give(fd, nsid, who)
        verbs.rescan_controller(fd)
        return
    raise _absent()


def _make(nqn: str, count: int, size_bytes: int, end_ns: int) -> list[int]:
    made: list[int] = []
    # One that is down just now is to reach it as well, some day.
    shared = len(list_controllers(nqn)) > 1
    answers = False
    for fd, who in _ways(nqn):
        answers = True
        try:
            made.extend(fill(fd, who, count, size_bytes, end_ns, shared=shared))
        finally:
            if made:
                verbs.rescan_controller(fd)
    if not answers:
        raise _absent()
    return made


def _absent() -> DeviceError:
    return DeviceError("nvme_find", errno.ENODEV, "no drive of that NQN answers here")


def _idle(call: Arrange) -> list[str]:
    """What counts as made, is attached to nobody and is not to be: it may be another host's, and it
    may be what a worker of ours left that was killed."""
    told: dict[str, None] = {}
    for nqn, _, size_bytes in call.make:
        with suppress(DeviceError):  # what the drive has against it was told
            for fd, _ in _ways(nqn):
                for nsid in _unattached(fd, size_bytes):
                    if (nqn, nsid) not in call.attach:
                        told[f"{nqn}/{nsid} {_IDLE}"] = None
    return list(told)


def _unattached(fd: int, size_bytes: int) -> Iterator[int]:
    for nsid in drives.read_list(ask_identify(fd, 0, drives.ALLOCATED_LIST)):
        page = ask_identify(fd, nsid, drives.ATTACHED_CONTROLLERS)
        if not drives.read_controllers(page) and _size(fd, nsid) == size_bytes:
            yield nsid


def fill(
    fd: int, who: tuple[int, ...], count: int, size_bytes: int, end_ns: int, *, shared: bool
) -> Iterator[int]:
    """Make as many namespaces of that size as are missing to `count`, each reached by the
    controllers `who`, and begin none after `end_ns`; their numbers. Raises DeviceError."""
    drive = examine_drive(fd)
    if not (drive.manages and drive.attaches):
        raise DeviceError("nvme_create", errno.ENOTSUP, "the drive cannot")
    missing = count - sum(size == size_bytes for size in _sizes(fd))
    if missing <= 0:
        return
    left_bytes = drives.read_unallocated(ask_identify(fd, 0, drives.IDENTIFY_CONTROLLER))
    if left_bytes < missing * size_bytes:
        why = f"{missing} are missing, and {left_bytes} bytes are not allocated"
        raise DeviceError("nvme_create", errno.ENOSPC, why)
    every = ask_identify(fd, drives.EVERY_NAMESPACE, drives.IDENTIFY_NAMESPACE)
    lbaf, lba_bytes = drives.choose_format(every)
    if size_bytes % lba_bytes:
        raise DeviceError("nvme_create", errno.EINVAL, f"its blocks have {lba_bytes} bytes")
    for number in range(missing):
        if time.monotonic_ns() >= end_ns:
            why = f"the drive is slow: {missing - number} more at the next look"
            raise DeviceError("nvme_create", errno.ETIMEDOUT, why)
        nsid = verbs.create_namespace(
            fd,
            blocks=size_bytes // lba_bytes,
            lbaf=lbaf,
            shared=shared,
            timeout_ms=ADMIN_MS,
        )
        try:
            _give(fd, nsid, who)
        except DeviceError as error:
            raise _taken_back(fd, nsid, error) from error
        yield nsid


def _sizes(fd: int) -> Iterator[int]:
    """Of all namespaces of the drive, attached or not."""
    for nsid in drives.read_list(ask_identify(fd, 0, drives.ALLOCATED_LIST)):
        yield _size(fd, nsid)


def _size(fd: int, nsid: int) -> int:
    layout = drives.read_layout(ask_identify(fd, nsid, drives.ALLOCATED_NAMESPACE))
    return layout.size_blocks * layout.lba_bytes


def _taken_back(fd: int, nsid: int, error: DeviceError) -> TakenBack:
    """What to say of a namespace that was made and could not be attached."""
    try:
        verbs.delete_namespace(fd, nsid=nsid, timeout_ms=ADMIN_MS)
    except DeviceError as kept:
        why = f"{error}; {nsid} was made, is attached to nobody and could not be deleted: {kept}"
        return TakenBack(error.verb, error.errno, why)
    return TakenBack(error.verb, error.errno, error.detail)


def _give(fd: int, nsid: int, who: tuple[int, ...]) -> None:
    verbs.attach_namespace(fd, nsid=nsid, controllers=who, attach=True, timeout_ms=ADMIN_MS)


def _ways(nqn: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The first controller of the drive that answers, open, and the numbers of all that do: each
    knows all of the drive's namespaces. None: there is no such drive."""
    who = [one for one in list_controllers(nqn) if one.state == LIVE]
    for one in who[:1]:
        with controller(one, nqn) as fd:
            yield fd, tuple(other.cntlid for other in who)
