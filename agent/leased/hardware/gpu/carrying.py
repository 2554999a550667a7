# SPDX-License-Identifier: Apache-2.0
"""What a worker can be asked of GPUs.

Rule: one verb, one argument type, one function; every function may hang in the driver and may raise
DeviceError or OSError.

Does not do anything itself.
"""

from __future__ import annotations

from typing import Final

from leased.hardware.gpu import (
    calls,
    describing,
    detaching,
    examining,
    gauging,
    layout,
    listening,
    mps,
    opening,
    releasing,
    scrubber,
    sights,
    witnessing,
)

VERBS: Final = {
    "list": (calls.Where, examining.list_gpus),
    "bus": (calls.Where, examining.list_bus),
    "examine": (calls.Examine, describing.examine),
    "ready": (calls.Ready, opening.ready),
    "guard": (calls.Guard, opening.guard),
    "release": (calls.Release, releasing.release),
    "scrub": (calls.Scrub, scrubber.scrub),
    "witness": (calls.Witness, witnessing.witness),
    "make": (calls.Make, layout.make),
    "unmake": (calls.Remove, layout.remove),
    "absent": (calls.Remove, layout.absent),
    "listen": (calls.Listen, listening.listen),
    "who": (calls.Who, sights.who),
    "anybody": (calls.Anybody, detaching.anybody),
    "remove": (calls.Pipe, mps.remove),
    "gauge": (calls.Gauge, gauging.gauge),
}
