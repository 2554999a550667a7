# SPDX-License-Identifier: Apache-2.0
"""leasectl pki, and what reads its certificates: openssl, the agent, the doctor."""

from __future__ import annotations

import io
import json
import os
import shutil
import ssl
import stat
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from leased.chain.certificate import Identity, Role, parse_identity, read_certificate
from leased.ctl import fleet_checks
from leased.ctl.console import Console
from leased.ctl.findings import Grade
from leased.ctl.main import main
from leased.ctl.minting import ca_of, der_of, found, open_authority
from leased.service.fleet import tls
from leased.service.fleet.config import Listening
from leased.terms.errors import CallerError, ConfigError
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host import not_proven

NODE = "ab" * 16
NOW_NS = 1_790_000_000 * 10**9
DAY_NS = 86_400 * 10**9


def pki(folder: Path, *words: str, status: int = 0, wall_ns: int = NOW_NS) -> str:
    """leasectl pki at a fixed time; what it said."""
    out, err = io.StringIO(), io.StringIO()
    console = Console(out, err, wall_ns=lambda: wall_ns, terminal=False)
    done = main(["pki", *words, "--dir", str(folder)], console)
    assert done == status, err.getvalue()
    return out.getvalue() + err.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pki"
    pki(place, "init", "gpu.example.org")
    return place


def test_each_role_has_its_certificate_and_its_key_is_its_owners(folder: Path) -> None:
    pki(folder, "node", "--id", NODE, "--host", "node-1.example.org", "--host", "192.0.2.1")
    pki(folder, "collector", "west", "--host", "::1")
    pki(folder, "scraper", "prometheus")
    for stem, role, name in (
        (f"node-{NODE}", Role.NODE, NODE),
        ("collector-west", Role.COLLECTOR, "west"),
        ("scraper-prometheus", Role.SCRAPER, "prometheus"),
    ):
        found = read_certificate(der_of((folder / f"{stem}.pem").read_bytes()))
        assert found.identity == Identity("gpu.example.org", role, name)
        assert found.not_before_s * 10**9 < NOW_NS
        assert 396 < (found.not_after_s * 10**9 - NOW_NS) // DAY_NS < 398
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_overwritten_but_by_renew(folder: Path) -> None:
    pki(folder, "collector", "west")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "is there already" in pki(folder, "collector", "west", status=65)
    assert "is there already" in pki(folder, "init", "gpu.example.org", status=65)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    pki(folder, "renew", str(folder / "collector-west.pem"), wall_ns=NOW_NS + 300 * DAY_NS)
    pem = (folder / "collector-west.pem").read_bytes()
    assert pem != before["collector-west.pem"]
    assert (folder / "collector-west.key").read_bytes() != before["collector-west.key"]
    assert read_certificate(der_of(pem)).identity.name == "west"
    assert (folder / "ca.key").read_bytes() == before["ca.key"]


def test_a_renewal_that_cannot_be_written_leaves_key_and_certificate_of_before(
    folder: Path,
) -> None:
    pki(folder, "collector", "west")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "collector-west.pem.new").mkdir()  # the key can be written, its certificate cannot
    pki(folder, "renew", str(folder / "collector-west.pem"), status=74)
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_renewal_leaves_the_files_to_whose_they_are(folder: Path) -> None:
    pki(folder, "collector", "west")
    pem, key = folder / "collector-west.pem", folder / "collector-west.key"
    for path in (pem, key):
        os.chown(path, 65534, 65533)
    pki(folder, "renew", str(pem))
    for path, mode in ((pem, 0o644), (key, 0o600)):
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65533, mode)


def test_what_cannot_be_meant_makes_nothing(folder: Path, tmp_path: Path) -> None:
    for words in (
        ("node", "--id", "AB" * 16),
        ("collector", "We st"),
        ("collector", "west", "--host", "no host"),
        ("collector", "west", "--days", "0"),
        ("scraper", "a/b"),
    ):
        pki(folder, *words, status=65)
    pki(tmp_path / "none", "collector", "west", status=66)
    pki(tmp_path / "bad", "init", "Not A Fleet", status=65)
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem"]


