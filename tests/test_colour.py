"""The colour experiment: published values, plain loops, scikit-image, scipy, and real photos and models."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.measures import RSA, MutualKNN
from repalign.prh import colour
from repalign.prh.colour import ColourOptions, draw
from repalign.prh.colour.colours import offsets

ROOT = Path(__file__).resolve().parents[1]


# --- colours -------------------------------------------------------------------------------------

# CIELAB of the sRGB primaries and secondaries under D65, 2 degrees, as colour calculators publish them (B. Lindbloom).
PUBLISHED = {
    (0, 0, 0): (0, 0, 0), (1, 1, 1): (100, 0, 0), (1, 0, 0): (53.2408, 80.0925, 67.2032),
    (0, 1, 0): (87.7347, -86.1827, 83.1793), (0, 0, 1): (32.2970, 79.1875, -107.8602),
    (1, 1, 0): (97.1393, -21.5537, 94.4780), (0, 1, 1): (91.1132, -48.0875, -14.1312),
    (1, 0, 1): (60.3242, 98.2343, -60.8249),
}  # fmt: skip


@pytest.mark.parametrize("rgb", list(PUBLISHED))
def test_cielab_of_published_colours(rgb):
    assert colour.cielab(np.array(rgb)) == pytest.approx(PUBLISHED[rgb], abs=6e-3)


def test_cielab_against_another_library():
    skimage = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).random((200, 3))
    assert colour.cielab(rgb) == pytest.approx(skimage.rgb2lab(rgb), abs=0.02)  # its white point has five digits


def test_cielab_refuses_bytes():
    with pytest.raises(RepalignError, match="not sRGB colours"):
        colour.cielab(np.array([[255, 0, 0]]))


def test_words():
    red, white = colour.named_colours(["red", "white"])
    assert red[0] > 0.8 and red[1] < 0.1 and white.tolist() == [1, 1, 1]
    assert len(colour.WORDS) == 20 and set(colour.WORDS) <= set(colour.single_words())
    with pytest.raises(RepalignError, match="unknown colour word 'turqoise'(.|\n)*'turquoise'"):
        colour.named_colours(["turqoise"])
    with pytest.raises(RepalignError, match="stands twice"):
        colour.named_colours(["red", "red"])


# --- pairs and counts ----------------------------------------------------------------------------


def photos(n: int = 3, seed: int = 0, shape: tuple[int, int] = (5, 7)) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for _ in range(n)]


def plain_counts(palette, radius, chebyshev=False):
    m = len(palette.ids)
    counts = np.zeros((m, m), int)
    for image in palette.indices:
        places = [(y, x) for y in range(image.shape[0]) for x in range(image.shape[1])]
        for p in places:
            for q in places:
                dy, dx = abs(p[0] - q[0]), abs(p[1] - q[1])
                if p != q and (max(dy, dx) if chebyshev else math.hypot(dy, dx)) <= radius:
                    counts[image[p], image[q]] += 1
    return counts


@pytest.mark.parametrize("disc", ["euclidean", "chebyshev"])
@pytest.mark.parametrize("radius", [1, 1.5, 2, 4, 100, math.inf])
def test_all_pairs_against_a_plain_loop(radius, disc):
    """Photos of two sizes; a radius beyond the photo is the same as none."""
    palette = colour.grid_palette([*photos(), *photos(2, 1, (4, 3))], levels=2)
    options = ColourOptions(n_pairs=None, radius=radius, disc=disc)
    assert np.array_equal(colour.count_pairs(palette, options), plain_counts(palette, radius, disc == "chebyshev"))


@pytest.mark.parametrize("radius", [2.0, 100.0, math.inf])
def test_sampled_pairs_are_equally_likely(radius):
    palette = colour.grid_palette([*photos(2), *photos(1, 1, (9, 2))], levels=2)
    counts = colour.count_pairs(palette, ColourOptions(n_pairs=200_000, radius=radius))
    assert counts.sum() == 400_000 and np.array_equal(counts, counts.T)
    exact = plain_counts(palette, radius)
    expected = exact / exact.sum()
    # Every pair counts twice, in both orders, so the variance is at most twice the binomial one.
    spread = np.sqrt(2 * expected * (1 - expected) / 400_000)
    assert (np.abs(counts / 400_000 - expected) < 5 * spread + 1e-12).all()
    assert not np.array_equal(counts, colour.count_pairs(palette, ColourOptions(n_pairs=200_000, radius=radius, seed=1)))


def test_offsets():
    assert len(offsets(1)) == 4 and len(offsets(1, "chebyshev")) == 8 and len(offsets(4)) == 48  # Gauss circle problem


def test_grid():
    image = np.array([[[0, 31, 32], [255, 128, 127]]], dtype=np.uint8)
    palette = colour.grid_palette([image], 8, "centre")
    assert [palette.ids[i] for i in palette.indices[0][0]] == ["0-0-1", "7-4-3"]
    assert palette.rgb[palette.indices[0][0, 0]] == pytest.approx([0.0625, 0.0625, 0.1875])
    mean = colour.grid_palette([image], 8, "mean")
    assert mean.rgb[mean.indices[0][0]] == pytest.approx(image[0] / 255)


def test_word_palette_takes_the_nearest_in_cielab():
    words = ["red", "green", "blue", "white"]
    rgb = colour.named_colours(words)
    image = photos(1)[0]
    (found,) = colour.word_palette([image], words, rgb).indices
    lab = colour.cielab(rgb)
    for place in np.ndindex(found.shape):
        pixel = colour.cielab(image[place] / 255)
        assert found[place] == np.argmin([((pixel - t) ** 2).sum() for t in lab])


def test_shuffles_keep_what_they_say():
    before = photos()
    within, across = (colour.shuffled(before, how, 0) for how in ("within", "across"))
    histogram = lambda p: sorted(map(tuple, p.reshape(-1, 3)))  # noqa: E731
    assert all(histogram(a) == histogram(b) for a, b in zip(before, within, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(before, within, strict=True))
    assert histogram(np.stack(before)) == histogram(np.stack(across)) and histogram(before[0]) != histogram(across[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, colour.shuffled(before, "none", 0), strict=True))


# --- PMI -----------------------------------------------------------------------------------------


def circle(n: int = 12, kappa: float = 2.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return np.exp(kappa * np.cos(angle[:, None] - angle))


def test_pmi_of_the_circle_is_its_closed_form():
    """P ~ exp(kappa cos): uniform marginals, K = kappa cos + c, two eigenvalues kappa n / 2 after centring, none negative."""
    weights = (circle() + circle().T) / 2
    kernel = colour.pmi_kernel(weights, smoothing="floor")
    angle = 2 * np.pi * np.arange(12) / 12
    assert kernel == pytest.approx(2 * np.cos(angle[:, None] - angle) - 0.8239935, abs=1e-7)
    assert colour.negative_share(kernel) == pytest.approx(0, abs=1e-12)
    assert colour.negative_share(-kernel) == pytest.approx(1)


def test_pmi_layout_of_the_circle_is_the_circle():
    kernel = colour.pmi_kernel((circle() + circle().T) / 2, smoothing="floor")
    # |f_i - f_j|^2 = 2 (max K - K): the root of the dissimilarity is Euclidean
    found = colour.mds(np.sqrt(2 * colour.dissimilarity(kernel)), ColourOptions(mds="classical", n_components=2))
    angle = 2 * np.pi * np.arange(12) / 12
    moved, disparity = colour.align(found.points, np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert disparity < 1e-10 and found.stress < 1e-5
    assert np.hypot(*moved.T) == pytest.approx(np.ones(12))


def test_smoothing():
    counts = np.array([[4, 2, 0], [2, 2, 2], [0, 2, 6]])
    joint = counts / counts.sum()
    p = joint.sum(axis=1)
    mixed = 0.9 * joint + 0.1 * np.outer(p, p)
    found = colour.pmi_kernel(counts, "independence", 0.1)
    assert found == pytest.approx(np.log(mixed / np.outer(mixed.sum(1), mixed.sum(0))))  # the marginals are kept
    assert found[0, 2] == pytest.approx(math.log(0.1))
    floor = colour.pmi_kernel(counts, "floor")
    assert floor[0, 2] == floor[np.isfinite(floor)].min() == pytest.approx(np.log(joint[1, 1] / p[1] ** 2), abs=1)
    added = (counts + 0.5) / (counts + 0.5).sum()
    assert colour.pmi_kernel(counts, "add", 0.5) == pytest.approx(np.log(added / np.outer(added.sum(1), added.sum(0))))
    assert (colour.pmi_kernel(counts, positive=True) == np.maximum(colour.pmi_kernel(counts), 0)).all()
    with pytest.raises(RepalignError, match="counts that give no PMI"):
        colour.pmi_kernel(np.array([[1, 2], [3, 4]]))


def test_pmi_agrees_with_scikit_learn():
    """The mean of PMI over the pairs is the mutual information of the two ends."""
    from sklearn.metrics import mutual_info_score

    counts = colour.count_pairs(colour.grid_palette(photos(), 2), ColourOptions(n_pairs=None))
    kept = colour.frequent(counts, 1)
    inner = counts[np.ix_(kept, kept)]
    found = (inner / inner.sum() * colour.pmi_kernel(inner, "floor")).sum()
    assert found == pytest.approx(mutual_info_score(None, None, contingency=inner))


def test_dissimilarity():
    kernel = np.array([[3.0, 1, 0], [1, 2, -1], [0, -1, 4]])
    assert colour.dissimilarity(kernel).tolist() == [[0, 3, 4], [3, 0, 5], [4, 5, 0]]
    assert colour.dissimilarity(kernel, "off_diagonal").tolist() == [[0, 0, 1], [0, 0, 2], [1, 2, 0]]


def test_too_few_colours():
    with pytest.raises(RepalignError, match="too few colours"):
        colour.pixel_space(photos(), ColourOptions(n_pairs=100, min_count=10_000, size=None))


# --- layouts and scores --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["metric", "nonmetric", "classical"])
def test_mds_finds_points_again(kind):
    from scipy.spatial.distance import pdist, squareform

    points = np.random.default_rng(0).standard_normal((25, 3))
    found = colour.mds(squareform(pdist(points)), ColourOptions(mds=kind, n_fits=8, max_iter=1000))
    _, disparity = colour.align(found.points, points)
    assert disparity < 0.02 and found.stress < 0.1


def test_align_against_scipy():
    from scipy.spatial import procrustes

    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 30, 3))
    moved, disparity = colour.align(x, y)
    assert disparity == pytest.approx(procrustes(y, x)[2])
    assert ((moved - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum() == pytest.approx(disparity)
    turned, left = colour.align(5 - 3 * x[:, [1, 0, 2]], x)
    assert turned == pytest.approx(x) and left == pytest.approx(0, abs=1e-12)
    assert colour.align(-x, y)[1] == pytest.approx(disparity)  # the paper's z and -z
    with pytest.raises(RepalignError, match="points are all one"):
        colour.align(np.ones((30, 3)), y)


def space(name: str, layers: dict[str, np.ndarray]) -> colour.ColourSpace:
    n = len(next(iter(layers.values())))
    rgb = np.random.default_rng(9).random((n, 3))
    return colour.vector_space(name, [f"colour {i}" for i in range(n)], rgb, layers)


def test_scores_of_distances_are_those_of_features():
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 5))
    y = x @ generator.standard_normal((5, 4)) + generator.standard_normal((40, 4))
    rows = colour.score(space("x", {"a": x, "b": x[:, :2]}), space("y", {"c": y}), ColourOptions(n_draws=99), k=6)
    found = {(r["layer_x"], r["measure"]): r for r in rows}
    assert found["a", "RSA"]["statistic"] == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic)
    assert found["a", "RSA"]["statistic"] == pytest.approx(RSA(dissimilarity="euclidean")(x, y))
    assert found["b", "MutualKNN(k=6)"]["statistic"] == pytest.approx(MutualKNN(6, "euclidean")(x[:, :2], y))
    assert found["a", "MutualKNN(k=6)"]["null_mean"] == pytest.approx(6 / 39, abs=0.01)
    assert found["a", "RSA"]["pvalue"] == 0.01 <= found["a", "RSA"]["pvalue_layers"]
    assert all(r["n"] == 40 and r["n_draws"] == 99 for r in rows)


def test_pvalues_of_unrelated_spaces():
    generator = np.random.default_rng(1)
    p = [
        r["pvalue"]
        for i in range(60)
        for r in colour.score(
            space("x", {"a": generator.standard_normal((14, 3))}), space("y", {"b": generator.standard_normal((14, 3))}),
            ColourOptions(n_draws=39, seed=i), k=3,
        )
        if r["measure"] == "RSA"
    ]  # fmt: skip
    assert 0.3 < np.mean(p) < 0.7 and np.mean(np.array(p) <= 0.25) < 0.45


def test_pairing_is_by_id():
    generator = np.random.default_rng(0)
    one = space("x", {"a": generator.standard_normal((20, 3))})
    other = replace(one.subset(one.ids[:3:-1]), name="y")
    rows = colour.score(one, other, ColourOptions(n_draws=19), k=4)
    assert [round(r["statistic"], 9) for r in rows] == [1, 1] and rows[0]["n"] == 16
    with pytest.raises(RepalignError, match="share too few colours"):
        colour.score(one, one.subset(one.ids[:4]), ColourOptions(), k=4)


def test_layout_score_is_a_distance():
    one = space("x", {"a": np.random.default_rng(0).standard_normal((20, 3))})
    (same,) = colour.score_layout(one.lab, one, one, ColourOptions(n_draws=19))
    assert same["statistic"] < 1e-6 < same["threshold"] < same["null_mean"] and same["pvalue"] == 0.05
    (far,) = colour.score_layout(one.distances["a"][:, :3], one, one, ColourOptions(n_draws=19))
    assert far["statistic"] > same["statistic"]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"palette": "hsv"}, "'grid' or 'words'"), ({"levels": 1}, "equal to 2"), ({"radius": 0}, "equal to 1"),
        ({"templates": ["The color."]}, "has one {} for the colour word, and 'The color.' has not"),
        ({"templates": []}, "at least 1"), ({"amount": 0}, "above 0 and below 1"), ({"amount": 1}, "above 0 and below 1"),
        ({"n_pairs": 0}, "greater than 0"),
        ({"mds": ""}, "'metric', 'nonmetric' or 'classical'"), ({"smoothing": "add", "amount": 0}, "an amount above 0"),
    ],
    ids=str,
)  # fmt: skip
def test_options_are_checked(bad, expected, tmp_path):
    with pytest.raises(ValueError, match=re.escape(expected)):
        ColourOptions(**bad)
    with pytest.raises(RepalignError, match=rf"line 5, options\.{[*bad][-1]}(.|\n)*{re.escape(expected)}"):
        write_study(tmp_path, options=json.dumps(bad))


# --- photos and models ---------------------------------------------------------------------------


def write_study(folder, models: str = "[]", options: str = "{}", more: str = ""):
    """A colour study on photos.csv in the folder."""
    from repalign.study import load_study

    path = folder / "study.yaml"
    path.write_text(
        f"experiment: colour\nname: colour\ndataset: {{table: photos.csv, id: id, image: image}}\n"
        f"models: {models}\noptions: {options}\n{more}"
    )
    return load_study(path)


@pytest.fixture(scope="module")
def bed(shared, tmp_path_factory):
    """60 photos and two tiny language models, through a study file."""
    folder = tmp_path_factory.mktemp("colour")
    source = shared / "bed/flickr8k_dev"
    table = Dataset.from_table(source / "pairs.jsonl", id="id", image="image", text="captions").sample(60, seed=0)
    lines = [f"{i},{source / 'images' / i}.jpg" for i in table.ids]
    (folder / "photos.csv").write_text("\n".join(["id,image", *lines]) + "\n")
    models = ", ".join(f'"hf:{shared / "bed/models" / m}"' for m in ("stories260k", "babyllama105"))
    study = write_study(folder, models=f"[{models}]", options="{n_fits: 2, levels: 5, n_draws: 99, n_pairs: 100000}")
    study.run()
    return study.results, shared


@pytest.mark.slow
def test_pixels_lay_colours_out_as_perception_does(bed):
    result = colour.ColourResult.load(bed[0])
    pixels = result.scores[(result.scores["space_x"] == "pixels") & (result.scores["layer_y"] == "cielab")]
    rsa, knn, layout = (pixels.set_index("measure").loc[m] for m in ("RSA", "MutualKNN(k=10)", "Procrustes"))
    assert rsa.statistic > 0.3 and knn.statistic > 2 * knn.null_mean and layout.statistic < layout.threshold
    assert rsa.pvalue == knn.pvalue == layout.pvalue == 1 / 100
    controls = result.controls[(result.controls["layer_y"] == "cielab") & (result.controls["measure"] == "MutualKNN(k=10)")]
    by = controls.set_index(["radius", "shuffle"])["statistic"]
    assert by[1.0, "none"] > by[math.inf, "none"] > by[4.0, "across"]
    assert by[4.0, "within"] == pytest.approx(by[math.inf, "none"], abs=0.08)  # without places, a photo is its histogram


@pytest.mark.slow
def test_the_whole_result(bed):
    folder, _ = bed
    result = colour.ColourResult.load(folder)
    assert list(result.run["spaces"]) == ["pixels", "pixels by word", "stories260k", "babyllama105", "spelling"]
    assert result.run["options"]["n_fits"] == 2 and result.run["options"]["radius"] == 4.0
    assert result.run["dataset"]["n"] == 60
    text = result.scores[(result.scores["space_x"] == "stories260k") & (result.scores["measure"] == "RSA")]
    assert list(dict.fromkeys(text["layer_x"])) == ["embeddings", *(f"block.{i}" for i in range(5)), "last 4"]
    figures = folder.parent / "figures"
    for name in ("01-layouts", "02-controls", "03-words"):
        assert (figures / f"{name}.png").stat().st_size > 10_000
    assert (folder.parent / "report.html").read_text("utf-8").count("<img") == 3
    again = result.save(folder / "again")
    for name in ("scores.csv", "controls.csv", "layouts.csv", "run.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    (again / "scores.csv").unlink()
    with pytest.raises(RepalignError, match=r"scores\.csv cannot be read(.|\n)*No such file"):
        colour.ColourResult.load(again)


@pytest.mark.slow
def test_the_band_of_chance_is_what_its_label_says(bed):
    result = colour.ColourResult.load(bed[0])
    chance = result.controls[(result.controls["layer_y"] == "cielab") & (result.controls["measure"] == "RSA")]
    chance = chance.sort_values("radius").drop_duplicates("radius")
    axes = draw.draw_controls(result).axes[0]
    (band,) = axes.collections
    assert band.get_label() == "colours relabelled: mean ± 2 sd"
    for end, way in ((0, -2), (-1, 2)):
        edge = [sorted(y for x, y in band.get_paths()[0].vertices if x == at)[end] for at in range(len(chance))]
        assert edge == pytest.approx((chance["null_mean"] + way * chance["null_std"]).tolist())


@pytest.mark.slow
def test_words_in_sentences_against_a_plain_pass(bed):
    """Mean over tokens after the first, mean over templates, Euclidean: with transformers itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, shared = bed
    path = str(shared / "bed/models/stories260k")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    words = colour.WORDS
    rows = []
    for word in words:
        states = []
        for template in ColourOptions().templates:
            with torch.inference_mode():
                out = model(**tokenizer(template.format(word), return_tensors="pt"), output_hidden_states=True)
            states.append(torch.cat([h[0, 1:].mean(0) for h in out.hidden_states[-4:]]).numpy())
        rows.append(np.mean(states, axis=0))
    from scipy.spatial.distance import pdist, squareform

    found = colour.word_space(f"hf:{path}", words, ColourOptions(), folder, device="cpu")  # complete in the store
    assert found.distances["last 4"] == pytest.approx(squareform(pdist(np.array(rows))), rel=1e-4)


