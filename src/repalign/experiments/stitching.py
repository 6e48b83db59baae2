"""Halves of two vision models and the affine map between them: least squares, or trained on the task, and what it is worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from repalign.errors import RepalignError
from repalign.experiments.models import Answers, doing, logits_of, wide

if TYPE_CHECKING:
    from torch import Tensor, nn

TINY = 1e-10  # of the largest eigenvalue: below it a direction of A's states is empty, and the map does not use it


# --- halves ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Half:
    """A vision model from a cut on: states (b, ...) in, logits (b, classes) out; the part before the cut sees one image only."""

    module: nn.Module
    cut: nn.Module
    image: Any  # a batch of one, for the part before the cut
    label: str

    def __call__(self, state: Tensor) -> Tensor:
        forward = self.cut.forward

        def give(*args: Any, **kwargs: Any) -> Any:
            import torch

            with torch.no_grad():
                out = forward(*args, **kwargs)
            return state if isinstance(out, torch.Tensor) else (state, *out[1:])

        with doing({self.cut: give}):
            return logits_of(self.module, self.image, self.label)


def states_of(module: nn.Module, cuts: Sequence[str], batches: Sequence[Any], label: str) -> tuple[dict[str, Tensor], Tensor]:
    """What a model has at its cuts, and its logits (n, classes), for batches of images."""
    import torch

    from repalign.sources.passes import outputs_of

    kept: dict[str, list[Tensor]] = {cut: [] for cut in cuts}
    logits = []
    with torch.inference_mode(False), torch.no_grad():
        for batch in batches:
            with outputs_of(module, list(cuts), label) as found:
                logits.append(logits_of(module, batch, label))
            for cut in cuts:
                kept[cut].append(found[cut].clone())
    return {cut: torch.cat(some) for cut, some in kept.items()}, torch.cat(logits)


def half_of(model: Answers, cut: str, images: Sequence[Any], state: Tensor, logits: Tensor) -> Half:
    """The second half of a model, tried out: on its own states it gives its own logits, whatever the first half sees.

    `images` : batches of one, at least two. Raises RepalignError where the model has a way around the cut.
    """
    import torch

    halves = [Half(model.module, model.module.get_submodule(cut), image, model.label) for image in images]
    with torch.no_grad():
        try:
            given = [half(state) for half in halves]
        except (RuntimeError, ValueError) as error:
            raise _around(model, cut, str(error).splitlines()[0]) from error
    scale = float(logits.abs().max())
    for one in given:
        if one.shape != logits.shape or float((one - logits).abs().max()) > 1e-3 * scale:
            raise _around(model, cut, "logits that depend on what stands before the cut")
    return halves[0]


def _around(model: Answers, cut: str, got: str) -> RepalignError:
    return RepalignError(
        f"model {model.label}: not all that its head reads goes through {cut!r}", got=got,
        expected="a cut that every path goes through, such as a whole stage or block", remedy="name another module in `cuts`",
    )  # fmt: skip


def shared_cuts(a: nn.Module, b: nn.Module) -> list[str]:
    """The parts that both models have under one name and that have parts of their own, such as stages."""
    names = [{n for n, child in m.named_children() if any(True for _ in child.children())} for m in (a, b)]
    return [n for n, _ in a.named_children() if n in names[0] & names[1]]


def untrained(module: nn.Module, seed: int = 0) -> nn.Module:
    """A copy with random weights: layers of torch as torch draws them, other matrices normal(0, .02), vectors 1, biases 0."""
    import torch

    made = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for part in made.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                continue
            for name, weight in part.named_parameters(recurse=False):
                if weight.ndim > 1:
                    weight.copy_(0.02 * torch.randn(weight.shape))
                else:
                    weight.fill_(float("bias" not in name))
    return made.requires_grad_(False)


# --- the map ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Affine:
    """s(x) = W x + b at every position: a convolution of 1 x 1, or one map for all tokens. weight (d_b, d_a), bias (d_b)."""

    weight: Tensor
    bias: Tensor
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        return (x.movedim(self.axis, -1) @ self.weight.T + self.bias).movedim(-1, self.axis)


def rows_of(x: Tensor, axis: int) -> Tensor:
    """Every position of every image as a row (positions, d), in float64."""
    return wide(x.movedim(axis, -1).flatten(0, -2))


def least_squares(x: Tensor, y: Tensor, axis: int) -> Affine:
    """The affine map with the least sum of |s(x) - y|^2 over all positions, of least norm; directions that x lacks are not used."""
    import torch

    a, b = rows_of(x, axis), rows_of(y, axis)
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    values, vectors = torch.linalg.eigh(a.T @ a)
    inverse = torch.where(values > TINY * values.max(), 1 / values, 0.0)
    weight = (vectors * inverse @ vectors.T @ (a.T @ b)).T
    return Affine(weight.to(x), (mean_b - weight @ mean_a).to(x), axis)


def residual(found: Affine, x: Tensor, y: Tensor) -> float:
    """sum |s(x) - y|^2 / sum |y - mean y|^2 over all positions: 0 where the map gives y, about 1 where it knows nothing."""
    target = rows_of(y, found.axis)
    left = rows_of(found(x), found.axis) - target
    return float(left.square().sum() / (target - target.mean(0)).square().sum())


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q) of each row, in nats: (n, classes) give (n,)."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class Training:
    """How the map is trained: Adam on KL(p_B || p_stitched); the best epoch by a validation part is kept, 0 is the start.

    `validation` : the share of the rows to fit that is held out for that; with 0 the last epoch is kept.
    """

    epochs: int = 8
    lr: float = 1e-2
    batch_size: int = 100
    validation: float = 0.2
    seed: int = 0

    def train(
        self, start: Affine, half: Half, x: Tensor, logits: Tensor, tell: Callable[[int], None] = lambda _: None
    ) -> tuple[Affine, int]:  # fmt: skip
        """The map and its epoch, for states x (n, ...) of A and logits (n, classes) of B, whose rows are in a random order."""
        import torch

        kept = round(self.validation * len(x))
        fit, held = slice(0, len(x) - kept), slice(len(x) - kept, None)
        now = replace(start, weight=start.weight.clone().requires_grad_(), bias=start.bias.clone().requires_grad_())
        optimizer = torch.optim.Adam([now.weight, now.bias], self.lr)
        order = torch.Generator().manual_seed(self.seed)
        best, best_epoch, least = start, 0, self._loss(start, half, x[held], logits[held]) if kept else math.inf
        for epoch in range(1, self.epochs + 1):
            with torch.enable_grad():
                for rows in torch.randperm(len(x[fit]), generator=order).split(self.batch_size):
                    at = rows.to(x.device)
                    optimizer.zero_grad()
                    divergence(logits[at], half(now(x[at]))).mean().backward()
                    optimizer.step()
            loss = self._loss(now, half, x[held], logits[held]) if kept else -epoch
            if loss < least:
                best = replace(now, weight=now.weight.detach().clone(), bias=now.bias.detach().clone())
                best_epoch, least = epoch, loss
            tell(epoch)
        return best, best_epoch

    def _loss(self, found: Affine, half: Half, x: Tensor, logits: Tensor) -> float:
        return float(divergence(wide(logits), wide(answers(found, half, x, self.batch_size))).mean())


USUAL = Training()


def answers(found: Affine, half: Half, x: Tensor, batch_size: int = 100) -> Tensor:
    """Logits (n, classes) of the stitched model."""
    import torch

    with torch.no_grad():
        return torch.cat([half(found(some)) for some in x.split(batch_size)])


# --- one cut ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """States of A, of an untrained A and of B at one cut, and B's logits, to fit or to judge by."""

    a: Tensor
    untrained: Tensor
    b: Tensor
    logits: Tensor


