# SPDX-License-Identifier: Apache-2.0
"""The governance guide, command by command: every command that it documents is run as it stands in
the guide, on the documented port, and every answer that it shows is held against what comes back.

Rule: nothing of the guide is retyped: commands, answers and quotas are taken out of the copy of it
in `tests/vectors`. An answer has the shape of the documented one if each name is there with a value
of the same kind, all the way down; more names are more. Where the guide contradicts itself the
decision is named (`agent/decisions/0047`).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from leased.collector.api.callers import hash_of
from leased.terms.resource import Allotment
from tests.doubles.collector_server import CollectorServer
from tests.doubles.economics_history import History, subject
from tests.doubles.fleet_archive import (
    HOUR_NS,
    JANUARY_NS,
    cores,
    dram,
    gpus,
    store_two,
    use,
)
from tests.doubles.host import not_proven

DAY_NS = 24 * HOUR_NS
GUIDE = Path(__file__).resolve().parents[1] / "vectors" / "governance-guide.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+#.*$")


class Documented(NamedTuple):
    """A command of the guide, and the answer that the guide shows for it."""

    command: str
    answer: Any = None


def documented() -> list[Documented]:
    """Every command, in the order of the guide."""
    found: list[Documented] = []
    for match in _BLOCK.finditer(GUIDE.read_text("utf-8")):
        language, text = match[1], match[2]
        if language == "json" and text.lstrip().startswith('{\n  "tenant"'):
            found[-1] = found[-1]._replace(answer=json.loads(text))
        if language != "bash":
            continue
        code, _, shown = text.partition("\n{\n")
        for command in re.split(r"(?m)^(?=curl )", code)[1:]:
            lines = [line for line in command.splitlines() if not line.startswith("#")]
            found.append(Documented("\n".join(lines).strip()))
        if shown:
            answer, end = json.JSONDecoder().raw_decode("{" + shown)
            found[-1] = found[-1]._replace(answer=answer)
            for command in re.split(r"(?m)^(?=curl )", ("{" + shown)[end:])[1:]:
                found.append(Documented(command.strip()))
    return found


def kind_of(value: Any) -> str:
    """A JSON value's kind."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def unlike(shown: Any, told: Any, at: str = "") -> list[str]:
    """Where an answer has not the shape of the documented one."""
    if kind_of(shown) != kind_of(told):
        return [
            f"{at or '.'}: {kind_of(told)} {told!r}, and {kind_of(shown)} {shown!r} in the guide"
        ]
    if isinstance(shown, dict):
        missing = [f"{at}.{name}: not there" for name in shown if name not in told]
        inside = [
            why
            for name in shown
            if name in told
            for why in unlike(shown[name], told[name], f"{at}.{name}")
        ]
        return missing + inside
    if isinstance(shown, list):
        if shown and not told:
            return [f"{at}: empty, so nothing of it was compared"]
        return [why for one in shown for why in unlike(one, told[0], f"{at}[]")]
    return []


