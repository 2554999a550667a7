# SPDX-License-Identifier: Apache-2.0
"""What a device worker answers when it runs out of descriptors in the middle of a call."""

from __future__ import annotations

import os
import resource

from leased.hardware.calls import Batch, Create, Created, Failed
from leased.hardware.worker import Worker


def test_a_call_that_fails_halfway_sends_no_descriptor_that_another_would_get() -> None:
    worker = Worker()
    calls = (Create("leased-half", 4096, 0, 0, True), Create("leased-whole", 4096, 0, 0, False))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))  # one more, and not two
    try:
        (half, whole), made = worker.carry_out(Batch(1, calls), [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(half, Failed) and isinstance(whole, Created)
    [fd] = made
    assert os.fstat(fd).st_ino == whole.inode
    os.close(fd)
