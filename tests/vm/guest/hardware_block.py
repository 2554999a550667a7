# SPDX-License-Identifier: Apache-2.0
"""NVMe namespaces under lease, end to end: granted by the agent, cut by the reaper, proven by the
drive, on drives that QEMU has.

Not proven here: cryptographic erase and Sanitize, which QEMU's drives do not know; that they are
refused is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import drives
import footprint
import host
import pytest
from drives import A1, A2, A3, B1, B2, FREE, Tenant, ask
from host import Connection, Failed, eventually

from tests.hostile.verdicts import Verdict, record

TURNS = int(os.environ.get("LEASED_TURNS", "6"))
"""Grants that fail, each with its teardown: seconds here. A thousand are for a night."""

MARKER = hashlib.shake_256(b"the plaintext of a tenant").digest(drives.BLOCK_BYTES)


@pytest.fixture(scope="module", autouse=True)
def _offered() -> None:
    """Left so: the reboot after this phase finds it."""
    drives.configure(**drives.USUAL)
    drives.settled()


@pytest.fixture(autouse=True)
def _nothing_left(_offered: None) -> Iterator[None]:
    """What a test leased is free when it ends, and no mapping of ours is left."""
    yield
    drives.settled()
    assert not drives.mappings()


class Observer:
    """Reads through a mapping all the time, past every cache, as somebody outside the lease who has
    it open; notes when it last could, and when it had begun to."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self.begun_ns = 0
        self.last_ns = 0
        self.error_ns = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with mmap.mmap(-1, drives.BLOCK_BYTES) as page:
            while True:
                begun_ns = host.boot_ns()
                try:
                    os.preadv(self._fd, [page], 0)
                except OSError:
                    self.error_ns = host.boot_ns()
                    return
                self.begun_ns, self.last_ns = begun_ns, host.boot_ns()
                time.sleep(0.001)

    def ended(self) -> int:
        """When it last read something; it must not be able to any more."""
        self._thread.join(host.HANGS_S)
        assert not self._thread.is_alive()
        os.close(self._fd)
        return self.last_ns


def steps(lease_id: str) -> dict[str, int]:
    """When each step of a closed lease took effect, as the journal has it from the chain."""
    host.journal(f"LEASE_ID={lease_id}", "LEASE_EVENT=Reclaimed", "+", *_fenced(lease_id))
    told = host.journal(f"LEASE_ID={lease_id}")
    return {
        one["LEASE_EVENT"]: int(one["LEASE_EFFECTIVE_NS"])
        for one in told
        if "LEASE_EFFECTIVE_NS" in one
    }


def _fenced(lease_id: str) -> tuple[str, str]:
    return f"LEASE_ID={lease_id}", "LEASE_EVENT=Fenced"


def said(lease_id: str, event: str) -> str:
    """What the journal says of an event of a lease."""
    return str(host.journal(f"LEASE_ID={lease_id}", f"LEASE_EVENT={event}")[-1]["MESSAGE"])


def say(what: str, **figures: float) -> None:
    """A figure for whoever reads the tier's output."""
    from report import tell

    told = ", ".join(f"{name} {value:.1f} ms" for name, value in figures.items())
    tell(event="note", text=f"block: {what}: {told}")


# ---- the life of a lease -------------------------------------------------------------------------


def test_every_namespace_is_offered_with_its_bounds() -> None:
    host.offered(*(f"block:raw:{identity}" for identity in FREE))
    found = drives.offered()
    for identity in FREE:
        crypt, raw = found[f"block:{identity}"], found[f"block:raw:{identity}"]
        assert (crypt["evidence"], crypt["attributes"]["erase"]) == ("emulated", "key")
        assert raw["attributes"]["erase"] == "format", raw["attributes"]
        assert raw["bounds"]["overwrite_ns"] == 600 * host.S, "erase_budget"
        assert crypt["bounds"]["overwrite_ns"] == 0, "a key is forgotten at once"


