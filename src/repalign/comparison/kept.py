"""Finished tiles of earlier runs, in a folder or behind a URL: what a killed run goes on from.

A group of tiles that are computed together is one sealed Parquet file: its rows are those of the tiles, one after the other,
with the null draws of a tile in its first row, and its footer has the key of each tile and how many rows it has. A tile is
found by its key, whichever group it was computed in. A file is named after the keys in it, so that writers that share a folder
write equal groups as equal bytes under one name, and nobody reads a file to change it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from repalign.comparison.alignment import DRAWS, SCHEMA, TILE_SCHEMA, as_table
from repalign.comparison.tiles import Scored, Tile, table_of
from repalign.files import DamagedError, Files, parquet_about, parse_parquet, seal_parquet

log = logging.getLogger(__name__)

TILES = "tiles"  # the folder of a result where they lie
MADE = "repalign-made"  # in the footer: with which threads and processor they were computed
MEMBERS = "repalign-tiles"  # in the footer: for each tile its key, its number of rows, and what the run says of it
KEY, ABOUT = "repalign-tile", "repalign-about"  # the same in files of a single tile, as they were written before there were groups
REMEDY = "delete it: the same command computes again what it needs of it"
Members = list[tuple[str, int | None, dict[str, Any]]]  # None: all rows


@dataclass(frozen=True)
class Kept:
    """The finished tiles under `files`, which are those of a results folder."""

    files: Files

    def find(self, tiles: Sequence[Tile]) -> Iterator[tuple[int, Scored]]:
        """Those of the tiles that are there, with their places among `tiles`; those of one file at a time.

        Footers say which tiles a file has, and a file that has one of these is read whole. One that is damaged is told of in
        the log and passed over.
        """
        wanted: dict[str, list[int]] = defaultdict(list)
        listing = self.files.listing(TILES) if tiles else {}
        for i, tile in enumerate(tiles if listing else ()):
            wanted[tile.key].append(i)
        for name, size in listing.items():
            if size is None or name.startswith(".") or not name.endswith(".parquet"):
                continue
            path = f"{TILES}/{name}"
            try:
                keys = [key for key, *_ in _members(parquet_about(self.files, path, size), name)]
                if wanted.keys().isdisjoint(keys) and keys and file_name(keys) == name:
                    continue  # of other models, or of another run
                data = self.files.read(path)
                found = opened(data, self._path(name), name)
            except FileNotFoundError:  # another process removed it in the meantime
                continue
            except DamagedError as error:
                log.warning("%s %s; what it held is computed again", self._path(name), error.problem)
                continue
            yield from ((i, one) for key, one in found.items() for i in wanted.get(key, ()))

    def write(self, tiles: Sequence[Tile], scored: Sequence[Scored]) -> None:
        """Keep a group of tiles in a file of its own, whole or not at all. RepalignError if it cannot be written."""
        keys = [tile.key for tile in tiles]
        members = [[key, one.stop - one.start, one.about] for key, one in zip(keys, scored, strict=True)]
        about = {MEMBERS: json.dumps(members, separators=(",", ":")), MADE: scored[0].made}
        self.files.write(f"{TILES}/{file_name(keys)}", seal_parquet(_with_draws(scored), about))

    def holds(self, tiles: Sequence[Tile]) -> bool:
        """Whether there is a file of exactly these tiles."""
        return self.files.size(f"{TILES}/{name_of(tiles)}") is not None

    def names(self) -> set[str]:
        """All files of tiles that are there."""
        return set(self.files.listing(TILES))

    def _path(self, name: str) -> str:
        return f"{self.files.root}/{TILES}/{name}"


def file_name(keys: Sequence[str]) -> str:
    """What a file of these tiles is called: a tile alone goes by its key, several by a digest of theirs."""
    (own,) = keys if len(keys) == 1 else (hashlib.sha256("\n".join(keys).encode()).hexdigest()[: len(keys[0])],)
    return f"{own}.parquet"


def name_of(tiles: Sequence[Tile]) -> str:
    """What the file of these tiles is called."""
    return file_name([tile.key for tile in tiles])


def opened(data: bytes | bytearray, path: object, name: str) -> dict[str, Scored]:
    """The tiles in the bytes of a file, by their keys. Raises DamagedError if it is not what was written under this `name`."""
    table, notes, has_seal = parse_parquet(data, path, REMEDY)
    members = _members(notes, path)
    keys = [key for key, *_ in members]
    if not has_seal or not keys or file_name(keys) != name:
        what = "is not this tile" if len(keys) < 2 else "are not these tiles"
        raise DamagedError(path, what, expected=f"sealed, {name}", got=file_name(keys) if keys else "none", remedy=REMEDY)
    table = as_table(table, TILE_SCHEMA, path)
    lengths = [len(table) if rows is None else rows for _, rows, _ in members]
    stops = np.cumsum(lengths)
    starts = stops - lengths
    draws = table[DRAWS.name].combine_chunks()
    if min(lengths) < 1 or stops[-1] != len(table) or draws.take(pa.array(starts)).null_count:
        raise DamagedError(path, "has other rows than it states", remedy=REMEDY)
    values, ends = draws.values.to_numpy(zero_copy_only=False), draws.offsets.to_numpy()
    rows, made = table.select(SCHEMA.names), notes.get(MADE, "")
    places = zip(members, starts.tolist(), stops.tolist(), strict=True)
    return {key: Scored(rows, a, b, values[ends[a] : ends[a + 1]], about, made) for (key, _, about), a, b in places}


def _members(notes: Mapping[str, str], path: object) -> Members:
    """The tiles of which the footer of a file speaks; none if it speaks of none. Raises DamagedError."""
    try:
        if MEMBERS in notes:
            return [(str(key), int(rows), dict(about)) for key, rows, about in json.loads(notes[MEMBERS])]
        return [(notes[KEY], None, json.loads(notes.get(ABOUT, "{}")))] if KEY in notes else []
    except (ValueError, TypeError) as error:
        raise DamagedError(path, "does not say which tiles it has", remedy=REMEDY) from error


def _with_draws(scored: Sequence[Scored]) -> pa.Table:
    """The rows of some tiles, one after the other, with the draws of each in its first row."""
    rows = table_of(scored).combine_chunks()
    lengths, is_first = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    starts = np.cumsum([0, *(one.stop - one.start for one in scored)])[:-1]
    lengths[starts], is_first[starts] = [len(one.draws) for one in scored], True
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = pa.array(np.concatenate([one.draws for one in scored]), pa.float64())
    return rows.append_column(DRAWS, pa.ListArray.from_arrays(ends, values, mask=pa.array(~is_first)))
