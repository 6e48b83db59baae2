"""Linear representations: offsets of word pairs, their two nulls, directions against each other, contexts, and two models.

Expected values named golden were printed by outside scripts of numpy; others are computed here from the formula.
"""

from __future__ import annotations

import json
import math
import re
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from repalign import RepalignError
from repalign.experiments import EXPERIMENTS, concept_numbers
from repalign.experiments.concept_words import SHIPPED, Vocabulary, layers_of, look_up, read_pairs, read_vocabulary
from repalign.experiments.concepts import Concepts, concepts

METRICS = ("euclid", "causal")
DRAWN = 999


def concepts_of(x: np.ndarray, names: list[str], pairs: Any, **options: Any) -> Concepts:
    return concepts(Vocabulary.of(x, names), pairs, **options)  # type: ignore[arg-type]


# --- golden values -------------------------------------------------------------------------------


def planted() -> tuple[np.ndarray, np.random.Generator]:
    """200 vectors of width 16: words 0 to 7 have partners 8 to 15 along one direction, 16 to 23 have 24 to 31 along another."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 16)) * np.linspace(0.5, 3, 16)
    first, second = rng.normal(size=16), rng.normal(size=16)
    x[8:16] = x[0:8] + first + 0.3 * rng.normal(size=(8, 16))
    x[24:32] = x[16:24] + second + 0.3 * rng.normal(size=(8, 16))
    return x, rng


X = planted()[0]
NAMES = [f"w{i}" for i in range(len(X))]
PAIRS = {"A": [(f"w{i}", f"w{8 + i}") for i in range(8)], "B": [(f"w{16 + i}", f"w{24 + i}") for i in range(8)]}
AT = {"A": slice(0, 8), "B": slice(16, 24)}

GOLDEN: dict[str, dict[str, tuple[float, ...]]] = {  # euclid A, euclid B, causal A, causal B
    "offset": {"euclid": (0.9174262886, 0.8261646733), "causal": (0.8425561680, 0.8007623966)},
    "loo": {"euclid": (0.9517813042, 0.8956376728), "causal": (0.9057715735, 0.8799926286)},
    "loo_projection": {"euclid": (4.1356077322, 2.5139162441), "causal": (2.5165895387, 1.8627481820)},
    "flip_sd": {"euclid": (0.1734547549, 0.1565282204), "causal": (0.1597417882, 0.1521534796)},
    "p_flip": {"euclid": (0.0078125, 0.0078125), "causal": (0.0078125, 0.0078125)},
    "shuffled_mean": {"euclid": (0.0726179441, -0.0308946152), "causal": (0.1451394422, 0.0473950408)},
}
OF_ALL_ORDERS = {"euclid": (0.0862836404, 0.0719525597), "causal": (0.0784513420, 0.0748627979)}
DIRECTIONS = {"euclid": -0.1302760986, "causal": -0.0006035148}
STEERED = {"euclid": (1.6739388897, -0.134689126), "causal": (1.0320139711, -0.0004642217)}  # t = .4 along A: A's words, B's


def sides(metric: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    g = concept_numbers.metric(X, metric)(X)
    return g[AT[name]], g[AT[name].start + 8 : AT[name].stop + 8]


def test_the_planted_vectors_are_those_of_the_golden_values():
    assert X[0, 0] == pytest.approx(0.0628651105, abs=1e-10) and X[8, 0] == 0.25775051614831046


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("column", GOLDEN)
def test_golden_values_of_a_concept(metric: str, column: str):
    found = concepts_of(X, NAMES, PAIRS, metric=metric)
    assert found.table[column].to_numpy() == pytest.approx(GOLDEN[column][metric], abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_golden_values_of_all_orders_of_partners(metric: str):
    for k, name in enumerate(PAIRS):
        chance = concept_numbers.shuffled_partners(*sides(metric, name), exact=8)
        assert (chance.sd, chance.p, chance.draws) == (pytest.approx(OF_ALL_ORDERS[metric][k], abs=1e-9), 1 / 40_320, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_golden_cosine_of_two_directions(metric: str):
    found = concepts_of(X, NAMES, PAIRS, metric=metric).tables["matrix"]
    assert found.loc[0, "B"] == pytest.approx(DIRECTIONS[metric], abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_golden_steering_is_the_same_in_every_context(metric: str):
    """The change of log odds of words by a longer hidden state, of contexts that the matrix never sees."""
    states = planted()[1].normal(size=(5, 16))
    root = concept_numbers.metric(X, metric)
    lam = root.dual((X[8:16] - X[0:8]).mean(0))
    changes = []
    for name in PAIRS:
        at = AT[name]
        logits = [np.stack([h @ X.T for h in (states, states + 0.4 * lam)])][0]
        odds = logits[..., at.start + 8 : at.stop + 8] - logits[..., at]  # (2, 5, 8)
        changes.append((odds[1] - odds[0]).mean(1))
    assert np.ptp(changes, axis=1) == pytest.approx(0, abs=1e-12)
    assert np.mean(changes, axis=1) == pytest.approx(STEERED[metric], abs=1e-9)
    matrix = concepts_of(X, NAMES, PAIRS, metric=metric).tables["steering"]
    assert 0.4 * matrix["A"].to_numpy() == pytest.approx(STEERED[metric], abs=1e-9)


def test_causal_values_do_not_change_under_linear_maps_and_euclidean_ones_do():
    rng = planted()[1]
    rng.normal(size=(5, 16))
    moved = X @ rng.normal(size=(16, 16)) + rng.normal(size=16)
    causal, again = (concepts_of(x, NAMES, PAIRS) for x in (X, moved))
    numbers = [c for c in causal.table.columns if causal.table[c].dtype == float]
    assert again.table[numbers].to_numpy() == pytest.approx(causal.table[numbers].to_numpy(), abs=1e-9)
    for name in ("matrix", "steering"):
        assert again.tables[name][["A", "B"]].to_numpy() == pytest.approx(causal.tables[name][["A", "B"]].to_numpy(), abs=1e-9)
    assert again.table.loc[0, "offset"] == pytest.approx(0.8425561680, abs=1e-9)
    assert concepts_of(moved, NAMES, PAIRS, metric="euclid").table.loc[0, "offset"] == pytest.approx(0.7746371542, abs=1e-9)


def test_a_ridge_is_told_and_moves_what_linear_maps_leave():
    found = concepts_of(X, NAMES, PAIRS, ridge=0.1)
    assert "ridge of 0.1" in found.text
    assert abs(found.table.loc[0, "offset"] - 0.8425561680) > 1e-3
    assert found.record["condition"] < concepts_of(X, NAMES, PAIRS).record["condition"]


# --- exactness -----------------------------------------------------------------------------------


def by_definition(base: np.ndarray, target: np.ndarray) -> float:
    """The mean over i != j of the cosine of two differences; one of no length has cosine 0 with any."""
    d = target - base
    lengths = np.linalg.norm(d, axis=1)
    cosine = [
        d[i] @ d[j] / (lengths[i] * lengths[j])
        for i in range(len(d))
        for j in range(len(d))
        if i != j and lengths[i] * lengths[j]
    ]
    return sum(cosine) / (len(d) * (len(d) - 1))


@pytest.mark.parametrize("metric", METRICS)
def test_all_256_flips_have_the_closed_forms_moments_and_its_p(metric: str):
    base, target = sides(metric, "A")
    every = np.array([
        concept_numbers.offset(np.array(signs)[:, None] * (target - base)) for signs in product((1.0, -1.0), repeat=8)
    ])  # fmt: skip
    chance = concept_numbers.sign_flips(target - base)
    assert (every.mean(), every.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(chance.sd, abs=1e-12))
    assert chance.p == np.mean(every >= every[0] - 1e-12) == 1 / 128


def test_all_orders_of_partners_by_definition():
    rng = np.random.default_rng(1)
    base, target = rng.normal(size=(2, 6, 4))
    every = np.array([by_definition(base, target[list(order)]) for order in permutations(range(6))])
    chance = concept_numbers.shuffled_partners(base, target)
    assert (chance.mean, chance.sd) == (pytest.approx(every.mean(), abs=1e-12), pytest.approx(every.std(), abs=1e-12))
    assert chance.p == np.mean(every >= every[0] - 1e-12) and 1 / 720 < chance.p < 1


def test_a_target_that_meets_itself_as_a_base_counts_as_nothing():
    """A chain, good better best: some orders deal a word to itself."""
    rng = np.random.default_rng(2)
    words = rng.normal(size=(6, 3))
    every = [by_definition(words[:5], words[1:][list(order)]) for order in permutations(range(5))]
    chance = concept_numbers.shuffled_partners(words[:5], words[1:])
    assert chance.mean == pytest.approx(np.mean(every), abs=1e-12) and np.isfinite(chance.sd)


def test_the_mean_over_all_orders_is_that_of_many_draws_where_there_are_too_many():
    rng = np.random.default_rng(3)
    base, target = rng.normal(size=(2, 20, 5))
    target = target + 1.5
    chance = concept_numbers.shuffled_partners(base, target, 20_000)
    drawn = [by_definition(base, target[rng.permutation(20)]) for _ in range(2_000)]
    assert chance.draws == 20_000
    assert np.mean(drawn) == pytest.approx(chance.mean, abs=5 * chance.sd / math.sqrt(2_000))


def test_the_chance_of_random_directions():
    rng = np.random.default_rng(4)
    for d in (2, 16):
        pairs = rng.normal(size=(20_000, 2, d))
        cosine = np.abs((pairs[:, 0] * pairs[:, 1]).sum(1) / np.linalg.norm(pairs, axis=2).prod(1))
        assert concept_numbers.random_cosine(d) == pytest.approx(cosine.mean(), abs=4 * cosine.std() / math.sqrt(len(cosine)))
    assert concept_numbers.random_cosine(576) == pytest.approx(math.sqrt(2 / (math.pi * 576)), rel=1e-3)


def test_a_random_metric_of_few_numbers_has_the_law_of_a_whole_one():
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(3, 8)) + 0.5
    whole = np.mean([np.abs(concept_numbers.cosines(directions @ rng.normal(size=(8, 8)))) for _ in range(4_000)], axis=0)
    assert concept_numbers.random_metric_cosines(directions, 4_000) == pytest.approx(whole, abs=0.02)  # 4 sd of two such means


def test_concepts_that_share_words_are_close_by_that_alone():
    """20 pairs from the same bases: independent vectors give directions with a cosine of one half."""
    bases, rng = [f"b{i}" for i in range(20)], np.random.default_rng(6)
    first, second = ([(b, f"{b}{end}") for b in bases] for end in ("er", "est"))
    shared = concept_numbers.overlap([first, second, [("x", "y"), ("z", "w")]])
    assert shared[0, 1] == pytest.approx(0.5) and shared[0, 2] == 0
    vectors = rng.normal(size=(3, 20, 4_000))
    directions = np.stack([(vectors[k] - vectors[0]).mean(0) for k in (1, 2)])
    assert concept_numbers.cosines(directions)[0, 1] == pytest.approx(0.5, abs=0.03)
    assert concept_numbers.apart(shared) == [0, 2]


def test_a_crossed_design_shares_stimuli_and_no_direction():
    colours, shapes = ("red", "blue"), ("disc", "square")
    colour = [(f"{colours[0]} {s} {k}", f"{colours[1]} {s} {k}") for s in shapes for k in range(3)]
    shape = [(f"{c} {shapes[0]} {k}", f"{c} {shapes[1]} {k}") for c in colours for k in range(3)]
    assert concept_numbers.overlap([colour, shape])[0, 1] == pytest.approx(0, abs=1e-15)


def test_alignment_by_definition_in_all_orders():
    rng = np.random.default_rng(7)
    x, y = (np.abs(concept_numbers.cosines(rng.normal(size=(5, 3)))) for _ in range(2))
    upper = np.triu_indices(5, 1)
    every = [np.corrcoef(x[upper], y[np.ix_(o, o)][upper])[0, 1] for o in permutations(range(5))]
    r, chance = concept_numbers.align(x, y)
    assert (r, chance.mean, chance.sd) == tuple(pytest.approx(v, abs=1e-12) for v in (every[0], np.mean(every), np.std(every)))
    assert chance.p == np.mean(np.array(every) >= every[0] - 1e-12) and chance.draws == 0
    assert concept_numbers.align(x, x)[0] == pytest.approx(1) and concept_numbers.align(x, x)[1].p == 1 / 120


def test_auc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(8)
    base, target = rng.integers(0, 5, 13).astype(float), rng.integers(1, 6, 9).astype(float)
    expected = np.mean([(t > b) + (t == b) / 2 for b in base for t in target])
    assert concept_numbers.auc(base, target) == pytest.approx(expected, abs=1e-15)


def test_the_unified_cosine_is_its_formula():
    states, word, cov = planted()[1].normal(size=(5, 16)), X[9] - X[1], np.cov(X.T, bias=True)
    expected = [h @ word / math.sqrt((h @ cov @ h) * (word @ np.linalg.inv(cov) @ word)) for h in states]
    assert concept_numbers.unified_cosine(states, word, concept_numbers.metric(X)) == pytest.approx(expected, abs=1e-12)
    plain = concept_numbers.unified_cosine(states, word, concept_numbers.metric(X, "euclid"))
    assert plain == pytest.approx(states @ word / (np.linalg.norm(states, axis=1) * np.linalg.norm(word)), abs=1e-12)


def test_the_covariance_is_in_float64_and_in_blocks(monkeypatch):
    x = (X + 1_000).astype(np.float32)
    monkeypatch.setattr(concept_numbers, "BLOCK", 7)
    assert concept_numbers.covariance(x) == pytest.approx(np.cov(x.T.astype(float), bias=True), abs=1e-9)


# --- size ----------------------------------------------------------------------------------------


def holds(rejected: int, trials: int, level: float) -> bool:
    interval = binomtest(rejected, trials).proportion_ci(0.99, method="wilson")
    return bool(interval.low <= level <= interval.high)


@pytest.mark.parametrize(("m", "level"), [(8, 6 / 128), (17, 0.05)], ids=["all flips", "drawn flips"])
def test_size_of_the_null_of_turned_pairs(m: int, level: float):
    """Differences of independent directions; of 128 flips 6 are within .05."""
    rng = np.random.default_rng(9)
    rejected = sum(concept_numbers.sign_flips(rng.normal(size=(m, 5)), 99, seed).p <= 0.05 for seed in range(2_000))
    assert holds(rejected, 2_000, level)


@pytest.mark.parametrize(("m", "draws"), [(6, 0), (9, 99)], ids=["all orders", "drawn orders"])
def test_size_of_the_null_of_shuffled_partners(m: int, draws: int):
    """Two classes of words that lie far apart, and partners that mean nothing: turned pairs would all be rejected."""
    rng = np.random.default_rng(10)
    rejected = 0
    for seed in range(2_000):
        base, target = rng.normal(size=(2, m, 5))
        rejected += concept_numbers.shuffled_partners(base, target + 4, draws or DRAWN, seed).p <= 0.05
    assert holds(rejected, 2_000, 0.05)
    assert concept_numbers.sign_flips(target + 4 - base, 99).p <= 0.05


def test_size_of_the_null_of_two_models():
    rng = np.random.default_rng(11)
    rejected = 0
    for _ in range(1_000):
        x, y = (np.abs(concept_numbers.cosines(rng.normal(size=(5, 8)))) for _ in range(2))
        rejected += concept_numbers.align(x, y)[1].p <= 0.05
    assert holds(rejected, 1_000, 0.05)


# --- what the two nulls tell apart ---------------------------------------------------------------


def made(kind: str, n: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str], dict[str, list[tuple[str, str]]]]:
    """200 words of width 20, of which 2n are pairs: of one direction, of two classes that lie apart, or of nothing."""
    rng = np.random.default_rng(seed)
    x, names = rng.normal(size=(200, 20)), [f"w{i}" for i in range(200)]
    direction = 2 * rng.normal(size=20)
    if kind == "pairing":
        x[n : 2 * n] = x[:n] + direction + 0.3 * rng.normal(size=(n, 20))
    if kind == "direction only":
        x[n : 2 * n] += direction
    return x, names, {"c": [(f"w{i}", f"w{n + i}") for i in range(n)]}


@pytest.mark.parametrize("kind", ["pairing", "direction only", "none"])
def test_the_two_nulls_tell_a_pairing_from_two_classes_from_nothing(kind: str):
    assert concepts_of(*made(kind)).table["found"].tolist() == [kind]


def test_shuffled_partners_alone_find_nothing():
    """Partners that are near each other, and differ at random: dealt anew, differences point against each other."""
    x, names, pairs = made("none")
    x[12:24] = x[:12] + 0.1 * np.random.default_rng(12).normal(size=(12, 20))
    row = concepts_of(x, names, pairs).table.iloc[0]
    assert row["shuffled_mean"] < 0 and row["p_shuffled"] <= 0.01 and row["p_flip"] > 0.05 and row["found"] == "none"


def test_the_text_says_n_chance_and_what_would_refute_it():
    text = concepts_of(*made("direction only")).text
    for said in (
        "1 concept of 12 pairs",
        "chance is 0",
        "In c two classes of words lie apart",
        "n = 12 pairs",
        "What would refute",
    ):
        assert said in text


def test_random_pairs_are_no_control_for_two_classes():
    """The offset of random pairs is 0; that of shuffled partners is not, and equals the concept's own here."""
    x, names, pairs = made("direction only", 20)
    row = concepts_of(x, names, pairs, metric="euclid").table.iloc[0]
    assert row["offset"] > 0.5 and abs(row["offset"] - row["shuffled_mean"]) < 3 * row["shuffled_sd"]
    strangers = {"c": [(f"w{i}", f"w{i + 1}") for i in range(40, 80, 2)]}
    assert abs(concepts_of(x, names, strangers, metric="euclid").table.loc[0, "offset"]) < 0.05


