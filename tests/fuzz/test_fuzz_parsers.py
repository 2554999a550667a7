# SPDX-License-Identifier: Apache-2.0
"""A coverage-guided fuzzer on every parser of what comes from a disk or a wire (T9).

The short form is two seconds each; `LEASED_FUZZ_S=3600` is the long one. A crash is printed by
libFuzzer with its bytes in base64; the seed is printed and `LEASED_CRASH_SEED` changes it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.host import not_proven

SECONDS = int(os.environ.get("LEASED_FUZZ_S", "2"))
SEED = int(os.environ.get("LEASED_CRASH_SEED", "20260701"))
TARGETS = ("frame", "body", "chain", "slot", "signed_note", "verifier_key", "pulled_page")
TARGETS += ("identity", "header")
_RUNS = re.compile(r"Done (\d+) runs")


@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_break_a_parser(tmp_path: Path, target: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        not_proven(f"that no bytes break the parser `{target}`", "atheris is not installed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    plant = "import sys; from pathlib import Path; from tests.fuzz.targets import seeds\n"
    plant += "for n, s in enumerate(seeds(sys.argv[1])): Path(sys.argv[2], str(n)).write_bytes(s)"
    subprocess.run([sys.executable, "-c", plant, target, str(corpus)], env=environment, check=True)
    assert list(corpus.iterdir()), "there is something honest to begin with"
    command = [sys.executable, "-m", "tests.fuzz.targets", target, str(corpus), f"-seed={SEED}"]
    command += [f"-max_total_time={SECONDS}", "-max_len=8192", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 60,
        check=False,
    )
    assert done.returncode == 0, f"{target}, seed {SEED}:\n{done.stderr[-4000:]}"
    runs = _RUNS.search(done.stderr)
    assert runs is not None and int(runs[1]) > 100, done.stderr[-2000:]
    print(f"{target}: {runs[1]} runs, seed {SEED}")
