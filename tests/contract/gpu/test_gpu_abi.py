# SPDX-License-Identifier: Apache-2.0
"""The mock's structures are nvidia-ml-py's, member by member, and its calls are NVML's.

Both directions: what the header says is there must be there, and nothing of it is left out.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from tests.doubles.host import not_proven
from tests.mocks.nvml.build import HERE

HEADER = (HERE / "nvml_abi.h").read_text()
OTHER_NAMES = {
    "nvmlDeviceAttributes_t": "c_nvmlDeviceAttributes",
    "nvmlMetricInfo_t": "c_metricInfo_t",
    "nvmlValue_t": "c_nvmlValue_t",
}
GROWS = {("nvmlGpmMetricsGet_t", "metrics")}
"""Arrays that became longer with every release; where they begin is what counts."""

UNUSED_BY_THEM = {"nvmlDeviceRemoveGpu_v2", "nvmlInit_v2"}
"""Real symbols that nvidia-ml-py does not call by these names."""


def structures() -> dict[str, list[str]]:
    """The header's structures and their members."""
    found = {}
    for body, name in re.findall(r"typedef (?:struct|union) \{\n(.*?)\n\} (\w+);", HEADER, re.S):
        flat = re.sub(r"union \{.*?\} (\w+);", r"int \1;", body, flags=re.S)
        members = []
        for statement in flat.split(";"):
            words = re.sub(r"\[[^\]]*\]", "", statement).replace("*", " ").strip()
            if words:
                members += [part.split()[-1] for part in words.split(",")]
        found[name] = members
    for old, new in re.findall(r"^typedef (nvml\w+_t) (nvml\w+_t);", HEADER, re.M):
        found[new] = found[old]
    return found


STRUCTURES = structures()


def theirs(name: str) -> type[ctypes.Structure]:
    wanted = OTHER_NAMES.get(name, f"c_{name}")
    return getattr(pynvml, wanted, None) or getattr(pynvml, name)


def exported(pattern: str) -> set[str]:
    sources = "".join(path.read_text() for path in sorted(HERE.glob(pattern)))
    return set(re.findall(r"^EXPORTED \w+(?: \w+)* \*?(nvml\w+)\(", sources, re.M))


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_a_structure_has_the_members_of_theirs_and_no_others(name: str) -> None:
    assert STRUCTURES[name] == [field[0] for field in theirs(name)._fields_]


def test_sizes_and_offsets_are_theirs(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        not_proven("the layout of the mock's structures", "no C compiler")
    lines = ['#include "nvml_abi.h"', "#include <stddef.h>"]
    for name in sorted(STRUCTURES):
        whole = theirs(name)
        if not any((name, field) in GROWS for field in STRUCTURES[name]):
            lines.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(whole)}, "{name}");')
        for field in STRUCTURES[name]:
            at = getattr(whole, field)
            place = f"offsetof({name}, {field}) == {at.offset}"
            lines.append(f'_Static_assert({place}, "{name}.{field}");')
            if (name, field) not in GROWS:
                size = f"sizeof((({name} *)0)->{field}) == {at.size}"
                lines.append(f'_Static_assert({size}, "size of {name}.{field}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    words = [str(compiler), "-std=gnu11", "-fsyntax-only", f"-I{HERE}", str(source)]
    told = subprocess.run(words, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert len(lines) > 300


def test_versions_are_theirs() -> None:
    numbers = {
        name: getattr(pynvml, name)
        for name in ("nvmlMemory_v2", "nvmlProcessDetailList_v1", "nvmlGpuInstanceProfileInfo_v2")
    }
    for name, number in numbers.items():
        structure, _, version = name.rpartition("_v")
        whole = theirs(f"{structure}_v{version}_t")
        assert number == ctypes.sizeof(whole) | int(version) << 24


def test_every_call_of_the_mock_is_one_of_nvml() -> None:
    known = set(re.findall(r'"(nvml\w+)"', Path(pynvml.__file__).read_text()))
    strangers = exported("nvml_*.c") - known - UNUSED_BY_THEM
    assert not strangers


def test_results_have_their_numbers() -> None:
    for name, number in re.findall(r"^\t(NVML_(?:ERROR_\w+|SUCCESS)) = (\d+),", HEADER, re.M):
        assert getattr(pynvml, name) == int(number), name
