# SPDX-License-Identifier: Apache-2.0
"""Whose word counts: `evidence verify --policy`, `audit check-proof --policy`, and the collectors
in an agent's own configuration."""

from __future__ import annotations

import io
import json
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from leased.chain.evidence import FORMAT, Bundle, Cosigned
from leased.chain.note import Checkpoint, NoteKey, cosignature_message, write_note
from leased.chain.proof import FORMAT as PROOF
from leased.chain.proof import Proof
from leased.chain.signing import Signer
from leased.chain.tree import EMPTY
from leased.collector.case import encode_bundle
from leased.collector.witness import Cosigner
from leased.ctl.console import Console
from leased.ctl.evidence import verify
from leased.ctl.proofs import check
from leased.ctl.witnesses import configured_policy
from leased.terms.errors import ChainError, InvalidParameter

NODE = Signer(b"n" * 32)
NODE_KEY = NoteKey("o/n/11111111", NODE.public_key)
WEST, EAST = (Cosigner(f"{name}.example", Signer(name.encode() * 8)) for name in ("west", "east"))


def bundle(root: bytes) -> Bundle:
    """West has a tree of 5 that the node signed; east was given another."""
    text = Checkpoint("o/n/11111111", 5, bytes(32)).text()
    note = write_note(text, [(NODE_KEY, NODE.sign(text.encode()))])
    other = Checkpoint("o/n/11111111", 5, root).text()
    signature = EAST._signer.sign(cosignature_message(other, 7))
    told = Cosigned("east", 5, root.hex(), 7, signature.hex())
    who = ("alpha", "40" * 16, "1" * 32, "o/n/11111111", NODE_KEY.text())
    made = Bundle(FORMAT, "FORK", "why", *who, 0, 1, 200, 5, "00" * 32, note)
    made = msgspec.structs.replace(made, cosigned=told, root_here=bytes(32).hex())
    return msgspec.structs.replace(made, signature=WEST.sign(encode_bundle(made)))


def judge(tmp_path: Path, made: Bundle, policy: str) -> dict:
    file, rules, out = tmp_path / "case.json", tmp_path / "policy", io.StringIO()
    file.write_bytes(msgspec.json.encode(made))
    keys = "".join(f"witness {one.key.name} {one.key.text()}\n" for one in (WEST, EAST))
    rules.write_text(keys + policy)
    options = type("Options", (), {"bundle": file, "policy": rules, "key": NODE_KEY.text()})()
    options.collector, options.json = [], True
    verify(options, Console(out, io.StringIO()))
    return json.loads(out.getvalue())


def test_two_collectors_that_were_shown_two_histories_are_a_quorum(tmp_path: Path) -> None:
    both = "group both all west.example east.example\nquorum both\n"
    found = judge(tmp_path, bundle(b"\x01" * 32), both)
    assert found["quorum"] is True
    assert any(text.startswith("east.example cosigned a tree of 5") for text in found["proven"])
    assert "o/n/11111111 signed another tree of 5 records" in found["proven"]


def test_one_of_them_is_not(tmp_path: Path) -> None:
    both = "group both all west.example east.example\nquorum both\n"
    lone = msgspec.structs.replace(bundle(bytes(32)), cosigned=None, signature="")
    lone = msgspec.structs.replace(lone, signature=WEST.sign(encode_bundle(lone)))
    assert judge(tmp_path, lone, both)["quorum"] is False
    assert judge(tmp_path, lone, "quorum west.example\n")["quorum"] is True


def test_a_policy_of_another_log_judges_nothing(tmp_path: Path) -> None:
    other = NoteKey("o/x", Signer(b"x" * 32).public_key).text()
    with pytest.raises(ChainError, match="of other logs"):
        judge(tmp_path, bundle(bytes(32)), f"log {other}\nquorum none\n")


def test_a_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"policy: .*line 3: not a line of a policy"):
        judge(tmp_path, bundle(bytes(32)), "nonsense\n")


# ---- proofs ----