def test_a_certificate_never_outlives_its_ca(tmp_path: Path) -> None:
    place = tmp_path / "short"
    pki(place, "init", "gpu.example.org", "--days", "30")
    pki(place, "collector", "west")
    end_s = read_certificate(der_of((place / "collector-west.pem").read_bytes())).not_after_s
    who, ca_end_ns = ca_of((place / "ca.pem").read_bytes())
    assert (who, ca_end_ns) == ("the CA of gpu.example.org", end_s * 10**9)


def test_a_ca_that_is_renewed_keeps_its_key_and_with_it_the_fleet(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        not_proven("that openssl takes a renewed CA", "openssl is not installed")
    place, old = tmp_path / "pki", tmp_path / "old.pem"
    now_ns = time.time_ns()
    pki(place, "init", "gpu.example.org", "--days", "30", wall_ns=now_ns)
    pki(place, "collector", "west", wall_ns=now_ns)
    ca, key = place / "ca.pem", (place / "ca.key").read_bytes()
    shutil.copy(ca, old)
    assert "the CA of gpu.example.org" in pki(place, "renew", str(ca), wall_ns=now_ns)
    pki(place, "collector", "east", "--days", "20", wall_ns=now_ns)
    assert (place / "ca.key").read_bytes() == key and ca.read_bytes() != old.read_bytes()
    assert ca_of(ca.read_bytes())[1] == (now_ns // 10**9 + 3650 * 86_400) * 10**9
    for trusted in (old, ca):
        for end in ("collector-west.pem", "collector-east.pem"):
            command = [openssl, "verify", "-x509_strict", "-CAfile", trusted, place / end]
            done = subprocess.run(command, capture_output=True)
            assert done.returncode == 0, done.stderr


def test_certificates_are_shown_for_what_they_are(folder: Path) -> None:
    pki(folder, "collector", "west", "--host", "192.0.2.1")
    out = io.StringIO()
    console = Console(out, io.StringIO(), wall_ns=lambda: NOW_NS + 400 * DAY_NS, terminal=False)
    files = [str(folder / f"{stem}.pem") for stem in ("ca", "collector-west")]
    assert main(["pki", "show", *files, "--json"], console) == 0
    ca, west = json.loads(out.getvalue())["certificates"]
    assert ca["who"] == "the CA of gpu.example.org"
    assert west["who"] == "spiffe://gpu.example.org/collector/west"
    assert west["hosts"] == "192.0.2.1"
    assert "EXPIRED" in west["until"] and "EXPIRED" not in ca["until"]
    assert len(west["sha256"]) == 64


def test_openssl_takes_each_for_what_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        not_proven("that openssl reads the certificates", "openssl is not installed")
    fleet = FleetPki(tmp_path / "pki")
    node, west = fleet.issue(Role.NODE, NODE), fleet.issue(Role.COLLECTOR, "west")
    scraper = fleet.issue(Role.SCRAPER, "prometheus")

    def holds(certificate: Path, purpose: str, ca: Path = fleet.ca) -> bool:
        command = [openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca]
        return subprocess.run([*command, certificate], capture_output=True).returncode == 0

    assert holds(node, "sslserver") and holds(west, "sslclient")
    assert holds(scraper, "sslclient") and not holds(scraper, "sslserver")
    # A certificate of the fleet is no CA.
    assert not holds(west, "sslclient", ca=node)


# ---- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://gpu.example.org",
        "spiffe://gpu.example.org/collector/",
        "spiffe://gpu.example.org/collector/a/b",
        "spiffe://gpu.example.org/collector/WEST",
        "spiffe://gpu.example.org/collector/..",
        "spiffe://GPU/collector/west",
        "spiffe://gpu.example.org/admin/west",
        "spiffe://gpu.example.org/node/west",
        "https://gpu.example.org/collector/west",
    ],
)
def test_a_uri_that_is_no_role(uri: str) -> None:
    with pytest.raises(CallerError):
        parse_identity(uri)


