"""Linear representations: is a concept, such as plural, one direction between the words of a model? And do two models agree on it?

Numbers, nulls and sources are in `concept_numbers`, words and vocabularies in `concept_words`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

from repalign.errors import RepalignError, choose
from repalign.experiments.base import Found, Input
from repalign.text import Progress, counted, named, number, p_sentence, silent, span, telling

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes

    from repalign.experiments.concept_numbers import Metric
    from repalign.experiments.concept_words import Lookup, Vocabulary

ALPHA = 0.05  # of the sentences, after Holm's rule over concepts
PAIRING, DIRECTION, NOTHING = "pairing", "direction only", "none"  # what is found of a concept
MIN_CONCEPTS = 3  # whose geometry can be compared: of two there is one number
RANDOM_METRICS = 199  # random positive M
CONTEXT = "contexts_of"
MOCK_WIDTH = 24


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Concepts(Found):
    """What `concepts` found.

    `table` has a row per concept: n pairs, `dropped`, `offset`, `loo` (cosine of each pair with the mean of the others) and
    `loo_projection`; the null of turned pairs (mean 0, `flip_sd`, `p_flip`); that of shuffled partners (`shuffled_mean`,
    `shuffled_sd`, `p_shuffled`), `_holm` adjusted over concepts; `found`: "pairing", "direction only" or "none".

    `tables` has matrix (cosines of the concepts' directions), separation (their mean |cos| and what chance gives), steering (what
    one unit along each direction, across, adds to the log odds of each concept's words, down), overlap (the cosine that shared
    words give alone), dropped (pairs that were left out, and why); contexts and alignment where they were asked for.
    """

    what: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    shown: ClassVar[tuple[str, ...]] = ("concept", "n", "dropped", "offset", "p_flip", "shuffled_mean", "p_shuffled", "found")

    @property
    def text(self) -> str:
        return " ".join(_sentences(self))

    def draw(self, **look: Any) -> Axes:
        """Directions by directions, |cos|, and beside them the offset of each concept with both of its chance levels."""
        from repalign.experiments.concept_chart import draw

        return draw(self, **look)


def concepts(
    model: Input, pairs: Path | None = None, *, metric: str = "causal", over: Path | None = None, ridge: float | None = None,
    layers: list[str] | None = None, contexts: Path | None = None, states: Path | None = None, other: Input | None = None,
    other_pairs: Path | None = None, draws: int = 999, seed: int = 0, progress: Progress = silent,
) -> Concepts:  # fmt: skip
    """Is a concept one direction between words? Pairs such as king and queen, against turned and shuffled ones.

    Of a language model the words are rows of the unembedding matrix, one token each; of a file, the rows that pairs name.

    Parameters
    ----------
    model : A language model (hf:org/name or hf:./folder), a file of features with ids (word vectors, stored layers) or STORE#MODEL.
        In Python also a mapping of words to vectors, or a frame.
    pairs : A table (.csv .tsv .jsonl .parquet) with the columns concept, base, target; without it 15 concepts of 20 English pairs.
        In Python also a mapping of concepts to lists of pairs.
    metric : What length and angle are: causal (inverse covariance of all words) or euclid.
    over : A file of names, one a line: the words that the covariance is taken over, in place of all.
    ridge : This share of the mean eigenvalue is added to the covariance, for instance 0.01, where it has no inverse.
    layers : The layer of each file; last is the last one. By default the only one.
    contexts : A table with the columns concept, base, target: texts in which the concept differs, on whose hidden states its
        direction is tried.
    states : A file of features whose ids are the contexts: their hidden states, in place of those of the model.
    other : A second model or file: do both keep the same concepts close to each other?
    other_pairs : The pairs for it; by default the same.
    draws : Random orders of a null where there are too many to go through all.
    seed : Of the draws.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(99, 8))
    >>> x[12:24] = 0.7 * x[:12] + x[98]
    >>> found = concepts({f"w{i}": v for i, v in enumerate(x)}, {"a concept": [(f"w{i}", f"w{i + 12}") for i in range(12)]})
    >>> found.table["found"].tolist()
    ['pairing']
    """
    from repalign.experiments.concept_words import SHIPPED, layers_of, read_pairs, read_states, read_vocabulary

    _refuse(metric, ridge, draws, contexts, states)
    given = read_pairs(SHIPPED if pairs is None else pairs)
    own, its = layers_of(model, other, layers)
    vocabulary = read_vocabulary(model, own, progress)
    options: dict[str, Any] = {"metric": metric, "over": over, "ridge": ridge, "draws": draws, "seed": seed, "progress": progress}
    found, measured = _measure(vocabulary, given, **options)
    if contexts is not None:
        texts = read_pairs(contexts, "contexts")
        flat = list(dict.fromkeys(text for some in texts.values() for pair in some for text in pair))
        hidden = read_states(model, flat, states, vocabulary.x.shape[1], progress)
        found = _with(found, contexts=_contexts(measured, texts, dict(zip(flat, hidden, strict=True))))
    if other is None:
        return found
    theirs = given if other_pairs is None else read_pairs(other_pairs)
    _, second = _measure(read_vocabulary(other, its, progress), theirs, **options)
    return _with(found, **_alignment(measured, second, draws, seed))


def _refuse(metric: str, ridge: float | None, draws: int, contexts: Path | None, states: Path | None) -> None:
    """What is wrong with the options, before a model is read."""
    from repalign.experiments.concept_numbers import METRICS, refuse_ridge

    choose("metric", metric, METRICS)
    refuse_ridge(ridge)
    if draws < 1:
        raise RepalignError("draws is out of range", expected="at least 1", got=draws)
    if states is not None and contexts is None:
        raise RepalignError("states are of contexts", expected="contexts with them", got="none")


# --- one model -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """Concepts of one model as arrays: differences of words, and their mean directions under the metric g."""

    vocabulary: Vocabulary
    look: Lookup
    names: list[str]
    metric: Metric
    causal: Metric | None  # where it exists
    differences: list[np.ndarray]  # (m, d) of each concept, as the vocabulary has them
    shared: np.ndarray  # (C, C), what common words give

    @property
    def means(self) -> np.ndarray:
        import numpy as np

        return np.stack([some.mean(0) for some in self.differences])

    def cosines(self, by: Metric) -> np.ndarray:
        from repalign.experiments.concept_numbers import cosines

        return cosines(by(self.means))


def _measure(
    vocabulary: Vocabulary, pairs: Mapping[str, Sequence[tuple[str, str]]], metric: str, over: Path | None, ridge: float | None,
    draws: int, seed: int, progress: Progress,
) -> tuple[Concepts, _Measured]:  # fmt: skip
    import numpy as np
    import pandas as pd

    from repalign.experiments import concept_numbers as numbers
    from repalign.experiments.concept_words import look_up

    look = look_up(pairs, vocabulary)
    names = list(look.rows)
    population = vocabulary.population(over)
    root = numbers.metric(population, metric, ridge=ridge, what=vocabulary.what)
    causal: Metric | None = root
    if root.name != "causal":
        try:
            causal = numbers.metric(population, "causal", ridge=ridge)
        except RepalignError:  # not asked for: what goes by it is left out
            causal = None
    rows: list[dict[str, Any]] = []
    differences: list[np.ndarray] = []
    for name in telling(names, "concepts", progress):
        base, target = (vocabulary.x[look.rows[name][:, side]].astype(np.float64) for side in (0, 1))
        differences.append(target - base)
        rows.append({"concept": name, "n": len(base), "dropped": look.lost(name)})
        rows[-1] |= _row(root(base), root(target), draws, (seed, crc32(name.encode())))
    table = _judged(pd.DataFrame(rows))
    shared = numbers.overlap([look.pairs[name] for name in names])
    measured = _Measured(vocabulary, look, names, root, causal, differences, shared)
    steered = numbers.steering(differences, root)
    tables = {
        "matrix": _square(measured.cosines(root), names),
        "separation": _separation(measured, seed),
        "steering": _square(steered, names),
        "overlap": _square(shared, names),
        "dropped": pd.DataFrame(look.dropped, columns=["concept", "base", "target", "reason"]),
    }
    record = {
        **vocabulary.facts, "metric": root.name, "ridge": ridge, "condition": root.condition, "words": len(vocabulary.x),
        "width": vocabulary.x.shape[1], "population": len(population), "given": sum(look.given.values()),
        "is_unembedding": vocabulary.is_unembedding, "draws": draws, "seed": seed,
    }  # fmt: skip
    return Concepts(table=table, tables=tables, what=vocabulary.what, record=record), measured


def _row(base: np.ndarray, target: np.ndarray, draws: int, seed: tuple[int, int]) -> dict[str, Any]:
    """The numbers of one concept under the metric; `_draws` is 0 where all orders were gone through."""
    from repalign.experiments import concept_numbers as numbers

    differences = target - base
    cosine, projection = numbers.leave_one_out(differences)
    flips = numbers.sign_flips(differences, draws, (*seed, 0))
    shuffled = numbers.shuffled_partners(base, target, draws, (*seed, 1))
    return {
        "offset": numbers.offset(differences), "loo": cosine.mean(), "loo_projection": projection.mean(),
        "flip_sd": flips.sd, "p_flip": flips.p, "flip_draws": flips.draws, "flip_least": flips.least,
        "shuffled_mean": shuffled.mean, "shuffled_sd": shuffled.sd, "p_shuffled": shuffled.p, "shuffled_draws": shuffled.draws,
        "shuffled_least": shuffled.least,
    }  # fmt: skip


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """With p adjusted over concepts by Holm's rule, and what is found of each."""
    import numpy as np

    from repalign.null import holm

    adjusted = {f"p_{null}_holm": holm(table[f"p_{null}"].to_numpy(float)) for null in ("flip", "shuffled")}
    moves, pairs = (p <= ALPHA for p in adjusted.values())
    return table.assign(**adjusted, found=np.where(moves & pairs, PAIRING, np.where(moves, DIRECTION, NOTHING)))


