# SPDX-License-Identifier: Apache-2.0
"""The installed agent with a GPU: leases by `leasectl run`, holders that outlast them.

Rule: what a tenant does it does over the socket, and what is told of it is read from the sealed
chain. The GPU is one that nobody uses; no mode of it is set (`close_free` off).

Does not judge: a case does, or a benchmark.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.doubles.host_agent import REPOSITORY, HostAgent

TTL_S = 10
"""Longer than a first context and the filling of all memory take."""

MOCK_TTL_S = 6
"""Where both take no time but that of the processes, on a host that may be busy."""

PATIENCE_S = 60
_HARDWARE = """
[hardware.gpu]
root = "{root}"
mps_dir = "{mps_dir}"
close_free = false
scrub_later = [{later}]
"""


class NotHeld(Exception):
    """The tenant did not come to hold what it was to hold: its own words, or the agent's."""


@contextlib.contextmanager
def agent_with(
    root: Path, environment: Mapping[str, str], *, later: bool = False
) -> Iterator[HostAgent]:
    """An agent that leases the GPUs of `root`; with `later` it leaves the overwriting to the next
    tenant's grant."""
    with tempfile.TemporaryDirectory(prefix="leased-mps-") as mps_dir:
        os.chmod(mps_dir, 0o755)
        words = '"standard"' if later else ""
        hardware = _HARDWARE.format(root=root, mps_dir=mps_dir, later=words)
        with HostAgent(hardware=hardware) as agent:
            agent.start(environment=at_home(environment))
            yield agent


def at_home(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for this tree's programs."""
    # CUDA_VISIBLE_DEVICES is the grant's to say.
    return {
        **{name: value for name, value in environment.items() if name != "CUDA_VISIBLE_DEVICES"},
        "PYTHONPATH": f"{REPOSITORY}/agent:{REPOSITORY}",
    }


class Tenant:
    """`leasectl run` of one trick of `tests.hostile.cuda_holders`, whose lease is not renewed; of
    any GPU, or of the one that `gpu` names."""

    def __init__(
        self,
        agent: HostAgent,
        environment: Mapping[str, str],
        trick: str,
        ttl_s: int = TTL_S,
        gpu: str = "1",
    ) -> None:
        words = ["run", "--gpu", gpu, "--ttl", f"{ttl_s}s", "--no-renew", "--wait", "60s", "--"]
        self._agent = agent
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "leased.ctl.main", *words),
                *(sys.executable, "-m", "tests.hostile.cuda_holders", trick),
            ],
            env={**os.environ, **agent.sockets(), **at_home(environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        try:
            word, _, rest = self._line().partition(" ")
            if word != "ready":
                raise NotHeld(f"{trick}: {word} {rest}".strip())
            self.words = rest.split()
            [self.lease_id] = [one["lease_id"] for one in self._live()]
        except BaseException:
            self.close()
            raise

    def _live(self) -> list[dict]:
        return self._agent.call("Lease.List", admin=True)["leases"]  # type: ignore[return-value]

    def _line(self) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise NotHeld(f"not a word in {PATIENCE_S} s")
        line = self._process.stdout.readline().decode()
        return line.strip() or self._process.stderr.read().decode().strip()

    def outlast(self) -> dict:
        """Do nothing until the deadline has ended it: what became of the lease."""
        closed = self._agent.wait_for(self.lease_id, timeout_s=PATIENCE_S)
        self._process.wait(PATIENCE_S)
        return closed

    def ask(self) -> str:
        """What it can still do."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"?\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """Nothing of it is left."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Tenant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
