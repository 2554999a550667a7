# SPDX-License-Identifier: Apache-2.0
"""The outbox where the clock of the collector's host was set: what waits is not kept waiting for a
time that is not to come, and who came while it was ahead hears what happens from now on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec

from leased.collector.api.quotas import Quotas
from leased.collector.api.routes import Call, Caller, Scope
from leased.collector.governance.quotas import Override
from leased.collector.governance.register import Register
from leased.collector.webhooks.outbox import Outbox
from leased.collector.webhooks.watcher import Look, Seen, Watcher
from leased.terms.policy import Policy
from tests.unit.collector.test_webhooks import NOW_NS, S, fact, hook, outbox

YEAR_NS = 365 * 86_400 * S
__all__ = ["outbox"]


def test_what_failed_before_the_clock_was_set_back_is_tried_again_at_once(outbox: Outbox) -> None:
    one = hook(outbox)
    outbox.put(fact(1))
    parcel = outbox.next(one.id, NOW_NS)
    assert parcel is not None
    failed = {"due_ns": NOW_NS + 300 * S, "status": None, "why": "nobody there"}
    outbox.settle(parcel, "pending", NOW_NS, **failed)
    assert outbox.due(NOW_NS + 299 * S, ()) == ([], NOW_NS + 300 * S)
    assert outbox.next(one.id, NOW_NS + 299 * S) is None
    back_ns = NOW_NS - YEAR_NS
    assert outbox.due(back_ns, ()) == ([one], None)
    parcel = outbox.next(one.id, back_ns)
    assert parcel is not None and parcel.attempts == 1
    outbox.settle(parcel, "pending", back_ns, **failed | {"due_ns": back_ns + 300 * S})
    assert outbox.due(back_ns, ()) == ([], back_ns + 300 * S)


def test_who_came_while_the_clock_was_ahead_hears_what_happens_from_now_on(tmp_path: Path) -> None:
    register = Register(tmp_path)
    outbox = Outbox(register.connection, "urn:leased:fleet:t")
    ahead = hook(outbox)
    watcher = Watcher(
        *(None, tmp_path, Look(dict, list)),  # type: ignore[arg-type] # nothing of it is asked
        thresholds_pm=(),
        idle_ns=0,
        keep_ns=YEAR_NS,
        keep_dead_ns=YEAR_NS,
        wall_ns=lambda: NOW_NS - YEAR_NS,
        put=lambda: None,
        say=lambda text: None,
    )
    watcher.note(outbox, Seen({}, [], [], []))
    assert outbox.put(msgspec.structs.replace(fact(1), wall_ns=NOW_NS - YEAR_NS + S))
    assert not outbox.put(msgspec.structs.replace(fact(2), wall_ns=NOW_NS - 2 * YEAR_NS))
    assert outbox.next(ahead.id, NOW_NS - YEAR_NS + S) is not None
    register.close()


def test_a_clock_that_is_ahead_forgets_nothing_of_what_was_sent(tmp_path: Path) -> None:
    """What was given up can be asked for again, unless it was forgotten."""
    register = Register(tmp_path)
    outbox = Outbox(register.connection, "urn:leased:fleet:t")
    one = hook(outbox)
    outbox.put(fact(1))
    parcel = outbox.next(one.id, NOW_NS)
    assert parcel is not None
    outbox.settle(parcel, "dead", NOW_NS, due_ns=0, status=None, why="nobody there")
    watcher = Watcher(
        *(None, tmp_path, Look(dict, list)),  # type: ignore[arg-type] # nothing of it is asked
        thresholds_pm=(),
        idle_ns=0,
        keep_ns=30 * S,
        keep_dead_ns=30 * S,
        wall_ns=lambda: NOW_NS + YEAR_NS,
        put=lambda: None,
        say=lambda text: None,
    )
    for newest_ns, kept in ((NOW_NS + S, 1), (NOW_NS + YEAR_NS, 0)):
        watcher.note(outbox, Seen({}, [], [], [], newest_ns))
        assert outbox.count("dead", one.id) == kept
    register.close()


def test_a_clock_that_is_ahead_forgets_no_quota(tmp_path: Path) -> None:
    with closing(Register(tmp_path)) as register:
        newest = [NOW_NS]
        quotas = Quotas(
            register=register,
            writer=register,
            ground=Policy,
            known=list,
            entropy=lambda: bytes(16),
            tell=lambda sealed: None,
            newest_ns=lambda: newest[0],
        )
        for id in ("a", "b", "c"):
            limits = {"leases": 5}
            register.add_override(Override(id, "acme", limits, "x", 1, NOW_NS + S, "me"))
        for id, left in (("a", ["b", "c"]), ("b", [])):
            path = SimpleNamespace(tenant="acme", id=id)
            call = Call(Caller("ops", frozenset(Scope)), path, None, None, NOW_NS + YEAR_NS)
            with register.transaction():
                quotas.drop_override(call)
            assert [one.id for one in register.overrides("acme")] == left
            newest[0] += YEAR_NS
