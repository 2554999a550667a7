# SPDX-License-Identifier: Apache-2.0
"""The backends of this host, in the order in which a lease's parts are prepared.

Rule: what others reach goes first up and last down: RDMA regions are registered on memory, so they
are ended before memory is scrubbed.

Does not ask whether the hardware is there: each backend's survey does.
"""

from __future__ import annotations

from leased.hardware.backend import Backend
from leased.hardware.block.backend import BlockBackend
from leased.hardware.config import HardwareConfig
from leased.hardware.crew import Crew
from leased.hardware.dax.backend import DaxBackend
from leased.hardware.gpu.backend import GpuBackend
from leased.hardware.rdma.backend import RdmaBackend


def make_backends(crew: Crew, config: HardwareConfig) -> tuple[Backend, ...]:
    """One of each kind; one that is not offered says so in its survey."""
    return (
        DaxBackend(crew, config),
        GpuBackend(crew, config),
        BlockBackend(crew, config),
        RdmaBackend(crew, config),
    )
