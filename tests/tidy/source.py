# SPDX-License-Identifier: Apache-2.0
"""The repository as the laws see it: modules with their syntax trees, other files as text.

Rule: a law is a function from one `Module` (or one `Text`) to findings, so that a snippet can stand
in for a file and every law can be shown to fail. Laws that need the whole house at once take a
sequence of modules.

Does not judge anything.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PURE_ROOMS = ("terms", "lessor", "chain", "economics", "wire")
TEXT_SUFFIXES = frozenset(
    (
        ".py",
        ".c",
        ".h",
        ".md",
        ".toml",
        ".service",
        ".socket",
        ".slice",
        ".conf",
        ".sh",
        ".varlink",
        ".txt",
        ".in",
        "",
    )
)


@dataclass(frozen=True)
class Module:
    """One Python file. `path` is relative to the repository, `name` dotted, `room` the package
    below `leased`.
    """

    path: str
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """`agent/leased/lessor/table.py` is `leased.lessor.table`."""
        stem = self.path.removeprefix("agent/").removesuffix(".py").removesuffix("/__init__")
        return stem.replace("/", ".")

    @property
    def room(self) -> str:
        """The first package below `leased`; the module itself for `leased/ports.py`; "" outside of
        `leased`.
        """
        parts = self.name.split(".")
        if parts[0] != "leased":
            return ""
        return parts[1] if len(parts) > 1 else "leased"

    @property
    def pure(self) -> bool:
        """Whether the module stands in a pure room."""
        return self.room in PURE_ROOMS


@dataclass(frozen=True)
class Finding:
    """One breach: where, which law, and what to do instead."""

    path: str
    line: int
    law: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.law}] {self.what}"


def parse(path: str, text: str) -> Module:
    """A module from its text, as if it stood at `path`."""
    return Module(path, text, ast.parse(text, path))


def modules(*roots: str) -> tuple[Module, ...]:
    """Every Python file below `roots`, in order of path."""
    return tuple(
        parse(str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8"))
        for path in _files(*roots)
        if path.suffix == ".py"
    )


def texts(*roots: str) -> tuple[tuple[str, str], ...]:
    """Every text file below `roots` as (path, text); binary files are passed over."""
    found: list[tuple[str, str]] = []
    for path in _files(*roots):
        if path.suffix in TEXT_SUFFIXES:
            try:
                found.append((str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return tuple(found)


def _files(*roots: str) -> Iterator[Path]:
    for root in roots:
        top = REPOSITORY / root
        candidates = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in candidates:
            parts = path.relative_to(REPOSITORY).parts
            if path.is_file() and not any(part in _BUILT for part in parts):
                yield path


_BUILT = frozenset(
    ("__pycache__", "build", "dist", ".pytest_cache", ".hypothesis", "results", "node_modules")
)
