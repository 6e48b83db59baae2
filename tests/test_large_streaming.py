"""Streamed linear CKA: the dense measure, all permutations and hand-made cases are the oracles."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from repalign.comparison import (
    ArrayRows,
    StoredRows,
    StreamedCKA,
    as_rows,
    matmul_rate,
    plan,
    stream_cka,
    stream_cka_all,
)
from repalign.errors import RepalignError
from repalign.measures import CKA
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation
from repalign.store import FeatureStore, StoredRepresentation

ESTIMATORS = ("debiased", "biased")
# Float32 products of centred features: a few times 1e-7 of the kernels' size. Float64: of 1e-16.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def pair(n: int, d1: int, d2: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two spaces with something in common, in float64."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return tuple(  # type: ignore[return-value]
        torch.randn(n, d, generator=g, dtype=torch.float64)
        + shared @ torch.randn(3, d, generator=g, dtype=torch.float64)
        for d in (d1, d2)
    )


def song(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC of Song et al. 2012, equation 5, as it is written."""
    k, l = (v @ v.T for v in (x, y))  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    n, one = len(x), torch.ones(len(x), dtype=torch.float64)
    last = 2 / (n - 2) * (one @ k @ l @ one)
    total = torch.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - last
    return float(total / (n * (n - 3)))


def memory_model(arrays: dict[str, Tensor], name: str, ids: list[str] | None = None) -> MemoryRepresentation:
    n = len(next(iter(arrays.values())))
    return MemoryRepresentation(
        ModelRecord(f"array:{name}", name, "text", None), tuple(ids or [f"s{i}" for i in range(n)]), arrays
    )


def stored_model(folder: Path, arrays: dict[str, Tensor], name: str, rows_per_part: int) -> StoredRepresentation:
    n = len(next(iter(arrays.values())))
    record = ModelRecord(f"toy:{name}", name, "text", None)
    writer = FeatureStore(folder).writer(
        dataset={"name": "birds", "fingerprint": "ab" * 32, "n": n},
        record=record,
        settings={},
        ids=[f"s{i}" for i in range(n)],
        rows_per_part=rows_per_part,
    )
    for part in writer.missing():
        writer.write(
            part, {k: v[part.start : part.stop] for k, v in arrays.items()}, header={"weights_fingerprint": "w"}
        )
    return writer.finish(record, {})


# ---- the score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "d1", "d2", "block"),
    [(90, 7, 12, 32), (91, 12, 7, 13), (64, 5, 5, 1000), (40, 90, 200, 7), (33, 1, 3, 1), (50, 400, 2, 50)],
)
def test_the_score_is_that_of_the_dense_measure(
    estimator: str, dtype: torch.dtype, n: int, d1: int, d2: int, block: int
):
    x, y = (v.to(dtype) for v in pair(n, d1, d2, seed=n))
    expected = CKA(estimator=estimator)(x.double(), y.double())
    result = stream_cka(x, y, estimator=estimator, block=block)
    assert result.statistic == pytest.approx(expected, abs=TOLERANCE[dtype])
    assert (result.n, result.widths) == (n, (d1, d2))


