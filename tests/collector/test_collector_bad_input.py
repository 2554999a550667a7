# SPDX-License-Identifier: Apache-2.0
"""What is asked or sent wrongly, over live HTTP: unknown, malformed, negative, huge and foreign
values, each answered with a typed problem (RFC 9457) that says what would be right.

Rule: a problem names the parameter and what to do; nothing that was refused has changed anything.
`says` is a piece of what whoever made the mistake is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.doubles.collector_server import CollectorServer
from tests.doubles.fleet_archive import sample

G, B = "/v1/governance", "/v1/billing"
OF_A_TENANT = (
    f"{G}/quotas/{{}}",
    f"{G}/usage/{{}}",
    f"{G}/shares/{{}}",
    f"{B}/summary?tenant={{}}&month=2024-01",
    f"{B}/usage?tenant={{}}&start=2024-01-01&end=2024-01-31",
)
OF_A_PERIOD = (
    *(f"{G}/costs", f"{G}/allocations/history", f"{G}/economics/latency-cost"),
    *(f"{G}/optimize/rightsizing", f"{G}/optimize/reservations", f"{G}/optimize/sensitivity"),
    *(f"{G}/optimize/spot", f"{G}/optimize/scaling", f"{G}/costs/nodes"),
)
USAGE = f"{B}/usage?tenant=tenant-acme&start=2024-01-01&end=2024-01-02"
HUGE = (2**63, 2**200, 1e300, 10**400)
WINDOW = {"tenant": "acme", "schedule": "0 8 * * *", "duration": "1h", "quotas": {"gpus": 1}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("bad")
    sample(directory / "state", time.time_ns())
    with CollectorServer(directory=directory) as running:
        running.wait_for("usage is up to date")
        yield running


def refused(
    server: CollectorServer,
    method: str,
    path: str,
    body: Any = None,
    *,
    status: int,
    says: str,
    parameter: str | None = None,
) -> None:
    """It is a problem, it says so, and nothing has changed."""
    before = server.ask("GET", f"{G}/changes").json
    answer = server.ask(method, path, body)
    assert answer.status == status, (answer, path, body)
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json
    assert told["type"].startswith("urn:leased:problem:") and told["status"] == status
    assert told["title"] and told["detail"].rstrip().endswith((".", '"', "'")) or says
    assert says in told["detail"], told
    if parameter is not None:
        assert told["parameter"] == parameter, told
    after = server.ask("GET", f"{G}/changes").json
    assert (after["count"], after["head"]) == (before["count"], before["head"])


@pytest.mark.parametrize("path", OF_A_TENANT)
def test_a_tenant_that_nobody_has_heard_of(server: CollectorServer, path: str) -> None:
    refused(server, "GET", path.format("nobody"), status=404, says="nobody", parameter="tenant")


@pytest.mark.parametrize("path", OF_A_TENANT)
@pytest.mark.parametrize(
    "tenant", ["ténant", "租户", "\u202etnanet", "🦊", "a b", "acme\n", "\0", "x" * 65]
)
def test_a_tenant_that_no_node_could_name(server: CollectorServer, path: str, tenant: str) -> None:
    status = 400 if "?" in path else 404
    at = path.format(quote(tenant))
    refused(server, "GET", at, status=status, says="1 to 64 of A-Z a-z", parameter="tenant")


@pytest.mark.parametrize("tenant", ["ténant", "租户", "a/b", "acme\n", "", "x" * 65])
def test_nobody_gives_such_a_tenant_a_quota(server: CollectorServer, tenant: str) -> None:
    body = {**WINDOW, "tenant": tenant}
    says = "1 to 64 of A-Z a-z"
    refused(server, "POST", f"{G}/quotas/scheduled", body, status=400, says=says)
    if tenant and "/" not in tenant:
        path = f"{G}/quotas/{quote(tenant)}"
        refused(server, "PATCH", path, {"gpus": 1, "reason": "x"}, status=404, says=says)


def test_a_tenant_called_scheduled_is_a_path(server: CollectorServer) -> None:
    """The source has schedules where the quota of such a tenant would be."""
    path, body = f"{G}/quotas/scheduled", {"gpus": 1, "reason": "x"}
    refused(server, "PATCH", path, body, status=405, says="POST")
    window = {**WINDOW, "tenant": "scheduled"}
    refused(server, "POST", path, window, status=422, says="the path of schedules")
    for one in OF_A_TENANT[1:]:
        refused(server, "GET", one.format("scheduled"), status=404, says="scheduled")
    assert server.ask("GET", path).json["scheduled"] == []


@pytest.mark.parametrize("report", [f"{B}/summary?tenant=tenant-acme&", f"{B}/chargeback?"])
@pytest.mark.parametrize(
    ("month", "status", "says"),
    [
        ("1999-01", 404, "no node has a record"),
        ("2199-12", 404, "no node has a record"),
        ("2999-12", 422, "from 1970 to 2199"),
        *((one, 400, '"2026-01"') for one in ("2024-00", "2024-13", "24-01", "now", "-1", "")),
        *((one, 400, '"2026-01"') for one in ("2024-1", "2024-01-01", "\uff12024-01", "2024-01 ")),
    ],
)
def test_months(server: CollectorServer, report: str, month: str, status: int, says: str) -> None:
    refused(server, "GET", f"{report}month={quote(month)}", status=status, says=says)


@pytest.mark.parametrize("report", OF_A_PERIOD)
@pytest.mark.parametrize("period", ["", "0d", "-1d", "30", "d", "1y", "1.5d", "1e3d", "30d ", "∞"])
def test_periods(server: CollectorServer, report: str, period: str) -> None:
    path = f"{report}?period={quote(period)}"
    refused(server, "GET", path, status=400, says='"24h", "30d"', parameter="period")


@pytest.mark.parametrize("report", OF_A_PERIOD)
def test_a_period_longer_than_anything_is_kept(server: CollectorServer, report: str) -> None:
    says = "of at most 800d"
    refused(server, "GET", f"{report}?period=99999w", status=422, says=says, parameter="period")


@pytest.mark.parametrize("report", [f"{B}/usage?tenant=tenant-acme&", f"{G}/costs?"])
@pytest.mark.parametrize(
    ("start", "end", "status", "says"),
    [
        ("2024-02-01", "2024-01-01", 422, "ends before it begins"),
        ("2024-02-30", "2024-03-01", 422, "a date such as"),
        ("0000-01-01", "9999-12-31", 422, "a date such as"),
        ("1900-01-01", "2024-01-01", 422, "before 1970"),
        ("9999-12-01", "9999-12-31", 422, "after 2199"),
        ("2024-01-01T00:30:00Z", "2024-01-02", 422, "give a full hour"),
        ("x", "y", 400, "a date such as"),
    ],
)
def test_days(
    server: CollectorServer, report: str, start: str, end: str, status: int, says: str
) -> None:
    refused(server, "GET", f"{report}start={start}&end={end}", status=status, says=says)


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (f"{B}/usage?tenant=tenant-acme&", "either that, or start and end"),
        (f"{B}/usage?tenant=tenant-acme&format=focus-1.2&", "of whole months"),
        (f"{G}/costs?", "either that, or start and end"),
        (f"{G}/costs/nodes?", "either that, or start and end"),
    ],
)
def test_a_period_beside_days_is_not_passed_over(
    server: CollectorServer, report: str, says: str
) -> None:
    path = f"{report}start=2024-01-01&end=2024-01-31&period=30d"
    refused(server, "GET", path, status=422, says=says, parameter="period")


@pytest.mark.parametrize(
    ("path", "says", "parameter"),
    [
        (f"{B}/summary?tenant=tenant-acme", "needed", "month"),
        (f"{B}/summary?month=2024-01", "needed", "tenant"),
        (f"{G}/costs?basis=x", "one of rate_card, infrastructure", "basis"),
        (f"{G}/costs?group_by=x", "one of cost_center, project, request_class", "group_by"),
        (f"{G}/allocations/history?kind=fpga", "one of cpu, gpu, mem, block, net", "kind"),
        (f"{USAGE}&format=xml", "one of json, csv, focus-1.2, focus-1.4", "format"),
        (f"{USAGE}&granularity=week", "one of hour, day, lease, total", "granularity"),
        (f"{USAGE}&format=json%0A", "one of json, csv, focus-1.2, focus-1.4", "format"),
    ],
)
def test_what_is_missing_and_what_there_is_to_choose_from(
    server: CollectorServer, path: str, says: str, parameter: str
) -> None:
    refused(server, "GET", path, status=400, says=says, parameter=parameter)


def test_a_body_that_is_not_there(server: CollectorServer) -> None:
    refused(server, "PATCH", f"{G}/quotas/acme", status=400, says="Send a JSON object")


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"gpus": 4, "gpus": 400, "reason": "x"}', "gpus"),
        ('{"gpus": 4, "reason": "x", "policy": {"mode": "hard", "mode": "soft"}}', "policy.mode"),
    ],
)
def test_what_is_said_twice_is_not_the_last_of_it(
    server: CollectorServer, body: str, key: str
) -> None:
    """Whoever approved the first reading would have approved another change."""
    before = server.ask("GET", f"{G}/changes").json["head"]
    answer = server.ask("PATCH", f"{G}/quotas/acme", raw=body.encode())
    assert (answer.status, answer.json["detail"]) == (400, "Given twice.")
    assert answer.json["parameter"] == key
    assert server.ask("GET", f"{G}/changes").json["head"] == before


@pytest.mark.parametrize("horizon", ["0d", "-1d", "9999d", "90", "tomorrow"])
def test_horizons(server: CollectorServer, horizon: str) -> None:
    path = f"{G}/capacity/forecast?horizon={horizon}"
    refused(server, "GET", path, status=400, says='"90d"', parameter="horizon")


@pytest.mark.parametrize("key", ["cpu_cores", "memory_gb", "gpus", "state_size_gb", "max_leases"])
@pytest.mark.parametrize(
    "value", [-1, -0.001, *HUGE, "1", "NaN", True, [1], {"a": 1}], ids=lambda one: str(one)[:12]
)
def test_numbers(server: CollectorServer, key: str, value: Any) -> None:
    body = {key: value, "reason": "x"}
    refused(server, "PATCH", f"{G}/quotas/acme", body, status=400, says="from 0 to", parameter=key)


@pytest.mark.parametrize(
    ("key", "value", "status", "says"),
    [
        ("cpu_cores", 1e-9, 422, "three decimals"),
        ("grace_period", "-1h", 400, "with its unit"),
        ("grace_period", "1", 400, "with its unit"),
        ("grace_period", "9" * 30 + "d", 400, "with its unit"),
        ("grace_period", "999999999d", 422, "At most a year"),
        ("expires_at", "tomorrow", 400, "with its offset from UTC"),
        ("expires_at", "0000-01-01T00:00:00Z", 422, "no such instant"),
        ("expires_at", "9999-12-31T00:00:00Z", 422, "after the year 2262"),
        ("submit_rate", "-1/s", 400, '"100/s"'),
        ("submit_rate", "1e9/s", 400, '"100/s"'),
        ("submit_rate", "0/s", 422, "0"),
        ("max_task_duration", "-5s", 400, "with its unit"),
        ("max_task_duration", "999999999d", 422, "292 years"),
        ("reason", "", 400, "length >= 1"),
        ("reason", "x" * 501, 400, "length <= 500"),
        ("reason", "a\u0000b", 400, "without control characters"),
        ("reason", "a\u001b[2Jb", 400, "without control characters"),
        ("reason", "a\u009b2Jb", 400, "without control characters"),
        ("reason", "a\u2028b", 400, "without control characters"),
        ("polcy", {}, 400, "there are cpu_cores"),
    ],
)
def test_the_rest_of_a_quota(
    server: CollectorServer, key: str, value: Any, status: int, says: str
) -> None:
    body = {"cpu_cores": 1, "reason": "x", key: value}
    refused(server, "PATCH", f"{G}/quotas/acme", body, status=status, says=says)


@pytest.mark.parametrize(
    ("key", "value", "status", "says"),
    [
        ("schedule", "* * *", 400, "length >= 9"),
        ("schedule", "99 99 * * *", 422, '"0 8 * * 1-5"'),
        ("schedule", "0 8 30 2 *", 422, '"0 8 * * 1-5"'),
        ("schedule", "* * * * * *", 422, '"0 8 * * 1-5"'),
        ("timezone", "Mars/Olympus", 422, '"Europe/Berlin"'),
        ("timezone", "localtime", 422, '"Europe/Berlin"'),
        ("timezone", "../../etc/passwd", 422, '"Europe/Berlin"'),
        ("duration", "-1h", 400, "with its unit"),
        ("duration", "10", 400, "with its unit"),
        ("duration", "0s", 422, "above zero"),
        ("duration", "999999999d", 422, "At most a year"),
        ("quotas", {}, 422, "at least one limit"),
        ("quotas", {"gpus": None}, 422, "cannot take a limit away"),
    ],
)
def test_schedules(server: CollectorServer, key: str, value: Any, status: int, says: str) -> None:
    body = {**WINDOW, key: value}
    refused(server, "POST", f"{G}/quotas/scheduled", body, status=status, says=says)


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", f"limit={2**70}", "limit=x", "top=0"])
def test_pages(server: CollectorServer, query: str) -> None:
    says = "limit, cursor" if query == "top=0" else "`int`"
    refused(server, "GET", f"{G}/quotas?{query}", status=400, says=says)
