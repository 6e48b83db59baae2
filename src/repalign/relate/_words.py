"""A trend in sentences, with its caveats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from repalign.relate._fit import MIN_MODELS_LINE, Fit
from repalign.relate._inference import TrendInference

# The interval leaves out one model, and what is left must still have a line.
MIN_MODELS_BAND = 4
# Below this many models a trend hangs on one or two of them, and the text says so.
FEW_MODELS = 10


def sentences(
    label: str,
    log: bool,
    points: pd.DataFrame,
    fit: Fit | None,
    inference: TrendInference | None,
    families: Mapping[str, Fit],
    left_out: Sequence[str],
) -> str:
    """The trend in words, with its caveats."""
    n = len(points)
    models = f"{n} model" + ("" if n == 1 else "s")
    out = []
    if fit is None or inference is None:
        why = f"all have the same {noun(label)}" if n >= MIN_MODELS_LINE else "too few for a line"
        out.append(f"{models}: {why}.")
    else:
        out += [_fit_sentence(label, log, fit, inference, models), inference.method]
        out += _family_sentences(inference, log, points)
        if n < FEW_MODELS:
            out.append(f"With {models}, one model more or less can change this picture.")
    for family, one in families.items():
        unit = " per tenfold" if log else " per unit"
        out.append(f"Within {family}: {signed(one.slope)}{unit} (r = {signed(one.r)}, {one.n} models).")
    for row in points.to_dict("records"):
        if row["n_undefined"]:
            total = row["n_partners"] + row["n_undefined"]
            out.append(f"{row['model']}: {row['n_undefined']} of {total} partners undefined, mean over the rest.")
    if left_out:
        out.append(f"Left out: {', '.join(left_out)}.")
    return " ".join(out)


def _fit_sentence(label: str, log: bool, fit: Fit, found: TrendInference, models: str) -> str:
    unit = f"tenfold {noun(label)}" if log else f"unit of {noun(label)}"
    slope = f"{_interval(fit, found, label)}, {p_words(found.slope_pvalue)}"
    low, high = found.spearman_interval
    ranked = "" if math.isnan(low) else f", 95 % interval {signed(low)} to {signed(high)}"
    correlation = f"r = {signed(fit.r)}; Spearman {signed(fit.spearman)}{ranked}, {p_words(found.spearman_pvalue)}"
    return f"Alignment changes by {signed(fit.slope)} per {unit} ({slope}; {correlation}; {models})."


def _interval(fit: Fit, found: TrendInference, label: str) -> str:
    low, high = found.slope_interval
    if fit.n < MIN_MODELS_BAND:
        return f"fewer than {MIN_MODELS_BAND} models: no interval"
    if math.isnan(low):
        return f"no interval: without one {found.unit} all have the same {noun(label)}"
    return f"95 % interval {signed(low)} to {signed(high)}"


def _family_sentences(found: TrendInference, log: bool, points: pd.DataFrame) -> list[str]:
    """The slope within and between families, and a warning where families are too few to be units."""
    unit, out = "per tenfold" if log else "per unit", []
    if found.within:
        one = found.within
        families = f"{one.n_models} models of {one.n_families} famil{'y' if one.n_families == 1 else 'ies'}"
        out.append(f"Within families: {signed(one.slope)} {unit}, {p_words(one.pvalue)} ({families}).")
    if found.between:
        one = found.between
        out.append(f"Between the means of {one.n_families} families: {signed(one.slope)} {unit}, {p_words(one.pvalue)}.")
    families = points["family"].tolist()
    named = [family for family in families if family]
    if found.unit == "model" and len(set(named)) < len(named) and len(set(families)) > 1:
        why = "Families are too few, or one is too large, for families to be the units"
        out.append(f"{why}: where they differ for reasons of their own, p is too small.")
    return out


def p_words(value: float) -> str:
    """A p-value in a sentence."""
    return "p undefined" if math.isnan(value) else f"p = {value:.2g}"


def noun(label: str) -> str:
    """A label within a sentence: ordinary words in lower case, names as they are."""
    first = label.split(" ")[0]
    return label[:1].lower() + label[1:] if first.istitle() else label


def signed(value: float) -> str:
    """Three significant digits with a sign."""
    if math.isnan(value):
        return "undefined"
    return f"{value:+.3g}".replace("-", "−")
