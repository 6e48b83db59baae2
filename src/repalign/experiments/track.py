"""Alignment over training: the checkpoints of a run against frozen references, each score with its chance level.

Checkpoints on hubs are not always what their names say: of some runs, many branches hold the final weights. So those whose weights
are equal to the bit are named, and all but one of them are left out of what is said of the course.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.experiments.base import Found, Input
from repalign.experiments.track_record import all_read, is_unchanged, names_of_rows, receipt_of, rows_in, sha256_of
from repalign.files import open_files, seal_json
from repalign.text import Progress, counted, named, number, silent, telling

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.dataset import Dataset
    from repalign.measures import Measure
    from repalign.sources import ModelEntry
    from repalign.track import Panel


@dataclass(frozen=True, eq=False, kw_only=True)
class Tracked(Found):
    """Scores of checkpoints, from `track`.

    table : a row for each checkpoint, reference and measure: the layer that the search finds, its score with the interval over
    stimuli (low, high), what chance gives there (null_mean, z), p of the search, the score of the layer that was best at the first
    checkpoint (fixed_layer, fixed), rankme and participation of the found layer, bits_per_byte of a causal language model, and
    same_as, a checkpoint with the same weights. tables : `cells`, every pair of layers. left_out : checkpoints that could not be
    loaded, with the reason.
    """

    n: int
    left_out: tuple[tuple[str, str], ...] = ()
    shown: ClassVar[tuple[str, ...]] = (
        "checkpoint", "reference", "measure", "layer", "step", "statistic", "low", "high", "null_mean", "p", "fixed", "rankme",
    )  # fmt: skip

    @property
    def course(self) -> pd.DataFrame:
        """The rows without checkpoints whose weights another one has."""
        return self.table.loc[self.table["same_as"] == ""]

    @property
    def text(self) -> str:
        rows = self.course
        out = [f"{counted(rows['checkpoint'].nunique(), 'checkpoint')} on {self.n:,} stimuli."]
        for (measure, reference), some in rows.groupby(["measure", "reference"], sort=False):
            if some["statistic"].isna().all():
                out.append(f"{measure} with {reference} is undefined: is a layer constant?")
                continue
            first, last, best = some.iloc[0], some.iloc[-1], some.loc[some["statistic"].idxmax()]
            sure = int((some["p"] < 0.05 / len(some)).sum())
            out.append(
                f"{measure} with {reference}: {number(first['statistic'])} at {first['checkpoint']}, {number(last['statistic'])} "
                f"at {last['checkpoint']}, highest at {best['checkpoint']} ({number(best['statistic'])}, layer {best['layer']}; "
                f"shuffled pairs give {number(best['null_mean'])}); {sure} of {len(some)} are above chance (p < .05 over all)."
            )
        twins = self.table.loc[self.table["same_as"] != "", ["checkpoint", "same_as"]].drop_duplicates()
        for one, other in twins.itertuples(index=False):
            out.append(
                f"{one} and {other} hold the same weights: one of them has a wrong name, or is a copy. {one} is left out of the "
                "course."
            )
        for name, reason in self.left_out:
            out.append(f"{name} is left out: {reason}")
        out.append(
            "The best layer may change from checkpoint to checkpoint; the fixed layer does not. Only a rise of both, with "
            "intervals that part, is a rise of alignment; a score that stays among shuffled pairs is none."
        )
        return " ".join(out)

    def draw(self, **look: Any) -> Axes:
        """Scores over steps, with intervals and what chance gives; and RankMe of the found layer."""
        from repalign.figures import canvas
        from repalign.figures.palette import MUTED, family

        rows = self.course
        measures, references = (list(dict.fromkeys(rows[name])) for name in ("measure", "reference"))
        called = canvas.called(references, look=look, what="words")
        _, grid = canvas.sheet(
            3.6 * (len(measures) + 1), 3.6, "Alignment over training", 1, [1] * (len(measures) + 1), room=3.2,
            above=[*measures, "RankMe of the layer that is found"],
            below="Bands: 95 % over stimuli; grey: 95 % of shuffled pairs at one layer. Dashed: their mean. Dotted: the layer that "
            "is best at the first checkpoint.", rules="both", **look,
        )  # fmt: skip
        for axes, measure in zip(grid.flat, measures, strict=False):
            for k, reference in enumerate(references):
                some, (color, marker) = rows.loc[(rows["measure"] == measure) & (rows["reference"] == reference)], family(k)
                x, reach = _places(some), 1.96 * (some["statistic"] - some["null_mean"]) / some["z"]  # of normal scores
                axes.fill_between(x, some["null_mean"] - reach, some["null_mean"] + reach, color=MUTED, alpha=0.2, linewidth=0)
                axes.fill_between(x, some["low"], some["high"], color=color, alpha=0.15, linewidth=0)
                axes.plot(x, some["statistic"], color=color, marker=marker, markersize=5, label=canvas.plain(called[reference]))
                axes.plot(x, some["fixed"], color=color, linewidth=1, linestyle=":")
                axes.plot(x, some["null_mean"], color=color, linewidth=1, linestyle=canvas.DASHED)
            canvas.labels(axes, "step", "score")
        first = rows.loc[(rows["measure"] == measures[0]) & (rows["reference"] == references[0])]
        last = grid.flat[len(measures)]
        last.plot(_places(first), first["rankme"], color=family(0)[0], marker=family(0)[1], markersize=5)
        canvas.labels(last, "step", "RankMe")
        for axes in grid.flat:
            _scale(axes, first)
        if len(references) > 1 or look.get("ax") is None:
            grid.flat[0].legend(fontsize=7, frameon=False, loc="best")
        return grid.flat[0]


def _numbered(rows: pd.DataFrame) -> bool:
    """Whether the names of all checkpoints say their step."""
    return bool(rows["step"].notna().all())


def _places(rows: pd.DataFrame) -> np.ndarray:
    return rows["step"].to_numpy(float) if _numbered(rows) else np.arange(len(rows), dtype=float)


def _scale(axes: Axes, rows: pd.DataFrame) -> None:
    """Steps on a logarithm that keeps 0, or the names of checkpoints in their order."""
    from matplotlib.ticker import NullLocator

    if not _numbered(rows):
        axes.set_xticks(range(len(rows)), list(rows["checkpoint"]), rotation=45, ha="right")
        axes.set_xlabel("")
        return
    steps = rows["step"].to_numpy(float)
    above = steps[steps > 0]
    if len(above) and above.max() >= 10 * above.min():
        axes.set_xscale("symlog", linthresh=float(above.min()))
        axes.xaxis.set_minor_locator(NullLocator())
    if len(steps) <= 8:
        axes.set_xticks(steps, [f"{int(s):,}" for s in steps], rotation=45 if len(steps) > 5 else 0)


def track(
    models: list[Input], *, references: list[Input] | None = None, data: Path | None = None, revisions: list[str] | None = None,
    text: str | None = None, image: str | None = None, id: str = "id", reference_layers: list[str] | None = None,
    measures: list[str] | None = None, store: Path | None = None, device: str = "auto", seed: int = 0,
    executor: Executor | None = None, progress: Progress = silent,
) -> Tracked:  # fmt: skip
    """How does alignment change over training? Checkpoints against frozen references.

    Beside every score stand what shuffled pairs give to the same search over layers, and an interval over stimuli.

    Parameters
    ----------
    models : Checkpoints: folders that a Trainer wrote, or specs of models. With revisions, one model of a hub, or a folder.
    references : A panel (a file that Panel.save wrote), or files of features, or STORE#MODEL.
    data : A table of the stimuli (.csv, .tsv, .jsonl, .parquet), whose ids the references have.
    revisions : Branches, tags or commits of the model, in the order of training; several may stand in one word, with commas. A
        pattern, such as "stage1-step*", stands for all branches and tags that it fits; of a folder for folders in it.
    text : The column of texts; by default the column text, if no image is named.
    image : The column of paths of images.
    id : The column of ids.
    reference_layers : The layer of each reference that is no panel; last, the default, is the last one.
    measures : Measures; by default MutualKNN(k=10) and CKA().
    store : A feature store, where what was extracted and scored is kept: a run that was stopped goes on, checkpoint by checkpoint.
    device : Where models run: auto, cpu, cuda.
    seed : Of shuffles and intervals, where they are drawn.
    """
    asked = {
        "models": models, "references": references, "data": data, "revisions": revisions, "text": text, "image": image, "id": id,
        "reference_layers": reference_layers, "measures": measures, "device": device, "seed": seed,
    }  # fmt: skip
    if (again := finished(store=store, **asked)) is not None:
        return again

    from repalign.comparison import DEFAULT_MEASURES
    from repalign.measures import parse_measure
    from repalign.store import FeatureStore

    if not references:
        raise _nothing("references")
    dataset, entries = extracted(**asked)
    read = [] if store is None else all_read([data, *references], entries)
    panel = _joined(_panel(references, reference_layers), dataset)
    wanted = [parse_measure(one) for one in measures or DEFAULT_MEASURES]
    names = {} if store is None else names_of_rows(panel, dataset, entries, wanted, seed)
    files = None if store is None else FeatureStore(store).files
    done = {} if files is None else {k: rows_in(files, name) for k, name in names.items() if files.size(name) is not None}
    left_out: tuple[tuple[str, str], ...] = ()
    if missing := [one for one in entries if one.label not in done]:

        def keep(label: str, one: dict[str, Any]) -> None:
            done[label] = one
            if files is not None and label in names:
                files.write(names[label], seal_json(one).encode())

        left_out = _scored(panel, dataset, missing, wanted, store, keep, device, executor, seed, progress)
    kept = [(one.label, done[one.label]) for one in entries if one.label in done]
    if not kept:
        raise RepalignError("no checkpoint could be loaded", expected="at least one", got=named([f"{n}: {r}" for n, r in left_out]))
    labels = {repr(m): m.facts.label for m in wanted}
    said = {"stimuli": dataset.fingerprint, "read": read, "rows": names, "measures": labels, "n": panel.n}
    if files is not None and read is not None and not left_out:
        files.write(receipt_of(asked), seal_json(said).encode())
        return replace(_tracked(kept, labels, panel.n), identity=sha256_of(said))
    return _tracked(kept, labels, panel.n, left_out)


def _tracked(
    kept: Sequence[tuple[str, dict[str, Any]]], labels: dict[str, str], n: int, left_out: tuple[tuple[str, str], ...] = ()
) -> Tracked:  # fmt: skip
    """The course that the rows of all checkpoints make."""
    import pandas as pd

    # Stable: those without a step stay in order, last.
    kept = sorted(kept, key=lambda one: (step_of(one[0]) is None, step_of(one[0]) or 0))
    same = _twins([(name, one["weights"]) for name, one in kept])
    fixed = {(row["reference"], row["measure"]): row for row in kept[0][1]["search"] if row["layer"]}
    rows, cells = [], []
    for name, one in kept:
        step = step_of(name)
        at = {"checkpoint": name, "step": np.nan if step is None else step}
        score_of = {tuple(row[k] for k in PAIR): row["statistic"] for row in one["cells"]}
        for row in one["search"]:
            still = fixed.get((row["reference"], row["measure"]), {})
            score = score_of.get(tuple(still.get(k, "") for k in PAIR), np.nan)
            weights = one["weights"][:12] if one["weights"] != "none" else ""
            followed = {"fixed_layer": still.get("layer", ""), "fixed": score}
            rows.append({**at, **row, **followed, "weights": weights, "same_as": same.get(name, "")})
        cells += [{**at, **row} for row in one["cells"]]
    table = pd.DataFrame(rows)[list(TABLE)]
    table["measure"] = table["measure"].map(labels)
    return Tracked(table=table, tables={"cells": pd.DataFrame(cells)}, n=n, left_out=left_out)


def finished(*, store: Path | None = None, **asked: Any) -> Tracked | None:
    """What a run with these arguments found, if nothing that it read has changed since; None where that is not known."""
    name = receipt_of(asked)
    if store is None or not (Path(store) / name).is_file():
        return None
    files = open_files(store)
    said = rows_in(files, name)
    if not is_unchanged(said["read"]):
        return None
    if asked["image"] and _stimuli(**asked).fingerprint != said["stimuli"]:  # a table alone is one of the files
        return None
    kept = [(label, rows_in(files, of_rows)) for label, of_rows in said["rows"].items()]
    return replace(_tracked(kept, said["measures"], said["n"]), identity=sha256_of(said))


def extracted(
    models: Sequence[str], *, data: Path | None, revisions: Sequence[str] | None = None, text: str | None = None,
    image: str | None = None, id: str = "id", **_: Any,
) -> tuple[Dataset, list[ModelEntry]]:  # fmt: skip
    """The stimuli, and the checkpoints that are run on them."""
    from repalign.sources import ModelEntry

    if data is None:
        raise _nothing("data")
    dataset = _stimuli(data=data, text=text, image=image, id=id)
    modality = dataset.modalities[0] if len(dataset.modalities) == 1 else None
    return dataset, [ModelEntry(spec, name=name, modality=modality) for name, spec in checkpoints_of(models, revisions)]


def _stimuli(*, data: Path, text: str | None, image: str | None, id: str, **_: Any) -> Dataset:
    from repalign.dataset import Dataset

    return Dataset.from_table(data, id=id, text=text or (None if image else "text"), image=image)


def _nothing(what: str) -> RepalignError:
    return RepalignError("nothing to score against", expected="references, and data: a table of their stimuli", got=f"no {what}",
                         remedy="say --references and --data")  # fmt: skip


PAIR = ("reference", "measure", "layer", "reference_layer")
CELL = (*PAIR, "statistic", "null_mean", "z", "n", "rankme", "participation")
TABLE = (
    "checkpoint", "step", "reference", "measure", "layer", "reference_layer", "statistic", "low", "high", "null_mean", "z", "p",
    "fixed_layer", "fixed", "rankme", "participation", "bits_per_byte", "n", "weights", "same_as",
)  # fmt: skip


def _scored(
    panel: Panel, dataset: Dataset, entries: Sequence[ModelEntry], measures: Sequence[Measure], store: Path | None,
    keep: Callable[[str, dict[str, Any]], None], device: str, executor: Executor | None, seed: int, progress: Progress,
) -> tuple[tuple[str, str], ...]:  # fmt: skip
    """Hand over the rows of each checkpoint that is finished; what is left out, and why."""
    from repalign.sources import Skipped, extract
    from repalign.track import Tracker

    tracker = Tracker(panel, measures, strict=True, seed=seed)  # refuses before any model is run
    kept_in = None if store is None else str(store)
    found = extract(dataset, entries, kept_in, device=device, executor=executor, on_unavailable="skip", progress=progress)
    left_out = tuple((one.name, one.reason) for one in found if isinstance(one, Skipped))
    kept = [one for one in found if not isinstance(one, Skipped)]
    for i, r in enumerate(telling(kept, "score", progress)):
        layers = {name: r.load(name) for name in r.layers}
        tracker.score_features(layers, ids=r.ids, step=i, loss=r.record.scores.get("bits_per_byte"))
        mine = [row for row in tracker.rows if row["step"] == i]
        one = {
            "search": [_searched(tracker, layers, r, row, seed) for row in mine if row["scope"] == "search"],
            "cells": [{name: row[name] for name in CELL} for row in mine if row["scope"] == "cell"],
            "weights": str(r.facts.get("weights_fingerprint") or "none"),
        }
        keep(r.name, one)
    return left_out


def _searched(tracker: Any, layers: dict[str, Any], r: Any, row: dict[str, Any], seed: int) -> dict[str, Any]:
    """The row of a search, with its interval over stimuli."""
    from repalign.comparison.intervals import score_interval

    low = high = np.nan
    if row["statistic"] == row["statistic"]:
        row_of = {one: i for i, one in enumerate(r.ids)}
        order = [row_of[one] for one in tracker.panel.ids]
        x, y = layers[row["layer"]][order], tracker.panel.references[row["reference"]][row["reference_layer"]]
        over = score_interval(x, y, row["measure"], method="auto", seed=seed)
        low, high = over.low, over.high
    return {
        **{name: row[name] for name in CELL},
        "low": float(low), "high": float(high), "p": row["pvalue"], "bits_per_byte": row["loss"],
    }  # fmt: skip


def step_of(name: str) -> int | None:
    """The step that the name of a checkpoint says; None where it says none.

    >>> step_of("pythia-70m@step512"), step_of("checkpoint-4"), step_of("stage1-step1000-tokens5B"), step_of("main")
    (512, 4, 1000, None)
    """
    last = name.rpartition("@")[2] if "@" in name else name.rpartition("/")[2]
    said = re.search(r"(?:step|checkpoint|ckpt|iter)[-_=]?(\d+)", last, re.IGNORECASE) or re.fullmatch(r"(\d+)", last)
    return int(said[1]) if said else None


def checkpoints_of(models: Sequence[str], revisions: Sequence[str] | None) -> list[tuple[str, str]]:
    """The name and the spec of each checkpoint. A pattern stands for all revisions of the model that it fits, in order of steps."""
    wanted = [one.strip() for some in revisions or () for one in some.split(",") if one.strip()]
    if wanted:
        if len(models) != 1 or "@" in models[0]:
            raise RepalignError("revisions are of one model", expected="such as hf:org/name, or a folder of folders",
                                got=named(list(models)), remedy="give folders without revisions")  # fmt: skip
        folder = Path(models[0].removeprefix("hf:"))
        short, local = models[0].rstrip("/").rpartition("/")[2], folder.is_dir()
        names = _fitting(wanted, lambda: _there(models[0], folder if local else None))
        out = [(f"{short}@{one}", f"hf:{(folder / one).absolute()}" if local else f"{models[0]}@{one}") for one in names]
    else:
        specs = [f"hf:{Path(one).absolute()}" if Path(one).is_dir() else one for one in models]
        names = [one.rstrip("/").rpartition("/")[2] or one for one in models]
        out = [(one if names.count(name) > 1 else name, spec) for one, name, spec in zip(models, names, specs, strict=True)]
    if not out or len({name for name, _ in out}) < len(out):
        raise RepalignError("checkpoints have names of their own", expected="different checkpoints, at least one",
                            got=named([name for name, _ in out]) or "none")  # fmt: skip
    return out


def _there(model: str, folder: Path | None) -> list[str]:
    """The names of all revisions: subfolders of a folder, branches and tags of a repository of the hub."""
    if folder is not None:
        return [one.name for one in folder.iterdir() if one.is_dir()]
    from repalign.sources import parse_spec
    from repalign.sources.hub import hub_revisions

    return hub_revisions(parse_spec(model))


def _fitting(wanted: Sequence[str], there: Callable[[], list[str]]) -> list[str]:
    """Revisions as they are named, and those that fit a pattern; each once."""
    out: list[str] = []
    known: list[str] | None = None
    for one in wanted:
        if not set(one) & set("*?["):
            out.append(one)
            continue
        known = there() if known is None else known
        found = sorted(fnmatch.filter(known, one), key=lambda name: (step_of(name) is None, step_of(name) or 0, name))
        if not found:
            raise RepalignError(f"no revision fits {one!r}", expected="a pattern such as 'step*'", got=one,
                                remedy=did_you_mean(one, known) or "look at the names of its branches")  # fmt: skip
        out += found
    return list(dict.fromkeys(out))


def _twins(fingerprints: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Checkpoints whose weights another one has, with its name: of equal ones the last that says its step stays."""
    by: dict[str, list[str]] = {}
    for name, weights in fingerprints:
        if weights != "none":
            by.setdefault(weights, []).append(name)
    out = {}
    for names in by.values():
        stays = next((name for name in reversed(names) if step_of(name) is not None), names[-1])
        out |= {name: stays for name in names if name != stays}
    return out


