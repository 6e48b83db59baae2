"""Our scores beside published ones of the same pairs of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import published_model
from repalign.relate._curve_words import bracket, plain
from repalign.relate._fit import MIN_MODELS_LINE, Fit
from repalign.relate._inference import LEVEL
from repalign.relate._means import mean_of_pairs
from repalign.relate._pairs import searched, stimuli
from repalign.relate._published import Published
from repalign.relate._trend import Trend


@dataclass(frozen=True, eq=False)
class Beside:
    """Pairs of models with our score and the published one; `text` says how far they agree.

    `table`: model_x, model_y (our names), published_x, published_y (the labels), point, family, ours, chance (ours),
    published, difference (ours minus published). `rmse` is the root of the mean squared difference; `interval` that of the
    mean difference over models like these; `fit` is ours on theirs (None below three pairs), with Pearson and Spearman.
    `unmatched_published` and `unmatched_ours` are names without a counterpart, `missing` pairs of matched models that have
    one of the two scores only.
    """

    measure: str
    source: str
    n: int
    table: pd.DataFrame
    fit: Fit | None
    rmse: float
    mean_difference: float
    interval: tuple[float, float]
    unmatched_published: tuple[str, ...]
    unmatched_ours: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]
    text: str

    @property
    def slope(self) -> float:
        """Of our scores on the published ones; nan without a fit."""
        return self.fit.slope if self.fit else math.nan

    @property
    def pearson(self) -> float:
        """Pearson's correlation over pairs; nan without a fit."""
        return self.fit.r if self.fit else math.nan

    @property
    def spearman(self) -> float:
        """Spearman's correlation over pairs; nan without a fit."""
        return self.fit.spearman if self.fit else math.nan


def our_name(label: str, names: Sequence[str]) -> str | None:
    """Our name of a published label: the same text, else the name or spec of the known model that is labelled so."""
    if label in names:
        return label
    known = published_model(label)
    return next((n for n in names if known is not None and n in (known.name, known.spec)), None)


def beside(table: pd.DataFrame, published: Published, measure: str | None = None) -> Beside:
    """Join the layer searches of a result with published scores, by model.

    A published label is our model of the same name, or else the known model that figures label so. The sides need not be
    the same: a pair is looked up both ways round.

    Raises RepalignError if no pair is in both, with the closest names; for an unknown measure; if a pair stands twice.
    """
    pairs = searched(table, measure)
    measure = str(pairs["measure"].iloc[0])
    names = list(dict.fromkeys([*pairs["model_x"], *pairs["model_y"]]))
    _once(pairs)
    labels = list(dict.fromkeys([*published.table["model_x"], *published.table["model_y"]]))
    ours_of = {label: our_name(label, names) for label in labels}
    theirs = published.table.assign(
        **{f"our_{side}": [ours_of[label] for label in published.table[f"model_{side}"]] for side in "xy"}
    )
    rows, missing = _joined(pairs, theirs)
    unmatched = tuple(_near(label, names) for label in labels if ours_of[label] is None)
    unmatched_ours = tuple(name for name in names if name not in ours_of.values())
    if rows.empty:
        raise RepalignError(
            f"{published.name}: no published pair of models is in the table",
            expected="pairs of models that both have",
            got=", ".join(labels[:4]) + (" ..." if len(labels) > 4 else ""),
            remedy="; ".join(f"{label!r}: {did_you_mean(label, names)}" for label in labels[:2]),
        )
    defined = rows.loc[rows["ours"].notna()]
    difference = defined["difference"].to_numpy(float)
    fit = Fit.of(defined["published"], defined["ours"]) if len(defined) else None
    mean = mean_of_pairs(defined, difference)
    rmse = float(np.sqrt(np.mean(difference**2))) if len(defined) else math.nan
    made = Beside(
        measure,
        published.name,
        stimuli(pairs),
        rows,
        fit,
        rmse,
        mean.mean,
        (mean.low, mean.high),
        unmatched,
        unmatched_ours,
        missing,
        "",
    )
    return _with_text(made, mean.units())


