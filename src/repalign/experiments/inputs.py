"""One layer of each of several models, from files of features, stores or memory, with paired rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repalign.errors import RepalignError, choose

LAST = "last"


@dataclass(frozen=True, eq=False)
class Inputs:
    """Layers as float64 arrays (n, d), one of each model.

    names : of the models. layers : which layer of each. ids : of the rows; None where they are paired by position. how : what
    was read, in sentences.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    arrays: tuple[np.ndarray, ...]
    ids: tuple[str, ...] | None
    how: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.arrays[0])


def read_inputs(inputs: Sequence[Any] | Mapping[str, Any], layers: Sequence[str] | None = None) -> Inputs:
    """One layer of each input: a file of features, STORE#MODEL (a model of a feature store), or an array, mapping or frame.

    layers : a name for each input, or one for all: "last" is the last layer. By default the only one.

    Raises RepalignError for a layer or model that is not there, several layers without a name, an RDM or kernel, NaN, and rows
    that cannot be paired.
    """
    from repalign.features import join, read_features
    from repalign.layers import as_features

    named = list(inputs.items()) if isinstance(inputs, Mapping) else list(zip(_names(inputs), inputs, strict=True))
    found = [_stored(one) or read_features(one, name=name) for name, one in named]
    joined, wanted = join(found), [None] * len(named) if layers is None else list(layers) * (len(named) // max(len(layers), 1))
    if len(wanted) != len(named):
        raise RepalignError("layers do not fit the models", expected=f"one name, or {len(named)}", got=", ".join(layers or ()))
    arrays, chosen = [], []
    for (name, _), some, layer in zip(named, joined.layers, wanted, strict=True):
        if layer is None and len(some) > 1:
            raise RepalignError(
                f"{name}: which layer?", expected="one name for all models, or one for each; last is the last layer",
                got=f"{len(some)} layers: {', '.join(list(some)[:8])}{' ...' * (len(some) > 8)}", remedy="say --layers last",
            )  # fmt: skip
        names = list(some)
        at = names[-1] if layer in (None, LAST) else choose("layer", str(layer), names, f"{name}: no layer {layer!r}")
        arrays.append(as_features(some[at], f"{name}, layer {at}").double().cpu().numpy())
        chosen.append(at)
    return Inputs(tuple(name for name, _ in named), tuple(chosen), tuple(arrays), joined.ids, tuple(joined.how))


def read_columns(given: Any, ids: Sequence[str], label: str, others: Mapping[str, str | None]) -> dict[str | None, np.ndarray]:
    """Labels of the rows of these ids, and `others` by what they are for: columns of a table; or a label per row, and no others."""
    from repalign.competence import read_labels

    asked = [name for name in others.values() if name is not None]
    if isinstance(given, (str, Path)):
        return {name: np.array(read_labels(given, ids, name)) for name in dict.fromkeys([label, *asked])}
    labels = np.array(list(map(str, given)))
    if len(labels) != len(ids) or asked:
        raise RepalignError("labels do not fit the rows", expected=f"{len(ids)}, without {', '.join(others)}; or a table",
                            got=len(labels))  # fmt: skip
    return {label: labels}


def _names(inputs: Sequence[Any]) -> list[str]:
    """What inputs are called: files by their stem, models of a store by their name, where that tells them apart."""
    short = [str(one).rpartition("#")[2] if is_stored(one) else Path(one).stem if isinstance(one, (str, Path)) else f"x{k}"
             for k, one in enumerate(inputs, start=1)]  # fmt: skip
    twice = {name for name in short if short.count(name) > 1}
    out = [str(one) if name in twice else name for one, name in zip(inputs, short, strict=True)]
    if len(set(out)) < len(out):
        raise RepalignError("an input is given twice", expected="other models", got=", ".join(out))
    return out


def is_stored(one: Any) -> bool:
    return isinstance(one, str) and "#" in one and not Path(one).exists()


def _stored(one: Any) -> Any:
    """What a store holds of a model, as the reader of features gives it; None for what is not STORE#MODEL."""
    if not is_stored(one):
        return None
    from repalign.features import Found

    place, _, model = one.rpartition("#")
    r = _representation(place, model)
    return Found({layer: r.load(layer) for layer in r.layers}, r.n, tuple(r.ids), f"{model}: from {place}", what=model)


def manifest_of(one: str) -> Path:
    """The file that states every byte of what STORE#MODEL names."""
    from repalign.store.format import MANIFEST

    place, _, model = one.rpartition("#")
    return Path(_representation(place, model).path) / MANIFEST


def _representation(place: str, model: str) -> Any:
    from repalign.store import FeatureStore

    there = FeatureStore(place).representations()
    choose("model", model, {r.name for r in there}, f"{place}: no model {model!r}")
    several = [r for r in there if r.name == model]
    if len(several) > 1:
        raise RepalignError(f"{place}: {model} is kept {len(several)} times", expected="one data set, read in one way",
                            got=", ".join(r.dataset_name for r in several), remedy="give files of features")  # fmt: skip
    return several[0]