# --- words ---------------------------------------------------------------------------------------


def test_the_shipped_list_has_15_concepts_of_20_pairs_and_shares_no_word():
    pairs = read_pairs(SHIPPED)
    words = [word for some in pairs.values() for pair in some for word in pair]
    assert [len(some) for some in pairs.values()] == [20] * 15
    assert len(words) == len(set(words)) == 600


def test_pairs_that_cannot_be_used_are_left_out_and_told():
    pairs = {**PAIRS, "A": [*PAIRS["A"], ("w0", "absent"), ("w0", "w0"), ("w0", "w8")], "few": PAIRS["B"][:4]}
    found = concepts_of(X, NAMES, pairs)
    dropped = found.tables["dropped"]
    assert dropped["reason"].tolist()[:3] == ["not in the vocabulary", "one and the same", "there twice"]
    assert (found.table["n"].tolist(), found.table["dropped"].tolist()) == ([8, 8], [3, 0])
    assert "Left out: 7 of 23 pairs" in found.text and "No concept any more: few." in found.text


def test_concepts_that_share_words_are_left_out_of_the_mean_and_told():
    pairs = {**PAIRS, "C": [*PAIRS["A"][:4], ("w40", "w41"), ("w42", "w43")]}
    found = concepts_of(X, NAMES, pairs)
    row = found.tables["separation"].iloc[0]
    assert (row["pairs_of_concepts"], row["sharing_words"]) == (2, 1)
    matrix = found.tables["matrix"].drop(columns="concept").to_numpy()
    assert row["mean"] == pytest.approx(np.abs([matrix[0, 1], matrix[1, 2]]).mean(), abs=1e-12)
    assert "1 pair of concepts shares words, as A and C do" in found.text


