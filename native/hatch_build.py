# SPDX-License-Identifier: Apache-2.0
"""The wheel's build hook: compile the C side and put it into the wheel.

Rule: the wheel carries the extension as leased/_native.*.so and the programs in leased/bin; it is a
platform wheel. An editable install gets the extension beside the package, where the import looks
for it.

Does not compile by itself: `build_native` does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path(__file__).resolve().parent


class NativeBuildHook(BuildHookInterface[Any]):
    """Builds everything before a wheel is put together."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, then name the results for the wheel."""
        sys.path.insert(0, str(NATIVE))
        try:
            import build_native
        finally:
            sys.path.remove(str(NATIVE))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        programs = [
            build_native.build_reaper(build_native.BUILD),
            build_native.build_rdma(build_native.BUILD),
        ]
        if version == "editable":
            build_native.build_extension(build_native.PACKAGE)
            return
        extension = build_native.build_extension(build_native.BUILD)
        build_data["force_include"][str(extension)] = f"leased/{extension.name}"
        for program in programs:
            build_data["force_include"][str(program)] = f"leased/bin/{program.name}"
