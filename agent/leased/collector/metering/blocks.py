# SPDX-License-Identifier: Apache-2.0
"""The projection as files: `parquet/chain=<log id>/<block>.acts.parquet`, `.holds.parquet` and
`.rare`, each block the rows of 65,536 records.

Rule: everything here can be made again from the raw segments, and then has the same bytes: a block
begins and ends at fixed sequences, whatever pages the records were pulled in, and rows are in the
order of records. A block that is not full yet is written again as it grows. `.rare` is written last
and says how far the other two go.

Does not project (`projection`).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from leased.collector.metering.engine import ACT_COLUMNS, HOLD_COLUMNS
from leased.collector.metering.projection import Block, Carry, Projector, Rare, log_number
from leased.durable.files import DirectoryDisk, write_whole
from leased.terms.moment import Moment

PARQUET: Final = "parquet"
BLOCK_RECORDS: Final = 65_536
VERSION: Final = 1
"""Of what a row means. Changed by hand; which columns there are is in LAYOUT anyway."""

_ROW_GROUP: Final = 1 << 20
_SMALL: Final = {
    "boot": pa.int32(),
    "act": pa.int8(),
    "slot": pa.int16(),
    "kind": pa.int8(),
    "tier": pa.int8(),
    "priority": pa.int8(),
    "tenant": pa.string(),
    "tag": pa.string(),
}
ACTS: Final = pa.schema([(name, _SMALL.get(name, pa.int64())) for name in ACT_COLUMNS])
HOLDS: Final = pa.schema([(name, _SMALL.get(name, pa.int64())) for name in HOLD_COLUMNS])


def fields_of(*structs: type[msgspec.Struct]) -> list[tuple[str, ...]]:
    """What makes up a layout: the names of the fields, in order."""
    return [one.__struct_fields__ for one in structs]


class Sidecar(msgspec.Struct, frozen=True, array_like=True):
    """What `.rare` holds: the rare records of the block, and what the next block needs to know."""

    layout: str
    rare: list[Rare]
    carry: Carry


LAYOUT: Final = sha256(
    repr((VERSION, BLOCK_RECORDS, str(ACTS), str(HOLDS), fields_of(Sidecar, Rare, Carry))).encode()
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

    def paths(self, count: int) -> tuple[list[Path], list[Path]]:
        """The files of acts and of holds of the first `count` blocks."""
        acts = [self._path(index, "acts.parquet") for index in range(count)]
        return acts, [self._path(index, "holds.parquet") for index in range(count)]

    def write(self, index: int, block: Block) -> None:
        """Put a block in place, `.rare` last."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk = DirectoryDisk(self.directory)
        try:
            for name, table in (("acts", acts_table(block)), ("holds", holds_table(block))):
                write_whole(disk, f"{index:08d}.{name}.parquet", parquet_bytes(table))
            sidecar = msgspec.msgpack.encode(Sidecar(LAYOUT, block.rare, block.carry))
            write_whole(disk, f"{index:08d}.rare", sidecar)
        finally:
            disk.close()

    def extend(self, events: Iterable[tuple[int, object, Moment]], sidecars: list[Sidecar]) -> int:
        """Project `events`, which begin where the last full block ends; how many blocks there are
        then."""
        stream = iter(events)
        done = full_blocks(sidecars)
        carry = sidecars[done - 1].carry if done else Carry()
        index = done
        one = next(stream, None)
        while one is not None:
            end = (index + 1) * BLOCK_RECORDS
            projector = Projector(self.number, carry)
            while one is not None and one[0] < end:
                projector.observe(*one)
                one = next(stream, None)
            block = projector.block()
            if one is not None:
                # Where records were removed, the last of a block need not be there.
                full = msgspec.structs.replace(block.carry, next_seq=end)
                block = msgspec.structs.replace(block, carry=full)
            self.write(index, block)
            carry = block.carry
            index += 1
        return index

    def _path(self, index: int, name: str) -> Path:
        return self.directory / f"{index:08d}.{name}"


def full_blocks(sidecars: list[Sidecar]) -> int:
    """How many of the first blocks are full: nothing is ever added to those."""
    done = 0
    while done < len(sidecars) and sidecars[done].carry.next_seq == (done + 1) * BLOCK_RECORDS:
        done += 1
    return done


def acts_table(block: Block) -> Any:
    """The acts of a block as an arrow table."""
    return _table(block.acts, ACTS)


def holds_table(block: Block) -> Any:
    """The holds of a block as an arrow table."""
    return _table(block.holds, HOLDS)


def joined(tables: list[Any]) -> Any:
    """Tables of one kind, one after the other."""
    return pa.concat_tables(tables)


def parquet_bytes(table: Any) -> bytes:
    """A table as Parquet: the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=["tenant", "tag"] if "tenant" in table.column_names else False,
        write_statistics=True,
        row_group_size=_ROW_GROUP,
        store_schema=False,
    )
    return bytes(sink.getvalue())


def _table(rows: list[Any], schema: Any) -> Any:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [
        pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
