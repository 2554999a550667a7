# SPDX-License-Identifier: Apache-2.0
"""The survey: what every part of the host says it has, put together.

Rule: a part that fails costs its own kind only, and says why; no part is left out in silence.

Does not read anything itself.
"""

from __future__ import annotations

from pathlib import Path

from leased.hardware.calls import Survey, Surveyed
from leased.hardware.cpu import survey_cpu
from leased.hardware.memory import survey_memory
from leased.terms.errors import ConfigError, DeviceError
from leased.terms.resource import Absence, Resource, ResourceKind

_NET = Absence(ResourceKind.NET, "network bandwidth is not leased")


def survey(call: Survey, root: Path = Path("/")) -> Surveyed:
    """What the kernel's own files tell; what a vendor's driver knows, its backend asks."""
    resources: list[Resource] = []
    missing: list[Absence] = [_NET]
    failed: list[ResourceKind] = []
    notes = tuple(f"cgroup: {trouble}" for trouble in call.cgroup.troubles)
    try:
        memory = survey_memory(call.config, call.cgroup, root)
        resources.extend(memory.resources)
        missing.extend(memory.absences)
        notes += memory.notes
    except DeviceError as error:
        failed.append(ResourceKind.MEM)
        missing.append(Absence(ResourceKind.MEM, str(error)))
    try:
        cores, absences = survey_cpu(call.config, call.cgroup, root)
        resources.extend(cores)
        missing.extend(absences)
    except ConfigError as error:
        missing.append(Absence(ResourceKind.CPU, str(error)))
    except DeviceError as error:
        failed.append(ResourceKind.CPU)
        missing.append(Absence(ResourceKind.CPU, str(error)))
    return Surveyed(tuple(resources), tuple(missing), notes, tuple(failed))
