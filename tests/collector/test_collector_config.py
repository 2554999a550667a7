# SPDX-License-Identifier: Apache-2.0
"""The collector's configuration: the shipped file is the defaults, and what cannot be meant is
named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest

from leased.chain.certificate import Role
from leased.chain.epochs import EPOCHS_AHEAD_MAX, EpochKey
from leased.chain.note import NoteKey
from leased.chain.signing import Signer
from leased.collector import config as c
from leased.collector.archive.manifest import Manifest
from leased.collector.enrolment import enrol, read_enrolment
from leased.collector.ingest import Pinned, decode_state
from leased.collector.main import build_parser, main, spelled
from leased.collector.witness import load_cosigner, os_entropy
from leased.ctl.console import Console
from leased.terms.errors import ConfigError
from tests.doubles.fleet_pki import FleetPki

SHIPPED = Path(__file__).parents[2] / "configs" / "leased-collector.toml"


def test_the_shipped_file_spells_the_defaults_out() -> None:
    assert c.load(SHIPPED) == c.PullConfig()
    spelled = SHIPPED.read_text("utf-8")
    assert [key for key in c._PULL_KEYS if f"\n{key} = " not in spelled] == []


@pytest.mark.parametrize("verb", ["serve", "cosigner", "pull"])
def test_a_file_that_is_not_there_is_named_once(tmp_path: Path, verb: str) -> None:
    err, file = io.StringIO(), tmp_path / "none.toml"
    words = ["--state", str(tmp_path), verb, "--config", str(file)]
    assert main(words, Console(io.StringIO(), err)) == 78
    assert err.getvalue().endswith(f"{file}: No such file or directory\n")


@pytest.mark.parametrize("state", ["--state DIR", "--state=DIR"])
@pytest.mark.parametrize("fleet", ["--demo-fleet 3", "--demo-fleet=3"])
def test_a_demo_fleet_is_made_where_it_is_said(state: str, fleet: str) -> None:
    for words in (f"{state} {fleet}", f"{fleet} {state}"):
        meant = build_parser().parse_args(spelled([*words.split(), "--seed", "2"]))
        assert (meant.verb, str(meant.state), meant.nodes, meant.seed) == ("demo", "DIR", 3, 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[pull]\nconections_max = 3", 'pull.conections_max: unknown key; did you mean "conn'),
        ("[pull]\nconnections_max = 0", "pull.connections_max = 0: from 1"),
        ('[pull]\nwait = "2m"', "pull.wait"),
        ('[pull]\noperators = ["mia"]', "pull.operators"),
        ('[[nodes]]\nname = "a"', "nodes"),
        ("[pul]", "pul"),
        ("pull = 3", "pull"),
        ("[pull", "']'"),
        (
            '[[nodes]]\nname="a"\nurl="u"\nenrolment="f"\n' * 2,
            "nodes: a stands twice",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "collector.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as found:
        c.load(path)
    assert named in str(found.value) and str(path) in str(found.value)


def test_sections_of_other_parts_are_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "collector.toml"
    path.write_text('[http]\nanything = "goes"\n[pull]\npages_max = 3\n')
    assert c.load(path).pages_max == 3


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format": "leased-enrolment/2"}', b"\xff"])
def test_an_enrolment_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="from a test"):
        read_enrolment(raw, "from a test")


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seal_epoch": -1}, {"epoch_ns": 1}, {"epoch_ns": -1}),
        *({"seal_epoch": 1 << 63}, {"epoch_ns": 1 << 64}),
        {"origin": "o\0n", "vkey": NoteKey("o\0n", bytes(32)).text()},
    ],
)
def test_an_enrolment_that_cannot_be_is_refused(wrong: dict[str, int | str]) -> None:
    """Each epoch costs whoever proves its seal a step; and not every number can be kept."""
    key = NoteKey("o/n", bytes(32))
    told = {"format": "leased-enrolment/1", "node_id": "4e" * 16, "log_id": "1d" * 16}
    told |= {"origin": "o/n", "vkey": key.text(), "first_public_key": "00" * 32}
    told |= {"epoch_ns": 60 * 10**9, "seal_epoch": 3, "seal_key": "11" * 32}
    assert read_enrolment(json.dumps(told).encode(), "from a test").seal_epoch == 3
    with pytest.raises(ConfigError, match="counted from 0|nothing can hold"):
        read_enrolment(json.dumps({**told, **wrong}).encode(), "from a test")


def test_what_is_no_enrolment_is_told_what_one_is() -> None:
    """As where `leasectl audit enrolment` printed nothing into a pipe."""
    for raw in (b"", b"-----BEGIN CERTIFICATE-----", b'{"format": "leased-enrol'):
        with pytest.raises(ConfigError, match="standard input: .*`leasectl audit enrolment`"):
            read_enrolment(raw, "standard input")


@pytest.mark.parametrize("operator", ["m ia", "", "mia+x"])
def test_an_operator_has_a_name_that_a_key_may_have(tmp_path: Path, operator: str) -> None:
    key, err = tmp_path / "mia.pem", io.StringIO()
    key.write_bytes(Signer(b"\x0e" * 32).pem())
    words = ["resolve", "alpha", "--operator", operator, "--key", str(key), "--reason", "x"]
    assert main(["--state", str(tmp_path), *words], Console(io.StringIO(), err)) == 65
    assert "operator: " in err.getvalue() and "no name of a key" in err.getvalue()


def test_a_later_document_of_an_enrolled_log_is_taken_and_another_is_not(tmp_path: Path) -> None:
    """A node moves to another address, and prints what it prints then."""
    key = EpochKey(3, b"k" * 32)
    pinned = Pinned(bytes(16), bytes(16), "o/n", bytes(32), 60 * 10**9, key.epoch, key.key)
    change = msgspec.structs.replace
    manifest = Manifest(tmp_path)
    enrol(manifest, "alpha", "https://alpha", change(pinned, printed_ns=1 << 62), 1)
    pinned = change(pinned, printed_ns=1)  # its clock is ahead of ours, which counts

    def again(host: str, told: Pinned) -> str:
        return enrol(manifest, "alpha", f"https://{host}", told, 1)

    later = key.evolved(500)
    assert "followed at https://b" in again("b", change(pinned, seal_epoch=0, seal_key=None))
    assert "followed at https://c" in again(
        "c", change(pinned, seal_epoch=later.epoch, seal_key=later.key)
    )
    [entry] = manifest.logs()
    assert decode_state(entry.state).pinned == pinned, "what was enrolled first counts"
    for wrong in (
        change(pinned, public_key=b"x" * 32),
        change(pinned, origin="o/m"),
        change(pinned, seal_epoch=later.epoch),
        change(pinned, seal_epoch=1 << 62),
        change(pinned, seal_epoch=EPOCHS_AHEAD_MAX + key.epoch + 1, printed_ns=1 << 62),
    ):
        with pytest.raises(ConfigError, match="was enrolled with other keys"):
            again("d", wrong)
    manifest.close()


def test_the_cosigning_key_is_called_as_the_puller_calls_it(tmp_path: Path) -> None:
    """Without pull.name, by the certificate: a name made up later would be another key."""
    certificate = FleetPki(tmp_path / "pki").issue(Role.COLLECTOR, "west")
    config = tmp_path / "collector.toml"
    config.write_text(f'[pull]\ncertificate = "{certificate}"\n')
    console = Console(io.StringIO(), io.StringIO())
    words = ["--state", str(tmp_path / "state"), "cosigner", "--config", str(config)]
    assert main(words, console) == 0, console.err.getvalue()
    known = load_cosigner(tmp_path / "state", "west", os_entropy).key.text()
    assert console.out.getvalue().strip() == known and known.startswith("west+")
