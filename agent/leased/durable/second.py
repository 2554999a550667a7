# SPDX-License-Identifier: Apache-2.0
"""The second process of a long boot: `python -m leased.durable.second DIRECTORY LOG_ID SEGMENT...`.

Rule: it reads, verifies and answers on its standard output; whatever it finds wrong, it only says
"look yourself" (exit status 1), so that there is one place that words a verdict.

Does not join segments (`scan`). A module of its own, because what `__main__` pickles nobody else
can read.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

from leased.durable.files import DirectoryDisk
from leased.durable.scan import scan_segment
from leased.terms.errors import ChainError


def main(arguments: Sequence[str]) -> int:
    """Scan the named segments and write the result."""
    directory, log_id, *names = arguments
    disk = DirectoryDisk(Path(directory))
    try:
        scans = [scan_segment(disk.read(name), name, bytes.fromhex(log_id)) for name in names]
    except (ChainError, OSError):
        return 1
    finally:
        disk.close()
    sys.stdout.buffer.write(pickle.dumps(scans, pickle.HIGHEST_PROTOCOL))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
