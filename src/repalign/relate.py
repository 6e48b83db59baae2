"""Alignment related to what the models are: trends against size and competence.

One point is one model of one side: its alignment averaged over the models of the other side. The fit is
ordinary least squares, the band the t interval of the fitted mean. Models are the units: all points share
the same stimuli and the same partners, so the band speaks of other models of this kind, not of other data.
"""

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

PARAMETERS = "n_parameters"
SIDES = ("x", "y", "both")
# A line through two points fits always; with three, the interval of one degree of freedom says nothing.
MIN_MODELS_LINE = 3
MIN_MODELS_BAND = 4
# Below this many models a trend hangs on one or two of them, and the text says so.
FEW_MODELS = 10


@dataclass(frozen=True)
class Fit:
    """Least squares y = intercept + slope * x over n points, with Pearson's and Spearman's correlation.

    Correlations are nan where one of the two variables is constant.
    """

    slope: float
    intercept: float
    r: float
    spearman: float
    n: int
    mean_x: float
    sum_squares_x: float
    residual_sd: float  # with n - 2 degrees of freedom; nan for n < 3

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Fit | None:
        """Fit y on x; None for fewer than three points or where all x are equal."""
        a, b = np.asarray(x, float), np.asarray(y, float)
        n = len(a)
        spread = float(((a - a.mean()) ** 2).sum()) if n else 0.0
        if n < MIN_MODELS_LINE or spread <= 1e-24 * max(1.0, float((a**2).sum())):
            return None
        slope = float(((a - a.mean()) * (b - b.mean())).sum() / spread)
        intercept = float(b.mean() - slope * a.mean())
        residual = b - intercept - slope * a
        sd = math.sqrt(float((residual**2).sum()) / (n - 2))
        ranks = pd.Series(a).rank(), pd.Series(b).rank()
        return cls(slope, intercept, _pearson(a, b), _pearson(*ranks), n, float(a.mean()), spread, sd)

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x."""
        return self.intercept + self.slope * np.asarray(x, float)

    def band(self, x: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The interval of the fitted mean at x: line -+ t(n - 2) * s * sqrt(1/n + (x - mean)^2 / Sxx).

        nan for fewer than four points.
        """
        a = np.asarray(x, float)
        half = self._quantile(level) * self.residual_sd
        half = half * np.sqrt(1 / self.n + (a - self.mean_x) ** 2 / self.sum_squares_x)
        return self.predict(a) - half, self.predict(a) + half

    def slope_interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval of the slope; nan for fewer than four points."""
        half = self._quantile(level) * self.residual_sd / math.sqrt(self.sum_squares_x)
        return self.slope - half, self.slope + half

    def _quantile(self, level: float) -> float:
        from scipy.stats import t

        return float(t.ppf((1 + level) / 2, self.n - 2)) if self.n >= MIN_MODELS_BAND else math.nan


def _pearson(x: ArrayLike, y: ArrayLike) -> float:
    a, b = np.asarray(x, float), np.asarray(y, float)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Trend:
    """Alignment of the models of one side against their size or competence.

    `points`: one row per model with the columns model, family, x (in its own unit), alignment (mean over the
    partners), spread (their standard deviation), chance (mean chance level), n_partners and n_undefined.
    `fit` is over log10(x) if `log`; None where no line can be drawn. `families` has a fit for every family of
    three models or more. `text` says all that in sentences.
    """

    measure: str
    against: str
    label: str
    side: str
    log: bool
    lower_is_better: bool
    points: pd.DataFrame
    fit: Fit | None
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
        """Whether there are enough models for an interval."""
        return self.fit is not None and self.fit.n >= MIN_MODELS_BAND

    def predict(self, x: ArrayLike) -> np.ndarray:
        """The line at x, x in its own unit; nan without a fit."""
        u = self._scaled(x)
        return self.fit.predict(u) if self.fit else np.full(u.shape, math.nan)

    def band(self, x: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the interval of the line at x; nan for fewer than four models."""
        u = self._scaled(x)
        if self.fit is None:
            return np.full(u.shape, math.nan), np.full(u.shape, math.nan)
        return self.fit.band(u, level)

    def _scaled(self, x: ArrayLike) -> np.ndarray:
        a = np.asarray(x, float)
        return np.log10(a) if self.log else a


def sides_of(run: Mapping[str, Any]) -> tuple[str, ...]:
    """The sides that have trends: ("both",) if all models met all others, else ("x", "y")."""
    sides = run.get("sides") or {}
    return ("both",) if sides.get("x") == sides.get("y") else ("x", "y")


