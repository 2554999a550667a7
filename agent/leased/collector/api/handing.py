# SPDX-License-Identifier: Apache-2.0
"""Handing policies to nodes, and saying what was handed out.

Rule: a node is handed the current policy at once if it names another generation (If-None-Match),
else when there is another, or after the time it is ready to wait. The generation that it names is
what it has in force; so the answer to "does every node know?" needs nothing but these requests.
With them it says who waits there for more of a limit (Leased-Waiting).

Does not sign (`issuer`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from leased.collector.accounts.answers import Reach
from leased.collector.api import forms
from leased.collector.api.fleet_answers import ShareSeen, SharesSeen
from leased.collector.api.problems import Problem
from leased.collector.api.quota_answers import quantities
from leased.collector.api.routes import Answer, Call, Route, Scope
from leased.collector.governance.dimensions import BY_KEY, BY_KIND, show
from leased.collector.governance.issuer import Issuer
from leased.collector.governance.register import Issued
from leased.terms.quantity import print_instant

_TAG: Final = re.compile(r'"([0-9]{1,18})"')
WAITING: Final = "leased-waiting"
_Text = Annotated[str, Meta(min_length=1, max_length=256)]
_Rows = Annotated[
    list[tuple[_Text, _Text, Annotated[int, Meta(ge=1, le=2**62)]]], Meta(max_length=64)
]
_ROWS: Final = msgspec.json.Decoder(_Rows)
_KEYS: Final = {
    **{kind.name.lower(): (one.key,) for kind, one in BY_KIND.items()},
    "leases": ("max_leases", "max_concurrent_tasks"),
}


class PolicyOffer(msgspec.Struct, frozen=True):
    """A policy for a node: the signed note, and the policy's canonical text that it names."""

    note: str
    policy: str


class AcceptanceSeen(msgspec.Struct, frozen=True):
    """What a node has in force, by its own last request."""

    node: str
    generation: int
    current: bool
    seen_at: str


class PolicySeen(msgspec.Struct, frozen=True):
    """The policy that nodes are handed now. `key` is the verifier key text that they check it by,
    `document` the policy itself."""

    fleet: str
    generation: int
    policy_hash: str
    issued_at: str
    expires_at: str
    key: str
    note: str
    document: msgspec.Raw
    nodes: list[AcceptanceSeen]
    as_of: str


class Handing:
    """The handlers."""

    def __init__(self, issuer: Issuer, reach: Callable[[int], Reach]) -> None:
        """`reach`: how far the records go that say what nodes hold, at an instant."""
        self._issuer, self._reach = issuer, reach

    async def offer(self, call: Call) -> Answer:
        """The policy of one node; waits if that is what it asks for."""
        node = call.path.node
        if call.caller.node is not None and call.caller.node != node:
            raise Problem(404, "A node asks for its own policy.", parameter="node")
        self._issuer.note_waiting(node, _waiting(call.headers.get(WAITING, "")))
        named = _TAG.search(call.headers.get("if-none-match", ""))
        generation = int(named[1]) if named is not None else -1
        if generation >= 0:
            self._issuer.note_acceptance(node, generation)
        wait_s = call.query.wait if generation >= 0 else 0
        issued = await self._issuer.newer(node, generation, wait_s)
        if issued is None:
            detail = "How much of the fleet's limits this node gets is not known yet: ask again."
            raise Problem(503, detail, headers={"Retry-After": "1"})
        return Answer(PolicyOffer(issued.note, issued.document), tag=f'"{issued.generation}"')

    def show(self, call: Call) -> Answer:
        """What is handed out, and who has it."""
        call.caller.require_all()
        issued: Issued = self._issuer.current
        nodes = [
            AcceptanceSeen(
                one.node, one.generation, self._issuer.is_current(one), print_instant(one.seen_ns)
            )
            for one in sorted(self._issuer.accepted.values(), key=lambda one: one.node)
        ]
        return Answer(
            PolicySeen(
                self._issuer.fleet,
                issued.generation,
                issued.digest.hex(),
                print_instant(issued.issued_ns),
                print_instant(issued.expires_ns),
                self._issuer.key.text(),
                issued.note,
                msgspec.Raw(issued.document.encode()),
                nodes,
                print_instant(call.now_ns),
            )
        )

    def divided(self, call: Call) -> Answer:
        """How a tenant's limits of the whole fleet are divided."""
        tenant = call.path.tenant
        call.caller.require_tenant(tenant)
        limits, rows = self._issuer.divided(tenant)
        if not limits:
            detail = f"No limit of {tenant} is the whole fleet's: PATCH one, or see its quota."
            raise Problem(404, detail, parameter="tenant")
        shown = [
            ShareSeen(
                resource=one.key,
                node=one.node,
                floor=show(BY_KEY[one.key], one.floor),
                share=show(BY_KEY[one.key], one.share),
                bound=show(BY_KEY[one.key], one.bound),
                held=show(BY_KEY[one.key], one.held),
                until=print_instant(one.until_ns),
                present=one.present,
            )
            for one in rows
        ]
        seen = SharesSeen(
            tenant=tenant,
            quotas=quantities(limits),
            shares=shown,
            as_of=print_instant(call.now_ns),
            reach=self._reach(call.now_ns),
        )
        return Answer(seen)


def _waiting(text: str) -> dict[tuple[str, str], int]:
    """What waits for which limit of whom. Raises Problem."""
    found: dict[tuple[str, str], int] = {}
    try:
        rows = _ROWS.decode(text) if text else []
    except msgspec.MsgspecError as error:
        raise Problem(400, f"{error}.", parameter=WAITING) from None
    for tenant, what, amount in rows:
        for key in _KEYS.get(what, ()):
            found[tenant, key] = found.get((tenant, key), 0) + amount
    return found


def routes(handing: Handing) -> list[Route]:
    """The rows of the table."""
    return [
        Route(
            "GET",
            "/v1/governance/policy",
            handing.show,
            "The policy that nodes are handed",
            PolicySeen,
        ),
        Route(
            "GET",
            "/v1/governance/shares/{tenant}",
            handing.divided,
            "How a tenant's limits of the whole fleet are divided",
            SharesSeen,
            takes_path=forms.TenantPath,
            problems=(404,),
        ),
        Route(
            "GET",
            "/v1/nodes/{node}/policy",
            handing.offer,
            "A node's policy",
            PolicyOffer,
            scope=Scope.NODE,
            takes_path=forms.NodePath,
            takes_query=forms.WaitQuery,
            conditional=True,
            problems=(404, 503),
            about="nodes",
        ),
    ]
