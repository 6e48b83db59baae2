"""The same pairs of models under different variants, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import ModelRecord
from repalign.relate._curve import QUANTITIES, valued
from repalign.relate._curve_words import bracket, plain, span
from repalign.relate._fit import pearson, ranks
from repalign.relate._inference import LEVEL
from repalign.relate._means import mean_of_pairs
from repalign.relate._pairs import facts, families_of, searched

PAIR = ["model_x", "model_y"]
NAMED = 5  # pairs that a sentence names


@dataclass(frozen=True, eq=False)
class Contrast:
    """Pairs of models under several variants; `table` and `differences` have all that a figure shows, `text` says it.

    `table`: one row per pair of models, variant and quantity: model_x, model_y, variant, value, chance, n. `differences`:
    one row per variant after the first: variant, difference (mean of value minus the value of the first variant, over the
    pairs that have both), low, high, spearman and pearson (of the two values over pairs), n_pairs, n_missing (pairs that
    have one of the two only), units. `missing` names these pairs by variant.
    """

    column: str
    quantities: tuple[str, ...]
    variants: tuple[str, ...]
    measure: str | None
    level: float
    table: pd.DataFrame
    differences: pd.DataFrame
    missing: Mapping[str, tuple[tuple[str, str], ...]]
    text: str = ""

    def beside(self, variant: str) -> pd.DataFrame:
        """The pairs that have both: model_x, model_y, first and second value, and both chance levels."""
        both = [self.table.loc[self.table["variant"] == name] for name in (self.variants[0], variant)]
        both = [one.loc[one["value"].notna(), [*PAIR, "value", "chance", "n"]] for one in both]
        return both[0].merge(both[1], on=PAIR, suffixes=("_first", "_second"))


def contrast(
    table: pd.DataFrame,
    *,
    column: str = "variant",
    value: str | tuple[str, str] = "statistic",
    measure: str | None = None,
    models: Sequence[Mapping[str, Any] | ModelRecord] = (),
    level: float = LEVEL,
) -> Contrast:
    """Hold the same pairs of models under different variants against one another.

    Parameters
    ----------
    table : "max" rows (layer searches) of several runs, told apart by `column`.
    column : what differs: "variant", "search", "measure", or any other column. The first value is the one that all others
        are held against.
    value : "statistic", "gain" (score minus chance) or "calibrated"; or two of them, which are then contrasted within the
        rows of one run, and `column` is not looked at.
    measure : the first by default; not where the column is "measure".
    models : records; with families the interval leaves out families where it can.
    level : of the interval of the mean difference, which leaves out one model or family at a time on both sides.

    Raises
    ------
    RepalignError : unknown names; fewer than two variants; a pair that stands twice under a variant; no pair in common.
    """
    quantities = (value,) if isinstance(value, str) else tuple(value)
    for name in quantities:
        if name not in QUANTITIES:
            raise RepalignError(f"no value {name!r} of a pair", got=name, remedy=did_you_mean(name, QUANTITIES))
    if column == "measure" and len(quantities) == 1:
        pairs, measure = table.loc[table["scope"] == "max"], None
    else:
        pairs = searched(table, measure)
        measure = str(pairs["measure"].iloc[0])
    if len(quantities) == 1:
        long, column = _by_column(pairs, column, quantities[0]), column
    else:
        column = "value"
        long = pd.concat([_long(pairs, [QUANTITIES[q][0]] * len(pairs), q) for q in quantities], ignore_index=True)
    variants = tuple(dict.fromkeys(long["variant"]))
    _check(long, variants, column, quantities)
    kin = families_of({m["name"]: m for m in map(facts, models)})
    rows, missing = [], {}
    for name in variants[1:]:
        row, lacking = _difference(long, variants[0], name, kin, level)
        rows.append(row)
        missing[name] = lacking
    differences = pd.DataFrame(rows)
    if not any(differences["n_pairs"].tolist()):
        raise RepalignError(
            f"no pair of models has a score under two values of {column!r}",
            expected=f"the same models under {variants[0]} and another one",
            got="; ".join(f"{v}: {', '.join(_first_pairs(long, v))}" for v in variants[:2]),
        )
    text = _sentences(column, quantities, variants, measure, level, long, differences, missing)
    return Contrast(column, quantities, variants, measure, level, long, differences, missing, text)


def _by_column(pairs: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    if column not in pairs.columns:
        raise RepalignError(
            f"no column {column!r} tells runs apart", got=column, remedy=did_you_mean(column, map(str, pairs.columns))
        )
    return _long(pairs, [str(v) for v in pairs[column]], value)


def _long(pairs: pd.DataFrame, variant: Sequence[str], value: str) -> pd.DataFrame:
    found = valued(pairs, value)
    columns = {"variant": list(variant), "value": found["_value"], "chance": found["_chance"], "n": pairs["n"].to_numpy()}
    return pairs[PAIR].reset_index(drop=True).assign(**columns)


def _check(long: pd.DataFrame, variants: Sequence[str], column: str, quantities: Sequence[str]) -> None:
    if len(variants) < 2:
        raise RepalignError(
            f"there is one {column} only",
            expected="two or more, to hold them against one another",
            got=", ".join(variants),
            remedy="give the rows of several runs, or two values such as value=('statistic', 'calibrated')",
        )
    twice = long.loc[long.duplicated([*PAIR, "variant"])]
    if not twice.empty:
        x, y, variant = twice.iloc[0][[*PAIR, "variant"]]
        raise RepalignError(
            f"{x} and {y} stand more than once under {column} {variant}",
            expected="one row per pair of models and variant",
            got=f"{len(twice)} rows too many",
            remedy="choose the rows of one measure and one setting" if len(quantities) == 1 else "choose one run's rows",
        )


def _difference(
    long: pd.DataFrame, first: str, second: str, kin: Mapping[str, str], level: float
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """One variant against the first: the mean difference over pairs that have both, and the pairs that have one."""
    sides = [long.loc[(long["variant"] == v) & long["value"].notna(), [*PAIR, "value"]] for v in (first, second)]
    joined = sides[0].merge(sides[1], on=PAIR, how="outer", suffixes=("_first", "_second"), sort=False)
    a, b = joined["value_first"].to_numpy(float), joined["value_second"].to_numpy(float)
    both = np.isfinite(a) & np.isfinite(b)
    mean = mean_of_pairs(joined.loc[both], (b - a)[both], kin, level)
    lacking = tuple((str(x), str(y)) for x, y in joined.loc[~both, PAIR].to_numpy())
    related = both.sum() > 2
    return {
        "variant": second,
        "difference": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "spearman": pearson(ranks(a[both]), ranks(b[both])) if related else math.nan,
        "pearson": pearson(a[both], b[both]) if related else math.nan,
        "n_pairs": mean.n_pairs,
        "n_missing": len(lacking),
        "units": mean.units(),
    }, lacking


def _first_pairs(long: pd.DataFrame, variant: str) -> list[str]:
    rows = long.loc[(long["variant"] == variant) & long["value"].notna()].head(2)
    return [f"{x} and {y}" for x, y in rows[PAIR].to_numpy()] or ["none defined"]


def _sentences(
    column: str,
    quantities: Sequence[str],
    variants: Sequence[str],
    measure: str | None,
    level: float,
    long: pd.DataFrame,
    differences: pd.DataFrame,
    missing: Mapping[str, tuple[tuple[str, str], ...]],
) -> str:
    what = QUANTITIES[quantities[0]][0] if len(quantities) == 1 else "Values"
    out = [f"{what} of the same pairs of models by {column}{f' ({measure})' if measure else ''}."]
    complete = long.loc[long["value"].notna()].groupby(PAIR).filter(lambda rows: len(rows) == len(variants))
    if not complete.empty:
        means = complete.groupby("variant", sort=False)[["value", "chance"]].mean()
        told = (f"{v}: mean {plain(means.loc[v, 'value'])} (chance {plain(means.loc[v, 'chance'])})" for v in variants)
        out.append(f"{'; '.join(told)}, over the {len(complete) // len(variants)} pairs that all have.")
    for row in differences.to_dict("records"):
        difference = bracket(row["difference"], row["low"], row["high"])
        spearman = f"Spearman {plain(row['spearman'])} over {row['n_pairs']} pairs"
        out.append(f"{row['variant']} minus {variants[0]}: {difference}; {spearman}.")
        lacking = missing[row["variant"]]
        if lacking:
            named = ", ".join(f"{x} and {y}" for x, y in lacking[:NAMED])
            more = f", and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
            out.append(f"{len(lacking)} pair{'s' * (len(lacking) != 1)} with one of the two only: {named}{more}.")
    units = next((u for u in differences["units"] if u), "")
    left = f"{100 * level:g} % intervals leave out one at a time of {units}"
    out.append(f"n = {span(long['n'].tolist())} stimuli; {left if units else 'no interval: neither side has three models'}.")
    sizes = [set(rows["n"].tolist()) for _, rows in long.groupby("variant")]
    if all(len(one) == 1 for one in sizes) and len(set.union(*sizes)) > 1:
        out.append("Variants differ in n, and so in their chance level.")
    return " ".join(out)
