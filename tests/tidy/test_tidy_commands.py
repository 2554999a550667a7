# SPDX-License-Identifier: Apache-2.0
"""Commands that a document shows, or that a program, a unit or a configuration tells somebody to
run, are commands of ours: the verb is there, and has that option.

Of a line that stands in a document to be typed all must be meant, by the parser itself; of a
command that is named in a sentence, in backticks, something may be missing or stand for something
(`ID`, `…`, `{name}`).

Not looked at: decisions, the changelog and the track record, which tell of what was.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from leased.collector import main as collector
from leased.ctl.main import build_parser

ROOT = Path(__file__).parents[2]
PARSERS = {"leasectl": build_parser(), "leased-collector": collector.build_parser()}
SHOWN = ("README.md", "packaging/FLEET.md")
NAMING = ("configs", "systemd", "packaging", "agent/leased", "native")
SUFFIXES = (".toml", ".service", ".socket", ".catalog", ".md", ".js", ".yml", ".8", ".5", "", ".py")
OPEN = re.compile(r"[A-Z]+|.*[{}$|…].*")
"""A word that stands for others."""


def sentences(path: Path) -> str:
    """What a file says to people."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        roff = r'\\fB(.*?)\\fR|\.BR? "?(lease[^"\n(]*)"?'
        text = re.sub(roff, r"`\1\2`", text.replace("\\-", "-"))
        return re.sub(r"\n[#;/]* *", " ", text)
    return "\n".join(spoken(ast.parse(text)))


def spoken(node: ast.AST) -> Iterator[str]:
    """The strings of a module, each whole."""
    if isinstance(node, ast.JoinedStr):
        parts = (one.value if isinstance(one, ast.Constant) else "{}" for one in node.values)
        yield "".join(map(str, parts))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield re.sub(r"\s+", " ", node.value)
    else:
        for below in ast.iter_child_nodes(node):
            yield from spoken(below)


def named(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands in backticks: the program, and its words."""
    for program, rest in re.findall(r"`(?:sudo )?(leasectl|leased-collector)((?: [^`]*)?)`", text):
        with contextlib.suppress(ValueError):  # a quote that is no shell's
            yield program, shlex.split(rest)


def stranger(program: str, words: list[str]) -> str:
    """The first verb or option that the program has not."""
    parser: argparse.ArgumentParser = PARSERS[program]
    value = False
    for word in words:
        below = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        if value or OPEN.fullmatch(word) or word in ("-", "--"):
            value = False
        elif word.startswith("-"):
            option = parser._option_string_actions.get(word.partition("=")[0])
            if option is None:
                return word
            value = option.nargs is None and "=" not in word
        elif below:
            if word not in below[0].choices:
                return word
            parser = below[0].choices[word]
    return ""


def naming() -> list[Path]:
    found = (it for top in NAMING for it in (ROOT / top).rglob("*") if it.suffix in SUFFIXES)
    other = {"build", "__pycache__", "CHANGELOG.md", "leased-collector.8"}
    return [
        *(ROOT / name for name in ("README.md", "agent/ARCHITECTURE.md", "tests/EVIDENCE.md")),
        *(it for it in found if it.is_file() and not other & {*it.parts}),
    ]


def test_every_command_that_is_named_is_one() -> None:
    said = 0
    wrong = []
    for path in naming():
        for program, words in named(sentences(path)):
            said += 1
            if unknown := stranger(program, words):
                wrong.append(f"{path.relative_to(ROOT)}: {program} {' '.join(words)}: {unknown}")
    assert wrong == [] and said > 150


def test_what_is_no_command_is_found() -> None:
    told = "`leasectl audit prove --sequence 3`, `leased-collector --state /x enroll a`"
    assert [stranger(*one) for one in named(told)] == ["--sequence", "enroll"]
    told = "`leasectl ls`, `leasectl policy VERB`, `leasectl collector --url https://x status`"
    assert [stranger(*one) for one in named(told)] == ["", "", ""]


def typed(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands that stand in a document's blocks to be typed."""
    for block in re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|<>")
            lexer.whitespace_split = True
            for command in " ".join(map(shlex.quote, lexer)).split("';'"):
                words = [word for word in shlex.split(command) if word != "sudo"]
                if words and words[0] in PARSERS:
                    ends = [at for at, one in enumerate(words) if one in ("&", "|", ">", "<", "&&")]
                    yield words[0], words[1 : min([len(words), *ends])]


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_that_a_document_shows_can_be_meant(name: str) -> None:
    commands = list(typed((ROOT / name).read_text("utf-8")))
    assert commands
    for program, words in commands:
        told = io.StringIO()
        spelled = collector.spelled(words) if program == "leased-collector" else words
        with contextlib.redirect_stderr(told), contextlib.suppress(SystemExit):
            PARSERS[program].parse_args(spelled)
        assert not told.getvalue(), f"{program} {' '.join(words)}"
