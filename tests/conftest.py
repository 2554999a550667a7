# SPDX-License-Identifier: Apache-2.0
"""Every log that a test leaves behind is judged twice: by the code of `leasectl verify`, and by a
second verifier that shares none of it.

Rule: both find the same head, or both refuse. A test that damaged its log on purpose is no
exception: they must agree on that too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.durable.files import DirectoryDisk
from leased.durable.reader import read_log
from leased.terms.errors import LeasedError
from tests.vectors import verify_independent

LOGS_MAX = 8
"""Of one test: a crash search leaves hundreds that differ by a sector."""

SIGNED_BYTES_MAX = 64 * 1024
"""Above it signatures are left to the first verifier: 3 ms each, one a second."""

BYTES_MAX = 4 << 20


@pytest.fixture(autouse=True)
def _judged_twice(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test with a directory of its own: compare the verdicts on every log in it."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    place: Path = request.getfixturevalue("tmp_path")
    yield
    for path in sorted(place.rglob("log.id"))[:LOGS_MAX]:
        judge(path.parent)


def judge(directory: Path) -> None:
    """Both verifiers on one log. AssertionError where they differ."""
    used = sum(path.stat().st_blocks * 512 for path in directory.glob("seg-*.log"))
    disk = DirectoryDisk(directory)
    live = disk.is_locked()
    if used > BYTES_MAX or live:
        disk.close()
        return
    signatures = used <= SIGNED_BYTES_MAX
    ours: object
    theirs: object
    try:
        opened = read_log(directory, disk=disk, leases=True, signatures=signatures)
        ours = (opened.head.size, opened.head.hash.hex())
        opened.close()
    except LeasedError as error:
        ours, why = None, str(error)
    else:
        why = "it holds"
    try:
        theirs = verify_independent.verify(directory, leases=True, signatures=signatures)
    except (verify_independent.Broken, OSError, UnicodeDecodeError) as error:
        theirs, other = None, f"{type(error).__name__}: {error}"
    else:
        other = "it holds"
    assert ours == theirs, f"{directory}: leasectl verify says {why}; the second verifier {other}"
