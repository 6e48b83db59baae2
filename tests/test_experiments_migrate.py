"""Must I re-embed? Golden values of the bed, six worlds, the adapter's file, the commands, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from repalign.cli import app
from repalign.errors import RepalignError
from repalign.experiments import adapters
from repalign.experiments.adapters import Adapter
from repalign.experiments.migrate import migrate
from repalign.experiments.migrate_numbers import TODAY, VERDICTS, adapters_of, judge, verdict_of
from repalign.experiments.migrate_sides import Sides
from repalign.experiments.retrieval import Gallery, in_common, ndcg, rank_biased_overlap, reciprocal_rank, unit

BED = Path(__file__).resolve().parents[2] / "shared/bed/features"
needs_bed = pytest.mark.skipif(not BED.exists(), reason="without the bed")


@pytest.fixture(scope="module")
def bed() -> dict[str, np.ndarray]:
    """Old and new vectors of 700 photos, and of 300 others as queries; unit rows."""
    from safetensors.numpy import load_file

    order = np.random.default_rng(0).permutation(1000)
    read = [load_file(BED / f"mobilenet_v1_{width}.safetensors")["L5_AvgPool_1a"] for width in ("025", "075")]
    old, new = (unit(x.astype(float))[order] for x in read)
    return {"old": old[:700], "new": new[:700], "queries_old": old[700:], "queries_new": new[700:]}


@pytest.fixture(scope="module")
def found(bed):
    return migrate(**bed, thresholds=[0.5, 0.7], items=12_000_000, tokens=300, price=0.02)


# --- golden values ---------------------------------------------------------------------------------


@needs_bed
def test_golden_values_of_the_bed(found):
    rows = found.table.set_index("adapter")
    assert rows.loc[TODAY, "kept"] == pytest.approx(0.346, abs=1e-9) and found.chance == pytest.approx(10 / 700)
    assert (rows.loc[TODAY, "kept_high"] - rows.loc[TODAY, "kept_low"]) / 2 == pytest.approx(1.96 * 0.1605 / 300**0.5, rel=0.1)
    assert rows.loc[TODAY, "rbo"] == pytest.approx(0.325240, abs=5e-7)
    assert found.tables["queries"]["today"].eq(0).mean() == pytest.approx(0.0267, abs=5e-5)
    golden = {"orthogonal": (0.4987, 0.5100), "orthogonal, centred": (0.4993, 0.5093), "ridge": (0.5033, 0.4417),
              "low rank": (0.4913, 0.4043)}  # fmt: skip
    assert {name: tuple(rows.loc[name, ["fidelity", "kept"]].round(4)) for name in golden} == golden
    assert tuple(rows.loc["orthogonal", ["gain", "gain_low", "gain_high"]]) == pytest.approx((0.164, 0.149, 0.179), abs=0.002)
    assert (found.verdict, found.best) == ("adapter for now", "orthogonal")
    # Query by query: the two rotations are alike to .005, and ridge is surely behind them.
    assert rows.loc["orthogonal", ["behind", "behind_low", "behind_high"]].tolist() == [0, 0, 0]
    assert rows.loc["ridge", "behind"] == pytest.approx(0.5100 - 0.4417, abs=1e-4) and rows.loc["ridge", "behind_low"] > 0.04
    assert -0.005 < rows.loc["orthogonal, centred", "behind_low"] <= 0 < rows.loc["orthogonal, centred", "behind_high"] < 0.005


@needs_bed
def test_golden_thresholds_and_cost(found):
    marks = found.tables["thresholds"].set_index("old")
    assert marks.loc[0.5, ["new", "unchanged_share", "share"]].tolist() == pytest.approx([0.473943, 0.414490, 0.539571], abs=5e-7)
    assert marks.loc[0.7, ["new", "unchanged_share", "share"]].tolist() == pytest.approx([0.644919, 0.004022, 0.026115], abs=5e-7)
    assert "72.0 for all 12,000,000, 0.00420 for the 700 anchors" in found.text and "36.9 GB" in found.text


@needs_bed
def test_golden_lists_at_depth_ten(bed):
    lists = [Gallery(bed[a]).nearest(bed[b], 10) for a, b in (("old", "queries_old"), ("new", "queries_new"))]
    assert in_common(*lists).mean() == pytest.approx(0.346) and in_common(*lists).std(ddof=1) == pytest.approx(0.1605, abs=5e-5)
    assert rank_biased_overlap(*lists).mean() == pytest.approx(0.308689, abs=5e-7)


@needs_bed
@pytest.mark.parametrize(
    ("anchors", "plain", "centred"),
    [(50, (0.3057, 0.2980), (0.2933, 0.2900)), (100, (0.3867, 0.3807), (0.3857, 0.3813)), (200, (0.4493, 0.4530), (0.4483, 0.4493)),
     (400, (0.4817, 0.4907), (0.4817, 0.4880))],
)  # fmt: skip
def test_rotations_of_few_anchors_keep_what_the_golden_ones_do_or_more(bed, anchors, plain, centred):
    """With fewer anchors than dimensions a rotation is not determined; the golden values fill it up with arbitrary directions."""
    sides = Sides(bed["old"], bed["old"], bed["new"], bed["queries_old"], bed["queries_new"])
    lists = [Gallery(bed[a]).nearest(bed[b], 10) for a, b in (("old", "queries_old"), ("new", "queries_new"))]
    fitted = adapters_at(sides, anchors)
    for name, golden in (("orthogonal", plain), ("orthogonal, centred", centred)):
        got = [in_common(Gallery(bed["old"]).nearest(fitted[name].transform(bed["queries_new"]), 10), one).mean() for one in lists]
        if anchors >= 256:
            assert got == pytest.approx(golden, abs=5e-5)
        else:
            assert all(0 <= g - want < 0.025 for g, want in zip(np.round(got, 4) + 5e-5, golden, strict=True))


@needs_bed
@pytest.mark.parametrize(
    ("anchors", "ridge", "low_rank"),
    [(50, (0.3140, 0.2807), (0.3117, 0.2737)), (100, (0.3780, 0.3403), (0.3850, 0.3313)), (200, (0.4380, 0.3930), (0.4230, 0.3677)),
     (400, (0.4927, 0.4357), (0.4687, 0.4003))],
)  # fmt: skip
def test_regressions_of_few_anchors_keep_what_the_golden_ones_do(bed, anchors, ridge, low_rank):
    """Of 13 penalties from 1e-4 to 1e2 by five folds, for each rank its own; `migrate` fits them from 512 anchors on."""
    lists = [Gallery(bed[a]).nearest(bed[b], 10) for a, b in (("old", "queries_old"), ("new", "queries_new"))]
    fitted = adapters.regressions(bed["new"][:anchors], bed["old"][:anchors], (256, 32))
    for one, golden in zip(fitted, (ridge, low_rank), strict=True):
        answers = Gallery(bed["old"]).nearest(unit(one(bed["queries_new"])), 10)
        assert [in_common(answers, some).mean() for some in lists] == pytest.approx(golden, abs=5e-5)


def adapters_at(sides: Sides, anchors: int) -> dict[str, Adapter]:
    return adapters_of(sides, rows=np.arange(anchors))


def test_rank_biased_overlap_is_that_of_the_package_rbo():
    a, b = (np.array([[ord(c) for c in word]]) for word in ("abcdefghij", "bacdxfghyz"))
    assert rank_biased_overlap(a, b)[0] == pytest.approx(0.737673689764, abs=1e-12)
    assert rank_biased_overlap(a, b, 0.98)[0] == pytest.approx(0.714690668345, abs=1e-12)


def test_ndcg_is_that_of_sklearn():
    from sklearn.metrics import ndcg_score

    grades = [3, 2, 3, 0, 1, 2, 0, 0, 1, 0, 2, 0]
    lists, of = np.arange(10)[None], [{i: float(g) for i, g in enumerate(grades)}]
    assert ndcg(lists, of)[0] == pytest.approx(0.871585501160, abs=1e-12)
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 4, (5, 30)), rng.permuted(np.tile(np.arange(30.0), (5, 1)), axis=1)
    lists = np.argsort(-scores, axis=1)[:, :10]
    got = ndcg(lists, [{i: float(g) for i, g in enumerate(row)} for row in y])
    assert got.mean() == pytest.approx(ndcg_score(y, scores, k=10), abs=1e-12)
    assert np.isnan(ndcg(lists[:1], [{}])[0]) and np.isnan(reciprocal_rank(lists[:1], [{3: 0.0}])[0])


# --- six worlds ------------------------------------------------------------------------------------

N, D, Q, K = 500, 32, 150, 10


def world(name: str, seed: int) -> Sides:
    """An old model of 12 numbers and noise, and a new one: the same, turned, turned and other, mapped, or unrelated."""
    rng = np.random.default_rng(seed)
    old = unit(rng.standard_normal((N + Q, 12)) @ rng.standard_normal((12, D)) + 0.3 * rng.standard_normal((N + Q, D)))
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]
    new = {
        "same": lambda: old, "rotated": lambda: old @ turn, "rotated, a little other": lambda: old @ turn + noise(0.02),
        "rotated, other": lambda: old @ turn + noise(0.06), "linear map": lambda: old @ rng.standard_normal((D, D)),
        "unrelated": lambda: rng.standard_normal((N + Q, D)),
    }  # fmt: skip

    def noise(size: float) -> np.ndarray:
        return size * rng.standard_normal((N + Q, D))

    x = new[name]()
    return Sides(old[:N], old[:N], x[:N], old[N:], x[N:])


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("same", "same"), ("rotated", "adapter"), ("rotated, a little other", "adapter for now"),
        ("rotated, other", "adapter for now"), ("linear map", "adapter for now"), ("unrelated", "unrelated"),
    ],
)  # fmt: skip
def test_the_verdict_is_right_in_twenty_of_twenty_worlds(name, verdict):
    got = [verdict_of(judge(world(name, seed), K, resamples=300, depth=K), K / N)[0] for seed in range(20)]
    assert got == [verdict] * 20


def test_a_new_model_that_sees_more_must_be_embedded_again():
    """The new model sees the squares of what the old one sees: no map of it finds more than the old queries do."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((N + Q, 6))
    new = np.concatenate([3 * (old**2 - 1), old], axis=1)
    judged = judge(Sides(old[:N], old[:N], new[:N], old[N:], new[N:]), K)
    verdict, because = verdict_of(judged, K / N)
    assert verdict == "re-embed" and "the difference is" in because


