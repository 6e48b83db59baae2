"""Brain alignment: the 92 images of Kriegeskorte et al. 2008, rsatoolbox beside it, laws, chance and errors in simulation."""

from __future__ import annotations

import csv
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import kendalltau, pearsonr, spearmanr

from repalign import RepalignError
from repalign.experiments.brain import Brain, brain
from repalign.experiments.brain_inputs import measure_of, rdm_of
from repalign.experiments.brain_scores import Data, Errors, identified, weighted
from repalign.text import silent

FEW = 19  # draws where they are not what is tested


@pytest.fixture(scope="module")
def bed(shared) -> Path:
    return shared / "bed/rdm_92images"


@pytest.fixture(scope="module")
def sessions(bed, tmp_path_factory) -> Path:
    """Whose each of the eight recordings is: four people, two sessions each."""
    path = tmp_path_factory.mktemp("labels") / "sessions.csv"
    names = np.load(bed / "brain.npz")["names"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "subject"), *((name, name.split(" | ")[1]) for name in names)])
    return path


@cache
def asked(folder: Path, measure: str, subjects: Path | None = None, draws: int = FEW, over: str = "subjects") -> Brain:
    files = str(folder / "brain.npz"), [str(folder / "models.npz")]
    return brain(*files, measure=measure, subjects=subjects, draws=draws, over=over)


