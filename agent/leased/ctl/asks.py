# SPDX-License-Identifier: Apache-2.0
"""Asks: resources as people write them, `256MiB,tier=dram` or `500m`, as the call wants them.

Rule: a number without its unit is refused where it could be misread; a size that is no whole number
of pages is rounded up, and that is said. Capacities come out in raw units: bytes, 1/1000 core,
1/1000 device, bit/s.

Does not know what the host has: that answer comes from the agent.
"""

from __future__ import annotations

import argparse
import re
import string
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from leased.client.amounts import amount as amount
from leased.terms import quantity, resource
from leased.terms.errors import InvalidParameter
from leased.terms.quantity import MILLI, print_size
from leased.wire import portrayal
from leased.wire.complaints import blamed_parameter, in_words
from leased.wire.parameters import Parameters

C = TypeVar("C", bound=Parameters)
DECIMAL_SIZES: Final = ("KB", "MB", "GB", "TB", "K", "M", "G", "T", "k", "kB")
PAGE_BYTES_DEFAULT: Final = 4096
MEMORY_SHAPES: Final = tuple(shape.value for shape in resource.MEMORY_SHAPES)
BLOCK_SHAPES: Final = tuple(shape.value for shape in resource.BLOCK_SHAPES)
_COUNT: Final = re.compile(r"[1-9]\d{0,5}", re.ASCII)
_SHARES: Final = re.compile(r"([1-9]\d{0,8})m", re.ASCII)


def parse_duration(text: str) -> int:
    """ "60s", "30m", "2h" as ns. Raises InvalidParameter."""
    return _parsed(quantity.parse_duration, "duration", text)


def parse_size(text: str) -> int:
    """ "256MiB", "1.5GiB" as bytes; a fraction of a byte is rounded up. Raises InvalidParameter."""
    number = text.rstrip(string.ascii_letters)
    unit = text.removeprefix(number)
    if unit in DECIMAL_SIZES and number:
        meant = f"{number.strip()}{unit[0].upper()}iB"
        raise InvalidParameter("size", f'"{text}": sizes are binary here; write "{meant}"')
    return _parsed(partial(quantity.parse_size, rounded_up=True), "size", text)


def parse_bandwidth(text: str) -> int:
    """ "10Gbit" as bit/s. Raises InvalidParameter."""
    return _parsed(quantity.parse_bit_rate, "rate", text)


