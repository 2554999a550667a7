# SPDX-License-Identifier: Apache-2.0
"""What people type, and what is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leased.ctl import asks
from leased.ctl.admin import parse_capacity
from leased.ctl.main import build_parser
from leased.terms.errors import InvalidParameter
from leased.terms.quantity import print_size
from leased.wire.parameters import Plan

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "ns"),
    [("60s", 60 * 10**9), ("100ms", 10**8), ("30m", 1800 * 10**9), ("1.5h", 5400 * 10**9)],
)
def test_durations(text: str, ns: int) -> None:
    assert asks.parse_duration(text) == ns


@pytest.mark.parametrize("text", ["60", "s", "-1s", "1.5ns", "1e3s", "60 sec", "", "٣s"])
def test_durations_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(InvalidParameter):
        asks.parse_duration(text)


def test_sizes_are_binary_and_say_so() -> None:
    assert asks.parse_size("256MiB") == 256 * MIB
    assert asks.parse_size("1.5GiB") == 1536 * MIB
    for text in ("4G", "4GB", "512k"):
        with pytest.raises(InvalidParameter, match="binary"):
            asks.parse_size(text)


@given(st.integers(0, 1 << 50))
@settings(derandomize=True, deadline=None)
def test_a_size_that_is_shown_can_be_typed(count: int) -> None:
    assert asks.parse_size(print_size(count)) == count


@given(st.sampled_from(("mem", "cpu", "gpu", "block", "net")), st.integers(1, 1 << 50))
@settings(derandomize=True, deadline=None)
def test_an_amount_that_is_shown_can_be_typed(kind: str, count: int) -> None:
    assert parse_capacity(kind, asks.amount(kind, count)) == count


@pytest.mark.parametrize(
    ("kind", "text", "meant"),
    [("net", "10", "10Gbit"), ("net", "500m", "Gbit"), ("gpu", "two", "500m")]
    + [(kind, "9" * 5_000, "500m") for kind in ("cpu", "gpu")],
)
def test_a_capacity_that_cannot_be_meant_is_told_as_one_of_its_kind(
    kind: str, text: str, meant: str
) -> None:
    with pytest.raises(InvalidParameter, match=meant):
        parse_capacity(kind, text)


def test_memory_in_full() -> None:
    assert asks.memory("256MiB,tier=hbm,node=1,page=2MiB,shape=memfd") == {
        "kind": "mem",
        "capacity": 256 * MIB,
        "tier": "hbm",
        "node": 1,
        "page_size": 2 * MIB,
        "shape": "memfd",
    }


def test_memory_is_rounded_up_to_whole_pages_and_that_is_said() -> None:
    ask = asks.memory("3MiB,page=2MiB")
    assert ask["capacity"] == 4 * MIB
    note = asks.rounding_note("3MiB,page=2MiB", ask)
    assert note == "note: 3MiB is no whole number of 2MiB pages; asking for 4MiB"
    assert asks.rounding_note("4MiB", asks.memory("4MiB")) is None


def test_cores_whole_and_in_parts() -> None:
    assert asks.cores("2") == {"kind": "cpu", "capacity": 2000, "exclusive": True}
    assert asks.cores("500m") == {"kind": "cpu", "capacity": 500}


def test_gpus_by_number_by_what_they_are_and_by_name() -> None:
    assert asks.devices("2,tier=hbm,node=1,model=H200") == {
        "kind": "gpu",
        "capacity": 2000,
        "tier": "hbm",
        "node": 1,
        "attributes": {"model": "H200"},
    }
    assert asks.devices("3,mig=1g.10gb") == {
        "kind": "gpu",
        "capacity": 1,
        "count": 3,
        "attributes": {"mig": "1g.10gb"},
    }
    by_name = {"kind": "gpu", "capacity": 1, "count": 1, "resource_id": "gpu:GPU-4c"}
    for text in ("uuid=GPU-4c", "1,uuid=GPU-4c", "id=gpu:GPU-4c"):
        assert asks.devices(text) == by_name


def test_namespaces_by_size_by_number_and_by_name() -> None:
    least = {"kind": "block", "capacity": 100 << 30}
    assert asks.block("100GiB") == least
    assert asks.block("1,min=100GiB") == {**least, "count": 1}
    assert asks.block("2,min=100GiB,class=raw") == {**least, "count": 2, "shape": "raw"}
    assert asks.block("100GiB,raw,model=PM9A3") == {
        **least,
        "shape": "raw",
        "attributes": {"model": "PM9A3"},
    }
    assert asks.block("id=block:eui.00") == {
        "kind": "block",
        "capacity": 1,
        "count": 1,
        "resource_id": "block:eui.00",
    }


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("CC-1", {"cost_center": "CC-1"}),
        ("CC-1,project=atlas", {"cost_center": "CC-1", "project": "atlas"}),
        ("1", {"cost_center": "1"}),
        ("project=atlas,budget=q1", {"cost_center": "", "project": "atlas", "budget_group": "q1"}),
        ("class=batch", {"cost_center": "", "request_class": "batch"}),
    ],
)
def test_a_tag_with_and_without_a_cost_centre(text: str, meant: dict[str, str]) -> None:
    assert asks.tag(text) == meant


def test_a_shape_of_memory_may_stand_alone() -> None:
    assert asks.memory("64MiB,rdma") == asks.memory("64MiB,shape=rdma")
    assert asks.memory("1GiB,tier=cxl,dax")["shape"] == "dax"
    assert asks.memory("64MiB,tier=remote")["tier"] == "remote"


@pytest.mark.parametrize(
    "words",
    [
        ["--cpu", "1.5"],
        ["--cpu", "0"],
        ["--cpu", "two"],
        ["--mem", "1GiB,tier=fast"],
        ["--mem", "1GiB,node=x"],
        ["--mem", "1GiB,node=1,node=2"],
        ["--mem", "1GiB,colour=red"],
        ["--mem", "1GiB,page=3KiB"],
        ["--mem", "1GiB,shape=round"],
        ["--mem", "0B"],
        ["--gpu", "0.5"],
        ["--gpu", "1,mig="],
        ["--gpu", "1,class=raw"],
        ["--gpu", "uuid=GPU-1,uuid=GPU-2"],
        ["--block", "0,min=1GiB"],
        ["--block", "1,class=round"],
        ["--block", "1GiB,raw,class=crypt"],
        ["--block", "100GiB,min=100GiB"],
        ["--mem", "1GiB,raw"],
        ["--mem", "tier=dram"],
        ["--net", "10"],
        ["--mem", "1GiB", "--ttl", "60"],
        [],
    ],
)
def test_requests_that_cannot_be_meant(words: list[str]) -> None:
    options = build_parser().parse_args(["plan", *words])
    with pytest.raises(InvalidParameter):
        asks.request(options)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tag", "x" * 129], "cost_center: Expected text of at most 128 characters"),
        (["--workload", "a\nb"], "workload: Expected text without control characters"),
    ],
    ids=["long", "control"],
)
def test_a_label_that_cannot_be_is_refused_in_words(words: list[str], says: str) -> None:
    """It was by the decoder's name of its type, and by a regular expression."""
    asked, _ = asks.request(build_parser().parse_args(["plan", "--cpu", "1", *words]))
    with pytest.raises(InvalidParameter) as refused:
        asks.as_call(asked, Plan)
    assert says in str(refused.value)


def test_a_request_in_full() -> None:
    words = "--mem 1GiB --cpu 2 --cpu 250m --ttl 90s --wait 30m --priority guaranteed"
    words += " --grace 5s --workload job --tag cc-1,project=llm,class=batch"
    asked, notes = asks.request(build_parser().parse_args(["plan", *words.split()]))
    assert [one["kind"] for one in asked["resources"]] == ["mem", "cpu", "cpu"]
    assert (asked["ttl_ns"], asked["wait_ns"]) == (90 * 10**9, 1800 * 10**9)
    assert asked["priority"] == "guaranteed"
    assert asked["accounting_tag"] == {
        "cost_center": "cc-1",
        "project": "llm",
        "request_class": "batch",
    }
    assert notes == []
