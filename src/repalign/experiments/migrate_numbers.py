"""Numbers of a change of embedding models: what each adapter keeps of the answers, the verdict, and the tables beside it.

Recall@k between two lists of k answers is the share that they have in common. `kept` compares with the answers after everything
was embedded anew (new queries, new vectors), `fidelity` with those of today (old queries, old vectors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.experiments.adapters import FITS, LOW_RANK, MLP, NONE, RANK, REGRESSIONS, RIDGE, Adapter, regressions
from repalign.experiments.migrate_sides import Sides
from repalign.experiments.retrieval import (
    RESAMPLES,
    Array,
    Gallery,
    Grades,
    Lists,
    bounds,
    ends,
    in_common,
    ndcg,
    nearest_in,
    rank_biased_overlap,
    reciprocal_rank,
    resampled,
    unit,
)
from repalign.text import interval, number, size

if TYPE_CHECKING:
    import pandas as pd

SAME, ADAPTER, FOR_NOW, RE_EMBED, UNRELATED, TOO_FEW = VERDICTS = (
    "same", "adapter", "adapter for now", "re-embed", "unrelated", "not enough queries",
)  # fmt: skip
TODAY = "old queries, as today"
COMPARED = ("kept", "fidelity", "gain", "behind")  # means over queries, each with an interval
FEWEST_QUERIES = 50
ABOVE_CHANCE = 5  # times chance, that some adapter's interval must reach
DEPTH = 100  # of the lists for rank-biased overlap
FIRST_SIZE = 50  # anchors, of the curve
MOST_PAIRS = 1_000_000  # of vectors, for thresholds
SELECTIVE = (0.1, 0.01, 0.001)  # shares of pairs, whose thresholds are mapped where none is named


# --- the judgement ---------------------------------------------------------------------------------


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
        return _best(self.kept)


def _best(kept: Mapping[str, Array]) -> str:
    return max((name for name in kept if name not in (TODAY, NONE)), key=lambda name: float(kept[name].mean()))


def adapters_of(sides: Sides, rank: int = RANK, rows: np.ndarray | None = None, mlp: bool = False) -> dict[str, Adapter]:
    """All adapters that these anchors, or some of their rows, can tell; regressions need two for each old dimension."""
    new, old = (x if rows is None else x[rows] for x in sides.seen)
    maps = {name: fit(new, old) for name, fit in FITS.items() if name not in REGRESSIONS and (mlp or name != MLP)}
    if len(new) >= 2 * old.shape[1]:
        maps |= dict(zip((RIDGE, LOW_RANK), regressions(new, old, (old.shape[1], rank)), strict=True))
    return {name: Adapter(name, maps[name], sides.metric == "cosine", len(new)) for name in FITS if name in maps}


def judge(
    sides: Sides, k: int = 10, *, rank: int = RANK, mlp: bool = False, seed: int = 0, resamples: int = RESAMPLES, depth: int = DEPTH
) -> Judged:
    """Fit every adapter and compare its answers with those of today and those after embedding everything anew.

    depth : of the lists for rank-biased overlap.
    """
    import pandas as pd

    q_old, q_new, m = sides.queries_old, sides.queries_new, len(sides.old)
    depth = max(k, min(depth, m - 1))
    old, new = Gallery(sides.old, sides.metric), Gallery(sides.new, sides.metric)
    later = new.nearest(q_new, depth, sides.own)
    adapters = adapters_of(sides, rank, mlp=mlp)
    asked = {name: adapter.transform(q_new) for name, adapter in adapters.items()}
    if q_old is not None:
        asked = {TODAY: q_old, **asked}
    answers = {name: old.nearest(queries, depth, sides.own) for name, queries in asked.items()}
    kept = {name: in_common(lists[:, :k], later[:, :k]) for name, lists in answers.items()}
    fidelity: dict[str, Array] = {}
    if q_old is not None:
        served = answers if sides.n == m else _served(sides, asked, k)
        fidelity = {name: in_common(lists[:, :k], served[TODAY][:, :k]) for name, lists in served.items()}
    columns = {("kept", name): values for name, values in kept.items()}
    columns |= {("fidelity", name): values for name, values in fidelity.items()}
    columns |= {("gain", name): values - kept[TODAY] for name, values in kept.items() if TODAY in kept}
    best = kept[_best(kept)]
    columns |= {("behind", name): best - kept[name] for name in adapters}
    low, high = bounds(np.stack(list(columns.values()), axis=1), seed, resamples)
    found = {key: (float(v.mean()), float(a), float(b)) for (key, v), a, b in zip(columns.items(), low, high, strict=True)}
    nothing, rows = (float("nan"),) * 3, []
    for name, queries in asked.items():
        row: dict[str, Any] = {"adapter": name, "rbo": float(rank_biased_overlap(answers[name], later).mean())}
        for what in COMPARED:
            row |= dict(zip((what, f"{what}_low", f"{what}_high"), found.get((what, name), nothing), strict=True))
        if q_old is not None and name != TODAY:
            wanted = unit(q_old) if adapters[name].is_unit else q_old
            error = ((wanted - queries) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
            row |= {"r2": float(1 - error), "cosine": float((unit(wanted) * unit(queries)).sum(1).mean())}
        rows.append(row)
    order = ["adapter", *(f"{w}{e}" for w in COMPARED for e in ("", "_low", "_high")), "rbo", "r2", "cosine"]
    if sides.grades is not None:
        order += [*_graded(rows, answers, later, sides.grades, k, seed, resamples)]
    table = pd.DataFrame(rows).reindex(columns=order)
    return Judged(table.assign(queries=len(q_new), k=k, anchors=m), kept, adapters, answers.get(TODAY), later)


def _served(sides: Sides, asked: Mapping[str, Array], k: int) -> dict[str, Lists]:
    """The answers to several sets of queries among all old vectors, as sets: one pass for all."""
    rows = Gallery(sides.everything, sides.metric).blocks if isinstance(sides.everything, np.ndarray) else sides.everything
    own = None if sides.own_everything is None else np.tile(sides.own_everything, len(asked))
    lists = nearest_in(rows, np.concatenate(list(asked.values())), k, sides.metric, own)
    return dict(zip(asked, np.split(lists, len(asked)), strict=True))


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
    keeps = f"the best adapter ({judged.best}) keeps {said(best, 'kept')} of the new answers"
    if q < FEWEST_QUERIES:
        reach = (best["kept_high"] - best["kept_low"]) / 2
        return TOO_FEW, f"{q} queries, an interval of ±{number(reach)}; {FEWEST_QUERIES} are the fewest"
    if none["fidelity_low"] >= same:
        return SAME, f"new queries as they are give {said(none, 'fidelity')} of the answers of today"
    reached = rows.drop(index=TODAY, errors="ignore")[["kept_high", "fidelity_high"]].max().max()
    if reached < min(ABOVE_CHANCE * chance, chance + (1 - chance) / 4):  # 5 times chance may be more than all, where m is small
        return UNRELATED, f"{keeps}, chance is {number(chance)}"
    if "ndcg_share" in rows:
        keeps = f"{keeps}, and {said(best, 'ndcg_share')} of their nDCG by the judged answers"
    if best["ndcg_share_low" if "ndcg_share" in rows else "kept_low"] >= enough:
        return ADAPTER, keeps
    if TODAY not in rows.index:
        return RE_EMBED, f"{keeps}; whether that is more than today cannot be told without the queries in the old model"
    today = f"the old queries {said(rows.loc[TODAY], 'kept')}; the difference is {said(best, 'gain')}"
    return (FOR_NOW if best["gain_low"] > 0 else RE_EMBED), f"{keeps}, {today}"


def said(row: Any, what: str) -> str:
    return interval(row[what], row[f"{what}_low"], row[f"{what}_high"])


# --- tables beside it ------------------------------------------------------------------------------


def curve_of(sides: Sides, judged: Judged, k: int, rank: int, seed: int) -> pd.DataFrame:
    """What each adapter keeps when it is fitted on fewer anchors; what the last step adds, query by query."""
    import pandas as pd

    m = len(sides.old)
    sizes = [*(s for s in (FIRST_SIZE * 2**j for j in range(30)) if 1.5 * s < m), m]
    order = np.random.default_rng([seed, 1]).permutation(m)
    old, rows, before = Gallery(sides.old, sides.metric), [], {}
    for count in sizes:
        fitted = judged.adapters if count == m else adapters_of(sides, rank, order[:count], MLP in judged.adapters)
        for name, one in fitted.items():
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


def galleries(sides: Sides, k: int, seed: int) -> pd.DataFrame:
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
    m, (new, old) = len(sides.old), sides.seen
    if m * (m - 1) // 2 <= MOST_PAIRS:
        i, j = np.triu_indices(m, 1)
    else:
        generator = np.random.default_rng([seed, 3])
        i, j = generator.integers(m, size=MOST_PAIRS), generator.integers(m - 1, size=MOST_PAIRS)
        j += j >= i
    return _of_pairs(old, i, j, sides.metric), _of_pairs(new, i, j, sides.metric)


def _of_pairs(x: Array, i: np.ndarray, j: np.ndarray, metric: str) -> Array:
    """The similarities of rows i and j of x; distances are negative. Of all pairs at once where that is less work."""
    if len(x) ** 2 <= 4 * len(i):
        products = (x @ x.T)[i, j]
    else:
        pieces = [slice(s, s + 20_000) for s in range(0, len(i), 20_000)]
        products = np.concatenate([np.einsum("nd,nd->n", x[i[p]], x[j[p]]) for p in pieces])
    if metric != "euclidean":
        return products
    squared = np.einsum("nd,nd->n", x, x)
    return -np.sqrt(np.maximum(squared[i] + squared[j] - 2 * products, 0))


def thresholds_of(
    sides: Sides, given: Sequence[float] | None, seed: int, positives: np.ndarray | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The line of thresholds that let one share of pairs pass, and the thresholds that are asked for.

    t_new = F_new^-1(F_old(t_old)), F the distribution of a similarity over pairs of anchors. positives : pairs (p, 2) that mean the
    same: over these alone F keeps the share of them that is found.
    """
    import pandas as pd

    old, new = _similarities(sides, seed)
    sign = -1 if sides.metric == "euclidean" else 1
    shares = np.concatenate([np.linspace(0.999, 0.02, 50), np.geomspace(0.01, 1e-4, 20)])
    line = pd.DataFrame({"share": shares, "old": sign * np.quantile(old, 1 - shares), "new": sign * np.quantile(new, 1 - shares)})
    asked = [sign * t for t in given] if given else [float(np.quantile(old, 1 - s)) for s in SELECTIVE]
    good = None if positives is None else tuple(_of_pairs(x, *positives.T, sides.metric) for x in reversed(sides.seen))
    rows = []
    for t in asked:
        share = float((old >= t).mean())
        moved = float(np.quantile(new, 1 - share)) if 0 < share < 1 else float("nan")  # beyond all pairs there is no telling
        row = {"old": sign * t, "new": sign * moved, "share": share, "unchanged_share": float((new >= t).mean()), "pairs": len(old)}
        if good is not None:
            found = float((good[0] >= t).mean())
            row |= {"positives_found": found, "unchanged_found": float((good[1] >= t).mean()),
                    "new_found": float((good[1] >= moved).mean()), "positives": len(good[0]),
                    "new_for_positives": sign * float(np.quantile(good[1], 1 - found) if 0 < found < 1 else np.nan)}  # fmt: skip
        rows.append(row)
    return line, pd.DataFrame(rows)


