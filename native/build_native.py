# SPDX-License-Identifier: Apache-2.0
"""Build the C side: the extension `leased._native`, the static `leased-reaper`, and `leased-rdma`.

Rule: our own files are compiled with every warning an error; only the C that cffi writes is not. A
build depends on nothing but a C compiler, cffi and setuptools, and the libcrypto and zlib that the
interpreter itself runs on. Run as a script it builds in place
(the extension beside the package, the programs in native/build); `hatch_build` calls the same
functions for the wheel.

Does not install anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
BUILD = NATIVE / "build"
PACKAGE = NATIVE.parent / "agent" / "leased"
STRICT = (
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-Wshadow",
    "-Wvla",
    "-Wstrict-prototypes",
)
HARDEN = ("-O2", "-g", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fno-strict-aliasing")
SANITIZE = (
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
LIBRARIES = ("-l:libcrypto.so.3", "-l:libz.so.1")
"""By the names that the host's interpreter has loaded them by: their headers are not needed."""
REAPER_VERBS = ("memory", "mapping", "scrub", "cgroup", "filter", "process", "dm")


def compiler() -> str:
    """The C compiler: $CC or cc."""
    return os.environ.get("CC", "cc")


def run(*arguments: str | Path) -> None:
    """Run one tool of the build; its failure is the build's."""
    subprocess.run([str(argument) for argument in arguments], check=True)


def verb_sources() -> list[Path]:
    """Every verb, in a fixed order."""
    return sorted((NATIVE / "verbs").glob("*.c"))


def reaper_sources() -> list[Path]:
    """Every file of the reaper, its verbs included."""
    own = sorted((NATIVE / "reaper").glob("*.c"))
    return own + [NATIVE / "verbs" / f"{name}.c" for name in REAPER_VERBS]


def declarations(header: str) -> str:
    """What cffi reads of a header: its declarations; what a constant or a length is, the compiler
    tells it."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    text = re.sub(r"\[[A-Z][A-Z_]*\]", "[...]", text)
    text = re.sub(r"^#define (\w+) .*$", r"#define \1 ...", text, flags=re.MULTILINE)
    return re.sub(r"^#(?!define \w+ ).*$", "", text, flags=re.MULTILINE)


def build_extension(into: Path) -> Path:
    """Build leased._native into directory `into` and return its path."""
    from cffi import FFI

    with tempfile.TemporaryDirectory(prefix="leased-native-") as scratch:
        objects = []
        for source in verb_sources():
            target = Path(scratch, source.stem + ".o")
            run(compiler(), *STRICT, *HARDEN, "-fPIC", "-pthread", "-c", source, "-o", target)
            objects.append(str(target))
        ffi = FFI()
        ffi.cdef(declarations((NATIVE / "verbs.h").read_text(encoding="utf-8")))
        ffi.set_source(
            "leased._native",
            '#include "verbs.h"',
            include_dirs=[str(NATIVE)],
            extra_objects=objects,
            extra_link_args=["-pthread", *LIBRARIES],
        )
        built = Path(ffi.compile(tmpdir=scratch))
        into.mkdir(parents=True, exist_ok=True)
        target = into / built.name
        # Replaced by rename: an interpreter that has the old one mapped keeps it.
        fresh = into / f".{built.name}.{os.getpid()}"
        shutil.copy2(built, fresh)
        fresh.replace(target)
        return target


def build_reaper(into: Path, *, sanitize: bool = False) -> Path:
    """Build leased-reaper into directory `into` (static, or dynamic under sanitizers) and return
    its path."""
    into.mkdir(parents=True, exist_ok=True)
    target = into / ("leased-reaper-asan" if sanitize else "leased-reaper")
    fresh = into / f".{target.name}.{os.getpid()}"
    flags = SANITIZE if sanitize else (*HARDEN, "-static")
    run(compiler(), *STRICT, *flags, "-I", NATIVE, *reaper_sources(), "-o", fresh)
    fresh.replace(target)
    return target


def build_rdma(into: Path, *, sanitize: bool = False) -> Path:
    """Build leased-rdma into directory `into` and return its path. Dynamic: it loads libibverbs,
    where there is one, when it runs."""
    into.mkdir(parents=True, exist_ok=True)
    target = into / ("leased-rdma-asan" if sanitize else "leased-rdma")
    fresh = into / f".{target.name}.{os.getpid()}"
    sources = sorted((NATIVE / "rdma").glob("*.c"))
    run(compiler(), *STRICT, *(SANITIZE if sanitize else HARDEN), *sources, "-ldl", "-o", fresh)
    fresh.replace(target)
    return target


def build_checks(into: Path) -> Path:
    """Build native/test under ASan and UBSan and return the program."""
    into.mkdir(parents=True, exist_ok=True)
    target = into / "check-verbs"
    sources = sorted((NATIVE / "test").glob("*.c"))
    run(
        compiler(),
        *STRICT,
        *SANITIZE,
        "-pthread",
        "-Wl,--wrap=ioctl",  # check_dm.c
        "-I",
        NATIVE,
        *sources,
        *verb_sources(),
        *LIBRARIES,
        "-o",
        target,
    )
    return target


def main() -> int:
    """Build all in place and say where they are."""
    print(build_extension(PACKAGE))
    print(build_reaper(BUILD))
    print(build_rdma(BUILD))
    return 0


if __name__ == "__main__":
    sys.exit(main())
