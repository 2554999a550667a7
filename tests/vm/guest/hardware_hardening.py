# SPDX-License-Identifier: Apache-2.0
"""What the units may not do, tried: a program in the very sandbox of each unit asks the kernel.

Rule: the sandbox is read from the installed unit, so that a line that is missing there is missing
here. Each call is one that fails harmlessly where it is allowed (bad addresses, bad magic); that it
would be allowed to root outside is tried as well, so that a refusal here means the unit.

Does not try what a capability alone decides and another test looks up (`phase_first`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import host
import pytest

UNITS = Path("/run/systemd/system")
OURS = {
    "ExecStart",
    "ExecReload",
    "FileDescriptorStoreMax",
    "KillMode",
    "LogRateLimitIntervalSec",
    "NotifyAccess",
    "Restart",
    "RestartPreventExitStatus",
    "RestartSec",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "RuntimeDirectoryPreserve",
    "Slice",
    "Sockets",
    "StateDirectory",
    "StateDirectoryMode",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "Type",
    "WatchdogSec",
}
"""What makes it the unit that it is, and not what it may do."""

TRY = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
CALLS = {  # x86-64
    "mount": (165, 1, 1, 1, 0, 0), "umount2": (166, 1, 0), "pivot_root": (155, 1, 1),
    "fsopen": (430, 1, 0), "move_mount": (429, -1, 1, -1, 1, 0),
    "init_module": (175, 1, 1, 1), "finit_module": (313, -1, 1, 0), "delete_module": (176, 1, 0),
    "reboot": (169, 0, 0, 0, 0), "kexec_load": (246, 0, 0, 0, 0xFFFF),
    "clock_settime": (227, 0, 1), "settimeofday": (164, 1, 0),
    "swapon": (167, 1, 0), "swapoff": (168, 1),
    "unshare": (272, 0x20000), "setns": (308, -1, 0x20000),
    "ptrace": (101, 16, 0, 0, 0), "perf_event_open": (298, 1, 0, -1, -1, 0),
}
found = {}
for name, (number, *words) in CALLS.items():
    done = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, words))
    found[name] = "done" if done >= 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps(found), flush=True)
"""


def tried_in(unit: str, tmp_path: Path) -> dict[str, str]:
    """What each call gave in the sandbox of the installed unit."""
    text = host.run("systemctl", "cat", unit)
    service = text.partition("[Service]")[2].partition("[Install]")[0]
    sandbox = [
        line
        for line in service.splitlines()
        if "=" in line and not line.startswith("#") and line.partition("=")[0] not in OURS
    ]
    assert any(line.startswith("SystemCallFilter=") for line in sandbox), text
    program, said = tmp_path / "try.py", tmp_path / "said.json"
    program.write_text(TRY)
    name = f"tried-{unit}"
    where = UNITS / name
    lines = ["[Service]", "Type=oneshot", f"ExecStart={sys.executable} -S {program}"]
    # Where the program lies: the units see neither /tmp nor homes.
    lines += [f"BindReadOnlyPaths={program}", f"StandardOutput=file:{said}", *sandbox]
    where.write_text("\n".join(lines) + "\n")
    try:
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", name)
        return dict(json.loads(said.read_text()))
    finally:
        where.unlink()
        host.run("systemctl", "daemon-reload")


@pytest.mark.parametrize("unit", ["leased.service", "leased-reaper.service"])
def test_a_unit_can_neither_mount_nor_load_nor_reboot_nor_set_clocks(
    unit: str, tmp_path: Path
) -> None:
    outside = json.loads(
        subprocess.run(
            [sys.executable, "-S", "-c", TRY], capture_output=True, text=True, check=True
        ).stdout
    )
    allowed = {name: how for name, how in outside.items() if how == "EPERM"}
    assert not allowed, f"root outside may not either, so nothing is shown by it: {allowed}"
    inside = tried_in(unit, tmp_path)
    assert inside.keys() == outside.keys()
    let_through = {name: how for name, how in inside.items() if how != "EPERM"}
    assert not let_through, f"{unit} is not kept from {let_through}"