def by_query(sides: Sides, judged: Judged, best: str, groups: Sequence[str] | None = None) -> pd.DataFrame:
    """What stays for each query, those that lose most first."""
    import pandas as pd

    q = len(sides.queries_new)
    table = pd.DataFrame({"query": sides.query_ids or tuple(map(str, range(q)))})
    if groups is not None:
        table["group"] = groups
    for column, name in (("today", TODAY), ("adapter", best)):
        if name in judged.kept:
            table[column] = judged.kept[name]
    return table.sort_values([c for c in ("today", "adapter") if c in table], kind="stable").reset_index(drop=True)


def by_group(groups: Sequence[str], judged: Judged, best: str, seed: int) -> pd.DataFrame:
    """What stays for the queries of each group, with the interval of the adapter's; the group that loses most first."""
    import pandas as pd

    rows, of = [], np.array(groups, dtype=object)
    for group in dict.fromkeys(groups):
        values = judged.kept[best][of == group]
        low, high = bounds(values[:, None], seed)
        today = {"today": float(judged.kept[TODAY][of == group].mean())} if TODAY in judged.kept else {}
        kept = {"adapter": float(values.mean()), "low": low[0], "high": high[0]}
        rows.append({"group": group, "queries": len(values), **today, **kept})
    return pd.DataFrame(rows).sort_values("adapter", kind="stable").reset_index(drop=True)


def hubs_of(sides: Sides, judged: Judged, k: int, most: int = 10) -> pd.DataFrame:
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


def cost_of(sides: Sides, items: int | None, tokens: float | None, price: float | None) -> list[tuple[str, str]]:
    """What embedding everything takes, and what the anchors took."""
    count, m, width = items or sides.n, len(sides.old), sides.new.shape[1]
    out = [("Memory of the new vectors", f"{size(4.0 * width * count)} for {count:,} of {width:,} dimensions in float32")]
    if tokens is not None and price is not None:
        whole, some = (n * tokens * price / 1e6 for n in (count, m))
        out.append(("Price of embedding", f"{number(whole)} for all {count:,}, {number(some)} for the {m:,} anchors"))
    return out
