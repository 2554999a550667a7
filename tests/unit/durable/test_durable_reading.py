# SPDX-License-Identifier: Apache-2.0
"""What stands where a file should be is refused before it is waited for, or read on and on."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from leased.durable.files import FILE_BYTES_MAX, DirectoryDisk
from leased.durable.reading import read_file, read_text

NO_FILES = ("pipe", "socket", "zero", "directory", "link")


@pytest.fixture(params=NO_FILES)
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is no file."""
    place = tmp_path / "it"
    match request.param:
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(place))
        case "zero":
            place.symlink_to("/dev/zero")
        case "directory":
            place.mkdir()
        case "link":
            os.mkfifo(tmp_path / "other")
            place.symlink_to("other")
    return place


def test_what_is_no_file_is_not_read(no_file: Path) -> None:
    with pytest.raises(OSError) as told:
        read_file(no_file)
    assert told.value.errno in (errno.EINVAL, errno.EISDIR, errno.ENXIO)
    assert told.value.filename is not None


@pytest.mark.parametrize("verb", ["read", "read_part", "open"])
def test_nor_in_a_directory_of_a_log(no_file: Path, verb: str) -> None:
    disk = DirectoryDisk(no_file.parent)
    named = {"read_part": ("it", 0, 10)}.get(verb, ("it",))
    try:
        with pytest.raises(OSError):
            getattr(disk, verb)(*named)
    finally:
        disk.close()


def test_a_file_has_a_length(tmp_path: Path) -> None:
    file = tmp_path / "it"
    file.write_bytes(b"12345")
    assert read_file(file, most=5) == b"12345" and read_text(file) == "12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(file, most=4)
    os.truncate(file, 1 << 42)  # sparse: it costs whoever made it nothing
    with pytest.raises(OSError, match="more than"):
        read_file(file)
    disk = DirectoryDisk(tmp_path)
    with pytest.raises(OSError, match=f"{1 << 42} bytes"):
        disk.read("it")
    assert FILE_BYTES_MAX < 1 << 42
    disk.close()


def test_a_pipe_is_read_where_one_may_be_meant(tmp_path: Path) -> None:
    """`leasectl policy check <(...)`: to its end, however late that comes, and within bounds."""
    reading, writing = os.pipe()

    def write(data: bytes) -> None:
        os.write(writing, data)
        os.close(writing)

    writer = threading.Thread(target=write, args=(b"x" * 100,))
    writer.start()
    assert read_file(f"/dev/fd/{reading}", pipe=True) == b"x" * 100
    writer.join()
    os.close(reading)
    reading, writing = os.pipe()
    os.write(writing, b"x" * 100)
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_file(f"/dev/fd/{reading}", most=99, pipe=True)
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="a device"):
        read_file("/dev/zero", pipe=True)


def test_a_pipe_with_a_name_is_neither_waited_for_nor_taken_for_an_empty_file(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "it")
    with pytest.raises(OSError, match="a pipe"):
        read_file(tmp_path / "it", pipe=True)
