"""Comparing: every cell right, work done once per layer, resume, bad input, the same anywhere it runs."""

from __future__ import annotations

import gc
import importlib
import io
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from repalign import null as nulls
from repalign.comparison import Settings, Tile, compare, doctor, pair
from repalign.comparison.alignment import COLUMNS, Alignment
from repalign.comparison.preprocess import Preprocess
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, parse_measure
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation

engine = importlib.import_module("repalign.comparison.work")

N = 64
IDS = tuple(f"s{i}" for i in range(N))


def model(name: str, seed: int, widths: tuple[int, ...], signal: float = 0.0, **changes) -> MemoryRepresentation:
    shared = np.random.default_rng(99).standard_normal((N, 4))
    rng = np.random.default_rng(seed)
    arrays = {
        f"layer.{i}": torch.from_numpy(
            rng.standard_normal((N, w)) + signal * (i + 1) * shared @ rng.standard_normal((4, w))
        )
        for i, w in enumerate(widths)
    }
    fields = {"dataset_name": "made", "dataset_fingerprint": "f" * 64, **changes}
    record = ModelRecord(spec=f"array:{name}", name=name, modality="array")
    return MemoryRepresentation(record, fields.pop("ids", IDS), arrays, **fields)


@pytest.fixture(scope="module")
def sides():
    xs = [model("lm-a", 1, (6, 9, 12), 0.3), model("lm-b", 2, (5,))]
    ys = [model("vit-a", 3, (7, 30), 0.3), model("vit-b", 4, (8, 8, 3), 0.6)]
    return xs, ys


def test_every_cell_is_the_score_of_its_two_layers(sides):
    xs, ys = sides
    result = compare(xs, ys, ["MutualKNN(k=5)", "CKA()"], nulls.Permutations(19))
    assert tuple(result.table.columns) == COLUMNS
    cells = result.cells()
    assert len(cells) == 2 * (3 + 1) * (2 + 3)
    for row in cells.itertuples():
        x, y = (next(r for r in side if r.name == name) for side, name in ((xs, row.model_x), (ys, row.model_y)))
        score = parse_measure(row.measure)(x.load(row.layer_x), y.load(row.layer_y))
        assert row.statistic == pytest.approx(score, abs=1e-12)
        assert (row.n, row.null, row.n_draws, row.seed) == (N, "permutation", 19, 0)


def test_cells_and_search_are_what_null_says_of_the_same_draws(sides):
    xs, ys = sides
    null = nulls.Permutations(29, seed=4)
    result = compare(xs, ys, ["CKA()"], null, search="raw")
    measure = parse_measure("CKA()")
    a = [measure.prepare(xs[0].load(layer)) for layer in xs[0].layers]
    b = [measure.prepare(ys[1].load(layer)) for layer in ys[1].layers]
    observed = measure.compare_all(a, b).numpy()
    draws = nulls.permuted_scores(measure, a, b, null.permutations(N))
    expected = nulls.calibrate(observed, draws)
    got = result.layer_map("lm-a", "vit-b", value="pvalue").to_numpy()
    assert np.array_equal(got, expected.pvalue)
    best = result.best().query("model_x == 'lm-a' and model_y == 'vit-b'").iloc[0]
    i, j = np.unravel_index(observed.argmax(), observed.shape)
    assert (best.index_x, best.index_y, best.statistic) == (i, j, observed.max())
    assert best.pvalue == (1 + (draws.max(axis=(1, 2)) >= observed.max()).sum()) / 30



