"""The null against outside values: golden files, the PyPI package, enumeration, and naive recomputation."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from repalign import null as nulls
from repalign.errors import RepalignError
from repalign.measures import parse_measure
from repalign.measures.measure import Bilinear, Measure, as_features
from repalign.null import calibration


def states(measure: Measure, *arrays: np.ndarray) -> list:
    return [measure.prepare(as_features(a)) for a in arrays]


def golden(shared, measure: str) -> list[dict]:
    records = json.loads((shared / "golden/dev/values.json").read_text())
    return [
        r for r in records if r["measure"] == measure and r["testable"] in ("yes", "loose") and r["value"] is not None
    ]


def close(value: float, record: dict) -> bool:
    expected, tolerance = float(record["value"]), record["tolerance"]
    return abs(value - expected) <= max(tolerance["atol"], tolerance["rtol"] * abs(expected))


# --- golden calibration ------------------------------------------------------------------------

OURS = {
    "cka linear biased": "CKA(estimator='biased')",
    "cka linear unbiased": "CKA()",
    "cka_linear": "CKA(estimator='biased')",
    "cka_unbiased": "CKA()",
    "mutual_knn": "MutualKNN(k=10)",
    "cycle_knn": "CycleKNN(k=10)",
}


def _our_measure(p: dict) -> str | None:
    name = p["of"]
    if name == "cka":
        name += " linear " + ("unbiased" if p["unbiased"] else "biased")
    return OURS.get(name)


def _quantity(found: nulls.Calibration, output: str) -> float | None:
    if output.startswith("chance corrected"):
        return float((found.statistic - found.null_mean) / (1 - found.null_mean))
    if output.startswith("z ="):
        return float((found.statistic - found.null_mean) / (found.null_std + 1e-8))
    name = {"raw": "statistic", "null_std (population)": "null_std"}.get(output, output)
    return float(getattr(found, name))


def test_golden_calibration(shared):
    """Algorithms 1 and 2 of the published calibration, on fixed permutations."""
    checked: Counter[str] = Counter()
    failures = []
    inputs: dict[str, dict[str, np.ndarray]] = {}
    calibrations: dict[str, nulls.Calibration] = {}
    for record in golden(shared, "calibration"):
        p = record["parameters"]
        name = _our_measure(p)
        if name is None or record.get("expected_to_differ") or "s_max" not in p:
            continue
        case = record["case"]
        if case not in inputs:
            with np.load(shared / f"golden/dev/inputs/{case}.npz") as f:
                inputs[case] = {"x": f["x"], "y": f["y"]}
            with np.load(shared / f"golden/dev/inputs/permutations_{case}.npz") as f:
                inputs[case]["perms"] = f["perms"]
        data = inputs[case]
        key = json.dumps([case, name, p.get("aggregate"), p["alpha"], p["s_max"], p.get("layers")])
        if key not in calibrations:
            if p["s_max"] is None:  # relu(s - threshold): not a form that we offer
                continue
            measure = parse_measure(name)
            layered = "layers" in p
            xs = np.array_split(data["x"], 3, axis=1) if layered else [data["x"]]
            ys = np.array_split(data["y"], 2, axis=1) if layered else [data["y"]]
            a, b = states(measure, *xs), states(measure, *ys)
            observed = measure.compare_all(a, b).numpy()
            draws = nulls.permuted_scores(measure, a, b, data["perms"])
            if p.get("aggregate") == "max":
                found = nulls.search_layers(observed, draws, how="raw", alpha=p["alpha"], s_max=p["s_max"]).calibration
            elif p.get("aggregate") == "mean":
                found = nulls.calibrate(observed.mean(), draws.mean(axis=(1, 2)), alpha=p["alpha"], s_max=p["s_max"])
            else:
                found = nulls.calibrate(observed[0, 0], draws[:, 0, 0], alpha=p["alpha"], s_max=p["s_max"])
            calibrations[key] = found
        value = _quantity(calibrations[key], p["output"])
        if not close(value, record):
            failures.append((record["id"], p["output"], value, record["value"]))
        checked[p["output"]] += 1
    assert not failures
    assert sum(checked.values()) >= 100, checked


def test_golden_enumeration(shared):
    """All 5,040 relabellings of a 7-row pair: the null's moments are those of the group itself."""
    with np.load(shared / "golden/dev/inputs/supplement_tiny.npz") as f:
        x, y = f["x"], f["y"]
    every = np.array(list(itertools.permutations(range(7))))
    names = {
        ("cka", False): "CKA(estimator='biased')",
        ("cka", True): "CKA()",
        ("mutual_knn", None): "MutualKNN(k=2)",
    }
    checked = 0
    cache: dict[str, np.ndarray] = {}
    for record in golden(shared, "permutation_null"):
        p = record["parameters"]
        if p["of"] == "cka" and p["kernel"] != "linear":
            continue
        name = names.get((p["of"], p.get("unbiased")))
        if name is None:
            continue
        if name not in cache:
            measure = parse_measure(name)
            cache[name] = nulls.permuted_scores(measure, states(measure, x), states(measure, y), every)[:, 0, 0]
        draws = cache[name]
        observed = draws[0]  # the identity comes first
        value = {
            "observed": lambda: observed,
            "mean": draws.mean,
            "variance (divided by 5040)": draws.var,
            "maximum": draws.max,
            "minimum": draws.min,
            "share of permutations >= observed (identity included, ties within 1e-9)": lambda: nulls.pvalue(
                observed, draws[1:]
            ),
            "0.95 order statistic, rank ceil(0.95*5040)": lambda: nulls.threshold(observed, draws[1:], 0.05),
        }.get(p["statistic"])
        if value is None:
            continue
        assert close(float(value()), record), (record["id"], p["statistic"], float(value()), record["value"])
        checked += 1
    assert checked == 21


