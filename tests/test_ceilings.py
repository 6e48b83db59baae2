"""Ceilings: halves of the stimuli, and two trainings of one model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from repalign.comparison.ceilings import split_half
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, parse_measure
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation


def model(name: str, *layers: np.ndarray) -> MemoryRepresentation:
    arrays = {f"layer.{i}": torch.from_numpy(np.asarray(x, float)) for i, x in enumerate(layers)}
    record = ModelRecord(f"array:{name}", name, "array")
    return MemoryRepresentation(record, tuple(map(str, range(len(layers[0])))), arrays, "noise", "f")


def noise(seed: int, n: int = 120, count: int = 6, d: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)) for _ in range(count)]


def test_split_half_equals_the_plain_loop():
    x, y = model("x", *noise(1, 60, 2)), model("y", *noise(2, 60, 3))
    measure = parse_measure("CycleKNN(k=4)")
    found = split_half(x, y, measure, n_splits=3, seed=5)
    generator = np.random.Generator(np.random.PCG64(5))
    held_out, chosen, r = [], [], []
    for _ in range(3):
        first = np.sort(generator.permutation(60)[:30])
        halves = first, np.setdiff1d(np.arange(60), first)
        maps = [np.array([[measure(a[h], b[h]) for b in y.arrays.values()] for a in x.arrays.values()]) for h in halves]
        for one, other in (maps, maps[::-1]):
            held_out.append(other.ravel()[one.argmax()])
            chosen.append(one.max())
        r.append(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1])
    assert found.statistic == pytest.approx(np.mean(held_out))
    assert found.selected == pytest.approx(np.mean(chosen))
    assert found.reliability == pytest.approx(2 * np.mean(r) / (1 + np.mean(r)))
    assert (found.n_half, found.n_splits) == (30, 3)


def test_what_the_choice_of_layers_adds_is_told():
    """Unrelated layers: the best of 36 pairs stands out on the half that chose it, and not on the other."""
    found = split_half(model("x", *noise(1)), model("y", *noise(2)), CKA(), n_splits=8)
    assert found.selected > 0.04 and abs(found.statistic) < 0.03 and abs(found.reliability) < 0.8


def test_a_map_with_structure_repeats():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((200, 4))
    sides = [
        [z @ rng.standard_normal((4, 9)) * s + rng.standard_normal((200, 9)) for s in (0, 0.3, 0.8)] for _ in range(2)
    ]
    found = split_half(model("x", *sides[0]), model("y", *sides[1]), CKA(), n_splits=5)
    assert found.reliability > 0.95 and found.statistic == pytest.approx(found.selected, abs=0.03)


def test_groups_stay_together():
    """Copies of one stimulus in both halves would make a constant layer repeat; kept together they do not."""
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(20), 4)
    x, y = (model(name, np.repeat(rng.standard_normal((20, 6)), 4, axis=0)) for name in "xy")
    apart = split_half(x, y, MutualKNN(k=3), n_splits=6, seed=1)
    together = split_half(x, y, MutualKNN(k=3), n_splits=6, seed=1, groups=labels)
    assert together.statistic > apart.statistic  # whole groups of four are each other's three neighbours
    assert together.statistic == pytest.approx(1.0) and math.isnan(together.reliability)


def test_what_cannot_be_split_is_told():
    x, y = model("x", *noise(1, 16, 1)), model("y", *noise(2, 16, 1))
    with pytest.raises(RepalignError, match="half of dataset 'noise': too few stimuli"):
        split_half(x, y, MutualKNN(k=8))
    with pytest.raises(RepalignError, match="a ceiling without a split"):
        split_half(x, y, MutualKNN(k=3), n_splits=0)
    with pytest.raises(RepalignError, match="groups do not fit"):
        split_half(x, y, MutualKNN(k=3), groups=[1, 1, 2])


def test_ceilings_stand_beside_the_result(tmp_path):
    """Two trainings of one model and halves of the stimuli, once computed and then kept."""
    from repalign.comparison import compare

    rng = np.random.default_rng(6)
    z = rng.standard_normal((80, 5))
    one, twin = (
        model(f"seed {i}", z @ rng.standard_normal((5, 12)) + 0.2 * rng.standard_normal((80, 12))) for i in (0, 1)
    )
    other = model("other", z @ rng.standard_normal((5, 9)) + 2 * rng.standard_normal((80, 9)))
    options = {"results": tmp_path, "replicates": [(one, twin)], "split_half": 3}
    result = compare([one], [other], ["CKA()"], **options)
    seed, half = result.run["ceilings"]
    assert seed["kind"] == "seed to seed" and (seed["model_x"], seed["model_y"]) == ("seed 0", "seed 1")
    assert seed["statistic"] == pytest.approx(CKA()(one.load("layer.0"), twin.load("layer.0")))
    assert half["kind"] == "split half" and half["n"] == 40
    assert half["statistic"] == split_half(one, other, CKA(), n_splits=3).statistic
    assert seed["statistic"] > result.best()["statistic"][0] > result.best()["null_mean"][0]
    assert set(result.table["model_y"]) == {"other"}
    kept = {p: p.stat().st_ino for p in tmp_path.rglob("*") if "tiles" in p.parts or "ceilings" in p.parts}
    assert compare([one], [other], ["CKA()"], **options).run["ceilings"] == result.run["ceilings"]
    assert kept == {p: p.stat().st_ino for p in kept}


def test_many_models_are_halved_once_each_and_kept_in_few_files(tmp_path, monkeypatch):
    """A split prepares a model for a half once, whatever partners it has; what is kept is read back, pair by pair."""
    from repalign.comparison import compare

    models, measure = [model(f"m{i}", *noise(i, 40, 2)) for i in range(7)], "MutualKNN(k=4)"
    prepared, prepare = [], MutualKNN.prepare
    monkeypatch.setattr(MutualKNN, "prepare", lambda self, x: (prepared.append(len(x)), prepare(self, x))[1])
    found = compare(models, measures=[measure], results=tmp_path, split_half=2).run["ceilings"]
    assert prepared.count(20) == 7 * 2 * 2 * 2  # models, layers, splits, halves
    names = [(c["model_x"], c["model_y"]) for c in found]
    assert len(set(names)) == len(found) == 21 and len(list((tmp_path / "ceilings").iterdir())) == 1
    for x, y in ((0, 1), (2, 6)):
        alone = split_half(models[x], models[y], measure, n_splits=2)
        assert alone.statistic == found[names.index((f"m{x}", f"m{y}"))]["statistic"]
    (tmp_path / "run.json").unlink()
    prepared.clear()
    assert compare(models, measures=[measure], results=tmp_path, split_half=2).run["ceilings"] == found and not prepared
    with pytest.raises(RepalignError, match="half of dataset 'noise': too few stimuli"):
        compare(models, measures=["MutualKNN(k=20)"], split_half=2)
    assert not prepared


def test_halves_keep_the_groups_of_the_null_together():
    """The labels of a null may be a list, which nothing can be looked up by."""
    from repalign.comparison import compare
    from repalign.null import Permutations
    from repalign.null.groups import Groups

    labels = [str(i // 4) for i in range(80)]
    x, y = model("x", *noise(1, 80, 2)), model("y", *noise(2, 80, 2))
    found = compare([x], [y], ["MutualKNN(k=3)"], Permutations(9, seed=1, groups=Groups(labels)), split_half=2).run["ceilings"]
    alone = split_half(x, y, "MutualKNN(k=3)", n_splits=2, seed=1, groups=labels)
    assert found[0]["statistic"] == alone.statistic != split_half(x, y, "MutualKNN(k=3)", n_splits=2, seed=1).statistic
