# SPDX-License-Identifier: Apache-2.0
"""What wants an operator of a fleet is told by `leasectl collector status`, and by its status."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from typing import Any

import pytest

from leased.ctl.collector import status
from leased.ctl.console import Console

LOG = {"log_id": "ab" * 16, "verdict": "OK", "why": "", "records": 9, "age_seconds": 3}
NODE = {"name": "alpha", "leases": 1, "ending": 0, "fenced": 0, "logs": [LOG]}
NOW = "2026-11-30T14:00:00Z"


class Answers:
    """A link to a collector that says of its nodes what it is told."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self._nodes = list(nodes)

    def get(self, path: str) -> dict[str, Any]:
        assert path == "/v1/nodes"
        return {"nodes": self._nodes, "as_of": NOW}


@pytest.mark.parametrize(
    ("node", "says", "ends"),
    [
        (NODE, "", 0),
        (NODE | {"why": ""}, "", 0),
        (NODE | {"why": "it names too much"}, "set aside alpha: it names too much", 65),
    ],
    ids=["earlier", "sound", "aside"],
)
def test_a_node_that_is_set_aside_wants_an_operator(
    node: dict[str, Any], says: str, ends: int
) -> None:
    for as_json in (False, True):
        console, link = Console(io.StringIO(), io.StringIO()), Answers(node)
        ended = status(Namespace(json=as_json), console, link)  # type: ignore[arg-type]
        assert ended == ends
        told = console.out.getvalue()
        if as_json:
            assert bool(json.loads(told)["set_aside"]) is bool(ends)
        else:
            assert says in told and ("set aside" in told) is bool(ends)
