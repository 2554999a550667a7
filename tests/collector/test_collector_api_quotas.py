# SPDX-License-Identifier: Apache-2.0
"""The quota API on a real server: what is set is shown, in force and sealed; what cannot be meant
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from leased.chain.policy_note import open_policy, parse_key
from leased.collector.api.callers import hash_of
from leased.collector.governance.directory import DIRECTORY
from leased.collector.governance.register import Register
from leased.terms.errors import ChainError
from leased.terms.policy import CapacityLimit, Mode, Strategy
from leased.terms.resource import ResourceKind
from tests.doubles.collector_server import CollectorServer

QUOTAS = "/v1/governance/quotas"


@pytest.fixture(scope="module")
def server() -> Iterator[CollectorServer]:
    with CollectorServer() as running:
        yield running


def patch(server: CollectorServer, tenant: str, **fields: Any) -> Any:
    answer = server.ask("PATCH", f"{QUOTAS}/{tenant}", {"reason": "a test", **fields})
    assert answer.status == 200, answer
    return answer.json


def policy_of(server: CollectorServer, tenant: str) -> Any:
    """The tenant's row in the policy that nodes get now, its signature checked."""
    answer = server.ask("GET", "/v1/governance/policy")
    told = answer.json
    document = bytes(msgspec.json.decode(answer.body, type=dict[str, msgspec.Raw])["document"])
    key = parse_key(told["key"])
    _, policy = open_policy(told["note"], document.decode(), key, told["fleet"])
    return dict(policy.tenants)[tenant]


def settled(server: CollectorServer, tenant: str, wanted: Any) -> Any:
    """The tenant's row, once `wanted` of it is true."""
    for _ in range(200):
        try:
            row = policy_of(server, tenant)
        except KeyError:
            continue
        if wanted(row):
            return row
    raise AssertionError(f"the policy stays {row}")


def test_a_change_is_shown_and_reaches_the_policy(server: CollectorServer) -> None:
    told = patch(server, "acme", cpu_cores=1.5, memory_gb=64, submit_rate="100/s")
    assert told["quotas"] == {"cpu_cores": 1.5, "memory_gb": 64, "submit_rate": "100/s"}
    assert told["sources"]["cpu_cores"] == "base"
    shown = server.ask("GET", f"{QUOTAS}/acme")
    assert shown.json["quotas"] == told["quotas"] and shown.json["revision"] == told["revision"]
    row = settled(server, "acme", lambda row: row.capacities)
    assert CapacityLimit(ResourceKind.CPU, 1500) in row.capacities
    assert CapacityLimit(ResourceKind.MEM, 64 << 30) in row.capacities
    assert row.submit_rate.count * 3_600_000_000_000 == 100 * 3600 * row.submit_rate.per_ns


def test_an_override_goes_before_the_base_and_ends_by_itself(server: CollectorServer) -> None:
    patch(server, "beta", gpus=2)
    told = patch(server, "beta", gpus=8, expires_at="2199-01-01T00:00:00Z")
    assert told["quotas"]["gpus"] == 8 and told["base"]["gpus"] == 2
    assert told["reverts_to"] == {"gpus": 2} and told["sources"]["gpus"] == "override"
    # The base may change below it: what it reverts to is the base as it is then.
    assert patch(server, "beta", gpus=3)["quotas"]["gpus"] == 8
    row = settled(server, "beta", lambda row: row.changes and row.capacities[0].capacity == 3000)
    assert [one.limits.capacities[0].capacity for one in row.changes] == [8000]
    ended = server.ask("DELETE", f"{QUOTAS}/beta/overrides/{told['change_id']}")
    assert ended.status == 204
    assert server.ask("GET", f"{QUOTAS}/beta").json["quotas"]["gpus"] == 3
    again = server.ask("DELETE", f"{QUOTAS}/beta/overrides/{told['change_id']}")
    assert again.status == 404


