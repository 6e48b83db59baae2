"""The trend itself: points from the table, the line, and what is inferred from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from repalign.errors import RepalignError, did_you_mean
from repalign.models import COMPETENCES, ModelRecord
from repalign.relate._crossed import Crossed
from repalign.relate._fit import Fit
from repalign.relate._inference import DRAWS, TrendInference, infer
from repalign.relate._pairs import LOGGED, PARAMETERS, facts, families_of, names_of, searched, value
from repalign.relate._words import sentences

SIDES = ("x", "y", "both")


@dataclass(frozen=True, eq=False)
class Trend:
    """Alignment of the models of one side against their size or competence.

    `points`: one row per model with the columns model, family, x (in its own unit), alignment (mean over the
    partners), spread (their standard deviation), chance (mean chance level), n_partners and n_undefined.
    `fit` is over log10(x) if `log`; `inference` has its intervals and p-values over models or families. Both are
    None where no line can be drawn. `families` has a fit for every family of three models or more. `text` says all
    that in sentences.
    """

    measure: str
    against: str
    label: str
    side: str
    log: bool
    lower_is_better: bool
    points: pd.DataFrame
    fit: Fit | None
    inference: TrendInference | None = None
    families: Mapping[str, Fit] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    text: str = ""

    @property
    def n(self) -> int:
        """The number of models with a point."""
        return len(self.points)

    @property
    def slope(self) -> float:
        """Change of alignment per unit of x, or per tenfold x if `log`; nan without a fit."""
        return self.fit.slope if self.fit else math.nan

    @property
    def intercept(self) -> float:
        """The line at x = 0 (log10 x = 0 if `log`); nan without a fit."""
        return self.fit.intercept if self.fit else math.nan

    @property
    def r(self) -> float:
        """Pearson's correlation, on log10(x) if `log`; nan without a fit."""
        return self.fit.r if self.fit else math.nan

    @property
    def spearman(self) -> float:
        """Spearman's rank correlation; nan without a fit."""
        return self.fit.spearman if self.fit else math.nan

    @property
    def has_band(self) -> bool:
        """Whether there are enough models, or families, for an interval."""
        return self.inference is not None and not math.isnan(self.inference.df)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x, x in its own unit; nan without a fit."""
        u = self._scaled(x)
        return self.fit.predict(u) if self.fit else np.full(u.shape, math.nan)

    def band(self, x: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the interval of the line at x, for other models with these partners; else nan."""
        u = self._scaled(x)
        if self.inference is None:
            return np.full(u.shape, math.nan), np.full(u.shape, math.nan)
        return self.inference.band(u, level)

    def _scaled(self, x: ArrayLike) -> np.ndarray:
        a = np.asarray(x, float)
        return np.log10(a) if self.log else a


def sides_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """The sides that have trends: ("both",) if all models met all others, else ("x", "y")."""
    sides = run.get("sides") or {}
    return ("both",) if sides.get("x") == sides.get("y") else ("x", "y")


def yardsticks(
    models: Sequence[Mapping[str, Any] | ModelRecord],
    names: Sequence[str] | None = None,
    at_least: int = 2,
    factors: bool = False,
) -> list[str]:
    """What the named models can be related to: parameters and scores that enough of them have, and numbers of `factors`."""
    records = [facts(m) for m in models]
    chosen = [m for m in records if names is None or m["name"] in set(names)]
    parts = ("scores", "factors") if factors else ("scores",)
    keys = dict.fromkeys([PARAMETERS, *(key for part in parts for m in chosen for key in (m.get(part) or {}))])
    return [key for key in keys if sum(value(m, key) is not None for m in chosen) >= at_least]


