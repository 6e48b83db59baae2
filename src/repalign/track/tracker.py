"""Score a live model against a panel, step by step."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import repalign.null as nulls
from repalign.comparison import DEFAULT_MEASURES
from repalign.errors import RepalignError, choose
from repalign.files import cannot_write, read_bytes, write_file
from repalign.layers import as_features
from repalign.measures import Measure, ParticipationRatioDifference, parse_measure
from repalign.measures.numerics.precision import gram, sharing
from repalign.track.panel import Panel
from repalign.track.processes import is_first, together
from repalign.track.reading import ALL, Forward, arranged, read, refuse_infinite, undisturbed, without_autocast

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SEARCH, FIXED, CELL = "search", "fixed", "cell"
COLUMNS = (
    "step", "reference", "measure", "scope", "layer", "reference_layer", "statistic", "null_mean", "z", "pvalue", "n", "loss",
    "rankme", "participation", "seconds", "panel",
)  # fmt: skip
TEXTS = ("reference", "measure", "scope", "layer", "reference_layer", "panel")
LINES = (".csv", ".jsonl")  # a line for each row, appended to
FORMATS = (*LINES, ".parquet")
Row = dict[str, Any]


def rankme(x: Any) -> float:
    """RankMe of x (n, d): exp(-sum p ln p), p = s / sum s + 1e-7, over the singular values s of the rows as they are.

    In [1, min(n, d)]: the number of dimensions that the rows fill. nan if all are 0. A collapse shows as a fall.
    Source: Garrido et al. 2023 (arXiv 2210.02885), equation 1.

    >>> round(rankme([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 4)
    2.0
    """
    x = as_features(x).double()
    s = _squares(x).clamp_min(0).sqrt()
    if not (total := float(s.sum())) > 0:
        return math.nan
    p = s / total + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def _squares(x: Tensor) -> Tensor:
    """The squared singular values of x (n, d) in float64, from the products of its shorter side.

    On the CPU by LAPACK as scipy has it: in two thirds of the time that torch takes.
    """
    if x.device.type != "cpu":
        return torch.linalg.eigvalsh(gram(x.T if x.shape[1] <= len(x) else x))
    from scipy.linalg import blas, eigh

    square = blas.dsyrk(1.0, x.numpy().T, trans=x.shape[1] > len(x))  # one triangle  # pyright: ignore[reportAttributeAccessIssue]
    return torch.from_numpy(eigh(square, lower=False, eigvals_only=True, driver="ev", overwrite_a=True, check_finite=False))


def _null(measure: Measure, n: int, seed: int) -> nulls.Null:
    """That of `auto`; where it has closed forms, these alone judge: what n draws tell cannot be less than 1 / n."""
    null = nulls.Auto(seed=seed).resolve(measure, n)
    return nulls.Closed(null.sampler) if isinstance(null, nulls.Moments) else null


class Tracker:
    """Scores of a model in training against frozen references, each with its chance level.

    Parameters
    ----------
    panel : the references, and the ids of the stimuli.
    measures : measures or their names.
    layers : which layers of the live model: "all", the hidden states of a model of transformers or else the children of a
        module; names or patterns of modules ("blocks.*"); or a function(model, batch) that gives {layer: (b, d)}.
    pooling : of tokens, over those that the batch's `attention_mask` counts: "mean" (default; of a causal model without the first
        token, which sees itself alone), "cls" or "last". Maps are averaged over their places.
    fixed : the layer that is followed beside the searched one; by default the best of the first step, of each reference
        and measure.
    file : a .csv or .jsonl (appended to) or .parquet file with the table. If it is there, it is continued.
    strict : raise what goes wrong. By default it is logged, the step's rows are NaN, and training goes on.
    device : where layers are compared. seed : of the shuffles, where some are drawn.

    Raises RepalignError for a measure that the panel is too small for, and for a file of another panel.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((60, 8))
    >>> tracker = Tracker(Panel.of({"target": x}), ["CKA()"])
    >>> row = tracker.score_features({"block.0": x[:, :4]}, step=0)
    >>> row["repalign/CKA/target/layer"], row["repalign/CKA/target/p"] < 0.01
    ('block.0', True)
    """

    def __init__(
        self, panel: Panel, measures: Sequence[Measure | str] | Measure | str = DEFAULT_MEASURES,
        layers: str | Sequence[str] | Forward = ALL, *, pooling: str | None = None, fixed: str | None = None,
        file: str | Path | None = None, strict: bool = False, device: str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        self.panel, self.layers, self.pooling, self.strict, self.device = panel, layers, pooling, strict, device
        if pooling is not None:
            choose("pooling", pooling, ("mean", "cls", "last"))
        given = [measures] if isinstance(measures, (Measure, str)) else list(measures)
        self.measures = list(dict.fromkeys(m if isinstance(m, Measure) else parse_measure(m) for m in given))
        names = [type(m).__name__ for m in self.measures]
        self.called = {m: name if names.count(name) == 1 else repr(m) for m, name in zip(self.measures, names, strict=True)}
        for measure in self.measures:
            measure.check(panel.n, "the panel")
        self.nulls = {m: _null(m, panel.n, seed) for m in self.measures}
        self.fixed = fixed
        self.chosen: dict[tuple[str, str], tuple[str, str]] = {}  # (reference, measure) -> its fixed layers
        self.rows: list[Row] = []
        self.sinks: list[Callable[[dict[str, float], int], Any]] = []
        ends = np.cumsum([0, *map(len, panel.references.values())]).tolist()
        self._columns = [slice(*both) for both in pairwise(ends)]  # of each reference: its layers among those of all
        with torch.no_grad(), without_autocast():
            self._references = self._prepared(x for layers in panel.references.values() for x in layers.values())[0]
        self.file, self.is_torn = None if file is None else Path(file), False
        if self.file is not None:
            choose("format", _suffix(self.file), FORMATS, f"{self.file.name}: a table of unknown format")
            self._resume(self.file)

    # --- scores --------------------------------------------------------------------------------------

    def score(self, model: Any, batches: Any, *, step: int, loss: float | None = None, keep: bool = True) -> dict[str, Any]:
        """Run the model on all stimuli of the panel, and score it.

        batches : pairs (ids, batch), a list or anything that can be gone through again, or a function that gives one. A batch is
            what the model takes: a mapping (as keywords), a tuple, or one tensor. Ids that the panel does not have are left out.
        keep : False for the numbers alone, without rows in the table.

        The model is run in eval mode without gradients; its modes and all random states are put back. Where several processes run
        (torch.distributed), each feeds its share; rows are joined by id, scored once, and all get the same numbers.

        Returns one flat mapping: repalign/MEASURE/REFERENCE, the score at the layer that the search finds; with /layer, /z and /p;
        /fixed, the score of the fixed layer; and repalign/rankme/LAYER.
        """
        return self._step(lambda: read(model, batches, self.layers, self.pooling, self.device), model, step, loss, keep)

    def score_features(
        self, features: Mapping[str, Any], *, ids: Sequence[Any] | None = None, step: int, loss: float | None = None
    ) -> dict[str, Any]:
        """As `score`, of features {layer: (n, d)} from anywhere. ids : of the rows; only a panel without ids can do without."""

        def given() -> tuple[list[str], dict[str, Tensor]]:
            if ids is None and self.panel.named:
                raise RepalignError("nothing says which row is which", expected="ids, one for each row", got="a panel with ids",
                                    remedy="pass ids=panel.ids if the rows are in its order")  # fmt: skip
            layers = {name: torch.as_tensor(x).detach().to(self.device) for name, x in features.items()}
            rows = list(self.panel.ids) if ids is None else list(map(str, ids))
            for name, x in layers.items():
                if x.ndim != 2 or len(x) != len(rows):
                    raise RepalignError(f"layer {name}: not one vector for each of the ids", expected=f"({len(rows)}, d)",
                                        got=f"shape {tuple(x.shape)}")  # fmt: skip
            return rows, layers

        return self._step(given, None, step, loss)

    def table(self) -> pd.DataFrame:
        """All rows so far, tidy: for every step, reference and measure one of the search over layers, one of the fixed layer, and
        one of each pair of layers (`scope`: search, fixed, cell)."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def log_to(self, fn: Callable[[dict[str, float], int], Any]) -> Tracker:
        """Call fn(numbers, step) after every step, for instance `run.log` of wandb; only the first process does."""
        self.sinks.append(fn)
        return self

    def _step(
        self, features: Callable[[], tuple[list[str], dict[str, Tensor]]], model: Any, step: int, loss: float | None,
        keep: bool = True,
    ) -> Row:  # fmt: skip
        """One step, whatever goes wrong in it."""
        rows: list[Row] = []
        try:
            with undisturbed(model):
                rows = together(features, lambda ids, layers: self._scored(ids, layers, step, loss))
        except Exception as error:
            if self.strict:
                raise
            log.warning("step %d is not scored: %s", step, error)
            rows = self._undefined(step, loss)
        numbers = self._flat(rows)
        if keep:
            self._keep(rows)
        if keep and is_first():
            self._tell(numbers, step)
        return numbers

    def _tell(self, numbers: Row, step: int) -> None:
        told = {name: value for name, value in numbers.items() if isinstance(value, float)}
        for sink in self.sinks:
            try:
                sink(told, step)
            except Exception as error:
                if self.strict:
                    raise
                log.warning("step %d is not logged by %r: %s", step, sink, error)

    def _scored(self, ids: Sequence[str], layers: Mapping[str, Tensor], step: int, loss: float | None) -> list[Row]:
        if not layers:
            raise RepalignError("no layer was read", expected="at least one batch, and one layer", got="none",
                                remedy="pass a list of batches: a generator is used up after one step")  # fmt: skip
        start = time.perf_counter()
        with without_autocast(torch.device(self.device).type):
            layers = {name: x.to(self.device) for name, x in arranged(ids, layers, self.panel.ids).items()}
            refuse_infinite(layers, self.panel.ids, step)
            live, participations = self._prepared(layers.values())
            ranks = zip(layers, map(rankme, layers.values()), participations, strict=True)
            spectra = {name: {"rankme": rank, "participation": some} for name, rank, some in ranks}
            judged = [
                self.nulls[m].judge_each(m, live[m], self._references[m], self._columns, asked=self._followed(m, list(layers)))
                for m in self.measures
            ]
            rows: list[Row] = []
            for reference, by_measure in zip(self.panel.references, zip(*judged, strict=True), strict=True):
                for measure, one in zip(self.measures, by_measure, strict=True):
                    rows += self._rows_of(one, list(layers), reference, measure)
        same = {"step": step, "n": self.panel.n, "loss": math.nan if loss is None else float(loss),
                "seconds": time.perf_counter() - start, "panel": self.panel.digest[:12]}  # fmt: skip
        none = {"rankme": math.nan, "participation": math.nan}
        return [{name: {**row, **spectra.get(row["layer"], none), **same}[name] for name in COLUMNS} for row in rows]

    def _prepared(self, layers: Iterable[Tensor]) -> tuple[dict[Measure, nulls.Prepared], list[float]]:
        """The states of all layers for all measures, once; and the participation ratio of each, from the same products."""
        states: dict[Measure, list[Any]] = {m: [] for m in self.measures}
        participations = []
        for x in layers:
            x = as_features(x).to(self.device)
            with sharing(x):
                for measure, some in states.items():
                    some.append(measure.prepare(x))
                participations.append(ParticipationRatioDifference().statistic(x))
        return {m: self.nulls[m].prepare(m, some) for m, some in states.items()}, participations

    def _followed(self, measure: Measure, layers: list[str]) -> set[int]:
        """The layers whose p-values are asked for, whatever the search finds."""
        names = {one for (_, by), (one, _) in self.chosen.items() if by == repr(measure)} | {self.fixed}
        return {i for i, name in enumerate(layers) if name in names}

    def _rows_of(self, judged: nulls.Judgement, layers: list[str], reference: str, measure: Measure) -> list[Row]:
        """The rows of the search, of the fixed layer, and of every pair of layers."""
        theirs = list(self.panel.references[reference])
        same = {"reference": reference, "measure": repr(measure)}

        def row(scope: str, i: int, j: int, found: nulls.Calibration, *at: int) -> Row:
            numbers = {name: float(getattr(found, name)[at]) for name in ("statistic", "null_mean", "z", "pvalue")}
            names = {"layer": layers[i] if i >= 0 else "", "reference_layer": theirs[j] if j >= 0 else ""}
            return {**same, "scope": scope, **names, **numbers}

        whole, cells = judged.found, judged.cells
        every = [row(CELL, i, j, cells, i, j) for i in range(len(layers)) for j in range(len(theirs))]
        out = [row(SEARCH, whole.layer_x, whole.layer_y, whole.calibration)]
        key = reference, repr(measure)
        if key not in self.chosen:
            if self.fixed is not None:
                choose("layer", self.fixed, layers, f"no layer {self.fixed!r} to follow")
            among = [one for one in every if self.fixed in (None, one["layer"]) and one["statistic"] == one["statistic"]]
            if among:  # the best in units of its own chance level, as the search takes it
                high = [one["z"] if one["z"] == one["z"] else float(measure.closeness(one["statistic"])) for one in among]
                best = among[high.index(max(high))] if self.fixed or whole.layer_x < 0 else out[0]
                self.chosen[key] = best["layer"], best["reference_layer"]
        followed = [one for one in every if (one["layer"], one["reference_layer"]) == self.chosen.get(key)]
        return out + [{**one, "scope": FIXED} for one in followed] + every

    def _undefined(self, step: int, loss: float | None) -> list[Row]:
        """A row of NaN for every reference and measure."""
        same: Row = dict.fromkeys(COLUMNS, math.nan) | dict.fromkeys(TEXTS, "") | {"scope": SEARCH, "step": step, "n": self.panel.n}
        same |= {"loss": math.nan if loss is None else float(loss), "panel": self.panel.digest[:12]}
        return [{**same, "reference": name, "measure": repr(m)} for name in self.panel.references for m in self.measures]

    def _flat(self, rows: Sequence[Row]) -> Row:
        """The rows of a step as one mapping."""
        called, out = {repr(m): name for m, name in self.called.items()}, {}
        for row in rows:
            name = f"repalign/{called[row['measure']]}/{row['reference']}"
            if row["scope"] == SEARCH:
                out |= {name: row["statistic"], f"{name}/layer": row["layer"], f"{name}/z": row["z"], f"{name}/p": row["pvalue"]}
            elif row["scope"] == FIXED:
                out[f"{name}/fixed"] = row["statistic"]
            else:
                out[f"repalign/rankme/{row['layer']}"] = row["rankme"]
        return out

    # --- the table -----------------------------------------------------------------------------------

    def _keep(self, rows: list[Row]) -> None:
        """Add the rows of a step, in the place of those that it had."""
        steps = {row["step"] for row in rows}
        again = any(row["step"] in steps for row in self.rows)
        self.rows = [row for row in self.rows if row["step"] not in steps] + rows
        if self.file is None or not is_first():
            return
        try:
            if _suffix(self.file) in LINES and not again and not self.is_torn and self.file.is_file():
                self.is_torn = True  # until all of it is on the disk; else the next step writes the whole table
                with self.file.open("a", encoding="utf-8", newline="") as handle:
                    handle.write(_lines(rows, _suffix(self.file)))
                    handle.flush()
                    os.fsync(handle.fileno())
            else:
                self._write(self.file)
            self.is_torn = False
        except (OSError, RepalignError) as error:
            if self.strict:
                raise error if isinstance(error, RepalignError) else cannot_write(self.file, error) from error
            log.warning("%s is not written: %s", self.file, error)

    def _write(self, path: Path) -> None:
        """The whole table, whole or not at all."""
        if (suffix := _suffix(path)) in LINES:
            head: list[Row] = [dict(zip(COLUMNS, COLUMNS, strict=True))] if suffix == ".csv" else []
            write_file(path, _lines([*head, *self.rows], suffix))
            return
        import pyarrow as pa

        from repalign.files import seal_parquet

        write_file(path, seal_parquet(pa.Table.from_pandas(self.table(), preserve_index=False)))

    def _resume(self, path: Path) -> None:
        """Take the rows of an earlier run; a line that was cut off in a crash is left out, with its step."""
        if not path.is_file():
            return
        self.rows = _read_lines(path) if _suffix(path) in LINES else _read_parquet(path)
        others = {row["panel"] for row in self.rows} - {self.panel.digest[:12]}
        if others:
            raise RepalignError(f"{path} is of another panel", expected=f"panel {self.panel.digest[:12]}",
                                got=", ".join(sorted(others)), remedy="name another file")  # fmt: skip
        for row in self.rows:
            if row["scope"] == FIXED:
                self.chosen.setdefault((row["reference"], row["measure"]), (row["layer"], row["reference_layer"]))
        if is_first() and _suffix(path) in LINES:
            self._write(path)  # without what was cut off


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _lines(rows: Sequence[Row], suffix: str) -> str:
    if suffix == ".jsonl":  # which has no NaN
        return "".join(json.dumps({k: row[k] if row[k] == row[k] else None for k in COLUMNS}) + "\n" for row in rows)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([row[name] for name in COLUMNS] for row in rows)
    return out.getvalue()


def _read_lines(path: Path) -> list[Row]:
    text = read_bytes(path, "name another file").decode("utf-8", "replace")  # a crash may cut within a letter
    whole = text[: text.rfind("\n") + 1]
    try:
        if _suffix(path) == ".jsonl":
            found = [dict(json.loads(line)) for line in whole.splitlines()]
            head, lines = list(found[0]) if found else COLUMNS, [list(one.values()) for one in found]
        else:
            head, *lines = list(csv.reader(io.StringIO(whole))) or [[]]
        if tuple(head) != COLUMNS:
            raise _no_table(path, head)
        rows = [_typed(dict(zip(COLUMNS, line, strict=True))) for line in lines]
    except (ValueError, TypeError) as error:
        raise RepalignError(f"{path} is damaged", expected="a row of a tracker in each line", got=str(error)[:120],
                            remedy="name another file, or take this line out") from error  # fmt: skip
    if len(whole) == len(text):
        return rows
    return [row for row in rows if row["step"] != rows[-1]["step"]]  # the step that was being written is scored again


def _typed(row: dict[str, Any]) -> Row:
    """The values of a line; null is NaN."""
    kinds: dict[str, Callable[[Any], Any]] = {**dict.fromkeys(TEXTS, str), "step": int, "n": int}
    return {name: kinds.get(name, float)(math.nan if value is None else value) for name, value in row.items()}


def _read_parquet(path: Path) -> list[Row]:
    from repalign.files import read_parquet

    found = read_parquet(path, "name another file")[0]
    if tuple(found.column_names) != COLUMNS:
        raise _no_table(path, found.column_names)
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in found.to_pylist()]


def _no_table(path: Path, got: Sequence[str]) -> RepalignError:
    return RepalignError(f"{path} is no table of a tracker", expected=", ".join(COLUMNS), remedy="name another file",
                         got=", ".join(got) or "nothing")  # fmt: skip


def when(every: str | int, times: tuple[str, ...]) -> str | int:
    """One of the times, or a number of steps."""
    if every in times or (isinstance(every, int) and not isinstance(every, bool) and every > 0):
        return every
    raise RepalignError("nothing says when to score", expected=f"{', '.join(times)}, or a number of steps", got=repr(every))
