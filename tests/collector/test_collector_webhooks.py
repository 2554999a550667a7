# SPDX-License-Identifier: Apache-2.0
"""Webhooks over real HTTPS, to a receiver that believes `standardwebhooks` and `cloudevents`:
signed, in order, at least once, and to nowhere that the operator did not allow.
"""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leased.chain.certificate import Role
from leased.chain.signing import Signer
from leased.collector.accounts.periods import exact_instant
from leased.collector.api.callers import hash_of
from leased.collector.archive.archive import Archive
from leased.collector.telemetry.rollup import Folding, Key, Point
from leased.collector.telemetry.store import Store
from leased.terms.lease import AccountingTag
from tests.doubles.collector_server import REPOSITORY, CollectorServer
from tests.doubles.economics_history import History, subject
from tests.doubles.fleet_archive import HOUR_NS, JANUARY_NS, NODE_A, cores, dram, sample, store
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.webhook_receiver import judged, receiver
from tests.vectors.c2sp_independent import signature_holds

HOOKS = "/v1/webhooks"
QUOTA = "/v1/governance/quotas/acme"
LOCAL = 'private_networks = ["127.0.0.0/8", "::1/128"]\n'


class Fleet:
    """A collector and the certificate that its receivers show."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = FleetPki(directory / "pki")
        self.certificate = self.pki.issue(Role.COLLECTOR, "receiver")

    def collector(self, networks: str = LOCAL, timeout: str = "5s", **how: Any) -> CollectorServer:
        more = f'[webhooks]\nca = "{self.pki.ca}"\ntimeout = "{timeout}"\n{networks}'
        return CollectorServer(directory=self.directory, more=more, **how)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def add(server: CollectorServer, url: str, *events: str, **more: Any) -> tuple[str, str]:
    """A webhook: its id and secret."""
    made = server.ask("POST", HOOKS, {"url": url, "events": list(events or ["*"]), **more})
    assert made.status == 201, made.body
    return made.json["id"], made.json["secret"]


def change(server: CollectorServer, cores: int) -> None:
    body = {"cpu_cores": cores, "reason": "more"}
    assert server.ask("PATCH", QUOTA, body).status == 200


def cores_of(event: dict[str, Any]) -> int:
    return int(event["data"]["left"]["limits"]["cpu_cores"]) // 1000


def last(server: CollectorServer, hook: str) -> dict[str, Any]:
    """The newest delivery, when it has been tried."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = server.ask("GET", f"{HOOKS}/{hook}/deliveries").json["deliveries"]
        if found and found[0]["attempts"]:
            return dict(found[0])
    raise AssertionError("nothing was tried within 30 s")


def test_a_change_is_heard_as_two_libraries_of_others_read_it(fleet: Fleet) -> None:
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        hook, secret = add(server, heard.url, "quota.changed")
        change(server, 7)
        request = heard.next()
        event = judged(request, secret)
        assert request["path"] == "/hooks?of=test"
        assert request["headers"]["content-type"].startswith("application/cloudevents+json")
        assert event["type"] == "io.leased.quota.changed" and cores_of(event) == 7
        assert event["source"] == "urn:leased:fleet:leased" and event["data"]["tenant"] == "acme"
        sealed = server.ask("GET", "/v1/governance/changes?limit=1").json["changes"][0]
        assert (sealed["sequence"], sealed["hash"]) == (
            event["data"]["sequence"],
            event["data"]["hash"],
        )
        told = last(server, hook)
        assert (told["state"], told["status"], told["attempts"]) == ("delivered", 200, 1)
        with pytest.raises(Exception, match="signature"):
            judged({**request, "body": request["body"].replace("acme", "evil")}, secret)


def test_what_fails_is_tried_again_before_what_comes_after_it(fleet: Fleet) -> None:
    with fleet.collector() as server, receiver(fleet.certificate, "500") as heard:
        _, secret = add(server, heard.url)
        for cores in (1, 2, 3):
            change(server, cores)
        events = [judged(heard.next(), secret) for _ in range(4)]
        assert [cores_of(one) for one in events] == [1, 1, 2, 3]
        assert events[0] == events[1]


