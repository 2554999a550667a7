# SPDX-License-Identifier: Apache-2.0
"""The real agent pulled by clients of all kinds over mutual TLS: what a collector gets, and what
everybody else does not."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leased.chain.certificate import Role
from leased.chain.head import GENESIS
from leased.chain.note import (
    COSIGNATURE_V1,
    NoteKey,
    cosignature_message,
    open_note,
    parse_checkpoint,
    parse_key,
    parse_note,
    write_note,
)
from leased.chain.page import Trailer, split_page
from leased.chain.proof import Proof, check_proof
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.chain.verifier import Verifier
from leased.hardware.identity import node_id, read_machine_id
from leased.terms.errors import ChainError
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host import not_proven
from tests.doubles.host_agent import HostAgent
from tests.doubles.story import judge

WEST, EAST = Signer(b"w" * 32), Signer(b"e" * 32)
WEST_KEY = NoteKey("west.collector.example", WEST.public_key, COSIGNATURE_V1)
EAST_KEY = NoteKey("east.collector.example", EAST.public_key, COSIGNATURE_V1)
NODE = node_id(read_machine_id()).hex()
PATIENCE_S = 30.0


class Site:
    """An agent with a door for its fleet, and clients of it."""

    def __init__(self, agent: HostAgent, pki: FleetPki) -> None:
        self.agent, self.pki = agent, pki
        said = re.findall(r"may connect to port (\d+)", agent.log())
        self.port = int(said[-1])
        self.collector = pki.issue(Role.COLLECTOR, "west")
        with self.client() as client:
            [self.log] = client.get("/audit/v1/logs").json()
        self.path = f"/audit/v1/{self.log['log_id']}"

    def client(self, certificate: Path | None = None, pki: FleetPki | None = None) -> httpx.Client:
        """A client of the collector's, or with another certificate."""
        context = (pki or self.pki).client(certificate or self.collector)
        return httpx.Client(
            base_url=f"https://localhost:{self.port}", verify=context, timeout=PATIENCE_S
        )

    def connect(self, certificate: Path | None = None) -> ssl.SSLSocket:
        """A bare connection, handshake done."""
        raw = socket.create_connection(("localhost", self.port), PATIENCE_S)
        context = self.pki.client(certificate or self.collector)
        return context.wrap_socket(raw, server_hostname="localhost")

    def key(self) -> NoteKey:
        return parse_key(self.log["vkey"])


class Puller:
    """A collector in miniature: it verifies what it gets before it goes on."""

    def __init__(self, site: Site, client: httpx.Client) -> None:
        self.site, self.client = site, client
        self.log_id = bytes.fromhex(site.log["log_id"])
        self.verifier = Verifier(
            self.log_id,
            origin=site.log["origin"],
            public_key=site.key().public_key,
            epoch_ns=site.log["epoch_ns"],
        )
        self.head, self.tree = GENESIS, EMPTY

    def pull(self, **more: object) -> tuple[int, Trailer]:
        """One page; how many records it had."""
        asked = {"from": self.head.size, "prev": self.head.hash.hex(), **more}
        answer = self.client.get(f"{self.site.path}/records", params=asked)
        assert answer.status_code == 200, answer.text
        end, trailer = split_page(answer.content, self.log_id)
        self.verifier.feed(answer.content, stop=end)
        before = self.head.size
        verified = self.verifier.verified()
        assert verified.whole
        self.head, self.tree = verified.head, verified.frontier
        assert (trailer.next_seq, trailer.head) == (self.head.size, self.head.hash)
        note = open_note(trailer.note, [self.site.key()])
        checkpoint = parse_checkpoint(note.text)
        assert (checkpoint.size, checkpoint.root) == (self.tree.size, self.tree.root())
        self.note = trailer.note
        return self.head.size - before, trailer

    def pull_all(self, **more: object) -> None:
        while self.pull(**more)[0]:
            pass

    def ack(self, signer: Signer = WEST, key: NoteKey = WEST_KEY) -> httpx.Response:
        """Cosign what was pulled."""
        text = parse_note(self.note).text
        return self.client.post(f"{self.site.path}/ack", content=cosigned(text, signer, key))