def at_cut(fit: Rows, judge: Rows, half: Half, axis: int, training: Training, tell: Callable[[int], None]) -> dict[str, float]:
    """All numbers of one cut. Raises RepalignError where the states of A and B do not have the same positions."""

    def told(what: str, found: Affine, x: Tensor) -> dict[str, float]:
        logits = answers(found, half, x, training.batch_size)
        same = (logits.argmax(-1) == judge.logits.argmax(-1)).float().mean()
        return {f"{what}_agreement": float(same), f"{what}_kl": float(divergence(wide(judge.logits), wide(logits)).mean())}

    start = least_squares(fit.a, fit.b, axis)
    trained, epoch = training.train(start, half, fit.a, fit.logits, tell)
    random = least_squares(fit.untrained, fit.b, axis)
    learned, _ = training.train(random, half, fit.untrained, fit.logits, lambda e: tell(training.epochs + e))
    own = least_squares(fit.b, fit.b, axis)
    return {
        "residual": residual(start, judge.a, judge.b), **told("direct", start, judge.a), **told("trained", trained, judge.a),
        "epoch": epoch, **told("untrained_direct", random, judge.untrained), **told("untrained", learned, judge.untrained),
        **told("self", own, judge.b),
        "_trained": answers(trained, half, judge.a, training.batch_size),  # type: ignore[dict-item]
    }  # fmt: skip


def channel_axis(a: nn.Module, b: nn.Module, x: Tensor, y: Tensor) -> int:
    """Where the channels of states are: the last axis of vectors and tokens, the second of maps, or the last as some models say."""
    last = [str(getattr(m, "output_fmt", "NCHW")).endswith("NHWC") for m in (a, b)]  # as timm says of Swin
    axis = 1 if x.ndim == 4 and not last[0] else -1
    alike = x.ndim == y.ndim > 1 and x.movedim(axis, -1).shape[1:-1] == y.movedim(axis, -1).shape[1:-1]
    if not alike or (x.ndim == 4 and last[0] != last[1]):
        raise RepalignError(
            "the states at the cuts do not have the same positions", expected="maps of one height and width, or as many tokens",
            got=f"{tuple(x.shape[1:])} of A and {tuple(y.shape[1:])} of B",
            remedy="name cuts at which both have seen as much: `cuts` of A, `cuts_b` of B",
        )  # fmt: skip
    return axis