def _certificate(uris: list[str], uses: list[x509.ObjectIdentifier]) -> bytes:
    """A certificate of any kind, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def test_a_certificate_of_two_roles_or_another_use_has_none() -> None:
    west, east = (f"spiffe://gpu.example.org/collector/{name}" for name in ("west", "east"))
    client, server = (
        x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH,
        x509.oid.ExtendedKeyUsageOID.SERVER_AUTH,
    )
    assert read_certificate(_certificate([west], [client])).identity.name == "west"
    assert read_certificate(_certificate([west, "https://x.example"], [client, server]))
    for uris, uses in (([west, east], [client]), ([west], [server]), ([], [client]), ([west], [])):
        with pytest.raises(CallerError):
            read_certificate(_certificate(uris, uses))
    for der in (b"", b"\x30\x03\x02\x01\x01"):
        with pytest.raises(CallerError):
            read_certificate(der)


# ---- who uses them -------------------------------------------------------------------------------


def _listening(fleet: FleetPki, certificate: Path) -> Listening:
    key = certificate.with_suffix(".key")
    return Listening(certificate=str(certificate), key=str(key), ca=str(fleet.ca))


def test_the_agent_takes_its_own_certificate_and_says_what_is_wrong_with_others(
    tmp_path: Path,
) -> None:
    fleet = FleetPki(tmp_path / "pki")
    node = bytes.fromhex(NODE)
    now_ns = int(fleet.now.timestamp()) * 10**9
    right = fleet.issue(Role.NODE, NODE)
    credentials = tls.load(_listening(fleet, right), node_id=node, wall_ns=now_ns)
    assert credentials.fleet == "gpu.example.org"
    assert credentials.context.minimum_version == ssl.TLSVersion.TLSv1_3

    def refused(certificate: Path, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            tls.load(_listening(fleet, certificate), node_id=node, wall_ns=now_ns)

    refused(fleet.issue(Role.NODE, "cd" * 16), "is of spiffe://.*/node/cdcd")
    refused(fleet.issue(Role.COLLECTOR, "west"), "is of spiffe://.*/collector/west")
    refused(fleet.expired(Role.NODE, NODE), "past its end")
    refused(tmp_path / "none.pem", "No such file")
    other = fleet.issue(Role.NODE, NODE, file="other")
    other.with_suffix(".key").write_bytes(right.with_suffix(".key").read_bytes())
    refused(other, "do not go together")
    right.with_suffix(".key").chmod(0o640)
    refused(right, "chmod 600")


def test_a_certificate_that_every_collector_would_refuse_is_refused_first(tmp_path: Path) -> None:
    fleet, another = FleetPki(tmp_path / "pki"), FleetPki(tmp_path / "another")
    node, now_ns = bytes.fromhex(NODE), int(fleet.now.timestamp()) * 10**9
    foreign = another.issue(Role.NODE, NODE)
    with pytest.raises(ConfigError, match="no collector would take it.*local issuer"):
        tls.load(_listening(fleet, foreign), node_id=node, wall_ns=now_ns)
    with pytest.raises(ConfigError, match="no collector would take it"):
        tls.load(_listening(another, fleet.issue(Role.NODE, NODE)), node_id=node, wall_ns=now_ns)
    both = tmp_path / "both.pem"
    both.write_bytes(fleet.ca.read_bytes() + another.ca.read_bytes())
    for one in (foreign, fleet.issue(Role.NODE, NODE)):
        listening = msgspec.structs.replace(_listening(fleet, one), ca=str(both))
        assert tls.load(listening, node_id=node, wall_ns=now_ns), "while a CA follows another"
    west = fleet.issue(Role.COLLECTOR, "west")
    assert tls.load(_listening(fleet, west), node_id=b"", wall_ns=now_ns, collector="west")


def test_one_that_is_not_valid_yet_takes_no_place_of_one_that_is(tmp_path: Path) -> None:
    """At a start the node's clock may be behind; who has a certificate in force keeps it."""
    fleet, node = FleetPki(tmp_path / "pki"), bytes.fromhex(NODE)
    listening = _listening(fleet, fleet.issue(Role.NODE, NODE))
    early_ns = (int(fleet.now.timestamp()) - 7 * 24 * 3600) * 10**9
    assert tls.load(listening, node_id=node, wall_ns=early_ns)
    with pytest.raises(ConfigError, match="not valid before .* the one in force stays"):
        tls.load(listening, node_id=node, wall_ns=early_ns, replacing=True)
    assert tls.load(
        listening, node_id=node, wall_ns=early_ns + 8 * 24 * 3600 * 10**9, replacing=True
    )


