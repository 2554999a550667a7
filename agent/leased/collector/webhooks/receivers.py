# SPDX-License-Identifier: Apache-2.0
"""Receivers: added, changed, given another secret, tested, and sent again what they missed.

Rule: every change is sealed among the register's changes, without the secret and without the path
of the URL, in the transaction that makes it. A secret leaves here once: when it is made.

Does not ask who may (`api`, and the permissions of the state directory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from leased.collector.governance import register as changes
from leased.collector.governance.register import Register
from leased.collector.webhooks.facts import Fact, Kind, is_pattern
from leased.collector.webhooks.guard import Network, parse_target, refusal
from leased.collector.webhooks.outbox import Outbox, Webhook, test_fact
from leased.collector.webhooks.signing import Secret, make_secret, parse_secret, turn
from leased.terms.errors import EX_NOINPUT, CallerError, InvalidParameter
from leased.terms.identity import parse_tenant

TENANT_MAX: Final = 16
TENANTS_MAX: Final = 1024
FLEET_MAX: Final = 64
"""Receivers of one tenant, of all tenants, and of the fleet: nobody takes the others'."""


class NoWebhook(CallerError):
    """There is none of this id."""

    wire = "io.leased.Collector.NoWebhook"
    exit_status = EX_NOINPUT


class TooMany(CallerError):
    """There are as many as there may be."""

    wire = "io.leased.Collector.TooManyWebhooks"


