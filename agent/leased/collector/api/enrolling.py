# SPDX-License-Identifier: Apache-2.0
"""Enrolment by invite: a node brings who it is and a certificate request, and is followed.

Rule: the invite says who may come, under which name and with which host names; what the node says
counts for its log alone, and it must have the log's key (it signs the request with it). Nothing is
followed twice, and no node takes another's place. A certificate is made only where this collector
was given the CA's key; it says the node's id, which the log states, and nothing the node chose.

Does not keep invites (`invites`) and makes no certificates itself (`ctl.minting`).
"""

from __future__ import annotations

from base64 import b64decode
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from leased.chain.certificate import Identity, Role
from leased.chain.invitation import parse_invitation, request_message
from leased.chain.note import parse_key
from leased.chain.signing import verifies
from leased.collector.api.problems import Problem
from leased.collector.api.routes import Answer, Call, Route
from leased.collector.api.settings import Http
from leased.collector.archive.manifests import open_manifest
from leased.collector.enrolment import enrol, read_enrolment
from leased.collector.invites import Denied, Invite, Invites, Why
from leased.ctl import minting
from leased.durable.reading import read_file
from leased.terms.errors import CallerError, ChainError, ConfigError, StateError

PEM_TYPE: Final = "application/x-pem-file"
_STATUS: Final = {Why.UNKNOWN: 401, Why.EXPIRED: 401, Why.USED: 409, Why.OTHER_NODE: 403}


class EnrolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node brings: what `leasectl audit enrolment` prints, as text; a certificate request in
    PEM ("": it has a certificate); and its log's signature over both, in base64."""

    enrolment: str
    request: str
    signature: str


class Enrolled(msgspec.Struct, frozen=True):
    """What it gets: what it is called here, its certificate ("": none was made) and the CA's."""

    name: str
    log_id: str
    told: str
    certificate: str
    ca: str


class Enrolling:
    """The two routes. `directory` is what relative paths in the settings start from."""

    def __init__(self, state: Path, http: Http, directory: Path) -> None:
        self._state, self._http, self._directory = state, http, directory

    def ca(self, call: Call) -> Answer:
        """The CA's certificate: whoever has an invite knows its hash."""
        del call
        if not self._http.client_ca:
            raise Problem(404, "This collector has no CA to show (http.client_ca).")
        return Answer(raw=self._read(self._http.client_ca), media_type=PEM_TYPE)

    def enrol(self, call: Call) -> Answer:
        """Let a node in."""
        kind, _, text = call.headers.get("authorization", "").partition(" ")
        told = parse_invitation(text) if kind.lower() == "bearer" else None
        try:
            if told is None:
                raise Denied(Why.UNKNOWN, "Send an invite of `leased-collector invite` as bearer.")
            node_id, request = _own_request(call.body, told.id)
            with closing(Invites(self._state)) as invites:
                raw = invites.use(
                    told,
                    node_id,
                    request,
                    call.now_ns,
                    lambda invite: self._let_in(invite, call.body, node_id, call.now_ns),
                )
        except Denied as denied:
            raise Problem(_STATUS[denied.why], str(denied), kind=denied.why) from denied
        return Answer(raw=raw)

    def _let_in(self, invite: Invite, body: EnrolBody, node_id: str, now_ns: int) -> bytes:
        """Follow the log, and certify the node. Raises Problem."""
        certificate = self._certify(invite, body.request, node_id, now_ns)
        # Printed for this request; what a node says of its clock is nothing to go by.
        pinned = msgspec.structs.replace(
            read_enrolment(body.enrolment.encode(), "enrolment"), printed_ns=now_ns
        )
        try:
            with closing(open_manifest(self._state)) as manifest:
                for name, _, log_id in manifest.nodes():
                    entry = manifest.log(log_id)
                    if entry is not None and entry.node == node_id and name != invite.name:
                        # Its certificate would be that of the other.
                        why = f"Node {node_id} is followed already, as {name}."
                        raise Problem(409, why, kind="enrolled-otherwise")
                told = enrol(manifest, invite.name, invite.url, pinned, now_ns)
        except ConfigError as error:
            raise Problem(409, str(error), kind="enrolled-otherwise") from error
        ca = self._read(self._http.client_ca).decode() if self._http.client_ca else ""
        log_id = pinned.log_id.hex()
        return msgspec.json.encode(Enrolled(invite.name, log_id, told, certificate, ca))

    def _certify(self, invite: Invite, request: str, node_id: str, now_ns: int) -> str:
        if not request or not self._http.ca_key:
            return ""
        try:
            authority = minting.open_authority(
                self._read(self._http.client_ca), self._read(self._http.ca_key)
            )
            who = Identity(authority.fleet, Role.NODE, node_id)
            now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now_ns // 1000)
            return authority.certify(
                request.encode(), who, invite.hosts, now=now, days=minting.END_DAYS
            ).decode()
        except CallerError as error:
            raise Problem(422, str(error), parameter="request") from error

    def _read(self, file: str) -> bytes:
        """Raises StateError."""
        path = self._directory / file
        try:
            return read_file(path)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error


def _own_request(body: EnrolBody, invite: str) -> tuple[str, bytes]:
    """The node that asks, and the bytes of what it asks; it has the key of its log. Raises
    Problem."""
    try:
        pinned = read_enrolment(body.enrolment.encode(), "enrolment")
        key = parse_key(msgspec.json.decode(body.enrolment)["vkey"])
        signature = b64decode(body.signature, validate=True)
    except (ConfigError, ChainError, ValueError) as error:
        raise Problem(422, str(error), parameter="enrolment") from error
    signed = request_message(body.enrolment, body.request, invite)
    if not verifies(key.public_key, signed, signature):
        detail = "The signature is not by the key that the enrolment names."
        raise Problem(403, detail, parameter="signature", kind="not-its-log")
    return pinned.node_id.hex(), signed


def routes(enrolling: Enrolling) -> list[Route]:
    """The rows of the table."""
    return [
        Route(
            "GET",
            "/v1/ca",
            enrolling.ca,
            "The certificate of the fleet's CA",
            None,
            scope=None,
            slow=True,
            problems=(404, 503),
            also=(PEM_TYPE,),
            about="enrolment",
        ),
        Route(
            "POST",
            "/v1/enrolments",
            enrolling.enrol,
            "Enrol a node by its invite",
            Enrolled,
            scope=None,
            takes_body=EnrolBody,
            slow=True,
            problems=(401, 403, 409, 422, 503),
            about="enrolment",
        ),
    ]
