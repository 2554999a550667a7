# SPDX-License-Identifier: Apache-2.0
"""The databases of a state directory: one that finds no room says so, and goes on when there is."""

from __future__ import annotations

import io
import re
import resource
from contextlib import closing
from pathlib import Path

import pytest

from leased.chain.certificate import Role
from leased.collector.governance.register import Register, Reply
from leased.collector.invites import Invite, Invites
from leased.collector.main import main
from leased.ctl.console import Console
from leased.terms.errors import EX_IOERR, StateError, disk_error
from tests.doubles.fleet_pki import FleetPki
from tests.doubles.small_disk import fill, mounted_small


def keep_replies(register: Register) -> None:
    with register.transaction():
        for number in range(100):
            register.keep_reply("a", str(number), Reply(b"", 200, {}, b"x" * 4096), 1)


def test_a_register_without_room_says_that_and_nothing_else(tmp_path: Path) -> None:
    """SQLite had ended such a transaction by itself: to end it again was refused, and told."""
    with closing(Register(tmp_path)) as register:
        (pages,) = register.connection.execute("PRAGMA page_count").fetchone()
        register.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StateError, match="full") as raised:
            keep_replies(register)
        assert disk_error(raised.value) and register.reply("a", "0") is None
        register.connection.execute("PRAGMA max_page_count = 100000")
        keep_replies(register)
        assert register.reply("a", "99") is not None


def test_a_key_that_finds_no_room_is_named(tmp_path: Path) -> None:
    """It was "No space left on device", and nothing said where."""
    certificate, err = FleetPki(tmp_path / "pki").issue(Role.COLLECTOR, "west"), io.StringIO()
    config = tmp_path / "west.toml"
    config.write_text(f'[pull]\ncertificate = "{certificate}"\n')
    with mounted_small(tmp_path / "state") as state:
        fill(state)
        words = ["--state", str(state), "cosigner", "--config", str(config)]
        assert main(words, Console(io.StringIO(), err, terminal=False)) == EX_IOERR
    assert re.search(r"state/\S+: No space left on device\n", err.getvalue()), err.getvalue()


def test_an_invite_on_a_full_disk_is_no_traceback(tmp_path: Path) -> None:
    invite = Invite("5a1c0f3e9b2d7c40", "alpha", "https://alpha:7443", "", ("alpha",), 1 << 62)
    with closing(Invites(tmp_path)) as invites:
        invites.make(invite, "secret", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    err = io.StringIO()
    try:
        words = ["--state", str(tmp_path), "withdraw", invite.id]
        status = main(words, Console(io.StringIO(), err, terminal=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == EX_IOERR and "invites.sqlite: disk I/O error" in err.getvalue(), err
    with closing(Invites(tmp_path)) as invites:
        assert invites.withdraw(invite.id)