def _parsed(parse: Callable[[str], int], what: str, text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidParameter(what, f'"{text}": {error}') from error


def memory(text: str) -> dict[str, Any]:
    """--mem SIZE[,tier=T][,node=N][,page=SIZE][,SHAPE][,id=RESOURCE]."""
    head, options = _split(text, ("tier", "node", "page", "shape", "id"), MEMORY_SHAPES)
    page_bytes = parse_size(options["page"]) if "page" in options else PAGE_BYTES_DEFAULT
    if page_bytes <= 0 or page_bytes & (page_bytes - 1):
        raise InvalidParameter("page", f'"{options["page"]}": a page size is a power of two')
    size = parse_size(head)
    ask = {"kind": "mem", "capacity": -(-size // page_bytes) * page_bytes}
    if "page" in options:
        ask["page_size"] = page_bytes
    return _with_place(ask, options)


def cores(text: str) -> dict[str, Any]:
    """--cpu N (whole cores, nobody else's) or --cpu Nm (thousandths of a
    core)[,node=N][,id=RESOURCE].
    """
    head, options = _split(text, ("node", "id"))
    shares = _SHARES.fullmatch(head)
    if shares is not None:
        return _with_place({"kind": "cpu", "capacity": int(shares[1])}, options)
    if _COUNT.fullmatch(head) is None:
        raise InvalidParameter(
            "cpu", f'"{head}": write whole cores as "2" and parts of a core as "500m"'
        )
    whole = {"kind": "cpu", "capacity": int(head) * MILLI, "exclusive": True}
    return _with_place(whole, options)


def devices(text: str) -> dict[str, Any]:
    """--gpu N[,mig=PROFILE][,model=M][,tier=T][,node=N], or --gpu uuid=UUID (a GPU's or a MIG
    instance's).
    """
    head, options = _split(text, ("mig", "model", "tier", "node", "uuid", "id"))
    if "uuid" in options:
        options["id"] = f"gpu:{options.pop('uuid')}"
    if _COUNT.fullmatch(head) is None:
        raise InvalidParameter("gpu", f'"{head}": GPUs are leased whole: write "1", "2", …')
    if "mig" in options or "id" in options:
        ask: dict[str, Any] = {"kind": "gpu", "capacity": 1, "count": int(head)}
    else:
        ask = {"kind": "gpu", "capacity": int(head) * MILLI}
    attributes = {name: options[name] for name in ("mig", "model") if name in options}
    return _with_place(ask | ({"attributes": attributes} if attributes else {}), options)


def block(text: str) -> dict[str, Any]:
    """--block SIZE or N[,min=SIZE][,class=crypt|raw][,model=M][,node=N], or --block id=RESOURCE."""
    head, options = _split(text, ("min", "class", "model", "node", "id"), BLOCK_SHAPES)
    if "class" in options:
        if "shape" in options or options["class"] not in BLOCK_SHAPES:
            raise InvalidParameter("class", f'"{options["class"]}": one of crypt, raw')
        options["shape"] = options.pop("class")
    if _COUNT.fullmatch(head) is None:
        if "min" in options:
            raise InvalidParameter("block", f'"{head}": write how many, as in "1,min=100GiB"')
        ask: dict[str, Any] = {"kind": "block", "capacity": parse_size(head)}
    else:
        least = parse_size(options["min"]) if "min" in options else 1
        ask = {"kind": "block", "capacity": least, "count": int(head)}
    if "model" in options:
        ask["attributes"] = {"model": options["model"]}
    return _with_place(ask, options)


def network(text: str) -> dict[str, Any]:
    """--net RATE[,node=N][,id=RESOURCE]."""
    head, options = _split(text, ("node", "id"))
    return _with_place({"kind": "net", "capacity": parse_bandwidth(head)}, options)


def tag(text: str) -> dict[str, Any]:
    """--tag [COST_CENTER][,project=…][,class=…][,budget=…]. Without a cost centre it is shared
    cost."""
    names = ("project", "class", "budget")
    # What begins with an option is no cost centre: not even one of the name 1 (`_split`).
    head, options = _split("," * (text.partition("=")[0] in names) + text, names)
    found = {"cost_center": head}
    for option, field in (
        ("project", "project"),
        ("class", "request_class"),
        ("budget", "budget_group"),
    ):
        if option in options:
            found[field] = options[option]
    return found


def rounding_note(text: str, ask: dict[str, Any]) -> str | None:
    """What to tell of an ask that was rounded up; None if it was not."""
    if ask["kind"] != "mem":
        return None
    asked = parse_size(text.split(",")[0])
    if asked == ask["capacity"]:
        return None
    page_bytes = ask.get("page_size", PAGE_BYTES_DEFAULT)
    return (
        f"note: {text.split(',')[0]} is no whole number of {print_size(page_bytes)} pages;"
        f" asking for {print_size(ask['capacity'])}"
    )


def _split(
    text: str, allowed: tuple[str, ...], shapes: tuple[str, ...] = ()
) -> tuple[str, dict[str, str]]:
    """How much, and the options. What is one thing by name needs no number: `uuid=...` is 1 of it.
    A shape may stand alone: `64MiB,rdma`."""
    head, *rest = text.split(",")
    if head.partition("=")[0] in allowed:
        head, rest = "1", [head, *rest]
    options: dict[str, str] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if part in shapes:
            name, equals, value = "shape", "=", part
        if not equals or not value or name not in (*allowed, "shape") or name in options:
            known = ", ".join((*(f"{one}=" for one in allowed), *shapes))
            raise InvalidParameter(name or "option", f'"{part}": one each of {known} may follow')
        if name == "shape" and value not in shapes:
            raise InvalidParameter(name, f'"{value}": one of {", ".join(shapes)}')
        options[name] = value
    return head, options


def _with_place(ask: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    if ask["capacity"] <= 0:
        raise InvalidParameter(ask["kind"], "nothing was asked for")
    if "tier" in options:
        if options["tier"] not in portrayal.TIER:
            known = ", ".join(portrayal.TIER)
            raise InvalidParameter("tier", f'"{options["tier"]}": one of {known}')
        ask["tier"] = options["tier"]
    if "node" in options:
        if not options["node"].isascii() or not options["node"].isdigit():
            raise InvalidParameter("node", f'"{options["node"]}": a NUMA node is a number')
        ask["node"] = int(options["node"])
    if "id" in options:
        ask["resource_id"] = options["id"]
    if "shape" in options:
        ask["shape"] = options["shape"]
    return ask


KINDS: Final = (
    (
        "mem",
        memory,
        "SIZE",
        "memory: 256MiB[,tier=T][,node=N][,page=SIZE][,budget|dax|rdma]",
    ),
    ("cpu", cores, "N", "whole cores: 2[,node=N][,id=R]; thousandths of one: 500m"),
    ("gpu", devices, "N", "whole GPUs: 1[,model=M][,node=N]; MIG instances: 1,mig=P; or uuid=U"),
    ("block", block, "SIZE", "a namespace of at least: 500GiB[,raw]; several: 2,min=SIZE; or id=R"),
    ("net", network, "RATE", "network bandwidth: 10Gbit[,id=R]"),
)


def add_request(parser: argparse.ArgumentParser) -> None:
    """The options that describe an Acquire."""
    wanted = parser.add_argument_group("resources", "all of them or none; may be repeated")
    for name, _, form, text in KINDS:
        wanted.add_argument(f"--{name}", action="append", default=[], metavar=form, help=text)
    terms = parser.add_argument_group("terms")
    terms.add_argument("--ttl", metavar="TIME", help="until when, if not renewed (60s)")
    terms.add_argument("--wait", metavar="TIME", help="queue for at most this long (default: not)")
    terms.add_argument("--priority", choices=tuple(portrayal.PRIORITY), help="default: standard")
    terms.add_argument("--grace", metavar="TIME", help="notice wanted before being taken off")
    terms.add_argument("--workload", metavar="NAME", help="your name for the job")
    terms.add_argument(
        "--tag", metavar="CENTER", help="who pays: CENTER[,project=P][,class=C][,budget=B]"
    )


def add_rank(parser: argparse.ArgumentParser) -> None:
    """The options that say how a request stands among others."""
    rank = parser.add_argument_group("among others")
    rank.add_argument(
        "--level", choices=portrayal.LEVEL, help="default: that of the priority (normal)"
    )
    rank.add_argument(
        "--requeue",
        metavar="LEASE",
        help="a lease that was taken from you: wait at the head of your level, for no more than it",
    )


def take_duration(options: argparse.Namespace) -> None:
    """What `--for` says is the ttl. Raises InvalidParameter."""
    if options.duration is not None:
        if options.ttl is not None:
            raise InvalidParameter("ttl", "--for says how long")
        options.ttl = options.duration


def refuse_request(options: argparse.Namespace, why: str) -> None:
    """Nothing of `add_request` has a meaning here. Raises InvalidParameter."""
    terms = ("ttl", "wait", "priority", "grace", "workload", "tag")
    for name in (*(kind for kind, *_ in KINDS), *terms):
        if getattr(options, name):
            raise InvalidParameter(name, why)


def request(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The parameters of an Acquire or Plan, and what to note. Raises InvalidParameter."""
    resources: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, parse, _, _ in KINDS:
        for text in getattr(options, name):
            ask = parse(text)
            note = rounding_note(text, ask)
            if note is not None:
                notes.append(note)
            resources.append(ask)
    if not resources:
        raise InvalidParameter("resources", "say what is wanted, such as --mem 256MiB or --cpu 2")
    found: dict[str, Any] = {"resources": resources}
    for name in ("ttl", "wait", "grace"):
        text = getattr(options, name)
        if text is not None:
            found[f"{name}_ns"] = parse_duration(text)
    for option, name in (
        ("priority", "priority"),
        ("level", "level"),
        ("requeue", "requeue_of"),
        ("workload", "workload"),
    ):
        if getattr(options, option, None) is not None:
            found[name] = getattr(options, option)
    if options.tag is not None:
        found["accounting_tag"] = tag(options.tag)
    return found, notes


def as_call(asked: dict[str, Any], call: type[C]) -> C:
    """A request as the struct that the call takes. Raises InvalidParameter."""
    try:
        return msgspec.convert(asked, call)
    except msgspec.ValidationError as error:
        why = str(error)
        raise InvalidParameter(blamed_parameter(why), in_words(why)) from error
