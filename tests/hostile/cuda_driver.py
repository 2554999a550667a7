# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver API, as far as a hostile holder needs it: ctypes on libcuda, and PTX as text.

The same on a real GPU and on the mock: only what `libcuda.so.1` the process finds differs. Needs no
toolkit: the driver compiles the PTX.

Rule: every call is checked, and what fails is named by CUDA's own word.

Does not know any lease: a holder is a program like any other.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Self

MIB = 1 << 20

SPIN = b"""
.version 7.0
.target sm_75
.address_size 64

.visible .entry leased_spin(.param .u64 flag)
{
    .reg .u64 %address;
    .reg .u32 %word;
    .reg .pred %again;

    ld.param.u64 %address, [flag];
    cvta.to.global.u64 %address, %address;
more:
    ld.volatile.global.u32 %word, [%address];
    setp.eq.u32 %again, %word, 0;
    @%again bra more;
    ret;
}
"""
"""Goes on until the word at `flag` is not zero: for ever, if nobody sets it."""


class CudaError(Exception):
    """A call that did not succeed: its name, CUDA's number and word."""

    def __init__(self, call: str, status: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({status})")
        self.status = status


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle: passed by value."""

    _fields_ = [("reserved", ctypes.c_char * 64)]


class _Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class _AllocationProp(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("win32", c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class _Access(ctypes.Structure):
    _fields_ = [("location", _Location), ("flags", c_int)]


_PINNED, _POSIX_DESCRIPTOR, _ON_DEVICE, _READ_WRITE = 1, 1, 1, 3


class Driver:
    """libcuda, initialised, with one device."""

    def __init__(self, ordinal: int = 0) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", c_uint(0))
        device = c_int()
        self.call("cuDeviceGet", byref(device), c_int(ordinal))
        self.device = device.value

    def call(self, name: str, *arguments: object) -> None:
        """Any call by name; arguments are ctypes'."""
        status = getattr(self._library, name)(*arguments)
        if status:
            word = ctypes.c_char_p()
            self._library.cuGetErrorName(status, byref(word))
            raise CudaError(name, status, (word.value or b"?").decode())

    def context(self) -> Context:
        """A context on the device, current in this thread."""
        return Context(self)


class Context:
    """A context, and memory and kernels in it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._handle = c_void_p()
        self.call("cuCtxCreate_v2", byref(self._handle), c_uint(0), c_int(driver.device))

    def call(self, name: str, *arguments: object) -> None:
        """See `Driver.call`."""
        self.driver.call(name, *arguments)

    def close(self) -> None:
        """The orderly end."""
        self.call("cuCtxDestroy_v2", self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def free_and_total(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def allocate(self, size_bytes: int) -> int:
        """Memory, as it was left by whoever had it."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), c_size_t(size_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Give it back."""
        self.call("cuMemFree_v2", c_uint64(address))

    def allocate_most(
        self, share: float = 0.95, step_bytes: int = 256 * MIB
    ) -> list[tuple[int, int]]:
        """As much of what is free as `share` says, in pieces: (address, bytes)."""
        wanted = int(self.free_and_total()[0] * share)
        pieces: list[tuple[int, int]] = []
        while wanted >= step_bytes:
            try:
                pieces.append((self.allocate(step_bytes), step_bytes))
            except CudaError as error:
                if error.status != 2:
                    raise
                break
            wanted -= step_bytes
        return pieces

    def fill(self, address: int, size_bytes: int, word: int) -> None:
        """The same 32 bits throughout."""
        self.call("cuMemsetD32_v2", c_uint64(address), c_uint(word), c_size_t(size_bytes // 4))
        self.synchronize()

    def read(self, address: int, size_bytes: int) -> bytes:
        """To the host."""
        buffer = ctypes.create_string_buffer(size_bytes)
        self.call("cuMemcpyDtoH_v2", buffer, c_uint64(address), c_size_t(size_bytes))
        return buffer.raw

    def synchronize(self) -> None:
        """Until everything asked for is done."""
        self.call("cuCtxSynchronize")

    def spin(self) -> int:
        """Start a kernel that never ends (unless somebody sets the word at the result)."""
        flag = self.allocate(4)
        self.call("cuMemsetD32_v2", c_uint64(flag), c_uint(0), c_size_t(1))
        module, function = c_void_p(), c_void_p()
        self.call("cuModuleLoadData", byref(module), SPIN)
        self.call("cuModuleGetFunction", byref(function), module, b"leased_spin")
        argument = c_uint64(flag)
        parameters = (c_void_p * 1)(ctypes.cast(byref(argument), c_void_p))
        one = c_uint(1)
        sizes = (one, one, one, one, one, one, c_uint(0))
        self.call("cuLaunchKernel", function, *sizes, None, parameters, None)
        return flag

    def export_ipc(self, address: int) -> bytes:
        """A handle that another process may open."""
        handle = IpcHandle()
        self.call("cuIpcGetMemHandle", byref(handle), c_uint64(address))
        return bytes(handle)

    def import_ipc(self, handle: bytes) -> int:
        """Another process' memory, by its handle."""
        address = c_uint64()
        own = IpcHandle.from_buffer_copy(handle)
        self.call("cuIpcOpenMemHandle_v2", byref(address), own, c_uint(1))
        return address.value

    def create_shareable(self, size_bytes: int) -> tuple[int, int]:
        """Memory that can be handed on as a descriptor: (handle, bytes it has)."""
        wanted = _AllocationProp(
            type=_PINNED,
            handle_types=_POSIX_DESCRIPTOR,
            location=_Location(_ON_DEVICE, self.driver.device),
        )
        grain, handle = c_size_t(), ctypes.c_ulonglong()
        self.call("cuMemGetAllocationGranularity", byref(grain), byref(wanted), c_int(0))
        whole = -(-size_bytes // grain.value) * grain.value
        flags = ctypes.c_ulonglong(0)
        self.call("cuMemCreate", byref(handle), c_size_t(whole), byref(wanted), flags)
        return handle.value, whole

    def map(self, handle: int, size_bytes: int) -> int:
        """Addresses for such memory."""
        address, zero = c_uint64(), ctypes.c_ulonglong(0)
        size, none = c_size_t(size_bytes), c_size_t(0)
        self.call("cuMemAddressReserve", byref(address), size, none, c_uint64(0), zero)
        self.call("cuMemMap", address, size, none, ctypes.c_ulonglong(handle), zero)
        access = _Access(_Location(_ON_DEVICE, self.driver.device), _READ_WRITE)
        self.call("cuMemSetAccess", address, size, byref(access), c_size_t(1))
        return address.value

    def export_descriptor(self, handle: int) -> int:
        """A file descriptor that keeps the memory, wherever it goes."""
        descriptor = c_int()
        self.call(
            "cuMemExportToShareableHandle",
            byref(descriptor),
            ctypes.c_ulonglong(handle),
            c_int(_POSIX_DESCRIPTOR),
            ctypes.c_ulonglong(0),
        )
        return descriptor.value

    def import_descriptor(self, descriptor: int) -> int:
        """A handle of the memory that a descriptor is of."""
        handle = ctypes.c_ulonglong()
        self.call(
            "cuMemImportFromShareableHandle",
            byref(handle),
            c_void_p(descriptor),
            c_int(_POSIX_DESCRIPTOR),
        )
        return handle.value