def cosigned(text: str, signer: Signer, key: NoteKey, time_s: int = 1_790_000_000) -> str:
    """A cosigned note of a checkpoint's text."""
    raw = time_s.to_bytes(8, "big") + signer.sign(cosignature_message(text, time_s))
    return write_note(text, [(key, raw)])


@contextlib.contextmanager
def serving(more: str = "") -> Iterator[Site]:
    """An agent of its own; its log holds at the end."""
    with HostAgent() as agent:
        pki = with_door(agent, more)
        agent.start()
        yield Site(agent, pki)
        judge(agent)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as made:
        yield made


def with_door(agent: HostAgent, more: str = "") -> FleetPki:
    """A fleet that the agent is of, with a door for it."""
    pki = FleetPki(agent.directory / "pki")
    add_listener(agent, pki, pki.issue(Role.NODE, NODE), more)
    return pki


def add_listener(agent: HostAgent, pki: FleetPki, node: Path, more: str = "") -> None:
    """Give the agent a door on any port that is free."""
    text = f"""
[listener]
certificate = "{node}"
key = "{node.with_suffix(".key")}"
ca = "{pki.ca}"
port = 0
{more}
[[listener.collectors]]
name = "west"
key = "{WEST_KEY.text()}"
"""
    agent.config.write_text(agent.config.read_text("utf-8") + text, "utf-8")


# ---- what a collector gets -----------------------------------------------------------------------


@pytest.mark.parametrize("bytes_max", [1, 4096, 4 << 20])
def test_a_collector_pulls_all_and_finds_it_whole(site: Site, bytes_max: int) -> None:
    for _ in range(3):
        site.agent.acquire(ttl_ms=60_000)
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all(max_bytes=bytes_max)
        assert puller.head.size >= 3
        size, hexed = site.agent.leasectl("audit", "head").stdout.strip().split(":")
        assert puller.head.size <= int(size)
        del hexed


def test_what_will_not_change_may_be_kept(site: Site) -> None:
    site.agent.acquire()
    with site.client() as client:
        first = client.get(f"{site.path}/records", params={"from": 0, "max_bytes": 1})
        assert "immutable" in first.headers["cache-control"]
        tag = first.headers["etag"]
        again = client.get(f"{site.path}/records", params={"from": 0, "max_bytes": 1})
        assert again.content == first.content
        kept = client.get(
            f"{site.path}/records",
            params={"from": 0, "max_bytes": 1},
            headers={"If-None-Match": tag},
        )
        assert (kept.status_code, kept.content) == (304, b"")
        puller = Puller(site, client)
        puller.pull_all()
        last = client.get(f"{site.path}/records", params={"from": puller.head.size})
        assert last.headers["cache-control"] == "no-store"


def test_a_reader_who_waits_is_told_when_there_is_more(site: Site) -> None:
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        site.agent.acquire()
        count, _ = puller.pull(wait=30_000)
        assert count > 0
        count, trailer = puller.pull(wait=50)
        while count:  # what the grant brings after it
            count, trailer = puller.pull(wait=50)
        assert trailer.boot_ns > 0  # a sign of life


def test_an_acknowledgement_is_put_on_record_once(site: Site) -> None:
    site.agent.acquire()
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        size = puller.head.size
        answer = puller.ack()
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["size"] == size
        assert told["sequence"] >= size
        assert puller.ack().json() == told  # a lost answer is just sent again
        puller.pull_all()
        assert puller.head.size > size
        # Beyond it there is the countersignature alone: nothing is sealed for that.
        follow = puller.ack()
        assert follow.status_code in (200, 429), follow.text
        if follow.status_code == 200:
            assert follow.json() == {"size": puller.head.size, "sequence": None}
    story = site.agent.leasectl(
        "audit", "log", "--log", str(site.agent.audit), "--kind", "HeadCountersigned", "--json"
    ).stdout
    assert f'"size":{size}' in story.replace(" ", "")


