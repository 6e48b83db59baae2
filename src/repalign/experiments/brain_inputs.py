"""What brain alignment reads: recordings and models as RDMs of the same stimuli, who was recorded where, and the measure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.text import counted, named, number

if TYPE_CHECKING:
    import pandas as pd

    from repalign.features import Found as Read
    from repalign.layers import RDM
    from repalign.measures import Measure

# Measures by the words of the field. rho_a and tau_a do not favour models that predict ties, such as categories.
WORDS = {
    "rho_a": "RSA(comparison='rho_a')",
    "spearman": "RSA(comparison='spearman')",
    "pearson": "RSA(comparison='pearson')",
    "cosine": "RSA(comparison='cosine')",
    "tau_a": "RSAKendall(tau='a')",
}
REGION = "region"


def measure_of(text: Any) -> Measure:
    """A measure that takes RDMs, by a word of the field or as measures are named elsewhere."""
    from repalign.measures import Measure, parse_measure
    from repalign.measures.registry import known_measures

    if isinstance(text, Measure):
        found = text
    else:
        named_so = {name: cls for cls in known_measures() for name in (cls.__name__, *cls.aliases, *cls.shorthands)}
        if text not in WORDS and text.partition("(")[0] not in named_so:
            choose("measure", text, (*WORDS, *(name for name, cls in named_so.items() if "rdm" in cls.takes)))
        found = parse_measure(WORDS.get(text) or text)
    found.check(max(3, found.min_n), "brain", {"brain": "rdm"})
    if not found.closer_is_higher or not found.paired:
        raise RepalignError(
            f"{found!r} gives no score of brain alignment", expected="a similarity of paired stimuli, larger where closer",
            got="a distance" if found.paired else "a measure that does not know which stimulus is which",
            remedy=f"use one of {', '.join(WORDS)}",
        )  # fmt: skip
    return found


def comparison_of(measure: Measure) -> str:
    """The word for how a measure compares RDMs; "other" for what is no RSA."""
    from repalign.measures.rdm import RSA, RSAKendall

    if isinstance(measure, RSA):
        return measure.comparison
    return f"tau_{measure.tau}" if isinstance(measure, RSAKendall) else "other"


# --- reading -------------------------------------------------------------------------------------


def read_all(
    brain: Any, models: Any, kind: str, vector: str | None, measure: Measure
) -> tuple[dict[str, RDM], dict[str, RDM], tuple[str, ...]]:
    """All recordings and all models as RDMs of the same stimuli, and how these were paired."""
    from repalign.features import join

    of_brain, of_models = _sources(brain, "brain", kind, vector), _sources(models, "model", kind, None)
    if not of_models:
        raise RepalignError("no model to compare", expected="at least one file of a model", got="none")
    joined = join([*of_brain.values(), *of_models.values()])
    layers = dict(zip((*of_brain, *(f"m:{k}" for k in of_models)), joined.layers, strict=True))
    recordings = _named({k: layers[k] for k in of_brain})
    candidates = _named({k: layers[f"m:{k}"] for k in of_models})
    measure.check(joined.n, "brain")
    return _rdms(recordings, measure), _rdms(candidates, measure), joined.how


def _sources(given: Any, what: str, kind: str, vector: str | None) -> dict[str, Read]:
    """What is given, read: a file or an object each, by name."""
    from repalign.features import read_features
    from repalign.features.rule import Found as Read

    if isinstance(given, (str, Path)):
        return {_stem(path): _read_file(path, kind, vector) for path in _files(given, what)}
    if isinstance(given, (list, tuple)):
        out: dict[str, Read] = {}
        for i, one in enumerate(given):
            found = _sources(one, f"{what} {i}", kind, vector)
            out |= {name if name not in out else f"{name} {i}": read for name, read in found.items()}
        return out
    if isinstance(given, Read):
        return {what: given}
    marked = {str(k): _marked(v, kind) for k, v in given.items()} if isinstance(given, Mapping) else _marked(given, kind)
    return {what: read_features(marked, name=what, axes=None if isinstance(given, Mapping) else "lnd")}


def _marked(x: Any, kind: str) -> Any:
    """A square array in memory as the RDM that it is taken for."""
    from repalign.layers import RDM

    shape = tuple(getattr(x, "shape", ()))
    is_square = kind == "rdm" and len(shape) in (2, 3) and len(set(shape[-2:])) == 1 and not hasattr(x, "columns")
    return RDM(x) if is_square and not isinstance(x, RDM) and type(x).__module__.partition(".")[0] in ("numpy", "torch") else x


def _files(given: str | Path, what: str) -> list[Path]:
    """A file, those of a folder, or those that a pattern names."""
    from repalign.features import feature_files, is_features
    from repalign.tables import refuse_missing

    path = Path(given).expanduser()
    if not path.exists() and any(c in path.name for c in "*?["):
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise RepalignError(f"no file {given}", expected=f"files of {what}", got=f"none in {path.parent}")
        return found
    refuse_missing(path)
    if is_features(path):
        return [path]
    found = feature_files(path)
    if not found:
        raise RepalignError(f"{path}: no file of features or RDMs in this folder", expected="a file for each", got="none")
    return found


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or path.name


def _read_file(path: Path, kind: str, vector: str | None) -> Read:
    """Square arrays as RDMs, unless they are said to be features; everything else by the rule of features."""
    from repalign.features import Reading, file_widths, read_file

    plain = Reading(axes="lnd", vector=vector, kind="features" if kind == "features" else None)
    if kind == "features":
        return read_file(path, plain)
    squares = Reading(kind="rdm", vector=vector)
    try:
        file_widths(path, squares)
    except RepalignError:  # nothing in it is square
        return read_file(path, plain)
    try:
        found = read_file(path, plain)
    except RepalignError:  # a symmetric array, or a stack
        return read_file(path, squares)
    is_square = any(tuple(x.shape) == (found.n, found.n) for x in found.layers.values())
    return read_file(path, squares) if is_square else found  # which says why it is no RDM


def _named(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One name for each layer of all sources: that of the layer, that of its source where it is the only one, or both."""
    every = [layer for found in layers.values() for layer in found]
    out: dict[str, Any] = {}
    for source, found in layers.items():
        for layer, x in found.items():
            counted_only = re.fullmatch(r"(?:rdm|features|layer)(?:\.(\d+))?", layer)  # the reader's own names
            name = layer if every.count(layer) == 1 else f"{source} {layer}"
            if counted_only:
                name = source if counted_only[1] is None else f"{source} {counted_only[1]}"
            elif len(found) == 1 and len(layers) > 1:
                name = source
            out[name] = x
    return out


