# SPDX-License-Identifier: Apache-2.0
"""[telemetry]: where samples may go, and what is refused by name."""

from __future__ import annotations

import pytest

from leased.service import config_file
from leased.service.telemetry.streaming import Streaming, check, parse_endpoint
from leased.terms.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "tls"),
    [
        ("https://collector.example", "collector.example", 4318, "/v1/metrics", True),
        (
            "https://collector.example:8443/otlp/v1/metrics",
            "collector.example",
            8443,
            "/otlp/v1/metrics",
            True,
        ),
        ("https://[2001:db8::1]/", "2001:db8::1", 4318, "/v1/metrics", True),
        ("http://127.0.0.1:4318", "127.0.0.1", 4318, "/v1/metrics", False),
        ("http://localhost", "localhost", 4318, "/v1/metrics", False),
    ],
)
def test_an_endpoint_is_taken_apart(url: str, host: str, port: int, path: str, tls: bool) -> None:
    told = parse_endpoint(url)
    assert (told.host, told.port, told.path, told.tls) == (host, port, path, tls)
    assert told.authority == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@pytest.mark.parametrize(
    "url",
    [
        "collector.example",
        "http://collector.example",
        "http://192.0.2.1:4318",
        "https://",
        "https://name:secret@collector.example",
        "https://collector.example:99999",
        "https://collector.example/v1/metrics?token=1",
        "grpc://collector.example:4317",
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="telemetry.endpoint"):
        config_file.parse(f'[telemetry]\nendpoint = "{url}"', "leased.toml")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('interval = "100ms"', "telemetry.interval: at least 1s"),
        ('certificate = "/etc/leased/node.pem"', "go together"),
        ('ca = "ca.pem"', "telemetry.ca: must be absolute"),
        ('job_mapping_dir = "jobs"', "telemetry.job_mapping_dir: must be absolute"),
        ("leases_max = 0", "telemetry.leases_max"),
        ('buffer_max = "0B"', "telemetry.buffer_max:"),
        ('buffer_max = "0MiB"', "telemetry.buffer"),
        ('endpoit = "https://a"', "endpoint"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config_file.parse(f"[telemetry]\n{text}", "leased.toml")


def test_nothing_is_sent_until_an_endpoint_is_given() -> None:
    assert not check(Streaming()).on
    assert check(Streaming(endpoint="https://collector.example")).on
