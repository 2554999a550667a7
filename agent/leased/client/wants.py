# SPDX-License-Identifier: Apache-2.0
"""Wants: `gpu=1, mem="4GiB"` as the asks of a request.

Rule: quantities are exact: a number with a unit that is not whole in the kind's raw unit is
refused, not rounded.

Does not know what the host has.
"""

from __future__ import annotations

import re

import msgspec

from leased.terms.errors import InvalidParameter
from leased.terms.quantity import MILLI
from leased.wire.complaints import blamed_parameter, in_words
from leased.wire.objects import Ask

_BYTES = re.compile(r"^(\d+)(?:\.(\d{1,9}))?\s*([kKMGTP]?)(i?)B?$")
_EXPONENT = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_bytes(text: str | float, parameter: str) -> int:
    """Bytes of `4GiB`, `4G` (both 1024-based, as memory is), `1.5T`, or a bare number."""
    if isinstance(text, int):
        return text
    match = _BYTES.match(str(text).strip())
    if match is None:
        raise InvalidParameter(parameter, f"{text!r} is not a size like 512M, 4GiB or 1.5T")
    whole, fraction, unit, _ = match.groups()
    scale: int = 1 << 10 * _EXPONENT[unit]
    places = fraction or ""
    size, rest = divmod(int(whole + places) * scale, int("1" + "0" * len(places)))
    if rest:
        raise InvalidParameter(parameter, f"{text!r} is not a whole number of bytes")
    return size


def parse_milli(text: str | float, parameter: str) -> int:
    """Thousandths of `2`, `1.5` or `500m`. A number counts whole units."""
    if isinstance(text, int):
        return text * MILLI
    match = re.match(r"^(?:(\d+)m|(\d+)(?:\.(\d{1,3}))?)$", str(text).strip())
    if match is None:
        raise InvalidParameter(parameter, f"{text!r} is not a number like 2, 1.5 or 500m")
    milli, whole, fraction = match.groups()
    if milli is not None:
        return int(milli)
    return int(whole) * MILLI + int((fraction or "").ljust(3, "0"))


def want(
    *,
    gpu: str | int = 0,
    cpu: str | float = 0,
    mem: str | int = 0,
    block: str | int = 0,
    tier: str | None = None,
    node: int | None = None,
    page_size: str | int | None = None,
    exclusive: bool = False,
    shape: str | None = None,
    mig: str | None = None,
    model: str | None = None,
    raw: bool = False,
) -> list[Ask]:
    """The asks for so many GPUs, cores, bytes of memory, and a namespace of at least so many bytes.
    `tier`, `page_size` and `shape` are for mem, `node` for cpu and mem, `exclusive` for cpu; `mig`
    (a profile: then `gpu` counts instances) and `model` for gpu, `raw` for block. Raises
    InvalidParameter.
    """
    asks: list[dict[str, object]] = []
    if gpu:
        milli = parse_milli(gpu, "gpu")
        attributes = {"mig": mig, "model": model}
        asks.append(
            {
                "kind": "gpu",
                "capacity": milli if mig is None else 1,
                "count": None if mig is None else milli // MILLI,
                "attributes": {name: said for name, said in attributes.items() if said} or None,
            }
        )
    if cpu:
        asks.append(
            {
                "kind": "cpu",
                "capacity": parse_milli(cpu, "cpu"),
                "node": node,
                "exclusive": exclusive or None,
            }
        )
    if mem:
        asks.append(
            {
                "kind": "mem",
                "capacity": parse_bytes(mem, "mem"),
                "tier": tier,
                "node": node,
                "page_size": None if page_size is None else parse_bytes(page_size, "page_size"),
                "shape": shape,
            }
        )
    if block:
        asks.append(
            {
                "kind": "block",
                "capacity": parse_bytes(block, "block"),
                "shape": "raw" if raw else None,
            }
        )
    if not asks:
        raise InvalidParameter("resources", "ask for something: gpu, cpu, mem or block")
    try:
        return msgspec.convert(asks, list[Ask])
    except msgspec.ValidationError as error:
        why = str(error)
        raise InvalidParameter(f"resources{blamed_parameter(why)}", in_words(why)) from error
