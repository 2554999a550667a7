# SPDX-License-Identifier: Apache-2.0
"""The API against its own description, by schemathesis with all checks: what the schema allows is
taken, what it excludes is refused, and nothing is answered that is not described.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from leased.collector.api.callers import hash_of
from tests.collector.test_collector_api_fleet import await_books
from tests.doubles.collector_server import CollectorServer
from tests.doubles.fleet_archive import sample

SETTINGS = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 15


def test_the_api_is_what_it_says(tmp_path: Path) -> None:
    sample(tmp_path / "state", time.time_ns())
    (tmp_path / "tokens.toml").write_text(
        f'[[tokens]]\nname = "all"\nsha256 = "{hash_of("s5")}"\n'
        'scopes = ["read", "cost", "quota", "node"]\n'
    )
    with CollectorServer(access='tokens_file = "tokens.toml"', directory=tmp_path) as server:
        await_books(server)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", f"--config-file={SETTINGS}", "run"),
                f"http://127.0.0.1:{server.port}/v1/openapi.json",
                *("--checks=all", f"--max-examples={EXAMPLES}", "--no-color"),
                *("--phases=examples,coverage,fuzzing", "-H", "Authorization: Bearer s5"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[:8000] + done.stderr[-2000:]
        cases = re.search(r"(\d+) generated", done.stdout)
        assert cases is not None and int(cases[1]) > 500
        assert "Traceback" not in "\n".join(server.said)
