# SPDX-License-Identifier: Apache-2.0
"""MPS: each lease its own pipe directory, so that no server serves two leases.

An MPS server that the tenant starts runs inside the lease's leaf and ends with it; its clients are
in the leaf too, or cannot open the GPU. What is shared by all is only the default pipe directory:
whoever is told another one, and cannot write to anybody else's, shares with nobody.

Rule: the directory is the tenant's alone, and its content is removed without following a link.

Does not start servers: sharing within a lease is the tenant's business, between leases it is
refused.
"""

from __future__ import annotations

import errno
import os
import shutil

from leased.hardware.gpu.calls import Nothing, Pipe
from leased.terms.errors import DeviceError


def make_pipe(path: str, uid: int, gid: int) -> None:
    """Make a lease's directory. Raises DeviceError."""
    try:
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
        os.chmod(parent, 0o711)
        os.mkdir(path, 0o700)
        os.chown(path, uid, gid, follow_symlinks=False)
    except OSError as error:
        raise DeviceError("gpu_mps", error.errno or errno.EIO, str(error)) from error


def remove_empty(path: str) -> bool:
    """Remove it if it is empty; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove(call: Pipe, fds: list[int]) -> Nothing:
    """Remove it with all that the tenant left there, in a worker: that may be much. Idempotent.
    Raises OSError."""
    assert shutil.rmtree.avoids_symlink_attacks
    if os.path.lexists(call.path):
        shutil.rmtree(call.path)
    return Nothing()
