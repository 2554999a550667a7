# SPDX-License-Identifier: Apache-2.0
"""Completion: what the shells themselves offer after Tab, once they have read our scripts."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from leased.collector.main import build_parser as build_collector_parser
from leased.ctl.completion import script
from leased.ctl.main import build_parser

HANG_S = 60.0
LINES = [
    ("leasectl re", {"renew", "release", "resume"}),
    ("leasectl admin fe", {"fence"}),
    ("leasectl run --priority ", {"scavenger", "standard", "guaranteed"}),
    ("leasectl audit export --format f", {"frames"}),
    ("leasectl quota show --he", {"--help"}),
    ("leasectl --json renew 0", {"01ab", "02cd"}),
    ("leasectl drain me", {"mem:node0:4096"}),
    ("leasectl completion ba", {"bash"}),
]
PROGRAM = """#!/bin/sh
case "$*" in
*' ls') printf '%s\\n' 'ID   STATE' '01ab active' '02cd active' ;;
*' devices') printf '%s\\n' 'RESOURCE  TIER' 'mem:node0:4096  dram' 'mem  5 s' 'no gpu: none' ;;
*) echo "SAID $* END" ;;
esac
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A shell's environment in which an agent has two leases, and nobody's own configuration."""
    program = tmp_path / "bin" / "leasectl"
    program.parent.mkdir()
    program.write_text(PROGRAM, encoding="utf-8")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def shell(name: str) -> str:
    """Where it is; a skip that says what is not proven without it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"not proven: completion in {name} (not installed)")
    return found


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_bash(line: str, wanted: set[str], env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("bash", build_parser()), encoding="utf-8")
    program = (
        'source "$1"; COMP_WORDS=($2); [[ $2 != *" " ]] || COMP_WORDS+=("");'
        ' COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2};'
        ' _leasectl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = [shell("bash"), "-c", program, "bash", str(tmp_path / "script"), line]
    told = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("leasectl holders me\t", "SAID holders mem:node0:4096 END"),
        ("leasectl holders mem:no\t", "SAID holders mem:node0:4096 END"),
        ("leasectl drain mem:\t", "SAID drain mem:node0:4096 END"),
        ("leasectl run --priority=sc\t", "SAID run --priority=scavenger END"),
        ("leasectl audit export --log=bi\t", "SAID audit export --log=bin/ END"),
        ("leasectl verify --log bi\t", "SAID verify --log bin/ END"),
        ("leasectl run --ttl \t\t5s", "SAID run --ttl 5s END"),
        ("leasectl run -- sh tr\t", "SAID run -- sh train.sh END"),
    ],
)
@pytest.mark.parametrize("breaks", ["", ":"])
def test_bash_at_a_terminal(
    line: str, wanted: str, breaks: str, env: dict[str, str], tmp_path: Path
) -> None:
    """It parts words at colons, which every resource has, but where it was told not to (`npm`
    does); what it is given after a colon is set behind it."""
    (tmp_path / "script").write_text(script("bash", build_parser()), encoding="utf-8")
    (tmp_path / "train.sh").touch()
    without = f"COMP_WORDBREAKS=${{COMP_WORDBREAKS//[{breaks or '!'}]}}"
    rc = f"cd {tmp_path}; source ./script; {without}; PS1='RE''ADY '\n"
    (tmp_path / "rc").write_text(rc, encoding="utf-8")
    words = ["bash", "--rcfile", str(tmp_path / "rc"), "-i"]
    assert wanted in typed(line, shell("bash"), words, env)


@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_fish(line: str, wanted: set[str], env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("fish", build_parser()), encoding="utf-8")
    program = "source $argv[1]; complete -C $argv[2]"
    words = [shell("fish"), "--no-config", "-c", program, str(tmp_path / "script"), line]
    told = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert {offer.partition("\t")[0] for offer in told.stdout.splitlines()} == wanted
    assert not told.stderr


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("leasectl admin fe\t", "SAID admin fence END"),
        ("leasectl audit export --format f\t", "SAID audit export --format frames END"),
        ("leasectl run --priority sc\t", "SAID run --priority scavenger END"),
        ("leasectl rene\t02\t", "SAID renew 02cd END"),
        ("leasectl resu\tme\t", "SAID resume mem:node0:4096 END"),
    ],
)
def test_zsh(line: str, wanted: str, env: dict[str, str], tmp_path: Path) -> None:
    """It completes at a terminal only: a line is typed, with Tabs; what was run is looked at."""
    begin = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump"
    assert wanted in at_a_zsh(line, begin, env, tmp_path)


def test_zsh_may_source_it(env: dict[str, str], tmp_path: Path) -> None:
    """As everybody pastes it: `source <(leasectl completion zsh)` told of _tags and completed
    nothing."""
    begin = f"autoload -U compinit; compinit -u -d {tmp_path}/dump; source {tmp_path}/_leasectl"
    heard = at_a_zsh("leasectl admin fe\t", begin, env, tmp_path)
    assert "SAID admin fence END" in heard and "comptags" not in heard


def at_a_zsh(line: str, begin: str, env: dict[str, str], tmp_path: Path) -> str:
    (tmp_path / "_leasectl").write_text(script("zsh", build_parser()), encoding="utf-8")
    (tmp_path / ".zshrc").write_text(f"{begin}\nPS1='RE''ADY '\n", encoding="utf-8")
    return typed(line, shell("zsh"), ["zsh", "--no-global-rcs", "-i"], env)


def typed(line: str, program: str, words: list[str], env: dict[str, str]) -> str:
    """What a shell says to a line that is typed, Tabs and all."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(program, words, env)
    try:
        heard = heard_until("READY", terminal)
        os.write(terminal, f"{line}\n".encode())
        return heard + heard_until(" END", terminal)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def heard_until(sign: str, terminal: int) -> str:
    """What a terminal says, up to a sign."""
    heard, give_up = "", time.monotonic() + HANG_S
    while sign not in heard:
        assert select.select([terminal], [], [], max(0, give_up - time.monotonic()))[0], heard
        heard += os.read(terminal, 65536).decode("utf-8", "replace")
    return heard


def test_the_collectors_verbs_complete_as_well(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script("fish", build_collector_parser()), encoding="utf-8")
    program = "source $argv[1]; complete -C 'leased-collector enr'"
    words = [shell("fish"), "--no-config", "-c", program, str(tmp_path / "script")]
    told = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert told.stdout.startswith("enrol\t")
