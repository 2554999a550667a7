# SPDX-License-Identifier: Apache-2.0
"""The IDL and the structs say the same: names, which fields may be absent, closed sets, kinds of
value.

The IDL is read by the reader of PyPI's `varlink`, which is none of ours.
"""

from __future__ import annotations

import enum
import types
import typing
from typing import Any

import msgspec
import pytest
from varlink import scanner

from leased.terms.errors import LeasedError
from leased.terms.lease import Ending, LeaseState, Priority, RevocationReason
from leased.terms.reply import RefusalReason
from leased.terms.resource import ResourceKind, TierKind
from leased.wire import objects, parameters, replies
from leased.wire.description import OPERATOR_INTERFACES, SERVICE
from tests.doubles.varlink_calls import idl_texts

INTERFACES = {name: scanner.Interface(text) for name, text in idl_texts().items()}


def reply_structs() -> dict[str, type[msgspec.Struct]]:
    """The reply struct of each method: its docstring names its methods, interface by interface."""
    found: dict[str, type[msgspec.Struct]] = {}
    for struct in vars(replies).values():
        if not (isinstance(struct, type) and struct.__module__ == replies.__name__):
            continue
        for group in (struct.__doc__ or "").split(". ")[0].split("; "):
            first, *others = group.split(", ")
            interface = first.rpartition(".")[0]
            found |= dict.fromkeys((first, *(f"{interface}.{o}" for o in others)), struct)
    return found


REPLY_OF = reply_structs()
METHODS = [
    f"{interface.name}.{member.name}"
    for interface in INTERFACES.values()
    for member in interface.members.values()
    if isinstance(member, scanner._Method)
]


def test_every_interface_has_its_text() -> None:
    assert sorted(INTERFACES) == sorted((SERVICE, *OPERATOR_INTERFACES))
    assert all(interface.name == name for name, interface in INTERFACES.items())


def test_the_methods_are_those_of_the_table() -> None:
    assert sorted(METHODS) == sorted(parameters.METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_and_gives_what_its_interface_says(name: str) -> None:
    interface, _, method = name.rpartition(".")
    declared = INTERFACES[interface].get_method(method)
    compare(INTERFACES[interface], declared.in_type, parameters.METHODS[name].parameters, name)
    assert name in REPLY_OF, f"no reply struct says that it is of {name}"
    compare(INTERFACES[interface], declared.out_type, REPLY_OF[name], name)


def compare(
    interface: scanner.Interface, declared: Any, struct: type[msgspec.Struct], where: str
) -> None:
    hints = typing.get_type_hints(struct)
    assert set(declared.fields) == set(hints), where
    for field, kind in declared.fields.items():
        compare_value(interface, kind, hints[field], f"{where}.{field}")


def compare_value(interface: scanner.Interface, kind: Any, hint: Any, where: str) -> None:
    members = (
        typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else ()
    )
    assert isinstance(kind, scanner._Maybe) == (type(None) in members), f"{where}: optional or not"
    if members:
        kind = kind.element_type
        (hint,) = [member for member in members if member is not type(None)]
    if isinstance(kind, scanner._CustomType):
        kind = interface.members[kind.name].type
    origin = typing.get_origin(hint)
    if isinstance(kind, scanner._Struct):
        compare(interface, kind, hint, where)
    elif isinstance(kind, scanner._Array):
        assert origin is list, where
        compare_value(interface, kind.element_type, typing.get_args(hint)[0], f"{where}[]")
    elif isinstance(kind, scanner._Dict):
        assert origin is dict, where
    elif isinstance(kind, scanner._Object):
        assert issubclass(hint, msgspec.Struct), where
    elif isinstance(kind, scanner._Enum):
        if origin is typing.Literal:
            assert list(kind.fields) == list(typing.get_args(hint)), where
        else:
            assert hint is str, where
    else:
        plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        assert plain is type(kind) or (plain is bytes and type(kind) is str), where


def test_there_is_no_float_in_any_interface() -> None:
    for text in idl_texts().values():
        code = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert "float" not in code


def names(members: type[enum.IntEnum]) -> list[str]:
    return [member.name.lower() for member in members]


@pytest.mark.parametrize(
    ("interface", "alias", "members"),
    [
        ("io.leased.Lease", "ResourceKind", ResourceKind),
        ("io.leased.Lease", "Tier", TierKind),
        ("io.leased.Lease", "Priority", Priority),
        ("io.leased.Lease", "State", LeaseState),
        ("io.leased.Lease", "Ending", Ending),
        ("io.leased.Lease", "RevocationReason", RevocationReason),
        ("io.leased.Lease", "RefusalReason", RefusalReason),
        ("io.leased.Device", "ResourceKind", ResourceKind),
        ("io.leased.Device", "Tier", TierKind),
        ("io.leased.Admin", "RevocationReason", RevocationReason),
        ("io.leased.Admin", "Priority", Priority),
    ],
)
def test_closed_sets_are_those_of_the_terms(
    interface: str, alias: str, members: type[enum.IntEnum]
) -> None:
    assert list(INTERFACES[interface].members[alias].type.fields) == names(members)


def test_the_refused_error_has_the_fields_of_a_refusal() -> None:
    lease = INTERFACES["io.leased.Lease"]
    compare(lease, lease.members["Refused"].type, objects.Refusal, "Refused")
    compare(lease, lease.members["Refusal"].type, objects.Refusal, "Refusal")


def test_every_error_that_is_sent_is_in_an_interface() -> None:
    declared = [
        f"{interface.name}.{member.name}"
        for interface in INTERFACES.values()
        for member in interface.members.values()
        if isinstance(member, scanner._Error)
    ]
    families = [LeasedError]
    for family in families:
        families += family.__subclasses__()
    ours = [
        error.wire
        for error in families
        if error.__module__ == "leased.terms.errors"
        and not error.wire.startswith("io.leased.Error")
    ]
    assert sorted(set(ours) - set(declared)) == []


def test_every_method_type_and_error_is_documented() -> None:
    for interface in INTERFACES.values():
        for member in interface.members.values():
            if isinstance(member, scanner._Method):
                assert member.doc.strip(), f"{interface.name}.{member.name} has no comment"
