# SPDX-License-Identifier: Apache-2.0
"""HTTP as such, on a real server: who may, how often, how large, what is wrong, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from leased.collector.api.callers import hash_of
from tests.doubles.collector_server import CollectorServer

QUOTAS = "/v1/governance/quotas"
TOKENS = f"""
[[tokens]]
name = "operator"
sha256 = "{hash_of("operator-secret")}"
scopes = ["read", "cost", "quota"]
[[tokens]]
name = "acme"
sha256 = "{hash_of("acme-secret")}"
scopes = ["read", "quota"]
tenants = ["acme"]
[[tokens]]
name = "old"
sha256 = "{hash_of("old-secret")}"
scopes = ["read"]
expires_at = "2020-01-01T00:00:00Z"
[[tokens]]
name = "node-1"
sha256 = "{hash_of("node-secret")}"
scopes = ["node"]
node = "{"1" * 32}"
"""

OTHER_NODE = f"""
[[tokens]]
name = "node-2"
sha256 = "{hash_of("other-secret")}"
scopes = ["node"]
node = "{"2" * 32}"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectorServer]:
    directory = tmp_path_factory.mktemp("collector")
    (directory / "tokens.toml").write_text(TOKENS)
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=directory) as running:
        yield running


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_without_a_token_this_host_may_read_and_nothing_else(server: CollectorServer) -> None:
    assert server.ask("GET", QUOTAS).status == 200
    refused = server.ask("PATCH", f"{QUOTAS}/acme", {"gpus": 1, "reason": "x"})
    assert refused.status == 403 and "bearer token" in refused.json["detail"]


def test_a_page_that_had_its_name_rebound_reads_nothing(server: CollectorServer) -> None:
    answer = server.ask("GET", QUOTAS, headers={"Host": "evil.example:8080"})
    assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer")


def test_a_page_of_another_origin_changes_nothing() -> None:
    with CollectorServer() as server:
        body = {"gpus": 1, "reason": "x"}
        for headers in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            assert server.ask("PATCH", f"{QUOTAS}/acme", body, headers).status == 403
        own = {"Origin": f"http://localhost:{server.port}", "Host": f"localhost:{server.port}"}
        assert server.ask("PATCH", f"{QUOTAS}/acme", body, own).status == 200


def test_tokens_say_who_may_what(server: CollectorServer) -> None:
    body = {"gpus": 1, "reason": "x"}
    for tenant in ("acme", "beta"):
        answer = server.ask("PATCH", f"{QUOTAS}/{tenant}", body, bearer("operator-secret"))
        assert answer.status == 200
    change = server.ask("GET", "/v1/governance/changes").json["changes"][0]
    assert change["actor"] == "token:operator"
    mine = server.ask("GET", QUOTAS, headers=bearer("acme-secret")).json["quotas"]
    assert [row["tenant"] for row in mine] == ["acme"]
    # Another's tenant and one that there is not are the same answer.
    for tenant in ("beta", "nobody"):
        answer = server.ask("GET", f"{QUOTAS}/{tenant}", headers=bearer("acme-secret"))
        assert answer.status == 404 and tenant in answer.json["detail"]
        answer = server.ask("PATCH", f"{QUOTAS}/{tenant}", body, bearer("acme-secret"))
        assert answer.status == 404
    assert server.ask("GET", "/v1/governance/policy", headers=bearer("acme-secret")).status == 403
    for wrong in (bearer("guess"), bearer("old-secret"), {"Authorization": "Basic YTpi"}):
        answer = server.ask("GET", QUOTAS, headers=wrong)
        assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer")


def test_a_node_has_its_own_policy_and_no_other(server: CollectorServer) -> None:
    own = server.ask("GET", f"/v1/nodes/{'1' * 32}/policy", headers=bearer("node-secret"))
    assert own.status == 200 and "io.leased/policy/v1" in own.json["note"]
    other = server.ask("GET", f"/v1/nodes/{'2' * 32}/policy", headers=bearer("node-secret"))
    assert other.status == 404
    assert server.ask("GET", QUOTAS, headers=bearer("node-secret")).status == 403
    assert server.ask("GET", f"/v1/nodes/{'1' * 32}/policy").status == 403