@pytest.mark.parametrize("name", ["AngularCKA()", "AngularProcrustes()", "ShapeMetric(alpha=0.5)"])
def test_a_distance_is_judged_in_its_own_direction(name):
    """Two models that share their space have the smallest distance: the only pair that is found, by every p."""
    shared = np.random.default_rng(5).standard_normal((N, 6))
    turn = np.linalg.qr(np.random.default_rng(6).standard_normal((6, 6)))[0]
    a, b = model("a", 11, (6,)), model("b", 12, (6,))
    near = MemoryRepresentation(
        ModelRecord("array:near", "near", "array"), IDS, {"layer.0": torch.from_numpy(shared)}, "made", "f" * 64
    )
    nearer = MemoryRepresentation(
        ModelRecord("array:nearer", "nearer", "array"), IDS, {"layer.0": torch.from_numpy(shared @ turn)}, "made", "f" * 64
    )
    null = nulls.Permutations(39, seed=1)
    result = compare([a, near], [b, nearer], [name], null)
    best = result.best().set_index(["model_x", "model_y"])
    planted = best.loc[("near", "nearer")]
    others = best.drop(index=("near", "nearer"))
    assert planted.statistic < 1e-3 and (planted.pvalue, planted.p_maxt) == (1 / 40, 1 / 40)
    assert (others["pvalue"] > 0.05).all() and (others["p_maxt"] > 0.05).all()
    # In its own unit: the threshold is a distance below what chance gives, and a score below it is significant.
    assert (best["threshold"] > 0).all() and (best["threshold"] <= best["null_mean"]).all()
    assert ((best["statistic"] < best["threshold"]) == (best["pvalue"] <= 0.05)).all()
    assert ((best["calibrated"] > 0) == (best["pvalue"] <= 0.05)).all() and planted.z > 3
    # Against the definition: distances of every relabelling, by hand.
    measure = parse_measure(name)
    states = {r.name: measure.prepare(r.load("layer.0")) for r in (a, b, near, nearer)}
    draws = np.stack([
        nulls.permuted_scores(measure, [states[x]], [states[y]], null.permutations(N))[:, 0, 0] for x, y in best.index
    ])  # (pairs, K), closer is higher
    np.testing.assert_allclose(best["p_maxt"], nulls.max_t(-best["statistic"].to_numpy(), draws))
    for row, draw in zip(best.itertuples(), -draws, strict=True):
        assert row.pvalue == (1 + (draw <= row.statistic).sum()) / 40
        assert row.threshold == pytest.approx(np.sort([*draw, row.statistic])[2])  # rank 38 of 40 from the far end


@pytest.mark.parametrize("name", ["AngularCKA()", "AngularProcrustes()", "BuresDistance()", "CKA()"])
def test_closeness_is_the_score_with_the_sign_of_its_direction(name, sides):
    measure = parse_measure(name)
    a, b = ([measure.prepare(r.load(layer)) for layer in r.layers] for r in (sides[0][0], sides[1][0]))
    scores, closeness = measure.compare_all(a, b).numpy(), measure.closeness_all(a, b).numpy()
    assert np.array_equal(closeness, scores if measure.closer_is_higher else -scores) and (scores > 0).any()



def test_progress_goes_on_within_a_tile_and_ends_at_the_number_of_tiles(sides, monkeypatch):
    """A pair of models with 3 x 2 pairs of layers under 9 draws: 60 comparisons, of which each is a share of the tile."""
    monkeypatch.setattr(engine, "TELL_EVERY", -1.0)
    told = []
    tell = lambda task, done, total, note=None: told.append((done, total)) if task == "compare" and total else None  # noqa: E731
    compare([sides[0][0]], [sides[1][0]], ["Procrustes()"], nulls.Permutations(9), progress=tell)
    assert [t for _, t in told] == [1] * 62 and told[0][0] == 0 and told[-1][0] == 1
    assert [d for d, _ in told[1:-1]] == [min(0.99, round(i / 60, 3)) for i in range(1, 61)]


def test_a_tile_of_a_slow_measure_is_more_of_the_work(sides):
    """Two tiles of 0.1 s and two of 9.9 s: the slow ones are 0.99 of it."""
    told, x, y = [], sides[0][0], sides[1]
    settings = Settings(nulls.Permutations(9), "studentised", 0.05)
    tiles = [Tile(x, other, parse_measure(name), settings) for other in y for name in ("CKA()", "Procrustes()")]
    work = engine._Work(tiles, {parse_measure("Procrustes()"): 19.6}, lambda task, done, *_: told.append(done))
    for i in range(4):
        work.add(i)
    assert told == pytest.approx([0.02, 2.0, 2.02, 4])


