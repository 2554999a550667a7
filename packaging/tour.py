# SPDX-License-Identifier: Apache-2.0
"""The tour behind `packaging/try`: an agent of its own, and commands shown as a person types them.

Rule: every figure is read back from the agent or from its sealed log; a step that did not do what
it should ends the tour with a status that is not 0. Nothing is left behind unless `--keep` was
given.

Does not build anything (`packaging/try`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fleet

from leased.durable.files import DirectoryDisk

TOP = Path(__file__).resolve().parent.parent
BIN = TOP / ".venv" / "bin"
MIB = 1 << 20
LEASE_BYTES = 256 * MIB
TTL_S = 5
RENEW_AFTER_S = 1
START_SECONDS_MAX = 60
NS_PER_MS = 1_000_000

CONFIG = """# made by packaging/try
[paths]
state_dir = "{state}"
runtime_dir = "{runtime}"
[hardware]
cgroup_root = "{cgroup}"
cpu_cores = "{cores}"
[log]
durability = "{durability}"
"""


def fail(why: str) -> NoReturn:
    """End the tour: something did not do what it should."""
    print(f"\ntry: {why}", file=sys.stderr)
    sys.exit(1)


def heading(text: str) -> None:
    """A part of the tour begins."""
    print(f"\n== {text}", flush=True)


def untested(directory: Path) -> str:
    """Why the log may lose records there in a power cut (a container's overlay); "": it may not."""
    disk = DirectoryDisk(directory)
    try:
        return disk.filesystem().why
    finally:
        disk.close()


class Stage:
    """Where the tour happens: directories of its own, an agent and, detached from it, a reaper."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="leased-try-", dir="/var/tmp"))
        self.runtime = Path(tempfile.mkdtemp(prefix="leased-try-", dir="/run"))
        self.runtime.chmod(0o755)
        self.cgroup = self.state.name
        (self.state / "state").mkdir(mode=0o700)
        self.untested = untested(self.state)
        self.config = self.state / "leased.toml"
        self.config.write_text(
            CONFIG.format(
                state=self.state / "state",
                runtime=self.runtime,
                cgroup=self.cgroup,
                cores="0" if os.cpu_count() == 1 else "auto",
                durability="best-effort" if self.untested else "strict",
            )
        )
        self.log = self.state / "agent.log"
        self.agent: subprocess.Popen[bytes] | None = None
        self.beside: list[subprocess.Popen[bytes]] = []

    @property
    def audit(self) -> Path:
        """The sealed log."""
        return self.state / "state" / "audit"

    def start(self) -> None:
        """Start the agent; it starts the reaper. Returns when it answers."""
        with self.log.open("ab") as log:
            self.agent = subprocess.Popen(
                [BIN / "leased", "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while leasectl(self, "ls", check=False).returncode:
            if self.agent.poll() is not None or time.monotonic() > deadline:
                fail(f"the agent does not serve:\n{self.log.read_text()}")
            time.sleep(0.1)

    def restart(self) -> None:
        """Stop the agent and start it again, as a service manager does; leases go on meanwhile."""
        assert self.agent is not None
        self.agent.terminate()
        self.agent.wait(timeout=30)
        self.start()

    def reapers(self) -> Iterator[int]:
        """The reaper of this stage: by its runtime directory, which nobody else has."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if words[0].endswith(b"leased-reaper") and str(self.runtime).encode() in words:
                        yield int(entry.name)

    def cgroups(self) -> list[Path]:
        """Where its leases' cgroups are: one, wherever this host has cgroup v2."""
        roots = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        return [root / self.cgroup for root in roots if (root / self.cgroup).is_dir()]

    def clear(self) -> None:
        """Stop everything and leave nothing behind."""
        for process in self.beside:
            process.terminate()
            process.wait(timeout=30)
        if self.agent is not None:
            self.agent.terminate()
            self.agent.wait(timeout=30)
        for pid in list(self.reapers()):
            os.kill(pid, signal.SIGTERM)
        for place in self.cgroups():
            for below in sorted(place.rglob("*"), reverse=True):
                if below.is_dir():
                    below.rmdir()
            place.rmdir()
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)


def environment(stage: Stage, *, admin: bool = False) -> dict[str, str]:
    """What a person's shell would have; an operator's names the other socket."""
    socket = "io.leased.admin" if admin else "io.leased"
    found = {**os.environ, "LEASE_SOCKET": str(stage.runtime / socket)}
    found["LEASE_ADMIN_SOCKET"] = str(stage.runtime / "io.leased.admin")
    found["PATH"] = f"{BIN}:{found['PATH']}"
    return found