def test_golden_adjusted_pvalues(shared):
    ours = {"Benjamini-Hochberg": nulls.benjamini_hochberg, "Holm": nulls.holm}
    checked = 0
    for record in golden(shared, "adjusted_pvalue"):
        p = record["parameters"]
        if p["method"] in ours:
            assert close(ours[p["method"]](p["pvalues"])[p["index"]], record)
            checked += 1
    assert checked == 30


def test_agrees_with_the_published_package():
    """calibrated-similarity 0.1.1 with the same permutations: score, p and threshold (it stores float32)."""
    calibrated = pytest.importorskip("calibrated_similarity", reason="calibrated-similarity is a test extra")
    rng = np.random.default_rng(3)
    z = rng.standard_normal((60, 4))
    x = z @ rng.standard_normal((4, 12)) + rng.standard_normal((60, 12))
    y = z @ rng.standard_normal((4, 9)) + rng.standard_normal((60, 9))
    measure = parse_measure("CKA(estimator='biased')")

    def outside(a: torch.Tensor, b: torch.Tensor) -> float:
        a, b = a - a.mean(0), b - b.mean(0)
        return float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))

    generator = torch.Generator().manual_seed(11)
    theirs = calibrated.calibrate(
        torch.from_numpy(x), torch.from_numpy(y), outside, K=200, alpha=0.05, generator=generator
    )
    generator = torch.Generator().manual_seed(11)
    perms = torch.stack([torch.randperm(60, generator=generator) for _ in range(200)]).numpy()
    a, b = states(measure, x), states(measure, y)
    draws = nulls.permuted_scores(measure, a, b, perms)[:, 0, 0]
    ours = nulls.calibrate(measure.compare_all(a, b).numpy()[0, 0], draws)
    assert [float(v) for v in theirs] == pytest.approx(
        [float(ours.calibrated), float(ours.pvalue), float(ours.threshold)], abs=1e-5
    )


# --- what follows from draws -------------------------------------------------------------------


