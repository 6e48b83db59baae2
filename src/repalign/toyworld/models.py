"""The toy models as a user meets them: `load` a name, and images or captions give every layer.

A model that is not in the cache is trained on the spot. The cache is a folder of two files for each model:
the weights as safetensors, and a JSON file beside them with the model's facts and the digest of the
weights file, written last. A file that is cut short or was changed is not believed but trained again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from repalign.errors import RepalignError, first_line
from repalign.files import write_file
from repalign.text import Progress, silent
from repalign.toyworld import captions, recipes, render, training
from repalign.toyworld.networks import Words, build, caption_vectors, image_vectors
from repalign.toyworld.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class ToyModel:
    """A loaded toy model.

    `layers` are the names of its layers in depth order; `weights` is the SHA-256 of its weights file; `n_parameters` is how many
    numbers the network holds, learnt or counted, without heads that only trained it; `factors` are what was done to it;
    `scores` is its competence: probe_accuracy of a vision model, bits_per_word and bits_per_byte of a
    language model that predicts the next word (see `training.probe_accuracy` and `training.caption_bits`).
    """

    name: str
    recipe: Recipe
    step: int
    network: nn.Module
    scores: dict[str, float]
    weights: str
    modality: str = field(init=False)
    family: str = field(init=False)
    objective: str = field(init=False)
    factors: dict[str, float | str] = field(init=False)
    layers: tuple[str, ...] = field(init=False)
    n_parameters: int = field(init=False)

    def __post_init__(self) -> None:
        count = sum(w.numel() for w in self.network.state_dict().values())
        facts = {name: getattr(self.recipe, name) for name in ("modality", "family", "objective")}
        facts |= {"factors": self.recipe.factors(self.step), "layers": self.network.layers, "n_parameters": count}
        vars(self).update(facts)

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
    recipe, step = recipes.find(name)
    folder = cache_folder() if cache is None else Path(cache)
    return _read(folder, name, recipe, step) or _train(folder, recipe, progress)[name]


def is_cached(name: str, cache: Path | None = None) -> bool:
    """Whether `load` would find the model without training it."""
    recipe, step = recipes.find(name)
    return _read(cache_folder() if cache is None else Path(cache), name, recipe, step) is not None


def revision(name: str) -> str:
    """What a name resolves to: a digest of the code that its weights follow from; see `recipes.revision`."""
    recipes.find(name)
    return recipes.revision()


def cache_folder() -> Path:
    """Where models are kept unless said otherwise: `repalign/toyworld` under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repalign" / "toyworld"


