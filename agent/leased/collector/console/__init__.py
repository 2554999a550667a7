# SPDX-License-Identifier: Apache-2.0
"""The web console: static files, read once, with the policy that keeps everything else out.

Rule: what is served is in this package, unchanged and under its own licence; a page of it may load
scripts, styles and data from where it came from and nowhere else, and may not be framed.

Does not compute anything: the page asks the API, as whoever opened it.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

import msgspec

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
HOME: Final = "index.html"


class Page(msgspec.Struct, frozen=True):
    """One file, as it is sent."""

    path: str
    media_type: str
    content: bytes
    tag: str


def pages() -> list[Page]:
    """Every file of the console; that at `/` first."""
    found = []
    for one in sorted(files(__package__).joinpath("static").iterdir(), key=lambda one: one.name):
        suffix = next(ending for ending in TYPES if one.name.endswith(ending))
        content = one.read_bytes()
        path = "/" if one.name == HOME else f"/console/{one.name}"
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found.append(Page(path, TYPES[suffix], content, tag))
    return sorted(found, key=lambda page: page.path)
