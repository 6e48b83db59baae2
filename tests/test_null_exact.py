"""Exactness by enumeration: over all relabellings of small data, P(p <= alpha) <= alpha for every method."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from oracles import CASES
from repalign import null as nulls
from repalign.cli import app
from repalign.errors import RepalignError
from repalign.measures import parse_measure
from repalign.measures.measure import Bilinear, Measure, as_features
from repalign.null.cyclic import units

SEARCHES = ["raw max", *(f"studentised {a}" for a in ("max", "mean", "top-2", "rows", "columns", "matching"))]
ALPHAS = np.arange(1, 21) / 20


def prepared(null: nulls.Null, measure: Measure, *arrays: np.ndarray) -> nulls.Prepared:
    return null.prepare(measure, [measure.prepare(as_features(a)) for a in arrays])


def layers(n: int, seed: int, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)) for d in (3, 7, 2)[:count]]


def assert_super_uniform(p: np.ndarray) -> None:
    p = p[~np.isnan(p)]
    for alpha in ALPHAS:
        assert np.mean(p <= alpha + 1e-12) <= alpha + 1e-12


def small_measures(n: int) -> list[Measure]:
    """Every measure of pairs, as the common tests have it first, with a small neighbourhood."""
    first = {type(case.measure): case.measure for case in reversed(CASES) if case.measure.paired}
    small = {"k": 2, "components": 2, "perplexity": 2}
    measures = [replace(m, **{f: v for f, v in small.items() if f in m.facts.parameters}) for m in first.values()]
    assert all(m.min_n <= n for m in measures)
    return measures


def scores_of(measure: Measure, relabellings: np.ndarray) -> np.ndarray:
    """The scores of these relabellings (K, n): (K, la, lb)."""
    width = 3 if measure.equal_widths else None
    states = [[measure.prepare(as_features(x[:, :width])) for x in layers(relabellings.shape[1], seed)] for seed in (1, 2)]
    return nulls.permuted_scores(measure, *states, relabellings)


def every(n: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(n))))


# i -> a i + b of five stimuli. A test is exact over any group of relabellings. The fewer there are, the more it shows where one of
# them is not treated as the rest: twenty find what a hundred and twenty find. Those are asked of one measure of each kind.
AFFINE = np.array([(a * np.arange(5) + b) % 5 for a in range(1, 5) for b in range(5)])
ONE_OF_EACH_KIND = [parse_measure(m) for m in ("MutualKNN(k=2)", "CKA()", "Procrustes()")]  # counts, a similarity, a distance


@pytest.mark.parametrize(
    "measure, relabellings",
    [
        *(pytest.param(m, AFFINE, id=repr(m)) for m in small_measures(5)),
        *(pytest.param(m, every(5), id=f"{m!r}, all") for m in ONE_OF_EACH_KIND),
    ],
)
def test_every_measure_and_aggregate_is_exact_over_a_group_of_relabellings(measure: Measure, relabellings: np.ndarray):
    scores = scores_of(measure, relabellings)
    if np.isnan(scores).any():
        pytest.skip("undefined for some relabelling at this n")
    p = {how: [] for how in (*SEARCHES, "cells", "stepdown")}
    for i in range(len(scores)):
        rest = np.delete(scores, i, axis=0)
        p["cells"].append(nulls.pvalue(scores[i], rest))
        for how in SEARCHES:
            found = nulls.search_layers(scores[i], rest, how=how)
            p[how].append(found.calibration.pvalue)
        p["stepdown"].append(found.stepdown.min())
    for how in (*SEARCHES, "stepdown"):
        assert_super_uniform(np.array(p[how], float))
    for cell in np.array(p["cells"]).reshape(len(scores), -1).T:
        assert_super_uniform(cell)
    assert min(np.ravel(p["cells"])) <= 0.2  # the test could have failed: small p-values do come


# Ranks of all relabellings are exact whatever gave the scores, and at five every measure is asked. What more relabellings add is
# more ties, or more scores that come close.
@pytest.mark.parametrize("measure", ONE_OF_EACH_KIND, ids=repr)
def test_p_is_exact_over_all_relabellings_of_six(measure: Measure):
    scores = scores_of(measure, every(6))
    for cell in scores.reshape(len(scores), -1).T:
        if np.isnan(cell).any():
            continue
        tie = nulls.TIE_TOLERANCE * np.abs(cell).max()
        ordered = np.sort(cell)
        p = 1 - np.searchsorted(ordered, cell - tie) / len(cell)
        i = int(np.argmax(cell))
        assert nulls.pvalue(cell[i], np.delete(cell, i)) == pytest.approx(p[i])
        assert_super_uniform(p)


def assert_exact(name: str, n: int = 5) -> None:
    """Every draw is one relabelling of all layers; over all relabellings of the data, P(p <= alpha) <= alpha.

    That holds for each seed of a group, on average over many seeds of random draws.
    """
    measure = parse_measure("CKA()")
    xs, ys = ([measure.prepare(as_features(x)) for x in layers(n, seed)] for seed in (1, 2))
    scores = nulls.permuted_scores(measure, xs, ys, every(n))
    few = {"n_draws": 39} if "n_draws" in nulls.NULLS[name].__dataclass_fields__ else {}
    rates = []
    for seed in range(6 if few else 2):
        null = nulls.make_null(name, seed=seed, **few)
        a, cells = null.prepare(measure, xs), []
        for p in torch.from_numpy(every(n)):
            b = null.prepare(measure, [y.permute(p) for y in ys])
            judged = null.judge(measure, a, b, how=(null.searches or ["studentised max"])[0])
            cells.append([*judged.cells.pvalue.ravel(), judged.found.calibration.pvalue, np.nanmin(judged.found.stepdown)])
            assert np.min(cells[-1]) >= 1 / (judged.n_draws + 1) - 1e-7
        draws = null.draws(measure, a, null.prepare(measure, ys))
        assert (np.abs(draws[:, None] - scores).max(axis=(2, 3)).min(axis=1) < 1e-9).all()
        rates.append([(np.array(cells) <= alpha + 1e-7).mean(axis=0) for alpha in ALPHAS])
    rate = np.mean(rates, axis=0) if few else np.max(rates, axis=0)
    # One set of K random relabellings is no group: its rate is as uncertain as a share of K draws.
    se = np.sqrt(ALPHAS * (1 - ALPHAS) / len(draws) / len(rates)) if few else np.zeros(len(ALPHAS))
    assert (rate <= (ALPHAS + 4 * se + 1e-7)[:, None]).all()
    assert rate[4].min() > 0  # the test could have failed: p <= .25 does come


@pytest.mark.parametrize("name", nulls.NULLS)
def test_every_null_is_exact(name: str):
    assert_exact(name)


@pytest.mark.parametrize("fault", ["each layer its own relabelling", "too low", "without the observed score"])
def test_a_null_that_is_not_exact_is_found(fault: str, monkeypatch):
    @dataclass(frozen=True)
    class Faulty(nulls.Permutations):
        def draws(self, measure: Measure, a: nulls.Prepared, b: nulls.Prepared, streams=nulls.ONE_SIDE) -> np.ndarray:
            found = super().draws(measure, a, b, streams)
            if fault == "each layer its own relabelling":
                found[:, 1:] = np.roll(found[:, 1:], 1, axis=0)
            return np.sort(found, axis=0)[::-1][20:] if fault == "too low" else found

        def judge_cells(self, *given) -> tuple[nulls.Calibration, np.ndarray]:
            cells, by = super().judge_cells(*given)
            cells.pvalue[:] -= (fault == "without the observed score") / 40
            return cells, by

    monkeypatch.setitem(nulls.NULLS, "faulty", Faulty)
    with pytest.raises(AssertionError):
        assert_exact("faulty")


def test_every_null_is_told_of():
    """In the help of the commands that take one, in the manual, and in the report."""
    manual = (Path(__file__).parents[1] / "docs/calibration.md").read_text("utf-8")
    commands = get_command(app).commands
    told = [p.help for command in ("pair", "compare") for p in commands[command].params if p.name == "null"]
    for name, null in nulls.NULLS.items():
        assert len(told) == 2 and all(re.search(rf"\b{name}\b", text) for text in told), name
        assert f"| `{name}` | {null.help} |" in manual, name
        assert null.help and nulls.MEANINGS[name] == null.meaning


@pytest.mark.parametrize(
    "name, n, relabellings",
    [
        ("CKA()", 5, 1),
        ("CKA(estimator='biased')", 5, 2),
        ("CKNNA(k=2)", 5, 2),
        ("MutualKNN(k=2)", 5, 1),
        ("MutualKNN(k=2)", 6, 2),
    ],
)
def test_the_cyclic_null_is_exact(name: str, n: int, relabellings: int):
    """The p-values of the method itself over all relabellings of the data."""
    measure = parse_measure(name)
    null = nulls.Cyclic(seed=3, relabellings=relabellings)
    xs, ys = layers(n, 1), [measure.prepare(as_features(y)) for y in layers(n, 2, 1)]
    a = prepared(null, measure, *xs)
    cells, searched = [], []
    for p in torch.from_numpy(every(n)):
        observed, draws = null.scored(measure, a, null.prepare(measure, [y.permute(p) for y in ys]))
        cells.append(nulls.pvalue(observed, draws).ravel())
        searched.append(float(nulls.search_layers(observed, draws).calibration.pvalue))
    for cell in np.array(cells).T:
        assert_super_uniform(cell)
    assert_super_uniform(np.array(searched))
    assert min(searched) <= 2 / n


# --- more draws than n - 1 -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [9, 10, 16, 23, 24])
@pytest.mark.parametrize("at_least", [1, 2, 3, 5])
def test_multipliers_form_a_group(n: int, at_least: int):
    group = units(n, at_least)
    assert group[0] == 1 and len(set(group)) == len(group)
    assert {a * b % n for a in group for b in group} == set(group)
    all_units = sum(np.gcd(np.arange(1, n), n) == 1)
    assert len(group) >= min(at_least, all_units)


@pytest.mark.parametrize("n", [16, 23])
@pytest.mark.parametrize("name", ["MutualKNN(k=3)", "CKA()"])
def test_affine_draws_equal_naive_recomputation(name: str, n: int):
    """Draw (h, s) is the map i -> h (i + s) of the randomly ordered stimuli."""
    measure = parse_measure(name)
    null = nulls.Cyclic(seed=2, relabellings=2)
    xs, ys = layers(n, 5), layers(n, 6)
    observed, draws = null.scored(measure, prepared(null, measure, *xs), prepared(null, measure, *ys))
    sigma, found, here = null.order(n), np.concatenate([observed[None], draws]), [measure.prepare(as_features(x)) for x in xs]
    assert len(found) == null.count(n) + 1 == n * len(units(n, 2))
    for r, h in enumerate(units(n, 2)):
        for s in range(n):
            p = np.empty(n, dtype=int)
            p[sigma] = sigma[h * (np.arange(n) + s) % n]
            naive = measure.compare_all(here, [measure.prepare(as_features(y[p])) for y in ys])
            assert found[r * n + s] == pytest.approx(naive.numpy(), abs=1e-12)


def test_every_model_has_its_own_relabelling_where_all_meet_all():
    """Joint draws of three models are the scores of three arrays, each relabelled by its own map."""
    measure, n = parse_measure("CKA()"), 15
    for null in (nulls.Cyclic(seed=2), nulls.Cyclic(seed=2, relabellings=2)):
        models = [layers(n, seed, 1)[0] for seed in (1, 2, 3)]
        ready = [prepared(null, measure, m) for m in models]
        streams = [(1, 2), (1, 3), (2, 3)]
        scored = [null.scored(measure, ready[i - 1], ready[j - 1], (i, j)) for i, j in streams]
        observed = np.array([o[0, 0] for o, _ in scored])
        joint = null.joint(streams, n)(observed, np.stack([d[:, 0, 0] for _, d in scored]), streams, slice(None))
        sigma, multipliers = null.order(n), np.array(units(n, null.relabellings))
        generator = np.random.Generator(np.random.PCG64([2, 1]))
        k = joint.shape[1]
        h = [multipliers[generator.integers(len(multipliers), size=k)] for _ in range(3)]
        b = [generator.integers(n, size=k) for _ in range(3)]
        for draw in range(0, k, 3):
            relabelled = []
            for m in range(3):
                p = np.empty(n, dtype=int)
                p[sigma] = sigma[(h[m][draw] * np.arange(n) + b[m][draw]) % n]
                relabelled.append(models[m][p])
            for pair, (i, j) in enumerate(streams):
                assert joint[pair, draw] == pytest.approx(measure(relabelled[i - 1], relabelled[j - 1]), abs=1e-12)


def test_random_permutations_have_their_own_stream_per_model_too():
    measure, n = parse_measure("CycleKNN(k=2)"), 12
    null = nulls.Permutations(9, seed=4)
    x, y = layers(n, 1, 1)[0], layers(n, 2, 1)[0]
    draws = null.draws(measure, prepared(null, measure, x), prepared(null, measure, y), (2, 3))[:, 0, 0]
    first, second = null.permutations(n, 2), null.permutations(n, 3)
    naive = [measure(x[p], y[q]) for p, q in zip(first, second, strict=True)]
    assert draws == pytest.approx(naive, abs=1e-12)
    assert not np.array_equal(first, second)
    assert np.array_equal(null.permutations(n), nulls.Permutations(9, seed=4).permutations(n, 1))


# --- restricted ------------------------------------------------------------------------------------

LABELS = ["a", "b", "a", "c", "b", "a"]


def allowed(labels: list[str], shuffle: str) -> set[tuple[int, ...]]:
    """All permutations that respect the groups, by trying every one."""
    out = set()
    n = len(labels)
    groups = {g: [i for i in range(n) if labels[i] == g] for g in labels}
    for p in itertools.permutations(range(n)):
        if shuffle == "within":
            ok = all(labels[p[i]] == labels[i] for i in range(n))
        else:  # every group is filled, in order, by one group of its size
            filled = [[p[i] for i in rows] for rows in groups.values()]
            ok = all(rows in groups.values() for rows in filled)
        if ok:
            out.add(p)
    return out


@pytest.mark.parametrize(
    "labels, shuffle", [(LABELS, "within"), (["a", "b", "a", "c", "b", "d"], "whole"), (["a", "b", "a", "b"], "whole")]
)
def test_restricted_draws_are_all_that_the_groups_allow_and_no_other(labels: list[str], shuffle: str):
    groups = nulls.Groups.of(labels, shuffle)
    drawn = {tuple(p) for p in nulls.Permutations(600, groups=groups).permutations(len(labels)).tolist()}
    assert drawn == allowed(labels, shuffle)
    assert groups.n_relabellings == len(drawn)


def test_a_shuffle_within_groups_is_blind_to_what_the_groups_explain():
    """Alignment through class means alone: found by the free null, not by the one within classes."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(8), 15)
    means = rng.standard_normal((8, 3))
    x, y = (means[labels] @ rng.standard_normal((3, d)) * 2 + rng.standard_normal((120, d)) for d in (10, 14))
    measure = parse_measure("CKA()")
    free, within = nulls.Permutations(199), nulls.Permutations(199, groups=nulls.Groups.of(labels, "within"))
    p = []
    for null in (free, within):
        judged = null.judge(measure, prepared(null, measure, x), prepared(null, measure, y))
        p.append(float(judged.found.calibration.pvalue))
    assert p[0] == 1 / 200 and p[1] > 0.05


