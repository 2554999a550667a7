# SPDX-License-Identifier: Apache-2.0
"""Listening: the driver's events of all GPUs, waited for in a worker of its own.

Rule: a wait blocks in the driver, so nobody else uses this worker; what it registered lives as long
as the process, and the agent starts a new one when the GPUs change. A storm is told in parts: at
most `EVENTS_MAX` in one answer, each kind of event once per GPU. Whose an event is is known from
the registration: a GPU that is lost may not tell its address any more.

Does not judge events (`xids`).
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Final

import pynvml

from leased.hardware.gpu import nvml
from leased.hardware.gpu.calls import Heard, Listed, Listen
from leased.terms.errors import DeviceError

EVENTS_MAX: Final = 256
XID: Final = pynvml.nvmlEventTypeXidCriticalError
_WANTED: Final = (
    XID
    | pynvml.nvmlEventTypeDoubleBitEccError
    | 0x0400  # DRAM retirement
    | 0x0800  # DRAM retirement failed
    | 0x1000  # poison, contained
    | 0x2000  # poison, fatal
    | 0x4000  # GPU unavailable
    | 0x8000  # recovery action changed
)


class _Ear:
    """What this process has registered."""

    def __init__(self) -> None:
        self.events: Any = None
        self.deaf: tuple[str, ...] = ()
        self._addresses: dict[int | None, str] = {}

    def register(self, gpus: tuple[Listed, ...]) -> None:
        nvml.open_library()
        self.events = nvml.call("event_set", pynvml.nvmlEventSetCreate)
        deaf = []
        for gpu in gpus:
            try:
                handle = nvml.at_pci(gpu.pci, gpu.uuid)
                self._addresses[_number(handle)] = gpu.pci
                known = nvml.call("event_types", pynvml.nvmlDeviceGetSupportedEventTypes, handle)
                wanted = _WANTED & int(known)
                nvml.call("events", pynvml.nvmlDeviceRegisterEvents, handle, wanted, self.events)
                if not wanted & XID:
                    deaf.append(gpu.uuid)
            except DeviceError:
                deaf.append(gpu.uuid)
        self.deaf = tuple(deaf)

    def address_of(self, handle: nvml.Handle) -> str:
        """The PCI address of whatever told something."""
        known = self._addresses.get(_number(handle))
        return nvml.pci_of(handle) if known is None else known


def _number(handle: nvml.Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


_EAR = _Ear()


def listen(call: Listen, fds: list[int]) -> Heard:
    """The events that came within the wait; none is an answer, too."""
    if _EAR.events is None:
        _EAR.register(call.gpus)
        # At once, so that the asker knows from when on it hears.
        return Heard((), _EAR.deaf)
    heard: dict[tuple[str, int, int], None] = {}
    wait_ms = call.wait_ms
    for _ in range(EVENTS_MAX):
        try:
            event = nvml.call("event_wait", pynvml.nvmlEventSetWait_v2, _EAR.events, wait_ms)
        except DeviceError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            break
        kind = int(event.eventType)
        xid = int(event.eventData) if kind == XID else 0
        heard[_EAR.address_of(event.device), kind, xid] = None
        wait_ms = 0
    return Heard(tuple(heard), _EAR.deaf)