def test_a_concept_has_the_same_numbers_whatever_stands_beside_it():
    pairs = {"A": [(f"w{i}", f"w{100 + i}") for i in range(20)], **{"B": PAIRS["B"]}}
    alone, beside = concepts_of(X, NAMES, {"A": pairs["A"]}).table, concepts_of(X, NAMES, dict(reversed(pairs.items()))).table
    assert beside.loc[1, "p_flip"] == alone.loc[0, "p_flip"] and beside.loc[1, "p_shuffled"] == alone.loc[0, "p_shuffled"]


def test_the_covariance_is_that_of_the_words_that_are_asked_for(tmp_path):
    (tmp_path / "over.txt").write_text("\n".join(NAMES[40:]) + "\nabsent\n", encoding="utf-8")
    found = concepts_of(X, NAMES, PAIRS, over=tmp_path / "over.txt")
    root = concept_numbers.metric(X[40:])
    expected = concept_numbers.offset(root(X[8:16]) - root(X[0:8]))
    assert found.table.loc[0, "offset"] == pytest.approx(expected, abs=1e-12) and "covariance of 160 words" in found.text


# --- refusals ------------------------------------------------------------------------------------


def refused(call: Any, *said: str) -> None:
    with pytest.raises(RepalignError) as caught:
        call()
    for one in said:
        assert re.search(one, str(caught.value)), str(caught.value)