def test_a_long_poll_is_woken_by_the_next_policy(server: CollectorServer) -> None:
    path = f"/v1/nodes/{'1' * 32}/policy?wait=60"
    first = server.ask("GET", path, headers=bearer("node-secret"))
    headers = {**bearer("node-secret"), "If-None-Match": first.headers["etag"]}
    found: list[tuple[int, float]] = []

    def wait() -> None:
        answer = server.ask("GET", path, headers=headers)
        found.append((answer.status, time.monotonic()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not server.ask("GET", "/v1/governance/policy").json["nodes"]:
        pass
    changed = time.monotonic()
    body = {"gpus": 77, "reason": "x"}
    assert server.ask("PATCH", f"{QUOTAS}/acme", body, bearer("operator-secret")).status == 200
    waiting.join(30)
    status, at = found[0]
    assert status == 200 and at - changed < 2
    seen = server.ask("GET", "/v1/governance/policy").json["nodes"]
    assert [(one["node"], one["current"]) for one in seen] == [("1" * 32, False)]


def test_tokens_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(TOKENS)
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        assert server.ask("GET", QUOTAS, headers=bearer("operator-secret")).status == 200
        (tmp_path / "tokens.toml").write_text("[[tokens]]\nname = 1\n")
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("refused, the old ones stay in force")
        assert server.ask("GET", QUOTAS, headers=bearer("operator-secret")).status == 200
        (tmp_path / "tokens.toml").write_text("")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("were read again")
        assert server.ask("GET", QUOTAS, headers=bearer("operator-secret")).status == 401


def test_a_poll_ends_with_the_token_that_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(TOKENS + OTHER_NODE)
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        opened = contextlib.ExitStack()
        polls = {}
        for node, secret in (("1", "node-secret"), ("2", "other-secret")):
            path = f"/v1/nodes/{node * 32}/policy?wait=300"
            tag = server.ask("GET", path, headers=bearer(secret)).headers["etag"]
            polls[node] = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            opened.callback(polls[node].close)
            polls[node].request("GET", path, headers={**bearer(secret), "If-None-Match": tag})
        while len(server.ask("GET", "/v1/governance/policy").json["nodes"]) < 2:
            pass
        (tmp_path / "tokens.toml").write_text(TOKENS)
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        # At once, long before it would be over, and before anything is changed.
        ended = polls["2"].getresponse()
        assert ended.status == 401 and b"Ask again" in ended.read()
        body = {"gpus": 77, "reason": "x"}
        assert server.ask("PATCH", f"{QUOTAS}/acme", body, bearer("operator-secret")).status == 200
        assert polls["1"].getresponse().status == 200
        opened.close()


def test_a_stream_ends_with_the_token_that_it_began_with(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(TOKENS)
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        opened = contextlib.ExitStack()
        streams = {}
        for secret in ("acme-secret", "operator-secret"):
            one = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            opened.callback(one.close)
            one.request("GET", "/v1/stream", headers=bearer(secret))
            streams[secret] = opened.enter_context(one.getresponse())
            assert streams[secret].readline() == b"event: look\n"
            while streams[secret].readline() != b"\n":
                pass
        fewer = TOKENS.replace(hash_of("acme-secret"), hash_of("another"))
        (tmp_path / "tokens.toml").write_text(fewer)
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("were read again")
        assert streams["acme-secret"].read() == b""
        assert streams["operator-secret"].readline() == b"event: look\n"
        opened.close()


@pytest.mark.parametrize(
    ("method", "path", "headers", "raw", "status"),
    [
        ("GET", "/v1/nothing", {}, None, 404),
        ("PUT", QUOTAS, {}, None, 405),
        ("GET", QUOTAS, {"Accept": "text/html"}, None, 406),
        ("GET", QUOTAS, {"Accept": "application/*;q=0.5, text/html"}, None, 200),
        ("GET", f"{QUOTAS}?limit=0", {}, None, 400),
        ("GET", f"{QUOTAS}?limit=1&limit=2", {}, None, 400),
        ("GET", f"{QUOTAS}?limit", {}, None, 400),
        ("GET", "/v1/governance/optimize/waste?waste=null", {}, None, 400),
        ("GET", f"{QUOTAS}?limt=5", {}, None, 400),
        ("GET", f"{QUOTAS}/%C3%A9", {}, None, 404),
        ("GET", f"{QUOTAS}/acme/", {}, None, 404),
        ("PATCH", f"{QUOTAS}/acme", {}, b"{", 400),
        ("PATCH", f"{QUOTAS}/acme", {}, b"\xff\xfe", 400),
        ("PATCH", f"{QUOTAS}/acme", {}, b"[" * 60_000, 400),
        ("PATCH", f"{QUOTAS}/acme", {}, b" " * 70_000, 413),
        ("PATCH", f"{QUOTAS}/acme", {"Content-Type": "text/xml"}, b"{}", 415),
        ("PATCH", f"{QUOTAS}/acme", {"Content-Encoding": "gzip"}, b"{}", 415),
        ("PATCH", f"{QUOTAS}/acme", {"Idempotency-Key": "a b"}, b'{"gpus":1,"reason":"x"}', 400),
    ],
)
def test_whatever_is_wrong_is_a_problem(
    server: CollectorServer,
    method: str,
    path: str,
    headers: dict[str, str],
    raw: bytes | None,
    status: int,
) -> None:
    answer = server.ask(method, path, headers={**bearer("operator-secret"), **headers}, raw=raw)
    assert answer.status == status, answer
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["status"] == status and answer.json["type"].startswith("urn:leased:")
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def test_head_and_options(server: CollectorServer) -> None:
    head = server.ask("HEAD", QUOTAS)
    assert head.status == 200 and head.body == b"" and int(head.headers["content-length"]) > 0
    # What a stream begins with, on a connection that is then free for the next request.
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for method, path in (("HEAD", "/v1/stream"), ("GET", QUOTAS)):
        kept.request(method, path)
        with kept.getresponse() as answer:
            assert answer.status == 200 and (answer.read() == b"") is (method == "HEAD")
            if method == "HEAD":
                assert answer.headers["content-type"] == "text/event-stream"
    kept.close()
    options = server.ask("OPTIONS", f"{QUOTAS}/scheduled")
    assert options.status == 204 and options.headers["allow"] == "GET, HEAD, OPTIONS, POST"


def test_the_interface_describes_itself(server: CollectorServer) -> None:
    document = server.ask("GET", "/v1/openapi.json").json
    validate(document)
    assert document["openapi"].startswith("3.1")
    form = document["components"]["schemas"]["QuotaPatch"]
    assert form["additionalProperties"] is False and "reason" in form["required"]


def test_what_is_wrong_is_told_in_words(server: CollectorServer) -> None:
    asked = 0
    for path, methods in server.ask("GET", "/v1/openapi.json").json["paths"].items():
        for one in methods.get("get", {}).get("parameters", []):
            if "pattern" in json.dumps(one["schema"]) and one["in"] == "query" and "{" not in path:
                wrong = server.ask(
                    "GET", f"{path}?{one['name']}=%21", headers=bearer("operator-secret")
                )
                assert wrong.status == 400 and "regex" not in wrong.json["detail"], wrong
                asked += 1
    assert asked > 20


def test_who_asks_too_often_is_told_when(tmp_path: Path) -> None:
    slow = "requests_per_s_max = 2\nrequests_burst = 3"
    with CollectorServer(directory=tmp_path) as server:
        server.stop()
        text = (
            server.config.read_text()
            .replace("100000", "2")
            .replace("requests_burst = 2", "requests_burst = 3")
        )
        assert slow.splitlines()[1] in text
        server.config.write_text(text)
        server.start()
        statuses = [server.ask("GET", QUOTAS) for _ in range(5)]
        assert [one.status for one in statuses[:3]] == [200] * 3
        limited = [one for one in statuses if one.status == 429]
        assert limited and all(int(one.headers["retry-after"]) >= 1 for one in limited)
        # Somebody else is not held back by it.
        assert server.ask("GET", "/v1/openapi.json", headers=bearer("x")).status in (200, 429)


def test_a_stop_ends_waits_and_finishes_what_is_being_answered(tmp_path: Path) -> None:
    (tmp_path / "tokens.toml").write_text(TOKENS)
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        path = f"/v1/nodes/{'1' * 32}/policy?wait=300"
        tag = server.ask("GET", path, headers=bearer("node-secret")).headers["etag"]
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        idle.request("GET", QUOTAS)
        assert idle.getresponse().read()
        waiting = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        waiting.request("GET", path, headers={**bearer("node-secret"), "If-None-Match": tag})
        while not server.ask("GET", "/v1/governance/policy").json["nodes"]:
            pass
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 4
        answer = waiting.getresponse()
        assert answer.status == 503 and json.loads(answer.read())["status"] == 503
        idle.close()
        waiting.close()


def said_to(server: CollectorServer, target: str, *, host: str = "localhost") -> tuple[int, bytes]:
    """The answer to a request line by hand."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as one:
        ends = f"Host: {host}\r\nConnection: close\r\n\r\n"
        one.sendall(f"GET {target} HTTP/1.1\r\n{ends}".encode())
        with one.makefile("rb") as file:
            said = file.read()
    return int(said.split(b" ", 2)[1]), said.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (f"http://localhost{QUOTAS}?limit=1", "localhost", 200),
        (f"HTTP://LOCALHOST:8080{QUOTAS}", "localhost", 200),
        ("http://localhost", "localhost", 200),
        ("http://localhost?x=1", "localhost", 400),
        (f"http://localhost{QUOTAS}?limt=1", "localhost", 400),
        ("http://localhost/v1/nothing", "localhost", 404),
        ("http://localhost/v1%2Fgovernance/quotas", "localhost", 200),
        # The host is the URL's: a page whose name was rebound to this host asks by its own.
        (f"http://localhost{QUOTAS}", "evil.example", 200),
        (f"http://evil.example{QUOTAS}", "localhost", 401),
        (f"http://localhost.evil.example{QUOTAS}", "localhost", 401),
        # What is no URL of this server.
        (f"https://localhost{QUOTAS}", "localhost", 404),
        (f"http://me@localhost{QUOTAS}", "localhost", 404),
        (f"http://evil.example@localhost{QUOTAS}", "localhost", 404),
        (f"http://{QUOTAS}", "localhost", 404),
        (f"ftp://localhost{QUOTAS}", "localhost", 404),
        (f"//localhost{QUOTAS}", "localhost", 404),
    ],
)
def test_a_target_may_be_a_whole_url(
    server: CollectorServer, target: str, host: str, status: int
) -> None:
    got, body = said_to(server, target, host=host)
    assert got == status, body
    assert status < 400 or json.loads(body)["status"] == status


def test_connections_have_a_bound(tmp_path: Path) -> None:
    with CollectorServer(http="connections_max = 4", directory=tmp_path) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(4)]
        for one in held:
            one.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert one.recv(1)
        # All are from here: whoever comes is let in, and the oldest goes.
        assert server.ask("GET", QUOTAS).status == 200
        while held[0].recv(1 << 16):
            pass
        for one in held:
            one.close()
        # A client that left does not count, however many did, and long before it would be idle.
        for _ in range(20):
            _ask_until_answered(server, time.monotonic() + 30)


CRUMBS = b"1\r\nx\r\n" * 10_000
BODY_TO_COME = (
    b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def _crumble(port: int, end: threading.Event) -> None:
    """Send a body in pieces of a byte, again and again."""
    while not end.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 30) as one:
            one.sendall(BODY_TO_COME)
            while not end.is_set():
                one.sendall(CRUMBS)


@pytest.mark.quiet
def test_bodies_in_crumbs_keep_nobody_waiting(tmp_path: Path) -> None:
    """Of each 64 KiB were taken apart before anybody else had a turn: with twelve that send so,
    who may be anybody, an answer took half a second in place of 5 ms."""
    end = threading.Event()
    with CollectorServer(directory=tmp_path) as server:
        alone_s = _median_answer_s(server)
        crowd = [threading.Thread(target=_crumble, args=(server.port, end)) for _ in range(12)]
        for one in crowd:
            one.start()
        try:
            beside_s = _median_answer_s(server)
        finally:
            end.set()
            for one in crowd:
                one.join()
    assert beside_s < 80 * alone_s, (beside_s, alone_s)


def _median_answer_s(server: CollectorServer) -> float:
    took = []
    for _ in range(11):
        began = time.monotonic()
        assert server.ask("GET", QUOTAS).status == 200
        took.append(time.monotonic() - began)
    return sorted(took)[5]


def _ask_until_answered(server: CollectorServer, deadline: float) -> None:
    """There is room again once the server has seen that others left, which is at once."""
    while True:
        try:
            assert server.ask("GET", QUOTAS).status == 200
            return
        except (http.client.HTTPException, OSError):
            assert time.monotonic() < deadline, "those that left still count"


def test_a_client_that_takes_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Its socket is full, and what is sent to it is not cut within a frame; until the end comes."""
    with CollectorServer(http='stop = "1s"', directory=tmp_path) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while True:  # as often as it takes it in: nothing of the answers is read
                deaf.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert server.stop() == 0


def test_two_collectors_do_not_share_a_register(tmp_path: Path) -> None:
    with CollectorServer(directory=tmp_path) as server:
        second = CollectorServer(directory=tmp_path)
        with pytest.raises(AssertionError, match=r"78.*another collector"):
            second.start()
        assert server.ask("GET", QUOTAS).status == 200
