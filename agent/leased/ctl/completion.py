# SPDX-License-Identifier: Apache-2.0
"""The verb completion: scripts for bash, zsh and fish, made from the tree of verbs.

Rule: what is completed is what the parser accepts, because both come from the same tree (a test
runs `bash -n`). Lease ids are asked of the agent, quickly and quietly.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from leased.ctl.console import Console
from leased.ctl.usage_text import Verbs, verb

LEASE_IDS = "leasectl --timeout 1 ls 2>/dev/null | sed -n '2,$s/ .*//p'"


class Node:
    """One verb: what may follow it."""

    def __init__(
        self, path: tuple[str, ...], parser: argparse.ArgumentParser, summary: str
    ) -> None:
        self.path = path
        self.summary = summary
        self.verbs: dict[str, Node] = {}
        self.options: list[argparse.Action] = []
        self.leases = False
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for name, below in action.choices.items():
                    self.verbs[name] = Node((*path, name), below, helps.get(name, ""))
            elif action.option_strings:
                self.options.append(action)
            elif action.dest in ("lease", "what"):
                self.leases = True

    def words(self) -> list[str]:
        """Everything that may be typed after it."""
        options = [text for action in self.options for text in action.option_strings]
        return [*self.verbs, *options]

    def walk(self) -> Iterator[Node]:
        """It and everything below it."""
        yield self
        for below in self.verbs.values():
            yield from below.walk()


def register(verbs: Verbs) -> None:
    """Add the verb."""
    one = verb(
        verbs,
        "completion",
        "print a completion script for a shell",
        "leasectl completion bash > /usr/share/bash-completion/completions/leasectl",
        json=False,
    )
    one.add_argument("shell", choices=tuple(_SHELLS))
    one.set_defaults(act=completion)


def completion(options: argparse.Namespace, console: Console) -> int:
    """Print the script."""
    from leased.ctl.main import build_parser  # the tree holds this verb too

    console.out.write(script(options.shell, build_parser()))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for `shell`."""
    return _SHELLS[shell](Node(("leasectl",), parser, ""))


def _bash(tree: Node) -> str:
    lines = [
        "# bash completion for leasectl; made by `leasectl completion bash`",
        "_leasectl() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        '    local path="leasectl" words="" leases="" index part',
        "    COMPREPLY=()",
        "    for ((index = 1; index < COMP_CWORD; index++)); do",
        '        part="${COMP_WORDS[index]}"',
        '        [[ $part == -- ]] && { COMPREPLY=($(compgen -c -- "$word")); return; }',
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
            elif action.nargs is None and action.metavar in ("FILE", "DIR", "PATH"):
                keys = "|".join(f'"{" ".join(node.path)} {text}"' for text in action.option_strings)
                lines.append(f'        {keys}) COMPREPLY=($(compgen -f -- "$word")); return ;;')
    lines += ["    esac", '    if [[ -z $words ]]; then case "$path" in']
    for node in tree.walk():
        leases = " leases=1" if node.leases else ""
        lines.append(
            f'        "{" ".join(node.path)}") words="{" ".join(node.words())}"{leases} ;;'
        )
    lines += [
        "    esac; fi",
        f'    [[ -n $leases && $word != -* ]] && words+=" $({LEASE_IDS})"',
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _leasectl leasectl",
    ]
    return "\n".join(lines) + "\n"


def _zsh(tree: Node) -> str:
    lines = [
        "#compdef leasectl",
        "# zsh completion for leasectl; made by `leasectl completion zsh`",
        "_leasectl() {",
        '    local cursor="leasectl" part',
        "    local -a words_here",
        "    for part in ${words[2,CURRENT-1]}; do",
        '        case "$cursor $part" in',
    ]
    for node in tree.walk():
        if len(node.path) > 1:
            path = " ".join(node.path)
            lines.append(f'            "{path}") cursor="{path}" ;;')
    lines += ["        esac", "    done", '    case "$cursor" in']
    for node in tree.walk():
        described = [f"'{name}:{_quoted(below.summary)}'" for name, below in node.verbs.items()]
        described += [
            f"'{text}:{_quoted(action.help or '')}'"
            for action in node.options
            for text in action.option_strings
        ]
        if node.leases:
            described.append(f'${{(f)"$({LEASE_IDS})"}}')
        lines.append(f'        "{" ".join(node.path)}") words_here=({" ".join(described)}) ;;')
    lines += [
        "    esac",
        "    _describe 'leasectl' words_here",
        "    _files",
        "}",
        '_leasectl "$@"',
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("%%", "%").replace("'", "").replace(":", "\\:")


def _fish(tree: Node) -> str:
    lines = ["# fish completion for leasectl; made by `leasectl completion fish`"]
    top = " ".join(tree.verbs)
    for node in tree.walk():
        if len(node.path) == 1:
            condition = f"not __fish_seen_subcommand_from {top}"
        elif len(node.path) == 2:
            condition = f"__fish_seen_subcommand_from {node.path[1]}"
            if node.verbs:
                inner = f"not __fish_seen_subcommand_from {' '.join(node.verbs)}"
                condition = f"{condition}; and {inner}"
        else:
            condition = "; and ".join(
                f"__fish_seen_subcommand_from {name}" for name in node.path[1:]
            )
        start = f"complete -c leasectl -n '{condition}'"
        for name, below in node.verbs.items():
            lines.append(f"{start} -f -a {name} -d '{_quoted(below.summary)}'")
        for action in node.options:
            lines.extend(_fish_option(start, action))
        if node.leases:
            lines.append(f'{start} -f -a "({LEASE_IDS})"')
    return "\n".join(lines) + "\n"


def _fish_option(start: str, action: argparse.Action) -> Iterator[str]:
    for text in action.option_strings:
        flag = f"-l {text[2:]}" if text.startswith("--") else f"-s {text[1:]}"
        choices = f" -x -a '{' '.join(map(str, action.choices))}'" if action.choices else ""
        takes = " -r" if action.nargs is None and not choices else ""
        yield f"{start} {flag}{takes}{choices} -d '{_quoted(action.help or '')}'"


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
