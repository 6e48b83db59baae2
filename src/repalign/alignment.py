"""The result: one tidy table, what was run, and views of it; kept in a folder that anyone can open."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from repalign.errors import RepalignError, did_you_mean

# One row per pair of layers (scope "cell") and one per pair of models (scope "max": the layer search).
# p_stepdown is over the pairs of layers of one pair of models (family-wise) and stands in "cell" rows; p_maxt, p_holm
# (family-wise), p_bh and p_by (false discovery rate) are over the pairs of models of one measure, in "max" rows.
SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("dataset_fingerprint", pa.string()),
        ("n", pa.int64()),
        ("model_x", pa.string()),
        ("layer_x", pa.string()),
        ("index_x", pa.int64()),
        ("model_y", pa.string()),
        ("layer_y", pa.string()),
        ("index_y", pa.int64()),
        ("measure", pa.string()),
        ("scope", pa.string()),
        ("statistic", pa.float64()),
        ("null_mean", pa.float64()),
        ("null_std", pa.float64()),
        ("z", pa.float64()),
        ("pvalue", pa.float64()),
        ("threshold", pa.float64()),
        ("calibrated", pa.float64()),
        ("p_stepdown", pa.float64()),
        ("p_maxt", pa.float64()),
        ("p_holm", pa.float64()),
        ("p_bh", pa.float64()),
        ("p_by", pa.float64()),
        ("null", pa.string()),
        ("n_draws", pa.int64()),
        ("seed", pa.int64()),
        ("search", pa.string()),
    ]
)
COLUMNS = tuple(SCHEMA.names)

DRAWS = pa.field("draws", pa.list_(pa.float64()))
TILE_SCHEMA = SCHEMA.append(DRAWS)
DRAWS_SCHEMA = pa.schema([("measure", pa.string()), ("model_x", pa.string()), ("model_y", pa.string()), DRAWS])

TABLE_FILE = "results.parquet"
DRAWS_FILE = "draws.parquet"
RUN_FILE = "run.json"


@dataclass(frozen=True, eq=False)
class Alignment:
    """Scores of layers x layers x models x models x measures, with their chance levels.

    `table` has the columns of `SCHEMA`; `run` says what was compared (models, dataset, measures, null, versions,
    findings, warnings). Everything that a figure or the report shows is in these two. `draws` has the null draws of the
    layer search of every pair of models (columns measure, model_x, model_y, draws), where the null draws at all.
    """

    table: pd.DataFrame
    run: Mapping[str, Any] = field(default_factory=dict)
    draws: pd.DataFrame | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.table["measure"]))

    def cells(self, measure: str | None = None) -> pd.DataFrame:
        """All pairs of layers, one row each."""
        return self._scope("cell", measure)

    def best(self, measure: str | None = None) -> pd.DataFrame:
        """The layer search of every pair of models, one row each, the farthest above chance first within a measure."""
        found = self._scope("max", measure)
        order = {m: i for i, m in enumerate(self.measures)}
        return found.sort_values(
            ["measure", "calibrated", "z", "statistic"],
            ascending=[True, False, False, False],
            key=lambda c: c.map(order) if c.name == "measure" else c,
        ).reset_index(drop=True)

    def matrix(self, measure: str | None = None, value: str = "statistic") -> pd.DataFrame:
        """Models by models, `value` of the layer search ("statistic", "null_mean", "calibrated", "pvalue", ...)."""
        if value not in COLUMNS:
            raise RepalignError(f"the result has no column {value!r}", got=value, remedy=did_you_mean(value, COLUMNS))
        found = self._scope("max", measure or self.measures[0])
        rows, columns = list(dict.fromkeys(found["model_x"])), list(dict.fromkeys(found["model_y"]))
        return found.pivot(index="model_x", columns="model_y", values=value).reindex(index=rows, columns=columns)

    def layer_map(
        self,
        model_x: str | None = None,
        model_y: str | None = None,
        measure: str | None = None,
        value: str = "statistic",
    ) -> pd.DataFrame:
        """Layers by layers of one pair of models (the only or first one by default)."""
        cells = self._scope("cell", measure or self.measures[0])
        for side, model in (("model_x", model_x), ("model_y", model_y)):
            known = list(dict.fromkeys(cells[side]))
            chosen = known[0] if model is None else model
            if chosen not in known:
                raise RepalignError(
                    f"no {side} {chosen!r} in the result", got=chosen, remedy=did_you_mean(chosen, known)
                )
            cells = cells[cells[side] == chosen]
        rows, columns = list(dict.fromkeys(cells["layer_x"])), list(dict.fromkeys(cells["layer_y"]))
        return cells.pivot(index="layer_x", columns="layer_y", values=value).reindex(index=rows, columns=columns)

    def _scope(self, scope: str, measure: str | None) -> pd.DataFrame:
        found = self.table[self.table["scope"] == scope]
        if measure is None:
            return found.reset_index(drop=True)
        if measure not in self.measures:
            raise RepalignError(
                f"no measure {measure!r} in the result", got=measure, remedy=did_you_mean(measure, self.measures)
            )
        return found[found["measure"] == measure].reset_index(drop=True)

    def save(self, folder: str | Path) -> Path:
        """Write results.parquet, draws.parquet and run.json into a folder, each by rename."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.draws is not None:
            write_table(self.draws, folder / DRAWS_FILE, DRAWS_SCHEMA)
        write_table(self.table, folder / TABLE_FILE)
        write_text(folder / RUN_FILE, json.dumps(self.run, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Alignment:
        """Read what `save` wrote."""
        folder = Path(folder)
        table, run = folder / TABLE_FILE, folder / RUN_FILE
        for file in (table, run):
            if not file.is_file():
                raise RepalignError(
                    f"{folder}: not a finished result",
                    expected=f"files {TABLE_FILE} and {RUN_FILE}",
                    got=f"no {file.name}",
                    remedy="name the results folder of a finished run, or run the study again: it resumes",
                )
        try:
            frame = pq.read_table(table, schema=SCHEMA).to_pandas()
            drawn = folder / DRAWS_FILE
            draws = pq.read_table(drawn, schema=DRAWS_SCHEMA).to_pandas() if drawn.is_file() else None
            described = json.loads(run.read_text("utf-8"))
        except (pa.ArrowException, ValueError) as error:
            raise RepalignError(
                f"{folder}: a result file cannot be read",
                got=str(error).splitlines()[0],
                remedy=f"delete {TABLE_FILE} and {RUN_FILE} there and run the study again: finished tiles are kept",
            ) from error
        return cls(frame, described, draws)

    def __repr__(self) -> str:
        lines = []
        for row in self.best().itertuples():
            lines.append(
                f"{row.model_x} [{row.layer_x}] ~ {row.model_y} [{row.layer_y}]  {row.measure}: {row.statistic:.4g} "
                f"(chance {row.null_mean:.4g}, n = {row.n}, p = {row.pvalue:.3g})"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from repalign.report import notebook_html

        return notebook_html(self.table, self.run)


def as_table(columns: Mapping[str, Any], length: int) -> pd.DataFrame:
    """A frame of the schema's columns and types from arrays and constants; columns that are not given are null."""

    def column(field: pa.Field) -> pa.Array:
        value = columns.get(field.name)
        if value is None or isinstance(value, (str, int, float)):
            return pa.repeat(pa.scalar(value, type=field.type), length)
        return pa.array(value, type=field.type)

    return pa.Table.from_arrays([column(f) for f in SCHEMA], schema=SCHEMA).to_pandas()


def write_table(frame: pd.DataFrame, path: Path, schema: pa.Schema = SCHEMA) -> None:
    """Write a frame of a schema as Parquet by rename; the same frame gives the same bytes."""
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_tile(rows: pd.DataFrame, draws: np.ndarray, path: Path) -> None:
    """The rows of one tile, with the draws of its layer search beside the first of them."""
    write_table(rows.assign(draws=[draws, *[None] * (len(rows) - 1)]), path, TILE_SCHEMA)


def read_tile(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """What `write_tile` wrote."""
    frame = pq.read_table(path, schema=TILE_SCHEMA).to_pandas()
    return frame.drop(columns=DRAWS.name), np.asarray(frame[DRAWS.name].iloc[0], float)


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


class replacing:  # noqa: N801  (a context manager that reads as a verb)
    """A temporary path beside `path` that replaces it on success and is removed on failure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            with self.temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            self.temporary.replace(self.path)
            return
        self.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RepalignError(
                f"{self.path}: cannot be written",
                got=str(error),
                remedy="free some space or choose another folder, then run the same command: it resumes",
            ) from error