def test_one_pair_is_no_concept():
    refused(lambda: concepts_of(X, NAMES, {"A": PAIRS["A"][:1]}), "no concept has 5 pairs in x", "got: 1 pair of 1 concept\n")


def test_a_covariance_without_an_inverse_is_refused_and_a_ridge_offered():
    flat = np.concatenate([X, X[:, :1]], axis=1)
    refused(lambda: concepts_of(flat, NAMES, PAIRS), "no inverse", "at least 1e-10 of the largest", "ridge")
    wide = np.random.default_rng(0).normal(size=(200, 200))
    refused(lambda: concepts_of(wide, NAMES, PAIRS), "more words than dimensions: above 200", "got: 200 words", "ridge")
    assert len(concepts_of(wide, NAMES, PAIRS, ridge=0.01).table) == 2
    plain = concepts_of(wide, NAMES, PAIRS, metric="euclid")
    assert "causal" not in set(plain.tables["separation"]["metric"])  # not asked for, and not there


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "cosine"}, "unknown metric 'cosine'"),
        ({"ridge": 0.0}, "ridge is out of range"),
        ({"over": Path("nowhere.txt")}, "there is no file nowhere.txt"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str):
    refused(lambda: concepts_of(X, NAMES, PAIRS, **options), said)


def test_options_are_checked_before_a_model_is_read():
    wrong: list[dict[str, Any]] = [{"metric": "cosine"}, {"ridge": -1.0}, {"draws": 0}, {"states": Path("states.npz")}]
    for options in wrong:
        refused(lambda: concepts("hf:no/such-model", **options), "unknown metric|out of range|states are of contexts")


