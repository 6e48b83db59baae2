"""The speed benchmarks at tiny sizes: their contestants compute the same things, and their figures are drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from repalign.measures import CKA, MutualKNN
from repalign.null import Cyclic

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LAYERS, N, D = 2, 24, 8


@pytest.fixture(scope="module")
def scripts():
    """The benchmark scripts, imported from their folder as they import one another."""
    names = ("contestants", "layers", "curves", "outside", "measures", "peers", "track", "embeddings", "start")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: __import__(name) for name in names}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(scripts):
    features = scripts["contestants"].features
    return features(LAYERS, N, D, 1), features(LAYERS, N, D, 2)


def test_plain_scores_are_those_of_the_measures(scripts, data):
    plain = scripts["contestants"]
    x, y = data[0][0], data[1][1]
    assert plain.plain_debiased_cka(x, y) == pytest.approx(CKA()(x, y), abs=1e-5)
    assert plain.plain_debiased_cka(x, y, as_written=False) == pytest.approx(CKA()(x, y), abs=1e-5)
    assert plain.plain_cka(x, y) == pytest.approx(CKA(estimator="biased")(x, y), abs=1e-5)
    assert plain.plain_mutual_knn(x, y, k=5) == pytest.approx(MutualKNN(k=5)(x, y), abs=1e-6)


def test_the_limit_holds_gram_matrices_and_lists(scripts, data):
    x = data[0][0]
    plain = scripts["contestants"]
    gram = plain.centred_gram(x).numpy()
    assert np.abs(gram.sum(axis=0)).max() < 1e-3
    assert np.diag(gram) == pytest.approx(((x - x.mean(0)) ** 2).sum(1).numpy(), rel=1e-4)
    lists = plain.neighbour_lists(x, k=3)
    unit = (x / x.norm(dim=1, keepdim=True)).double().numpy()
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    assert [set(row) for row in lists.tolist()] == [
        set(row) for row in np.argsort(-similarities, axis=1)[:, :3].tolist()
    ]


@pytest.mark.parametrize("s", [1, 5, N - 1])
def test_a_draw_is_the_score_of_relabelled_rows(scripts, data, s):
    """Draw s of the cyclic null, from the features alone."""
    null, (x, y) = Cyclic(3), data
    p = scripts["contestants"].shifted(null, N, s)
    assert sorted(p.tolist()) == list(range(N))
    found = scripts["layers"].ours(CKA(), x, y, 1, seed=3)
    expected = [[CKA()(f, g[p]) for g in y] for f in x]
    assert found.draws[s - 1] == pytest.approx(np.array(expected), abs=1e-5)


def test_engines_make_the_same_draws(scripts, data):
    layers = scripts["layers"]
    for contest in layers.CONTESTS:
        found = layers.ours(contest.measure, *data, 1)
        assert found.observed.shape == (LAYERS, LAYERS)
        assert len(found.draws) == N - 1
        for name in contest.engines:
            theirs = layers.direct(contest, name, found, N - 1, 1)
            assert theirs.scores == pytest.approx(found.draws, abs=1e-6), name
            assert theirs.seconds(10) == pytest.approx(theirs.setup + 10 * theirs.per_draw)


def test_cells_are_spread_over_the_table(scripts):
    spread = scripts["contestants"].spread
    assert spread(2, 3, 100) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert spread(4, 4, 4) == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_the_report_prints_every_contestant(scripts, capsys):
    scripts["layers"].report(LAYERS, N, D, 2, 2, threads=torch.get_num_threads())
    said = capsys.readouterr().out
    for words in (
        "Gram products alone",
        "with 23 exact null draws",
        "direct engine, lists",
        "plain loop",
        "both measures",
        "repalign.pair on arrays",
        "null='cyclic'",
    ):
        assert words in said
    assert said.count("calibrated-similarity") >= 2


def test_what_tracking_costs_is_told_beside_its_limit(scripts, capsys):
    scripts["track"].report(48, D, LAYERS, 1, ())
    said = capsys.readouterr().out
    for words in ("X X^T of all layers", "a score without RankMe", "a loop of pair", "the loss of CKA on 48 rows"):
        assert words in said
    assert scripts["track"].training("tiny", 32, 1).keys() == {"step", "forward", "score"}
    x, y = torch.randn(2, 30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert scripts["track"].as_written(x, y).item() == pytest.approx(1 - CKA()(x, y), abs=1e-12)


def test_a_missing_package_is_said(scripts, data, capsys, monkeypatch):
    layers = scripts["layers"]
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)
    contest = layers.CONTESTS[0]
    layers.against_package(contest, layers.ours(contest.measure, *data, 1), *data)
    assert (
        "calibrated-similarity is not installed (pip install calibrated-similarity): left out"
        in capsys.readouterr().out
    )


def test_curves_are_drawn(scripts, tmp_path):
    curves = scripts["curves"]
    table = pd.DataFrame(curves.curves((16, N), (1, 2), (LAYERS, N, D)))
    assert table.groupby("curve").size().to_dict() == {"layers": 4, "n": 4}
    assert (table["draws"] == table["n"] - 1).all()
    assert (table[["limit", "repalign", "plain loop"]] > 0).all(axis=None)
    for axis in curves.AXES:
        path = tmp_path / f"{axis}.png"
        curves.draw(table, axis, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 120_000


def test_curves_at_scale_are_drawn(scripts, tmp_path):
    tables = {
        "neighbors": pd.DataFrame({"what": ["exact cosine", "anchors"], "n": 9, "seconds": 2.0, "products": 1.0}),
        "grid": pd.DataFrame({"layers": [4, 8], "seconds": [2, 4], "products": [1, 2], "plain loop": [8, 16]}),
    }
    scripts["curves"].draw_scale(tables, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_peers_that_are_here_give_our_numbers(scripts, dtype):
    """Those of packages that repalign needs itself; the others are left out where they do not load."""
    peers = scripts["peers"]
    found = [peer for package in (peers.numpy, peers.scipy, peers.scikit_learn) for peer in package() if peer.same]
    assert len(found) >= 7
    for peer in found:
        row = peers.against(peer, 60, 20, dtype, 1, budget=0.0)
        assert row["agrees"], row
        assert row["ours"] > 0 and row["theirs"] > 0
        assert f"{peer.package} {peer.name}" in peers.line(row)


def test_a_peer_that_does_not_load_is_said(scripts, capsys, monkeypatch):
    peers = scripts["peers"]

    def broken():
        raise ImportError("no such library")
        yield

    monkeypatch.setattr(peers, "PACKAGES", (broken, peers.scipy))
    assert {peer.package for peer in peers.peers([])} == {"scipy"}
    assert {peer.name for peer in peers.peers(["NormalisedBures"])} == {"procrustes"}
    assert "broken: left out, ImportError: no such library" in capsys.readouterr().err


def test_a_plain_script_has_the_numbers_of_the_report(scripts):
    """The two sides of the race of `embeddings.py report`, at a tenth of its size."""
    from repalign.experiments import migrate

    embeddings = scripts["embeddings"]
    old, new, q_old, q_new = embeddings.bed(150, 60, (16, 24))
    got = migrate(old, new, queries_old=q_old, queries_new=q_new).table.set_index("adapter")["kept"]
    want = embeddings.plain(old, new, q_old, q_new)
    assert len(want) == len(got) == 6
    for name, value in want.items():
        assert got[name.replace("today", embeddings.TODAY)] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("name", ["same", "rotated", "rotated + .05", "linear map", "unrelated"])
def test_verdicts_are_right_in_worlds_of_their_full_size(scripts, name):
    """One of the 20 draws that `embeddings.py worlds` makes of each."""
    embeddings = scripts["embeddings"]
    judged = embeddings.judge(embeddings.world(name, 0, 1500, 300, 800), 10, resamples=500, depth=10)
    assert embeddings.verdict_of(judged, 10 / 800)[0] == embeddings.WORLDS[name]


def test_the_start_of_commands_is_told_beside_what_they_import(scripts, capsys, monkeypatch):
    """Here the commands run in this process, where torch is imported already; the clock runs over one process."""
    from typer.testing import CliRunner

    from repalign.cli import app

    start, ran = scripts["start"], []
    assert start.least(["-c", "pass"], 2) > 0

    def here(arguments: list[str], runs: int = 1) -> float:
        module, name, *words = arguments
        if module == "-c":
            exec(name)
        else:
            assert (module, name) == ("-m", "repalign")
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
        ran.append(words)
        return 2.0 if words[:1] == ["pair"] else 1.0

    monkeypatch.setattr(start.subprocess, "run", lambda command, **_: here(command[1:]))
    monkeypatch.setattr(start, "least", here)
    start.report(1)
    said = capsys.readouterr().out
    assert "repalign pair, small files    2.00 s: 2.00 times import torch" in said
    assert "repalign run, finished        1.00 s" in said
    assert [words[0] for words in ran if words] == ["run", "--help", "pair", "run"]