def _rdms(layers: Mapping[str, Any], measure: Measure) -> dict[str, RDM]:
    """Every layer as an RDM in float64. Raises RepalignError for one in which all dissimilarities are alike."""
    import torch

    from repalign.layers import RDM, kind_of
    from repalign.measures.measure import as_layer
    from repalign.measures.numerics.distances import dissimilarities, upper

    out = {}
    for name, layer in layers.items():
        x = as_layer(layer, name)
        measure.check(len(x), name, {name: kind_of(x)})
        if isinstance(x, RDM):
            values = upper(x.matrix.to(torch.float64))
        else:
            found = dissimilarities(x, getattr(measure, "dissimilarity", "euclidean"))
            values = np.zeros(1) if found is None else upper(found.matrix.to(torch.float64)) * found.unit
        if not np.ptp(values) > 1e-9 * np.abs(values).max():
            raise RepalignError(
                f"{name}: a constant RDM", expected="pairs of stimuli that are more and less unlike",
                got=f"{number(float(values[0]))} for every pair", remedy="leave it out: nothing correlates with it",
            )  # fmt: skip
        out[name] = rdm_of(values)
    return out


def rdm_of(values: np.ndarray) -> RDM:
    import torch
    from scipy.spatial.distance import squareform

    from repalign.layers import RDM

    return RDM(torch.from_numpy(squareform(values, checks=False)))


def labels_of(given: Any, names: list[str]) -> pd.DataFrame:
    """The columns id, subject, and region if there is one, in the order of the recordings."""
    import pandas as pd

    from repalign.tables import column_of, is_missing, read_table, table_of

    if given is None:
        return pd.DataFrame({"id": names, "subject": names})
    if isinstance(given, Mapping):
        given = [{"id": name, "subject": subject} for name, subject in given.items()]
    table = read_table(Path(given), what="the table of subjects") if isinstance(given, (str, Path)) else table_of(given)
    where = str(given) if isinstance(given, (str, Path)) else "subjects"
    if table is None or not {"id", "subject"} <= set(table.columns):
        got = type(given).__name__ if table is None else ", ".join(table.columns)
        raise RepalignError(f"{where}: not a table of subjects", expected="the columns id and subject", got=got)
    ids = column_of(table, "id", where, "id")
    known = set(names)
    if not known & set(ids):
        raise RepalignError(
            f"{where}: it names no recording", expected=f"ids such as {names[0]!r}", got=named([repr(i) for i in ids], 3),
            remedy="write the names of the recordings as their file has them: names of matrices, or of files",
        )  # fmt: skip
    row_of = {i: row for i, row in zip(ids, table.rows, strict=True) if i in known}
    without = [name for name in names if name not in row_of or is_missing(row_of[name].get("subject"))]
    if without or len(set(ids)) < len(ids):
        got = f"{len(without)} without one, the first is {without[0]!r}" if without else "an id twice"
        raise RepalignError(f"{where}: labels do not fit the recordings", expected="a subject for every recording", got=got)
    columns = ["subject", *([REGION] if REGION in table.columns else [])]
    empty = next((name for name in names if REGION in columns and is_missing(row_of[name][REGION])), None)
    if empty is not None:
        raise RepalignError(f"{where}: {empty!r} has no region", expected="a region for every recording", got="an empty cell")
    return pd.DataFrame({"id": names} | {c: [str(row_of[name][c]) for name in names] for c in columns})


def of_region(labels: Any, region: str | None) -> pd.DataFrame:
    """The recordings of one region, of at least two people."""
    if region is not None and REGION not in labels:
        raise RepalignError("no recording has a region", expected="a column region in the table of subjects", got=repr(region))
    if REGION in labels:
        there = list(dict.fromkeys(labels[REGION]))
        if region is None and len(there) > 1:
            raise RepalignError(
                f"recordings of {len(there)} regions", expected="the region that models are compared with", got=named(there),
                remedy=f"say region={there[0]!r} (--region)",
            )  # fmt: skip
        labels = labels[labels[REGION] == choose("region", region or there[0], there)]
    if labels["subject"].nunique() < 2:
        raise RepalignError(
            "one subject alone", expected="recordings of two people or more: a noise ceiling is what they share",
            got=f"{counted(len(labels), 'recording')} of {labels['subject'].iloc[0]!r}",
            remedy="give a stack (s, n, n) or several files; one RDM against models is `repalign pair`",
        )  # fmt: skip
    return labels
