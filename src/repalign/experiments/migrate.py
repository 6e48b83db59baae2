"""Must I re-embed? What a new embedding model changes in the answers of an index, and how much of that a map of its queries gives.

Recall@k between two lists of k answers is the share that they have in common. `kept` compares with the answers after everything
was embedded anew (new queries, new vectors), `fidelity` with those of today (old queries, old vectors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.adapters import FITS, LOW_RANK, NONE, RANK, REGRESSIONS, Adapter, low_rank
from repalign.experiments.base import Found, Input
from repalign.experiments.retrieval import (
    RESAMPLES,
    Array,
    Gallery,
    Grades,
    Lists,
    bounds,
    ends,
    held_out,
    in_common,
    ndcg,
    own_rows,
    rank_biased_overlap,
    read_grades,
    read_vectors,
    reciprocal_rank,
    remarks,
    resampled,
    unit,
)
from repalign.text import Progress, counted, interval, number, silent, size

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look

SAME, ADAPTER, FOR_NOW, RE_EMBED, UNRELATED, TOO_FEW = VERDICTS = (
    "same", "adapter", "adapter for now", "re-embed", "unrelated", "not enough queries",
)  # fmt: skip
TODAY = "old queries, as today"
FEWEST_QUERIES = 50
FEWEST_ANCHORS = 8
ABOVE_CHANCE = 5  # times chance, that some adapter's interval must reach
DEPTH = 100  # of the lists for rank-biased overlap
FIRST_SIZE = 50  # anchors, of the curve
MOST_PAIRS = 1_000_000  # of vectors, for thresholds
SELECTIVE = (0.1, 0.01, 0.001)  # shares of pairs, whose thresholds are mapped where none is named
UNHELD = 3  # the status of a command whose verdict is not the one that was required


# --- both sides, and the judgement -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sides:
    """What is compared: the vectors of today, the anchors in both models, the queries in both.

    everything : all old vectors (n, d_old). old, new : the anchors, (m, d_old) and (m, d_new). queries_old may be missing.
    own_everything, own : where queries are rows of these themselves. grades : of answers among the anchors, if some are judged.
    """

    everything: Array
    old: Array
    new: Array
    queries_old: Array | None
    queries_new: Array
    metric: str = "cosine"
    own_everything: np.ndarray | None = None
    own: np.ndarray | None = None
    ids: tuple[str, ...] | None = None
    query_ids: tuple[str, ...] | None = None
    grades: Grades | None = None

    @property
    def seen(self) -> tuple[Array, Array]:
        """The anchors as a search by this metric sees them, new and old: what adapters are fitted on."""
        return (unit(self.new), unit(self.old)) if self.metric == "cosine" else (self.new, self.old)


@dataclass(frozen=True, eq=False)
class Judged:
    """How much each adapter keeps: `table` as in `Migration`; `kept`, its columns query by query, by name (`TODAY` among them)."""

    table: pd.DataFrame
    kept: Mapping[str, Array]
    adapters: Mapping[str, Adapter]
    today: Lists | None
    later: Lists

    @property
    def best(self) -> str:
        """The fitted adapter that keeps most."""
        return max((name for name in self.adapters if name != NONE), key=lambda name: float(self.kept[name].mean()))


def adapters_of(sides: Sides, rank: int = RANK, rows: np.ndarray | None = None) -> dict[str, Adapter]:
    """All adapters that these anchors, or some of their rows, can tell; regressions need two for each old dimension."""
    new, old = (x if rows is None else x[rows] for x in sides.seen)
    fits = {**FITS, LOW_RANK: lambda x, y: low_rank(x, y, rank)}
    usable = [name for name in FITS if name not in REGRESSIONS or len(new) >= 2 * old.shape[1]]
    return {name: Adapter(name, fits[name](new, old), sides.metric == "cosine", len(new)) for name in usable}


def judge(
    sides: Sides, k: int = 10, *, rank: int = RANK, seed: int = 0, resamples: int = RESAMPLES, depth: int = DEPTH
) -> Judged:
    """Fit every adapter and compare its answers with those of today and those after embedding everything anew.

    depth : of the lists for rank-biased overlap.
    """
    import pandas as pd

    q_old, q_new, m = sides.queries_old, sides.queries_new, len(sides.old)
    depth = max(k, min(depth, m - 1))
    old, new = Gallery(sides.old, sides.metric), Gallery(sides.new, sides.metric)
    whole = None if len(sides.everything) == m else Gallery(sides.everything, sides.metric)
    later = new.nearest(q_new, depth, sides.own)
    today = None if q_old is None else old.nearest(q_old, depth, sides.own)
    today_whole = today if whole is None or q_old is None else whole.nearest(q_old, k, sides.own_everything)
    adapters, rows, kept = adapters_of(sides, rank), [], {}
    fidelity: dict[str, Array] = {}
    answers: dict[str, Lists] = {} if today is None else {TODAY: today}
    if today is not None:
        kept[TODAY], fidelity[TODAY] = in_common(today[:, :k], later[:, :k]), np.ones(len(q_new))
        rows.append({"adapter": TODAY, "rbo": float(rank_biased_overlap(today, later).mean())})
    for name, adapter in adapters.items():
        mapped = adapter.transform(q_new)
        lists = answers[name] = old.nearest(mapped, depth, sides.own)
        kept[name] = in_common(lists[:, :k], later[:, :k])
        row = {"adapter": name, "rbo": float(rank_biased_overlap(lists, later).mean())}
        if q_old is not None and today_whole is not None:
            served = lists if whole is None else whole.nearest(mapped, k, sides.own_everything)
            fidelity[name] = in_common(served[:, :k], today_whole[:, :k])
            wanted = unit(q_old) if adapter.is_unit else q_old
            error = ((wanted - mapped) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
            row |= {"r2": float(1 - error), "cosine": float((unit(wanted) * unit(mapped)).sum(1).mean())}
        rows.append(row)
    columns = {("kept", name): values for name, values in kept.items()}
    columns |= {("fidelity", name): values for name, values in fidelity.items()}
    columns |= {("gain", name): values - kept[TODAY] for name, values in kept.items() if TODAY in kept}
    low, high = bounds(np.stack(list(columns.values()), axis=1), seed, resamples)
    found = {key: (float(v.mean()), float(a), float(b)) for (key, v), a, b in zip(columns.items(), low, high, strict=True)}
    nothing = (float("nan"),) * 3
    for row in rows:
        for what in ("kept", "fidelity", "gain"):
            middle, a, b = found.get((what, row["adapter"]), nothing)
            row |= {what: middle, f"{what}_low": a, f"{what}_high": b}
    order = ["adapter", *(f"{w}{e}" for w in ("kept", "fidelity", "gain") for e in ("", "_low", "_high")), "rbo", "r2", "cosine"]
    if sides.grades is not None:
        order += [*_graded(rows, answers, later, sides.grades, k, seed, resamples)]
    table = pd.DataFrame(rows).reindex(columns=order)
    return Judged(table.assign(queries=len(q_new), k=k, anchors=m), kept, adapters, today, later)


def _graded(
    rows: list[dict[str, Any]], answers: Mapping[str, Lists], later: Lists, grades: Grades, k: int, seed: int, resamples: int
) -> tuple[str, ...]:
    """Put nDCG and MRR of the answers into the rows, with the share of the nDCG after embedding anew; gives their columns."""
    whole = ndcg(later[:, :k], grades)
    known = np.isfinite(whole)
    for row in rows:
        lists = answers[row["adapter"]][:, :k]
        scores = np.stack([ndcg(lists, grades), whole], axis=1)[known]
        means = resampled(scores, seed, resamples)
        (mean, new), (low, high) = scores.mean(0), ends(means[:, :1] / np.maximum(means[:, 1:], 1e-300))
        row |= {"ndcg": mean, "ndcg_share": mean / new if new else float("nan"), "ndcg_share_low": low[0],
                "ndcg_share_high": high[0], "mrr": float(reciprocal_rank(lists, grades)[known].mean())}  # fmt: skip
    return "ndcg", "ndcg_share", "ndcg_share_low", "ndcg_share_high", "mrr"


def verdict_of(judged: Judged, chance: float, same: float = 0.99, enough: float = 0.95) -> tuple[str, str]:
    """One of `VERDICTS`, by the ends of 95 % intervals, and the number that it rests on, in words.

    In this order: fewer than 50 queries; `same`: new queries as they are give the answers of today, low end >= same; `unrelated`:
    the high end of every adapter is below 5 times chance, or a quarter of the way from chance to 1 if that is less; `adapter`: the
    best keeps low end >= enough of the new answers, or of their nDCG where answers are judged; `adapter for now`: it keeps surely
    more of them than the old queries do; else `re-embed`.
    """
    rows = judged.table.set_index("adapter")
    best, none, q = rows.loc[judged.best], rows.loc[NONE], int(rows["queries"].iloc[0])
    keeps = f"the best adapter ({judged.best}) keeps {_said(best, 'kept')} of the new answers"
    if q < FEWEST_QUERIES:
        reach = (best["kept_high"] - best["kept_low"]) / 2
        return TOO_FEW, f"{q} queries, an interval of ±{number(reach)}; {FEWEST_QUERIES} are the fewest"
    if none["fidelity_low"] >= same:
        return SAME, f"new queries as they are give {_said(none, 'fidelity')} of the answers of today"
    reached = rows.drop(index=TODAY, errors="ignore")[["kept_high", "fidelity_high"]].max().max()
    if reached < min(ABOVE_CHANCE * chance, chance + (1 - chance) / 4):  # 5 times chance may be more than all, where m is small
        return UNRELATED, f"{keeps}, chance is {number(chance)}"
    if "ndcg_share" in rows:
        keeps = f"{keeps}, and {_said(best, 'ndcg_share')} of their nDCG by the judged answers"
    if best["ndcg_share_low" if "ndcg_share" in rows else "kept_low"] >= enough:
        return ADAPTER, keeps
    if TODAY not in rows.index:
        return RE_EMBED, f"{keeps}; whether that is more than today cannot be told without the queries in the old model"
    today = f"the old queries {_said(rows.loc[TODAY], 'kept')}; the difference is {_said(best, 'gain')}"
    return (FOR_NOW if best["gain_low"] > 0 else RE_EMBED), f"{keeps}, {today}"


def _said(row: Any, what: str) -> str:
    return interval(row[what], row[f"{what}_low"], row[f"{what}_high"])


MEANING = {
    SAME: "The models agree as far as these queries tell: nothing need be embedded again.",
    ADAPTER: "A map of the new queries into the old space gives the new model's answers: the vectors may stay.",
    FOR_NOW: "Map the new queries now, which is nearer to the new answers than today's, and embed everything again behind it.",
    RE_EMBED: "No adapter is surely nearer to the new answers than what you serve today: embed everything again.",
    UNRELATED: "No adapter finds what the new model finds: check that the ids pair the same texts; else embed everything again.",
    TOO_FEW: "Give more queries: these leave the answer open.",
}


# --- the experiment --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Migration(Found):
    """What changing the model does, from `migrate`.

    table : a row for each adapter, and one for the old queries as they are served today: `kept` of the new answers, `fidelity` to
    those of today, `gain` (kept less that of today, paired), each with its interval; rbo against the new answers (p = .9), and r2
    and cosine of the mapped queries with the old ones. tables : curve (kept by anchors), gallery (agreement by vectors searched),
    thresholds, queries (worst first), hubs (vectors that are found more or less often), cost.
    """

    verdict: str
    because: str
    adapter: Adapter
    best: str
    n: int
    m: int
    q: int
    k: int
    metric: str
    widths: tuple[int, int]
    notes: tuple[str, ...]
    required: str | None = None
    shown: ClassVar[tuple[str, ...]] = ("adapter", "kept", "kept_low", "kept_high", "fidelity", "gain", "gain_low", "rbo")

    @property
    def chance(self) -> float:
        """What k vectors at random have in common with the new answers."""
        return self.k / self.m

    @property
    def status(self) -> int:
        return UNHELD if self.required not in (None, self.verdict) else 0

    @property
    def text(self) -> str:
        rows, curve = self.table.set_index("adapter"), self.tables["curve"]
        out = [
            f"Verdict: {self.verdict}{f', where {self.required} is required' if self.status else ''}. "
            f"{self.because[0].upper()}{self.because[1:]}. {MEANING[self.verdict]}",
            f"{self.n:,} old vectors, {self.m:,} anchors in both models, {counted(self.q, 'query')}, the {self.k} nearest by "
            f"{self.metric}; chance is {number(self.chance)}.",
            *self.notes,
        ]
        if TODAY in rows.index:
            none = float(self.tables["queries"]["today"].eq(0).mean())
            out.append(
                f"Of the answers of today {_said(rows.loc[TODAY], 'kept')} stay after embedding everything again, among "
                f"{self.m:,} vectors (more vectors, less agreement); a share of {number(none)} of the queries keeps none."
            )
        last = curve[curve["adapter"] == self.best]
        if len(last) > 1:
            more = last.iloc[-1]
            helped = "more pairs help" if more["more_low"] > 0 else "more pairs do not surely help"
            out.append(f"From {int(last.iloc[-2]['anchors']):,} to {int(more['anchors']):,} anchors {self.best} gains "
                       f"{_said(more, 'more')}: {helped}.")  # fmt: skip
        for row in self.tables["thresholds"].to_dict("records")[:3]:
            out.append(
                f"Threshold {number(row['old'])} becomes {number(row['new'])}; left as it is, {number(row['unchanged_share'])} of "
                f"the pairs would pass in place of {number(row['share'])}."
            )
        out += [f"{row['what']}: {row['said']}." for row in self.tables["cost"].to_dict("records")]
        if "ndcg" in rows:
            told = f"today {number(rows.loc[TODAY, 'ndcg'])}, " if TODAY in rows.index else ""
            new = float(rows.loc[self.best, "ndcg"] / rows.loc[self.best, "ndcg_share"])
            out.append(f"nDCG@{self.k} by the judged answers: {told}with the adapter {number(rows.loc[self.best, 'ndcg'])}, after "
                       f"embedding everything again {number(new)}.")  # fmt: skip
        else:
            out.append("It says which answers change, not which are better: for that, judge answers (qrels).")
        return " ".join(out)

    def draw(self, **look: Unpack[Look]) -> Axes:
        """What each adapter keeps, the same over anchors, and the map of thresholds."""
        from matplotlib.ticker import NullLocator

        from repalign.figures import canvas
        from repalign.figures.palette import ACCENT, FAINT, INK, MUTED, RULE, SCORE, family

        rows = self.table.to_dict("records")
        called = canvas.called([r["adapter"] for r in rows], look=look, what="words")
        chance = f"dotted: chance {number(self.chance)}"
        above = (f"{self.q:,} queries, {self.m:,} anchors, k = {self.k}; {chance}", "the same over the anchors", "thresholds")
        _, grid = canvas.sheet(11.4, 3.9, f"Must I re-embed? {self.verdict}", 1, [1.25, 1, 1], above=above, room=3.6, **look)
        first, second, third = grid.flat
        for i, row in enumerate(rows):
            first.barh(i, row["kept"], height=0.55, color=FAINT if row["adapter"] in (TODAY, NONE) else SCORE)
            first.plot([row["kept_low"], row["kept_high"]], [i, i], color=INK, linewidth=2)
            first.annotate(number(row["kept"]), (max(row["kept_high"], 0), i), xytext=(4, 0), textcoords="offset points",
                           va="center", fontsize=8, color=INK)  # fmt: skip
        first.axvline(self.chance, color=MUTED, linewidth=1, linestyle=":")
        first.set_yticks(range(len(rows)), [canvas.plain(called[r["adapter"]]) for r in rows])
        first.set_ylim(len(rows) - 0.4, -0.6)
        first.set_xlim(0, 1.12)
        canvas.labels(first, "share of the new answers that is kept")
        curve = self.tables["curve"]
        for j, (name, some) in enumerate(curve.groupby("adapter", sort=False)):
            color, marker = family(j)
            second.plot(some["anchors"], some["kept"], color=color, marker=marker, markersize=4, label=canvas.plain(called[name]))
            second.fill_between(some["anchors"], some["kept_low"], some["kept_high"], color=color, alpha=0.15, linewidth=0)
        sizes = sorted(set(curve["anchors"]))
        second.set_xscale("log")
        second.set_xticks(sizes, [f"{m:,}" for m in sizes], rotation=45)
        second.xaxis.set_minor_locator(NullLocator())
        second.set_ylim(0, 1.02)
        second.grid(color=RULE, linewidth=0.6)
        canvas.labels(second, "anchors, log scale", "share kept")
        second.legend(fontsize=7, frameon=False, loc="best")
        line, marks = self.tables["threshold_line"], self.tables["thresholds"]
        third.plot(line["old"], line["new"], color=SCORE, linewidth=1.5, label="as many pairs pass")
        ends = [float(line[["old", "new"]].to_numpy().min()), float(line[["old", "new"]].to_numpy().max())]
        third.plot(ends, ends, color=MUTED, linewidth=1, linestyle=canvas.DASHED, label="the same number")
        third.plot(marks["old"], marks["new"], "o", color=ACCENT, markersize=5, label="that were asked for")
        third.legend(fontsize=7, frameon=False, loc="upper left")
        third.grid(color=RULE, linewidth=0.6)
        canvas.labels(third, f"{_MEASURED[self.metric]}, old", f"{_MEASURED[self.metric]}, new")
        return first


_MEASURED = {"cosine": "cosine", "dot": "dot product", "euclidean": "distance"}


def migrate(
    old: Input, new: Input, *, queries_old: Input | None = None, queries_new: Input | None = None, layer: str | None = None,
    id: str | None = None, qrels: Path | None = None, k: int = 10, metric: str = "cosine", thresholds: list[float] | None = None,
    rank: int = RANK, same: float = 0.99, enough: float = 0.95, require: str | None = None, adapter: Path | None = None,
    model: str = "", items: int | None = None, tokens: float | None = None, price: float | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Migration:  # fmt: skip
    """Must I re-embed? How much a new embedding model changes answers, and how much of it a map of its queries keeps.

    Parameters
    ----------
    old : The vectors of the index, of the old model: a file of features, or STORE#MODEL. All of them, or a sample.
    new : Vectors of the new model for a sample of the same ids: the anchors.
    queries_old : Real queries in the old model. Without queries, some anchors are held out and serve as queries.
    queries_new : The same queries in the new model.
    layer : Which layer, where files have several; last is the last one.
    id : The column that names the rows, in all files.
    qrels : A table of judged answers with the columns query, id and grade (0 or more), by the ids of queries and vectors.
    k : How many answers a query has.
    metric : How the index is searched: cosine, dot or euclidean.
    thresholds : Similarities (distances if euclidean) that something hangs on; by default those that 10, 1 and 0.1 % of pairs pass.
    rank : Of the low-rank adapter.
    same : The low end of the interval from which on the models are the same.
    enough : The low end of the interval from which on an adapter is enough.
    require : A verdict that must hold, such as same: else the command ends with status 3.
    adapter : Write the best adapter here, for instance adapter.safetensors; `repalign adapt` applies it.
    model : What the new model is called: an adapter with a name refuses vectors under another name.
    items : How many vectors the whole index has, for the cost; by default those that are given.
    tokens : Tokens of an item.
    price : Of a million tokens.
    seed : Of held-out queries, of the order of anchors, and of the draws of intervals.
    """
    import pandas as pd

    if require is not None:
        choose("verdict", require, VERDICTS, f"there is no verdict {require!r}")
    if not 0 < enough <= 1 or not 0 < same <= 1 or rank < 1:
        raise RepalignError("options of migrate", expected="same and enough in (0, 1], rank of 1 or more", got=(same, enough, rank))
    progress("migrate", 0, 4)
    sides, notes = _read(old, new, queries_old, queries_new, layer, id, k, metric, seed)
    m, q = len(sides.old), len(sides.queries_new)
    if qrels is not None:
        sides = replace(sides, grades=read_grades(Path(qrels), sides.query_ids, sides.ids))
        notes.append(_judged_note(sides))
    judged = judge(sides, k, rank=rank, seed=seed)
    if m < 2 * sides.old.shape[1]:
        notes.append(f"{m:,} anchors are fewer than twice the {sides.old.shape[1]:,} old dimensions: no regression is fitted, "
                     "rotations only.")  # fmt: skip
    verdict, because = verdict_of(judged, k / m, same, enough)
    best = judged.best
    chosen = replace(judged.adapters[best], model=model)
    if adapter is not None:
        chosen.save(adapter)
    progress("migrate", 1, 4)
    curve = _curve(sides, judged, k, rank, seed)
    progress("migrate", 2, 4)
    line, marks = _thresholds(sides, thresholds, seed)
    progress("migrate", 3, 4)
    tables = {
        "curve": curve, "gallery": _galleries(sides, k, seed), "thresholds": marks, "threshold_line": line,
        "queries": _by_query(sides, judged, best), "hubs": _hubs(sides, judged, k),
        "cost": pd.DataFrame(_cost(sides, items, tokens, price), columns=["what", "said"]),
    }  # fmt: skip
    progress("migrate", 4, 4)
    return Migration(
        table=judged.table, tables=tables, verdict=verdict, because=because, adapter=chosen, best=best, n=len(sides.everything),
        m=m, q=q, k=k, metric=metric, widths=chosen.widths, notes=tuple(notes), required=require,
    )  # fmt: skip


def _read(
    old: Any, new: Any, queries_old: Any, queries_new: Any, layer: str | None, id: str | None, k: int, metric: str, seed: int
) -> tuple[Sides, list[str]]:
    """The sides of the comparison from what was given, and what is to be told of them."""
    everything = read_vectors({"the old vectors": old}, layer, id)
    pairs = read_vectors({"the old vectors": old, "the new sample": new}, layer, id)
    rows, (a, b), notes = everything.arrays[0], pairs.arrays, []
    if queries_old is not None and queries_new is None:
        raise RepalignError("queries in the old model alone tell nothing of the new one", expected="queries_new too, or neither",
                            got="queries_old", remedy="give --queries-new")  # fmt: skip
    ids, query_ids, q_old = pairs.ids, None, None
    if queries_new is None:
        stay, out = held_out(len(a), seed)
        q_old, q_new, query_ids = a[out], b[out], None if ids is None else tuple(ids[i] for i in out)
        if ids is None:
            rows = rows[stay]
        else:
            gone = set(query_ids or ())
            rows = rows[[i for i, one in enumerate(everything.ids or ()) if one not in gone]]
        a, b, ids = a[stay], b[stay], None if ids is None else tuple(ids[i] for i in stay)
        notes.append(f"No queries were given: {len(out):,} anchors are held out as queries. Real queries may be unlike them.")
        sides = Sides(rows, a, b, q_old, q_new, metric, None, None, ids, query_ids)
    else:
        given = {"the new queries": queries_new, **({} if queries_old is None else {"the old queries": queries_old})}
        read = read_vectors(given, layer, id)
        q_new, query_ids = read.arrays[0], read.ids
        if queries_old is None:
            notes.append("There are no queries in the old model: what today's answers are, and fidelity to them, is left out.")
        else:
            q_old = read.arrays[1]
        _refuse_widths(a, b, q_old, q_new)
        own = own_rows(q_new, query_ids, b, ids)
        own_everything = None if q_old is None else own_rows(q_old, query_ids, rows, everything.ids)
        if own is not None:
            notes.append(f"{int((own >= 0).sum()):,} queries are vectors of the index: each is left out of its own answers.")
        sides = Sides(rows, a, b, q_old, q_new, metric, own_everything, own, ids, query_ids)
    m, q = len(sides.old), len(sides.queries_new)
    if m < FEWEST_ANCHORS or m <= k or q < 2 or k < 1:
        raise RepalignError("too few vectors", expected=f"{max(FEWEST_ANCHORS, k + 1)} anchors in both models, k of 1 or more, "
                            "and two queries", got=f"{m:,} anchors, k = {k}, {q:,} queries")  # fmt: skip
    notes += [*remarks("Old vectors", sides.old, metric), *remarks("New vectors", sides.new, metric)]
    if len(sides.everything) > m:
        notes.append(f"What is new is searched among the {m:,} anchors alone: the other {len(sides.everything) - m:,} have no new "
                     "vectors.")  # fmt: skip
    return sides, notes


def _judged_note(sides: Sides) -> str:
    good = [sum(grade > 0 for grade in of.values()) for of in sides.grades or ()]
    with_some = sum(count > 0 for count in good)
    answers = counted(sum(good), "good answer")
    return f"{with_some:,} of {len(good):,} queries have judged answers among the anchors, {answers} in all."


def _refuse_widths(a: Array, b: Array, q_old: Array | None, q_new: Array) -> None:
    for what, x, y in (("old", a, q_old), ("new", b, q_new)):
        if y is not None and x.shape[1] != y.shape[1]:
            raise RepalignError(f"the {what} queries and the {what} vectors are of different widths", expected=f"{x.shape[1]}",
                                got=f"{y.shape[1]}", remedy="give vectors of one model for each")  # fmt: skip


def _curve(sides: Sides, judged: Judged, k: int, rank: int, seed: int) -> pd.DataFrame:
    """What each adapter keeps when it is fitted on fewer anchors; what the last step adds, query by query."""
    import pandas as pd

    m = len(sides.old)
    sizes = [*(s for s in (FIRST_SIZE * 2**j for j in range(30)) if 1.5 * s < m), m]
    order = np.random.default_rng([seed, 1]).permutation(m)
    old, rows, before = Gallery(sides.old, sides.metric), [], {}
    for count in sizes:
        for name, one in (judged.adapters if count == m else adapters_of(sides, rank, order[:count])).items():
            if name == NONE:
                continue
            if count == m:
                kept = judged.kept[name]
            else:
                lists = old.nearest(one.transform(sides.queries_new), k, sides.own)
                kept = in_common(lists, judged.later[:, :k])
            more = kept - before.get(name, kept * np.nan)
            low, high = bounds(np.stack([kept, more], axis=1), seed)
            rows.append({"adapter": name, "anchors": count, "kept": kept.mean(), "kept_low": low[0], "kept_high": high[0],
                         "more": more.mean(), "more_low": low[1], "more_high": high[1]})  # fmt: skip
            before[name] = kept
    return pd.DataFrame(rows)


def _galleries(sides: Sides, k: int, seed: int) -> pd.DataFrame:
    """Agreement of today's answers with the new ones as more vectors are searched; empty without the old queries."""
    import pandas as pd

    m, rows = len(sides.old), []
    order = np.random.default_rng([seed, 2]).permutation(m)
    for count in sorted({m // 8, m // 4, m // 2, m}):
        if sides.queries_old is None or count < 2 * k or (sides.own is not None and count < m):
            continue
        old, new = (Gallery(x[order[:count]] if count < m else x, sides.metric) for x in (sides.old, sides.new))
        both = old.nearest(sides.queries_old, k, sides.own), new.nearest(sides.queries_new, k, sides.own)
        rows.append({"vectors": count, "agreement": float(in_common(*both).mean()), "chance": k / count})
    return pd.DataFrame(rows, columns=["vectors", "agreement", "chance"])


def _similarities(sides: Sides, seed: int) -> tuple[Array, Array]:
    """Similarities of the same pairs of anchors in both models: all, or a sample; distances are negative."""
    m, (new, old), out = len(sides.old), sides.seen, []
    everyone = m * (m - 1) // 2 <= MOST_PAIRS
    generator = np.random.default_rng([seed, 3])
    i, j = generator.integers(m, size=MOST_PAIRS), generator.integers(m - 1, size=MOST_PAIRS)
    i, j = np.triu_indices(m, 1) if everyone else (i, j + (j >= i))
    for x in (old, new):
        squared = np.einsum("nd,nd->n", x, x)
        if everyone:
            products = (x @ x.T)[i, j]
        else:
            products = np.concatenate([np.einsum("nd,nd->n", x[i[s : s + 20_000]], x[j[s : s + 20_000]])
                                       for s in range(0, len(i), 20_000)])  # fmt: skip
        distances = np.sqrt(np.maximum(squared[i] + squared[j] - 2 * products, 0)) if sides.metric == "euclidean" else None
        out.append(products if distances is None else -distances)
    return out[0], out[1]


def _thresholds(sides: Sides, given: Sequence[float] | None, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The line of thresholds that let one share of pairs pass, and the thresholds that are asked for."""
    import pandas as pd

    old, new = _similarities(sides, seed)
    sign = -1 if sides.metric == "euclidean" else 1
    shares = np.concatenate([np.linspace(0.999, 0.02, 50), np.geomspace(0.01, 1e-4, 20)])
    line = pd.DataFrame({"share": shares, "old": sign * np.quantile(old, 1 - shares), "new": sign * np.quantile(new, 1 - shares)})
    asked = [sign * t for t in given] if given else [float(np.quantile(old, 1 - s)) for s in SELECTIVE]
    rows = []
    for t in asked:
        share = float((old >= t).mean())
        rows.append({"old": sign * t, "new": sign * float(np.quantile(new, 1 - share)), "share": share,
                     "unchanged_share": float((new >= t).mean()), "pairs": len(old)})  # fmt: skip
    return line, pd.DataFrame(rows)


def _by_query(sides: Sides, judged: Judged, best: str) -> pd.DataFrame:
    """What stays for each query, those that lose most first."""
    import pandas as pd

    q = len(sides.queries_new)
    table = pd.DataFrame({"query": sides.query_ids or tuple(map(str, range(q)))})
    for column, name in (("today", TODAY), ("adapter", best)):
        if name in judged.kept:
            table[column] = judged.kept[name]
    return table.sort_values(list(table.columns[1:]), kind="stable").reset_index(drop=True)


def _hubs(sides: Sides, judged: Judged, k: int, most: int = 10) -> pd.DataFrame:
    """The vectors whose number of appearances among the answers changes most."""
    import pandas as pd

    columns = ["vector", "today", "later", "change"]
    if judged.today is None:
        return pd.DataFrame(columns=columns)
    m = len(sides.old)
    today, later = (np.bincount(lists[:, :k].ravel(), minlength=m) for lists in (judged.today, judged.later))
    at = np.argsort(-np.abs(later - today), kind="stable")[:most]
    names = [str(i) if sides.ids is None else sides.ids[i] for i in at]
    return pd.DataFrame({"vector": names, "today": today[at], "later": later[at], "change": (later - today)[at]})


def _cost(sides: Sides, items: int | None, tokens: float | None, price: float | None) -> list[tuple[str, str]]:
    """What embedding everything takes, and what the anchors took."""
    count, m, width = items or len(sides.everything), len(sides.old), sides.new.shape[1]
    out = [("Memory of the new vectors", f"{size(4.0 * width * count)} for {count:,} of {width:,} dimensions in float32")]
    if tokens is not None and price is not None:
        whole, some = (n * tokens * price / 1e6 for n in (count, m))
        out.append(("Price of embedding", f"{number(whole)} for all {count:,}, {number(some)} for the {m:,} anchors"))
    return out


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up vectors of an old model and of a new one that is the old one turned."""
    rng = np.random.default_rng(0)
    turn, world = np.linalg.qr(rng.standard_normal((12, 12)))[0], rng.standard_normal((180, 6)) @ rng.standard_normal((6, 12))
    folder.mkdir(parents=True, exist_ok=True)
    both = {"old": world, "new": world @ turn + 0.05 * rng.standard_normal(world.shape)}
    paths = {}
    for name, x in both.items():
        for part, rows in (("", x[:120]), ("queries_", x[120:])):
            paths[f"{part}{name}"] = str(folder / f"{part}{name}.npy")
            np.save(paths[f"{part}{name}"], rows)
    asked = {name: paths[name] for name in ("queries_old", "queries_new") if given[name] is not None}
    saved = None if given["adapter"] is None else folder / "adapter.safetensors"
    none = dict.fromkeys(("layer", "id", "qrels", "require"))
    return {**none, **asked, "old": paths["old"], "new": paths["new"], "adapter": saved, "k": min(given["k"], 20)}
