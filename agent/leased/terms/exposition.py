# SPDX-License-Identifier: Apache-2.0
"""The text that Prometheus reads (format 0.0.4): families of samples as lines.

Rule: a family is declared once, with its type and what it means; its samples are in the order of
their labels, so the same samples are the same bytes. Values are written as they are handed in.

Does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = tuple[tuple[str, str], ...]


def family(
    name: str, kind: str, meaning: str, samples: Iterable[tuple[Labels, int | str]]
) -> Iterator[str]:
    """The lines of one family; none if it has no samples."""
    lines = [f"{name}{_braced(labels)} {value}" for labels, value in sorted(samples)]
    if lines:
        yield f"# HELP {name} {meaning}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _braced(labels: Labels) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
