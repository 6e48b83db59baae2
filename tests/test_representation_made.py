"""Representations made of others: which rows they have, which pairs are broken, what a mean is of."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from repalign.comparison import compare
from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation, break_pairs, check_same_dataset, mean_of, sample_rows

N = 240


def representation(name: str, seed: int, n: int = N, fingerprint: str = "f"):
    rng = np.random.default_rng(seed)
    arrays = {f"l{i}": torch.from_numpy(rng.standard_normal((n, 4 + i))) for i in range(2)}
    ids = tuple(f"s{i}" for i in range(n))
    return MemoryRepresentation(ModelRecord(f"array:{name}", name, "text"), ids, arrays, "data", fingerprint)


def test_a_sample_has_the_same_rows_of_all_and_is_part_of_every_larger_one():
    x, y = representation("x", 0), representation("y", 1)
    small, large = sample_rows([x, y], 40, seed=3), sample_rows([x, y], 100, seed=3)
    assert small[0].ids == small[1].ids and set(small[0].ids) < set(large[0].ids) and small[0].n == 40
    rows = [int(i[1:]) for i in small[0].ids]
    assert rows == sorted(rows)
    torch.testing.assert_close(small[1].load("l1"), y.load("l1")[rows], rtol=0, atol=0)
    check_same_dataset(small)
    with pytest.raises(RepalignError, match="n differs"):
        check_same_dataset([small[0], large[1]])
    assert small[0].dataset_fingerprint != x.dataset_fingerprint and "sample of 40" in small[0].dataset_name
    assert sample_rows([x], N)[0] is x
    assert sample_rows([x, y], 40, seed=4)[0].ids != small[0].ids


def test_samples_are_those_of_the_dataset():
    from repalign.dataset import Dataset

    dataset = Dataset.from_arrays({"a": np.arange(N)[:, None]}, [f"s{i}" for i in range(N)])
    assert sample_rows([representation("x", 0)], 30, seed=5)[0].ids == dataset.sample(30, seed=5).ids


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_exactly_a_share_of_the_pairs_is_broken(share):
    x = representation("x", 0)
    (broken,) = break_pairs([x], share, seed=1)
    moved = (broken.load("l0") != x.load("l0")).any(dim=1).numpy()
    assert moved.sum() == round(share * N) and broken.ids == x.ids
    assert sorted(map(tuple, broken.load("l0").tolist())) == sorted(map(tuple, x.load("l0").tolist()))
    check_same_dataset([x, broken])


def test_what_is_broken_stays_broken_at_larger_shares_and_in_all_models():
    x, y = representation("x", 0), representation("y", 1)
    before = np.zeros(N, bool)
    for share in (0.2, 0.4, 0.8):
        a, b = break_pairs([x, y], share, seed=2)
        moved = (a.load("l0") != x.load("l0")).any(dim=1).numpy()
        assert (moved == (b.load("l0") != y.load("l0")).any(dim=1).numpy()).all()
        assert moved[before].all()
        before = moved


def test_few_pairs_and_wrong_shares():
    x = representation("x", 0)
    assert break_pairs([x], 0)[0] is x and break_pairs([x], 1 / N)[0] is x  # one alone cannot change places
    for share in (-0.1, 1.1):
        with pytest.raises(RepalignError, match="share of broken pairs is out of range"):
            break_pairs([x], share)
    with pytest.raises(RepalignError, match=r"cannot draw 500 rows(.|\n)*1 to 240"):
        sample_rows([x], 500)
    assert sample_rows([], 5) == [] and break_pairs([], 0.5) == []


def test_a_mean_is_in_double_precision_and_of_one_model():
    parts = [representation("x", seed) for seed in range(3)]
    mean = mean_of(parts)
    np.testing.assert_allclose(mean.load("l1"), np.mean([p.load("l1").numpy() for p in parts], axis=0), rtol=0, atol=1e-15)
    assert mean.facts["mean_of"] == 3 and mean.layers == ("l0", "l1") and mean_of(parts[:1]) is parts[0]
    half = [MemoryRepresentation(p.record, p.ids, {k: v.half() for k, v in p.arrays.items()}, "data", "f") for p in parts]
    assert mean_of(half).load("l0").dtype == torch.float32
    with pytest.raises(RepalignError, match="a mean is over representations of one model"):
        mean_of([parts[0], representation("y", 1)])
    with pytest.raises(RepalignError, match="dataset fingerprint differs"):
        mean_of([parts[0], representation("x", 1, fingerprint="g")])


def test_keys_tell_them_apart_and_they_travel():
    x = representation("x", 0)
    made = [x, *break_pairs([x], 0.5), *break_pairs([x], 0.5, seed=1), *sample_rows([x], 50), mean_of([x, x])]
    assert len({r.key for r in made}) == len(made)
    again = pickle.loads(pickle.dumps(made[1]))
    assert again.key == made[1].key and torch.equal(again.load("l0"), made[1].load("l0"))


def test_alignment_falls_with_the_share_of_broken_pairs_to_chance():
    rng = np.random.default_rng(0)
    x = representation("x", 0)
    arrays = {n: v + 0.1 * torch.from_numpy(rng.standard_normal(v.shape)) for n, v in x.arrays.items()}
    y = MemoryRepresentation(ModelRecord("array:y", "y", "image"), x.ids, arrays, "data", "f")
    scores = []
    for share in (0.0, 0.5, 1.0):
        found = compare(break_pairs([x], share), [y], ["MutualKNN(k=5)"])
        scores.append(found.best().iloc[0])
        assert ("broken" in found.table["dataset"].iloc[0]) == (share > 0)
    assert scores[0].statistic > scores[1].statistic > scores[2].statistic
    assert scores[2].pvalue > 0.01 > scores[1].pvalue