def test_an_encrypted_lease_from_the_grant_to_the_proof() -> None:
    write = f"os.pwrite(fds[0], {MARKER!r}, 1 << 20); os.fsync(fds[0])"
    tenant = Tenant(*ask(B1), act=write).ready()
    [path], raw = tenant.paths, drives.device(B1)
    assert os.stat(path).st_uid == 1000
    assert drives.read_past_caches(path, 1 << 20, 4096) == MARKER
    assert drives.read_past_caches(raw, 1 << 20, 4096) != MARKER
    assert not drives.is_had_alone(raw)
    key = host.run("dmsetup", "table", "--showkeys", os.path.basename(path)).split()[4]
    assert key == f":64:logon:leased:LEASED-{tenant.lease_id}-0", "named, and nowhere readable"
    assert "leased" not in Path("/proc/keys").read_text(), "revoked when the table had it"
    told = [place.read_bytes() for place in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(b"logon" in words for words in told)
    observer = Observer(path)
    tenant.end_in(2)
    ended = tenant.ended()
    last_ns = observer.ended()
    assert (ended["state"], ended["ended"]) == ("reclaimed", "expired")
    found = steps(tenant.lease_id)
    end_ns = tenant.deadline_ns
    cut_ms = (last_ns - end_ns) / 1e6
    report_ms, proven_ms = [(found[one] - end_ns) / 1e6 for one in ("AccessCut", "Reclaimed")]
    say("dm-crypt", read_last=cut_ms, cut=report_ms, proven=proven_ms)
    assert observer.begun_ns <= found["AccessCut"], "nobody read after that"
    assert host.came_at(end_ns, found["AccessCut"])
    assert "by the reaper" in said(tenant.lease_id, "AccessCut")
    assert drives.is_had_alone(raw)
    assert drives.search(raw, MARKER) == 0
    assert not any(drives.read_past_caches(raw, 0, drives.EDGE_BYTES))
    units = ("-u", "leased", "-u", "leased-reaper")
    assert "logon" not in host.run("journalctl", *units, "-o", "json", "--no-pager")


def test_whoever_has_a_namespace_is_named_and_nobody_of_ours_is() -> None:
    tenant = Tenant(*ask(B1), user="root").ready()
    found = json.loads(host.leasectl("--admin", "holders", f"block:{B1}", "--json"))["holders"]
    ours = {host.main_pid(unit) for unit in ("leased.service", "leased-reaper.service")}
    assert tenant.end()["state"] == "reclaimed"
    [its] = [one for one in found if (one["pid"], one["via"]) == (tenant.process.pid, "fd")]
    assert its.get("lease_id") == tenant.lease_id, found
    assert not ours & {one["pid"] for one in found}


def test_a_raw_lease_is_erased_by_the_drive_and_its_neighbour_is_not() -> None:
    neighbour = Tenant(*ask(B1), act=f"os.pwrite(fds[0], {MARKER!r}, 0); os.fsync(fds[0])").ready()
    write = f"os.pwrite(fds[0], {MARKER!r}, 8 << 20); os.fsync(fds[0])"
    tenant = Tenant(*ask(B2, raw=True), act=write).ready()
    raw = drives.device(B2)
    assert drives.search(raw, MARKER) == 1, "as it is"
    ended = tenant.end()
    assert ended["state"] == "reclaimed"
    assert f"scrubbed: {drives.size(raw)} bytes" in said(tenant.lease_id, "Scrubbed")
    assert drives.search(raw, MARKER) == 0
    assert drives.read_past_caches(neighbour.paths[0], 0, 4096) == MARKER
    assert neighbour.end()["state"] == "reclaimed"


# ---- holders that do not let go ------------------------------------------------------------------

BESIDE = Path("/run/leased-beside")
RUN = f"""
run = lambda *words: subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
def beside(act):
    # A process that is nobody's child, outside the lease, with what we have open.
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            open("{BESIDE}/%d" % os.getpid(), "w").close()
            act()
            time.sleep(1000)
        os._exit(0)
    os.waitpid(child, 0)
def reopen():
    while os.path.exists(paths[0]):
        try:
            os.close(os.open(paths[0], os.O_RDONLY))
        except OSError:
            pass
def wait_uninterruptibly():
    if (child := os.fork()) == 0:
        os.pread(fds[0], 4096, 1 << 20)
        time.sleep(1000)
    while open('/proc/%d/stat' % child).read().rpartition(')')[2].split()[0] != 'D':
        time.sleep(0.01)
"""
IN_FLIGHT = "/run/leased-in-flight"
TOP = str(Path(__file__).resolve().parents[3])
TRICKS = {
    "mounted": (
        A1,
        "run('mkfs.ext4', '-q', paths[0]); run('mount', paths[0], '/mnt')\n"
        "open('/mnt/file', 'wb').write(b'x' * 65536); kept = open('/mnt/file')",
    ),
    "loop": (A2, "run('losetup', '-b', '4096', '/dev/loop7', paths[0])"),
    "swap": (B1, "run('mkswap', '-q', paths[0]); run('swapon', paths[0])"),
    "dm_above": (
        B2,
        "run('dmsetup', 'create', 'above', '--table', '0 2048 linear ' + paths[0] + ' 0')",
    ),
    "stopped": (A1, "say('done'); os.kill(os.getpid(), signal.SIGSTOP)"),
    "ignores_signals": (
        A2,
        "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 17, 19)]",
    ),
    "fd_in_flight": (
        B1,
        f"out = socket.socket(socket.AF_UNIX); out.connect({IN_FLIGHT!r})\n"
        "socket.send_fds(out, [b'x'], [fds[0]]); connection.close_fds(); out.close()",
    ),
    "mapped_and_closed": (
        B2,
        "view = mmap.mmap(fds[0], 1 << 20); view[:5] = b'hello'; connection.close_fds()",
    ),
    "double_fork": (A1, "beside(lambda: None); connection.close_fds()"),
    "reopens": (A2, "beside(reopen)"),
    "io_uring_file": (
        B1,
        f"sys.path.insert(0, {TOP!r}); from tests.doubles.intruder import ring_file\n"
        "kept = ring_file(os.dup(fds[0])); connection.close_fds()",
    ),
    "user_namespace_root": (B2, "assert os.getuid() == 0; view = mmap.mmap(fds[0], 1 << 20)"),
    "d_state": (
        A1,
        "run('dmsetup', 'suspend', '--noflush', '--nolockfs', paths[0]); wait_uninterruptibly()",
    ),
}
"""What a holder does with which namespace."""

AS = {
    "mounted": ("root", ("unshare", "-m")),
    "user_namespace_root": ("alice", ("unshare", "--map-root-user", "--mount")),
}
"""Who it is, and what it begins with; the others are root, because they need it."""

AT_ONCE = 4

CLEANING = (
    ("swapoff", "-a"),
    ("losetup", "-d", "/dev/loop7"),
    ("dmsetup", "remove", "--force", "above"),
)


class Outcome(NamedTuple):
    """How a lease ended, in how many ms after it was taken away nobody could read, how many later
    it was closed, and what read a descriptor that had been in flight all the time."""

    ended: dict[str, Any]
    cut_ms: float
    proven_ms: float
    errno: int


@pytest.fixture(scope="module")
def tricked(_offered: None) -> Iterator[dict[str, Outcome]]:
    """Every trick, four at the same time."""
    found: dict[str, Outcome] = {}
    names = list(TRICKS)
    BESIDE.mkdir()
    with socket.create_server(IN_FLIGHT, family=socket.AF_UNIX) as mailbox:
        for begin in range(0, len(names), AT_ONCE):
            found |= play(names[begin : begin + AT_ONCE], mailbox)
            for words in CLEANING:
                host.run(*words, check=False)
            for one in BESIDE.iterdir():
                # It may have what answers EIO until it ends: nobody is killed for that.
                os.kill(int(one.name), signal.SIGKILL)
                one.unlink()
            drives.settled()
    os.unlink(IN_FLIGHT)
    BESIDE.rmdir()
    yield found


def play(batch: list[str], mailbox: socket.socket) -> dict[str, Outcome]:
    """Some tricks at the same time, each on a namespace of its own."""
    tenants = {}
    for name in batch:
        identity, act = TRICKS[name]
        user, before = AS.get(name, ("root", ()))
        tenants[name] = Tenant(*ask(identity), act=RUN + act, user=user, before=before)
    observers = {name: Observer(one.ready().paths[0]) for name, one in tenants.items()}
    begun = {name: one.revoke() for name, one in tenants.items()}
    found = {}
    for name, tenant in tenants.items():
        ended = tenant.ended()
        observer = observers[name]
        last_ns = observer.ended()
        # Nobody could read from a suspended device: there the error is what the cut brought.
        cut_ms = ((observer.error_ns if name == "d_state" else last_ns) - begun[name]) / 1e6
        proven_ms = (max(steps(tenant.lease_id).values()) - begun[name]) / 1e6 - cut_ms
        late = errno.EIO if name != "fd_in_flight" else received_late(mailbox)
        found[name] = Outcome(ended, cut_ms, proven_ms, late)
    return found


def received_late(mailbox: socket.socket) -> int:
    """Take the descriptor out of the queue now; what reading it comes to."""
    connection, _ = mailbox.accept()
    with connection:
        _, [fd], _, _ = socket.recv_fds(connection, 1, 1)
    try:
        os.pread(fd, 1, 0)
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
    return 0


@pytest.mark.parametrize("name", TRICKS)
def test_a_holder_that_does_not_let_go(name: str, tricked: dict[str, Outcome]) -> None:
    outcome = tricked[name]
    assert outcome.ended["state"] == "reclaimed", outcome.ended
    assert outcome.errno == errno.EIO
    shown = f"hardware_block.py::test_a_holder_that_does_not_let_go[{name}]"
    times = (outcome.cut_ms, outcome.proven_ms)
    record(Verdict(name, "block", "vm", "clean", "", *times, shown))


# ---- what is not to be had -----------------------------------------------------------------------


LIVES_ON = """
import ctypes, os, signal, subprocess
subprocess.run(["mount", {device!r}, "/mnt"], check=True)
os.chdir("/mnt")
os.mkdir("before")
assert ctypes.CDLL(None).syscall({pivot_root}, b".", b"before") == 0
print("there", flush=True)
signal.pause()
"""
"""A program that has the namespace for its root disk, and nothing of the host but below it."""

PIVOT_ROOT = 155


def test_what_the_host_uses_is_refused_and_named() -> None:
    array, mounted, root = (drives.device(one) for one in (A1, A2, B1))
    for device in (mounted, root):
        host.run("mkfs.ext4", "-q", device)
    script = LIVES_ON.format(device=root, pivot_root=PIVOT_ROOT)
    words = ["unshare", "--mount", sys.executable, "-c", script]
    living = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None and living.stdout.readline() == "there\n"
    host.run("mount", mounted, "/mnt")
    words = ["mdadm", "--create", "/dev/md7", "--run", "--level=1", "--raid-devices=2", array]
    host.run(*words, "missing")
    try:
        # A mount is told by no notice: the look of each minute finds it.
        eventually("the mount is named", lambda: "mounted at /mnt" in drives.note_of(A2))
        eventually("the root disk is named", lambda: "mounted at / (ext4)" in drives.note_of(B1))
        eventually("the array is named", lambda: "in the array md7" in drives.note_of(A1))
        for identity in (A1, A2, B1):
            with pytest.raises(Failed) as refused:
                Connection().acquire(*ask(identity))
            assert refused.value.parameters["reason"] == "no_such_resource"
    finally:
        host.run("umount", "/mnt")
        host.run("mdadm", "--stop", "/dev/md7")
        living.kill()
        living.wait()
        eventually("the root disk is let go", lambda: drives.is_had_alone(root))
        for device in (array, mounted, root):
            host.run("wipefs", "-q", "-a", device)


# ---- drives that come and go ---------------------------------------------------------------------


def test_a_drive_that_is_pulled_is_fenced_and_proven_again_when_it_is_back() -> None:
    tenant = Tenant(*ask(B1), act=f"os.pwrite(fds[0], {MARKER!r}, 0); os.fsync(fds[0])").ready()
    [drive] = drives.controllers("b")
    (drive / "device/remove").write_text("1")
    eventually("it has gone", lambda: drives.sysfs(B1) is None)
    fenced = eventually(
        "the lease is fenced",
        lambda: host.describe(tenant.lease_id)["state"] == "fenced",
    )
    assert fenced
    runtime = host.describe(tenant.lease_id)
    assert runtime["reason"] == "device_unhealthy"
    assert f"block:{B1}" in said(tenant.lease_id, "Fenced")
    with pytest.raises(Failed):
        Connection().acquire(*ask(B1))
    Path("/sys/bus/pci/rescan").write_text("1")
    eventually("it is back", lambda: drives.sysfs(B1) is not None)
    host.journal(f"LEASE_ID={tenant.lease_id}", "LEASE_EVENT=Unfenced")
    assert not any(drives.read_past_caches(drives.device(B1), 0, drives.EDGE_BYTES))
    tenant.process.kill()
    tenant.process.wait()


def test_a_namespace_that_is_attached_and_detached_is_news() -> None:
    [first, *_] = drives.controllers("a")
    before = len(host.journal("LEASE_EVENT=InventoryChanged"))
    words = (f"/dev/{first.name}", "-n", "3", "-c", "0,1")
    host.run("nvme", "attach-ns", *words)
    try:
        eventually("it is offered", lambda: f"block:{A3}" in drives.offered())
    finally:
        host.run("nvme", "detach-ns", *words)
    eventually("it is not any more", lambda: f"block:{A3}" not in drives.offered())
    host.journal("LEASE_EVENT=InventoryChanged", least=before + 2)


# ---- with one of the two dead --------------------------------------------------------------------


def test_a_lease_goes_on_without_the_agent_and_is_known_to_the_next() -> None:
    tenant = Tenant(*ask(A1)).ready()
    [path] = tenant.paths
    agent = host.main_pid("leased.service")
    os.kill(agent, signal.SIGKILL)
    drives.read_past_caches(path, 0, 4096)
    eventually("it is started", lambda: host.main_pid("leased.service") not in (0, agent))
    host.serving()
    after = host.describe(tenant.lease_id)
    assert (after["state"], after["deadline_boottime_ns"]) == ("active", tenant.deadline_ns)
    assert drives.mappings() == [os.path.basename(path)], "it was kept"
    drives.read_past_caches(path, 0, 4096)
    assert tenant.end()["state"] == "reclaimed"


def test_a_killed_reaper_comes_back_and_cuts_in_time() -> None:
    tenant = Tenant(*ask(B2)).ready()
    observer = Observer(tenant.paths[0])
    tenant.end_in(3)
    os.kill(host.main_pid("leased-reaper.service"), signal.SIGKILL)
    ended = tenant.ended()
    last_ns = observer.ended()
    assert (ended["state"], ended["ended"]) == ("reclaimed", "expired")
    say("with the reaper killed", read_last=(last_ns - tenant.deadline_ns) / 1e6)
    assert host.came_at(tenant.deadline_ns, ended["cut_boottime_ns"])
    assert observer.begun_ns <= ended["cut_boottime_ns"]


# ---- nothing is left -----------------------------------------------------------------------------


@contextlib.contextmanager
def had(identity: str) -> Iterator[None]:
    """Somebody has the namespace for himself."""
    fd = os.open(drives.device(identity), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(fd)


def write_first_block(identity: str, data: bytes) -> None:
    with open(drives.device(identity), "r+b", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def test_grants_that_fail_and_grants_that_end_leave_nothing() -> None:
    """One of the namespaces is in use by somebody who asked nobody: what was made of the others
    goes, too, and what is on that one stays. It is offered again once he has gone."""
    connection = Connection()

    def failing(*identities: str) -> None:
        with had(B2):
            with pytest.raises(Failed) as refused:
                connection.acquire(*ask(*identities))
            assert refused.value.name == "io.leased.Lease.Refused", refused.value
            eventually("it is not offered", lambda: "exclusively" in drives.note_of(B2))
        drives.look()
        drives.settled()

    def whole() -> None:
        lease_id = connection.acquire(*ask(A1, A2))["lease"]["lease_id"]
        assert len(drives.mappings()) == 2
        connection.close_fds()
        connection.call("Lease.Release", lease_id=lease_id)
        assert host.closed(lease_id)["state"] == "reclaimed"

    write_first_block(B2, MARKER)
    try:
        failing(A1, B2)
        whole()
        before = footprint.steady()
        for turn in range(TURNS):
            failing(*((A1, B2) if turn % 5 == 0 else (B2,)))
            if turn % 15 == 0:
                whole()
        footprint.is_again(before)
        assert drives.read_past_caches(drives.device(B2), 0, drives.BLOCK_BYTES) == MARKER
    finally:
        write_first_block(B2, bytes(drives.BLOCK_BYTES))
        connection.close()
    assert host.leasectl("verify").startswith("ok: ")
