# SPDX-License-Identifier: Apache-2.0
"""The shapes of bodies: what the native check of bodies knows of events, made of their classes.

Rule: a kind has a shape only where the shape says all that `canonical.decode` would ask of it: what
fits a shape is the one legal encoding of an event of that kind. A class with a field that cannot be
said so has none, and its records are decoded one by one.

Does not decode and does not check (`native`, `canonical`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import inspect

from leased.chain import native
from leased.terms import resource

_Node = tuple[int, bool, int, int, int]
_NOTHING: Final[_Node] = (0, False, 0, 0, 0)
_FIELDS_MAX: Final = 15
"""Of an event: with more its array would have a longer head, and ids would stand elsewhere."""


class _Unsayable(Exception):
    """A type that has no shape."""


def compile_shapes(classes: Mapping[tuple[int, int], type[msgspec.Struct]]) -> native.Shapes:
    """The shapes of the events by kind and schema."""
    nodes: list[_Node] = [_NOTHING]
    roots: dict[tuple[int, int], int] = {}
    for (kind, schema), cls in classes.items():
        kept = len(nodes)
        nodes.append(_NOTHING)
        try:
            nodes[kept] = _struct(inspect.type_info(cls), nodes)
            roots[kind, schema] = kept
        except _Unsayable:
            del nodes[kept:]
    return native.Shapes(nodes, roots)


def _struct(info: inspect.Type, nodes: list[_Node]) -> _Node:
    """An array of the fields of a class, all of them."""
    if not isinstance(info, inspect.StructType) or not info.array_like or info.tag is not None:
        raise _Unsayable
    if hasattr(info.cls, "__post_init__") or not 0 < len(info.fields) <= _FIELDS_MAX:
        raise _Unsayable
    first = len(nodes)
    nodes.extend([_NOTHING] * len(info.fields))
    for at, field in enumerate(info.fields, first):
        nodes[at] = _shape(field.type, nodes)
    return (native.FIELDS, False, len(info.fields), first, 0)


def _shape(info: inspect.Type, nodes: list[_Node], *, nil: bool = False) -> _Node:
    """One value. Raises _Unsayable."""
    match info:
        case inspect.IntType(gt=None, ge=None, lt=None, le=None, multiple_of=None):
            return (native.INTEGER, nil, 0, 0, 0)
        case inspect.IntType(gt=None, ge=0, lt=None, le=resource.AMOUNT_MAX, multiple_of=None):
            return (native.AMOUNT, nil, 0, 0, resource.AMOUNT_MAX)
        case inspect.BoolType():
            return (native.BOOL, nil, 0, 0, 0)
        case inspect.BytesType(min_length=least, max_length=most) if least == most:
            return (native.BYTES, nil, most or 0, 0, 0)
        case inspect.StrType(min_length=None, max_length=None, pattern=None):
            return (native.TEXT, nil, 0, 0, 0)
        case inspect.EnumType(cls=cls):
            values = [member.value for member in cls]
            if not all(isinstance(value, int) and 0 <= value < 64 for value in values):
                raise _Unsayable
            return (native.ENUM, nil, 0, 0, sum(1 << value for value in values))
        case inspect.UnionType(types=types) if len(types) == 2 and not nil:
            said = [one for one in types if not isinstance(one, inspect.NoneType)]
            if len(said) != 1:
                raise _Unsayable
            return _shape(said[0], nodes, nil=True)
        case inspect.VarTupleType(item_type=item, min_length=None, max_length=None):
            first = len(nodes)
            nodes.append(_NOTHING)
            nodes[first] = _shape(item, nodes)
            return (native.LIST, nil, 0, first, 0)
        case inspect.TupleType(item_types=items) if 0 < len(items) <= _FIELDS_MAX:
            first = len(nodes)
            nodes.extend([_NOTHING] * len(items))
            for at, item in enumerate(items, first):
                nodes[at] = _shape(item, nodes)
            return (native.FIELDS, nil, len(items), first, 0)
        case inspect.StructType():
            what, _, count, first, members = _struct(info, nodes)
            return (what, nil, count, first, members)
    raise _Unsayable
