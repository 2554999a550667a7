# SPDX-License-Identifier: Apache-2.0
"""The door to CUDA's driver API (`libcuda.so.1`): take all memory of one device, fill it, and count
what differs from a pattern.

Rule: no toolkit: the one kernel is PTX text that the driver compiles. The process sees one device
only, chosen by UUID before the library is initialised, and is never a client of anybody's MPS
server. CUDA's codes become DeviceError. Whoever is called may hang: only workers come here, one
device each, and the context ends with the process.

Does not decide what must be clean.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import cffi

from leased.terms.errors import DeviceError

CHUNKS_BYTES: Final = tuple(mib << 20 for mib in (1024, 256, 64, 16, 2))
"""Largest first: few calls for most of it, and little left over at the end."""

UNIT_BYTES: Final = 16
_THREADS: Final = 256
_BLOCKS_PER_SM: Final = 8
_SM_COUNT: Final = 16

_DECLARATIONS: Final = """
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct { char bytes[16]; } CUuuid;

CUresult cuInit(unsigned int flags);
CUresult cuGetErrorName(CUresult error, const char **name);
CUresult cuDeviceGet(CUdevice *device, int ordinal);
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device);
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device);
CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device);
CUresult cuCtxDestroy_v2(CUcontext context);
CUresult cuCtxSynchronize(void);
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes);
CUresult cuMemsetD32_v2(CUdeviceptr address, unsigned int value, size_t count);
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes);
CUresult cuModuleLoadData(CUmodule *module, const void *image);
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
    unsigned int grid_z, unsigned int block_x, unsigned int block_y, unsigned int block_z,
    unsigned int shared_bytes, CUstream stream, void **parameters, void **extra);
"""

ERRNO: Final = {
    2: errno.ENOMEM,
    46: errno.EBUSY,
    100: errno.ENODEV,
    101: errno.ENODEV,
    214: errno.EIO,
    801: errno.ENOTSUP,
    802: errno.EAGAIN,
}
"""CUDA_ERROR_OUT_OF_MEMORY, DEVICE_UNAVAILABLE, NO_DEVICE, INVALID_DEVICE, ECC_UNCORRECTABLE,
NOT_SUPPORTED, SYSTEM_NOT_READY; whatever else is EIO."""

RESIDUE_PTX: Final = """
.version 7.0
.target sm_50
.address_size 64

