# SPDX-License-Identifier: Apache-2.0
"""Negative space: each law has a snippet that must fail it, and one beside it that must pass.

Rule: a law without a failing snippet is not a law. `BREACHES` names the law by its function; a test
checks that none of them is missing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tidy import import_law, purity_law, shape_law
from tests.tidy.source import Finding, parse

HEAD = f'{shape_law.SPDX}\n"""A module that says what it is and what it does not do."""\n'
LESSOR, TERMS, SERVICE = (
    "agent/leased/lessor/x.py",
    "agent/leased/terms/x.py",
    "agent/leased/service/x.py",
)
CTL, HARDWARE, UNIT = "agent/leased/ctl/x.py", "agent/leased/hardware/x.py", "tests/unit/test_x.py"
PROCESS = "tests/process/test_x.py"

# (law, path as if, snippet that must fail, snippet that must pass)
BREACHES = [
    ("room_law", LESSOR, "from leased.chain import head", "from leased.terms import lease"),
    ("room_law", LESSOR, "from leased import ports", "import leased"),
    ("room_law", LESSOR, "import leased.economics.meter", "import leased.terms.lease"),
    ("room_law", LESSOR, "from ..wire import framing", "from ..terms import lease"),
    (
        "room_law",
        LESSOR,
        "def f():\n    from leased.service import sequencer",
        "from leased.lessor import table",
    ),
    ("room_law", TERMS, "from leased.lessor import table", "from leased.terms import moment"),
    (
        "room_law",
        "agent/leased/collector/x.py",
        "from leased.hardware import clock",
        "from leased.chain import head",
    ),
    ("room_law", "agent/leased/collector/x.py", "from leased.lessor import table", "import trio"),
    (
        "room_law",
        "agent/leased/collector/x.py",
        "from leased.service import config",
        "from leased.wire import framing",
    ),
    ("room_law", HARDWARE, "from leased.service import daemon", "from leased.ports import Device"),
    ("room_law", CTL, "from leased.service import sequencer", "from leased.client import link"),
    ("room_law", "agent/leased/core/x.py", "import enum", "pass"),
    ("stdlib_law", LESSOR, "import os", "import heapq"),
    ("stdlib_law", LESSOR, "import time", "import math"),
    ("stdlib_law", "agent/leased/chain/x.py", "from random import Random", "import hashlib"),
    ("stdlib_law", "agent/leased/wire/x.py", "import socket", "import struct"),
    (
        "stdlib_law",
        "agent/leased/economics/x.py",
        "from datetime import datetime",
        "import fractions",
    ),
    ("stdlib_law", TERMS, "if TYPE_CHECKING:\n    import pathlib", "from typing import NewType"),
    ("door_law", LESSOR, "import trio", "import msgspec"),
    ("door_law", SERVICE, "import pynvml", "import trio"),
    ("door_law", HARDWARE, "import psutil", "import trio"),
    ("door_law", HARDWARE, "import pyudev", "import select"),
    ("door_law", SERVICE, "from cryptography.hazmat import primitives", "import ssl"),
    ("door_law", HARDWARE, "from leased._native import lib", "from leased.hardware import verbs"),
    ("door_law", SERVICE, "from leased import _native", "from leased import terms"),
    ("door_law", CTL, "import requests", "import urllib.request"),
    ("codec_law", LESSOR, "from msgspec import json", "from msgspec import Struct"),
    ("codec_law", LESSOR, "msgspec.json.encode(1)", "msgspec.structs.replace(1)"),
    ("codec_law", SERVICE, "msgspec.msgpack.Decoder()", "class A(msgspec.Struct): ..."),
    ("set_order_law", LESSOR, "for x in {1, 2}: ...", "for x in (1, 2): ..."),
    (
        "set_order_law",
        LESSOR,
        "def f(a: frozenset[int]):\n    return [x for x in a]",
        "sorted({1, 2})",
    ),
    ("set_order_law", LESSOR, "a = set()\nb = a\nlist(b)", "a = set()\nlen(a)"),
    (
        "set_order_law",
        LESSOR,
        "class A:\n    s: set[int]\n    def f(self):\n        for x in self.s: ...",
        "{*{1}}",
    ),
    ("set_order_law", LESSOR, "a = {1} | b\nprint(*a)", "a = {1}\nany(x for x in a)"),
    (
        "set_order_law",
        LESSOR,
        "a: set[str] = x\n','.join(a)",
        "a: set[str] = x\n','.join(sorted(a))",
    ),
    ("set_order_law", LESSOR, "a = set()\na.pop()", "a = {}\na.pop(1)"),
    ("hash_law", LESSOR, "hash('a')", "hashlib.sha256(b'a')"),
    ("hash_law", "agent/leased/chain/x.py", "id(1)", "identity(1)"),
    ("float_law", TERMS, "x = 0.5", "x = 5"),
    ("float_law", "agent/leased/economics/x.py", "x = a / b", "x = a // b"),
    ("float_law", "agent/leased/economics/x.py", "x = float(a)", "x = int(a)"),
    ("header_law", LESSOR, '"""A docstring but no licence line at all."""', HEAD),
    ("header_law", LESSOR, f"{shape_law.SPDX}\nimport enum", HEAD),
    ("length_law", LESSOR, "def f():\n" + "    x = 1\n" * 70, "def f():\n" + "    x = 1\n" * 69),
    ("length_law", LESSOR, "x = 1\n" * 401, "x = 1\n" * 400),
    ("length_law", UNIT, "x = 1\n" * 601, "x = 1\n" * 600),
    ("name_law", LESSOR, "class LeaseManager: ...", "class LeaseTable: ..."),
    ("name_law", LESSOR, "class BaseDevice: ...", "class Database: ..."),
    ("name_law", "agent/leased/lessor/lease_utils.py", "", ""),
    ("name_law", "agent/leased/lessor/common.py", "", ""),
    ("catch_law", SERVICE, "try: ...\nexcept Exception: ...", "try: ...\nexcept OSError: ..."),
    (
        "catch_law",
        SERVICE,
        "try: ...\nexcept: ...",
        "try: ...\nexcept BaseException:\n    x()\n    raise",
    ),
    (
        "catch_law",
        SERVICE,
        "try: ...\nexcept (OSError, Exception): ...",
        "try: ...\nexcept (OSError, EOFError): ...",
    ),
    ("mock_law", UNIT, "from unittest import mock", "from tests.doubles import clock"),
    ("mock_law", UNIT, "import unittest.mock", "import unittest"),
    ("mock_law", UNIT, "from unittest.mock import Mock", "from hypothesis import given"),
    (
        "mock_law",
        UNIT,
        "def test(monkeypatch):\n    monkeypatch.setattr(a, 'b', 1)",
        "setattr(a, 'b', 1)",
    ),
    ("sleep_law", UNIT, "time.sleep(1)", "trio.sleep(0)"),
    ("sleep_law", UNIT, "while True:\n    time.sleep(0.1)", "clock = MockClock()\ntrio.sleep(5)"),
    ("sleep_law", PROCESS, "time.sleep(1)", "while True:\n    time.sleep(0.01)"),
    ("assert_law", SERVICE, "if __debug__: ...", "assert x"),
    ("assert_law", SERVICE, "assert (x, 'message')", "assert x, 'message'"),
    (
        "port_law",
        "agent/leased/ports.py",
        "class P(Protocol):\n" + "    def f(self): 'x'\n" * 5,
        "class P(Protocol): ...",
    ),
    (
        "port_law",
        "agent/leased/ports.py",
        "class P(Protocol):\n    def f(self): ...",
        "class P: ...",
    ),
]
TEXT_BREACHES = [
    ("column_law", "native/x.c", "x" * 101, "x" * 100),
    ("column_law", LESSOR, "\t" * 12 + "12345", "\t" * 12 + "1234"),
    ("unfinished_law", LESSOR, "# TO" + "DO later", "# todos os dias"),
    ("unfinished_law", "native/x.c", "/* FIX" + "ME */", "/* fixed */"),
    ("machine_law", "systemd/x.service", "ExecStart=/wo" + "rk/main/x", "ExecStart=/usr/bin/x"),
    ("machine_law", ".ci/run", "pip install --index-" + "url x", "pip install x"),
]


def _law(name: str) -> object:
    for laws in (import_law, purity_law, shape_law):
        if hasattr(laws, name):
            return getattr(laws, name)
    raise AssertionError(f"no law {name}")


def _judge(name: str, path: str, snippet: str) -> list[Finding]:
    law = _law(name)
    found: Iterator[Finding] = law(parse(path, snippet))  # type: ignore[operator]
    return list(found)


@pytest.mark.parametrize(("name", "path", "bad", "good"), BREACHES)
def test_a_breach_is_found(name: str, path: str, bad: str, good: str) -> None:
    assert _judge(name, path, bad)


@pytest.mark.parametrize(("name", "path", "bad", "good"), [case for case in BREACHES if case[3]])
def test_what_is_lawful_passes(name: str, path: str, bad: str, good: str) -> None:
    lawful = LESSOR if path == "agent/leased/core/x.py" else path
    assert _judge(name, lawful, good) == []


@pytest.mark.parametrize(("name", "path", "bad", "good"), TEXT_BREACHES)
def test_a_text_breach_is_found(name: str, path: str, bad: str, good: str) -> None:
    law = getattr(shape_law, name)
    assert list(law(path, bad)) and not list(law(path, good))


def test_a_dead_module_is_found() -> None:
    living = parse("agent/leased/lessor/a.py", "from leased.lessor import b")
    imported = parse("agent/leased/lessor/b.py", "")
    dead = parse("agent/leased/lessor/c.py", "from leased.lessor import c")
    found = list(import_law.dead_module_law((living, imported, dead), "leased.lessor.a:main"))
    assert [finding.path for finding in found] == [dead.path]


def test_what_nobody_names_is_found() -> None:
    living = parse("agent/leased/lessor/a.py", "def f() -> None:\n    table['g'](h)")
    text = (
        "K = 1\nL = K\nM, N = 1, 2\ndef g(): pass\ndef h(): pass\nclass Row: pass\n"
        "def q(): return check('q', q)\n"
        "class g:\n    def h(self):\n        self.told = self.kept = 1\n        f(self.kept)"
    )
    used = parse("agent/leased/lessor/b.py", text)
    found = list(import_law.unused_law((living, used), "leased.lessor.a:f"))
    assert [finding.what for finding in found] == [
        f"nothing names {name}" for name in ("L", "Row", "q", "told")
    ]


def test_every_law_has_a_breach() -> None:
    laws = {
        law.__name__
        for law in (*import_law.LAWS, *purity_law.LAWS, *shape_law.LAWS, *shape_law.TEXT_LAWS)
    }
    assert laws == {case[0] for case in BREACHES} | {case[0] for case in TEXT_BREACHES}