def test_it_reverts_to_the_operators_document_where_the_api_said_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[tenants.ann]\ngpu = 2\n")
    with with_nodes(tmp_path, 'policy_file = "policy.toml"') as server:
        told = patch(server, "ann", gpus=8, cpu_cores=4, expires_at="2199-01-01T00:00:00Z")
        assert (told["quotas"]["gpus"], told["base"]) == (8, {})
        assert told["reverts_to"] == {"gpus": 2}  # and no limit of cores


def test_what_a_limit_means_does_not_end_by_itself(server: CollectorServer) -> None:
    for limits in ({}, {"gpus": 2}):
        body = {**limits, "policy": {"mode": "soft"}, "expires_at": "2199-01-01T00:00:00Z"}
        answer = server.ask("PATCH", f"{QUOTAS}/meaning", {**body, "reason": "a test"})
        assert (answer.status, answer.json["parameter"]) == (422, "policy")


def test_what_has_ended_already_is_on_record_and_never_in_force(server: CollectorServer) -> None:
    told = patch(server, "gone", cpu_cores=200, expires_at="2024-04-01T00:00:00Z")
    assert told["quotas"] == {} and "never in force" in told["note"]
    assert told["grace_until"] is None


def test_a_decrease_with_grace_reaches_the_node_as_grace(server: CollectorServer) -> None:
    patch(server, "grace", cpu_cores=200)
    told = patch(server, "grace", cpu_cores=50, grace_period="1h")
    assert told["grace_until"] > told["effective_at"]
    row = settled(server, "grace", lambda row: row.grace_ns_cut == 3_600_000_000_000)
    assert row.capacities[0].capacity == 50_000


def test_soft_and_burst_limits_reach_the_node(server: CollectorServer) -> None:
    soft = {"mode": "soft", "overage_allowed": "20%", "overage_duration": "15m"}
    patch(server, "soft", gpus=4, policy=soft)
    row = settled(server, "soft", lambda row: row.capacities)
    limit = row.capacities[0]
    assert (limit.mode, limit.overage_pm, limit.overage_ns) == (Mode.SOFT, 200, 900_000_000_000)
    burst = {"mode": "burst", "burst_allowed": "50%", "burst_duration": "10m"}
    patch(server, "soft", policy=burst)
    row = settled(server, "soft", lambda row: row.capacities[0].mode is Mode.BURST)
    assert row.capacities[0].burst_capacity == 6000


def test_null_takes_a_limit_away(server: CollectorServer) -> None:
    patch(server, "null", gpus=4, cpu_cores=1)
    assert patch(server, "null", gpus=None)["quotas"] == {"cpu_cores": 1}


