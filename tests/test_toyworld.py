"""The toy world: scenes, their two views, the small models and their cache."""

from __future__ import annotations

import colorsys
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ive
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestNeighbors

from processes import FRESH
from repalign.errors import RepalignError
from repalign.toyworld import captions, models, networks, recipes, render, training, world

TURN = 2 * np.pi
TINY = "language-conv8-next"


@pytest.fixture(scope="module")
def scenes() -> world.Scenes:
    return world.sample(3000, seed=7)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name whose training takes six steps, with a checkpoint after three."""
    recipe = replace(recipes.RECIPES[TINY], steps=6, checkpoints=(3,))
    monkeypatch.setitem(recipes.RECIPES, TINY, recipe)
    for name in recipe.names:
        monkeypatch.setitem(recipes.NAMES, name, recipe)
    return TINY


# --- the world ---------------------------------------------------------------------------------


def test_a_seed_gives_the_same_scenes_and_another_seed_others(scenes):
    again, other = world.sample(3000, seed=7), world.sample(3000, seed=8)
    assert np.array_equal(again.images, scenes.images) and again.captions == scenes.captions
    assert np.array_equal(again.latents, scenes.latents)
    assert not np.array_equal(other.latents, scenes.latents)
    assert sum(a == b for a, b in zip(other.captions, scenes.captions, strict=True)) < 5


def test_the_first_scenes_of_a_larger_sample_are_the_smaller_sample(scenes):
    few = world.sample(200, seed=7)  # not a multiple of the chunks that are drawn at a time
    assert np.array_equal(few.images, scenes.images[:200])
    assert few.captions == scenes.captions[:200]
    assert np.array_equal(few.latents, scenes.latents[:200])
    assert np.array_equal(few.attributes.hue, scenes.attributes.hue[:200])


def test_the_world_is_the_one_that_the_documented_numbers_were_measured_in():
    scenes = world.sample(2, seed=0)
    assert scenes.captions == [
        "a tiny sapphire pillar top rightmost with a wee cyan triangle top left .",
        "a tiny purple diamond top east and a small cyan star upper leftmost .",
    ]
    assert scenes.latents[0] == pytest.approx(
        [3.3627415761381063, 2.284836041183335, 0.08932163937408688, 0.6200009684555604], abs=1e-12
    )


def test_shapes_types_and_ranges(scenes):
    assert scenes.images.shape == (3000, 32, 32, 3) and scenes.images.dtype == np.uint8
    assert scenes.latents.shape == (3000, 4) and len(scenes) == len(scenes.captions) == 3000
    a = scenes.attributes
    assert a.hue.min() >= 0 and a.hue.max() < TURN
    assert set(np.unique(a.shape)) == set(range(8))
    for value in (a.x, a.y, a.size):
        assert value.shape == (3000, 2) and value.min() >= 0 and value.max() <= 1
    assert a.x[:, 0].max() <= 0.45 and a.x[:, 1].min() >= 0.55


@pytest.mark.parametrize("column, offset", [(0, 0.0), (1, TURN / 6)])
def test_hues_are_von_mises_about_the_palette(scenes, column, offset):
    off = np.exp(1j * (scenes.attributes.hue[:, column] - scenes.latents[:, 0] - offset)).mean()
    assert abs(off) == pytest.approx(
        ive(1, 12) / ive(0, 12), abs=0.01
    )  # the mean resultant length of kappa = 12
    assert np.angle(off) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("column, offset", [(0, 0.0), (1, TURN / 8)])
def test_shapes_follow_the_family(scenes, column, offset):
    away = scenes.latents[:, 1] + offset - TURN * scenes.attributes.shape[:, column] / 8
    angle = np.linspace(0, TURN, 1000, endpoint=False)[:, None] - TURN * np.arange(8) / 8
    share = np.exp(8 * np.cos(angle)) / np.exp(8 * np.cos(angle)).sum(1, keepdims=True)
    assert np.cos(away).mean() == pytest.approx((share * np.cos(angle)).sum(1).mean(), abs=0.015)
    assert np.sin(away).mean() == pytest.approx(0, abs=0.03)


def test_geometry_follows_depth_and_layout_and_nothing_else_does(scenes):
    palette, family, depth, layout = scenes.latents.T
    a = scenes.attributes
    for value, latent, noise, scale in (
        (a.x, layout, 0.1, 0.45),
        (a.y, depth, 0.07, 1),
        (a.size, depth, 0.1, 1),
    ):
        for column in (0, 1):
            slope, _ = np.polyfit(latent, value[:, column], 1)
            rest = value[:, column] - scale * latent - (0.55 * column if scale < 1 else 0)
            inner = (latent > 0.3) & (latent < 0.7)  # where nothing is clipped
            assert rest[inner].std() == pytest.approx(scale * noise, rel=0.08)
            assert rest[inner].mean() == pytest.approx(0, abs=0.01 * scale)
            assert slope > 0.8 * scale
            for other in (depth if latent is layout else layout, np.cos(palette), np.sin(family)):
                assert abs(np.corrcoef(other, value[:, column])[0, 1]) < 0.07


def test_latents_are_uniform_and_independent(scenes):
    unit = scenes.latents / (TURN, TURN, 1, 1)
    assert np.allclose(np.quantile(unit, [0.1, 0.5, 0.9], axis=0).T, [0.1, 0.5, 0.9], atol=0.03)
    assert np.abs(np.corrcoef(unit.T) - np.eye(4)).max() < 0.07


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"n": 0, "seed": 0}, "number of scenes is out of range\n.*at least 1\n  got: 0"),
        ({"n": 2.5, "seed": 0}, "number of scenes is out of range"),
        ({"n": 2, "seed": -1}, "the seed is out of range\n.*at least 0\n  got: -1"),
        ({"n": 2, "seed": 0, "detail": 0}, "detail of captions is out of range\n.*from 1 to 10.*\n  got: 0"),
        ({"n": 2, "seed": 0, "detail": 11}, "detail of captions is out of range"),
    ],
)
def test_values_out_of_range_are_refused(arguments, text):
    with pytest.raises(RepalignError, match=text):
        world.sample(**arguments)


# --- images ------------------------------------------------------------------------------------


def test_the_colour_at_the_centre_of_an_object_is_its_hue(scenes):
    a = scenes.attributes
    x, y = render.centre(a.x, a.y)
    rows = np.arange(len(scenes))
    for column in (0, 1):
        seen = scenes.images[rows, np.rint(y[:, column]).astype(int), np.rint(x[:, column]).astype(int)] / 255
        meant = np.array([colorsys.hsv_to_rgb(h / TURN, 0.85, 0.95) for h in a.hue[:, column]])
        right = np.abs(seen - meant).max(1) < 0.06  # uniform noise of sd .03 reaches .052
        assert right.mean() >= (1.0, 0.99)[column]  # A lies over B, rarely over its centre


def test_outlines_are_antialiased_and_shapes_differ():
    n = len(render.SHAPES)
    one = np.ones((n, 2))
    a = world.Attributes(
        hue=0 * one,
        shape=np.stack([np.arange(n), np.arange(n)], axis=1),
        x=one * [0.0, 1.0],
        y=one * 0.5,
        size=one,
    )
    images = render.draw(a, world.stream(0, "picture"), world.stream(0, "pixels")).astype(int)
    part = images[:, :, :13, 2]  # blue is low in red objects, high in the grey of the background
    levels = [len(np.unique(p // 8)) for p in part]
    assert min(levels) > 5  # between object and background there are pixels in between
    cover = part < 60
    area = cover.sum((1, 2))
    assert area.min() > 25
    different = [(cover[i] ^ cover[j]).sum() for i in range(n) for j in range(i)]
    assert min(different) >= 8


def test_the_background_does_not_depend_on_the_latents(scenes):
    x, y = render.centre(scenes.attributes.x, scenes.attributes.y)
    corners = scenes.images[:, -2:, 14:17].reshape(len(scenes), -1, 3).mean(1)
    clear = (np.abs(x - 15) > 9).all(1) | (y < 20).all(1)  # no object reaches there
    unit = np.stack([f(v) for v in scenes.latents[clear].T for f in (np.cos, np.sin)], axis=1)
    link = np.corrcoef(unit.T, corners[clear].T)[: unit.shape[1], unit.shape[1] :]
    assert clear.sum() > 1000 and np.abs(link).max() < 0.08


def test_two_frames_share_the_scene_and_not_the_background():
    first, second, a = world.frames(400, seed=3)
    alone = world.sample(400, seed=3)
    assert np.array_equal(first, alone.images) and np.array_equal(a.hue, alone.attributes.hue)
    background = np.abs(first[:, 0].astype(int) - second[:, 0].astype(int)).mean((1, 2))
    assert np.median(background) > 15
    x, y = (np.rint(c[:, 0]).astype(int) for c in render.centre(a.x, a.y))
    colour = render.rgb(a.hue[:, 0], 0.85, 0.95) * 255
    near = []
    for i in range(400):
        patch = second[i, max(y[i] - 4, 0) : y[i] + 5, max(x[i] - 4, 0) : x[i] + 5].reshape(-1, 3)
        near.append(np.abs(patch - colour[i]).max(1).min())
    assert np.mean(np.array(near) < 20) > 0.98  # object A is still there, in its colour
    assert not np.array_equal(first, second)


# --- captions ----------------------------------------------------------------------------------

ANY = {kind: "|".join(w for pair in classes for w in pair) for kind, classes in captions.WORDS.items()}
PHRASE = rf"a ({ANY['size']}) ({ANY['hue']}) ({ANY['shape']}) ({ANY['height']}) ({ANY['side']})"
CLASS = {kind: {w: i for i, pair in enumerate(c) for w in pair} for kind, c in captions.WORDS.items()}


def test_full_captions_say_what_the_scene_is(scenes):
    a = scenes.attributes
    close, swapped, second_names = 0, 0, 0
    for i, caption in enumerate(scenes.captions):
        match = re.fullmatch(rf"{PHRASE} (?:and|with) {PHRASE} \.", caption)
        assert match, caption
        spoken = [match.groups()[:5], match.groups()[5:]]
        sides = [CLASS["side"][p[4]] for p in spoken]
        assert sides[0] != sides[1] or sides[0] == 2  # the middle belongs to both
        order = (0, 1) if sides[0] < sides[1] else (1, 0)
        a_first = order == (0, 1)
        swapped += not a_first
        second_names += any(spoken[0][2] == pair[1] for pair in captions.WORDS["shape"])
        shapes = sorted(CLASS["shape"][p[2]] for p in spoken)
        assert shapes == sorted(a.shape[i])
        if sides[0] == sides[1]:
            continue
        for column, phrase in zip(order, spoken, strict=True):
            hue = CLASS["hue"][phrase[1]] * TURN / 12
            apart = abs((hue - a.hue[i, column] + np.pi) % TURN - np.pi)
            assert apart < TURN / 24 + 0.14  # half a class and the rounding noise
            assert abs((CLASS["size"][phrase[0]] + 0.5) / 4 - a.size[i, column]) < 1 / 8 + 0.053
            assert abs((CLASS["height"][phrase[3]] + 0.5) / 4 - a.y[i, column]) < 1 / 8 + 0.053
            close += 1
    assert close > 5000
    assert 0.4 < swapped / len(scenes) < 0.6
    assert second_names / len(scenes) == pytest.approx(0.25, abs=0.03)


def test_detail_names_that_many_attributes_and_changes_nothing_else(scenes):
    kinds = {word: kind for kind, classes in CLASS.items() for word in classes}
    shown = []
    for detail in range(1, 11):
        some = world.sample(50, seed=7, detail=detail)
        assert np.array_equal(some.images, scenes.images[:50])
        named = [[kinds[w] for w in c.split() if w in kinds] for c in some.captions]
        assert all(len(k) == detail for k in named)
        assert all((" and " in c or " with " in c) == (detail > 5) for c in some.captions)
        if detail <= 5:
            assert all(sorted(k) == sorted(captions.ORDER[:detail]) for k in named)
        shown.append([set(c.split()) - {"thing", "and", "with"} for c in some.captions])
    for less, more in pairwise(shown):
        assert all(a <= b for a, b in zip(less, more, strict=True))  # words are added, none is exchanged


def test_training_captions_are_full_in_seven_of_ten():
    named = captions.some_named(20000, np.random.default_rng(0)).reshape(20000, -1).sum(1)
    assert np.mean(named == 10) == pytest.approx(0.7, abs=0.01)
    assert np.allclose([np.mean(named == k) for k in range(1, 10)], 0.3 / 9, atol=0.005)
    tokens = training.training_captions(500, seed=1)
    assert "thing" in " ".join(captions.decode(tokens))
    assert (np.diff((tokens == captions.PAD).astype(int), axis=1) >= 0).all()  # padding is at the end


def test_encode_undoes_decode(scenes):
    tokens = captions.encode(scenes.captions)
    assert captions.decode(tokens) == scenes.captions
    assert np.array_equal(captions.encode(captions.decode(tokens[:5, :14])), tokens[:5])


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "a red cirle",
            "'a red cirle', is not of the toy world\n.*\n  got: 'cirle'\n.*did you mean 'circle'",
        ),
        ("", "caption 1 of the batch, '', is not of the toy world\n.*\n  got: no words"),
        ("a <mask>", "got: '<mask>'"),
        (
            "a red circle " * 6,
            "longer than any of the toy world\n  expected: at most 14 words\n  got: 18 words",
        ),
    ],
)
def test_captions_of_another_world_are_refused(text, message):
    with pytest.raises(RepalignError, match=message):
        captions.encode(["a red circle .", text])


# --- networks and training ---------------------------------------------------------------------


def small(family: str, objective: str = "next", width: int = 8) -> torch.nn.Module:
    modality = recipes.VISION if family == "cnn" else recipes.LANGUAGE
    torch.manual_seed(0)
    return networks.build(recipes.Recipe("small", modality, family, width, objective))


@pytest.mark.parametrize("family", ["conv", "transformer", "gru"])
def test_a_next_word_network_does_not_see_the_future(family):
    network = small(family)
    tokens = torch.from_numpy(captions.encode(world.sample(20, 0).captions))
    changed = tokens.clone()
    changed[:, 7:] = tokens[:, 7:].flip(0)
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    for layer in network.layers:
        assert torch.allclose(before[layer][:, :7], after[layer][:, :7], atol=1e-6)
        assert not torch.allclose(before[layer][:, 7:], after[layer][:, 7:], atol=1e-3)


def test_a_masked_word_network_sees_the_whole_caption():
    network = small("transformer", "masked", width=16)
    tokens = torch.from_numpy(captions.encode(world.sample(20, 0).captions))
    changed = tokens.clone()
    changed[:, 7:] = tokens[:, 7:].flip(0)
    with torch.no_grad():
        before, after = network(tokens)["block2"], network(changed)["block2"]
    assert (before[:, :7] - after[:, :7]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "family, objective",
    [("conv", "next"), ("transformer", "next"), ("transformer", "masked"), ("gru", "next"), ("bag", "none")],
)
def test_the_vector_of_a_caption_does_not_depend_on_its_batch(family, objective):
    network = small(family, objective, width=16)
    short, long = world.sample(1, 0, detail=2).captions, world.sample(8, 1).captions
    alone = networks.caption_vectors(network, torch.from_numpy(captions.encode(short)))
    batch = networks.caption_vectors(network, torch.from_numpy(captions.encode(short + long)))
    for layer in network.layers:
        assert torch.allclose(alone[layer][0], batch[layer][0], atol=1e-6)


def test_the_bag_of_words_counts_words():
    bag = models.ToyModel("bag", recipes.RECIPES["language-bag"], 0, small("bag", "none"), {}, "")
    found = bag.forward(["a red circle left and a red box right ."])["words"][0] * 10
    counts = {captions.VOCABULARY[int(i)]: round(float(found[i])) for i in found.nonzero()}
    assert counts == {"a": 2, "red": 2, "circle": 1, "left": 1, "and": 1, "box": 1, "right": 1, ".": 1}
    assert bag.n_parameters == 0


@pytest.mark.parametrize("objective", list(training.OBJECTIVES))
def test_every_objective_learns(objective):
    recipe = next(r for r in recipes.RECIPES.values() if r.objective == objective)
    steps = 40
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.build(replace(recipe, width=16 if recipe.family == "transformer" else 8))
        trained = training.OBJECTIVES[objective](network)
        losses = [loss for _, loss in training.fit(trained, "test", steps, recipe.rate)]
    assert len(losses) == steps
    assert np.mean(losses[-5:]) < (0.98 if objective == "augmentation" else 0.9) * np.mean(losses[:3])


def test_no_two_runs_share_a_scene():
    block = training.NextWord(small("conv"))
    one, two = next(block.batches("one", 1))[0], next(block.batches("two", 1))[0]
    assert not torch.equal(one, two)
    seeds = {recipes.seed(r, "training", start) for r in recipes.RECIPES for start in range(0, 3000, 1024)}
    assert len(seeds) == 3 * len(recipes.RECIPES) and min(seeds) >= 1 << 63  # nor with a seed of a user


def test_batches_are_those_asked_for_and_fresh():
    batches = list(training.Supervised(small("cnn")).batches("run", 20))
    assert [len(b[0]) for b in batches] == [128] * 20
    assert len(torch.unique(torch.cat([b[0].flatten(1).double().mean(1) for b in batches]))) > 2400


def test_the_probe_is_the_discriminant_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    x, new = rng.normal(size=(300, 6)) + 0.8 * np.eye(4, 6)[y], rng.normal(size=(200, 6))
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.01).fit(x, y)
    found = training.discriminate(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(new))
    assert np.array_equal(found.numpy(), oracle.predict(new))


def test_bits_of_a_model_that_knows_nothing_are_those_of_a_uniform_guess():
    network = small("gru")
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.zeros_(network.head.bias)
    scores = training.caption_bits(network)
    texts = world.sample(1024, recipes.seed("held out", "score")).captions
    words, size = sum(len(t.split()) for t in texts), sum(len(t) for t in texts)
    assert scores["bits_per_word"] == pytest.approx(math.log2(len(captions.VOCABULARY)), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(scores["bits_per_word"] * words / size, rel=1e-9)


def test_counted_word_vectors_are_the_truncated_decomposition_of_mutual_information():
    recipe = recipes.RECIPES["language-svd12-200"]
    texts = captions.decode(training.training_captions(200, recipes.seed(recipe.name, "training", 0)))
    words = captions.VOCABULARY[3:]
    pairs = np.ones((len(words), len(words)))
    for text in texts:
        there = [words.index(w) for w in set(text.split())]
        for u in there:
            for v in there:
                pairs[u, v] += u != v
    p = pairs.sum(0) / pairs.sum()
    u, s, _ = np.linalg.svd(np.log(pairs / pairs.sum()) - np.log(p)[:, None] - np.log(p))
    table = training.cooccurrence_vectors(recipe).double().numpy()
    assert (table[:3] == 0).all()
    assert np.allclose(table[3:] @ table[3:].T, (u[:, :12] * s[:12]) @ u[:, :12].T, atol=1e-5)


# --- loading and the cache ---------------------------------------------------------------------


def test_every_name_is_a_model_and_every_wrong_name_an_error(tmp_path):
    with pytest.raises(
        RepalignError, match=r"no toy model 'vision-cnn16-supervized'\n.*\n.*\n  do: did you mean"
    ):
        models.load("vision-cnn16-supervized", tmp_path)
    with pytest.raises(RepalignError, match="language-conv24-next-step100"):
        models.revision("language-conv24-next-step99")
    assert list(tmp_path.iterdir()) == []
    for name, recipe in recipes.NAMES.items():
        assert re.fullmatch(r"(vision|language)-[a-z]+\d*(-[a-z0-9.+]+)*", name)
        assert (recipe.modality == "image") == name.startswith("vision-")
        assert recipes.find(name) == (
            recipe,
            int(name.rpartition("-step")[2]) if "-step" in name else recipe.steps,
        )


def test_one_run_gives_the_model_and_its_checkpoint_and_is_not_run_again(tmp_path, tiny, monkeypatch):
    told = []
    final = models.load(tiny, tmp_path, lambda task, done, total, note=None: told.append((task, done, total)))
    assert told[0][:2] == (f"training {tiny}", 0) and told[-1][1] == told[-1][2]
    monkeypatch.setattr(training, "run", lambda *_: pytest.fail("trained again"))
    again, early = models.load(tiny, tmp_path), models.load(f"{tiny}-step3", tmp_path)
    assert (final.step, early.step) == (6, 3)
    assert final.weights == again.weights != early.weights
    assert final.scores == again.scores and set(final.scores) == {"bits_per_word", "bits_per_byte"}
    assert early.scores["bits_per_word"] > final.scores["bits_per_word"]
    assert models.is_cached(tiny, tmp_path) and not models.is_cached("vision-pixels", tmp_path)
    texts = world.sample(5, 0).captions
    for layer, x in final.forward(texts).items():
        assert torch.equal(x, again.forward(texts)[layer]) and x.dtype == torch.float32
    assert [f.name for f in sorted(tmp_path.iterdir()) if f.name.startswith(".")] == []


def test_a_name_gives_the_same_weights_whatever_the_caller_has_set(tmp_path, tiny):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    one = models.load(tiny, tmp_path / "one")
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    try:
        torch.set_num_threads(2)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(99)
            two = models.load(tiny, tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    assert one.weights == two.weights and one.scores == two.scores
    files = [sorted((tmp_path / d).iterdir()) for d in ("one", "two")]
    assert [f.name for f in files[0]] == [f.name for f in files[1]] and len(files[0]) == 4
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


@pytest.mark.parametrize("broken", ["cut", "changed", "no sidecar", "cut sidecar", "sidecar is a list"])
def test_a_broken_file_is_trained_again(tmp_path, tiny, monkeypatch, broken):
    whole = models.load(tiny, tmp_path)
    (weights,) = tmp_path.glob(f"{tiny}.*.safetensors")
    sidecar = weights.with_suffix(".json")
    data = weights.read_bytes()
    if broken == "cut":
        weights.write_bytes(data[:-100])
    elif broken == "changed":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif broken == "no sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text("[]" if "list" in broken else sidecar.read_text()[:-30])
    runs, run = [], training.run
    monkeypatch.setattr(training, "run", lambda *a: runs.append(a[0].name) or run(*a))
    assert models.load(tiny, tmp_path).weights == whole.weights
    assert runs == [tiny] and weights.read_bytes() == data
    assert json.loads(sidecar.read_text())["weights_sha256"] == whole.weights


def test_a_model_of_other_code_is_not_taken(tmp_path, tiny, monkeypatch):
    models.load(tiny, tmp_path)
    monkeypatch.setattr(recipes, "revision", lambda: "0" * 12)
    assert not models.is_cached(tiny, tmp_path) and models.revision(tiny) == "0" * 12


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, tiny):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RepalignError, match=rf"toy model {tiny}-step3: the cache .*file cannot be written\n(.*\n)*.*XDG"
    ):
        models.load(tiny, tmp_path / "file")


def test_the_cache_lies_where_the_system_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert models.cache_folder() == Path("/somewhere/repalign/toyworld")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_folder() == Path.home() / ".cache/repalign/toyworld"


def test_images_come_as_an_array_or_as_pictures_and_nothing_else(tmp_path):
    from PIL import Image

    model = models.load("vision-cnn4-untrained", tmp_path)
    images = world.sample(3, 0).images
    found = model.forward(images)
    assert model.layers == tuple(found) == ("conv1", "conv2", "conv3", "dense")
    assert [x.shape[1] for x in found.values()] == [4, 8, 16, 32] and model.modality == "image"
    pictures = model.forward([Image.fromarray(i) for i in images])
    assert all(torch.equal(found[layer], pictures[layer]) for layer in found)
    with pytest.raises(
        RepalignError, match=r"vision-cnn4-untrained: these are no images.*\n.*\n  got: uint8 of .*16, 16, 3"
    ):
        model.forward(images[:, ::2, ::2])
    with pytest.raises(RepalignError, match="got: float64 of shape"):
        model.forward(images / 255)
    with pytest.raises(RepalignError, match="pictures of several sizes"):
        model.forward([images[0], images[1][:16]])


def test_pixels_are_the_pixels(tmp_path):
    model = models.load("vision-pixels", tmp_path)
    images = world.sample(4, 0).images
    (found,) = model.forward(images).values()
    assert np.allclose(found.reshape(4, 3, 32, 32).permute(0, 2, 3, 1) * 127.5 + 127.5, images, atol=1e-3)
    assert model.n_parameters == 0 and 0.4 < model.scores["probe_accuracy"] < 0.7


# --- the roster --------------------------------------------------------------------------------


def test_the_demo_has_six_models_a_side_with_checkpoints_and_controls():
    for side in models.DEMO.values():
        assert len(side["trained"]) == len(side["checkpoints"]) == 6
        for name in side["trained"]:
            recipe = recipes.RECIPES[name]
            assert set(recipe.names[1:]) <= set(side["checkpoints"]) and len(recipe.checkpoints) == 1
            twin = recipes.RECIPES[f"{name.rpartition('-')[0]}-untrained"]
            assert twin.name in side["untrained"]
            assert (twin.family, twin.width, twin.modality) == (recipe.family, recipe.width, recipe.modality)
    assert len(set(models.DEMO_NAMES)) == len(models.DEMO_NAMES) and set(models.DEMO_NAMES) <= set(
        recipes.NAMES
    )
    runs = {recipes.NAMES[n].name for n in models.DEMO_NAMES}
    assert sum(recipes.RECIPES[r].cost for r in runs) < 170  # core-seconds


def test_a_roster_is_trained_once_with_progress_that_only_rises(tmp_path, tiny):
    told = []
    wanted = [f"{tiny}-step3", "language-bag", tiny]
    runs = models.train_roster(wanted, tmp_path, workers=1, progress=lambda *a: told.append(a[:3]) or None)
    assert runs == [tiny, "language-bag"]
    assert {t[0] for t in told} == {"training toy models"}
    assert (
        [t[1] for t in told] == sorted(t[1] for t in told) and told[0][1] == 0 and told[-1][1] == told[-1][2]
    )
    assert models.train_roster(wanted, tmp_path, workers=1) == []


def test_processes_train_what_one_process_trains(tmp_path):
    wanted = ["language-conv8-untrained", "language-svd12-200"]
    told = []
    runs = models.train_roster(wanted, tmp_path / "two", workers=2, progress=lambda *a: told.append(a[:3]))
    assert sorted(runs) == sorted(wanted) and told[-1][1] == told[-1][2]
    for name in wanted:
        assert models.is_cached(name, tmp_path / "two")
        assert models.load(name, tmp_path / "two").weights == models.load(name, tmp_path / "one").weights


def test_an_error_in_a_worker_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.setattr(models.multiprocessing, "get_context", lambda _: FRESH)
    (tmp_path / "file").write_text("")
    with pytest.raises(RepalignError, match="cannot be written"):
        models.train_roster(["language-conv8-untrained", "language-bag"], tmp_path / "file", workers=2)


# --- what it is for ----------------------------------------------------------------------------


def neighbours(x: np.ndarray, k: int) -> np.ndarray:
    found = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(x).kneighbors(x, return_distance=False)
    return np.stack([[j for j in row if j != i][:k] for i, row in enumerate(found)])


def mutual(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    pairs = zip(neighbours(x, k), neighbours(y, k), strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))


def test_a_trained_pair_aligns_above_chance_and_above_its_untrained_twins():
    n, k = 512, 10
    scenes = world.sample(n, seed=11)
    images, tokens = torch.from_numpy(scenes.images), torch.from_numpy(captions.encode(scenes.captions))
    found = {}
    for what in ("untrained", "trained"):
        for name, layer in (("vision-cnn8-supervised", "dense"), ("language-conv24-next", "embedding")):
            recipe = recipes.RECIPES[name]
            steps = {"image": 100, "text": 300}[recipe.modality] if what == "trained" else 0
            recipe = replace(recipe, steps=steps, checkpoints=())
            network = networks.build(recipe)
            network.load_state_dict(training.run(recipe)[-1].weights)
            view = networks.image_vectors if recipe.modality == "image" else networks.caption_vectors
            found[what, recipe.modality] = view(network, images if recipe.modality == "image" else tokens)[
                layer
            ].numpy()
    chance = k / (n - 1)
    spread = math.sqrt(chance * (1 - chance) / (n * k))  # of a mean over n k independent matches
    scores = {
        (v, t): mutual(found[v, "image"], found[t, "text"])
        for v in ("untrained", "trained")
        for t in ("untrained", "trained")
    }
    assert scores["trained", "trained"] > chance + 20 * spread
    assert scores["trained", "trained"] > 1.5 * scores["untrained", "untrained"]
    assert scores["trained", "trained"] > max(scores["trained", "untrained"], scores["untrained", "trained"])
    broken = mutual(found["trained", "image"], np.roll(found["trained", "text"], 1, axis=0))
    assert broken == pytest.approx(chance, abs=5 * spread)
