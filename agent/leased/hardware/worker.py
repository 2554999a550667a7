# SPDX-License-Identifier: Apache-2.0
"""A worker: the process in which drivers and the kernel may take their time.

It is forked (`forkserver`) and serves one SOCK_SEQPACKET socket: a batch of calls in, the answers
to it out, descriptors beside both. It dies with the agent.

Rule: one batch at a time, in order; a call that fails is answered and spoils no other; nothing is
remembered between batches except which pools' files it read and the device filters that are
loaded. Whoever asked keeps the time: a worker that hangs is abandoned and replaced (`crew`). This
module is the room's codec door.

Does not decide anything.
"""

from __future__ import annotations

import array
import errno
import importlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from leased.hardware import cgroup, exclusion, verbs
from leased.hardware.calls import (
    Answer,
    Answers,
    Batch,
    Call,
    Charged,
    CloseLeaf,
    Count,
    Create,
    Created,
    Failed,
    Filter,
    Found,
    Founded,
    Join,
    Leafed,
    MakeLeaf,
    Result,
    Scrub,
    Survey,
    Task,
)
from leased.hardware.descriptors import close_all, passing, taken
from leased.hardware.instant import now_ns
from leased.hardware.memory import read_pool
from leased.hardware.scrubbing import scrub_batch
from leased.hardware.survey import survey
from leased.terms.errors import DeviceError, LeasedError

FDS_MAX = 240
"""The kernel passes 253 descriptors with one message at most (SCM_MAX_FD)."""

MESSAGE_BYTES_MAX = 1 << 20
_OOM_SCORE = b"1000"
COMM = "leased-worker"
"""What ps shows, and by what one worker knows another of the same parent."""

_ENCODER = msgspec.msgpack.Encoder()
_BATCHES = msgspec.msgpack.Decoder(Batch)
_ANSWERS = msgspec.msgpack.Decoder(Answers)
BACKENDS = {
    "gpu": "leased.hardware.gpu.carrying",
    "block": "leased.hardware.block.carrying",
    "rdma": "leased.hardware.rdma.carrying",
    "dax": "leased.hardware.dax.carrying",
    "usage": "leased.hardware.usage.carrying",
    "adoption": "leased.hardware.adoption.carrying",
    "readings": "leased.hardware.readings.carrying",
}
"""What a worker may load; each is loaded when first asked for, so that a worker for
memory does not carry the vendors' libraries around."""

BROKEN: tuple[type[Exception], ...] = (ImportError, SyntaxError, OSError, RuntimeError)
BROKEN += (LookupError, AttributeError, TypeError, ValueError)
"""How a vendor's module for Python says that it cannot be read."""

Verbs = Mapping[str, tuple[Any, Callable[[Any, list[int]], Any]]]
"""Of a backend: what each verb takes, and who carries it out."""

_CONTROL_BYTES = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


# ---- the two ends of the socket ----------------------------------------------------------------


def send(sock: socket.socket, message: Batch | Answers, fds: Sequence[int]) -> None:
    """Send one message; the descriptors stay the sender's. Raises OSError (BlockingIOError, and
    EMSGSIZE for what whoever receives it has no room for)."""
    raw = _ENCODER.encode(message)
    if len(raw) > MESSAGE_BYTES_MAX:
        raise OSError(errno.EMSGSIZE, f"{len(raw)} bytes are more than {MESSAGE_BYTES_MAX}")
    sock.sendmsg([raw], passing(fds))


def receive_answers(sock: socket.socket, buffer: bytearray) -> tuple[Answers, list[int]]:
    """The next answers and the descriptors that came with them. Raises OSError, EOFError or
    DeviceError(EMFILE) when descriptors were lost on the way."""
    raw, fds = _receive(sock, buffer)
    return _ANSWERS.decode(raw), fds


T = TypeVar("T")


def task(backend: str, verb: str, argument: msgspec.Struct, fds: int = 0) -> Task:
    """The call that asks a worker for one verb of a backend."""
    return Task(backend, verb, _ENCODER.encode(argument), fds)


def result_of(answer: Result, returns: type[T]) -> T:
    """What a task's verb returned."""
    return msgspec.msgpack.decode(answer.value, type=returns)


