# SPDX-License-Identifier: Apache-2.0
"""Framing: a stream of bytes is messages, each ended by one NUL.

Rule: how the stream is cut into reads never shows: the same bytes give the same messages, byte by
byte or all at once. No message is longer than `message_bytes_max`, and not much more than that is
ever kept.

Does not look inside a message.
"""

from __future__ import annotations

MESSAGE_BYTES_MAX = 1024 * 1024
"""The ceiling of a call. Replies may be longer: a list of every lease of a node is about 15 MiB."""


class Framing:
    """The bytes of one direction of one connection. `kept` are those of a message that has not
    ended; `overrun` is set for good by one that is too long.
    """

    __slots__ = ("_bytes_max", "_rest", "kept", "overrun")

    def __init__(self, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._bytes_max = message_bytes_max
        self._rest = bytearray()
        self.kept = 0
        self.overrun = False

    def receive(self, data: bytes) -> list[bytes]:
        """Return the messages that `data` completes, without their NULs. None after an overrun."""
        if self.overrun:
            return []
        messages = data.split(b"\0")
        rest = messages.pop()
        if messages and self.kept:
            messages[0] = bytes(self._rest) + messages[0]
            self._rest.clear()
        self._rest += rest
        self.kept = len(self._rest)
        bytes_max = self._bytes_max
        for index, message in enumerate(messages):
            if len(message) > bytes_max:
                self.give_up()
                return messages[:index]
        if self.kept > bytes_max:
            self.give_up()
        return messages

    def give_up(self) -> None:
        """No message follows, and nothing is kept of what has begun."""
        self.overrun = True
        self._rest = bytearray()
        self.kept = 0