def leasectl(
    stage: Stage,
    *words: str,
    check: bool = True,
    user: Sequence[str] = (),
    admin: bool = False,
    program: str = "leasectl",
) -> subprocess.CompletedProcess[str]:
    """Run leasectl, or another program of ours, without showing it."""
    done = subprocess.run(
        [*user, str(BIN / program), *words],
        env=environment(stage, admin=admin),
        capture_output=True,
        text=True,
    )
    if check and done.returncode:
        fail(f"{program} {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def show(
    stage: Stage,
    *words: str,
    status: int = 0,
    user: Sequence[str] = (),
    admin: bool = False,
    program: str = "leasectl",
) -> str:
    """Run it as a person would, and show both what was typed and what came."""
    print(f"{'#' if admin else '$'} {program} {shlex.join(words)}", flush=True)
    done = leasectl(stage, *words, check=False, user=user, admin=admin, program=program)
    for line in (done.stdout + done.stderr).splitlines():
        print(f"    {line}", flush=True)
    if done.returncode != status:
        fail(f"that should have ended with status {status}, not {done.returncode}")
    return done.stdout


def read(stage: Stage, *words: str, admin: bool = False) -> Any:
    """A verb's JSON."""
    return json.loads(leasectl(stage, *words, "--json", admin=admin).stdout)


def tenant_user(stage: Stage) -> list[str]:
    """The command that drops root, if an unprivileged user can reach this tree at all."""
    drop = ["runuser", "-u", "nobody", "--"]
    reach = f"{shlex.quote(str(BIN / 'leasectl'))} ls && {shlex.quote(sys.executable)} -c 0"
    done = subprocess.run(
        [*drop, "/bin/sh", "-c", reach], env=environment(stage), capture_output=True
    )
    return drop if done.returncode == 0 else []


def offers(stage: Stage) -> tuple[dict[str, Any], bool]:
    """Show the inventory; the memory to lease from, and whether cores can be leased."""
    heading("What this host offers")
    show(stage, "devices", "--wide")
    listed = read(stage, "devices")
    memory = [
        one
        for one in listed["resources"]
        if one["kind"] == "mem" and one["granule"] == 4096 and one["use"]["free"] >= LEASE_BYTES
    ]
    if not memory:
        fail("no NUMA node of this host has 256 MiB to lease")
    cores = [one for one in listed["resources"] if one["kind"] == "cpu"]
    return memory[0], bool(cores)