def yardsticks(
    models: Sequence[Mapping[str, Any] | ModelRecord], names: Sequence[str] | None = None, at_least: int = 2
) -> list[str]:
    """What the named models can be related to: parameters and the scores that enough of them have."""
    records = [_facts(m) for m in models]
    chosen = [m for m in records if names is None or m["name"] in set(names)]
    keys = dict.fromkeys([PARAMETERS, *(key for m in chosen for key in (m.get("scores") or {}))])
    return [key for key in keys if sum(_value(m, key) is not None for m in chosen) >= at_least]


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
) -> Trend:
    """Relate the alignment of the models of one side to their parameters or one of their scores.

    Parameters
    ----------
    table : the table of an alignment; its "max" rows (layer search) of `measure` are used.
    models : records of the models, as in the run's description.
    against : "n_parameters" or the name of a score.
    side : "x" or "y"; "both" where all models were compared with all others.
    measure : the first of the table by default.
    log : fit on log10; by default for parameters only.
    lower_is_better, label : facts of a score that `COMPETENCES` does not know.

    Raises
    ------
    RepalignError : unknown side or measure, or no model of this side has such a number.
    """
    if side not in SIDES:
        raise RepalignError(f"no side {side!r}", expected="x, y or both", got=side)
    pairs = _searched(table, measure)
    measure = str(pairs["measure"].iloc[0])
    records = {m["name"]: m for m in map(_facts, models)}
    known = COMPETENCES.get(against)
    log = against == PARAMETERS if log is None else log
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
            remedy=did_you_mean(against, yardsticks(list(records.values()), names)),
        )
    x = points["x"].to_numpy(float)
    scaled = np.log10(x) if log else x
    y = points["alignment"].to_numpy(float)
    families = {}
    for family, rows in points.groupby("family", sort=False):
        if family and len(rows) < len(points):
            fit = Fit.of(scaled[rows.index], y[rows.index])
            if fit is not None:
                families[str(family)] = fit
    fit = Fit.of(scaled, y)
    text = _sentences(label, log, points, fit, families, left_out)
    return Trend(measure, against, label, side, log, lower_is_better, points, fit, families, left_out, text)


def _facts(model: Mapping[str, Any] | ModelRecord) -> dict[str, Any]:
    return model.to_dict() if isinstance(model, ModelRecord) else dict(model)


def _value(model: Mapping[str, Any], key: str) -> float | None:
    value = model.get(PARAMETERS) if key == PARAMETERS else (model.get("scores") or {}).get(key)
    if value is None or not math.isfinite(float(value)) or (key == PARAMETERS and value <= 0):
        return None
    return float(value)


def _searched(table: pd.DataFrame, measure: str | None) -> pd.DataFrame:
    pairs = table[table["scope"] == "max"]
    known = list(dict.fromkeys(pairs["measure"]))
    if not known:
        raise RepalignError("the table has no pairs of models", expected="rows of scope 'max'", got="none")
    chosen = known[0] if measure is None else measure
    if chosen not in known:
        raise RepalignError(f"no measure {chosen!r} in the table", got=chosen, remedy=did_you_mean(chosen, known))
    return pairs.loc[pairs["measure"] == chosen]


def _partners(pairs: pd.DataFrame, side: str) -> dict[str, pd.DataFrame]:
    """The rows of every model of a side, in the table's order."""
    columns = ("model_x", "model_y") if side == "both" else (f"model_{side}",)
    names = dict.fromkeys(name for column in columns for name in pairs[column])
    return {str(n): pairs.loc[np.logical_or.reduce([pairs[c] == n for c in columns])] for n in names}


def _points(
    pairs: pd.DataFrame, records: Mapping[str, Mapping[str, Any]], against: str, side: str, log: bool
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    rows, left_out = [], []
    for name, found in _partners(pairs, side).items():
        record = records.get(name, {})
        x = _value(record, against)
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


def _sentences(
    label: str,
    log: bool,
    points: pd.DataFrame,
    fit: Fit | None,
    families: Mapping[str, Fit],
    left_out: Sequence[str],
) -> str:
    """The trend in words, with its caveats."""
    n = len(points)
    models = f"{n} model" + ("" if n == 1 else "s")
    out = []
    if fit is None:
        why = f"all have the same {_noun(label)}" if n >= MIN_MODELS_LINE else "too few for a line"
        out.append(f"{models}: {why}.")
    else:
        out.append(_fit_sentence(label, log, fit, models))
        if n < FEW_MODELS:
            out.append(f"With {models}, one model more or less can change this picture.")
    for family, one in families.items():
        unit = " per tenfold" if log else " per unit"
        out.append(f"Within {family}: {_signed(one.slope)}{unit} (r = {_signed(one.r)}, {one.n} models).")
    for row in points.to_dict("records"):
        if row["n_undefined"]:
            total = row["n_partners"] + row["n_undefined"]
            out.append(f"{row['model']}: {row['n_undefined']} of {total} partners undefined, mean over the rest.")
    if left_out:
        out.append(f"Left out: {', '.join(left_out)}.")
    return " ".join(out)


def _fit_sentence(label: str, log: bool, fit: Fit, models: str) -> str:
    unit = f"tenfold {_noun(label)}" if log else f"unit of {_noun(label)}"
    low, high = fit.slope_interval()
    if fit.n >= MIN_MODELS_BAND:
        interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    else:
        interval = f"fewer than {MIN_MODELS_BAND} models: no interval"
    correlation = f"r = {_signed(fit.r)}, Spearman {_signed(fit.spearman)}"
    return f"Alignment changes by {_signed(fit.slope)} per {unit} ({interval}; {correlation}; {models})."


def _noun(label: str) -> str:
    """A label within a sentence: ordinary words in lower case, names as they are."""
    first = label.split(" ")[0]
    return label[:1].lower() + label[1:] if first.istitle() else label


def _signed(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    return f"{value:+.3g}".replace("-", "−")
