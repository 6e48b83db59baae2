"""What the figure of several factors at once shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repalign import text as words
from repalign.relate import Effects


@dataclass(frozen=True, eq=False)
class EffectsFrame:
    """One row per number and per level of a category, the factors with the largest share first, from top to bottom.

    `effect`, `low` and `high` are changes of alignment: of one standard deviation of a number, or of a level against the
    mean of its factor's levels; low and high are nan without an interval. `remarks` stand at the first row of a factor.
    """

    title: str
    subtitle: str
    x_label: str
    labels: list[str]
    factors: np.ndarray  # which factor each row is of, 0 for the first
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    remarks: list[str]  # "" but at a factor's first row
    hover: list[str]
    note: str


def effects_frame(effects: Effects) -> EffectsFrame:
    """The rows of a figure of effects."""
    labels, factors, ends, remarks = [], [], [], []
    order = effects.table.sort_values("share", ascending=False, kind="stable")
    for k, row in enumerate(order.to_dict("records")):
        remark = f"share {100 * row['share']:.0f} %, p {_equals(words.pvalue(row['pvalue'], effects.draws))}"
        if row["kind"] == "number":
            shown = [{**row, "level": f"{row['label']}{', log' if row['log'] else ''}, per sd"}]
        else:
            found = effects.levels.loc[effects.levels["factor"] == row["factor"]].to_dict("records")
            shown = [{**one, "level": f"{row['label']}: {one['level']}"} for one in found]
        labels += [one["level"] for one in shown]
        factors += [k] * len(shown)
        ends += [(one["effect"], one["low"], one["high"]) for one in shown]
        remarks += [remark, *[""] * (len(shown) - 1)]
    effect, low, high = np.array(ends, float).T
    measured = f"{words.measure_label(effects.measure)}; n = {words.count(effects.n_stimuli)}"
    models = f"{effects.n} model{'s' * (effects.n != 1)}"
    partners = f"{effects.n_partners} partner{'s' * (effects.n_partners != 1)}"
    return EffectsFrame(
        title="What moves alignment",
        subtitle=f"{measured}; {models}, each the mean over {partners}",
        x_label="Change of alignment, the other factors held",
        labels=labels,
        factors=np.array(factors),
        effect=effect,
        low=low,
        high=high,
        remarks=remarks,
        hover=[f"{label}: {words.interval(*row)}" for label, row in zip(labels, ends, strict=True)],
        note=_note(effects),
    )


def _note(effects: Effects) -> str:
    units = effects.unit + "s"
    bars = f"Bars: {100 * effects.level:g} % intervals over {units}."
    bars = bars if effects.n_units else f"Too few {units} for intervals."
    return f"{bars} Shares sum to R² = {100 * effects.r2:.0f} %." + "".join(f" {w}" for w in effects.warnings)


def _equals(text: str) -> str:
    return text if text[:1] in "≤<–" else f"= {text}"
