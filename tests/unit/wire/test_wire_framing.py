# SPDX-License-Identifier: Apache-2.0
"""Framing cuts at NULs, keeps the rest, and gives up for good on a message that is too long."""

from leased.wire.framing import Framing


def test_messages_are_cut_at_nuls_and_the_rest_is_kept() -> None:
    framing = Framing()
    assert framing.receive(b"one\0two\0thr") == [b"one", b"two"]
    assert framing.kept
    assert framing.receive(b"ee\0") == [b"three"]
    assert not framing.kept


def test_an_empty_message_is_a_message() -> None:
    assert Framing().receive(b"\0\0") == [b"", b""]


def test_a_message_of_exactly_the_ceiling_passes() -> None:
    framing = Framing(4)
    assert framing.receive(b"abcd") == []
    assert framing.receive(b"\0") == [b"abcd"]
    assert not framing.overrun


def test_one_byte_more_is_an_overrun_with_or_without_its_nul() -> None:
    whole, open_ended = Framing(4), Framing(4)
    assert whole.receive(b"ok\0abcde\0later\0") == [b"ok"]
    assert whole.overrun
    assert open_ended.receive(b"abcde") == []
    assert open_ended.overrun


def test_nothing_comes_after_an_overrun() -> None:
    framing = Framing(4)
    framing.receive(b"abcde")
    assert framing.receive(b"\0ok\0") == []