def test_copies_need_whole_groups():
    """Five noisy copies of every stimulus: the free null rejects far too often, whole groups do not."""
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(12), 5)
    groups = nulls.Groups.of(labels, "whole")
    measure = parse_measure("CKA()")
    rejected = {"free": 0, "whole": 0}
    for trial in range(120):
        x, y = (
            np.repeat(rng.standard_normal((12, 6)), 5, axis=0) + 0.1 * rng.standard_normal((60, 6)) for _ in range(2)
        )
        for name, g in (("free", None), ("whole", groups)):
            null = nulls.Permutations(39, seed=trial, groups=g)
            judged = null.judge(measure, prepared(null, measure, x), prepared(null, measure, y))
            rejected[name] += bool(judged.cells.pvalue[0, 0] <= 0.05)
    assert rejected["free"] > 30 and rejected["whole"] <= 14  # 14 is the .999 quantile of 120 trials at .05


def test_the_cyclic_null_moves_whole_groups_of_one_size():
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(6), 4))
    groups = nulls.Groups.of(labels, "whole")
    measure, null = parse_measure("MutualKNN(k=3)"), nulls.Cyclic(seed=5, groups=groups)
    x, y = layers(24, 1, 1)[0], layers(24, 2, 1)[0]
    observed, draws = null.scored(measure, prepared(null, measure, x), prepared(null, measure, y))
    assert len(draws) == null.count(24) == 5 and observed[0, 0] == pytest.approx(measure(x, y))
    order = null.order(24)
    for s in range(1, 6):
        p = np.empty(24, dtype=int)
        p[order] = order[(np.arange(24) + 4 * s) % 24]
        assert draws[s - 1, 0, 0] == pytest.approx(measure(x, y[p]), abs=1e-12)
        assert len({tuple(sorted(labels[p[labels == g]])) for g in range(6)}) == 6
        assert all(len(set(labels[p[labels == g]])) == 1 for g in range(6))