def run_workload(
    stage: Stage, memory: dict[str, Any], cores: bool, user: list[str], ttl_s: int
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start the workload under a lease; its id and its process."""
    words = ["run", "--mem", f"256MiB,node={memory['node']}", "--ttl", f"{ttl_s}s", "--no-renew"]
    if cores:
        words += ["--cpu", "1"]
    words += [
        "--workload",
        "stubborn",
        "--",
        sys.executable,
        str(TOP / "packaging" / "workload.py"),
    ]
    print(f"$ leasectl {shlex.join(words)} &", flush=True)
    process = subprocess.Popen([*user, str(BIN / "leasectl"), *words], env=environment(stage))
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        active = [
            lease["lease_id"]
            for lease in read(stage, "ls", admin=True)["leases"]
            if lease["runtime"]["state"] == "active"
        ]
        if active:
            return str(active[0]), process
        if process.poll() is not None or time.monotonic() > deadline:
            fail("the workload was not granted its lease")
        time.sleep(0.05)


def choose_ttl(stage: Stage) -> int:
    """Seconds of the lease: three commands must fit into it, however busy this host is."""
    began = time.monotonic()
    read(stage, "ls", admin=True)
    took_s = time.monotonic() - began
    ttl_s = max(TTL_S, math.ceil(RENEW_AFTER_S + 12 * took_s))
    if ttl_s > TTL_S:
        print(f"    One command takes {took_s:.1f} s here, so the lease is of {ttl_s} s.")
    return ttl_s


def tell_end(stage: Stage, lease_id: str) -> None:
    """The times of the teardown, from the sealed records."""
    lines = leasectl(
        stage, "audit", "log", "--log", str(stage.audit), "--lease", lease_id, "--json"
    )
    records = [json.loads(line) for line in lines.stdout.splitlines()]
    at = {record["kind"]: record for record in records}
    for kind in ("Expired", "AccessCut", "Scrubbed", "Reclaimed"):
        if kind not in at:
            fail(f"the sealed log has no {kind} of this lease: {list(at)}")
    deadline_ns = at["Expired"]["effective_ns"]
    scrubbed_bytes = at["Scrubbed"]["scrubbed_bytes"]
    for kind, what in (
        ("AccessCut", "access cut"),
        ("Scrubbed", f"scrubbed: {scrubbed_bytes >> 20} MiB overwritten and read back"),
        ("Reclaimed", "proven clean by another source, capacity free again"),
    ):
        late_ms = (at[kind]["effective_ns"] - deadline_ns) / NS_PER_MS
        by = ", by the reaper" if kind == "AccessCut" and at[kind]["by_reaper"] else ""
        print(f"    deadline + {late_ms:8.2f} ms  {what}{by}")


def tour(stage: Stage) -> None:
    """The whole of it."""
    heading(f"Starting an agent and a reaper in {stage.runtime} and {stage.state}")
    print("    ($ is what a tenant types, # an operator, on the admin socket)")
    if stage.untested:
        print(f"    {stage.untested}: a power cut may cost this log its last records")
    stage.start()
    memory, cores = offers(stage)
    user = tenant_user(stage)
    if not cores:
        print("    Cores cannot be leased here (why: above), so the workload leases memory alone.")
    if not user:
        print("    Other users cannot reach this tree, so the workload runs as root.")

    ttl_s = choose_ttl(stage)

    heading(
        f"A workload leases 256 MiB of node {memory['node']} for {ttl_s} s, and will not let go"
    )
    lease_id, process = run_workload(stage, memory, cores, user, ttl_s)
    time.sleep(RENEW_AFTER_S)
    heading(f"After {RENEW_AFTER_S} s: one renewal, of {ttl_s} s from now")
    show(stage, "renew", lease_id[:8], "--ttl", f"{ttl_s}s", user=user)

    heading("Meanwhile somebody asks for all that was free, and is told why not, and when")
    everything = f"{memory['use']['free'] // MIB}MiB,node={memory['node']}"
    show(stage, "alloc", "--mem", everything, "--for", "10s", status=75)

    heading("The deadline comes: nobody asks the workload")
    status = process.wait(timeout=ttl_s + 60)
    print(f"    leasectl run ended with status {status} (79: the lease was lost; 137: killed)")
    if status not in (79, 137):
        fail("the workload should have lost its lease")
    show(stage, "wait", lease_id[:8], "--until", "closed", "--timeout-after", "60s", admin=True)
    tell_end(stage, lease_id)

    heading("The statement: what was held, for how long, and what it costs")
    uid = 65534 if user else 0
    rates = ["--rates", str(TOP / "configs" / "leased.toml")]
    show(stage, "usage", "--log", str(stage.audit))
    show(stage, "statement", f"uid-{uid}", "--log", str(stage.audit), *rates)

    heading("The chain that all of this was computed from")
    show(stage, "verify", "--log", str(stage.audit))
    fleet.tour(stage, f"uid-{uid}", user)


def tell_how_to_use(stage: Stage) -> None:
    """The tour is over and its agent is left running."""
    others = [process.pid for process in stage.beside]
    pids = [stage.agent.pid if stage.agent else 0, *others, *stage.reapers()]
    print(
        f"\nIt goes on running (agent pid {pids[0]}). Use it with:\n"
        f"  export LEASE_SOCKET={stage.runtime}/io.leased PATH={shlex.quote(str(BIN))}:$PATH\n"
        "  leasectl devices; leasectl run --mem 64MiB -- sleep 10; leasectl watch\n"
        f"Stop it:  kill {' '.join(map(str, pids))}\n"
        f"Remove:   rm -rf {stage.state} {stage.runtime}; "
        f"find {shlex.join(map(str, stage.cgroups()))} -depth -type d -delete"
    )


def main() -> int:
    """Take the tour; its exit status."""
    keep = "--keep" in sys.argv[1:]
    stage = Stage()
    done = False
    try:
        tour(stage)
        done = True
    finally:
        if not (keep and done):
            stage.clear()
    if keep:
        tell_how_to_use(stage)
    else:
        print("\nDone: everything that was started has ended. To stay: packaging/install.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