def published_points(found: Trend, published: Published, partners: Sequence[str]) -> pd.DataFrame:
    """What was published of a trend's models, or of others, with these partners: point, x, alignment, n_partners.

    alignment is the mean over the partners of ours that have a published score; x the published competence, else that of
    our model of this name. Points without x are left out; there may be none.
    """
    own = dict(zip(found.points["model"], found.points["x"], strict=True))
    given = published.competence(found.against)
    rows = []
    for row in published.table.to_dict("records"):
        for mine, partner in ((row["model_x"], row["model_y"]), (row["model_y"], row["model_x"])):
            if our_name(partner, partners) is None:
                continue
            at = row["point"] if mine == row["model_x"] else mine
            x = given.get(row["point"]) if given is not None and mine == row["model_x"] else own.get(our_name(mine, [*own]))
            rows.append({"point": at, "partner": partner, "x": x, "alignment": row["statistic"]})
            break
    points = pd.DataFrame(rows, columns=["point", "partner", "x", "alignment"]).drop_duplicates(["point", "partner"])
    points = points.dropna(subset="x")
    means = points.groupby("point", sort=False).agg(x=("x", "first"), alignment=("alignment", "mean"), n_partners=("x", "size"))
    return means.reset_index()


def _once(pairs: pd.DataFrame) -> None:
    twice = pairs.loc[pairs.duplicated(["model_x", "model_y"])]
    if not twice.empty:
        x, y = twice.iloc[0][["model_x", "model_y"]]
        raise RepalignError(
            f"{x} and {y} stand more than once in the table",
            expected="the pairs of models of one run",
            got=f"{len(twice)} rows too many",
            remedy="take the rows of one variant",
        )


def _joined(pairs: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[tuple[str, str], ...]]:
    """One row per pair in both, and the pairs of matched models that only one has."""
    ours = {(str(r["model_x"]), str(r["model_y"])): r for r in pairs.to_dict("records")}
    rows, missing, seen = [], [], set()
    for row in theirs.dropna(subset=["our_x", "our_y"]).to_dict("records"):
        x, y = row["our_x"], row["our_y"]
        key = (x, y) if (x, y) in ours else (y, x)
        if key not in ours:
            missing.append((str(x), str(y)))
            continue
        seen.add(key)
        partner = published_model(row["model_y"])
        found = ours[key]
        rows.append(
            {
                "model_x": found["model_x"],
                "model_y": found["model_y"],
                "published_x": row["model_x"],
                "published_y": row["model_y"],
                "point": row["point"],
                "family": partner.family if partner else "",
                "ours": float(found["statistic"]),
                "chance": float(found["null_mean"]),
                "published": row["statistic"],
                "difference": float(found["statistic"]) - row["statistic"],
            }
        )
    matched = set(theirs["our_x"].dropna()), set(theirs["our_y"].dropna())
    for x, y in ours:
        told = any(a in matched[0] and b in matched[1] for a, b in ((x, y), (y, x)))
        if told and (x, y) not in seen:
            missing.append((str(x), str(y)))
    return pd.DataFrame(rows), tuple(missing)


def _near(label: str, names: Sequence[str]) -> str:
    remedy = did_you_mean(label, names)
    return f"{label} ({remedy})" if remedy.startswith("did you mean") else label


def _with_text(made: Beside, units: str) -> Beside:
    table, fit = made.table, made.fit
    defined = table.loc[table["ours"].notna()]
    out = [f"{made.measure} beside {made.source}: {len(defined)} pairs of models, ours at n = {made.n:,} stimuli."]
    chance = plain(float(defined["chance"].mean())) if len(defined) else "undefined"
    out.append(
        f"Ours minus published: mean {bracket(made.mean_difference, *made.interval)}, root mean square {plain(made.rmse)}; "
        f"our mean {plain(float(defined['ours'].mean()))} (chance {chance}), "
        f"published {plain(float(defined['published'].mean()))}."
    )
    if fit is not None:
        related = f"Pearson {plain(fit.r)}, Spearman {plain(fit.spearman)}"
        out.append(f"Slope of ours on theirs {plain(fit.slope)}; {related}, over pairs, which share models.")
    else:
        out.append(f"Fewer than {MIN_MODELS_LINE} pairs, or all published alike: no slope.")
    if units:
        out.append(f"The {100 * LEVEL:g} % interval leaves out one at a time of {units}.")
    shared = [point for point, rows in table.groupby("point", sort=False) if len(set(rows["published_x"].tolist())) > 1]
    for point in shared:
        both = " and ".join(dict.fromkeys(table.loc[table["point"] == point, "published_x"]))
        out.append(f"{both} share one published value.")
    undefined = len(table) - len(defined)
    if undefined:
        out.append(f"{undefined} of our scores undefined.")
    for told, names in (
        ("Published and not among ours", made.unmatched_published),
        ("Ours and not published", made.unmatched_ours),
        ("Pairs with one of the two scores only", [f"{x} and {y}" for x, y in made.missing]),
    ):
        if names:
            more = f", and {len(names) - 8} more" if len(names) > 8 else ""
            out.append(f"{told}: {', '.join(names[:8])}{more}.")
    return replace(made, text=" ".join(out))