@pytest.mark.parametrize("name", nulls.NULLS)
@pytest.mark.parametrize("count", ["n_draws", "relabellings"])
def test_a_null_without_draws_is_refused_as_it_is_made(name: str, count: str):
    if count in nulls.NULLS[name].__dataclass_fields__:
        with pytest.raises(RepalignError, match=f"a null without draws(.|\n)*{count} >= 1(.|\n)*0"):
            nulls.make_null(name, **{count: 0})


def test_groups_that_change_nothing_or_do_not_fit_are_refused():
    with pytest.raises(RepalignError, match="leaves everything in place(.|\n)*a group of two stimuli"):
        nulls.Groups.of([1, 2, 3], "within")
    with pytest.raises(RepalignError, match="leaves everything in place(.|\n)*two groups of one size"):
        nulls.Groups.of([1, 1, 2], "whole")
    with pytest.raises(RepalignError, match="unknown shuffle 'between'"):
        nulls.Groups.of([1, 1], "between")
    with pytest.raises(RepalignError, match="no group(.|\n)*row 1"):
        nulls.Groups.of([1, None, 1], "within")
    unequal = nulls.Groups.of([1, 1, 2, 3], "whole")
    with pytest.raises(RepalignError, match="cannot honour these groups(.|\n)*null='permutation'"):
        nulls.Cyclic(groups=unequal)
    with pytest.raises(RepalignError, match="cannot honour these groups"):
        nulls.Cyclic(groups=nulls.Groups.of([1, 1, 2, 2], "within"))
    with pytest.raises(RepalignError, match="moments are over all relabellings"):
        nulls.Moments(nulls.Permutations(groups=unequal))
    with pytest.raises(RepalignError, match="over all permutations"):
        nulls.Aristotelian(groups=unequal)
    with pytest.raises(RepalignError, match="do not fit(.|\n)*5 labels(.|\n)*4"):
        nulls.Permutations(groups=unequal).permutations(5)


