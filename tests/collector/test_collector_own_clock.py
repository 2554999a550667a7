# SPDX-License-Identifier: Apache-2.0
"""The clock of the collector's own host is set: nobody else is blamed for it, and nothing waits for
a time that is not to come."""

from __future__ import annotations

import msgspec
import pytest

from leased.chain.epochs import EPOCHS_AHEAD_MAX
from leased.collector import ingest as i
from leased.terms.errors import ChainError
from leased.terms.moment import Moment
from tests.doubles.logs import BOOT
from tests.doubles.nodes import EPOCH_NS, PulledNode

DAY_NS = 24 * 60 * EPOCH_NS
PRINTED_NS = 20_000 * DAY_NS


def sealing(on: PulledNode, epochs: int) -> None:
    """So many epochs end, as one seal."""
    begun = on.ratchet.end_ns - EPOCH_NS
    on.seal([], Moment(BOOT, begun + epochs * EPOCH_NS, 10**18))


def followed(on: PulledNode) -> i.State:
    return i.State(msgspec.structs.replace(on.pinned(), printed_ns=PRINTED_NS))


def heard(on: PulledNode, state: i.State, now_ns: int) -> i.State:
    taken = i.take_page(state, on.page(state.head.size, state.head.hash), now_ns)
    return i.noted(state, taken.state, now_ns)


def test_a_clock_that_was_set_back_makes_no_honest_seal_a_bad_one() -> None:
    """By it no such epoch can be open yet, and a BAD_SEAL stays until an operator resolves it."""
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS)
    for day in range(1, 61):
        sealing(on, 24 * 60)
        state = heard(on, state, PRINTED_NS + day * DAY_NS)
    # Back to the day of its enrolment, to before it, and to 1970.
    for now_ns in (PRINTED_NS + DAY_NS, PRINTED_NS - DAY_NS, DAY_NS):
        sealing(on, 2)
        state = heard(on, state, now_ns)
        sealing(on, 2)
        state = heard(on, state, now_ns + 2 * EPOCH_NS)


def test_a_log_that_was_enrolled_while_the_clock_was_ahead_is_followed_on() -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS + DAY_NS)
    for day in range(60):
        sealing(on, 24 * 60)
        state = heard(on, state, PRINTED_NS - 30 * DAY_NS + day * DAY_NS)


def test_a_clock_that_was_set_back_lets_nobody_seal_all_epochs_at_once() -> None:
    on = PulledNode(epoch_ns=EPOCH_NS)
    on.start()
    state = heard(on, followed(on), PRINTED_NS + DAY_NS)
    sealing(on, EPOCHS_AHEAD_MAX + 2)
    with pytest.raises(ChainError, match="by the reader's clock"):
        heard(on, state, PRINTED_NS)
