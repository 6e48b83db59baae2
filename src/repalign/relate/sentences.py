"""Findings in sentences: what was found, on how much, how sure it is, and what limits it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repalign.relate.findings import DISTANCES, FEW_MODELS, MIN_MODELS_BAND, OVER, QUANTITIES, noun
from repalign.relate.jackknife import LEVEL, MIN_MODELS_LINE, Fit
from repalign.relate.permutations import FEW_ORDERS
from repalign.text import counted, named, plural, span

if TYPE_CHECKING:
    from repalign.relate.agreements import Agreement
    from repalign.relate.binning import Bins
    from repalign.relate.curves import Contrast, Curve, TrendCurve
    from repalign.relate.factors import Effects
    from repalign.relate.maps import ModelMap
    from repalign.relate.matched import Matched
    from repalign.relate.replication import Beside
    from repalign.relate.trends import Trend, TrendInference

Sentences = Iterator[str]

NAMED = 5  # pairs that a sentence names
LISTED = 8  # names without a counterpart that a sentence lists


# --- numbers and counts --------------------------------------------------------------------------


def plain(value: float) -> str:
    """Three significant digits with a true minus sign."""
    return "undefined" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def signed(value: float) -> str:
    """Three significant digits with a sign."""
    return "undefined" if math.isnan(value) else f"{value:+.3g}".replace("-", "−")


def p_words(value: float) -> str:
    """A p-value in a sentence."""
    return "p undefined" if math.isnan(value) else f"p = {value:.2g}"


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return "undefined" if math.isnan(share) else f"{100 * share:.0f} %".replace("-", "−")


def bracket(value: float, low: float, high: float) -> str:
    """A number and its interval; the number alone without one."""
    return plain(value) if math.isnan(low) else f"{plain(value)} [{plain(low)}, {plain(high)}]"


def interval(level: float, low: float, high: float, number: Callable[[float], str] = signed) -> str:
    """The ends of an interval in words, "" without one."""
    return "" if math.isnan(low) else f"{100 * level:g} % interval {number(low)} to {number(high)}"


def _left_out(names: Sequence[str], why: str = "") -> Sentences:
    if names:
        yield f"Left out{why}: {', '.join(names)}."


def _few_models(n: int) -> Sentences:
    if n < FEW_MODELS:
        yield f"With {counted(n, 'model')}, one model more or less can change this picture."


# --- trends --------------------------------------------------------------------------------------


def trend(found: Trend) -> Sentences:
    """The line, its inference, families, and caveats."""
    models, unit = counted(found.n, "model"), "per tenfold" if found.log else f"per {found.unit.split(' ')[0]}"
    if found.fit is None or found.inference is None:
        same = f"all have the same {noun(found.label)}"
        yield f"{models}: {same if found.n >= MIN_MODELS_LINE else 'too few for a line'}."
    else:
        yield _line(found, found.fit, found.inference, models)
        yield found.inference.method
        yield from _families(found.inference, unit, found.points["family"].tolist())
        yield from _few_models(found.n)
    yield from _ending(found)
    for family, one in found.families.items():
        yield f"Within {family}: {signed(one.slope)} {unit} (r = {signed(one.r)}, {one.n} models)."
    for model, lost, n in zip(*(found.points[c] for c in ("model", "n_undefined", "n_partners")), strict=True):
        if lost:
            yield f"{model}: {lost} of {n + lost} partners undefined, mean over the rest."
    yield from _left_out(found.left_out)


def _ending(found: Trend) -> Sentences:
    """The curve that ends: where, how sure that is, and whether a straight line does as well."""
    bent = found.saturation
    if bent is None or isinstance(bent, str):
        yield from [bent] if bent else []
        return
    gain = bent.line_aicc - bent.aicc
    if bent.line_does:
        why = "no bend is seen" if not bent.bends else f"AICc is smaller by {plain(gain)} with the bend" if gain > 0 else \
            f"AICc is smaller by {plain(-gain)} without the bend"  # fmt: skip
        yield f"A straight line does as well as a curve that ends ({why}): these models do not say where it ends."
    end = plain(bent.end) if bent.bends else "beyond any number"
    high = "no upper end" if math.isinf(bent.high) else plain(bent.high)
    low = "no lower end" if math.isinf(bent.low) else plain(bent.low)
    sign, how = ("", "half the lowest") if bent.lower_is_better else ("−", "twice the highest")
    yield (
        f"A curve s = end − c x^{sign}a ends at {end} (95 % interval {low} to {high}, models resampled {bent.draws} times, "
        f"{percent(bent.unbounded)} of which do not bend). It is not read beyond {noun(found.label)} {plain(bent.limit)}, {how} of "
        "these models."
    )


def _line(found: Trend, fit: Fit, inference: TrendInference, models: str) -> str:
    label, (low, high) = noun(found.label), inference.slope_interval
    if fit.n < MIN_MODELS_BAND:
        ends = f"fewer than {MIN_MODELS_BAND} models: no interval"
    else:
        none = f"no interval: without one {inference.unit} all have the same {label}"
        ends = interval(LEVEL, low, high) or none
    ranked = interval(LEVEL, *inference.spearman_interval)
    correlation = f"r = {signed(fit.r)}; Spearman {signed(fit.spearman)}{', ' * bool(ranked)}{ranked}"
    return (
        f"Alignment changes by {signed(fit.slope)} per {f'tenfold {label}' if found.log else found.unit} "
        f"({ends}, {p_words(inference.slope_pvalue)}; {correlation}, {p_words(inference.spearman_pvalue)}; {models})."
    )


def _families(inference: TrendInference, unit: str, families: Sequence[str]) -> Sentences:
    """The slope within and between families, and a warning if families are too few to be units."""
    if one := inference.within:
        models = f"{one.n_models} models of {counted(one.n_families, 'family')}"
        yield f"Within families: {signed(one.slope)} {unit}, {p_words(one.pvalue)} ({models})."
    if one := inference.between:
        yield f"Between the means of {one.n_families} families: {signed(one.slope)} {unit}, {p_words(one.pvalue)}."
    named = [family for family in families if family]
    if inference.unit == "model" and len(set(named)) < len(named) and len(set(families)) > 1:
        why = "Families are too few, or one is too large, for families to be the units"
        yield f"{why}: where they differ for reasons of their own, p is too small."


def method(found: TrendInference) -> str:
    """How a trend was inferred, in a sentence."""
    moved = "the families, and of the models within them," if found.unit == "family" else "the models"
    orders = f"all {found.n_orders:,} reorderings" if found.exact else f"{found.draws:,} random reorderings"
    tested = f"p compares with {orders} of {moved} over the horizontal axis"
    if math.isnan(found.df):
        return f"The units are models, not pairs: {tested}."
    units = counted(found.n_units, found.unit)
    if found.one_set:
        units += ", on both sides of their pairs"
    elif found.partner_unit:
        units += f" and {counted(found.n_partner_units, f'partner {found.partner_unit}')}"
    else:
        units += ", with these partners only"
    left = f"the interval leaves out one at a time (t with {found.df:.1f} degrees of freedom)"
    return f"The units are {units}, not pairs: {left}, {tested}."


# --- several factors -----------------------------------------------------------------------------


def effects(found: Effects) -> Sentences:
    """The factors by their share, how they were tested, and what limits them."""
    explained = "nothing, as all models align alike" if math.isnan(found.r2) else f"{percent(found.r2)} of its variance"
    models = f"{found.n} models, each the mean over {found.n_partners} partners"
    yield f"Alignment of {models}, on {counted(len(found.factors), 'factor')} at once, which account for {explained}."
    for row in found.table.sort_values("share", ascending=False, kind="stable").to_dict("records"):
        tested = f"{p_words(row['pvalue'])}, share {percent(row['share'])}"
        if row["kind"] == "number":
            ends = interval(found.level, row["low"], row["high"]) or "no interval"
            each = f"{signed(row['per_unit'])} {'tenfold' if row['log'] else 'per unit'}"
            yield f"{row['label']}: {signed(row['effect'])} per standard deviation ({ends}; {each}; {tested})."
        else:
            levels = found.levels.loc[found.levels["factor"] == row["factor"]].sort_values("effect", ascending=False)
            shown = ", ".join(f"{r['level']} {signed(r['effect'])}" for r in levels.to_dict("records"))
            yield f"{row['label']}: {shown}, against the mean of these ({tested})."
    units = f"{found.n_units} {found.unit}s"
    if found.n_partner_units:
        units += f" and {found.n_partner_units} of the partners"
    left = f"intervals leave out one of {units} at a time" if found.n_units else "too few units for intervals"
    moved = f"orders and signs of whole {found.unit}s" if found.grouped else "orders"
    tested = f"p compares with {found.draws:,} random {moved} of what the other factors leave over"
    yield f"Units are {found.unit}s, not pairs: {left}; {tested}."
    yield from found.warnings
    yield from _few_models(found.n)
    yield "An effect is a difference between these models with the other named factors held; what was not named is not."
    yield from _left_out(found.left_out)


# --- bins, maps, agreement -----------------------------------------------------------------------


def bins(found: Bins) -> Sentences:
    """The two ends and their difference, or the only bin that has pairs."""
    partners = "" if found.side == "both" else ", all partners"
    alignment, label = f"alignment ({found.measure}, n = {found.n_stimuli:,}{partners})", noun(found.label)
    rows = [row for row in found.within.to_dict("records") if row["n_pairs"]]
    if len(rows) < 2:
        what = "no bin has a pair with a score"
        for row in rows:
            what = f"only the bin {row['label_x']} has pairs, and its {alignment} is {_bin(found, row)}"
        yield f"Of {counted(found.n, 'model')} by {label}, {what}."
    else:
        least, most = rows[0], rows[-1]
        ends = interval(found.level, *found.difference_interval) or "no interval"
        best = f"{alignment} of the most competent bin ({most['label_x']}) is {_bin(found, most)}"
        yield f"By {label}, {best}; of the least ({least['label_x']}) it is {_bin(found, least)}."
        orders = f"{found.draws:,} reorderings of the {found.n} models over the bins"
        yield f"Difference {signed(found.difference)} ({ends}; {p_words(found.pvalue)} from {orders})."
    units = sorted(set(found.table["unit"]) - {""})
    if units:
        yield f"Intervals leave out one {' or '.join(units)} at a time, not one pair."
    families = [f for f in found.models["family"] if f]
    if len(set(families)) < len(families):
        yield "p takes models as exchangeable: where families differ for other reasons, it is too small."
    yield from _left_out(found.left_out)


def _bin(found: Bins, row: Mapping[Any, Any]) -> str:
    """ "0.31 (95 % interval 0.28 to 0.34, chance 0.01; 12 models, 66 pairs)"."""
    size = f"{counted(row['n_models_x'], 'model')}, {counted(row['n_pairs'], 'pair')}"
    ends = interval(found.level, row["low"], row["high"], plain) or "no interval"
    return f"{plain(row['alignment'])} ({ends}, chance {plain(row['chance'])}; {size})"


def model_map(found: ModelMap) -> Sentences:
    """How far the plane is to be believed, and how often the distances are none."""
    name = "Metric MDS" if found.method == "mds" else "UMAP"
    stress = "" if math.isnan(found.stress) else f"stress-1 {found.stress:.2g}, "
    compared = ""
    if found.draws:
        chance = f"the same distances dealt out at random reach {signed(found.chance)}"
        compared = f"; {chance}, {p_words(found.pvalue)} from {found.draws} draws"
    yield (
        f"{name} of {found.n} models by {DISTANCES[found.distance]} ({found.measure}, n = {found.n_stimuli:,}): "
        f"{stress}Spearman of distances in the plane with the given ones {signed(found.faithfulness)} over "
        f"{math.comb(found.n, 2)} pairs{compared}."
    )
    share = "none" if found.violations == 0 else f"{100 * found.violations:.2g} %"
    yield f"Of {found.n_triangles:,} triangles of models, {share} violate the triangle inequality."
    yield from _left_out(found.left_out, ", for undefined scores")


def agreement(found: Agreement) -> Sentences:
    """The most and the least alike measures, how that was inferred, and what was left out."""
    rows = found.table.sort_values("spearman", kind="stable").to_dict("records")
    known = [row for row in rows if not math.isnan(row["spearman"])]
    over = f"{max(row['n_pairs'] for row in rows):,} {OVER[found.over]} of {found.n_models} models"
    start = f"{len(found.names)} {found.things} over {over}, {found.counted_n}"
    if not known:
        yield f"{start}: no two {found.things} have a correlation."
        return
    least, most = (_two_measures(found, known[end]) for end in (0, -1))
    middle = signed(statistics.median(row["spearman"] for row in known))
    many = f"median Spearman {middle}; most alike {most}; least {least}"
    yield f"{start}: {f'Spearman of {most}' if len(known) == 1 else many}."
    units = " or ".join(plural(kind) for kind in found.unit.split(" or "))
    left = f"Intervals leave out one of {found.n_units} {units} at a time" if found.unit else "Too few models for an interval"
    if found.n_orders < FEW_ORDERS:
        yield f"{left}; no p, for {counted(found.n_orders, 'reordering')} of the models are too few."
    else:
        orders = f"all {found.n_orders:,}" if found.exact else f"{found.draws:,} random"
        yield f"{left}; p moves models, not pairs (Mantel, {orders} reorderings)."
    if found.distances:
        yield f"Distances with their sign turned: {', '.join(found.distances)}."
    lost = [row["n_left_out"] for row in rows if row["n_left_out"]]
    if lost:
        cells = f"for {len(lost)} of {len(rows)} pairs of {found.things}"
        yield f"Pairs without both scores are left out: up to {max(lost):,}, {cells}."


def _two_measures(found: Agreement, row: Mapping[Any, Any]) -> str:
    ends = interval(found.level, row["low"], row["high"])
    inferred = f"{ends}{', ' * bool(ends)}{p_words(row['pvalue'])}"
    return f"{row[f'{found.across}_a']} and {row[f'{found.across}_b']}, {signed(row['spearman'])} ({inferred})"


# --- several runs --------------------------------------------------------------------------------


def curve(found: Curve) -> Sentences:
    """The lines of means, one sentence each, then n, intervals and what was left out."""
    measure = f" ({found.measure})" if found.measure else ""
    yield f"{found.quantity}, mean over pairs of models, by {noun(found.x_label)}{measure}."
    yield from _lines(found, lambda point: f"{found.chance_label} {plain(point['chance'])}", "pair", "n_pairs")
    units = found.table["units"].unique().tolist()
    if units == [""]:
        yield "No interval: neither side has three models."
    else:
        left = "; ".join(filter(None, units[:2])) + (" (elsewhere others)" if len(units) > 2 else "")
        held = " The reference and the deviation are held fixed in it." if found.relative else ""
        yield f"{100 * found.level:g} % intervals leave out one at a time of {left}.{held}"
    yield from _caveats(found)


def trend_curve(found: TrendCurve) -> Sentences:
    """The lines of trends; `about` names the trend."""
    yield f"{found.quantity} by {noun(found.x_label)} ({'; '.join(filter(None, [found.measure, found.about]))})."
    yield from _lines(found, lambda point: p_words(point["pvalue"]), "model", "n_models")
    yield "0 is no trend; p is of each point on its own (docs/trends.md)."
    yield from _caveats(found)


def _lines(found: Curve, more: Callable[[Mapping[Any, Any]], str], thing: str, column: str) -> Sentences:
    """The two ends and the highest point of every line; then n, and how many things each point rests on."""

    def place(x: Any) -> str:
        if not found.numbers:
            return str(x)
        return f"{found.x} = {plain(x) if abs(x) < 1000 else f'{x:,.0f}'}"

    for name in found.lines:
        points, start = found.line(name), f"{name}: " if name else ""
        defined = points.loc[points["value"].notna()].to_dict("records")
        if not defined:
            yield f"{start}undefined at all {len(points)} points."
            continue
        ends = [defined[0], defined[-1]][: len(defined)]
        text = ", ".join(f"{bracket(p['value'], p['low'], p['high'])} at {place(p['x'])} ({more(p)})" for p in ends)
        top = max(defined, key=lambda p: p["value"])
        if top["x"] not in (ends[0]["x"], ends[-1]["x"]):
            text += f"; highest, {plain(top['value'])}, at {place(top['x'])}"
        yield f"{start}{text}."
    sizes, counts = (span(found.table[c].tolist()) for c in ("n", column))
    yield f"n = {sizes} stimuli, {counts} {thing}s at every point."


def _caveats(found: Curve) -> Sentences:
    """What hinders the comparison of points: several n, undefined scores, what has no place on the axis."""
    sizes = sorted(set(found.table["n"]))
    if len(sizes) > 1 and found.x != "n":
        yield f"Points differ in n ({', '.join(f'{n:,}' for n in sizes)}), and so in their chance level."
    undefined = sum(found.table["n_undefined"].tolist())
    if undefined:
        yield f"{counted(undefined, 'undefined score')} left out of the means."
    yield from _left_out(found.left_out)


def contrast(found: Contrast) -> Sentences:
    """The means of the variants, every variant against the first, and what limits the comparison."""
    what = QUANTITIES[found.quantities[0]][0] if len(found.quantities) == 1 else "Values"
    yield f"{what} of the same pairs of models by {found.column}{f' ({found.measure})' if found.measure else ''}."
    defined = found.table.loc[found.table["value"].notna()]
    complete = defined.loc[defined.groupby(["model_x", "model_y"])["variant"].transform("size") == len(found.variants)]
    if not complete.empty:
        means = complete.groupby("variant", sort=False)[["value", "chance"]].mean()
        each = (f"{v}: mean {plain(means.loc[v, 'value'])} (chance {plain(means.loc[v, 'chance'])})" for v in found.variants)
        yield f"{'; '.join(each)}, over the {len(complete) // len(found.variants)} pairs that all have."
    for row in found.differences.to_dict("records"):
        correlation = f"Spearman {plain(row['spearman'])} over {row['n_pairs']} pairs"
        yield f"{row['variant']} minus {found.variants[0]}: {bracket(row['difference'], row['low'], row['high'])}; {correlation}."
        lacking = [f"{x} and {y}" for x, y in found.missing[row["variant"]]]
        if lacking:
            yield f"{counted(len(lacking), 'pair')} with one of the two only: {named(lacking, NAMED)}."
    units = next(filter(None, found.differences["units"]), "")
    left = f"{100 * found.level:g} % intervals leave out one at a time of {units}"
    yield f"n = {span(found.table['n'].tolist())} stimuli; {left if units else 'no interval: neither side has three models'}."
    sizes = [set(rows["n"].tolist()) for _, rows in found.table.groupby("variant")]
    if all(len(one) == 1 for one in sizes) and len(set.union(*sizes)) > 1:
        yield "Variants differ in n, and so in their chance level."


def beside(found: Beside) -> Sentences:
    """How far ours agree with the published scores, and what has no counterpart."""
    table = found.table
    defined = table.loc[table["ours"].notna()]
    ours, chance, theirs = (plain(float(defined[c].mean())) for c in ("ours", "chance", "published"))
    yield f"{found.measure} beside {found.source}: {len(defined)} pairs of models, ours at n = {found.n_stimuli:,} stimuli."
    mean = f"mean {bracket(found.mean_difference, *found.interval)}, root mean square {plain(found.rmse)}"
    yield f"Ours minus published: {mean}; our mean {ours} (chance {chance}), published {theirs}."
    if found.fit is None:
        yield f"Fewer than {MIN_MODELS_LINE} pairs, or all published alike: no slope."
    else:
        related = f"Pearson {plain(found.fit.r)}, Spearman {plain(found.fit.spearman)}"
        yield f"Slope of ours on theirs {plain(found.fit.slope)}; {related}, over pairs, which share models."
    if found.units:
        yield f"The {100 * found.level:g} % interval leaves out one at a time of {found.units}."
    for _, rows in table.groupby("point", sort=False):
        labels = rows["published_x"].unique()
        if len(labels) > 1:
            yield f"{' and '.join(labels)} share one published value."
    if len(table) > len(defined):
        yield f"{len(table) - len(defined)} of our scores undefined."
    for what, names in (
        ("Published and not among ours", found.unmatched_published),
        ("Ours and not published", found.unmatched_ours),
        ("Pairs with one of the two scores only", [f"{x} and {y}" for x, y in found.missing]),
    ):
        if names:
            yield f"{what}: {named(names, LISTED)}."


def matched(found: Matched) -> Sentences:
    """The mean difference of every question, and what it holds for."""
    for question in found.questions:
        row = found.overall(question)
        if not row["n_partners"]:
            yield f"{question}: no partner met both."
            continue
        ends = interval(found.level, row["low"], row["high"])
        kind = "families" if row["unit"] == "family" else "models"
        over = f", over {row['n_units']} {kind} of partners" if ends else "; too few partners for an interval"
        yield (
            f"{question}: {signed(row['difference'])} ({ends or 'no interval'}{over}; {plain(row['score_first'])} against "
            f"{plain(row['score_second'])}; {counted(row['n_pairs'], 'pair')} of models, {counted(row['n_partners'], 'partner')})."
        )
    yield "It holds for these very pairs, which may differ in more than is asked, and for partners like these."
    yield from _left_out(found.left_out)


OF: dict[str, Callable[[Any], Sentences]] = {
    "trend": trend, "effects": effects, "bins": bins, "map": model_map, "agreement": agreement, "curve": curve,
    "trend_curve": trend_curve, "contrast": contrast, "beside": beside, "matched": matched,
}  # fmt: skip