def test_the_debiased_score_is_the_ratio_of_unbiased_hsic():
    x, y = pair(60, 9, 4)
    expected = song(x, y) / math.sqrt(song(x, x) * song(y, y))
    assert stream_cka(x, y, block=17).statistic == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_common_offset_costs_no_digits(estimator: str, dtype: torch.dtype):
    """Features whose rows all point the same way, in a large unit: the offset is 1,000 times the spread."""
    x, y = pair(120, 10, 6, seed=1)
    x, y = ((v / v.std() + 1000.0).to(dtype) for v in (x, y))
    expected = CKA(estimator=estimator)(x.double(), y.double())
    assert stream_cka(x, y, estimator=estimator, block=25).statistic == pytest.approx(expected, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rows_in_the_order_of_their_class_cost_few_digits(estimator: str):
    """The first block, whose mean is the provisional origin, is far from all other rows."""
    x, y = pair(400, 10, 6, seed=2)
    x[:20] += 30
    y[:20] -= 30
    expected = CKA(estimator=estimator)(x, y)
    assert stream_cka(x, y, estimator=estimator, block=20).statistic == pytest.approx(expected, abs=1e-10)
    assert stream_cka(x.float(), y.float(), estimator=estimator, block=20).statistic == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_the_unit_of_float32_features_is_free(unit: float):
    """Squares of 1e30 overflow in float32, those of 1e-30 vanish."""
    x, y = pair(50, 6, 5, seed=3)
    result = stream_cka((x * unit).float(), y.float(), block=16)
    assert result.statistic == pytest.approx(CKA()(x, y), abs=1e-5)


def test_a_first_block_without_spread_sets_no_unit():
    x, y = pair(50, 6, 5, seed=4)
    x[:10] = x[0]
    x *= 1e-30
    assert stream_cka(x.float(), y.float(), block=10).statistic == pytest.approx(CKA()(x, y), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_multiplied_in_float32(dtype: torch.dtype):
    x, y = (v.to(dtype) for v in pair(80, 9, 8, seed=5))
    result = stream_cka(x, y, block=32)
    assert result.statistic == pytest.approx(CKA()(x.double(), y.double()), abs=1e-5)
    assert "float32 products" in result.method


def test_one_float64_side_makes_the_products_float64():
    x, y = pair(80, 9, 8, seed=6)
    result = stream_cka(x.float(), y, block=32)
    assert result.statistic == pytest.approx(CKA()(x.float().double(), y), abs=1e-10)
    assert "float64 products" in result.method


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, -3e8])
def test_constant_features_have_no_score(estimator: str, value: float):
    _, y = pair(30, 4, 5)
    for dtype in TOLERANCE:
        result = stream_cka(torch.full((30, 4), value, dtype=dtype), y.to(dtype), estimator=estimator, block=7)
        numbers = (result.statistic, result.null_mean, result.null_std, result.z, result.pvalue_bound)
        assert all(math.isnan(v) for v in numbers)


def test_one_odd_row_has_a_biased_score_alone():
    """x is the indicator of a row: all of its off-diagonal kernel is removed by U-centring."""
    x = torch.zeros(30, 1, dtype=torch.float64)
    x[3] = 1
    _, y = pair(30, 4, 5)
    assert math.isnan(stream_cka(x, y, block=8).statistic)
    assert math.isnan(CKA()(x, y))
    assert stream_cka(x, y, estimator="biased", block=8).statistic == pytest.approx(
        CKA(estimator="biased")(x, y), abs=1e-12
    )


