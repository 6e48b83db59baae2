"""Scores that others have measured: result files of lm-evaluation-harness, timm's tables, any CSV; joined to models."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from repalign.comparison.alignment import Alignment, from_csv_cell
from repalign.errors import RepalignError, choose, did_you_mean, first_line
from repalign.models import ModelRecord, known_models
from repalign.sources import parse_spec
from repalign.tables import is_missing, read_table

# The paper's two tasks under the names that `COMPETENCES` has. It states no metric: its values of HellaSwag are plain `acc`
# by their size; of GSM8K the strict match is the harness's first.
CHOSEN = {
    "hellaswag": ("acc,none", "acc"), "gsm8k": ("exact_match,strict-match", "exact_match,get-answer", "acc"),
    "truthfulqa_mc2": ("acc,none", "acc"),
}  # fmt: skip
BEFORE = {"truthfulqa_mc/mc2": "truthfulqa_mc2"}  # scores that versions before 0.4 held among the metrics of another task
NO_METRIC = ("alias", "name", "sample_len", "samples")  # what else stands among a task's metrics
OTHER_WEIGHTS = ("peft", "delta")  # arguments that make another model of the one that is named
# Columns by which timm's tables hold one model more than once, the first decides: side of the image, share of it that is seen.
INPUTS = ("img_size", "crop_pct")


@dataclass(frozen=True)
class Score:
    """One number of one model, as a file says it: the model's name there, the score's name, where it is from."""

    model: str
    name: str
    value: float
    source: str
    details: Mapping[str, Any] = field(default_factory=dict)


# --- readers -------------------------------------------------------------------------------------


def read_lm_eval(path: str | Path, chosen: Mapping[str, str] | None = None, *, partial: bool = False) -> list[Score]:
    """The scores of an lm-evaluation-harness result file (JSON), or of all `results_*.json` below a folder.

    Every metric becomes a score "task/metric" ("hellaswag/acc_norm", "gsm8k/exact_match,strict-match"; the filter is left
    out where it is "none"). `chosen` says which metric is also called by the task's name alone, for instance
    {"hellaswag": "acc_norm,none"}; without, HellaSwag's is "acc" and GSM8K's the strict match. Files of version 0.4 and of
    those before are read. The model is `pretrained` of the arguments, with "@revision" where they name one other than main.

    Raises RepalignError: no such file; no results; a chosen metric that a task lacks; a run on a part of the stimuli
    (`limit`), unless `partial`.
    """
    path = Path(path)
    files = sorted(path.rglob("results_*.json")) if path.is_dir() else [path]
    if not files:
        raise RepalignError(f"{path}: no results", expected="results_*.json in it or below", got="none")
    return [score for file in files for score in _lm_eval_file(file, chosen or {}, partial)]


def _lm_eval_file(path: Path, chosen: Mapping[str, str], partial: bool) -> list[Score]:
    try:
        held = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RepalignError(f"{path} cannot be read", expected="JSON", got=first_line(error)) from error
    results = held.get("results") if isinstance(held, dict) else None
    if not isinstance(results, dict) or not all(isinstance(found, dict) for found in results.values()):
        raise RepalignError(
            f"{path} is no result file of lm-evaluation-harness", expected="metrics by task under `results`",
            got=", ".join(held) if isinstance(held, dict) else type(held).__name__,
        )  # fmt: skip
    config = held.get("config") or {}
    limit = config.get("limit")
    if limit is not None and not partial:
        raise RepalignError(
            f"{path}: the run was on a part of the stimuli", expected="limit: null", got=f"limit: {limit}",
            remedy="say partial=True to take the scores all the same"
        )
    model, out = _lm_eval_model(path, held, config), []
    for task, metrics in results.items():
        shots = (held.get("n-shot") or {}).get(task, config.get("num_fewshot"))
        known = {m: v for m, v in metrics.items() if m not in NO_METRIC and "_stderr" not in m and _is_number(v)}
        for metric, value in known.items():
            name, _, rule = metric.partition(",")
            details = {"task": task, "metric": metric, "n_shot": shots, "limit": limit}
            error = metrics.get(f"{name}_stderr{',' + rule if rule else ''}")
            details["standard_error"] = float(error) if _is_number(error) else None
            label = name if rule in ("", "none") else metric
            out.append(Score(model, f"{task}/{label}", float(value), path.name, details))
            if (now := BEFORE.get(f"{task}/{label}")) is not None:
                out.append(Score(model, now, float(value), path.name, details))
            if metric == _chosen(task, known, chosen, path):
                out.append(Score(model, task, float(value), path.name, details))
    return out


def _chosen(task: str, known: Mapping[str, Any], chosen: Mapping[str, str], path: Path) -> str | None:
    """The metric that the task's name stands for."""
    if task not in chosen:
        return next((m for m in CHOSEN.get(task, ()) if m in known), None)
    return choose("metric", chosen[task], known, f"{path}: task {task} has no metric {chosen[task]!r}")


