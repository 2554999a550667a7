# SPDX-License-Identifier: Apache-2.0
"""Erasing: what is done to a namespace between two tenants.

Rule: no command reaches beyond the namespace of the lease. One that would (Sanitize, and Format on
drives that format all namespaces at once) is sent only to a drive that has no other namespace; it
is asked in the moment before. A drive that can do none of what the policy allows fences the
namespace: there is no silent second best.

Whatever is done, the edges are zeroed afterwards, so that the namespace looks as empty as it is;
and before a drive erases by itself canaries are written, of which none may be left (`canaries`).

Does not decide the policy and does not prove.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence

from leased.hardware.block import canaries, drives, verbs
from leased.hardware.block.calls import Clean, Cleaned, Clear
from leased.hardware.block.contents import LOOK_BYTES, write_each
from leased.hardware.block.drives import Drive, Erase, Sanitizing
from leased.hardware.block.examining import (
    attached_to,
    examine_drive,
    examine_layout,
    other_namespaces,
)
from leased.hardware.block.mapping import admit, control, end
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.opening import ADMIN_MS, controller_of, exclusively, resolve
from leased.hardware.failure import failed_step
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep

ZERO_STEP_BYTES = 256 << 20
_SANITIZE_LOOK_S = 0.2
_SES = {Erase.FORMAT: 1, Erase.CRYPTO: 2}


def choose(ways: Iterable[Erase], drive: Drive, *, alone: bool) -> Erase | None:
    """The first way that the drive knows and that reaches nobody else."""
    for way in ways:
        reach = drive.reach(way)
        if reach is not None and (alone or not reach):
            return way
    return None


def inner_places(seed: bytes, size_bytes: int, count: int) -> tuple[int, ...]:
    """Where the canaries are that are not at the edges."""
    last = size_bytes - LOOK_BYTES - canaries.BLOCK_BYTES
    return tuple(at for at in canaries.places(seed, size_bytes, count) if LOOK_BYTES <= at <= last)


def clean(call: Clean) -> Cleaned:
    """Cut what is left, forget the key, erase. Raises DeviceError where a step cannot be named."""
    steps: list[StepReport] = []
    began_ns = now_ns()
    with control() as dm:
        try:
            wiped = end(dm, call.uuid, call.name)
        except DeviceError as error:
            steps.append(failed_step(TeardownStep.OBJECT_REVOKE, error, began_ns))
            if call.detach_stuck:
                steps.append(_detach(call))
            return Cleaned(False, 0, "", tuple(steps))
    steps.append(StepReport(TeardownStep.KEY, 0, began_ns, now_ns(), int(wiped)))
    return forget(call, steps)


def clear(call: Clear) -> Cleaned:
    """Erase what is there before a lease. Raises DeviceError with the verb NOT_BEGUN where somebody
    has it, and then nothing was written."""
    admit(call.ready)
    return forget(call.clean, [])


def _find_and_erase(call: Clean) -> tuple[str, int]:
    return _erase(call, resolve(call.identity, call.size_bytes))


def forget(
    call: Clean,
    steps: list[StepReport],
    erase: Callable[[Clean], tuple[str, int]] = _find_and_erase,
) -> Cleaned:
    """Erase what nobody has any more; `steps` went before. A drive that fails a read or a write
    fails the step, and no more than that."""
    began_ns = now_ns()
    try:
        way, erased_bytes = erase(call)
    except (DeviceError, OSError) as error:
        failed = error.errno or errno.EIO
        steps.append(StepReport(TeardownStep.SCRUB, failed, began_ns, now_ns()))
        return Cleaned(False, 0, "", tuple(steps))
    steps.append(StepReport(TeardownStep.SCRUB, 0, began_ns, now_ns(), erased_bytes))
    return Cleaned(True, erased_bytes, way, tuple(steps))


def _erase(call: Clean, namespace: Namespace) -> tuple[str, int]:
    """The way that was taken ("" for the key alone), and how many bytes were erased by it or
    overwritten."""
    with exclusively(namespace, settle_ns=call.settle_ns) as fd:
        if not call.ways:
            if call.raw:
                raise DeviceError("block_erase", errno.ENOTSUP, "no way to erase is configured")
            return "", _zero_marks(fd, call)
        way = _choose_now(call, namespace)
        offsets = inner_places(call.seed, call.size_bytes, call.canaries)
        marks = ((offset, canaries.content(call.seed, offset)) for offset in offsets)
        write_each(fd, marks, canaries.BLOCK_BYTES)
        verbs.flush_device(fd)
        _carry_out(way, fd, call, namespace)
        _zero_edges(fd, call.size_bytes)
        verbs.flush_device(fd)
        os.fsync(fd)  # what is in the drive's own cache comes back after a power cut
    return way.value, call.size_bytes


def _choose_now(call: Clean, namespace: Namespace) -> Erase:
    with controller_of(namespace) as controller:
        drive = examine_drive(controller)
        alone = not other_namespaces(controller, namespace)
    way = choose(call.ways, drive, alone=alone)
    if way is None:
        said = ", ".join(call.ways)
        detail = f"{namespace.identity}: the drive can do none of {said} to it alone"
        raise DeviceError("block_erase", errno.ENOTSUP, detail)
    return way


def _carry_out(way: Erase, fd: int, call: Clean, namespace: Namespace) -> None:
    if way is Erase.ZERO:
        for begin in range(0, call.size_bytes, ZERO_STEP_BYTES):
            part = min(ZERO_STEP_BYTES, call.size_bytes - begin)
            verbs.zero_device(fd, offset=begin, size_bytes=part)
        return
    with controller_of(namespace) as controller:
        timeout_ms = call.erase_ns // 1_000_000
        if way in _SES:
            lbaf = examine_layout(controller, namespace.nsid).lbaf
            ses = _SES[way]
            verbs.format_namespace(
                controller, nsid=namespace.nsid, lbaf=lbaf, ses=ses, timeout_ms=timeout_ms
            )
        else:
            action = drives.SANITIZE_ACTIONS[way]
            verbs.begin_sanitize(controller, action=action, timeout_ms=ADMIN_MS)
            _await_sanitized(controller, now_ns() + call.erase_ns)


def _await_sanitized(controller: int, end_ns: int) -> None:
    """A sanitization goes on after the command, and after a reset; it cannot be stopped."""
    while True:
        log = verbs.read_log(
            controller,
            nsid=drives.EVERY_NAMESPACE,
            log=drives.LOG_SANITIZE,
            size_bytes=drives.SANITIZE_BYTES,
            timeout_ms=ADMIN_MS,
        )
        state = drives.read_sanitizing(log)
        if state in (Sanitizing.DONE, Sanitizing.DONE_DEALLOCATED):
            return
        if state is not Sanitizing.RUNNING:
            raise DeviceError("nvme_sanitize", errno.EIO, f"the drive says {state.name.lower()}")
        if now_ns() >= end_ns:
            raise DeviceError("nvme_sanitize", errno.ETIMEDOUT, "the drive is still at it")
        time.sleep(_SANITIZE_LOOK_S)


def _zero_edges(fd: int, size_bytes: int) -> int:
    """The first and the last of what anybody would look at; how many bytes."""
    edge = min(LOOK_BYTES, size_bytes)
    verbs.zero_device(fd, offset=0, size_bytes=edge)
    verbs.zero_device(fd, offset=size_bytes - edge, size_bytes=edge)
    return min(2 * edge, size_bytes)


def _zero_marks(fd: int, call: Clean) -> int:
    """Without its key the rest is noise. What is overwritten is what is looked at again."""
    offsets = inner_places(call.seed, call.size_bytes, call.canaries)
    for offset in offsets:
        verbs.zero_device(fd, offset=offset, size_bytes=canaries.BLOCK_BYTES)
    done = _zero_edges(fd, call.size_bytes)
    verbs.flush_device(fd)
    os.fsync(fd)
    return done + len(offsets) * canaries.BLOCK_BYTES


def _detach(call: Clean) -> StepReport:
    """The second line: what cannot be cut off from its users is taken from the host."""
    began_ns = now_ns()
    try:
        namespace = resolve(call.identity, call.size_bytes)
        with controller_of(namespace) as controller:
            if not examine_drive(controller).attaches:
                raise DeviceError("nvme_detach", errno.ENOTSUP, "the drive cannot")
            detach(controller, namespace)
    except DeviceError as error:
        return failed_step(TeardownStep.RELEASE, error, began_ns)
    return StepReport(TeardownStep.RELEASE, 0, began_ns, now_ns(), 1)


def detach(controller: int, namespace: Namespace) -> None:
    """Take the namespace from every controller of this host that has it: a drive refuses to take it
    from one that has not."""
    has = attached_to(controller, namespace)
    who: Sequence[int] = [
        one.cntlid for one in namespace.controllers if has is None or one.cntlid in has
    ]
    verbs.attach_namespace(
        controller, nsid=namespace.nsid, controllers=tuple(who), attach=False, timeout_ms=ADMIN_MS
    )