def test_names_that_are_not_there_are_named():
    pairs = {"A": [(base.upper(), target.upper()) for base, target in PAIRS["A"]]}
    refused(
        lambda: concepts_of(X, NAMES, pairs),
        "8 not in the vocabulary",
        "it lacks W0, W8, W1, W9, W2 and 11 more",
    )


def test_what_is_not_finite_is_refused_with_its_row():
    x = X.copy()
    x[3, 5] = np.nan
    refused(lambda: concepts_of(x, NAMES, PAIRS), "x: row 3 is not finite")


def test_names_fit_the_rows():
    refused(lambda: concepts_of(X, NAMES[:-1], PAIRS), "expected: 200 distinct names", "199 names")
    refused(lambda: concepts_of(X, [*NAMES[:-1], "w0"], PAIRS), "200 names, 199 distinct")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("concept,base\na,b\n", "no column 'target'"),
        ("concept,base,target\n", "no pair in it"),
        ("concept,base,target\na,,c\n", "no base"),
    ],
)
def test_tables_of_pairs_are_checked(rows: str, said: str, tmp_path):
    (tmp_path / "pairs.csv").write_text(rows, encoding="utf-8")
    refused(lambda: read_pairs(tmp_path / "pairs.csv"), said)


# --- language models -----------------------------------------------------------------------------

WORDS = [f"{kind}{i}" for kind in ("base", "target", "other") for i in range(40)]


def language_model(folder: Path, *, tied: bool = False, dtype: str = "float32", head: bool = True) -> Any:
    """A tiny Llama with a word-level tokenizer: each of 120 words is one token, and what is not among them is none."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "the", "a", "said", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.normal_()
        model.lm_head.weight[44:84] = model.lm_head.weight[4:44] + torch.randn(24) + 0.3 * torch.randn(40, 24)
        model.to(getattr(torch, dtype))
    (model if head else model.model).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, language_model(folder)


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [("kept", f"base{i}", f"target{i}") for i in range(12)] + [
        ("kept", "base13", "two words"),
        ("kept", "base14", "unheard"),
    ]
    pd.DataFrame(rows, columns=["concept", "base", "target"]).to_csv(path, index=False)
    return path


def test_a_language_model_is_read_by_its_unembedding(llama, pairs_file):
    folder, model = llama
    found = concepts(f"hf:{folder}", pairs_file)
    weight = model.lm_head.weight.detach().double().numpy()
    root = concept_numbers.metric(weight)
    expected = concept_numbers.offset(root(weight[44:56]) - root(weight[4:16]))
    assert found.table.loc[0, "offset"] == pytest.approx(expected, abs=1e-9)
    assert (found.table.loc[0, "n"], found.table.loc[0, "dropped"], found.table.loc[0, "found"]) == (12, 2, "pairing")
    assert found.tables["dropped"]["reason"].tolist() == ["several tokens", "no token"]
    assert (found.record["tied"], found.record["matrix"]) == (False, "lm_head.weight")
    assert "not tied to its embeddings" in found.text and "adds to the log odds of words" in found.text


def test_a_tied_matrix_is_said_to_be_one(tmp_path, pairs_file):
    language_model(tmp_path / "tied", tied=True)
    found = concepts(f"hf:{tmp_path / 'tied'}", pairs_file)
    assert found.record["tied"] and "(tied to its embeddings)" in found.text


def test_half_precision_is_read_as_float32(tmp_path):
    model = language_model(tmp_path / "half", dtype="bfloat16")
    vocabulary = read_vocabulary(f"hf:{tmp_path / 'half'}")
    assert vocabulary.x.dtype == np.float32 and vocabulary.facts["stored_dtype"] == "bfloat16"
    assert np.array_equal(vocabulary.x, model.lm_head.weight.detach().float().numpy())


def test_steering_moves_the_log_odds_of_a_real_head(llama, pairs_file):
    """The model's own head, on its own hidden states: one unit more along the direction."""
    import torch

    folder, model = llama
    found = concepts(f"hf:{folder}", pairs_file)
    weight = model.lm_head.weight.detach().double().numpy()
    lam = concept_numbers.metric(weight).dual((weight[44:56] - weight[4:16]).mean(0))
    with torch.no_grad():
        hidden = model.model(torch.tensor([[1, 5, 3], [2, 60, 3]])).last_hidden_state[:, -1]
        before, after = (model.lm_head(h) for h in (hidden, hidden + torch.tensor(lam, dtype=torch.float32)))
    change = (after - before)[:, 44:56].mean(1) - (after - before)[:, 4:16].mean(1)
    assert change.numpy() == pytest.approx(found.tables["steering"].loc[0, "kept"], abs=1e-4)  # float32


