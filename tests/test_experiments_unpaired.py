"""Maps without pairs: found where the truth is known, not found where clusters of unlike models match, and the command."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments.adapters import Adapter
from repalign.experiments.unpaired import match, unpaired

SHARED, D = 100, 8


def world(seed: int, clusters: int, spread: float, related: bool = True, n: int = 700) -> tuple[dict, dict]:
    """Clusters in 8 dimensions; the new model has other rows of them, turned, or clusters of its own; 100 ids are on both sides."""
    rng = np.random.default_rng(seed)
    centres, own = rng.standard_normal((2, clusters, D))
    sizes = rng.dirichlet(np.full(clusters, 5.0))
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]

    def rows(of: np.ndarray, count: int) -> np.ndarray:
        return of[rng.choice(clusters, count, p=sizes)] + spread * rng.standard_normal((count, D))

    shared = rows(centres, SHARED)
    old = np.concatenate([rows(centres, n), shared])
    new = np.concatenate([rows(centres, n), shared]) @ turn if related else rows(own, n + SHARED)
    ids = [[*(f"{side}{i}" for i in range(n)), *(f"both{i}" for i in range(SHARED))] for side in ("old", "new")]
    return {"x": old, "ids": ids[0]}, {"x": new, "ids": ids[1]}


def test_a_matching_is_that_of_scipy_or_better():
    from scipy.optimize import quadratic_assignment

    rng = np.random.default_rng(0)
    a, b = (x + x.transpose(0, 2, 1) for x in rng.standard_normal((2, 5, 9, 9)))
    for one, other in zip(a, b, strict=True):
        p, fit = match(one, other, 40, rng)
        assert fit == pytest.approx((one * other[np.ix_(p, p)]).sum() / np.linalg.norm(one) / np.linalg.norm(other))
        options = {"maximize": True, "rng": np.random.default_rng(1)}
        theirs = quadratic_assignment(one, other, method="2opt", options=options).fun
        assert fit * np.linalg.norm(one) * np.linalg.norm(other) >= theirs - 1e-9


def test_a_turned_model_is_found_and_its_map_kept(tmp_path):
    old, new = world(0, 12, 0.4, n=2000)
    found = unpaired(old, new, restarts=10, adapter=tmp_path / "a.safetensors", model="new")
    assert found.verdict == "found" and min(found.agreement, found.inside) > 0.95 and found.right > 0.9
    assert found.text.startswith("Found. Experimental") and "Check it on pairs before you use it" in found.text
    mapped = Adapter.load(tmp_path / "a.safetensors").transform(new["x"][-SHARED:], "new")
    cosine = (mapped @ (old["x"][-SHARED:] / np.linalg.norm(old["x"][-SHARED:], axis=1, keepdims=True)).T).argmax(1)
    assert (cosine == np.arange(SHARED)).mean() > 0.9


def test_clusters_that_two_maps_match_alike_are_no_proof(tmp_path):
    """Six tight clusters of unlike models: both maps may match them in one wrong way, and disagree within them."""
    for seed in range(2):
        found = unpaired(*world(seed, 6, 0.1, related=False), restarts=4, adapter=tmp_path / "a.safetensors")
        assert found.verdict == "not found" and found.inside < 0.6 and found.right < 0.1
        assert found.adapter is None and not (tmp_path / "a.safetensors").exists()
    assert "That does not say that the models differ" in found.text


def test_the_command_says_found_or_not_found_and_no_more(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("old", "new"):  # no clusters at all
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((500, D)))
    asked = ["unpaired", str(tmp_path / "old.npy"), str(tmp_path / "new.npy"), "--restarts", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Not found. Experimental" in said and not any(word in said for word in ("Verdict", "re-embed", "nearest to their own"))
    assert (tmp_path / "out/unpaired.csv").is_file() and list((tmp_path / "out/figures").glob("*.png"))


def test_too_little_is_refused():
    with pytest.raises(RepalignError, match="too little to go by without pairs(.|\\n)*399 old and 500 new vectors, 30 restarts"):
        unpaired(np.ones((399, 3)), np.ones((500, 3)))