def made_up(n: int = 20, people: int = 5, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """RDMs (people, n, n) of people who see the same, and models: one that sees it too, two that see something else."""
    rng = np.random.default_rng(seed)
    seen = rng.standard_normal((n, 4))
    stack = np.stack([squareform(pdist(seen + rng.standard_normal(seen.shape))) for _ in range(people)])
    return stack, {"sees": seen, "half": seen[:, :2], "blind": rng.standard_normal((n, 4))}


# --- the 92 images -------------------------------------------------------------------------------


def test_scores_with_the_mean_of_all_recordings(bed):
    """The bed's README: Spearman over the 4,186 entries with the mean of the eight RDMs."""
    expected = {
        "animacy": 0.588189, "FaceBodyManmadeNatobj": 0.405282, "monkeyIT": 0.438924, "EVA": 0.354166, "HMAX": 0.221733,
        "V1": 0.039265, "Silhouette": 0.124677, "RADON": 0.061208,
    }  # fmt: skip
    found = asked(bed, "spearman").table.set_index("model")["with_mean"]
    assert dict(found) == pytest.approx(expected, abs=1e-6)


def test_mean_scores_with_the_eight_recordings(bed):
    expected = {"animacy": 0.314239, "monkeyIT": 0.271013, "EVA": 0.195725, "HMAX": 0.123839, "V1": 0.021796}
    found = asked(bed, "pearson").table.set_index("model")["score"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


CEILINGS = {
    "pearson": (0.346157, 0.539797), "spearman": (0.327951, 0.524978), "tau_a": (0.223019, 0.365529),
    "cosine": (0.981020, 0.985488),
}  # fmt: skip


@pytest.mark.parametrize("measure", CEILINGS)
def test_noise_ceilings_of_the_eight_recordings(bed, measure):
    """Each recording taken for a person, as rsatoolbox does without a descriptor."""
    row = asked(bed, measure).table.iloc[0]
    assert (row["lower"], row["upper"]) == pytest.approx(CEILINGS[measure], abs=1e-6)


def test_sessions_of_one_person_are_one_person(bed, sessions):
    """Sessions as people give too small an error. Both are closed forms: sd / root of the number of units."""
    alone, found = asked(bed, "pearson"), asked(bed, "pearson", sessions)
    assert (found.n_people, found.n_recordings) == (4, 8)
    first = found.tables["errors"].iloc[0]
    assert first["model"] == "animacy"
    assert first["se_recordings"] == pytest.approx(0.047092, abs=1e-6) and first["se_subjects"] == pytest.approx(0.064197, abs=1e-6)
    assert alone.tables["errors"]["se_subjects"][0] == pytest.approx(first["se_recordings"], abs=1e-12)
    assert found.table["score"].tolist() == pytest.approx(alone.table["score"].tolist(), abs=1e-12)  # as many sessions of each
    # Another session of one's own says more of a recording than other people do.
    assert found.table["lower"][0] == pytest.approx(0.324519, abs=1e-6) and found.table["lower"][0] < alone.table["lower"][0]
    assert "of animacy is 0.0642; recordings taken for people would give 0.0471" in found.text
    assert "say so (subjects)" in alone.text


def test_animacy_leads_and_v1_is_not_above_chance(bed, sessions):
    found = asked(bed, "rho_a", sessions, 199, "both")
    table = found.table.set_index("model")
    assert found.table["model"][0] == "animacy" and set(table.index[table["p_chance"] > 0.05]) == {"V1", "RADON"}
    assert table["p_chance"].min() == 1 / 200 and (table["chance"].abs() < 0.005).all()
    pairs = found.tables["pairs"]
    assert len(pairs) == 28 and (pairs["p_holm"] >= pairs["p_bh"]).all() and (pairs["difference"] >= 0).all()
    scores = [table["score"][pairs[side]].to_numpy() for side in ("model_a", "model_b")]
    np.testing.assert_allclose(scores[0] - scores[1], pairs["difference"], atol=1e-12)


# --- laws ----------------------------------------------------------------------------------------


def plain(compared: str, x: np.ndarray, y: np.ndarray) -> float:
    """Each comparison by other code, of vectors in which what is drawn twice stands twice."""
    from scipy.stats import rankdata

    count = len(x)
    if compared == "rho_a":
        return 12 / (count**3 - count) * float(((rankdata(x) - (count + 1) / 2) * (rankdata(y) - (count + 1) / 2)).sum())
    if compared == "tau_a":
        signs = [np.sign(np.subtract.outer(v, v)) for v in (x, y)]
        return float((signs[0] * signs[1]).sum()) / (count * (count - 1))
    found: dict[str, Any] = {"pearson": pearsonr, "spearman": spearmanr, "tau_b": kendalltau}
    return float(x @ y / np.sqrt(x @ x * (y @ y))) if compared == "cosine" else float(found[compared](x, y).statistic)


@pytest.mark.parametrize("compared", ["pearson", "cosine", "spearman", "rho_a", "tau_a", "tau_b"])
def test_weights_count_what_is_drawn_twice(compared):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 6, (2, 30)).astype(float) for _ in range(2))  # with ties
    weights = rng.integers(1, 4, 30)
    expected = [[plain(compared, np.repeat(a, weights), np.repeat(b, weights)) for b in y] for a in x]
    codes = [v.astype(int) if compared not in ("pearson", "cosine") else v for v in (x, y)]
    np.testing.assert_allclose(weighted(compared, *codes, weights), expected, atol=1e-12)


@pytest.mark.parametrize("measure", ["pearson", "cosine", "spearman", "rho_a", "tau_a", "RSAKendall(tau='b')"])
def test_without_weights_the_scores_are_those_of_the_measure(measure):
    from repalign.measures.numerics.distances import dense_ranks

    stack, _ = made_up()
    chosen = measure_of(measure)
    compared = "tau_b" if "tau='b'" in measure else measure
    vectors = np.stack([squareform(m) for m in stack])
    ranked = compared not in ("pearson", "cosine")
    values = np.stack([dense_ranks(v) for v in vectors]) if ranked else vectors
    found = weighted(compared, values, values, np.ones(vectors.shape[1], int))
    expected = [[chosen(rdm_of(a), rdm_of(b)) for b in vectors] for a in vectors]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_person_whom_all_agree_with_sets_the_ceiling():
    """People without noise: both ends of the ceiling are 1, and the model that is their RDM is on it."""
    rng = np.random.default_rng(0)
    shared = squareform(pdist(rng.standard_normal((15, 3))))
    found = brain(np.stack([shared, 2 * shared, 5 * shared]), {"true": shared}, measure="pearson", draws=FEW)
    row = found.table.iloc[0]
    assert (row["score"], row["lower"], row["upper"], row["gap"]) == pytest.approx((1, 1, 1, 0), abs=1e-9)


