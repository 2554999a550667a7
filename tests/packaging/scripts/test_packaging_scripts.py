# SPDX-License-Identifier: Apache-2.0
"""The scripts and texts around the program: they parse, refuse what they do not know, and the pages
render.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
SCRIPTS = [
    TOP / name
    for name in (
        "packaging/install",
        "packaging/try",
        "tests/run",
        "tests/vm/run",
        "tests/vm/base",
        ".ci/run",
    )
]
PAGES = sorted((TOP / "packaging" / "man").glob("*.[1-8]"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(TOP)))
def test_a_script_parses_and_may_be_executed(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script", SCRIPTS[:4], ids=lambda path: str(path.relative_to(TOP)))
def test_a_script_refuses_an_option_it_does_not_know(script: Path) -> None:
    done = subprocess.run(
        [script, "--frobnicate"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 64
    assert done.stderr.startswith("usage: ")
    done = subprocess.run(
        [script, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a few lines on top of packaging/progress.sh."""
    text = f'set -euo pipefail; step_total=1; . "{TOP}/packaging/progress.sh"; {script}'
    environment = {**os.environ, "leased_log": str(cwd / "log")}
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_a_step_that_fails_shows_why_and_ends_the_script(tmp_path: Path) -> None:
    done = shell("bad() { echo the reason; return 7; }; step first bad; echo not reached", tmp_path)
    assert done.returncode == 7
    assert "[1/1] first FAILED after" in done.stdout
    assert "    the reason" in done.stderr
    assert "not reached" not in done.stdout


def test_a_step_that_fails_without_a_word_says_where_its_words_would_be(tmp_path: Path) -> None:
    """A full /tmp takes no log, either."""
    done = shell("mute() { return 120; }; step first mute", tmp_path)
    assert done.returncode == 120
    assert f"it wrote nothing: is there room in {tmp_path}?" in done.stderr
    assert "wrote nothing" not in shell("bad() { echo x; return 7; }; step a bad", tmp_path).stderr


def test_a_step_stops_at_the_first_command_that_fails(tmp_path: Path) -> None:
    done = shell("half() { false; touch went-on; }; step first half", tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "went-on").exists()


def test_a_step_does_not_read_the_callers_input(tmp_path: Path) -> None:
    done = shell("step first cat; echo reached", tmp_path)
    assert done.returncode == 0
    assert "reached" in done.stdout


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation whose interpreter notes the mask that it was started with, and fails."""
    python = tmp_path / "a place" / "bin" / "python"
    (python.parent.parent / "share" / "leased").mkdir(parents=True)
    (python.parent.parent / "share" / "leased" / "installed").touch()
    python.parent.mkdir()
    python.write_text('#!/bin/sh\numask >"$0.mask"\n[ "$3" = --version ]\n')
    python.chmod(0o755)
    return python.parent.parent


def install(prefix: Path) -> subprocess.CompletedProcess[str]:
    """packaging/install as a careful administrator runs it; it fails before it leaves `prefix`."""
    wheel = prefix.parent / "none.whl"
    words = [TOP / "packaging/install", "--no-apt", "--no-start", "--wheel", wheel]
    return subprocess.run(
        ["sh", "-c", 'umask 077; exec "$@"', "sh", *words, "--prefix", prefix],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(prefix.parent)},
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="installs")
def test_what_is_installed_is_everybodys_to_run(prefix: Path) -> None:
    """A mask of 077 is an administrator's; the collector's user could not read its program."""
    plain = prefix.rename(prefix.parent / "place")
    assert install(plain).returncode == 1
    assert (plain / "bin" / "python.mask").read_text().strip() == "0022"


@pytest.mark.skipif(os.geteuid() != 0, reason="installs")
def test_a_prefix_that_no_unit_can_name_is_refused(prefix: Path) -> None:
    done = install(prefix)
    assert done.returncode == 64
    assert "--prefix may have letters" in done.stderr
    assert not (prefix / "bin" / "python.mask").exists()


ELSEWHERE = """
set -e
for place in /usr/local /etc /var/lib /run /srv; do mount -t tmpfs none "$place"; done
mkdir -p /srv/leased/share/leased /usr/local/bin /var/lib/leased /var/lib/leased-collector
printf '%s\n' /usr/local/bin/leasectl >/srv/leased/share/leased/installed
ln -s /srv/leased/bin/leasectl /usr/local/bin/leasectl
status=0; "$0" --uninstall || status=$?
echo "status $status"; ls /usr/local/bin /srv/leased
"$0" --uninstall --prefix /srv/leased
test ! -e /srv/leased; test ! -L /usr/local/bin/leasectl
"$0" --uninstall --purge; ls -d /var/lib/leased* /etc/leased* || echo nothing
"""


@pytest.mark.root
def test_the_program_is_taken_off_where_it_is_and_what_is_kept_is_named(tmp_path: Path) -> None:
    # Not this host's own: a namespace with nothing in these places.
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", ELSEWHERE, TOP / "packaging/install"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "in /srv/leased: --uninstall --prefix /srv/leased" in done.stderr
    assert "status 66\n/srv/leased:\nshare" in done.stdout, "taken off from where it is not"
    assert "/var/lib/leased (the chain)\nKept: /var/lib/leased-collector" in done.stdout
    assert done.stdout.endswith("nothing\n"), "something of ours is left"


UNDER_LEASE = r"""
set -e
for place in /usr/local /etc /var/lib /run /srv; do mount -t tmpfs none "$place"; done
mkdir -p /srv/bin /srv/leased/bin /srv/leased/share/leased /run/systemd/system /var/lib/leased
touch /srv/leased/share/leased/installed
program() { printf '#!/bin/sh\n%s\n' "$2" >"$1"; chmod 0755 "$1"; }
program /srv/bin/systemctl 'echo "systemctl $@" >>/srv/asked'
program /srv/leased/bin/python "exec '$2' \"\$@\""
live='{"leases": [{"runtime": {"state": "active"}}]}'
program /srv/leased/bin/leasectl "echo leasectl \$@ >>/srv/asked; echo '$live'; exit $3"
PATH=/srv/bin:$PATH "$1" --uninstall --prefix /srv/leased || echo "status $?"
head -n 3 /srv/asked
"""


@pytest.mark.root
@pytest.mark.parametrize("drained", [True, False])
def test_what_is_leased_is_taken_back_by_the_agent_before_it_goes(
    drained: bool, tmp_path: Path
) -> None:
    """Else nobody made it clean: mappings, and what tenants had written, stayed where they were."""
    words = [TOP / "packaging/install", sys.executable, "0" if drained else "75"]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", UNDER_LEASE, "-", *words],
        capture_output=True,
        text=True,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    asked = [line for line in lines if line.startswith(("leasectl", "systemctl"))]
    assert asked[1].startswith("leasectl drain --grace")
    if drained:
        assert asked[2].startswith("systemctl")
        assert "This host is drained" in done.stdout
    else:
        assert len(asked) == 2 and "status 75" in done.stdout
        assert "systemctl stop leased.socket" in done.stderr


UPGRADE = r"""
set -e
for place in /usr/local /etc /var/lib /run /srv; do mount -t tmpfs none "$place"; done
mkdir -p /srv/bin /srv/leased/bin /srv/leased/share/leased /srv/package/bin
mkdir -p /run/systemd/system /etc/leased
touch /srv/leased/share/leased/installed
program() { printf '#!/bin/sh\n%s\n' "$2" >"$1"; chmod 0755 "$1"; }
program /srv/bin/systemctl 'echo "$@" >>/srv/asked'
program /srv/package/bin/leased-reaper 'exit 78'
program /srv/leased/bin/python \
  "case \$* in *pathlib*) echo /srv/package ;; *json*) exec '$2' \"\$@\" ;; esac"