@pytest.mark.parametrize("own_blank", [True, False])
def test_a_word_is_looked_up_as_it_stands_behind_a_space(own_blank: bool):
    """Also where the tokenizer puts a blank before a text of its own, as Llama's does: there " king" has two of them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from repalign.experiments import concept_words

    made = Tokenizer(models.WordLevel({"<unk>": 0, "▁the": 1, "the": 2, "▁king": 3, "king": 4, "▁": 5}, unk_token="<unk>"))
    blanks = [normalizers.Prepend("▁")] * own_blank + [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence(blanks)
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert len(tokenizer(" king", add_special_tokens=False)["input_ids"]) == 1 + own_blank
    row = concept_words._rows(tokenizer, 6)
    assert row("king") == 3 and row("queen") == "no token" and row("the king") == "several tokens"


def test_contexts_are_read_by_the_model(llama, pairs_file, tmp_path):
    import torch

    folder, model = llama
    texts = [(f"a said base{i}", f"a said target{i}") for i in range(12, 20)]
    pd.DataFrame([("kept", *t) for t in texts], columns=["concept", "base", "target"]).to_csv(
        tmp_path / "contexts.csv", index=False
    )
    found = concepts(f"hf:{folder}", pairs_file, contexts=tmp_path / "contexts.csv")
    row = found.tables["contexts"].iloc[0]
    with torch.no_grad():
        hidden = [
            model.model(torch.tensor([[2, 3, start + i] for i in range(12, 20)])).last_hidden_state[:, -1].double().numpy()
            for start in (4, 44)
        ]
    weight = model.lm_head.weight.detach().double().numpy()
    direction = (weight[44:56] - weight[4:16]).mean(0)
    low, high = (h @ direction for h in hidden)
    assert row["auc"] == pytest.approx(np.mean(high[:, None] > low), abs=1e-12)
    assert row["within_pair"] == pytest.approx(np.mean(high > low), abs=1e-12)
    moves = hidden[1] - hidden[0]
    cosine = moves @ direction / (np.linalg.norm(moves, axis=1) * np.linalg.norm(direction))
    assert row["cosine_euclid"] == pytest.approx(cosine.mean(), abs=1e-5)  # float32 in the pass
    assert "Contexts of kept (n = 8 pairs)" in found.text


def test_contexts_of_a_file_are_its_stored_states(tmp_path):
    """Hidden states that differ along the concept's own direction, in the dual space."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "words.npz", x=X, ids=np.array(NAMES))
    pd.DataFrame([(c, *p) for c, some in PAIRS.items() for p in some], columns=["concept", "base", "target"]).to_csv(
        tmp_path / "pairs.csv", index=False
    )
    lam = concept_numbers.metric(X).dual((X[8:16] - X[0:8]).mean(0))
    states = rng.normal(size=(10, 16))
    both = np.concatenate([states, states + 4 * lam])
    np.savez(tmp_path / "states.npz", x=both, ids=np.array([f"s{i}" for i in range(20)]))
    pd.DataFrame([("A", f"s{i}", f"s{10 + i}") for i in range(10)], columns=["concept", "base", "target"]).to_csv(
        tmp_path / "contexts.csv", index=False
    )
    given = {"contexts": tmp_path / "contexts.csv", "states": tmp_path / "states.npz"}
    found = concepts(str(tmp_path / "words.npz"), tmp_path / "pairs.csv", **given).tables["contexts"]
    assert found["matched"].tolist() == [True, False]
    assert found.loc[0, "within_pair"] == 1 and found.loc[0, "p_within"] == 2**-10
    assert found.loc[0, "cosine_causal"] == pytest.approx(1, abs=1e-9) and found.loc[0, "cosine_euclid"] < 0.99
    assert abs(found.loc[1, "cosine_causal"]) == pytest.approx(0.0006035148, abs=1e-9)
    refused(
        lambda: concepts(str(tmp_path / "words.npz"), tmp_path / "pairs.csv", contexts=given["contexts"]),
        "contexts need hidden states",
    )
    refused(
        lambda: concepts(str(tmp_path / "words.npz"), tmp_path / "pairs.csv", states=given["states"]), "states are of contexts"
    )


def test_models_without_an_output_matrix_are_refused(tmp_path):
    from tiny_models import llama as made
    from tiny_models import t5

    refused(lambda: concepts(f"hf:{t5(tmp_path / 't5')}"), "has no output matrix", "T5Config, which predicts no token")
    refused(
        lambda: concepts(f"hf:{made(tmp_path / 'body', head=False)}"), "has no output matrix", "its files have no lm_head.weight"
    )
    refused(lambda: concepts("timm:vit_tiny_patch16_224"), "has no output matrix", "a timm: model", "file of stored features")


def test_models_and_files_that_are_not_there_are_refused(tmp_path):
    refused(lambda: concepts("gpt2"), "starts with no known scheme")
    refused(lambda: concepts(str(tmp_path / "none.npz")), "there is no such file")
    np.save(tmp_path / "bare.npy", X)
    refused(lambda: concepts(str(tmp_path / "bare.npy")), "its rows have no names")
    np.savez(tmp_path / "two.npz", a=X, b=X, ids=np.array(NAMES))
    refused(lambda: concepts(str(tmp_path / "two.npz")), "which layer\\?", "got: 2 layers: a, b")
    assert read_vocabulary(str(tmp_path / "two.npz"), "b").what == "two, layer b"


def test_vectors_in_memory_are_taken_in_any_form():
    expected = concepts_of(X, NAMES, PAIRS).table
    for model in (dict(zip(NAMES, X, strict=True)), pd.DataFrame(X, index=NAMES)):
        assert concepts(model, PAIRS).table.equals(expected)  # type: ignore[arg-type]
    refused(lambda: concepts({"a": [1.0, 2.0], "b": [1.0]}, PAIRS), "not vectors of one width")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "other", "layers", "expected"),
    [
        ("a.npz", None, None, (None, None)), ("a.npz", None, ["l"], ("l", None)), ("a.npz", "b.npz", ["l"], ("l", "l")),
        ("a.npz", "b.npz", ["l", "m"], ("l", "m")), ("hf:org/name", "b.npz", ["m"], (None, "m")),
    ],
)  # fmt: skip
def test_layers_go_to_the_files_in_turn(model: str, other: str | None, layers: list[str] | None, expected: tuple[Any, Any]):
    assert layers_of(model, other, layers) == expected


