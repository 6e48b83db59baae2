"""The result: one tidy table, what was run, and views of it; kept in a folder that anyone can open."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from repalign import text as words
from repalign.errors import RepalignError, choose
from repalign.files import (
    FILES,
    DamagedError,
    Url,
    check_files,
    file_sha256,
    open_files,
    place_of,
    read_json,
    read_parquet,
    seal_json,
    write_file,
    write_parquet,
)
from repalign.measures import Measure, MeasureFacts, facts_of, labels_of, measure_among

log = logging.getLogger(__name__)

# One row per pair of layers (scope "cell") and one per pair of models (scope "max": the layer search).
# p_stepdown is over the pairs of layers of one pair of models (family-wise) and stands in "cell" rows; p_maxt, p_holm
# (family-wise), p_bh and p_by (false discovery rate) are over the pairs of models of one measure, in "max" rows. Chance in a
# "max" row (null_mean, null_std, z, ...) is the chance of the search, also where a bound gives it: `ways`.
_TEXT, _WHOLE, _NUMBER = pa.string(), pa.int64(), pa.float64()
SCHEMA = pa.schema([
    ("dataset", _TEXT), ("dataset_fingerprint", _TEXT), ("n", _WHOLE),
    ("model_x", _TEXT), ("layer_x", _TEXT), ("index_x", _WHOLE), ("model_y", _TEXT), ("layer_y", _TEXT), ("index_y", _WHOLE),
    ("measure", _TEXT), ("scope", _TEXT), ("statistic", _NUMBER), ("null_mean", _NUMBER), ("null_std", _NUMBER), ("z", _NUMBER),
    ("pvalue", _NUMBER), ("threshold", _NUMBER), ("calibrated", _NUMBER), ("p_stepdown", _NUMBER), ("p_maxt", _NUMBER),
    ("p_holm", _NUMBER), ("p_bh", _NUMBER), ("p_by", _NUMBER),
    ("null", _TEXT), ("n_draws", _WHOLE), ("seed", _WHOLE), ("search", _TEXT),
])  # fmt: skip
COLUMNS = tuple(SCHEMA.names)
ADDED: frozenset[str] = frozenset()  # columns that results of before lack: null where they are read

DRAWS = pa.field("draws", pa.list_(pa.float64()))
TILE_SCHEMA = SCHEMA.append(DRAWS)
# What is written at once: rows of the table, and draws, of 8 bytes each. Each is a row group of its file.
AT_ONCE = 2**20
DRAWS_SCHEMA = pa.schema([("measure", pa.string()), ("model_x", pa.string()), ("model_y", pa.string()), DRAWS])

# A mock run says so in the name of its dataset, which stands in every row of its table and in its store.
MOCK_OF = "mock of "

TABLE_FILE = "results.parquet"
DRAWS_FILE = "draws.parquet"
RUN_FILE = "run.json"
ASKED = "asked"  # in it: a digest of all that a result follows from; whoever changes the file leaves it out
ENDS = ("measure", "model_x", "model_y")  # what names a score of the layer search
REMEDY = "run the same command again: it writes the result anew, and keeps the finished tiles"


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

    @property
    def about(self) -> dict[str, MeasureFacts]:
        """Facts of every measure by its text: its name for people, family, meaning and direction."""
        return about_of(self.run, self.measures)

    def cells(self, measure: Measure | str | None = None) -> pd.DataFrame:
        """All pairs of layers, one row each."""
        return self.table[self.table["scope"] == "cell"].reset_index(drop=True) if measure is None else self.rows("cell", measure)

    def rows(self, scope: str = "max", measure: Measure | str | None = None) -> pd.DataFrame:
        """The rows of one scope and one measure, the first by default."""
        return rows_of(self.table, scope, measure)

    def best(self, measure: Measure | str | None = None) -> pd.DataFrame:
        """The layer search of every pair of models, one row each, the farthest above chance first within a measure."""
        found = self.table[self.table["scope"] == "max"] if measure is None else rows_of(self.table, "max", measure)
        order = {m: i for i, m in enumerate(self.measures)}
        by, up = ["measure", "calibrated", "z", "statistic"], [True, False, False, False]
        found = found.sort_values(by, ascending=up, key=lambda c: c.map(order) if c.name == "measure" else c)
        return found.reset_index(drop=True)

    def matrix(self, measure: Measure | str | None = None, value: str = "statistic") -> pd.DataFrame:
        """Models by models, `value` of the layer search ("statistic", "null_mean", "calibrated", "pvalue", ...)."""
        return _grid(rows_of(self.table, "max", measure), "model", value)

    def layer_map(
        self, model_x: str | None = None, model_y: str | None = None, measure: Measure | str | None = None,
        value: str = "statistic",
    ) -> pd.DataFrame:  # fmt: skip
        """Layers by layers of one pair of models (the only or first one by default)."""
        cells = rows_of(self.table, "cell", measure)
        for side, model in (("model_x", model_x), ("model_y", model_y)):
            known = list(dict.fromkeys(cells[side]))
            chosen = known[0] if model is None else model
            cells = cells[cells[side] == choose(side, chosen, known, f"no {side} {chosen!r} in the result")]
        return _grid(cells, "layer", value)

    def to_csv(self, path: str | Path | Url) -> Path | Url:
        """Write the whole table as CSV: a row for each pair of layers, and one for the best of each pair of models."""
        write_file(place_of(path), csv_text(self.table))
        return place_of(path)

    def to_latex(self, path: str | Path | Url | None = None, measure: Measure | str | None = None) -> str:
        """The best pair of layers of every pair of models as a LaTeX table of the package booktabs; also written to `path`.

        Of all measures, or of one. Names are escaped, and numbers stand as they do in figures and the report.
        """
        text = latex_text(self, self.best(measure))
        if path is not None:
            write_file(place_of(path), text)
        return text

    def save(self, folder: str | Path | Url) -> Path | Url:
        """Write results.parquet, draws.parquet and run.json into a folder, local or behind an fsspec URL, each whole.

        run.json comes last and holds the SHA-256 of the tables: until it is there, the folder has no result that loads.
        """
        folder = place_of(folder)
        open_files(folder).sweep()
        digests = {TABLE_FILE: write_parquet(folder / TABLE_FILE, _table_parts(self.table))}
        if self.draws is not None:
            digests[DRAWS_FILE] = write_parquet(folder / DRAWS_FILE, _draws_parts(self.draws))
        write_file(folder / RUN_FILE, seal_json({**self.run, FILES: digests}, sort_keys=True))
        if self.draws is None:
            open_files(folder).remove(DRAWS_FILE)  # of an earlier run
        return folder

    def save_run(self, folder: str | Path | Url) -> Path | Url:
        """Write run.json anew into the folder that this was loaded from; its tables stay."""
        folder = place_of(folder)
        Alignment.load(folder)
        names = [TABLE_FILE, *([] if self.draws is None else [DRAWS_FILE])]
        digests = {name: file_sha256(folder / name) for name in names}
        write_file(folder / RUN_FILE, seal_json({**self.run, FILES: digests}, sort_keys=True))
        return folder

    @classmethod
    def load(cls, folder: str | Path | Url) -> Alignment:
        """Read what `save` wrote, in a folder or behind an fsspec URL.

        A result from before there were seals is read with a warning in the log.

        Raises RepalignError, naming the file, where one is missing, is not what was written, or is of another run.
        """
        folder = place_of(folder)
        for file in (TABLE_FILE, RUN_FILE):
            if not (folder / file).is_file():
                raise RepalignError(
                    f"{folder}: not a finished result", expected=f"files {TABLE_FILE} and {RUN_FILE}", got=f"no {file}",
                    remedy="name the results folder of a finished run, or run the study again: it resumes",
                )  # fmt: skip
        run, has_seal = read_json(folder / RUN_FILE, REMEDY)
        stated, _ = run.pop(FILES, None), run.pop(ASKED, None)
        if has_seal and not isinstance(stated, dict):
            raise DamagedError(folder / RUN_FILE, "describes no alignment", expected=f"an entry {FILES!r}", remedy=REMEDY)
        if stated is None:
            log.warning("%s: this result was written before results had seals: nothing shows whether it is whole", folder)
            stated = {name: None for name in (TABLE_FILE, DRAWS_FILE) if (folder / name).is_file()}
        table = _read_table(folder / TABLE_FILE, SCHEMA, stated.get(TABLE_FILE))
        draws = _read_table(folder / DRAWS_FILE, DRAWS_SCHEMA, stated[DRAWS_FILE]) if DRAWS_FILE in stated else None
        return cls(with_ends(table, run), run, draws)

    def __repr__(self) -> str:
        about, lines = self.about, []
        for row in self.best().itertuples():
            score, chance = words.alike(row.statistic, row.null_mean)
            sides = f"{row.model_x} [{row.layer_x}] ~ {row.model_y} [{row.layer_y}]"
            beside = f"chance {chance}, n = {row.n}, {words.p_sentence(row.pvalue)}"
            lines.append(f"{sides}  {about[row.measure].label}: {score} ({beside})")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return words.html_of(self)


def rows_of(table: pd.DataFrame, scope: str = "max", measure: Measure | str | None = None) -> pd.DataFrame:
    """The rows of one scope ("max": pairs of models, "cell": pairs of layers) and one measure, the first by default.

    The measure goes by whatever `compare` takes for it: a measure, its text, a name ("cka"); or by its label.
    """
    known = table.loc[table["scope"] == scope, "measure"].unique().tolist()
    if not known:
        raise RepalignError("there is nothing to show", expected=f"a table with rows of scope {scope!r}", got="no such rows")
    chosen = known[0] if measure is None else measure_among(measure, known)
    return table.loc[(table["scope"] == scope) & (table["measure"] == chosen)].reset_index(drop=True)


def _grid(rows: pd.DataFrame, of: str, value: str) -> pd.DataFrame:
    """A column of some rows by the models, or the layers, of both sides in their order; "gain" is the score minus its chance."""
    choose("column", value, (*COLUMNS, "gain"), f"the result has no column {value!r}")
    rows = rows.assign(gain=rows["statistic"] - rows["null_mean"])
    first, second = (list(dict.fromkeys(rows[f"{of}_{side}"])) for side in "xy")
    return rows.pivot(index=f"{of}_x", columns=f"{of}_y", values=value).reindex(index=first, columns=second)


def with_ends(table: pd.DataFrame, run: Mapping[str, Any]) -> pd.DataFrame:
    """The table with the columns low and high where the run has intervals of the scores of pairs of models."""
    found = {tuple(one[k] for k in ENDS): one for one in run.get("intervals") or ()}
    if not found:
        return table
    rows = (found.get(tuple(key), {}) if scope == "max" else {} for scope, *key in table[["scope", *ENDS]].itertuples(index=False))
    ends = pd.DataFrame([(one.get("low"), one.get("high")) for one in rows], table.index, ["low", "high"], dtype=float)
    return table.assign(low=ends["low"], high=ends["high"])


def about_of(run: Mapping[str, Any], measures: Iterable[str]) -> dict[str, MeasureFacts]:
    """Facts of these measures, from the run, or from their text if it is an older run; each with the label it has in this run."""
    known, measures = run.get("about") or {}, list(measures)
    facts = {m: MeasureFacts.from_dict(known[m]) if m in known else facts_of(m) for m in measures}
    labels = labels_of(dict.fromkeys([*known, *measures]))
    return {m: replace(one, label=labels[m]) if labels[m] != facts_of(m).label else one for m, one in facts.items()}


def is_mock(table: pd.DataFrame) -> bool:
    """Whether a table is of a mock run: of stand-ins and generated data, so that its numbers mean nothing."""
    return "dataset" in table and any(str(name).startswith(MOCK_OF) for name in table["dataset"].unique())


def _table_parts(table: pd.DataFrame) -> Iterator[pa.Table]:
    """The table, of many rows in parts."""
    for start in range(0, max(1, len(table)), AT_ONCE):
        yield pa.Table.from_pandas(table.iloc[start : start + AT_ONCE], SCHEMA, preserve_index=False)


def _draws_parts(draws: pd.DataFrame) -> Iterator[pa.Table]:
    """The draws as a table, of many pairs of models in parts."""
    lengths = draws[DRAWS.name].map(len).to_numpy(int)
    few = max(1, AT_ONCE // max(1, lengths.max(initial=0)))
    for start in range(0, max(1, len(draws)), few):
        part, ends = draws.iloc[start : start + few], np.cumsum([0, *lengths[start : start + few]], dtype=np.int32)
        values = pa.array(np.concatenate([np.empty(0), *part[DRAWS.name]]), from_pandas=True)
        names = pa.Table.from_pandas(part, DRAWS_SCHEMA.remove(len(DRAWS_SCHEMA) - 1), preserve_index=False)
        yield names.append_column(DRAWS, pa.ListArray.from_arrays(pa.array(ends), values))


def _read_table(path: Path | Url, schema: pa.Schema, stated: str | None) -> pd.DataFrame:
    """A table of these columns, and the one of which run.json speaks (None: a run.json from before there were seals)."""
    if stated is not None:
        check_files(path.parent, {path.name: stated}, RUN_FILE, REMEDY)
    table, _, has_seal = read_parquet(path, REMEDY)
    if has_seal and stated is None:
        raise DamagedError(path, f"is newer than {RUN_FILE}: a run was stopped while it wrote", remedy=REMEDY)
    return as_table(table, schema, path).to_pandas()


def as_table(table: pa.Table, schema: pa.Schema, path: object) -> pa.Table:
    """The table in this schema, of the file at `path`. Raises DamagedError where it has other columns."""
    for name in ADDED.intersection(schema.names).difference(table.column_names):
        table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        what = f"lacks the column {missing[0]!r}" if missing else f"has an unknown column {extra[0]!r}"
        raise DamagedError(path, f"{what}: another version of repalign wrote it", remedy=REMEDY)
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DamagedError(path, "has columns of another type", got=str(error).splitlines()[0], remedy=REMEDY) from error


def kept(path: Path | Url, key: str) -> Any:
    """Read what `keep` wrote under this key; None if there is no such file, and, with a warning in the log, if it is damaged."""
    try:
        entry, has_seal = read_json(path)
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        log.warning("%s %s; it is made again", path, error.problem)
        return None
    return entry.get("value") if has_seal and entry.get("key") == key else None


def kept_in(folder: Path | Url) -> dict[str, Any]:
    """What `keep` wrote into a folder, by key; without what is damaged."""
    names = (name.removesuffix(".json") for name in open_files(folder).listing() if name.endswith(".json") and name[0] != ".")
    return {key: value for key in names if (value := kept(folder / f"{key}.json", key)) is not None}


def keep(path: Path | Url, key: str, value: Any) -> None:
    """Write a sealed value next to the tiles of a run, with its key."""
    write_file(path, seal_json({"key": key, "value": value}, indent=None))


# --- tables as text ------------------------------------------------------------------------------

# The beginning of what a spreadsheet takes for a formula, but for a number.
_FORMULA = re.compile(r"\A(?![+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z)(?='*[=+\-@\t\r])")


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV that a spreadsheet shows and does not run: text that begins like a formula gets an apostrophe.

    Numbers stay as they are, also those in text. `from_csv_cell` takes the apostrophe away.
    """
    safe, quoting = frame.set_axis([_FORMULA.sub("'", str(name)) for name in frame.columns], axis=1), csv.QUOTE_MINIMAL
    for i, kind in enumerate(safe.dtypes):
        if not (pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind)):
            cells = [_FORMULA.sub("'", value) if isinstance(value, str) else value for value in safe.iloc[:, i]]
            safe.isetitem(i, pd.Series(cells, safe.index, dtype=object))
            if any(isinstance(cell, str) and "\r" in cell for cell in cells):
                quoting = csv.QUOTE_NONNUMERIC  # alone it is not quoted, and ends a row for many readers
    return safe.to_csv(index=False, lineterminator="\n", quoting=quoting)