def yardstick_label(name: str) -> str:
    """A score that no table knows, as words: "nats_per_token" is "Nats per token"."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def trend(
    table: pd.DataFrame,
    models: Sequence[Mapping[str, Any] | ModelRecord],
    against: str = PARAMETERS,
    side: str = "x",
    measure: str | None = None,
    *,
    log: bool | None = None,
    lower_is_better: bool | None = None,
    label: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Trend:
    """Relate the alignment of the models of one side to their parameters or one of their scores.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models, as in the run's description.
    against : "n_parameters", the name of a score, or of a factor that is a number.
    side : "x" or "y"; "both" where all models were compared with all others.
    measure : the first of the table by default.
    log : fit on log10; by default for parameters, width and training steps.
    lower_is_better, label : facts of a score that `COMPETENCES` does not know.
    draws, seed : random reorderings for the p-values, where there are more than 10,000 possible ones.

    Raises
    ------
    RepalignError : unknown side or measure, or no model of this side has such a number.
    """
    if side not in SIDES:
        raise RepalignError(f"no side {side!r}", expected="x, y or both", got=side)
    pairs = searched(table, measure)
    measure = str(pairs["measure"].iloc[0])
    records = {m["name"]: m for m in map(facts, models)}
    known = COMPETENCES.get(against)
    log = against in LOGGED if log is None else log
    if label is None:
        label = known.label if known else yardstick_label(against)
    if lower_is_better is None:
        lower_is_better = known.lower_is_better if known else False
    points, left_out = _points(pairs, records, against, side, log)
    if points.empty:
        names = list(_partners(pairs, side))
        raise RepalignError(
            f"no model of side {side} has {'a positive' if log else 'a'} {against!r}",
            expected="n_parameters or a score of at least one model",
            got=against,
            remedy=did_you_mean(against, yardsticks(list(records.values()), names, factors=True)),
        )
    x = points["x"].to_numpy(float)
    scaled = np.log10(x) if log else x
    y = points["alignment"].to_numpy(float)
    fit, kin = Fit.of(scaled, y), families_of(records)
    inference = infer(Crossed.of(pairs, side, points["model"].tolist()), scaled, kin, draws=draws, seed=seed)
    families = _family_fits(points, scaled)
    text = sentences(label, log, points, fit, inference, families, left_out)
    return Trend(measure, against, label, side, log, lower_is_better, points, fit, inference, families, left_out, text)


def _family_fits(points: pd.DataFrame, x: np.ndarray) -> dict[str, Fit]:
    """A line for every family that has three models or more and is not the only one."""
    y, out = points["alignment"].to_numpy(float), {}
    for family, rows in points.groupby("family", sort=False):
        if family and len(rows) < len(points):
            fit = Fit.of(x[rows.index], y[rows.index])
            if fit is not None:
                out[str(family)] = fit
    return out


def _partners(pairs: pd.DataFrame, side: str) -> dict[str, pd.DataFrame]:
    """The rows of every model of a side, in the table's order."""
    columns = ("model_x", "model_y") if side == "both" else (f"model_{side}",)
    return {n: pairs.loc[np.logical_or.reduce([pairs[c] == n for c in columns])] for n in names_of(pairs, side)}


def _points(
    pairs: pd.DataFrame, records: Mapping[str, Mapping[str, Any]], against: str, side: str, log: bool
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    rows, left_out = [], []
    for name, found in _partners(pairs, side).items():
        record = records.get(name, {})
        x = value(record, against)
        scores = found["statistic"].to_numpy(float)
        defined = np.isfinite(scores)
        if x is None or (log and x <= 0):
            left_out.append(f"{name} (no {against})")
        elif not defined.any():
            left_out.append(f"{name} (no defined score)")
        else:
            rows.append(
                {
                    "model": name,
                    "family": record.get("family") or "",
                    "x": x,
                    "alignment": float(scores[defined].mean()),
                    "spread": float(scores[defined].std(ddof=1)) if defined.sum() > 1 else math.nan,
                    "chance": float(found["null_mean"].to_numpy(float)[defined].mean()),
                    "n_partners": int(defined.sum()),
                    "n_undefined": int((~defined).sum()),
                }
            )
    columns = ["model", "family", "x", "alignment", "spread", "chance", "n_partners", "n_undefined"]
    return pd.DataFrame(rows, columns=columns), tuple(left_out)