def test_pvalue_adds_one_and_counts_ties():
    assert nulls.pvalue(3.0, np.array([1.0, 3.0, 2.0])) == 0.5
    assert nulls.pvalue(9.0, np.arange(4.0)) == 0.2
    assert nulls.pvalue(-1.0, np.arange(4.0)) == 1.0


def test_float_ties_do_not_decide_the_pvalue():
    """A score that relabelling leaves unchanged up to rounding has p = 1 (one peer gives .45 to 1)."""
    rng = np.random.default_rng(0)
    draws = 0.7 * (1 + 1e-8 * rng.standard_normal(99))
    assert nulls.pvalue(0.7, draws) == 1.0
    assert nulls.calibrate(0.7, draws).calibrated == 0.0


def test_relabelling_captions_of_one_image_changes_nothing():
    """Two captions per image, permuted within their image: every score equals the observed one, p = 1."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.standard_normal((30, 8)), 2, axis=0).astype(np.float32)
    y = rng.standard_normal((60, 6)).astype(np.float32)
    measure = parse_measure("CKA(estimator='biased')")
    a, b = states(measure, x), states(measure, y)
    swaps = np.array(
        [
            [2 * i + (s ^ flip) for i in range(30) for s, flip in ((0, f[i]), (1, f[i]))]
            for f in rng.integers(0, 2, (40, 30))
        ]
    )
    draws = nulls.permuted_scores(measure, a, b, swaps)[:, 0, 0]
    assert nulls.pvalue(measure.compare_all(a, b).numpy()[0, 0], draws) == 1.0


@pytest.mark.parametrize(
    "k, rank", [(99, 95), (199, 190), (200, 191), (500, 476), (999, 950), (1000, 951), (1023, 973)]
)
def test_threshold_is_the_stated_order_statistic(k, rank):
    draws = np.random.default_rng(k).permutation(np.arange(1, k + 1)).astype(float)
    assert nulls.threshold(0.5, draws, 0.05) == rank - 1  # the observed 0.5 is the smallest of the pool


@pytest.mark.parametrize("seed", range(20))
def test_calibrated_is_positive_exactly_where_significant(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(5, 120))
    alpha = float(rng.choice([0.01, 0.05, 0.1, 0.2]))
    draws = np.round(rng.standard_normal((k, 50)), 1) / 10  # many ties
    observed = np.round(rng.standard_normal(50) + 1, 1) / 10
    found = nulls.calibrate(observed, draws, alpha=alpha, s_max=1.0)
    assert np.array_equal(found.calibrated > 0, found.pvalue <= alpha)


def test_undefined_scores_stay_undefined():
    observed = np.array([[0.3, np.nan]])
    draws = np.random.default_rng(0).random((20, 1, 2)) * 0.2
    draws[:, 0, 1] = np.nan
    found = nulls.calibrate(observed, draws)
    assert all(np.isnan(getattr(found, f)[0, 1]) for f in nulls.Calibration.__dataclass_fields__)
    assert found.pvalue[0, 0] == 1 / 21
    assert (nulls.search_layers(observed, draws).layer_x, nulls.search_layers(observed, draws).layer_y) == (0, 0)
    nothing = nulls.search_layers(np.full((2, 2), np.nan), np.full((9, 2, 2), np.nan))
    assert nothing.layer_x == -1 and np.isnan(nothing.calibration.pvalue)



def test_undefined_draws_count_as_exceedances():
    """A relabelling under which a score is not defined says nothing against chance: it must not make p smaller."""
    nan = np.nan
    draws = np.array([0.1, nan, 0.2, nan, 0.3, 0.4, 0.1, 0.1, 0.1])
    assert nulls.pvalue(0.5, draws) == 3 / 10 and nulls.pvalue(0.35, draws) == 4 / 10
    assert nulls.threshold(0.5, draws, 0.5) == 0.2 and nulls.threshold(0.5, draws, 0.1) == np.inf
    found = nulls.calibrate(0.5, draws, alpha=0.2)
    assert found.pvalue == 0.3 and found.calibrated == 0
    two = np.stack([draws, np.full(9, 0.0)], axis=1)  # (K, M)
    assert nulls.step_down(np.array([0.5, 0.45]), two).tolist() == [3 / 10, 3 / 10]
    searched = nulls.search_layers(np.array([[0.5, 0.45]]), two[:, None, :], how="raw")
    assert searched.calibration.pvalue == 3 / 10 and searched.stepdown.tolist() == [[3 / 10, 3 / 10]]


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_max_t_counts_undefined_draws_of_a_pair_against_it_alone_where_it_is_largest(lost):
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2, 99))
    draws[0, :4] = lost
    p = nulls.max_t(np.array([9.0, 5.0]), draws)
    assert p[0] == 5 / 100  # four undefined draws and itself; the other pair's are far below
    assert p[1] == 5 / 100  # a larger adjusted p comes first
    assert nulls.max_t(np.array([9.0, 5.0]), draws[:, 4:]).tolist() == [1 / 96, 1 / 96]


def test_maximum_of_negative_scores_is_negative_and_has_an_index():
    scores = np.array([[-0.5, -0.1], [-0.3, -0.2]])
    found = nulls.search_layers(scores, np.full((5, 2, 2), -0.9), how="raw")
    assert (found.calibration.statistic, found.layer_x, found.layer_y) == (-0.1, 0, 1)


def test_bad_draws_are_refused():
    with pytest.raises(RepalignError, match="draws do not fit the observed scores"):
        nulls.calibrate(np.zeros((2, 2)), np.zeros((5, 2, 3)))
    with pytest.raises(RepalignError, match="0 < alpha < 1"):
        nulls.calibrate(0.1, np.zeros(5), alpha=1.0)
    with pytest.raises(RepalignError, match="did you mean 'permutation'"):
        nulls.make_null("permutations")
    with pytest.raises(RepalignError, match="takes no parameter 'draws'"):
        nulls.make_null("permutation", draws=3)


def test_holm_and_bh_ignore_the_undefined():
    p = [0.01, np.nan, 0.04]
    assert nulls.holm(p) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert nulls.benjamini_hochberg(p) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)


# --- draws -------------------------------------------------------------------------------------

BILINEAR = ["MutualKNN(k=3)", "CKA()", "CKA(estimator='biased')", "CKA(kernel='rbf')", "CKNNA(k=4)"]


@pytest.mark.parametrize("n", [22, 24, 25, 23])  # even (both residues), odd, prime
@pytest.mark.parametrize("name", BILINEAR)
def test_cyclic_draws_equal_naive_recomputation(name, n):
    """Every shift, recomputed from permuted arrays, not from permuted states."""
    rng = np.random.default_rng(n)
    xs = [rng.standard_normal((n, d)) for d in (4, 40)]
    ys = [rng.standard_normal((n, d)) for d in (5, 3, 30)]
    measure = parse_measure(name)
    assert isinstance(measure, Bilinear)
    null = nulls.Cyclic(seed=5)
    prepared = [null.prepare(measure, states(measure, *arrays)) for arrays in (xs, ys)]
    draws = null.draws(measure, *prepared)
    assert draws.shape == (n - 1, 2, 3) == (null.count(n), 2, 3)
    here = states(measure, *xs)
    sigma = np.random.Generator(np.random.PCG64(5)).permutation(n)
    for shift in range(1, n):
        p = np.empty(n, dtype=int)
        p[sigma] = sigma[(np.arange(n) + shift) % n]
        naive = measure.compare_all(here, states(measure, *(y[p] for y in ys)))
        assert draws[shift - 1] == pytest.approx(naive.numpy(), abs=1e-12)


def test_cyclic_draws_in_float32_agree_with_float64():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((301, 64)) + 3, rng.standard_normal((301, 32))
    measure = parse_measure("CKA()")
    null = nulls.Cyclic(seed=1)
    d32, d64 = (
        null.draws(measure, *[null.prepare(measure, states(measure, a.astype(t))) for a in (x, y)])
        for t in (np.float32, np.float64)
    )
    assert np.abs(d32 - d64).max() < 1e-6
    assert d64.std() > 1e-3


def test_permutations_are_shared_seeded_and_independent():
    p = nulls.Permutations(7, seed=3).permutations(11)
    assert np.array_equal(p, nulls.Permutations(7, seed=3).permutations(11))
    assert not np.array_equal(p, nulls.Permutations(7, seed=4).permutations(11))
    assert all(sorted(row) == list(range(11)) for row in p.tolist())
    assert len({tuple(row) for row in p.tolist()}) == 7


def test_a_measure_that_is_not_bilinear_has_no_cyclic_null():
    measure = parse_measure("CycleKNN(k=3)")
    with pytest.raises(RepalignError, match="the cyclic null does not apply to CycleKNN"):
        nulls.Cyclic().prepare(measure, states(measure, np.random.default_rng(0).standard_normal((20, 3))))
    assert nulls.Auto(seed=4).resolve(measure, 1000) == nulls.Permutations(199, 4)
    with pytest.raises(RepalignError, match="closed-form moments do not apply to CycleKNN"):
        nulls.Moments(nulls.Cyclic()).prepare(measure, [])
    assert nulls.Auto(seed=4).resolve(parse_measure("CKA()"), 1000) == nulls.Moments(nulls.Cyclic(4))
    assert nulls.Auto().resolve(parse_measure("CKA()"), 100) == nulls.Moments(nulls.Permutations(199, 0))
    assert nulls.Auto().resolve(parse_measure("CKA()"), 9000, spectra=False) == nulls.Permutations(199, 0)


# --- moments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, name", [(60, "CKA()"), (60, "CKA(estimator='biased')"), (61, "MutualKNN(k=5)"), (40, "CKNNA(k=6)")]
)
def test_moments_agree_with_many_permutations(n, name):
    rng = np.random.default_rng(n)
    measure = parse_measure(name)
    x, y = rng.standard_t(3, (n, 30)), rng.standard_normal((n, 4))
    null = nulls.Moments(nulls.Permutations(4000, seed=1))
    a, b = (null.prepare(measure, states(measure, s)) for s in (x, y))
    mean, sd, skewness = (m[0, 0] for m in null.moments(measure, a, b))
    draws = null.draws(measure, a, b)[:, 0, 0]
    assert mean == pytest.approx(draws.mean(), abs=4 * sd / 4000**0.5)
    spread = ((draws - draws.mean()) ** 2).std() / (2 * sd) / 4000**0.5  # delta method, any tail
    assert sd == pytest.approx(draws.std(), abs=4 * spread)
    assert skewness == pytest.approx(((draws - draws.mean()) ** 3).mean() / draws.std() ** 3, abs=0.4)


def test_moments_give_every_cell_a_pvalue_below_the_floor_of_the_draws():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((250, 10))
    measure = parse_measure("CKA()")
    null = nulls.Auto().resolve(measure, 250)
    a, b = (null.prepare(measure, states(measure, s)) for s in (x, x + 0.5 * rng.standard_normal((250, 10))))
    judged = null.judge(measure, a, b, how="studentised", alpha=0.05)
    assert judged.cells_by[0, 0] == "moments" and judged.search_by == "cyclic"
    assert 0 < judged.cells.pvalue[0, 0] < 1e-6
    assert judged.found.calibration.pvalue == 1 / 250


def test_where_the_moments_are_not_trusted_draws_judge_the_cell():
    rng = np.random.default_rng(0)
    measure = parse_measure("CKA(estimator='biased')")
    x = rng.standard_normal((60, 3))
    x[0] *= 400  # one row of enormous leverage: a heavily skewed null
    null = nulls.Moments(nulls.Permutations(99))
    a, b = (null.prepare(measure, states(measure, s)) for s in (x, x[:, :2] ** 3))
    assert null.judge(measure, a, b, how="raw", alpha=0.05).cells_by[0, 0] == "permutation"
    small = null.prepare(measure, states(measure, rng.standard_normal((12, 3))))
    judged = null.judge(measure, small, small, how="raw", alpha=0.05)
    assert judged.cells_by[0, 0] == "permutation"


def test_closed_forms_alone_judge_cells_as_ever_and_the_search_by_a_bound():
    rng, measure = np.random.default_rng(2), parse_measure("CKA()")
    x = rng.standard_normal((90, 12))
    ours = states(measure, x[:, :4], rng.standard_normal((90, 5)))
    theirs = states(measure, x + rng.standard_normal((90, 12)), rng.standard_normal((90, 6)), rng.standard_normal((90, 7)))
    drawn, closed = nulls.Moments(nulls.Permutations(199)), nulls.Closed(nulls.Permutations(199))
    usual = drawn.judge(measure, drawn.prepare(measure, ours), drawn.prepare(measure, theirs))
    first, rest = closed.judge_each(
        measure, closed.prepare(measure, ours), closed.prepare(measure, theirs), [slice(0, 1), slice(1, 3)]
    )
    assert (usual.cells_by == "moments").all() and first.search_by == "moments" and first.n_draws == 0
    for name, values in vars(usual.cells).items():
        found = np.concatenate([getattr(judged.cells, name) for judged in (first, rest)], axis=1)
        assert found == pytest.approx(values, rel=1e-12), name
    asked = closed.judge_each(measure, closed.prepare(measure, ours), closed.prepare(measure, theirs), [slice(None)], asked=())[0]
    assert np.isnan(asked.cells.pvalue).tolist() == [[False] * 3, [True] * 3]  # of the layer that the search finds alone
    for name in ("statistic", "null_mean", "null_std", "z"):
        assert getattr(asked.cells, name) == pytest.approx(getattr(usual.cells, name), rel=1e-9), name
    assert asked.cells.pvalue[0] == pytest.approx(usual.cells.pvalue[0], rel=1e-9)
    assert asked.found.calibration.pvalue == pytest.approx(3 * first.found.calibration.pvalue)
    whole, cell = first.found.calibration, usual.cells.at((0, 0))
    assert (first.found.layer_x, first.found.layer_y) == (0, 0) and whole.statistic == cell.statistic
    assert whole.pvalue == pytest.approx(2 * cell.pvalue) and whole.pvalue < 1e-6
    assert whole.statistic > whole.threshold > cell.threshold
    alone = drawn.judge(measure, *(drawn.prepare(measure, s) for s in (ours, theirs[1:])))
    # What chance gives to the larger of four scores: by the bound at least as much as by draws, and not much more.
    assert 0 < rest.found.calibration.null_mean - alone.found.calibration.null_mean < 0.75 * alone.cells.null_std.max()


def test_closed_forms_alone_ask_for_draws_where_a_law_is_not_known():
    rng, measure = np.random.default_rng(0), parse_measure("CKA(estimator='biased')")
    x, y = rng.standard_normal((2, 60, 40))
    far = x[:, :3].copy()
    far[0] *= 400  # one row of enormous leverage
    ours, theirs = states(measure, y, far), states(measure, x, far[:, :2] ** 3)
    sampler = nulls.Permutations(99)
    drawn, closed, bounded = nulls.Moments(sampler), nulls.Closed(sampler), nulls.Closed(sampler, bounded=True)
    usual, found, sure = (
        null.judge(measure, null.prepare(measure, ours), null.prepare(measure, theirs)) for null in (drawn, closed, bounded)
    )
    assert set(usual.cells_by.ravel()) == {"moments", "permutation"} and (found.cells_by == usual.cells_by).all()
    assert found.cells.pvalue == pytest.approx(usual.cells.pvalue)
    assert ((sure.cells_by == "bound") == (usual.cells_by == "permutation")).all()
    assert found.found.calibration.pvalue == pytest.approx(min(1, 4 * found.cells.pvalue[found.found.layer_x, found.found.layer_y]))


def test_pearson_type_three_is_exact_for_a_gamma():
    """calibrate_by_moments against scipy's gamma distribution itself."""
    from scipy import stats

    shape = 5.0
    found = nulls.calibrate_by_moments(
        np.array([9.0, 3.0]), np.full(2, shape), np.full(2, shape**0.5), np.full(2, 2 / shape**0.5), s_max=100.0
    )
    assert found.pvalue == pytest.approx(stats.gamma(shape).sf([9.0, 3.0]), rel=1e-9)
    assert found.threshold == pytest.approx(stats.gamma(shape).ppf(0.95), rel=1e-9)
    assert np.array_equal(found.calibrated > 0, found.pvalue <= 0.05)


