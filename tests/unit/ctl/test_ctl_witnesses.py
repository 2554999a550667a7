# SPDX-License-Identifier: Apache-2.0
"""`leasectl evidence verify --policy`: whether those who have signed a bundle are the quorum."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest

from leased.chain.evidence import FORMAT, Bundle, Cosigned
from leased.chain.note import Checkpoint, NoteKey, cosignature_message, write_note
from leased.chain.signing import Signer
from leased.collector.case import encode_bundle
from leased.collector.witness import Cosigner
from leased.ctl.console import Console
from leased.ctl.evidence import verify
from leased.terms.errors import ChainError, InvalidParameter

NODE = Signer(b"n" * 32)
NODE_KEY = NoteKey("o/n", NODE.public_key)
WEST, EAST = (Cosigner(f"{name}.example", Signer(name.encode() * 8)) for name in ("west", "east"))


def bundle(root: bytes) -> Bundle:
    """West has a tree of 5 that the node signed; east was given another."""
    text = Checkpoint("o/n", 5, bytes(32)).text()
    note = write_note(text, [(NODE_KEY, NODE.sign(text.encode()))])
    other = Checkpoint("o/n", 5, root).text()
    signature = EAST._signer.sign(cosignature_message(other, 7))
    told = Cosigned("east", 5, root.hex(), 7, signature.hex())
    who = ("alpha", "40" * 16, "1" * 32, "o/n", NODE_KEY.text())
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
    assert "o/n signed another tree of 5 records" in found["proven"]


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
