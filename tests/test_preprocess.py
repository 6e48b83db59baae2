"""Preparation of layers: both clipping thresholds, their scope, concatenation and unit rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign.comparison.preprocess import CONCATENATED, Preprocess, exact_threshold, mean_threshold
from repalign.errors import RepalignError


def layers(seed: int = 0, n: int = 30, widths: tuple[int, ...] = (7, 12, 3)) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {f"l{i}": torch.randn(n, w, generator=g) * 10**i for i, w in enumerate(widths)}


def recipe() -> dict[str, torch.Tensor]:
    """Sixteen stimuli, three layers of 100, the last fifty times larger."""
    f = np.random.Generator(np.random.PCG64(1)).standard_normal((16, 3, 100))
    f[:, 2] *= 50
    return {f"layer.{i}": torch.from_numpy(f[:, i].astype(np.float32)) for i in range(3)}


def test_thresholds_of_the_reference_code():
    values = list(recipe().values())
    assert exact_threshold(values, 0.95) == pytest.approx(73.560349, abs=1e-6)
    assert mean_threshold(values, 0.95) == pytest.approx(71.884689, abs=1e-5)


@pytest.mark.parametrize(("clip", "threshold"), [("exact", 73.560349), ("mean", 71.884689)])
def test_one_threshold_for_all_layers_clips_the_large_ones_alone(clip, threshold):
    """Layers of unit norm are untouched and the large one loses 15 % of its entries."""
    before, after = recipe(), Preprocess(clip=clip)(recipe())
    for name in ("layer.0", "layer.1"):
        assert torch.equal(before[name], after[name])
    large = after["layer.2"]
    assert float(large.max()) == -float(large.min()) == pytest.approx(threshold, abs=1e-4)
    assert float((large != before["layer.2"]).float().mean()) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("clip", ["exact", "mean"])
def test_a_threshold_per_layer_clips_five_percent_of_each(clip):
    before, after = recipe(), Preprocess(clip=clip, clip_scope="layer")(recipe())
    for name in before:
        assert float((after[name] != before[name]).float().mean()) == pytest.approx(0.05, abs=0.01)
        alone = Preprocess(clip=clip)({name: before[name]})
        assert torch.equal(after[name], alone[name])


def test_exact_threshold_is_the_sorted_entry():
    values = list(layers().values())
    everything = torch.cat([v.flatten() for v in values]).abs().sort().values
    for q in (0.01, 0.5, 0.95, 0.999):
        assert exact_threshold(values, q) == float(everything[int(q * len(everything))])


def test_mean_threshold_is_the_mean_of_quantiles():
    values = list(layers().values())
    rows = np.abs(np.concatenate([v.numpy() for v in values], axis=1)).astype(np.float64)
    for q in (0.1, 0.95):
        assert mean_threshold(values, q) == pytest.approx(np.quantile(rows, q, axis=1).mean(), rel=1e-12)


def test_mean_threshold_in_tight_memory(monkeypatch):
    values = list(layers().values())
    whole = mean_threshold(values, 0.95)
    monkeypatch.setattr("repalign.comparison.preprocess.SCRATCH_BYTES", 500)
    assert mean_threshold(values, 0.95) == pytest.approx(whole, rel=1e-14)


def test_non_contiguous_layers_are_fine():
    """A permuted view, on which flattening without a copy fails."""
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    out = Preprocess(clip="exact", clip_scope="layer", quantile=0.5)({"a": values.T, "b": values.T[:, ::2]})
    assert out["a"].shape == (40, 5) and out["b"].shape == (40, 3)


@pytest.mark.slow
def test_more_than_sixteen_million_entries():
    """The limit of torch.quantile in many versions."""
    values = torch.rand(64, 300_000, generator=torch.Generator().manual_seed(0))
    assert exact_threshold([values], 0.95) == pytest.approx(0.95, abs=1e-3)
    assert mean_threshold([values], 0.95) == pytest.approx(0.95, abs=1e-3)


def test_quantile_one_clips_nothing():
    before = layers()
    after = Preprocess(clip="exact", quantile=1.0)(before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_order_is_clip_then_concatenate_then_normalise():
    before = layers()
    after = Preprocess(clip="exact", normalize_rows=True, concatenate=True)(before)
    assert list(after) == ["l0", "l1", "l2", CONCATENATED]
    clipped = Preprocess(clip="exact")(before)
    whole = torch.cat(list(clipped.values()), dim=1)
    expected = whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(after[CONCATENATED], expected)
    for name, x in after.items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.norm(dim=1), torch.ones(30), msg=name)


def test_zero_and_tiny_rows_when_normalised():
    x = torch.tensor([[0.0, 0.0], [3e-30, 4e-30], [3e30, -4e30]])
    out = Preprocess(normalize_rows=True)({"a": x})["a"]
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.6, -0.8]]))


def test_nothing_by_default():
    before = layers()
    assert Preprocess().is_identity and not Preprocess(concatenate=True).is_identity
    assert all(Preprocess()(before)[name] is before[name] for name in before)


@pytest.mark.parametrize("options", [{"clip": "mean"}, {"normalize_rows": True}, {"concatenate": True}])
def test_the_input_is_left_alone(options):
    before = layers()
    kept = {name: x.clone() for name, x in before.items()}
    Preprocess(**options)(before)
    assert list(before) == list(kept) and all(torch.equal(before[name], kept[name]) for name in kept)


def test_layer_names_tell_what_comes_out():
    before = layers()
    for options in ({}, {"concatenate": True}):
        p = Preprocess(**options)
        assert p.layer_names(list(before)) == list(p(before))
    with pytest.raises(RepalignError, match=f"already called '{CONCATENATED}'"):
        Preprocess(concatenate=True).layer_names(["a", CONCATENATED])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"clip": "exakt"}, r"unknown clip 'exakt'(.|\n)*did you mean 'exact'"),
        ({"clip_scope": "layers"}, r"unknown clip_scope 'layers'(.|\n)*did you mean 'layer'"),
        ({"quantile": 0}, r"quantile is out of range\n  expected: 0 < quantile <= 1"),
        ({"quantile": 1.01}, "quantile is out of range"),
        ({"quantile": "0.9"}, "quantile is out of range"),
    ],
)
def test_bad_options(bad, message):
    with pytest.raises(RepalignError, match=message):
        Preprocess(**bad)
