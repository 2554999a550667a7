# SPDX-License-Identifier: Apache-2.0
"""Examining: asking a drive what it can, who else reaches a namespace, and what is on it.

Rule: a drive that does not know one of the further questions (an optional log or list) is taken at
the least that the answer could be; one that only does not answer it now has not been examined: what
is not listed today may be somebody's. Nothing is written.

Does not decide what follows.
"""

from __future__ import annotations

import errno
import os

from leased.hardware.block import drives, verbs
from leased.hardware.block.calls import Examine, Examined
from leased.hardware.block.contents import describe_contents
from leased.hardware.block.drives import Drive, Layout
from leased.hardware.block.namespaces import Namespace, find_namespace, list_namespaces
from leased.hardware.block.opening import ADMIN_MS, controller_of, opened
from leased.terms.errors import DeviceError


def examine(call: Examine) -> Examined:
    """Everything about one namespace that is not in sysfs. Raises DeviceError."""
    namespace = find_namespace(call.identity)
    if namespace is None:
        raise DeviceError("block_find", errno.ENODEV, call.identity)
    with controller_of(namespace) as controller:
        drive = examine_drive(controller)
        layout = examine_layout(controller, namespace.nsid)
        others = other_namespaces(controller, namespace)
        strangers = _strangers(controller, namespace)
        smart = _log(controller, drives.LOG_SMART, drives.SMART_BYTES)
    busy, contents = False, ""
    try:
        with opened(namespace, os.O_RDONLY | os.O_EXCL | os.O_DIRECT) as fd:
            if call.contents:
                contents = describe_contents(fd, namespace.size_bytes)
    except DeviceError as error:
        if error.errno != errno.EBUSY:
            raise
        busy = True
    return Examined(
        drive, layout, others, strangers, drives.why_sick(smart), busy=busy, contents=contents
    )


def examine_drive(controller: int) -> Drive:
    """What the controller's commands are. Raises DeviceError."""
    page = ask_identify(controller, 0, drives.IDENTIFY_CONTROLLER)
    return drives.read_drive(page, _log(controller, drives.LOG_EFFECTS, drives.EFFECTS_BYTES))


def examine_layout(controller: int, nsid: int) -> Layout:
    """How the namespace is formatted. Raises DeviceError."""
    return drives.read_layout(ask_identify(controller, nsid, drives.IDENTIFY_NAMESPACE))


def other_namespaces(controller: int, namespace: Namespace) -> tuple[int, ...]:
    """The further namespaces of the drive, attached or not."""
    listed: list[int] = []
    for cns in (drives.ALLOCATED_LIST, drives.ACTIVE_LIST):
        try:
            listed += drives.read_list(ask_identify(controller, 0, cns))
        except verbs.NotKnown:
            # Drives without namespace management know no list of what is not attached.
            if cns != drives.ALLOCATED_LIST:
                raise
    beside = [one.nsid for one in list_namespaces() if one.nqn == namespace.nqn]
    return tuple(sorted({*listed, *beside} - {namespace.nsid}))


def _strangers(controller: int, namespace: Namespace) -> tuple[int, ...]:
    """Controllers that reach the namespace and are not this host's."""
    ours = {one.cntlid for one in namespace.controllers}
    return tuple(one for one in attached_to(controller, namespace) or () if one not in ours)


def attached_to(controller: int, namespace: Namespace) -> tuple[int, ...] | None:
    """The controllers that reach the namespace; None where the drive keeps no such list."""
    try:
        page = ask_identify(controller, namespace.nsid, drives.ATTACHED_CONTROLLERS)
    except verbs.NotKnown:
        return None
    return drives.read_controllers(page)


def ask_identify(controller: int, nsid: int, cns: int) -> bytes:
    """A page of Identify. Raises DeviceError."""
    return verbs.identify(controller, nsid=nsid, cns=cns, timeout_ms=ADMIN_MS)


def _log(controller: int, log: int, size_bytes: int) -> bytes:
    """A log that a drive may not have: then it is empty."""
    try:
        return verbs.read_log(
            controller,
            nsid=drives.EVERY_NAMESPACE,
            log=log,
            size_bytes=size_bytes,
            timeout_ms=ADMIN_MS,
        )
    except verbs.NotKnown:
        return b""