def _panel(references: Sequence[str], layers: Sequence[str] | None) -> Panel:
    """A panel that was saved, or one that is made of what is named."""
    from repalign.experiments.inputs import read_inputs
    from repalign.track import Panel

    if len(references) == 1 and Panel.is_at(references[0]):
        return Panel.load(references[0])
    found = read_inputs(references, layers or ["last"])
    each = zip(found.names, found.layers, found.arrays, strict=True)
    return Panel.of({name: {layer: array} for name, layer, array in each}, ids=found.ids)


def _joined(panel: Panel, dataset: Dataset) -> Panel:
    """The references on those stimuli that the table has."""
    if not panel.named:
        if panel.n != dataset.n:
            raise RepalignError("references without ids do not fit the stimuli", expected=f"{dataset.n:,} rows", got=f"{panel.n:,}",
                                remedy="give the features ids")  # fmt: skip
        return replace(panel, ids=dataset.ids, named=True)
    there = set(dataset.ids)
    common = [one for one in panel.ids if one in there]
    if not common:
        raise RepalignError("references and stimuli have no id in common", expected=f"ids such as {panel.ids[0]!r}",
                            got=repr(dataset.ids[0]), remedy="name the column of ids (--id)")  # fmt: skip
    return panel if len(common) == panel.n else panel.subset(common)


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up features of three checkpoints that see more and more of what the reference sees."""
    rng, n = np.random.default_rng(0), 120
    folder.mkdir(parents=True, exist_ok=True)
    seen, ids = rng.standard_normal((n, 8)), np.array([f"s{i}" for i in range(n)])
    (folder / "texts.csv").write_text("id,text\n" + "".join(f"{one},a text\n" for one in ids), encoding="utf-8")
    np.savez(folder / "reference.npz", features=seen @ rng.standard_normal((8, 20)), ids=ids)
    models = []
    for step, share in ((0, 0.0), (10, 0.5), (100, 1.0)):
        np.savez(folder / f"step{step}.npz", features=share * seen + rng.standard_normal((n, 8)), ids=ids)
        models.append(f"array:{folder / f'step{step}.npz'}")
    none = dict.fromkeys(("revisions", "text", "image", "reference_layers", "store"))
    files = {"models": models, "references": [str(folder / "reference.npz")], "data": folder / "texts.csv"}
    return {**none, **files, "id": "id", "measures": given.get("measures")}