def test_order_holds_over_many(fleet: Fleet) -> None:
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url)
        for cores in range(1, 31):
            change(server, cores)
        assert [cores_of(judged(heard.next(), secret)) for _ in range(30)] == [*range(1, 31)]


def test_who_is_slow_keeps_nobody_elses_turn(fleet: Fleet) -> None:
    """It answers each, and in time; sixty-four of them would be twenty minutes for the others."""
    slowly, alone = ["slow"] * 64, LOCAL + "concurrency = 1\n"
    certificate = fleet.certificate
    with (
        fleet.collector(alone, "1s") as server,
        receiver(certificate, *slowly) as slow,
        receiver(certificate) as quick,
    ):
        add(server, slow.url, "quota.*")
        for cores in range(1, 25):
            change(server, cores)
        slow.next()
        hook, _ = add(server, quick.url, "quota.*")
        assert server.ask("POST", f"{HOOKS}/{hook}/test").status == 202
        quick.next()
        heard = 1
        while not slow.hears_nothing():
            slow.next()
            heard += 1
        assert heard < 12


def test_hanging_receivers_of_one_tenant_keep_no_other_waiting(fleet: Fleet) -> None:
    certificate = fleet.certificate
    with (
        fleet.collector(LOCAL + "concurrency = 4\n", "20s") as server,
        receiver(certificate, *["hang"] * 8) as hanging,
        receiver(certificate) as quick,
    ):
        hooks = [add(server, hanging.url, "quota.*", tenants=["acme"])[0] for _ in range(8)]
        change(server, 1)
        hanging.next()
        hook, _ = add(server, quick.url, "quota.*", tenants=["beta"])
        assert server.ask("POST", f"{HOOKS}/{hook}/test").status == 202
        quick.next()
        tried = [server.ask("GET", f"{HOOKS}/{one}/deliveries").json for one in hooks]
        assert not any(one["deliveries"][0]["attempts"] for one in tried)


def test_a_kill_between_commit_and_delivery_loses_nothing(fleet: Fleet) -> None:
    """The receiver hangs on the first attempt: the change is committed, and nothing is settled."""
    with receiver(fleet.certificate, "hang", "hang") as heard, fleet.collector() as server:
        _, secret = add(server, heard.url)
        ids = []
        for cores in (1, 2):
            change(server, cores)
            ids.append(judged(heard.next(), secret)["id"])
            server.stop(signal.SIGKILL)
            server.start()
        while len(ids) < 4:
            ids.append(judged(heard.next(), secret)["id"])
        # Each at least once, and the first before the second.
        assert ids[0] == ids[1] == ids[2] != ids[3]


def test_a_redirect_leads_nowhere_and_gone_is_gone(fleet: Fleet) -> None:
    with (
        receiver(fleet.certificate) as other,
        receiver(fleet.certificate, f"302:{other.url}") as heard,
        receiver(fleet.certificate, "410") as gone,
        fleet.collector() as server,
    ):
        hook, _ = add(server, heard.url)
        left, _ = add(server, gone.url)
        change(server, 1)
        assert last(server, hook)["why"] == "answered 302" and other.hears_nothing()
        gone.next()
        last(server, left)
        shown = server.ask("GET", f"{HOOKS}/{left}").json
        assert not shown["enabled"] and "410" in shown["disabled_because"]
        # What it was to hear is kept: it can be switched on again.
        assert shown["pending"] == 1
        assert server.ask("PATCH", f"{HOOKS}/{left}", {"enabled": True}).status == 200
        assert gone.next()["answered"] == "200"


