# SPDX-License-Identifier: Apache-2.0
"""The verbs: help, examples that parse, completions that name all, a man page that is current."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from leased.collector import main as collector
from leased.ctl.completion import script
from leased.ctl.main import EXIT_STATUSES, FAMILIES, build_parser
from leased.ctl.usage_text import FAMILIAR
from leased.terms import errors

ROOT = Path(__file__).resolve().parents[3]
LISTS = ("ls", "devices", "holders", "watch", "usage", "statement", "rates", "verify", "doctor")


def walk(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every verb with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield (*path, name), below
                yield from walk(below, (*path, name))


VERBS = dict(walk(build_parser()))
COLLECTORS = dict(walk(collector.build_parser()))


def names(parser: argparse.ArgumentParser) -> list[str]:
    """The verbs themselves."""
    return [path[0] for path, _ in walk(parser) if len(path) == 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_command_line_no_more_is_read_than_its_verbs_family(family: str) -> None:
    for verb in FAMILIES[family]:
        for words in ([verb], ["--admin", "--socket", "ls", verb, "--help", "run"]):
            parser = build_parser(words)
            assert names(parser) == [*FAMILIES[family]]
            assert parser.format_usage() == build_parser().format_usage()


@pytest.mark.parametrize(
    "words", ["", "-h", "-h ls", "--hlep ls", "nothing", "--timeout x ls", "--socket ls"]
)
def test_what_names_no_verb_is_answered_by_the_whole_tree(words: str) -> None:
    every = [verb for verbs in FAMILIES.values() for verb in verbs]
    assert names(build_parser(words.split())) == every == names(build_parser())


@pytest.mark.parametrize("path", sorted(VERBS))
def test_every_verb_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    epilog = VERBS[path].epilog or ""
    assert epilog.startswith("example:\n  leasectl ")
    words = shlex.split(epilog.removeprefix("example:\n  leasectl").split(" > ")[0])
    if path[0] == "admin" and len(path) == 1:
        path = ("admin", words[1])
    assert words[: len(path)] == list(path) or path[:1] == ("audit",)
    options = build_parser().parse_args(words)
    assert callable(options.act)


@pytest.mark.parametrize("path", sorted(COLLECTORS))
def test_every_verb_of_the_collector_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    epilog = COLLECTORS[path].epilog or ""
    line = epilog.removeprefix("example:\n").partition("leased-collector ")[2].split(" > ")[0]
    words = shlex.split(line)
    options = collector.build_parser().parse_args(words)
    assert callable(options.act) and set(path) <= set(words)


@pytest.mark.parametrize("name", LISTS)
def test_every_list_has_json(name: str) -> None:
    assert "--json" in VERBS[name,].format_help()


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_fits_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for parser in VERBS.values():
        assert parser.format_help()


def test_a_command_line_that_cannot_be_meant_ends_with_64(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (
        *(["nothing"], ["renew"], ["run", "--cpu"], []),
        *(["--timeout", text, "ls"] for text in ("nan", "-1", "soon")),
    ):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(words)
        assert ended.value.code == 64
    told = capsys.readouterr()
    assert not told.out and told.err.startswith("usage: ")


@pytest.mark.parametrize("tree", [build_parser, collector.build_parser])
def test_an_answer_is_asked_for_in_one_form(
    tree: Callable[[], argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json --csv` was JSON, and nothing said so."""
    program, verbs = tree().prog, dict(walk(tree()))
    found = [one for one in verbs.values() if "--csv" in one.format_help()]
    assert len(found) > 1
    for one in found:
        words = shlex.split((one.epilog or "").partition(f" {program} ")[2].split(" > ")[0])
        with pytest.raises(SystemExit) as ended:
            tree().parse_args([*words, "--json", "--csv"])
        assert ended.value.code == 64
        assert "--csv: not allowed with argument --json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "meant"),
    [("lss", "it ls?"), ("cancel", "it release?"), ("policy chek", "it check?"), ("x", "")],
)
def test_a_wrong_verb_is_answered_by_the_one_that_may_be_meant(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(words.split())
    told = capsys.readouterr().err
    assert meant in told and "--help" in told and "choose from" not in told


@pytest.mark.parametrize(
    ("words", "shown"), [("help", "exit status:"), ("policy help", "put the configured policy")]
)
def test_help_is_what_people_type_first(
    words: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(words.split()).parse_args(words.split())
    assert not ended.value.code and shown in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--json ls", "--log /x verify", "--log=/x verify"])
def test_an_option_before_its_verb_is_answered_by_where_it_belongs(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(words.split())
    assert ended.value.code == 64
    option = words.split()[0]
    assert f"leasectl: {option}: a verb's options stand behind it" in capsys.readouterr().err


@pytest.mark.parametrize("meant", FAMILIAR.values())
def test_what_other_programs_call_a_verb_leads_to_verbs_that_there_are(meant: str) -> None:
    for verb in re.split(", | or ", meant):
        assert tuple(verb.split()) in VERBS


@pytest.mark.parametrize(
    ("room", "statuses"), [("ctl", EXIT_STATUSES), ("collector", collector.EXIT_STATUSES)]
)
def test_every_exit_status_that_the_code_names_is_documented(
    room: str, statuses: Sequence[tuple[int, str]]
) -> None:
    text = "".join(one.read_text("utf-8") for one in (ROOT / "agent/leased" / room).rglob("*.py"))
    said = set(re.findall(r"\bEX_[A-Z_]+\b", text))
    named = {getattr(errors, name) for name in said if hasattr(errors, name)}
    kinds = [one for name, one in vars(errors).items() if f"raise {name}(" in text]
    documented = {status for status, _ in statuses}
    assert {kind.exit_status for kind in kinds} | named <= documented


def test_the_exit_statuses_of_errors_are_documented() -> None:
    documented = {status for status, _ in EXIT_STATUSES}
    raised = {
        kind.exit_status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.LeasedError)
    }
    assert raised <= documented


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_verb(shell: str) -> None:
    text = script(shell, build_parser())
    for path in VERBS:
        assert path[-1] in text


def test_the_man_page_is_current() -> None:
    made = runpy.run_path(str(ROOT / "packaging" / "man" / "generate"))
    for file, text in made["pages"]().items():
        page = (ROOT / "packaging" / "man" / file).read_text(encoding="utf-8")
        assert text == page, "run packaging/man/generate"