@pytest.mark.parametrize(
    ("body", "status", "parameter"),
    [
        ({"cpu_cores": 1}, 400, "reason"),
        ({"reason": ""}, 400, "reason"),
        ({"reason": "x"}, 422, None),
        ({"reason": "x", "cpu_cores": -1}, 400, "cpu_cores"),
        ({"reason": "x", "cpu_cores": "1"}, 400, "cpu_cores"),
        ({"reason": "x", "cpu_cores": True}, 400, "cpu_cores"),
        ({"reason": "x", "cpu_cores": 1e300}, 400, "cpu_cores"),
        ({"reason": "x", "cpu_cores": 1.23456}, 422, "cpu_cores"),
        ({"reason": "x", "cpu_coars": 1}, 400, None),
        ({"reason": "x", "cpu_cores": 1, "grace_period": "-1h"}, 400, "grace_period"),
        ({"reason": "x", "cpu_cores": 1, "expires_at": "soon"}, 400, "expires_at"),
        ({"reason": "x", "cpu_cores": 1, "expires_at": "2024-13-01T00:00:00Z"}, 422, "expires_at"),
        ({"reason": "x", "cpu_cores": 1, "expires_at": "2999-01-01T00:00:00Z"}, 422, "expires_at"),
        ({"reason": "x", "gpus": None, "expires_at": "2199-01-01T00:00:00Z"}, 422, "gpus"),
        ({"reason": "x", "submit_rate": "0/s"}, 422, "submit_rate"),
        ({"reason": "x", "max_task_duration": "1ms"}, 422, None),
        ({"reason": "x", "gpus": 1, "policy": {"mode": "burst"}}, 422, "policy.mode"),
        ({"reason": "x", "gpus": 1, "policy": {"overage_allowed": "1%"}}, 422, "policy.mode"),
        ({"reason": "x" * 501, "cpu_cores": 1}, 400, "reason"),
        ([], 400, None),
    ],
)
def test_what_cannot_be_meant_changes_nothing(
    server: CollectorServer, body: Any, status: int, parameter: str | None
) -> None:
    patch(server, "steady", gpus=1)
    before = server.ask("GET", f"{QUOTAS}/steady")
    count = server.ask("GET", "/v1/governance/changes").json["count"]
    answer = server.ask("PATCH", f"{QUOTAS}/steady", body)
    assert (answer.status, answer.json.get("parameter")) == (status, parameter), answer.json
    assert answer.headers["content-type"] == "application/problem+json"
    assert server.ask("GET", f"{QUOTAS}/steady").headers["etag"] == before.headers["etag"]
    assert server.ask("GET", "/v1/governance/changes").json["count"] == count


def test_a_change_insists_on_what_it_has_read(server: CollectorServer) -> None:
    patch(server, "etag", gpus=1)
    tag = server.ask("GET", f"{QUOTAS}/etag").headers["etag"]
    unchanged = server.ask("GET", f"{QUOTAS}/etag", headers={"If-None-Match": tag})
    assert (unchanged.status, unchanged.body) == (304, b"")
    body = {"gpus": 2, "reason": "x"}
    done = server.ask("PATCH", f"{QUOTAS}/etag", body, {"If-Match": tag})
    assert done.status == 200
    assert server.ask("GET", f"{QUOTAS}/etag").headers["etag"] == done.headers["etag"] != tag
    late = server.ask("PATCH", f"{QUOTAS}/etag", {"gpus": 9, "reason": "x"}, {"If-Match": tag})
    assert late.status == 412 and late.headers["etag"] == done.headers["etag"]
    # Or on what is there, on what is not, and on nothing at all.
    for name, at, condition in (
        ("etag", "If-None-Match", "*"),
        ("etag", "If-None-Match", f'"other", {done.headers["etag"]}'),
        ("never-heard-of", "If-Match", "*"),
    ):
        other = server.ask("PATCH", f"{QUOTAS}/{name}", {"gpus": 9, "reason": "x"}, {at: condition})
        assert other.status == 412, (name, at, condition)
        assert other.headers.get("etag") == (done.headers["etag"] if name == "etag" else None)
    assert server.ask("GET", f"{QUOTAS}/never-heard-of").status == 404
    assert server.ask("GET", f"{QUOTAS}/etag").json["quotas"]["gpus"] == 2


def test_the_same_key_changes_things_once(server: CollectorServer) -> None:
    key = {"Idempotency-Key": "one-of-these"}
    body = {"tenant": "twice", "schedule": "0 8 * * 1-5", "duration": "1h", "quotas": {"gpus": 1}}
    first = server.ask("POST", f"{QUOTAS}/scheduled", body, key)
    second = server.ask("POST", f"{QUOTAS}/scheduled", body, key)
    assert first.status == second.status == 201 and first.body == second.body
    assert second.headers["idempotency-replayed"] == "true"
    other = server.ask("POST", f"{QUOTAS}/scheduled", {**body, "duration": "2h"}, key)
    assert other.status == 422 and other.json["parameter"] == "Idempotency-Key"
    assert len(server.ask("GET", f"{QUOTAS}/twice").json["scheduled"]) == 1


