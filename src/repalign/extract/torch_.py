"""Any torch module: `torch:package.module:factory` or `torch:path/to/file.py:factory`.

The factory takes nothing and returns an `nn.Module`, or `(module, preprocess)`. `preprocess` takes one stimulus (a PIL
image, or a text) and returns the tensor that, stacked, goes into the module; without one, images become float tensors
(3, h, w) in [0, 1]. Layers are modules by path (`layers: [layer1, layer2.0]`), by default the direct children; maps are
averaged over positions, tokens need `pooling: mean`, `cls` or `last`. The model's entry must say its `modality`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, did_you_mean
from repalign.extract._base import (
    Batch,
    Context,
    Layer,
    ModelEntry,
    Source,
    count_parameters,
    no_modality,
    torch_dtype,
    versions,
    weights_digest,
)
from repalign.extract._hooks import module_names, outputs_of
from repalign.extract._pool import any_pool
from repalign.models import ModelRecord, Spec


def revision(spec: Spec, entry: ModelEntry) -> str:
    """A digest of the loaded weights: the factory is the only one who knows them."""
    module, _ = _build(spec, entry)
    return f"weights-{weights_digest(module)[:16]}"


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return TorchModule(spec, entry, context)


def _build(spec: Spec, entry: ModelEntry) -> tuple[nn.Module, Callable[[Any], Tensor] | None]:
    path, _, name = spec.path.rpartition(":")
    module = _import(path, spec)
    if not callable(getattr(module, name, None)):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise RepalignError(f"model {spec}: no factory {name!r} in {path}", got=name, remedy=did_you_mean(name, known))
    made = getattr(module, name)()
    model, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not (preprocess is None or callable(preprocess)):
        raise RepalignError(
            f"model {entry.label}: the factory returns something else than a model",
            expected="an nn.Module, or a pair (nn.Module, preprocess)",
            got=type(made).__name__,
        )
    return model.eval(), preprocess


def _import(path: str, spec: Spec) -> Any:
    try:
        if not path.endswith(".py"):
            return importlib.import_module(path)
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        name = f"repalign_factory_{file.stem}"
        described = importlib.util.spec_from_file_location(name, file)
        assert described is not None and described.loader is not None
        module = importlib.util.module_from_spec(described)
        sys.modules[name] = module
        described.loader.exec_module(module)
        return module
    except (ImportError, OSError, SyntaxError) as error:
        raise RepalignError(
            f"model {spec}: {path} cannot be imported",
            got=str(error).splitlines()[0],
            remedy="check the path (in a study file it starts from the file's folder) and what it imports",
        ) from error


class TorchModule(Source):
    """Outputs of modules of a model that the user's own function builds."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        if entry.modality is None:
            raise no_modality(entry.label, "torch")
        self.kind = entry.modality if entry.modality in ("image", "text", "array") else "image"  # type: ignore[misc]
        self.entry, self.device = entry, context.device
        module, self.preprocess = _build(spec, entry)
        stored = next((p.dtype for p in module.parameters()), torch.float32)
        self.dtype = torch_dtype(context.dtype, stored, context.device, entry.label)
        self.model = module.to(context.device, self.dtype)
        names = module_names(self.model, entry.layers, entry.label)
        self.layers = tuple(Layer(n, f"output of module {n} ({type(_module(module, n)).__name__})") for n in names)
        self.weights = weights_digest(self.model)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or spec.path.rpartition(":")[2],
            modality=entry.modality,
            n_parameters=count_parameters(self.model),
        )
        self.facts = {
            "source": "torch",
            "architecture": type(module).__name__,
            "pooling": entry.pooling or "maps: mean over positions; vectors as they are",
            "preprocessing": getattr(self.preprocess, "__qualname__", None) or str(self.preprocess),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": context.device,
            "pooled_in": "float32",
            "versions": versions("pillow"),
        }

    def forward(self, prepared: Sequence[Any]) -> Batch:
        inputs = torch.stack([(self.preprocess or _pixels)(s) for s in prepared]).to(self.device)
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        names = [layer.name for layer in self.layers]
        with outputs_of(self.model, names) as found:
            self.model(inputs)
        unseen = [n for n in names if n not in found]
        if unseen:
            raise RepalignError(
                f"model {self.entry.label}: {unseen[0]!r} is not used in a forward pass",
                expected="modules that the model calls",
                got=", ".join(unseen),
                remedy="name the modules to read in `layers:`",
            )
        label = f"model {self.entry.label}, layer "
        layers = {n: any_pool(found[n], self.entry.pooling, label + n).to("cpu", torch.float32) for n in names}
        return Batch(layers)


def _module(model: nn.Module, name: str) -> nn.Module:
    return dict(model.named_modules())[name]


def _pixels(image: Any) -> Tensor:
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
