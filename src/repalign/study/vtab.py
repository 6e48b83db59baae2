"""The tasks of VTAB for the vision models of a study: features, a linear probe of each layer, and which tasks are solved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repalign.comparison.alignment import csv_text
from repalign.dataset import Dataset
from repalign.errors import RepalignError, choose, require
from repalign.files import write_file
from repalign.sources import ModelEntry, Skipped, extract, parse_spec
from repalign.text import Progress, named, silent

if TYPE_CHECKING:
    import pandas as pd

    from repalign.competence import Task
    from repalign.study.alignment import AlignmentStudy

N = 5000  # images of a task
LEAST = 10  # of a class, in the sample
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE = "image"


@dataclass(frozen=True, eq=False)
class VTAB:
    """What the models of a study solve.

    table : a row for each task and model: task, model, layer, accuracy (held out), chance, n, classes, solved. counts : how many
    tasks each model has solved. missing : tasks that could not be run, with the reason. skipped : models that were left out of a
    task, with the reason; they have no count.
    """

    table: pd.DataFrame
    counts: dict[str, int]
    missing: dict[str, str]
    skipped: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were run."""
        return list(dict.fromkeys(self.table["task"]))

    @property
    def text(self) -> str:
        """What was run and what was not, in sentences."""
        out = [f"{len(self.tasks)} of the 19 tasks of VTAB: {named(self.tasks, 19)}."]
        out += [f"Not run: {task}: {why}." for task, why in self.missing.items()]
        out += [f"Left out: {model}: {why}." for model, why in self.skipped.items()]
        out.append("A task is solved at 80 % of the best accuracy among these models: with other models the counts are others.")
        return " ".join(out)

    def write(self, path: Path) -> tuple[Path, Path]:
        """Two tables: the counts (model, vtab_solved), which `competence: {csv: ...}` reads, and beside it all accuracies."""
        import pandas as pd

        counts = pd.Series(self.counts, name="vtab_solved").rename_axis("model").reset_index()
        write_file(path, csv_text(counts))
        every = path.with_name(f"{path.stem}_tasks.csv")
        write_file(every, csv_text(self.table))
        return path, every


def vtab(
    study: AlignmentStudy, tasks: Sequence[str] | None = None, *, tables: Path | None = None, n: int = N, seed: int = 0,
    executor: Executor | None = None, progress: Progress = silent,
) -> VTAB:  # fmt: skip
    """Probe the vision models of a study on those of the 19 tasks of VTAB whose images can be had.

    For each task a sample of its images goes through every model, features are kept in the study's store, and a linear probe is
    fitted on each layer; the layer is chosen within the training stimuli. What cannot be loaded is left out, and told.

    Parameters
    ----------
    study : its models; those that read texts are passed over.
    tasks : names of tasks; all by default.
    tables : a folder with tables of one's own, TASK.csv (or .tsv, .jsonl, .parquet) with the columns id, image and label; they go
        before the hub.
    n : images of a task, at most. seed : of the sample and of the probes.

    Raises RepalignError: an unknown task; no vision model; no task that could be run.
    """
    import pandas as pd

    from repalign.competence import solved, vtab_tasks

    known = {task.name: task for task in vtab_tasks()}
    chosen = [known[choose("task", name, known, f"VTAB has no task {name!r}")] for name in tasks or known]
    entries = _vision(study)
    rows, missing, skipped = [], {}, {}
    for done, task in enumerate(chosen):
        progress("tasks", done, len(chosen), task.label)
        try:
            dataset, labels = _opened(task, tables, n, seed, progress)
            found = _probed(study, task, dataset, labels, entries, seed, skipped, executor, progress)
        except RepalignError as error:
            missing[task.name] = " ".join(str(error).split())
            continue
        rows += found
    progress("tasks", len(chosen), len(chosen))
    if not rows:
        raise RepalignError(
            "no task of VTAB could be run", expected="images of at least one", got=next(iter(missing.values()), "no task"),
            remedy="connect to the hub, or give --tables, a folder with TASK.csv (id, image, label)",
        )  # fmt: skip
    table = pd.DataFrame(rows)
    wide = table.pivot(index="model", columns="task", values="accuracy").dropna()
    names = wide.index.tolist()
    by_model = {m: {str(t): float(v) for t, v in wide.loc[m].items()} for m in names}
    found_solved = solved(by_model) if by_model else {}
    skipped |= {m: skipped.get(m, "it lacks a task") for m in dict.fromkeys(table["model"]) if m not in by_model}
    table["solved"] = [t in found_solved.get(m, ()) for t, m in zip(table["task"], table["model"], strict=True)]
    order = [e.label for e in entries]
    counts = {m: len(found_solved[m]) for m in sorted(found_solved, key=lambda m: order.index(m) if m in order else len(order))}
    return VTAB(table, counts, missing, skipped)