def judge_proof(tmp_path: Path, policy: str, *cosigners: Cosigner) -> dict:
    """A record of a log of two, in a tree that the node has signed and these have cosigned."""
    leaves = [sha256(b"\0one").digest(), sha256(b"\0two").digest()]
    tree = EMPTY.grown(b"".join(leaves))
    text = Checkpoint("o/n/11111111", 2, tree.root()).text()
    lines = [(NODE_KEY, NODE.sign(text.encode()))]
    for one in cosigners:
        signed = one._signer.sign(cosignature_message(text, 7))
        lines.append((one.key, (7).to_bytes(8, "big") + signed))
    note, path = write_note(text, lines), (leaves[1].hex(),)
    of = ("1" * 32, "o/n/11111111", NODE_KEY.text())
    proof = Proof(PROOF, *of, 0, 2, leaves[0].hex(), path, note)
    file, rules, out = tmp_path / "proof.json", tmp_path / "policy", io.StringIO()
    file.write_bytes(msgspec.json.encode(proof))
    keys = "".join(f"witness {one.key.name} {one.key.text()}\n" for one in (WEST, EAST))
    rules.write_text(f"log {NODE_KEY.text()}\n{keys}{policy}")
    options = type("Options", (), {"file": str(file), "policy": rules, "key": [], "json": True})()
    options.record = options.receipt = options.log_id = None
    check(options, Console(out, io.StringIO()))
    return json.loads(out.getvalue())


def test_a_proof_is_judged_by_a_quorum(tmp_path: Path) -> None:
    both = "group both all west.example east.example\nquorum both\n"
    found = judge_proof(tmp_path, both, WEST, EAST)
    assert found["quorum"] == "2 of west.example, east.example"
    assert found["cosigned_by"] == ["west.example", "east.example"]
    assert judge_proof(tmp_path, "quorum none\n")["cosigned_by"] == []
    with pytest.raises(ChainError, match="BELOW_QUORUM.*cosigned by west.example; it takes 2 of"):
        judge_proof(tmp_path, both, WEST)
    with pytest.raises(ChainError, match="BELOW_QUORUM.*by nobody"):
        judge_proof(tmp_path, "quorum east.example\n")


def test_a_forged_cosignature_of_the_policy_refuses_the_proof(tmp_path: Path) -> None:
    forger = Cosigner("west.example", Signer(b"f" * 32))
    forger.key = WEST.key  # by name and key id west's
    with pytest.raises(ChainError, match="BAD_SIGNATURE"):
        judge_proof(tmp_path, "quorum west.example\n", forger, EAST)


def test_a_proof_that_nobody_is_trusted_for_is_not_judged(tmp_path: Path) -> None:
    options = type("Options", (), {"file": "-", "policy": None, "key": [], "json": True})()
    (tmp_path / "proof").write_bytes(b"{}")
    options.file = str(tmp_path / "proof")
    with pytest.raises((ChainError, InvalidParameter)):
        check(options, Console(io.StringIO(), io.StringIO()))


# ---- the node's own configuration ----


def configured(tmp_path: Path, text: str) -> Path:
    """A host whose agent is configured so; where its log is."""
    (tmp_path / "etc/leased").mkdir(parents=True, exist_ok=True)
    (tmp_path / "etc/leased/leased.toml").write_text(text)
    audit = tmp_path / "var/lib/leased/audit"
    audit.mkdir(parents=True, exist_ok=True)
    return audit


def test_the_collectors_of_the_configuration_are_a_policy(tmp_path: Path) -> None:
    one = '[[listener.collectors]]\nname = "{}"\nkey = "{}"\n'
    both = one.format("west", WEST.key.text()) + one.format("east", EAST.key.text())
    audit = configured(tmp_path, "[listener]\nquorum = 1\n" + both)
    found = configured_policy(audit, tmp_path)
    assert found is not None and found.told() == "1 of east, west"
    assert configured_policy(tmp_path / "backup", tmp_path) is None, "the log of somebody else"
    for text in ("", "[listener]\ncollectors = []\n", "no toml", one.format("west", "no key")):
        assert configured_policy(configured(tmp_path, text), tmp_path) is None
