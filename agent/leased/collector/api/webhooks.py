# SPDX-License-Identifier: Apache-2.0
"""Webhooks over HTTP: who is told what, what became of it, and once more.

Rule: a secret is shown in the answer that makes it and in no other, also not in the one that an
Idempotency-Key brings back. A caller for some tenants sees, and makes, webhooks for these only.

Does not send (`webhooks.courier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from leased.collector.api import forms
from leased.collector.api.problems import Problem
from leased.collector.api.quota_answers import number_before, page
from leased.collector.api.routes import Answer, Call, Caller, Route, Scope
from leased.collector.webhooks.outbox import Delivery, Outbox, Webhook
from leased.collector.webhooks.receivers import NoWebhook, Receivers, TooMany
from leased.terms.quantity import parse_instant, print_instant

TOP: Final = "/v1/webhooks"
Url = Annotated[str, Meta(min_length=8, max_length=2048)]
Pattern = Annotated[
    str, Meta(max_length=32, description='a kind, a family such as "lease.*", or "*"')
]
Patterns = Annotated[list[Pattern], Meta(min_length=1, max_length=32)]
Told = Annotated[str, Meta(max_length=500)]
Given = Annotated[str, Meta(max_length=128, description='"whsec_" and 24 to 64 bytes in base64')]
Message = Annotated[str, Meta(pattern=forms.MESSAGE)]


class WebhookForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A receiver. Without `tenants` it hears of everybody, and of the fleet."""

    url: Url
    events: Patterns
    tenants: Annotated[list[forms.Tenant], Meta(min_length=1, max_length=256)] | None = None
    description: Told = ""
    secret: Given | None = None


class WebhookPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What changes; what is absent stays."""

    url: Url | None = None
    events: Patterns | None = None
    description: Told | None = None
    enabled: bool | None = None


class SecretForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A secret of the receiver's own; absent: one is made."""

    secret: Given | None = None


class ReplayForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One message; or everything that was given up, that happened `since`."""

    message: Message | None = None
    since: forms.Instant | None = None


class DeliveriesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which page, of deliveries in one state or in any."""

    state: Annotated[str, Meta(pattern=r"^(pending|delivered|dead)$(?!\n)")] | None = None
    limit: forms.Limit = 100
    cursor: forms.Cursor | None = None


class WebhookSeen(msgspec.Struct, frozen=True):
    """A receiver. `secret` is there once: in the answer that made it."""

    id: str
    url: str
    events: list[str]
    tenants: list[str] | None
    description: str
    created_at: str
    enabled: bool
    disabled_because: str | None
    secrets: int
    pending: int
    dead: int
    secret: str | None = None


class WebhooksSeen(msgspec.Struct, frozen=True):
    """Receivers. By any of `public_keys` ("whpk_") each of them can check what it hears."""

    webhooks: list[WebhookSeen]
    public_keys: list[str]
    next_cursor: str | None = None


class DeliverySeen(msgspec.Struct, frozen=True):
    """What became of one message; `next_attempt_at` while it waits."""

    message: str
    kind: str
    state: str
    attempts: int
    happened_at: str
    last_attempt_at: str | None
    next_attempt_at: str | None
    status: int | None
    why: str


class DeliveriesSeen(msgspec.Struct, frozen=True):
    """Deliveries, the newest first."""

    deliveries: list[DeliverySeen]
    next_cursor: str | None = None


class TestSeen(msgspec.Struct, frozen=True):
    """Under which id the receiver hears it."""

    message: str


class ReplaySeen(msgspec.Struct, frozen=True):
    """How many are sent again."""

    replayed: int


def shown(webhook: Webhook, outbox: Outbox, *, secret: bool = False) -> WebhookSeen:
    """As it is shown."""
    return WebhookSeen(
        id=webhook.id,
        url=webhook.url,
        events=list(webhook.events),
        tenants=None if webhook.tenants is None else list(webhook.tenants),
        description=webhook.description,
        created_at=print_instant(webhook.created_ns),
        enabled=not webhook.disabled,
        disabled_because=webhook.disabled or None,
        secrets=len(webhook.secrets),
        pending=outbox.count("pending", webhook.id),
        dead=outbox.count("dead", webhook.id),
        secret=webhook.secrets[0].text() if secret else None,
    )


def delivery_shown(one: Delivery) -> DeliverySeen:
    """As it is shown."""
    due_ns = max(one.due_ns, one.at_ns)
    return DeliverySeen(
        message=one.message,
        kind=one.kind,
        state=one.state,
        attempts=one.attempts,
        happened_at=print_instant(one.made_ns),
        last_attempt_at=print_instant(one.at_ns) if one.attempts else None,
        next_attempt_at=print_instant(due_ns) if one.state == "pending" else None,
        status=one.status,
        why=one.why,
    )


