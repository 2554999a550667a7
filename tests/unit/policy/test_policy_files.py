# SPDX-License-Identifier: Apache-2.0
"""A policy file that cannot even be read says where: file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from leased.ctl.policy_file import load_policy
from leased.service.config_file import parse_policy
from leased.terms.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tenants.acme]\ngpu = 1\ngpu = 2\n", "line 3, 'gpu': given twice"),
        ("[tenants.acme]\ngpu = 1\n[tenants.acme]\n", "line 3, '[tenants.acme]': given twice"),
        ("tenants = { acme = { gpu = 1, gpu = 2 } }", "line 1, 'gpu': given twice"),
        ('ttl_min = "1s"\nttl_default = \n', "line 2, 'ttl_default': Invalid value"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_policy(file)
    assert str(refused.value) == f"{file}: {said}"
    with pytest.raises(ConfigError) as refused:
        parse_policy(text, "policy.toml")
    assert str(refused.value) == f"policy.toml: {said}"


def test_a_key_that_is_given_twice_is_refused_in_json_too(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"tenants": {"acme": {"gpu": 1, "gpu": 2}}}')
    with pytest.raises(ConfigError) as refused:
        load_policy(file)
    assert str(refused.value) == f"{file}: tenants.acme.gpu: given twice"
