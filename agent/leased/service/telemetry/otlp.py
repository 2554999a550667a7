# SPDX-License-Identifier: Apache-2.0
"""OTLP: samples as the messages of OpenTelemetry's protocol, and a receiver's answer read.

Rule: one metric per series, one point per sample, at the instant when it was read; a counter is a
cumulative sum since its beginning. What has gone stale is one point without a value ("no recorded
value"), so that a graph ends where knowledge does. Values leave in the exported unit.

This is the door to the protocol's messages. Does not send (`sender`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    Metric,
)

from leased.terms.moment import Moment
from leased.terms.sample import Sample
from leased.terms.series import SERIES, Series

RESOURCE_ID: Final = "leased.resource.id"
LEASE_ID: Final = "leased.lease.id"
TENANT: Final = "leased.tenant"
HARDWARE_ID: Final = "hw.id"
SCOPE: Final = "leased"
_NOTHING: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


class Origin(msgspec.Struct, frozen=True):
    """Who speaks."""

    node_id: str
    host: str
    version: str
    tenants: bool = True


def encode(
    origin: Origin, samples: Iterable[Sample], moment: Moment, ended: Iterable[Sample] = ()
) -> bytes:
    """One request; `ended` are the last samples of series that know nothing any more."""
    request = ExportMetricsServiceRequest()
    told = request.resource_metrics.add()
    for key, value in (
        ("service.name", "leased"),
        ("service.version", origin.version),
        ("service.instance.id", origin.node_id),
        ("host.id", origin.node_id),
        ("host.name", origin.host),
    ):
        _attribute(told.resource.attributes, key, value)
    scope = told.scope_metrics.add()
    scope.scope.name, scope.scope.version = SCOPE, origin.version
    metrics: dict[str, Metric] = {}
    wall_of_boot_ns = moment.wall_ns - moment.boot_ns
    for sample, known in (*((one, True) for one in samples), *((one, False) for one in ended)):
        series = SERIES[sample.name]
        metric = metrics.get(sample.name)
        if metric is None:
            metric = metrics[sample.name] = _metric(scope.metrics.add(), series)
        point = (metric.sum if series.counter else metric.gauge).data_points.add()
        _describe(point, sample, series, origin)
        if series.counter:
            point.start_time_unix_nano = max(0, wall_of_boot_ns + sample.since_ns)
        if known:
            point.time_unix_nano = max(0, wall_of_boot_ns + sample.sampled_ns)
            _value(point, sample.value, series)
        else:
            point.time_unix_nano = moment.wall_ns
            point.flags = _NOTHING
    return bytes(request.SerializeToString())


def rejected_points(answer: bytes) -> tuple[int, str]:
    """What a receiver that took a request did not take of it, and why; (0, "") where its answer
    cannot be read: it did take it."""
    response = ExportMetricsServiceResponse()
    try:
        response.ParseFromString(answer)
    except DecodeError:
        return 0, ""
    partial = response.partial_success
    return max(0, partial.rejected_data_points), partial.error_message


def _metric(metric: Metric, series: Series) -> Metric:
    metric.name, metric.unit, metric.description = series.name, series.exported, series.says
    if series.counter:
        metric.sum.is_monotonic = True
        metric.sum.aggregation_temporality = (
            AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        )
    return metric


def _value(point: Any, value: int, series: Series) -> None:
    if series.per == 1:
        point.as_int = value
    else:
        point.as_double = value / series.per


def _describe(point: Any, sample: Sample, series: Series, origin: Origin) -> None:
    for key, value in sample.attributes:
        _attribute(point.attributes, key, value)
    if sample.resource_id:
        _attribute(point.attributes, RESOURCE_ID, sample.resource_id)
        if series.name.startswith("hw."):
            _attribute(point.attributes, HARDWARE_ID, sample.resource_id)
    if sample.lease_id is not None:
        _attribute(point.attributes, LEASE_ID, sample.lease_id.hex())
        if origin.tenants and sample.tenant:
            _attribute(point.attributes, TENANT, sample.tenant)


def _attribute(attributes: Any, key: str, value: str) -> None:
    told = attributes.add()
    told.key, told.value.string_value = key, value
