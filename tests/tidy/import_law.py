# SPDX-License-Identifier: Apache-2.0
"""The import law of DESIGN section 3: who may import whom, and by which door the world comes in.

Rule: a module imports its own room, the rooms that `ROOMS` names, and nothing else of ours. Pure
rooms import a closed list of the standard library. One foreign library enters by one door. An
import inside a function or under TYPE_CHECKING counts like any other: a hidden dependency is still
one.

Does not look at what is done with what was imported (`purity_law`).
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence

from tests.tidy.source import Finding, Module

ROOMS: dict[str, frozenset[str]] = {
    "leased": frozenset(),
    "terms": frozenset(),
    "lessor": frozenset({"terms"}),
    "chain": frozenset({"terms"}),
    "economics": frozenset({"terms"}),
    "wire": frozenset({"terms"}),
    "ports": frozenset({"terms", "chain"}),
    "durable": frozenset({"terms", "chain", "ports"}),
    "hardware": frozenset({"terms", "ports"}),
    "client": frozenset({"terms", "wire"}),
    "service": frozenset(
        {"terms", "lessor", "chain", "economics", "wire", "ports", "durable", "hardware"}
    ),
    "collector": frozenset({"terms", "chain", "economics", "wire", "ports", "durable"}),
    "ctl": frozenset({"terms", "chain", "economics", "wire", "ports", "durable", "client"}),
    "__main__": frozenset({"ctl", "service", "collector"}),
}
"""What each room may import besides itself and the bare `leased` (its version)."""

_SPEAKS = "declares verbs and prints as leasectl does, by the same code"
EXTRA: dict[str, tuple[frozenset[str], str]] = {
    "leased.collector.main": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.status": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.backup": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.retention": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.money": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.store": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.advice": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.telemetry.verbs": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.api.verbs": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.webhooks.verbs": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.accounts.terms_file": (
        frozenset({"ctl"}),
        "reads rate cards and instants by the same code as leasectl",
    ),
    "leased.collector.verbs.pull": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.importing": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.verbs.invites": (frozenset({"ctl"}), _SPEAKS),
    "leased.collector.api.enrolling": (
        frozenset({"ctl"}),
        "certifies nodes by the same code as leasectl pki",
    ),
    "leased.collector.own_door": (
        frozenset({"service"}),
        "serves its own log by the same code as a node does",
    ),
}
"""Single modules that may import one room more, each with the reason."""

PURE_STDLIB = frozenset(
    (
        "__future__",
        "abc",
        "array",
        "base64",
        "binascii",
        "bisect",
        "collections",
        "dataclasses",
        "difflib",
        "enum",
        "errno",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "hmac",
        "itertools",
        "json",
        "math",
        "operator",
        "re",
        "string",
        "struct",
        "tomllib",
        "types",
        "typing",
        "unicodedata",
        "zlib",
    )
)
"""Deterministic and without a door to the outside: no os, time, random, socket, threading, logging,
pathlib.
"""

DOORS: dict[str, str] = {
    "pynvml": r"leased\.hardware\.gpu\.(nvml|listening|layout|gauging)",
    "cffi": r"leased\.hardware\.gpu\.cuda",
    "pyudev": r"leased\.hardware\.(hotplug|nvme)",
    "psutil": r"leased\.hardware\.occupants",
    "cryptography": r"leased\.(chain\.(signing|certificate)|ctl\.minting)",
    "msgspec": r"leased\..*",
    "tomllib": r"leased\.terms\.reading",
    "trio": r"leased\.(durable|hardware|client|service|collector|ctl|__main__)(\..*)?",
    "outcome": r"leased\.client\.plain",
    "h11": r"leased\.(service\.(policy\.exchange|fleet\.web|telemetry\.sender)|collector\.transport"
    r"|collector\.webhooks\.post)",
    "duckdb": r"leased\.collector\.metering\.duck",
    "psycopg": r"leased\.collector\.archive\.manifest_postgres",
    "pyspark": r"leased\.collector\.metering\.spark",
    "pyarrow": r"leased\.collector\.(metering\.blocks|accounts\.focus_table)",
    "opentelemetry": r"leased\.(service\.telemetry\.otlp|collector\.telemetry\..*)",
    "google": r"leased\.(service\.telemetry\.otlp|collector\.telemetry\..*)",
    "starlette": r"leased\.collector\.api\.application",
    "hypercorn": r"leased\.collector\.api\.server",
    "cronsim": r"leased\.(collector\.governance|service\.policy)\.windows",
    "leased._native": r"leased\.(hardware\.verbs|hardware\.block\.verbs|chain\.native"
    r"|durable\.committer|service\.api\.(?:sending|receiving)|collector\.metering\.columns)",
}
"""Foreign library -> the modules that may import it. What is not listed may be imported by nobody.
"""

CODEC_DOORS = re.compile(
    r"leased\.(terms\..*|chain\.(canonical|page|shapes)|wire\..*|hardware\.worker"
    r"|service\.(config|evidence|fleet\.routes)|client\..*|ctl\..*|collector\..*)"
)
"""`msgspec.Struct` is how a value is written down, anywhere; encoding and decoding happen here
only.
"""


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) that `module` imports, anywhere in it, made absolute."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = module.name.split(".")
                keep = len(parts) - node.level + (1 if module.path.endswith("__init__.py") else 0)
                source = ".".join([*parts[:keep], *([source] if source else [])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def room_law(module: Module) -> Iterator[Finding]:
    """Rooms import downwards, and pure rooms not one another."""
    room = module.room
    if not room:
        return
    if room not in ROOMS:
        yield Finding(module.path, 1, "room", f"{room} is no room of the house (DESIGN section 3)")
        return
    extra, _ = EXTRA.get(module.name, (frozenset(), ""))
    allowed = ROOMS[room] | extra | {room}
    for line, name in imports(module):
        parts = name.split(".")
        if parts[0] != "leased" or name.startswith("leased._native") or len(parts) < 2:
            continue
        target = parts[1]
        if target in ROOMS and target not in allowed:
            yield Finding(module.path, line, "room", f"{room} must not import {target} ({name})")


def stdlib_law(module: Module) -> Iterator[Finding]:
    """Pure rooms use a closed list of the standard library."""
    if not module.pure:
        return
    for line, name in imports(module):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names and top not in PURE_STDLIB:
            yield Finding(
                module.path,
                line,
                "pure",
                f"a pure room must not import {top}; be handed a value or a port",
            )


def door_law(module: Module) -> Iterator[Finding]:
    """One foreign library, one door; tomllib too, which raises more than it says."""
    if not module.room:
        return
    for line, name in imports(module):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names and top not in DOORS:
            continue
        if top == "leased" and not name.startswith("leased._native"):
            continue
        library = "leased._native" if top == "leased" else top
        door = DOORS.get(library)
        if door is None:
            yield Finding(
                module.path,
                line,
                "door",
                f"{library} is a foreign library without a door (import_law.DOORS)",
            )
        elif not re.fullmatch(door, module.name):
            yield Finding(module.path, line, "door", f"{library} enters by {door} only")


def codec_law(module: Module) -> Iterator[Finding]:
    """Outside the codec doors msgspec is used for values (`Struct`, `structs.replace`, `field`),
    not to encode.
    """
    if not module.room or CODEC_DOORS.fullmatch(module.name):
        return
    for line, name in imports(module):
        if name.startswith("msgspec.") and name.removeprefix("msgspec.") not in _VALUE_NAMES:
            yield _encodes(module, line, name)
    for node in ast.walk(module.tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        parts = name.split(".")
        if len(parts) == 2 and parts[0] == "msgspec" and parts[1] not in _VALUE_NAMES:
            yield _encodes(module, node.lineno, name)


def _encodes(module: Module, line: int, name: str) -> Finding:
    return Finding(module.path, line, "door", f"{name}: encode and decode at a codec door")


def dead_module_law(modules: Sequence[Module], mentioned: str) -> Iterator[Finding]:
    """Every module is imported by another of ours, or named as a program in `mentioned` (pyproject,
    units, argv). A backend's `carrying` is loaded by the worker, by name.
    """
    imported: dict[str, None] = {}
    for module in modules:
        for _, name in imports(module):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                target = ".".join(parts[:end])
                if target != module.name:
                    imported[target] = None
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.startswith("leased.")
            ):
                imported[node.value] = None
    for module in modules:
        if module.path.endswith(("__init__.py", "__main__.py", "/carrying.py")) or not module.room:
            continue
        if module.name not in imported and module.name not in mentioned:
            yield Finding(
                module.path, 1, "dead", f"nothing imports {module.name} and nothing starts it"
            )


CALLED_BY_TESTS: dict[str, str] = {
    "leased.hardware.verbs.memory_blocks": "a step of the reaper's cut, asked of the same C",
    "leased.hardware.verbs.freeze_cgroup": "a step of the reaper's cut, asked of the same C",
    "leased.hardware.verbs.deny_devices": "a step of the reaper's cut, asked of the same C",
    "leased.hardware.verbs.kill_process": "a step of the reaper's cut, asked of the same C",
    "leased.hardware.block.verbs.suspend_mapping": "a step of the reaper's cut, asked of its C",
    "leased.chain.head.parse_head": "of the library: what an auditor wrote down is read again",
    "leased.collector.api.server._read_data": "hypercorn calls it, in place of its own",
    "leased.economics.intervals.clamped": "no honest log has an end that is not where it says",
}
"""module.name -> why it stays though nothing of ours names it."""


def unused_law(modules: Sequence[Module], mentioned: str) -> Iterator[Finding]:
    """Every function, class, method, constant and attribute of oneself is named by another line of
    ours, as a name or as a string that is one, or in `mentioned`; a function within itself names
    nothing. What only tests call proves nothing of the product: a test that it is right says
    nothing of whether it is used. Constants of one row (`A, B = 1, 2`) are left out: those are a
    protocol's, and have their places."""
    named: set[str] = set(re.findall(r"\w+", mentioned))
    for module in modules:
        named.update(_named(module.tree, frozenset()))
    for module in modules:
        for line, name in (*_constants(module), *_own(module)):
            if name not in named and f"{module.name}.{name}" not in CALLED_BY_TESTS:
                yield Finding(module.path, line, "unused", f"nothing names {name}")


