# SPDX-License-Identifier: Apache-2.0
"""Enrolment: a node's log becomes one that the collector follows, by what an operator brought from
the node (`leasectl audit enrolment`, PULL.md section 5).

Rule: identity comes from the file and from nowhere else. The same file again changes nothing; a
file that says something else of a log that is followed is refused, and a node whose log was begun
anew is followed on only where that is said in so many words.

Does not talk to nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from leased.chain.epochs import EPOCH_NS_MIN, LIFE_NS, EpochKey, latest_epoch
from leased.chain.head import GENESIS
from leased.chain.note import ED25519, parse_key
from leased.collector.archive.manifest import LogEntry, ManifestTables
from leased.collector.ingest import Pinned, State, decode_state, encode_state
from leased.collector.transport import check_url
from leased.durable import reading
from leased.terms.errors import ChainError, ConfigError
from leased.terms.identity import parse_id
from leased.terms.reading import INTEGER_MAX, UNREADABLE

FORMAT: Final = "leased-enrolment/1"
FILE_BYTES_MAX: Final = 64 * 1024


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The file, as it is written on the node."""

    format: str
    node_id: str
    log_id: str
    origin: str
    vkey: str
    epoch_ns: int
    first_public_key: str
    size: int = 0
    head: str = ""
    seal_epoch: int | None = None
    seal_key: str | None = None
    printed_ns: int = 0

    def __repr__(self) -> str:
        return f"Enrolment({self.log_id!r}, {self.origin!r})"


def read_enrolment(raw: bytes, source: str) -> Pinned:
    """What an enrolment pins. Raises ConfigError."""
    try:
        told = msgspec.json.decode(raw[:FILE_BYTES_MAX], type=Enrolment)
        if told.format != FORMAT:
            raise ConfigError(f"{source}: not of the format {FORMAT}")
        key = parse_key(told.vkey)
        first = bytes.fromhex(told.first_public_key)
        seal = None if told.seal_key is None else bytes.fromhex(told.seal_key)
        log_id, node_id = parse_id(told.log_id, "log_id"), parse_id(told.node_id, "node_id")
    except (*UNREADABLE, ChainError, ValueError) as error:
        hint = "not what `leasectl audit enrolment` prints, or not all of it"
        raise ConfigError(f"{source}: {error}; {hint}") from error
    if key.name != told.origin or key.kind != ED25519 or len(first) != 32:
        raise ConfigError(f"{source}: the key is not one of the log {told.origin}")
    if seal is not None and (len(seal) != 32 or told.seal_epoch is None):
        raise ConfigError(f"{source}: a seal key has 32 bytes and an epoch")
    epoch = told.seal_epoch or 0
    if epoch < 0 or 0 < told.epoch_ns < EPOCH_NS_MIN or told.epoch_ns < 0:
        raise ConfigError(f"{source}: an epoch is counted from 0, and has at least a second")
    if max(epoch, told.epoch_ns) > INTEGER_MAX or not told.origin.isprintable():
        raise ConfigError(f"{source}: epochs or an origin that nothing can hold")
    fields = (log_id, node_id, told.origin, first, told.epoch_ns, epoch, seal)
    return Pinned(*fields, max(0, told.printed_ns))


def read_file(path: Path) -> Pinned:
    """What an enrolment file pins. Raises ConfigError."""
    try:
        return read_enrolment(reading.read_file(path), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def enrol(
    manifest: ManifestTables,
    name: str,
    url: str,
    pinned: Pinned,
    now_ns: int,
    *,
    replace: bool = False,
) -> str:
    """Follow a log from `now_ns` on; what has changed ("" if nothing). Raises ConfigError."""
    check_url(url, pinned.node_id.hex())
    log_id = pinned.log_id.hex()
    followed = {known: (at, log) for known, at, log in manifest.nodes()}
    entry = manifest.log(log_id)
    # A node whose clock is ahead must not have its epochs judged from a time to come.
    pinned = msgspec.structs.replace(pinned, printed_ns=min(pinned.printed_ns, now_ns))
    if entry is not None and not _agrees(decode_state(entry.state).pinned, pinned, now_ns):
        raise ConfigError(
            f"{name}: log {log_id} was enrolled with other keys; what was enrolled first counts"
        )
    before = followed.get(name)
    if before == (url, log_id):
        return ""
    if before is not None and before[1] != log_id and not replace:
        raise ConfigError(
            f"{name}: log {before[1]} is followed there and this is {log_id}: a node that begins "
            "a new log is enrolled again with `leased-collector enrol --replace`"
        )
    others = [known for known, (_, log) in followed.items() if log == log_id and known != name]
    if others:
        raise ConfigError(
            f"{name}: log {log_id} is followed as {others[0]} already: "
            f"`leased-collector forget {others[0]}` first"
        )
    if entry is None and any(one.log_id[:16] == log_id[:16] for one in manifest.logs()):
        # Usage is reckoned by these eight bytes; among random ids two do not begin alike.
        raise ConfigError(
            f"{name}: log {log_id} begins as another that is followed: its id was not drawn, it "
            "was chosen. Look at who runs that node"
        )
    with manifest.transaction():
        if entry is None:
            state = encode_state(State(pinned))
            node = pinned.node_id.hex()
            manifest.add_log(
                LogEntry(log_id, node, name, pinned.origin, GENESIS, verdict="BEHIND", state=state)
            )
        manifest.follow(name, url, log_id)
    return f"{name}: log {log_id} is followed at {url}"


def _agrees(held: Pinned, told: Pinned, now_ns: int) -> bool:
    """Whether a document says what is pinned already: printed later it has the key of a later
    epoch, or none. What is pinned stays."""
    unsealed = {"seal_epoch": 0, "seal_key": None, "printed_ns": 0}
    bare = [msgspec.structs.replace(one, **unsealed) for one in (held, told)]
    if bare[0] != bare[1] or told.seal_key is None or held.seal_key is None:
        return bare[0] == bare[1] and told.seal_key is None
    keys = [EpochKey(one.seal_epoch, one.seal_key or b"") for one in (held, told)]
    first, last = sorted(keys, key=lambda key: key.epoch)
    if first == last or not held.epoch_ns:
        return first == last
    most = latest_epoch(first.epoch, held.printed_ns, now_ns, held.epoch_ns)
    if last.epoch > min(most, LIFE_NS // held.epoch_ns):
        return False
    return first.evolved(last.epoch - first.epoch) == last
