# SPDX-License-Identifier: Apache-2.0
"""The doctor on made-up hosts: what it reads, what it says, what it calls missing."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from leased.ctl import host_checks, privilege_checks, service_checks
from leased.ctl.console import Console
from leased.ctl.findings import Finding, Grade
from leased.ctl.main import main
from tests.doubles.canned_agent import Answer, CannedAgent, resource
from tests.unit.ctl.test_ctl_verbs import GRACES

TOP = Path(__file__).parents[3]
SHIPPED = TOP / "configs/leased.toml"
V2 = "35 24 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
HYBRID = (
    "34 24 0:29 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n"
    "35 34 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def host(root: Path, **files: str) -> Path:
    """A tree with these files; "__" in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def graded(findings: list[Finding]) -> dict[str, Grade]:
    """Topic to grade."""
    return {finding.topic: finding.grade for finding in findings}


@pytest.mark.parametrize(
    ("release", "grades"),
    [
        ("6.8.0-45-generic", {"kernel": Grade.OK}),
        ("6.1.0-18-amd64", {"kernel": Grade.OK, "peer pidfd": Grade.NOTE}),
        ("5.10.0", {"kernel": Grade.FAIL}),
    ],
)
def test_kernels(tmp_path: Path, release: str, grades: dict[str, Grade]) -> None:
    root = host(tmp_path, proc__sys__kernel__osrelease=release)
    assert graded(list(host_checks.kernel(root))) == grades


def test_controllers_held_by_v1_are_named_with_what_they_cost(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        proc__self__mountinfo=HYBRID,
        proc__cgroups="#subsys_name\thierarchy\tnum\tenabled\ncpu\t3\t1\t1\npids\t0\t1\t1\n",
    )
    host(root / "sys/fs/cgroup/unified", **{"cgroup.controllers": "pids", "leaf__cgroup.kill": ""})
    found = {finding.topic: finding for finding in host_checks.cgroups(root)}
    assert found["controller cpu"].grade is Grade.WARN
    assert found["controller cpu"].text == "held by cgroup v1"
    assert "500m" in found["controller cpu"].advice
    assert found["controller cpuset"].text == "not offered by the kernel"
    assert found["controller pids"].grade is Grade.OK
    assert found["cgroup.kill"].grade is Grade.OK


def test_without_cgroup_v2_nothing_can_be_cut(tmp_path: Path) -> None:
    [finding] = host_checks.cgroups(tmp_path)
    assert finding.grade is Grade.FAIL


@pytest.mark.parametrize(
    ("connector", "namespace", "grade"),
    [("cn_proc 1:1", 4026531836, Grade.OK), ("cn_proc 1:1", 4026532101, Grade.NOTE)]
    + [("", 4026531836, Grade.NOTE)],
)
def test_births_that_nobody_tells_of_cost_the_proof_of_an_adoption(
    tmp_path: Path, connector: str, namespace: int, grade: Grade
) -> None:
    root = host(tmp_path, proc__net__connector=f"Name            ID\n{connector}\n")
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/ns/pid").symlink_to(f"pid:[{namespace}]")
    [finding] = host_checks.births(root)
    assert finding.grade is grade and ("adopt" in finding.advice) == (grade is Grade.NOTE)


def test_memory_nodes_tiers_and_pools(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        sys__devices__system__node__node0__meminfo="",
        sys__devices__system__node__node1__access0__initiators__read_latency="90",
    )
    pool = {"nr_hugepages": "512", "free_hugepages": "500"}
    host(root / "sys/kernel/mm/hugepages/hugepages-2048kB", **pool)
    found = {f.topic: f for f in (*host_checks.numa(root), *host_checks.hugepages(root))}
    assert found["NUMA"].text == "2 nodes"
    assert found["HMAT"].text == "latency and bandwidth of node1"
    assert found["huge pages 2MiB"].text == "500 of 512 free, 1GiB in all"


