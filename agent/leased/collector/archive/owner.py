# SPDX-License-Identifier: Apache-2.0
"""Whose the files of a collector's state directory are: the directory's owner's.

Rule: what a verb that root ran has made in it is given to that owner, since the service, which is
no root, could not open it. Nothing else is given away: no link is followed, a file with a second
name stays whose it is, and so does what is not root's.

Does not change modes.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def hand_over(directory: Path) -> None:
    """Give what is root's in a directory that is not root's to its owner. Raises OSError."""
    if os.geteuid() != 0:
        return
    try:
        owner = os.stat(directory)
    except OSError:
        return
    if owner.st_uid == 0:
        return
    for _, folders, files, at in os.fwalk(directory):
        for name in (*folders, *files):
            # What has gone meanwhile is nobody's: the service works beside us.
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
                alone = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
                if found.st_uid == 0 and alone:
                    os.chown(
                        name, owner.st_uid, owner.st_gid, dir_fd=at, follow_symlinks=False
                    )