def test_the_mean_of_all_is_the_best_that_a_model_can_be():
    """Upper: no model scores more by Pearson than the mean of standardised RDMs (Nili et al. 2014)."""
    stack, _ = made_up()
    vectors = np.stack([squareform(m) for m in stack])
    best = (vectors - vectors.mean(1, keepdims=True)) / vectors.std(1, keepdims=True)
    best = best.mean(0) - best.mean(0).min()
    rng = np.random.default_rng(1)
    near = [squareform(np.abs(best + 0.05 * rng.standard_normal(190))) for _ in range(20)]
    models = {"best": squareform(best)} | {f"near {i}": x for i, x in enumerate(near)}
    table = brain(stack, models, measure="pearson", over="subjects", draws=FEW).table
    assert table["model"][0] == "best" and table["score"][0] == pytest.approx(table["upper"][0], abs=1e-9)
    assert table["lower"][0] < table["upper"][0]


def test_features_are_compared_by_their_rdm():
    """Those of models, and those of people, who need not have as many voxels as each other."""
    stack, models = made_up()
    people = [np.random.default_rng(i).standard_normal((20, 3 + i)) for i in range(3)]
    options: dict[str, Any] = {"measure": "RSA(dissimilarity='euclidean', comparison='pearson')", "over": "subjects", "draws": FEW}
    rdms = {name: squareform(pdist(x)) for name, x in models.items()}
    of_people = [squareform(pdist(x)) for x in people]
    for given, same in (((stack, models), (stack, rdms)), ((people, models), (of_people, models))):
        found = [brain(*some, **options).table[["score", "lower", "upper"]] for some in (given, same)]
        np.testing.assert_allclose(*found, atol=1e-12)


def test_another_measure_of_rdms_is_taken_over_people_alone():
    stack, models = made_up()
    found = brain(stack, models, measure="TopologicalRSA()", over="subjects", draws=FEW)
    assert found.table["model"][0] == "sees"
    assert found.tables["errors"].columns.tolist() == ["model", "se_subjects", "se_recordings"]
    with pytest.raises(RepalignError, match="not defined with stimuli drawn twice"):
        brain(stack, models, measure="TopologicalRSA()")


def test_a_stack_of_features_is_one_layer_for_each_person(tmp_path):
    stack, models = np.random.default_rng(0).standard_normal((3, 20, 6)), made_up()[1]
    np.save(tmp_path / "brain.npy", stack)
    np.savez(tmp_path / "brain.npz", voxels=stack, other=models["sees"])
    options: dict[str, Any] = {"measure": "pearson", "over": "subjects", "draws": FEW}
    expected = brain(list(stack), models, **options)
    assert expected.n_people == 3 and expected.n == 20
    for given, more in ((stack, {}), (str(tmp_path / "brain.npy"), {}), (str(tmp_path / "brain.npz"), {"vector": "voxels"})):
        assert brain(given, models, **options, **more).table.equals(expected.table)


def test_stimuli_are_joined_on_ids(tmp_path):
    stack, models = made_up()
    ids = np.array([f"image {i}" for i in range(20)])
    order = np.random.default_rng(1).permutation(20)[:18]
    np.savez(tmp_path / "brain.npz", rdm=stack, names=np.array(list("abcde")), ids=ids)
    np.savez(tmp_path / "sees.npz", features=models["sees"][order], ids=ids[order])
    found = brain(str(tmp_path / "brain.npz"), [str(tmp_path / "sees.npz")], measure="pearson", draws=FEW)
    rows = np.ix_(range(5), sorted(order), sorted(order))
    same = brain(stack[rows], {"sees": models["sees"][sorted(order)]}, measure="pearson", draws=FEW)
    assert found.n == 18 and "joined on 18 ids; 2 and 0 rows" in found.text
    assert found.table["score"][0] == pytest.approx(same.table["score"][0], abs=1e-12)
    assert found.tables["scores"]["recording"].tolist() == list("abcde")