def test_acknowledgements_that_are_none(site: Site) -> None:
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        path = f"{site.path}/ack"
        assert client.post(path, content=puller.note).status_code == 403
        assert puller.ack(EAST, EAST_KEY).status_code == 403
        assert puller.ack(EAST, WEST_KEY).status_code == 403
        assert client.post(path, content="nothing").status_code == 400
        assert client.post(path, content=b"\xff\xfe\n\n").status_code == 400
        assert client.post(path, content=b"x" * 70_000).status_code == 413
    with site.client() as client:
        text = parse_note(puller.note).text
        other = text.replace(text.split("\n")[2], "A" * 43 + "=")
        forged = client.post(path, content=cosigned(other, WEST, WEST_KEY))
        assert forged.status_code == 409
        assert forged.json()["hash"] == puller.tree.root().hex()
        ahead = text.replace(f"\n{puller.head.size}\n", f"\n{puller.head.size + 10**6}\n")
        answer = client.post(path, content=cosigned(ahead, WEST, WEST_KEY))
        assert answer.status_code == 416
        alien = "elsewhere/log\n" + text.partition("\n")[2]
        answer = client.post(path, content=cosigned(alien, WEST, WEST_KEY))
        assert answer.status_code == 400


def test_a_fork_a_rollback_and_what_cannot_be_meant(site: Site) -> None:
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        records = f"{site.path}/records"
        forked = client.get(records, params={"from": 1, "prev": "ab" * 32})
        assert forked.status_code == 409
        told = forked.json()
        assert (told["type"], len(told["hash"])) == ("urn:leased:audit:fork", 64)
        open_note(told["checkpoint"], [site.key()])
        at_end = client.get(records, params={"from": puller.head.size, "prev": "ab" * 32})
        assert at_end.status_code == 409
        beyond = client.get(records, params={"from": puller.head.size + 10**6})
        assert beyond.status_code == 416
        assert parse_checkpoint(open_note(beyond.json()["checkpoint"], [site.key()]).text).size
        for params in (
            {},
            {"from": "-1"},
            {"from": "01"},
            {"from": "9" * 30},
            {"from": "\u0661"},
            {"from": "0", "prev": "AB" * 32},
            {"from": "0", "wait": "60001"},
            {"from": "0", "max_bytes": "0"},
            {"from": "0", "max_bytes": str(5 << 20)},
            {"from": "0", "else": "1"},
        ):
            answer = client.get(records, params=params)
            assert (answer.status_code, params) == (400, params)
        assert client.get(records + "?from=0&from=1").status_code == 400
        assert client.get("/audit/v1/" + "0" * 32 + "/checkpoint").status_code == 404
        assert client.get("/").status_code == 404
        assert client.get(site.path + "/nothing").status_code == 404
        wrong = client.delete(records)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
        assert int(beyond.headers["leased-log-size"]) >= puller.head.size
        assert beyond.headers["leased-log-state"] == "healthy"


def test_a_record_is_proven_without_the_others(site: Site) -> None:
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        for sequence in (0, 1, puller.head.size - 1):
            answer = client.get(
                f"{site.path}/proof", params={"seq": sequence, "size": puller.head.size}
            )
            told = answer.json()
            proof = Proof(**{**told, "path": tuple(told["path"])})
            check_proof(proof, [site.key()])
            with pytest.raises(ChainError, match="BAD_PROOF"):
                check_proof(
                    Proof(**{**told, "path": tuple(told["path"]), "record_hash": "00" * 32}),
                    [site.key()],
                )
        gone = client.get(f"{site.path}/proof", params={"seq": 5, "size": 5})
        assert gone.status_code == 400


def test_a_proof_shows_who_has_cosigned_its_tree(site: Site) -> None:
    with site.client() as client:
        puller = Puller(site, client)
        puller.pull_all()
        size = puller.head.size
        assert puller.ack().status_code == 200
        told = client.get(f"{site.path}/proof", params={"seq": 0, "size": size}).json()
        proof = Proof(**{**told, "path": tuple(told["path"])})
        assert len(check_proof(proof, [site.key(), WEST_KEY]).signatures) == 2
        assert len(check_proof(proof, [WEST_KEY]).signatures) == 1
        smaller = client.get(f"{site.path}/proof", params={"seq": 0, "size": 1}).json()
        with pytest.raises(ChainError, match="no signature by a known key"):
            check_proof(Proof(**{**smaller, "path": tuple(smaller["path"])}), [WEST_KEY])


