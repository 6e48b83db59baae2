"""Effects of several factors in sentences, with their caveats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from repalign.relate._words import FEW_MODELS, p_words, signed

if TYPE_CHECKING:
    from repalign.relate._effects import Effects


def sentences(found: Effects) -> str:
    """The factors by their share, how they were tested, and what limits them."""
    explained = "nothing, as all models align alike" if math.isnan(found.r2) else f"{percent(found.r2)} of its variance"
    out = [
        f"Alignment of {found.n} models, each the mean over {found.n_partners} partners, on {len(found.factors)} "
        f"factor{'s' * (len(found.factors) != 1)} at once, which account for {explained}."
    ]
    order = found.table.sort_values("share", ascending=False, kind="stable")
    out += [_factor(row, found) for row in order.to_dict("records")]
    out.append(_method(found))
    out += found.warnings
    if found.n < FEW_MODELS:
        out.append(f"With {found.n} models, one model more or less can change this picture.")
    out.append("An effect is a difference between these models with the other named factors held; what was not named is not.")
    if found.left_out:
        out.append(f"Left out: {', '.join(found.left_out)}.")
    return " ".join(out)


def _factor(row: dict[str, Any], found: Effects) -> str:
    tested = f"{p_words(row['pvalue'])}, share {percent(row['share'])}"
    if row["kind"] == "number":
        ends = f"{percent(found.level)} interval {signed(row['low'])} to {signed(row['high'])}"
        ends = "no interval" if math.isnan(row["low"]) else ends
        unit = f"{signed(row['per_unit'])} {'tenfold' if row['log'] else 'per unit'}"
        return f"{row['label']}: {signed(row['effect'])} per standard deviation ({ends}; {unit}; {tested})."
    levels = found.levels.loc[found.levels["factor"] == row["factor"]].sort_values("effect", ascending=False)
    told = ", ".join(f"{r['level']} {signed(r['effect'])}" for r in levels.to_dict("records"))
    return f"{row['label']}: {told}, against the mean of these ({tested})."


def _method(found: Effects) -> str:
    units = f"{found.n_units} {'models' if found.unit == 'model' else found.unit + 's'}"
    if found.n_partner_units:
        units += f" and {found.n_partner_units} of the partners"
    interval = f"intervals leave out one of {units} at a time" if found.n_units else "too few units for intervals"
    moved = f"orders and signs of whole {found.unit}s" if found.grouped else "orders"
    return (
        f"Units are {'models' if found.unit == 'model' else found.unit + 's'}, not pairs: {interval}; p compares with "
        f"{found.draws:,} random {moved} of what the other factors leave over."
    )


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.0f} %".replace("-", "−")