def test_a_folder_a_pattern_and_a_stack_are_the_same(tmp_path):
    stack, models = made_up()
    for i, one in enumerate(stack):
        np.save(tmp_path / f"sub-{i}.npy", one)
    np.save(tmp_path / "sees.npy", models["sees"])
    (tmp_path / "people").mkdir()
    for path in tmp_path.glob("sub-*.npy"):
        (tmp_path / "people" / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "stack.npy", stack)
    given = (f"{tmp_path}/sub-*.npy", str(tmp_path / "people"), str(tmp_path / "stack.npy"), list(stack))
    found = [brain(one, [str(tmp_path / "sees.npy")], measure="pearson", over="subjects", draws=FEW) for one in given]
    assert len({round(f.table["score"][0], 12) for f in found}) == 1 and found[0].table["model"].tolist() == ["sees"]
    assert found[0].tables["scores"]["recording"].tolist() == [f"sub-{i}" for i in range(5)]
    assert found[2].tables["scores"]["recording"].tolist() == [f"stack {i}" for i in range(5)]


def test_ties_are_named_where_the_measure_favours_them():
    stack, models = made_up()
    kinds = np.arange(20) % 2
    models = {"kinds": (kinds[:, None] != kinds).astype(float), **{k: squareform(pdist(v)) for k, v in models.items()}}
    assert "kinds predicts ties (99 % of its RDM)" in brain(stack, models, measure="spearman", draws=FEW).text
    assert "predicts ties" not in brain(stack, models, measure="rho_a", draws=FEW).text


@pytest.mark.parametrize("measure", ["pearson", "rho_a", "tau_a", "TopologicalRSA()"])
def test_chance_is_the_mean_over_people_of_the_relabelled_scores(measure):
    from repalign.null import Permutations

    stack, models = made_up(people=4)
    given = {f"{i}": rdm_of(squareform(m)) for i, m in enumerate(stack)}, {k: rdm_of(pdist(v)) for k, v in models.items()}
    chosen = measure_of(measure)
    data = Data.of(*given, ["anna", "anna", "ben", "cleo"], chosen, measure if "(" not in measure else "other")
    people = np.array([1, 1, 2, 2]) / 6
    for p, found in zip(Permutations(5, 7).permutations(20), data.chance(5, 7), strict=True):
        scores = [[chosen(m, rdm_of(squareform(r[np.ix_(p, p)]))) for r in stack] for m in given[1].values()]
        np.testing.assert_allclose(found, np.array(scores) @ people, atol=1e-12)


# --- chance and errors in simulation -------------------------------------------------------------


def test_chance_is_exact_for_models_that_know_nothing():
    """p of relabelled stimuli is uniform: with 19 draws at most .05 is one of twenty values. 200 models of one brain."""
    stack, _ = made_up(n=15, people=3)
    rng = np.random.default_rng(3)
    models = {f"{i}": rng.standard_normal((15, 4)) for i in range(200)}
    p = np.concatenate([brain(stack, models, over="subjects", draws=FEW, seed=seed).table["p_chance"] for seed in range(3)])
    assert 0.02 < (p <= 0.05).mean() < 0.09 and 0.4 < np.mean(p) < 0.6


def simulated(rng: np.random.Generator, taste: float, n: int = 20, people: int = 5, draws: int = 60) -> np.ndarray:
    """p of the difference of two models that are equally close over all people and stimuli: over both, people, stimuli.

    People see what model a has and what model b has, with weights of their own: exp(taste * normal).
    """
    a, b = (rng.standard_normal((n, 5)) for _ in range(2))
    gains = np.exp(taste * rng.standard_normal((people, 2)))
    seen = [np.hstack([u * a, v * b]) / np.hypot(u, v) + 0.7 * rng.standard_normal((n, 10)) for u, v in gains]
    rdms = [{f"{i}": rdm_of(pdist(x)) for i, x in enumerate(some)} for some in (seen, (a, b))]
    data = Data.of(rdms[0], rdms[1], [str(i) for i in range(people)], measure_of("pearson"), "pearson")
    samples = data.resampled(draws, int(rng.integers(2**31)), silent)
    errors = Errors(data.scores() @ data.to_people, samples, n, data.to_people)
    return np.array([errors.of(np.array([[1.0, -1, 0, 0]]), over, 0.95)["p"][0] for over in ("both", "subjects", "stimuli")])


