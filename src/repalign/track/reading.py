"""What a live model makes of a batch, a vector for each stimulus and layer, without a trace in its training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, did_you_mean, is_of
from repalign.sources.memory import OUTPUT, unwrapped
from repalign.sources.model import named_by
from repalign.sources.passes import outputs_of
from repalign.sources.pooling import ROUNDING, TOKEN_POOLINGS, any_pool, without_first
from repalign.sources.torch import children
from repalign.track.processes import in_step

if TYPE_CHECKING:
    from repalign.dataset import Dataset

ALL = "all"
Layers = dict[str, Tensor]
Forward = Callable[[Any, Any], Mapping[str, Any]]


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Inside, every module is in eval mode and there is no gradient; afterwards modes and all random states are as they were."""
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        for module, _ in modes:  # not by eval(), which a model may have made its own
            module.training = False
        with torch.inference_mode(False), torch.no_grad():  # what a module keeps for later must not be an inference tensor
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def without_autocast(*devices: str) -> Iterator[None]:
    """Sums over the panel lose digits in half precision."""
    with ExitStack() as stack:
        for device in dict.fromkeys(("cpu", *devices)):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def read(
    model: Any, batches: Any, layers: str | Sequence[str] | Forward, pooling: str | None, device: str
) -> tuple[list[str], Layers]:
    """The ids and, by layer, the vectors of all stimuli of the batches, on a device."""
    forward = layers if callable(layers) else reader(model, layers, pooling)
    ids: list[str] = []
    parts: dict[str, list[Tensor]] = {}
    for given, counts in in_step(batches() if callable(batches) else batches, is_sharded(model)):
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise RepalignError("a batch is no pair", expected="(ids, batch), for each batch", got=type(given).__name__)
        some, batch = given
        some = list(map(str, some.tolist() if hasattr(some, "tolist") else some))
        found = forward(model, batch)
        if isinstance(model, nn.Module) and any(m.training for m in model.modules()):
            raise RepalignError("the model is in training mode after your function has run", expected="eval mode, as it was given",
                                got="model.train() inside the function", remedy="leave the mode alone there")  # fmt: skip
        if not counts:
            continue
        if parts and set(parts) != set(found):
            raise RepalignError("batches have different layers", expected=", ".join(parts), got=", ".join(found))
        for name, x in found.items():
            x = x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
            if x.ndim != 2 or len(x) != len(some):
                raise RepalignError(f"layer {name}: not one vector for each of the ids", expected=f"({len(some)}, d)",
                                    got=f"shape {tuple(x.shape)}", remedy="take a mean over tokens or patches")  # fmt: skip
            parts.setdefault(name, []).append(x.to(device))
        ids += some
    return ids, {name: torch.cat(some) for name, some in parts.items()}


def is_sharded(model: Any) -> bool:
    """Whether the weights are spread over processes (FSDP), so that a pass of one needs a pass of all."""
    kinds = {"FSDPModule", "FullyShardedDataParallel"}
    return isinstance(model, nn.Module) and any(kinds & {c.__name__ for c in type(m).__mro__} for m in model.modules())