def test_where_nothing_may_go(fleet: Fleet) -> None:
    with fleet.collector(networks="") as server:
        for url in (
            "https://127.0.0.1:9/x",
            "https://[::1]/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://[64:ff9b::a9fe:a9fe]/latest",
            "https://[fec0::1]/x",
            "https://[::ffff:0:a00:1]/x",
            "https://169.254.169.254/latest",
            "https://10.1.2.3/x",
            "http://example.org/x",
            "http://127.0.0.1:9/x",
            "ftp://example.org/x",
            "https://user:word@example.org/x",
            "https://example.org:0/x",
        ):
            answer = server.ask("POST", HOOKS, {"url": url, "events": ["*"]})
            assert answer.status == 422 and url not in answer.body.decode(), url


def test_a_name_that_leads_inside_is_found_when_it_is_resolved(fleet: Fleet) -> None:
    with fleet.collector(networks="") as server, receiver(fleet.certificate) as heard:
        hook, _ = add(server, heard.url)
        change(server, 1)
        told = last(server, hook)
        assert told["state"] == "pending" and "private address" in told["why"]
        assert told["status"] is None and heard.hears_nothing()


def test_a_stranger_with_the_name_is_not_told(fleet: Fleet, tmp_path: Path) -> None:
    stranger = FleetPki(tmp_path / "other").issue(Role.COLLECTOR, "receiver")
    with fleet.collector() as server, receiver(stranger) as heard:
        hook, _ = add(server, heard.url)
        change(server, 1)
        assert "certificate" in last(server, hook)["why"].lower() and heard.hears_nothing()


def test_a_secret_is_told_once_and_turned(fleet: Fleet) -> None:
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        key = {"Idempotency-Key": "k1"}
        body = {"url": heard.url, "events": ["quota.*"]}
        made = server.ask("POST", HOOKS, body, headers=key)
        again = server.ask("POST", HOOKS, body, headers=key)
        assert again.status == 201 and again.headers["idempotency-replayed"] == "true"
        hook, old = made.json["id"], made.json["secret"]
        new = server.ask("POST", f"{HOOKS}/{hook}/rotate", {}).json["secret"]
        assert new != old
        change(server, 1)
        request = heard.next()
        assert judged(request, old) == judged(request, new)
        assert len(request["headers"]["webhook-signature"].split()) == 2
        seen = [
            again.body,
            server.ask("GET", HOOKS).body,
            server.ask("GET", f"{HOOKS}/{hook}").body,
            server.ask("GET", "/v1/governance/changes").body,
            request["body"].encode(),
        ]
        server.stop()
        seen.append("\n".join(server.said).encode())
        assert not any(
            one.removeprefix("whsec_").encode() in told for told in seen for one in (old, new)
        )


def test_what_is_sent_can_be_checked_by_a_public_key(fleet: Fleet, words: list[str]) -> None:
    """While one key is changed for another both sign, and the shared secret still does."""
    for number in (1, 2):
        path = fleet.directory / f"hooks-{number}.pem"
        path.write_bytes(Signer(bytes([number]) * 32).pem())
        path.chmod(0o600)
    keys = f'{LOCAL}signing_keys = ["hooks-2.pem", "hooks-1.pem"]\n'
    with fleet.collector(keys) as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url)
        change(server, 3)
        request = heard.next()
        assert cores_of(judged(request, secret)) == 3
        public = server.ask("GET", HOOKS).json["public_keys"]
        headers = request["headers"]
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{request['body']}"
        told = [one.split(",") for one in headers["webhook-signature"].split()]
        assert [version for version, _ in told] == ["v1", "v1a", "v1a"]
        for key, (_, signature) in zip(public, told[1:], strict=True):
            raw = base64.b64decode(key.removeprefix("whpk_"))
            assert signature_holds(raw, signed.encode(), base64.b64decode(signature))
        listed = subprocess.run(
            [*words, "list", "--json", "--config", str(server.config)],
            capture_output=True,
            check=True,
            env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"},
        )
        assert json.loads(listed.stdout)["public_keys"] == public