def test_advice_on_tiers_names_a_key_that_there_is(tmp_path: Path) -> None:
    root = host(tmp_path, sys__devices__system__node__node0__meminfo="")
    [advice] = [one.advice for one in host_checks.numa(root) if one.topic == "HMAT"]
    table, key = re.search(r"\[(\w+)\] (\w+)", advice).groups()  # type: ignore[union-attr]
    assert key in tomllib.loads(SHIPPED.read_text("utf-8"))[table]


def test_swap_and_clearing_of_pages(tmp_path: Path) -> None:
    root = host(
        tmp_path,
        proc__cmdline="quiet init_on_alloc=1",
        proc__swaps="Filename Type\n/dev/sda2 partition 1 0 -2\n",
    )
    found = graded(list(host_checks.page_hygiene(root)))
    assert found == {"init_on_alloc": Grade.OK, "swap": Grade.WARN}


def test_nvidia_majors(tmp_path: Path) -> None:
    root = host(tmp_path, proc__devices="Character devices:\n195 nvidia\n195 nvidiactl\n")
    found = {finding.topic: finding for finding in host_checks.nvidia(root)}
    assert found["NVIDIA majors"].text == "nvidia 195, nvidiactl 195"
    assert found["nvidia-uvm"].grade is Grade.WARN
    assert "stop leased" in found["GPU reset, MIG mode"].advice
    loaded = host(tmp_path, proc__devices="Character devices:\n195 nvidia\n508 nvidia-uvm\n")
    found = {finding.topic: finding for finding in host_checks.nvidia(loaded)}
    assert "/dev/nvidia-uvm is not there" in found["nvidia-uvm"].text
    (loaded / "dev").mkdir(exist_ok=True)
    (loaded / "dev/nvidia-uvm").touch()
    assert "nvidia-uvm" not in {finding.topic for finding in host_checks.nvidia(loaded)}


@pytest.mark.parametrize(
    ("kind", "grade"), [("ext4", Grade.OK), ("tmpfs", Grade.FAIL), ("nfs4", Grade.FAIL)]
)
def test_the_log_must_lie_on_a_disk_of_this_host(tmp_path: Path, kind: str, grade: Grade) -> None:
    mounts = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib rw - {kind} x rw\n"
    root = host(tmp_path, proc__self__mountinfo=mounts, var__lib__leased__x="")
    [finding] = service_checks.state_directory(root)
    assert finding.grade is grade and kind in finding.text


def test_a_weakened_unit_is_named(tmp_path: Path) -> None:
    root = host(tmp_path, proc__devices="195 nvidia\n")
    shown = {**service_checks.HARDENING, "ActiveState": "active", "DeviceAllow": "char-nvidia rw"}
    shown["ProtectSystem"] = "no"
    found = {f.topic: f for f in service_checks.judge_unit("leased.service", shown, root)}
    assert found["leased.service hardening"].text == "ProtectSystem=no"
    assert "char-nvidia-uvm" in found["leased.service devices"].text
    assert "char-nvidia," not in found["leased.service devices"].text


SYSTEMCTL = """#!/bin/sh
case "$2" in
leased.service) echo LoadState=not-found ;;
leased-cgroup.service) echo LoadState=masked ;;
leased.socket) echo LoadState=bad-setting ;;
*) echo LoadState=loaded; echo ActiveState=active ;;
esac
"""


def test_a_unit_that_is_masked_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "not installed", or not looked at: what the agent needs and who starts it."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL, "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    found = {one.topic: one for one in service_checks.units(tmp_path)}
    assert found["leased.service"].text == "not installed"
    masked = found["leased-cgroup.service"]
    assert (masked.grade, masked.text) == (Grade.WARN, "masked")
    assert "systemctl unmask leased-cgroup.service" in masked.advice
    assert "systemctl status leased.socket" in found["leased.socket"].advice
    assert found["leased-reaper.service"].text == "active"
    assert "leased-admin.socket" not in found, "there is nothing to say"


