# SPDX-License-Identifier: Apache-2.0
"""A conversation: one connection as a state machine. Bytes in, calls out; answers in, bytes out, in
order.

Rule: what the peer sends never raises. A call that cannot be meant is answered with its typed error
and the conversation goes on; bytes that are not the protocol end it: the calls before them are
still answered, then comes ProtocolError, then nothing. How the stream is cut into reads never shows
in the calls.

Descriptors: the kernel ends a read after the bytes that descriptors came with, so they belong to
the last message that begins in it; the socket's owner keeps them in order and takes `fd_count` of
them for each call, after `fd_skip` that came with calls which were refused here (and at the end of
a read as many as `take_refused_fds` says). org.varlink.service is answered here.

Does not read a socket, a clock, or what a call means (`calls`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from leased.terms.errors import InvalidParameter, ProtocolError
from leased.wire import parameters as wire_parameters
from leased.wire.complaints import blamed_parameter, has_place, in_words
from leased.wire.description import SERVICE, Service
from leased.wire.framing import MESSAGE_BYTES_MAX, Framing
from leased.wire.parameters import Method, Parameters
from leased.wire.replies import encode_fault

PIPELINE_MAX = 16
"""Calls that one connection may have unanswered."""

_NAME_CHARS_MAX = 256


class _Header(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What a call looks like. `parameters` stays undecoded until the method is known."""

    method: str
    parameters: msgspec.Raw = msgspec.Raw(b"{}")
    more: bool | None = None
    oneway: bool | None = None
    upgrade: bool | None = None


class Call(msgspec.Struct, eq=False):
    """One call, to be answered once (`more`: any number of times before). `fd_count` descriptors
    came with it, after `fd_skip` that belong to nobody.

    `answered` and `held` (answers that wait for those of earlier calls) are the conversation's own.
    """

    method: Method
    parameters: Parameters
    more: bool = False
    oneway: bool = False
    fd_count: int = 0
    fd_skip: int = 0
    answered: bool = False
    held: list[tuple[bytes, Sequence[int]]] | None = None