def test_samples_of_stimuli_leave_out_pairs_of_a_stimulus_with_itself():
    """The first sample, done with rows and columns; ceilings are held fixed in it, that of each recording with itself alone."""
    stack, models = made_up(people=3)
    given = {f"{i}": rdm_of(squareform(m)) for i, m in enumerate(stack)}, {k: rdm_of(pdist(v)) for k, v in models.items()}
    data = Data.of(*given, ["anna", "anna", "ben"], measure_of("pearson"), "pearson")
    found = data.resampled(1, 5, silent)[0]
    drawn = np.random.default_rng(5).integers(20, size=20)
    i, j = np.triu_indices(20, 1)
    pairs = drawn[i[drawn[i] != drawn[j]]], drawn[j[drawn[i] != drawn[j]]]
    assert len(pairs[0]) < 190

    def score(x: np.ndarray, person: int) -> float:
        return float(np.corrcoef(x[pairs], stack[person][pairs])[0, 1])

    bounds = [squareform(b) for b in data.bounds]
    expected = [[score(squareform(pdist(x)), person) for person in range(3)] for x in models.values()]
    expected += [[score(bounds[person], person) for person in range(3)], [score(bounds[-1], person) for person in range(3)]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_variances_of_people_and_stimuli_add_and_their_interaction_counts_once():
    """Noise of stimuli that all people share adds its variance; noise of each person and sample alone is in that of people."""
    rng, n, draws = np.random.default_rng(0), 30, 20_000
    people = rng.standard_normal((1, 6))
    shared, alone = 0.2 * rng.standard_normal((draws, 1, 1)), 0.3 * rng.standard_normal((draws, 1, 6))
    of_people, of_stimuli = people.var(ddof=1) / 6, 0.2**2 * n / (n - 1)
    for samples, expected in ((people + shared, of_people + of_stimuli), (people + alone, of_people)):
        found = Errors(people, samples, n, np.eye(6)).of(np.eye(1), "both", 0.95)
        assert found["se"][0] ** 2 == pytest.approx(expected, rel=0.04) and found["df"][0] == 5
    assert found["low"][0] + found["high"][0] == pytest.approx(2 * people.mean())


@pytest.mark.parametrize(("taste", "alone"), [(0.0, "people"), (0.8, "stimuli")])
def test_the_size_of_a_difference_over_people_and_stimuli(taste, alone):
    """Two models that are equally close are told apart at .05, over both, in .01 (people alike) and .07 (of strong tastes) of 150
    made-up worlds of five people: few have no normal mean. Over people alone they are in .13 where people are alike, over stimuli
    alone in .37 where these differ: what is not sampled is taken as it is."""
    rng = np.random.default_rng(1)
    both, people, stimuli = (np.array([simulated(rng, taste) for _ in range(150)]) <= 0.05).mean(0)
    assert both <= 0.09 and {"people": people, "stimuli": stimuli}[alone] > 0.1 > both


def test_the_intervals_of_a_true_difference_cover_it():
    """Over people, of models whose mean scores over all people are known from 1,000 of them: 95 % intervals cover 90 % or more."""
    rng = np.random.default_rng(0)
    n, a = 20, rng.standard_normal((20, 4))
    model = {"all": rdm_of(pdist(a)), "half": rdm_of(pdist(a[:, :2]))}

    def scores(people: int) -> np.ndarray:
        seen = {f"{i}": rdm_of(pdist(a * np.exp(rng.standard_normal(4)) + rng.standard_normal(a.shape))) for i in range(people)}
        return Data.of(seen, model, list(seen), measure_of("pearson"), "pearson").scores()[:2]

    true = float(np.subtract(*scores(1000).mean(1)))
    contrast, covered = np.array([[1.0, -1]]), 0
    for _ in range(100):
        found = Errors(scores(6), None, n, np.eye(6)).of(contrast, "subjects", 0.95)
        covered += bool(found["low"][0] <= true <= found["high"][0])
    assert 90 <= covered <= 99


# --- regions -------------------------------------------------------------------------------------


def of_regions(noise: float, people: int = 5, regions: int = 3) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    rng = np.random.default_rng(0)
    true = [rng.standard_normal((18, 4)) for _ in range(regions)]
    stack, labels = {}, []
    for person in range(people):
        for region, x in enumerate(true):
            name = f"{person} {region}"
            stack[name] = squareform(pdist(x + noise * rng.standard_normal(x.shape)))
            labels.append({"id": name, "subject": f"person {person}", "region": f"region {region}"})
    return stack, labels


def test_regions_are_known_by_those_of_other_people():
    stack, labels = of_regions(0.5)
    models = {"one": stack["0 1"]}
    found = brain(stack, models, subjects=labels, region="region 1", measure="pearson", over="subjects", draws=199)
    assert found.identified is not None and found.identified.accuracy == 1 and found.identified.p <= 0.01
    assert found.identified.chance == pytest.approx(1 / 3, abs=0.06) and found.n_recordings == 5
    assert found.tables["regions"]["correct"].all() and "Regions are known in 100 % of recordings" in found.text
    lost, labels = of_regions(30)
    found = brain(lost, models, subjects=labels, region="region 1", measure="trsa", over="subjects", draws=199).identified
    assert found is not None and found.p > 0.05 and found.accuracy < 0.7


def test_regions_are_those_of_the_nearest_centroid():
    """As scikit-learn's classifier, which Lin and Kriegeskorte take, on the vectors whose inner products are the similarities."""
    from sklearn.neighbors import NearestCentroid

    rng = np.random.default_rng(0)
    people, region = np.repeat(np.arange(6), 4), np.tile(np.arange(4), 6)
    for _ in range(10):
        x = rng.standard_normal((4, 7))[region] + 1.5 * rng.standard_normal((24, 7))
        found = identified(x @ x.T, people, region)
        for person in range(6):
            known = NearestCentroid().fit(x[people != person], region[people != person])
            np.testing.assert_array_equal(found[people == person], known.predict(x[people == person]))


# --- wrong inputs --------------------------------------------------------------------------------


def wrong(name: str) -> tuple[Any, Any, dict[str, Any]]:
    stack, models = made_up()
    asymmetric, holed, constant = stack.copy(), stack.copy(), stack.copy()
    asymmetric[1, 2, 3] += 1
    holed[1, 2, 3] = np.nan
    constant[1] = 1 - np.eye(20)
    return {
        "one": (stack[:1], models, {}),
        "one person": (stack, models, {"subjects": {f"brain {i}": "anna" for i in range(5)}}),
        "sizes": ([stack[0], stack[1][:19, :19]], models, {}),
        "models": (stack, {"m": models["sees"][:19]}, {}),
        "asymmetric": (asymmetric, models, {}),
        "nan": (holed, models, {}),
        "constant": (constant, models, {}),
        "constant model": (stack, {"flat": np.ones((20, 3))}, {}),
        "nan model": (stack, {"m": np.where(np.eye(20, 4), np.nan, models["sees"])}, {}),
        "measure": (stack, models, {"measure": "spaerman"}),
        "no rdm": (stack, models, {"measure": "CCA()"}),
        "distance": (stack, models, {"measure": "RSMNormDifference()", "over": "subjects"}),
        "labels": (stack, models, {"subjects": {"session 1": "anna"}}),
        "some labels": (stack, models, {"subjects": {"brain 0": "anna", "brain 1": "ben"}}),
        "columns": (stack, models, {"subjects": [{"name": "brain 0", "who": "anna"}]}),
        "over": (stack, models, {"over": "subject"}),
        "region": (stack, models, {"region": "V1"}),
        "no model": (stack, [], {}),
        "few": (stack[:, :2, :2], {"m": models["sees"][:2]}, {}),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one", "one subject alone"),
        ("one person", "one subject alone(.|\n)*5 recordings of 'anna'"),
        ("sizes", "different numbers of rows(.|\n)*n = 20, n = 19"),
        ("models", "different numbers of rows"),
        ("asymmetric", "not symmetric(.|\n)*row 2, column 3"),
        ("nan", "NaN or infinite values(.|\n)*row 2, column 3"),
        ("constant", "brain 1: a constant RDM(.|\n)*1.00 for every pair"),
        ("constant model", "flat: a constant RDM"),
        ("nan model", "NaN"),
        ("measure", "unknown measure 'spaerman'(.|\n)*did you mean 'spearman'"),
        ("no rdm", "does not take an RDM"),
        ("distance", "gives no score of brain alignment(.|\n)*a distance"),
        ("labels", "it names no recording(.|\n)*ids such as 'brain 0'"),
        ("some labels", "labels do not fit the recordings(.|\n)*3 without one, the first is 'brain 2'"),
        ("columns", "not a table of subjects(.|\n)*name, who"),
        ("over", "unknown over 'subject'"),
        ("region", "no recording has a region"),
        ("no model", "no model to compare"),
        ("few", "too few stimuli"),
    ],
)
def test_wrong_inputs_are_named(name, said):
    stack, models, options = wrong(name)
    with pytest.raises(RepalignError, match=said):
        brain(stack, models, **{"measure": "pearson", "draws": FEW, **options})


