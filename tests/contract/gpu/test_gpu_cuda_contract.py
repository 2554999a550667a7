# SPDX-License-Identifier: Apache-2.0
"""What CUDA does with memory that more than one process has, and after a death: mock and real."""

from __future__ import annotations

import os
import select
import socket
import time

from tests.contract.gpu.conftest import Gpus
from tests.hostile.cuda_holders import SECRET, SHARED_BYTES

SECRET_WORD = f"{SECRET:08x}"
RELEASE_BUDGET_S = 10.0


def used(gpus: Gpus) -> int:
    return int(gpus.ask("processes", 0)["used"])


def settle(gpus: Gpus, most: int) -> int:
    """Wait until no more than `most` is in use; what is."""
    deadline = time.monotonic() + RELEASE_BUDGET_S
    while (now := used(gpus)) > most and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    return now


def until_gone(gpus: Gpus, pid: int) -> None:
    deadline = time.monotonic() + RELEASE_BUDGET_S
    while pid in [one for one, _ in gpus.ask("processes", 0)["compute"]]:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_holder_computes_and_gives_all_back(gpus: Gpus) -> None:
    before = used(gpus)
    with gpus.hold("small") as held:
        assert held.ask() == "works"
        assert held.ask() == "works"
        held.process.communicate("")  # the orderly end
    assert settle(gpus, before) <= before


def test_an_importer_keeps_memory_after_the_exporters_death(gpus: Gpus) -> None:
    before = used(gpus)
    with (
        gpus.hold("ipc_export") as exporter,
        gpus.hold("ipc_import", exporter.words[0]) as importer,
    ):
        assert importer.words == [SECRET_WORD]
        exporter.kill()
        until_gone(gpus, exporter.pid)
        kept = importer.ask() == SECRET_WORD
        [own] = [size for pid, size in gpus.ask("processes", 0)["compute"] if pid == importer.pid]
        assert kept == (used(gpus) >= before + own + SHARED_BYTES)
    assert settle(gpus, before) <= before


def test_a_descriptor_of_memory_keeps_it_wherever_it_is(gpus: Gpus) -> None:
    before = used(gpus)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with gpus.hold("descriptor_export", str(theirs.fileno()), fds=[theirs.fileno()]) as one:
            one.kill()
        _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
        try:
            with gpus.hold("descriptor_import", str(descriptor), fds=[descriptor]) as importer:
                assert importer.words == [SECRET_WORD]
            # Nobody has a context, and the memory is still there.
            assert settle(gpus, before + SHARED_BYTES) >= before + SHARED_BYTES
        finally:
            os.close(descriptor)
    assert settle(gpus, before) <= before


def test_a_child_that_has_the_descriptors_keeps_the_context(gpus: Gpus) -> None:
    before = used(gpus)
    with gpus.hold("forked") as parent:
        child = int(parent.words[0])
        parent.watch(child)
        parent.kill()
        select.select([], [], [], 0.5)
        kept = used(gpus) > before
        assert kept == (parent.pid in [pid for pid, _ in gpus.ask("processes", 0)["compute"]])
    assert settle(gpus, before) <= before
