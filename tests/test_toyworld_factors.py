"""Runs that vary one thing at a time: their names, seeds and facts, and that each change does what it says and no more."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from repalign.dataset import Dataset
from repalign.models import ModelRecord
from repalign.sources import extract
from repalign.store import FeatureStore
from repalign.toyworld import captions, models, networks, recipes, training, world
from repalign.toyworld.recipes import LANGUAGE, VISION, Recipe, name_of

RUNS = {r.name: r for r in recipes.RUNS}
# What 6 steps of runs that were there before these factors give: last loss, and the sum of the sizes of all weights.
BEFORE = {
    "vision-cnn3-supervised": (1.7800970077514648, 234.25119917944357),
    "vision-cnn4-temporal": (4.851125717163086, 361.40739357724124),
    "vision-cnn8-augmentation": (4.8518877029418945, 1008.5037521726209),
    "vision-cnn8-autoencoder": (0.11086057871580124, 1008.607878555923),
    "language-conv8-next": (4.361437797546387, 218.73481389592052),
    "language-transformer16-next": (4.151379585266113, 851.4511323747029),
    "language-transformer48-masked": (4.023687839508057, 3528.315196451297),
    "language-gru32-next": (4.577271938323975, 848.2662486138433),
    "language-cbow32-context": (4.206230640411377, 285.2376446531125),
}


@pytest.fixture
def unscored(monkeypatch):
    """Training without the probe, which takes longer than a few steps."""
    monkeypatch.setattr(training, "competence", lambda *_: {})


def few_steps(name: str, steps: int = 6, **changes) -> Recipe:
    return replace(recipes.RECIPES[name], steps=steps, checkpoints=(), **changes)


def weights_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return training.run(recipe)[-1].weights


# --- names and rows ------------------------------------------------------------------------------


def test_names_say_what_differs_and_nothing_else():
    for recipe in recipes.RUNS:
        seed = int(m[1]) if (m := re.search(r"-seed(\d+)$", recipe.name)) else 0
        changes = {"tasks": recipe.tasks, "detail": recipe.detail, "decay": recipe.decay, "noise": recipe.noise}
        told = name_of(recipe.modality, recipe.family, recipe.width, recipe.objective, seed=seed, **changes)
        assert recipe.name == told and recipes.RECIPES[recipe.name] is recipe
    assert len(RUNS) == len(recipes.RUNS) and set(RUNS) < set(recipes.RECIPES)
    assert name_of(VISION, "cnn", 8, "supervised", tasks=("hue", "side")) == "vision-cnn8-supervised-hue+side"
    assert name_of(LANGUAGE, "conv", 24, "next", detail=3, seed=2) == "language-conv24-next-detail3-seed2"
    assert name_of(LANGUAGE, "conv", 24, "next", decay=0.0, noise=0.3) == "language-conv24-next-decay0-noise0.3"


def test_seeds_of_all_runs_differ():
    seeds = {recipes.seed(r, part) for r in recipes.RECIPES for part in ("weights", "training")}
    assert len(seeds) == 2 * len(recipes.RECIPES)


def test_every_variant_has_its_base_and_differs_from_it_in_one_thing():
    for recipe in recipes.RUNS:
        base = recipes.RECIPES[name_of(recipe.modality, recipe.family, recipe.width, recipe.objective)]
        assert (recipe.steps, recipe.rate, recipe.modality) == (base.steps, base.rate, base.modality)
        changed = [f for f in ("tasks", "detail", "decay", "noise") if getattr(recipe, f) != getattr(base, f)]
        assert len(changed) <= 1


def test_every_attribute_is_a_task_equally_often():
    for count in recipes.TASKS:
        chosen = [r.tasks for r in recipes.RUNS if len(r.tasks) == count]
        assert len(chosen) == 5 and set(Counter(k for tasks in chosen for k in tasks).values()) == {count}
        assert all(set(tasks) <= set(captions.KINDS) for tasks in chosen)


def test_checkpoints_are_of_one_run_and_its_last_step_is_not_among_them():
    several = [r for r in recipes.RUNS if r.checkpoints]
    assert {r.modality for r in several} == {VISION, LANGUAGE}
    for recipe in several:
        assert len(recipe.names) == 5 and recipe.checkpoints == tuple(sorted(recipe.checkpoints))
        assert recipe.checkpoints[-1] < recipe.steps
        found = [recipes.find(n) for n in recipe.names]
        assert [step for _, step in found] == [recipe.steps, *recipe.checkpoints]
        assert {one.name for one, _ in found} == {recipe.name}


def test_factors_are_facts_of_the_recipe():
    assert recipes.RECIPES["vision-cnn8-supervised"].factors(400) == {
        "run": "vision-cnn8-supervised", "width": 8.0, "training_steps": 400.0, "weight_decay": 0.01, "weight_noise": 0.0,
        "tasks": 5.0,
    }  # fmt: skip
    found = RUNS["vision-cnn8-supervised-hue+height"].factors(50)
    assert (found["tasks"], found["training_steps"]) == (2.0, 50.0)
    assert RUNS["vision-cnn8-supervised-noise0.3"].factors(400)["weight_noise"] == 0.3
    assert RUNS["language-conv24-next-decay0"].factors(1000)["weight_decay"] == 0.0
    assert RUNS["language-conv24-next-detail3"].factors(1000)["caption_detail"] == 3.0
    assert recipes.RECIPES["language-conv24-next"].factors(1000)["caption_detail"] == 8.5
    assert "tasks" not in RUNS["vision-cnn8-temporal"].factors(400)
    assert recipes.RECIPES["vision-cnn8-untrained"].factors(0) == {
        "run": "vision-cnn8-untrained", "width": 8.0, "training_steps": 0.0
    }  # fmt: skip
    assert recipes.RECIPES["vision-pixels"].factors(0) == {"run": "vision-pixels"}


# --- what was there is as it was -------------------------------------------------------------------


@pytest.mark.parametrize("name", list(BEFORE))
def test_a_run_that_was_there_before_gives_what_it_gave(name, unscored):
    last = training.run(few_steps(name))[-1]
    total = sum(float(w.double().abs().sum()) for w in last.weights.values())
    assert (last.loss, total) == pytest.approx(BEFORE[name], rel=1e-5)  # processors round differently


def test_a_checkpoint_changes_nothing_after_it(monkeypatch):
    monkeypatch.setattr(training, "competence", lambda *_: {"score": torch.rand(1).item()})  # scoring that draws
    recipe = few_steps("vision-cnn8-augmentation")  # whose views are drawn
    whole, halves = training.run(recipe), training.run(replace(recipe, checkpoints=(2, 3)))
    assert [t.step for t in halves] == [2, 3, 6]
    for name, w in whole[-1].weights.items():
        assert torch.equal(w, halves[-1].weights[name])


# --- each change does what it says ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["vision-cnn8-supervised-shape", "vision-cnn8-supervised-hue+height", "vision-cnn8-supervised-decay3",
     "vision-cnn8-supervised-noise0.6", "vision-cnn8-supervised-seed1", "vision-cnn8-temporal-noise0.3",
     "language-conv24-next-detail1", "language-conv24-next-decay1", "language-conv24-next-noise0.6",
     "language-transformer16-masked", "language-gru16-next", "language-cbow8-context"],
)  # fmt: skip
def test_a_few_steps_of_each_kind_learn_and_are_no_other_run(name, unscored):
    recipe = few_steps(name, 30)
    trained = training.run(recipe)[-1]
    assert np.isfinite(trained.loss) and all(torch.isfinite(w).all() for w in trained.weights.values())
    start = weights_of(replace(recipe, steps=0))
    moved = [k for k, w in trained.weights.items() if not torch.equal(w, start[k])]
    assert len(moved) > len(start) / 2
    base = name_of(recipe.modality, recipe.family, recipe.width, recipe.objective)
    if base != name:
        other = weights_of(few_steps(base, 0))
        assert not all(torch.equal(w, other[k]) for k, w in start.items())


def test_only_the_tasks_are_asked_for():
    network = networks.ConvNet(4)
    arrays = [torch.from_numpy(a) for a in training.Supervised(network).make(64, 5)]
    images, values, shapes = arrays

    def loss(tasks: tuple[str, ...], values=values, shapes=shapes) -> tuple[float, training.Supervised]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            objective = training.Supervised(network, tasks)
        out = objective.loss(images, values, shapes)
        out.backward()
        return out.item(), objective

    every = loss(captions.KINDS)[0]
    assert sum(loss((kind,))[0] for kind in captions.KINDS) == pytest.approx(every, rel=1e-6)  # each with its own weight
    for kind, columns in training.VALUES.items():
        others = values.clone()
        others[:, [c for c in range(10) if c not in columns]] += 1
        assert loss((kind,), others, (shapes + 1) % 8)[0] == loss((kind,))[0]
        assert loss((kind,), values + 1)[0] != loss((kind,))[0]
        head = loss((kind,))[1].values.weight.grad
        assert [bool((head[c] != 0).any()) for c in range(10)] == [c in columns for c in range(10)]
    assert loss(("shape",), values + 1)[0] == loss(("shape",))[0] != loss(("shape",), values, (shapes + 1) % 8)[0]


def test_values_are_the_attributes_they_stand_for():
    a = world.content(50, 3)[1]
    values = training.Supervised(networks.ConvNet(3)).make(50, 3)[1]
    expected = {"side": 3.4 * (a.x - 0.5), "height": 3.4 * (a.y - 0.5), "size": 3.4 * (a.size - 0.5)}
    expected["hue"] = np.concatenate([np.cos(a.hue), np.sin(a.hue)], axis=1)
    for kind, columns in training.VALUES.items():
        np.testing.assert_allclose(values[:, columns], expected[kind], atol=1e-6)


@pytest.mark.parametrize("detail", recipes.DETAILS)
def test_training_captions_name_as_many_attributes_as_asked(detail):
    tokens = training.training_captions(400, 9, detail)
    kinds = {names_[i]: kind for kind, classes in captions.WORDS.items() for names_ in classes for i in (0, 1)}
    named = [[kinds[w] for w in text.split() if w in kinds] for text in captions.decode(tokens)]
    assert {len(k) for k in named} == {detail}
    share = Counter(k for one in named for k in one)
    for kind in captions.KINDS:  # each attribute equally often, so detail is all that differs
        assert share[kind] / (400 * detail) == pytest.approx(0.2, abs=0.06 / detail**0.5 if detail < 10 else 1e-12)


def test_the_usual_mixture_names_as_many_attributes_as_it_is_said_to():
    named = captions.some_named(20_000, np.random.default_rng(0))
    assert named.sum((1, 2)).mean() == pytest.approx(captions.MIXED_DETAIL, abs=0.05)


def test_decay_makes_weights_smaller(unscored):
    sizes = []
    for decay in (0.0, 30.0):
        weights = weights_of(few_steps("language-conv24-next", 40, decay=decay))
        sizes.append(float(weights["convs.0.weight"].norm()))
    assert sizes[1] < 0.7 * sizes[0]


def test_noise_shakes_the_weights_only_while_gradients_are_taken():
    network = networks.ConvNet(4)
    before = {k: w.clone() for k, w in network.state_dict().items()}
    torch.manual_seed(0)
    with training._shaken(network, 0.5):
        for k, w in network.state_dict().items():
            shift = (w - before[k]).flatten()
            rms = float(before[k].square().mean().sqrt())
            if len(shift) > 500:
                assert float(shift.std()) == pytest.approx(0.5 * rms, rel=0.15)
            assert float(shift.abs().max()) > 0
    assert all(torch.equal(w, before[k]) for k, w in network.state_dict().items())
    state = torch.get_rng_state()
    with training._shaken(network, 0.0):
        assert all(torch.equal(w, before[k]) for k, w in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(KeyError), training._shaken(network, 0.5):
        raise KeyError
    assert all(torch.equal(w, before[k]) for k, w in network.state_dict().items())


# --- in the record and the store --------------------------------------------------------------------


def test_a_record_carries_the_factors_and_a_store_without_them_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = Dataset.toy(n=5, seed=3)
    got = extract(data, ["toy:vision-cnn3-untrained"], tmp_path / "store")[0]
    assert got.record.factors == models.load("vision-cnn3-untrained").factors
    (path,) = (tmp_path / "store").rglob("manifest.json")
    manifest = json.loads(path.read_text("utf-8"))
    assert manifest["record"].pop("factors")["training_steps"] == 0
    assert manifest.pop("format") == 2 and manifest.pop("repalign-seal") and manifest.pop("repalign-seal-rule")
    path.write_text(json.dumps({"format": 1, **manifest}), "utf-8")  # as it was written before there were factors and seals
    (again,) = FeatureStore(tmp_path / "store").representations()
    assert again.record.factors == {} and again.record.name == got.record.name
    assert torch.equal(again.load(got.layers[0]), got.load(got.layers[0]))


def test_a_record_without_factors_is_written_as_before():
    record = ModelRecord("toy:a", "a", "text", scores={"bits_per_word": 2.0})
    assert "factors" not in record.to_dict() and ModelRecord(**record.to_dict()) == record
    made = replace(record, factors={"width": 8.0, "run": "a"})
    assert ModelRecord(**json.loads(json.dumps(made.to_dict()))) == made