def test_spelling():
    words = ["green", "grey", "red"]
    layers = colour.spelling_space(words).distances
    # letters with both ends: green < g r e e n >, grey < g r e y >: e, n, y differ by one each
    assert layers["runs of 1"][0, 1] == pytest.approx(math.sqrt(3))
    assert list(layers) == ["runs of 1", "runs of 2"]


def test_a_study_says_what_is_wrong(tmp_path):
    with pytest.raises(RepalignError, match=r"line 5, options\.raduis: there is no field 'raduis'(.|\n)*'radius'"):
        write_study(tmp_path, options="{raduis: 3}")
    with pytest.raises(RepalignError, match=r"line 6, words: (.|\n)*'reddd'"):
        write_study(tmp_path, more="words: [red, reddd]")
    found = write_study(tmp_path, options="{radius: inf, n_pairs: null, mds: classical}", more="words: [red, green, blue]")
    assert found.config.options == ColourOptions(radius=math.inf, n_pairs=None, mds="classical")
    assert found.words == ("red", "green", "blue") and len(write_study(tmp_path, more="words: all").words) > 200


def test_figures_of_the_page_exist_and_are_small():
    page = ROOT / "docs/studies/colour.md"
    figures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    assert len(figures) == 3
    assert all(0 < (page.parent / f).stat().st_size < 120_000 for f in figures)


def test_the_page_states_the_defaults():
    """Every option that the page names is one."""
    page = (ROOT / "docs/studies/colour.md").read_text("utf-8")
    known = set(ColourOptions.model_fields)
    assert set(re.findall(r"`(\w+)=", page)) <= known