def test_prometheus_reads_what_is_counted(site: Site) -> None:
    scraper = site.pki.issue(Role.SCRAPER, "prometheus")
    with site.client(scraper) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert client.get(f"{site.path}/checkpoint").status_code == 403
    text = answer.text
    assert re.search(r"^leased_log_records_total \d+$", text, re.M)
    assert re.search(r'^leased_leases\{state="active"\} \d+$', text, re.M)
    assert 'leased_log_state{state="healthy"} 1' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    judged = subprocess.run([promtool, "check", "metrics"], input=text, text=True, check=False)
    assert judged.returncode == 0


# ---- who does not get anything -------------------------------------------------------------------


def _refused(site: Site, context: ssl.SSLContext) -> None:
    """The client gets no byte of an answer."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    raw = socket.create_connection(("localhost", site.port), PATIENCE_S)
    with pytest.raises((ssl.SSLError, ConnectionError)), raw, context.wrap_socket(raw) as tls:
        tls.sendall(b"GET /audit/v1/logs HTTP/1.1\r\nHost: x\r\n\r\n")
        if not tls.recv(1):
            raise ConnectionResetError


def test_without_a_right_certificate_there_is_no_connection(site: Site, tmp_path: Path) -> None:
    _refused(site, site.pki.client(None))
    other = FleetPki(tmp_path / "other")  # the same fleet's name, another CA
    _refused(site, other.client(other.issue(Role.COLLECTOR, "west")))
    _refused(site, site.pki.client(site.pki.expired(Role.COLLECTOR, "late")))
    old = site.pki.client(site.collector)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    _refused(site, old)
    with site.client() as client:
        assert client.get("/audit/v1/logs").status_code == 200


def test_another_role_is_told_so(site: Site) -> None:
    node = site.pki.issue(Role.NODE, "cd" * 16)
    with site.client(node) as client:
        for path in ("/audit/v1/logs", f"{site.path}/records?from=0", "/metrics", "/"):
            answer = client.get(path)
            assert answer.status_code == 403
            assert answer.json()["type"] == "urn:leased:audit:role"
            assert client.head(path).content == b""  # which once ended the agent


def test_what_is_not_http_ends_the_connection(site: Site) -> None:
    for sent, status in (
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET /" + b"x" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"400"),
    ):
        with site.connect() as tls:
            tls.sendall(sent)
            answer = read_all(tls)
            assert answer.startswith(b"HTTP/1.1 " + status), (sent[:60], answer[:200])
            assert b"connection: close" in answer.lower()


def test_requests_may_be_sent_ahead_and_the_sender_may_stop_sending(site: Site) -> None:
    one = b"GET /audit/v1/logs HTTP/1.1\r\nHost: x\r\n\r\n"
    with site.connect() as tls:
        tls.sendall(one * 3 + b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_all(tls)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b"HTTP/1.1 404") == 1


def test_too_many_requests_in_a_second_are_put_off(site: Site) -> None:
    one = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
    with site.connect() as tls:
        # More than two seconds have room for: a second may end in the middle of them.
        tls.sendall(one * 119 + one.replace(b"Host", b"Connection: close\r\nHost"))
        answer = read_all(tls)
    assert answer.count(b"HTTP/1.1") == 120
    assert answer.count(b"HTTP/1.1 429") >= 1
    assert b"retry-after: 1" in answer.lower()


def read_all(tls: ssl.SSLSocket) -> bytes:
    parts = []
    while part := tls.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def test_curl_pulls_too(site: Site, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        not_proven("that curl can pull", "curl is not installed")
    done = subprocess.run(
        [curl, "--silent", "--show-error", "--fail", "--tlsv1.3", "--cacert", site.pki.ca]
        + ["--cert", site.collector, "--key", site.collector.with_suffix(".key")]
        + [f"https://localhost:{site.port}{site.path}/checkpoint"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    open_note(done.stdout, [site.key()])


# ---- agents of their own -------------------------------------------------------------------------


def test_a_proof_stands_by_its_quorum_after_a_restart(tmp_path: Path) -> None:
    receipt, proof, policy = (tmp_path / name for name in ("r.json", "p.json", "policy"))
    with serving() as site:
        agent = site.agent
        agent.leasectl("alloc", "--mem", "4KiB", "--for", "1min", "--receipt", str(receipt))
        witness = f"witness west {WEST_KEY.text()}\nquorum west\n"
        policy.write_text(f"log {site.key().text()}\n{witness}")
        check = ("audit", "check-proof", str(proof), "--policy", str(policy))
        check += ("--receipt", str(receipt))
        proof.write_text(agent.leasectl("audit", "prove", "--receipt", str(receipt)).stdout)
        assert "BELOW_QUORUM" in agent.leasectl(*check, check=65).stderr
        with site.client() as client:
            puller = Puller(site, client)
            puller.pull_all()
            assert puller.ack().status_code == 200
        agent.kill()
        agent.start()
        proof.write_text(agent.leasectl("audit", "prove", "--receipt", str(receipt)).stdout)
        assert "quorum" in agent.leasectl(*check).stdout


def test_certificates_are_read_again_without_ending_connections() -> None:
    with serving() as site:
        agent, pki = site.agent, site.pki
        with site.client() as before:
            assert before.get("/audit/v1/logs").status_code == 200
            with site.connect() as tls:
                old = tls.getpeercert(binary_form=True)
            node = pki.issue(Role.NODE, NODE)  # the same files, anew
            trusted = pki.ca.read_bytes()
            agent.leasectl("pki", "renew", str(pki.ca))
            assert pki.ca.read_bytes() != trusted, "and the CA itself"
            agent.leasectl("admin", "reload")
            with site.connect() as tls:
                assert tls.getpeercert(binary_form=True) != old
            assert before.get("/audit/v1/logs").status_code == 200
            # One that cannot be used changes nothing.
            node.with_suffix(".key").chmod(0o644)
            refused = agent.leasectl("admin", "reload", check=None)
            assert refused.returncode != 0
            assert "chmod 600" in refused.stderr
            with site.client() as after:
                assert after.get("/audit/v1/logs").status_code == 200
        agent.signal(signal.SIGTERM)
        assert agent.wait() == 0


def test_the_socket_that_systemd_hands_over_is_used() -> None:
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        not_proven("that a socket handed over is used", "systemd-socket-activate is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with HostAgent() as agent:
        pki = with_door(agent)
        agent.launch([activate, f"--listen=127.0.0.1:{port}", "--fdname=pull", "-E", "PYTHONPATH"])
        knock = _knock(port)  # starts the agent, and is answered by it
        assert agent.ready()
        knock.close()
        site = Site(agent, pki)
        assert site.port == port
        with site.client() as client:
            Puller(site, client).pull_all()
        judge(agent)


def _knock(port: int) -> socket.socket:
    """Connect as soon as somebody listens."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        except ConnectionRefusedError:
            assert time.monotonic() < until, "nobody listens"


def test_a_port_that_is_taken_keeps_no_tenant_out() -> None:
    with HostAgent() as agent, socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with_door(agent)
        text = agent.config.read_text("utf-8")
        port = taken.getsockname()[1]
        agent.config.write_text(text.replace("port = 0", f"port = {port}"), "utf-8")
        agent.start()
        agent.acquire()
        assert f"{port}: Address already in use" in agent.log()
        judge(agent)


def test_an_agent_whose_certificate_has_ended_serves_its_tenants() -> None:
    with HostAgent() as agent:
        pki = FleetPki(agent.directory / "pki")
        ended = pki.expired(Role.NODE, NODE)
        add_listener(agent, pki, ended)
        agent.start()
        agent.acquire()
        assert "past its end" in agent.log()
        fresh = pki.issue(Role.NODE, NODE)
        ended.write_bytes(fresh.read_bytes())
        ended.with_suffix(".key").write_bytes(fresh.with_suffix(".key").read_bytes())
        agent.leasectl("admin", "reload")
        site = Site(agent, pki)
        with site.client() as client:
            Puller(site, client).pull_all()
        judge(agent)
