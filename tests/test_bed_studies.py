"""The paper's studies on the bed's real models and photos: 300 of the photos here; docs/studies/bed.md has all 1,000."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repalign.study import load_study

HERE = Path(__file__).parent / "studies"
KNN = "MutualKNN(k=10, similarity='cosine', center=False)"
CKA = "CKA(kernel='linear', estimator='debiased', bandwidth=None, epsilon=0.0)"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_pictures")]


@pytest.fixture(scope="module")
def run(shared, tmp_path_factory):
    """Runs a study of the bed on 300 photos; features are shared between the studies."""
    folder = tmp_path_factory.mktemp("bed-studies")

    def go(name: str, more: str = ""):
        path = folder / f"{name}.yaml"
        path.write_text(f"extends: {HERE / name}.yaml\nstore: store\n{more}")
        study = load_study(path)
        sample = {"sample": {"n": 300, "seed": 0}}
        variants = []
        for v in study.variants:
            dataset = v.config.dataset.model_validate({**v.config.dataset.model_dump(exclude_unset=True), **sample})
            variants.append(replace(v, config=v.config.model_copy(update={"dataset": dataset})))
        outcome = replace(study, variants=tuple(variants)).run()
        assert all(one.figure is not None for one in outcome.drawn), [one.text for one in outcome.drawn]
        return outcome

    return go


def mean(outcome, variant: str, measure: str, column: str = "statistic") -> float:
    return float(outcome.alignments[variant].best(measure)[column].mean())


def test_alignment_falls_with_broken_pairs_to_chance(run):
    found = run("bed_shuffled_pairs", "sweep: {broken_pairs.share: [0, 0.5, 1]}\n")
    for measure in (KNN, CKA):
        scores = [mean(found, f"share {s}", measure) for s in (0, 0.5, 1)]
        assert scores[0] > scores[1] > scores[2]
    # A pair of stimuli counts if both keep their place: a quarter of the pairs at a half.
    gain = [mean(found, f"share {s}", CKA) - mean(found, "share 1", CKA) for s in (0, 0.5)]
    assert gain[1] / gain[0] == pytest.approx(0.25, abs=0.08)
    assert (found.alignments["share 1"].best(KNN)["p_maxt"] > 0.05).all()
    assert (found.alignments["share 0"].best(CKA)["p_maxt"] <= 0.05).mean() > 0.5


def test_more_captions_bring_language_nearer_to_vision(run):
    found = run("bed_captions", "variants: {first: {}, mean of five: {captions.x: 5}}\n")
    for measure in (KNN, CKA):
        assert mean(found, "mean of five", measure) > 1.3 * mean(found, "first", measure)


def test_at_a_fixed_k_the_score_falls_with_the_gallery_and_cka_stays(run):
    more = "sweep: {rows.n: [75, 150, 300]}\nfigures: [{curve: {x: n}}, {gallery: {k: 5, sizes: [75, 150, 300], variant: n 300}}]\n"
    found = run("bed_gallery", more)
    knn, cka = ([mean(found, f"n {n}", m) for n in (75, 150, 300)] for m in (KNN, CKA))
    assert knn[0] > knn[1] > knn[2] and max(cka) / min(cka) < 1.5
    table = found.drawn[-1].table
    fixed, share = (table.loc[table["mode"] == m, "statistic"].tolist() for m in ("fixed", "share"))
    assert fixed[0] > fixed[-1] and share[-1] > 0.9 * share[0]


def test_the_calibrated_order_is_that_of_the_published_calibration(run):
    more = (
        'measures: ["MutualKNN(k=10)", "CKA(estimator=\'biased\')"]\n'
        "variants: {studentised: {}, published: {search: raw, null: {method: aristotelian, draws: 50}}}\n"
        'figures: [{contrast: {measure: "CKA(estimator=\'biased\')", value: calibrated}}]\n'
    )
    found = run("bed_calibration", more)
    ours, theirs = (found.alignments[v].matrix(found.alignment.measures[1], "calibrated") for v in ("studentised", "published"))
    assert ours.stack().corr(theirs.stack(), method="spearman") > 0.9


def test_noise_takes_the_scene_away(run):
    found = run("bed_noise", "sweep: {dataset.distort.image.amount: [0, 1]}\n")
    clean, noisy = (found.alignments[f"amount {a}"].best(CKA).set_index("model_x")["statistic"] for a in (0, 1))
    assert clean["resnet20"] > 0.8 and noisy["resnet20"] > 0.2  # two networks of one kind, on the same noise
    assert noisy["stories260k"] < 0.5 * clean["stories260k"]
    p = found.alignments["amount 1"].best(CKA).set_index("model_x")["pvalue"]
    assert p["stories260k"] > 0.01 and p["babyllama105"] > 0.01


def test_alignment_over_k_and_agreement_of_measures(run):
    found = run("bed_locality", 'measures: ["MutualKNN(k=10)", "MutualKNN(k=100)", "CKNNA(k=10)", "CKNNA(k=100)"]\n'
                                "figures: [{curve: {x: k, by: measure}}]\n")  # fmt: skip
    table = found.drawn[0].table.set_index(["line", "x"])["value"]
    assert all(table[line, 100] > table[line, 10] for line in dict.fromkeys(table.index.get_level_values(0)))
    agreed = run("bed_agreement", "figures: [{agreement: {}}]\nrows: {n: 200}\n"
                                  'measures: ["MutualKNN(k=10)", "LCSKNN(k=10)", "CKNNA(k=10)", "CKA()"]\n')  # fmt: skip
    pairs = agreed.drawn[0].table.set_index(["measure_a", "measure_b"])["spearman"]
    assert pairs.iloc[0] > 0.95 and (pairs > 0.5).all()


def test_alignment_falls_as_captions_lose_their_words_and_images_their_parts(run):
    found = run("bed_information_kept", "sweep: {dataset.distort.text.amount: [0, 0.9], dataset.distort.image.amount: [0, 0.75]}\n")
    score = {(t, i): mean(found, f"text_amount {t}, image_amount {i}", CKA) for t in (0, 0.9) for i in (0, 0.75)}
    assert score[(0, 0)] > score[(0, 0.75)] > score[(0.9, 0)] and score[(0, 0)] > 2 * score[(0.9, 0.75)]
    assert [one.table["line"].nunique() for one in found.drawn] == [2]  # a line for whole images and one for covered ones


# --- the zoo: its measures, by plain numpy ----------------------------------------------------------


def cosines(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def mutual_knn(x: np.ndarray, y: np.ndarray) -> float:
    lists = []
    for a in (x, y):
        similar = cosines(a)
        np.fill_diagonal(similar, -np.inf)
        lists.append(np.argsort(-similar, axis=1, kind="stable")[:, :10])
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]))


def soft_knn(x: np.ndarray, y: np.ndarray) -> float:
    shares = []
    for a in (x, y):
        rows = []
        for i, row in enumerate(cosines(a)):
            others = np.delete(row, i)
            low, high = 0.0, 1e6
            for _ in range(100):  # the inverse temperature at which 10 neighbours count
                b = (low + high) / 2
                p = np.exp(b * (others - others.max()))
                p /= p.sum()
                entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
                low, high = (b, high) if entropy > np.log(10) else (low, b)
            rows.append(np.insert(p, i, 0))
        shares.append(np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True))
    return float((shares[0] * shares[1]).sum(1).mean())


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, with the zero diagonals that it asks for."""
    n, kernels = len(x), [(a - a.mean(0)) @ (a - a.mean(0)).T for a in (x, y)]
    for k in kernels:
        np.fill_diagonal(k, 0)

    def hsic(k: np.ndarray, q: np.ndarray) -> float:
        return float((k * q).sum() + k.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * k.sum(0) @ q.sum(0) / (n - 2))

    k, q = kernels
    return hsic(k, q) / np.sqrt(hsic(k, k) * hsic(q, q))


