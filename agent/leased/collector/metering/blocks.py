# SPDX-License-Identifier: Apache-2.0
"""The projection as files: `parquet/chain=<log id>/<block>.acts.parquet`, `.holds.parquet`,
`.lives.parquet` and `.rare`, each block the rows of 65,536 records. A few rows are in `.rare` and
have no file of their own: making and opening one takes longer than all that is in it. So are the
parties, unless they are many (each lease with a tag of its own): those are in `.parties.parquet`.

Rule: everything here can be made again from the raw segments, and then has the same bytes: a block
begins and ends at fixed sequences, whatever pages the records were pulled in, and rows are in the
order of records. A block that is not full yet is written again as it grows. `.rare` is written last
and says how far the others go. Nothing is synced: that would take longer than all the rest, and
a power cut takes nothing that cannot be made again. It can only take it unseen, so whoever is first
in a boot of the machine compares what is there with its digests (`LogBlocks.whole`).

Does not project (`projection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from leased.collector.metering.columns import Columns, FrameProjector
from leased.collector.metering.engine import PARTY_COLUMNS, PROJECTION
from leased.collector.metering.projection import (
    Block,
    Carry,
    LogShape,
    Rare,
    log_number,
    party_row,
    shape,
)
from leased.durable.files import DirectoryDisk, write_aside
from leased.terms.errors import StateError

PARQUET: Final = "parquet"
BLOCK_RECORDS: Final = 65_536
SMALL_ROWS: Final = 256
"""Of a table in a block, up to which they are in `.rare`: 20 KiB, and what a refresh has in memory
of each block."""

PARTIES_MAX: Final = 4_096
"""Of a block, that are in `.rare`, and in memory at a refresh: some 400 KiB."""

VERSION: Final = 7
"""Of what a row means and how it is written; which columns there are is in LAYOUT anyway."""

_ROW_GROUP: Final = 1 << 20
_SMALL: Final = {"boot": pa.int32(), "act": pa.int8(), "slot": pa.int16()}
_REPEATED: Final = ("tenant", "tag", "party_hi", "party_lo")
"""Columns of few values in many rows."""

SCHEMAS: Final = {
    table: pa.schema([(name, _SMALL.get(name, pa.int64())) for name in columns])
    for table, columns in PROJECTION.items()
}
PARTIES: Final = pa.schema(
    [(name, pa.string() if name in ("tenant", "tag") else pa.int64()) for name in PARTY_COLUMNS]
)


def fields_of(*structs: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """What makes up a layout: the names of the fields, in order."""
    return [one.__struct_fields__ for one in structs]


class Sidecar(msgspec.Struct, frozen=True, array_like=True):
    """What `.rare` holds: the rare records of the block, its parties (None: they have a file), what
    the next block needs to know, of each table its rows as arrow sends a batch (empty: it has a
    file), and their or its SHA-256; the last is that of the parties."""

    layout: str
    rare: list[Rare]
    parties: list[bytes] | None
    carry: Carry
    batches: tuple[bytes, ...] = ()
    digests: tuple[bytes, ...] = ()


class BlockRows(NamedTuple):
    """The rows of one table: in files, and beside them in batches."""

    paths: list[Path]
    batches: list[bytes]


LAYOUT: Final = sha256(
    repr((VERSION, BLOCK_RECORDS, str(SCHEMAS), fields_of(Sidecar, Rare, Carry))).encode()
).hexdigest()[:16]
"""What files look like. Those of another release are made again."""


class LogBlocks:
    """The blocks of one log below the state directory."""

    def __init__(self, directory: Path, log_id: str) -> None:
        self.log_id = log_id
        self.number = log_number(log_id)
        self.directory = directory / PARQUET / f"chain={log_id}"

    def sidecars(self) -> list[Sidecar]:
        """Of every block, in order, as far as they are whole and of this layout."""
        found: list[Sidecar] = []
        while True:
            try:
                raw = self._path(len(found), "rare").read_bytes()
                one = msgspec.msgpack.decode(raw, type=Sidecar)
            except (FileNotFoundError, msgspec.DecodeError):
                return found
            if one.layout != LAYOUT:
                return found
            found.append(one)

    def rows(self, sidecars: list[Sidecar]) -> dict[str, BlockRows]:
        """Where the rows of these, the first blocks, are, by the table."""
        found = {table: BlockRows([], []) for table in SCHEMAS}
        for index, one in enumerate(sidecars):
            for (table, rows), batch in zip(found.items(), one.batches, strict=True):
                if batch:
                    rows.batches.append(batch)
                else:
                    rows.paths.append(self._path(index, f"{table}.parquet"))
        return found

    def parties(self, sidecars: list[Sidecar]) -> list[Path]:
        """The files of those of these, the first blocks, that have many."""
        places = [index for index, one in enumerate(sidecars) if one.parties is None]
        return [self._path(index, "parties.parquet") for index in places]

    def whole(self, sidecars: list[Sidecar]) -> list[Sidecar]:
        """As many of the first blocks as are what their sidecars say."""
        for index, one in enumerate(sidecars):
            parties = None if one.parties is None else b"".join(one.parties)
            within = zip((*SCHEMAS, "parties"), (*one.batches, parties), one.digests, strict=True)
            for table, there, digest in within:
                data = there
                if data is None or (table in SCHEMAS and not data):
                    try:
                        data = self._path(index, f"{table}.parquet").read_bytes()
                    except FileNotFoundError:
                        return sidecars[:index]
                if sha256(data).digest() != digest:
                    return sidecars[:index]
        return sidecars

    def write(self, index: int, block: Block) -> Sidecar:
        """Put a block in place, `.rare` last; what is in that."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(DirectoryDisk(self.directory)) as disk:
            batches, digests = [], []
            for name, table in arrow_tables(block).items():
                data = batch = batch_bytes(table) if table.num_rows <= SMALL_ROWS else b""
                if not batch:
                    data = parquet_bytes(table)
                    put(disk, f"{index:08d}.{name}.parquet", data)
                batches.append(batch)
                digests.append(sha256(data).digest())
            parties: list[bytes] | None = block.parties
            data = b"".join(block.parties)
            if len(block.parties) > PARTIES_MAX:
                parties, data = None, parquet_bytes(party_table(block.parties))
                put(disk, f"{index:08d}.parties.parquet", data)
            digests.append(sha256(data).digest())
            sidecar = Sidecar(
                LAYOUT, block.rare, parties, block.carry, tuple(batches), tuple(digests)
            )
            put(disk, f"{index:08d}.rare", msgspec.msgpack.encode(sidecar))
            return sidecar

    def extend(self, frames: Iterable[bytes], sidecars: list[Sidecar]) -> list[Sidecar]:
        """Project chunks of whole frames, which begin where the last full block ends; the sidecars
        of all blocks then. Raises ChainError."""
        done = sidecars[: full_blocks(sidecars)]
        carry = done[-1].carry if done else Carry()
        log_id, projector = bytes.fromhex(self.log_id), None
        for chunk in frames:
            offset = 0
            while offset < len(chunk):
                if projector is None:
                    projector = FrameProjector(self.number, carry, log_id)
                end = (len(done) + 1) * BLOCK_RECORDS
                offset = projector.take(chunk, offset, end)
                if offset < len(chunk) or projector.next_seq == end:
                    # Where records were removed, the last of a block need not be there.
                    done.append(self.write(len(done), projector.block(end)))
                    carry, projector = done[-1].carry, None
        if projector is not None:
            done.append(self.write(len(done), projector.block()))
        return done

    def _path(self, index: int, name: str) -> Path:
        return self.directory / f"{index:08d}.{name}"