@pytest.mark.parametrize(("other", "said"), [(None, "one output matrix"), ("b.npz", "a name for each of 1 files")])
def test_layers_of_no_file_are_refused(other: str | None, said: str):
    refused(lambda: layers_of("hf:org/name", other, ["l", "m"]), "layers do not fit the models", said)


def test_a_model_of_a_store_is_read(tmp_path):
    from repalign import Dataset, FeatureStore, ModelEntry, extract

    ids = [f"s{i}" for i in range(60)]
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, 8)), ids=np.array(ids))
    entry = ModelEntry(f"array:{tmp_path / 'x.npz'}", modality="text")
    extract(Dataset.of(text=ids, ids=ids, name="d"), [entry], FeatureStore(tmp_path / "store"))
    (stored,) = FeatureStore(tmp_path / "store").representations()
    pairs = {"c": [(f"s{i}", f"s{i + 12}") for i in range(12)]}
    found = concepts(f"{tmp_path / 'store'}#{stored.name}", pairs)  # type: ignore[arg-type]
    assert found.record["words"] == 60 and found.table.loc[0, "n"] == 12


def test_masked_language_models_have_one(tmp_path):
    from tiny_models import bert

    vocabulary = read_vocabulary(f"hf:{bert(tmp_path / 'bert')}")
    assert vocabulary.is_unembedding and isinstance(vocabulary.row("dog"), int)


# --- two models ----------------------------------------------------------------------------------

ATTRIBUTES = [f"attribute {k}" for k in range(6)]


def two_models(folder: Path, *, same: bool) -> tuple[Path, Path, Path, Path]:
    """Features of 240 stimuli by a model of language and one of vision, and 12 pairs of stimuli for each of 6 attributes.

    The geometry of the attributes is the same in both, or another one; stimuli, ids and widths have nothing in common.
    """
    rng = np.random.default_rng(3)
    geometry = [rng.normal(size=(6, 4)) for _ in range(2)]
    out = []
    for name, width, of in (("language", 20, geometry[0]), ("vision", 40, geometry[0 if same else 1])):
        embed = np.linalg.qr(rng.normal(size=(width, 4)))[0]
        x, ids = 0.2 * rng.normal(size=(240, width)), [f"{name} {i}" for i in range(240)]
        rows = []
        for k, attribute in enumerate(ATTRIBUTES):
            base, target = np.arange(12) + 24 * k, np.arange(12) + 24 * k + 12
            x[target] += embed @ of[k]
            rows += [(attribute, ids[b], ids[t]) for b, t in zip(base, target, strict=True)]
        np.savez(folder / f"{name}.npz", x=x, ids=np.array(ids))
        pd.DataFrame(rows, columns=["concept", "base", "target"]).to_csv(folder / f"{name}.csv", index=False)
        out += [folder / f"{name}.npz", folder / f"{name}.csv"]
    return tuple(out)  # type: ignore[return-value]


@pytest.mark.parametrize("same", [True, False], ids=["the same geometry", "another geometry"])
def test_language_against_vision_without_a_stimulus_in_common(same: bool, tmp_path):
    language, pairs, vision, theirs = two_models(tmp_path, same=same)
    found = concepts(str(language), pairs, metric="euclid", other=str(vision), other_pairs=theirs)
    row = found.tables["alignment"].iloc[0]
    assert (row["concepts"], row["draws"], row["least_p"]) == (6, 0, 1 / 720)
    cells = found.tables["alignment_cells"]
    assert row["r"] == pytest.approx(np.corrcoef(cells["cosine"], cells["cosine_other"])[0, 1], abs=1e-12)
    assert (row["r"] > 0.9 and row["p"] < 0.01) if same else row["p"] > 0.05
    assert "keep the same concepts close? r =" in found.text and "all orders" in found.text


def test_concepts_that_share_words_are_left_out_of_two_models(tmp_path):
    language, pairs, vision, theirs = two_models(tmp_path, same=True)
    for path in (pairs, theirs):
        table = pd.read_csv(path)
        pd.concat([table, table[:12].assign(concept="again")]).to_csv(path, index=False)
    found = concepts(str(language), pairs, metric="euclid", other=str(vision), other_pairs=theirs)
    row = found.tables["alignment"].iloc[0]
    assert (row["concepts"], row["left_out"]) == (6, 1) and "1 concept left out, which share words" in found.text


def test_two_models_need_three_concepts(tmp_path):
    np.savez(tmp_path / "words.npz", x=X, ids=np.array(NAMES))
    path = tmp_path / "pairs.csv"
    pd.DataFrame([(c, *p) for c, some in PAIRS.items() for p in some], columns=["concept", "base", "target"]).to_csv(
        path, index=False
    )
    refused(
        lambda: concepts(str(tmp_path / "words.npz"), path, other=str(tmp_path / "words.npz")),
        "too few concepts",
        "got: 2 of 2 and 2",
    )


# --- the bed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_models_of_letters_and_syllables_have_no_words(name: str, shared):
    """Their tokens are too short for words: all is said, and nothing is split."""
    refused(
        lambda: concepts(f"hf:{shared / 'bed/models' / name}"),
        "no concept has 5 pairs",
        "300 pairs of 15 concepts: (296|300) several tokens",
    )


CONTRASTS = (
    "dog-man boy-girl water-snow ball-bike beach-street grass-rock jumping-sitting woman-child brown-yellow running-standing"
)


