"""Pairs of models read off the table, and facts about models read off their records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import ModelRecord
from repalign.relate._crossed import Crossed

PARAMETERS = "n_parameters"
WORDS = ("family", "objective", "modality")  # of a record
# Numbers that span orders of magnitude; on log10 unless said otherwise.
LOGGED = (PARAMETERS, "width", "training_steps")


def facts(model: Mapping[str, Any] | ModelRecord) -> dict[str, Any]:
    """A record as a mapping."""
    return model.to_dict() if isinstance(model, ModelRecord) else dict(model)


def value(model: Mapping[str, Any], key: str) -> float | None:
    """The number of parameters, a score, or a factor that is a number; None where there is none that is finite."""
    if key == PARAMETERS:
        number = model.get(PARAMETERS)
    else:
        number = {**(model.get("factors") or {}), **(model.get("scores") or {})}.get(key)
    if number is None or isinstance(number, str) or not math.isfinite(float(number)) or (key == PARAMETERS and number <= 0):
        return None
    return float(number)


def word(model: Mapping[str, Any], key: str) -> str | None:
    """What a model is in a word: a factor, or its family, objective or modality; None where there is none."""
    found = (model.get("factors") or {}).get(key, model.get(key) if key in WORDS else None)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    return None if found in (None, "") else str(found)


def families_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The family of every model by its name, "" where it has none."""
    return {name: str(record.get("family") or "") for name, record in records.items()}


def searched(table: pd.DataFrame, measure: str | None) -> pd.DataFrame:
    """The pairs of models (scope "max") of a measure, the first of the table by default."""
    pairs = table[table["scope"] == "max"]
    known = list(dict.fromkeys(pairs["measure"]))
    if not known:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    chosen = known[0] if measure is None else measure
    if chosen not in known:
        raise RepalignError(f"no measure {chosen!r} in the table", got=chosen, remedy=did_you_mean(chosen, known))
    return pairs.loc[pairs["measure"] == chosen]


def all_met(pairs: pd.DataFrame) -> bool:
    """Whether models were compared among themselves, so that a model stands on both sides."""
    return bool(set(pairs["model_x"]) & set(pairs["model_y"]))


def stimuli(pairs: pd.DataFrame) -> int:
    """The number of stimuli, which must be one for all pairs: scores depend on it."""
    found = sorted(set(pairs["n"].tolist()))
    if len(found) != 1:
        raise RepalignError(
            "the pairs of models were not compared on equally many stimuli",
            expected="one n for all",
            got=", ".join(f"n = {n}" for n in found),
            remedy="take the rows of one n; scores at different n cannot be related",
        )
    return int(found[0])


def names_of(pairs: pd.DataFrame, side: str) -> list[str]:
    """The models of a side, "x", "y" or "both", in the table's order."""
    columns = ("model_x", "model_y") if side == "both" else (f"model_{side}",)
    return [str(name) for name in dict.fromkeys(name for column in columns for name in pairs[column])]


def scores_of(
    pairs: pd.DataFrame, side: str, rows: Sequence[str], columns: Sequence[str], column: str = "statistic"
) -> np.ndarray:
    """Mean score (or any column) of every pair of models, (rows, columns); nan where there is none, and of a model
    with itself. With side "both" a pair stands in both places, and both directions of an asymmetric measure count
    alike."""
    seen = Crossed.of(pairs.assign(statistic=pairs[column]), side, rows)
    mean = np.divide(seen.total, seen.count, out=np.full(seen.total.shape, math.nan), where=seen.count > 0)
    at = {name: j for j, name in enumerate(seen.columns)}
    out = np.full((len(rows), len(columns)), math.nan)
    for j, name in enumerate(columns):
        if name in at:
            out[:, j] = mean[:, at[name]]
    out[np.array(rows, object)[:, None] == np.array(columns, object)[None, :]] = math.nan
    return out