class Webhooks:
    """The handlers. `read` and `write` are over two connections."""

    def __init__(self, read: Receivers, write: Receivers, public_keys: Sequence[str]) -> None:
        self._read, self._write = read, write
        self._public_keys = list(public_keys)

    def list(self, call: Call) -> Answer:
        """Everybody that the caller may see."""
        seen = [one for one in self._read.outbox.webhooks() if _may_see(call.caller, one)]
        rows, cursor = page(seen, call.query.limit, call.query.cursor, lambda one: one.id)
        found = [shown(one, self._read.outbox) for one in rows]
        return Answer(WebhooksSeen(found, self._public_keys, cursor))

    def add(self, call: Call) -> Answer:
        """A new one."""
        form: WebhookForm = call.body
        if call.caller.tenants is not None:
            if form.tenants is None:
                raise Problem(
                    422, "Your token is for some tenants: name them.", parameter="tenants"
                )
            for tenant in form.tenants:
                call.caller.require_tenant(tenant)
        try:
            webhook = self._write.add(
                form.url,
                form.events,
                tenants=form.tenants,
                description=form.description,
                secret=form.secret,
                actor=call.caller.name,
                now_ns=call.now_ns,
            )
        except TooMany as error:
            raise Problem(409, f"{error}.") from None
        location = {"Location": f"{TOP}/{webhook.id}"}
        return Answer(
            shown(webhook, self._write.outbox, secret=True),
            status=201,
            headers=location,
            kept=shown(webhook, self._write.outbox),
        )

    def show(self, call: Call) -> Answer:
        """One of them."""
        return Answer(shown(self._find(self._read, call), self._read.outbox))

    def change(self, call: Call) -> Answer:
        """Another address, other events, off or on."""
        form: WebhookPatch = call.body
        changed = self._write.change(
            self._find(self._write, call),
            url=form.url,
            events=form.events,
            description=form.description,
            enabled=form.enabled,
            actor=call.caller.name,
            now_ns=call.now_ns,
        )
        return Answer(shown(changed, self._write.outbox))

    def remove(self, call: Call) -> Answer:
        """Take it away."""
        self._write.remove(self._find(self._write, call), call.caller.name, call.now_ns)
        return Answer(status=204)

    def rotate(self, call: Call) -> Answer:
        """Another secret."""
        webhook = self._find(self._write, call)
        changed = self._write.rotate(webhook, call.body.secret, call.caller.name, call.now_ns)
        outbox = self._write.outbox
        return Answer(shown(changed, outbox, secret=True), kept=shown(changed, outbox))

    def test(self, call: Call) -> Answer:
        """Something to be heard."""
        webhook = self._find(self._write, call)
        return Answer(TestSeen(self._write.test(webhook, call.now_ns)), status=202)

    def replay(self, call: Call) -> Answer:
        """Send again."""
        form: ReplayForm = call.body
        if form.message is not None and form.since is not None:
            raise Problem(422, "Name a message or an instant, not both.", parameter="since")
        try:
            since_ns = 0 if form.since is None else parse_instant(form.since)
        except ValueError as error:
            raise Problem(422, f"{error}.", parameter="since") from None
        webhook = self._find(self._write, call)
        try:
            count = self._write.replay(
                webhook,
                message=form.message,
                since_ns=min(since_ns, 2**63 - 1),
                actor=call.caller.name,
                now_ns=call.now_ns,
            )
        except NoWebhook as error:
            raise Problem(404, f"{error}.", parameter="message") from None
        return Answer(ReplaySeen(count), status=202)

    def deliveries(self, call: Call) -> Answer:
        """What became of what it was to hear."""
        webhook, query = self._find(self._read, call), call.query
        before = number_before(query.cursor)
        found = self._read.outbox.deliveries(
            webhook.id, state=query.state, before=before, count=query.limit
        )
        following = str(found[-1].number) if len(found) == query.limit else None
        return Answer(DeliveriesSeen([delivery_shown(one) for one in found], following))

    def _find(self, receivers: Receivers, call: Call) -> Webhook:
        found = receivers.outbox.webhook(call.path.id)
        if found is None or not _may_see(call.caller, found):
            raise Problem(404, f"There is no webhook {call.path.id}.", parameter="id")
        return found


def _may_see(caller: Caller, webhook: Webhook) -> bool:
    if caller.tenants is None:
        return True
    return webhook.tenants is not None and caller.tenants.issuperset(webhook.tenants)


def routes(webhooks: Webhooks) -> list[Route]:
    """The rows of the table."""
    one = f"{TOP}/{{id}}"
    reads = partial(Route, about="webhooks")
    writes = partial(Route, about="webhooks", scope=Scope.WEBHOOK, writes=True)
    reads_one = partial(reads, takes_path=forms.IdPath, problems=(404,))
    writes_one = partial(writes, takes_path=forms.IdPath, problems=(404,))
    return [
        reads(
            "GET",
            TOP,
            webhooks.list,
            "Who is told what",
            WebhooksSeen,
            takes_query=forms.PageQuery,
        ),
        writes(
            "POST",
            TOP,
            webhooks.add,
            "Tell somebody",
            WebhookSeen,
            takes_body=WebhookForm,
            status=201,
            problems=(404, 409),
        ),
        reads_one("GET", one, webhooks.show, "One webhook", WebhookSeen),
        writes_one(
            "PATCH", one, webhooks.change, "Change a webhook", WebhookSeen, takes_body=WebhookPatch
        ),
        writes_one("DELETE", one, webhooks.remove, "Tell it nothing more", None, status=204),
        writes_one(
            "POST",
            f"{one}/rotate",
            webhooks.rotate,
            "Another secret",
            WebhookSeen,
            takes_body=SecretForm,
        ),
        writes_one(
            "POST", f"{one}/test", webhooks.test, "Let it hear something", TestSeen, status=202
        ),
        writes_one(
            "POST",
            f"{one}/replay",
            webhooks.replay,
            "Send again",
            ReplaySeen,
            takes_body=ReplayForm,
            status=202,
        ),
        reads_one(
            "GET",
            f"{one}/deliveries",
            webhooks.deliveries,
            "What became of it",
            DeliveriesSeen,
            takes_query=DeliveriesQuery,
        ),
    ]
