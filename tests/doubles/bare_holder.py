# SPDX-License-Identifier: Apache-2.0
"""A workload that holds bare memory and will not leave: a program of the standard library alone.

    python bare_holder.py SOCKET TTL_MS BYTES [fork] [cgroup]

It asks for memory, maps and fills it, ignores every signal that can be ignored, prints one line of
JSON (lease_id, deadline_ns, pid, child) and stays. `fork`: a child of it has the mapping too and
touches it again and again. `cgroup`: bound to the lease's leaf, which it joins.

Rule: nothing of the program under test is imported, so that it is a tenant like any other.
"""

import array
import json
import mmap
import os
import select
import signal
import socket
import sys


def call(sock: socket.socket, method: str, parameters: dict) -> tuple[dict, list[int]]:
    """One call and its answer."""
    sock.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\0")
    reply, fds = b"", array.array("i")
    while not reply.endswith(b"\0"):
        data, ancillary, _, _ = sock.recvmsg(1 << 16, socket.CMSG_SPACE(64))
        if not data:
            sys.exit("the agent closed the connection")
        for _, _, content in ancillary:
            fds.frombytes(content)
        reply += data
    answer = json.loads(reply[:-1])
    if "error" in answer:
        sys.exit(json.dumps(answer))
    return answer["parameters"], list(fds)


def touch_for_ever(memory: mmap.mmap) -> None:
    """Use the memory until that is fatal."""
    while True:
        memory[0] = 1
        select.select([], [], [], 0.01)


def main() -> None:
    path, ttl_ms, size, *modes = sys.argv[1:]
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGBUS}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except OSError:
            continue  # reserved by the C library
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    # Before Linux 6.5 the agent knows us by what we say after its first answer.
    call(sock, "org.varlink.service.GetInfo", {})
    asked = {
        "resources": [{"kind": "mem", "capacity": int(size), "page_size": 4096}],
        "ttl_ns": int(ttl_ms) * 1_000_000,
        "bind": "cgroup" if "cgroup" in modes else "process",
    }
    granted, fds = call(sock, "io.leased.Lease.Acquire", asked)
    lease = granted["lease"]
    if "cgroup" in modes:
        call(sock, "io.leased.Lease.Join", {"lease_id": lease["lease_id"]})
    memory = mmap.mmap(fds[0], int(size))
    memory[:] = b"\xa5" * int(size)
    child = 0
    if "fork" in modes:
        child = os.fork()
        if not child:
            touch_for_ever(memory)
    told = {
        "lease_id": lease["lease_id"],
        "deadline_ns": lease["runtime"]["deadline_boottime_ns"],
        "pid": os.getpid(),
        "child": child,
    }
    print(json.dumps(told), flush=True)
    touch_for_ever(memory)


if __name__ == "__main__":
    main()
