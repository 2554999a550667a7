# SPDX-License-Identifier: Apache-2.0
"""What the hardware suite can be asked for. Any Python can say so, without an environment."""

from __future__ import annotations

import argparse
from pathlib import Path

BUDGET_S = 360
PATIENCE_S = 10.0
"""How long an answer of the driver, or the release of what a dead process had, may take."""

WHAT = """\
What is true of the GPU of this machine, in five minutes, nothing changed.

    tests/hardware/run [--gpu UUID] [--results DIRECTORY]       a real GPU
    tests/hardware/run --mock H100 [--results DIRECTORY]        the mock (`tests/mocks/nvml`)

Runs with whatever rights it has and says what it could not find out.
Exit status: 0 nothing failed, 1 a claim failed, 66 there is no GPU, 70 a setting was not as before.
"""


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tests/hardware/run",
        usage=argparse.SUPPRESS,
        description=WHAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", default="0", help="UUID or NVML's number (default: 0)")
    parser.add_argument("--mock", default="", help="a profile of the mock instead")
    where = "where the driver's files are; anywhere else than / it is a stand-in's"
    parser.add_argument("--root", type=Path, default=Path("/"), help=where)
    parser.add_argument("--results", type=Path, default=None, help="where to write the results")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="for all of it")
    patience = "for each answer and each release"
    parser.add_argument("--patience-s", type=float, default=PATIENCE_S, help=patience)
    parser.add_argument("--case", action="append", default=[], help="only these")
    return parser.parse_args()


if __name__ == "__main__":
    read_arguments()