def test_few_queries_leave_the_answer_open():
    sides = world("same", 0)
    few = Sides(sides.everything, sides.old, sides.new, sides.queries_old[:40], sides.queries_new[:40])
    verdict, because = verdict_of(judge(few, K), K / N)
    assert verdict == "not enough queries" and because.startswith("40 queries, an interval of ±")
    assert set(VERDICTS) == {"same", "adapter", "adapter for now", "re-embed", "unrelated", "not enough queries"}


def test_ridge_keeps_a_linear_map_better_than_a_rotation():
    rows = judge(world("linear map", 0), K).table.set_index("adapter")
    assert rows.loc["ridge", "fidelity"] > 0.9 > rows.loc["orthogonal", "fidelity"] > 0.4


# --- what is fitted --------------------------------------------------------------------------------


def test_rotations_are_those_of_scipy():
    from scipy.linalg import orthogonal_procrustes

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 7)), rng.standard_normal((60, 7))
    np.testing.assert_allclose(adapters.turned(x, y).weights, orthogonal_procrustes(x, y)[0], atol=1e-10)
    centred = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))[0]
    np.testing.assert_allclose(adapters.turned_about_the_means(x, y).weights, centred, atol=1e-10)


def test_low_rank_is_ridge_cut_to_its_rank():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 9))
    y = x @ rng.standard_normal((9, 6)) + rng.standard_normal((80, 6))
    np.testing.assert_allclose(adapters.low_rank(x, y, 6)(x), adapters.ridge(x, y)(x), atol=1e-9)
    assert np.linalg.matrix_rank(adapters.low_rank(x, y, 2).weights) == 2