# --- the layer search --------------------------------------------------------------------------


def test_studentised_search_finds_the_pair_that_the_raw_maximum_misses():
    """Unequal widths, signal in the narrowest pair: the raw maximum names the pair of highest chance level."""
    rng = np.random.default_rng(7)
    n, widths = 128, (16, 64, 256)
    shared = rng.standard_normal((n, 4))
    xs, ys = ([rng.standard_normal((n, w)) for w in widths] for _ in range(2))
    for side in (xs, ys):
        side[0][:, :4] += 1.0 * shared
    measure = parse_measure("CKA(estimator='biased')")
    a, b = states(measure, *xs), states(measure, *ys)
    observed = measure.compare_all(a, b).numpy()
    draws = nulls.Permutations(199).draws(measure, nulls.Prepared(tuple(a)), nulls.Prepared(tuple(b)))
    raw, student = (nulls.search_layers(observed, draws, how=how) for how in ("raw", "studentised"))
    assert (raw.layer_x, raw.layer_y) == (2, 2)
    assert (student.layer_x, student.layer_y) == (0, 0)
    assert student.calibration.pvalue == 1 / 200 and student.calibration.statistic == observed[0, 0]
    assert raw.calibration.pvalue > 0.05


@pytest.mark.parametrize("how", nulls.SCALES)
def test_search_is_exact_under_the_null(how):
    """Enumerating a whole orbit, the p-values of the search are super-uniform whatever the layers are."""
    rng = np.random.default_rng(2)
    orbit = rng.standard_normal((40, 3, 2)) * np.array([[0.1, 1.0]]) + rng.standard_normal((3, 2))
    ps = []
    for k in range(40):  # each member of the orbit takes its turn as the observed one
        ps.append(float(nulls.search_layers(orbit[k], np.delete(orbit, k, axis=0), how=how).calibration.pvalue))
    for alpha in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(ps) <= alpha) <= alpha
    assert min(ps) == 1 / 40


def test_tails_and_rules_are_those_of_scipy():
    """`scipy.stats` is not imported for them: half a second of every command that compares."""
    rng = np.random.default_rng(0)
    z, skewness = 6 * rng.standard_normal(500), rng.uniform(-3, 3, 500) * rng.choice([1, 1e-2, 1e-6, 0], 500)
    upper_tail, quantile = calibration.pearson3(skewness)
    np.testing.assert_allclose(upper_tail(z), stats.pearson3.sf(z, skewness), rtol=1e-8, atol=1e-300)
    for p in (0.95, 0.999, 1 - 1e-6):
        np.testing.assert_allclose(quantile(p), stats.pearson3.ppf(p, skewness), rtol=1e-8)
    p = rng.random(40) ** 3
    for rule in ("bh", "by"):
        np.testing.assert_allclose(nulls.adjusted(p, rule), stats.false_discovery_control(p, method=rule), rtol=1e-13)