def test_a_schedule_opens_and_the_largest_counts(server: CollectorServer) -> None:
    always = {"schedule": "* * * * *", "duration": "2m", "timezone": "America/New_York"}
    patch(server, "windows", gpus=1)
    for gpus in (4, 2):
        body = {"tenant": "windows", "quotas": {"gpus": gpus}, **always}
        made = server.ask("POST", f"{QUOTAS}/scheduled", body)
        assert made.status == 201 and made.json["open_until"] is not None
        assert server.ask("GET", made.headers["location"]).json["id"] == made.json["id"]
    shown = server.ask("GET", f"{QUOTAS}/windows").json
    assert (shown["quotas"]["gpus"], shown["sources"]["gpus"]) == (4, "schedule")
    # Nodes get the schedules themselves: they open the windows, whoever is away.
    row = settled(server, "windows", lambda row: len(row.schedules) == 2)
    assert [one.limits.capacities[0].capacity for one in row.schedules] == [4000, 2000]
    assert {one.timezone for one in row.schedules} == {"America/New_York"} and not row.changes
    for one in shown["scheduled"]:
        assert server.ask("DELETE", f"{QUOTAS}/scheduled/{one['id']}").status == 204
    assert server.ask("GET", f"{QUOTAS}/windows").json["quotas"]["gpus"] == 1


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"schedule": "0 8 30 2 *"}, "schedule"),
        ({"schedule": "every day"}, "schedule"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"timezone": "../../etc/passwd"}, "timezone"),
        ({"tenant": "scheduled"}, "tenant"),
        ({"duration": "0s"}, None),
        ({"quotas": {}}, None),
        ({"quotas": {"max_task_duration": "1ms"}}, None),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(
    server: CollectorServer, fields: dict[str, Any], parameter: str | None
) -> None:
    body = {"tenant": "acme", "schedule": "0 8 * * *", "duration": "1h", "quotas": {"gpus": 1}}
    answer = server.ask("POST", f"{QUOTAS}/scheduled", {**body, **fields})
    assert (answer.status, answer.json.get("parameter")) == (422, parameter), answer.json


NODES = f"""
[[tokens]]
name = "nodes"
sha256 = "{hash_of("node-secret")}"
scopes = ["node"]
"""


def with_nodes(directory: Path, governance: str = "") -> CollectorServer:
    """A collector on which whoever has the nodes' token is any node."""
    (directory / "tokens.toml").write_text(NODES)
    access = 'loopback = "write"\ntokens_file = "tokens.toml"'
    return CollectorServer(access=access, governance=governance, directory=directory)


def offered(server: CollectorServer, node: str) -> tuple[str, str]:
    """The note and the policy that a node is handed."""
    headers = {"Authorization": "Bearer node-secret"}
    answer = server.ask("GET", f"/v1/nodes/{node}/policy", headers=headers)
    assert answer.status == 200, answer
    return answer.json["note"], answer.json["policy"]


ALLOCATION = """
[tenants.ann]
[tenants.bob]
[allocation.cpu]
strategy = "fair_share"
min_share = "5%"
max_share = "50%"
weights = { ann = 2, bob = 1 }
[allocation.gpu]
strategy = "reservation"
reservations = { ann = 2 }
opportunistic = 4
borrow_idle = true
"""


