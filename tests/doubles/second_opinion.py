# SPDX-License-Identifier: Apache-2.0
"""A log judged twice: by the code of `leasectl verify`, and by a second verifier that shares none
of it.

Rule: both find the same head, or both refuse; a log that was damaged on purpose is no exception.
One that a writer has open, or that is too long for a verifier in no hurry, is left alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from leased.durable.files import DirectoryDisk
from leased.durable.reader import read_log
from leased.terms.errors import LeasedError
from tests.vectors import verify_independent

SIGNED_BYTES_MAX = 64 * 1024
"""Above it signatures are left to the first verifier: 3 ms each, one a second."""

BYTES_MAX = 4 << 20


def judge_files(files: Mapping[str, bytes]) -> None:
    """The same of a log that lies on no disk."""
    with tempfile.TemporaryDirectory() as place:
        for name, data in files.items():
            if "/" not in name:
                Path(place, name).write_bytes(data)
        judge(Path(place))


def judge(directory: Path) -> None:
    """Both verifiers on one log. AssertionError where they differ."""
    used = sum(len(path.read_bytes().rstrip(b"\0")) for path in directory.glob("seg-*.log"))
    disk = DirectoryDisk(directory)
    live = disk.is_locked()
    if used > BYTES_MAX or live:
        disk.close()
        return
    signatures = used <= SIGNED_BYTES_MAX
    checks = {"leases": True, "countersigned": True, "signatures": signatures}
    ours: object
    theirs: object
    try:
        opened = read_log(directory, disk=disk, **checks)
        ours = (opened.head.size, opened.head.hash.hex())
        opened.close()
    except LeasedError as error:
        ours, why = None, str(error)
    else:
        why = "it holds"
    try:
        theirs = verify_independent.verify(directory, **checks)
    except (verify_independent.Broken, OSError, UnicodeDecodeError) as error:
        theirs, other = None, f"{type(error).__name__}: {error}"
    else:
        other = "it holds"
    assert ours == theirs, f"{directory}: leasectl verify says {why}; the second verifier {other}"
