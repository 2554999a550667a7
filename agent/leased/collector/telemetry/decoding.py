# SPDX-License-Identifier: Apache-2.0
"""Decoding: an OTLP request as points of the series that we know.

Rule: nothing of a request is believed before it was looked at: sizes are bounded before anything is
unpacked, a series that is not in the table, a value that it cannot have, an attribute that is not
its own, or a time that is not about now is left out and counted, with the first reason. Values come
back to the integers that the node read.

This is the door to the protocol's messages. Does not know who sent it (`receiver`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags

from leased.terms.errors import CallerError
from leased.terms.identity import ID_BYTES
from leased.terms.moment import DAY_NS, NS_PER_S
from leased.terms.series import SERIES, Series

PACKED_BYTES_MAX: Final = 1 << 20
BODY_BYTES_MAX: Final = 2 << 20
"""Twice what a node packs into one request (1 000 points, and as many ends of series). A message
that is in memory takes up to 80 times its bytes: an empty point has two."""

POINTS_MAX: Final = 20_000
TEXT_CHARS_MAX: Final = 256
PAST_NS_MAX: Final = DAY_NS
FUTURE_NS_MAX: Final = 300 * NS_PER_S
"""How far from our own clock a point's time may be."""

RESOURCE_ID: Final = "leased.resource.id"
LEASE_ID: Final = "leased.lease.id"
TENANT: Final = "leased.tenant"
_PLACES: Final = (RESOURCE_ID, LEASE_ID, TENANT, "hw.id")
_NOTHING: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


class Key(msgspec.Struct, frozen=True):
    """What a series is of."""

    node: str
    resource: str
    lease: str
    tenant: str
    name: str
    attributes: tuple[tuple[str, str], ...]


class Point(msgspec.Struct, frozen=True):
    """One value at a time (Unix ns); None: nothing is known from there on."""

    key: Key
    time_ns: int
    value: int | None


class Decoded(msgspec.Struct, frozen=True):
    """What a request held: whose it says it is, its points, how many were left out, and why."""

    node: str
    points: tuple[Point, ...]
    rejected: int
    why: str


def unpack(body: bytes, encoding: str) -> bytes:
    """The message. Raises CallerError."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise CallerError(f"Content-Encoding {encoding[:40]}: gzip or none")
    try:
        inflating = zlib.decompressobj(wbits=31)
        message = inflating.decompress(body, BODY_BYTES_MAX)
    except zlib.error as error:
        raise CallerError(f"not gzip: {error}") from error
    if inflating.unconsumed_tail or inflating.unused_data or not inflating.eof:
        raise CallerError(f"not a whole gzip body of {BODY_BYTES_MAX} bytes at most")
    return message


def decode(message: bytes, now_ns: int) -> Decoded:
    """The points of a request. Raises CallerError where it is none."""
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(message)
    except DecodeError as error:
        raise CallerError("not an ExportMetricsServiceRequest") from error
    told: list[Point] = []
    rejected, first = 0, ""
    nodes: dict[str, None] = {}
    for part in request.resource_metrics:
        about = {one.key: one.value.string_value for one in part.resource.attributes}
        node = about.get("service.instance.id") or about.get("host.id") or ""
        nodes[node] = None
        for metric in (metric for scope in part.scope_metrics for metric in scope.metrics):
            for point, why in _points(node, metric, now_ns):
                if point is not None and len(told) < POINTS_MAX:
                    told.append(point)
                else:
                    rejected += 1
                    first = first or why or f"more than {POINTS_MAX} points in one request"
    if len(nodes) > 1:
        raise CallerError("one request is of one node")
    return Decoded(next(iter(nodes), ""), tuple(told), rejected, first)


def answer(rejected: int = 0, why: str = "") -> bytes:
    """What a receiver says that took a request."""
    response = ExportMetricsServiceResponse()
    if rejected:
        response.partial_success.rejected_data_points = rejected
        response.partial_success.error_message = why
    return bytes(response.SerializeToString())


def _points(node: str, metric: Any, now_ns: int) -> Iterator[tuple[Point | None, str]]:
    kind = metric.WhichOneof("data")
    told = getattr(metric, kind).data_points if kind else ()
    series = SERIES.get(metric.name)
    for point in told:
        if series is None:
            yield None, f"{metric.name[:80]}: no series of this fleet"
            continue
        if kind != ("sum" if series.counter else "gauge"):
            yield None, f"{series.name}: not a {kind}"
            continue
        try:
            yield _point(node, series, point, now_ns), ""
        except ValueError as error:
            yield None, f"{series.name}: {error}"


def _point(node: str, series: Series, point: Any, now_ns: int) -> Point:
    told = {one.key: one.value.string_value for one in point.attributes}
    if any(len(value) > TEXT_CHARS_MAX for value in told.values()):
        raise ValueError("an attribute is too long")
    own = tuple((key, told[key]) for key in series.attributes if key in told)
    if len(own) + sum(key in told for key in _PLACES) != len(point.attributes):
        raise ValueError("an attribute is not its own")
    lease = told.get(LEASE_ID, "")
    if lease and (len(lease) != 2 * ID_BYTES or not _is_hex(lease)):
        raise ValueError("not a lease's id")
    at_ns = int(point.time_unix_nano)
    if not now_ns - PAST_NS_MAX <= at_ns <= now_ns + FUTURE_NS_MAX:
        raise ValueError("its time is not about now")
    resource, tenant = told.get(RESOURCE_ID, ""), told.get(TENANT, "")
    key = Key(node, resource, lease, tenant, series.name, own)
    if point.flags & _NOTHING:
        return Point(key, at_ns, None)
    return Point(key, at_ns, _value(series, point))


def _value(series: Series, point: Any) -> int:
    if point.WhichOneof("value") == "as_int":
        value = int(point.as_int) * series.per
    else:
        exact = float(point.as_double) * series.per
        if not math.isfinite(exact):
            raise ValueError("not a number")
        value = round(exact)
    if not series.holds(value):
        raise ValueError("a value that it cannot have")
    return value


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
