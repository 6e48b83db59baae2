"""The toy models as a user meets them: `load` a name, and images or captions give every layer.

A model that is not in the cache is trained on the spot. The cache is a folder of two files for each model:
the weights as safetensors, and a JSON file beside them with the model's facts and the digest of the
weights file, written last. A file that is cut short or was changed is not believed but trained again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from repalign.errors import RepalignError
from repalign.files import write_bytes, write_text
from repalign.text import Progress, silent
from repalign.toyworld import captions, names, render, train
from repalign.toyworld.names import Recipe
from repalign.toyworld.networks import Words, build, caption_vectors, image_vectors


@dataclass(frozen=True)
class ToyModel:
    """A loaded toy model.

    `layers` are the names of its layers in depth order; `weights` is the SHA-256 of its weights file;
    `scores` is its competence: probe_accuracy of a vision model, bits_per_word and bits_per_byte of a
    language model that predicts the next word (see `train.probe_accuracy` and `train.caption_bits`).
    """

    name: str
    recipe: Recipe
    step: int
    network: nn.Module
    scores: dict[str, float]
    weights: str

    @property
    def modality(self) -> str:
        """ "image" or "text"."""
        return self.recipe.modality

    @property
    def family(self) -> str:
        return self.recipe.family

    @property
    def objective(self) -> str:
        return self.recipe.objective

    @property
    def factors(self) -> dict[str, float | str]:
        """What was done to it (see `recipe.Recipe.factors`)."""
        return self.recipe.factors(self.step)

    @property
    def layers(self) -> tuple[str, ...]:
        return self.network.layers  # type: ignore[return-value]

    @property
    def n_parameters(self) -> int:
        """How many numbers the network holds, learnt or counted; heads that only trained it are not among them."""
        return sum(w.numel() for w in self.network.state_dict().values())

    def forward(self, stimuli: Any) -> dict[str, Tensor]:
        """Every layer of images or captions, pooled: (b, d) float32 by layer name.

        Images are an array (b, 32, 32, 3) of uint8 or a sequence of pictures of 32 x 32 pixels; maps are
        averaged over space. Captions are strings of the toy world's words; positions are averaged over words.
        """
        if isinstance(self.network, Words):
            return caption_vectors(self.network, torch.from_numpy(captions.encode(stimuli)))
        return image_vectors(self.network, torch.from_numpy(_pictures(stimuli, self.name)))


def load(name: str, cache: Path | None = None, progress: Progress = silent) -> ToyModel:
    """A toy model by name; trained first, in one thread, where the cache does not hold it.

    Training a model gives its checkpoints too, and all go into the cache. Raises RepalignError for an
    unknown name, with names that are like it, and for a cache that cannot be written.
    """
    recipe, step = names.find(name)
    folder = cache_folder() if cache is None else Path(cache)
    return _read(folder, name, recipe, step) or _train(folder, recipe, progress)[name]


def is_cached(name: str, cache: Path | None = None) -> bool:
    """Whether `load` would find the model without training it."""
    recipe, step = names.find(name)
    return _read(cache_folder() if cache is None else Path(cache), name, recipe, step) is not None


def revision(name: str) -> str:
    """What a name resolves to: a digest of the code that its weights follow from; see `names.revision`."""
    names.find(name)
    return names.revision()


def cache_folder() -> Path:
    """Where models are kept unless said otherwise: `repalign/toyworld` under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repalign" / "toyworld"


def _train(folder: Path, recipe: Recipe, progress: Progress) -> dict[str, ToyModel]:
    """Train a recipe and keep all that comes out."""
    out = {}
    for trained in train.run(recipe, progress):
        name = recipe.name if trained.step == recipe.steps else f"{recipe.name}-step{trained.step}"
        data = save_tensors(trained.weights) if trained.weights else b""
        facts = {
            "name": name,
            "revision": names.revision(),
            "weights_sha256": hashlib.sha256(data).hexdigest(),
            "scores": trained.scores,
            "last_loss": trained.loss,
            "torch": torch.__version__,
        }
        weights, sidecar = _files(folder, name)
        try:
            write_bytes(weights, data)
            write_text(sidecar, json.dumps(facts, indent=1, sort_keys=True))
        except RepalignError as error:
            raise RepalignError(
                f"toy model {name}: the cache {folder} cannot be written",
                got=str(error).splitlines()[0],
                remedy="name another folder, or set XDG_CACHE_HOME to one that can be written",
            ) from error
        out[name] = _model(name, recipe, trained.step, data, facts)
    return out


def _read(folder: Path, name: str, recipe: Recipe, step: int) -> ToyModel | None:
    """The model from the cache, or None where either file is missing or not what was written."""
    weights, sidecar = _files(folder, name)
    try:
        data = weights.read_bytes()
        facts = json.loads(sidecar.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or facts.get("weights_sha256") != hashlib.sha256(data).hexdigest():
        return None
    return _model(name, recipe, step, data, facts)


def _model(name: str, recipe: Recipe, step: int, data: bytes, facts: dict[str, Any]) -> ToyModel:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # the random start is of no use here
        network = build(recipe)
    network.load_state_dict(load_tensors(data) if data else {})
    network.eval().requires_grad_(False)
    return ToyModel(name, recipe, step, network, dict(facts["scores"]), facts["weights_sha256"])


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    stem = f"{name}.{names.revision()}"
    return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def _pictures(stimuli: Any, name: str) -> np.ndarray:
    """Images as one array (b, 32, 32, 3) of uint8; an error for anything of another size."""
    if not isinstance(stimuli, np.ndarray):
        stimuli = _stack(stimuli)
    expected = (render.SIDE, render.SIDE, 3)
    if stimuli is None or stimuli.dtype != np.uint8 or stimuli.shape[1:] != expected:
        raise RepalignError(
            f"toy model {name}: these are no images of the toy world",
            expected=f"uint8 of shape (b, {', '.join(map(str, expected))}), or that many pictures in RGB",
            got="pictures of several sizes"
            if stimuli is None
            else f"{stimuli.dtype} of shape {stimuli.shape}",
            remedy="toy models look at the scenes of the toy world only",
        )
    return np.array(stimuli)


def _stack(pictures: Sequence[Any]) -> np.ndarray | None:
    arrays = [np.asarray(p) for p in pictures]
    return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else None