@pytest.mark.parametrize("unit", privilege_checks.NEEDS)
def test_capabilities_are_those_of_the_unit_and_a_missing_one_is_named(
    tmp_path: Path, unit: str
) -> None:
    text = (TOP / "systemd" / unit).read_text("utf-8")
    bounds = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)", text, re.M)).split()
    needs = privilege_checks.NEEDS[unit]
    assert sorted(need.name for need in needs) == sorted(bounds)
    mask = sum(1 << need.number for need in needs)
    shown = {"MainPID": "7", "CapabilityBoundingSet": " ".join(bounds).lower()}

    def found(**files: str) -> list[Finding]:
        return list(privilege_checks.capabilities(unit, shown, host(tmp_path, **files)))

    [whole] = found(proc__7__status=f"Name:\tx\nCapEff:\t{mask:016x}\nSeccomp:\t2\n")
    assert whole.grade is Grade.OK
    lacks = f"CapEff:\t{mask & ~(1 << 21):016x}\n"
    [missing] = found(proc__7__status=lacks)  # whatever the unit asks for
    assert (missing.grade, missing.text) == (Grade.WARN, "CAP_SYS_ADMIN is missing")
    assert "mappings of namespaces" in missing.advice
    shown = {"MainPID": "0", "CapabilityBoundingSet": "cap_kill"}
    assert len(found()) == len(needs) - 1, "one that does not run has what its unit says"
    shown = {"MainPID": "0", "CapabilityBoundingSet": ""}
    assert len(found()) == 0, "systemd did not tell"


def test_libraries_are_looked_for_where_they_matter(tmp_path: Path) -> None:
    cache = b"glibc-ld.so.cache1.1\0libudev.so.1\0/usr/lib/x/libudev.so.1\0"
    host(tmp_path, etc__x="")
    (tmp_path / "etc/ld.so.cache").write_bytes(cache)
    [finding] = privilege_checks.libraries(tmp_path)
    assert (finding.topic, finding.text) == ("libudev.so.1", "not found"), "only told of"
    host(tmp_path / "usr/lib/x", **{"libudev.so.1": ""})
    host(tmp_path, sys__class__infiniband__rxe0__node_guid="")
    found = {one.topic: one for one in privilege_checks.libraries(tmp_path)}
    assert graded([*found.values()]) == {
        "libudev.so.1": Grade.OK,
        "libibverbs.so.1": Grade.WARN,
    }
    assert "remote peers" in found["libibverbs.so.1"].advice
    host(tmp_path, proc__driver__nvidia__version="NVRM", **{"lib__libcuda.so.1": ""})
    last = graded(list(privilege_checks.libraries(tmp_path)))
    assert last["libnvidia-ml.so.1"] is Grade.WARN and last["libcuda.so.1"] is Grade.OK


def test_budgets_that_do_not_fit_are_shown_as_a_sum(tmp_path: Path) -> None:
    root = host(tmp_path, **{"etc__leased__leased.toml": '[timing]\ncut = "200s"\n'})
    [finding] = service_checks.timing(root)
    assert finding.grade is Grade.FAIL
    assert finding.text == "cut 3 min 20 s + backstop 2 s = 3 min 22 s, at most 1 min"
    [finding] = service_checks.timing(tmp_path / "none")
    assert finding.grade is Grade.OK


def test_who_has_many_uids_has_a_limit_per_tenant_as_often(tmp_path: Path) -> None:
    """A rootless container asks with subordinate ids of whoever started it."""
    root = host(tmp_path, etc__subuid="mia:100000:65536\nbo:165536:65536\n")
    [found] = service_checks.subordinates(root)
    assert (found.grade, found.text[:12]) == (Grade.NOTE, "131072 uids ")
    config = root / "etc/leased/leased.toml"
    config.parent.mkdir()
    config.write_text('[[tenants]]\nname = "lab"\nuids = [1000, "100000-165535"]\n')
    [found] = service_checks.subordinates(root)
    assert found.text.startswith("65536 uids ")
    for unmapped in ("", "others"):
        config.write_text(f'unmapped = "{unmapped}"\n')
        assert not list(service_checks.subordinates(root))


