# SPDX-License-Identifier: Apache-2.0
"""What one tenant can take of what webhooks have for all: receivers, places to deliver, and room
for what waits and for what was given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from leased.collector.governance.register import Register
from leased.collector.webhooks.outbox import Outbox, Webhook
from leased.collector.webhooks.places import Places
from leased.collector.webhooks.receivers import Receivers, TooMany
from tests.unit.collector.test_webhooks import NOW_NS, fact, hook


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    register = Register(tmp_path)
    yield Outbox(register.connection, "urn:leased:fleet:t", pending_max=12)
    register.close()


def test_one_tenant_does_not_take_all_receivers(tmp_path: Path) -> None:
    register = Register(tmp_path)
    ids = iter(range(10_000))
    receivers = Receivers(
        register,
        Outbox(register.connection, "urn:leased:fleet:t"),
        allowed=(),
        entropy=lambda: next(ids).to_bytes(16, "big"),
        overlap_ns=0,
    )

    def add(*tenants: str) -> Webhook:
        return receivers.add(
            "https://example.org/",
            ["*"],
            tenants=tenants or None,
            description="",
            secret="whsec_" + "A" * 32,
            actor="me",
            now_ns=NOW_NS,
        )

    with pytest.raises(TooMany, match="acme has 16 webhooks, which is what a tenant may have"):
        while True:
            add("acme")
    with pytest.raises(TooMany, match="acme"):
        add("acme", "beta")
    add("beta")
    number = 0
    with pytest.raises(TooMany, match="tenants have 1024 webhooks"):
        while number := number + 1:
            add(f"t{number}")
    add()
    with pytest.raises(TooMany, match="the fleet has 64"):
        while True:
            add()
    register.close()


def test_what_waits_for_one_tenants_receivers_has_one_bound(outbox: Outbox) -> None:
    """However many they are; and what one has too much is no other's loss."""
    acme = [hook(outbox, tenants=("acme",)) for _ in range(3)]
    other, fleets = hook(outbox, tenants=("beta",)), hook(outbox)
    for number in range(20):
        outbox.put(fact(number))
        outbox.put(fact(100 + number, tenant="beta"))
    assert [outbox.count("pending", one.id) for one in acme] == [4, 4, 4]
    assert outbox.count("pending", other.id) == outbox.count("pending", fleets.id) == 12


def test_what_was_given_up_has_a_bound_and_the_newest_stays(outbox: Outbox) -> None:
    acme = hook(outbox, tenants=("acme",))
    for number in range(40):
        outbox.put(fact(number))
    assert outbox.count("dead", acme.id) == 28
    assert outbox.trim() == {acme.id: 16}
    assert outbox.count("dead", acme.id) == 12 and outbox.trim() == {}
    rows = outbox.deliveries(acme.id, state="dead", before=None, count=99)
    assert [row.number for row in rows] == [*range(40, 28, -1)]


def test_slow_receivers_of_one_tenant_have_a_quarter_of_the_places(outbox: Outbox) -> None:
    places = Places(16)
    acme = [hook(outbox, tenants=("acme",)) for _ in range(40)]
    begun = places.choose(acme)
    assert len(begun) == 4
    both = hook(outbox, tenants=("acme", "beta"))
    beta = hook(outbox, tenants=("beta",))
    fleets = [hook(outbox) for _ in range(40)]
    assert [one.id for one in places.choose([*acme, both, beta])] == [beta.id]
    assert len(places.choose([*acme, *fleets])) == 11  # and no more than there are
    places.leave(begun[0])
    assert len(places.choose([*acme, *fleets])) == 1


def test_who_had_a_place_last_waits_for_who_had_none(outbox: Outbox) -> None:
    places = Places(1)
    waiting = [hook(outbox, tenants=(name,)) for name in ("a", "a", "a", "b", "c")]
    served: Counter[str] = Counter()
    for _ in range(3):
        [one] = places.choose(waiting)
        served[one.tenants[0]] += 1  # type: ignore[index] # each has one
        places.leave(one)
    assert served == {"a": 1, "b": 1, "c": 1}
    assert msgspec.structs.asdict(waiting[0])["tenants"] == ("a",)


def test_receivers_of_one_tenant_take_turns(outbox: Outbox) -> None:
    places = Places(1)
    waiting = [hook(outbox) for _ in range(3)]
    served: list[str] = []
    for _ in range(6):
        [one] = places.choose(waiting)
        assert not places.choose([other for other in waiting if other is not one])
        served.append(one.id)
        places.leave(one)
    assert served == [one.id for one in waiting] * 2