def full_blocks(sidecars: list[Sidecar]) -> int:
    """How many of the first blocks are full: nothing is ever added to those."""
    done = 0
    while done < len(sidecars) and sidecars[done].carry.next_seq == (done + 1) * BLOCK_RECORDS:
        done += 1
    return done


def put(disk: DirectoryDisk, name: str, data: bytes) -> None:
    """Put a file in place at once. Not synced: a power cut may take its bytes, its digest then
    tells, and it is made again; a sync each would take longer than all the rest."""
    write_aside(disk, name, data, synced=False)
    disk.rename(name + ".new", name)


def party_table(parties: Iterable[bytes]) -> Any:
    """The parties, each with its key."""
    return _table([party_row(one) for one in sorted(parties)], PARTIES)


class Gathered:
    """What a run reads: of each table the rows of many blocks, in files and in memory; and what the
    rare records of each log say, by its number."""

    def __init__(self) -> None:
        self.shapes: dict[int, LogShape] = {}
        self._rows = {table: BlockRows([], []) for table in SCHEMAS}
        self._files: list[Path] = []
        self._parties: set[bytes] = set()

    def add(self, blocks: LogBlocks, sidecars: list[Sidecar]) -> None:
        """The first blocks of one log. Raises StateError."""
        if blocks.number in self.shapes:
            raise StateError(f"{blocks.log_id}: two logs begin with the same eight bytes")
        rare = (one for sidecar in sidecars for one in sidecar.rare)
        self.shapes[blocks.number] = shape(rare, sidecars[-1].carry)
        for table, (paths, batches) in blocks.rows(sidecars).items():
            self._rows[table].paths.extend(paths)
            self._rows[table].batches.extend(batches)
        self._files.extend(blocks.parties(sidecars))
        for one in sidecars:
            self._parties.update(one.parties or ())

    def tables(self) -> Iterator[tuple[str, list[Path], Any]]:
        """Each table's name, its files, and what is in none. A party may be there twice."""
        for table, (paths, batches) in self._rows.items():
            yield table, paths, batched(table, batches)
        yield "parties", self._files, party_table(self._parties)