.visible .entry leased_residue(
    .param .u64 base, .param .u64 units, .param .u32 pattern, .param .u64 found)
{
    .reg .pred %p<4>;
    .reg .b32 %r<12>;
    .reg .b64 %rd<12>;

    ld.param.u64 %rd1, [base];
    ld.param.u64 %rd2, [units];
    ld.param.u32 %r1, [pattern];
    ld.param.u64 %rd3, [found];
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd3, %rd3;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mov.u32 %r5, %nctaid.x;
    mul.wide.u32 %rd4, %r2, %r3;
    cvt.u64.u32 %rd5, %r4;
    add.u64 %rd4, %rd4, %rd5;
    mul.wide.u32 %rd6, %r5, %r3;
    mov.u64 %rd7, 0;
NEXT:
    setp.ge.u64 %p1, %rd4, %rd2;
    @%p1 bra DONE;
    shl.b64 %rd8, %rd4, 4;
    add.u64 %rd8, %rd1, %rd8;
    ld.global.cg.v4.u32 {%r6, %r7, %r8, %r9}, [%rd8];
    xor.b32 %r6, %r6, %r1;
    xor.b32 %r7, %r7, %r1;
    xor.b32 %r8, %r8, %r1;
    xor.b32 %r9, %r9, %r1;
    or.b32 %r6, %r6, %r7;
    or.b32 %r8, %r8, %r9;
    or.b32 %r6, %r6, %r8;
    setp.ne.u32 %p2, %r6, 0;
    @%p2 add.u64 %rd7, %rd7, 1;
    add.u64 %rd4, %rd4, %rd6;
    bra NEXT;
DONE:
    setp.eq.u64 %p3, %rd7, 0;
    @%p3 bra END;
    red.global.add.u64 [%rd3], %rd7;
END:
    ret;
}
"""
"""Counts the 16-byte units of a range of which any word differs from the pattern. The text is for
the oldest architecture that compilers still take, and runs on every later one."""


_FFI: Final = cffi.FFI()
_FFI.cdef(_DECLARATIONS)  # reading it takes longer than most calls: a spare has done it


class Cuda:
    """One device of one process. Everything it holds ends with the process, or with `close`."""

    def __init__(self, uuid: str) -> None:
        # Read once, at cuInit; what the agent was started with must not hide the device.
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid
        os.environ["CUDA_MPS_PIPE_DIRECTORY"] = "/proc/nobody"
        os.environ["CUDA_CACHE_DISABLE"] = "1"
        self._ffi = _FFI
        try:
            self._lib: Any = self._ffi.dlopen("libcuda.so.1")
        except OSError as error:
            raise DeviceError("cuda_load", errno.ELIBACC, str(error)) from error
        self._call("cuInit", 0)
        device = self._ffi.new("CUdevice *")
        self._call("cuDeviceGet", device, 0)
        self._device = device[0]
        self._check_identity(uuid)
        self._context: Any = None
        self._kernel: Any = None

    def open(self) -> None:
        """Make the context. Raises DeviceError (EBUSY where somebody else has one)."""
        context = self._ffi.new("CUcontext *")
        self._call("cuCtxCreate_v2", context, 0, self._device)
        self._context = context[0]

    def _compile(self) -> Any:
        module = self._ffi.new("CUmodule *")
        image = self._ffi.new("char[]", RESIDUE_PTX.encode("ascii"))
        self._call("cuModuleLoadData", module, image)
        kernel = self._ffi.new("CUfunction *")
        self._call("cuModuleGetFunction", kernel, module[0], b"leased_residue")
        return kernel[0]

    def close(self) -> None:
        """End the context. Idempotent."""
        if self._context is not None:
            context, self._context = self._context, None
            self._call("cuCtxDestroy_v2", context)

    # -- memory ------------------------------------------------------------------------------------

    def take(self, size_bytes: int) -> int | None:
        """The address of that much memory, None when there is not so much in one piece."""
        address = self._ffi.new("CUdeviceptr *")
        try:
            self._call("cuMemAlloc_v2", address, size_bytes)
        except DeviceError as error:
            if error.errno == errno.ENOMEM:
                return None
            raise
        return int(address[0])

    def take_all(self) -> list[tuple[int, int]]:
        """(address, bytes) of everything that can be had."""
        taken: list[tuple[int, int]] = []
        for size_bytes in CHUNKS_BYTES:
            while (address := self.take(size_bytes)) is not None:
                taken.append((address, size_bytes))
        return taken

    def fill(self, address: int, size_bytes: int, pattern: int) -> None:
        """Overwrite with a 32-bit pattern."""
        self._call("cuMemsetD32_v2", address, pattern, size_bytes // 4)

    def read(self, address: int, size_bytes: int) -> bytes:
        """Copy to the host."""
        into = self._ffi.new("char[]", size_bytes)
        self._call("cuMemcpyDtoH_v2", into, address, size_bytes)
        return bytes(self._ffi.buffer(into))

    def differing_bytes(self, taken: list[tuple[int, int]], pattern: int, counter: int) -> int:
        """How many bytes (in units of 16) are not the pattern; `counter` is the address of 8 bytes
        to count in, from whatever they are."""
        if self._kernel is None:
            self._kernel = self._compile()
        before = int.from_bytes(self.read(counter, 8), "little")
        for address, size_bytes in taken:
            self._launch(address, size_bytes // UNIT_BYTES, pattern, counter)
        self._call("cuCtxSynchronize")
        counted = (int.from_bytes(self.read(counter, 8), "little") - before) % 2**64
        # A count that cannot be is as bad as all of it.
        return min(counted * UNIT_BYTES, sum(size_bytes for _, size_bytes in taken))

    def _launch(self, address: int, units: int, pattern: int, counter: int) -> None:
        new = self._ffi.new
        values = [
            new("CUdeviceptr *", address),
            new("unsigned long long *", units),
            new("unsigned int *", pattern),
            new("CUdeviceptr *", counter),
        ]
        parameters = new("void *[]", [self._ffi.cast("void *", value) for value in values])
        blocks = self._attribute(_SM_COUNT) * _BLOCKS_PER_SM
        null = self._ffi.NULL
        shape = (blocks, 1, 1, _THREADS, 1, 1)
        self._call("cuLaunchKernel", self._kernel, *shape, 0, null, parameters, null)

    # -- the library -------------------------------------------------------------------------------

    def _check_identity(self, uuid: str) -> None:
        told = self._ffi.new("CUuuid *")
        self._call("cuDeviceGetUuid_v2", told, self._device)
        found = bytes(self._ffi.buffer(told)).hex()
        wanted = uuid.partition("-")[2].replace("-", "")
        if found != wanted:
            raise DeviceError("cuda_identity", errno.ENODEV, f"CUDA sees {found}, not {uuid}")

    def _attribute(self, number: int) -> int:
        value = self._ffi.new("int *")
        self._call("cuDeviceGetAttribute", value, number, self._device)
        return int(value[0])

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._lib, name)
        except AttributeError as error:
            raise DeviceError(name, errno.ENOTSUP, "the driver has no such function") from error
        code = int(function(*arguments))
        if code:
            told = self._ffi.new("const char **")
            known = self._lib.cuGetErrorName(code, told) == 0 and told[0] != self._ffi.NULL
            words = self._ffi.string(told[0]).decode("ascii") if known else f"code {code}"
            raise DeviceError(name, ERRNO.get(code, errno.EIO), words)
