# SPDX-License-Identifier: Apache-2.0
"""A file system of FUSE that opens files and answers nobody who closes one.

Rule: a thread of this process serves it, and ends with the block. Whoever closes a file waits until
then; who drops one that was never put into a table of descriptors does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.doubles.host import not_proven

_LOOKUP, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 3, 14, 25, 26
_REQUEST = struct.Struct("IIQQIIII")
_ANSWER = struct.Struct("IiQ")
_ATTRIBUTES = struct.Struct("QQQQQQIIIIIIIIII")
_ROOT = 1
_DETACH = 2


@contextlib.contextmanager
def stuck_files(at: Path, *, closes: bool = False) -> Iterator[Path]:
    """Mounted here. Every name in it is a file. `closes`: who closes one is answered, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        not_proven("files of FUSE", f"/dev/fuse: {error.strerror}")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"stuck", str(at).encode(), b"fuse", 0, options):
        os.close(server)
        not_proven("files of FUSE", os.strerror(ctypes.get_errno()))
    serving = threading.Thread(
        target=serve, args=[server], kwargs={"closes": closes}, daemon=True
    )
    serving.start()
    try:
        yield at
    finally:
        libc.umount2(str(at).encode(), _DETACH | 1)  # by force: whoever waits is told that it ended
        serving.join()
        os.close(server)


def serve(server: int, *, closes: bool = False) -> None:
    """Answer until it is unmounted."""
    while True:
        try:
            asked = os.read(server, 1 << 17)
        except OSError:  # unmounted
            return
        _, opcode, unique, node, *_ = _REQUEST.unpack_from(asked)
        if opcode == _FLUSH and not closes:
            continue
        answer = _answer(opcode, node)
        error = 0 if answer is not None else -errno.ENOSYS
        body = answer or b""
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(server, _ANSWER.pack(_ANSWER.size + len(body), error, unique) + body)


def _answer(opcode: int, node: int) -> bytes | None:
    if opcode == _INIT:
        return struct.pack("IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 1, 0, 0)
    if opcode == _LOOKUP:
        return struct.pack("QQQQII", 2, 0, 0, 0, 0, 0) + _attributes(2)
    if opcode == _GETATTR:
        return struct.pack("QII", 0, 0, 0) + _attributes(node)
    if opcode == _OPEN:
        return struct.pack("QII", 1, 0, 0)
    return None


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o666
    return _ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