def test_auto_honours_groups():
    cka, cycle = parse_measure("CKA()"), parse_measure("CycleKNN(k=2)")
    whole = nulls.Groups.of(np.repeat(np.arange(200), 2), "whole")
    within = nulls.Groups.of(np.repeat(np.arange(200), 2), "within")
    assert nulls.Auto(groups=whole).resolve(cka, 400) == nulls.Cyclic(groups=whole)
    assert nulls.Auto(groups=within).resolve(cka, 400) == nulls.Permutations(groups=within)
    assert nulls.Auto(groups=whole).resolve(cycle, 400) == nulls.Permutations(groups=whole)
    assert repr(whole) != repr(nulls.Groups.of(np.repeat(np.arange(100), 4), "whole"))


def test_groups_come_from_a_table_by_id(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("id,group\nb,dog\na,cat\nc,dog\n")
    assert nulls.Groups.from_file(table, ["a", "b", "c"]) == nulls.Groups.of([0, 1, 1])
    with pytest.raises(RepalignError, match="labels.csv: groups do not fit(.|\n)*'d'"):
        nulls.Groups.from_file(table, ["a", "d"])
    table.write_text("name,group\nb,dog\n")
    with pytest.raises(RepalignError, match="labels.csv: not a table of groups(.|\n)*id and group"):
        nulls.Groups.from_file(table, ["b"])


def test_measures_that_are_not_bilinear_take_permutations_only():
    assert not isinstance(parse_measure("CycleKNN(k=2)"), Bilinear)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", ["CKA()", "CKA(estimator='biased')", "MutualKNN(k=5)", "CKNNA(k=5)", "CycleKNN(k=5)"])
def test_a_device_gives_the_same_null(name: str):
    """Scores, moments, draws and the search to 1e-5, the chosen layers exactly."""
    measure = parse_measure(name)
    sides = [[torch.from_numpy(x).float() for x in layers(256, seed, 3)] for seed in (1, 2)]
    null = nulls.Auto().resolve(measure, 256)
    judged = []
    for device in ("cpu", "cuda"):
        ready = [null.prepare(measure, [measure.prepare(x.to(device)) for x in side]) for side in sides]
        judged.append(null.judge(measure, *ready))
    for field in nulls.Calibration.__dataclass_fields__:
        one, other = (getattr(j.cells, field) for j in judged)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), field
    assert judged[0].found.draws == pytest.approx(judged[1].found.draws, abs=1e-5)
    assert judged[0].found.layer_x == judged[1].found.layer_x and judged[0].found.layer_y == judged[1].found.layer_y