def from_csv_cell(text: str) -> str:
    """A text as it was before `csv_text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text[1:]) else text


# What LaTeX does not take as it stands, in names and in numbers.
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "−": "$-$", "≤": r"$\le$", "×": r"$\times$", "–": "--",
}  # fmt: skip
_POWER = re.compile(r"e(?:\$(-)\$)?(\d+)")


def latex_text(alignment: Alignment, rows: pd.DataFrame) -> str:
    """Rows of pairs of models as a LaTeX table, with the adjusted p that decides where there are several pairs."""
    from repalign.comparison.conventions import VIEWS, Conventions, Pairs, text_of  # which imports this module

    told = {m: Pairs.of(alignment.table, m, Conventions.of(alignment.run)) for m in rows["measure"].unique()}
    rules = list(dict.fromkeys(some.rule for some in told.values() if some.tests > 1))
    heads = ["Model $x$", "Layer", "Model $y$", "Layer", "Measure", "$n$", "Score", "Chance", "$p$"]
    lines = [" & ".join([*heads, *(escaped(VIEWS[rule].label).replace("p", "$p$", 1) for rule in rules)])]
    for row in rows.to_dict("records"):
        some, layers = told[row["measure"]], [row[f"layer_{s}"] if row[f"index_{s}"] >= 0 else words.UNDEFINED for s in "xy"]
        score = words.interval(row["statistic"], row.get("low"), row.get("high"))
        numbers = [f"{row['n']:,}", score, *(text_of(view, row[view], some.draws) for view in ("null_mean", "pvalue", *rules))]
        cells = [escaped(name) for name in (row["model_x"], layers[0], row["model_y"], layers[1], some.about.label)]
        lines.append(" & ".join([*cells, *(_POWER.sub(r"$\\times 10^{\1\2}$", escaped(text)) for text in numbers)]))
    head, *body = (f"{line} \\\\" for line in lines)
    columns = "lllllr" + "r" * (3 + len(rules))
    begin, end = f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule", "\\bottomrule\n\\end{tabular}\n"
    return "\n".join([begin, head, "\\midrule", *body, end])


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return "".join(_LATEX.get(c, c) for c in text)