program /srv/leased/bin/leasectl "echo '{\"leases\": [{\"runtime\": {\"state\": \"active\"}}]}'"
main='from leased.service.daemon import main; exit(main())'
program /srv/leased/bin/leased "[ \$1 = --version ] || exec '$2' -c '$main' \"\$@\""
echo "policy = { ttl_max_standard = '$3' }" >/etc/leased/leased.toml
PATH=/srv/bin:$PATH "$1" --no-apt --wheel none.whl --prefix /srv/leased || echo "status $?"
cat /srv/asked
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("ttl", "why", "asked"),
    [
        ("60d", "policy.ttl_max_standard", ""),
        ("6h", "leasectl drain", "is-active -q leased-reaper.service\n"),
    ],
)
def test_nothing_is_restarted_that_the_new_program_could_not_go_on_with(
    ttl: str, why: str, asked: str, tmp_path: Path
) -> None:
    """Neither with a configuration that it refuses, nor with what a reaper wrote that it cannot
    read, while anything is leased."""
    words = [TOP / "packaging/install", sys.executable, ttl]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", UPGRADE, "-", *words],
        capture_output=True,
        text=True,
        env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(TOP / "agent")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert why in done.stderr
    assert "Nothing was restarted" in done.stderr
    told = "enable leased.service\n" + asked
    assert done.stdout.endswith(f"status 78\n{told}"), "asked of systemd"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_renders_without_a_warning(page: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed: the pages were not rendered")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", page],
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "80", "MANPAGER": "cat"},
    )
    # A line that cannot be justified is only ugly.
    wrong = [line for line in done.stderr.splitlines() if "adjust line" not in line]
    assert (done.returncode, wrong) == (0, [])
    assert "NAME" in done.stdout


def test_every_page_that_a_unit_names_is_there() -> None:
    named = set()
    for unit in (TOP / "systemd").glob("*.s*"):
        if unit.is_file():
            named |= set(re.findall(r"man:([\w.-]+)\((\d)\)", unit.read_text()))
    assert named
    for name, section in named:
        assert (TOP / "packaging" / "man" / f"{name}.{section}").exists()


def test_the_installer_knows_every_unit_of_the_tree() -> None:
    text = (TOP / "packaging" / "install").read_text()
    listed = " ".join(re.findall(r"all_units=\((.*?)\)", text))
    there = {
        p.name for p in (TOP / "systemd").iterdir() if p.suffix in (".service", ".socket", ".slice")
    }
    assert set(listed.split()) == there


def test_the_licence_is_the_one_that_every_file_names() -> None:
    assert "Apache License" in (TOP / "LICENSE").read_text()[:200]
    for script in SCRIPTS:
        assert "SPDX-License-Identifier: Apache-2.0" in script.read_text()[:200]
