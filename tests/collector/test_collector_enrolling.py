# SPDX-License-Identifier: Apache-2.0
"""A node enrols itself by an invite, program to program over real TLS: it is followed and has its
certificate; and what may not come in does not."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from leased.chain.certificate import Role, read_certificate
from leased.chain.invitation import parse_invitation, request_message
from leased.chain.signing import Signer
from leased.collector.archive.manifest import Manifest
from leased.ctl import minting
from leased.ctl.proofs import enrolment_document
from tests.doubles.collector_server import REPOSITORY, CollectorServer, over_tls
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.logs import moment_at, open_in, started

ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin"}


@pytest.fixture
def server(tmp_path: Path, pki: FleetPki) -> Iterator[CollectorServer]:
    more = f'\nca_key = "{pki.ca.with_suffix(".key")}"'
    with over_tls(tmp_path / "collector", pki, more) as running:
        yield running


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return make_log(tmp_path / "node")


def make_log(place: Path) -> Path:
    """A node's log, as an agent that started once leaves it."""
    place.mkdir()
    opened = open_in(place / "audit")
    batch = opened.sealer().seal([(started(), moment_at(0))])
    opened.journal.commit_blocking(batch.frames, batch.count, batch.head, moment_at(0))
    opened.close()
    return place / "audit"


def run(program: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", program, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, input=given, env=ENVIRONMENT
    )


def invite(server: CollectorServer, *words: str, name: str = "alpha") -> str:
    place = ("--state", str(server.state), "invite", name, f"https://{name}:7443")
    made = run("leased.collector.main", *place, "--config", str(server.config), *words)
    assert made.returncode == 0, made.stderr
    [text] = made.stdout.splitlines()
    assert text not in made.stderr
    return text


def url(server: CollectorServer) -> str:
    port = re.sub(r".*:", "", server.wait_for(r"serving https://127\.0\.0\.1:\d+$")[0])
    return f"https://localhost:{port}"


