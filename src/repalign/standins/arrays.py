"""A stand-in of a file of features: what made the scenes, projected at random, with noise."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repalign.errors import RepalignError
from repalign.features import Reading, read_file
from repalign.layers import RDM, Kernel
from repalign.standins.shapes import Shape
from repalign.toyworld import world

LAYERS = ("layer.0", "layer.1", "layer.2")  # of a file that cannot be read
WIDEST = 32  # features
NOISE = (1.5, 0.5)  # standard deviation beside that of the projections, of the first and the last layer


@dataclass(frozen=True)
class Form:
    """What a stand-in takes over from the real file: names and widths of layers, and what it says of itself."""

    layers: dict[str, int]
    modality: str | None
    objective: str | None
    n_parameters: int | None
    scores: dict[str, float]
    kind: str | None = None  # "rdm" or "kernel": layers are (n, n), made of features of these widths


def form_of(path: Path, reading: Reading, width: int) -> tuple[Form, str | None]:
    """The form of a file, or a usual one and why it cannot be read."""
    try:
        found = read_file(path, reading)
    except RepalignError as error:
        return Form(dict.fromkeys(LAYERS, width), None, None, None, {}, reading.kind), str(error).splitlines()[0]
    widths = {name: min(x.shape[1], WIDEST) for name, x in found.layers.items()}
    modality, objective = (found.facts.get(fact) for fact in ("modality", "objective"))
    return Form(widths, modality, objective, found.n_parameters, dict(found.scores), reading.kind), None


def write_features(folder: Path, form: Form, ids: Sequence[str], shape: Shape, seed: int) -> None:
    """A file `features.safetensors` with a row for every id."""
    seen = _seen(ids, seed)
    rng = np.random.Generator(np.random.PCG64(shape.seed))
    layers = {}
    for share, (name, width) in zip(np.linspace(0, 1, len(form.layers)), form.layers.items(), strict=True):
        projected = seen @ rng.standard_normal((seen.shape[1], width)) / seen.shape[1] ** 0.5
        noise = NOISE[0] + share * (NOISE[1] - NOISE[0])
        layers[name] = _given(projected + noise * rng.standard_normal(projected.shape), form.kind).astype(np.float32)
    told = {"modality": form.modality, "objective": form.objective}
    _save(folder / "features.safetensors", layers, {k: v for k, v in told.items() if v is not None}, ids)


def _given(features: np.ndarray, kind: str | None) -> np.ndarray:
    """Features (n, d), or their Euclidean distances or Gram matrix (n, n)."""
    if kind == RDM.kind:
        return np.linalg.norm(features[:, None] - features, axis=2)
    return features @ features.T if kind == Kernel.kind else features


def _seen(ids: Sequence[str], seed: int) -> np.ndarray:
    """What made the scene of every id, (n, 6): angles by cosine and sine, all of mean 0 and variance 1.

    The scene is that of the number that the id ends in, as stand-in datasets and the toy world number them.
    """
    numbers = [re.search(r"\d{1,7}$", id_) for id_ in ids]
    rows = [int(found[0]) for found in numbers if found]
    if len(rows) < len(ids):
        rows = list(range(len(ids)))
    latents = world.content(max(rows) + 1, seed)[0][rows]
    angles, others = latents[:, :2], latents[:, 2:]
    return np.hstack([2**0.5 * np.cos(angles), 2**0.5 * np.sin(angles), 12**0.5 * (others - 0.5)])


def _save(path: Path, layers: Mapping[str, np.ndarray], told: Mapping[str, str], ids: Sequence[str]) -> None:
    """A safetensors file whose header is in a fixed order: the library's own writer keeps none in its metadata."""
    header: dict[str, object] = {
        "__metadata__": {**told, "layers": json.dumps(list(layers)), "ids": json.dumps(list(ids))}
    }
    start = 0
    for name, x in layers.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [start, start + x.nbytes]}
        start += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(x.astype("<f4").tobytes() for x in layers.values()))