def test_ids_that_do_not_pair_are_refused(tmp_path):
    stack, models = made_up()
    np.savez(tmp_path / "brain.npz", rdm=stack, ids=np.array([f"s{i}" for i in range(20)]))
    np.savez(tmp_path / "m.npz", x=models["sees"])
    np.savez(tmp_path / "other.npz", x=models["sees"], ids=np.array([f"t{i}" for i in range(20)]))
    for model, said in (("m.npz", "which row belongs to which"), ("other.npz", "no id in common")):
        with pytest.raises(RepalignError, match=said):
            brain(str(tmp_path / "brain.npz"), [str(tmp_path / model)])


def test_a_region_must_be_said_where_there_are_several():
    stack, labels = of_regions(0.5)
    with pytest.raises(RepalignError, match="recordings of 3 regions(.|\n)*say region='region 0'"):
        brain(stack, {"one": stack["0 1"]}, subjects=labels, draws=FEW)
    with pytest.raises(RepalignError, match="unknown region 'region 9'"):
        brain(stack, {"one": stack["0 1"]}, subjects=labels, region="region 9", draws=FEW)


def test_a_missing_file_is_named(tmp_path):
    for given in ("brain.npz", "sub-*.npy"):
        with pytest.raises(RepalignError, match="no file"):
            brain(str(tmp_path / given), ["m.npz"])


