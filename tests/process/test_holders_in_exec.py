# SPDX-License-Identifier: Apache-2.0
"""A process that hangs in an exec, which closes a file whose server does not answer: whoever reads
its stat waits with it (Linux 6.18). Nobody else's lease does, be it a holder or a stranger.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.execs import in_exec
from tests.doubles.gpu_host import mock_machine
from tests.doubles.host_agent import REPOSITORY, HostAgent, mem
from tests.doubles.stuck_files import stuck_files

# Quiet, for what searches /proc waits for it, too.
pytestmark = [pytest.mark.root, pytest.mark.quiet]

CUT_S_MAX = 10
ASKS = f"""
import json, os, socket, sys
file, door = os.open(sys.argv[1], 0), socket.socket(socket.AF_UNIX)
door.connect(sys.argv[2])
door.set_inheritable(True)
asked = dict(resources=[{mem(4096)!r}], ttl_ns=600_000_000, bind="process")
call = dict(method="io.leased.Lease.Acquire", parameters=asked)
door.sendall(json.dumps(call).encode() + bytes(1))
if len(sys.argv) > 3:
    assert b"lease_id" in door.recv(1 << 16)
os.execv("/bin/true", ["true"])
"""


@pytest.mark.parametrize("waits", [(), ("for the answer",)], ids=["asks", "has"])
def test_nobody_elses_cut_waits_for_it(waits: tuple[str, ...], tmp_path: Path) -> None:
    """The reaper read its stat when it took the lease, and again half a second after it had killed
    it: for as long as the holder liked no lease of the host was cut."""
    with HostAgent() as agent:
        agent.start()
        with stuck_files(tmp_path):
            words = [sys.executable, "-c", ASKS, str(tmp_path / "file"), str(agent.socket), *waits]
            holder = agent.track(subprocess.Popen(words, cwd=REPOSITORY))
            while Path(f"/proc/{holder.pid}/cmdline").read_bytes():
                assert holder.poll() is None
            other = agent.acquire(ttl_ms=2000)["lease_id"]
            ended = agent.wait_for(other, timeout_s=CUT_S_MAX)
        assert ended["runtime"]["state"] == "reclaimed"


HARDWARE = """
[hardware.gpu]
root = "{root}"
mps_dir = "{root}/mps"
release_budget = "2s"
settle_apart = "50ms"
"""
SLEEPS = "echo $LEASE_ID; sleep 60"
FILE = "more = os.open(at + '/f', os.O_CREAT)"


@pytest.mark.parametrize(("has", "becomes"), [("pass", "reclaimed"), (FILE, "fenced")])
def test_a_gpu_is_fenced_only_for_what_may_be_one(has: str, becomes: str, tmp_path: Path) -> None:
    """Each was, and nobody was named."""
    with (
        mock_machine(["H100"]) as machine,
        HostAgent(hardware=HARDWARE.format(root=machine.root)) as agent,
    ):
        agent.start()
        run = agent.begin_leasectl("run", "--gpu", "1", "--", "sh", "-c", SLEEPS)
        assert run.stdout is not None
        lease_id = run.stdout.readline().strip()
        with in_exec(tmp_path, has) as (pid,):
            run.terminate()
            assert agent.wait_for(lease_id)["runtime"]["state"] == becomes
        named = f"process {pid} hangs in an exec" in agent.log()
        assert named == (becomes == "fenced"), agent.log()
