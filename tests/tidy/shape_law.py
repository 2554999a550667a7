# SPDX-License-Identifier: Apache-2.0
"""The shape of the code: headers, lengths, names, what may be caught, how tests may wait.

Rule: each law names its replacement, and its exceptions are a table with reasons, not a silence.

Does not format: that is ruff's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.tidy.source import Finding, Module

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 400
TEST_LINES_MAX = 600
"""A test module is a list, not an argument: it may be longer before it is hard to read."""

COLUMNS_MAX = 100
SPDX = "# SPDX-License-Identifier: Apache-2.0"
PORT_METHODS_MAX = 4

LONG_FUNCTIONS: dict[str, str] = {}
"""path:function -> why it teaches more in one piece. At most one entry (codebases practice 14)."""

LONG_MODULES: dict[str, str] = {
    "agent/leased/terms/event.py": "the closed set of what can have happened, with its numbers",
}
"""path -> why the room keeps it in one file although it is past the alarm."""

BANNED_WORDS = frozenset(
    ("manager", "helper", "helpers", "util", "utils", "common", "base", "misc", "handler")
)
CATCH_ALL = frozenset(("Exception", "BaseException"))
CATCH_ALL_DOOR = "agent/leased/service/daemon.py"
REAL_PROCESS_TIERS = (
    "process",
    "vm",
    "bench",
    "faults",
    "hardware",
    "native",
    "packaging",
    "adversary",
    "powercut",
    "fuzz",
)
_UNFINISHED = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b"
)
_MACHINE = re.compile(
    "|".join(
        (
            "/wo" + "rk/",
            "/home" + r"/\w+",
            "/ro" + r"ot/\w",
            "/tm" + r"p/v\b",
            "--(extra-)?index-" + "url",
            "GOPR" + "OXY=",
        )
    )
)
_HEADER_ENTRY = re.compile(r"^#!.*\n")


def header_law(module: Module) -> Iterator[Finding]:
    """One SPDX line first (after a shebang), then a docstring that says what the module is."""
    text = _HEADER_ENTRY.sub("", module.text, count=1)
    if not text.startswith(SPDX + "\n"):
        yield Finding(module.path, 1, "header", f"the first line must be {SPDX!r}")
    docstring = ast.get_docstring(module.tree)
    if not docstring or len(docstring) < 20:
        yield Finding(
            module.path, 1, "header", "open with what it is, the rule it keeps, what it does not do"
        )


def length_law(module: Module) -> Iterator[Finding]:
    """Functions of at most 70 lines; modules that stay under the alarm."""
    lines = module.text.count("\n")
    alarm = TEST_LINES_MAX if module.path.startswith("tests/") else MODULE_LINES_MAX
    if lines > alarm and module.path not in LONG_MODULES:
        yield Finding(
            module.path,
            1,
            "length",
            f"{lines} lines; the alarm is at {alarm}: split it or say why",
        )
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX and f"{module.path}:{node.name}" not in LONG_FUNCTIONS:
                yield Finding(
                    module.path,
                    node.lineno,
                    "length",
                    f"{node.name} has {length} lines (70 at most)",
                )


def name_law(module: Module) -> Iterator[Finding]:
    """Nouns that mean something: no module or class called after a drawer."""
    stem = module.path.rsplit("/", 1)[-1].removesuffix(".py")
    for word in stem.lower().split("_"):
        if word in BANNED_WORDS:
            yield Finding(
                module.path, 1, "name", f"module {stem}: {word!r} says nothing about what it is"
            )
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", node.name):
                if word.lower() in BANNED_WORDS:
                    yield Finding(
                        module.path,
                        node.lineno,
                        "name",
                        f"class {node.name}: {word!r} says nothing",
                    )


def catch_law(module: Module) -> Iterator[Finding]:
    """Every `except` names what it expects. Cleaning up and re-raising is not catching."""
    if module.path == CATCH_ALL_DOOR:
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = [node.type] if not isinstance(node.type, ast.Tuple) else list(node.type.elts)
        names = [
            getattr(kind, "id", getattr(kind, "attr", "")) if kind else "everything"
            for kind in caught
        ]
        if any(name in CATCH_ALL or name == "everything" for name in names):
            last = node.body[-1]
            if not (isinstance(last, ast.Raise) and last.exc is None):
                yield Finding(
                    module.path,
                    node.lineno,
                    "catch",
                    f"except {', '.join(names)}: name what you expect",
                )


def mock_law(module: Module) -> Iterator[Finding]:
    """Fakes that argue back (`tests/doubles`), never a mock or a patched attribute."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import) and any(
            "mock" in alias.name.split(".") for alias in node.names
        ):
            yield Finding(
                module.path, node.lineno, "mock", "no mock: write a fake in tests/doubles"
            )
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if "mock" in names:
                yield Finding(
                    module.path, node.lineno, "mock", "no mock: write a fake in tests/doubles"
                )
        elif isinstance(node, ast.Attribute) and node.attr in ("setattr", "setitem", "delattr"):
            owner = getattr(node.value, "id", "")
            if "patch" in owner:
                what = f"{owner}.{node.attr}: hand the port in instead"
                yield Finding(module.path, node.lineno, "mock", what)


