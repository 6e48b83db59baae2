"""Losses: equal to the measures of their names, with the right gradient, over processes too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from processes import join, of_two
from repalign import losses
from repalign.errors import RepalignError
from repalign.measures import CKA, MutualKNN, SoftKNN

LOSSES = {
    "cka": losses.cka,
    "biased": lambda x, y: losses.cka(x, y, estimator="biased"),
    "soft_knn": lambda x, y: losses.soft_knn(x, y, perplexity=4),
    "relational": losses.relational,
    "projected": lambda x, y: losses.projected_cosine(x, y, lambda v: v),
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def batch(n: int = 14, d: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (x.to(dtype), (x @ torch.randn(d, d, generator=generator, dtype=torch.float64) + torch.randn(
        n, d, generator=generator, dtype=torch.float64)).to(dtype))  # fmt: skip


def test_they_are_the_measures_of_their_names():
    x, y = batch(60)
    assert 1 - losses.cka(x, y).item() == pytest.approx(CKA()(x, y), abs=1e-12)
    assert 1 - losses.cka(x, y, estimator="biased").item() == pytest.approx(CKA(estimator="biased")(x, y), abs=1e-12)
    for perplexity in (2.5, 10.0, 40.0):
        found = 1 - losses.soft_knn(x, y, perplexity=perplexity).item()
        assert found == pytest.approx(SoftKNN(perplexity=perplexity)(x, y), abs=1e-10)


def test_relations_by_hand():
    x, y = (v.numpy() for v in batch(9))
    cosines = [(v / np.linalg.norm(v, axis=1, keepdims=True)) @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T for v in (x, y)]
    rows = [pearsonr(np.delete(cosines[0][i], i), np.delete(cosines[1][i], i))[0] for i in range(9)]
    assert 1 - losses.relational(*batch(9)).item() == pytest.approx(np.mean(rows), abs=1e-12)


@every
def test_gradients_are_those_of_differences(loss):
    x, y = (v.requires_grad_() for v in batch())
    assert torch.autograd.gradcheck(loss, (x, y))


@pytest.mark.parametrize("loss", [LOSSES["cka"], LOSSES["biased"]])
def test_so_are_second_derivatives(loss):
    x, y = batch(7, 3)
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: loss(x, y), (x,))


@every
def test_a_rotation_changes_no_value_and_turns_the_gradient(loss):
    x, y = batch()
    turn = torch.linalg.qr(batch(6, 6, 3)[0])[0]
    one, other = x.clone().requires_grad_(), (x @ turn).requires_grad_()
    target = y if loss is not LOSSES["projected"] else y @ turn  # this one lives in the space of y
    first, second = loss(one, y), loss(other, target)
    assert second.item() == pytest.approx(first.item(), abs=1e-10)
    gradients = torch.autograd.grad(first, one)[0] @ turn, torch.autograd.grad(second, other)[0]
    assert torch.allclose(*gradients, atol=1e-8)
    assert loss(3 * x, 3 * y).item() == pytest.approx(first.item(), abs=1e-10)


@every
def test_half_precision_is_computed_in_single(loss):
    x, y = batch(32, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(x.requires_grad_(), y)
    assert found.dtype == torch.float32 and found.ndim == 0
    assert found.item() == pytest.approx(loss(x.detach().double(), y.double()).item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(found, x)
    assert gradient.dtype == torch.bfloat16 and bool(gradient.isfinite().all())


@every
def test_a_row_of_zeros_and_equal_rows_have_finite_gradients(loss):
    x, y = batch(12)
    x[3], x[5], y[7] = 0, x[6], y[8]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y), x)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("loss", [LOSSES[name] for name in ("cka", "biased", "soft_knn", "relational")])
def test_what_is_refused(loss):
    x, y = batch()
    with pytest.raises(RepalignError, match="all alike"):
        loss(torch.ones_like(x), y)
    with pytest.raises(RepalignError, match="same"):
        loss(x[:9], y)
    with pytest.raises(RepalignError, match="no batch of vectors"):
        loss(x[None], y)
    with pytest.raises(RepalignError, match="too few rows"):
        loss(x[:1], y[:1])


def test_wrong_words_are_refused():
    x, y = batch()
    with pytest.raises(RepalignError, match="debiased"):
        losses.cka(x, y, estimator="debias")
    with pytest.raises(RepalignError, match="perplexity"):
        losses.soft_knn(x, y, perplexity=1.0)
    with pytest.raises(RepalignError, match="head's output"):
        losses.projected_cosine(x, y[:, :3], lambda v: v)


@pytest.mark.parametrize(("n", "biased"), [(32, 0.8905), (128, 0.6657), (512, 0.3337)])
def test_small_batches_of_independent_rows(n, biased):
    """Biased CKA of unrelated batches of 256 columns falls with n; the debiased one is near 0 at each."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, 256, generator=generator, dtype=torch.float64) for _ in range(2))
    assert 1 - losses.cka(x, y, estimator="biased").item() == pytest.approx(biased, abs=0.02)
    assert 1 - losses.cka(x, y).item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", ["cka", "soft_knn", "relational"])
