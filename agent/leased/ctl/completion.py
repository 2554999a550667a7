# SPDX-License-Identifier: Apache-2.0
"""The verb completion of both programs: scripts for bash, zsh and fish, made from their verbs.

Rule: what is completed is what the parser accepts, because both come from the same tree (tests
press Tab in each shell). Lease ids are asked of the agent, quickly and quietly, and so are
the names of resources.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Final

from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb

LEASE_IDS = "leasectl --timeout 1 ls 2>/dev/null | sed -n '2,$s/ .*//p'"
RESOURCE_IDS = "leasectl --timeout 1 devices 2>/dev/null | sed -n 's/^\\([a-z]*:[^ ]*\\) .*/\\1/p'"
ASKED: Final = {"lease": LEASE_IDS, "what": LEASE_IDS, "resource": RESOURCE_IDS}
"""What an agent is asked for a verb's argument."""


class Node:
    """One verb: what may follow it."""

    def __init__(
        self, path: tuple[str, ...], parser: argparse.ArgumentParser, summary: str
    ) -> None:
        self.path = path
        self.summary = summary
        self.verbs: dict[str, Node] = {}
        self.options: list[argparse.Action] = []
        self.fixed: list[str] = []
        self.asked = ""
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for name, below in action.choices.items():
                    self.verbs[name] = Node((*path, name), below, helps.get(name, ""))
            elif action.option_strings:
                self.options.append(action)
            else:
                self.fixed += map(str, action.choices or ())
                self.asked = ASKED.get(action.dest, self.asked)

    @property
    def program(self) -> str:
        """What is typed first."""
        return self.path[0]

    @property
    def function(self) -> str:
        """The program's name as a shell's function may have it."""
        return f"_{self.program.replace('-', '_')}"

    def words(self) -> list[str]:
        """Everything that may be typed after it."""
        options = [text for action in self.options for text in action.option_strings]
        return [*self.verbs, *self.fixed, *options]

    def walk(self) -> Iterator[Node]:
        """It and everything below it."""
        yield self
        for below in self.verbs.values():
            yield from below.walk()


def register(verbs: Verbs) -> None:
    """Add leasectl's verb."""
    from leased.ctl.main import build_parser  # the tree holds this verb too

    add(verbs, "leasectl", build_parser)


def add(verbs: Verbs, program: str, build: Callable[[], argparse.ArgumentParser]) -> None:
    """Add the verb to a program whose tree `build` makes."""
    one = verb(
        verbs,
        "completion",
        "print a completion script for a shell",
        f"{program} completion bash > /usr/share/bash-completion/completions/{program}",
        json=False,
    )
    one.add_argument("shell", choices=tuple(_SHELLS))
    one.set_defaults(act=completion, build=build)