def test_the_doctor_says_when_certificates_end(tmp_path: Path) -> None:
    fleet = FleetPki(tmp_path / "etc/pki")
    node = fleet.issue(Role.NODE, NODE, days=200)
    config = tmp_path / "etc/leased/leased.toml"
    config.parent.mkdir()
    [off] = fleet_checks.certificates(tmp_path)
    assert (off.grade, off.text[:3]) == (Grade.NOTE, "off")
    config.write_text(
        f'[listener]\ncertificate = "/etc/pki/{node.name}"\n'
        f'key = "/etc/pki/{node.stem}.key"\nca = "/etc/pki/ca.pem"\n'
    )
    made_ns = int(fleet.now.timestamp()) * 10**9

    def grades(days: int) -> list[Grade]:
        found = fleet_checks.certificates(tmp_path, wall_ns=lambda: made_ns + days * DAY_NS)
        return [one.grade for one in found]

    assert grades(1) == [Grade.OK, Grade.OK]
    assert grades(180) == [Grade.WARN, Grade.OK]
    assert grades(3_640) == [Grade.WARN, Grade.WARN]
    assert grades(201) == [Grade.WARN, Grade.OK]
    node.with_suffix(".key").chmod(0o644)
    assert grades(1) == [Grade.WARN, Grade.OK, Grade.OK]
    node.unlink()
    assert grades(1) == [Grade.WARN, Grade.WARN, Grade.OK]


def test_the_doctor_says_what_keeps_the_door_shut(tmp_path: Path) -> None:
    fleet = FleetPki(tmp_path / "etc/pki")
    other = FleetPki(tmp_path / "etc/other")
    node, alien = fleet.issue(Role.NODE, NODE), other.issue(Role.NODE, NODE)
    west = fleet.issue(Role.COLLECTOR, "west")
    config = tmp_path / "etc/leased/leased.toml"
    config.parent.mkdir()
    now_ns = int(fleet.now.timestamp()) * 10**9

    def said(certificate: Path | None, key: Path | None, ca: Path) -> str:
        files = {"certificate": certificate, "key": key, "ca": ca}
        told = [f'{name} = "/{path.relative_to(tmp_path)}"' for name, path in files.items() if path]
        config.write_text("\n".join(["[listener]", *told, ""]))
        found = fleet_checks.certificates(tmp_path, wall_ns=lambda: now_ns)
        return " ".join(one.text for one in found if one.grade is not Grade.OK)

    key = node.with_suffix(".key")
    assert said(node, key, fleet.ca) == ""
    assert "of spiffe://gpu.example.org/collector/west, and not of a node" in said(
        west, west.with_suffix(".key"), fleet.ca
    )
    assert "says neither role nor use" in said(fleet.ca, fleet.ca.with_suffix(".key"), fleet.ca)
    assert "the key is another's" in said(node, west.with_suffix(".key"), fleet.ca)
    assert "no such file" in said(node, tmp_path / "etc/pki/none.key", fleet.ca)
    assert "of another CA" in said(alien, alien.with_suffix(".key"), fleet.ca)
    assert "not a fleet's CA" in said(node, key, node)
    assert said(node, None, fleet.ca) == "[listener] lacks key: the agent does not start"
    both = tmp_path / "etc/both.pem"
    both.write_bytes(fleet.ca.read_bytes() + other.ca.read_bytes())
    assert said(alien, alien.with_suffix(".key"), both) == "", "a CA on its way to be replaced"


def test_keys_are_in_no_repr() -> None:
    made = found("gpu.example.org", now=datetime.now(UTC), days=1)
    assert "PRIVATE" not in repr(made)
    with pytest.raises(CallerError, match="not that of its certificate"):
        open_authority(
            made.certificate, found("gpu.example.org", now=datetime.now(UTC), days=1).key
        )


def test_which_file_is_no_certificate_is_said(folder: Path) -> None:
    key = str(folder / "ca.key")
    for words in (("show", str(folder / "ca.pem"), key), ("renew", key)):
        err = io.StringIO()
        assert main(["pki", *words], Console(io.StringIO(), err)) == 65
        assert err.getvalue().startswith(f"leasectl: {key}: not a certificate in PEM")
