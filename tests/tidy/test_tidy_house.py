# SPDX-License-Identifier: Apache-2.0
"""The house keeps its laws: every module and text of the repository against every law.

Rule: one test per law, so that a breach is named by the law it breaks, and all breaches are shown
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from tests.tidy import import_law, purity_law, shape_law
from tests.tidy.source import Finding, Module, modules, texts

AGENT = modules("agent")
TESTS = modules("tests")
OTHER = modules("native", "packaging")
TEXTS = texts(
    "agent",
    "native",
    "systemd",
    "configs",
    "tests",
    "packaging",
    "pyproject.toml",
    "README.md",
    ".ci",
)
HOUSE_LAWS = (*import_law.LAWS, *purity_law.LAWS, *shape_law.LAWS)


def _show(findings: Iterable[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)


@pytest.mark.parametrize("law", HOUSE_LAWS, ids=lambda law: law.__name__)
def test_every_module_of_the_agent_keeps(law: Callable[[Module], Iterator[Finding]]) -> None:
    findings = [finding for module in AGENT for finding in law(module)]
    assert not findings, "\n" + _show(findings)


@pytest.mark.parametrize("law", shape_law.LAWS, ids=lambda law: law.__name__)
def test_every_module_of_the_tests_keeps(law: Callable[[Module], Iterator[Finding]]) -> None:
    findings = [finding for module in (*TESTS, *OTHER) for finding in law(module)]
    assert not findings, "\n" + _show(findings)


@pytest.mark.parametrize("law", shape_law.TEXT_LAWS, ids=lambda law: law.__name__)
def test_every_text_keeps(law: Callable[[str, str], Iterator[Finding]]) -> None:
    findings = [finding for path, text in TEXTS for finding in law(path, text)]
    assert not findings, "\n" + _show(findings)


@pytest.mark.parametrize("law", [import_law.dead_module_law, import_law.unused_law])
def test_nothing_is_dead(law: Callable[[Sequence[Module], str], Iterator[Finding]]) -> None:
    started = "\n".join(
        text
        for path, text in TEXTS
        if path.endswith((".toml", ".service", ".socket"))
        or path.startswith(("packaging/", ".ci/"))
    )
    findings = list(law(AGENT, started))
    assert not findings, "\n" + _show(findings)


def test_the_house_was_seen() -> None:
    """A law over nothing proves nothing."""
    assert len(AGENT) > 10 and len(TESTS) > 5 and len(TEXTS) > len(AGENT)
    assert {"terms", "ports"} <= {module.room for module in AGENT}


def test_exceptions_are_few_and_still_needed() -> None:
    """An exception that no longer excuses anything is taken out again; at most one function may be
    long.
    """
    assert len(shape_law.LONG_FUNCTIONS) <= 1
    lines = {module.path: module.text.count("\n") for module in (*AGENT, *TESTS, *OTHER)}
    for path, why in shape_law.LONG_MODULES.items():
        assert lines.get(path, 0) > shape_law.MODULE_LINES_MAX and why, path
    names = {module.name for module in AGENT}
    for name, (_, why) in import_law.EXTRA.items():
        assert name in names and why, name
    for name, why in import_law.CALLED_BY_TESTS.items():
        assert name.rpartition(".")[0] in names and why, name
    for name, why in purity_law.FLOAT_ROOMS_EXCEPT.items():
        assert name in names and why, name