def test_an_error_of_one_tile_cancels_what_has_not_begun(sides, tmp_path, monkeypatch):
    """Of 8 tiles the second fails: its error is raised, no tile begins after it, and the first is kept."""
    xs, ys = sides
    begun, real = [], engine.judged_tile

    def fails(tile, *rest, **named):
        begun.append(tile.key)
        if len(begun) == 2:
            raise RepalignError("the worker's disk is full")
        time.sleep(0.4 * (len(begun) > 2))  # as long as a tile takes
        return real(tile, *rest, **named)

    monkeypatch.setattr(engine, "judged_tile", fails)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RepalignError, match="disk is full"):
        compare(xs, ys, ["MutualKNN(k=5)", "CKA()"], nulls.Permutations(19), results=tmp_path, executor=pool)
    assert len(begun) <= 3  # one may be on its way when the error arrives
    assert len(list((tmp_path / "tiles").glob("*.parquet"))) >= 1


def test_pairs_across_get_holm_and_bh_and_cells_do_not(sides):
    result = compare(*sides, ["CKA()", "MutualKNN(k=5)"], nulls.Permutations(39))
    for measure in result.measures:
        best = result.table[(result.table["scope"] == "max") & (result.table["measure"] == measure)]
        assert np.allclose(best["p_holm"], nulls.holm(best["pvalue"]))
        assert np.allclose(best["p_bh"], nulls.benjamini_hochberg(best["pvalue"]))
    assert result.cells()["p_holm"].isna().all()
    assert not result.run["warnings"]  # that Holm's rule cannot reject with so few is no news where maxT decides


def test_all_against_all_takes_each_pair_once_and_both_directions_where_direction_matters(sides):
    everything = [*sides[0], *sides[1]]
    result = compare(everything, measures=["MutualKNN(k=5)", "CycleKNN(k=5)"], null=nulls.Permutations(5))
    counts = result.best().groupby("measure").size()
    assert counts["MutualKNN(k=5, similarity='cosine', center=False)"] == 6
    assert counts[next(m for m in counts.index if m.startswith("CycleKNN"))] == 12


def test_each_layer_is_prepared_once(sides, monkeypatch):
    count = {"prepare": 0}
    original = MutualKNN.prepare

    def counting(self, x):
        count["prepare"] += 1
        return original(self, x)

    monkeypatch.setattr(MutualKNN, "prepare", counting)
    compare(*sides, ["MutualKNN(k=5)"], nulls.Permutations(9))
    assert count["prepare"] == 3 + 1 + 2 + 3


def test_a_small_memory_budget_changes_nothing_but_the_work(sides):
    full = compare(*sides, ["CKA()"], nulls.Permutations(9))
    tight = compare(*sides, ["CKA()"], nulls.Permutations(9), memory=1)
    pd.testing.assert_frame_equal(full.table, tight.table, check_exact=True)


def test_an_executor_changes_nothing(sides):
    full = compare(*sides, ["CKA()", "LCSKNN(k=3)"], nulls.Permutations(9))
    with ThreadPoolExecutor(1) as pool:
        elsewhere = compare(*sides, ["CKA()", "LCSKNN(k=3)"], nulls.Permutations(9), executor=pool)
    pd.testing.assert_frame_equal(full.table, elsewhere.table, check_exact=True)
    assert elsewhere.run["findings"] == full.run["findings"]


