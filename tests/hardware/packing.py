# SPDX-License-Identifier: Apache-2.0
"""What a machine lacks on which nothing can be fetched: this interpreter with its library, the
packages that the hardware suite imports, and what is built of the tree.

    python -m tests.hardware.packing DIRECTORY

Laid out as a tree's own `.venv`, which can be put anywhere (`lent`).
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
WANTED = ("leased", "pytest", "pytest-trio", "hypothesis")
"""With what each of them needs, and no extras."""

BUILT = ("agent/leased/_native*.so", "native/build/leased-reaper")
NOT_NEEDED = ("test", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo", "__pycache__")
_OF_C = re.compile(r"lib(c|m|dl|pthread|rt)\.so|ld-")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def packages(wanted: tuple[str, ...]) -> Iterator[metadata.Distribution]:
    """These and all that they need, each once."""
    left, seen = list(wanted), set()
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or another Python
        yield found
        needs = [need for need in found.requires or () if "extra ==" not in need]
        left += [match[0] for need in needs if (match := _NAME.match(need))]


def copy_packages(into: Path) -> None:
    """Their files, without the tree itself, which is there."""
    for found in packages(WANTED):
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            outside = ".." in file.parts or "__pycache__" in file.parts
            if outside or file.name.startswith("__editable__") or not source.is_file():
                continue
            (into / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into / file)


def copy_interpreter(into: Path) -> None:
    """The interpreter and its library, and what of the system both are linked with."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    (into / "bin").mkdir(parents=True)
    shutil.copy2((base / "bin" / version).resolve(), into / "bin" / version)
    library = into / "lib" / version
    shutil.copytree(
        base / "lib" / version,
        library,
        ignore=shutil.ignore_patterns(*NOT_NEEDED, "config-*", "dist-packages", "site-packages"),
        ignore_dangling_symlinks=True,
    )
    (into / "libraries").mkdir()
    for name in ("bin", "lib"):
        for path in (into / name).rglob("*"):
            if path.suffix == ".so" or path.parent.name == "bin":
                for linked in _linked(path):
                    shutil.copy2(linked, into / "libraries" / Path(linked).name)


def _linked(path: Path) -> list[str]:
    """Libraries other than the C library's own, which every Linux of that kind has."""
    told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"=> (/\S+)", told)
    return [one for one in found if not _OF_C.match(Path(one).name)]


def main() -> int:
    """Lay it out."""
    into = Path(sys.argv[1])
    venv = into / ".venv"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    copy_interpreter(venv / "python")
    copy_packages(venv / "lib" / version / "site-packages")
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(f"../python/bin/{version}")
    for pattern in BUILT:
        [source] = TOP.glob(pattern)
        target = into / source.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