def enrol(where: str, text: str, log: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    words = ("audit", "enrol", where, "--invite-file", "-", "--log", str(log))
    return run("leased.ctl.main", *words, "--dir", str(directory), "--json", given=text)


def followed(server: CollectorServer) -> list[tuple[str, str, str]]:
    manifest = Manifest(server.state)
    try:
        return manifest.nodes()
    finally:
        manifest.close()


def test_a_node_comes_in_and_has_its_certificate(
    server: CollectorServer, pki: FleetPki, log: Path, tmp_path: Path
) -> None:
    where, text = url(server), invite(server, "--host", "alpha.example", "--host", "10.1.2.3")
    done = enrol(where, text, log, tmp_path / "made")
    assert done.returncode == 0, done.stderr
    document = enrolment_document(log, 1, with_seal_key=False)
    told = json.loads(done.stdout)
    assert (told["name"], told["log_id"]) == ("alpha", document["log_id"])
    assert followed(server) == [("alpha", "https://alpha:7443", document["log_id"])]
    pem = (tmp_path / "made" / f"node-{document['node_id']}.pem").read_bytes()
    key = tmp_path / "made" / f"node-{document['node_id']}.key"
    identity = read_certificate(minting.der_of(pem)).identity
    assert (identity.fleet, identity.role, identity.name) == (
        *(pki.fleet, Role.NODE, document["node_id"]),
    )
    assert minting.hosts_of(pem) == ["alpha.example", "10.1.2.3"]
    assert key.stat().st_mode & 0o077 == 0 and b"PRIVATE KEY" in key.read_bytes()
    assert (tmp_path / "made" / "ca.pem").read_bytes() == pki.ca.read_bytes()
    pki.client(key.with_suffix(".pem"))  # key and certificate go together
    secret = parse_invitation(text)
    assert secret is not None
    for place in (server.state / "invites.sqlite", server.state / "collector.sqlite"):
        assert secret.secret.encode() not in place.read_bytes()
    assert secret.secret not in "\n".join(server.said)


def test_an_invite_is_good_for_one_node(server: CollectorServer, log: Path, tmp_path: Path) -> None:
    where, text = url(server), invite(server)
    assert enrol(where, text, log, tmp_path / "made").returncode == 0
    other = make_log(tmp_path / "other")
    replayed = enrol(where, text, other, tmp_path / "more")
    assert replayed.returncode == 65 and "invite-used" in replayed.stderr
    assert "ask for a new one" in replayed.stderr
    assert not (tmp_path / "more").exists()
    bound = invite(server, "--node", "f" * 32, name="beta")
    denied = enrol(where, bound, other, tmp_path / "more")
    assert denied.returncode == 77 and "invite-other-node" in denied.stderr
    assert f"for node {'f' * 32}, and this is " in denied.stderr and "use it there" in denied.stderr
    late = invite(server, name="gamma")
    kept = server.state / "invites.sqlite"
    with closing(sqlite3.connect(kept, isolation_level=None)) as database:
        database.execute("UPDATE invites SET expires_ns = 1 WHERE name = 'gamma'")
    denied = enrol(where, late, other, tmp_path / "more")
    assert denied.returncode == 77 and "invite-expired" in denied.stderr
    assert "Ask for a new one" in denied.stderr
    unknown = parse_invitation(text)
    assert unknown is not None
    forged = text.replace(unknown.secret, "0" * 64)
    denied = enrol(where, forged, other, tmp_path / "more")
    assert denied.returncode == 77 and "invite-unknown" in denied.stderr
    assert len(followed(server)) == 1


def test_a_name_that_is_taken_stays_with_its_log(
    server: CollectorServer, log: Path, tmp_path: Path
) -> None:
    where = url(server)
    assert enrol(where, invite(server), log, tmp_path / "made").returncode == 0
    again = invite(server)
    denied = enrol(where, again, make_log(tmp_path / "other"), tmp_path / "more")
    assert denied.returncode == 65 and "enrolled-otherwise" in denied.stderr


def test_an_invite_makes_nobody_another_node(
    server: CollectorServer, log: Path, tmp_path: Path
) -> None:
    """What a node says of its id is its own word; a certificate of it would be the fleet's."""
    where = url(server)
    assert enrol(where, invite(server), log, tmp_path / "made").returncode == 0
    other = make_log(tmp_path / "other")
    ids = {enrolment_document(one, 1, with_seal_key=False)["node_id"] for one in (log, other)}
    assert len(ids) == 1
    denied = enrol(where, invite(server, name="beta"), other, tmp_path / "more")
    assert denied.returncode == 65 and "is followed already, as alpha" in denied.stderr
    assert not (tmp_path / "more").exists() and len(followed(server)) == 1


def test_a_key_that_lies_there_costs_no_invite(
    server: CollectorServer, log: Path, tmp_path: Path
) -> None:
    where, text = url(server), invite(server)
    node_id = enrolment_document(log, 1, with_seal_key=False)["node_id"]
    left = tmp_path / "made" / f"node-{node_id}.key"
    left.parent.mkdir()
    left.write_text("of a try that was cut short")
    denied = enrol(where, text, log, left.parent)
    assert denied.returncode == 65 and "is there without its certificate" in denied.stderr
    left.unlink()
    assert enrol(where, text, log, left.parent).returncode == 0


def test_a_collector_of_another_ca_is_not_told_the_secret(
    server: CollectorServer, log: Path, tmp_path: Path
) -> None:
    where, text = url(server), invite(server)
    told = parse_invitation(text)
    assert told is not None
    elsewhere = text.replace(told.ca_sha256, "0" * 64)
    done = enrol(where, elsewhere, log, tmp_path / "made")
    assert done.returncode == 65 and "does not show the CA" in done.stderr
    assert enrol(where, text, log, tmp_path / "made").returncode == 0, "it was not used up"


def test_whoever_has_not_the_logs_key_does_not_enrol_it(server: CollectorServer, log: Path) -> None:
    text = invite(server)
    told = parse_invitation(text)
    assert told is not None
    enrolment = json.dumps(enrolment_document(log, 1, with_seal_key=False))
    signature = Signer(b"x" * 32).sign(request_message(enrolment, "", told.id))
    body = {
        "enrolment": enrolment,
        "request": "",
        "signature": b64encode(signature).decode(),
    }
    headers = {"Authorization": f"Bearer {text}"}
    answer = server.ask("POST", "/v1/enrolments", body, headers)
    assert answer.status == 403 and answer.json["type"].endswith(":not-its-log")
    assert followed(server) == []


def test_no_address_of_a_node_has_a_password_in_it(server: CollectorServer, log: Path) -> None:
    at = "https://me:hidden@alpha:7443"
    file = log.parent / "enrolment.json"
    file.write_text(json.dumps(enrolment_document(log, 1, with_seal_key=False)))
    place = ("--state", str(server.state))
    for words in (("invite", "alpha", at), ("enrol", "alpha", at, str(file))):
        done = run("leased.collector.main", *place, *words)
        assert done.returncode == 78, done.stderr
        assert "no password in an address" in done.stderr and "hidden" not in done.stderr
    words = ("audit", "enrol", at, "--invite-file", str(file), "--log", str(log))
    done = run("leased.ctl.main", *words)
    assert done.returncode == 65 and "hidden" not in done.stderr
    assert followed(server) == []


def test_an_invite_that_others_may_read_is_refused(log: Path, tmp_path: Path) -> None:
    file = tmp_path / "invite"
    file.write_text("leased-invite")
    file.chmod(0o644)
    words = ("audit", "enrol", "https://localhost:1", "--invite-file", str(file))
    done = run("leased.ctl.main", *words, "--log", str(log))
    assert done.returncode == 65 and "others may read it" in done.stderr
