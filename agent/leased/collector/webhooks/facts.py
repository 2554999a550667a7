# SPDX-License-Identifier: Apache-2.0
"""Facts: what is told by webhooks, and the body in which it travels.

Rule: a fact's id follows from what happened (the node, the log and the sequence; the change; the
bill) and from nothing else, so that what is told twice has one id. The body is a CloudEvent 1.0 in
structured JSON, of at most 20 kB: what makes it longer is left out, and it says so.

Does not know who wants to hear it (`outbox`).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from leased.terms.quantity import print_instant

MEDIA_TYPE: Final = "application/cloudevents+json; charset=utf-8"
BODY_BYTES_MAX: Final = 20_000
PREFIX: Final = "io.leased."
_DOMAIN: Final = b"leased fact v1\0"
_ENCODER: Final = msgspec.json.Encoder(order="deterministic", decimal_format="number")


class Kind(enum.StrEnum):
    """Everything that can be told. What a lease goes through has a kind each."""

    QUOTA_CHANGED = "quota.changed"
    QUOTA_THRESHOLD = "quota.threshold"
    BILL_FINAL = "bill.final"
    BILL_CORRECTED = "bill.corrected"
    NODE_VERDICT = "node.verdict"
    WASTE_FOUND = "waste.found"
    LEASE_ALLOCATED = "lease.allocated"
    LEASE_ACTIVATED = "lease.activated"
    LEASE_RENEWED = "lease.renewed"
    LEASE_DRAINING = "lease.draining"
    LEASE_PREEMPTED = "lease.preempted"
    LEASE_RELEASED = "lease.released"
    LEASE_EXPIRED = "lease.expired"
    LEASE_REVOKED = "lease.revoked"
    LEASE_FENCED = "lease.fenced"
    LEASE_UNFENCED = "lease.unfenced"
    LEASE_RECLAIMED = "lease.reclaimed"
    TEST = "webhook.test"


OFTEN: Final = (Kind.LEASE_RENEWED,)
"""Told only to who asks for it by its name: a family or "*" would flood."""


class Fact(msgspec.Struct, frozen=True):
    """One thing that happened. `tenant` None: it is about the whole fleet; `key` is what the id is
    made of."""

    kind: Kind
    key: str
    subject: str
    tenant: str | None
    wall_ns: int
    data: dict[str, Any]

    @property
    def id(self) -> str:
        """The same for the same fact, for ever."""
        named = f"{self.kind}\0{self.key}".encode()
        return "msg_" + hashlib.sha256(_DOMAIN + named).hexdigest()[:32]


def body_of(fact: Fact, source: str) -> bytes:
    """The CloudEvent."""
    found, data = _encode(fact, source, fact.data), {**fact.data, "shortened": True}
    # The longest first: whose it is, and what it is charged to, is short.
    longest = sorted(fact.data, key=lambda key: -len(_ENCODER.encode(fact.data[key])))
    for key in longest:
        if len(found) <= BODY_BYTES_MAX:
            break
        if isinstance(data[key], (dict, list)):
            del data[key]
            found = _encode(fact, source, data)
    return found


def _encode(fact: Fact, source: str, data: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(
        {
            "specversion": "1.0",
            "id": fact.id,
            "source": source,
            "type": PREFIX + fact.kind,
            "subject": fact.subject,
            "time": print_instant(fact.wall_ns),
            "datacontenttype": "application/json",
            "data": data,
        }
    )


def is_pattern(text: str) -> bool:
    """Whether events can be chosen by it: a kind, a family ("lease.*"), or "*"."""
    families = {kind.partition(".")[0] for kind in Kind}
    return text == "*" or text in tuple(Kind) or text.removesuffix(".*") in families


def wants(patterns: tuple[str, ...], kind: Kind) -> bool:
    """Whether one of `patterns` chooses `kind`. A test is for everybody."""
    if kind is Kind.TEST or kind in patterns:
        return True
    if kind in OFTEN:
        return False
    return "*" in patterns or f"{kind.partition('.')[0]}.*" in patterns