def _vision(study: AlignmentStudy) -> list[ModelEntry]:
    """The models that read images, once each."""
    every = {e.label: e for v in study.variants for side in v.sides for e in side}
    found = [e for e in every.values() if (parse_spec(e.spec).source.modality(parse_spec(e.spec), e) or IMAGE) == IMAGE]
    found = [e for e in found if parse_spec(e.spec).scheme not in ("array", "memory")]
    if not found:
        raise RepalignError("no model of the study can be run on images", expected="a vision model", got=named(list(every)))
    return found


def _opened(task: Task, tables: Path | None, n: int, seed: int, progress: Progress) -> tuple[Dataset, list[str]]:
    """A sample of a task's images, and their labels."""
    from repalign.competence import read_labels

    path = next((p for end in TABLES if tables is not None and (p := tables / f"{task.name}{end}").is_file()), None)
    if path is not None:
        dataset = Dataset.from_table(path, id="id", image=IMAGE, name=f"vtab-{task.name}", progress=progress)
        labels = read_labels(path, dataset.ids)
        kept = _sampled(labels, n, seed)
        return dataset.subset([dataset.ids[i] for i in kept]), [labels[i] for i in kept]
    if not task.hub:
        raise RepalignError("no copy on the hub is known", remedy=f"give --tables with {task.name}.csv (id, image, label)")
    require(f"task {task.name}", "models", "datasets")
    import datasets

    try:
        data = datasets.load_dataset(task.hub, task.config or None, split=task.split)
    except Exception as error:  # of datasets, the hub and the network, which have no common class
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise RepalignError(f"hub {task.hub} cannot be loaded", got=got) from error
    for column in (task.image, task.answer):
        choose("column", column, data.column_names, f"hub {task.hub} has no column {column!r}")
    labels = [str(v) for v in data[task.answer]]
    kept = _sampled(labels, n, seed)
    data, labels = data.select(kept), [labels[i] for i in kept]
    return Dataset.from_hub(data, image=task.image, name=f"vtab-{task.name}", progress=progress), labels


def _sampled(labels: Sequence[str], n: int, seed: int) -> list[int]:
    """Rows of a random sample, in order, without classes that are too rare in it to be probed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:n]).tolist()
    counts = Counter(labels[i] for i in rows)
    kept = [i for i in rows if counts[labels[i]] >= LEAST]
    if len({labels[i] for i in kept}) < 2:
        raise RepalignError(
            "too few images of each class", expected=f"two classes of {LEAST} images or more", got=f"{len(rows)} images",
            remedy="take more images (n)",
        )  # fmt: skip
    return kept


def _probed(
    study: AlignmentStudy, task: Task, dataset: Dataset, labels: Sequence[str], entries: Sequence[ModelEntry], seed: int,
    skipped: dict[str, str], executor: Executor | None, progress: Progress,
) -> list[dict[str, object]]:  # fmt: skip
    """A row for each model: the best layer within the training stimuli, and its accuracy on held-out ones."""
    from repalign.competence import LinearProbe, best_layer, probe

    options = {**study.config.extract.model_dump(), "on_unavailable": "skip"}
    out: list[dict[str, object]] = []
    for r in extract(dataset, list(entries), study.store, executor=executor, progress=progress, **options):
        if isinstance(r, Skipped):
            skipped[r.name] = r.reason
            continue
        best = best_layer(probe(r, labels, LinearProbe(), seed=seed, progress=progress))
        out.append({
            "task": task.name, "model": r.name, "layer": best.layer, "accuracy": best.accuracy, "chance": best.chance,
            "n": dataset.n, "classes": len(set(labels)),
        })  # fmt: skip
    return out
