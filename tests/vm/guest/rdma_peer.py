#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A remote peer: the program on another machine that uses leased memory over RDMA, by Debian's
pyverbs, which shares nothing with ours but the kernel.

One JSON object a line in, one out. "open" makes a queue pair and tells its end; "connect" takes the
agent's end; "write" and "read" are one request each and tell its completion's status; "race" reads
without a pause until a read fails, and tells when (boottime ns) the last that went through was
posted and came back, and the first failed: it answers twice, first when it has begun. "region"
tells what another peer needs to read its memory, "deregister" takes that away and tells when. "pin"
registers memory of a descriptor that it was started with, and keeps neither a mapping nor the
descriptor.

Rule: a peer has a machine of its own, whose processors wait for nobody else's programs. Here it
shares them with those whose speed is measured by it, so it goes before them where it may, and waits
for completions asleep.

Does not know leases.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import sys
import time
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR
from remote_peer import RETRIES, TIMEOUT

SIZE = 1 << 16
RDMA_READ, RDMA_WRITE = e.IBV_WR_RDMA_READ, e.IBV_WR_RDMA_WRITE
WITHIN_S = 10.0


class Peer:
    """One queue pair of a device, and memory to read into."""

    def __init__(self, device: str, gid_index: int) -> None:
        self.context = Context(name=device)
        self.domain = PD(self.context)
        self.gid_index = gid_index
        self.gid = self.context.query_gid(1, gid_index).gid
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.memory = MR(self.domain, SIZE, access)
        self.channel = CompChannel(self.context)
        self.completions = CQ(self.context, 16, None, self.channel, 0)
        room = QPCap(max_send_wr=8, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        init = QPInitAttr(
            qp_type=e.IBV_QPT_RC, scq=self.completions, rcq=self.completions, cap=room
        )
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = e.IBV_ACCESS_REMOTE_READ
        self.pair = QP(self.domain, init, attr)
        self.first_packet = 0x1234

    def end(self) -> dict[str, Any]:
        """What the agent is told."""
        return {
            "gid": self.gid,
            "qp_number": self.pair.qp_num,
            "packet_number": self.first_packet,
        }

    def connect(self, theirs: dict[str, Any]) -> None:
        """To RTS, towards the agent's end."""
        route = GlobalRoute(dgid=GID(theirs["gid"]), sgid_index=self.gid_index, hop_limit=64)
        attr = QPAttr(port_num=1)
        attr.qp_access_flags = e.IBV_ACCESS_REMOTE_READ
        attr.path_mtu = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}[theirs["mtu"]]
        attr.dest_qp_num = theirs["qp_number"]
        attr.rq_psn, attr.sq_psn = theirs["packet_number"], self.first_packet
        attr.max_dest_rd_atomic = attr.max_rd_atomic = 1
        attr.min_rnr_timer = 12
        attr.timeout, attr.retry_cnt, attr.rnr_retry = TIMEOUT, RETRIES, 7
        attr.ah_attr = AHAttr(gr=route, is_global=1, port_num=1, dlid=theirs.get("lid", 0))
        self.pair.to_rts(attr)

    def request(self, opcode: int, address: int, key: int, length: int) -> int:
        """One request; the status of its completion."""
        element = SGE(self.memory.buf, length, self.memory.lkey)
        work = SendWR(num_sge=1, sg=[element], opcode=opcode, send_flags=e.IBV_SEND_SIGNALED)
        work.set_wr_rdma(key, address)
        signal.setitimer(signal.ITIMER_REAL, WITHIN_S)
        self.pair.post_send(work)
        while (status := self.completed()) is None:
            self.completions.req_notify()
            # It may have come between the look and the wish to be woken.
            if (status := self.completed()) is not None:
                break
            self.channel.get_cq_event(self.completions)
            self.completions.ack_events(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return status

    def completed(self) -> int | None:
        """The status of a request that is over."""
        count, done = self.completions.poll()
        return int(done[0].status) if count else None

    def race(self, address: int, key: int) -> dict[str, Any]:
        """Read until it fails."""
        posted_ns, last_ns, reads = 0, 0, 0
        while True:
            began_ns = boot_now()
            status = self.request(RDMA_READ, address, key, 8)
            now_ns = boot_now()
            if status:
                times = {"posted_ns": posted_ns, "last_ns": last_ns, "failed_ns": now_ns}
                return {**times, "status": status, "reads": reads}
            posted_ns, last_ns, reads = began_ns, now_ns, reads + 1
            if reads == 3:
                say({"racing": True})

    def deregister(self) -> dict[str, Any]:
        """Take the memory away from whoever reads it; when that began and had been done."""
        began_ns = boot_now()
        self.memory.close()
        return {"began_ns": began_ns, "ended_ns": boot_now()}

    def pin(self, fd: int, size: int) -> None:
        """Registered memory keeps its pages, whoever unmaps them."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        # Not mmap.mmap: it keeps a descriptor of its own.
        address = libc.mmap(None, ctypes.c_size_t(size), protection, mmap.MAP_SHARED, fd, None)
        access = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_READ
        self.pinned = MR(self.domain, size, access, address=address)
        os.close(fd)
        if libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)):
            raise OSError(ctypes.get_errno(), "munmap")


def boot_now() -> int:
    """Boottime."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def say(told: dict[str, Any]) -> None:
    """One line out."""
    print(json.dumps(told), flush=True)


def give_up(_number: int, _frame: object) -> None:
    raise TimeoutError("no completion")


def main() -> None:
    """Obey until the end of the input."""
    signal.signal(signal.SIGALRM, give_up)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    peer: Peer | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        match asked["do"]:
            case "open":
                if peer is not None:
                    peer.context.close()
                peer = Peer(asked["device"], asked["gid_index"])
                say(peer.end())
            case "connect":
                assert peer is not None
                peer.connect(asked)
                say({})
            case "write":
                assert peer is not None
                data = bytes.fromhex(asked["data"])
                peer.memory.write(data, len(data))
                say({"status": peer.request(RDMA_WRITE, asked["address"], asked["key"], len(data))})
            case "read":
                assert peer is not None
                status = peer.request(RDMA_READ, asked["address"], asked["key"], asked["length"])
                say({"status": status, "data": peer.memory.read(asked["length"], 0).hex()})
            case "race":
                assert peer is not None
                say(peer.race(asked["address"], asked["key"]))
            case "region":
                assert peer is not None
                say({"address": peer.memory.buf, "key": peer.memory.rkey})
            case "deregister":
                assert peer is not None
                say(peer.deregister())
            case "pin":
                assert peer is not None
                peer.pin(asked["fd"], asked["size"])
                say({})


if __name__ == "__main__":
    main()
