# SPDX-License-Identifier: Apache-2.0
"""The outbox: answers that are made in one go leave in one go.

Rule: within `with outbox:` connections that have something to send are noted; at the end of the
outermost one their letters leave by one call, in the order in which they were noted. Waking a
sleeping process on another processor costs more than making its answer: a peer that is sent many
answers one right behind the other is woken for the first and finds the rest.

Does not hold bytes (the conversation does) and nobody waits while it is open.
"""

from __future__ import annotations

from typing import Protocol

from leased.service.api.sending import Letter, send_many


class Sender(Protocol):
    """Who has something to send. `connection.Connection` is one. Nothing here raises."""

    closed: bool

    def draw(self) -> Letter | None:
        """What is to be sent next; None: nothing, or the socket takes nothing now."""
        ...

    def sent(self, count: int) -> None:
        """So many bytes of what was drawn were taken, or -errno; what follows is sent."""
        ...

    def flush(self) -> None:
        """Send everything, as far as the socket takes it."""
        ...


class Outbox:
    """Notes who has to send; one for all connections."""

    __slots__ = ("_depth", "_noted")

    def __init__(self) -> None:
        self._depth = 0
        self._noted: dict[Sender, None] = {}

    def note(self, sender: Sender) -> bool:
        """Whether `sender` will send later; False: nobody gathers answers just now."""
        if not self._depth:
            return False
        self._noted[sender] = None
        return True

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth or not self._noted:
            return
        noted, self._noted = self._noted, {}
        senders = [sender for sender in noted if not sender.closed]
        if len(senders) == 1:
            senders[0].flush()
            return
        drawn: list[Sender] = []
        letters: list[Letter] = []
        for sender in senders:
            letter = sender.draw()
            if letter is not None:
                drawn.append(sender)
                letters.append(letter)
        if letters:
            for sender, count in zip(drawn, send_many(letters), strict=True):
                sender.sent(count)