# ---- the null -----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("block", [2, 6])
def test_mean_and_deviation_over_all_permutations(estimator: str, block: int):
    """All 720 pairings of six rows, each by the dense measure; skewed rows make every sum matter."""
    x, y = (v.exp() for v in pair(6, 3, 4, seed=7))
    measure = CKA(estimator=estimator)
    state, other = measure.prepare(x), measure.prepare(y)
    scores = [measure.compare(state, other.permute(torch.tensor(p))) for p in itertools.permutations(range(6))]
    result = stream_cka(x, y, estimator=estimator, block=block)
    assert result.null_mean == pytest.approx(np.mean(scores), abs=1e-12)
    assert result.null_std == pytest.approx(np.std(scores), abs=1e-12)
    assert result.z == pytest.approx((scores[0] - np.mean(scores)) / np.std(scores), abs=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_mean_and_deviation_against_draws(estimator: str):
    """20,000 random pairings of 40 rows, in float64, within four standard errors."""
    n, draws = 40, 20_000
    x, y = (v.exp() for v in pair(n, 5, 6, seed=8))
    a, b = (CKA(estimator=estimator).prepare(v).matrix for v in (x, y))
    shuffled = torch.rand(draws, n, generator=torch.Generator().manual_seed(9)).argsort(dim=1)
    scores = torch.cat([(a * b[p[:, :, None], p[:, None, :]]).sum(dim=(1, 2)) for p in shuffled.split(1000)]).numpy()
    result = stream_cka(x, y, estimator=estimator)
    sd = scores.std()
    kurtosis = ((scores - scores.mean()) ** 4).mean() / sd**4
    assert abs(scores.mean() - result.null_mean) < 4 * sd / math.sqrt(draws)
    assert abs(sd - result.null_std) < 4 * sd * math.sqrt((kurtosis - 1) / (4 * draws))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_permutation_pvalue_exceeds_its_bound(estimator: str):
    """Every one of the 720 pairings of six rows takes its turn as the observed one."""
    x, y = (v.exp() for v in pair(6, 3, 4, seed=10))
    orders = [list(p) for p in itertools.permutations(range(6))]
    results = [stream_cka(x, y[p], estimator=estimator) for p in orders]
    scores = np.array([r.statistic for r in results])
    bounds = np.array([r.pvalue_bound for r in results])
    pvalues = (scores[None, :] >= scores[:, None] - 1e-12).mean(axis=1)
    assert (pvalues <= bounds + 1e-12).all()
    assert (bounds < 0.5).any()
    assert (bounds == 1).any()


def test_the_bound_is_cantellis():
    x, y = pair(200, 6, 6, seed=11)
    result = stream_cka(x, y)
    assert result.z > 5
    assert result.pvalue_bound == pytest.approx(1 / (1 + result.z**2), rel=1e-12)
    assert result.z == pytest.approx(result.statistic * math.sqrt(200 * 197 / 2), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_a_score_that_does_not_depend_on_the_pairing_has_no_z(seed: int):
    """Twelve orthonormal rows are equally far apart: every pairing gives the same score, but for rounding."""
    x = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    y = pair(12, 3, 3)[1]
    result = stream_cka(x, y, estimator="biased", block=5)
    assert result.statistic == pytest.approx(result.null_mean, abs=1e-12)
    assert result.null_std == 0
    assert math.isnan(result.z)
    assert result.pvalue_bound == 1


# ---- many layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_layers_are_those_of_single_pairs(estimator: str):
    x, y = pair(70, 30, 24, seed=12)
    xs, ys = [x[:, :9], x[:, 9:11], x[:, 11:]], [y[:, :20].exp(), y[:, 20:]]
    table = stream_cka_all(xs, ys, estimator=estimator, block=16)
    assert table.statistic.shape == (3, 2)
    assert table.names_x == ("x[0]", "x[1]", "x[2]")
    for i, j in itertools.product(range(3), range(2)):
        alone = stream_cka(xs[i], ys[j], estimator=estimator, block=16)
        got = table.cell(i, j)
        assert got.widths == alone.widths
        for name in ("statistic", "null_mean", "null_std", "z", "pvalue_bound"):
            assert getattr(got, name) == pytest.approx(getattr(alone, name), rel=1e-11, abs=1e-14)


class Counted:
    """Rows that count how often each block was read."""

    def __init__(self, x: Tensor, name: str) -> None:
        self.x, self.name, self.read = x, name, []
        self.n, self.width = x.shape

    def blocks(self, size: int) -> Iterator[Tensor]:
        for start in range(0, self.n, size):
            self.read.append(start)
            yield self.x[start : start + size]


def test_every_block_is_read_once():
    x, y = pair(50, 6, 8)
    rows = [Counted(v, f"c{i}") for i, v in enumerate((x, x.exp(), y, y.exp()))]
    table = stream_cka_all(rows[:2], rows[2:], block=20)
    assert [r.read for r in rows] == [[0, 20, 40]] * 4
    assert "one streaming pass" in table.method


def test_little_memory_takes_more_passes_over_y_and_says_so():
    x, y = pair(50, 6, 8)
    xs, other = [Counted(x, "a"), Counted(x.exp(), "b")], Counted(y, "c")
    table = stream_cka_all(xs, [other], block=20, memory=8 * (36 + 64 + 48) + 700)
    assert other.read == [0, 20, 40] * 2
    assert [r.read for r in xs] == [[0, 20, 40]] * 2
    assert "2 streaming passes" in table.method
    np.testing.assert_allclose(table.statistic, stream_cka_all(xs, [other]).statistic, rtol=1e-12)


def test_sums_that_do_not_fit_are_refused():
    x, y = pair(50, 600, 8)
    with pytest.raises(
        RepalignError, match=r"x: its sums with 1 layers of the other side do not fit[\s\S]*raise `memory`"
    ):
        stream_cka_all([x], [y], memory=1000)


# ---- sources ------------------------------------------------------------------------------------


def test_stored_memory_and_mapped_layers_agree(tmp_path: Path):
    x, y = (v.float() for v in pair(45, 6, 5, seed=13))
    layers = {"block.0": x, "block.1": x.exp().half()}
    stored = stored_model(tmp_path / "store", layers, "stored", rows_per_part=7)
    other = stored_model(tmp_path / "store", {"out": y}, "other", rows_per_part=45)
    np.save(tmp_path / "y.npy", y.numpy())
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    expected = [CKA()(layers[k].double(), y.double()) for k in layers]
    assert stream_cka((stored, "block.1"), (other, "out"), block=10).statistic == pytest.approx(expected[1], abs=1e-5)
    assert stream_cka((stored, "block.0"), mapped, block=10).statistic == pytest.approx(expected[0], abs=1e-5)
    table = stream_cka_all(stored, other, block=11)
    np.testing.assert_allclose(table.statistic[:, 0], expected, atol=1e-5)
    assert table.names_x == ("stored, layer 'block.0'", "stored, layer 'block.1'")
    in_memory = memory_model(layers, "memory")
    assert stream_cka((in_memory, "block.0"), mapped, block=10).statistic == pytest.approx(expected[0], abs=1e-5)
    assert isinstance(as_rows(stored, "block.0"), StoredRows)
    assert isinstance(as_rows(in_memory, "block.0"), ArrayRows)


def test_integers_and_foreign_byte_orders():
    x, y = pair(40, 5, 4, seed=14)
    counts = (x * 10).round().to(torch.int32)
    swapped = y.numpy().astype(">f8")
    assert stream_cka(counts, swapped, block=9).statistic == pytest.approx(CKA()(counts.double(), y), abs=1e-10)


def test_a_broken_part_is_named(tmp_path: Path):
    x, y = pair(20, 6, 5)
    stored = stored_model(tmp_path, {"a": x.float()}, "stored", rows_per_part=10)
    file = tmp_path / stored.folder / "part-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RepalignError, match=r"stored: .*part-00001.safetensors is corrupt"):
        stream_cka((stored, "a"), y, block=5)


# ---- errors -------------------------------------------------------------------------------------


def test_different_row_counts_name_both_models():
    x, y = pair(30, 4, 5)
    a, b = memory_model({"l": x}, "albatross"), memory_model({"l": y[:20]}, "buzzard")
    with pytest.raises(RepalignError, match="albatross and buzzard were extracted on different datasets: n differs"):
        stream_cka((a, "l"), (b, "l"))
    with pytest.raises(
        RepalignError, match=r"albatross, layer 'l' and y have different numbers of rows[\s\S]*30 and n = 20"
    ):
        stream_cka((a, "l"), y[:20])


def test_different_ids_name_both_models_and_the_row():
    x, y = pair(6, 4, 5)
    a = memory_model({"l": x}, "albatross", ["a", "b", "c", "d", "e", "f"])
    b = memory_model({"l": y}, "buzzard", ["a", "b", "d", "c", "e", "f"])
    with pytest.raises(RepalignError, match=r"albatross and buzzard .* id of row 2 differs"):
        stream_cka((a, "l"), (b, "l"))
    with pytest.raises(RepalignError, match=r"albatross and buzzard .* id of row 2 differs"):
        stream_cka_all(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_named(bad: float):
    x, y = pair(50, 4, 5)
    y[23, 2] = bad
    with pytest.raises(
        RepalignError, match=r"y: NaN or infinite.*[\s\S]*1 such rows in rows 20 to 29, the first is row 23"
    ):
        stream_cka(x, y, block=10)


def test_bad_calls():
    x, y = pair(30, 4, 5)
    model = memory_model({"first": x, "last": x}, "albatross")
    for message, call in [
        ("x: too few stimuli for CKA and its null", lambda: stream_cka(x[:3], y[:3])),
        ("a block has at least one row", lambda: stream_cka(x, y, block=0)),
        ("albatross: no layer is named[\\s\\S]*'last'", lambda: stream_cka(model, y)),
        ("albatross: no layer 'lost'[\\s\\S]*did you mean 'last'", lambda: stream_cka((model, "lost"), y)),
        ("y: wrong shape[\\s\\S]*shape \\(5,\\)", lambda: stream_cka(x, y[0])),
        ("x: not an array of numbers[\\s\\S]*got: str", lambda: stream_cka("x.npy", y)),
        ("y: there is no layer", lambda: stream_cka_all([x], [])),
        ("estimator", lambda: stream_cka(x, y, estimator="unbiased")),
    ]:
        with pytest.raises(RepalignError, match=message):
            call()


def test_rows_that_fall_out_of_step_are_named():
    class Short(Counted):
        def blocks(self, size: int) -> Iterator[Tensor]:
            return itertools.islice(super().blocks(size), 2)

    x, y = pair(50, 4, 5)
    with pytest.raises(RepalignError, match=r"short: its blocks are out of step at row 40[\s\S]*no more rows"):
        stream_cka(Short(x, "short"), y, block=20)


def test_progress_runs_from_nothing_to_all_rows():
    x, y = pair(50, 4, 5)
    calls: list[tuple[str, int, int]] = []
    stream_cka(x, y, block=20, progress=lambda task, done, total, note=None: calls.append((task, done, total)))
    assert calls == [("linear CKA", rows, 50) for rows in (0, 20, 40, 50)]


# ---- the plan -----------------------------------------------------------------------------------


def test_the_plan_takes_the_cheaper_way():
    few, many = plan(1_000, 768, 768), plan(1_000_000, 768, 768)
    assert few.method == "dense"
    assert few.flops == 1_000**2 * (768 + 1)
    assert few.memory_bytes == 2 * 4 * 1_000**2
    assert many.method == "feature space"
    assert 2 * 768**2 < many.flops / 1_000_000 < 3 * 768**2
    assert plan(2_000_000, 768, 768).memory_bytes == many.memory_bytes
    assert plan(1_000, 768, 768, memory=10**6).method == "feature space"
    assert plan(1_000, [768] * 3, [512] * 4).flops == 1_000**2 * ((3 * 768 + 4 * 512) / 2 + 12)


def test_the_plan_in_a_sentence():
    told = plan(1_000_000, 768, 768, rate=1e11).sentence
    assert re.fullmatch(
        r"feature space: 1\.3e\+12 multiply-adds, 92 MB beside the features, whatever n, about 13 s at 1e\+11 "
        "multiply-adds a second",
        told,
    )
    assert plan(1_000, 768, 768).sentence == "dense: 7.7e+08 multiply-adds, 8 MB of n x n kernels"


def test_the_rate_is_measured():
    assert matmul_rate(rows=256, width=64, seconds=0.01) > 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_device_changes_nothing(dtype: torch.dtype):
    x, y = (v.to(dtype) for v in pair(300, 40, 30, seed=15))
    here, there = (stream_cka(x, y, block=64, device=d) for d in ("cpu", "cuda"))
    assert isinstance(there, StreamedCKA)
    assert there.statistic == pytest.approx(here.statistic, abs=TOLERANCE[dtype])
    assert there.z == pytest.approx(here.z, rel=1e-4)