# --- as a user -----------------------------------------------------------------------------------


def test_the_figure_shows_ceiling_chance_and_intervals(tmp_path):
    stack, models = made_up()
    found = brain(stack, models, measure="pearson", draws=99)
    axes = found.draw(title="mine", labels={"sees": "sighted"})
    assert axes.get_yticklabels()[0].get_text() == "sighted"
    band, row = axes.patches[0].get_extents().transformed(axes.transData.inverted()), found.table.iloc[0]
    assert (band.x0, band.x1) == pytest.approx((row["lower"], row["upper"]))
    ends = axes.collections[0].get_segments()[0]
    assert (ends[0][0], ends[1][0]) == pytest.approx((row["low"], row["high"]))
    axes.figure.savefig(tmp_path / "figure.png", dpi=80)
    assert 10_000 < (tmp_path / "figure.png").stat().st_size < 200_000


def test_command_and_study_give_what_the_function_gives(tmp_path):
    from typer.testing import CliRunner

    from repalign.cli import app
    from repalign.study import load_study

    stack, models = made_up()
    np.savez(tmp_path / "brain.npz", rdm=stack)
    for name, x in models.items():
        np.save(tmp_path / f"{name}.npy", x)
    (tmp_path / "who.csv").write_text("id,subject\n" + "".join(f"brain {i},p{i // 2}\n" for i in range(5)))
    files = [str(tmp_path / f"{name}.npy") for name in models]
    found = brain(str(tmp_path / "brain.npz"), files, subjects=tmp_path / "who.csv", draws=FEW)
    options = ["--subjects", str(tmp_path / "who.csv"), "--draws", str(FEW), "--out", str(tmp_path / "out")]
    out = CliRunner().invoke(app, ["brain", str(tmp_path / "brain.npz"), *files, *options])
    assert out.exit_code == 0 and "3 people (5 recordings)" in " ".join(out.output.split())
    lines = (tmp_path / "out/brain.csv").read_text().splitlines()
    assert lines[1].startswith("sees,") and float(lines[1].split(",")[1]) == pytest.approx(found.table["score"][0])
    study = "name: s\nexperiment: brain\nbrain: brain.npz\nmodels: [sees.npy]\nsubjects: who.csv\ndraws: 19\n"
    (tmp_path / "s.yaml").write_text(study)
    load_study(tmp_path / "s.yaml").run()
    assert len(list(tmp_path.rglob("pairs.csv"))) == 2
    mocked = load_study(tmp_path / "s.yaml").mock().run().drawn[0]
    assert mocked.table["model"].tolist() == ["model0"] and "3 people (6 recordings)" in mocked.text