def test_the_numbers_of_the_zoo_are_those_of_plain_numpy(shared, tmp_path):
    """Every measure of studies/zoo.yaml, on stored layers of the bed; the whole zoo is run by hand (docs/studies/zoo.md)."""
    from safetensors.numpy import load_file

    bed, zoo = shared / "bed", Path(__file__).parents[1] / "studies/zoo.yaml"
    layers = {"glove50_captions": "L0_caption1_mean", "mobilenet_v1_025": "L5_AvgPool_1a", "mobilenet_v1_075": "L5_AvgPool_1a"}
    entries = [
        f'{{spec: "array:{bed}/features/{name}.safetensors", name: {name}, modality: {side}, layers: [{layers[name]}]}}'
        for name, side in zip(layers, ("text", "image", "image"), strict=True)
    ]
    (tmp_path / "study.yaml").write_text(
        f"extends: {zoo}\ndataset: {{table: {bed}/flickr8k_dev/pairs.jsonl, id: id, image: image, text: captions}}\n"
        f"models: {{x: [{entries[0]}], y: [{entries[1]}, {entries[2]}]}}\nvariants: {{}}\nfigures: []\nrows: {{n: 200, seed: 1}}\n"
    )
    found = load_study(tmp_path / "study.yaml").run().alignment
    ids = [json.loads(line)["id"] for line in (bed / "flickr8k_dev/pairs.jsonl").read_text("utf-8").splitlines()]
    rows = [ids.index(one) for one in load_study(tmp_path / "study.yaml").variants[0].compared(ids)]
    x, *ys = (load_file(bed / f"features/{name}.safetensors")[layer][rows].astype(float) for name, layer in layers.items())
    by_hand = {
        "MutualKNN": mutual_knn, "SoftKNN": soft_knn, "CKA": debiased_cka,
        "center=True": lambda a, b: mutual_knn(a - a.mean(0), b - b.mean(0)),
    }  # fmt: skip
    assert len(found.measures) == 4
    for measure in found.measures:
        score = by_hand["center=True" if "center=True" in measure else measure.partition("(")[0]]
        for name, y in zip(list(layers)[1:], ys, strict=True):
            cell = found.cells(measure).set_index("model_y").loc[name, "statistic"]
            assert cell == pytest.approx(score(x, y), abs=1e-6), (measure, name)  # features are float32