def completion(options: argparse.Namespace, console: Console) -> int:
    """Print the script."""
    console.out.write(script(options.shell, options.build()))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for `shell`."""
    return _SHELLS[shell](Node((parser.prog,), parser, ""))


def _bash(tree: Node) -> str:
    lines = [
        f"# bash completion for {tree.program}; made by `{tree.program} completion bash`",
        f"{tree.function}() {{",
        # Whole, as it is typed: bash parts words at colons and at "=", too.
        '    local word="${COMP_LINE:0:COMP_POINT}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        f'    local path="{tree.program}" words="" asked="" index part',
        "    COMPREPLY=()",
        '    word="${word##*[[:space:]]}"',
        '    [[ $COMP_WORDBREAKS == *=* && $word == --*=* ]] &&'
        ' { before="${word%%=*}"; word="${word#*=}"; }',
        "    for ((index = 1; index < COMP_CWORD; index++)); do",
        '        part="${COMP_WORDS[index]}"',
        "        if [[ $part == -- ]]; then  # a command, and then files",
        '            ((index + 1 < COMP_CWORD)) || COMPREPLY=($(compgen -c -- "$word"))',
        "            return",
        "        fi",
        '        case "$path $part" in',
    ]
    for node in tree.walk():
        if len(node.path) > 1:
            path = " ".join(node.path)
            lines.append(f'            "{path}") path="{path}" ;;')
    lines += ["        esac", "    done", '    case "$path $before" in']
    for node in tree.walk():
        for action in node.options:
            if action.choices:
                keys = "|".join(f'"{" ".join(node.path)} {text}"' for text in action.option_strings)
                choices = " ".join(map(str, action.choices))
                lines.append(f'        {keys}) words="{choices}" ;;')
            elif _takes_word(action):
                keys = "|".join(f'"{" ".join(node.path)} {text}"' for text in action.option_strings)
                then = "return" if _is_file(action) else "compopt +o default; return"
                lines.append(f"        {keys}) {then} ;;")
    lines += ["    esac", '    if [[ -z $words ]]; then case "$path" in']
    for node in tree.walk():
        asked = f'; [[ $word == -* ]] || asked="$({node.asked})"' if node.asked else ""
        path = " ".join(node.path)
        lines.append(f'        "{path}") words="{" ".join(node.words())}"{asked} ;;')
    lines += [
        "    esac; fi",
        '    COMPREPLY=($(compgen -W "$words $asked" -- "$word"))',
        # What stands before the last colon is there already.
        '    [[ $COMP_WORDBREAKS == *:* && $word == *:* ]] &&',
        '        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")',
        "}",
        f"complete -o default -F {tree.function} {tree.program}",
    ]
    return "\n".join(lines) + "\n"


def _zsh(tree: Node) -> str:
    lines = [
        f"#compdef {tree.program}",
        f"# zsh completion for {tree.program}; made by `{tree.program} completion zsh`",
        f"{tree.function}() {{",
        f'    local at="{tree.program}" part',
        "    local -a words_here",
        "    for part in ${words[2,CURRENT-1]}; do",
        "        [[ $part == -- ]] && { _files; _command_names -e; return }",
        '        case "$at $part" in',
    ]
    for node in tree.walk():
        if len(node.path) > 1:
            path = " ".join(node.path)
            lines.append(f'            "{path}") at="{path}" ;;')
    lines += ["        esac", "    done", '    case "$at ${words[CURRENT-1]}" in']
    for node in tree.walk():
        for action in filter(_takes_word, node.options):
            keys = "|".join(f'"{" ".join(node.path)} {text}"' for text in action.option_strings)
            if action.choices:
                then = f"compadd {' '.join(map(str, action.choices))}; return"
            else:
                then = "_files; return" if _is_file(action) else "return"
            lines.append(f"        {keys}) {then} ;;")
    lines += ["    esac", '    case "$at" in']
    for node in tree.walk():
        described = [f"'{name}:{_described(below.summary)}'" for name, below in node.verbs.items()]
        described += [f"'{name}'" for name in node.fixed]
        described += [
            f"'{text}:{_described(action.help or '')}'"
            for action in node.options
            for text in action.option_strings
        ]
        if node.asked:
            described.append(f"${{(f)\"$({node.asked} | sed 's/:/\\\\:/g')\"}}")
        lines.append(f'        "{" ".join(node.path)}") words_here=({" ".join(described)}) ;;')
    lines += [
        "    esac",
        f"    _describe {tree.program} words_here || _files",
        "}",
        # As a file of fpath it is called; sourced, it is registered.
        f'if [[ $funcstack[1] == {tree.function} ]]; then {tree.function} "$@"',
        f"else compdef {tree.function} {tree.program}",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _fish(tree: Node) -> str:
    below_top = [" ".join(node.path) for node in tree.walk() if len(node.path) > 1]
    lines = [
        f"# fish completion for {tree.program}; made by `{tree.program} completion fish`",
        f"function _{tree.function}_at --description 'whether the line so far says these verbs'",
        f"    set -l at {tree.program}",
        "    for part in (commandline -opc)[2..]",
        '        switch "$at $part"',
        f"            case {' '.join(repr(path) for path in below_top)}",
        '                set at "$at $part"',
        "        end",
        "    end",
        '    test "$at" = "$argv"',
        "end",
    ]
    for node in tree.walk():
        start = f"complete -c {tree.program} -n '_{tree.function}_at {' '.join(node.path)}'"
        if node.verbs:
            lines.append(f"{start} -f")
        for name, below in node.verbs.items():
            lines.append(f"{start} -a {name} -d '{_plain(below.summary)}'")
        for action in node.options:
            lines.extend(_fish_option(start, action))
        if node.fixed:
            lines.append(f"{start} -f -a '{' '.join(node.fixed)}'")
        if node.asked:
            quoted = node.asked.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{start} -f -a '({quoted})'")
    return "\n".join(lines) + "\n"


def _fish_option(start: str, action: argparse.Action) -> Iterator[str]:
    for text in action.option_strings:
        flag = f"-l {text[2:]}" if text.startswith("--") else f"-s {text[1:]}"
        if action.choices:
            takes = f" -x -a '{' '.join(map(str, action.choices))}'"
        elif _takes_word(action):
            takes = " -r" if _is_file(action) else " -x"
        else:
            takes = ""
        yield f"{start} {flag}{takes} -d '{_plain(action.help or '')}'"


def _takes_word(action: argparse.Action) -> bool:
    """Whether the option is followed by a word of its own."""
    return action.nargs is None


def _is_file(action: argparse.Action) -> bool:
    return action.metavar in ("FILE", "DIR", "PATH")


def _described(text: str) -> str:
    """The same for zsh, where a colon parts a word from what is said of it."""
    return _plain(text).replace(":", "\\:")


def _plain(text: str) -> str:
    """A help text between single quotes."""
    return text.replace("%%", "%").replace("'", "")


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
