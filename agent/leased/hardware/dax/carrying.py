# SPDX-License-Identifier: Apache-2.0
"""What a worker can be asked of device-dax ranges.

Rule: one verb, one argument type, one function; every function may hang in the kernel and may raise
DeviceError or OSError.

Does not do anything itself.
"""

from __future__ import annotations

from typing import Final

from leased.hardware.dax import calls, handling

VERBS: Final = {
    "look": (calls.Look, handling.look),
    "ready": (calls.Ready, handling.ready),
    "release": (calls.Release, handling.release),
    "witness": (calls.Witness, handling.witness),
    "close": (calls.Close, handling.close),
    "mend": (calls.Mend, handling.mend),
    "who": (calls.Who, handling.who),
}
