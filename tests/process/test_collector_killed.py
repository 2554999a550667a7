# SPDX-License-Identifier: Apache-2.0
"""kill -9 at the system calls by which a running collector changes its disk: while it pulls over
real TLS, while it meters, and while it makes bills final. It is started again, and killed again, as
often as it takes; in the end raw segments, cells and bills have the bytes of a collector's that
nothing ever happened to.

Calls are counted by strace in an undisturbed run; `tests/doubles/killed.c` is what kills.
`LEASED_COLLECTOR_KILLS` is how many of each kind are drawn (the long form is 20, or "all"),
`LEASED_CRASH_SEED` draws others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
import trio

from leased.collector.archive.archive import Archive
from leased.collector.demo import Wish, make_fleet
from leased.collector.metering.store import Store
from leased.durable.reader import read_log
from leased.terms.event import HeadCosigned
from tests.collector.test_collector_pull import Collector
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.host import not_proven
from tests.doubles.killed import SIGKILLED, Killed
from tests.doubles.node_server import serving
from tests.process.test_collectors_share import REPOSITORY, Sealing

EACH = os.environ.get("LEASED_COLLECTOR_KILLS", "1")
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
CALLS = (
    *("pwrite64", "fdatasync", "fsync", "ftruncate", "fallocate"),
    *("renameat", "rename", "unlinkat", "unlink", "rmdir", "mkdirat", "mkdir"),
)
"""What changes a disk, or makes sure of it. `write` is left out: it tells, too."""

NODES, LIVES, TENANTS = 2, 36, 3
UNTIL_NS = 1_767_225_600 * 10**9
"""2026-01-01T00:00:00Z."""

MONTH_MINUTES = 31 * 24 * 60
PAGE = "1KiB"
"""So small that a log is more than 64 pages, of which segments are put together."""

PULL, REFRESH, ISSUE = ("pull", "--once"), ("refresh",), ("issue", "2025-12")
ALWAYS = {
    PULL: {"pwrite64", "fdatasync", "fsync", "renameat", "unlinkat"},
    REFRESH: {"pwrite64", "renameat", "mkdir"},
    ISSUE: {"pwrite64", "renameat", "fsync"},
}
PATIENCE_S = 120


@pytest.fixture(scope="module")
def can_trace() -> None:
    """That strace can count what is to be its last."""
    if shutil.which("strace") is None:
        not_proven("kills of a running collector", "there is no strace")
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "true"]
    )
    if done.returncode:
        not_proven("kills of a running collector", "strace cannot trace here")


class Program:
    """The installed program on one state directory after the other."""

    def __init__(self, directory: Path, pki: FleetPki, one: Collector, shim: Killed) -> None:
        self._shim = shim
        self.config = directory / "leased-collector.toml"
        self.config.write_text(
            f'[pull]\nname = "{one.state.name}"\nca = "{pki.ca}"\ntimeout = "60s"\n'
            f'certificate = "{one.config.certificate}"\nkey = "{one.config.key}"\n'
            f'page_size = "{PAGE}"\nwait = "1s"\npace = "0s"\n'
        )
        self.trace = directory / "trace"

    async def run(
        self, state: Path, words: Sequence[str], before: Sequence[str], **told: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Once, behind another program or in another environment."""
        program = ("-B", "-m", "leased.collector.main", "--state", str(state))
        with trio.fail_after(PATIENCE_S):
            return await trio.run_process(
                [*before, sys.executable, *program, *words, "--config", str(self.config)],
                cwd=REPOSITORY,
                env={"PYTHONPATH": str(REPOSITORY / "agent"), "PATH": "/usr/bin:/bin", **told},
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )

    async def whole(self, state: Path, words: Sequence[str]) -> Counter[str]:
        """Run it undisturbed; how many there are of each call, in the thread that has most."""
        strace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", str(self.trace))
        done = await self.run(state, words, (*strace, "-e", f"trace={','.join(CALLS)}"))
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        lines = re.findall(r"^(\d+)\s+(\w+)\(", self.trace.read_text("utf-8", "replace"), re.M)
        found: Counter[str] = Counter()
        for (_, call), count in Counter(lines).items():
            found[call] = max(found[call], count)
        return found

    async def killed(self, state: Path, words: Sequence[str], call: str, when: int) -> bool:
        """Run it until that call, or to its end; whether it was killed."""
        done = await self.run(state, words, (), **self._shim.at(call, when))
        if done.returncode in SIGKILLED:
            return True
        assert done.returncode == 0, (words, call, when, done.stdout, done.stderr)
        return False


def drawn(words: Sequence[str], counts: Counter[str]) -> list[tuple[str, int]]:
    """At which occurrence of which call it is to be killed, in an order that is drawn too."""
    random = Random(f"{SEED} {words[0]}")
    found = []
    for call in sorted(counts):
        every = range(1, counts[call] + 1)
        count = counts[call] if EACH == "all" else min(int(EACH), counts[call])
        found += [(call, when) for when in random.sample(every, count)]
    random.shuffle(found)
    return found