def test_ridge_is_that_of_sklearn_at_the_penalty_of_five_folds():
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold

    rng = np.random.default_rng(2)
    x = unit(rng.standard_normal((60, 12)))
    y = x @ rng.standard_normal((12, 5)) + rng.standard_normal((60, 5))
    folds = KFold(5, shuffle=True, random_state=0)  # in 60 rows another division than ours leads to the same penalty
    theirs = GridSearchCV(Ridge(), {"alpha": adapters.PENALTIES}, scoring="neg_mean_squared_error", cv=folds).fit(x, y)
    np.testing.assert_allclose(adapters.ridge(x, y)(x), theirs.predict(x), atol=1e-9)
    wide = rng.standard_normal((30, 80))  # fewer pairs than dimensions
    found = adapters.ridge(wide, wide[:, :4])
    (at,) = [p for p in adapters.PENALTIES * (wide**2).sum() / 30
             if np.allclose(Ridge(alpha=p).fit(wide, wide[:, :4]).predict(wide), found(wide), atol=1e-8)]  # fmt: skip
    assert at > 0


def bent(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A new model, and an old one that is the new one turned, with a kink."""
    rng = np.random.default_rng(seed)
    x, mix = rng.standard_normal((n, 8)), np.random.default_rng(9).standard_normal((2, 8, 8)) / 8**0.5
    return x, x @ np.linalg.qr(mix[0])[0] + 2 * np.maximum(x @ mix[1], 0)


def test_a_network_finds_what_no_linear_map_does():
    (x, y), (asked, wanted) = bent(2000, 0), bent(500, 1)
    error = {name: ((adapters.FITS[name](x, y)(asked) - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
             for name in ("ridge", "residual MLP")}  # fmt: skip
    assert error["residual MLP"] < 0.1 < error["ridge"]
    again = [adapters.residual_mlp(x[:300], y[:300])(asked) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_a_network_that_does_not_help_is_none():
    """Of noise there is nothing to learn: what is held out stops it at the start, and the rotation is left."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 6))
    y = x + 3 * rng.standard_normal((100, 6))
    found = adapters.residual_mlp(x, y)
    assert np.abs(found(x) - found.affine(x)).max() < 0.5 * np.abs(found.affine(x)).max()


def test_other_widths_are_filled_with_zeros_or_cut():
    x = np.arange(6.0).reshape(2, 3)
    assert adapters.unmapped(x, np.zeros((2, 4)))(x).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert adapters.unmapped(x, np.zeros((2, 2)))(x).tolist() == [[0, 1], [3, 4]]


# --- inputs ----------------------------------------------------------------------------------------


def files(folder: Path, name: str = "rotated") -> dict[str, str]:
    """A world in Parquet files, ids in another order on each side; the new model has half of the vectors."""
    import pandas as pd

    sides, rng = world(name, 3), np.random.default_rng(0)
    arrays = {"old": sides.old, "new": sides.new[:300], "queries_old": sides.queries_old, "queries_new": sides.queries_new}
    out = {}
    for what, x in arrays.items():
        frame = pd.DataFrame({"id": [f"{'q' if 'queries' in what else 'doc'}{i}" for i in range(len(x))], "vector": list(x)})
        out[what] = str(folder / f"{what}.parquet")
        frame.iloc[rng.permutation(len(frame))].to_parquet(out[what], index=False)
    return out


def test_vectors_are_paired_by_id_and_only_a_sample_need_be_new(tmp_path):
    found = migrate(**files(tmp_path))
    assert (found.n, found.m, found.q, found.verdict) == (500, 300, 150, "adapter")
    assert "What is new is searched among the 300 anchors alone" in found.text
    rows = found.table.set_index("adapter")
    assert rows.loc["orthogonal", "kept"] == 1 and rows.loc["orthogonal", "fidelity"] == 1
    assert found.tables["gallery"]["vectors"].tolist() == [37, 75, 150, 300]


def test_parquet_is_read_in_pieces_with_the_result_of_the_whole(tmp_path, monkeypatch):
    """Pieces of 7 rows; the same arrays in memory; queries of the index are not their own answers; anchors as queries leave it."""
    import pandas as pd

    from repalign.experiments import migrate_sides
    from repalign.features.columns import Pieces

    monkeypatch.setattr(migrate_sides, "PIECE", 7)
    given = files(tmp_path, "rotated, other")
    whole = {name: pd.read_parquet(path) for name, path in given.items()}
    memory = {name: {"x": np.stack(x["vector"]), "ids": x["id"].tolist()} for name, x in whole.items()}
    of_index = {"queries_old": given["old"], "queries_new": given["new"]}
    for asked in ({}, {"queries_old": given["queries_old"], "queries_new": given["queries_new"]}, of_index):
        held = {name: memory[Path(path).stem] for name, path in asked.items()}
        one, other = migrate(given["old"], given["new"], **asked), migrate(memory["old"], memory["new"], **held)
        pd.testing.assert_frame_equal(one.table, other.table)
        assert one.notes == other.notes and one.n == other.n > one.m
    sides, _ = migrate_sides.read_sides(given["old"], given["new"], None, None, None, None, 10, "cosine", 0)
    assert isinstance(sides.everything, migrate_sides.Without) and isinstance(sides.everything.rows, Pieces)


@pytest.mark.parametrize("group", [5_000, 60_000])
def test_pieces_are_let_go(tmp_path, group):
    """What Arrow holds while 15 MB go by, in groups of rows and in one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from repalign.features import file_pieces

    x = np.arange(60_000, dtype=np.float32).repeat(64)
    table = pa.table({"id": [str(i) for i in range(60_000)], "vector": pa.FixedSizeListArray.from_arrays(pa.array(x), 64)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=group, compression="none", use_dictionary=False)
    del table, x
    pieces = file_pieces(tmp_path / "x.parquet")
    before, held, rows = pa.total_allocated_bytes(), [], 0
    for ids, vectors in pieces.pieces(2_000):
        assert ids[0] == str(rows) and vectors[0, 0] == rows
        rows += len(ids)
        held.append(pa.total_allocated_bytes() - before)
    assert rows == pieces.n == 60_000 and max(held) < 8e6, max(held)


def test_ids_of_pieces_are_checked(tmp_path):
    import pandas as pd

    given = files(tmp_path)
    frame = pd.read_parquet(given["old"])
    pd.concat([frame, frame[:2]]).to_parquet(given["old"], index=False)
    with pytest.raises(RepalignError, match="500 distinct|502 distinct(.|\n)*2 that are there twice"):
        migrate(**given)
    frame.assign(id=[f"x{i}" for i in range(N)]).to_parquet(given["old"], index=False)
    with pytest.raises(RepalignError, match="have no id in common"):
        migrate(**given)
    frame.assign(vector=[x * np.nan if i == 0 else x for i, x in enumerate(frame["vector"])]).to_parquet(given["old"], index=False)
    with pytest.raises(RepalignError, match="NaN or infinite"):
        migrate(**given)


def test_new_vectors_without_an_old_one_are_counted(tmp_path):
    import pandas as pd

    given = files(tmp_path)
    frame = pd.read_parquet(given["new"])
    pd.concat([frame, frame[:3].assign(id=["a", "b", "c"])]).to_parquet(given["new"], index=False)
    assert "3 new vectors have no old one by their id" in migrate(**given).text


def test_without_queries_anchors_are_held_out():
    sides = world("rotated", 1)
    found = migrate(sides.old, sides.new)
    assert (found.m, found.q, found.verdict) == (350, 150, "adapter")
    assert "No queries were given: 150 anchors are held out" in found.text


def test_without_old_queries_nothing_is_said_of_today():
    sides = world("rotated, other", 1)
    found = migrate(sides.old, sides.new, queries_new=sides.queries_new)
    assert TODAY not in set(found.table["adapter"]) and found.table["fidelity"].isna().all()
    assert found.verdict == "re-embed" and "cannot be told without the queries in the old model" in found.text
    assert found.draw() is not None


def test_queries_that_are_vectors_of_the_index_are_not_their_own_answers(tmp_path):
    given = files(tmp_path)
    found = migrate(given["old"], given["new"], queries_old=given["old"], queries_new=given["new"])
    assert "300 queries are vectors of the index" in found.text and found.q == 300
    assert found.table.set_index("adapter").loc["orthogonal", "kept"] == 1


def graded(folder: Path, given: dict[str, str]) -> Path:
    """The nearest vector to each query in the new model is its good answer, the second is half as good."""
    import pandas as pd

    read = {name: pd.read_parquet(given[name]) for name in ("new", "queries_new")}
    lists = Gallery(np.stack(read["new"]["vector"])).nearest(np.stack(read["queries_new"]["vector"]), 2)
    rows = [f"{query},{read['new']['id'][row]},{grade}" for query, some in zip(read["queries_new"]["id"], lists, strict=True)
            for row, grade in zip(some, (2, 1), strict=True)]  # fmt: skip
    path = folder / "qrels.csv"
    path.write_text("\n".join(["query,id,grade", *rows, "q0,elsewhere,2", "other,doc1,1"]) + "\n")
    return path


@pytest.mark.parametrize(("name", "verdict"), [("rotated", "adapter"), ("linear map", "adapter for now")])
def test_judged_answers_decide_where_there_are_some(tmp_path, name, verdict):
    given = files(tmp_path, name)
    found = migrate(**given, qrels=graded(tmp_path, given))
    row = found.table.set_index("adapter").loc[found.best]
    assert found.verdict == verdict and "of their nDCG by the judged answers" in found.because
    assert row["ndcg"] == pytest.approx(row["ndcg_share"]) and row["ndcg_share_low"] <= row["ndcg_share"] <= row["ndcg_share_high"]
    assert (row["ndcg"] == pytest.approx(1)) == (name == "rotated") == (row["mrr"] == 1)
    assert "150 of 150 queries have judged answers among the anchors, 300 good answers in all" in found.text
    assert "after embedding everything again 1.00." in found.text
    loose = migrate(**given, qrels=graded(tmp_path, given), enough=0.5)  # of nDCG, which more of is kept than of answers
    assert loose.verdict == "adapter"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,id,grade\nq0,doc1,good\n", "row 0 has no grade"), ("query,id,grade\nq0,doc1,-1\n", "row 0 has no grade"),
        ("query,doc,grade\nq0,doc1,1\n", "no column 'id'"), ("query,id,grade\nq0,doc1,0\n", "graded above 0"),
    ],
)  # fmt: skip
def test_grades_that_are_refused(tmp_path, text, message):
    (tmp_path / "qrels.csv").write_text(text)
    with pytest.raises(RepalignError, match=message):
        migrate(**files(tmp_path), qrels=tmp_path / "qrels.csv")


def test_grades_need_ids(tmp_path):
    (tmp_path / "qrels.csv").write_text("query,id,grade\n0,1,1\n")
    sides = world("same", 0)
    with pytest.raises(RepalignError, match="grades need ids"):
        migrate(sides.old, sides.new, qrels=tmp_path / "qrels.csv")


def test_the_group_that_loses_most_is_named(tmp_path):
    """Two languages, far apart in the old model; the new one sees one of them otherwise."""
    rng = np.random.default_rng(0)
    german = np.arange(N + Q) % 5 == 0
    old = rng.standard_normal((N + Q, 8)) + 20 * german[:, None]
    new = old @ np.linalg.qr(rng.standard_normal((8, 8)))[0] + german[:, None] * rng.standard_normal((N + Q, 8))
    sides = [{"x": x[rows], "ids": [f"{i}" for i in range(N + Q)][rows]} for rows in (slice(N), slice(N, None)) for x in (old, new)]
    given = dict(zip(("old", "new", "queries_old", "queries_new"), sides, strict=True))
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(["query,group", *(f"{i},{'de' if german[i] else 'en'}" for i in range(N, N + Q))]))
    found = migrate(**given, groups=path, metric="euclidean")
    groups = found.tables["groups"]
    assert groups["group"].tolist() == ["de", "en"] and groups["queries"].tolist() == [30, 120]
    assert groups["adapter"][1] > 0.95 > 0.5 > groups["high"][0] > groups["adapter"][0] > groups["low"][0]
    assert "Worst is de: its 30 queries keep" in found.text
    assert set(found.tables["queries"]["group"][:10]) == {"de"}
    path.write_text("query,group\n500,de\n")
    with pytest.raises(RepalignError, match="149 queries have no group"):
        migrate(**given, groups=path)


def test_thresholds_say_what_they_find_of_pairs_that_mean_the_same(tmp_path):
    """Pairs that are near in both models; the new model's similarities are larger throughout."""
    rng = np.random.default_rng(0)
    old = unit(rng.standard_normal((400, 16)))
    old[200:250] = unit(old[:50] + 0.1 * rng.standard_normal((50, 16)))
    new = unit(old @ np.linalg.qr(rng.standard_normal((16, 16)))[0] + 0.3)  # a part that all share
    ids = [f"d{i}" for i in range(400)]
    (tmp_path / "same.csv").write_text("\n".join(["a,b", *(f"d{i},d{200 + i}" for i in range(50)), "d1,elsewhere"]))
    found = migrate({"x": old, "ids": ids}, {"x": new, "ids": ids}, thresholds=[0.9], positives=tmp_path / "same.csv")
    (row,) = found.tables["thresholds"].to_dict("records")
    stay = set(range(400)) - {int(one[1:]) for one in found.tables["queries"]["query"]}
    pairs = [(i, 200 + i) for i in range(50) if {i, 200 + i} <= stay]
    want = np.array([old[a] @ old[b] for a, b in pairs])
    got = np.array([new[a] @ new[b] for a, b in pairs])
    assert row["positives"] == len(pairs) and row["positives_found"] == pytest.approx((want >= 0.9).mean())
    assert row["unchanged_found"] == pytest.approx((got >= 0.9).mean())
    assert row["new_for_positives"] == pytest.approx(np.quantile(got, 1 - (want >= 0.9).mean()))
    assert row["new"] > 0.9 and f"Of the {len(pairs)} pairs that mean the same it finds" in found.text
    (tmp_path / "same.csv").write_text("a,b\nx,y\n")
    with pytest.raises(RepalignError, match="no pair of it is among the anchors"):
        migrate({"x": old, "ids": ids}, {"x": new, "ids": ids}, positives=tmp_path / "same.csv")


def test_vectors_that_are_found_more_often_are_named():
    """A vector that is five times as long in the new model is an answer to every other query by the dot product: a hub."""
    sides = world("same", 0)
    new = sides.new.copy()
    new[7] *= 5
    found = migrate(sides.old, new, queries_old=sides.queries_old, queries_new=sides.queries_new, metric="dot")
    first = found.tables["hubs"].iloc[0]
    lists = [Gallery(x, "dot").nearest(q, 10) for x, q in ((sides.old, sides.queries_old), (new, sides.queries_new))]
    assert first["vector"] == "7" and first["change"] == first["later"] - first["today"] > 30
    assert [first["today"], first["later"]] == [(some == 7).sum() for some in lists]


def test_few_anchors_get_rotations_only():
    sides = world("rotated", 2)
    found = migrate(sides.old[:60], sides.new[:60], queries_old=sides.queries_old, queries_new=sides.queries_new)
    assert found.table["adapter"].tolist() == [TODAY, "none", "orthogonal", "orthogonal, centred"]
    assert "60 anchors are fewer than twice the 32 old dimensions" in found.text


def test_distances_have_thresholds_too():
    sides = world("rotated", 2)
    found = migrate(2 * sides.old, 6 * sides.new, queries_old=2 * sides.queries_old, queries_new=6 * sides.queries_new,
                    metric="euclidean", thresholds=[1.0])  # fmt: skip
    (row,) = found.tables["thresholds"].to_dict("records")
    assert row["new"] == pytest.approx(3.0, rel=0.01) and row["unchanged_share"] < row["share"]
    assert found.table.set_index("adapter").loc["ridge", "kept"] > 0.95


def test_half_and_small_whole_numbers_are_read(tmp_path):
    sides = world("same", 4)
    whole = np.round(127 * sides.new / np.abs(sides.new).max()).astype(np.float32)
    np.save(tmp_path / "half.npy", sides.old.astype(np.float16))
    np.save(tmp_path / "int8.npy", whole)
    found = migrate(str(tmp_path / "half.npy"), str(tmp_path / "int8.npy"))
    assert found.table.set_index("adapter").loc["none", "kept"] > 0.85


def test_codes_of_int8_are_vectors_where_they_are_named(tmp_path):
    import pandas as pd

    sides = world("same", 4)
    codes = np.round(127 * sides.old / np.abs(sides.old).max()).astype(np.int8)
    ids = [f"d{i}" for i in range(N)]
    for name, x in (("old", codes), ("new", sides.new.astype(np.float16))):
        pd.DataFrame({"id": ids, "vector": list(x)}).to_parquet(tmp_path / f"{name}.parquet", index=False)
        np.save(tmp_path / f"{name}.npy", x)
    found = migrate(str(tmp_path / "old.parquet"), str(tmp_path / "new.parquet"), layer="vector")
    assert found.table.set_index("adapter").loc["none", "kept"] > 0.85 and found.n == 350
    found = migrate(str(tmp_path / "old.npy"), str(tmp_path / "new.npy"), layer="features")
    assert found.table.set_index("adapter").loc["none", "kept"] > 0.85
    with pytest.raises(RepalignError, match="if these are features, --layer features\\Z"):
        migrate(str(tmp_path / "old.npy"), str(tmp_path / "new.npy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries_new": None}, "queries in the old model alone"), ({"k": 500}, "too few vectors"), ({"k": 0}, "too few vectors"),
        ({"metric": "l2"}, "metric"), ({"require": "sane"}, "did you mean 'same'"), ({"enough": 0.0}, "options of migrate"),
        ({"queries_old": np.ones((Q, 5))}, "old queries and the old vectors are of different widths"),
        ({"new": np.ones((7, D))}, "different numbers of rows"), ({"rank": 0}, "rank of 1 or more"),
    ],
)  # fmt: skip
def test_what_is_refused(changes, message):
    sides = world("same", 0)
    given = {"old": sides.old, "new": sides.new, "queries_old": sides.queries_old, "queries_new": sides.queries_new, **changes}
    with pytest.raises(RepalignError, match=message):
        migrate(**given)


