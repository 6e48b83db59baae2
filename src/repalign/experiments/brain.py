"""Brain alignment: how close models come to the brains of several people, beside how close these come to each other.

Everything is an RDM, a table of how unlike every two stimuli are: d_s that of recording s, above its diagonal, m that of a model.

    score    mean over people of sim(m, d_s), recordings of one person averaged first
    lower    mean over people of sim(mean of the other people, d_s)      what a perfect model can be expected to reach at least
    upper    mean over people of sim(mean of all people, d_s)            what no model can pass

Before a mean is taken RDMs are brought to one scale: Pearson mean 0 and sd 1, cosine a root mean square of 1, all that look at
ranks (Spearman, rho_a, Kendall) ranks; other measures take RDMs as they are.

Sources: Nili et al. 2014 (PLoS Computational Biology 10, e1003553) for the noise ceiling; Schuett et al. 2023 (eLife 12, e82566)
for means, for stimuli drawn with replacement and for the variance over people and stimuli at once; rsatoolbox, whose scores and
ceilings these are, with one departure in `brain_scores.Errors`. Lin & Kriegeskorte 2023 (arXiv 2309.11028) for regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input
from repalign.experiments.brain_inputs import REGION, WORDS, comparison_of, labels_of, measure_of, of_region, read_all
from repalign.experiments.brain_scores import ALPHA, OVER, RESAMPLED, Data, Identified, identify
from repalign.text import Progress, counted, interval, named, number, p_sentence, pvalue, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from repalign.measures import Measure

KINDS = ("rdm", "features")
DRAWS, DRAWS_OF_TAU = 999, 199  # Kendall's tau is sorted anew in every draw


# --- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Brain(Found):
    """What `brain` found.

    `table` has a row per model, the closest first: `score`, `low`, `high` and `se` over what `over` says; `chance`, the mean of the
    score with relabelled stimuli, `threshold`, its 95th percentile, `p_chance` and `p_chance_holm`; the ceilings `lower` and
    `upper`; `gap`, the lower ceiling minus the score, with `gap_low`, `gap_high` and `p_gap`; `with_mean`, the similarity with the
    mean RDM of all people.

    `tables` has pairs (`difference` of the scores of two models, interval, `p`, `p_holm` and `p_bh` over all pairs), scores (model
    by recording), errors (standard errors over subjects, stimuli and both, and those that recordings as people would give), and,
    where labels name regions, regions (each recording, and what it was taken for).
    """

    measure: Measure
    over: str
    n: int
    n_people: int
    n_recordings: int
    level: float
    draws: int
    how: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    identified: Identified | None = None
    shown: ClassVar[tuple[str, ...]] = ("model", "score", "low", "high", "chance", "p_chance_holm", "gap", "p_gap")

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Any) -> Axes:
        """A point and an interval per model, the noise ceiling as a band, chance as a mark, people as faint points."""
        return _draw(self, look)


def brain(
    brain: Input, models: list[Input], *, measure: str = "rho_a", subjects: Path | None = None, region: str | None = None,
    over: str = "both", kind: str = "rdm", vector: str | None = None, level: float = 0.95, draws: int | None = None, seed: int = 0,
    progress: Progress = silent,
) -> Brain:  # fmt: skip
    """Which model is closest to the brains of several people, and how close could one be? With ceilings and chance.

    Stimuli are joined on ids; without any, row i is row i everywhere.

    Parameters
    ----------
    brain : The recordings: a file with a stack of RDMs (s, n, n) or of features (s, n, d) or with an array for each, a folder with
        a file for each, or a pattern such as 'sub-*.npy'. In Python also arrays, or a list or mapping of them.
    models : Files of the models, RDMs or features; each layer or matrix of a file is a model.
    measure : How RDMs are compared: rho_a, spearman, pearson, cosine, tau_a, or any measure that takes RDMs. Features become RDMs
        by its dissimilarity, for instance "RSA(dissimilarity='euclidean', comparison='pearson')"; by default 1 - correlation.
    subjects : A table (.csv .tsv .jsonl .parquet) with the columns id and subject: which recording is of whom. Without it each
        is taken for a person. With a column region too, recordings are also told by their region.
    region : Of recordings of several regions, the one that models are compared with.
    over : What the intervals are over: both (people and stimuli as new samples), subjects, or stimuli.
    kind : What square arrays are: rdm or features.
    vector : Of a file of recordings with several arrays, the name of the one that holds the stack.
    level : Of the intervals.
    draws : Relabellings for chance, and samples of stimuli; 999, for Kendall's tau 199.
    seed : Seed of the draws.
    progress : Called as it goes on.

    Raises
    ------
    RepalignError : one person alone; stimuli that do not pair; an RDM that is none or is constant; an unknown measure; labels that
        name no recording.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.standard_normal((30, 5))
    >>> people = np.stack([seen + rng.standard_normal(seen.shape) for _ in range(6)])
    >>> found = brain(people, {"sees": seen, "blind": rng.standard_normal((30, 5))}, measure="pearson", draws=99)
    >>> found.table["model"].tolist(), bool(found.tables["pairs"]["p_holm"][0] < 0.01)
    (['sees', 'blind'], True)
    """
    _check(over, kind, level, draws)
    chosen = measure_of(measure)
    compared = comparison_of(chosen)
    if compared not in RESAMPLED and over != "subjects":
        raise RepalignError(
            f"{chosen!r} is not defined with stimuli drawn twice", expected=f"over='subjects', or one of {', '.join(WORDS)}",
            got=f"over={over!r}", remedy="say over subjects: intervals then hold for these stimuli",
        )  # fmt: skip
    recordings, candidates, how = read_all(brain, models, kind, vector, chosen)
    labels = labels_of(subjects, list(recordings))
    identified = identify(labels, recordings, chosen, draws or DRAWS, seed)
    labels = of_region(labels, region)
    recordings = {name: recordings[name] for name in labels["id"]}
    data = Data.of(recordings, candidates, labels["subject"].tolist(), chosen, compared)
    number_of_draws = draws or (DRAWS_OF_TAU if compared.startswith("tau") else DRAWS)
    return Brain(
        **data.judged(over, level, number_of_draws, seed, progress, identified), measure=chosen, over=over, n=data.n,
        n_recordings=len(recordings), level=level, draws=number_of_draws, how=how, identified=identified,
    )  # fmt: skip


def _check(over: str, kind: str, level: float, draws: int | None) -> None:
    choose("over", over, OVER)
    choose("kind", kind, KINDS)
    if not 0 < level < 1:
        raise RepalignError("level is not a probability", expected="0 < level < 1, such as 0.95", got=repr(level))
    if draws is not None and draws < 2:
        raise RepalignError("draws is out of range", expected="at least 2", got=draws)


# --- told and drawn ------------------------------------------------------------------------------

_FOR: dict[str, str] = {"both": "people and stimuli", "subjects": "people", "stimuli": "stimuli"}


def _sentences(found: Brain) -> Iterator[str]:
    table: Any = found.table
    pairs: Any = found.tables["pairs"]
    best = table.iloc[0]
    people = counted(found.n_people, "person").replace("persons", "people")
    whom = people if found.n_people == found.n_recordings else f"{people} ({found.n_recordings} recordings)"
    yield (
        f"{best['model']} is closest to the brains of {whom}: {interval(best['score'], best['low'], best['high'])}, "
        f"of {counted(len(table), 'model')}, by {found.measure.facts.label}, n = {found.n} stimuli."
    )
    lower, upper = best["lower"], best["upper"]
    p = p_sentence(best["p_gap"])
    place = f"not told from its lower end ({p})" if best["p_gap"] > ALPHA else f"below it ({p})"
    place = place if best["score"] < lower else "within it" if best["score"] <= upper else "above it"
    yield f"The noise ceiling is {number(lower)} to {number(upper)}; {best['model']} is {place}."
    above = table["p_chance_holm"] <= ALPHA
    below = named(table["model"][~above].tolist())
    yield (
        f"Above chance are {int(above.sum())} of {counted(len(table), 'model')} ({found.draws} relabellings of the stimuli, Holm "
        f"over models){f', not {below}' if below else ''}."
    )
    if len(pairs):
        differ = pairs["p_holm"] <= ALPHA
        near = pairs[(pairs["model_a"] == best["model"]) & ~differ]["model_b"].tolist()
        yield (
            f"{int(differ.sum())} of {counted(len(pairs), 'pair')} of models differ (Holm over pairs, over {_FOR[found.over]}); "
            f"{best['model']} is {f'not told from {named(near)}' if near else 'told from all others'}."
        )
    if found.n_people < found.n_recordings:
        row = found.tables["errors"].iloc[0]
        yield (
            f"Over people the standard error of {row['model']} is {number(row['se_subjects'])}; recordings taken for people would "
            f"give {number(row['se_recordings'])}."
        )
    else:
        yield "Each recording counts as a person; if some are sessions of one, say so (subjects)."
    yield from found.remarks
    if found.identified is not None:
        known = found.identified
        yield (
            f"Regions are known in {100 * known.accuracy:.0f} % of recordings from those of other people, with shuffled regions in "
            f"{100 * known.chance:.0f} % ({p_sentence(known.p, known.draws)})."
        )
    yield f"New people and stimuli in which another model leads would refute the order. Stimuli: {found.how[0]}."


def _draw(found: Brain, look: Any) -> Axes:
    from repalign.figures import canvas
    from repalign.figures.palette import ACCENT, FAINT, LIGHT, MUTED, PAPER, SCORE

    table, rows = found.table, np.arange(len(found.table))
    names = canvas.called(table["model"], look=look)
    lower, upper = table["lower"].iloc[0], table["upper"].iloc[0]
    people = f"{found.n_people} people" + f", {found.n_recordings} recordings" * (found.n_recordings > found.n_people)
    _, ((axes,),) = canvas.sheet(
        7.2 + canvas.beyond(names.values()), 1.9 + 0.28 * len(rows), "Closeness of models to the brain",
        above=f"{found.measure.facts.label}; {people}; n = {found.n:,} stimuli",
        below=f"Bars: {100 * found.level:g} % intervals over {_FOR[found.over]}. Faint points: people. Red: mean and 95th "
        f"percentile of {found.draws} relabellings of the stimuli. p: of chance, Holm over models.",
        rules="x", **look,
    )  # fmt: skip
    axes.axvspan(lower, upper, color=LIGHT[4], linewidth=0, label="noise ceiling", zorder=0.5)
    scores: Any = found.tables["scores"].groupby("subject", sort=False)[table["model"].tolist()].mean()  # (P, M)
    for values in scores.to_numpy():
        axes.plot(values, rows + 0.22, "o", color=FAINT, markersize=3, alpha=0.8, markeredgewidth=0)
    axes.hlines(rows, table["low"], table["high"], color=SCORE, linewidth=1.8)
    axes.plot(table["score"], rows, "o", color=SCORE, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8)
    axes.vlines(table["chance"], rows - 0.3, rows + 0.3, color=ACCENT, linewidth=1.3, label="chance")
    axes.vlines(table["threshold"], rows - 0.3, rows + 0.3, color=ACCENT, linewidth=1.1, linestyle=canvas.DASHED)
    for row, p in zip(rows, table["p_chance_holm"], strict=True):
        said = pvalue(p)
        canvas.at_end(axes, f"p {said}" if said[:1] in "<–" else f"p = {said}", row)
    axes.annotate(
        "noise\nceiling", ((lower + upper) / 2, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 3), textcoords="offset points",
        ha="center", va="bottom", fontsize=7, color=MUTED, annotation_clip=False,
    )  # fmt: skip
    canvas.rows(axes, [names[m] for m in table["model"]])
    canvas.labels(axes, "Score, mean over people")
    return axes


def mock(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Three made-up people, two recordings each, who see what the models see."""
    from repalign.files import write_file

    rng, n, names = np.random.default_rng(0), 24, [f"recording{k}" for k in range(6)]
    seen = rng.standard_normal((n, 4))
    folder.mkdir(parents=True, exist_ok=True)
    rows = seen + rng.standard_normal((6, n, 4))
    np.savez(folder / "brain.npz", rdm=np.linalg.norm(rows[:, :, None] - rows[:, None], axis=-1), names=np.array(names))
    models = [folder / f"model{k}.npy" for k in range(len(given["models"]))]
    for k, path in enumerate(models):
        np.save(path, seen + k * rng.standard_normal((n, 4)))
    head = ["id", "subject", *([REGION] if given["region"] else [])]
    lines = [",".join([name, f"person{k // 2}", given["region"] or ""][: len(head)]) for k, name in enumerate(names)]
    write_file(folder / "subjects.csv", "\n".join([",".join(head), *lines]) + "\n")
    made = {"brain": str(folder / "brain.npz"), "models": [str(path) for path in models], "subjects": folder / "subjects.csv"}
    return {**made, "kind": "rdm", "vector": None, "draws": 49}
