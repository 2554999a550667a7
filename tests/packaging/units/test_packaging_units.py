# SPDX-License-Identifier: Apache-2.0
"""The units as systemd reads them: valid, hardened to a score, and in agreement with the program
they start.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from leased.service.config import CGROUP_ROOT, Config

TOP = Path(__file__).resolve().parents[3]
SYSTEMD = TOP / "systemd"
UNITS = sorted(
    path for path in SYSTEMD.iterdir() if path.suffix in (".service", ".socket", ".slice")
)
GOALS = {
    "leased.service": 4.0,
    "leased-reaper.service": 5.0,
    "leased-collector.service": 2.0,
    "leased-collector-pull.service": 2.0,
}
EXPLAINED = {
    "PrivateDevices=": "PrivateDevices=",
    "ProtectControlGroups=": "ProtectControlGroups=",
    "ProtectProc=": "ProtectProc=",
    "PrivateUsers=": "PrivateUsers=",
    "PrivateNetwork=": "PrivateNetwork=",
    "User=/DynamicUser=": "Root, because",
}
"""What the score counts against us -> the words with which the unit explains it."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not installed: units not checked",
)


def settings(unit: str) -> dict[str, list[str]]:
    """A unit's settings, all values of each."""
    found: dict[str, list[str]] = {}
    for line in (SYSTEMD / unit).read_text().replace("\\\n", "").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """Verified as installed: every program they name is there, and so is every other unit."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("leased", "leased-reaper", "leased-collector"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    units = tmp_path / "units"
    units.mkdir()
    for unit in UNITS:
        (units / unit.name).write_text(unit.read_text().replace("/opt/leased/bin", str(programs)))
    done = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            *map(str, sorted(units.iterdir())),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("unit", GOALS)
def test_the_hardening_reaches_its_goal(unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(SYSTEMD / unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    score = float(re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)[0])
    with capsys.disabled():
        print(f"\n{unit}: systemd-analyze security {score} (goal {GOALS[unit]})")
    assert score <= GOALS[unit]
    part = unit.removesuffix(".service").removesuffix("-pull").rpartition("-")[2]
    told = f"{part.replace('leased', 'agent')} {score} (goal {GOALS[unit]})"
    version = subprocess.check_output(["systemd-analyze", "--version"], text=True).split()[1]
    assert version != "252" or told in (TOP / "packaging/README.md").read_text("utf-8")


@needs_systemd
@pytest.mark.parametrize("unit", GOALS)
def test_what_the_score_holds_against_a_unit_is_explained_in_it(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(SYSTEMD / unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    text = (SYSTEMD / unit).read_text()
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    against = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✗")]
    assert against
    for check in against:
        capability = re.fullmatch(r"CapabilityBoundingSet=~CAP_(.*)", check)
        if capability:
            names = re.findall(r"[A-Z_]+", capability[1])
            held = " ".join(settings(unit)["CapabilityBoundingSet"])
            ours = [name for name in names if re.search(rf"CAP_(SYS_)?{name}", held)] or [
                capability[1]
            ]
            assert any(name.strip("_") in comments for name in ours), f"{check} is not explained"
        elif check in EXPLAINED:
            assert EXPLAINED[check] in comments, f"{check} is not explained"


def test_the_doors_are_the_programs_doors() -> None:
    paths = Config().paths
    user, admin = settings("leased.socket"), settings("leased-admin.socket")
    assert user["ListenStream"] == [str(paths.user_socket)]
    assert admin["ListenStream"] == [str(paths.admin_socket)]
    assert int(user["SocketMode"][0], 8) == Config().sockets.user_mode
    assert int(admin["SocketMode"][0], 8) == Config().sockets.admin_mode
    assert user["Service"] == admin["Service"] == ["leased.service"]


def test_every_module_whose_devices_the_agent_may_open_is_loaded_before_it() -> None:
    """A class of DeviceAllow= is numbers, looked up when the unit starts: none for a module that
    comes later."""
    modules = {"char-nvidia-uvm": "nvidia_uvm", "char-nvidia-caps": "nvidia_uvm"}
    modules |= {"char-nvme": "nvme", "char-infiniband_verbs": "ib_uverbs"}
    modules |= {"block-device-mapper": "dm_mod", "block-loop": "loop"}
    told = settings("leased.service")
    classes = {value.partition(" ")[0] for value in told["DeviceAllow"]}
    for key in ("Wants", "After"):
        named = " ".join(told[key]).split()
        for one in classes & modules.keys():
            assert f"modprobe@{modules[one]}.service" in named, (key, one)


def test_nothing_that_is_leased_may_be_swapped_out() -> None:
    """Of the agent's, to whose cgroup leased memory is charged, and of the leaves."""
    assert settings("leased.slice")["MemorySwapMax"] == ["0"]
    for unit in ("leased.service", "leased-cgroup.service", "leased-reaper.service"):
        assert settings(unit)["Slice"] == ["leased.slice"]