def test_what_was_given_up_is_sent_again(fleet: Fleet) -> None:
    with fleet.collector() as server, receiver(fleet.certificate, "200", "500") as heard:
        hook, secret = add(server, heard.url)
        change(server, 1)
        first = judged(heard.next(), secret)
        path = f"{HOOKS}/{hook}/replay"
        assert server.ask("POST", path, {"message": "msg_" + "0" * 32}).status == 404
        # One that arrived, by its id; it fails now.
        assert server.ask("POST", path, {"message": first["id"]}).json == {"replayed": 1}
        assert judged(heard.next(), secret)["id"] == first["id"]
        last(server, hook)
        # As if nine more attempts had failed: given up, and kept.
        with sqlite3.connect(
            server.state / "governance" / "register.sqlite", timeout=30
        ) as register:
            register.execute("UPDATE deliveries SET state = 'dead'")
        register.close()
        assert server.ask("GET", f"{HOOKS}/{hook}").json["dead"] == 1
        assert server.ask("POST", path, {"since": "2999-01-01T00:00:00Z"}).json == {"replayed": 0}
        assert server.ask("POST", path, {}).json == {"replayed": 1}
        assert judged(heard.next(), secret)["id"] == first["id"]


def test_a_tenants_token_hears_of_its_tenant_only(fleet: Fleet) -> None:
    (fleet.directory / "tokens.toml").write_text(
        f'[[tokens]]\nname = "acme"\nsha256 = "{hash_of("s")}"\n'
        'scopes = ["read", "webhook"]\ntenants = ["acme"]\n'
        f'[[tokens]]\nname = "reader"\nsha256 = "{hash_of("r")}"\nscopes = ["read"]\n'
        f'[[tokens]]\nname = "writer"\nsha256 = "{hash_of("w")}"\nscopes = ["webhook"]\n'
    )
    access = 'loopback = "write"\ntokens_file = "tokens.toml"'
    with fleet.collector(access=access) as server, receiver(fleet.certificate) as heard:
        token = {"Authorization": "Bearer s"}

        def ask(method: str, path: str, body: Any = None) -> Any:
            return server.ask(method, path, body, headers=token)

        body = {"url": heard.url, "events": ["*"]}
        assert ask("POST", HOOKS, body).status == 422
        assert ask("POST", HOOKS, {**body, "tenants": ["beta"]}).status == 404
        made = ask("POST", HOOKS, {**body, "tenants": ["acme"]}).json
        hidden, _ = add(server, heard.url)
        for name, reads, writes in (("r", 200, 403), ("w", 403, 202)):
            scoped = {"Authorization": f"Bearer {name}"}
            assert server.ask("GET", f"{HOOKS}/{hidden}", headers=scoped).status == reads
            again = {"since": "2999-01-01T00:00:00Z"}
            told = server.ask("POST", f"{HOOKS}/{hidden}/replay", again, headers=scoped)
            assert told.status == writes
        assert [one["id"] for one in ask("GET", HOOKS).json["webhooks"]] == [made["id"]]
        assert ask("GET", f"{HOOKS}/{hidden}").status == 404
        assert server.ask("DELETE", f"{HOOKS}/{hidden}").status == 204
        other = {"cpu_cores": 1, "reason": "x"}
        assert server.ask("PATCH", "/v1/governance/quotas/beta", other).status == 200
        change(server, 5)
        event = judged(heard.next(), made["secret"])
        assert event["data"]["tenant"] == "acme" and heard.hears_nothing()


def test_what_the_fleet_goes_through_is_heard(fleet: Fleet) -> None:
    """Leases, a verdict and waste, of records that are pulled while it runs."""
    with fleet.collector(LOCAL + 'idle = "2h"') as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url)
        # What is sealed later than the webhook is told.
        later_ns = time.time_ns() + HOUR_NS
        sample(server.state, later_ns + 12 * HOUR_NS, later_ns)
        with sqlite3.connect(server.state / "collector.sqlite", timeout=30) as manifest:
            manifest.execute(
                "UPDATE logs SET verdict = 'FORK', why = 'two heads', since_ns = ? WHERE node = ?",
                (later_ns, NODE_A),
            )
        manifest.close()
        found: dict[str, list[dict[str, Any]]] = {}
        while not {"node.verdict", "waste.found", "lease.fenced"} <= set(found):
            event = judged(heard.next(), secret)
            found.setdefault(event["type"].removeprefix("io.leased."), []).append(event["data"])
        assert found["node.verdict"][0]["verdict"] == "FORK"
        assert found["lease.fenced"][0]["resources"] == {"gpu:GPU-1": 1000}
        assert {one["tenant"] for one in found["lease.allocated"]} == {"tenant-acme", "beta"}
        assert found["waste.found"][0]["class"] == "idle"
        # Each names its record and the one before it: gaps are seen without asking.
        places = [(one["node"], one["sequence"]) for one in found["lease.allocated"]]
        assert len(places) == len(frozenset(places)) == 5


