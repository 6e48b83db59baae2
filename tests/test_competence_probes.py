"""Probes against scikit-learn called directly, on the same rows; the rule of solved tasks."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.preprocessing import StandardScaler

from repalign.competence import (
    FewShotProbe,
    KNNProbe,
    LinearProbe,
    Split,
    best_layer,
    probe,
    read_labels,
    solved,
    vtab_tasks,
    with_score,
)
from repalign.errors import RepalignError
from repalign.models import COMPETENCES, ModelRecord
from repalign.representation import MemoryRepresentation

N, CLASSES = 240, 4


@pytest.fixture(scope="module")
def data() -> tuple[dict[str, np.ndarray], list[str]]:
    """Two layers, the second clearer; features of unlike spread; classes of unlike size."""
    rng = np.random.default_rng(0)
    y = rng.choice(CLASSES, N, p=[0.4, 0.3, 0.2, 0.1])
    centres = rng.standard_normal((CLASSES, 8))
    scale = 10.0 ** rng.uniform(-2, 2, 8)
    layers = {f"l{i}": (s * centres[y] + rng.standard_normal((N, 8))) * scale for i, s in enumerate((0.4, 1.2))}
    return layers, [f"class {c}" for c in y]


def direct(x, y, train, test, c, standardize=True, max_iter=1000):
    if standardize:
        scaler = StandardScaler().fit(x[train])
        x = scaler.transform(x)
    fitted = LogisticRegression(C=c, max_iter=max_iter).fit(x[train], y[train])
    return accuracy_score(y[test], fitted.predict(x[test]))


def rows(y, seed=0, test=0.2):
    train, out = train_test_split(np.arange(len(y)), test_size=test, stratify=y, random_state=seed)
    return np.sort(train), np.sort(out)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_fixed_penalty(data, seed, standardize):
    layers, labels = data
    y = np.array(labels)
    train, test = rows(y, seed)
    if not standardize:
        layers = {n: StandardScaler().fit_transform(x) * 0.7 for n, x in layers.items()}
    found = probe(layers, labels, LinearProbe(grid=0.3, standardize=standardize), split=Split(seed=seed))
    assert [r.layer for r in found] == ["l0", "l1"]
    for r in found:
        assert r.accuracy == direct(layers[r.layer], y, train, test, 0.3, standardize)
        assert (r.n_train, r.n_test, r.n_classes, r.seed) == (192, 48, 4, seed)
        assert r.details["C"] == 0.3 and r.details["converged"]
        assert np.isnan(r.validation) and r.chance == np.mean(y[test] == pd.Series(y[train]).mode()[0])
    json.dumps(found[0].to_dict())


@pytest.mark.parametrize("selection", ["cv", "validation"])
def test_the_penalty_is_chosen_within_the_training_rows(data, selection):
    layers, labels = data
    y, grid = np.array(labels), (0.001, 0.03, 1.0, 30.0)
    train, test = rows(y)
    if selection == "cv":
        folds = list(StratifiedKFold(3, shuffle=True, random_state=5).split(train, y[train]))
    else:
        parts = train_test_split(np.arange(len(train)), test_size=0.25, stratify=y[train], random_state=5)
        folds = [(np.sort(parts[0]), np.sort(parts[1]))]
    kind = LinearProbe(grid=grid, selection=selection, folds=3, validation=0.25)
    for r in probe(layers, labels, kind, seed=5):
        x = layers[r.layer]
        inner = [np.mean([direct(x, y, train[a], train[b], c) for a, b in folds]) for c in grid]
        best = grid[int(np.argmax(inner))]
        assert r.details["C"] == best and r.validation == pytest.approx(max(inner), abs=1e-12)
        assert r.accuracy == direct(x, y, train, test, best)
        assert r.details["C_at_the_edge_of_the_grid"] == (best in (0.001, 30.0))


def test_few_shot(data):
    layers, labels = data
    y = np.array(labels)
    train, test = rows(y)
    kind = FewShotProbe(m=3, draws=4, C=2.0)
    r = probe(layers, labels, kind, layers=["l1"], seed=7)[0]
    found = []
    for draw in range(4):
        rng = np.random.default_rng([7, draw])
        chosen = []
        for c in sorted(set(labels)):
            of_class = [i for i in train if y[i] == c]
            chosen += [of_class[j] for j in rng.choice(len(of_class), 3, replace=False)]
        found.append(direct(layers["l1"], y, np.array(chosen), test, 2.0))
    assert r.details["draws"] == found and len(set(found)) > 1
    assert r.accuracy == pytest.approx(np.mean(found)) and r.spread == pytest.approx(np.std(found, ddof=1))


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_nearest_neighbours(data, temperature):
    """Votes counted in a plain loop, ties to the class that comes first."""
    layers, labels = data
    y = np.array(labels)
    train, test = rows(y)
    for r in probe(layers, labels, KNNProbe(k=7, temperature=temperature)):
        x = layers[r.layer]
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        right = 0
        for i in test:
            similarity = unit[train] @ unit[i]
            votes = dict.fromkeys(sorted(set(labels)), 0.0)
            for j in np.argsort(-similarity)[:7]:
                votes[y[train[j]]] += 1.0 if temperature is None else np.exp(similarity[j] / temperature)
            right += max(votes, key=votes.get) == y[i]
        assert r.accuracy == right / len(test)
        assert 0 < r.validation <= 1


def test_the_best_layer_is_chosen_without_held_out_rows(data):
    layers, labels = data
    found = probe({**layers, "l2": layers["l0"]}, labels, LinearProbe(grid=(0.1, 1.0)))
    best = best_layer(found)
    assert best.layer == "l1" and best.validation == max(r.validation for r in found)
    record = with_score(ModelRecord("array:x", "x", "image"), best)
    assert record.scores == {"probe_accuracy": best.accuracy}
    assert with_score(record, best, "cifar100").scores["cifar100"] == best.accuracy
    with pytest.raises(RepalignError, match="no accuracy on validation stimuli"):
        best_layer(probe(layers, labels, LinearProbe(grid=1.0)))
    assert {kind.score for kind in (LinearProbe, FewShotProbe, KNNProbe)} <= set(COMPETENCES)


def test_half_precision_given_rows_and_representations(data, tmp_path):
    layers, labels = data
    ids = tuple(f"s{i:03d}" for i in range(N))
    x = torch.from_numpy(StandardScaler().fit_transform(layers["l1"])).half()
    r = MemoryRepresentation(ModelRecord("array:m", "m", "image"), ids, {"l1": x})
    table = pd.DataFrame({"id": ids, "label": labels}).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "labels.csv", index=False)
    table.to_parquet(tmp_path / "labels.parquet")
    read = [read_labels(tmp_path / f"labels.{s}", ids) for s in ("csv", "parquet")]
    assert read == [labels, labels]
    split = (range(100), range(100, 240))
    found = probe(r, read[0], LinearProbe(grid=1.0), split=split)[0]
    y = np.array(labels)
    assert found.accuracy == direct(x.double().numpy(), y, np.arange(100), np.arange(100, 240), 1.0)
    assert (found.model, found.n_train, found.n_test, found.seed) == ("m", 100, 140, None)
    with pytest.raises(RepalignError, match="1 ids without one, the first is 'x'"):
        read_labels(tmp_path / "labels.csv", [*ids, "x"])
    with pytest.raises(RepalignError, match="did you mean 'label'"):
        read_labels(tmp_path / "labels.csv", ids, label="labels")


def test_sides_are_cut_by_class(data):
    y = np.array(data[1])
    train, test = Split(max_train=100, max_test=30).rows(y)
    assert (len(train), len(test)) == (100, 30) and not set(train) & set(test)
    share = [np.mean(y[side] == "class 0") for side in (train, test)]
    assert share == pytest.approx([np.mean(y == "class 0")] * 2, abs=0.02)


def test_a_fit_that_stops_early_says_so(data):
    layers, labels = data
    notes = []
    kind = LinearProbe(grid=1e4, max_iter=2)
    found = probe(layers, labels, kind, progress=lambda *a: notes.append(a[3] if len(a) > 3 else None))
    assert not found[0].details["converged"] and "l1: a fit has not converged" in notes[-1]


def test_what_is_refused(data):
    layers, labels = data
    for make, message in (
        (lambda: probe(layers, labels[:-1]), "labels do not fit"),
        (lambda: probe(layers, ["a"] * N), "cannot be split by class"),
        (lambda: probe(layers, labels, layers=["l7"]), "no layer 'l7'"),
        (lambda: probe(layers, labels, FewShotProbe(m=60)), "class 'class 3' has too few training stimuli"),
        (lambda: probe(layers, labels, LinearProbe(folds=50)), "too few training stimuli to choose C"),
        (lambda: probe(layers, labels, KNNProbe(k=500)), "k is more than there are training stimuli"),
        (lambda: probe(layers, labels, split=([0, 1], [1, 2])), "these rows are no split"),
        (lambda: probe({"l": np.full((N, 2), np.nan)}, labels), "row 0 is not finite"),
        (lambda: LinearProbe(selection="validate"), "did you mean 'validation'"),
        (lambda: LinearProbe(grid=()), "grid of C is out of range"),
    ):
        with pytest.raises(RepalignError, match=message):
            make()


def test_real_features(shared):
    """Whether a caption names a dog is read off pooled features far better than off the first convolution."""
    from safetensors.torch import load_file

    bed = shared / "bed"
    found = load_file(bed / "features" / "mobilenet_v1_075.safetensors")
    first, last = (next(x for n, x in found.items() if n.startswith(p)) for p in ("L0", "L5"))
    lines = (bed / "flickr8k_dev" / "pairs.jsonl").read_text().splitlines()
    dogs = ["dog" in json.loads(line)["captions"][0].lower() for line in lines]
    r = probe({"first": first, "last": last}, dogs, LinearProbe(grid=(0.001, 0.1)))
    y = np.array([str(d) for d in dogs])
    train, test = rows(y)
    for record, x in zip(r, (first, last), strict=True):
        assert record.accuracy == direct(x.double().numpy(), y, train, test, record.details["C"])
    assert r[1].accuracy > 0.9 > r[0].accuracy
    assert best_layer(r).layer == "last"


def test_solved_tasks():
    tasks = vtab_tasks()
    assert len(tasks) == len({t.name for t in tasks}) == 19
    assert [sum(t.group == g for t in tasks) for g in ("natural", "specialized", "structured")] == [7, 4, 8]
    accuracies = {"a": {"dtd": 0.5, "svhn": 0.8}, "b": {"dtd": 0.4, "svhn": 0.63}, "c": {"dtd": 0.399, "svhn": 0.64}}
    assert solved(accuracies) == {"a": ("dtd", "svhn"), "b": ("dtd",), "c": ("svhn",)}
    assert solved(accuracies, share=1) == {"a": ("dtd", "svhn"), "b": (), "c": ()}
    with pytest.raises(RepalignError, match="model b: accuracy of task svhn(.|\n)*got: none"):
        solved({"a": {"svhn": 0.5}, "b": {}})
    with pytest.raises(RepalignError, match="got: 63"):
        solved({"a": {"svhn": 63.0}})