def attribute_pairs(shared: Path, part: int) -> dict[str, list[tuple[str, str]]]:
    """Photos whose captions name one thing against photos that name the other; the two halves have no photo in common."""
    rows = [json.loads(line) for line in (shared / "bed/flickr8k_dev/pairs.jsonl").read_text("utf-8").splitlines()]
    named = {row["id"]: [set(re.findall("[a-z]+", caption.lower())) for caption in row["captions"]] for row in rows[part::2]}
    taken: set[str] = set()
    out: dict[str, list[tuple[str, str]]] = {}
    for contrast in CONTRASTS.split():
        sides = []
        for this, that in (contrast.split("-"), contrast.split("-")[::-1]):
            counts = {i: [sum(bool({w, f"{w}s"} & words) for words in some) for w in (this, that)] for i, some in named.items()}
            sides.append([i for i, (ours, theirs) in counts.items() if ours >= 2 and not theirs and i not in taken][:15])
        out[contrast] = list(zip(*sides, strict=False))
        taken |= {i for pair in out[contrast] for i in pair}
    return out


def test_captions_and_photos_keep_the_same_contrasts_close(shared, tmp_path):
    """Word vectors of captions against a network of photos, on photos that the other has not seen. Numbers of this test alone."""
    files = []
    for part in (0, 1):
        pairs = attribute_pairs(shared, part)
        rows = [(name, *pair) for name, some in pairs.items() for pair in some]
        files.append(tmp_path / f"{part}.csv")
        pd.DataFrame(rows, columns=["concept", "base", "target"]).to_csv(files[-1], index=False)
    features = shared / "bed/features"
    found = {
        layer: concepts(
            str(features / "glove50_captions.safetensors"),
            files[0],
            metric="euclid",
            layers=["L1_captions5_mean", layer],
            other=str(features / "mobilenet_v1_075.safetensors"),
            other_pairs=files[1],
        )
        for layer in ("L0_Conv2d_1_pointwise", "L5_AvgPool_1a")
    }
    r = {layer: one.tables["alignment"].iloc[0] for layer, one in found.items()}
    assert r["L5_AvgPool_1a"]["p"] < 0.05 and r["L5_AvgPool_1a"]["r"] > r["L0_Conv2d_1_pointwise"]["r"]
    # The partners were dealt by their order in a file: there is no pairing to be found, and none is.
    assert "pairing" not in set(found["L5_AvgPool_1a"].table["found"])


# --- as people use it ----------------------------------------------------------------------------


def test_the_figure_shows_the_numbers_of_the_tables():
    found = concepts_of(X, NAMES, {**PAIRS, "C": PAIRS["A"][:5]})
    axes = found.draw(labels={"A": "first"})
    matrix, offsets = axes.figure.axes[0], next(a for a in axes.figure.axes if "offset" in a.get_xlabel())
    assert matrix is axes and [t.get_text() for t in matrix.get_yticklabels()] == ["first", "B", "C"]
    texts = [t.get_text() for t in matrix.artists or matrix.texts]
    cells = np.abs(found.tables["matrix"].drop(columns="concept").to_numpy())
    assert f"({cells[0, 2]:.2f})".replace("0.", ".") in texts and f"{cells[0, 1]:.2f}".replace("0.", ".") in texts
    drawn = np.concatenate([line.get_xdata() for line in offsets.lines if str(line.get_label()).startswith("offset")])
    assert sorted(drawn) == pytest.approx(sorted(found.table["offset"]))
    alone = concepts_of(X, NAMES, {"A": PAIRS["A"]}).draw(title="One")
    assert len(alone.figure.axes) == 1


def test_the_command_and_the_study_say_the_same(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from repalign.cli import app
    from repalign.study import load_study

    monkeypatch.chdir(tmp_path)
    np.savez("words.npz", x=X, ids=np.array(NAMES))
    pd.DataFrame([(c, *p) for c, some in PAIRS.items() for p in some], columns=["concept", "base", "target"]).to_csv(
        "pairs.csv", index=False
    )
    run = CliRunner().invoke(app, ["concepts", "words.npz", "--pairs", "pairs.csv", "--json", "--out", "out"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)[0]["offset"] == pytest.approx(0.8425561680, abs=1e-9)
    (tmp_path / "study.yaml").write_text("name: s\nexperiment: concepts\nmodel: words.npz\npairs: pairs.csv\nmetric: euclid\n")
    study = load_study(tmp_path / "study.yaml")
    study.run()
    table = pd.read_csv(tmp_path / "runs/s/results/concepts.csv")
    assert table.loc[0, "offset"] == pytest.approx(0.9174262886, abs=1e-9)
    assert {p.name for p in (tmp_path / "out").glob("*.csv")} >= {
        f"{t}.csv" for t in ("matrix", "separation", "steering", "dropped")
    }


def test_a_mock_run_has_made_up_words(tmp_path):
    from repalign.experiments.concepts import mock

    given = {"model": "hf:org/name", "other": "hf:org/other", "pairs": None, "contexts": Path("contexts.csv")}
    found = concepts(**{**given, **mock(given, tmp_path / "mock")})
    assert len(found.table) == 15 and "alignment" in found.tables


def test_the_row_of_the_experiment_names_its_options():
    options = EXPERIMENTS["concepts"].options
    assert [name for name, p in options.items() if p.default is p.empty] == ["model"]


def test_looking_up_goes_by_rows_and_not_by_names():
    """Two names of one token are one word."""
    vocabulary = Vocabulary(
        X, lambda name: {"colour": 1, "color": 1, "hue": 2}.get(name, int(name[1:]) if name[0] == "w" else "no token"), "v"
    )
    found = look_up(
        {"c": [("colour", "hue"), ("color", "hue"), ("colour", "color"), *[(f"w{i}", f"w{i + 1}") for i in range(10, 18, 2)]]},
        vocabulary,
    )
    assert [reason for *_, reason in found.dropped] == ["there twice", "one and the same"] and len(found.rows["c"]) == 5
