# SPDX-License-Identifier: Apache-2.0
"""What drives say of themselves: pages in, abilities out; and what may be done with them."""

from __future__ import annotations

import struct

import pytest

from leased.hardware.block.drives import (
    Drive,
    Erase,
    Sanitizing,
    read_controllers,
    read_drive,
    read_layout,
    read_list,
    read_sanitizing,
    why_sick,
)
from leased.hardware.block.erasing import choose
from leased.hardware.block.statuses import name_status
from tests.doubles.nvme_trees import controller_page, effects_page, namespace_page, page

MANAGE, ATTACH, FORMAT, SANITIZE = 0x0D, 0x15, 0x80, 0x84


def test_qemu_announces_namespace_management_and_its_log_says_that_it_has_none() -> None:
    drive = read_drive(controller_page(oacs=0x10A), effects_page(ATTACH, FORMAT))
    assert drive.attaches and not drive.manages
    assert drive.erases == ((Erase.FORMAT, False), (Erase.ZERO, False))


@pytest.mark.parametrize("effects", [b"", bytes(512)])
def test_a_drive_without_the_log_can_do_nothing_but_be_overwritten(effects: bytes) -> None:
    drive = read_drive(controller_page(oacs=0xFFFF, sanicap=7, fna=4), effects)
    assert drive.erases == ((Erase.ZERO, False),) and not (drive.manages or drive.attaches)


@pytest.mark.parametrize(("fna", "wide"), [(4, False), (4 | 1, True), (4 | 2, True)])
def test_a_format_that_reaches_every_namespace_is_known_for_it(fna: int, wide: bool) -> None:
    drive = read_drive(controller_page(fna=fna), effects_page(FORMAT))
    assert drive.reach(Erase.FORMAT) is wide and drive.reach(Erase.CRYPTO) is wide


def test_sanitizing_always_reaches_every_namespace() -> None:
    drive = read_drive(controller_page(sanicap=0b101), effects_page(SANITIZE))
    assert drive.reach(Erase.SANITIZE_CRYPTO) is drive.reach(Erase.SANITIZE_OVERWRITE) is True
    assert drive.reach(Erase.SANITIZE_BLOCK) is None


def test_what_reaches_others_is_chosen_only_where_there_are_none() -> None:
    drive = Drive(((Erase.SANITIZE_BLOCK, True), (Erase.FORMAT, False), (Erase.ZERO, False)))
    policy = (Erase.CRYPTO, Erase.SANITIZE_BLOCK, Erase.FORMAT)
    assert choose(policy, drive, alone=True) is Erase.SANITIZE_BLOCK
    assert choose(policy, drive, alone=False) is Erase.FORMAT
    assert choose((Erase.CRYPTO, Erase.SANITIZE_BLOCK), drive, alone=False) is None
    assert choose((), drive, alone=True) is None


@pytest.mark.parametrize(
    ("formats", "used", "index"), [(7, 0, 0), (7, 3, 3), (7, 0x20, 0), (31, 0x21, 0x11)]
)
def test_the_format_in_use_has_its_upper_bits_only_where_there_are_many(
    formats: int, used: int, index: int
) -> None:
    layout = read_layout(namespace_page(formats=formats, used=used, shift=12, metadata=8))
    assert (layout.lbaf, layout.lba_bytes, layout.metadata_bytes) == (index, 4096, 8)
    assert layout.size_blocks == 262144 and layout.shared


def test_lists_end_where_they_say() -> None:
    assert read_list(page({0: struct.pack("<III", 1, 2, 7)})) == (1, 2, 7)
    assert read_list(struct.pack("<1024I", *range(1, 1025))) == tuple(range(1, 1025))
    assert read_controllers(page({0: struct.pack("<HHH", 2, 0, 65)})) == (0, 65)
    assert read_controllers(page({0: struct.pack("<H", 0xFFFF)}))[:2] == (0, 0)


def test_heat_is_no_sickness_and_what_loses_data_is() -> None:
    assert why_sick(page({0: b"\x02"})) == "" == why_sick(b"")
    assert why_sick(page({0: b"\x0c"})) == "reliability is degraded, media is read-only"


def test_a_sanitization_is_where_its_log_says() -> None:
    for status, state in (
        (0x0001, Sanitizing.DONE),
        (0x0102, Sanitizing.RUNNING),
        (3, Sanitizing.FAILED),
    ):
        assert read_sanitizing(page({0: struct.pack("<HH", 100, status)})) is state


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0x4001, "NVMe status 0x4001: invalid command opcode"),
        (0x4002, "NVMe status 0x4002: invalid field in command"),
        (0x001D, "NVMe status 0x001d: sanitize in progress"),
        (0x4281, "NVMe status 0x4281: unrecovered read error"),
        (0x01FE, "NVMe status 0x01fe: command specific 0xfe"),
        (0x0799, "NVMe status 0x0799: type 7 0x99"),
    ],
)
def test_a_status_has_a_name_and_its_numbers(status: int, words: str) -> None:
    assert name_status(status) == words
