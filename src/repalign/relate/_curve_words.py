"""Curves in sentences: what every line does, at which n, against which chance, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from repalign.relate._words import noun, p_words

if TYPE_CHECKING:
    from repalign.relate._curve import Curve


def curve_sentences(made: Curve) -> str:
    """The lines of means, one sentence each, then n, intervals and what was left out."""
    told = f"{made.quantity}, mean over pairs of models, by {noun(made.x_label)}"
    out = [f"{told} ({made.measure})." if made.measure else f"{told}."]
    for name in made.lines:
        out.append(_line(made, name, lambda point: f"{made.chance_label} {plain(point['chance'])}"))
    out += [count_sentence(made.table, "pair", "n_pairs"), _interval_sentence(made)]
    return " ".join([*out, *caveats(made)])


def trend_sentences(made: Curve, what: str) -> str:
    """The lines of trends: `what` names the trend, for instance "Spearman with parameters"."""
    out = [f"{made.quantity} by {noun(made.x_label)} ({what})."]
    for name in made.lines:
        out.append(_line(made, name, lambda point: p_words(point["pvalue"])))
    out.append(count_sentence(made.table, "model", "n_models"))
    out.append("0 is no trend; p is of each point on its own (docs/trends.md).")
    return " ".join([*out, *caveats(made)])


def caveats(made: Curve) -> list[str]:
    """What hinders the comparison of points: several n, undefined scores, what has no place on the axis."""
    out, sizes = [], sorted(set(made.table["n"]))
    if len(sizes) > 1 and made.x != "n":
        out.append(f"Points differ in n ({', '.join(f'{n:,}' for n in sizes)}), and so in their chance level.")
    undefined = int(made.table["n_undefined"].to_numpy().sum())
    if undefined:
        out.append(f"{undefined} undefined score{'s' * (undefined != 1)} left out of the means.")
    if made.left_out:
        out.append(f"Left out: {', '.join(made.left_out)}.")
    return out


def count_sentence(table: pd.DataFrame, thing: str, column: str) -> str:
    """n and the number of pairs or models, as ranges where they differ."""
    return f"n = {span(table['n'].tolist())} stimuli, {span(table[column].tolist())} {thing}s at every point."


def span(values: Sequence[Any]) -> str:
    """ "1,024", or "256 to 1,024"."""
    low, high = int(min(values)), int(max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def plain(value: float) -> str:
    """Three significant digits with a true minus sign."""
    return "undefined" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def bracket(value: float, low: float, high: float) -> str:
    """A number and its interval, the number alone where there is none."""
    return plain(value) if math.isnan(low) else f"{plain(value)} [{plain(low)}, {plain(high)}]"


def _line(made: Curve, name: str, told: Any) -> str:
    points = made.line(name)
    defined = points.loc[points["value"].notna()]
    start = f"{name}: " if name else ""
    if defined.empty:
        return f"{start}undefined at all {len(points)} points."
    ends = [*defined.iloc[[0, -1]].to_dict("records")][: len(defined)]
    text = ", ".join(
        f"{bracket(p['value'], p['low'], p['high'])} at {_place(made, p['x'])} ({told(p)})" for p in ends
    )
    top = defined.loc[defined["value"].idxmax()]
    if len(defined) > 2 and top["x"] not in (ends[0]["x"], ends[-1]["x"]):
        text += f"; highest, {plain(top['value'])}, at {_place(made, top['x'])}"
    return f"{start}{text}."


def _place(made: Curve, x: Any) -> str:
    return f"{made.x} = {plain(x) if isinstance(x, float) and abs(x) < 1000 else f'{x:,.0f}'}" if made.numbers else str(x)


def _interval_sentence(made: Curve) -> str:
    told = list(dict.fromkeys(made.table["units"]))
    level = f"{100 * made.level:g} %"
    if told == [""]:
        return "No interval: neither side has three models."
    left = "; ".join(units for units in told[:2] if units) + (" (elsewhere others)" if len(told) > 2 else "")
    held = " The reference and the deviation are held fixed in it." if made.relative else ""
    return f"{level} intervals leave out one at a time of {left}.{held}"