def test_the_directories_and_the_cgroup_are_the_programs() -> None:
    paths = Config().paths
    agent = settings("leased.service")
    assert f"/var/lib/{agent['StateDirectory'][0]}" == str(paths.state_dir)
    assert f"/run/{agent['RuntimeDirectory'][0]}" == str(paths.runtime_dir)
    assert agent["RuntimeDirectoryPreserve"] == ["yes"]
    slice_name, unit = CGROUP_ROOT.split("/")
    assert (SYSTEMD / slice_name).exists()
    assert settings(unit)["Slice"] == [slice_name]
    assert f"/sys/fs/cgroup/{CGROUP_ROOT}" in (SYSTEMD / unit).read_text()
    directories = (SYSTEMD / "tmpfiles.d" / "leased.conf").read_text()
    for path in (paths.runtime_dir, paths.state_dir, paths.audit_dir):
        assert f"d {path} " in directories


def test_stopping_the_agent_stops_no_lease() -> None:
    """The agent's unit may not hold the leases' cgroup, nor kill what is not its own."""
    assert settings("leased.service")["KillMode"] == ["mixed"]
    assert "Delegate" not in settings("leased.service")
    assert settings("leased-reaper.service")["KillMode"] == ["process"]
    assert settings("leased-cgroup.service")["KillMode"] == ["process"]
    for unit in ("leased-reaper.service", "leased-cgroup.service"):
        assert settings(unit)["RefuseManualStop"] == ["yes"]
        assert settings(unit)["Restart"] == ["always"]
        assert settings(unit)["StartLimitIntervalSec"] == ["0"]


def test_a_status_that_another_try_does_not_mend_is_not_tried_again() -> None:
    from leased.terms.errors import EX_CONFIG, EX_DATAERR, EX_USAGE

    (statuses,) = settings("leased.service")["RestartPreventExitStatus"]
    assert {int(status) for status in statuses.split()} == {EX_CONFIG, EX_DATAERR, EX_USAGE}


def test_the_watchdog_leaves_room_for_several_heartbeats() -> None:
    (seconds,) = settings("leased.service")["WatchdogSec"]
    assert int(seconds) * 10**9 >= 3 * Config().timing.heartbeat_ns


def test_the_reapers_store_fits_into_one_environment_string() -> None:
    """LISTEN_FDNAMES is one string of at most 128 KiB, or the reaper could not be started again at
    all.
    """
    (most,) = settings("leased-reaper.service")["FileDescriptorStoreMax"]
    longest = len("0" * 32 + ".15" + ":")
    assert int(most) * longest + len("LISTEN_FDNAMES=") < 128 * 1024


def test_the_units_have_room_for_the_leases_of_the_policy() -> None:
    leases_max = Config().policy.leases_max
    for unit in GOALS:
        assert int(settings(unit)["LimitNOFILE"][0]) >= 4 * leases_max, unit


def test_the_catalog_is_accepted(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed: the catalog was not compiled")
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    shutil.copy(SYSTEMD / "leased.catalog", place)
    subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], check=True, capture_output=True
    )
    listed = subprocess.run(
        ["journalctl", "--list-catalog", f"--root={tmp_path}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    written = re.findall(
        r"^-- [0-9a-f]{32}$", (SYSTEMD / "leased.catalog").read_text(), re.MULTILINE
    )
    assert len(listed.splitlines()) == len(written) > 25
