# SPDX-License-Identifier: Apache-2.0
"""Who asks for policies is there, and who does not is not: also after the collector's clock was set
back."""

from __future__ import annotations

from pathlib import Path

from leased.chain.signing import Signer
from leased.collector.fleet import Fleet
from leased.collector.governance.issuer import PRESENT_NS, Issuer
from leased.collector.governance.quotas import Quota, Terms
from leased.collector.governance.register import Register
from leased.collector.node_view import NodeView
from leased.terms.policy import Policy
from leased.terms.resource import ResourceKind

S = 1_000_000_000
HOUR_NS = 3600 * S
BEGIN_NS = 1_767_225_600 * S
NODES = ("a" * 32, "b" * 32)


def world(directory: Path, now_ns: list[int]) -> tuple[Issuer, Register]:
    """Two nodes that share a quota, by a clock that can be set."""
    fleet, register = Fleet(), Register(directory)
    for node in NODES:
        view = fleet.logs[node] = NodeView(node)
        view.node = view.name = node
        view.policy_hash = bytes(32).hex()
        view._totals = {ResourceKind.GPU: 8000}
    with register.transaction():
        register.put_quota(Quota("acme", {"gpus": 8000}, Terms()))
    issuer = Issuer(
        register=register,
        signer=Signer(bytes(32)),
        key_name="fleet/policy",
        fleet="fleet",
        ground=Policy,
        valid_ns=24 * HOUR_NS,
        share_valid_ns=900 * S,
        seen=lambda: fleet,
        wall_ns=lambda: now_ns[0],
    )
    return issuer, register


def test_what_was_issued_while_our_clock_was_ahead_is_issued_anew(tmp_path: Path) -> None:
    now_ns = [BEGIN_NS + 1000 * HOUR_NS]
    issuer, register = world(tmp_path, now_ns)
    for node in NODES:
        issuer.come(node)
        issuer.note_acceptance(node, 1)
    issuer.turn()
    ahead = issuer.current
    now_ns[0] = BEGIN_NS
    for node in NODES:
        issuer.come(node)
    issuer.turn()
    assert issuer.current.issued_ns == BEGIN_NS and issuer.current.generation > ahead.generation
    parts = issuer.divided("acme")[1]
    assert [one.until_ns for one in parts] == [BEGIN_NS + 900 * S] * 2
    again = issuer.current
    now_ns[0] += S
    issuer.turn()
    assert issuer.current is again, "once"
    register.close()


def test_who_was_there_while_our_clock_was_ahead_is_not_there_until_then(tmp_path: Path) -> None:
    now_ns = [BEGIN_NS + HOUR_NS]
    issuer, register = world(tmp_path, now_ns)

    def there() -> dict[str, bool]:
        issuer.turn()
        return {one.node: one.present for one in issuer.divided("acme")[1]}

    for node in NODES:
        issuer.come(node)
        issuer.note_acceptance(node, 1)
    assert there() == dict.fromkeys(NODES, True)
    now_ns[0] = BEGIN_NS
    issuer.come(NODES[0])
    assert there() == dict.fromkeys(NODES, True)
    now_ns[0] += PRESENT_NS + 1
    issuer.come(NODES[0])
    assert there() == {NODES[0]: True, NODES[1]: False}
    assert issuer.accepted[NODES[1]].seen_ns == BEGIN_NS
    register.close()
