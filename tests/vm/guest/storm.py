# SPDX-License-Identifier: Apache-2.0
"""A grant storm: clients that acquire, renew and release as fast as they can, and tell the host
what was acknowledged.

Every line that reaches the host is a promise the agent made before the power went.
"""

from __future__ import annotations

import threading
import time

import host
from host import Connection, Failed, memory
from report import tell

CLIENTS = 6
SECONDS_MAX = 300
telling = threading.Lock()


def client(number: int) -> None:
    connection = Connection()
    deadline = time.monotonic() + SECONDS_MAX
    rounds = 0
    while time.monotonic() < deadline:
        rounds += 1
        try:
            granted = connection.acquire(memory(4096, node=number % 2), ttl_s=60)
        except Failed:
            continue
        for fd in connection.fds:
            host.os.close(fd)
        lease_id = granted["lease"]["lease_id"]
        with telling:
            tell(
                event="acked",
                lease_id=lease_id,
                sequence=granted["sequence"],
                hash=granted["record_hash"],
            )
        connection.call("Lease.Renew", lease_id=lease_id)
        if rounds % 3:
            connection.call("Lease.Release", lease_id=lease_id)


for each in range(CLIENTS):
    threading.Thread(target=client, args=(each,)).start()