def sleep_law(module: Module) -> Iterator[Finding]:
    """No test sleeps: MockClock, or (tiers with real processes) a loop that polls against a
    deadline.
    """
    if not module.path.startswith("tests/"):
        return
    real = module.path.split("/")[1] in REAL_PROCESS_TIERS
    virtual = (
        module.path.startswith("tests/sim/")
        or "MockClock" in module.text
        or "autojump" in module.text
        or "tests/doubles/" in module.path
    )
    looped = {
        id(inner)
        for loop in ast.walk(module.tree)
        if isinstance(loop, (ast.While, ast.For, ast.AsyncFor))
        for inner in ast.walk(loop)
    }
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = getattr(node.func.value, "id", "")
        if node.func.attr not in ("sleep", "sleep_until") or owner not in (
            "time",
            "trio",
            "asyncio",
        ):
            continue
        if _is_zero(node) or (owner == "trio" and virtual) or (real and id(node) in looped):
            continue
        yield Finding(
            module.path,
            node.lineno,
            "sleep",
            f"{owner}.{node.func.attr}: use MockClock, or poll to a deadline",
        )


def assert_law(module: Module) -> Iterator[Finding]:
    """Nothing runs differently under -O: no `__debug__`, no assert on a tuple."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == "__debug__":
            yield Finding(
                module.path, node.lineno, "assert", "__debug__: asserts stay on in production"
            )
        elif isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple):
            yield Finding(module.path, node.lineno, "assert", "an assert on a tuple is always true")


def port_law(module: Module) -> Iterator[Finding]:
    """A port has four methods at most, and every method a promise."""
    if module.name != "leased.ports":
        return
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and any(
            getattr(base, "id", "") == "Protocol" for base in node.bases
        ):
            methods = [
                item
                for item in node.body
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
            ]
            if len(methods) > PORT_METHODS_MAX:
                yield Finding(
                    module.path,
                    node.lineno,
                    "port",
                    f"{node.name} has {len(methods)} methods (4 at most)",
                )
            for method in methods:
                if not ast.get_docstring(method):
                    yield Finding(
                        module.path,
                        method.lineno,
                        "port",
                        f"{node.name}.{method.name} promises nothing",
                    )


def column_law(path: str, text: str) -> Iterator[Finding]:
    """100 columns in Python and C."""
    if not path.endswith((".py", ".c", ".h")):
        return
    for number, line in enumerate(text.splitlines(), 1):
        if len(line.expandtabs(8)) > COLUMNS_MAX:
            yield Finding(
                path,
                number,
                "columns",
                f"{len(line.expandtabs(8))} columns ({COLUMNS_MAX} at most)",
            )


def unfinished_law(path: str, text: str) -> Iterator[Finding]:
    """What is not done is an issue, not a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        if _UNFINISHED.search(line):
            yield Finding(path, number, "unfinished", "open an issue instead")


def machine_law(path: str, text: str) -> Iterator[Finding]:
    """No path, no index and no proxy of the machine it was written on."""
    for number, line in enumerate(text.splitlines(), 1):
        found = _MACHINE.search(line)
        if found:
            yield Finding(path, number, "machine", f"{found.group()!r} exists on one machine only")


def _is_zero(call: ast.Call) -> bool:
    """`trio.sleep(0)` is a checkpoint, not a wait."""
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0


LAWS = (header_law, length_law, name_law, catch_law, mock_law, sleep_law, assert_law, port_law)
TEXT_LAWS = (column_law, unfinished_law, machine_law)