def _receive(sock: socket.socket, buffer: bytearray) -> tuple[memoryview, list[int]]:
    count, control, flags, _ = sock.recvmsg_into([buffer], _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = taken(control)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        close_all(fds)
        raise DeviceError("worker_receive", errno.EMFILE, "descriptors were lost on the way")
    if count == 0:
        raise EOFError
    return memoryview(buffer)[:count], fds


# ---- one batch ---------------------------------------------------------------------------------


class Worker:
    """What a worker knows: whether this kernel answers for exclusion."""

    def __init__(self) -> None:
        self._opens_counted = exclusion.kernel_counts_opens()

    def carry_out(self, batch: Batch, fds: Sequence[int]) -> tuple[list[Answer], list[int]]:
        """Every call in order; the answers and the descriptors that they own."""
        answers: list[Answer] = []
        made: list[int] = []
        given = iter(fds)
        scrubs = [call for call in batch.calls if isinstance(call, Scrub)]
        if scrubs:
            # One pass over the host serves all scrubs of the batch; they come in no mixed batch.
            assert len(scrubs) == len(batch.calls) == len(fds)
            answers.extend(self._scrub(batch, scrubs, fds))
        else:
            answers.extend(_answer(call, given, made) for call in batch.calls)
        return answers, made

    def _scrub(self, batch: Batch, calls: list[Scrub], fds: Sequence[int]) -> list[Answer]:
        try:
            return list(scrub_batch(batch, calls, fds, opens_counted=self._opens_counted))
        except OSError as error:
            return [_failed(error)] * len(calls)


def _answer(call: Call, given: Iterator[int], made: list[int]) -> Answer:
    try:
        if isinstance(call, Create):
            return _create(call, made)
        return _other(call, given)
    except DeviceError as error:
        return Failed(error.verb, error.errno, error.detail)
    except LeasedError as error:
        return Failed("survey", errno.EINVAL, str(error))
    except OSError as error:
        return _failed(error)


def _create(call: Create, made: list[int]) -> Created:
    fd = verbs.create_memory(
        call.name, size_bytes=call.size_bytes, page_bytes=call.page_bytes, node=call.node
    )
    own = [fd]
    try:
        if call.handed:
            own.append(exclusion.reopen(fd))
        status = os.fstat(fd)
    except OSError:
        # Nothing of a call that failed may travel: the descriptors behind it would be taken for it.
        close_all(own)
        raise
    made.extend(own)
    return Created(status.st_dev, status.st_ino, status.st_blocks, now_ns())


def _other(call: Call, given: Iterator[int]) -> Answer:
    match call:
        case Count(pool):
            return read_pool(pool)
        case MakeLeaf():
            cgroup.make_leaf(call)
            return Leafed(now_ns())
        case CloseLeaf(path, budget):
            return Charged(*cgroup.close_leaf(path, budget=budget), now_ns())
        case Join(path, pid):
            cgroup.join(path, pid, next(given))
            return Leafed(now_ns())
        case Found(root):
            return Founded(cgroup.found(root))
        case Survey():
            return survey(call)
        case Filter(path, rules):
            cgroup.let_open(path, [verbs.DeviceRule(*rule) for rule in rules])
            return Leafed(now_ns())
        case Task():
            return _carry(call, [next(given) for _ in range(call.fds)])
        case _:
            raise DeviceError("worker", errno.ENOSYS, type(call).__name__)


def _carry(call: Task, fds: list[int]) -> Result:
    """One verb of a backend. The verb may raise DeviceError or OSError; the descriptors stay
    ours."""
    takes, carry_out = load(call.backend)[call.verb]
    argument = msgspec.msgpack.decode(call.argument, type=takes)
    return Result(_ENCODER.encode(carry_out(argument, fds)))


def load(backend: str) -> Verbs:
    """A backend's verbs; its modules are read the first time. Raises DeviceError, also for what is
    wrong with a vendor's."""
    if backend not in BACKENDS:
        raise DeviceError("worker", errno.ENOSYS, backend)
    try:
        verbs_of: Verbs = importlib.import_module(BACKENDS[backend]).VERBS
    except BROKEN as error:
        raise DeviceError("worker", errno.ELIBBAD, f"{backend}: {error!r}") from error
    return verbs_of


def _failed(error: OSError) -> Failed:
    return Failed("worker", error.errno or errno.EIO, str(error))


# ---- the process -------------------------------------------------------------------------------


def serve(sock: socket.socket) -> None:
    """Answer batches until the other end closes."""
    worker = Worker()
    buffer = bytearray(MESSAGE_BYTES_MAX)
    while True:
        try:
            raw, fds = _receive(sock, buffer)
        except (EOFError, ConnectionResetError):
            return
        batch = _BATCHES.decode(raw)
        made: list[int] = []
        try:
            answers, made = worker.carry_out(batch, fds)
            _tell(sock, batch.number, answers, made)
        except (BrokenPipeError, ConnectionResetError):
            return  # the agent has gone; what was made goes with us
        finally:
            close_all((*fds, *made))


def _tell(
    sock: socket.socket, number: int, answers: Sequence[Answer], made: Sequence[int]
) -> None:
    """Answer a batch. What is too long for one message is an answer, too."""
    try:
        send(sock, Answers(number, tuple(answers)), made)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        send(sock, Answers(number, (_failed(error),) * len(answers)), ())


def ignore_signals() -> None:
    """A terminal's Ctrl-C is the agent's to answer; SIGIO comes when somebody tries a held
    memfd."""
    for number in (signal.SIGINT, signal.SIGIO, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def call_oneself(name: str) -> None:
    """What ps shows."""
    Path("/proc/self/comm").write_text(name, "ascii")


def work(sock: socket.socket) -> None:
    """Be a worker, in a process that was forked for it, until the other end closes."""
    # Of all processes it is the cheapest to lose: it is replaced, and what it touched comes back.
    Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
    call_oneself(COMM)
    serve(sock)
