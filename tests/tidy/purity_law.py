# SPDX-License-Identifier: Apache-2.0
"""What pure code must not do even with what it may import: depend on the order of a set, on hashes,
on floats.

Rule: the same commands give the same bytes on every machine and under every PYTHONHASHSEED. So no
loop over a set, no `hash()` or `id()`, no float where money, time or capacity are counted.

Does not follow types across functions: a set that arrives as a parameter is seen by its annotation
only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.tidy.source import Finding, Module

SET_NAMES = frozenset(("set", "frozenset", "AbstractSet", "MutableSet", "Set", "FrozenSet"))
SET_METHODS = frozenset(("union", "intersection", "difference", "symmetric_difference"))
ORDER_FREE = frozenset(("sorted", "sum", "any", "all", "set", "frozenset", "min", "max", "len"))
ORDER_TAKING = frozenset(
    ("list", "tuple", "iter", "enumerate", "zip", "map", "filter", "reversed", "dict", "bytes")
)
FLOAT_FREE_ROOMS = ("terms", "lessor", "chain", "economics", "wire", "ports")
FLOAT_ROOMS_EXCEPT: dict[str, str] = {}
"""Modules of those rooms that may compute with floats, each with the reason (never one on the way
to a bill).
"""


def set_order_law(module: Module) -> Iterator[Finding]:
    """No iteration over a set in a pure room: Python's set order changes with the hash seed.
    `sorted(...)` it.
    """
    if not module.pure:
        return
    sets = _SetNames(module.tree)
    for node, parent in _with_parents(module.tree):
        if isinstance(node, (ast.For, ast.AsyncFor)) and sets.is_set(node.iter):
            yield _order(module, node.iter)
        elif isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.DictComp)):
            free = isinstance(parent, ast.Call) and _called(parent) in ORDER_FREE
            for generator in node.generators:
                if sets.is_set(generator.iter) and not free:
                    yield _order(module, generator.iter)
        elif isinstance(node, ast.Call) and _takes_order(node, sets):
            yield _order(module, node)
        elif isinstance(node, ast.Starred) and sets.is_set(node.value):
            free = isinstance(parent, (ast.Set,)) or (
                isinstance(parent, ast.Call) and _called(parent) in ORDER_FREE
            )
            if not free:
                yield _order(module, node)


def hash_law(module: Module) -> Iterator[Finding]:
    """No `hash()` and no `id()` in a pure room: both differ from run to run."""
    if not module.pure:
        return
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("hash", "id")
        ):
            yield Finding(
                module.path, node.lineno, "hash", f"{node.func.id}() differs from run to run"
            )


def float_law(module: Module) -> Iterator[Finding]:
    """No float where money, time and capacity are counted: no literal, no `float`, no true
    division.
    """
    if module.room not in FLOAT_FREE_ROOMS or module.name in FLOAT_ROOMS_EXCEPT:
        return
    for node in ast.walk(module.tree):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Constant) and isinstance(node.value, (float, complex)):
            yield Finding(
                module.path,
                line,
                "float",
                f"{node.value!r}: count in integers, with the unit in the name",
            )
        elif isinstance(node, ast.Name) and node.id == "float":
            yield Finding(module.path, line, "float", "float: count in integers")
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div):
            yield Finding(module.path, line, "float", "/ makes a float: use // or divmod")


class _SetNames:
    """Which expressions of one module are known to be sets: by literal, call, annotation or
    assignment.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.names: dict[str, None] = {}
        # Twice, so that `b = a` below is seen whichever way round the two stand.
        for _ in range(2):
            for node in ast.walk(tree):
                self._learn(node)

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and self._annotation(field.annotation):
                    self.names["." + getattr(field.target, "id", "")] = None
        elif isinstance(node, ast.AnnAssign) and self._annotation(node.annotation):
            self._add(node.target)
        elif (
            isinstance(node, ast.arg)
            and node.annotation is not None
            and self._annotation(node.annotation)
        ):
            self.names[node.arg] = None
        elif isinstance(node, ast.Assign) and self.is_set(node.value):
            for target in node.targets:
                self._add(target)

    def _add(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = None
        elif isinstance(target, ast.Attribute):
            self.names["." + target.attr] = None

    def _annotation(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Subscript):
            node = node.value
        if isinstance(node, ast.BinOp):
            return self._annotation(node.left) or self._annotation(node.right)
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        return name in SET_NAMES

    def is_set(self, node: ast.expr) -> bool:
        """Whether `node` is known to be a set."""
        if isinstance(node, (ast.Set, ast.SetComp)):
            return True
        if isinstance(node, ast.Call):
            name = _called(node)
            if isinstance(node.func, ast.Name):
                return name in ("set", "frozenset")
            return name in SET_METHODS or (
                name == "copy"
                and isinstance(node.func, ast.Attribute)
                and self.is_set(node.func.value)
            )
        if isinstance(node, ast.BinOp) and isinstance(
            node.op, (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)
        ):
            return self.is_set(node.left) or self.is_set(node.right)
        if isinstance(node, ast.Name):
            return node.id in self.names
        return isinstance(node, ast.Attribute) and "." + node.attr in self.names


def _takes_order(call: ast.Call, sets: _SetNames) -> bool:
    """Whether a call hands on the order of a set: `list(s)`, `",".join(s)`, `s.pop()`."""
    name = _called(call)
    if name == "pop":
        return isinstance(call.func, ast.Attribute) and sets.is_set(call.func.value)
    return (name in ORDER_TAKING or name == "join") and any(sets.is_set(one) for one in call.args)


def _order(module: Module, node: ast.expr) -> Finding:
    return Finding(
        module.path,
        node.lineno,
        "set-order",
        "the order of a set changes with the hash seed: sorted()",
    )


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _with_parents(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            yield node, parent


LAWS = (set_order_law, hash_law, float_law)
