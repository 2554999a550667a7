# SPDX-License-Identifier: Apache-2.0
"""The proof: whether nothing of a lease is left on a namespace, asked of others than its scrub.

The scrub had one descriptor and wrote through it. The proof runs in another process and asks the
kernel (who is on top of the namespace, which mappings there are, whether it can be had alone) and
the drive itself, past every cache: the edges are zero, and no canary is where it was written.

Rule: every question is asked and becomes a step; one that cannot be answered has failed. Of a
namespace that was refused at the grant, because somebody uses it, only that no mapping is on it.
Does not write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from leased.hardware.block import canaries, verbs
from leased.hardware.block.calls import Prove, Proven
from leased.hardware.block.contents import LOOK_BYTES, describe_contents, is_zero, read_each
from leased.hardware.block.erasing import inner_places
from leased.hardware.block.mapping import control
from leased.hardware.block.names import PREFIX
from leased.hardware.block.namespaces import Namespace
from leased.hardware.block.opening import opened, resolve
from leased.hardware.block.users import find_uses
from leased.hardware.instant import now_ns
from leased.terms.errors import DeviceError
from leased.terms.teardown import StepReport, TeardownStep

_ALONE = os.O_RDONLY | os.O_EXCL | os.O_DIRECT


def prove(call: Prove) -> Proven:
    """Ask everything. Raises DeviceError when the namespace is not there."""
    steps: list[StepReport] = []

    def ask(step: TeardownStep, question: Callable[[], int]) -> None:
        """`question` returns what it measured, or raises DeviceError or OSError."""
        began_ns = now_ns()
        failed = measured = 0
        try:
            measured = question()
        except (DeviceError, OSError) as error:
            failed = error.errno or errno.EIO
        steps.append(StepReport(step, failed, began_ns, now_ns(), measured))

    namespace = resolve(call.identity, call.size_bytes)
    ask(TeardownStep.OBJECT_REVOKE, lambda: _ask_mappings(call, namespace))
    if not call.untouched:
        ask(TeardownStep.ESCAPEE_SCAN, lambda: _ask_users(namespace))
        ask(TeardownStep.CANARY, lambda: _ask_drive(call, namespace))
    return Proven(not any(step.errno for step in steps), tuple(steps))


def _ask_mappings(call: Prove, namespace: Namespace) -> int:
    """Ours is gone, or `error` with nothing below; no other of ours is on the namespace. How many
    were looked at."""
    with control() as dm:
        found = verbs.list_mappings(dm, PREFIX)
        for uuid in found:
            mapping = verbs.describe_mapping(dm, uuid)
            if mapping is None:
                continue
            if uuid == call.uuid and mapping.target not in ("error", ""):
                raise DeviceError("dm_describe", errno.EBUSY, f"{uuid} is {mapping.target}")
            if namespace.number in verbs.below_mapping(dm, uuid):
                raise DeviceError("dm_below", errno.EBUSY, f"{uuid} is on {call.identity}")
    return len(found)


def _ask_users(namespace: Namespace) -> int:
    """Nothing of the host is on top of it."""
    uses = find_uses(namespace.numbers)
    if uses:
        raise DeviceError("users", errno.EBUSY, "; ".join(use.what for use in uses))
    return 0


def _ask_drive(call: Prove, namespace: Namespace) -> int:
    """What is read past every cache, by somebody who has it alone. How many canaries are gone."""
    # Not to write: udev would look into it again, and the host would be surveyed anew.
    with opened(namespace, _ALONE, settle_ns=call.settle_ns) as fd:
        verbs.flush_device(fd)
        measured = verbs.measure_device(fd)
        if measured.size_bytes != call.size_bytes:
            raise DeviceError("block_measure", errno.ESTALE, f"{measured.size_bytes} bytes")
        if describe_contents(fd, call.size_bytes):
            raise DeviceError("block_read", errno.EIO, "the edges are not zero")
        return _look_at_canaries(fd, call, namespace)


def _look_at_canaries(fd: int, call: Prove, namespace: Namespace) -> int:
    offsets = inner_places(call.seed, call.size_bytes, call.canaries)
    for offset, found in read_each(fd, offsets, canaries.BLOCK_BYTES):
        if is_zero(found):
            continue  # and so no canary
        if found == canaries.content(call.seed, offset):
            raise DeviceError("canary", errno.EIO, f"{namespace.identity}: alive at {offset}")
        if call.zeroed:
            raise DeviceError("canary", errno.EIO, f"{namespace.identity}: not zero at {offset}")
    return len(offsets) + 2 * LOOK_BYTES // canaries.BLOCK_BYTES