def test_workers_share_the_memory_keep_none_of_it_and_examine_what_they_read(sides, monkeypatch):
    """Each job has a cache of its own, within its share of this call's memory; no layer is read again for the doctor."""
    caches, budgets, where, real = [], [], [], doctor.examine

    class Watched(engine.Cache):
        def __init__(self, budget, *rest):
            super().__init__(budget, *rest)
            caches.append(weakref.ref(self))
            budgets.append(budget)

    monkeypatch.setattr(engine, "Cache", Watched)
    monkeypatch.setattr(doctor, "examine", lambda *a, **k: where.append(threading.current_thread()) or real(*a, **k))
    with ThreadPoolExecutor(2) as pool:
        for memory in (10**8, 10**6):
            budgets.clear()
            compare(*sides, ["CKA()"], nulls.Permutations(3), executor=pool, memory=memory)
            assert set(budgets) == {memory // 2}
            gc.collect()
            assert not any(cache() for cache in caches)
    assert where and threading.main_thread() not in where


# --- resume ------------------------------------------------------------------------------------


def test_resume_does_only_the_missing_tiles(sides, tmp_path, monkeypatch):
    compare(*sides, ["CKA()"], nulls.Permutations(9), results=tmp_path)
    before = (tmp_path / "results.parquet").read_bytes()
    files = sorted((tmp_path / "tiles").iterdir())
    assert len(files) == 4
    files[2].unlink()
    files[3].write_bytes(files[3].read_bytes()[:50])  # cut short by a crash
    (tmp_path / "results.parquet").unlink()
    done = []
    original = engine.judged_tile
    monkeypatch.setattr(engine, "judged_tile", lambda tile, *rest: done.append(tile) or original(tile, *rest))
    compare(*sides, ["CKA()"], nulls.Permutations(9), results=tmp_path)
    assert len(done) == 2
    assert (tmp_path / "results.parquet").read_bytes() == before


def test_adding_a_model_computes_only_its_tiles_and_another_seed_computes_all(sides, tmp_path, monkeypatch):
    xs, ys = sides
    compare(xs[:1], ys, ["CKA()"], nulls.Permutations(9), results=tmp_path)
    done = []
    original = engine.judged_tile
    monkeypatch.setattr(engine, "judged_tile", lambda tile, *rest: done.append(tile) or original(tile, *rest))
    compare(xs, ys, ["CKA()"], nulls.Permutations(9), results=tmp_path)
    assert {t.x.name for t in done} == {"lm-b"}
    done.clear()
    compare(xs, ys, ["CKA()"], nulls.Permutations(9, seed=1), results=tmp_path)
    assert len(done) == 4


def test_a_cached_state_never_serves_another_model_or_measure(sides):
    """A peer's cache returned the first pair's score for the second pair."""
    xs, ys = sides
    result = compare(xs, ys, [CKA(), CKA(estimator="biased"), MutualKNN(k=5), MutualKNN(k=6)], nulls.Permutations(3))
    assert result.cells()["statistic"].nunique() >= 0.9 * len(result.cells())


def test_saved_and_loaded_are_the_same(sides, tmp_path):
    result = compare(*sides, ["CKA()"], nulls.Permutations(9), results=tmp_path)
    loaded = Alignment.load(tmp_path)
    pd.testing.assert_frame_equal(result.table, loaded.table, check_exact=True)
    assert json.loads(json.dumps(result.run)) == loaded.run
    assert loaded.run["sides"] == {"x": ["lm-a", "lm-b"], "y": ["vit-a", "vit-b"]}
    with pytest.raises(RepalignError, match="not a finished result"):
        Alignment.load(tmp_path / "nowhere")
    (tmp_path / "results.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(RepalignError, match=r"results.parquet is not the file of which run.json speaks\n"):
        Alignment.load(tmp_path)


def test_a_full_disk_is_told_and_leaves_no_half_file(sides, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            super().write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda p, mode="r", *a, **k: Full(p, mode) if mode == "r+b" else real(p, mode, *a, **k))
    message = r"cannot be written: the disk is full\n  expected: room for \d+ bytes\n  got: [\d,]+ bytes free"
    with pytest.raises(RepalignError, match=message):
        compare(*sides, ["CKA()"], nulls.Permutations(3), results=tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


# --- what can go wrong -------------------------------------------------------------------------


def test_different_datasets_are_refused_and_the_field_named(sides):
    xs, _ = sides
    with pytest.raises(RepalignError, match="dataset fingerprint differs"):
        compare(xs, [model("other", 5, (4,), dataset_fingerprint="e" * 64)])
    shifted = (*IDS[1:], "s999")
    with pytest.raises(RepalignError, match=r"id of row 0 differs(.|\n)*expected: lm-a: id of row 0 s0"):
        compare(xs, [model("other", 5, (4,), ids=shifted)])


def test_two_models_of_one_name_are_refused(sides):
    with pytest.raises(RepalignError, match="two models are called 'lm-a'"):
        compare([sides[0][0]], [model("lm-a", 50, (3,))])


def test_nan_names_model_layer_and_row():
    bad = model("broken", 1, (4, 5))
    bad.arrays["layer.1"][7, 2] = float("nan")
    with pytest.raises(RepalignError, match=r"broken, layer layer.1: NaN or infinite values(.|\n)*first is row 7"):
        compare([bad], [model("fine", 2, (3,))], ["CKA()"])


def test_k_not_below_n_is_refused(sides):
    with pytest.raises(RepalignError, match=r"too few stimuli for MutualKNN\(k=64"):
        compare(*sides, ["MutualKNN(k=64)"])


def test_unknown_measure_is_corrected(sides):
    with pytest.raises(RepalignError, match="did you mean 'MutualKNN'"):
        compare(*sides, ["MutualKN(k=3)"])


def test_a_constant_layer_is_undefined_and_the_rest_goes_on():
    dead = model("dead", 1, (4, 5), 0.5)
    dead.arrays["layer.0"][:] = 3.0
    result = compare([dead], [model("fine", 2, (6,), 0.5)], ["CKA()"], nulls.Permutations(9))
    assert np.isnan(result.layer_map().iloc[0, 0]) and result.layer_map().iloc[1, 0] > 0
    assert result.best()["layer_x"][0] == "layer.1"
    assert any(f["layer"] == "layer.0" for f in result.run["findings"])


def test_an_apple_gpu_never_compares_in_less_precision(sides, monkeypatch):
    """Asked for by name it is told; under auto the CPU is taken where there is no CUDA. The tiles are those of the CPU."""
    x, y = sides
    here = compare(x, y, ["CKA()"])
    with monkeypatch.context() as stub:
        stub.setattr("repalign.sources.choose_device", lambda asked: asked)  # as if there were one
        there = compare(x, y, ["CKA()"], device="mps")
    pd.testing.assert_frame_equal(here.table, there.table)
    assert there.run["machine"]["device"] == "cpu" and there.run["warnings"][0].startswith("compared on the CPU: an Apple GPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    auto = compare(x, y, ["CKA()"], device="auto")
    assert auto.run["machine"]["device"] == "cpu" and auto.run["warnings"] == here.run["warnings"]


def test_a_device_that_is_not_there_is_refused(sides):
    with pytest.raises(RepalignError, match="device 'mps' cannot be used"):
        compare(*sides, ["CKA()"], device="mps")


def test_unknown_options_are_told(sides):
    with pytest.raises(RepalignError, match="unknown layer search 'maxx'"):
        compare(*sides, ["CKA()"], search="maxx")
    with pytest.raises(RepalignError, match="no measure 'rsa' in the result"):
        compare(*sides, ["CKA()"], nulls.Permutations(3)).cells("rsa")
    with pytest.raises(RepalignError, match="nothing to compare"):
        compare([], measures=["CKA()"])


# --- arrays in ---------------------------------------------------------------------------------


def test_pair_of_arrays_and_of_layers():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((250, 12))
    y = x @ rng.standard_normal((12, 20)) + 0.1 * rng.standard_normal((250, 20))
    result = pair(x, {"first": rng.standard_normal((250, 8)), "second": y}, names=("mine", "theirs"))
    best = result.best(result.measures[1]).iloc[0]
    assert (best.layer_y, best.null, best.n_draws) == ("second", "cyclic", 249)
    assert best.pvalue == 1 / 250
    assert "n = 250" in repr(result)
    with pytest.raises(RepalignError, match="different numbers of rows|n differs"):
        pair(x, y[:-1])
    with pytest.raises(RepalignError, match="layers of different row counts"):
        pair({"a": x, "b": x[:5]}, y)


def test_layer_concatenation_is_a_layer_more(sides):
    xs, ys = sides
    result = compare(xs[:1], ys[:1], ["CKA()"], nulls.Permutations(3), preprocess=Preprocess(concatenate=True))
    assert result.layer_map().shape == (4, 3)
    whole = torch.cat([xs[0].load(layer) for layer in xs[0].layers], dim=1)
    other = torch.cat([ys[0].load(layer) for layer in ys[0].layers], dim=1)
    assert result.layer_map().iloc[-1, -1] == pytest.approx(CKA()(whole, other), abs=1e-12)


def test_a_result_shows_itself_in_a_notebook(sides):
    result = compare(*sides, ["CKA()"], nulls.Permutations(9))
    html = result._repr_html_()
    assert html.count("<table") >= 1 and all(name in html for name in ("lm-a", "vit-b")) and "n = 64" in html
    assert "<script" not in html


def test_what_stands_across_pairs_comes_from_joint_draws(sides, tmp_path):
    """maxT from the saved draws, which are the searches' own; Holm, BH and BY from their p-values."""
    xs, ys = sides
    result = compare(xs, ys, ["CKA()", "CycleKNN(k=3)"], nulls.Permutations(99, seed=3), results=tmp_path)
    loaded = Alignment.load(tmp_path)
    assert loaded.draws is not None and len(loaded.draws) == 2 * len(xs) * len(ys)
    for measure in result.measures:
        rows = result.table[(result.table["scope"] == "max") & (result.table["measure"] == measure)]
        drawn = loaded.draws[loaded.draws["measure"] == measure]
        assert list(zip(drawn["model_x"], drawn["model_y"], strict=True)) == list(
            zip(rows["model_x"], rows["model_y"], strict=True)
        )
        draws = np.stack(drawn["draws"].tolist())
        assert nulls.pvalue(rows["statistic"].to_numpy(), draws.T) == pytest.approx(rows["pvalue"].to_numpy())
        assert nulls.max_t(rows["statistic"].to_numpy(), draws) == pytest.approx(rows["p_maxt"].to_numpy())
        assert nulls.benjamini_yekutieli(rows["pvalue"].to_numpy()) == pytest.approx(rows["p_by"].to_numpy())
    assert result.run["null"]["relabelled"] == "one side"
    cells = result.table["scope"] == "cell"
    assert result.table.loc[~cells, "p_stepdown"].isna().all() and result.table.loc[cells, "p_maxt"].isna().all()
    assert result.table.loc[cells, "p_stepdown"].between(1 / 100, 1).all()


def test_where_all_meet_all_every_model_is_relabelled(sides):
    everyone = [*sides[0], *sides[1]]
    result = compare(everyone, measures=["CKA()"], null=nulls.Cyclic(seed=1))
    assert result.run["null"]["relabelled"] == "every model"
    assert result.best()["p_maxt"].notna().all()


def test_draws_that_can_find_nothing_are_told_once_with_how_many_are_enough(sides):
    """p of K draws is 1 / (K + 1) at least: 19 are enough at .05 and 99 at .01."""
    for alpha, n_draws, enough in ((0.05, 18, "19 are enough, for 1.1 times"), (0.01, 49, "99 are enough, for 2 times")):
        (told,) = compare(*sides, ["CKA()", "MutualKNN(k=5)"], nulls.Permutations(n_draws), alpha=alpha).run["warnings"]
        assert f"(CKA, MutualKNN); {enough}" in told and f"no p below {1 / (n_draws + 1):.2g}, " in told
    assert not compare(*sides, ["CKA()"], nulls.Permutations(19)).run["warnings"]


def test_groups_that_allow_few_relabellings_are_told(sides):
    n = sides[0][0].n
    few = nulls.Groups.of([0] * (n - 4) + [1, 1, 2, 2], "whole")
    result = compare(*sides, ["CKA()"], nulls.Permutations(19, groups=few))
    assert any("allow 2 relabellings: p >= 0.5" in w for w in result.run["warnings"])
    assert result.run["null"]["groups"]["least_p"] == 0.5
    assert result.run["null"]["groups"]["shuffle"] == "whole" and result.run["null"]["groups"]["n_groups"] == 3
