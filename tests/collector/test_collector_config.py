# SPDX-License-Identifier: Apache-2.0
"""The collector's configuration: the shipped file is the defaults, and what cannot be meant is
named."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.collector import config as c
from leased.collector.enrolment import read_enrolment
from leased.terms.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "configs" / "leased-collector.toml"


def test_the_shipped_file_spells_the_defaults_out() -> None:
    assert c.load(SHIPPED) == c.PullConfig()
    spelled = SHIPPED.read_text("utf-8")
    assert [key for key in c._PULL_KEYS if f"\n{key} = " not in spelled] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[pull]\nconections_max = 3", 'pull.conections_max: unknown key; did you mean "conn'),
        ("[pull]\nconnections_max = 0", "pull.connections_max = 0: from 1"),
        ('[pull]\nwait = "2m"', "pull.wait"),
        ('[pull]\noperators = ["mia"]', "pull.operators"),
        ('[[nodes]]\nname = "a"', "nodes"),
        ("[pul]", "pul"),
        ("pull = 3", "pull"),
        ("[pull", "']'"),
        (
            '[[nodes]]\nname="a"\nurl="u"\nenrolment="f"\n' * 2,
            "nodes: a stands twice",
        ),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "collector.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as found:
        c.load(path)
    assert named in str(found.value) and str(path) in str(found.value)


def test_sections_of_other_parts_are_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "collector.toml"
    path.write_text('[http]\nanything = "goes"\n[pull]\npages_max = 3\n')
    assert c.load(path).pages_max == 3


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format": "leased-enrolment/2"}', b"\xff"])
def test_an_enrolment_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match="from a test"):
        read_enrolment(raw, "from a test")