_HEADER = msgspec.json.Decoder(_Header)
_ANY = msgspec.json.Decoder()
_KNOWN_KEYS = frozenset(_Header.__struct_fields__)
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Conversation:
    """One connection. `fault` is set when the peer broke the protocol, `ended` when it sends no
    more; `finished` when it is time to close.
    """

    __slots__ = (
        "_framing",
        "_out",
        "_pending",
        "_pipeline_max",
        "_refused_fds",
        "_service",
        "_tail_fds",
        "ended",
        "fault",
    )

    def __init__(
        self,
        service: Service,
        *,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        pipeline_max: int = PIPELINE_MAX,
    ) -> None:
        self._service = service
        self._framing = Framing(message_bytes_max)
        self._pipeline_max = pipeline_max
        self._pending: deque[Call] = deque()
        self._out: list[tuple[bytes, Sequence[int]]] = []
        self._tail_fds = 0
        self._refused_fds = 0
        self.fault: ProtocolError | None = None
        self.ended = False

    @property
    def finished(self) -> bool:
        """Whether everything has been said, and nothing comes: send what `take` gives, then
        close."""
        return (self.ended or self.fault is not None) and not self._pending

    @property
    def unanswered(self) -> int:
        """Calls that wait for their answer."""
        return len(self._pending)

    @property
    def unfinished(self) -> int:
        """Bytes of a call that has come in part."""
        return self._framing.kept

    def receive(self, data: bytes, fd_count: int = 0) -> list[Call]:
        """Return the calls that `data` completes. `fd_count` descriptors came with it. After a
        fault: none.
        """
        if self.fault is not None:
            return []
        framing = self._framing
        begun_before = framing.kept
        messages = framing.receive(data)
        calls: list[Call] = []
        last = len(messages) - 1
        fds_of_last = 0
        if fd_count:
            if framing.kept and (messages or not begun_before):
                tail_fds = fd_count
            elif messages and (last or not begun_before):
                fds_of_last, tail_fds = fd_count, 0
            else:
                self._fail("descriptors came in the middle of a message")
                return calls
        else:
            tail_fds = 0
        for index, message in enumerate(messages):
            fds = self._tail_fds
            if fds:
                self._tail_fds = 0
            if index == last:
                fds += fds_of_last
            call = self._interpret(message, fds)
            if call is not None:
                calls.append(call)
            elif self.fault is not None:
                return calls
        if framing.overrun:
            self._fail("a message is longer than allowed")
        self._tail_fds += tail_fds
        return calls

    def take_refused_fds(self) -> int:
        """How many descriptors came with refused calls behind the last call that was returned."""
        count, self._refused_fds = self._refused_fds, 0
        return count

    def break_off(self, why: str) -> None:
        """The peer broke the protocol by what cannot be seen here. Nothing of it is kept."""
        self._framing.give_up()
        if self.fault is None:
            self._fail(why)

    def answer(
        self, call: Call, wire: bytes, fds: Sequence[int] = (), *, continues: bool = False
    ) -> None:
        """Give an answer to `call`; it becomes sendable when those of all earlier calls are
        complete.

        A oneway call is answered too, and nothing is sent. `fds` go with the first byte of `wire`.
        """
        assert not call.answered, "a call has one last answer"
        if not continues:
            call.answered = True
        pending = self._pending
        if pending[0] is not call:
            if not call.oneway:
                if call.held is None:
                    call.held = []
                call.held.append((wire, fds))
            return
        if not call.oneway:
            self._out.append((wire, fds))
        if not continues:
            pending.popleft()
            if pending or self.fault is not None:
                self._advance()

    def take(self) -> list[tuple[bytes, Sequence[int]]]:
        """Return what may be sent now, in order, once. Messages without descriptors are joined into
        one write.
        """
        out = self._out
        if len(out) < 2:
            if out:
                self._out = []
            return out
        self._out = []
        joined: list[tuple[bytes, Sequence[int]]] = []
        run: list[bytes] = []
        for wire, fds in out:
            if fds:
                if run:
                    joined.append((b"".join(run), ()))
                    run = []
                joined.append((wire, fds))
            else:
                run.append(wire)
        if run:
            joined.append((b"".join(run), ()))
        return joined

    # ---- inside --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Release the answers that waited for the call that was just answered."""
        pending = self._pending
        while pending:
            call = pending[0]
            if call.held:
                self._out.extend(call.held)
                call.held = None
            if not call.answered:
                return
            pending.popleft()
        if self.fault is not None:
            self._out.append((encode_fault(ProtocolError.wire, {"why": str(self.fault)}), ()))

    def _fail(self, why: str) -> None:
        self.fault = ProtocolError(why)
        if not self._pending:
            self._advance()

    def _interpret(self, message: bytes, fds: int) -> Call | None:
        """The call in `message`, or None if it was answered here or is none."""
        try:
            header = _HEADER.decode(message)
        except _BROKEN as error:
            tolerated = self._tolerate(message, error)
            if tolerated is None:
                return None
            header = tolerated
        if len(self._pending) >= self._pipeline_max:
            self._fail(f"more than {self._pipeline_max} calls without an answer")
            return None
        more = header.more is True
        oneway = header.oneway is True
        if (header.upgrade or oneway) and more + oneway + (header.upgrade is True) > 1:
            self._fail("more, oneway and upgrade exclude each other")
            return None
        method = self._service.methods.get(header.method)
        if fds and (method is None or fds > method.fds_max):
            self._fail(f"{header.method[:_NAME_CHARS_MAX]} takes no such descriptors")
            return None
        if method is None:
            self._refuse(header, *self._missing(header.method))
            return None
        self._refused_fds += fds
        try:
            parameters = method.decoder.decode(header.parameters)
        except _BROKEN as error:
            absent = self._absent(method, header, error)
            if absent is None:
                return None
            parameters = absent
        if header.upgrade:
            self._refuse(header, f"{SERVICE}.MethodNotImplemented", {"method": method.name})
            return None
        if method.streams and not more:
            self._refuse(header, f"{SERVICE}.ExpectedMore", {})
            return None
        skip = self.take_refused_fds() - fds
        call = Call(method, parameters, more, oneway, fds, skip)
        self._pending.append(call)
        if method.interface == SERVICE:
            self._introduce(call)
            return None
        return call

    def _tolerate(self, message: bytes, error: Exception) -> _Header | None:
        """A header with extension keys (those with a dot) without them; else the conversation has
        failed.
        """
        if not isinstance(error, msgspec.ValidationError):
            self._fail("not JSON")
            return None
        try:
            value = _ANY.decode(message)
            if not isinstance(value, dict):
                self._fail("a message must be an object")
                return None
            known = {key: item for key, item in value.items() if "." not in key}
            unknown = sorted(known.keys() - _KNOWN_KEYS)
            if unknown:
                self._fail(f"unknown key {unknown[0][:_NAME_CHARS_MAX]!r} in a call")
                return None
            return _HEADER.decode(msgspec.json.encode(known))
        except msgspec.ValidationError as why:
            self._fail(f"not a call: {str(why)[:_NAME_CHARS_MAX]}")
        except _BROKEN:
            self._fail("not JSON")
        return None

    def _missing(self, name: str) -> tuple[str, dict[str, object]]:
        """The error for a method that this socket does not serve."""
        shown = name[:_NAME_CHARS_MAX]
        interface = shown.rpartition(".")[0]
        if interface in self._service.interfaces:
            return f"{SERVICE}.MethodNotFound", {"method": shown}
        return f"{SERVICE}.InterfaceNotFound", {"interface": interface}

    def _absent(self, method: Method, header: _Header, error: Exception) -> Parameters | None:
        """Parameters that are null are absent; others that do not fit are refused, or fail the
        conversation.
        """
        if not isinstance(error, msgspec.ValidationError):
            self._fail("not JSON")
            return None
        text = str(error)
        if text.startswith("Expected `object`, got") and not has_place(text):
            if bytes(header.parameters).strip() != b"null":
                self._fail("parameters must be an object")
                return None
            try:
                return method.decoder.decode(b"{}")
            except msgspec.ValidationError as missing:
                text = str(missing)
        self._refuse_parameter(header, blamed_parameter(text), in_words(text))
        return None

    def _refuse(self, header: _Header, name: str, parameters: dict[str, object]) -> None:
        """Answer a call that goes no further, in its turn."""
        self._settle(header, encode_fault(name, parameters))

    def _refuse_parameter(self, header: _Header, parameter: str, why: str) -> None:
        self._settle(header, encode_fault(InvalidParameter.wire, {"parameter": parameter}, why))

    def _settle(self, header: _Header, wire: bytes) -> None:
        call = Call(_REFUSED, wire_parameters.GetInfo(), oneway=header.oneway is True)
        self._pending.append(call)
        self.answer(call, wire)

    def _introduce(self, call: Call) -> None:
        """Answer a question about the service itself."""
        asked = call.parameters
        if isinstance(asked, wire_parameters.GetInterfaceDescription):
            wire = self._service.descriptions.get(asked.interface)
            if wire is None:
                shown = asked.interface[:_NAME_CHARS_MAX]
                wire = encode_fault(f"{SERVICE}.InterfaceNotFound", {"interface": shown})
        else:
            wire = self._service.info
        self.answer(call, wire)


_REFUSED = wire_parameters.METHODS[f"{SERVICE}.GetInfo"]
