"""Must I re-embed? What a new embedding model changes in the answers of an index, and how much of that an adapter gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.adapters import NONE, RANK, Adapter
from repalign.experiments.base import Found, Input, Part, made_up
from repalign.experiments.migrate_numbers import (
    ADAPTER,
    COMPARED,
    FEWEST_QUERIES,
    FOR_NOW,
    RE_EMBED,
    SAME,
    TODAY,
    TOO_FEW,
    UNRELATED,
    VERDICTS,
    by_group,
    by_query,
    cost_of,
    curve_of,
    galleries,
    hubs_of,
    judge,
    said,
    thresholds_of,
    verdict_of,
)
from repalign.experiments.migrate_sides import Sides, read_groups, read_positives, read_sides
from repalign.experiments.retrieval import read_grades
from repalign.text import Progress, counted, number, silent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.figures.canvas import Look

UNHELD = 3  # the status of a command whose verdict is not the one that was required
WORST = 20  # queries on the page
MEASURED = {"cosine": "cosine", "dot": "dot product", "euclidean": "distance"}
FEWEST_OF_GROUP = 10  # queries, for a group to be named as the worst

ANSWERS = {  # in one sentence, and what to do
    SAME: ("No. The new model finds what the old one finds.", "As far as these queries tell, nothing need be embedded again."),
    ADAPTER: ("No. Map the new queries, and keep your old vectors.",
              "A map of the new queries into the old space gives the new model's answers: the vectors may stay."),
    FOR_NOW: ("Yes, but not today. Map the new queries now, and embed again in the background.",
              "Mapped new queries on the old vectors are nearer to the new answers than what you serve today, but not the same."),
    RE_EMBED: ("Yes. Embed everything again.",
               "No map of the new queries is surely nearer to the new answers than what you serve today."),
    UNRELATED: ("Yes, unless the ids are wrong. Nothing joins the two models.",
                "No map of the new queries finds what the new model finds. Check first that the ids pair the same texts."),
    TOO_FEW: ("Not decided. There are too few queries.", f"Give {FEWEST_QUERIES} queries or more: these leave the answer open."),
}  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Migration(Found):
    """What changing the model does, from `migrate`.

    table : a row for each adapter, and one for the old queries as they are served today: `kept` of the new answers, `fidelity` to
    those of today, `gain` (kept less that of today, paired) and `behind` (that of the best adapter less kept, paired), each with
    its interval; rbo against the new answers (p = .9), and r2 and cosine of the mapped queries with the old ones.
    tables : curve (kept by anchors), gallery (agreement by vectors searched), thresholds, queries and groups of
    them if any (worst first), hubs (vectors that are found more or less often), cost.
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
        verdict = f"Verdict: {self.verdict}{f', where {self.required} is required' if self.status else ''}."
        because = f"{self.because[0].upper()}{self.because[1:]}."
        told = (f"{part.text}" for part in self.parts if part.text)
        return " ".join([verdict, because, ANSWERS[self.verdict][1], *told])

    @property
    def answer(self) -> tuple[str, str]:
        rows, (short, why) = self.table.set_index("adapter"), ANSWERS[self.verdict]

        def given(name: str) -> str:
            row = rows.loc[name]
            return f"{self.k * row['kept']:.1f} (±{self.k * (row['kept_high'] - row['kept_low']) / 2:.1f})"

        today = f"Today's search gives {given(TODAY)} of these. " if TODAY in rows.index else ""
        return short, (
            f"Embed everything again, and each query gets {self.k} new answers. {today}With new queries mapped into the old space, "
            f"your old vectors give {given(self.best)} of these. {why} Measured on "
            f"{counted(self.q, 'query')} among {self.m:,} vectors, where a guess gives {self.k * self.chance:.1f}."
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        rows, tables = self.table.set_index("adapter"), self.tables
        kept = [
            f"{self.n:,} old vectors, {self.m:,} anchors in both models, {counted(self.q, 'query')}, the {self.k} nearest by "
            f"{self.metric}; chance is {number(self.chance)}.",
            *self.notes,
        ]
        if TODAY in rows.index:
            none = float(tables["queries"]["today"].eq(0).mean())
            kept.append(
                f"Of the answers of today {said(rows.loc[TODAY], 'kept')} stay after embedding everything again, among "
                f"{self.m:,} vectors (more vectors, less agreement); a share of {number(none)} of the queries keeps none."
            )
        if "ndcg" in rows:
            told = f"today {number(rows.loc[TODAY, 'ndcg'])}, " if TODAY in rows.index else ""
            new = float(rows.loc[self.best, "ndcg"] / rows.loc[self.best, "ndcg_share"])
            kept.append(f"nDCG@{self.k} by the judged answers: {told}with the adapter {number(rows.loc[self.best, 'ndcg'])}, after "
                        f"embedding everything again {number(new)}.")  # fmt: skip
        else:
            kept.append("It says which answers change, not which are better: for that, judge answers (qrels).")
        found = [
            Part("What is kept of the new answers", " ".join(kept), self._kept()),
            Part("Would more anchors help?", self._plateau, _wide(tables["curve"])),
            Part("Today's answers and the new ones agree less as more vectors are searched", "", tables["gallery"]),
            Part("Thresholds", self._thresholds, _plain_thresholds(tables["thresholds"])),
            Part("Groups of queries", self._worst_group, tables["groups"]) if "groups" in tables else None,
            Part(f"The {min(WORST, self.q)} queries that lose most: share of the new answers", "", tables["queries"].head(WORST)),
            Part("Vectors that are found more or less often: by so many queries", "", tables["hubs"]),
            Part("Cost", " ".join(f"{row['what']}: {row['said']}." for row in tables["cost"].to_dict("records"))),
        ]
        return tuple(part for part in found if part is not None and (part.table is None or len(part.table)))

    def _kept(self) -> pd.DataFrame:
        """The main table as a page shows it."""
        import pandas as pd

        rows = self.table.to_dict("records")
        out = {"queries": [row["adapter"] for row in rows]}
        names = ("of the new answers", "of today's answers", "more than today", "behind the best")
        for what, name in zip(COMPARED, names, strict=True):
            out[name] = [said(row, what) for row in rows]
        for column in ("rbo", "cosine", "ndcg", "mrr"):
            if column in self.table:
                out[column] = [number(row[column]) for row in rows]
        return pd.DataFrame(out)

    @property
    def _plateau(self) -> str:
        """What the last step of the curve says."""
        last = self.tables["curve"].query("adapter == @self.best")
        if len(last) < 2:
            return ""
        more = last.iloc[-1]
        helped = "more pairs help" if more["more_low"] > 0 else "more pairs do not surely help"
        before, now = (int(n) for n in last["anchors"].iloc[-2:])
        return f"From {before:,} to {now:,} anchors {self.best} gains {said(more, 'more')}: {helped}."

    @property
    def _thresholds(self) -> str:
        out = []
        for row in self.tables["thresholds"].to_dict("records")[:3]:
            if row["share"] in (0, 1):
                told = f"{'none' if row['share'] == 0 else 'all'} of the {row['pairs']:,} pairs"
                out.append(f"Threshold {number(row['old'])} is passed by {told}: it cannot be mapped.")
                continue
            out.append(
                f"Threshold {number(row['old'])} becomes {number(row['new'])}; left as it is, {number(row['unchanged_share'])} of "
                f"the pairs would pass in place of {number(row['share'])}."
            )
            if "positives" in row:
                out.append(
                    f"Of the {row['positives']:,} pairs that mean the same it finds {number(row['positives_found'])} today, and "
                    f"{number(row['unchanged_found'])} if left as it is; {number(row['new_for_positives'])} would find as many."
                )
        return " ".join(out)

    @property
    def _worst_group(self) -> str:
        groups = self.tables["groups"]
        large = groups[groups["queries"] >= FEWEST_OF_GROUP]
        if not len(large):
            return f"No group has {FEWEST_OF_GROUP} queries."
        row = large.iloc[0].rename({"low": "adapter_low", "high": "adapter_high"})
        return f"Worst is {row['group']}: its {row['queries']:,} queries keep {said(row, 'adapter')} of the new answers."

    def draw(self, **look: Unpack[Look]) -> Axes:
        """What each adapter keeps, the same over anchors, and the map of thresholds."""
        from repalign.figures import canvas
        from repalign.figures.palette import ACCENT, FAINT, INK, MUTED, SCORE, family

        rows = self.table.to_dict("records")
        called = canvas.called([r["adapter"] for r in rows], look=look, what="words")
        chance = f"dotted: chance {number(self.chance)}"
        above = (f"{self.q:,} queries, {self.m:,} anchors, k = {self.k}; {chance}", "the same over the anchors", "thresholds")
        _, grid = canvas.sheet(11.4, 3.9, f"Verdict: {self.verdict}", 1, [1.25, 1, 1], above=above, room=3.6, **look)
        first, second, third = grid.flat
        for i, row in enumerate(rows):
            first.barh(i, row["kept"], height=0.55, color=FAINT if row["adapter"] in (TODAY, NONE) else SCORE)
            first.plot([row["kept_low"], row["kept_high"]], [i, i], color=INK, linewidth=2)
            canvas.after(first, number(row["kept"]), (max(row["kept_high"], 0), i))
        first.axvline(self.chance, color=MUTED, linewidth=1, linestyle=":")
        canvas.rows(first, [called[r["adapter"]] for r in rows])
        first.set_xlim(0, 1.12)
        canvas.labels(first, "share of the new answers that is kept")
        curve = self.tables["curve"]
        for j, (name, some) in enumerate(curve.groupby("adapter", sort=False)):
            color, marker = family(j)
            second.plot(some["anchors"], some["kept"], color=color, marker=marker, markersize=4, label=canvas.plain(called[name]))
            second.fill_between(some["anchors"], some["kept_low"], some["kept_high"], color=color, alpha=0.15, linewidth=0)
        canvas.sizes(second, curve["anchors"], rotation=45)
        second.set_ylim(0, 1.02)
        canvas.rule(second)
        canvas.labels(second, "anchors, log scale", "share kept")
        second.legend(fontsize=7, frameon=False, loc="best")
        line, marks = self.tables["threshold_line"], self.tables["thresholds"]
        third.plot(line["old"], line["new"], color=SCORE, linewidth=1.5, label="as many pairs pass")
        ends = [float(line[["old", "new"]].to_numpy().min()), float(line[["old", "new"]].to_numpy().max())]
        third.plot(ends, ends, color=MUTED, linewidth=1, linestyle=canvas.DASHED, label="the same number")
        third.plot(marks["old"], marks["new"], "o", color=ACCENT, markersize=5, label="that were asked for")
        third.legend(fontsize=7, frameon=False, loc="upper left")
        canvas.rule(third)
        canvas.labels(third, f"{MEASURED[self.metric]}, old", f"{MEASURED[self.metric]}, new")
        return first


def _wide(curve: pd.DataFrame) -> pd.DataFrame:
    """A row for each number of anchors, a column for each adapter."""
    wide = curve.pivot(index="anchors", columns="adapter", values="kept")[list(dict.fromkeys(curve["adapter"]))]
    return wide.reset_index().rename_axis(columns=None)


def _plain_thresholds(marks: pd.DataFrame) -> pd.DataFrame:
    """Thresholds under names that say what they are."""
    names = {"old": "old number", "new": "new number", "share": "pairs that pass", "unchanged_share": "pass if left as it is",
             "positives_found": "positives found", "unchanged_found": "found if left as it is",
             "new_found": "found by the new number", "new_for_positives": "number that finds as many"}  # fmt: skip
    return marks[[name for name in names if name in marks]].rename(columns=names)


def migrate(
    old: Input, new: Input, *, queries_old: Input | None = None, queries_new: Input | None = None, layer: str | None = None,
    id: str | None = None, qrels: Path | None = None, groups: Path | None = None, positives: Path | None = None, k: int = 10,
    metric: str = "cosine", thresholds: list[float] | None = None, rank: int = RANK, mlp: bool = False, same: float = 0.99,
    enough: float = 0.95, require: str | None = None, adapter: Path | None = None, model: str = "", items: int | None = None,
    tokens: float | None = None, price: float | None = None, seed: int = 0, progress: Progress = silent,
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
    groups : A table with the columns query and group, such as a language or a customer: which group of queries loses most.
    positives : A table with the columns a and b, ids of vectors that mean the same: what a threshold finds of them.
    k : How many answers a query has.
    metric : How the index is searched: cosine, dot or euclidean.
    thresholds : Similarities (distances if euclidean) that something hangs on; by default those that 10, 1 and 0.1 % of pairs pass.
    rank : Of the low-rank adapter.
    mlp : Fit a small network too, at each number of anchors; needs a minute or more.
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
    sides, notes = read_sides(old, new, queries_old, queries_new, layer, id, k, metric, seed)
    m, q = len(sides.old), len(sides.queries_new)
    if qrels is not None:
        sides = replace(sides, grades=read_grades(Path(qrels), sides.query_ids, sides.ids))
        notes.append(_judged_note(sides))
    named = None if groups is None else read_groups(Path(groups), sides.query_ids)
    alike = None if positives is None else read_positives(Path(positives), sides.ids)
    if m < 2 * sides.old.shape[1]:
        notes.append(f"{m:,} anchors are fewer than twice the {sides.old.shape[1]:,} old dimensions: no regression is fitted, "
                     "rotations only.")  # fmt: skip
    judged = judge(sides, k, rank=rank, mlp=mlp, seed=seed)
    verdict, because = verdict_of(judged, k / m, same, enough)
    best = judged.best
    chosen = replace(judged.adapters[best], model=model)
    if adapter is not None:
        chosen.save(adapter)
    progress("migrate", 1, 4)
    curve = curve_of(sides, judged, k, rank, seed)
    progress("migrate", 2, 4)
    line, marks = thresholds_of(sides, thresholds, seed, alike)
    progress("migrate", 3, 4)
    tables = {
        "curve": curve, "gallery": galleries(sides, k, seed), "thresholds": marks, "threshold_line": line,
        "queries": by_query(sides, judged, best, named), "hubs": hubs_of(sides, judged, k),
        "cost": pd.DataFrame(cost_of(sides, items, tokens, price), columns=["what", "said"]),
    }  # fmt: skip
    if named is not None:
        tables["groups"] = by_group(named, judged, best, seed)
    progress("migrate", 4, 4)
    return Migration(
        table=judged.table, tables=tables, verdict=verdict, because=because, adapter=chosen, best=best, n=sides.n, m=m, q=q, k=k,
        metric=metric, widths=chosen.widths, notes=tuple(notes), required=require,
    )  # fmt: skip


def _judged_note(sides: Sides) -> str:
    good = [sum(grade > 0 for grade in of.values()) for of in sides.grades or ()]
    with_some = sum(count > 0 for count in good)
    answers = counted(sum(good), "good answer")
    return f"{with_some:,} of {len(good):,} queries have judged answers among the anchors, {answers} in all."


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Made-up vectors of an old model and of a new one that is the old one turned."""
    rng = np.random.default_rng(0)
    turn, world = np.linalg.qr(rng.standard_normal((12, 12)))[0], rng.standard_normal((180, 6)) @ rng.standard_normal((6, 12))
    both = {"old": world, "new": world @ turn + 0.05 * rng.standard_normal(world.shape)}
    paths = {}
    for name, x in both.items():
        for part, rows in (("", x[:120]), ("queries_", x[120:])):
            paths[f"{part}{name}"] = made_up(folder / f"{part}{name}.npy", rows)
    asked = {name: paths[name] for name in ("queries_old", "queries_new") if given[name] is not None}
    saved = None if given["adapter"] is None else folder / "adapter.safetensors"
    none = dict.fromkeys(("layer", "id", "qrels", "groups", "positives", "require"))
    return {**none, **asked, "old": paths["old"], "new": paths["new"], "adapter": saved, "k": min(given["k"], 20)}