def test_the_exit_status_says_whether_something_required_is_missing(tmp_path: Path) -> None:
    out = io.StringIO()
    status = main(["doctor", "--json", "--root", str(tmp_path)], Console(out, io.StringIO()))
    document = json.loads(out.getvalue())
    assert status == 69 and document["version"] == 1 and not document["healthy"]
    failed = {one["check"] for one in document["findings"] if one["grade"] == "fail"}
    assert {"kernel", "cgroup v2", "agent", "reaper"} <= failed
    assert "leasectl doctor" not in out.getvalue(), "who reads this has asked it"


def test_a_configuration_that_the_agent_would_refuse_is_found(tmp_path: Path) -> None:
    assert not list(service_checks.configuration(tmp_path))
    shipped = SHIPPED.read_text("utf-8")
    root = host(tmp_path, **{"etc__leased__leased.toml": shipped})
    file = root / "etc/leased/leased.toml"
    [finding] = service_checks.configuration(root)
    assert finding.grade is Grade.OK
    file.write_text('[hardware]\ncpu_corse = "1"\n', "utf-8")
    [finding] = service_checks.configuration(root)
    assert finding.grade is Grade.FAIL
    assert finding.text.startswith(f"{file}: hardware.cpu_corse: unknown key")


@pytest.mark.root
def test_a_disk_that_is_full_is_found(tmp_path: Path) -> None:
    state = tmp_path / "var/lib/leased"
    state.mkdir(parents=True)
    words = [sys.executable, "-m", "leased.ctl.main", "doctor", "--json", "--root", str(tmp_path)]
    script = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, state, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TOP / "agent")},
    )
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["room"]["grade"] == "fail" and "16MiB" in found["room"]["advice"]
    assert "room" not in graded(list(service_checks.state_directory(tmp_path)))


def test_an_agent_that_hangs_is_to_be_restarted_and_not_started(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen()
        [found, *_] = service_checks.sockets(Path("/"), str(tmp_path / "s"), "/none")
    assert found.text == "the agent did not answer in 2 s"
    assert "systemctl restart leased.service" in found.advice


def test_without_a_reaper_it_is_said_that_no_lease_ends(tmp_path: Path) -> None:
    """One that refuses what another release wrote is started by systemd again and again."""
    [*_, found] = service_checks.sockets(Path("/"), str(tmp_path / "s"), "/none")
    assert found.topic == "reaper" and found.grade is Grade.FAIL
    assert "no lease ends in time" in found.advice and "journalctl" in found.advice


def test_the_agent_is_looked_for_where_leasectl_would_ask_it(tmp_path: Path) -> None:
    with CannedAgent(tmp_path, {}) as agent:
        found = {one.topic: one for one in service_checks.sockets(Path("/"), agent.path, "/none")}
    assert found["agent"].grade is Grade.OK and found["agent (admin)"].grade is Grade.NOTE


def test_what_is_fenced_is_told_with_what_to_do(tmp_path: Path) -> None:
    def devices(fenced: int) -> Answer:
        use = {"free": 0, "leased": 0, "teardown": 0, "fenced": fenced, "cordoned": False}
        return {"resources": [resource(use=use)], "absences": [], "notes": [], "graces": GRACES}

    fenced = iter((0, 1 << 20))
    with CannedAgent(tmp_path, {"io.leased.Device.List": lambda _: devices(next(fenced))}) as agent:
        before, after = (
            {one.topic: one for one in service_checks.sockets(Path("/"), agent.path, "/none")}
            for _ in range(2)
        )
    assert "fenced" not in before
    assert (after["fenced"].grade, after["fenced"].text) == (Grade.WARN, "1MiB of mem:node0:4096")
    assert "leasectl admin unfence" in after["fenced"].advice