def test_who_bills_by_what_is_told_asks_nobody_else(fleet: Fleet) -> None:
    """A billing system of nothing but webhooks: what each lease came to, by kind, tier and cost
    centre, is what the collector's own usage says; and from when to when, what the meter has."""
    begin_ns = (time.time_ns() // HOUR_NS + 2) * HOUR_NS
    tag = AccountingTag("CC-7", "atlas")
    history = History(wall_offset_ns=begin_ns)
    history.start()
    history.inventory(cores(8), dram(4))
    whose = subject(cores(2), dram(1), tenant="acme", tag=tag)
    history.allocate(1, whose, 3 * HOUR_NS)
    history.boot_ns = HOUR_NS + 5
    history.release(1)
    history.begin_teardown(1)
    held = tuple(one.capacity * history.boot_ns for one in whose.allotments)
    history.boot_ns += 10**9
    history.reclaim(1, held)
    history.boot_ns = 4 * HOUR_NS
    history.touch()
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url, "lease.*")
        archive = Archive(server.state)
        store(archive, "host-a", NODE_A, history, begin_ns)
        archive.close()
        told: dict[str, dict[str, Any]] = {}
        while "Reclaimed" not in told:
            data = judged(heard.next(), secret)["data"]
            told[data["event_type"]] = data
        day = f"start={exact_instant(begin_ns)}&end={exact_instant(begin_ns + 4 * HOUR_NS)}"
        usage = f"/v1/billing/usage?tenant=acme&{day}&granularity=total"
        end = exact_instant(begin_ns + 4 * HOUR_NS)
        deadline = time.monotonic() + 60
        while (answer := server.ask("GET", usage).json).get("reach", {}).get("as_of") != end:
            assert time.monotonic() < deadline, answer
        rows = answer["rows"]
        came_to = {
            (one["kind"], one["tier"], told["Reclaimed"]["accounting_tag"]["cost_center"]): one
            for one in told["Reclaimed"]["allotments"]
        }
        assert {key: one["cap_ns"] for key, one in came_to.items()} == {
            (row["kind"], row["tier"], row["cost_center"]): row["cap_ns"] for row in rows
        }
        assert told["Allocated"]["effective_at"] == exact_instant(begin_ns)
        assert told["Allocated"]["expires_at"] == exact_instant(begin_ns + 3 * HOUR_NS)
        assert told["Released"]["effective_at"] == exact_instant(begin_ns + HOUR_NS + 5)
        assert len({one["event_id"] for one in told.values()}) == len(told)


def test_bills_and_crossed_limits_are_heard(fleet: Fleet) -> None:
    sample(fleet.directory / "state", time.time_ns(), JANUARY_NS)
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url, "bill.*", "quota.threshold")
        limits = {"cpu_cores": 50, "reason": "x"}
        path = "/v1/governance/quotas/tenant-acme"
        assert server.ask("PATCH", path, limits).status == 200
        crossed = judged(heard.next(), secret)["data"]
        assert (crossed["threshold_percent"], crossed["used_percent"]) == (80, 90)
        words = [sys.executable, "-m", "leased.collector.main", "--state", str(server.state)]
        environment = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}
        issue = [*words, "issue", "2024-01", "--tenant", "tenant-acme", "--json"]
        made = subprocess.run(issue, capture_output=True, env=environment, timeout=60)
        assert made.returncode == 0, made.stderr
        bill = judged(heard.next(), secret)
        assert bill["type"] == "io.leased.bill.final"
        assert bill["data"]["sha256"] == json.loads(made.stdout)["bills"][0]["sha256"]