def test_ids_that_do_not_overlap_are_refused():
    sides = world("same", 0)
    old = {"x": sides.old, "ids": [f"doc{i}" for i in range(N)]}
    with pytest.raises(RepalignError, match="have no id in common(.|\n)*doc0(.|\n)*--id"):
        migrate(old, {"x": sides.new, "ids": [f"{i}x" for i in range(N)]})


# --- the adapter's file, and the commands ----------------------------------------------------------


def test_an_adapter_comes_back_as_it_was_and_refuses_what_does_not_fit(tmp_path):
    sides, path = world("linear map", 5), tmp_path / "adapter.safetensors"
    x = sides.queries_new[:, :20]
    found = migrate(sides.old, sides.new[:, :20], queries_old=sides.queries_old, queries_new=x, adapter=path, model="new-2")
    again = Adapter.load(path)
    np.testing.assert_allclose(again.transform(x, "new-2"), found.adapter.transform(x), atol=1e-12)
    assert again.fingerprint == found.adapter.fingerprint and again.widths == (20, 32) == found.widths
    with pytest.raises(RepalignError, match="of another model(.|\n)*new-2(.|\n)*new-3"):
        again.transform(x, "new-3")
    with pytest.raises(RepalignError, match="look like vectors of the old model"):
        again.transform(sides.old)
    with pytest.raises(RepalignError, match=r"do not fit the adapter\n"):
        again.transform(x[:, :4])
    with pytest.raises(RepalignError, match="NaN"):
        again.transform(x * np.nan)