class Batches:
    """Batches of a dataset for `Tracker.score`: pairs of ids and collate(stimuli), the same at each step.

    dataset : a `repalign.Dataset`. collate : what the model takes of a list of texts or images, for instance a tokenizer with its
    options. kind : "text" or "image", where the dataset has both. size : stimuli in a batch. Of several captions the first is fed.

    >>> import repalign
    >>> some = Batches(repalign.Dataset.toy(5), lambda texts: torch.tensor([[float(len(t))] for t in texts]), "text", size=2)
    >>> [len(ids) for ids, lengths in some]
    [2, 2, 1]
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any], kind: str | None = None, size: int = 32) -> None:
        there = dataset.modalities
        if kind is None and len(there) > 1:
            raise RepalignError("nothing says which stimuli are fed", expected=f"kind: {' or '.join(there)}", got="none")
        if size < 1:
            raise RepalignError("size is out of range", expected="at least 1", got=size)
        self.dataset, self.collate, self.kind, self.size = dataset, collate, there[0] if kind is None else kind, size

    def __len__(self) -> int:
        return -(-self.dataset.n // self.size)

    def __iter__(self) -> Iterator[tuple[list[str], Any]]:
        for start in range(0, self.dataset.n, self.size):
            rows = list(range(start, min(start + self.size, self.dataset.n)))
            some = [one[0] if isinstance(one, tuple) else one for one in self.dataset.stimuli(self.kind, rows)]
            yield [self.dataset.ids[i] for i in rows], self.collate(some)


def reader(model: Any, layers: str | Sequence[str], pooling: str | None) -> Forward:
    """How layers are read: the hidden states of a model of transformers, where all are asked for; else modules by name."""
    inner = unwrapped(model)
    if not isinstance(inner, nn.Module):
        raise RepalignError("this is no torch module", expected="a module; or layers=function(model, batch) -> {layer: (b, d)}",
                            got=type(inner).__name__)  # fmt: skip
    config = getattr(inner, "config", None)
    of_transformers = is_of(config, "transformers")
    causal = False
    if of_transformers:
        from repalign.sources.hf_text import is_causal

        causal = is_causal(config)
    if layers == ALL and of_transformers:
        return lambda _, batch: _hidden_states(inner, batch, causal, pooling)
    known = {OUTPUT: "", **{name: name for name, _ in inner.named_modules() if name}}
    wanted = children(inner) or [OUTPUT] if layers == ALL else [layers] if isinstance(layers, str) else list(layers)
    names = []
    for one in wanted:
        if not (found := named_by(one, known)):
            raise RepalignError(f"no module is called {one!r}", expected="the path of a module, or a pattern such as 'blocks.*'",
                                got=one, remedy=did_you_mean(str(one), known))  # fmt: skip
        names += found

    def forward(_: Any, batch: Any) -> Layers:
        with outputs_of(inner, [known[name] for name in dict.fromkeys(names)], type(inner).__name__) as outputs:
            _run(inner, batch)
        found = {name: outputs[known[name]] for name in dict.fromkeys(names)}
        return {name: _pooled(x, name, _counted(batch, x, causal), pooling) for name, x in found.items()}

    return forward


def _run(module: nn.Module, batch: Any, **more: Any) -> Any:
    """A pass over a batch, which is brought to where the module is."""
    place = next((p.device for p in module.parameters()), torch.device("cpu"))

    def there(x: Any) -> Any:
        return x.to(place) if isinstance(x, Tensor) else x

    if isinstance(batch, Mapping):
        return module(**{name: there(x) for name, x in batch.items()}, **more)
    return module(*map(there, batch), **more) if isinstance(batch, (tuple, list)) else module(there(batch), **more)


def _hidden_states(model: nn.Module, batch: Any, causal: bool, pooling: str | None) -> Layers:
    """The hidden states of a model of transformers: hidden.0 is what goes into the first block."""
    given = getattr(_run(model, batch, output_hidden_states=True), "hidden_states", None)
    if not given:
        raise RepalignError(f"{type(model).__name__} gives no hidden states", expected="a model of one stack of layers",
                            got="none", remedy="name modules in `layers`, or give a function")  # fmt: skip
    return {f"hidden.{i}": _pooled(x, f"hidden.{i}", _counted(batch, x, causal), pooling) for i, x in enumerate(given)}


def _counted(batch: Any, x: Tensor, causal: bool) -> Tensor | None:
    """Which tokens of x (b, t, d) count; of a causal model not the first, which sees itself alone. None: that is not known."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if x.ndim != 3 or (mask is None and not causal):
        return None
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    if mask.shape != x.shape[:2]:
        return None
    mask = mask.to(x.device)
    return without_first(mask) if causal else mask


def _pooled(x: Tensor, name: str, counted: Tensor | None, pooling: str | None) -> Tensor:
    if counted is not None and (pooling or "mean") in TOKEN_POOLINGS:
        return TOKEN_POOLINGS[pooling or "mean"](x, counted)
    return any_pool(x, "mean" if x.ndim == 3 and pooling is None else pooling, f"layer {name}")


def arranged(ids: Sequence[str], layers: Mapping[str, Tensor], wanted: Sequence[str]) -> Layers:
    """The rows of the wanted ids in their order: each once, others left out.

    Raises RepalignError for ids that are missing, and for one that came twice with different vectors.
    """
    row: dict[str, int] = {}
    again = [(row[one], i) for i, one in enumerate(ids) if row.setdefault(one, i) != i]
    if missing := [one for one in wanted if one not in row]:
        few = f"{', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
        raise RepalignError(
            f"{len(missing):,} of {len(wanted):,} ids of the panel were not fed: {few}", expected="all of its ids",
            got=f"{len(row):,} different ids",
            remedy="feed all (a list of batches, not a generator that is used up), or panel.subset",
        )  # fmt: skip
    for name, x in layers.items():
        if again:
            one, other = (x[[pair[k] for pair in again]].float() for k in (0, 1))
            apart = (one - other).norm(dim=1) > ROUNDING.get(x.dtype, 1e-3) * one.norm(dim=1).clamp_min(1e-12)
            if bool(apart.any()):
                at = ids[again[int(apart.nonzero()[0, 0])][0]]
                raise RepalignError(
                    f"layer {name}: id {at!r} was fed twice, with different vectors", expected="one vector for an id", got="two",
                    remedy="feed it once; a model that draws random numbers in eval mode cannot be scored",
                )  # fmt: skip
    at = torch.tensor([row[one] for one in wanted])
    return {name: x[at.to(x.device)] for name, x in layers.items()}


def refuse_infinite(layers: Mapping[str, Tensor], ids: Sequence[str], step: int) -> None:
    """Refuse vectors that are not finite, by step, layer and id."""
    for name, x in layers.items():
        finite = torch.isfinite(x).all(dim=1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten()
            raise RepalignError(f"step {step}, layer {name}: NaN or infinite values", expected="every number finite",
                                got=f"{len(bad)} of {len(x)} rows, the first of id {ids[int(bad[0])]!r}",
                                remedy="look for an overflow in half precision, or a training that diverges")  # fmt: skip