def _square(values: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    out = pd.DataFrame(values, columns=list(names))
    out.insert(0, "concept", list(names), allow_duplicates=True)
    return out


def _separation(measured: _Measured, seed: int) -> pd.DataFrame:
    """The mean |cos| of the directions of two concepts that share no word, under each metric, and what chance gives."""
    import numpy as np
    import pandas as pd

    from repalign.experiments import concept_numbers as numbers

    free = np.abs(numbers.off_diagonal(measured.shared)) < numbers.ROUNDING
    by = {one.name: np.abs(measured.cosines(one)) for one in (measured.metric, measured.causal) if one is not None}
    by.setdefault("euclid", np.abs(numbers.cosines(measured.means)))
    by["random positive metric"] = numbers.random_metric_cosines(measured.means, RANDOM_METRICS, seed)
    rows: list[dict[str, Any]] = []
    for name, square in by.items():
        cells = numbers.off_diagonal(square)[free]
        mean, most = (float(f(cells)) if len(cells) else float("nan") for f in (np.mean, np.max))
        rows.append({"metric": name, "mean": mean, "largest": most})
    chance = numbers.random_cosine(measured.vocabulary.x.shape[1])
    rows.append({"metric": "random directions", "mean": chance, "largest": float("nan")})
    return pd.DataFrame(rows).assign(pairs_of_concepts=int(free.sum()), sharing_words=int((~free).sum()))


# --- contexts, and a second model ----------------------------------------------------------------


def _contexts(
    measured: _Measured, texts: Mapping[str, Sequence[tuple[str, str]]], hidden: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Every concept's direction on the contexts of every concept that has some: measurement, and the check of origins."""
    import numpy as np
    import pandas as pd
    from scipy.special import bdtrc

    from repalign.experiments import concept_numbers as numbers

    if not set(texts) & set(measured.names):
        raise RepalignError("no context is of a concept that was measured", expected=named(measured.names), got=named(list(texts)))
    plain = numbers.Metric("euclid", np.eye(measured.vocabulary.x.shape[1]))
    rows: list[dict[str, Any]] = []
    for of, pairs in texts.items():
        base, target = (np.stack([hidden[pair[side]] for pair in pairs]) for side in (0, 1))
        differs = np.linalg.norm(target - base, axis=1) > 0
        if not differs.any():
            raise RepalignError(f"contexts of {of!r}: base and target have the same hidden states", expected="contexts that differ")
        for name, direction in zip(measured.names, measured.means, strict=True):
            low, high = base @ direction, target @ direction
            right, n = float((high > low).sum() + (high == low).sum() / 2), len(low)
            moves = (target - base)[differs]
            cosine = {m.name: numbers.unified_cosine(moves, direction, m).mean() for m in (plain, measured.causal) if m is not None}
            rows.append({
                CONTEXT: of, "concept": name, "matched": of == name, "n": n, "auc": numbers.auc(low, high),
                "within_pair": right / n, "p_within": float(bdtrc(int(right) - 1, n, 0.5)) if right >= 1 else 1.0,
                "cosine_euclid": cosine["euclid"], "cosine_causal": cosine.get("causal", float("nan")),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _alignment(one: _Measured, two: _Measured, draws: int, seed: int) -> dict[str, pd.DataFrame]:
    """Whether two models keep the same concepts close: of those that share no word with an earlier one, in either."""
    import numpy as np
    import pandas as pd

    from repalign.experiments import concept_numbers as numbers

    both = [name for name in one.names if name in two.names]
    places = [[m.names.index(name) for name in both] for m in (one, two)]
    squares = [np.abs(m.cosines(m.metric))[np.ix_(at, at)] for m, at in zip((one, two), places, strict=True)]
    shared = [np.abs(m.shared)[np.ix_(at, at)] for m, at in zip((one, two), places, strict=True)]
    kept = numbers.apart(np.maximum(*shared)) if both else []
    if len(kept) < MIN_CONCEPTS:
        raise RepalignError(
            "too few concepts to compare two models by", got=f"{len(kept)} of {len(one.names)} and {len(two.names)}",
            expected=f"at least {MIN_CONCEPTS} that both have and that share no word", remedy="give more, with words of their own",
        )  # fmt: skip
    x, y = (square[np.ix_(kept, kept)] for square in squares)
    r, chance = numbers.align(x, y, draws, seed)
    names = [both[k] for k in kept]
    first, second = np.triu_indices(len(names), 1)
    cells = pd.DataFrame({
        "concept": [names[i] for i in first], "other_concept": [names[j] for j in second],
        "cosine": numbers.off_diagonal(x), "cosine_other": numbers.off_diagonal(y),
    })  # fmt: skip
    row = {
        "model": one.vocabulary.what, "other": two.vocabulary.what, "concepts": len(names), "left_out": len(both) - len(names),
        "r": r, "null_mean": chance.mean, "null_sd": chance.sd, "p": chance.p, "draws": chance.draws, "least_p": chance.least,
    }  # fmt: skip
    return {"alignment": pd.DataFrame([row]), "alignment_cells": cells}


def _with(found: Concepts, **tables: pd.DataFrame) -> Concepts:
    from dataclasses import replace

    return replace(found, tables={**found.tables, **tables})


# --- mock runs -----------------------------------------------------------------------------------


def mock(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options with made-up vectors of the words in place of each model; without contexts, which need a model."""
    import numpy as np

    from repalign.experiments.concept_words import SHIPPED, read_pairs

    folder.mkdir(parents=True, exist_ok=True)
    out: dict[str, Any] = dict.fromkeys(("layers", "over", "ridge", "contexts", "states"))
    ours = given.get("pairs") or SHIPPED
    for seed, (role, source) in enumerate((("model", ours), ("other", given.get("other_pairs") or ours))):
        if given.get(role) is None:
            continue
        rng = np.random.default_rng(seed)
        x = {f"filler {i}": rng.normal(size=MOCK_WIDTH) for i in range(8 * MOCK_WIDTH)}
        for some in read_pairs(source).values():
            direction = rng.normal(size=MOCK_WIDTH)
            for base, target in some:
                x.setdefault(base, rng.normal(size=MOCK_WIDTH))
                x.setdefault(target, x[base] + direction + rng.normal(size=MOCK_WIDTH))
        path = folder / f"{role}.npz"
        np.savez(path, x=np.stack(list(x.values())), ids=np.array(list(x)))
        out[role] = str(path.absolute())
    return out


# --- in words ------------------------------------------------------------------------------------


def _sentences(found: Concepts) -> Iterator[str]:
    table, record = found.table, found.record
    yield from _about(found)
    moves, pairing = ((table["found"].isin(some)).sum() for some in ((PAIRING, DIRECTION), (PAIRING,)))
    yield (
        f"In {moves} of {len(table)} the pairs move in one direction: their offset is above that of pairs turned round at random, "
        f"where chance is 0 (p ≤ {ALPHA} by Holm’s rule). In {pairing} it is the pairing too: the offset is also above that of "
        f"targets shuffled among the bases, where chance is {number(table['shuffled_mean'].mean())} on average."
    )
    if only := table.loc[table["found"] == DIRECTION, "concept"].tolist():
        yield f"In {named(only)} two classes of words lie apart, and which word goes with which does not show."
    best = table.loc[table["offset"].idxmax()]
    turned, shuffled = (p_sentence(best[f"p_{null}"], int(best[f"{null}_draws"]) or None) for null in ("flip", "shuffled"))
    yield (
        f"Largest offset: {best['concept']}, {number(best['offset'])} of at most 1 (n = {best['n']} pairs; turned {turned}; "
        f"shuffled partners {number(best['shuffled_mean'])}, {shuffled})."
    )
    if (few := table.loc[table["flip_least"] > ALPHA]).size:
        least = number(few["flip_least"].max())
        yield f"With so few pairs p cannot be below {least}, whatever the model: {named(few['concept'].tolist())}."
    yield from _apart(found)
    if record["is_unembedding"]:
        yield "What one unit of steering along a direction adds to the log odds of words is in `steering`, for every context alike."
        if "final_logit_softcapping" in record:
            yield "This model caps its logits behind the matrix: there it holds for small steps only."
    yield from _in_contexts(found)
    yield from _aligned(found)
    yield (
        "What would refute a concept: an offset no larger than that of turned pairs (it is no direction here), or no larger than "
        "with shuffled partners (two classes of words lie apart, and no more)."
    )


def _about(found: Concepts) -> Iterator[str]:
    table, record = found.table, found.record
    by = "under the Euclidean inner product"
    if record["metric"] == "causal":
        ridge = "" if record["ridge"] is None else f", with a ridge of {record['ridge']:g}, which makes it another"
        by = f"under the causal inner product, one choice of several (covariance of {record['population']:,} words{ridge})"
    of = f"{counted(len(table), 'concept')} of {span(table['n'].tolist())} pairs of words"
    yield f"{of} in {found.what}, {record['words']:,} vectors of width {record['width']:,}, {by}."
    dropped = found.tables["dropped"]
    if len(dropped):
        few = dropped["reason"].str.startswith("one of ")
        counts = dropped.loc[~few, "reason"].value_counts()
        why = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        why += f"{', ' * bool(why)}{few.sum()} of concepts with too few left" if few.any() else ""
        yield f"Left out: {len(dropped)} of {record['given']} pairs ({why})."
    gone = [name for name in dict.fromkeys(dropped["concept"]) if name not in set(table["concept"])]
    if gone:
        yield f"No concept any more: {named(gone)}."


def _apart(found: Concepts) -> Iterator[str]:
    separation = found.tables["separation"].set_index("metric")
    counts = separation.iloc[0]
    sharing = int(counts["sharing_words"])
    if counts["pairs_of_concepts"]:
        values = {name: number(value) for name, value in separation["mean"].items()}
        own = found.record["metric"]
        others = ", ".join(f"{name} {values[name]}" for name in separation.index if name != own)
        n = counted(int(counts["pairs_of_concepts"]), "pair")
        yield f"The directions of two concepts have a mean |cos| of {values[own]} over {n} of concepts ({others})."
    if sharing:
        overlap = found.tables["overlap"].set_index("concept")
        one, two = next((a, b) for a in overlap.index for b in overlap.columns if a != b and abs(overlap.loc[a, b]) > 1e-9)
        yield (
            f"{counted(sharing, 'pair')} of concepts {'shares' if sharing == 1 else 'share'} words, as {one} and {two} do: "
            "their directions are close for that alone, and are left out of the mean."
        )


def _in_contexts(found: Concepts) -> Iterator[str]:
    if "contexts" not in found.tables:
        return
    rows = found.tables["contexts"]
    own, others = rows.loc[rows["matched"]], rows.loc[~rows["matched"]]
    for row in own.to_dict("records"):
        share, cosine = round(100 * row["within_pair"]), [number(row[f"cosine_{by}"]) for by in ("euclid", "causal")]
        yield (
            f"Contexts of {row['concept']} (n = {row['n']} pairs): its direction tells the two kinds apart with an AUC of "
            f"{number(row['auc'])} (chance 0.5), and within {share} % of pairs ({p_sentence(row['p_within'])}); cosine with their "
            f"differences {cosine[0]} (euclid), {cosine[1]} (causal)."
        )
    if len(others):
        yield (
            f"Directions of other concepts: AUC {number(others['auc'].mean())} on average, |cosine| "
            f"{number(others['cosine_euclid'].abs().mean())} and {number(others['cosine_causal'].abs().mean())}."
        )


def _aligned(found: Concepts) -> Iterator[str]:
    if "alignment" not in found.tables:
        return
    row = found.tables["alignment"].iloc[0]
    orders = f"{row['draws']:,} random orders" if row["draws"] else "all orders"
    left = f" ({counted(int(row['left_out']), 'concept')} left out, which share words)" if row["left_out"] else ""
    verdict = "more than chance gives" if row["p"] <= ALPHA else "no more than chance gives, which refutes it here"
    yield (
        f"Do {row['model']} and {row['other']} keep the same concepts close? r = {number(row['r'])} over the pairs of "
        f"{row['concepts']} concepts{left}, {verdict}: {number(row['null_mean'])} ± {number(row['null_sd'])} where concepts change "
        f"places ({orders}, {p_sentence(row['p'], int(row['draws']) or None)}). No word need be in both."
    )