def _train(folder: Path, recipe: Recipe, progress: Progress) -> dict[str, ToyModel]:
    """Train a recipe and keep all that comes out."""
    out = {}
    for trained in training.run(recipe, progress):
        name = recipe.name if trained.step == recipe.steps else f"{recipe.name}-step{trained.step}"
        data = save_tensors(trained.weights) if trained.weights else b""
        facts = {
            "name": name, "revision": recipes.revision(), "weights_sha256": hashlib.sha256(data).hexdigest(),
            "scores": trained.scores, "last_loss": trained.loss, "torch": torch.__version__,
        }  # fmt: skip
        weights, sidecar = _files(folder, name)
        try:
            write_file(weights, data)
            write_file(sidecar, json.dumps(facts, indent=1, sort_keys=True))
        except RepalignError as error:
            raise RepalignError(
                f"toy model {name}: the cache {folder} cannot be written", got=first_line(error),
                remedy="name another folder, or set XDG_CACHE_HOME to one that can be written"
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
    stem = f"{name}.{recipes.revision()}"
    return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def _pictures(stimuli: Any, name: str) -> np.ndarray:
    """Images as one array (b, 32, 32, 3) of uint8; an error for anything of another size."""
    if not isinstance(stimuli, np.ndarray):
        arrays = [np.asarray(p) for p in stimuli]
        stimuli = np.stack(arrays) if len({a.shape for a in arrays}) == 1 else None
    expected = (render.SIDE, render.SIDE, 3)
    if stimuli is None or stimuli.dtype != np.uint8 or stimuli.shape[1:] != expected:
        raise RepalignError(
            f"toy model {name}: these are no images of the toy world",
            expected=f"uint8 of shape (b, {', '.join(map(str, expected))}), or that many pictures in RGB",
            got="pictures of several sizes" if stimuli is None else f"{stimuli.dtype} of shape {stimuli.shape}",
            remedy="toy models look at the scenes of the toy world only",
        )
    return np.array(stimuli)


# --- many models at once ----------------------------------------------------------------------------


_TRAINED = {
    recipes.VISION: (
        "vision-cnn3-supervised", "vision-cnn16-supervised", "vision-cnn4-temporal", "vision-cnn16-temporal",
        "vision-cnn8-autoencoder", "vision-cnn8-augmentation",
    ),
    recipes.LANGUAGE: (
        "language-conv8-next", "language-conv24-next", "language-conv64-next", "language-transformer16-next",
        "language-transformer48-next", "language-gru32-next",
    ),
}  # fmt: skip
_CONTROLS = {recipes.VISION: ("vision-pixels",), recipes.LANGUAGE: ("language-bag",)}
# Names by what they are for; the untrained networks are the twins of the trained ones in all but weights.
DEMO: dict[str, dict[str, tuple[str, ...]]] = {
    modality: {
        "trained": trained,
        "checkpoints": tuple(n for final in trained for n in RECIPES[final].names if n not in trained),
        "untrained": tuple(dict.fromkeys(f"{name.rpartition('-')[0]}-untrained" for name in trained)),
        "controls": _CONTROLS[modality],
    }
    for modality, trained in _TRAINED.items()
}
DEMO_NAMES: tuple[str, ...] = tuple(n for side in DEMO.values() for group in side.values() for n in group)


def train_roster(
    wanted: Iterable[str] = DEMO_NAMES,
    cache: Path | None = None,
    workers: int = 2,
    progress: Progress = silent,
) -> list[str]:
    """Train the models that the cache does not hold, in that many processes; the names of the runs trained.

    The progress task is "training toy models"; its units are tenths of a core-second, as the recipes estimate them.
    With one worker nothing but the calling process runs.
    """
    missing = {recipes.find(n)[0].name for n in wanted if not is_cached(n, cache)}
    runs = sorted((RECIPES[n] for n in missing), key=lambda r: (-r.cost, r.name))
    board = _Board(runs, progress)
    if workers <= 1 or len(runs) <= 1:
        for recipe in runs:
            load(recipe.name, cache, partial(board.follow, recipe.name))
            board.finish(recipe.name)
    else:
        _in_processes(runs, cache, min(workers, len(runs)), board)
    return [r.name for r in runs]


class _Board:
    """What is done of all runs, by their estimated cost."""

    def __init__(self, runs: list[Recipe], progress: Progress) -> None:
        self.cost = {r.name: round(10 * r.cost) for r in runs}
        self.share = dict.fromkeys(self.cost, 0.0)
        self.progress = progress
        self.tell()

    def tell(self, note: str | None = None) -> None:
        done = sum(int(self.cost[n] * share) for n, share in self.share.items())
        if self.cost:
            self.progress("training toy models", done, sum(self.cost.values()), note)

    def advance(self, run: str, share: float) -> None:
        self.share[run] = min(share, 0.99)
        self.tell()

    def finish(self, run: str) -> None:
        self.share[run] = 1.0
        self.tell(f"trained {run}" if RECIPES[run].steps else None)

    def follow(self, run: str, task: str, done: int, total: int, note: str | None = None) -> None:  # noqa: ARG002
        """The progress of one run, as it tells it."""
        self.advance(run, done / total)


def _in_processes(runs: list[Recipe], cache: Path | None, workers: int, board: _Board) -> None:
    context = multiprocessing.get_context("spawn")
    channel = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(channel,))
    try:
        waiting: dict[Future[None], str] = {pool.submit(_work, r.name, cache): r.name for r in runs}
        while waiting:
            finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not channel.empty():
                board.advance(*channel.get())
            for future in finished:
                run = waiting.pop(future)
                future.result()
                board.finish(run)
    finally:
        pool.shutdown(cancel_futures=True)
        channel.close()


_channel: Any = None  # in a worker: where it reports to


def _begin(channel: Any) -> None:
    global _channel
    _channel = channel


def _work(run: str, cache: Path | None) -> None:
    """Train one run in a worker, reporting every twentieth of it."""
    told = 0.0

    def report(task: str, done: int, total: int, note: str | None = None) -> None:  # noqa: ARG001
        nonlocal told
        if done / total >= told + 0.05:
            told = done / total
            _channel.put((run, told))

    load(run, cache, report)
