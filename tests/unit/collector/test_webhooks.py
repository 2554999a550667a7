# SPDX-License-Identifier: Apache-2.0
"""Webhooks without a network: signatures, waits, where they may go, and the outbox."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Library

from leased.chain.head import GENESIS
from leased.chain.record import Record
from leased.chain.signing import Signer
from leased.collector.archive.manifest import LogEntry
from leased.collector.governance.register import Register
from leased.collector.webhooks import facts, schedule, signing
from leased.collector.webhooks.facts import Fact, Kind
from leased.collector.webhooks.guard import parse_network, parse_target, refusal
from leased.collector.webhooks.lease_facts import lease_fact
from leased.collector.webhooks.outbox import Outbox, Webhook
from leased.collector.webhooks.post import retry_after_ns
from leased.collector.webhooks.watcher import Look, Seen, Watcher
from leased.economics.waste import Held, Judged, Waste
from leased.terms import event as events
from leased.terms.errors import ConfigError, StateError
from leased.terms.lease import RevocationReason
from leased.terms.resource import ResourceKind
from leased.terms.teardown import Utilization
from tests.doubles.economics_history import History, memory, subject
from tests.vectors.c2sp_independent import signature_holds

S = 1_000_000_000
NOW_NS = 1_700_000_000 * S
COUNT = itertools.count(1)


def secret(number: int = 1, until_ns: int | None = None) -> signing.Secret:
    return signing.Secret(bytes([number]) * 32, 0, until_ns)


def fact(number: int, *, tenant: str | None = "acme", kind: Kind = Kind.QUOTA_CHANGED) -> Fact:
    return Fact(kind, f"{number}", "tenants/acme", tenant, NOW_NS + number, {"n": number})


# ---- signatures ----------------------------------------------------------------------------------


@given(st.binary(min_size=24, max_size=64), st.text(max_size=40))
def test_the_library_signs_alike(key: bytes, body: str) -> None:
    import datetime

    one = signing.Secret(key, 0)
    headers = dict(signing.headers_of("msg_1", body.encode(), [one], NOW_NS))
    at = datetime.datetime.fromtimestamp(NOW_NS // S, tz=datetime.UTC)
    assert headers["webhook-signature"] == Library(one.text()).sign("msg_1", at, body)


@pytest.mark.parametrize("count", [1, 2])
def test_v1a_holds_by_a_second_implementation_also_while_keys_are_turned(
    tmp_path: Path, count: int
) -> None:
    """Ed25519 as RFC 8032 has it, written for other tests: no line and no library is shared."""
    made = [Signer(bytes([number]) * 32) for number in range(count)]
    for number, key in enumerate(made):
        (tmp_path / f"{number}.pem").write_bytes(key.pem())
        (tmp_path / f"{number}.pem").chmod(0o600)
    keys = signing.load_keys([f"{number}.pem" for number in range(count)], tmp_path)
    headers = dict(signing.headers_of("msg_1", b"{}", [secret()], NOW_NS, keys))
    versions = [one.partition(",") for one in headers["webhook-signature"].split()]
    assert [version for version, _, _ in versions] == ["v1", *["v1a"] * count]
    message = f"msg_1.{NOW_NS // S}.".encode() + b"{}"
    for key, (_, _, told) in zip(keys, versions[1:], strict=True):
        public = base64.b64decode(signing.public_text(key).removeprefix("whpk_"))
        assert signature_holds(public, message, base64.b64decode(told))
        assert not signature_holds(public, message + b" ", base64.b64decode(told))


def test_keys_that_cannot_be_meant(tmp_path: Path) -> None:
    good = tmp_path / "good.pem"
    good.write_bytes(Signer(bytes(32)).pem())
    good.chmod(0o600)
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "curve.pem").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "curve.pem").chmod(0o600)
    (tmp_path / "open.pem").write_bytes(good.read_bytes())
    (tmp_path / "open.pem").chmod(0o640)
    for names, why in (
        (["curve.pem"], "not an Ed25519 key"),
        (["open.pem"], "chmod 600"),
        (["none.pem"], "No such file"),
        (["good.pem", "good.pem"], "each once"),
        ([f"{number}.pem" for number in range(5)], "4 at most"),
    ):
        with pytest.raises(ConfigError, match=why) as refused:
            signing.load_keys(names, tmp_path)
        assert "webhooks.signing_keys" in str(refused.value)


def test_a_turned_secret_signs_for_a_while_and_two_at_most() -> None:
    first, second, third = secret(1), signing.Secret(b"2" * 32, 100), signing.Secret(b"3" * 32, 200)
    both = signing.turn([first], second, 1000)
    assert [one.until_ns for one in both] == [None, 1100]
    assert len(dict(signing.headers_of("m", b"", both, 1099))["webhook-signature"].split()) == 2
    assert len(dict(signing.headers_of("m", b"", both, 1100))["webhook-signature"].split()) == 1
    again = signing.turn(both, third, 1000)
    assert [one.key[:1] for one in again] == [b"3", b"2"]


def test_secrets_are_not_shown() -> None:
    one = secret(7)
    hook = Webhook("id", "https://example.org/?key=hidden", ("*",), (one,), 0, "me")
    assert "hidden" not in repr(hook) and "\\x07" not in repr(hook) + repr(one)
    with pytest.raises(ValueError) as refused:
        signing.parse_secret("whsec_c2hvcnQ=", 0)
    assert "c2hvcnQ" not in str(refused.value)


# ---- waits ---------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(0, 255))
def test_waits_are_the_documented_ones_and_a_tenth_more(failures: int, chance: int) -> None:
    due_ns = schedule.next_due_ns(failures, NOW_NS, NOW_NS, chance)
    wait_ns = schedule.WAITS_S[failures - 1] * S
    assert due_ns is not None and wait_ns <= due_ns - NOW_NS < wait_ns * 11 // 10 + 1


def test_after_ten_attempts_it_is_given_up() -> None:
    assert schedule.next_due_ns(10, NOW_NS, NOW_NS, 0) is None
    assert schedule.next_due_ns(1, NOW_NS, NOW_NS + 3 * schedule.LIFE_NS, 0) is None


def test_a_receiver_that_says_when_is_believed_for_a_day() -> None:
    assert schedule.next_due_ns(1, NOW_NS, NOW_NS, 0, 60 * S) == NOW_NS + 60 * S
    assert schedule.next_due_ns(1, NOW_NS, NOW_NS, 0, 10**18) == NOW_NS + schedule.AFTER_MAX_NS
    assert retry_after_ns("120", NOW_NS) == 120 * S
    assert retry_after_ns("Tue, 14 Nov 2023 22:14:20 GMT", NOW_NS) == 60 * S
    far = "1 Jan 99999999999 00:00:00 GMT"
    for odd in ("", "soon", "-5", "1e9", "Tue, 99 Nov 2023", "٣", far):
        assert retry_after_ns(odd, NOW_NS) == 0


# ---- where to ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"),
        *("2001:0:7f00:1::1", "fec0::1", "feff::1", "::ffff:0:127.0.0.1", "5f00::1", "4000::1"),
    ],
)
def test_what_is_private_is_not_asked(address: str) -> None:
    assert refusal(address, (), secure=True)
    everything = (parse_network("0.0.0.0/0"), parse_network("::/0"))
    assert not refusal(address, everything, secure=False)


def test_public_addresses_and_named_networks_are() -> None:
    for address in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"):
        assert not refusal(address, (), secure=True) and refusal(address, (), secure=False)
    ten = (parse_network("10.0.0.0/8"),)
    assert not refusal("10.9.8.7", ten, secure=False) and refusal("11.0.0.1", (), secure=False)
    assert not refusal("::ffff:10.9.8.7", ten, secure=True)
    assert refusal("10.9.8.7.6", ten, secure=True) == "not an address"


def test_urls() -> None:
    target = parse_target("https://example.org:8443/a/b?c=d")
    assert (target.authority, target.path) == ("example.org:8443", "/a/b?c=d")
    assert parse_target("https://[2606:4700::1111]").authority == "[2606:4700::1111]"
    for odd in ("https://", "https://a b/", "https://a/\r\nX: y", "https://a/#x", "file:///etc"):
        with pytest.raises(ValueError):
            parse_target(odd)


# ---- what is told --------------------------------------------------------------------------------


def test_ids_follow_from_what_happened_and_bodies_have_an_end() -> None:
    assert fact(1).id == fact(1).id != fact(2).id
    assert fact(1).id != fact(1, kind=Kind.BILL_FINAL).id
    long = Fact(Kind.QUOTA_CHANGED, "k", "s", "t", 0, {"a": 1, "many": ["x" * 100] * 1000})
    body = facts.body_of(long, "urn:x")
    assert len(body) <= facts.BODY_BYTES_MAX and b'"shortened":true' in body and b'"a":1' in body


def test_what_makes_a_body_too_long_is_left_out_and_nothing_else() -> None:
    data = {"tag": {"cost_center": "cc"}, "many": ["x" * 100] * 1000, "text": "y" * 500}
    body = json.loads(facts.body_of(Fact(Kind.QUOTA_CHANGED, "k", "s", "t", 0, data), "urn:x"))
    assert body["data"] == {"tag": {"cost_center": "cc"}, "text": "y" * 500, "shortened": True}


def test_the_end_of_a_lease_of_an_earlier_boot_is_on_no_clock_of_now() -> None:
    history = History(wall_offset_ns=NOW_NS)
    history.start()
    history.allocate(1, subject(memory(1 << 30)), S)
    lease = history.records[-1][1]
    assert isinstance(lease, events.Allocated)
    head = (lease.event_id, lease.lease_id, lease.subject, 0, 7)
    entry = LogEntry("1d" * 16, "4e" * 16, "host", "origin", GENESIS)
    told = {
        reason: lease_fact(
            Kind.LEASE_REVOKED,
            events.Revoked(*head, reason),
            Record(5, 0, 0, 0, 0, NOW_NS + 9, 9, bytes(32), b"", bytes(32), 0, True),
            entry,
        ).data["effective_at"]
        for reason in (RevocationReason.NODE_REBOOT, RevocationReason.OPERATOR_REVOKE)
    }
    assert told[RevocationReason.NODE_REBOOT] is None
    assert told[RevocationReason.OPERATOR_REVOKE] == "2023-11-14T22:13:20.000000007Z"


def test_renewals_are_told_to_who_names_them() -> None:
    assert facts.wants(("lease.renewed",), Kind.LEASE_RENEWED)
    assert not facts.wants(("lease.*", "*"), Kind.LEASE_RENEWED)
    assert facts.wants(("lease.*",), Kind.LEASE_FENCED) and facts.wants((), Kind.TEST)
    assert facts.is_pattern("lease.*") and not facts.is_pattern("leases.*")


# ---- the outbox ----------------------------------------------------------------------------------


@pytest.fixture
def outbox(tmp_path: Path):
    register = Register(tmp_path)
    yield Outbox(register.connection, "urn:leased:fleet:t", pending_max=5)
    register.close()


def hook(outbox: Outbox, *events: str, **more: object) -> Webhook:
    made = Webhook(
        *(f"{next(COUNT):032x}", "https://example.org/", events or ("*",), (secret(),), NOW_NS),
        *("me",),
        **more,  # type: ignore[arg-type]
    )
    outbox.put_webhook(made)
    return made


def test_who_hears_what(outbox: Outbox) -> None:
    every, ours, quota = (
        hook(outbox),
        hook(outbox, tenants=("acme",)),
        hook(outbox, "quota.*", tenants=("beta",)),
    )
    hook(outbox, disabled="off")
    outbox.put(fact(1))
    outbox.put(fact(2, tenant=None, kind=Kind.NODE_VERDICT))
    outbox.put(fact(3, tenant="beta"))
    heard = {
        one.id: [d.number for d in outbox.deliveries(one.id, state=None, before=None, count=9)]
        for one in (every, ours, quota)
    }
    assert heard == {every.id: [3, 2, 1], ours.id: [1], quota.id: [3]}
    assert not outbox.put(Fact(Kind.BILL_FINAL, "k", "s", "gamma", NOW_NS - 1, {}))


def test_the_same_fact_is_told_once(outbox: Outbox) -> None:
    one = hook(outbox)
    outbox.put(fact(1))
    outbox.put(fact(1))
    assert outbox.count("pending", one.id) == 1


def test_order_holds_while_the_first_waits(outbox: Outbox) -> None:
    one = hook(outbox)
    outbox.put(fact(1))
    outbox.put(fact(2))
    parcel = outbox.next(one.id, NOW_NS)
    assert parcel is not None and parcel.number == 1
    outbox.settle(parcel, "pending", NOW_NS, due_ns=NOW_NS + 5, status=500, why="answered 500")
    assert outbox.next(one.id, NOW_NS) is None
    assert outbox.due(NOW_NS, ()) == ([], NOW_NS + 5)
    again = outbox.next(one.id, NOW_NS + 5)
    assert again is not None and (again.number, again.attempts) == (1, 1)
    outbox.settle(again, "delivered", NOW_NS + 6, due_ns=0, status=200, why="")
    following = outbox.next(one.id, NOW_NS + 6)
    assert following is not None and following.number == 2


def test_what_is_asked_for_again_while_it_is_on_its_way_is_sent_again(outbox: Outbox) -> None:
    one = hook(outbox)
    outbox.put(fact(1))
    parcel = outbox.next(one.id, NOW_NS)
    assert parcel is not None
    assert outbox.replay(one.id, NOW_NS + 9, message=fact(1).id, since_ns=0) == 1
    outbox.settle(parcel, "delivered", NOW_NS + 10, due_ns=0, status=200, why="")
    assert outbox.next(one.id, NOW_NS + 10) is not None


def test_what_is_too_much_is_kept_as_dead_and_can_be_replayed(outbox: Outbox) -> None:
    one = hook(outbox)
    for number in range(8):
        outbox.put(fact(number))
    assert (outbox.count("pending", one.id), outbox.count("dead", one.id)) == (5, 3)
    assert outbox.replay(one.id, NOW_NS, message=None, since_ns=NOW_NS + 6) == 2
    assert outbox.count("dead", one.id) == 1


def test_what_is_over_is_forgotten_and_what_waits_is_not(outbox: Outbox) -> None:
    one = hook(outbox)
    for number in range(3):
        outbox.put(fact(number))
    parcel = outbox.next(one.id, NOW_NS)
    assert parcel is not None
    outbox.settle(parcel, "delivered", NOW_NS, due_ns=0, status=200, why="")
    assert outbox.sweep(NOW_NS + 100, NOW_NS + 100) == 1
    assert outbox.count("pending", one.id) == 2
    rows = outbox.deliveries(one.id, state=None, before=None, count=9)
    assert [row.number for row in rows] == [3, 2]


def test_a_fact_is_told_only_if_its_change_is_durable(tmp_path: Path) -> None:
    register = Register(tmp_path)
    kept = Outbox(register.connection, "urn:x")
    one = hook(kept)
    with pytest.raises(StateError), register.transaction():
        kept.put(fact(1))
        register.connection.execute("no such thing")
    assert kept.count("pending", one.id) == 0
    register.close()


# ---- waste ---------------------------------------------------------------------------------------


def judged(lease: str, waste: Waste, tenant: str = "acme") -> Judged:
    seen = Utilization(mean_pm=40, max_pm=90, active_share_pm=50, sample_count=360, coverage_pm=990)
    held = Held(lease, tenant, "a1" * 16, ResourceKind.GPU, 1000, seen)
    return Judged(held, waste, None if waste is Waste.UNKNOWN else 960)


def watcher_of(state: Path) -> Watcher:
    """Whoever finds what is to be told; nothing is delivered."""
    return Watcher(
        *(None, state, Look(dict, list)),  # type: ignore[arg-type] # nothing of it is asked
        thresholds_pm=(),
        idle_ns=0,
        keep_ns=NOW_NS,
        keep_dead_ns=NOW_NS,
        wall_ns=lambda: NOW_NS,
        put=lambda: None,
        say=lambda text: None,
    )


def test_each_class_of_waste_of_a_lease_is_told_once(tmp_path: Path) -> None:
    register = Register(tmp_path)
    outbox = Outbox(register.connection, "urn:leased:fleet:test")
    hook = Webhook("h", "https://example.org/", ("waste.found",), (secret(),), 0, "me")
    outbox.put_webhook(hook)
    watcher = watcher_of(tmp_path)

    def told(*found: Judged) -> list[dict[str, object]]:
        ask = register.connection.execute
        (before,) = ask("SELECT COUNT(*) FROM messages").fetchone()
        watcher.note(outbox, Seen({}, [], list(found), []))
        rows = ask("SELECT body FROM messages ORDER BY number LIMIT -1 OFFSET ?", (before,))
        return [json.loads(body)["data"] for (body,) in rows.fetchall()]

    idle, wide = judged("l1", Waste.IDLE), judged("l1", Waste.OVERPROVISIONED)
    [first] = told(idle, judged("l2", Waste.HEALTHY), judged("l3", Waste.UNKNOWN))
    assert (first["class"], first["lease_id"], first["tenant"]) == ("idle", "l1", "acme")
    assert (first["utilization"], first["coverage"], first["samples"]) == (0.04, 0.99, 360)
    assert told(idle) == []
    assert [one["class"] for one in told(wide)] == ["overprovisioned"]
    assert told(judged("l1", Waste.HEALTHY)) == told(idle) == told(wide) == []
    classes = {
        one["class"] for one in told(judged("l4", Waste.PREMIUM), judged("l5", Waste.FRAGMENTED))
    }
    assert classes == {"premium_waste", "fragmented"}
    told()  # whoever is gone is forgotten
    assert outbox.cursors("waste/") == {}
    register.close()