def test_a_network_is_asked_for_saved_and_applied(tmp_path):
    (x, y), (asked, wanted) = bent(700, 0), bent(100, 1)
    path = tmp_path / "adapter.safetensors"
    found = migrate(y, x, queries_old=wanted, queries_new=asked, metric="euclidean", mlp=True, adapter=path)
    assert found.best == "residual MLP" and "residual MLP" in set(found.tables["curve"]["adapter"])
    again = Adapter.load(path)
    assert again.fingerprint == found.adapter.fingerprint and again.widths == (8, 8)
    np.testing.assert_allclose(again.transform(asked), found.adapter.transform(asked), atol=1e-12)
    np.save(tmp_path / "q.npy", asked)
    adapters.adapt_file(path, str(tmp_path / "q.npy"), tmp_path / "mapped.npy")
    np.testing.assert_allclose(np.load(tmp_path / "mapped.npy"), found.adapter.map(asked), rtol=1e-5, atol=1e-5)
    assert "residual MLP" not in set(migrate(y, x, queries_old=wanted, queries_new=asked).table["adapter"])


def test_files_that_are_no_adapter_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    sides, path = world("rotated", 5), tmp_path / "adapter.safetensors"
    migrate(sides.old, sides.new, adapter=path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(data)
    with pytest.raises(RepalignError, match="is not as it was written"):
        Adapter.load(tmp_path / "changed.safetensors")
    save_file(load_file(path), tmp_path / "bare.safetensors")
    with pytest.raises(RepalignError, match="is no adapter"):
        Adapter.load(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(data[:40])
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(RepalignError, match="cannot be read as an adapter"):
            Adapter.load(tmp_path / name)


def test_the_commands_and_their_files(tmp_path):
    given, out, run = files(tmp_path), tmp_path / "out", CliRunner().invoke
    asked = ["migrate", given["old"], given["new"], "--queries-old", given["queries_old"], "--queries-new", given["queries_new"]]
    done = run(app, [*asked, "--out", str(out), "--adapter", str(tmp_path / "a.safetensors"), "--thresholds", "0.5"])
    assert done.exit_code == 0 and "Verdict: adapter" in " ".join(done.output.split()), done.output
    names = {p.name for p in out.iterdir()}
    assert {f"{name}.csv" for name in ("migrate", "curve", "thresholds", "queries", "hubs", "cost")} <= names
    page = (out / "report.html").read_text("utf-8")
    assert "<h1>No. Map the new queries, and keep your old vectors.</h1>" in page
    assert "Today&#39;s search gives" in page and "where a guess gives 0.3" in page
    titles = ("What is kept of the new answers", "Would more anchors help?", "Thresholds", "The 20 queries that lose most", "Cost")
    for title in titles:
        assert f"<h2>{title}" in page
    assert page.count("<table") >= 5 and "<td>orthogonal, centred</td>" in page
    done = run(app, ["adapt", str(tmp_path / "a.safetensors"), given["queries_new"], str(tmp_path / "q.npy")])
    assert done.exit_code == 0, done.output
    mapped = np.load(tmp_path / "q.npy")
    ids = (tmp_path / "q.npy.ids.txt").read_text().split()
    want = world("rotated", 3).queries_old[[int(one[1:]) for one in ids]]
    np.testing.assert_allclose(mapped, want, atol=1e-5)
    bad = run(app, ["adapt", str(tmp_path / "a.safetensors"), given["queries_new"], str(tmp_path / "q.csv")])
    assert bad.exit_code == 1 and "no .npy file" in str(bad.exception)


@pytest.mark.parametrize(("name", "status"), [("same", 0), ("rotated", 3)])
def test_a_verdict_can_be_required(tmp_path, name, status):
    given = files(tmp_path, name)
    asked = ["migrate", given["old"], given["new"], "--queries-old", given["queries_old"], "--queries-new", given["queries_new"]]
    done = CliRunner().invoke(app, [*asked, "--require", "same", "--json"])
    assert done.exit_code == status and json.loads(done.output)


@pytest.mark.parametrize(
    ("made", "status", "said"),
    [
        (lambda x, turn: x.astype(np.float16), 0, "same space"), (lambda x, turn: x @ turn, 3, "NOT the same space"),
        (lambda x, turn: x[:, :5] * np.nan, 1, "could not be checked"),
    ],
)  # fmt: skip
def test_the_guard_of_ci_ends_as_it_says(tmp_path, made, status, said, monkeypatch, capfd):
    """In a shell. What the script calls is written down, done in this process, which has imported everything, and said again."""
    import os
    import subprocess
    import sys

    from repalign.cli import main

    rng = np.random.default_rng(0)
    x, turn = rng.standard_normal((200, 8)), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    for name, rows in (("stored", x), ("fresh", made(x, turn))):
        np.savez(tmp_path / f"{name}.npz", x=np.asarray(rows), id=[f"text{i}" for i in range(200)])
    (tmp_path / "repalign").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > called\ncat said\nexit "$(cat status)"\n')
    (tmp_path / "repalign").chmod(0o755)
    (tmp_path / "said").write_text("")
    (tmp_path / "status").write_text("9")
    script = Path(__file__).resolve().parents[1] / "examples/same_space.sh"
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ask = ["sh", script, "stored.npz", "fresh.npz"]
    assert subprocess.run(ask, cwd=tmp_path, env=path, capture_output=True, check=False).returncode == 9
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repalign", *(tmp_path / "called").read_text().splitlines()])
    with pytest.raises(SystemExit) as ended:
        main()
    (tmp_path / "said").write_text(capfd.readouterr().out)
    (tmp_path / "status").write_text(str(ended.value.code or 0))
    done = subprocess.run(ask, cwd=tmp_path, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == status and said in done.stdout + done.stderr, done.stderr
    assert (tmp_path / "migrate.json").read_text() == (tmp_path / "said").read_text()


@pytest.mark.integrations
@pytest.mark.parametrize("width", [390, 1366])
def test_the_page_fits_a_browser_and_answers_on_the_first_screen(tmp_path, width):
    """Without its policy, so that a script can look: nothing but a table or a figure is wider than the window."""
    import re
    import shutil
    import subprocess

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    given = files(tmp_path, "rotated, other")
    asked = ["migrate", given["old"], given["new"], "--queries-old", given["queries_old"], "--queries-new", given["queries_new"]]
    assert CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "out")]).exit_code == 0
    page = (tmp_path / "out/report.html").read_text("utf-8")
    probe = """<script>const e = document.querySelector("#answer"), say = document.createElement("pre");
    say.id = "probe"; say.textContent = [document.documentElement.scrollWidth, innerWidth, e.getBoundingClientRect().bottom,
    innerHeight, document.querySelectorAll("table").length].join(" "); document.body.append(say);</script>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", f"{probe}</body>")
    (tmp_path / "page.html").write_text(page, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'user'}",
             f"--window-size={width},800", "--virtual-time-budget=3000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([chromium, *flags, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    wide, inner, bottom, high, tables = map(float, re.search(r'<pre id="probe">([^<]+)', done.stdout)[1].split())
    assert wide <= inner and bottom < high and tables >= 5, (wide, inner, bottom, high)
