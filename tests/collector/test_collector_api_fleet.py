# SPDX-License-Identifier: Apache-2.0
"""What the API tells of a fleet whose records were pulled, in numbers computed by hand."""

from __future__ import annotations

import calendar
import contextlib
import csv
import http.client
import io
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from leased.collector.api.callers import hash_of
from leased.collector.archive.archive import Archive
from leased.collector.governance.fairness import evenness, filled, jain
from leased.collector.main import main
from leased.ctl.console import Console
from leased.terms.quantity import print_instant
from tests.doubles.collector_server import CollectorServer
from tests.doubles.fleet_archive import HOUR_NS, NODE_A, NODE_B, begin_of, sample, use

GOVERNANCE = "/v1/governance"
WITHOUT_REACH = {
    # What somebody set, or what was handed out and sent: no record of a node is behind it.
    "/v1/governance/quotas",
    "/v1/governance/quotas/{tenant}",
    "/v1/governance/quotas/scheduled",
    "/v1/governance/quotas/scheduled/{id}",
    "/v1/governance/changes",
    "/v1/governance/policy",
    "/v1/nodes/{node}/policy",
    "/v1/webhooks",
    "/v1/webhooks/{id}",
    "/v1/webhooks/{id}/deliveries",
    # Bytes that an auditor computes again: each chain's last record stands in them.
    "/v1/billing/bill",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("fleet")
    sample(directory / "state", time.time_ns())
    with CollectorServer(directory=directory) as running:
        await_books(running)
        yield running


def await_books(server: CollectorServer) -> None:
    """Until what it tells has been computed once."""
    server.wait_for("usage is up to date")


LAST_MONTH = print_instant(begin_of(time.time_ns()))[:7]
WHOLE = f"start={LAST_MONTH}-01&end={LAST_MONTH}-28"


def test_every_answer_that_follows_from_records_says_how_far_they_reach(
    server: CollectorServer,
) -> None:
    document = server.ask("GET", "/v1/openapi.json").json
    without = set()
    for path, methods in document["paths"].items():
        told = methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        named = told.get("application/json", {}).get("schema", {}).get("$ref", "")
        if named:
            schema = document["components"]["schemas"][named.rpartition("/")[2]]
            without |= {path} - ({path} if "reach" in schema["required"] else set())
    assert without == WITHOUT_REACH
    for path in ("allocations", "usage/tenant-acme", "compliance", "optimize/rightsizing"):
        reach = server.ask("GET", f"{GOVERNANCE}/{path}").json["reach"]
        assert (reach["nodes_behind"], reach["provisional"]) == ([], False)


def test_usage_against_quota_is_the_documented_sample(server: CollectorServer) -> None:
    body = {"cpu_cores": 100, "memory_gb": 256, "max_concurrent_tasks": 1000, "reason": "x"}
    assert server.ask("PATCH", f"{GOVERNANCE}/quotas/tenant-acme", body).status == 200
    told = server.ask("GET", f"{GOVERNANCE}/usage/tenant-acme").json
    rows = {
        key: {name: row[name] for name in ("limit", "used", "available")}
        for key, row in told["quotas"].items()
    }
    assert rows["cpu_cores"] == {"limit": 100, "used": 45, "available": 55}
    assert rows["memory_gb"] == {"limit": 256, "used": 128, "available": 128}
    assert rows["max_concurrent_tasks"] == {"limit": 1000, "used": 2, "available": 998}
    assert (told["quota_utilization"], told["throttled"]) == (0.45, False)
    assert (told["max_utilization"], told["dominant_resource"]) == (0.5, "memory_gb")
    # Above a limit that was lowered: nothing is available, and how much it is over is told.
    body = {"cpu_cores": 40, "reason": "x"}
    assert server.ask("PATCH", f"{GOVERNANCE}/quotas/tenant-acme", body).status == 200
    row = server.ask("GET", f"{GOVERNANCE}/usage/tenant-acme").json["quotas"]["cpu_cores"]
    assert (row["available"], row["overage"]) == (0, 5)
    assert server.ask("GET", f"{GOVERNANCE}/usage/nobody").status == 404


def test_who_was_ever_seen_is_listed(server: CollectorServer) -> None:
    names = [row["tenant"] for row in server.ask("GET", f"{GOVERNANCE}/quotas").json["quotas"]]
    assert {"tenant-acme", "beta"} <= set(names)


def test_allocations_add_up(server: CollectorServer) -> None:
    told = server.ask("GET", f"{GOVERNANCE}/allocations").json
    assert told["capacity"] == {"cpu_cores": 408, "memory_gb": 1024, "gpus": 16}
    rows = {row["tenant"]: row["allocated"] for row in told["tenants"]}
    assert rows == {
        "tenant-acme": {"cpu_cores": 45, "memory_gb": 128},
        "beta": {"cpu_cores": 20},  # its GPU is fenced: the operator's
    }
    history = server.ask("GET", f"{GOVERNANCE}/allocations/history?period=24h").json
    assert history["resolution"] == "1h" and len(history["points"]) == 24
    last = history["points"][-1]
    assert (last["allocated"], last["capacity"], last["efficiency"]) == (65, 408, None)
    # 45 and 20 cores: each has what it wanted.
    assert (last["fairness_index"], told["fairness_index"]) == (1, 1)
    assert sum(row["share"] for row in told["tenants"]) == 1
    assert history["points"][0]["allocated"] == 0
    long = server.ask("GET", f"{GOVERNANCE}/allocations/history?period=90d").json
    assert long["resolution"] == "5h" and len(long["points"]) <= 500


def test_the_daily_checklist(server: CollectorServer) -> None:
    """65 of 408 cores and 128 of 1024 GiB are held; nothing was finished in the last day."""
    told = server.ask("GET", f"{GOVERNANCE}/health").json
    checks = {one["name"]: one for one in told["checks"]}
    assert checks["cluster_utilization"]["value"] == 0.14
    assert checks["cluster_utilization"]["range"] == "0.65 to 0.85"
    assert [one["in_range"] for one in told["checks"]] == [False, None, True, False, True]
    assert checks["idle_resources"]["value"] > 0.8 and not told["in_range"]
    assert (told["period"], told["currency"]) == ("24h", "credits")
    assert checks["tenant_fairness_index"] == {
        "name": "tenant_fairness_index",
        "value": 1,
        "range": "above 0.9",
        "in_range": True,
        "action": "Rebalance allocations",
    }


def test_nodes_and_leases_are_what_the_records_say(server: CollectorServer) -> None:
    nodes = {node["node"]: node for node in server.ask("GET", "/v1/nodes").json["nodes"]}
    assert [nodes[NODE_A]["state"], nodes[NODE_B]["state"]] == ["active", "idle"]
    assert nodes[NODE_A]["held"] == {"cpu_cores": 65, "memory_gb": 128}
    assert (nodes[NODE_B]["fenced"], nodes[NODE_B]["leases"]) == (1, 0)
    assert nodes[NODE_A]["logs"][0]["verdict"] == "OK"
    leases = server.ask("GET", "/v1/leases?limit=1000").json
    states = sorted(one["state"] for one in leases["leases"])
    assert states == ["fenced", "granted", "granted", "granted"] and leases["count"] == 4
    assert all(one["remaining_ms"] > 0 for one in leases["leases"] if one["state"] == "granted")
    mine = server.ask("GET", "/v1/leases?tenant=beta").json["leases"]
    assert {one["tenant"] for one in mine} == {"beta"}
    events = server.ask("GET", "/v1/events?limit=3").json["events"]
    assert [one["kind"] for one in events] == ["Allocated"] * 3


def test_bills_and_costs_come_out_as_computed_by_hand(server: CollectorServer) -> None:
    bill = server.ask("GET", f"/v1/billing/summary?tenant=tenant-acme&month={LAST_MONTH}").json
    # Ten cores for two hours, at 0.002 a core-second.
    assert (bill["total"], bill["line_items"][0]["quantity"]) == (144, 72_000)
    assert bill["audit"][0]["node_id"] == NODE_A
    usage = f"/v1/billing/usage?tenant=tenant-acme&{WHOLE}"
    rows = server.ask("GET", usage).json["rows"]
    assert [row["capacity_seconds"] for row in rows] == [36_000, 36_000]
    answer = server.ask("GET", usage, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["leased-nodes-behind"] == "0"
    assert (answer.headers["leased-provisional"], len(answer.headers["leased-watermark"])) == (
        *("false", 20),
    )
    read = list(csv.DictReader(io.StringIO(answer.body.decode())))
    assert [row["cap_ns"] for row in read] == [row["cap_ns"] for row in rows]
    assert "lease_id" not in rows[0] and "lease_id" not in read[0]
    (lease,) = server.ask("GET", f"{usage}&granularity=lease").json["rows"]
    assert (lease["node"], lease["lease_id"]) == (NODE_A, f"{1:032x}")
    assert (lease["first_record"], lease["last_record"], lease["provisional"]) == (2, 4, False)
    assert (lease["capacity_seconds"], lease["peak"], lease["cost"]) == (72_000, 10, 144)
    answer = server.ask("GET", f"{usage}&granularity=lease&format=csv")
    (read,) = csv.DictReader(io.StringIO(answer.body.decode()))
    assert {**read, "cap_ns": lease["cap_ns"], "provisional": "false"} == read
    costs = server.ask("GET", f"{GOVERNANCE}/costs?period=24h").json
    assert sum(row["share"] for row in costs["by_tenant"]) == pytest.approx(1)
    assert costs["total_cost"] == sum(row["cost"] for row in costs["by_tenant"])
    month = server.ask("GET", f"/v1/billing/chargeback?month={LAST_MONTH}").json
    assert month["total_infrastructure_cost"] == sum(one["cost"] for one in month["allocations"])


def test_a_bill_as_focus_adds_up_to_it(server: CollectorServer) -> None:
    year, month = map(int, LAST_MONTH.split("-"))
    whole = f"start={LAST_MONTH}-01&end={LAST_MONTH}-{calendar.monthrange(year, month)[1]}"
    bill = server.ask("GET", f"/v1/billing/summary?tenant=tenant-acme&month={LAST_MONTH}").json
    for version, named in (("1.2", "PublisherName"), ("1.4", "ServiceProviderName")):
        path = f"/v1/billing/usage?tenant=tenant-acme&{whole}&format=focus-{version}"
        answer = server.ask("GET", path)
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
        assert named in rows[0]
        assert sum(float(row["BilledCost"]) for row in rows) == pytest.approx(bill["total"])
        table = server.ask("GET", path, headers={"Accept": "application/vnd.apache.parquet"})
        assert table.body[:4] == b"PAR1" and parquet.read_table(io.BytesIO(table.body)).num_rows
    assert server.ask("GET", f"{path}x").status == 400
    part = f"/v1/billing/usage?tenant=tenant-acme&{WHOLE}&format=focus-1.2"
    assert server.ask("GET", part.replace("-28", "-27")).status == 422


def check_latency_cost(server: CollectorServer) -> None:
    told = server.ask("GET", f"{GOVERNANCE}/economics/latency-cost").json
    # Two leases of two hours and of one have ended, on two nodes with three places.
    assert (told["model"], told["workers"], told["places_per_worker"]) == ("M/M/c", 2, 3)
    assert told["mean_hold_ms"] == 5_400_000
    assert [row["achievable"] for row in told["marginal_costs"]] == [False] * 3
    target = told["current_p99_ms"] + 1
    path = f"{GOVERNANCE}/economics/latency-cost?targets={target},1"
    rows = server.ask("GET", path).json["marginal_costs"]
    assert rows[0] == {
        "target_p99_ms": target,
        "additional_cost_monthly": 0,
        "required_workers": 0,
        "achievable": True,
    }
    assert rows[1]["required_workers"] is None
    for odd, status in (("targets=0", 400), ("targets=1,", 400), ("period=36d", 422)):
        assert server.ask("GET", f"{GOVERNANCE}/economics/latency-cost?{odd}").status == status


def test_who_asks_for_more_than_they_use_and_what_it_costs_to_be_quicker(tmp_path: Path) -> None:
    """45 cores of which 20 % are used at the 95th percentile, 128 GiB of which 60 % at the peak;
    what nobody looked at is not judged."""
    now_ns = time.time_ns()
    sample(tmp_path / "state", now_ns, now_ns // HOUR_NS * HOUR_NS - 5 * 24 * HOUR_NS)
    begin_s = now_ns // 10**9 // 300 * 300 - 20 * 300
    with CollectorServer(directory=tmp_path) as server:
        await_books(server)
        leases = server.ask("GET", "/v1/leases?tenant=tenant-acme").json["leases"]
        found = {next(iter(one["resources"])): one["lease_id"] for one in leases}
        cores, bytes_ = found["cpu:0"], found["mem:node0:4096"]
        told_of = [
            (cores, "cpu:0", "cpu", 200_000, 250_000, 45_000),
            (bytes_, "mem:node0:4096", "mem", 300_000, 600_000, 128 << 30),
        ]
        use(server.state, begin_s, told_of)
        told = server.ask("GET", f"{GOVERNANCE}/optimize/rightsizing").json
        # 45 x 0.21 / 0.70 = 13.5 cores; 128 x 0.6 / 0.8 = 96 GiB.
        [row] = told["recommendations"]
        assert row["current"] == {"cpu_request": "45", "memory_request": "128Gi"}
        assert row["recommended"] == {"cpu_request": "14", "memory_request": "96Gi"}
        savings = [row["estimated_savings_monthly"] for row in told["recommendations"]]
        assert sum(savings) == pytest.approx(told["total_estimated_savings"]) and min(savings) > 0
        points = server.ask("GET", f"{GOVERNANCE}/allocations/history?period=24h").json["points"]
        assert {point["efficiency"] for point in points} <= {None, 0.2}
        assert any(point["efficiency"] for point in points)
        check_latency_cost(server)


def test_advice_tells_where_a_request_would_go_best(server: CollectorServer) -> None:
    path = f"{GOVERNANCE}/optimize/placement"
    told = server.ask("GET", f"{path}?gpu=2&cpu=4&strategy=binpack").json
    scores = [one["score_pm"] for one in told["nodes"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert (told["strategy"], told["lives_by"]) == ("binpack", ["cpu", "gpu"])
    far = told["nodes"][-1]["node_id"]
    near = server.ask("GET", f"{path}?gpu=2&cpu=4&near={far}").json["nodes"]
    assert {one["node_id"]: one["locality_pm"] for one in near}[far] == 1000
    assert server.ask("GET", f"{path}?gpu=9").json["nodes"] == [], "no node has nine"
    for query, status in (("", 422), ("?gpu=1&project=x", 422), ("?gpu=-1", 400), ("?tpu=1", 400)):
        assert server.ask("GET", f"{path}{query}").status == status, query
    rows = server.ask("GET", f"{GOVERNANCE}/optimize/sensitivity?period=60d").json["rows"]
    levels = {(row["tenant"], row["kind"]): row["level"] for row in rows}
    assert levels["tenant-acme", "net"] == "unused" and "critical" in levels.values()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/billing/summary?tenant=nobody&month=2024-01", 404),
        ("/v1/billing/summary?tenant=tenant-acme&month=1999-01", 404),
        ("/v1/billing/summary?tenant=tenant-acme&month=2024-13", 400),
        ("/v1/billing/summary?month=2024-01", 400),
        ("/v1/billing/usage?tenant=tenant-acme&start=2024-02-01&end=2024-01-01", 422),
        ("/v1/billing/usage?tenant=tenant-acme&start=2024-02-30&end=2024-03-01", 422),
        (f"{GOVERNANCE}/costs?period=99999w", 422),
        (f"{GOVERNANCE}/costs?period=-1d", 400),
        (f"{GOVERNANCE}/costs?top=0", 400),
        (f"{GOVERNANCE}/capacity/forecast?horizon=1s", 400),
    ],
)
def test_what_is_asked_wrongly_is_a_problem(
    server: CollectorServer, path: str, status: int
) -> None:
    answer = server.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")


def test_without_records_there_is_no_empty_bill() -> None:
    with CollectorServer() as server:
        # Nor is anybody unknown: a collector that has just been started reads what it has.
        for path in ("/v1/billing/summary?tenant=acme&month=2024-01", f"{GOVERNANCE}/usage/acme"):
            answer = server.ask("GET", path)
            assert answer.status == 503 and "retry-after" in answer.headers
        assert server.ask("GET", "/v1/nodes").json["nodes"] == []
        documented = server.ask("GET", "/v1/openapi.json").json["paths"]
        assert "503" in documented[f"{GOVERNANCE}/usage/{{tenant}}"]["get"]["responses"]


def test_a_tenants_token_sees_its_own_bill_only(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    (tmp_path / "tokens.toml").write_text(
        f'[[tokens]]\nname = "acme"\nsha256 = "{hash_of("s")}"\n'
        'scopes = ["read", "cost"]\ntenants = ["tenant-acme"]\n'
    )
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        await_books(server)
        token = {"Authorization": "Bearer s"}

        def ask(path: str) -> int:
            return server.ask("GET", path, headers=token).status

        assert ask(f"/v1/billing/summary?tenant=tenant-acme&month={LAST_MONTH}") == 200
        assert ask(f"/v1/billing/summary?tenant=beta&month={LAST_MONTH}") == 404
        assert ask(f"{GOVERNANCE}/usage/tenant-acme") == 200
        assert ask(f"{GOVERNANCE}/usage/beta") == 404
        for path in ("costs", "capacity", "allocations", "optimize/idle"):
            assert ask(f"{GOVERNANCE}/{path}") == 403
        leases = server.ask("GET", "/v1/leases", headers=token).json["leases"]
        assert {one["tenant"] for one in leases} == {"tenant-acme"}


def test_a_tenants_token_is_told_how_many_nodes_are_behind_and_not_which(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns() - 3600 * 10**9)
    (tmp_path / "tokens.toml").write_text(
        "".join(
            f'[[tokens]]\nname = "{name}"\nsha256 = "{hash_of(name)}"\n'
            f'scopes = ["read", "cost"]\n{limit}'
            for name, limit in (("all", ""), ("acme", 'tenants = ["tenant-acme"]\n'))
        )
    )
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        await_books(server)
        usage = f"/v1/billing/usage?tenant=tenant-acme&{WHOLE}"
        for path in (
            *(f"{GOVERNANCE}/usage/tenant-acme", "/v1/leases"),
            *(usage, f"{usage}&granularity=lease", f"{usage.replace(WHOLE, 'period=24h')}"),
            f"/v1/billing/summary?tenant=tenant-acme&month={LAST_MONTH}",
        ):
            told = {}
            for name in ("all", "acme"):
                answer = server.ask("GET", path, headers={"Authorization": f"Bearer {name}"})
                assert answer.status == 200, path
                told[name] = answer.json["reach"]
            assert len(told["all"]["nodes_behind"]) == told["all"]["behind"], path
            assert told["acme"]["nodes_behind"] == [], path
            assert told["acme"]["behind"] == told["all"]["behind"], path
            assert told["acme"]["provisional"] == told["all"]["provisional"], path
        now = server.ask("GET", "/v1/leases", headers={"Authorization": "Bearer all"}).json
        assert now["reach"]["behind"] >= 1 and now["reach"]["nodes_behind"]
        look = stream_look(server, "acme")
        assert look["reach"]["behind"] >= 1 and look["reach"]["nodes_behind"] == []
        assert stream_look(server, "all")["reach"]["nodes_behind"]


def stream_look(server: CollectorServer, secret: str) -> Any:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as one:
        one.request("GET", "/v1/stream", headers={"Authorization": f"Bearer {secret}"})
        with one.getresponse() as told:
            assert told.readline() == b"event: look\n"
            return json.loads(told.readline().partition(b": ")[2])


def test_who_was_heard_while_our_clock_was_ahead_is_not_shown_as_fresh(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    archive = Archive(tmp_path / "state")
    [entry] = [one for one in archive.logs() if one.name == "host-a"]
    ahead_ns = time.time_ns() + HOUR_NS
    archive.manifest.set(entry.log_id, entry.head, contact_ns=ahead_ns)
    archive.close()
    with CollectorServer(directory=tmp_path) as server:
        await_books(server)
        nodes = server.ask("GET", "/v1/nodes").json["nodes"]
        seen = {one["name"]: one["logs"][0] for one in nodes}
        assert (seen["host-a"]["seen_at"], seen["host-a"]["age_seconds"]) == (None, None)
        assert seen["host-b"]["age_seconds"] >= 0 and seen["host-b"]["seen_at"]
        found = server.ask("GET", "/metrics").body.decode()
        ages = [one for one in found.splitlines() if one.startswith("grey_chain_head_age_seconds{")]
        assert len(ages) == 1 and "host-b" in ages[0]
    out = StringIO()
    assert main(["--state", str(tmp_path / "state"), "status"], Console(out, StringIO())) == 0
    [line] = [one for one in out.getvalue().splitlines() if one.startswith("host-a")]
    assert line.endswith("unknown")


# ---- fairness ------------------------------------------------------------------------------------


def test_shares_are_filled_like_water() -> None:
    """The source's formula where nobody wants less, and what is left where somebody does."""
    weights = {"enterprise": 2000, "standard": 1000}
    plenty = {"enterprise": 10**6, "standard": 10**6}
    free = {"min_pm": 0, "max_pm": 1000}
    assert filled(90, weights, plenty, **free) == {"enterprise": 60, "standard": 30}
    little = {"enterprise": 10, "standard": 10**6}
    assert filled(90, weights, little, **free) == {"enterprise": 10, "standard": 80}
    capped = filled(100, weights, plenty, min_pm=50, max_pm=500)
    assert capped == {"enterprise": 50, "standard": 50}
    many = {f"t{number}": 1 for number in range(30)}
    wanted = dict.fromkeys(many, 1000)
    assert sum(filled(1000, many, wanted, min_pm=50, max_pm=500).values()) == 1000


def test_who_has_more_than_its_part_makes_the_index_smaller() -> None:
    held = {"a": 10_000, "b": 40_000}
    assert evenness(held, held, {"a": 10_000, "b": 20_000}) == Decimal("0.9")  # 9 / (2 (1 + 4))
    assert evenness(held, held, held) == 1


def test_who_wants_less_is_no_sign_of_unfairness_and_who_wants_in_vain_is() -> None:
    """min(allocated, demand) / min(demand, entitled), over those who want something."""
    goals = {"a": 50, "b": 50, "idle": 50}
    assert evenness({"a": 50, "b": 5}, {"a": 50, "b": 5, "idle": 0}, goals) == 1
    assert evenness({"a": 50}, {"a": 50, "b": 50}, goals) == Decimal("0.5")
    # (1 + 1/2)^2 / (2 (1 + 1/4)): it has half of what it should, whatever else it would like.
    assert evenness({"a": 50, "b": 25}, {"a": 50, "b": 5_000}, goals) == Decimal("0.9")
    assert evenness({}, {}, {}) == 1


def test_jains_index() -> None:
    assert [str(jain(one)) for one in ([], [5, 5], [1, 0], [1, 0, 0, 0])] == [
        *("1", "1.0000", "0.5000", "0.2500"),
    ]
