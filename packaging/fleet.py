# SPDX-License-Identifier: Apache-2.0
"""The second half of the tour: a collector beside the agent, mutual TLS between the two, and the
tenant's bill from the pulled chain, computed again by the auditor from what the node signed.

Rule: as `tour`: what is shown was typed, and what does not do what it should ends the tour. The
collector has a state directory, certificates and ports of its own.
"""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tour import Stage

FLEET, COLLECTOR, NODE = "try.example", "west", "here"
ADDRESS = "127.0.0.1"
SERVE_SECONDS_MAX = 30

LISTENER = """
[listener]
certificate = "{node}.pem"
key = "{node}.key"
ca = "{pki}/ca.pem"
address = "127.0.0.1"
port = {port}
[[listener.collectors]]
name = "west"
key = "{cosigner}"
"""
CONFIG = """# made by packaging/try
[http]
listen = ["127.0.0.1:{port}"]
[governance]
fleet = "try.example"
terms_file = "{terms}"
[pull]
name = "west.try.example"
ca = "{pki}/ca.pem"
certificate = "{pki}/collector-west.pem"
key = "{pki}/collector-west.key"
"""


def tour(stage: Stage, tenant: str, user: Sequence[str]) -> None:
    """Bring a collector up, pull, bill, verify, and ask its API. `user` drops root."""
    from tour import BIN, TOP, heading, leasectl, show

    pki, state, config = stage.state / "pki", stage.state / "collector", stage.state / "west.toml"
    pki.mkdir(mode=0o700)
    node_port, http_port = free_port(), free_port()
    terms = TOP / "configs" / "billing.toml"
    config.write_text(CONFIG.format(port=http_port, pki=pki, terms=terms))
    ours = ["--state", str(state)]

    heading("A collector beside it: certificates for both ends, and the node listens")
    show(stage, "pki", "init", FLEET, "--dir", str(pki), admin=True)
    show(stage, "pki", "node", "--host", ADDRESS, "--dir", str(pki), admin=True)
    show(stage, "pki", "collector", COLLECTOR, "--host", ADDRESS, "--dir", str(pki), admin=True)
    [node] = [path.with_suffix("") for path in pki.glob("node-*.pem")]
    typed = [*ours, "cosigner", "--config", str(config)]
    cosigner = show(stage, *typed, program="leased-collector", admin=True).strip()
    listener = LISTENER.format(node=node, pki=pki, port=node_port, cosigner=cosigner)
    with stage.config.open("a") as file:
        file.write(listener)
    stage.restart()
    print(f"    [listener] is in {stage.config.name} now, and the agent was started again")

    heading("It pulls the chain over mutual TLS, verifies and keeps it, and cosigns the head")
    enrolment = stage.state / "enrolment.json"
    words = ["audit", "enrolment", "--with-seal-key", "--log", str(stage.audit)]
    print(f"# leasectl {' '.join(words)} > {enrolment.name}")
    enrolment.write_text(leasectl(stage, *words, admin=True).stdout)
    enrolment.chmod(0o600)
    url = f"https://{ADDRESS}:{node_port}"
    typed = [*ours, "enrol", NODE, url, str(enrolment)]
    show(stage, *typed, program="leased-collector", admin=True)
    pull = [*ours, "pull", "--once", "--config", str(config)]
    show(stage, *pull, program="leased-collector", admin=True)

    heading(f"The bill of {tenant} from what was pulled")
    month = time.strftime("%Y-%m", time.gmtime())
    bill = stage.state / "bill.json"
    typed = [*ours, "bill", tenant, month, "--terms", str(terms), "--out", str(bill)]
    show(stage, *typed, program="leased-collector", admin=True)

    heading("The node goes on, and signs all that was before: the auditor computes the bill again")
    # At most a second lies between two checkpoints of a node that seals something.
    show(stage, "run", "--mem", "1MiB", "--", "sleep", "1", user=user)
    show(stage, *pull, program="leased-collector", admin=True)
    typed = ["--bill", str(bill), "--archive", str(state), "--enrolment", str(enrolment)]
    show(stage, "verify", *typed, admin=True)

    heading("What the documentation asks by curl, answered by the collector")
    serve = [str(BIN / "leased-collector"), *ours, "serve", "--config", str(config)]
    with stage.log.open("ab") as log:
        stage.beside.append(
            subprocess.Popen(serve, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )
    for path in (f"/v1/governance/usage/{tenant}", f"/v1/governance/quotas/{tenant}"):
        print(f"$ curl http://{ADDRESS}:{http_port}{path}")
        print(f"    {get(f'http://{ADDRESS}:{http_port}{path}')}")
    print(f"    The console: http://{ADDRESS}:{http_port}/")


def get(url: str) -> str:
    """What is answered, as soon as somebody answers."""
    from tour import fail

    deadline = time.monotonic() + SERVE_SECONDS_MAX
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError as error:
            # 503: it has just been started, and reads what it has.
            if time.monotonic() > deadline or getattr(error, "code", 503) != 503:
                fail(f"{url}: {error}")
            time.sleep(0.2)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server((ADDRESS, 0)) as probe:
        return int(probe.getsockname()[1])