def test_the_room_loads_nothing_heavy():
    code = "import sys, repalign.experiments as e; assert callable(e.brain); print({'torch', 'pandas', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# --- rsatoolbox ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(bed) -> tuple[Any, list[Any]]:
    """The recordings and the models as rsatoolbox has them."""
    rsatoolbox = pytest.importorskip("rsatoolbox", reason="rsatoolbox is not installed (the extra `integrations`)")
    given, models = (np.load(bed / f"{name}.npz") for name in ("brain", "models"))
    people = [name.split(" | ")[1] for name in given["names"]]
    data = rsatoolbox.rdm.RDMs(given["rdm"].astype(float), rdm_descriptors={"person": people})
    rdms = zip(models["names"].tolist(), models["rdm"].astype(float), strict=True)
    return data, [rsatoolbox.model.ModelFixed(name, squareform(rdm)) for name, rdm in rdms]


METHODS = {"pearson": "corr", "spearman": "spearman", "rho_a": "rho-a", "cosine": "cosine", "tau_a": "tau-a"}


@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore:Noise ceiling for tau")
@pytest.mark.parametrize("measure", METHODS)
def test_scores_and_ceilings_are_those_of_rsatoolbox(bed, sessions, theirs, measure):
    from rsatoolbox.inference import boot_noise_ceiling, eval_fixed

    data, models = theirs
    evaluated = eval_fixed(models, data, method=METHODS[measure])
    found = asked(bed, measure).table
    scores = dict(zip([m.name for m in models], evaluated.evaluations[0].mean(-1).tolist(), strict=True))
    assert dict(found.set_index("model")["score"]) == pytest.approx(scores, abs=1e-9)
    assert found[["lower", "upper"]].iloc[0].tolist() == pytest.approx(list(evaluated.noise_ceiling), abs=1e-9)
    grouped = asked(bed, measure, sessions).table[["lower", "upper"]].iloc[0].tolist()
    assert grouped == pytest.approx(list(boot_noise_ceiling(data, METHODS[measure], "person")), abs=1e-9)


@pytest.mark.integrations
def test_errors_over_stimuli_are_those_of_rsatoolbox(bed, theirs):
    """Two bootstraps of 400 samples each: their standard errors differ by 5 % or so."""
    from rsatoolbox.inference import eval_bootstrap_pattern

    data, models = theirs
    before = np.random.get_state()
    np.random.seed(0)  # theirs draws from the global state
    evaluated = eval_bootstrap_pattern(models, data, method="corr", N=400)
    np.random.set_state(before)
    found = asked(bed, "pearson", None, 400, "stimuli").table.set_index("model")["se"]
    np.testing.assert_allclose(np.sqrt(evaluated.model_var), found[[m.name for m in models]], rtol=0.15)