@pytest.fixture
def words(fleet: Fleet) -> Iterator[list[str]]:
    yield [
        *(sys.executable, "-m", "leased.collector.main", "--state", str(fleet.directory / "state")),
        "webhook",
    ]


def test_the_same_by_the_command_line(fleet: Fleet, words: list[str]) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}

    def run(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        config = ["--config", str(fleet.directory / "leased-collector.toml")]
        return subprocess.run(
            [*words, *arguments, *config],
            *(),
            input=typed,
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )

    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        made = run("add", heard.url, "--event", "webhook.*", "--description", "ours")
        assert made.returncode == 0, made.stderr
        secret = made.stdout.strip()
        [row] = json.loads(run("list", "--json").stdout)["webhooks"]
        assert row["description"] == "ours" and secret not in json.dumps(row)
        assert run("test", row["id"]).returncode == 0
        assert judged(heard.next(), secret)["type"] == "io.leased.webhook.test"
        turned = "whsec_" + "QUJD" * 8
        assert run("rotate", row["id"], "--secret-from-stdin", typed=turned).stdout == ""
        assert run("test", row["id"]).returncode == 0
        judged(heard.next(), turned)
        told = run("deliveries", row["id"]).stdout
        assert told.count("webhook.test") == 2 and "delivered" in told
        assert run("change", row["id"], "--off").returncode == 0
        assert "disabled" in run("test", row["id"]).stderr
        assert run("replay", row["id"]).stdout.strip() == "replayed 0"
        assert run("remove", row["id"]).returncode == 0
        assert run("test", row["id"]).returncode == 66
        refused = run("add", "https://10.0.0.1/", "--event", "*")
        assert refused.returncode != 0 and "private" in refused.stderr
        actions = [
            one["action"] for one in server.ask("GET", "/v1/governance/changes").json["changes"]
        ]
        assert actions[0] == "webhook.remove" and actions[-1] == "webhook.add"


def test_a_register_without_webhooks_is_brought_forward(fleet: Fleet) -> None:
    with fleet.collector() as server:
        change(server, 4)
    path = fleet.directory / "state" / "governance" / "register.sqlite"
    register = sqlite3.connect(path)
    for table in ("webhooks", "messages", "deliveries", "cursors"):
        register.execute(f"DROP TABLE {table}")
    register.execute("PRAGMA user_version = 1")
    register.commit()
    register.close()
    with fleet.collector() as server:
        assert server.ask("GET", QUOTA).json["quotas"]["cpu_cores"] == 4
        assert server.ask("GET", HOOKS).json["webhooks"] == []


def test_a_lease_that_does_nothing_is_heard_of_by_its_tenant(fleet: Fleet) -> None:
    """Of telemetry as nodes send it, while the collector runs."""
    with fleet.collector() as server, receiver(fleet.certificate) as heard:
        _, secret = add(server, heard.url, "waste.*", tenants=["acme"])
        now_s = time.time_ns() // 10**9
        told = []
        for at in range(now_s - 900, now_s - 600, 10):
            for name, value in (("utilization", 0), ("capacity", 1000)):
                what = (("leased.resource.kind", "gpu"),)
                of = Key(NODE_A, "", "ab" * 16, "acme", f"leased.lease.{name}", what)
                told.append(Point(of, at * 10**9, value))
        folding = Folding()
        folding.fold(told)
        samples = Store(server.state)
        samples.append(folding.take(now_s * 10**9))
        samples.close()
        event = judged(heard.next(), secret)
        assert (
            event["type"] == "io.leased.waste.found" and event["subject"] == "leases/" + "ab" * 16
        )
        found = event["data"]
        assert (found["class"], found["tenant"], found["node"]) == ("idle", "acme", NODE_A)
        assert (found["utilization"], found["unused_share"]) == (0, 1)
        assert found["coverage"] > 0.9 and heard.hears_nothing()