class Sealed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a receiver is sealed."""

    id: str
    host: str
    events: tuple[str, ...]
    tenants: tuple[str, ...] | None
    disabled: str


class Receivers:
    """What is done to receivers, by somebody at an instant, within a transaction."""

    def __init__(
        self,
        register: Register,
        outbox: Outbox,
        *,
        allowed: Sequence[Network],
        entropy: Callable[[], bytes],
        overlap_ns: int,
    ) -> None:
        self.register, self.outbox = register, outbox
        self._allowed, self._entropy, self._overlap_ns = allowed, entropy, overlap_ns

    def find(self, id: str) -> Webhook:
        """Raises NoWebhook."""
        found = self.outbox.webhook(id)
        if found is None:
            raise NoWebhook(f"there is no webhook {id}")
        return found

    def add(
        self,
        url: str,
        events: Sequence[str],
        *,
        tenants: Sequence[str] | None,
        description: str,
        secret: str | None,
        actor: str,
        now_ns: int,
    ) -> Webhook:
        """A new one. Raises InvalidParameter, TooMany."""
        names = None if tenants is None else tuple(sorted({str(parse_tenant(t)) for t in tenants}))
        if names == ():
            raise InvalidParameter("tenants", "at least one, or none said for the whole fleet")
        self._check_share(names)
        webhook = Webhook(
            self._entropy().hex(),
            self._checked_url(url),
            _patterns(events),
            (self._secret(secret, now_ns),),
            now_ns,
            actor,
            names,
            description,
        )
        self._put(webhook, "webhook.add", actor, now_ns)
        return webhook

    def change(
        self,
        webhook: Webhook,
        *,
        url: str | None,
        events: Sequence[str] | None,
        description: str | None,
        enabled: bool | None,
        actor: str,
        now_ns: int,
    ) -> Webhook:
        """What is None stays. Raises InvalidParameter."""
        disabled = webhook.disabled
        if enabled is not None:
            disabled = "" if enabled else webhook.disabled or f"by {actor}"
        changed = msgspec.structs.replace(
            webhook,
            url=webhook.url if url is None else self._checked_url(url),
            events=webhook.events if events is None else _patterns(events),
            description=webhook.description if description is None else description,
            disabled=disabled,
        )
        if changed != webhook:
            self._put(changed, "webhook.change", actor, now_ns)
        return changed

    def rotate(self, webhook: Webhook, secret: str | None, actor: str, now_ns: int) -> Webhook:
        """Another secret; the one before signs too, for a while. Raises InvalidParameter."""
        secrets = turn(webhook.secrets, self._secret(secret, now_ns), self._overlap_ns)
        changed = msgspec.structs.replace(webhook, secrets=secrets)
        self._put(changed, "webhook.rotate", actor, now_ns)
        return changed

    def remove(self, webhook: Webhook, actor: str, now_ns: int) -> None:
        """Take it away, with what waits for it."""
        self.outbox.remove_webhook(webhook.id)
        self._seal(webhook, "webhook.remove", actor, now_ns)

    def test(self, webhook: Webhook, now_ns: int) -> str:
        """Let it hear a test; the id of the message. Raises InvalidParameter if it is disabled."""
        if webhook.disabled:
            raise InvalidParameter("id", f"it is disabled: {webhook.disabled}")
        fact = test_fact(webhook, now_ns)
        self.outbox.put(fact, [webhook])
        return fact.id

    def replay(
        self, webhook: Webhook, *, message: str | None, since_ns: int, actor: str, now_ns: int
    ) -> int:
        """Send one message again, or all that was given up since; how many. Raises NoWebhook."""
        count = self.outbox.replay(webhook.id, now_ns, message=message, since_ns=since_ns)
        if message is not None and not count:
            raise NoWebhook(f"webhook {webhook.id} never had a message {message}, or not any more")
        self._seal(webhook, "webhook.replay", actor, now_ns)
        return count

    # -- inside ------------------------------------------------------------------------------------

    def _check_share(self, tenants: Sequence[str] | None) -> None:
        """Raises TooMany."""
        there = [one.tenants for one in self.outbox.webhooks()]
        if tenants is None:
            if there.count(None) >= FLEET_MAX:
                raise TooMany(f"the fleet has {FLEET_MAX} webhooks, which is what it may have")
            return
        for tenant in tenants:
            if sum(tenant in (names or ()) for names in there) >= TENANT_MAX:
                what = f"{tenant} has {TENANT_MAX} webhooks"
                raise TooMany(f"{what}, which is what a tenant may have: remove one first")
        if len(there) - there.count(None) >= TENANTS_MAX:
            raise TooMany(f"tenants have {TENANTS_MAX} webhooks, which is what they may have")

    def _checked_url(self, url: str) -> str:
        try:
            target = parse_target(url)
            why = refusal(target.host, self._allowed, secure=target.secure)
        except ValueError as error:
            raise InvalidParameter("url", f"{error}") from None
        if not target.secure and why == "not an address":
            why = "plain HTTP goes to an address that private_networks allows, by its number"
        # A name is looked at when it is connected to: what it means may change.
        if why not in ("", "not an address"):
            raise InvalidParameter("url", why)
        return url

    def _secret(self, given: str | None, now_ns: int) -> Secret:
        if given is None:
            return make_secret(self._entropy, now_ns)
        try:
            return parse_secret(given, now_ns)
        except ValueError as error:
            raise InvalidParameter("secret", f"{error}") from None

    def _put(self, webhook: Webhook, action: str, actor: str, now_ns: int) -> None:
        self.outbox.put_webhook(webhook)
        self._seal(webhook, action, actor, now_ns)

    def _seal(self, webhook: Webhook, action: str, actor: str, now_ns: int) -> None:
        host = parse_target(webhook.url).host
        self.register.record(
            id=self._entropy().hex(),
            wall_ns=now_ns,
            actor=actor,
            action=action,
            tenant="",
            reason=webhook.description[:500],
            left=Sealed(webhook.id, host, webhook.events, webhook.tenants, webhook.disabled),
        )


def _patterns(events: Sequence[str]) -> tuple[str, ...]:
    if not events:
        raise InvalidParameter("events", "at least one")
    for one in events:
        if not is_pattern(one):
            raise InvalidParameter("events", f'{one!r}: a kind, a family such as "lease.*", or "*"')
    return tuple(sorted(frozenset(events)))


def change_fact(sealed: changes.Sealed) -> Fact:
    """A sealed change of somebody's quota."""
    change = sealed.change
    data = {
        "tenant": change.tenant,
        "action": change.action,
        "change_id": change.id,
        "actor": change.actor,
        "reason": change.reason,
        "left": msgspec.json.decode(change.document) if change.document else None,
        "sequence": change.sequence,
        "hash": sealed.hash.hex(),
    }
    key, place = f"{change.sequence}/{sealed.hash.hex()}", f"tenants/{change.tenant}"
    return Fact(Kind.QUOTA_CHANGED, key, place, change.tenant, change.wall_ns, data)