def arrow_tables(block: Block) -> dict[str, Any]:
    """The tables of a block, as arrow has them."""
    rows = (block.acts, block.holds, block.lives)
    return {
        name: _table(each, schema)
        for (name, schema), each in zip(SCHEMAS.items(), rows, strict=True)
    }


def batch_bytes(table: Any) -> bytes:
    """A table as one batch of its schema, as arrow sends it."""
    columns = [column.combine_chunks() for column in table.columns]
    return bytes(pa.RecordBatch.from_arrays(columns, schema=table.schema).serialize())


def batched(name: str, batches: Iterable[bytes]) -> Any:
    """The rows of batches of a table of the projection."""
    schema = SCHEMAS[name]
    read = [pa.ipc.read_record_batch(pa.py_buffer(one), schema) for one in batches]
    return pa.Table.from_batches(read, schema)


def parquet_bytes(table: Any) -> bytes:
    """A table as Parquet: the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="snappy",  # files are a third larger than by zstd, and made in half the time
        use_dictionary=[name for name in table.column_names if name in _REPEATED],
        write_statistics=True,
        row_group_size=_ROW_GROUP,
        store_schema=False,
    )
    return bytes(sink.getvalue())


def _table(rows: list[Any] | Columns, schema: Any) -> Any:
    if isinstance(rows, Columns):
        return _of_columns(rows, schema)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [
        pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _of_columns(rows: Columns, schema: Any) -> Any:
    """Columns as arrow has them, without a copy where it can be."""
    arrays = []
    for field in schema:
        column = rows.columns.get(field.name)
        if column is None:
            arrays.append(pa.repeat(pa.scalar(rows.log, field.type), rows.length))
        else:
            has = None
            if column.has is not None:
                has = _numbers(pa.int8(), rows.length, column.has).cast(pa.bool_()).buffers()[1]
            arrays.append(_numbers(field.type, rows.length, column.raw, has))
    return pa.Table.from_arrays(arrays, schema=schema)


def _numbers(what: Any, count: int, raw: bytes, has: Any = None) -> Any:
    return pa.Array.from_buffers(what, count, [has, pa.py_buffer(raw)])