def raw(state: Path) -> dict[str, bytes]:
    """Every segment by its name, put together as far as they are ever put together."""
    archive = Archive(state)
    try:
        assert all(damaged is None for _, damaged in archive.check())
        for entry in archive.logs():
            archive.consolidate(entry.log_id)
    finally:
        archive.close()
    return files(state / "segments")


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its name."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


class Loop:
    """One verb that is killed and started again, on copies of a state directory."""

    def __init__(self, program: Program, words: tuple[str, ...], before: Path) -> None:
        self.program, self.words, self.before = program, words, before
        self.whole, self.here = (before.with_name(f"{words[0]}-{name}") for name in ("as", "is"))
        self.ends: Counter[str] = Counter()

    async def run(self, compare: Callable[[Path, Path], None]) -> Path:
        """Kill it at every call that is drawn; each time that it comes to an end all the same, and
        in the end, `compare` what there is with what there should be, which is returned."""
        shutil.copytree(self.before, self.whole)
        counts = await self.program.whole(self.whole, self.words)
        self._begin()
        for call, when in drawn(self.words, counts):
            if await self.program.killed(self.here, self.words, call, when):
                self.ends[call] += 1
                continue
            # What it had done before was enough to end without that call: from the beginning.
            compare(self.whole, self.here)
            self._begin()
            self.ends[call] += await self.program.killed(self.here, self.words, call, when)
        await self.program.whole(self.here, self.words)
        compare(self.whole, self.here)
        print(f"{self.words[0]}, seed {SEED}: killed at {dict(self.ends)}")
        missing = ALWAYS[self.words] - set(+self.ends)
        assert not missing, f"{self.words[0]} does not call {missing} any more"
        return self.whole

    def _begin(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.before, self.here)


def same_records(whole: Path, here: Path) -> None:
    """The same segments, and no head was cosigned with two roots."""
    assert raw(here) == raw(whole)
    with closing(read_log(here / "log")) as log:
        said = [event for _, event, _ in log.events() if isinstance(event, HeadCosigned)]
    assert len({(one.log_id, one.size) for one in said}) == len(
        {(one.log_id, one.size, one.root) for one in said}
    )


def same_usage(whole: Path, here: Path) -> None:
    """The same rows, cells and peaks, and nothing beside them."""
    assert files(here / "derived") == files(whole / "derived")


def same_bills(whole: Path, here: Path) -> None:
    """The same bills to the byte."""
    bills = [name for name in files(whole / "invoices") if name.endswith("-12.json")]
    # And hours, and what capacity cost.
    assert len(bills) == TENANTS and len(files(whole / "invoices")) == 2 * TENANTS + 1
    assert files(here / "invoices") == files(whole / "invoices")
    same_usage(whole, here)


@pytest.mark.usefixtures("can_trace")
async def test_killed_at_any_call_the_records_cells_and_bills_are_the_same(
    tmp_path: Path,
    killed: Killed,
) -> None:
    pki, fleet = FleetPki(tmp_path / "pki"), Sealing(NODES)
    fleet.seal(LIVES)
    fleet.let_pass(MONTH_MINUTES)
    fleet.seal(1)
    one = Collector(tmp_path, pki, "west")
    program = Program(tmp_path, pki, one, killed)
    async with serving(pki, *fleet.servers):
        for number, node_server in enumerate(fleet.servers):
            one.enrol(node_server, f"node-{number}")
        pulled = await Loop(program, PULL, one.state).run(same_records)
    assert not [complaint for server in fleet.servers for complaint in server.complaints]
    metered = await Loop(program, REFRESH, pulled).run(same_usage)
    await Loop(program, ISSUE, metered).run(same_bills)


@pytest.mark.parametrize(("call", "when"), [("rmdir", 1), ("rename", 2)])
async def test_a_rebuild_that_is_killed_is_made_good_by_whoever_comes_next(
    tmp_path: Path, killed: Killed, call: str, when: int
) -> None:
    """What was projected was half removed, and counts of leases were left out until the next
    record, if ever one came."""
    pki = FleetPki(tmp_path / "pki")
    one = Collector(tmp_path, pki, "west")
    archive = Archive(one.state)
    make_fleet(archive, Wish(nodes=1, days=1, seed=5, until_ns=UNTIL_NS, leases_per_day=2))
    Store(one.state).refresh(archive)
    before = files(one.state / "derived")
    program = Program(tmp_path, pki, one, killed)
    assert await program.killed(one.state, ("rebuild",), call, when)
    Store(one.state).refresh(archive)
    assert files(one.state / "derived") == before
    archive.close()
