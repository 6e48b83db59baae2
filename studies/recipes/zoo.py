"""What studies/zoo.yaml was planned with, and what it found: the power, tables and pictures of docs/studies/zoo.md.

    python studies/recipes/zoo.py power                 # before the run: how often would a trend be seen?
    python studies/recipes/zoo.py tables                # after it: the numbers of the page, as Markdown
    python studies/recipes/zoo.py pictures docs/images  # its pictures; with --published FILE the paper's figure 3 beside ours
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from repalign import figures
from repalign.comparison import Alignment
from repalign.figures.palette import FAINT, INK, family
from repalign.relate import Crossed, Trend, infer, matched, read_published, trend
from repalign.relate.jackknife import Jackknife, pearson, units_of
from repalign.study import load_study

HERE = Path(__file__).resolve().parent
LEVEL = 0.05  # of all four measures together
MEASURES = 4
KNN = "MutualKNN(k=10, similarity='cosine', center=False)"
CKA = "CKA(kernel='linear', estimator='debiased', bandwidth=None, epsilon=0.0)"
BITS, TOP1 = "bits_per_byte", "imagenet_top1"


# --- power, before the run --------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """The models of one side and the partners of the other, by the sizes of their families."""

    name: str
    models: tuple[int, ...]
    partners: tuple[int, ...]


DESIGNS = (
    Design("SmolLM2 and its damage", (8,), (3, 1)),
    Design("all causal language models", (8, 2), (3, 1)),
    Design("six vision nets", (3, 3), (1, 2, 1, 2)),
    Design("four vision nets", (3, 1), (1, 2, 1, 2)),
)


def _drawn(design: Design, rho: float, rng: np.random.Generator) -> tuple[np.ndarray, Crossed, dict[str, str]]:
    """Competence c ~ N(0, 1) and scores r c + sqrt(1 - r^2) u + partner + 0.3 noise; half of u's variance is the family's."""
    kin, kin_of_partners = (np.repeat(np.arange(len(sizes)), sizes) for sizes in (design.models, design.partners))
    n, m = len(kin), len(kin_of_partners)
    several = len(design.models) > 1
    own = rng.standard_normal(n)
    if several:
        own = (own + rng.standard_normal(len(design.models))[kin]) / math.sqrt(2)
    competence = rng.standard_normal(n)
    means = rho * competence + math.sqrt(1 - rho**2) * own
    scores = means[:, None] + rng.standard_normal(m) + 0.3 * rng.standard_normal((n, m))
    names, partners = tuple(f"m{i}" for i in range(n)), tuple(f"p{j}" for j in range(m))
    families = {name: f"F{f}" for name, f in zip(names, kin, strict=True)}
    families |= {name: f"P{f}" for name, f in zip(partners, kin_of_partners, strict=True)}
    return competence, Crossed(names, partners, scores, np.ones((n, m))), families


def power(runs: int, draws: int = 499) -> str:
    """The share of simulated studies that see a trend: by p (Holm's first step of four measures), and by the slope's interval."""
    rows = [
        "| design | units | true r | p <= .05 | p <= .0125 | 95 % interval above 0 | 98.75 % interval above 0 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for design in DESIGNS:
        for rho in (0.0, 0.5, 0.7, 0.9):
            seen, units = np.zeros(4), ""
            for run in range(runs):
                x, scores, families = _drawn(design, rho, np.random.default_rng([run, round(10 * rho)]))
                found = infer(scores, x, families, draws=draws, seed=run)
                assert found is not None
                tail = LEVEL / MEASURES
                lows = [found.lines.interval(lambda fit: fit.slope, level)[0] for level in (1 - LEVEL, 1 - tail)]
                seen += [found.slope_pvalue <= LEVEL, found.slope_pvalue <= tail, lows[0] > 0, lows[1] > 0]
                units = f"{found.n_units} {found.unit}s" if not math.isnan(found.df) else "none"
            shares = " | ".join(f"{v:.2f}" for v in seen / runs)
            rows.append(f"| {design.name}: {sum(design.models)} of {len(design.models)} | {units} | {rho:.1f} | {shares} |")
    return "\n".join(rows)


# --- what was found -------------------------------------------------------------------------------


def results(path: Path) -> dict[str, Alignment]:
    """The results of a study by its variants; of those that were run."""
    study = load_study(path)
    folders = {v.name: study.results_of(v) for v in study.variants}
    return {name: Alignment.load(folder) for name, folder in folders.items() if (folder / "run.json").is_file()}


def of_family(found: Alignment, name: str) -> pd.DataFrame:
    """The pairs of the models of one family of side x."""
    own = [m["name"] for m in found.run["models"] if m["family"] == name]
    return found.table[(found.table["scope"] == "max") & found.table["model_x"].isin(own)]


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order, out, most = np.argsort(pvalues), np.empty(len(pvalues)), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(pvalues) - rank) * pvalues[i]))
        out[i] = most
    return out.tolist()


def trends(table: pd.DataFrame, run: dict[str, Any], against: str, side: str, what: str) -> Iterator[str]:
    """A row for each measure; slopes are turned so that above 0 better models agree more."""
    measures = list(dict.fromkeys(table["measure"]))
    found = [trend(table, run["models"], against, side, measure) for measure in measures]
    adjusted = holm([one.inference.slope_pvalue for one in found])
    for one, measure, p in zip(found, measures, adjusted, strict=True):
        yield row_of(what, label(measure), *numbers(one), f"{p:.3f}", chance(table, measure))


def row_of(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def four(value: float) -> str:
    return f"{value:.4f}"


def numbers(found: Trend) -> list[str]:
    turn, said = -1 if found.lower_is_better else 1, found.inference
    low, high = sorted(turn * v for v in said.slope_interval)
    low_s, high_s = sorted(turn * v for v in said.lines.interval(lambda fit: fit.slope, 1 - LEVEL / MEASURES)[:2])
    x = found.points["x"]
    rise = turn * said.slope * (x.max() - x.min()) / found.points["alignment"].mean()
    return [
        str(found.n), f"{turn * said.slope:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{low_s:+.4f} to {high_s:+.4f}",
        f"{turn * said.spearman:+.2f}", f"{100 * rise:+.0f} %", f"{said.slope_pvalue:.4f}",
    ]  # fmt: skip


TREND_HEAD = (
    "| run | measure | models | slope | 95 % | 98.75 % | Spearman | rise over the range | p | Holm p | mean score (chance) |",
    "| " + "--- | " * 11,
)


def label(measure: str) -> str:
    known = {KNN: "mutual 10-NN", CKA: "CKA", KNN.replace("False", "True"): "centred 10-NN"}
    return known.get(measure, "SoftKNN" if measure.startswith("Soft") else measure)


def chance(table: pd.DataFrame, measure: str) -> str:
    rows = table[(table["measure"] == measure) & (table["scope"] == "max")]
    return f"{rows['statistic'].mean():.4f} ({rows['null_mean'].mean():.4f})"


def local_minus_global(table: pd.DataFrame, run: dict[str, Any], against: str, side: str) -> str:
    """Correlation of mutual k-NN with competence minus that of CKA, and its interval over models and partners."""
    records = {m["name"]: m for m in run["models"]}
    both = [Crossed.of(table[table["measure"] == measure], side) for measure in (KNN, CKA)]
    kept = [i for i, name in enumerate(both[0].rows) if against in records[name]["scores"]]
    x = np.array([records[both[0].rows[i]]["scores"][against] for i in kept])
    turn = -1 if against == BITS else 1

    def gap(without: frozenset[str]) -> float:
        r = []
        for one in both:
            means = one.means(without)[kept]
            there = np.isfinite(means)
            r.append(turn * pearson(x[there], means[there]))
        return r[0] - r[1]

    families = {name: m["family"] for name, m in records.items()}
    units = units_of(families, [both[0].rows[i] for i in kept], both[0].columns, least=(3, 1))
    low, high, _ = Jackknife.over(units, gap).interval(lambda value: value)
    interval = "no interval" if math.isnan(low) else f"95 % {low:+.3f} to {high:+.3f}"
    r = [turn * pearson(x, one.means()[kept]) for one in both]
    return f"r {r[0]:+.3f} for mutual 10-NN, {r[1]:+.3f} for CKA; difference {r[0] - r[1]:+.3f}, {interval}"


def depths(found: Alignment, measure: str) -> pd.DataFrame:
    """The best pair of layers of each pair of models as relative depths, from 0 for the first layer to 1 for the last."""
    last = {m["name"]: max(1, len(m["layers"]) - 1) for m in found.run["models"]}
    best = found.best(measure)
    return pd.DataFrame({
        "model_x": best["model_x"], "model_y": best["model_y"], "layers_x": best["model_x"].map(last),
        "x": best["index_x"] / best["model_x"].map(last), "y": best["index_y"] / best["model_y"].map(last),
    })  # fmt: skip


def tables(found: dict[str, Alignment], bed: dict[str, Alignment]) -> Iterator[str]:
    language, vision = found["language"], found["vision"]
    bits = {m["name"]: m["scores"][BITS] for m in language.run["models"] if BITS in m["scores"]}
    yield "bits per byte: " + ", ".join(f"{name} {value:.3f}" for name, value in bits.items())
    yield from ("", "### a1, f: trends on bits per byte", "", *TREND_HEAD)
    same = list(found["sink kept"].best()["model_x"].unique())
    for variant in ("language", "sink kept", "as the paper"):
        run, table = found[variant].run, found[variant].best()
        own = of_family(found[variant], "SmolLM2")
        yield from trends(own, run, BITS, "x", f"{variant}, SmolLM2")
        if variant == "language":
            yield from trends(own[own["model_x"].isin(same)], run, BITS, "x", f"{variant}, the six of the others")
        yield from trends(table[table["model_x"].isin(same)], run, BITS, "x", f"{variant}, with TinyStories")
    yield from ("", "### a2")
    for variant in ("language", "sink kept", "as the paper"):
        yield f"* {variant}: {local_minus_global(of_family(found[variant], 'SmolLM2'), found[variant].run, BITS, 'x')}"
    yield from ("", "### not planned: the deeper half of each language model alone", "", *TREND_HEAD)
    for variant in ("language", "sink kept"):
        one = found[variant]
        own = of_family(one, "SmolLM2")
        for what, models in (("all", own["model_x"].unique()), ("the same six", same)):
            yield from trends(deeper(one, own, models), one.run, BITS, "x", f"{variant}, {what}")
    yield from ("", "### a3: trends on top-1", "", *TREND_HEAD)
    for name, one in [("four networks", vision), *(("six networks", a) for a in bed.values())]:
        yield from trends(one.best(), one.run, TOP1, "y", name)
    for one in bed.values():
        yield "* " + local_minus_global(one.best(), one.run, TOP1, "y")
    yield from ("", "### means by model", "", row_of("model", *map(label, language.measures)), "| " + "--- | " * 5)
    for one, side in ((language, "model_x"), (vision, "model_x"), *((a, "model_y") for a in bed.values())):
        best = one.best()
        for model in dict.fromkeys(best[side]):
            means = [best[(best[side] == model) & (best["measure"] == m)]["statistic"].mean() for m in one.measures]
            yield row_of(model, *map(four, means))
    yield from ("", "### b: depth of the best pair", "", "| measure | model | depth in it | in its partners |", "| " + "--- | " * 4)
    for measure in language.measures:
        for one in (language, vision):
            for model, rows in depths(one, measure).groupby("model_x", sort=False):
                ys = ", ".join(f"{v:.2f}" for v in sorted(rows["y"]))
                yield row_of(label(measure), model, ", ".join(f"{v:.2f}" for v in sorted(rows["x"])), ys)
    yield from ("", "halves: " + halves(found["halves"]))
    half, whole = (depths(found[v], CKA).set_index(["model_x", "model_y"]) for v in ("n 500", "vision"))
    same = (half[["x", "y"]] - whole[["x", "y"]].reindex(half.index)).abs().max(axis=1) <= 0.1
    yield f"best pair at n = 500 within .1 of that at 1,000, CKA: {same.sum()} of {len(same)}"
    yield from ("", "### c: stimuli", "", "| n | measure | score | chance | score - chance | calibrated |", "| " + "--- | " * 6)
    for variant in ("n 125", "n 250", "n 500", "vision"):
        best = found[variant].best()
        for measure, rows in best.groupby("measure", sort=False):
            mean = rows[["statistic", "null_mean", "calibrated"]].mean()
            shown = (mean["statistic"], mean["null_mean"], mean["statistic"] - mean["null_mean"], mean["calibrated"])
            yield row_of(rows["n"].iloc[0], label(measure), *map(four, shown))
    yield from ("", "### e: controls", "", "| variant | y | measure | score | chance | above chance (maxT) |", "| " + "--- | " * 6)
    for variant in ("vision", "networks added later", "untrained", "broken pairs", "words out of order"):
        for (measure, model), rows in found[variant].best().groupby(["measure", "model_y"], sort=False):
            if measure in (KNN, CKA):
                mean, above = rows[["statistic", "null_mean"]].mean(), int((rows["p_maxt"] <= LEVEL).sum())
                yield row_of(variant, model, label(measure), *map(four, mean), f"{above} of {len(rows)}")
    same = found["words out of order"].best()
    for row in same.itertuples():
        other = vision.best(row.measure).set_index(["model_x", "model_y"]).loc[(row.model_x, row.model_y)]
        yield f"* words out of order, {row.model_x}, {label(row.measure)}: {row.statistic:.4f} for {other['statistic']:.4f}"
    both = pd.concat([vision.table, found["untrained"].table])
    models = list({m["name"]: m for a in (vision, found["untrained"]) for m in a.run["models"]}.values())
    for measure in (KNN, CKA):
        yield "* " + matched(both, models, {"trained or not": [["Lite0", "Lite0 untrained"]]}, "y", measure).text


def deeper(found: Alignment, pairs: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The pairs with the best pair of layers, by distance from chance, of those in the deeper half of side x."""
    last = {m["name"]: len(m["layers"]) - 1 for m in found.run["models"]}
    cells = found.cells()
    cells = cells[cells["model_x"].isin(models) & (cells["index_x"] >= cells["model_x"].map(last) / 2)]
    best = cells.loc[cells.groupby(["measure", "model_x", "model_y"])["z"].idxmax()].set_index(["measure", "model_x", "model_y"])
    pairs = pairs[pairs["model_x"].isin(models)].set_index(["measure", "model_x", "model_y"])
    columns = ["statistic", "null_mean"]
    return pairs.assign(**{c: best[c].reindex(pairs.index) for c in columns}).reset_index()


def halves(found: Alignment) -> str:
    rows = pd.DataFrame(found.run["ceilings"])
    parts = []
    for measure, some in rows.groupby("measure", sort=False):
        repeat = some["reliability"].dropna()
        parts.append(
            f"{label(measure)}: repeat of the map {repeat.median():.2f} ({repeat.min():.2f} to {repeat.max():.2f}, "
            f"{len(repeat)} pairs), chosen half {some['selected'].mean():.4f}, other half {some['statistic'].mean():.4f}"
        )
    return "; ".join(parts)


# --- pictures -------------------------------------------------------------------------------------


def trend_picture(found: dict[str, Alignment]) -> plt.Figure:
    """Mutual k-NN and CKA against bits per byte, with and without the sink."""
    figure, grid = plt.subplots(2, 2, figsize=(9.6, 7.6), layout="constrained")
    for column, (variant, said) in enumerate((("language", "sinks left out"), ("sink kept", "sinks kept"))):
        one = found[variant]
        same = one.table[one.table["model_x"].isin(found["sink kept"].table["model_x"])]
        for row, measure in enumerate((KNN, CKA)):
            look = {"ax": grid[row, column], "title": f"{label(measure)}, {said}", "labels": short}
            figures.trend(same, BITS, measure=measure, models=one.run["models"], **look)
    for pair in grid:
        ends = [axes.get_ylim() for axes in pair]
        for axes in pair:
            axes.set_ylim(min(e[0] for e in ends), max(e[1] for e in ends))
    return figure


def short(name: str) -> str:
    return name.replace("SmolLM2 - ", "-").replace("SmolLM2 in ", "")


def published_picture(found: Alignment, path: Path) -> plt.Figure:
    """Ours and the paper's figure 3 on one pair of axes: mutual 10-NN against 1 - bits per byte."""
    theirs = read_published(path)
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for k, partner in enumerate(("clip_h", "dinov2_g", "i21k_b", "mae_h")):
        points = theirs.points(BITS, partner)
        axes.plot(1 - points["x"], points["alignment"], "o", mfc="none", mec=family(k)[0], ms=5, label=f"figure 3, {partner}")
    best, bits = found.best(KNN), {m["name"]: m["scores"].get(BITS) for m in found.run["models"]}
    means = best.groupby("model_x", sort=False)["statistic"].mean()
    axes.plot([1 - bits[m] for m in means.index], means, "s", color=INK, ms=5, label="ours, mean of four networks")
    axes.axhline(10 / (best["n"].iloc[0] - 1), color=FAINT, lw=1, ls="--", label="chance of one pair of layers")
    axes.set_xlabel("1 - bits per byte (theirs: OpenWebText; ours: the captions)")
    axes.set_ylabel("mutual 10-NN, best pair of layers")
    axes.legend(fontsize=7, frameon=False)
    return figure


def vision_picture(found: Alignment) -> plt.Figure:
    """Mutual k-NN and CKA of six vision networks against their ImageNet top-1."""
    figure, pair = plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")
    for axes, measure in zip(pair, (KNN, CKA), strict=True):
        figures.trend(found, TOP1, "y", measure=measure, ax=axes, title=f"{label(measure)}, six vision networks")
    return figure


def pictures(found: dict[str, Alignment], bed: dict[str, Alignment], folder: Path, published: Path | None) -> None:
    drawn = {"zoo_trend": trend_picture(found)}
    for one in bed.values():  # one, if it was run
        drawn["zoo_vision"] = vision_picture(one)
    if published is not None:
        drawn["zoo_published"] = published_picture(found["as the paper"], published)
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=80, metadata={"Software": None})
        print(folder / f"{name}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    asked = tasks.add_parser("power", help="how often a study of this size would see a trend")
    asked.add_argument("--runs", type=int, default=400)
    for task, told in (("tables", "the numbers of the page"), ("pictures", "its pictures")):
        asked = tasks.add_parser(task, help=told)
        asked.add_argument("--study", type=Path, default=HERE.parent / "zoo.yaml", help="the study that was run")
        asked.add_argument("--bed", type=Path, default=HERE.parents[1] / "tests/studies/bed_zoo.yaml", help="with six networks")
    asked.add_argument("folder", type=Path)
    asked.add_argument("--published", type=Path, help="the paper's figure 3, digitised")
    given = parser.parse_args(arguments)
    if given.task == "power":
        print(power(given.runs))
    elif given.task == "tables":
        print("\n".join(tables(results(given.study), results(given.bed))))
    else:
        pictures(results(given.study), results(given.bed), given.folder, given.published)


if __name__ == "__main__":
    sys.exit(main())