def test_how_capacity_is_divided_reaches_nodes(tmp_path: Path) -> None:
    """The strategies of the operator's document are in the policy that a node gets, also where a
    limit of the fleet makes it a policy of its own."""
    (tmp_path / "policy.toml").write_text(ALLOCATION)
    with with_nodes(tmp_path, 'policy_file = "policy.toml"') as server:
        told = server.ask("GET", "/v1/governance/policy").json
        key, node = parse_key(told["key"]), "a" * 32

        def allocations() -> Any:
            _, policy = open_policy(*offered(server, node), key, told["fleet"], node)
            return {one.kind: one for one in policy.allocations}

        for _ in range(2):
            found = allocations()
            assert found[ResourceKind.CPU].strategy is Strategy.FAIR_SHARE
            assert dict(found[ResourceKind.CPU].weights_pm) == {"ann": 2000, "bob": 1000}
            assert found[ResourceKind.GPU].reservations == (("ann", 2000),)
            assert found[ResourceKind.GPU].opportunistic == 4000
            patch(server, "ann", gpus=3)
        seen = server.ask("GET", "/v1/governance/allocations").json
        assert seen["strategies"] == {"cpu_cores": "fair_share", "gpus": "reservation"}


def test_a_policy_of_one_node_is_believed_by_no_other(tmp_path: Path) -> None:
    with with_nodes(tmp_path) as server:
        patch(server, "acme", gpus=4)
        told = server.ask("GET", "/v1/governance/policy").json
        key, mine = parse_key(told["key"]), "a" * 32
        for _ in range(200):
            offer = offered(server, mine)
            grant, policy = open_policy(*offer, key, told["fleet"], mine)
            if grant.fleet != told["fleet"]:
                break
        row = dict(policy.tenants)["acme"]
        # Half of it for good, all of it as long as there is no other node.
        assert row.capacities == (CapacityLimit(ResourceKind.GPU, 2000),)
        assert row.changes[-1].limits.capacities == (CapacityLimit(ResourceKind.GPU, 4000),)
        assert grant.fleet == f"{told['fleet']}/{mine}"
        for other in ("b" * 32, ""):
            with pytest.raises(ChainError):
                open_policy(*offer, key, told["fleet"], other)
        shares = server.ask("GET", "/v1/governance/shares/acme").json
        [row] = shares["shares"]
        assert (row["node"], row["floor"], row["share"], row["bound"]) == (mine, 2, 4, 4)
        # Each node's, if that is what is said: then nothing is divided.
        patch(server, "acme", policy={"per": "node"})
        answers = (server.ask("GET", "/v1/governance/shares/acme").status for _ in range(200))
        assert 404 in answers
        assert server.ask("GET", f"{QUOTAS}/acme").json["per"] == {"gpus": "node"}


def test_pages_have_everybody_once(server: CollectorServer) -> None:
    for number in range(7):
        patch(server, f"page-{number}", gpus=number)
    seen: list[str] = []
    cursor = ""
    while True:
        answer = server.ask("GET", f"{QUOTAS}?limit=3{cursor}").json
        seen += [row["tenant"] for row in answer["quotas"]]
        if answer["next_cursor"] is None:
            break
        cursor = f"&cursor={answer['next_cursor']}"
    whole = server.ask("GET", f"{QUOTAS}?limit=1000").json["quotas"]
    assert seen == [row["tenant"] for row in whole] == sorted(set(seen))
    assert server.ask("GET", f"{QUOTAS}?cursor=%C3%A4").status == 400
    assert server.ask("GET", f"{QUOTAS}?cursor=a").status == 422


def test_changes_survive_kill_and_an_altered_one_stops_the_start() -> None:
    with CollectorServer() as server:
        for number in range(3):
            patch(server, "acme", gpus=number)
        told = server.ask("GET", "/v1/governance/changes").json
        server.stop(9)
        server.start()
        assert server.ask("GET", "/v1/governance/changes").json["head"] == told["head"]
        assert server.ask("GET", f"{QUOTAS}/acme").json["quotas"] == {"gpus": 2}
        server.stop()
        register = Register(server.state / DIRECTORY)
        assert register.check() == 3
        register.connection.execute(
            "UPDATE changes SET document = replace(document, 'a test', 'a lie') WHERE sequence = 1"
        )
        with pytest.raises(ChainError, match="sequence 1"):
            register.check()
        register.close()
        with pytest.raises(AssertionError, match="65"):
            server.start()
