# SPDX-License-Identifier: Apache-2.0
"""Room: how much may still be written below a state directory.

Rule: asked of the file system each time, so that it can be told where nothing can be written.

Does not make any (`retention`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SHORT_BYTES: Final = 64 << 20
"""From here on it is told: the small files of some nodes that are put together (16 MiB each), with
the pages that come meanwhile."""


def free_bytes(directory: Path) -> int:
    """What who is not root may still write there; 0 where there is no name left for a file."""
    found = os.statvfs(directory)
    full = found.f_files and not found.f_favail
    return 0 if full else found.f_bavail * found.f_frsize