def _named(node: ast.AST, within: frozenset[str]) -> Iterator[str]:
    """What the lines below name, which are those of the functions `within`. Who asks `super()` for
    its own name is called by whoever calls that."""
    if isinstance(node, _DEFINITIONS):
        within |= {node.name}
    found = ""
    if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Store):
        found = node.id if isinstance(node, ast.Name) else node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found = node.value
    above = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"
    if found and (above or found not in within):
        yield found
    for below in ast.iter_child_nodes(node):
        yield from _named(below, within)


def _own(module: Module) -> Iterator[tuple[int, str]]:
    """What a module defines, and what its classes give themselves: (line, name)."""
    for node in ast.walk(module.tree):
        if isinstance(node, _DEFINITIONS) and not node.name.startswith("__"):
            yield node.lineno, node.name
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) == "self"
        ):
            yield node.lineno, node.attr


def _constants(module: Module) -> Iterator[tuple[int, str]]:
    """What a module gives a name at its top: (line, name)."""
    for node in module.tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else (node.target,):
            if isinstance(target, ast.Name) and not target.id.startswith("__"):
                yield node.lineno, target.id


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_VALUE_NAMES = frozenset(("Struct", "structs", "field", "UNSET", "UnsetType", "Meta", "NODEFAULT"))
LAWS = (room_law, stdlib_law, door_law, codec_law)