def a_fleet(state: Path, now_ns: int) -> None:
    """Two nodes since January 2024: on the first, tenant-acme works by day and takes more every
    day of the last 420; the second has been idle for most of it."""
    begin_ns = JANUARY_NS
    now_ns = now_ns // HOUR_NS * HOUR_NS
    first = History(wall_offset_ns=begin_ns)
    first.start()
    first.inventory(cores(400), dram(1024), gpus(8))
    number = itertools.count(1)

    def held(from_ns: int, hours: int, *allotments: Allotment) -> None:
        one = next(number)
        first.boot_ns = from_ns - begin_ns
        first.allocate(
            one, subject(*allotments, tenant="tenant-acme"), first.boot_ns + 99 * HOUR_NS
        )
        first.boot_ns += hours * HOUR_NS
        first.end(one)
        first.reclaim(one)

    held(begin_ns + 24 * HOUR_NS, 2, cores(10))
    for day in range(420):
        held(now_ns - (421 - day) * DAY_NS, 20, cores(150 + day * 59 // 100))
    first.boot_ns = now_ns - 6 * HOUR_NS - begin_ns
    later = first.boot_ns + 48 * HOUR_NS
    first.allocate(next(number), subject(cores(45), dram(128), tenant="tenant-acme"), later)
    first.boot_ns = now_ns - begin_ns
    first.touch()
    second = History(wall_offset_ns=begin_ns)
    second.start()
    second.inventory(cores(8), gpus(8))
    second.boot_ns = now_ns - begin_ns
    second.touch()
    store_two(state, first, second, now_ns)


def telemetry(state: Path, lease_id: str) -> None:
    """What nodes would have told of a lease's use: a fifth of the cores, half of the memory."""
    begin_s = time.time_ns() // 10**9 // 300 * 300 - 20 * 300
    told = [("cpu:0", "cpu", 200_000, 45_000), ("mem:node0:4096", "mem", 500_000, 128 << 30)]
    use(state, begin_s, [(lease_id, *what, used, used, held) for *what, used, held in told])


def quotas_of_the_guide() -> dict[str, Any]:
    """The quotas that the guide begins with, as a body: its YAML has one scalar a line."""
    block = next(
        match[2] for match in _BLOCK.finditer(GUIDE.read_text("utf-8")) if match[1] == "yaml"
    )
    pairs = [_COMMENT.sub("", line).split(":", 1) for line in block.splitlines()[1:] if ":" in line]
    found = {name.strip(): value.strip() for name, value in pairs}
    return {name: int(value) if value.isdecimal() else value for name, value in found.items()}


@pytest.fixture(scope="module")
def paste(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs a command as whoever pastes it would; its output."""
    if os.geteuid() or not all(map(shutil.which, ("jq", "curl", "unshare", "nsenter", "ip"))):
        not_proven("the documented commands as they stand", "needs root, jq, curl and iproute2")
    home = tmp_path_factory.mktemp("guide")
    a_fleet(home / "state", time.time_ns())
    (home / "tokens.toml").write_text(
        f'[[tokens]]\nname = "op"\nsha256 = "{hash_of("s3")}"\nscopes = ["read", "cost", "quota"]\n'
    )
    # Who changes quotas has a token, for which the guide has no place: where curl looks by itself.
    (home / ".curlrc").write_text('header = "Authorization: Bearer s3"\nfail-with-body\n')
    inside = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    server = CollectorServer(
        http='listen = ["127.0.0.1:8080", "[::1]:8080"]',
        access='tokens_file = "tokens.toml"',
        directory=home,
        wrap=inside,
    )
    with server:
        assert server.process is not None
        enter = ["nsenter", "--net", f"--target={server.process.pid}"]
        where = {"cwd": home, "env": {"HOME": str(home), "PATH": os.environ["PATH"]}}

        def run(command: str) -> bytes:
            words = [*enter, "bash", "-o", "pipefail", "-c", command]
            done = subprocess.run(words, capture_output=True, check=False, **where)
            assert done.returncode == 0, (command, done.stdout, done.stderr)
            return done.stdout + ((home / "usage.json").read_bytes() if ">" in command else b"")

        server.wait_for("usage is up to date")
        body = shlex.quote(json.dumps({**quotas_of_the_guide(), "reason": "the guide"}))
        address = "http://localhost:8080/v1"
        told = json.loads(
            run(f"curl -s -X PATCH {address}/governance/quotas/tenant-acme -d {body}")
        )
        assert set(told["quotas"]) == set(quotas_of_the_guide())
        leases = json.loads(run(f"curl -s {address}/leases?tenant=tenant-acme"))["leases"]
        telemetry(server.state, leases[0]["lease_id"])
        yield run


def test_the_guide_has_as_many_commands_as_it_had() -> None:
    found = documented()
    assert len(found) == 18 and sum(one.answer is not None for one in found) == 10
    assert [one.command.split()[1] for one in found].count("-X") == 3


@pytest.mark.root
@pytest.mark.parametrize("at", range(18))
def test_every_command_answers_as_the_guide_says(paste: Any, at: int) -> None:
    shown = documented()[at]
    told = json.loads(paste(shown.command))
    if shown.answer is not None:
        assert unlike(shown.answer, told) == unattainable(told)


def unattainable(told: Any) -> list[str]:
    """A target below what leases take has no price (decision 47): what differs for that."""
    missed = [one for one in told.get("marginal_costs", ()) if not one["achievable"]]
    assert all(one["required_workers"] is None for one in missed)
    return [
        f".marginal_costs[].{name}: null None, and number {shown} in the guide"
        for shown in ((1200, 2), (2800, 5), (5500, 10))[: len(missed)]
        for name, shown in zip(("additional_cost_monthly", "required_workers"), shown, strict=True)
    ]