def _lm_eval_model(path: Path, held: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What the harness ran, as far as the file says it."""
    said = config.get("model_args") or ""
    pairs = said.items() if isinstance(said, Mapping) else (p.partition("=")[::2] for p in said.split(",") if "=" in p)
    arguments = {str(k).strip(): str(v).strip() for k, v in pairs}
    model = arguments.get("pretrained") or held.get("model_name")
    if not model:
        raise RepalignError(
            f"{path} does not say which model it is of", expected="pretrained=... in config.model_args, or model_name",
            got=said or "neither",
        )  # fmt: skip
    revision = arguments.get("revision")
    other = "".join(f"+{arguments[a]}" for a in OTHER_WEIGHTS if a in arguments)
    return f"{model}{'@' + revision if revision not in (None, 'main', 'None') else ''}{other}"


def read_timm(path: str | Path, name: str = "imagenet_top1", column: str = "top1") -> list[Score]:
    """A column of timm's results (`results-imagenet.csv`): in percent, under the score `name`.

    With other files (`results-imagenet-r.csv`) and columns give another name. A model stands there once for every size of
    its images (`img_size`); `join_scores` says which it takes.
    """
    return read_scores(path, {column: name})


def read_scores(path: str | Path, columns: Mapping[str, str] | None = None, *, model: str = "model") -> list[Score]:
    """A table (CSV, TSV, JSONL, Parquet) with a row per model: the column `model` (a name or spec), a score in every other.

    `columns` maps columns to names of scores, and leaves out all others; without, every other column is a score of its own
    name. An empty cell is no score. Units are the file's. The columns `img_size` and `crop_pct` of timm's tables are no
    scores: they say what a row is of, and a model may have a row for each.

    Raises RepalignError: no such file or column, a cell that is no finite number, a model twice.
    """
    path = Path(path)
    table = read_table(path, what="scores")
    # Cells as texts without blanks around them: "" where nothing stands.
    rows = [{c: "" if is_missing(v) else str(v).strip() for c, v in row.items()} for row in table.rows]
    names = table.columns
    inputs = [c for c in INPUTS if c in names and c not in (columns or ())]
    wanted = {c: c for c in names if c not in (model, *inputs)} if columns is None else dict(columns)
    for column in (model, *wanted):
        choose("column", column, names, f"{path}: no column {column!r}")
    out, seen = [], set()
    for number, row in enumerate(rows, 2):
        row[model] = from_csv_cell(row[model] or "")
        where = f"{path}, line {number}"
        fed = {c: _number(cell, f"{where}: {c}") for c in inputs if (cell := row.get(c, ""))}
        if not row.get(model):
            raise RepalignError(f"{where} names no model", expected=f"a name or a spec in column {model!r}", got="nothing")
        if (row[model], *fed.values()) in seen:
            raise RepalignError(
                f"{where}: model {row[model]!r} again", expected="one row per model" + " and img_size" * bool(inputs)
            )
        seen.add((row[model], *fed.values()))
        for column, name in wanted.items():
            if cell := row.get(column, ""):
                out.append(Score(row[model], name, _number(cell, f"{where}: {column}"), path.name, fed))
    return out


def _number(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RepalignError(
            f"{where} is no number", expected="a finite number, with a point", got=repr(cell),
            remedy="name the columns that are scores",
        )  # fmt: skip
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- scores that ship ----------------------------------------------------------------------------


@cache
def published_scores() -> tuple[Score, ...]:
    """Published scores of known models, each with its source: `published_scores.csv`, beside this module.

    HellaSwag (plain accuracy), GSM8K and TruthfulQA (MC2) of LLaMA and OpenLLaMA, as far as result files are public; ImageNet top-1
    of models of timm, from its own table at the size of image that a model takes by default. `details["how"]` says by what
    protocol: of some scores of one name it differs.

    Raises RepalignError for a row without a source, a model, a score or a finite number, and for one that stands there twice.
    """
    text = resources.files("repalign.competence").joinpath("published_scores.csv").read_text(encoding="utf-8")
    return tuple(shipped(text))


def shipped(text: str) -> list[Score]:
    """The scores of a table with the columns model, score, value, how and source, of which no cell is empty."""
    out: dict[tuple[str, str], Score] = {}
    for line, row in enumerate(csv.DictReader(text.splitlines()), 2):
        where = f"published scores, line {line}"
        if empty := [c for c in ("model", "score", "value", "how", "source") if not (row.get(c) or "").strip()]:
            raise RepalignError(f"{where} lacks its {empty[0]}", expected="a cell in each column", got=", ".join(empty))
        key = (row["model"], row["score"])
        if key in out:
            raise RepalignError(f"{where}: {key[1]} of {key[0]!r} again", expected="one row per model and score")
        out[key] = Score(*key, _number(row["value"], where), row["source"], {"how": row["how"]})
    return list(out.values())


# --- joining -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """Records with their scores; the names of records that got none, and of models of the file that met no record; in words
    which of several image sizes was taken."""

    records: tuple[ModelRecord, ...]
    without: tuple[str, ...]
    unused: tuple[str, ...]
    sizes: tuple[str, ...] = ()


def join_scores(
    records: Sequence[ModelRecord], scores: Iterable[Score], *, missing: str = "error", overwrite: bool = False,
    img_sizes: Mapping[str, int] | None = None,
) -> Joined:  # fmt: skip
    """Give models the scores that files have of them.

    A score is of a record if the model's name in the file is the record's name, its spec, or its spec without the scheme
    ("bigscience/bloomz-560m" for "hf:bigscience/bloomz-560m"; a revision counts, and none is main). Nothing else matches: no
    part of a name, no other case. Models of the file that no record is of are told in `unused`. Of a score that a file has at
    several image sizes, that at the record's size (`img_sizes`, by its name) is taken, or else at the largest; `sizes` says
    which.

    Raises RepalignError: a record without a score, unless `missing` is "skip"; a score that fits two records; two values of
    one score, in the files or, unless `overwrite`, in the record.
    """
    choose("missing", missing, ("error", "skip"))
    owners: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        for name in _names(record):
            owners.setdefault(name, []).append(i)
    found: list[dict[str, float]] = [{} for _ in records]
    unused, known = [], []
    chosen, sizes = _at_one_size(list(scores), img_sizes or {}, {n: records[i[0]].name for n, i in owners.items()})
    for score in chosen:
        known.append(score.model)
        mine = owners.get(score.model, [])
        if len(mine) > 1:
            raise RepalignError(
                f"{score.source}: {score.model!r} is more than one model", expected="one record of that name or spec",
                got=", ".join(f"{records[i].name} ({records[i].spec})" for i in mine),
                remedy="write the record's own name, or its whole spec, into the file"
            )
        if not mine:
            unused.append(score.model)
            continue
        before = found[mine[0]].setdefault(score.name, score.value)
        if before != score.value:
            raise RepalignError(
                f"{score.source}: two values of {score.name} for {score.model!r}", got=f"{before} and {score.value}",
                remedy="leave one of them out",
            )  # fmt: skip
    without = tuple(record.name for record, values in zip(records, found, strict=True) if not values)
    if without and missing == "error":
        lost = [record for record, values in zip(records, found, strict=True) if not values]
        raise RepalignError(
            f"no score of {len(lost)} of {len(records)} models, the first is {lost[0].name!r} ({lost[0].spec})",
            expected="its name, its spec, or its spec without the scheme among the models of the file",
            got=f"{len(set(known))} models, such as {', '.join(map(repr, list(dict.fromkeys(known))[:5]))}",
            remedy=_close(lost, known) or 'mend the names in the file, or say missing="skip"',
        )
    out = [_with(record, values, overwrite) for record, values in zip(records, found, strict=True)]
    return Joined(tuple(out), without, tuple(dict.fromkeys(unused)), sizes)


def _at_one_size(
    scores: Sequence[Score], img_sizes: Mapping[str, int], names: Mapping[str, str]
) -> tuple[list[Score], tuple[str, ...]]:
    """One score of each name for every model, and in words which size was taken where a file has several."""
    several: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if any(c in score.details for c in INPUTS):
            several.setdefault((score.source, score.model, score.name), []).append(score)
    taken, told = {}, {}
    for key, some in several.items():
        own = img_sizes.get(names.get(key[1], ""))
        best = max(some, key=lambda s: (s.details.get(INPUTS[0]) == own, *(s.details.get(c, 0.0) for c in INPUTS)))
        taken[key] = best
        if len(some) > 1 and key[1] in names:
            size = best.details.get(INPUTS[0], 0)
            why = "its own size" if size == own else "the largest"
            all_sizes = ", ".join(f"{s:g}" for s in sorted({s.details.get(INPUTS[0], 0) for s in some}))
            told[f"{names[key[1]]}: {key[2]} at {size:g} px, {why}, of {all_sizes}"] = None
    kept = [s for s in scores if taken.get((s.source, s.model, s.name), s) is s]
    return kept, tuple(told)


def _close(records: Sequence[ModelRecord], known: Iterable[str]) -> str:
    """For the first three of ten records, which models of the file may be meant; "" if none is close."""
    models, hints = list(dict.fromkeys(known)), []
    for record in records[:10]:
        asked = (did_you_mean(name, models) for name in (record.name, parse_spec(record.spec).path))
        if hint := next((h for h in asked if h.startswith("did you mean")), None):
            hints.append(f"for {record.name!r}, {hint}")
    return "; ".join(hints[:3])


def add_scores(alignment: Alignment, scores: Iterable[Score], *, overwrite: bool = False) -> tuple[Alignment, Joined]:
    """A result whose models have these scores too, so that its trends, figures and report know them.

    Models of the result without such a score are told in `Joined.without`; RepalignError if all are, and as `join_scores`.
    """
    models = [dict(m) for m in alignment.run.get("models") or ()]
    fields = ModelRecord.__dataclass_fields__
    records = [ModelRecord(**{k: v for k, v in m.items() if k in fields and v is not None}) for m in models]
    held = list(scores)
    sizes = {m["name"]: size for m in models if (size := img_size_of(m.get("facts"))) is not None}
    joined = join_scores(records, held, missing="skip", overwrite=overwrite, img_sizes=sizes)
    if len(joined.without) == len(records):
        join_scores(records, held)  # says which names are near
    for model, record in zip(models, joined.records, strict=True):
        model["scores"] = record.scores
    return replace(alignment, run={**alignment.run, "models": models}), joined


def img_size_of(facts: Mapping[str, Any] | None) -> int | None:
    """The side of the images that a model was fed, where the facts of its extraction say it (channels, height, width)."""
    preprocessing = (facts or {}).get("preprocessing")
    size = preprocessing.get("input_size") if isinstance(preprocessing, Mapping) else None
    return int(size[-1]) if size else None


def _names(record: ModelRecord) -> set[str]:
    """What a file may call a model.

    The revision of a known model is the one that has its weights as safetensors: others name the model without it.
    """
    spec = parse_spec(record.spec)
    known = any(record.spec == k.spec for k in known_models())
    revision = None if known or spec.revision == "main" else spec.revision
    path = f"{spec.path}@{revision}" if revision else spec.path
    return {record.name, record.spec, path, f"{spec.scheme}:{path}"}


def _with(record: ModelRecord, values: Mapping[str, float], overwrite: bool) -> ModelRecord:
    for name, value in values.items():
        before = record.scores.get(name)
        if before is not None and before != value and not overwrite:
            raise RepalignError(
                f"model {record.name} has {name} already", expected=before, got=value, remedy="say overwrite=True (--overwrite)"
            )
    return replace(record, scores={**record.scores, **values})
