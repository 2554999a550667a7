# SPDX-License-Identifier: Apache-2.0
"""What to do where a package is missing that only some collectors need.

Rule: the command that is told works as it stands, in the environment that the program runs in:
Debian has no `pip` of its own that would.

Does not install anything.
"""

from __future__ import annotations

import sys


def how_to_have(missing: ModuleNotFoundError, extra: str) -> str:
    """Which package is missing, and the command that brings it with the others of its extra."""
    return f"{missing.name} is not installed: {sys.executable} -m pip install 'leased[{extra}]'"
