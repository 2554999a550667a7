# SPDX-License-Identifier: Apache-2.0
"""A log bound to a counter outside of its disk: an earlier state that was put back, anchor and all,
is found at the start.

Rule (FORMAT.md section 8, row 9): the value that the counter is to have is anchored first, in both
slots, and only then is the counter advanced to it. So a log that was not put back says what the
counter says, or one more where a crash came between; one that says less was put back, and one that
says more than that belongs to another counter. Neither is opened, unless an operator who has looked
says of these very two numbers that they are meant: after the next advance they are not these any
more.

Does not say when it is time to advance (`service.log.counting`).
"""

from __future__ import annotations

import enum
from typing import Final

from leased.chain.verdict import COUNTER_LOST, ROLLED_BACK
from leased.durable.writer import Writer
from leased.ports import Counter
from leased.terms.errors import ChainError, StateError
from leased.terms.moment import Moment

_NEVER: Final = "none"


class Standing(enum.Enum):
    """What a log and its counter are to each other."""

    UNBOUND = enum.auto()
    """Neither was ever advanced."""
    AGREED = enum.auto()
    """The same; or one of the two numbers was accepted."""
    PENDING = enum.auto()
    """The advance that was anchored has yet to be made."""


class Binding:
    """The counter of one log. Everything blocks as long as the counter does."""

    def __init__(self, counter: Counter, *, accept: str = "") -> None:
        """`accept`: what a refusal said, to have it opened all the same."""
        self._counter = counter
        self._accept = accept
        self._found: int | None = None

    def judge(self, recorded: int, file: str) -> Standing:
        """Whether a log that says `recorded` is the newest there was. Changes nothing. Raises
        ChainError (ROLLED_BACK, COUNTER_LOST), StateError if the counter cannot be asked."""
        found = self._found = self._counter.read()
        if found == recorded:
            return Standing.AGREED
        if found is None and not recorded:
            return Standing.UNBOUND
        if found is not None and found == recorded - 1:
            return Standing.PENDING
        told = f"{recorded}/{_NEVER if found is None else found}"
        if self._accept == told:
            return Standing.UNBOUND if found is None else Standing.AGREED
        meant = f'if this is meant, set accept = "{told}" in [log.counter] and start once'
        if found is None or found < recorded:
            has = "was never advanced" if found is None else f"has {found}"
            raise ChainError(
                COUNTER_LOST,
                f"the log says {recorded} of {self._counter}, which {has}: another TPM, or one that"
                f" was cleared; {meant}",
                file=file,
            )
        raise ChainError(
            ROLLED_BACK,
            f"{self._counter} has {found} and the log says {recorded}: an earlier state of the"
            f" directory was put back. Restore the newest, or ask a collector what it has; {meant}",
            file=file,
        )

    def settle(self, writer: Writer, standing: Standing, moment: Moment) -> None:
        """At an opening, when the log holds: advance, so that no earlier copy is opened again.
        Raises StateError, OSError."""
        found = self._found
        if standing is Standing.UNBOUND:
            # What its first value will be only the counter knows.
            writer.restate(self._counter.advance(), moment)
        elif standing is Standing.PENDING:
            self.complete(writer.slot.tpm_counter)
        else:
            assert found is not None
            if writer.slot.tpm_counter != found:
                writer.restate(found, moment)
            self.advance(writer, moment)

    def advance(self, writer: Writer, moment: Moment) -> bool:
        """Anchor the next value, then have the counter at it. Only while nothing is sealed. False:
        it was advanced a moment ago. Raises StateError, OSError."""
        if not self._counter.rested():
            return False
        value = writer.slot.tpm_counter + 1
        writer.restate(value, moment)
        self.complete(value)
        return True

    def rested(self) -> bool:
        """Whether it may be advanced again."""
        return self._counter.rested()

    def complete(self, value: int) -> None:
        """Have the counter at `value`, which both slots say by now. May be asked again. Raises
        StateError."""
        found = self._counter.read()
        if found == value - 1:
            found = self._counter.advance()
        if found != value:
            raise StateError(
                f"{self._counter} has {found} where {value} was to follow: somebody else counts"
            )