def test_training_on_it_brings_two_spaces_together(name):
    """60 steps on half of the rows; mutual 10-NN of the other half rises from .29 to above .43."""
    generator = torch.Generator().manual_seed(0)
    world = torch.randn(400, 8, generator=generator)
    x = torch.cat([world + 0.4 * torch.randn(400, 8, generator=generator), 0.4 * torch.randn(400, 24, generator=generator)], dim=1)
    y = world @ torch.randn(8, 32, generator=generator)
    layer = torch.nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 32, generator=generator) / 6)
        layer.bias.zero_()
    optimiser, loss = torch.optim.Adam(layer.parameters(), 0.02), getattr(losses, name)

    def held_out() -> float:
        return MutualKNN()(layer(x[200:]).detach(), y[200:])

    before = held_out()
    for step in range(60):
        rows = torch.randperm(200, generator=torch.Generator().manual_seed(step))[:64]
        optimiser.zero_grad()
        loss(layer(x[rows]), y[rows]).backward()
        optimiser.step()
    assert before == pytest.approx(0.29, abs=0.02) and held_out() > 0.43


def of_a_process(rank: int, port: int, results) -> None:
    import torch.distributed as distributed

    join(rank, port)
    x, y = batch(16)
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    rows = slice(8 * rank, 8 * rank + 8)
    value = losses.cka(x[rows] @ weight, y[rows], dist=True)
    value.backward()
    distributed.all_reduce(weight.grad)  # as DistributedDataParallel: the mean over processes
    try:
        losses.cka(x[: 8 + rank], y[: 8 + rank], dist=True)
        told = ""
    except RepalignError as error:
        told = str(error)
    results[rank] = (value.item(), (weight.grad / 2).tolist(), told)
    distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_gradient_of_one():
    found = of_two(of_a_process)
    x, y = batch(16)
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    value = losses.cka(x @ weight, y)
    value.backward()
    for rank in range(2):
        assert found[rank][0] == pytest.approx(value.item(), abs=1e-12)
        assert np.allclose(found[rank][1], weight.grad, atol=1e-6)
        assert "different numbers of rows" in found[rank][2]


def test_alone_nothing_is_gathered():
    x, _ = batch()
    assert losses.gathered(x) is x


def test_a_measure_of_what_has_gradients_says_once_where_losses_are(caplog):
    from repalign.measures.measure import _tell_of_losses

    _tell_of_losses.cache_clear()
    x, y = batch()
    for _ in range(2):
        CKA()(x.clone().requires_grad_(), y)
    assert [record.getMessage() for record in caplog.records if "repalign.losses" in record.getMessage()] != []
    assert len(caplog.records) == 1
